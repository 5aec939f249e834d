"""Growing seasons: their dates, sizes and quality, pixel by pixel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.phenology import indices, stacks
from geoeco.phenology.smoothing import LAMBDA, STEP_DAYS, lambda_grid
from geoeco.variables import describe

__all__ = ["QUALITY", "metrics"]

#: Classes of the variable ``quality``; 255 where there is nothing to grade. docs/phenology.md has the rules.
QUALITY: dict[int, str] = {
    1: "good",
    2: "fair",
    3: "snow_counted",
    5: "poor",
    6: "no_cycle",
    7: "no_cycle_sparse",
    9: "edge_of_series",
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

#: How far below its neighbours' index and how much brighter or darker than them a cloud or shadow is.
SCREEN_DIP = 0.05
SCREEN_CHANGE = 0.04


def metrics(
    cube: xr.Dataset | xr.DataArray,
    *,
    index: str = "evi2",
    years: Sequence[int] | None = None,
    weights: xr.DataArray | None = None,
    snow: xr.DataArray | None = None,
    lmbda: float | None = LAMBDA,
    lmbda_step: float = 1.0,
    step_days: int = STEP_DAYS,
    envelope: int = 2,
    thresholds: tuple[float, float, float] = (0.15, 0.5, 0.9),
    min_amplitude: float = 0.12,
    min_range_share: float = 0.25,
    reach_days: float = 185.0,
    screen: bool = True,
    dip_depth: float = 0.1,
    dip_span: float = 60.0,
    dormant_noise: float = 4.0,
    top_noise: float = 0.75,
    min_looks: int = 8,
    max_gap: float = 120.0,
    curve: str = "double-logistic",
    threads: int | None = None,
) -> xr.Dataset:
    """Find the dates, sizes and quality of up to two growing cycles a year.

    Each pixel by itself: undetected clouds and shadows are left out, a Whittaker curve with upper-envelope
    reweighting is laid through the looks, cycles are found by the rules of MSLSP, and dates are the crossings of
    fractions of the amplitude on the daily curve, interpolated within the day.

    Parameters
    ----------
    cube : xarray.Dataset or xarray.DataArray
        A cube (``reflectance (time, band, y, x)`` in 0..1 and, for snow, ``scl``), or an index ``(time, y, x)`` with
        NaN where there is no clear look. NumPy or Dask; the numbers are the same for any chunks.
    index : str
        ``evi2``, ``ndvi`` or ``evi``: the index taken from a cube.
    years : sequence of int, optional
        Consecutive calendar years; by default all from the first date to the last. A cycle belongs to the year of its
        peak, its other dates may lie in the year before or after.
    weights : xarray.DataArray, optional
        Weights of the looks ``(time, y, x)``; 0 leaves a look out.
    snow : xarray.DataArray, optional
        True where a look shows snow; by default SCL class 11 of the cube. Such looks are set to the dormant value
        with weight 0.5.
    lmbda : float or None
        Whittaker's lambda for a grid of `lmbda_step` days (scaled to `step_days` by the third power); None: chosen
        for each pixel by the V-curve.
    lmbda_step : float
        Step in days that `lmbda` is stated for.
    step_days : int
        Step of the curve's knots.
    envelope : int
        Rounds of upper-envelope reweighting.
    thresholds : tuple of float
        Fractions of the amplitude for greenup and dormancy, for the two middles, and for maturity and senescence.
    min_amplitude, min_range_share : float
        A peak must rise on both sides by the larger of `min_amplitude` and this share of the range around it.
    reach_days : float
        How far from the peak its minima are sought.
    screen : bool
        With a cube: leave out looks whose brightness and index betray a cloud or shadow that the mask let through.
    dip_depth, dip_span : float
        Looks this far below the chord of neighbours at most `dip_span` days apart are left out; depth 0: none.
    dormant_noise : float
        The curve's values this many standard deviations of the noise above their lower 5 % are one dormant state,
        whose mean is the lowest value of the curve; 0 leaves the 5 % quantile.
    top_noise : float
        Days whose value lies this many standard deviations of the noise below the highest one are one summit.
    min_looks : int
        Fewer looks (in the series; for "no cycle", in the year): not enough to tell.
    max_gap : float
        Days; a year with a longer gap and no cycle found: not enough to tell.
    curve : {"whittaker", "double-logistic"}
        What the dates are read from. The smooth curve finds the cycles in either case. ``"double-logistic"`` then fits
        one to the looks of each cycle, with a base on either side and rates held near those of the smooth curve, and
        takes dates, base and amplitude from it: it has the smooth curve's bias at the feet of steep cycles no more, in
        about twice the time. Where the fit fails, the smooth curve stays.
    threads : int, optional
        Threads; by default all cores in the main thread, one inside a Dask task. Results do not depend on it.

    Returns
    -------
    xarray.Dataset
        ``(year, cycle, y, x)``, cycle 1 being the larger one: ``greenup``, ``midgreenup``, ``maturity``, ``peak``,
        ``senescence``, ``midgreendown``, ``dormancy`` (float32, days since 1970-01-01, NaN where there is no cycle)
        and ``<name>_doy`` (1 January = 1, in the year in which the date falls); ``base`` (mean of the two minima),
        ``amplitude`` (peak less base), ``integral`` (large integral: index summed over the days from greenup to
        dormancy); ``quality`` (uint8, classes of `QUALITY`); and ``n_cycles (year, y, x)`` (uint8; 0: none, a valid
        answer; 255: not enough looks to tell).

    Raises
    ------
    InputError
        For a stack without time, y and x, dates out of order, digital numbers, or settings that make no sense.

    References
    ----------
    Bolton et al. (2020), Remote Sensing of Environment 240, 111685 (MSLSP); Gray, Sulla-Menashe & Friedl (2019),
    User Guide to MCD12Q2 v6; Eilers (2003), Analytical Chemistry 75, 3631-3636.
    """
    from geoeco.phenology import kernels
    from geoeco.phenology.lanes import LANES

    bands: list[xr.DataArray] = []
    if isinstance(cube, xr.Dataset):
        formulas = {"evi2": indices.evi2, "ndvi": indices.ndvi, "evi": indices.evi}
        if index not in formulas:
            raise InputError(f"there is no index {index!r}", what_to_do=f"use one of {', '.join(formulas)}")
        series = formulas[index](cube)
        if snow is None and "scl" in cube:
            snow = cube["scl"] == SNOW_CLASS
        if screen:
            bands = indices.red_and_nir(cube)
    else:
        series = cube
    if curve not in ("whittaker", "double-logistic"):
        raise InputError(f"there is no curve {curve!r}", what_to_do="use 'whittaker' or 'double-logistic'")
    series = stacks.check_series(series, "index")
    if set(series.dims) != {"time", "y", "x"}:
        raise InputError(
            f"the index has the dimensions {tuple(series.dims)}",
            what_to_do="give (time, y, x); one pixel is (time, 1, 1)",
        )
    series = series.transpose("time", "y", "x")
    grid = stacks.knots(series["time"], step_days)
    wanted = _years(years, series["time"])
    edges = np.array([np.datetime64(f"{year:04d}-01-01", "D").astype(int) for year in [*wanted, wanted[-1] + 1]])
    levels = np.asarray(thresholds, np.float64)
    if levels.shape != (3,) or not (0 < levels[0] < levels[1] < levels[2] < 1):
        raise InputError(f"thresholds must be three ascending fractions between 0 and 1, not {thresholds}")
    lams = lambda_grid(lmbda, lmbda_step, step_days)
    n_years = len(wanted)
    calendar = _new_years(wanted)
    rules = kernels.Rules(
        envelope=int(envelope),
        dip_depth=float(dip_depth),
        dip_span=float(dip_span),
        screen_dip=SCREEN_DIP,
        screen_change=SCREEN_CHANGE,
        reach_days=float(reach_days),
        min_amplitude=float(min_amplitude),
        min_range_share=float(min_range_share),
        min_looks=int(min_looks),
        max_gap=float(max_gap),
        dormant_noise=float(dormant_noise),
        top_noise=float(top_noise),
        refine=curve == "double-logistic",
    )

    def block(values: npt.NDArray[Any], *others: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        stacks.refuse_digital_numbers(values)
        given = list(others)
        flat = stacks.flat(values, np.float32)
        weight = stacks.no_pixels() if weights is None else stacks.flat(given.pop(0), np.float32)
        snowy = stacks.no_pixels(np.uint8) if snow is None else stacks.flat(given.pop(0), np.uint8)
        red = stacks.flat(given.pop(0), np.float32) if bands else stacks.no_pixels()
        nir = stacks.flat(given.pop(0), np.float32) if bands else stacks.no_pixels()
        out = np.empty((kernels.METRICS, n_years, 2, flat.shape[1]), np.float32)
        first_days = (edges - grid.origin).astype(np.float64)

        def work(start: int, stop: int) -> None:
            kernels.metrics_range(
                flat, weight, snowy, red, nir, start, stop, grid.day, grid.left, grid.fraction, lams, grid.count,
                grid.step, levels, first_days, grid.origin, calendar, kernels.PRIOR, rules, out,
            )  # fmt: skip

        stacks.each_range(work, flat.shape[1], threads, LANES)
        return np.moveaxis(out.reshape(kernels.METRICS, n_years, 2, *values.shape[:-1]), (0, 1, 2), (-3, -2, -1))

    inputs = [series]
    if weights is not None:
        inputs.append(stacks.aligned(weights, series, "weights"))
    if snow is not None:
        inputs.append(stacks.aligned(snow, series, "snow"))
    inputs += [stacks.aligned(band, series, "bands") for band in bands]
    stacked = xr.apply_ufunc(
        block,
        *inputs,
        input_core_dims=[["time"]] * len(inputs),
        output_core_dims=[["metric", "year", "cycle"]],
        exclude_dims={"time"},
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"metric": kernels.METRICS, "year": n_years, "cycle": 2}},
    )
    stacked = stacked.transpose("metric", "year", "cycle", "y", "x")
    stacked = stacked.assign_coords(year=np.array(wanted, np.int64), cycle=np.array([1, 2], np.int64))
    return _dataset(stacked, str(series.name or index), thresholds)


def _years(years: Sequence[int] | None, time: xr.DataArray) -> list[int]:
    if years is None:
        first, last = (int(v.astype("datetime64[Y]").astype(int)) + 1970 for v in time.values[[0, -1]])
        years = range(first, last + 1)
    wanted = [int(year) for year in years]
    if not wanted or any(b != a + 1 for a, b in itertools.pairwise(wanted)):
        raise InputError(f"years must be consecutive and at least one, not {wanted}")
    return wanted


def _dataset(stacked: xr.DataArray, name: str, thresholds: tuple[float, float, float]) -> xr.Dataset:
    shares = [*thresholds, None, *reversed(thresholds)]
    variables: dict[str, xr.DataArray] = {}
    for i, date in enumerate(DATES):
        share = shares[i]
        long_name = LONG_NAMES[date] + ("" if share is None else f" ({share:.0%} of the amplitude)")
        variables[date] = describe(
            stacked.isel(metric=i), kind="date", units="days since 1970-01-01", long_name=long_name
        )
        variables[f"{date}_doy"] = describe(
            stacked.isel(metric=12 + i),
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
        flag_meanings=" ".join(QUALITY.values()),
    )
    variables["n_cycles"] = describe(
        stacked.isel(metric=11, cycle=0, drop=True).astype(np.uint8),
        kind="count",
        units="1",
        long_name="cycles that peak in the year (0: none, 255: not enough looks to tell)",
    )
    return xr.Dataset(variables)


def _new_years(years: Sequence[int]) -> npt.NDArray[np.int64]:
    """Days since 1970-01-01 of the first days of all years into which dates of cycles that peak in `years` can fall."""
    around = np.arange(years[0] - 3, years[-1] + 4)
    return (around - 1970).astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64)
