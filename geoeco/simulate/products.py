"""Products of the simulated Sentinel-2: when, of which baseline, with which offset and flags, and their pixels.

A product is one acquisition of one tile. Whether its numbers carry the +1000 of baseline 04.00 and what its metadata
say about it are drawn from the seed for each product, in the combinations that real catalogues hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from geoeco.simulate.landscape import COVERS, Ground, Landscape, Tile
from geoeco.simulate.weather import CLOUD_SPECTRUM, SHADOW_DEPTH, Sky, classify, cloud_fractions, sun_position

__all__ = [
    "BANDS",
    "CASES",
    "Acquisition",
    "Band",
    "Case",
    "Product",
    "Scene",
    "TileView",
    "draw_acquisitions",
    "draw_products",
    "render",
    "seen",
    "sky_of",
]

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Band:
    """One band: its name, Earth Search asset key, STAC common name, resolution (m), centre and width (µm)."""

    name: str
    key: str
    common_name: str
    title: str
    resolution: int
    centre: float
    width: float


#: B01 ... B12 without B10, which surface reflectance products do not hold; wavelengths as Earth Search gives them.
BANDS: tuple[Band, ...] = (
    Band("B01", "coastal", "coastal", "Coastal aerosol (band 1) - 60m", 60, 0.443, 0.027),
    Band("B02", "blue", "blue", "Blue (band 2) - 10m", 10, 0.490, 0.098),
    Band("B03", "green", "green", "Green (band 3) - 10m", 10, 0.560, 0.045),
    Band("B04", "red", "red", "Red (band 4) - 10m", 10, 0.665, 0.038),
    Band("B05", "rededge1", "rededge", "Red edge 1 (band 5) - 20m", 20, 0.704, 0.019),
    Band("B06", "rededge2", "rededge", "Red edge 2 (band 6) - 20m", 20, 0.740, 0.018),
    Band("B07", "rededge3", "rededge", "Red edge 3 (band 7) - 20m", 20, 0.783, 0.028),
    Band("B08", "nir", "nir", "NIR 1 (band 8) - 10m", 10, 0.842, 0.145),
    Band("B8A", "nir08", "nir08", "NIR 2 (band 8A) - 20m", 20, 0.865, 0.033),
    Band("B09", "nir09", "nir09", "NIR 3 (band 9) - 60m", 60, 0.945, 0.026),
    Band("B11", "swir16", "swir16", "SWIR 1 (band 11) - 20m", 20, 1.610, 0.143),
    Band("B12", "swir22", "swir22", "SWIR 2 (band 12) - 20m", 20, 2.190, 0.242),
)

_SNOW = np.array([0.88, 0.88, 0.87, 0.86, 0.84, 0.82, 0.80, 0.78, 0.77, 0.70, 0.14, 0.10], np.float32)
_WATER = next(cover.code for cover in COVERS if cover.name == "water")


@dataclass(frozen=True)
class Case:
    """What a product's numbers are, and what its metadata say.

    Attributes
    ----------
    name : str
    added : int
        What was added to 10 000 x reflectance: 1000 or 0. The truth.
    flag : bool or None
        ``earthsearch:boa_offset_applied``; None where the catalogue has no such property.
    offset : float or None
        ``raster:bands[0].offset``; None where the catalogue gives no scale and offset.
    right : bool
        Whether the flag, where given, tells the truth.
    """

    name: str
    added: int
    flag: bool | None
    offset: float | None
    right: bool


#: The combinations found in real catalogues (method: Element84/earth-search#9, #66, #71; cirrus-earth-search#33).
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # before 04.00
        Case("old", 0, False, 0.0, True),
        Case("old-unflagged", 0, None, None, True),
        # 04.00 and later: as ESA delivers it
        Case("offset", 1000, False, -0.1, True),
        Case("offset-unflagged", 1000, None, None, True),
        # 04.00 and later: the catalogue took the offset out of the COG
        Case("removed", 0, True, 0.0, True),
        Case("removed-stale-offset", 0, True, -0.1, True),
        # the catalogue took it out and says that it did not
        Case("removed-wrong-flag", 0, False, -0.1, False),
    )
}
_OLD = (("old", 0.8), ("old-unflagged", 0.2))
_NEW = (("offset", 0.4), ("offset-unflagged", 0.15), ("removed", 0.1), ("removed-stale-offset", 0.35))

#: First days of the processing baselines as ESA introduced them; 05.00 is Collection 1, which reprocessed the past.
_BASELINES = (("2015-01-01", "02.14"), ("2021-02-02", "03.00"), ("2021-06-30", "03.01"), ("2022-01-25", "04.00"),
              ("2022-12-06", "05.09"), ("2023-12-13", "05.10"), ("2024-07-23", "05.11"))  # fmt: skip
_COLLECTION_1 = "05.00"
_COLLECTION_1_ENDS = np.datetime64("2022-12-06", "D")


@dataclass(frozen=True)
class Acquisition:
    """One overpass: everything that both tiles share.

    Attributes
    ----------
    index : int
    day : numpy.datetime64
        Solar day.
    platform : str
        ``2A`` or ``2B``.
    orbit : int
        Relative orbit; the second one sees the world at the edge of its swath.
    edge : tuple of float or None
        ``(nx, ny, c)``: ground points with ``u nx + v ny > c`` lie beyond the swath.
    cloud_fraction : float
    sun_azimuth, sun_elevation : float
        Degrees.
    snow : bool
        Snow lies on the land.
    """

    index: int
    day: np.datetime64
    platform: str
    orbit: int
    edge: tuple[float, float, float] | None
    cloud_fraction: float
    sun_azimuth: float
    sun_elevation: float
    snow: bool

    @property
    def ordinal(self) -> int:
        """Days since 1970-01-01."""
        return int(self.day.astype("datetime64[D]").astype(int))


@dataclass(frozen=True)
class Product:
    """One acquisition of one tile, or of one part of it where the datastrip ended within the tile.

    Attributes
    ----------
    acquisition : Acquisition
    tile : Tile
    sequence : int
        0, or 1 for the second part of a split acquisition.
    strip : tuple of float
        Valid ground is ``strip[0] <= v < strip[1]`` (metres north).
    baseline : str
        Processing baseline such as ``05.00``.
    case : Case
    """

    acquisition: Acquisition
    tile: Tile
    sequence: int
    strip: tuple[float, float]
    baseline: str
    case: Case


@dataclass(frozen=True)
class TileView:
    """A tile, where its pixels lie on the ground, and the curve of each."""

    tile: Tile
    ground: Ground
    curve: npt.NDArray[np.int32]

    @cached_property
    def uv10(self) -> tuple[FloatArray, FloatArray]:
        """Ground coordinates of the 10 m pixels, float32 ``(y, x)``."""
        u, v = self.ground.of_pixels(self.tile.geobox)
        return u.astype(np.float32), v.astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """The pixels of one product and the truth about them.

    Attributes
    ----------
    numbers : dict
        Digital numbers per band at its own resolution, uint16 ``(y, x)``, 0 where there is no data.
    scl : numpy.ndarray
        Scene classification at 20 m.
    cloud, shadow, valid : numpy.ndarray
        The truth at 20 m.
    """

    numbers: dict[str, npt.NDArray[np.uint16]]
    scl: npt.NDArray[np.uint8]
    cloud: npt.NDArray[np.bool_]
    shadow: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]


def draw_acquisitions(
    seed: int,
    first: np.datetime64,
    last: np.datetime64,
    *,
    revisit_days: int,
    clouds: float,
    snow: float,
    lat: float,
    extent: tuple[float, float, float, float],
) -> list[Acquisition]:
    """All overpasses from `first` to `last`, one every `revisit_days`."""
    days = np.arange(first, last + np.timedelta64(1, "D"), np.timedelta64(revisit_days, "D"))
    rng = np.random.default_rng([seed, 2])
    fractions = cloud_fractions(rng, len(days), clouds)
    # the swath's edge leans as the orbit does: a descending track heads about 12 degrees west of south
    lean = math.radians(12.0 if lat >= 0 else -12.0)
    nx, ny = math.cos(lean), math.sin(-lean)
    width = extent[2] - extent[0]
    midwinter = 15 if lat >= 0 else 197
    out = []
    for index, day in enumerate(days):
        place, snowfall = float(rng.uniform(-0.2, 0.35)), float(rng.random())
        doy = float((day - day.astype("datetime64[Y]")).astype(int)) + 1.0
        azimuth, elevation = sun_position(lat, doy)
        from_midwinter = abs((doy - midwinter + 182.6) % 365.25 - 182.6)
        edge = (nx, ny, (extent[0] + extent[2]) / 2.0 + place * width) if index % 6 == 4 else None
        out.append(
            Acquisition(
                index,
                day,
                "2A" if index % 2 == 0 else "2B",
                8 if edge else 108,
                edge,
                float(fractions[index]),
                azimuth,
                elevation,
                from_midwinter < 45 and snowfall < snow,
            )
        )
    return out


def draw_products(
    seed: int,
    acquisition: Acquisition,
    tile: Tile,
    extent: tuple[float, float, float, float],
    *,
    reprocessed: float,
    wrong_flags: float,
    split: float,
) -> list[Product]:
    """Draw the products of one acquisition and tile: their baselines, offsets and flags."""
    rng = np.random.default_rng([seed, 3, tile.index, acquisition.ordinal])
    cut = (extent[1] + extent[3]) / 2.0 + float(rng.uniform(-0.25, 0.25)) * (extent[3] - extent[1])
    parts = [(cut, math.inf), (-math.inf, cut)] if rng.random() < split else [(-math.inf, math.inf)]
    products = []
    for sequence, strip in enumerate(parts):
        baseline = next(b for first, b in reversed(_BASELINES) if acquisition.day >= np.datetime64(first, "D"))
        # Collection 1 gave the offset to acquisitions of any age: no date tells it
        if rng.random() < reprocessed and acquisition.day < _COLLECTION_1_ENDS:
            baseline = _COLLECTION_1
        wrong, pick = float(rng.random()), float(rng.random())
        if baseline < "04.00":
            name = _choose(_OLD, pick)
        else:
            name = "removed-wrong-flag" if wrong < wrong_flags else _choose(_NEW, pick)
        products.append(Product(acquisition, tile, sequence, strip, baseline, CASES[name]))
    return products


def _choose(options: tuple[tuple[str, float], ...], pick: float) -> str:
    total = 0.0
    for name, weight in options:
        total += weight
        if pick < total:
            return name
    return options[-1][0]


def _coarse(array: FloatArray, factor: int) -> FloatArray:
    """Means of blocks of `factor` x `factor` pixels, float32."""
    if factor == 1:
        return array
    # sums of slices: several times faster than a mean over the axes of a reshaped array
    rows = array[0::factor].astype(np.float32)
    for first in range(1, factor):
        rows += array[first::factor]
    total = rows[:, 0::factor].copy()
    for first in range(1, factor):
        total += rows[:, first::factor]
    return np.asarray(total / np.float32(factor * factor))


def seen(product: Product, u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether points of the ground lie within the product's swath and datastrip."""
    inside = (v >= product.strip[0]) & (v < product.strip[1])
    if product.acquisition.edge is not None:
        nx, ny, c = product.acquisition.edge
        inside &= u * nx + v * ny <= c
    return np.asarray(inside)


def render(
    seed: int,
    product: Product,
    landscape: Landscape,
    view: TileView,
    *,
    noise: float,
    omission: float,
    commission: float,
) -> Scene | None:
    """Render one product; None if no pixel of the tile is seen."""
    acquisition, tile = product.acquisition, product.tile
    valid10 = seen(product, *view.uv10)
    if not valid10.any():
        return None
    sky = sky_of(seed, acquisition, landscape.extent)
    rng = np.random.default_rng([seed, 5, tile.index, acquisition.ordinal, product.sequence])
    spectra = landscape.reflectance(acquisition.ordinal)
    if acquisition.snow:
        land = landscape.cover_of_curve != _WATER
        spectra[land] = 0.15 * spectra[land] + 0.85 * _SNOW

    opacity = sky.opacity(*view.uv10)
    shade = sky.shade(*view.uv10)
    light = 1.0 - SHADOW_DEPTH * shade
    mixed = {r: (_coarse(opacity, r // 10), _coarse(light * (1.0 - opacity), r // 10)) for r in (10, 20, 60)}
    # a coarse pixel is valid where all of it is: the wedge has no half values
    whole = np.float32(1.0) - np.float32(1e-3)
    valid = {r: _coarse(valid10.astype(np.float32), r // 10) >= whole for r in (10, 20, 60)}

    numbers = {}
    for index, band in enumerate(BANDS):
        factor = band.resolution // 10
        through, lit = mixed[band.resolution]
        surface = _coarse(spectra[:, index][view.curve], factor)
        reflectance = surface * lit + CLOUD_SPECTRUM[index] * through
        reflectance += np.float32(noise) * rng.standard_normal(reflectance.shape, dtype=np.float32)
        dn = np.rint(reflectance * 10_000.0) + product.case.added
        # 0 means no data, so no valid pixel may have it
        numbers[band.name] = np.where(valid[band.resolution], np.clip(dn, 1, 65_535), 0).astype(np.uint16)

    scl, cloud, shadow = classify(
        rng,
        _ground_class(spectra, landscape, view, snow=acquisition.snow),
        mixed[20][0],
        _coarse(shade, 2),
        valid[20],
        omission=omission,
        commission=commission,
    )
    return Scene(numbers, scl, cloud, shadow, valid[20])


def sky_of(seed: int, acquisition: Acquisition, extent: tuple[float, float, float, float]) -> Sky:
    """Draw the sky of an acquisition, the same for all tiles."""
    return Sky.draw(
        np.random.default_rng([seed, 4, acquisition.ordinal]),
        extent,
        acquisition.cloud_fraction,
        acquisition.sun_azimuth,
        acquisition.sun_elevation,
    )


def _ground_class(spectra: FloatArray, landscape: Landscape, view: TileView, *, snow: bool) -> npt.NDArray[np.uint8]:
    """SCL class of clear ground at 20 m: vegetation, bare, water, unclassified or snow."""
    red, nir = spectra[:, 3], spectra[:, 7]
    ndvi = (nir - red) / (nir + red + 1e-6)
    of_curve = np.where(ndvi > 0.45, 4, np.where(ndvi > 0.35, 7, 5)).astype(np.uint8)
    water = landscape.cover_of_curve == _WATER
    if snow:
        of_curve[:] = 11
    of_curve[water] = 6
    return of_curve[view.curve[::2, ::2]]
