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
LAMBDA = 1_000.0
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
    threads: int | None = None,
) -> xr.DataArray:
    """Smooth an irregular series onto a regular time axis.

    Parameters
    ----------
    series : xarray.DataArray
        ``(time, ...)``, usually ``(time, y, x)``, an index; NaN where there is no clear look.
    method : str
        ``whittaker``.
    weights : xarray.DataArray, optional
        Weights of the looks, as `series`; 0 leaves a look out.
    lmbda : float, optional
        Whittaker's lambda, stated for a grid of `lmbda_step` days.
    lmbda_step : float
        Step in days that `lmbda` is stated for. It is scaled to `step_days` by the third power, so the curve does
        not get stiffer or looser when the step changes.
    step_days : int
        Step of the regular axis that is returned, which starts at the first date.
    envelope : int
        Rounds of upper-envelope reweighting.
    threads : int, optional
        Threads; by default all cores in the main thread, one inside a Dask task. The result does not depend on it.

    Returns
    -------
    xarray.DataArray
        ``(time, ...)`` float32 on the regular axis, NaN where a pixel has fewer than two looks.
    """
    from geoeco.phenology import kernels

    if method not in METHODS:
        raise InputError(f"there is no smoother {method!r}", what_to_do=f"use one of {', '.join(METHODS)}")
    series = stacks.check_series(series, "series")
    grid = stacks.knots(series["time"], step_days)
    lams = lambda_grid(lmbda, lmbda_step, step_days)

    def block(values: npt.NDArray[Any], given: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float32]:
        shape = values.shape[:-1]
        flat = np.ascontiguousarray(np.moveaxis(values, -1, 0)).reshape(values.shape[-1], -1)
        weight = stacks.no_pixels() if given is None else stacks.flat(given, np.float32)
        out = np.empty((grid.count, flat.shape[1]), np.float32)

        def work(start: int, stop: int) -> None:
            kernels.smooth_range(flat, weight, start, stop, grid.left, grid.fraction, lams, envelope, out)

        stacks.each_range(work, flat.shape[1], threads, kernels.TILE)
        return np.moveaxis(out.reshape(grid.count, *shape), 0, -1)

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
