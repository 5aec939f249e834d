"""When the seasons of a location are: four windows a year, from dates of phenology or from the calendar.

Spring is the time from greenup to maturity, summer from maturity to senescence, autumn from senescence to dormancy,
winter from dormancy to the next greenup (SSL4Eco, Plekhanova et al., 2025, arXiv 2504.18256). The windows recur every
year, so they are kept as days on the circle of the year. This module does not look at images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import odc.geo.xr  # noqa: F401 - registers the accessor
import pandas as pd
import xarray as xr
from scipy.spatial import cKDTree

from geoeco.errors import GridError, InputError
from geoeco.sampling.circular import (
    YEAR_DAYS,
    circular_distance,
    circular_median,
    circular_spread,
    day_of_year,
    wrap_day,
)
from geoeco.sampling.places import check_locations

__all__ = ["SEASONS", "calendar_windows", "great_circle_km", "season_windows", "unit_vectors"]

#: The four seasons, in the order of the season axis of chips.
SEASONS: tuple[str, ...] = ("spring", "summer", "autumn", "winter")

#: Mean Earth radius, km (IUGG).
EARTH_RADIUS_KM = 6371.0088

#: Middle of the seasons of SSL4EO-S12, northern naming: 20 March, 21 June, 22 September, 21 December.
CALENDAR_DAYS: tuple[float, ...] = (79.0, 172.0, 265.0, 355.0)

_DATES: tuple[str, ...] = ("greenup", "maturity", "senescence", "dormancy")
_MCD12Q2_VALID = (11138, 32766)
_MCD12Q2_FILL = 32767
#: Of latitude, on the sphere.
_METRES_PER_DEGREE = np.pi / 180.0 * 1000.0 * EARTH_RADIUS_KM
#: Half width of the box that smooths the density of cycles over the year, days.
_CYCLE_BOX_D = 45
#: A cycle this far from the location's main one is another one, days (a quarter of a year).
_OTHER_CYCLE_D = YEAR_DAYS / 4

Floats = npt.NDArray[np.float64]


def unit_vectors(lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
    """Points on the unit sphere, shape (n, 3): neighbours are sought here, so that 180 and -180 degrees are one."""
    x, y = np.radians(np.asarray(lon, dtype=np.float64)), np.radians(np.asarray(lat, dtype=np.float64))
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=-1)


def great_circle_km(chord: npt.ArrayLike) -> Floats:
    """Great-circle distance of two points whose unit vectors lie `chord` apart, km."""
    return np.asarray(
        2.0 * EARTH_RADIUS_KM * np.arcsin(np.clip(np.asarray(chord, dtype=np.float64) / 2.0, 0.0, 1.0)),
        dtype=np.float64,
    )


@dataclass(frozen=True)
class _Sites:
    """Places with dates: day of year of the four dates by year, NaN where there is none."""

    lon: Floats  # (site,)
    lat: Floats  # (site,)
    names: npt.NDArray[np.object_] | None  # (site,)
    days: Floats  # (site, year, 4)


def _main_cycle(centre: Floats, weight: Floats) -> float:
    """Day of the year round which a location's main cycle lies.

    The number of the cycle is no guide: number 1 is the larger amplitude of its year and may change places with
    number 2. So all cycles of all years vote, by their amplitude, for a time of the year.
    """
    density = np.bincount(np.floor(wrap_day(centre)).astype(np.int64), weights=weight, minlength=367)[1:367]
    # circular box mean: the year with its end before it and its beginning behind it
    around = np.concatenate([density[-_CYCLE_BOX_D:], density, density[:_CYCLE_BOX_D]])
    total = np.concatenate([[0.0], np.cumsum(around)])
    smooth = total[2 * _CYCLE_BOX_D + 1 :] - total[: len(density)]
    best = np.flatnonzero(smooth >= smooth.max() * (1 - 1e-9))
    near = circular_distance(wrap_day(centre)[:, None], best[None, :] + 1.5)
    # of a plateau, the day with the nearest cycles
    spread = np.where(near <= _OTHER_CYCLE_D, near, 0.0) * weight[:, None]
    return float(best[np.argmin(spread.sum(axis=0))] + 1.5)


def _centres(dates: Floats, peak: Floats | None) -> Floats:
    """Middle of each cycle, days since 1970: its peak, else between maturity and senescence, else of what there is."""
    filled = np.isfinite(dates).any(axis=-1)
    mean = np.full(dates.shape[:-1], np.nan)
    mean[filled] = np.nanmean(dates[filled], axis=-1)
    top = (dates[..., 1] + dates[..., 2]) / 2.0
    centre = np.where(np.isfinite(top), top, mean)
    return np.where(np.isfinite(peak), peak, centre) if peak is not None else centre


def _choose_cycle(dates: Floats, amplitude: Floats, peak: Floats | None) -> Floats:
    """Dates of the main cycle of one location.

    Parameters
    ----------
    dates : shape (year, cycle, pixel, 4)
        Days since 1970.
    amplitude : shape (year, cycle, pixel)
        Weight of each cycle's vote.
    peak : shape (year, cycle, pixel), optional

    Returns
    -------
    numpy.ndarray, shape (year, pixel, 4)
        NaN where a year has no cycle at the main cycle's time of the year.
    """
    years, _, pixels = amplitude.shape
    centre = day_of_year(_centres(dates, peak))
    present = np.isfinite(centre)
    if not present.any():
        return np.full((years, pixels, 4), np.nan)
    weight = np.where(np.isfinite(amplitude) & (amplitude > 0), amplitude, 1e-6)
    main = _main_cycle(centre[present], weight[present])
    distance = np.where(present, circular_distance(centre, main), np.inf)
    pick = np.argmin(distance, axis=1)
    near = np.take_along_axis(distance, pick[:, None, :], axis=1)[:, 0] <= _OTHER_CYCLE_D
    chosen = np.take_along_axis(dates, np.broadcast_to(pick[:, None, :, None], (years, 1, pixels, 4)), axis=1)[:, 0]
    return np.where(near[..., None], chosen, np.nan)


def _sites_from_table(table: pd.DataFrame, worst_qa: int) -> _Sites:
    columns = {str(c).lower(): c for c in table.columns}
    for need in ("lon", "lat", "year", *(f"{d}_1" for d in _DATES)):
        if need not in columns:
            raise InputError(
                f"the table of dates has no column {need!r}",
                what_to_do="MCD12Q2-like tables have lon, lat, year, Greenup_1, Maturity_1, Senescence_1, Dormancy_1",
            )
    if not len(table):
        raise InputError("the table of dates is empty", what_to_do="give at least one row")
    frame = table.reset_index(drop=True)
    place = np.stack([pd.to_numeric(frame[columns[c]], errors="coerce").to_numpy(float) for c in ("lon", "lat")], 1)
    keep = np.isfinite(place).all(axis=1)
    frame, place = frame[keep].reset_index(drop=True), place[keep]
    if not len(frame):
        raise InputError("the table of dates has no row with coordinates", what_to_do="check lon and lat")
    label = next((columns[c] for c in ("name", "id") if c in columns), None)
    keys = frame[label].astype(str) if label is not None else pd.Series(list(map(tuple, place)))
    codes, unique = pd.factorize(keys)
    years, year_code = np.unique(frame[columns["year"]].to_numpy(), return_inverse=True)
    cycles = 2 if all(f"{d}_2" in columns for d in _DATES) else 1
    dates = np.full((len(unique), len(years), cycles, 4), np.nan)
    amplitude = np.full((len(unique), len(years), cycles), np.nan)
    peak = np.full((len(unique), len(years), cycles), np.nan)
    for cycle in range(cycles):
        suffix = f"_{cycle + 1}"

        def values(column: str) -> Floats:
            return pd.to_numeric(frame[columns[column]], errors="coerce").to_numpy(float)

        good = np.ones(len(frame), dtype=bool)
        qa = next((c for c in (f"qa_overall{suffix}", "qa_overall") if c in columns), None)
        if qa is not None:
            with np.errstate(invalid="ignore"):
                good = values(qa) <= worst_qa
        for position, date in enumerate(_DATES):
            day = values(f"{date}{suffix}")
            with np.errstate(invalid="ignore"):
                valid = good & (day >= _MCD12Q2_VALID[0]) & (day <= _MCD12Q2_VALID[1])
            dates[codes, year_code, cycle, position] = np.where(valid, day, np.nan)
        if f"peak{suffix}" in columns:
            day = values(f"peak{suffix}")
            valid = (day >= _MCD12Q2_VALID[0]) & (day <= _MCD12Q2_VALID[1])
            peak[codes, year_code, cycle] = np.where(valid & good, day, np.nan)
        known = next((c for c in (f"evi_amplitude{suffix}", f"amplitude{suffix}") if c in columns), None)
        size = values(known) if known is not None else np.full(len(frame), 1.0 if cycle == 0 else 0.5)
        amplitude[codes, year_code, cycle] = np.where(size < _MCD12Q2_FILL, size, np.nan)
    days = np.full((len(unique), len(years), 4), np.nan)
    for site in range(len(unique)):
        days[site] = _choose_cycle(dates[site][:, :, None], amplitude[site][..., None], peak[site][..., None])[:, 0]
    first = np.unique(codes, return_index=True)[1]
    names = np.asarray(unique, dtype=object) if label is not None else None
    return _Sites(place[first, 0], place[first, 1], names, day_of_year(days))


def _sites_from_metrics(
    metrics: xr.Dataset, locations: gpd.GeoDataFrame, patch_m: float, worst_quality: int, min_fraction: float
) -> _Sites:
    missing = [n for n in _DATES if n not in metrics]
    if missing:
        raise InputError(
            f"the season metrics lack {', '.join(missing)}", what_to_do="give the result of geoeco.phenology.metrics"
        )
    crs = metrics.odc.crs
    if crs is None:
        raise GridError("the season metrics have no CRS", what_to_do='open them with decode_coords="all"')
    points = locations.geometry.to_crs(str(crs))
    x, y = metrics["x"].to_numpy(), metrics["y"].to_numpy()
    reach_y = patch_m / 2.0 if crs.projected else patch_m / 2.0 / _METRES_PER_DEGREE
    years = metrics.sizes["year"]
    days = np.full((len(locations), years, 4), np.nan)
    for site, point in enumerate(points):
        reach_x = reach_y if crs.projected else reach_y / max(np.cos(np.radians(point.y)), 1e-6)
        columns = np.flatnonzero(np.abs(x - point.x) <= reach_x)
        rows = np.flatnonzero(np.abs(y - point.y) <= reach_y)
        if not len(columns) or not len(rows):
            continue
        window = {"y": slice(rows[0], rows[-1] + 1), "x": slice(columns[0], columns[-1] + 1)}
        names = [n for n in (*_DATES, "peak", "amplitude", "quality") if n in metrics]
        patch = metrics[names].isel(window).transpose("year", "cycle", "y", "x").load()
        shape = (years, patch.sizes["cycle"], -1)
        dates = np.stack([patch[n].to_numpy().astype(float).reshape(shape) for n in _DATES], axis=-1)
        if "quality" in patch:
            dates[patch["quality"].to_numpy().reshape(shape) > worst_quality] = np.nan
        size = patch["amplitude"].to_numpy().astype(float).reshape(shape) if "amplitude" in patch else None
        peak = patch["peak"].to_numpy().astype(float).reshape(shape) if "peak" in patch else None
        if peak is not None:
            peak = np.where(np.isfinite(dates).any(axis=-1), peak, np.nan)
        chosen = day_of_year(
            _choose_cycle(dates, size if size is not None else np.ones(dates.shape[:-1]), peak)
        )  # (year, pixel, 4)
        enough = np.isfinite(chosen).mean(axis=1) >= min_fraction
        days[site] = np.where(enough, circular_median(np.moveaxis(chosen, 1, -1)), np.nan)
    return _Sites(locations["lon"].to_numpy(), locations["lat"].to_numpy(), None, days)


def _in_order(days: Floats, *, strict: bool = True) -> npt.NDArray[np.bool_]:
    """Whether greenup < maturity < senescence < dormancy < the next greenup, shape (..., 4) to (...)."""
    after = np.mod(days - days[..., :1], YEAR_DAYS)
    with np.errstate(invalid="ignore"):
        steps = np.diff(after, axis=-1)
        ordered = (steps > 0).all(axis=-1) if strict else (steps >= 0).all(axis=-1) & (after[..., -1] > 0)
    return np.asarray(ordered & np.isfinite(days).all(axis=-1))


def _typical_year(days: Floats) -> tuple[Floats, npt.NDArray[np.int64], Floats, npt.NDArray[np.bool_]]:
    """Take the four dates of each site, in order; with number of years, spread, and whether the order was repaired."""
    median = circular_median(np.moveaxis(days, 1, -1))  # (site, 4)
    spread = circular_spread(np.moveaxis(days, 1, -1), median).max(axis=-1)
    count = np.isfinite(days).sum(axis=1).min(axis=-1)
    ordered = _in_order(median)
    repaired = np.zeros(len(median), dtype=bool)
    for site in np.flatnonzero(~ordered & np.isfinite(median).all(axis=1)):
        years = days[site]
        usable = np.flatnonzero(_in_order(years))
        if len(usable):
            cost = circular_distance(years[usable], median[site]).sum(axis=1)
            median[site], repaired[site] = years[usable[np.argmin(cost)]], True
        elif not _in_order(median[site], strict=False):
            median[site] = np.nan
    median[~np.isfinite(median).all(axis=1)] = np.nan
    return wrap_day(median), np.asarray(count, dtype=np.int64), spread, repaired


def _window_rows(start: Floats, end: Floats, min_width_d: float) -> dict[str, Floats]:
    """Start, middle, end and width of windows that may cross the turn of the year, widened to the least width."""
    interval = np.mod(end - start, YEAR_DAYS)
    width = np.maximum(interval, min_width_d)
    mid = wrap_day(start + interval / 2.0)
    return {
        "start": wrap_day(mid - width / 2.0),
        "end": wrap_day(mid + width / 2.0),
        "mid": mid,
        "width_d": width,
        "interval_start": wrap_day(start),
        "interval_end": wrap_day(end),
    }


def _calendar_bounds(lat: Floats) -> tuple[Floats, Floats, Floats]:
    """Middle, start and end (halfway to the neighbours) of the calendar's seasons, (site, 4), by hemisphere."""
    mids = np.array(CALENDAR_DAYS)
    before = wrap_day(mids - np.mod(mids - np.roll(mids, 1), YEAR_DAYS) / 2.0)
    after = wrap_day(mids + np.mod(np.roll(mids, -1) - mids, YEAR_DAYS) / 2.0)
    order = np.where((lat < 0)[:, None], np.array([2, 3, 0, 1]), np.arange(4))
    return mids[order], before[order], after[order]


def _table(locations: gpd.GeoDataFrame, rows: dict[str, Any]) -> pd.DataFrame:
    count = len(locations)
    front: dict[str, Any] = {
        "sample": np.repeat(np.arange(count), len(SEASONS)),
        "name": np.repeat(locations["name"].to_numpy(dtype=object), len(SEASONS)),
        "season": np.tile(np.array(SEASONS, dtype=object), count),
    }
    flat = {key: np.asarray(value).reshape(-1) for key, value in rows.items()}
    table = pd.DataFrame({**front, **flat})
    table.attrs["dropped"] = list(locations.attrs.get("dropped", []))
    return table


def calendar_windows(
    locations: gpd.GeoDataFrame, *, half_width_d: float = 30.0, days: Sequence[float] = CALENDAR_DAYS
) -> pd.DataFrame:
    """Windows by the calendar, the same everywhere: the control for windows by phenology.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        As `check_locations` takes them.
    half_width_d : float
        Days before and after the middle.
    days : sequence of 4 floats
        Day of the year of the middle of spring, summer, autumn and winter *of the northern hemisphere*; by default
        20 March, 21 June, 22 September and 21 December, as SSL4EO-S12 has them.

    Returns
    -------
    pandas.DataFrame
        As `season_windows` gives it, ``source`` is ``calendar``. South of the equator the same four dates are used
        under the names that they have there: 20 March is autumn, 21 June winter.
    """
    if len(days) != len(SEASONS) or not np.isfinite(days).all():
        raise InputError(f"days={days!r}: give four days of the year")
    if not 0 < half_width_d <= YEAR_DAYS / 2:
        raise InputError(f"half_width_d={half_width_d} must lie between 0 and half a year")
    table = check_locations(locations)
    lat = table["lat"].to_numpy()
    order = np.where((lat < 0)[:, None], np.array([2, 3, 0, 1]), np.arange(4))
    mid = np.array(days, dtype=np.float64)[order]
    rows: dict[str, Any] = _window_rows(mid - half_width_d, mid + half_width_d, 0.0)
    _, rows["interval_start"], rows["interval_end"] = _calendar_bounds(lat)
    rows |= {
        "source": np.full(mid.shape, "calendar", dtype=object),
        "donor": np.full(mid.shape, "", dtype=object),
        "distance_km": np.full(mid.shape, np.nan),
        "n_years": np.zeros(mid.shape, dtype=np.int64),
        "spread_d": np.full(mid.shape, np.nan),
        "repaired": np.zeros(mid.shape, dtype=bool),
    }
    return _table(table, rows)


def season_windows(
    source: xr.Dataset | pd.DataFrame | str | Path,
    locations: gpd.GeoDataFrame | None = None,
    *,
    max_distance_km: float = 500.0,
    min_width_d: float = 30.0,
    min_years: int = 1,
    worst_qa: int = 2,
    worst_quality: int = 4,
    patch_m: float = 2_640.0,
    min_fraction: float = 0.25,
    match_km: float = 0.5,
) -> pd.DataFrame:
    """Find the four season windows of each location, from dates of phenology.

    For every location the circular medians over the years of greenup, maturity, senescence and dormancy; where they
    are out of order, the dates of the year that is jointly closest to them; where there are none (evergreen, desert,
    ice: no cycle is a valid answer), those of the nearest place by great-circle distance that has them; and beyond
    `max_distance_km` the quarters of the calendar. With two cycles a year, one is chosen for the location, once: the
    time of the year round which the cycles of all years have the largest summed amplitude.

    Parameters
    ----------
    source : xarray.Dataset, pandas.DataFrame or path
        Season metrics as of `geoeco.phenology.metrics`, with dims (year, cycle, y, x): of each location the patch
        round it is used, each year by the circular median of its pixels. Or a table (or CSV or Parquet file) as
        drawn from MCD12Q2: ``lon, lat, year, Greenup_1, Maturity_1, Senescence_1, Dormancy_1``, optionally the same
        with ``_2``, ``Peak_1``, ``EVI_Amplitude_1``, ``QA_Overall_1`` and ``name`` (or ``id``); dates in days since
        1970-01-01, fill 32767.
    locations : geopandas.GeoDataFrame, optional
        As `check_locations` takes them. By default the places of the table. A location takes its own dates from the
        place of the table that has its name, or that lies within `match_km`.
    max_distance_km : float
        Beyond this no neighbour lends its dates.
    min_width_d : float
        Narrower windows are widened to this, by the same on both sides.
    min_years : int
        A place with fewer years has no dates of its own.
    worst_qa : int
        Rows of a table with a worse ``QA_Overall`` are left out (3 is poor).
    worst_quality : int
        Pixels of a metrics raster with a worse ``quality`` are left out.
    patch_m : float
        Side of the patch round each location, metres (raster only).
    min_fraction : float
        Share of the patch's pixels that must have the cycle for a year to count (raster only).
    match_km : float
        How near a place of the table must be to be the location itself (table only).

    Returns
    -------
    pandas.DataFrame
        Four rows a location: ``sample`` (row of the location), ``name``, ``season``, ``start``, ``end``, ``mid`` (days
        of the year in [1, 366.25); start > end crosses 1 January), ``width_d``, ``interval_start``, ``interval_end``
        (before widening), ``source`` (``own``, ``neighbour``, ``calendar``), ``donor`` (name of the place that lent
        its dates), ``distance_km`` to it, ``n_years``, ``spread_d`` (median deviation over the years, days, the
        largest of the four dates), ``repaired`` (the order came from a single year).

    Raises
    ------
    InputError
        If the source lacks what is needed, or a raster comes without locations.
    GridError
        If a raster or the locations have no CRS.

    Notes
    -----
    The procedure of SSL4Eco with its gaps closed; circular medians, the order repair, provenance and the cap on the
    distance are additions.
    """
    if max_distance_km < 0 or min_width_d < 0 or min_width_d > YEAR_DAYS:
        raise InputError("max_distance_km and min_width_d must not be negative, min_width_d at most a year")
    if isinstance(source, str | Path):
        path = str(source)
        try:
            source = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
        except Exception as error:
            raise InputError("the table of dates cannot be read", where=path, what_to_do="CSV or Parquet") from error
    if isinstance(source, xr.Dataset):
        if locations is None:
            raise InputError("a raster of metrics needs locations", what_to_do="give a table of points")
        places = check_locations(locations)
        sites = _sites_from_metrics(source, places, patch_m, worst_quality, min_fraction)
        own = np.arange(len(places))
        own_distance = np.zeros(len(places))
    else:
        sites = _sites_from_table(source, worst_qa)
        if locations is None:
            names = sites.names if sites.names is not None else np.array([str(i) for i in range(len(sites.lon))])
            locations = gpd.GeoDataFrame(
                {"name": names}, geometry=gpd.points_from_xy(sites.lon, sites.lat), crs="EPSG:4326"
            )
        places = check_locations(locations)
        own, own_distance = _own_sites(places, sites, match_km)

    dates, count, spread, repaired = _typical_year(sites.days)
    valid = np.isfinite(dates).all(axis=1) & (count >= min_years)
    donor = np.where((own >= 0) & valid[own], own, -1)
    distance = np.where(donor >= 0, own_distance, np.nan)
    origin = np.where(donor >= 0, "own", "calendar").astype(object)
    needy = np.flatnonzero(donor < 0)
    if len(needy) and valid.any():
        pool = np.flatnonzero(valid)
        tree = cKDTree(unit_vectors(sites.lon[pool], sites.lat[pool]))
        chord, nearest = tree.query(unit_vectors(places["lon"].to_numpy()[needy], places["lat"].to_numpy()[needy]))
        km = great_circle_km(chord)
        lent = km <= max_distance_km
        donor[needy[lent]], distance[needy[lent]] = pool[nearest[lent]], km[lent]
        origin[needy[lent]] = "neighbour"

    _, start, end = _calendar_bounds(places["lat"].to_numpy())
    has = donor >= 0
    start[has] = dates[donor[has]]
    end[has] = np.roll(dates[donor[has]], -1, axis=1)
    names = sites.names if sites.names is not None else _site_names(sites, places, isinstance(source, xr.Dataset))
    rows: dict[str, Any] = _window_rows(start, end, min_width_d)

    def per_season(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.repeat(values[:, None], len(SEASONS), axis=1)

    rows |= {
        "source": per_season(origin),
        "donor": per_season(np.where(origin == "neighbour", names[donor], "").astype(object)),
        "distance_km": per_season(distance),
        "n_years": per_season(np.where(has, count[donor], 0)),
        "spread_d": per_season(np.where(has, spread[donor], np.nan)),
        "repaired": per_season(has & repaired[donor]),
    }
    return _table(places, rows)


def _site_names(sites: _Sites, places: gpd.GeoDataFrame, of_locations: bool) -> npt.NDArray[np.object_]:
    if of_locations:
        return np.asarray(places["name"].to_numpy(dtype=object))
    return np.array([f"{x:.5f} {y:.5f}" for x, y in zip(sites.lon, sites.lat, strict=True)], dtype=object)


def _own_sites(places: gpd.GeoDataFrame, sites: _Sites, match_km: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """For each location the place of the table that is the location itself (-1: none), and how far it is, km."""
    tree = cKDTree(unit_vectors(sites.lon, sites.lat))
    chord, nearest = tree.query(unit_vectors(places["lon"].to_numpy(), places["lat"].to_numpy()))
    km = great_circle_km(chord)
    own = np.where(km <= match_km, nearest, -1).astype(np.int64)
    if sites.names is not None:
        index = {str(name): i for i, name in enumerate(sites.names)}
        for row, name in enumerate(places["name"]):
            if name in index:
                site = index[name]
                own[row] = site
                gap = np.linalg.norm(
                    unit_vectors(sites.lon[site], sites.lat[site])
                    - unit_vectors(places["lon"].iloc[row], places["lat"].iloc[row])
                )
                km[row] = float(great_circle_km(gap))
    return own, km
