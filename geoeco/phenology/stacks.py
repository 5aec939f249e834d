"""The doors of the room: what a stack of dates must be, its time axis as numbers, and pixels dealt out to threads."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.phenology.indices import LARGEST_REFLECTANCE

__all__ = ["Knots", "check_series", "day_numbers", "each_range", "knots"]

Floats = npt.NDArray[np.floating[Any]]

#: Fewer knots have no second differences to speak of.
LEAST_KNOTS = 4


@dataclass(frozen=True)
class Knots:
    """Regular grid of knots under the irregular dates of a stack.

    Attributes
    ----------
    origin : int
        Day of the first knot, since 1970-01-01.
    step : int
        Days between knots.
    count : int
    day : ndarray of float, (time,)
        Days of the dates from the first knot.
    left : ndarray of int, (time,)
        Knot to the left of each date (never the last one).
    fraction : ndarray of float, (time,)
        Place of the date between its knots, in steps.
    """

    origin: int
    step: int
    count: int
    day: npt.NDArray[np.float64]
    left: npt.NDArray[np.int64]
    fraction: npt.NDArray[np.float64]

    @property
    def time(self) -> npt.NDArray[np.datetime64]:
        """Dates of the knots."""
        days = self.origin + self.step * np.arange(self.count)
        return days.astype("datetime64[D]").astype("datetime64[ns]")


def knots(time: xr.DataArray, step_days: int) -> Knots:
    """Lay knots every `step_days` from the first date to the last."""
    if int(step_days) != step_days or not 1 <= step_days <= 32:
        raise InputError(f"step_days must be a whole number of days from 1 to 32, not {step_days}")
    step = int(step_days)
    days = day_numbers(time)
    origin = int(np.floor(days[0]))
    day = days - origin
    count = max(int(np.ceil(day[-1] / step)) + 1, LEAST_KNOTS)
    left = np.minimum((day // step).astype(np.int64), count - 2)
    return Knots(origin, step, count, day, left, day / step - left)


def day_numbers(time: xr.DataArray) -> npt.NDArray[np.float64]:
    """Dates as days since 1970-01-01 (the hour of the look does not matter and is dropped)."""
    values = time.values
    if values.dtype.kind != "M":
        raise InputError(
            f"the time coordinate holds {values.dtype}, not dates", what_to_do="give a datetime64 coordinate 'time'"
        )
    if values.size == 0:
        raise InputError("the series holds no date at all", what_to_do="check the period and the search")
    if np.isnat(values).any():
        raise InputError("the time coordinate holds a missing date (NaT)")
    days: npt.NDArray[np.float64] = values.astype("datetime64[D]").astype(np.int64).astype(np.float64)
    if (np.diff(days) < 0).any():
        raise InputError("the dates are not in ascending order", what_to_do="sort them first: series.sortby('time')")
    return days


def check_series(series: xr.DataArray, what: str) -> xr.DataArray:
    """Series with time first, floating point, in the range of an index; other dimensions are pixels."""
    if not isinstance(series, xr.DataArray):
        raise InputError(f"the {what} must be an xarray.DataArray, not {type(series).__name__}")
    if "time" not in series.dims:
        raise InputError(
            f"the {what} has the dimensions {tuple(series.dims)}, without 'time'", what_to_do="give (time, y, x)"
        )
    if "band" in series.dims:
        raise InputError(
            f"the {what} has a dimension 'band'",
            what_to_do="give a cube with its variable 'reflectance', or one index (time, y, x)",
        )
    if "time" not in series.coords:
        raise InputError(f"the {what} has no coordinate 'time'", what_to_do="series.assign_coords(time=dates)")
    series = series.transpose("time", ...)
    if series.dtype.kind not in "fiu":
        raise InputError(f"the {what} holds {series.dtype}, not numbers")
    if series.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        series = series.astype(np.float32)
    if series.chunks is not None:
        series = series.chunk(time=-1)
    return series


def refuse_digital_numbers(values: Floats) -> None:
    """Refuse values that lie far outside an index as a whole."""
    sample = values.reshape(-1)
    sample = sample[:: max(1, sample.size // 10_000)]
    sample = sample[np.isfinite(sample)]
    if sample.size and float(np.median(np.abs(sample))) > LARGEST_REFLECTANCE:
        raise InputError(
            f"the index has a median of {float(np.median(sample)):.4g}: it comes from digital numbers or is scaled",
            what_to_do="compute it from reflectance in 0..1, or divide by its scale (10 000 for MODIS)",
        )


def each_range(work: Callable[[int, int], None], pixels: int, threads: int | None, tile: int) -> None:
    """Call ``work(start, stop)`` on ranges of pixels that cover all of them, in plain threads.

    With `threads` None: all cores that this process may use when called from its main thread, else one: a task of
    Dask runs in a pool's thread, and its neighbours keep the other cores busy.
    """
    if threads is None:
        main = threading.current_thread() is threading.main_thread()
        threads = len(os.sched_getaffinity(0)) if main and hasattr(os, "sched_getaffinity") else 1
    if threads < 1:
        raise InputError(f"threads must be 1 or more, not {threads}")
    tiles = -(-pixels // tile)
    # several ranges a thread, so that a thread that started late does not hold up the others
    parts = min(tiles, 1 if threads == 1 else 4 * threads)
    if parts <= 1:
        work(0, pixels)
        return
    edges = [tiles * i // parts * tile for i in range(parts)] + [pixels]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, a, b) for a, b in itertools.pairwise(edges)]:
            done.result()


def flat(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """``(..., time)`` as contiguous ``(time, pixel)``."""
    moved = np.moveaxis(values, -1, 0)
    return np.ascontiguousarray(moved, dtype=dtype).reshape(moved.shape[0], -1)


def no_pixels(dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Stands for weights or snow that were not given."""
    return np.zeros((0, 0), dtype)


def aligned(other: xr.DataArray, series: xr.DataArray, what: str) -> xr.DataArray:
    """Weights or snow flags on the very dates and pixels of the series."""
    if not isinstance(other, xr.DataArray):
        raise InputError(f"the {what} must be an xarray.DataArray, not {type(other).__name__}")
    try:
        xr.align(series, other, join="exact")
        other = other.broadcast_like(series).transpose(*series.dims)
    except ValueError as error:
        raise InputError(f"the {what} do not lie on the dates and pixels of the series ({error})") from error
    if other.shape != series.shape:
        raise InputError(f"the {what} have the shape {other.shape}, the series {series.shape}")
    if series.chunks is not None:
        other = other.chunk(dict(zip(series.dims, series.chunks, strict=True)))
    return other
