"""Smooth curves through irregular, gappy, weighted series of an index."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.phenology import stacks
from geoeco.variables import describe

__all__ = ["smooth"]

Method = Literal["whittaker", "savitzky-golay", "double-logistic"]
METHODS: tuple[str, ...] = ("whittaker", "savitzky-golay", "double-logistic")

STEP_DAYS = 5
#: Whittaker's lambda for a daily grid; see docs/phenology.md for how it was chosen.
LAMBDA = 500.0
#: Lambdas (daily grid) among which the V-curve chooses.
LAMBDA_GRID = tuple(10.0 ** (0.5 * i) for i in range(9))


def scaled_lambda(lmbda: float, from_step: float, to_step: float) -> float:
    """Lambda of second differences for another step: lambda x (from / to)^3 (16 days to 1 day: x 4096)."""
    if not (np.isfinite(lmbda) and lmbda > 0):
        raise InputError(f"lmbda must be a positive number, not {lmbda}")
    return float(lmbda) * (from_step / to_step) ** 3


def lambda_grid(lmbda: float | None, from_step: float, to_step: int) -> npt.NDArray[np.float64]:
    """One lambda for the step of the knots, or the grid of the V-curve where none is given."""
    if lmbda is None:
        return np.array([scaled_lambda(v, 1.0, to_step) for v in LAMBDA_GRID])
    return np.array([scaled_lambda(lmbda, from_step, to_step)])


def smooth(
    series: xr.DataArray,
    *,
    method: Method = "whittaker",
    weights: xr.DataArray | None = None,
    lmbda: float | None = None,
    lmbda_step: float = 1.0,
    step_days: int = STEP_DAYS,
    envelope: int = 0,
    window_days: float | None = None,
    threads: int | None = None,
) -> xr.DataArray:
    """Smooth an irregular, gappy, weighted series onto a regular time axis.

    Parameters
    ----------
    series : xarray.DataArray
        ``(time, ...)``, usually ``(time, y, x)``, an index; NaN where there is no clear look. NumPy or Dask.
    method : str
        ``whittaker``: penalised least squares on second differences; dates between two knots weigh on both.
        ``savitzky-golay``: local quadratics on the series filled by straight lines.
        ``double-logistic``: Beck's six parameters for each cycle that `geoeco.phenology.metrics` would find on the
        Whittaker curve; the Whittaker curve elsewhere.
    weights : xarray.DataArray, optional
        Weights of the looks, as `series`; 0 leaves a look out (Savitzky-Golay knows no others).
    lmbda : float, optional
        Whittaker's lambda, stated for a grid of `lmbda_step` days; by default chosen for each pixel by the V-curve
        (for the double logistic's first guess: 500).
    lmbda_step : float
        Step in days that `lmbda` is stated for. It is scaled to `step_days` by the third power (16 days to daily:
        x 4096), so that the curve gets neither stiffer nor looser when the step changes.
    step_days : int
        Step of the regular axis that is returned, which starts at the first date.
    envelope : int
        Rounds of upper-envelope reweighting (for Savitzky-Golay: of Chen's replacement of low values).
    window_days : float, optional
        Full window of Savitzky-Golay; by default two fifths of a year.
    threads : int, optional
        Threads; by default all cores in the main thread, one inside a Dask task. The result does not depend on it.

    Returns
    -------
    xarray.DataArray
        ``(time, ...)`` float32 on the regular axis, NaN where a pixel has fewer than two looks.

    Raises
    ------
    InputError
        For a series without time, dates out of order, an unknown method, or a lambda that is not positive.

    References
    ----------
    Eilers (2003), Analytical Chemistry 75, 3631-3636; Frasso & Eilers (2015), Statistical Modelling 15, 91-111
    (V-curve); Savitzky & Golay (1964), Analytical Chemistry 36, 1627-1639; Chen et al. (2004), Remote Sensing of
    Environment 91, 332-344; Beck et al. (2006), Remote Sensing of Environment 100, 321-334, equation 3.
    """
    from geoeco.phenology import kernels
    from geoeco.phenology.lanes import LANES

    if method not in METHODS:
        raise InputError(f"there is no smoother {method!r}", what_to_do=f"use one of {', '.join(METHODS)}")
    series = stacks.check_series(series, "series")
    grid = stacks.knots(series["time"], step_days)
    lams = lambda_grid(LAMBDA if lmbda is None and method == "double-logistic" else lmbda, lmbda_step, step_days)
    window = _window(window_days, step_days, grid.count)
    if envelope < 0:
        raise InputError(f"envelope counts rounds and must not be negative, not {envelope}")
    rules = kernels.Rules(0, 0.0, 0.0, 0.0, 0.0, 185.0, 0.12, 0.25, 2, 0.0, 0.0, 0.0, method == "double-logistic")

    def block(values: npt.NDArray[Any], given: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float32]:
        flat = stacks.flat(values, np.float32)
        weight = stacks.no_pixels() if given is None else stacks.flat(given, np.float32)
        out = np.empty((grid.count, flat.shape[1]), np.float32 if method != "savitzky-golay" else np.float64)

        def work(start: int, stop: int) -> None:
            if method == "savitzky-golay":
                kernels.fill_range(flat, weight, start, stop, grid.day, grid.step, out)
                out[:, start:stop] = _savitzky_golay(out[:, start:stop], window, envelope)
                return
            kernels.smooth_range(
                flat, weight, start, stop, grid.day, grid.left, grid.fraction, grid.step, lams, envelope,
                kernels.PRIOR, rules, out,
            )  # fmt: skip

        stacks.each_range(work, flat.shape[1], threads, LANES)
        return np.moveaxis(out.reshape(grid.count, *values.shape[:-1]), 0, -1).astype(np.float32)

    inputs = [series] if weights is None else [series, stacks.aligned(weights, series, "weights")]
    result = xr.apply_ufunc(
        block,
        *inputs,
        input_core_dims=[["time"]] * len(inputs),
        output_core_dims=[["time"]],
        exclude_dims={"time"},
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"time": grid.count}},
    )
    result = result.transpose("time", ...).assign_coords(time=grid.time)
    name = str(series.name or "index")
    return describe(
        result.rename(name), kind="continuous", units="1", long_name=f"smoothed {series.attrs.get('long_name', name)}"
    )


def _window(window_days: float | None, step_days: int, count: int) -> int:
    """Odd number of steps in the window: 2 floor(N / 5) + 1 for N steps a year, no longer than the series."""
    half = int(365.25 / step_days // 5) if window_days is None else round(window_days / step_days / 2)
    return max(2 * min(half, (count - 1) // 2) + 1, 3)


def _savitzky_golay(filled: npt.NDArray[Any], window: int, rounds: int) -> npt.NDArray[Any]:
    """Local quadratics along the first axis; then Chen's rounds, which replace values below the curve by it."""
    from scipy.signal import savgol_filter

    empty = np.isnan(filled)
    filled = np.where(empty, 0.0, filled)
    curve = savgol_filter(filled, window, 2, axis=0, mode="interp")
    for _ in range(rounds):
        curve = savgol_filter(np.maximum(filled, curve), window, 2, axis=0, mode="interp")
    return np.where(empty, np.nan, curve)
