"""Which image stands for which season of which location.

A scene's cloud percentage says little about a patch of it, so the patch itself is looked at in the scene
classification of every candidate. Images are ranked by the clear part of the patch, then by how near they are to the
middle of the season's window, then by how new they are; no date serves two seasons of one location. A season without
a usable image is a result with a reason, never a silent gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pystac
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.optimize import linear_sum_assignment

from geoeco.catalog import asset_for, sign
from geoeco.cubes.reading import Raster
from geoeco.errors import CatalogError, InputError, ReadError
from geoeco.gdal import gdal_env
from geoeco.sampling.circular import YEAR_DAYS
from geoeco.sampling.footprints import chip_geobox
from geoeco.sampling.patches import read_patches
from geoeco.sampling.places import check_locations
from geoeco.sampling.windows import SEASONS
from geoeco.sensors import sentinel2

__all__ = ["REASONS", "choose_images"]

#: Why a season of a location has no image.
REASONS: dict[str, str] = {
    "": "it has one",
    "no-window": "the table of windows does not name the location",
    "outside-items": "no scene covers the location",
    "no-whole-patch": "scenes cover the location, none of them its whole patch",
    "no-date": "no scene was taken in the window",
    "low-sun": "all scenes in the window were taken at low sun",
    "nodata": "all scenes in the window lack pixels of the patch",
    "cloud": "the patch is not clear enough in any scene in the window",
    "date-taken": "the only usable dates serve other seasons",
    "unreadable": "no scene in the window could be read",
    "few-seasons": "it has one, but the location has too few seasons with an image",
}

#: Clear parts are compared in steps of this: one wrong pixel does not outweigh a month.
CLEAR_STEP = 0.01

#: Resolution of the scene classification, metres.
_SCL_M = 20.0


@dataclass(frozen=True)
class Scene:
    """What is needed of an item to choose it and to read it."""

    item: pystac.Item
    day: np.datetime64
    epsg: int
    bounds: tuple[float, float, float, float]  # left, bottom, right, top in its own CRS
    sun_elevation: float
    cloud_cover: float
    baseline: tuple[int, int]


@dataclass(frozen=True)
class Candidates:
    """All that is known about scenes for locations; seasons are chosen from it, again where a file fails to read.

    Attributes
    ----------
    places : geopandas.GeoDataFrame
    scenes : list of Scene
    epsg : numpy.ndarray, shape (location,)
        CRS of the chip; 0 where there is none.
    boxes : dict
        Grid of the patch by (sample, EPSG code).
    sample, season, scene : numpy.ndarray of int, shape (candidate,)
        Which scene for which season of which location.
    offset_d, year : numpy.ndarray, shape (candidate,)
        Days after the nearest yearly recurrence of the window's middle, and the year of that middle.
    fallback : numpy.ndarray of bool, shape (candidate,)
        Outside the window, looked at because the window has no light.
    lit : numpy.ndarray of bool, shape (candidate,)
        Whether the sun is high enough.
    clear, nodata : numpy.ndarray of float, shape (candidate,)
        Parts of the patch; NaN where the scene was not looked at or not readable.
    reasons : dict
        Why a season has no candidates at all, by (sample, season).
    dropped : list of dict
        Items that could not be used.
    """

    places: gpd.GeoDataFrame
    scenes: list[Scene]
    epsg: npt.NDArray[np.int64]
    boxes: dict[tuple[int, int], GeoBox]
    sample: npt.NDArray[np.int64]
    season: npt.NDArray[np.int64]
    scene: npt.NDArray[np.int64]
    offset_d: npt.NDArray[np.float64]
    year: npt.NDArray[np.int64]
    fallback: npt.NDArray[np.bool_]
    lit: npt.NDArray[np.bool_]
    clear: npt.NDArray[np.float64]
    nodata: npt.NDArray[np.float64]
    reasons: dict[tuple[int, int], str]
    dropped: list[dict[str, Any]]

    def day(self, row: int) -> np.datetime64:
        """Solar day of a candidate."""
        return self.scenes[int(self.scene[row])].day


def href_of(item: pystac.Item, band: str, method: str | None) -> str:
    """Address of a band of an item, signed now; an absent asset is a `ReadError`, as an absent file is."""
    try:
        return sign(asset_for(item, band).href, method)
    except CatalogError as error:
        if error.code == "catalog-signer":
            raise
        raise ReadError(
            error.what, where=f"item {item.id}, asset {band}", what_to_do=error.what_to_do, code="asset-missing"
        ) from error


def drop_note(item: pystac.Item, asset: str, error: ReadError | CatalogError) -> dict[str, Any]:
    """One entry of the list of items left out."""
    return {"item": item.id, "asset": asset, "code": error.code, "what": error.what}


def _projection(item: pystac.Item, method: str | None) -> tuple[int, tuple[float, float, float, float]]:
    """EPSG code and bounds of an item's tile, from its metadata, else from its scene classification."""
    assets = [a.extra_fields for a in item.assets.values()]
    holders: list[dict[str, Any]] = [item.properties, *assets]
    epsg = 0
    for fields in holders:
        code = fields.get("proj:code") or fields.get("proj:epsg")
        if code:
            epsg = int(str(code).rpartition(":")[2])
            break
    for fields in holders:
        box = fields.get("proj:bbox")
        if epsg and box and len(box) == 4:
            return epsg, (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
        transform, shape = fields.get("proj:transform"), fields.get("proj:shape")
        if epsg and transform and shape:
            affine = Affine(*(float(v) for v in transform[:6]))
            right, bottom = affine @ (float(shape[1]), float(shape[0]))
            return epsg, (affine.c, float(bottom), float(right), affine.f)
    with gdal_env():
        raster = Raster(href_of(item, "SCL", method), where=f"item {item.id}, asset SCL")
        try:
            right, bottom = raster.transform @ (raster.shape[1], raster.shape[0])
            if raster.crs.epsg is None:
                raise ReadError("its CRS has no EPSG code", where=f"item {item.id}", code="asset-layout")
            return int(raster.crs.epsg), (raster.transform.c, float(bottom), float(right), raster.transform.f)
        finally:
            raster.close()


def describe_scenes(items: Iterable[pystac.Item], method: str | None) -> tuple[list[Scene], list[dict[str, Any]]]:
    """Items as scenes, in the order of (day, id), and those that cannot be used."""
    scenes, dropped = [], []
    for item in items:
        try:
            epsg, bounds = _projection(item, method)
            day = sentinel2.solar_day(item)
        except (ReadError, CatalogError) as error:
            dropped.append(drop_note(item, "SCL" if isinstance(error, ReadError) else "", error))
            continue
        cloud = item.properties.get("eo:cloud_cover")
        baseline = sentinel2.processing_baseline(item)[0]
        scenes.append(
            Scene(
                item,
                day,
                epsg,
                bounds,
                90.0 - sentinel2.sun_angles(item).zenith,
                float(cloud) if isinstance(cloud, int | float) else float("nan"),
                baseline if baseline is not None else (0, 0),
            )
        )
    scenes.sort(key=lambda s: (s.day, s.item.id))
    if len({s.item.id for s in scenes}) != len(scenes):
        raise InputError("an item occurs twice", what_to_do="give each item once")
    return scenes, dropped


def _covered(
    places: gpd.GeoDataFrame, scenes: Sequence[Scene], size: int, resolution: float
) -> tuple[dict[tuple[int, tuple[float, ...]], npt.NDArray[np.int8]], dict[tuple[int, int], GeoBox]]:
    """For each tile grid: 2 where it holds the whole patch of a location, 1 where it holds the location, else 0."""
    lon, lat = places["lon"].to_numpy(), places["lat"].to_numpy()
    state: dict[tuple[int, tuple[float, ...]], npt.NDArray[np.int8]] = {}
    boxes: dict[tuple[int, int], GeoBox] = {}
    for scene in scenes:
        key = (scene.epsg, scene.bounds)
        if key in state:
            continue
        left, bottom, right, top = scene.bounds
        found = np.zeros(len(places), dtype=np.int8)
        # far from its zone the projection folds over: a point on the other side of the Earth may seem to lie inside
        area = CRS(f"EPSG:{scene.epsg}").proj.area_of_use
        centre = 0.0 if area is None else (area.west + area.east) / 2.0
        reach = 360.0 if area is None else max(12.0, (area.east - area.west))
        near = np.abs(np.mod(lon - centre + 180.0, 360.0) - 180.0) <= reach
        x, y = Transformer.from_crs("EPSG:4326", CRS(f"EPSG:{scene.epsg}").proj, always_xy=True).transform(lon, lat)
        inside = near & (x >= left) & (x < right) & (y > bottom) & (y <= top)
        for sample in np.flatnonzero(inside):
            patch = (int(sample), scene.epsg)
            if patch not in boxes:
                boxes[patch] = chip_geobox(lon[sample], lat[sample], scene.epsg, size=size, resolution=resolution)
            box = boxes[patch].boundingbox
            whole = box.left >= left and box.right <= right and box.bottom >= bottom and box.top <= top
            found[sample] = 2 if whole else 1
        state[key] = found
    return state, boxes


def _choose_crs(
    places: gpd.GeoDataFrame,
    scenes: Sequence[Scene],
    state: dict[tuple[int, tuple[float, ...]], npt.NDArray[np.int8]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """One CRS a location: its own UTM zone where scenes there hold the patch, else the zone with most scenes."""
    count: dict[int, npt.NDArray[np.int64]] = {}
    best = np.zeros(len(places), dtype=np.int8)
    for scene in scenes:
        found = state[(scene.epsg, scene.bounds)]
        best = np.maximum(best, found)
        count[scene.epsg] = count.get(scene.epsg, np.zeros(len(places), dtype=np.int64)) + (found == 2)
    chosen = np.zeros(len(places), dtype=np.int64)
    own = places["epsg"].to_numpy()
    for sample in range(len(places)):
        counts = {epsg: int(n[sample]) for epsg, n in count.items() if n[sample] > 0}
        if counts:
            chosen[sample] = own[sample] if own[sample] in counts else min(counts, key=lambda e: (-counts[e], e))
    return chosen, best


def window_offset(day: npt.NDArray[np.datetime64], mid: float) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Signed days from the nearest yearly recurrence of a middle day to each date, and the year of that middle."""
    year = day.astype("datetime64[Y]").astype(np.int64) + 1970
    best = np.full(day.shape, np.inf)
    of = year.copy()
    for shift in (-1, 0, 1):
        first = (year + shift - 1970).astype("datetime64[Y]").astype("datetime64[D]")
        offset = (day.astype("datetime64[D]") - first).astype(np.float64) - (mid - 1.0)
        nearer = np.abs(offset) < np.abs(best)
        best, of = np.where(nearer, offset, best), np.where(nearer, year + shift, of)
    return best, of


def _patch_classes(geobox: GeoBox) -> tuple[GeoBox, int]:
    """Grid of the scene classification under a chip, grown by the halo that dilation needs."""
    box = geobox.boundingbox
    rows, cols = (int(-(-span // _SCL_M)) for span in (box.span_y, box.span_x))
    halo = sentinel2.dilation_halo(pixel_size=_SCL_M)
    grid = GeoBox((rows, cols), Affine(_SCL_M, 0, box.left, 0, -_SCL_M, box.top), geobox.crs)
    return grid.pad(halo, halo), halo


def _look(scene: Scene, geoboxes: Sequence[GeoBox], method: str | None) -> npt.NDArray[np.float64]:
    """Clear part and part without data of each patch in a scene, shape (patch, 2)."""
    grids = [_patch_classes(geobox) for geobox in geoboxes]
    result = np.empty((len(geoboxes), 2))
    with gdal_env():
        raster = Raster(href_of(scene.item, "SCL", method), where=f"item {scene.item.id}, asset SCL")
        try:
            for index, classes in read_patches(raster, [g for g, _ in grids], resampling="nearest", nodata=0):
                halo = grids[index][1]
                core = (slice(halo, classes.shape[0] - halo), slice(halo, classes.shape[1] - halo))
                clear = sentinel2.scl_mask(classes, pixel_size=_SCL_M)[core]
                result[index] = clear.mean(), (classes[core] == 0).mean()
        finally:
            raster.close()
    return result


def _window_arrays(
    places: gpd.GeoDataFrame, windows: pd.DataFrame
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Middle, width and width of the interval of each (location, season); NaN where the table lacks it."""
    need = {"name", "season", "mid", "width_d", "interval_start", "interval_end"}
    if missing := sorted(need - set(windows.columns)):
        raise InputError(
            f"the table of windows lacks {', '.join(missing)}",
            what_to_do="give the result of season_windows or calendar_windows",
        )
    position = {str(name): i for i, name in enumerate(places["name"])}
    row = windows["name"].astype(str).map(position).to_numpy(dtype=float)
    column = windows["season"].map({s: i for i, s in enumerate(SEASONS)}).to_numpy(dtype=float)
    known = np.isfinite(row) & np.isfinite(column)
    at = row[known].astype(np.int64), column[known].astype(np.int64)
    width = windows["width_d"].to_numpy(dtype=float)
    interval = np.mod(windows["interval_end"].to_numpy(float) - windows["interval_start"].to_numpy(float), YEAR_DAYS)
    arrays = []
    for values in (windows["mid"].to_numpy(dtype=float), width, np.maximum(interval, width)):
        array = np.full((len(places), len(SEASONS)), np.nan)
        array[at] = values[known]
        arrays.append(array)
    return arrays[0], arrays[1], arrays[2]


def gather_candidates(
    items: Sequence[pystac.Item],
    locations: gpd.GeoDataFrame,
    windows: pd.DataFrame,
    *,
    size: int,
    resolution: float,
    min_sun_elevation: float,
    max_candidates: int | None,
    method: str | None,
    threads: int,
) -> Candidates:
    """Look at the patch of every location in every scene that may serve a season of it."""
    places = check_locations(locations)
    mid, width, interval = _window_arrays(places, windows)
    scenes, dropped = describe_scenes(items, method)
    state, boxes = _covered(places, scenes, size, resolution)
    epsg, best = _choose_crs(places, scenes, state)
    reasons: dict[tuple[int, int], str] = {}
    days = np.array([s.day for s in scenes], dtype="datetime64[D]")
    sun = np.array([s.sun_elevation for s in scenes])
    scene_epsg = np.array([s.epsg for s in scenes], dtype=np.int64)
    whole = np.zeros((len(places), len(scenes)), dtype=bool)
    for position, scene in enumerate(scenes):
        whole[:, position] = state[(scene.epsg, scene.bounds)] == 2
    found: dict[str, list[npt.NDArray[Any]]] = {
        key: [] for key in ("sample", "season", "scene", "offset_d", "year", "fallback", "lit")
    }
    for sample in range(len(places)):
        usable = np.flatnonzero(whole[sample] & (scene_epsg == epsg[sample]))
        lit = ~(sun[usable] < min_sun_elevation)
        for season, season_name in enumerate(SEASONS):
            if not np.isfinite(mid[sample, season]):
                reasons[(sample, season)] = "no-window"
                continue
            if not epsg[sample]:
                reasons[(sample, season)] = "no-whole-patch" if best[sample] else "outside-items"
                continue
            offset, year = window_offset(days[usable], float(mid[sample, season]))
            inside = np.abs(offset) <= width[sample, season] / 2.0
            fallback = np.zeros(len(usable), dtype=bool)
            # winter alone may look beyond its window, as far as its interval, for a date with light
            if season_name == "winter" and not (inside & lit).any():
                fallback = ~inside & lit & (np.abs(offset) <= interval[sample, season] / 2.0)
            take = inside | fallback
            count = int(take.sum())
            found["sample"].append(np.full(count, sample, dtype=np.int64))
            found["season"].append(np.full(count, season, dtype=np.int64))
            for key, values in (
                ("scene", usable),
                ("offset_d", offset),
                ("year", year),
                ("fallback", fallback),
                ("lit", lit),
            ):
                found[key].append(values[take])
    empty: dict[str, npt.DTypeLike] = {"offset_d": np.float64, "fallback": np.bool_, "lit": np.bool_}
    columns = {
        key: np.concatenate(parts) if parts else np.empty(0, dtype=empty.get(key, np.int64))
        for key, parts in found.items()
    }
    if max_candidates is not None:
        keep = _clearest_tiles(columns, np.array([s.cloud_cover for s in scenes]), max_candidates)
        columns = {key: values[keep] for key, values in columns.items()}
    clear, nodata = np.full(len(columns["scene"]), np.nan), np.full(len(columns["scene"]), np.nan)
    lit_rows = np.flatnonzero(columns["lit"])
    groups = [(int(s), lit_rows[columns["scene"][lit_rows] == s]) for s in np.unique(columns["scene"][lit_rows])]

    def look(group: tuple[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.float64] | ReadError:
        scene = scenes[group[0]]
        try:
            # a patch may serve two seasons whose windows overlap: it is looked at once
            samples, back = np.unique(columns["sample"][group[1]], return_inverse=True)
            return _look(scene, [boxes[(int(i), scene.epsg)] for i in samples], method)[back]
        except ReadError as error:
            return error

    for (position, rows), answer in zip(groups, in_threads(look, groups, threads), strict=True):
        if isinstance(answer, ReadError):
            dropped.append(drop_note(scenes[position].item, "SCL", answer))
        else:
            clear[rows], nodata[rows] = answer[:, 0], answer[:, 1]
    return Candidates(
        places=places,
        scenes=scenes,
        epsg=epsg,
        boxes=boxes,
        clear=clear,
        nodata=nodata,
        reasons=reasons,
        dropped=dropped,
        **columns,
    )


def _clearest_tiles(
    columns: dict[str, npt.NDArray[Any]], cloud_cover: npt.NDArray[np.float64], most: int
) -> npt.NDArray[np.int64]:
    """Rows of the `most` lit scenes of least tile cloud cover for each season of each location, and all dark ones."""
    cloud = np.nan_to_num(cloud_cover[columns["scene"]], nan=np.inf)
    order = np.lexsort((columns["scene"], cloud, columns["season"], columns["sample"]))
    order = order[columns["lit"][order]]
    group = columns["sample"][order] * len(SEASONS) + columns["season"][order]
    first = np.searchsorted(group, group)
    kept = order[np.arange(len(order)) - first < most]
    return np.sort(np.concatenate([kept, np.flatnonzero(~columns["lit"])]))


def in_threads[T, R](work: Callable[[T], R], jobs: Sequence[T], threads: int) -> list[R]:
    """Results of jobs in their order; a first error stops the rest."""
    if threads <= 1 or len(jobs) <= 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(work, jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Limits:
    """What an image must have."""

    min_clear: float = 0.8
    max_nodata: float = 0.0


def assign(
    candidates: Candidates,
    limits: Limits,
    *,
    banned: frozenset[tuple[int, int]] = frozenset(),
    fixed: dict[tuple[int, int], int] | None = None,
    samples: Iterable[int] | None = None,
) -> dict[tuple[int, int], int | str]:
    """Find the candidate for each (sample, season), or the reason why there is none.

    Parameters
    ----------
    candidates : Candidates
    limits : Limits
    banned : set of (sample, scene)
        Pairs that proved unreadable.
    fixed : dict, optional
        Rows already settled: their dates are taken.
    samples : iterable of int, optional
        Only these; by default all.
    """
    settled = fixed or {}
    result: dict[tuple[int, int], int | str] = {}
    for sample in samples if samples is not None else range(len(candidates.places)):
        rows = np.flatnonzero(candidates.sample == sample)
        ranked: dict[int, list[int]] = {}
        for season in range(len(SEASONS)):
            if (sample, season) in settled:
                continue
            if (sample, season) in candidates.reasons:
                result[(sample, season)] = candidates.reasons[(sample, season)]
                continue
            usable, reason = _usable(candidates, rows[candidates.season[rows] == season], limits, banned)
            if reason:
                result[(sample, season)] = reason
            else:
                ranked[season] = _rank(candidates, usable)
        taken = {candidates.day(row) for (s, _), row in settled.items() if s == sample}
        chosen = _distinct(candidates, ranked, taken)
        for season in ranked:
            result[(sample, season)] = chosen.get(season, "date-taken")
    return result


def _usable(
    candidates: Candidates, rows: npt.NDArray[np.int64], limits: Limits, banned: frozenset[tuple[int, int]]
) -> tuple[npt.NDArray[np.int64], str]:
    """Candidates that pass every test, or the last test that some reached and none passed."""
    free = [(int(candidates.sample[row]), int(candidates.scene[row])) not in banned for row in rows]
    tests = {
        "no-date": np.ones(len(rows), dtype=bool),
        "low-sun": candidates.lit[rows],
        "unreadable": np.isfinite(candidates.clear[rows]) & np.array(free, dtype=bool),
        "nodata": candidates.nodata[rows] <= limits.max_nodata + 1e-12,
        "cloud": candidates.clear[rows] >= limits.min_clear - 1e-12,
    }
    alive = np.ones(len(rows), dtype=bool)
    for reason, test in tests.items():
        alive = alive & test
        if not alive.any():
            return rows[:0], reason
    return rows[alive], ""


def _rank(candidates: Candidates, rows: npt.NDArray[np.int64]) -> list[int]:
    """Rows best first: clear part, nearness to the middle, newest; then newest processing, then name."""

    def key(row: int) -> tuple[Any, ...]:
        scene = candidates.scenes[int(candidates.scene[row])]
        clear, far = round(float(candidates.clear[row]) / CLEAR_STEP), abs(float(candidates.offset_d[row]))
        # beyond the window the nearest lit date is asked for, not the clearest
        first = (far, -clear) if candidates.fallback[row] else (-clear, far)
        return (*first, -scene.day.astype(np.int64), -scene.baseline[0], -scene.baseline[1], scene.item.id)

    return sorted((int(row) for row in rows), key=key)


def _distinct(candidates: Candidates, ranked: dict[int, list[int]], taken: set[np.datetime64]) -> dict[int, int]:
    """Dates for the seasons of one location, no date twice: most seasons first, then the least sum of ranks."""
    best: dict[tuple[int, np.datetime64], tuple[int, int]] = {}
    for season, rows in ranked.items():
        for row in rows:
            day = candidates.day(row)
            if day not in taken and (season, day) not in best:
                best[(season, day)] = (sum(s == season for s, _ in best), row)
    if not best:
        return {}
    seasons, dates = sorted(ranked), sorted({day for _, day in best})
    # leaving a season out costs more than the worst ranks of all
    cost = np.full((len(seasons), len(dates)), float(len(SEASONS) * (len(dates) + 1)))
    for (season, day), (rank, _) in best.items():
        cost[seasons.index(season), dates.index(day)] = rank
    pairs = zip(*linear_sum_assignment(cost), strict=True)
    return {seasons[i]: best[(seasons[i], dates[j])][1] for i, j in pairs if (seasons[i], dates[j]) in best}


#: What the columns of a choice hold where there is no image.
NO_CHOICE: dict[str, Any] = {
    "item_id": "",
    "date": np.datetime64("NaT", "ns"),
    "season_year": -1,
    "offset_d": np.nan,
    "clear_fraction": np.nan,
    "nodata_fraction": np.nan,
    "sun_elevation": np.nan,
    "cloud_cover": np.nan,
    "flags": "",
}


def choice_rows(candidates: Candidates, chosen: dict[tuple[int, int], int | str], min_seasons: int) -> pd.DataFrame:
    """One row a (location, season): the image, what it was ranked by, flags, or the reason why there is none."""
    dark = _dark_middles(candidates)
    rows = []
    for sample, name in enumerate(candidates.places["name"]):
        found = sum(isinstance(chosen[(sample, season)], int) for season in range(len(SEASONS)))
        looked = np.bincount(candidates.season[(candidates.sample == sample) & candidates.lit], minlength=len(SEASONS))
        for season, season_name in enumerate(SEASONS):
            answer = chosen[(sample, season)]
            row: dict[str, Any] = {
                "sample": sample,
                "name": str(name),
                "season": season_name,
                "kept": found >= min_seasons,
                "reason": answer if isinstance(answer, str) else "" if found >= min_seasons else "few-seasons",
                "candidates": int(looked[season]),
                "epsg": int(candidates.epsg[sample]),
                **NO_CHOICE,
            }
            if isinstance(answer, int):
                scene = candidates.scenes[int(candidates.scene[answer])]
                flags = ["nearest-lit-date"] if candidates.fallback[answer] else []
                flags += ["dark-middle"] if (sample, season) in dark else []
                row |= {
                    "item_id": scene.item.id,
                    "date": scene.day.astype("datetime64[ns]"),
                    "season_year": int(candidates.year[answer]),
                    "offset_d": float(candidates.offset_d[answer]),
                    "clear_fraction": float(candidates.clear[answer]),
                    "nodata_fraction": float(candidates.nodata[answer]),
                    "sun_elevation": scene.sun_elevation,
                    "cloud_cover": scene.cloud_cover,
                    "flags": ",".join(flags),
                }
            rows.append(row)
    return pd.DataFrame(rows)


def _dark_middles(candidates: Candidates) -> set[tuple[int, int]]:
    """Seasons whose middle lies in the dark: the scene nearest to it was left out for its low sun."""
    order = np.lexsort((np.abs(candidates.offset_d), candidates.season, candidates.sample))
    group = candidates.sample[order] * len(SEASONS) + candidates.season[order]
    nearest = order[np.unique(group, return_index=True)[1]]
    dark = nearest[~candidates.lit[nearest]]
    return {(int(candidates.sample[row]), int(candidates.season[row])) for row in dark}


def choose_images(
    items: Sequence[pystac.Item],
    locations: gpd.GeoDataFrame,
    windows: pd.DataFrame,
    *,
    size: int = 264,
    resolution: float = 10.0,
    min_clear: float = 0.8,
    max_nodata: float = 0.0,
    min_sun_elevation: float = 20.0,
    min_seasons: int = 2,
    max_candidates: int | None = None,
    sign: str | None = None,
    threads: int = 4,
) -> pd.DataFrame:
    """Choose the image of each season of each location.

    Parameters
    ----------
    items : sequence of pystac.Item
        Sentinel-2 L2A with a scene classification.
    locations : geopandas.GeoDataFrame
        As `check_locations` takes them.
    windows : pandas.DataFrame
        As of `season_windows` or `calendar_windows`; joined by ``name``.
    size : int
        Pixels along a side of the patch.
    resolution : float
        Metres.
    min_clear : float
        Least clear part of the patch: no cloud, shadow or defect, clouds grown by 60 m. Snow is clear.
    max_nodata : float
        Largest part of the patch without data.
    min_sun_elevation : float
        Degrees; scenes that do not say are kept. Where winter has no scene at all above it in its window, the lit
        date nearest to its middle within the interval from dormancy to greenup (for calendar windows the quarter of
        the year) is taken and flagged ``nearest-lit-date``.
    min_seasons : int
        Locations with fewer are not kept.
    max_candidates : int, optional
        Look at no more than this many scenes a season, those of least tile cloud cover. By default all are looked
        at: a cloudy tile may be clear over the patch.
    sign : str, optional
        Signing method of `geoeco.catalog.sign`.
    threads : int
        Scenes looked at at the same time.

    Returns
    -------
    pandas.DataFrame
        Four rows a location: ``sample, name, season, kept`` (False: fewer than `min_seasons`), ``reason`` (empty where
        there is an image, else a key of `REASONS`), ``candidates`` (scenes looked at), ``epsg`` (CRS of the chip, 0
        for none), ``item_id, date`` (solar day), ``season_year`` (year in which the middle of that season fell),
        ``offset_d`` (days after the middle), ``clear_fraction, nodata_fraction, sun_elevation, cloud_cover`` (of the
        tile), ``flags`` (``nearest-lit-date``; ``dark-middle``: the scene nearest to the middle was too dark).
        ``attrs["dropped"]`` lists items that could not be read and locations that were left out.

    Notes
    -----
    A chip's CRS is the location's own UTM zone where scenes of that zone hold the whole patch, else the neighbouring
    zone whose scenes do; scenes of one CRS alone are used for a location.

    Raises
    ------
    InputError
        If there are no locations, or an item is given twice.
    TransientError
        If a scene could not be read for a cause that may pass.
    """
    found = gather_candidates(
        items,
        locations,
        windows,
        size=size,
        resolution=resolution,
        min_sun_elevation=min_sun_elevation,
        max_candidates=max_candidates,
        method=sign,
        threads=threads,
    )
    chosen = assign(found, Limits(min_clear, max_nodata))
    table = choice_rows(found, chosen, min_seasons)
    table.attrs["dropped"] = [*found.places.attrs.get("dropped", []), *found.dropped]
    return table
