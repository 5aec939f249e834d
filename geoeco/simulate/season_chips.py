"""A simulated world of season chips: many places over the globe, two stores of chips, and labels with the truth.

The covers of `geoeco.simulate.growth` share their spectra and overlap on any one date, so that only an encoder that
reads the state of the season through soil, light, haze, clouds and layout tells them apart. The same places have
chips by their own phenology and by the calendar. No scenes are written: `geoeco.simulate.write_s2_world` does that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from geoeco.catalog import band_name
from geoeco.errors import InputError, OutputError
from geoeco.sampling import (
    SEASONS,
    calendar_windows,
    chip_geobox,
    chips_template,
    circular_distance,
    finish_chips,
    season_windows,
    store_chips,
)
from geoeco.simulate.files import MARKER, holds_world, marker_text
from geoeco.simulate.growth import BANDS, GROWTH_FORMS, Places, draw_locations, sun_elevation

__all__ = ["CHIP_BANDS", "ChipWorld", "ChipWorldSettings", "write_chip_world"]

Floats = npt.NDArray[np.float64]
Dates = Literal["phenology", "calendar"]

#: Bands that chips have unless others are asked for: all of 10 and 20 m.
CHIP_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
#: Counts up whenever the same settings give other bytes.
WORLD_VERSION = 1

_YEARS = range(2019, 2022)
_REVISIT_D = 5
_MIN_CLEAR = 0.8
_MIN_SUN = 20.0
_MIN_SEASONS = 2
_NODATA = -32768
_SCALE = 1e-4
#: Places of a group, which is one shard.
_GROUP = 64

#: Layouts of fields: spacing of their seeds in pixels along and across, and how irregular they are. A place's layout
#: says nothing about its cover.
_LAYOUTS = ((15.0, 15.0, 0.45), (17.0, 13.0, 0.0), (60.0, 7.0, 0.1), (6.0, 6.0, 0.5))
_FIELD_DAYS = 4.0
_FIELD_DENSITY = 0.07
_TEXTURE = 0.05
#: Part of the fields that have another cover than the place's main one.
_OTHERS = (0.10, 0.35)

#: Standard deviations of the logarithm of an image's brightness, and the largest haze in blue.
_BRIGHTNESS = 0.15
_HAZE = 0.02
_HAZE_SHAPE = dict(zip(BANDS, (1.2, 1.0, 0.7, 0.5, 0.45, 0.35, 0.3, 0.25, 0.2, 0.2, 0.1, 0.1), strict=True))
#: Share of chips with a small cloud that the choice of images let pass, and the largest part that it covers.
_CLOUDED = 0.25
_CLOUD_PART = 0.08
_CLOUD_REFLECTANCE = 0.55
_VEGETATION, _BARE, _CLOUD = 4, 5, 8
#: Of the pixels of a small cloud, what the scene classification finds.
_CLOUD_FOUND = 0.5


@dataclass(frozen=True)
class ChipWorldSettings:
    """All that decides the bytes of a world of chips; see `write_chip_world` for the meaning of each."""

    seed: int = 42
    locations: int = 1000
    size: int = 64
    bands: tuple[str, ...] = CHIP_BANDS
    clouds: float = 0.6
    noise: float = 0.01

    def __post_init__(self) -> None:
        names = tuple(str(band_name(b)) for b in self.bands)
        object.__setattr__(self, "bands", names)
        if self.seed < 0:
            raise InputError("seed must not be negative")
        if not 1 <= self.locations <= 100_000:
            raise InputError(f"locations={self.locations} must lie between 1 and 100 000")
        if not 8 <= self.size <= 1024:
            raise InputError(f"size={self.size} must lie between 8 and 1024 pixels")
        if not names or not set(names) <= set(BANDS) or len(set(names)) != len(names):
            raise InputError(
                f"bands {self.bands!r} are not distinct bands", what_to_do=f"choose from {', '.join(BANDS)}"
            )
        if not 0 <= self.clouds < 1:
            raise InputError(f"clouds={self.clouds} must lie in [0, 1)")
        if not 0 <= self.noise <= 0.1:
            raise InputError(f"noise={self.noise} must lie between 0 and 0.1")


@dataclass(frozen=True)
class _Fields:
    """What stays the same in all images of a place: covers, days, density and brightness of its ground ``(y, x)``."""

    cover: npt.NDArray[np.int64]
    shift: Floats
    density: Floats
    texture: Floats
    slope: Floats


class ChipWorld:
    """A world of season chips in memory: places, their windows, and the chips of any of them.

    Parameters
    ----------
    settings : ChipWorldSettings

    Attributes
    ----------
    places : geoeco.simulate.growth.Places
    """

    def __init__(self, settings: ChipWorldSettings) -> None:
        self.settings = settings
        self.places = Places(draw_locations(settings.locations, settings.seed), settings.seed, _YEARS)
        self._bands = [BANDS.index(band) for band in settings.bands]
        self._haze = np.array(
            [_HAZE_SHAPE.get(band, 0.2 if band in ("B8A", "B09") else 0.1) for band in settings.bands]
        )

    @cached_property
    def dates(self) -> pd.DataFrame:
        """True dates of all places, as a table of MCD12Q2 (`geoeco.simulate.growth.Places.dates`)."""
        return self.places.dates()

    def windows(self, dates: Dates) -> pd.DataFrame:
        """Season windows of all places, by their phenology or by the calendar.

        Parameters
        ----------
        dates : {"phenology", "calendar"}
            `geoeco.sampling.season_windows` of the true dates, or `geoeco.sampling.calendar_windows` (20 March, 21
            June, 22 September, 21 December, 30 days either side).
        """
        if dates == "calendar":
            return calendar_windows(self.places.locations)
        if dates != "phenology":
            raise InputError(f"no dates {dates!r}", what_to_do='use "phenology" or "calendar"')
        # places are sparse: a place without a cycle has its neighbour far away
        return season_windows(self.dates, self.places.locations, max_distance_km=2000.0)

    def chips(self, windows: pd.DataFrame, first: int, stop: int) -> xr.Dataset:
        """Choose and make the chips of the places ``first, ..., stop - 1``.

        Parameters
        ----------
        windows : pandas.DataFrame
            As of `windows`, of all places.
        first, stop : int
            Positions of the places.

        Returns
        -------
        xarray.Dataset
            In the form of `geoeco.sampling.season_chips`, as stored (int16); places with too few seasons stay in it.
        """
        s, count = self.settings, stop - first
        shape = (count, len(SEASONS))
        chips = np.full((*shape, len(s.bands), s.size, s.size), _NODATA, np.int16)
        scl = np.zeros((*shape, s.size, s.size), np.uint8)
        columns: dict[str, npt.NDArray[Any]] = {
            "reason": np.full(shape, "", dtype=object),
            "candidates": np.zeros(shape, np.int64),
            "item_id": np.full(shape, "", dtype=object),
            "date": np.full(shape, np.datetime64("NaT", "ns"), dtype="datetime64[ns]"),
            "season_year": np.full(shape, -1, np.int64),
            "flags": np.full(shape, "", dtype=object),
        }
        for name in (
            "offset_d", "clear_fraction", "nodata_fraction", "valid_fraction", "sun_elevation", "cloud_cover",
        ):  # fmt: skip
            columns[name] = np.full(shape, np.nan)
        kept = np.zeros(count, dtype=bool)
        corners = np.full((count, 2), np.nan)
        mid = windows["mid"].to_numpy(float).reshape(-1, len(SEASONS))
        width = windows["width_d"].to_numpy(float).reshape(-1, len(SEASONS))
        for row, place in enumerate(range(first, stop)):
            location = self.places.locations.iloc[place]
            box = chip_geobox(location["lon"], location["lat"], int(location["epsg"]), size=s.size)
            corners[row] = box.affine.c, box.affine.f
            chosen = _choose(self._candidates(place), mid[place], width[place])
            used = [isinstance(answer, dict) for answer in chosen]
            kept[row] = sum(used) >= _MIN_SEASONS
            fields = self._fields(place) if kept[row] else None
            for season, answer in enumerate(chosen):
                if isinstance(answer, str):
                    columns["reason"][row, season] = answer
                    continue
                day = int(answer.pop("day"))
                columns["date"][row, season] = np.datetime64(day, "D")
                columns["item_id"][row, season] = f"S2-{location['name']}-{np.datetime64(day, 'D')}".replace("_", "")
                for name, value in answer.items():
                    columns[name][row, season] = value
                columns["nodata_fraction"][row, season] = 0.0
                if fields is None:
                    columns["reason"][row, season] = "few-seasons"
                    continue
                chips[row, season], scl[row, season] = self._image(place, fields, day, answer["sun_elevation"])
                columns["valid_fraction"][row, season] = 1.0
        names = self.places.locations
        part = slice(first, stop)
        per_sample = {
            "sample": np.arange(first, stop),
            "name": names["name"].to_numpy(dtype=object)[part],
            "lon": names["lon"].to_numpy(float)[part],
            "lat": names["lat"].to_numpy(float)[part],
            "epsg": names["epsg"].to_numpy(np.int64)[part],
            "x0": corners[:, 0],
            "y1": corners[:, 1],
            "kept": kept,
        }
        return xr.Dataset(
            {
                "chips": (("sample", "season", "band", "y", "x"), chips),
                "scl": (("sample", "season", "y", "x"), scl),
            },
            coords={
                "season": ("season", np.array(SEASONS, dtype=object)),
                "band": ("band", np.array(s.bands, dtype=object)),
                **{name: ("sample", values) for name, values in per_sample.items()},
                **{name: (("sample", "season"), values) for name, values in columns.items()},
            },
            attrs={"size": s.size, "resolution": 10.0},
        )

    def _candidates(self, place: int) -> dict[str, npt.NDArray[Any]]:
        """All looks at a place: day, clear part of the patch, sun, cloud cover of the tile; the same for any dates."""
        rng = np.random.default_rng([self.settings.seed, 3, place])
        first, stop = (int((np.datetime64(f"{y}-01-01", "D")).astype(int)) for y in (_YEARS.start, _YEARS.stop))
        day = np.arange(first + int(rng.integers(_REVISIT_D)), stop, _REVISIT_D)
        cloudy = rng.random(len(day)) < self.settings.clouds
        clear = np.where(
            cloudy, rng.uniform(0.0, _MIN_CLEAR, len(day)), np.minimum(1.06 - 0.26 * rng.random(len(day)), 1)
        )
        return {
            "day": day,
            "clear_fraction": clear,
            "sun_elevation": sun_elevation(self.places.lat[place], day),
            "cloud_cover": np.clip(100.0 * (1.0 - clear) + rng.normal(0.0, 10.0, len(day)), 0.0, 100.0),
        }

    def _fields(self, place: int) -> _Fields:
        rng = np.random.default_rng([self.settings.seed, 4, place])
        size = self.settings.size
        along, across, jitter = _LAYOUTS[int(rng.integers(len(_LAYOUTS)))]
        angle, reach = rng.uniform(0.0, math.pi), 0.75 * size + 20.0
        grid = np.stack(np.meshgrid(np.arange(-reach, reach, along), np.arange(-reach, reach, across)), axis=-1)
        seeds = grid.reshape(-1, 2) + rng.uniform(-jitter, jitter, (grid[..., 0].size, 2)) * np.array([along, across])
        y, x = np.mgrid[:size, :size] - size / 2.0 + rng.uniform(-5.0, 5.0, (2, 1, 1))
        turned = np.stack([x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)], -1)
        stretch = np.array([1.0, along / across])
        field = cKDTree(seeds * stretch).query(turned * stretch)[1]
        others = rng.choice(np.delete(np.arange(len(GROWTH_FORMS)), self.places.cover[place]), 2, replace=False)
        share = rng.uniform(*_OTHERS)
        cover = np.where(rng.random(len(seeds)) < share, rng.choice(others, len(seeds)), self.places.cover[place])
        shift = rng.normal(0.0, _FIELD_DAYS, len(seeds))
        density = rng.normal(1.0, _FIELD_DENSITY, len(seeds))
        relief = rng.uniform(0.0, 0.10)
        texture = gaussian_filter(rng.normal(size=(size, size)), 1.0) * 3.5 * _TEXTURE
        slope = gaussian_filter(rng.normal(size=(size, size)), 6.0)
        return _Fields(
            cover[field], shift[field], np.clip(density[field], 0.6, 1.3), 1.0 + texture, relief * slope / slope.std()
        )

    def _image(
        self, place: int, fields: _Fields, day: int, sun: float
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
        """One image ``(band, y, x)`` as stored, and its scene classes ``(y, x)``."""
        rng = np.random.default_rng([self.settings.seed, 5, place, day])
        size = self.settings.size
        green = np.zeros((size, size))
        for cover in np.unique(fields.cover):
            where = fields.cover == cover
            # fields of a cover differ by days: the curve is read from a daily table
            table = self.places.greenness(place, int(cover), np.arange(day - 30, day + 31))
            green[where] = np.interp(-fields.shift[where], np.arange(-30.0, 31.0), table)
        green = np.clip(green * fields.density, 0.0, 1.0)
        part = green * self.places.density[place]
        dormant, lush = self.places.dormant[place, self._bands], self.places.green[place, self._bands]
        value = dormant[:, None, None] * (1.0 - part) + lush[:, None, None] * part
        # slopes are lit the more unevenly the lower the sun is
        light = np.clip(1.0 + fields.slope / math.tan(math.radians(sun)), 0.3, 2.0)
        value *= fields.texture * light * math.exp(rng.normal(0.0, _BRIGHTNESS))
        value += (rng.uniform(0.0, _HAZE) * self._haze)[:, None, None]
        classes = np.where(part > 0.3, _VEGETATION, _BARE).astype(np.uint8)
        if rng.random() < _CLOUDED:
            blob = gaussian_filter(rng.normal(size=(size, size)), size / 10.0)
            thick = np.clip((blob - np.quantile(blob, 1.0 - rng.uniform(0.01, _CLOUD_PART))) / blob.std() * 3.0, 0, 1)
            value = value * (1.0 - thick) + _CLOUD_REFLECTANCE * thick
            classes[(thick > 0) & (blob > np.quantile(blob[thick > 0], 1.0 - _CLOUD_FOUND))] = _CLOUD
        noise = rng.standard_normal(value.shape, dtype=np.float32) * np.float32(self.settings.noise)
        return np.rint(np.clip((value + noise) / _SCALE, -2000, 20000)).astype(np.int16), classes


def _choose(looks: dict[str, npt.NDArray[Any]], mid: Floats, width: Floats) -> list[dict[str, Any] | str]:
    """Choose the look for each season, or say why there is none.

    As `geoeco.sampling.choose_images` does: inside the window, sun high enough, clear enough; the clearest, then the
    nearest to the middle, then the newest; no date twice.
    """
    day_of_year, year = _calendar(looks["day"])
    taken: set[int] = set()
    answers: list[dict[str, Any] | str] = []
    for season in range(len(SEASONS)):
        turn = np.mod(day_of_year - mid[season] + 182.625, 365.25) - 182.625
        alive = circular_distance(day_of_year, mid[season]) <= width[season] / 2.0
        lit = alive & (looks["sun_elevation"] >= _MIN_SUN)
        answer: dict[str, Any] | str = "no-date"
        for reason, test in (
            ("no-date", alive),
            ("low-sun", lit),
            ("cloud", lit & (looks["clear_fraction"] >= _MIN_CLEAR)),
            ("date-taken", lit & (looks["clear_fraction"] >= _MIN_CLEAR) & ~np.isin(looks["day"], list(taken))),
        ):
            rows = np.flatnonzero(test)
            answer = reason
            if not len(rows):
                break
        else:
            clear = np.round(looks["clear_fraction"][rows] / 0.01)
            best = int(rows[np.lexsort((-looks["day"][rows], np.abs(turn[rows]), -clear))[0]])
            taken.add(int(looks["day"][best]))
            # the year of the middle that the date lies round
            shifted = int(year[best]) + round((day_of_year[best] - turn[best] - mid[season]) / 365.25)
            answer = {
                **{name: looks[name][best] for name in ("day", "clear_fraction", "sun_elevation", "cloud_cover")},
                "offset_d": float(turn[best]),
                "season_year": shifted,
                "candidates": int(lit.sum()),
            }
        answers.append(answer)
    return answers


def _calendar(days: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[np.int64]]:
    dates = days.astype("datetime64[D]")
    year = dates.astype("datetime64[Y]")
    return (dates - year.astype("datetime64[D]")).astype(float) + 1.0, year.astype(np.int64) + 1970


def write_chip_world(
    directory: str | os.PathLike[str],
    *,
    locations: int = 1000,
    size: int = 64,
    seed: int = 42,
    bands: Sequence[str] = CHIP_BANDS,
    clouds: float = 0.6,
    noise: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a simulated world of season chips with its truth.

    The folder gets two stores over the same places, ``phenology`` (dates from the season windows of each place) and
    ``calendar`` (the same four dates everywhere), both for `geoeco.sampling.open_chips`; ``dates.parquet``, the true
    dates of all years as a table of MCD12Q2; and ``labels.parquet``: cover, temperature and precipitation by name.

    Parameters
    ----------
    directory : path
        New or empty folder. A folder that holds the same world is completed if it was left unfinished, and left as
        it is if it is whole.
    locations : int
        Places on the land of both hemispheres, between 56 degrees south and 68 degrees north.
    size : int
        Pixels of 10 m along a side of a chip.
    seed : int
        Everything follows from it.
    bands : sequence of str
        Reflectance bands.
    clouds : float
        Share of looks, one in five days, that are too cloudy.
    noise : float
        Standard deviation of reflectance noise per pixel, band and date.
    progress : callable, optional
        Called with (groups of places done, all).

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        If a setting does not fit.
    OutputError
        If the folder holds something else, or cannot be written.

    Notes
    -----
    Every cover is a mixture of the same dormant and green ground. What varies from place to place and says nothing of
    the cover: cover fraction, soil, litter, leaf spectra (all more or less with the climate), layout of fields, other
    covers in 10 to 35 % of the fields, relief. From image to image: brightness, haze, small clouds (half of them
    missed by the scene classification), distance from the middle of the window, noise.
    """
    settings = ChipWorldSettings(seed, locations, size, tuple(bands), clouds, noise)
    folder = Path(directory)
    # the labels come last
    if holds_world(folder, _marker(settings)) and (folder / "labels.parquet").is_file():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(marker_text(_marker(settings)), encoding="utf-8")
        _write(folder, ChipWorld(settings), progress)
    except OSError as error:
        raise OutputError(
            f"the simulated world could not be written: {error}",
            where=str(folder),
            what_to_do="free some space or choose another folder, then run the same command again",
        ) from error
    return folder


def _marker(settings: ChipWorldSettings) -> dict[str, Any]:
    return {"geoeco": "simulated season chips", "version": WORLD_VERSION, "settings": asdict(settings)}


def _write(folder: Path, world: ChipWorld, progress: Callable[[int, int], None] | None) -> None:
    s = world.settings
    starts = range(0, s.locations, _GROUP)
    every = [(dates, first) for dates in ("phenology", "calendar") for first in starts]
    windows = {dates: world.windows(dates) for dates in ("phenology", "calendar")}
    for done, (dates, first) in enumerate(every, start=1):
        store = str(folder / dates)
        chips_template(store, s.locations, size=s.size, bands=s.bands, samples_per_shard=_GROUP)
        store_chips(store, world.chips(windows[dates], first, min(first + _GROUP, s.locations)), first=first)
        if progress is not None:
            progress(done, len(every))
    for dates in windows:
        finish_chips(str(folder / dates))
    world.dates.to_parquet(folder / "dates.parquet", index=False)
    draft = folder / "labels.parquet.part"
    labels: gpd.GeoDataFrame = world.places.labels()
    labels.to_parquet(draft, index=False, schema_version="1.1.0")
    draft.replace(folder / "labels.parquet")
