"""The ground of the simulated world: land-cover patches, their phenology and their spectra.

Everything here is a function of a point on the ground and of a day, so that two tiles in two UTM zones see the same
truth. Knows nothing of clouds, products or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.spatial import cKDTree

from geoeco.grid import SENTINEL2_SNAP_M

__all__ = [
    "COVERS",
    "METRES_PER_DEGREE",
    "Cover",
    "Cycle",
    "Ground",
    "Landscape",
    "Tile",
    "epsg_of",
    "first_of_january",
    "make_tiles",
    "mgrs_name",
]

FloatArray = npt.NDArray[np.floating[Any]]

#: Metres in one degree on the sphere of the ground's own coordinates; any constant would do, both tiles share it.
METRES_PER_DEGREE = 111_320.0

#: Days by which the southern world runs ahead of the northern one: half a year less two weeks, so that seasons cross
#: 1 January (grassland peaks before it, deciduous forest after it) while no peak comes so near to it that a patch's
#: year of peak would be left to chance.
SOUTHERN_SHIFT_DAYS = -168.0

#: Dates vary in steps of a quarter day, so that pixels share a finite table of exactly known curves.
SHIFT_STEP_DAYS = 0.25
_GRADIENT_DAYS = 4.0
_PATCH_DAYS = 5.0
_PATCH_YEAR_DAYS = 2.5
_COVER_YEAR_DAYS = 4.0
_AUTUMN_YEAR_DAYS = 4.0


@dataclass(frozen=True)
class Cycle:
    """One growing cycle: Beck's double logistic, northern days of year.

    ``amplitude * (1/(1+exp(-rise (t-start))) + 1/(1+exp(fall (t-end))) - 1)`` (Beck et al. 2006, equation 3).
    """

    amplitude: float
    start: float
    rise: float
    end: float
    fall: float


@dataclass(frozen=True)
class Cover:
    """One land-cover class: the EVI2 of its dormant state, its cycles, and two spectra that span its year.

    Spectra are surface reflectance (0..1) in the order of Sentinel-2's B01 ... B12 without B10.
    """

    code: int
    name: str
    colour: tuple[int, int, int]
    base: float
    cycles: tuple[Cycle, ...]
    dormant: tuple[float, ...]
    green: tuple[float, ...]


# Spectra are rounded textbook shapes; what is exact is the EVI2 curve that they are mixed to. The curves of covers with
# one strong cycle have a definite peak: on a flat summit no method could date it from clouded looks (with 60 % cloud
# and reflectance noise of 0.01 the best possible estimate of any date of the deciduous curve errs by about 2 days in
# the median, of the grassland's by 2.5).
COVERS: tuple[Cover, ...] = (
    Cover(
        1,
        "deciduous",
        (51, 120, 44),
        0.16,
        (Cycle(0.60, 142, 0.085, 236, 0.075),),
        (0.03, 0.04, 0.06, 0.075, 0.10, 0.13, 0.145, 0.16, 0.18, 0.19, 0.24, 0.18),
        (0.02, 0.025, 0.055, 0.03, 0.10, 0.32, 0.43, 0.48, 0.49, 0.49, 0.22, 0.10),
    ),
    Cover(
        2,
        "crop",
        (230, 190, 60),
        0.15,
        (Cycle(0.40, 95, 0.09, 165, 0.09), Cycle(0.52, 212, 0.10, 272, 0.09)),
        (0.06, 0.08, 0.11, 0.14, 0.17, 0.19, 0.21, 0.23, 0.25, 0.26, 0.32, 0.28),
        (0.02, 0.03, 0.07, 0.03, 0.10, 0.34, 0.44, 0.47, 0.48, 0.48, 0.22, 0.11),
    ),
    Cover(
        3,
        "grassland",
        (160, 210, 90),
        0.22,
        (Cycle(0.44, 105, 0.10, 190, 0.08),),
        (0.04, 0.055, 0.085, 0.10, 0.13, 0.18, 0.21, 0.23, 0.25, 0.26, 0.28, 0.21),
        (0.025, 0.035, 0.075, 0.035, 0.11, 0.31, 0.40, 0.45, 0.46, 0.46, 0.24, 0.13),
    ),
    Cover(
        4,
        "evergreen",
        (16, 70, 40),
        0.42,
        (Cycle(0.03, 120, 0.04, 270, 0.04),),
        (0.02, 0.022, 0.04, 0.028, 0.06, 0.17, 0.22, 0.25, 0.26, 0.26, 0.13, 0.06),
        (0.02, 0.022, 0.042, 0.026, 0.06, 0.185, 0.24, 0.27, 0.28, 0.28, 0.13, 0.06),
    ),
    Cover(
        5,
        "bare",
        (190, 150, 120),
        0.114,
        (Cycle(0.02, 100, 0.05, 200, 0.05),),
        (0.10, 0.12, 0.16, 0.20, 0.22, 0.24, 0.26, 0.28, 0.29, 0.30, 0.36, 0.32),
        (0.095, 0.115, 0.155, 0.19, 0.22, 0.25, 0.28, 0.30, 0.31, 0.32, 0.35, 0.31),
    ),
    Cover(
        6,
        "water",
        (40, 90, 190),
        -0.035,
        (Cycle(0.006, 150, 0.05, 250, 0.05),),
        (0.04, 0.045, 0.04, 0.025, 0.02, 0.015, 0.012, 0.010, 0.009, 0.008, 0.005, 0.003),
        (0.038, 0.042, 0.045, 0.025, 0.024, 0.02, 0.018, 0.016, 0.014, 0.012, 0.006, 0.004),
    ),
)

# every 3 x 3 block of patches holds all covers, those with a strong cycle twice
_BLOCK_OF_COVERS = (1, 1, 2, 2, 3, 3, 4, 5, 6)
_RED, _NIR = 3, 7


def epsg_of(geobox: GeoBox) -> int:
    """EPSG code of a grid's CRS."""
    code = None if geobox.crs is None else geobox.crs.to_epsg()
    assert code is not None  # every grid of the world is made with one
    return int(code)


@dataclass(frozen=True)
class Tile:
    """One tile of the world on its own UTM grid.

    Attributes
    ----------
    index : int
    name : str
        MGRS name such as ``31UGS``; the simulated tile covers a part of the real one.
    geobox : odc.geo.geobox.GeoBox
        The 10 m grid; its origin is a multiple of 60 m.
    """

    index: int
    name: str
    geobox: GeoBox

    @property
    def epsg(self) -> int:
        """EPSG code of the tile's UTM zone."""
        return epsg_of(self.geobox)

    def at(self, resolution: int) -> GeoBox:
        """Give the tile's grid at 10, 20 or 60 m."""
        factor = resolution // 10
        rows, cols = self.geobox.shape
        return GeoBox((rows // factor, cols // factor), self.geobox.affine @ Affine.scale(factor), self.geobox.crs)


@dataclass(frozen=True)
class Ground:
    """Local ground coordinates in metres east and north of a point, shared by both tiles."""

    lon: float
    lat: float

    def from_lonlat(self, lon: FloatArray, lat: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Metres east and north of the origin."""
        east = (np.asarray(lon) - self.lon + 180.0) % 360.0 - 180.0
        return east * METRES_PER_DEGREE * math.cos(math.radians(self.lat)), (
            np.asarray(lat) - self.lat
        ) * METRES_PER_DEGREE

    def to_lonlat(self, u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Longitude (continuous across the antimeridian) and latitude in degrees."""
        return (
            self.lon + np.asarray(u) / (METRES_PER_DEGREE * math.cos(math.radians(self.lat))),
            self.lat + np.asarray(v) / METRES_PER_DEGREE,
        )

    def of_pixels(self, geobox: GeoBox) -> tuple[FloatArray, FloatArray]:
        """Ground coordinates ``(y, x)`` of pixel centres."""
        rows, cols = geobox.shape
        a = geobox.affine
        x = a.c + a.a * (np.arange(cols) + 0.5)
        y = a.f + a.e * (np.arange(rows) + 0.5)
        to_lonlat = Transformer.from_crs(f"EPSG:{epsg_of(geobox)}", "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(*np.meshgrid(x, y))
        return self.from_lonlat(lon, lat)


def mgrs_name(zone: int, lat: float, easting: float, northing: float) -> str:
    """Name of the 100 km MGRS square that holds a point of a UTM zone (not for Norway's and Svalbard's exceptions)."""
    band = "CDEFGHJKLMNPQRSTUVWX"[min(int((lat + 80.0) // 8.0), 19)]
    column = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")[(zone - 1) % 3][int(easting // 100_000) - 1]
    rows = "ABCDEFGHJKLMNPQRSTUV" if zone % 2 else "FGHJKLMNPQRSTUVABCDE"
    return f"{zone:02d}{band}{column}{rows[int(northing // 100_000) % 20]}"


def make_tiles(lon: float, lat: float, size: int) -> tuple[Tile, Tile]:
    """Two tiles of `size` pixels of 10 m either side of a boundary of UTM zones, which overlap on the ground."""
    ground = Ground(lon, lat)
    eastern_zone = round((lon + 180.0) / 6.0) % 60 + 1
    western_zone = (eastern_zone - 2) % 60 + 1
    tiles = []
    for index, (zone, side) in enumerate(((western_zone, -0.22), (eastern_zone, 0.22))):
        epsg = (32600 if lat >= 0 else 32700) + zone
        centre = ground.to_lonlat(np.array(side * size * 10.0), np.array(0.0))
        x, y = Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True).transform(*centre)
        left = math.floor((x - size * 5.0) / SENTINEL2_SNAP_M) * SENTINEL2_SNAP_M
        top = math.ceil((y + size * 5.0) / SENTINEL2_SNAP_M) * SENTINEL2_SNAP_M
        geobox = GeoBox((size, size), Affine(10.0, 0.0, left, 0.0, -10.0, top), f"EPSG:{epsg}")
        tiles.append(Tile(index, mgrs_name(zone, lat, x, y), geobox))
    return tiles[0], tiles[1]


def first_of_january(year: int) -> int:
    """Days from 1970-01-01 to 1 January of a year."""
    return int((np.datetime64(f"{year:04d}-01-01", "D") - np.datetime64("1970-01-01", "D")).astype(int))


class Landscape:
    """Patches of land cover with exactly known phenology.

    Each pixel belongs to one *curve*: one patch and one quarter-day step of the date gradient that runs across the
    world. A curve's EVI2 is a base value plus one double logistic per cycle and year, so its dates are known to the
    day; all bands follow from the EVI2 by mixing the cover's two spectra.

    Parameters
    ----------
    seed : int
    tiles : tuple of Tile
    ground : Ground
    southern : bool
    first_year, last_year : int
        Product years.

    Attributes
    ----------
    curve : tuple of numpy.ndarray
        Index of the curve of each pixel ``(y, x)``, one array a tile.
    cover_of_curve : numpy.ndarray
        Cover code ``(curve,)``.
    patches : numpy.ndarray
        Ground coordinates ``(patch, 2)`` of the patches' seeds, metres.
    """

    def __init__(
        self, seed: int, tiles: tuple[Tile, ...], ground: Ground, *, southern: bool, first_year: int, last_year: int
    ) -> None:
        rng = np.random.default_rng([seed, 1])
        self.southern = southern
        self.years = tuple(range(first_year - 2, last_year + 3))
        size = int(tiles[0].geobox.shape[0])
        pixels = [ground.of_pixels(tile.geobox) for tile in tiles]
        west, east = min(float(u.min()) for u, _ in pixels), max(float(u.max()) for u, _ in pixels)
        south, north = min(float(v.min()) for _, v in pixels), max(float(v.max()) for _, v in pixels)
        self.extent = (west, south, east, north)
        spacing = min(420.0, size * 10.0 / 6.0)
        self.patches, patch_cover = _patches(rng, self.extent, spacing)

        tree = cKDTree(self.patches)
        along = np.array([math.sin(0.6), math.cos(0.6)])
        reach = max(east - west, north - south) / 2.0
        steps = round(_GRADIENT_DAYS / SHIFT_STEP_DAYS)
        keys = []
        for u, v in pixels:
            rows = [tree.query(np.stack([u[row], v[row]], axis=-1))[1] for row in range(u.shape[0])]
            level = np.clip(np.rint((u * along[0] + v * along[1]) / reach * steps), -steps, steps)
            keys.append(np.stack(rows).astype(np.int64) * (2 * steps + 1) + (level.astype(np.int64) + steps))
        unique, inverse = np.unique(np.concatenate([key.ravel() for key in keys]), return_inverse=True)
        ends = np.cumsum([key.size for key in keys])[:-1]
        self.curve = tuple(
            part.reshape(key.shape).astype(np.int32) for part, key in zip(np.split(inverse, ends), keys, strict=True)
        )
        self.patch_of_curve = unique // (2 * steps + 1)
        gradient = (unique % (2 * steps + 1) - steps) * SHIFT_STEP_DAYS
        self.cover_of_curve = patch_cover[self.patch_of_curve].astype(np.uint8)

        count = len(self.patches)
        patch_days = _quarter(rng.uniform(-_PATCH_DAYS, _PATCH_DAYS, count))
        patch_year = _quarter(rng.uniform(-_PATCH_YEAR_DAYS, _PATCH_YEAR_DAYS, (count, len(self.years))))
        cover_year = _quarter(rng.uniform(-_COVER_YEAR_DAYS, _COVER_YEAR_DAYS, (len(COVERS), len(self.years))))
        self._autumn = _quarter(rng.uniform(-_AUTUMN_YEAR_DAYS, _AUTUMN_YEAR_DAYS, (len(COVERS), len(self.years))))
        self._cover_year = cover_year
        patch_strength = rng.uniform(0.94, 1.06, count)
        patch_base = rng.uniform(-0.01, 0.01, count)
        self._base = patch_base[self.patch_of_curve]
        self._strength = patch_strength[self.patch_of_curve]
        # (curve, year): the shift of the whole cycle in days
        self._shift = (
            gradient[:, None]
            + (patch_days[:, None] + patch_year)[self.patch_of_curve]
            + cover_year[self.cover_of_curve.astype(int) - 1]
        )

    @property
    def n_curves(self) -> int:
        """How many different curves the world holds."""
        return len(self.cover_of_curve)

    def evi2(self, days: FloatArray, curves: npt.NDArray[np.integer[Any]] | None = None) -> FloatArray:
        """Noise-free EVI2.

        Parameters
        ----------
        days : numpy.ndarray
            Days since 1970-01-01 ``(day,)``.
        curves : numpy.ndarray, optional
            Which curves; all by default.

        Returns
        -------
        numpy.ndarray
            float64 ``(curve, day)``.
        """
        chosen = np.arange(self.n_curves) if curves is None else np.asarray(curves)
        out = np.empty((len(chosen), len(days)))
        for cover in COVERS:
            rows = np.flatnonzero(self.cover_of_curve[chosen] == cover.code)
            index = chosen[rows]
            if len(rows):
                out[rows] = self._of_cover(cover, days, self._shift[index], self._strength[index], self._base[index])
        return out

    def cover_evi2(self, cover: Cover, days: FloatArray) -> FloatArray:
        """EVI2 ``(day,)`` of a cover without the shifts of patches and place."""
        shift = self._cover_year[cover.code - 1][None]
        return np.asarray(self._of_cover(cover, days, shift, np.ones(1), np.zeros(1))[0])

    def _of_cover(
        self, cover: Cover, days: FloatArray, shift: FloatArray, strength: FloatArray, base: FloatArray
    ) -> FloatArray:
        value = np.repeat(cover.base + base[:, None], len(days), axis=1)
        for column, year in enumerate(self.years):
            for cycle in cover.cycles:
                start, end = self._nominal(cover, cycle, column, year)
                # beyond this many days a cycle adds less than 1e-9: skip it
                near = (days > start - 400) & (days < end + 400)
                if not near.any():
                    continue
                t = days[near][None, :] - shift[:, column, None]
                rise = 1.0 / (1.0 + np.exp(np.clip(-cycle.rise * (t - start), -60, 60)))
                fall = 1.0 / (1.0 + np.exp(np.clip(cycle.fall * (t - end), -60, 60)))
                value[:, near] += cycle.amplitude * strength[:, None] * (rise + fall - 1.0)
        return value

    def _nominal(self, cover: Cover, cycle: Cycle, column: int, year: int) -> tuple[float, float]:
        origin = first_of_january(year) - 1.0 + (SOUTHERN_SHIFT_DAYS if self.southern else 0.0)
        return origin + cycle.start, origin + cycle.end + float(self._autumn[cover.code - 1, column])

    def cycles_of(self, cover: Cover) -> list[tuple[Cycle, FloatArray, FloatArray]]:
        """All cycles of a cover in the order of time.

        Returns
        -------
        list of tuple
            The cycle, and the days since 1970 of its two inflections, one value per curve of the cover.
        """
        rows = np.flatnonzero(self.cover_of_curve == cover.code)
        found = []
        for column, year in enumerate(self.years):
            for cycle in cover.cycles:
                start, end = self._nominal(cover, cycle, column, year)
                found.append((cycle, start + self._shift[rows, column], end + self._shift[rows, column]))
        return sorted(found, key=lambda one: float(np.mean(one[1])) if len(rows) else 0.0)

    def reflectance(self, day: float) -> FloatArray:
        """Surface reflectance of every curve on one day: float32 ``(curve, band)``."""
        evi2 = self.evi2(np.array([float(day)]))[:, 0]
        out = np.empty((self.n_curves, len(COVERS[0].dormant)), np.float32)
        for cover in COVERS:
            rows = self.cover_of_curve == cover.code
            dormant, green = np.array(cover.dormant), np.array(cover.green)
            # solve EVI2(dormant + f (green - dormant)) = evi2 for the mixing fraction f: linear in f
            red, nir = dormant[_RED], dormant[_NIR]
            d_red, d_nir = green[_RED] - red, green[_NIR] - nir
            e = evi2[rows]
            fraction = (e * (nir + 2.4 * red + 1.0) - 2.5 * (nir - red)) / (
                2.5 * (d_nir - d_red) - e * (d_nir + 2.4 * d_red)
            )
            out[rows] = dormant + fraction[:, None] * (green - dormant)
        return out


def _quarter(days: FloatArray) -> FloatArray:
    return np.rint(days / SHIFT_STEP_DAYS) * SHIFT_STEP_DAYS


def _patches(
    rng: np.random.Generator, extent: tuple[float, float, float, float], spacing: float
) -> tuple[FloatArray, npt.NDArray[np.integer[Any]]]:
    """Seeds of patches on a jittered grid and the cover of each."""
    west, south, east, north = extent
    cols = math.ceil((east - west) / spacing / 3.0) * 3 + 3
    rows = math.ceil((north - south) / spacing / 3.0) * 3 + 3
    jitter = rng.uniform(-0.38, 0.38, (rows, cols, 2))
    j, i = np.meshgrid(np.arange(cols), np.arange(rows))
    centre_u, centre_v = (west + east) / 2.0, (south + north) / 2.0
    u = centre_u + (j - (cols - 1) / 2.0 + jitter[..., 0]) * spacing
    v = centre_v + (i - (rows - 1) / 2.0 + jitter[..., 1]) * spacing
    cover = np.empty((rows, cols), np.int64)
    for row in range(0, rows, 3):
        for col in range(0, cols, 3):
            cover[row : row + 3, col : col + 3] = rng.permutation(_BLOCK_OF_COVERS).reshape(3, 3)
    return np.stack([u.ravel(), v.ravel()], axis=-1), cover.ravel()
