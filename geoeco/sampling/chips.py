"""Season chips: square patches of imagery round locations, one for each season.

A chip is cut from one scene, in that scene's own UTM zone and on its own 10 m grid, so nothing is warped: 10 m bands
are copied, 20 and 60 m bands are resampled from their native grids (bilinear), the scene classification by nearest
neighbour. Reflectance is not masked; what is clear can be told from the classification beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pystac
import xarray as xr

from geoeco.catalog import band_name
from geoeco.cubes.reading import Raster
from geoeco.cubes.stores import class_attributes
from geoeco.errors import InputError, ReadError
from geoeco.gdal import gdal_env
from geoeco.sampling.images import (
    Candidates,
    Limits,
    assign,
    choice_rows,
    drop_note,
    gather_candidates,
    href_of,
    in_threads,
)
from geoeco.sampling.patches import read_patches
from geoeco.sampling.windows import SEASONS
from geoeco.sensors import sentinel2
from geoeco.variables import describe

__all__ = ["ChipSettings", "chips_table", "season_chips"]

#: What chips are stored with: reflectance x 10 000 as int16.
CHIP_SCALE = sentinel2.STORED_SCALE
CHIP_NODATA = sentinel2.REFLECTANCE_NODATA

#: Columns of the chips table that belong to a location; all others belong to a chip.
_LOCATION_COLUMNS = ("name", "lon", "lat", "epsg", "x0", "y1", "kept")
_CHIP_COLUMNS = (
    "reason",
    "candidates",
    "item_id",
    "date",
    "season_year",
    "offset_d",
    "clear_fraction",
    "nodata_fraction",
    "valid_fraction",
    "sun_elevation",
    "cloud_cover",
    "flags",
)


@dataclass(frozen=True)
class ChipSettings:
    """How chips are chosen and cut; see `season_chips` for what each means."""

    size: int = 264
    resolution: float = 10.0
    bands: tuple[str, ...] = sentinel2.REFLECTANCE_BANDS
    min_clear: float = 0.8
    max_nodata: float = 0.0
    min_valid: float = 0.99
    min_sun_elevation: float = 20.0
    min_seasons: int = 2
    max_candidates: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or not self.resolution > 0:
            raise InputError("size and resolution of chips must be positive")
        names = tuple(str(band_name(b)) for b in self.bands)
        if not names or not set(names) <= set(sentinel2.BANDS) or len(set(names)) != len(names):
            raise InputError(
                f"bands {self.bands!r} are not distinct reflectance bands of Sentinel-2",
                what_to_do=f"choose from {', '.join(sentinel2.BANDS)}",
            )
        if not 0 <= self.min_clear <= 1 or not 0 <= self.max_nodata <= 1 or not 0 <= self.min_valid <= 1:
            raise InputError("min_clear, max_nodata and min_valid are parts between 0 and 1")
        if not 1 <= self.min_seasons <= len(SEASONS):
            raise InputError(f"min_seasons must lie between 1 and {len(SEASONS)}")
        object.__setattr__(self, "bands", names)


#: Position of a location in its group, and of a season.
Slot = tuple[int, int]
#: Chips ``(season, location, band, y, x)`` and scene classes ``(season, location, y, x)``.
Buffers = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class _Job:
    """One band of one scene, and the chips cut from it: (slot in the output, sample)."""

    scene: int
    band: str
    chips: tuple[tuple[int, int], ...]


class ChipReader:
    """Chooses and reads the chips of a group of locations, some seasons at a time.

    Parameters
    ----------
    items, locations, windows, settings
        As `season_chips`.
    radiometry : mapping, optional
        By item id.
    method : str, optional
        Signing.
    threads : int
        Files read at the same time.
    """

    def __init__(
        self,
        items: Sequence[pystac.Item],
        locations: gpd.GeoDataFrame,
        windows: pd.DataFrame,
        settings: ChipSettings,
        *,
        radiometry: Mapping[str, sentinel2.Radiometry] | None,
        method: str | None,
        threads: int,
    ) -> None:
        self.settings, self.method, self.threads = settings, method, threads
        self.candidates: Candidates = gather_candidates(
            items,
            locations,
            windows,
            size=settings.size,
            resolution=settings.resolution,
            min_sun_elevation=settings.min_sun_elevation,
            max_candidates=settings.max_candidates,
            method=method,
            threads=threads,
        )
        self.limits = Limits(settings.min_clear, settings.max_nodata)
        self.given = dict(radiometry or {})
        self.banned: set[tuple[int, int]] = set()
        self.untrusted: set[int] = set()
        self.dropped: list[dict[str, Any]] = list(self.candidates.dropped)
        self.chosen: dict[Slot, int | str] = assign(self.candidates, self.limits)
        self.valid: dict[Slot, float] = {}
        # of a location that has too few seasons from the start nothing is read
        found = dict.fromkeys(range(self.count), 0)
        for (sample, _), answer in self.chosen.items():
            found[sample] += isinstance(answer, int)
        self.worthwhile = {sample for sample, seasons in found.items() if seasons >= settings.min_seasons}

    @property
    def count(self) -> int:
        """Number of locations."""
        return len(self.candidates.places)

    def buffers(self, seasons: int) -> Buffers:
        """Make arrays for so many seasons of all locations, to be used again and again."""
        size, bands = self.settings.size, len(self.settings.bands)
        shape = (seasons, self.count)
        return np.empty((*shape, bands, size, size), np.int16), np.empty((*shape, size, size), np.uint8)

    def read(self, seasons: Sequence[int], buffers: Buffers | None = None) -> Buffers:
        """Read chips ``(season, location, band, y, x)`` and classes ``(season, location, y, x)`` of all locations.

        Each block of each file is decoded once. Where a file cannot be read, or a chip turns out to lack pixels, the
        next best image takes its place.
        """
        result = buffers if buffers is not None else self.buffers(len(seasons))
        slots = [(sample, season) for season in seasons for sample in range(self.count)]
        chips = result[0].reshape(len(slots), *result[0].shape[2:])
        scl = result[1].reshape(len(slots), *result[1].shape[2:])
        wanted = [
            i for i, slot in enumerate(slots) if isinstance(self.chosen[slot], int) and slot[0] in self.worthwhile
        ]
        for i in set(range(len(slots))) - set(wanted):
            chips[i], scl[i] = CHIP_NODATA, 0
        self._read_slots(slots, wanted, chips, scl)
        # season after season, each to its end: so it does not matter how many seasons are read at a time
        for season in seasons:
            missing = [i for i in wanted if slots[i][1] == season and slots[i] not in self.valid]
            while missing:
                missing = self._choose_again(missing, slots, chips, scl)
                self._read_slots(slots, missing, chips, scl)
                missing = [i for i in missing if slots[i] not in self.valid]
        return result

    def _choose_again(
        self, missing: list[int], slots: list[Slot], chips: npt.NDArray[np.int16], scl: npt.NDArray[np.uint8]
    ) -> list[int]:
        """Find the next best image for each of these slots; the other seasons keep theirs, so their dates are taken."""
        again = []
        for i in missing:
            chips[i], scl[i] = CHIP_NODATA, 0
            sample, season = slots[i]
            settled: dict[Slot, int] = {
                slot: row
                for slot, row in self.chosen.items()
                if slot[0] == sample and slot != slots[i] and isinstance(row, int)
            }
            answer = assign(
                self.candidates, self.limits, banned=frozenset(self.banned), fixed=settled, samples=[sample]
            )[(sample, season)]
            self.chosen[slots[i]] = answer
            if isinstance(answer, int):
                again.append(i)
        return again

    def _read_slots(
        self, slots: list[Slot], wanted: list[int], chips: npt.NDArray[np.int16], scl: npt.NDArray[np.uint8]
    ) -> None:
        """Read the chips of these slots; those that turn out well are in `valid`, the others' scenes in `banned`."""
        by_scene: dict[int, list[tuple[int, int]]] = {}
        for i in wanted:
            row = self.chosen[slots[i]]
            assert isinstance(row, int)
            by_scene.setdefault(int(self.candidates.scene[row]), []).append((i, slots[i][0]))
        jobs = [
            _Job(scene, band, tuple(found))
            for scene, found in sorted(by_scene.items())
            for band in (*self.settings.bands, "SCL")
        ]

        def run(job: _Job) -> ReadError | None:
            try:
                self._read_band(job, chips, scl)
            except ReadError as error:
                return error
            return None

        failed: set[int] = set()
        for job, error in zip(jobs, in_threads(run, jobs, self.threads), strict=True):
            if error is not None:
                failed.add(job.scene)
                self.dropped.append(drop_note(self.candidates.scenes[job.scene].item, job.band, error))
        self.banned |= {(sample, scene) for scene in failed for sample in range(self.count)}
        whole = [(i, sample, scene) for scene in sorted(set(by_scene) - failed) for i, sample in by_scene[scene]]
        parts = in_threads(lambda entry: _valid_part(chips[entry[0]]), whole, self.threads)
        for (i, sample, scene), part in zip(whole, parts, strict=True):
            if part < self.settings.min_valid:
                self.banned.add((sample, scene))
            else:
                self.valid[slots[i]] = part

    def _read_band(self, job: _Job, chips: npt.NDArray[np.int16], scl: npt.NDArray[np.uint8]) -> None:
        scene = self.candidates.scenes[job.scene]
        boxes = [self.candidates.boxes[(sample, scene.epsg)] for _, sample in job.chips]
        classes = job.band == "SCL"
        href = href_of(scene.item, job.band, self.method)
        where = f"item {scene.item.id}, asset {job.band}"
        with gdal_env():
            raster = Raster(href, where=where, dtypes=("uint8",) if classes else ("uint16",))
            try:
                if classes:
                    for index, pixels in read_patches(raster, boxes, resampling="nearest"):
                        scl[job.chips[index][0]] = pixels
                    return
                band = self.settings.bands.index(job.band)
                how = self.given.get(scene.item.id) or sentinel2.radiometry(scene.item, job.band)
                if not how.trusted:
                    self.untrusted.add(job.scene)
                table = sentinel2.reflectance_table(how, "int16")
                for index, pixels in read_patches(raster, boxes, resampling="bilinear", nodata=how.nodata):
                    # every uint16 is an index of the table: "clip" clips nothing and spares a copy
                    np.take(table, pixels, out=chips[job.chips[index][0], band], mode="clip")
            finally:
                raster.close()

    def table(self, first: int = 0) -> gpd.GeoDataFrame:
        """Give the chips table of what was read so far."""
        rows = choice_rows(self.candidates, self.chosen, self.settings.min_seasons)
        places = self.candidates.places
        at = rows["sample"].to_numpy()
        season = rows["season"].map({s: i for i, s in enumerate(SEASONS)}).to_numpy()
        rows["valid_fraction"] = [
            self.valid.get((int(s), int(k)), float("nan")) for s, k in zip(at, season, strict=True)
        ]
        rows["flags"] = [
            ",".join(filter(None, [flags, *self._doubts(self.chosen[(int(s), int(k))])]))
            for flags, s, k in zip(rows["flags"], at, season, strict=True)
        ]
        boxes = [self.candidates.boxes[(s, int(epsg))] if epsg else None for s, epsg in enumerate(self.candidates.epsg)]
        rows["x0"] = np.array([b.affine.c if b is not None else np.nan for b in boxes])[at]
        rows["y1"] = np.array([b.affine.f if b is not None else np.nan for b in boxes])[at]
        rows["lon"], rows["lat"] = places["lon"].to_numpy()[at], places["lat"].to_numpy()[at]
        rows["sample"] = at + first
        return _as_table(rows, self.settings.size, self.settings.resolution)

    def _doubts(self, answer: int | str) -> list[str]:
        doubtful = isinstance(answer, int) and int(self.candidates.scene[answer]) in self.untrusted
        return ["untrusted-radiometry"] if doubtful else []

    def notes(self) -> list[dict[str, Any]]:
        """Locations and items that were left out, and why."""
        unique = {(n["item"], n["asset"], n["code"]): n for n in self.dropped}
        return [*self.candidates.places.attrs.get("dropped", []), *(unique[key] for key in sorted(unique))]


def _valid_part(chip: npt.NDArray[np.int16]) -> float:
    """Part of the pixels ``(band, y, x)`` with data in every band."""
    # the least of the bands: one pass that makes nothing as large as the chip
    return float(np.count_nonzero(chip.min(axis=0) != CHIP_NODATA) / chip[0].size)


def _as_table(rows: pd.DataFrame, size: int, resolution: float) -> gpd.GeoDataFrame:
    """Columns in their order, with the affine transform of each chip and its location as a point."""
    rows = rows.assign(
        size=size,
        resolution=float(resolution),
        transform=_transforms(rows, resolution),
    )
    front = ["sample", "season", *_LOCATION_COLUMNS, *_CHIP_COLUMNS, "size", "resolution", "transform"]
    return gpd.GeoDataFrame(
        rows[front].reset_index(drop=True), geometry=gpd.points_from_xy(rows["lon"], rows["lat"]), crs="EPSG:4326"
    )


def _transforms(rows: pd.DataFrame, resolution: float) -> pd.Series:
    six = [[resolution, 0.0, x, 0.0, -resolution, y] for x, y in zip(rows["x0"], rows["y1"], strict=True)]
    return pd.Series(six, index=rows.index, dtype=object)


def table_coordinates(table: pd.DataFrame) -> dict[str, tuple[tuple[str, ...], npt.NDArray[Any]]]:
    """Give the chips table as coordinates, location by location and chip by chip."""
    count = len(table) // len(SEASONS)
    coordinates: dict[str, tuple[tuple[str, ...], npt.NDArray[Any]]] = {
        "sample": (("sample",), table["sample"].to_numpy()[:: len(SEASONS)])
    }
    for name in _LOCATION_COLUMNS:
        coordinates[name] = (("sample",), table[name].to_numpy()[:: len(SEASONS)])
    for name in _CHIP_COLUMNS:
        values = table[name].to_numpy()
        if name == "date":
            values = values.astype("datetime64[ns]")
        coordinates[name] = (("sample", "season"), values.reshape(count, len(SEASONS)))
    return coordinates


def chips_table(chips: xr.Dataset) -> gpd.GeoDataFrame:
    """Give the table of chips: one row a chip, with season, date, item, CRS, affine transform and valid part.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `season_chips` or `open_chips`.

    Returns
    -------
    geopandas.GeoDataFrame
        Rows by (sample, season), points in EPSG:4326: the columns that `season_chips` describes, and ``size``,
        ``resolution`` and ``transform`` (the six numbers of the affine, in the CRS ``epsg``).
    """
    missing = [c for c in (*_LOCATION_COLUMNS, *_CHIP_COLUMNS) if c not in chips.coords]
    if missing:
        raise InputError(f"these are no season chips: they lack {', '.join(missing)}")
    seasons = chips.sizes["season"]
    rows = pd.DataFrame(
        {
            "sample": np.repeat(chips["sample"].to_numpy(), seasons),
            "season": np.tile(chips["season"].to_numpy().astype(object), chips.sizes["sample"]),
            **{n: np.repeat(chips[n].to_numpy(), seasons) for n in _LOCATION_COLUMNS},
            **{n: chips[n].transpose("sample", "season").to_numpy().reshape(-1) for n in _CHIP_COLUMNS},
        }
    )
    return _as_table(rows, int(chips.attrs["size"]), float(chips.attrs["resolution"]))


def chips_dataset(
    chips: xr.DataArray, scl: xr.DataArray, table: pd.DataFrame, settings: Mapping[str, Any]
) -> xr.Dataset:
    """Put arrays and table together in the form that notebooks see."""
    data = xr.Dataset(
        {
            "chips": describe(chips, kind="continuous", units="1", long_name="surface reflectance"),
            "scl": describe(scl, **class_attributes()),
        }
    )
    data = data.assign_coords(
        season=("season", np.array(SEASONS, dtype=object)),
        band=("band", np.array(list(settings["bands"]), dtype=object)),
    ).assign_coords(table_coordinates(table))
    return data.assign_attrs(size=int(settings["size"]), resolution=float(settings["resolution"]))


def season_chips(
    items: Sequence[pystac.Item],
    locations: gpd.GeoDataFrame,
    windows: pd.DataFrame,
    *,
    size: int = 264,
    resolution: float = 10.0,
    bands: Sequence[str] = sentinel2.REFLECTANCE_BANDS,
    dtype: str = "float32",
    min_clear: float = 0.8,
    max_nodata: float = 0.0,
    min_valid: float = 0.99,
    min_sun_elevation: float = 20.0,
    min_seasons: int = 2,
    max_candidates: int | None = None,
    radiometry: Mapping[str, sentinel2.Radiometry] | None = None,
    sign: str | None = None,
    threads: int = 4,
) -> xr.Dataset:
    """Cut a chip of each season of each location.

    Parameters
    ----------
    items : sequence of pystac.Item
        Sentinel-2 L2A.
    locations : geopandas.GeoDataFrame
        As `check_locations` takes them.
    windows : pandas.DataFrame
        As of `season_windows` or `calendar_windows`, joined by ``name``.
    size : int
        Pixels along a side; 264 leaves room to cut 256 at random.
    resolution : float
        Metres. The chip is centred on the location and snapped to whole 60 m, so that bands of 10, 20 and 60 m line
        up in it.
    bands : sequence of str
        Reflectance bands.
    dtype : {"float32", "int16"}
        Reflectance with NaN, or reflectance x 10 000 with -32768 (half the memory).
    min_clear, max_nodata, min_sun_elevation, min_seasons, max_candidates
        As of `choose_images`.
    min_valid : float
        Least part of a chip's pixels with data in every band; a chip with less gives way to the next best image.
    radiometry : mapping, optional
        By item id, where it is not what the metadata say (`geoeco.sensors.sentinel2.verify_radiometry`). Chips whose
        metadata are in doubt and that are not named here carry the flag ``untrusted-radiometry``.
    sign : str, optional
        Signing method of `geoeco.catalog.sign`.
    threads : int
        Files read at the same time.

    Returns
    -------
    xarray.Dataset
        ``chips (sample, season, band, y, x)`` and ``scl (sample, season, y, x)`` (uint8, 0 = no data), in the order of
        the locations; locations with fewer than `min_seasons` are left out and named in ``attrs["dropped"]``.
        Coordinates by sample: ``name, lon, lat, epsg`` (CRS of its chips), ``x0, y1`` (left and top edge in it); by
        sample and season: ``item_id, date`` (solar day), ``season_year``, ``offset_d``, ``clear_fraction``,
        ``nodata_fraction``, ``valid_fraction``, ``sun_elevation``, ``cloud_cover``, ``candidates``, ``flags``, and
        ``reason`` where there is no chip. `chips_table` gives the same as a table.

    Raises
    ------
    InputError
        If there are no locations, an item is given twice, or settings make no sense.
    TransientError
        If a file could not be read for a cause that may pass. Files that are broken or gone are left out, listed in
        ``attrs["dropped"]``, and the next best image is taken.

    Notes
    -----
    Everything is held in memory: 6.7 MB a location with four seasons and twelve bands as int16. For many locations
    write to a store group by group: `chips_template`, `write_chips`.
    """
    if dtype not in ("float32", "int16"):
        raise InputError(f"chips of type {dtype!r} are not made", what_to_do='use "float32" or "int16"')
    settings = ChipSettings(
        size=size,
        resolution=resolution,
        bands=tuple(bands),
        min_clear=min_clear,
        max_nodata=max_nodata,
        min_valid=min_valid,
        min_sun_elevation=min_sun_elevation,
        min_seasons=min_seasons,
        max_candidates=max_candidates,
    )
    reader = ChipReader(items, locations, windows, settings, radiometry=radiometry, method=sign, threads=threads)
    values, scl = reader.read(range(len(SEASONS)))
    table = reader.table()
    # (season, sample, ...) to (sample, season, ...)
    stored = xr.DataArray(values.swapaxes(0, 1), dims=("sample", "season", "band", "y", "x"))
    classes = xr.DataArray(scl.swapaxes(0, 1), dims=("sample", "season", "y", "x"))
    if dtype == "float32":
        stored = (stored.astype(np.float32) * np.float32(CHIP_SCALE)).where(stored != CHIP_NODATA)
    data = chips_dataset(stored, classes, table, {"bands": settings.bands, "size": size, "resolution": resolution})
    if dtype == "int16":
        data["chips"].attrs |= {"scale_factor": CHIP_SCALE, "_FillValue": CHIP_NODATA}
    notes = [*reader.notes(), *location_notes(table)]
    kept = data.isel(sample=np.flatnonzero(data["kept"].to_numpy()))
    kept.attrs["dropped"] = notes
    return kept


def location_notes(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Locations that were not kept, by the reasons of their seasons."""
    lost = table[~table["kept"]]
    reasons = lost.groupby("name", sort=False)["reason"].agg(lambda r: ", ".join(sorted({x for x in r if x})))
    return [
        {
            "code": "few-seasons",
            "what": f"too few seasons with an image: {reason}",
            "count": len(names),
            "names": [str(n) for n in names],
        }
        for reason, names in reasons.groupby(reasons).groups.items()
    ]
