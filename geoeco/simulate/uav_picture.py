"""What a camera sees of the simulated farmland: relief, colours, light and shadow, and the flaws of an orthomosaic.

Colours are display values, 0..1, before light. Habitats share colours and differ by texture and surroundings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from scipy.ndimage import gaussian_filter, uniform_filter1d
from shapely.geometry.base import BaseGeometry

from geoeco.simulate.uav_crowns import Crown
from geoeco.simulate.uav_layout import CROPS, PADDY, Building, Layout, codes_of, smooth_noise

__all__ = ["Relief", "footprint", "make_relief", "paint"]

Floats = npt.NDArray[np.float32]

#: Where the sun stands, in degrees: from north over east, and above the horizon.
SUN_AZIMUTH, SUN_ELEVATION = 132.0, 48.0
_AMBIENT = 0.40

#: Distance of rows in metres, height of plants, cover, and colours of plants and of the ground between them.
_ROWS: dict[str, tuple[float, float, float, tuple[float, float, float], tuple[float, float, float]]] = {
    "maize": (0.65, 1.30, 0.85, (0.33, 0.44, 0.20), (0.22, 0.24, 0.15)),
    "soybean": (0.50, 0.55, 0.70, (0.42, 0.51, 0.25), (0.38, 0.34, 0.25)),
    "potato": (0.80, 0.40, 0.50, (0.36, 0.46, 0.23), (0.45, 0.38, 0.29)),
    "stubble": (0.30, 0.12, 0.60, (0.66, 0.59, 0.42), (0.54, 0.47, 0.35)),
    "fallow": (0.45, 0.14, 0.55, (0.50, 0.43, 0.34), (0.38, 0.32, 0.26)),
    "paddy": (0.30, 0.45, 0.78, (0.41, 0.51, 0.25), (0.36, 0.40, 0.34)),
}
_ROOF_COLOURS = {
    "tile": (0.58, 0.30, 0.24),
    "blue steel": (0.30, 0.45, 0.66),
    "white steel": (0.97, 0.98, 0.99),
    "grey concrete": (0.60, 0.59, 0.57),
}


@dataclass(frozen=True)
class Relief:
    """Heights ``(y, x)`` in metres: the ground, and what stands on it."""

    ground: Floats
    above: Floats


def footprint(seed: int, extent: float) -> BaseGeometry:
    """Ground that the mosaic covers, in metres from the centre: the union of its photos, with one hole."""
    rng = np.random.default_rng([seed, 23])
    heading = float(rng.uniform(0.0, math.pi))
    length, width = 0.17 * extent, 0.13 * extent
    photos = []
    for along in np.arange(-0.75, 0.76, 0.08) * extent:
        for across in np.arange(-0.75, 0.76, 0.06) * extent:
            x = along * math.cos(heading) - across * math.sin(heading)
            y = along * math.sin(heading) + across * math.cos(heading)
            turn = heading + math.radians(float(rng.normal(0.0, 5.0)))
            shift = rng.normal(0.0, 0.012 * extent, 2)
            if max(abs(x), abs(y)) > 0.44 * extent:
                continue
            corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * np.array([length, width]) / 2
            turned = corners @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
            photos.append(shapely.Polygon(turned + np.array([x + shift[0], y + shift[1]])))
    whole = shapely.union_all(photos)
    angle = np.linspace(0.0, 2.0 * math.pi, 14, endpoint=False)
    centre = rng.uniform(-0.25, 0.25, 2) * extent
    radius = 0.014 * extent * rng.uniform(0.5, 1.4, len(angle))
    hole = shapely.Polygon(centre + np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None])
    seen: BaseGeometry = shapely.difference(whole, hole)
    return seen


def make_relief(seed: int, layout: Layout, canopy: Floats, gsd: float) -> Relief:
    """Heights of the ground and of all that stands on it: trees, houses, crops, shrubs."""
    rng = np.random.default_rng([seed, 24])
    shape, extent = canopy.shape, len(canopy) * gsd
    ground = np.float32(178.0) + np.float32(0.012 * extent) * smooth_noise(rng, shape, 0.4 * extent / gsd)
    ground += np.float32(0.15) * smooth_noise(rng, shape, max(8.0 / gsd, 2.0))
    channel = np.clip(1.0 - (np.abs(layout.to_river) - layout.river_half) / 5.0, 0.0, 1.0)
    ground -= np.float32(1.8) * (channel * channel * (3.0 - 2.0 * channel)).astype(np.float32)
    (pond,) = codes_of("water")
    ground -= np.float32(0.8) * gaussian_filter((layout.habitat == pond).astype(np.float32), 1.0 / gsd, truncate=2.0)
    ground += np.float32(0.7) * np.clip(1.6 - np.abs(layout.to_road) / 4.0, 0.0, 1.0)
    above = np.maximum(_low_plants(rng, layout, gsd), canopy)
    for house in layout.buildings:
        window, x, y = _local(house, layout, gsd)
        inside = (np.abs(x) <= house.length / 2) & (np.abs(y) <= house.width / 2)
        roof = house.height + 0.35 * (house.width / 2 - np.abs(y))
        above[window] = np.where(inside, np.maximum(roof, above[window]), above[window])
    return Relief(ground.astype(np.float32), above.astype(np.float32))


def _local(house: Building, layout: Layout, gsd: float) -> tuple[tuple[slice, slice], Floats, Floats]:
    """Window round a house, and metres from its middle along its sides."""
    size = len(layout.habitat)
    reach = int((house.length + house.width) / 2 / gsd) + 2
    row, col = int((size * gsd / 2 - house.north) / gsd), int((house.east + size * gsd / 2) / gsd)
    window = (slice(max(row - reach, 0), row + reach), slice(max(col - reach, 0), col + reach))
    dx, dy = layout.east[window] - house.east, layout.north[window] - house.north
    cos, sin = math.cos(house.turn), math.sin(house.turn)
    return window, dx * cos + dy * sin, dy * cos - dx * sin


def _rows_of(layout: Layout, distance: npt.NDArray[np.float32], wander: Floats) -> Floats:
    """Profile across the rows of all plots, 0 between rows and 1 on them."""
    turns = (layout.row + np.float32(0.05) * wander) / distance
    return np.asarray(0.5 + 0.5 * np.cos(np.float32(2.0 * math.pi) * turns), dtype=np.float32)


def _low_plants(rng: np.random.Generator, layout: Layout, gsd: float) -> Floats:
    shape = layout.habitat.shape
    low = np.zeros(shape, np.float32)
    fine, tufts = smooth_noise(rng, shape, max(0.2 / gsd, 1.0)), smooth_noise(rng, shape, max(1.1 / gsd, 1.0))
    names = [*CROPS, "paddy"]
    distance = np.array([_ROWS[name][0] for name in names], np.float32)[layout.crop][layout.plot]
    height = np.array([_ROWS[name][1] for name in names], np.float32)[layout.crop][layout.plot]
    field = layout.plot > 0
    profile = _rows_of(layout, distance, tufts)
    low[field] = (height * (0.55 + 0.45 * profile + 0.12 * fine))[field]
    grass = np.isin(layout.habitat, codes_of("grass belt", "ridge", "forest belt", "unused land"))
    low[grass] = (0.18 + 0.07 * fine + 0.08 * tufts)[grass]
    wood = np.isin(layout.habitat, codes_of("woody area"))
    low[wood] = (0.9 + 0.35 * tufts + 0.15 * fine)[wood]
    compound = np.isin(layout.habitat, codes_of("arbor-shrub-grass compound land"))
    shrubs = np.clip(1.1 * (smooth_noise(rng, shape, max(1.6 / gsd, 1.0)) - 0.45), 0.0, 1.2)
    low[compound] = (0.22 + shrubs + 0.08 * fine)[compound]
    return np.maximum(low, 0.0)


def paint(
    seed: int, layout: Layout, crowns: list[Crown], instance: npt.NDArray[np.int32], relief: Relief, gsd: float
) -> npt.NDArray[np.uint8]:
    """Paint the orthomosaic ``(band, y, x)``: red, green and blue, 0..255, also where no photo covers the ground."""
    rng = np.random.default_rng([seed, 25])
    colour = _colours(rng, layout, gsd)
    _paint_houses(rng, colour, layout, gsd)
    _paint_crowns(rng, colour, crowns, instance, relief, gsd)
    colour *= _light(relief, gsd)
    _flaws(rng, colour, layout, gsd)
    return np.rint(np.clip(colour, 0.0, 1.0) * 255.0).astype(np.uint8)


def _mix(first: tuple[float, ...], second: tuple[float, ...], part: Floats) -> Floats:
    """Mix two colours: ``(band, ...)``."""
    a, b = (np.array(c, np.float32).reshape(3, *[1] * part.ndim) for c in (first, second))
    mixed: Floats = a + (b - a) * part
    return mixed


def _colours(rng: np.random.Generator, layout: Layout, gsd: float) -> Floats:
    """Colour of the ground and the low plants on it, ``(band, y, x)``."""
    shape, habitat = layout.habitat.shape, layout.habitat
    pixel, fine, mid, broad = (smooth_noise(rng, shape, max(cell / gsd, 1.0)) for cell in (0.1, 0.35, 1.5, 9.0))
    spots = smooth_noise(rng, shape, max(0.6 / gsd, 1.0))
    colour = np.zeros((3, *shape), np.float32)

    def fill(name: str, first: tuple[float, ...], second: tuple[float, ...], part: Floats, grain: float) -> None:
        here = habitat == codes_of(name)[0]
        mixed = _mix(first, second, np.clip(part[here], 0.0, 1.0))
        colour[:, here] = mixed * (1.0 + np.float32(grain) * (0.6 * pixel[here] + 0.4 * fine[here]))

    fill("grass belt", (0.40, 0.48, 0.25), (0.54, 0.53, 0.32), 0.35 + 0.22 * mid + 0.15 * broad, 0.09)
    fill("ridge", (0.42, 0.48, 0.26), (0.57, 0.49, 0.37), 0.45 + 0.35 * mid, 0.10)
    fill("forest belt", (0.28, 0.35, 0.19), (0.46, 0.44, 0.28), 0.35 + 0.25 * mid, 0.12)
    fill("woody area", (0.26, 0.34, 0.17), (0.38, 0.45, 0.23), 0.40 + 0.25 * mid + 0.1 * broad, 0.13)
    fill("unused land", (0.58, 0.51, 0.40), (0.41, 0.45, 0.25), 1.4 * mid - 0.2 + 0.4 * broad, 0.13)
    fill("construction land", (0.64, 0.60, 0.55), (0.60, 0.52, 0.41), 0.5 + 0.9 * broad, 0.06)
    fill("arbor-shrub-grass compound land", (0.47, 0.50, 0.29), (0.30, 0.40, 0.19), 0.35 + 0.4 * mid, 0.10)
    above_water = (np.abs(layout.to_river) - layout.river_half) / np.float32(0.6 * layout.river_half)
    fill("tidal flats", (0.40, 0.36, 0.29), (0.64, 0.57, 0.45), above_water + 0.25 * mid + 0.15 * fine, 0.05)
    fill("river", (0.34, 0.37, 0.29), (0.41, 0.42, 0.34), 0.5 + 0.3 * broad + 0.1 * mid, 0.025)
    fill("water", (0.25, 0.32, 0.28), (0.31, 0.38, 0.32), 0.5 + 0.3 * broad, 0.02)

    half = float(np.clip(0.016 * len(habitat) * gsd, 1.2, 3.0))
    fill("paved road", (0.52, 0.52, 0.53), (0.58, 0.57, 0.56), 0.5 + 0.4 * broad + 0.2 * mid, 0.035)
    road = habitat == codes_of("paved road")[0]
    dashes = (np.abs(layout.to_road) < 0.09) & (np.mod(layout.along, 7.0) < 4.0)
    lines = road & (dashes | (np.abs(np.abs(layout.to_road) - 0.87 * half) < 0.08))
    colour[:, lines] = 0.86
    wheels = np.exp(-(((np.abs(np.abs(layout.to_road) - 0.45 * half) - 0.75) / 0.35) ** 2))
    colour[:, road] *= 1.0 - 0.07 * wheels[road]

    track_half = float(np.clip(0.009 * len(habitat) * gsd, 0.8, 1.6))
    fill("dirt road", (0.63, 0.56, 0.44), (0.55, 0.47, 0.36), 0.5 + 0.3 * mid + 0.2 * fine, 0.06)
    middle = np.exp(-((layout.to_track / np.float32(0.28 * track_half)) ** 2)) * (0.6 + 0.4 * spots)
    dirt = habitat == codes_of("dirt road")[0]
    weeds = np.clip(middle, 0.0, 1.0)[dirt]
    colour[:, dirt] = colour[:, dirt] * (1 - weeds) + np.array([[0.42], [0.47], [0.26]], np.float32) * weeds

    _paint_fields(rng, colour, layout, pixel, fine, mid, broad)
    return colour


def _paint_fields(
    rng: np.random.Generator, colour: Floats, layout: Layout, pixel: Floats, fine: Floats, mid: Floats, broad: Floats
) -> None:
    names = [*CROPS, "paddy"]
    count = len(layout.crop)
    plants = np.array([_ROWS[name][3] for name in names], np.float32)[layout.crop]
    soils = np.array([_ROWS[name][4] for name in names], np.float32)[layout.crop]
    # no two plots are alike: sowing, variety, moisture
    plants = plants * (1.0 + rng.normal(0.0, 0.05, (count, 1)) + rng.normal(0.0, 0.025, (count, 3))).astype(np.float32)
    soils = soils * (1.0 + rng.normal(0.0, 0.06, (count, 1))).astype(np.float32)
    cover = np.array([_ROWS[name][2] for name in names], np.float32)[layout.crop] + rng.normal(0.0, 0.07, count)
    distance = np.array([_ROWS[name][0] for name in names], np.float32)[layout.crop]
    field = layout.plot > 0
    plot = layout.plot[field]
    wave = 0.5 + 0.5 * np.cos((layout.row[field] + 0.06 * mid[field]) * np.float32(2 * math.pi) / distance[plot])
    paddy = layout.crop[plot] == PADDY
    # paddy is planted in fine hills and stands in water; other rows are broken by gaps
    share = cover[plot] + np.where(paddy, 0.22, 0.42) * (wave - 0.5) + 0.10 * fine[field] + 0.08 * broad[field]
    share = np.where(paddy, share, share - 0.25 * (mid[field] > 1.7)).clip(0.0, 1.0).astype(np.float32)
    tone = 1.0 + 0.05 * pixel[field] * np.where(paddy, 0.5, 1.3) + 0.03 * broad[field]
    # tractors leave two wheel marks every eighteen metres in dry fields
    tram = np.abs(np.mod(layout.row[field], 18.0) - 9.0)
    wheels = ~paddy & (np.abs(tram - 0.85) < 0.22)
    share = np.where(wheels, 0.35 * share, share)
    # at the foot of the ridges of paddies the water is open
    rim = paddy & (layout.to_edge[field] < 0.9 + 0.15 * mid[field])
    share = np.where(rim, 0.4 * share, share)
    colour[:, field] = ((soils[plot] * (1 - share[:, None]) + plants[plot] * share[:, None]) * tone[:, None]).T


def _paint_houses(rng: np.random.Generator, colour: Floats, layout: Layout, gsd: float) -> None:
    for house in layout.buildings:
        window, x, y = _local(house, layout, gsd)
        inside = (np.abs(x) <= house.length / 2) & (np.abs(y) <= house.width / 2)
        seams = 1.0 - 0.07 * (np.mod(x, 0.55) < 0.12) if house.roof != "grey concrete" else np.ones_like(x)
        base = np.array(_ROOF_COLOURS[house.roof]) * float(rng.uniform(0.92, 1.05))
        painted = base[:, None] * seams[inside] * (1.0 + 0.02 * rng.standard_normal(int(inside.sum())))
        colour[:, *window][:, inside] = painted
        # a black sheet lies in the yard beside the first house
        if house is layout.buildings[0]:
            sheet = (np.abs(x) < 0.3 * house.length) & (np.abs(y - 0.5 * house.width - 1.0) < 0.6)
            colour[:, *window][:, sheet] = -0.05


def _paint_crowns(
    rng: np.random.Generator,
    colour: Floats,
    crowns: list[Crown],
    instance: npt.NDArray[np.int32],
    relief: Relief,
    gsd: float,
) -> None:
    here = instance > 0
    number = instance[here] - 1
    shape = instance.shape
    leaves = np.array([np.add(crown.kind.colour, crown.tint) for crown in crowns], np.float32)
    rim = np.array([crown.kind.rim for crown in crowns], np.float32)
    half = np.array([crown.diameter / 2 for crown in crowns], np.float32)
    rows, cols = np.nonzero(here)
    east = (cols + 0.5) * gsd - shape[1] * gsd / 2 - np.array([c.east for c in crowns])[number]
    north = shape[0] * gsd / 2 - (rows + 0.5) * gsd - np.array([c.north for c in crowns])[number]
    ratio = np.hypot(east, north) / half[number]
    dark = 1.0 - rim[number] * np.clip(ratio, 0.0, 1.0) ** 3
    coarse = np.array([crown.kind.clump for crown in crowns])[number] > 0.4
    grains = [smooth_noise(rng, shape, max(cell / gsd, 1.0))[here] for cell in (0.12, 0.28, 0.6)]
    texture = 0.07 * grains[0] + np.where(coarse, 0.10 * grains[2], 0.10 * grains[1])
    height = relief.above[here] / np.array([crown.height for crown in crowns], np.float32)[number]
    hollow = np.clip(0.6 + 0.45 * height, 0.0, 1.05)
    colour[:, here] = (leaves[number] * (dark * hollow * (1.0 + texture))[:, None]).T


def _light(relief: Relief, gsd: float) -> Floats:
    """Light ``(y, x)`` that falls on each pixel, 1 on level open ground."""
    azimuth, elevation = math.radians(SUN_AZIMUTH), math.radians(SUN_ELEVATION)
    surface = relief.ground + relief.above
    soft = gaussian_filter(surface, 0.6)
    north, east = np.gradient(soft, gsd)
    # where a crown ends its side is hidden: no cliff is lit
    north, east = -np.clip(north, -1.8, 1.8), np.clip(east, -1.8, 1.8)
    flat = math.cos(elevation) / math.sin(elevation)
    # leaves let light through and scatter it: slopes are softened
    slope = 1.0 - flat * (east * math.sin(azimuth) + north * math.cos(azimuth)) / np.sqrt(1.0 + east**2 + north**2)
    direct = np.clip(0.45 + 0.55 * slope, 0.0, 1.3)
    shade = gaussian_filter(_shadow(surface, gsd), 0.8)
    open_sky = np.clip((surface - gaussian_filter(surface, 0.8 / gsd, truncate=2.0)) / 2.0, -0.35, 0.1)
    light: Floats = (_AMBIENT * (1.0 + open_sky) + (1.0 - _AMBIENT) * direct * (1.0 - shade)).astype(np.float32)
    return light


def _shadow(surface: Floats, gsd: float) -> Floats:
    """Where the sun does not reach: 1 in cast shadow, 0 elsewhere."""
    azimuth = math.radians(SUN_AZIMUTH)
    drop = gsd * math.tan(math.radians(SUN_ELEVATION))
    reach = float(surface.max() - surface.min()) / drop
    # highest line of sight over 1, 2, 4, ... pixels towards the sun, each from the one before
    horizon = _moved(surface, -math.cos(azimuth), math.sin(azimuth)) - np.float32(drop)
    steps = 1
    while steps < reach:
        further = _moved(horizon, -steps * math.cos(azimuth), steps * math.sin(azimuth)) - np.float32(steps * drop)
        horizon = np.maximum(horizon, further)
        steps *= 2
    return (horizon > surface + np.float32(0.08)).astype(np.float32)


def _moved(array: Floats, down: float, right: float) -> Floats:
    """What lies `down` rows and `right` columns from each pixel; the border goes on for ever."""
    rows = np.clip(np.arange(array.shape[0]) + round(down), 0, array.shape[0] - 1)
    cols = np.clip(np.arange(array.shape[1]) + round(right), 0, array.shape[1] - 1)
    return array[rows[:, None], cols[None, :]]


def _flaws(rng: np.random.Generator, colour: Floats, layout: Layout, gsd: float) -> None:
    """Change of light, steps between flight strips, blur and noise, in place."""
    shape, extent = layout.habitat.shape, len(layout.habitat) * gsd
    cloudiness = 1.0 + np.float32(0.045) * smooth_noise(rng, shape, 0.35 * extent / gsd)
    heading = float(rng.uniform(0.0, math.pi))
    across = layout.east * np.float32(math.cos(heading)) + layout.north * np.float32(math.sin(heading))
    place = across / np.float32(extent / 3.2) + 0.03 * smooth_noise(rng, shape, 0.05 * extent / gsd) + 3.0
    strip = np.floor(place).astype(np.int64).clip(0, 7)
    tint = (1.0 + rng.normal(0.0, 0.045, (8, 1)) + rng.normal(0.0, 0.012, (8, 3))).astype(np.float32)
    # towards the sun a strip is a little darker
    within = 1.0 + np.float32(0.05) * (place - np.floor(place) - 0.5)
    for band in range(3):
        seen = gaussian_filter(colour[band], 0.55) * cloudiness * within * tint[strip, band]
        seen = uniform_filter1d(seen, 2, axis=0)
        grain = rng.standard_normal(shape, dtype=np.float32)
        colour[band] = seen + (np.float32(0.006) + np.float32(0.012) * np.sqrt(np.clip(seen, 0.0, 1.0))) * grain
