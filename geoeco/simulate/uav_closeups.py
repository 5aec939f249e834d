"""Close-up photos of simulated crowns, and photo points on the ground: what people bring home beside the orthomosaic.

A close-up shows leaves, by which species differ more than from above. A photo point says what someone saw round it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import Transformer
from scipy.ndimage import gaussian_filter

from geoeco.simulate.uav_crowns import Crown, Leaf
from geoeco.simulate.uav_layout import HABITATS, smooth_noise

__all__ = ["CLOSEUP_GSD_M", "CLOSEUP_SIZE", "CloseUp", "closeup_table", "draw_closeups", "photo_points", "take_photo"]

Floats = npt.NDArray[np.float32]

#: Pixels along a side of a close-up, and metres of a pixel.
CLOSEUP_SIZE, CLOSEUP_GSD_M = 224, 0.01
_RTK_M = 0.3
_LEAVES = 2000
_TURNS = 16


@dataclass(frozen=True)
class CloseUp:
    """A photo: its number, place as measured (metres from the centre), accuracy, day, and the crown that it shows."""

    number: int
    east: float
    north: float
    accuracy_m: float
    day: date
    crown: Crown | None

    @property
    def name(self) -> str:
        """File name."""
        return f"closeup_{self.number:04d}.jpg"


def draw_closeups(seed: int, crowns: list[Crown], ground: tuple[float, float], flight: date) -> list[CloseUp]:
    """Decide which crowns are photographed, from where, and what the receiver says of the place.

    Two of five crowns, all of the rare species and of the two that stand closest; one in four of them up to three
    times. One more photo shows the ground.

    Parameters
    ----------
    seed : int
    crowns : list of Crown
    ground : (float, float)
        A place without a crown, metres from the centre.
    flight : datetime.date
        Day of the mosaic; close-ups follow on the next two days.
    """
    rng = np.random.default_rng([seed, 26])
    places = np.array([[crown.east, crown.north] for crown in crowns])
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, math.inf)
    closest = set(np.unravel_index(int(apart.argmin()), apart.shape))
    counts = np.bincount([crown.species for crown in crowns])
    rare = int(np.where(counts > 0, counts, len(crowns) + 1).argmin())
    photos: list[CloseUp] = []
    for index, crown in enumerate(crowns):
        chosen = rng.random() < 0.4 or crown.species == rare or index in closest
        times = int(rng.choice([1, 2, 3], p=[0.75, 0.15, 0.10]))
        if not chosen:
            continue
        for _ in range(times):
            reach, angle = 0.3 * crown.diameter * math.sqrt(rng.random()), rng.uniform(0.0, 2.0 * math.pi)
            place = places[index] + reach * np.array([math.cos(angle), math.sin(angle)])
            photos.append(_photo(rng, len(photos) + 1, place, flight, crown))
    # between the two crowns that stand closest: which one it shows, only the truth says
    first, second = sorted(closest)
    middle = 0.54 * places[first] + 0.46 * places[second]
    photos.append(_photo(rng, len(photos) + 1, middle, flight, crowns[first], error=0.0))
    photos.append(_photo(rng, len(photos) + 1, np.array(ground), flight, None, error=0.0))
    return photos


def _photo(
    rng: np.random.Generator,
    number: int,
    place: npt.NDArray[np.float64],
    flight: date,
    crown: Crown | None,
    error: float = _RTK_M / math.sqrt(2.0),
) -> CloseUp:
    measured = place + rng.normal(0.0, error, 2) if error else place
    accuracy = round(float(_RTK_M * rng.uniform(0.7, 1.3)), 2)
    day = flight + timedelta(days=int(rng.integers(1, 3)))
    return CloseUp(number, float(measured[0]), float(measured[1]), accuracy, day, crown)


def take_photo(seed: int, photo: CloseUp) -> npt.NDArray[np.uint8]:
    """Render a close-up ``(band, y, x)``: leaves over leaves, the deeper the darker; grass where no crown is."""
    rng = np.random.default_rng([seed, 27, photo.number])
    if photo.crown is None:
        colour, leaf = np.array([0.42, 0.50, 0.26]), Leaf("lance", 0.16, 0.012, 0.6)
    else:
        colour, leaf = np.add(photo.crown.kind.colour, photo.crown.tint), photo.crown.kind.leaf
    size = CLOSEUP_SIZE
    light = smooth_noise(rng, (size, size), 45.0)
    ground = (0.22 * colour).astype(np.float32)
    turn = float(rng.uniform(0.0, 2.0 * math.pi))
    sizes = (0.8, 1.0, 1.2)
    stamps = [[_stamp(leaf, scale, 2.0 * math.pi * k / _TURNS) for k in range(_TURNS)] for scale in sizes]
    pad = max(stamp.shape[0] for row in stamps for stamp in row)
    # bands first: NumPy works along rows of pixels, not on three bands at a time
    canvas = np.tile(ground[:, None, None], (1, size + 2 * pad, size + 2 * pad))
    depth = np.linspace(0.0, 1.0, _LEAVES)
    rows, cols = rng.integers(0, size + pad, (2, _LEAVES))
    directions = turn + rng.normal(0.0, 1.0, _LEAVES) * (2.4 * (1.0 - leaf.aligned) + 0.25)
    which = np.mod(np.rint(directions / (2.0 * math.pi) * _TURNS).astype(int), _TURNS)
    scales = rng.integers(0, len(sizes), _LEAVES)
    shade = (0.38 + 0.75 * depth) * rng.normal(1.0, 0.11, _LEAVES)
    hues = colour * (1.0 + rng.normal(0.0, 0.05, (_LEAVES, 3)))
    colours = (shade[:, None] * hues).astype(np.float32)[..., None, None]
    for k in range(_LEAVES):
        stamp = stamps[scales[k]][which[k]]
        part = canvas[:, rows[k] : rows[k] + len(stamp), cols[k] : cols[k] + len(stamp)]
        part += stamp * (colours[k] - part)
    picture = np.moveaxis(canvas[:, pad : pad + size, pad : pad + size], 0, -1) * (1.15 + 0.16 * light[..., None])
    picture = gaussian_filter(picture, (0.5, 0.5, 0)) + rng.normal(0.0, 0.012, picture.shape)
    return np.moveaxis(np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8), -1, 0)


@cache
def _stamp(leaf: Leaf, scale: float, turn: float) -> Floats:
    """How much of each pixel a leaf covers ``(y, x)``, by points within pixels."""
    finer = 4
    length, width = scale * leaf.length / CLOSEUP_GSD_M, scale * leaf.width / CLOSEUP_GSD_M
    side = math.ceil(length) + 2
    step = (np.arange(side * finer) + 0.5) / finer - side / 2
    y, x = np.meshgrid(step, step, indexing="ij")
    u = 2.0 * (x * math.cos(turn) + y * math.sin(turn)) / length
    v = 2.0 * (y * math.cos(turn) - x * math.sin(turn)) / width
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    inside = {
        "lance": (np.abs(u) < 1) & (np.abs(v) < np.sqrt(np.maximum(1.0 - u * u, 0.0))),
        "oval": (np.abs(u) < 1) & (np.abs(v) < np.sqrt(np.maximum(1.0 - u * u, 0.0)) * (1.0 - 0.25 * u)),
        "heart": (np.abs(u) < 1) & (np.abs(v) < np.clip(0.75 * (1.0 - u), 0.0, 1.0)),
        "lobed": radius < 0.55 + 0.42 * np.cos(2.5 * angle) ** 2,
        "needles": (radius < 1) & (np.cos(9.0 * angle) > 0.35),
    }[leaf.form]
    # the midrib is paler, the far half in shade
    covered = np.where(inside, np.where(v > 0, 1.0, 0.82), 0.0)
    return np.asarray(covered.reshape(side, finer, side, finer).mean(axis=(1, 3)), np.float32)


def photo_points(
    seed: int, habitat: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_], gsd: float, corner: tuple[float, float],
    epsg: int,
) -> pd.DataFrame:  # fmt: skip
    """Make points where someone took a photo on the ground and said what habitats it shows.

    Parameters
    ----------
    seed : int
    habitat : numpy.ndarray of uint8, (y, x)
        The truth.
    valid : numpy.ndarray of bool, (y, x)
    gsd : float
        Metres.
    corner : (float, float)
        Upper left corner of the raster in its CRS.
    epsg : int

    Returns
    -------
    pandas.DataFrame
        ``lon, lat`` (WGS 84, degrees), ``radius_m``, and one column a habitat with its probability: the habitat's
        part of the circle, blurred by the observer's doubt. Probabilities of a row sum to 1.
    """
    rng = np.random.default_rng([seed, 28])
    extent = len(habitat) * gsd
    radius = round(float(np.clip(0.07 * extent, 3.0, 15.0)), 1)
    codes = [code for code, _, _ in HABITATS]
    rows = []
    spots = np.flatnonzero(valid)
    for spot in rng.choice(spots, int(np.clip(extent / 5.0, 16, 60)), replace=False):
        row, col = divmod(int(spot), habitat.shape[1])
        reach = int(radius / gsd)
        window = habitat[max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1]
        y = np.arange(max(row - reach, 0), max(row - reach, 0) + window.shape[0]) - row
        x = np.arange(max(col - reach, 0), max(col - reach, 0) + window.shape[1]) - col
        inside = np.hypot(y[:, None], x[None, :]) <= reach
        parts = np.bincount(window[inside], minlength=len(codes)).astype(float)
        doubt = (parts / parts.sum()) ** 0.8 * np.exp(rng.normal(0.0, 0.35, len(codes)))
        odds = np.round(doubt / doubt.sum(), 3)
        odds[int(odds.argmax())] += round(1.0 - float(odds.sum()), 3)
        rows.append([corner[0] + (col + 0.5) * gsd, corner[1] - (row + 0.5) * gsd, *np.round(odds, 3)])
    table = np.array(rows)
    lon, lat = Transformer.from_crs(f"EPSG:{epsg}", "EPSG:4326", always_xy=True).transform(table[:, 0], table[:, 1])
    points = pd.DataFrame({"lon": np.round(lon, 7), "lat": np.round(lat, 7), "radius_m": radius})
    points[[name for _, name, _ in HABITATS]] = table[:, 2:]
    return points


def closeup_table(photos: list[CloseUp], centre: tuple[float, float], epsg: int) -> gpd.GeoDataFrame:
    """Points of the photos with ``photo``, ``accuracy_m``, ``date`` and ``crown_id`` (0: no crown)."""
    return gpd.GeoDataFrame(
        {
            "photo": [f"closeups/{photo.name}" for photo in photos],
            "accuracy_m": [photo.accuracy_m for photo in photos],
            "date": [photo.day.isoformat() for photo in photos],
            "crown_id": [0 if photo.crown is None else photo.crown.crown_id for photo in photos],
        },
        geometry=shapely.points([[centre[0] + photo.east, centre[1] + photo.north] for photo in photos]),
        crs=f"EPSG:{epsg}",
    )
