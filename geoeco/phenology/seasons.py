"""Growing seasons: their dates, sizes and quality, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.phenology import indices, stacks
from geoeco.phenology.smoothing import LAMBDA, STEP_DAYS, scaled_lambda
from geoeco.variables import describe

__all__ = ["QUALITY", "metrics"]

#: Classes of the variable ``quality``.
QUALITY: dict[int, str] = {
    1: "good: r2 > 0.75 and no gap longer than 20 % of either half of the cycle",
    2: "fair: r2 > 0.75 and no gap longer than 30 %",
    3: "good or fair with looks at snow counted",
    5: "poor",
    6: "no cycle, well observed: more than 23 looks and no gap over 30 days",
    7: "no cycle, sparsely observed",
    9: "the edge of the series cuts the cycle",
    255: "nothing to grade",
}

DATES: tuple[str, ...] = ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy")
LONG_NAMES: dict[str, str] = {
    "greenup": "start of the rise",
    "midgreenup": "middle of the rise",
    "maturity": "end of the rise",
    "peak": "peak",
    "senescence": "start of the fall",
    "midgreendown": "middle of the fall",
    "dormancy": "end of the fall",
}
SNOW_CLASS = 11


def metrics(
    cube: xr.Dataset | xr.DataArray,
    *,
    index: str = "evi2",
    years: Sequence[int] | None = None,
    weights: xr.DataArray | None = None,
    snow: xr.DataArray | None = None,
    lmbda: float = LAMBDA,
    lmbda_step: float = 1.0,
    step_days: int = STEP_DAYS,
    envelope: int = 2,
    thresholds: tuple[float, float, float] = (0.15, 0.5, 0.9),
    min_amplitude: float = 0.1,
    min_range_share: float = 0.35,
    reach_days: float = 185.0,
    dip_depth: float = 0.1,
    dip_span: float = 45.0,
    min_looks: int = 8,
    max_gap: float = 90.0,
    threads: int | None = None,
) -> xr.Dataset:
    """Dates, sizes and quality of up to two growing cycles a year.

    Parameters
    ----------
    cube : xarray.Dataset or xarray.DataArray
        A cube (``reflectance`` and, for snow, ``scl``), or an index ``(time, y, x)``.
    index : str
        ``evi2``, ``ndvi`` or ``evi``: the index taken from a cube.
    years : sequence of int, optional
        Calendar years wanted; by default all from the first date to the last. A cycle belongs to the year of its peak.
    weights : xarray.DataArray, optional
        Weights of the looks ``(time, y, x)``.
    snow : xarray.DataArray, optional
        True where a look shows snow; by default SCL class 11 of the cube.
    lmbda, lmbda_step, step_days, envelope, threads
        As in `geoeco.phenology.smooth`.
    thresholds : tuple of float
        Fractions of the amplitude for greenup and dormancy, the middles, maturity and senescence.
    min_amplitude, min_range_share : float
        A peak must rise on both sides by the larger of `min_amplitude` and this share of the range around it.
    reach_days : float
        How far from the peak minima are sought.
    dip_depth, dip_span : float
        Looks this far below the chord of neighbours at most `dip_span` days apart are left out; 0 turns it off.
    min_looks : int
        Fewer looks (in the series; for "no cycle", in the year): not enough to tell.
    max_gap : float
        Days; a year with a longer gap and no cycle: not enough to tell.

    Returns
    -------
    xarray.Dataset
        ``(year, cycle, y, x)``; see docs/phenology.md.

    Raises
    ------
    InputError
        For a stack that is none, dates out of order, digital numbers.
    """
    from geoeco.phenology import kernels

    if isinstance(cube, xr.Dataset):
        formulas = {"evi2": indices.evi2, "ndvi": indices.ndvi, "evi": indices.evi}
        if index not in formulas:
            raise InputError(f"there is no index {index!r}", what_to_do=f"use one of {', '.join(formulas)}")
        series = formulas[index](cube)
        if snow is None and "scl" in cube:
            snow = cube["scl"] == SNOW_CLASS
    else:
        series = cube
    series = stacks.check_series(series, "index")
    missing = {"y", "x"} - set(series.dims)
    if missing:
        raise InputError(
            f"the index has the dimensions {tuple(series.dims)}",
            what_to_do="give (time, y, x); one pixel is (time, 1, 1)",
        )
    series = series.transpose("time", "y", "x")
    grid = stacks.knots(series["time"], step_days)
    if years is None:
        first, last = (int(v.astype("datetime64[Y]").astype(int)) + 1970 for v in series["time"].values[[0, -1]])
        years = range(first, last + 1)
    wanted = [int(year) for year in years]
    if not wanted or any(b != a + 1 for a, b in zip(wanted, wanted[1:], strict=False)):
        raise InputError(f"years must be consecutive and at least one, not {wanted}")
    edges = np.array([np.datetime64(f"{year:04d}-01-01", "D").astype(int) for year in [*wanted, wanted[-1] + 1]])
    levels = np.asarray(thresholds, np.float64)
    if levels.shape != (3,) or not (0 < levels[0] < levels[1] < levels[2] < 1):
        raise InputError(f"thresholds must be three ascending fractions between 0 and 1, not {thresholds}")
    lam = scaled_lambda(lmbda, lmbda_step, step_days)
    n_years = len(wanted)

    def block(values: npt.NDArray[Any], *others: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        stacks.refuse_digital_numbers(values)
        shape = values.shape[:-1]
        flat = stacks.flat(values, values.dtype)
        given = list(others)
        weight = stacks.no_pixels() if weights is None else stacks.flat(given.pop(0), np.float32)
        snowy = stacks.no_pixels(np.uint8) if snow is None else stacks.flat(given.pop(0), np.uint8)
        out = np.empty((12, n_years, 2, flat.shape[1]), np.float32)

        def work(start: int, stop: int) -> None:
            kernels.metrics_range(
                flat,
                weight,
                snowy,
                start,
                stop,
                grid.day,
                grid.left,
                grid.fraction,
                lam,
                grid.count,
                grid.step,
                int(envelope),
                float(dip_depth),
                float(dip_span),
                float(reach_days),
                float(min_amplitude),
                float(min_range_share),
                levels,
                (edges - grid.origin).astype(np.float64),
                int(min_looks),
                float(max_gap),
                out,
            )

        stacks.each_range(work, flat.shape[1], threads, kernels.TILE)
        out[:7] += np.float32(grid.origin)
        return np.moveaxis(out.reshape(12, n_years, 2, *shape), (0, 1, 2), (-3, -2, -1))

    inputs = [series]
    if weights is not None:
        inputs.append(stacks.aligned(weights, series, "weights"))
    if snow is not None:
        inputs.append(stacks.aligned(snow, series, "snow"))
    stacked = xr.apply_ufunc(
        block,
        *inputs,
        input_core_dims=[["time"]] * len(inputs),
        output_core_dims=[["metric", "year", "cycle"]],
        exclude_dims={"time"},
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"metric": 12, "year": n_years, "cycle": 2}},
    )
    stacked = stacked.transpose("metric", "year", "cycle", "y", "x")
    stacked = stacked.assign_coords(year=np.array(wanted, np.int64), cycle=np.array([1, 2], np.int64))
    return _dataset(stacked, edges, grid.origin, str(series.name or index), thresholds)


def _dataset(
    stacked: xr.DataArray, edges: npt.NDArray[Any], origin: int, name: str, thresholds: tuple[float, float, float]
) -> xr.Dataset:
    del origin, edges
    shares = [*thresholds, None, *reversed(thresholds)]
    variables: dict[str, xr.DataArray] = {}
    for i, date in enumerate(DATES):
        share = shares[i]
        long_name = LONG_NAMES[date] + ("" if share is None else f" ({share:.0%} of the amplitude)")
        variables[date] = describe(
            stacked.isel(metric=i), kind="date", units="days since 1970-01-01", long_name=long_name
        )
        variables[f"{date}_doy"] = describe(
            xr.apply_ufunc(_day_of_year, stacked.isel(metric=i), dask="parallelized", output_dtypes=[np.float32]),
            kind="date",
            units="d",
            long_name=f"{long_name}, day of the year in which it falls",
        )
    variables["base"] = describe(
        stacked.isel(metric=7), kind="continuous", units="1", long_name=f"mean of the minima of {name} beside the cycle"
    )
    variables["amplitude"] = describe(
        stacked.isel(metric=8), kind="continuous", units="1", long_name=f"{name} at the peak less base"
    )
    variables["integral"] = describe(
        stacked.isel(metric=9),
        kind="continuous",
        units="d",
        long_name=f"{name} summed over the days from greenup to dormancy",
    )
    variables["quality"] = describe(
        stacked.isel(metric=10).astype(np.uint8),
        kind="class",
        units="",
        long_name="quality of the cycle",
        flag_values=list(QUALITY),
        flag_meanings=" | ".join(QUALITY.values()),
    )
    variables["n_cycles"] = describe(
        stacked.isel(metric=11, cycle=0, drop=True).astype(np.uint8),
        kind="count",
        units="1",
        long_name="cycles that peak in the year (0: none, 255: not enough looks to tell)",
    )
    return xr.Dataset(variables)


def _day_of_year(days: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Day of the year, 1 January = 1, of days since 1970-01-01; NaN stays NaN."""
    valid = np.isfinite(days)
    whole = np.floor(np.where(valid, days, 0)).astype("datetime64[D]")
    start = whole.astype("datetime64[Y]").astype("datetime64[D]").astype(np.float64)
    return np.where(valid, days - start + 1, np.nan).astype(np.float32)
