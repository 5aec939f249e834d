"""The ground of the simulated farmland: which habitat lies where, its plots, rows and buildings.

Everything is drawn in metres in a frame that is turned and mirrored by the seed, so that no line follows the pixel
grid. Trees stand on this ground (`geoeco.simulate.uav_crowns`); light and camera come later
(`geoeco.simulate.uav_picture`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

__all__ = ["HABITATS", "Building", "Layout", "codes_of", "make_layout", "smooth_noise"]

Floats = npt.NDArray[np.float32]

#: Code, name and colour of the habitats of farmland: the sixteen of DWFF-Net (arXiv 2511.11659 and its code).
HABITATS: tuple[tuple[int, str, str], ...] = (
    (0, "background", "#3c3c3c"),
    (1, "arbor-shrub-grass compound land", "#8fb05a"),
    (2, "dry land", "#f1d27a"),
    (3, "grass belt", "#b8e08c"),
    (4, "scattered trees", "#4c9a2a"),
    (5, "dirt road", "#b08455"),
    (6, "paved road", "#8c8c94"),
    (7, "forest belt", "#1f6b3a"),
    (8, "woody area", "#0f4a28"),
    (9, "unused land", "#d9c7b8"),
    (10, "paddy field", "#7fd4c1"),
    (11, "ridge", "#e0703a"),
    (12, "construction land", "#d0403e"),
    (13, "river", "#2f6fc4"),
    (14, "tidal flats", "#c9b3e0"),
    (15, "water", "#63b8f2"),
)

#: What grows on a plot of dry land.
CROPS = ("maize", "soybean", "potato", "stubble", "fallow")
_CROP_ODDS = (0.34, 0.30, 0.12, 0.14, 0.10)
#: The code of paddy in `Layout.crop`, after those of `CROPS`.
PADDY = len(CROPS)

#: Kinds of roofs and their odds.
ROOFS = ("tile", "blue steel", "white steel", "grey concrete")
_ROOF_ODDS = (0.45, 0.2, 0.1, 0.25)


def codes_of(*names: str) -> tuple[int, ...]:
    """Codes of habitats by name."""
    table = {name: code for code, name, _ in HABITATS}
    return tuple(table[name] for name in names)


@dataclass(frozen=True)
class Building:
    """A building with a ridge roof along its longer side: centre, sides and height in metres, turn in radians."""

    east: float
    north: float
    length: float
    width: float
    turn: float
    height: float
    roof: str


@dataclass(frozen=True)
class Layout:
    """The ground without trees, all rasters ``(y, x)``.

    Attributes
    ----------
    east, north : numpy.ndarray
        Metres from the centre.
    along, across : numpy.ndarray
        The same in the frame of roads and plots.
    habitat : numpy.ndarray of uint8
        Codes of `HABITATS`.
    plot : numpy.ndarray of int16
        Number of the plot, 0 outside fields.
    crop : numpy.ndarray of int8
        By number of the plot: position in `CROPS`, or `PADDY`.
    row : numpy.ndarray
        Metres across the rows of a plot.
    to_edge : numpy.ndarray
        Metres to the nearest border of the plot.
    to_road, to_track, to_river : numpy.ndarray
        Signed metres to the middle of the paved road, the dirt road and the river.
    river_half : float
        Half the width of the river in metres.
    buildings : tuple of Building
    """

    east: Floats
    north: Floats
    along: Floats
    across: Floats
    habitat: npt.NDArray[np.uint8]
    plot: npt.NDArray[np.int16]
    crop: npt.NDArray[np.int8]
    row: Floats
    to_edge: Floats
    to_road: Floats
    to_track: Floats
    to_river: Floats
    river_half: float
    buildings: tuple[Building, ...]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Floats:
    """Smooth random field ``(y, x)`` of mean 0 and standard deviation 1: a cubic B-spline on a grid of random numbers.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int)
    cell : float
        Pixels between the knots, at least 1.
    """
    rows, cols = (_spline(length, cell) for length in shape)
    knots = rng.standard_normal((rows.shape[1], cols.shape[1]), dtype=np.float32)
    field = np.ascontiguousarray((cols @ (rows @ knots).T).T, dtype=np.float32)
    # the sum of squared weights of a cubic B-spline is 0.4794 in the mean, in each direction
    return field / np.float32(0.4794)


def _spline(length: int, cell: float) -> Any:
    place = np.arange(length) / cell
    first = np.floor(place).astype(np.int64)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], -1) / 6
    columns = first[:, None] + np.arange(4)
    where = (np.repeat(np.arange(length), 4), columns.ravel())
    return scipy.sparse.csr_matrix(
        (weights.ravel().astype(np.float32), where), shape=(length, int(first[-1]) + 4), dtype=np.float32
    )


@dataclass(frozen=True)
class _Plots:
    number: npt.NDArray[np.int16]
    row: Floats
    to_edge: Floats
    count: int


def _plots(rng: np.random.Generator, a: Floats, b: Floats, width: float, length: float) -> _Plots:
    """Divide the ground into strips across `a` and each strip into plots along `b`."""
    cuts = _cuts(rng, a, width)
    number = np.zeros(a.shape, np.int16)
    to_side, to_end = np.zeros(a.shape, np.float32), np.zeros(a.shape, np.float32)
    count = 0
    for low, high in pairwise(cuts):
        ends = _cuts(rng, b, length)
        here = np.flatnonzero((a > low) & (a <= high))
        part, across = b.ravel()[here], a.ravel()[here]
        place = np.searchsorted(ends, part).clip(1, len(ends) - 1)
        number.ravel()[here] = count + place
        to_side.ravel()[here] = np.minimum(across - low, high - across)
        to_end.ravel()[here] = np.minimum(part - ends[place - 1], ends[place] - part)
        count += len(ends) - 1
    # rows run along a plot, at its ends across it
    headland = (to_end < 0.12 * length) & (to_end < 4.0) & (to_end < to_side)
    return _Plots(
        number,
        np.where(headland, b, a).astype(np.float32),
        np.minimum(to_side, to_end).astype(np.float32),
        count,
    )


def _cuts(rng: np.random.Generator, values: Floats, step: float) -> Floats:
    low, high = float(values.min()) - step, float(values.max()) + step
    steps = step * rng.uniform(0.6, 1.4, int((high - low) / (0.6 * step)) + 2)
    cuts = low + np.cumsum(steps) - float(rng.uniform(0.0, step))
    return np.append(cuts[cuts < high], high).astype(np.float32)


def make_layout(seed: int, size: int, gsd: float) -> Layout:
    """Draw the ground of a square of `size` pixels of `gsd` metres.

    Widths of roads, rows and ridges are what they are on real farmland; the number of plots grows with the square, and
    in one of less than 200 m plots, belt and river are narrower, so that all habitats still lie in it.
    """
    rng = np.random.default_rng([seed, 21])
    extent = size * gsd
    step = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(gsd) - np.float32(extent / 2)
    north, east = np.meshgrid(-step, step, indexing="ij")
    turn = math.radians(float(rng.uniform(5.0, 16.0))) * float(rng.choice([-1.0, 1.0]))
    turn += math.pi / 2 * float(rng.integers(4))
    mirror = float(rng.choice([-1.0, 1.0]))

    def wobble(cell_m: float, amplitude_m: float) -> Floats:
        return np.float32(amplitude_m) * smooth_noise(rng, (size, size), max(cell_m / gsd, 2.0))

    along = np.float32(math.cos(turn)) * east + np.float32(math.sin(turn)) * north
    across = np.float32(mirror) * (np.float32(math.cos(turn)) * north - np.float32(math.sin(turn)) * east)
    bend = 0.004 * extent
    p, q = along + wobble(0.25 * extent, bend), across + wobble(0.25 * extent, bend)
    rough = wobble(2.0, 0.25)

    def wave(x: Floats, amplitude: float, period: float) -> Floats:
        phase = float(rng.uniform(0.0, 2.0 * math.pi))
        return np.float32(amplitude * extent) * np.sin(x * np.float32(2.0 * math.pi / (period * extent)) + phase)

    to_road = across + wave(along, 0.012, 1.3) + np.float32(extent * rng.uniform(0.06, 0.12))
    to_track = p + wave(q, 0.01, 0.7) + np.float32(extent * rng.uniform(0.02, 0.08))
    to_river = along + wave(across, 0.035, 0.75) - np.float32(extent * rng.uniform(0.24, 0.29))
    river_half = float(np.clip(0.03 * extent, 2.0, 7.0))
    road_half = float(np.clip(0.016 * extent, 1.2, 3.0))
    verge = float(np.clip(0.012 * extent, 0.8, 2.4))
    belt = float(np.clip(0.055 * extent, 4.0, 10.0))
    track_half = float(np.clip(0.009 * extent, 0.8, 1.6))

    width, length = float(np.clip(0.10 * extent, 5.0, 24.0)), float(np.clip(0.30 * extent, 14.0, 80.0))
    dry = _plots(rng, p, q, width, length)
    far = _plots(rng, q, p, width, length)
    paddies = _plots(rng, q, p, 0.5 * width, 0.4 * length)
    upper, left = to_road < 0, to_track < 0
    plot = np.where(upper, far.number + dry.count, np.where(left, dry.number, paddies.number + dry.count + far.count))
    row = np.where(upper, far.row, np.where(left, dry.row, paddies.row))
    to_edge = np.where(upper, far.to_edge, np.where(left, dry.to_edge, paddies.to_edge))
    count = dry.count + far.count + paddies.count
    crop = rng.choice(len(CROPS), count + 1, p=_CROP_ODDS).astype(np.int8)
    crop[dry.count + far.count + 1 :] = PADDY

    habitat = np.full((size, size), 2, np.uint8)
    habitat[~upper & ~left] = 10
    ridge_half = np.float32(0.45) + wobble(3.0, 0.10)
    habitat[to_edge < ridge_half] = 11

    # across the river: wood above the road, below it land of trees, shrubs and grass
    beyond = to_river > 0
    habitat[beyond] = np.where(upper[beyond], 8, 1)

    # above the road, from the village by waste land to the pond
    frame_p, frame_q = p / np.float32(extent), q / np.float32(extent)
    floor = -0.115 - (road_half + 2 * verge + belt) / extent
    strip = upper & (frame_q < floor) & (frame_q > floor - 0.20)
    habitat[strip & (frame_p + rough / extent < -0.06)] = 9
    habitat[strip & (frame_p < -0.20)] = 12
    pond_at = (0.075, floor - 0.09)
    pond = np.hypot((frame_p - pond_at[0]) / 0.085, (frame_q - pond_at[1]) / 0.055) + wobble(0.06 * extent, 0.05)
    habitat[pond < 1.25] = 3
    habitat[pond < 1.0] = 15

    bank = np.abs(to_river) + rough
    inner = np.float32(0.9 * river_half) * np.maximum(0.0, smooth_noise(rng, (size, size), 0.18 * extent / gsd) + 0.3)
    habitat[bank < river_half + inner + verge + 1.0] = 3
    habitat[bank < river_half + inner] = 14
    habitat[bank - 0.4 * rough < river_half] = 13

    dirt = ~upper & (np.abs(to_track) < track_half + 0.2 * rough)
    habitat[~upper & (np.abs(to_track) < track_half + verge + rough) & ~beyond] = 3
    habitat[dirt & ~beyond] = 5

    on_land = np.abs(to_river) > river_half
    side = -to_road
    habitat[(np.abs(to_road) + 0.5 * rough < road_half + verge) & on_land] = 3
    in_belt = (side + 0.4 * rough > road_half + verge) & (side + 0.4 * rough < road_half + verge + belt)
    habitat[in_belt & (bank > river_half + inner)] = 7
    habitat[(side > road_half + verge + belt) & (side < road_half + 2 * verge + belt + rough) & (bank > river_half)] = 3
    habitat[np.abs(to_road) < road_half] = 6

    plot[~np.isin(habitat, (2, 10))] = 0
    return Layout(
        east, north, along, across, habitat, plot.astype(np.int16), crop, row.astype(np.float32),
        to_edge.astype(np.float32), to_road, to_track, to_river, river_half,
        _buildings(rng, habitat == 12, extent, gsd, turn),
    )  # fmt: skip


def _buildings(
    rng: np.random.Generator, village: npt.NDArray[np.bool_], extent: float, gsd: float, turn: float
) -> tuple[Building, ...]:
    """Place houses in the village, the one larger than the other, none over its border or another house."""
    scale = float(np.clip(extent / 160.0, 0.3, 1.0))
    free = village.copy()
    inside = np.flatnonzero(village)
    houses: list[Building] = []
    size = len(village)
    for attempt in range(300 if len(inside) else 0):
        # sheds after houses
        small = attempt >= 120
        row, col = divmod(int(rng.choice(inside)), size)
        length, width = scale * rng.uniform(8.0, 18.0), scale * rng.uniform(5.0, 9.0)
        height, roof = scale * rng.uniform(3.5, 6.5), ROOFS[int(rng.choice(len(ROOFS), p=_ROOF_ODDS))]
        if small:
            length, width, height = 0.22 * length, 0.3 * width, 0.4 * height
        reach = int((math.hypot(length, width) / 2 + 0.2 * length) / gsd)
        window = (slice(max(row - reach, 0), row + reach + 1), slice(max(col - reach, 0), col + reach + 1))
        full = len(houses) >= (16 if small else 7)
        if full or min(row, col) < reach or max(row, col) + reach >= size or not free[window].all():
            continue
        free[window] = False
        east, north = (col + 0.5) * gsd - extent / 2, extent / 2 - (row + 0.5) * gsd
        facing = turn + math.pi / 2 * float(rng.integers(2)) + (float(rng.normal(0.0, 0.4)) if small else 0.0)
        houses.append(
            Building(east, north, float(length), float(width), facing, float(height), roof if houses else "white steel")
        )
    return tuple(houses)
