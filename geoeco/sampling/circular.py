"""Statistics of dates on the circle of the year.

A season that begins at the turn of the year has day 359 in one year and day 5 in the next; their mean is not 182.
Everything here works on a circle of `YEAR_DAYS` days.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["YEAR_DAYS", "circular_distance", "circular_median", "circular_spread", "day_of_year", "wrap_day"]

#: Length of the circle, days.
YEAR_DAYS = 365.25

#: Above this many values per row, medians start from a histogram of days instead of all pairs.
_PAIRS_UP_TO = 64

Floats = npt.NDArray[np.float64]


def day_of_year(days: npt.ArrayLike) -> Floats:
    """Day of the year (1 to 366, fractions kept) of dates given in days since 1970-01-01; NaN stays NaN."""
    values = np.asarray(days, dtype=np.float64)
    whole = np.floor(values)
    finite = np.isfinite(whole)
    dates = np.where(finite, whole, 0).astype("datetime64[D]")
    first = dates.astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64)
    return np.where(finite, values - first + 1.0, np.nan)


def wrap_day(day: npt.ArrayLike) -> Floats:
    """Days brought onto the circle: in [1, 366.25), 1 being 1 January."""
    return np.asarray(np.mod(np.asarray(day, dtype=np.float64) - 1.0, YEAR_DAYS) + 1.0, dtype=np.float64)


def _signed(difference: npt.ArrayLike) -> Floats:
    half = YEAR_DAYS / 2
    return np.asarray(np.mod(np.asarray(difference, dtype=np.float64) + half, YEAR_DAYS) - half, dtype=np.float64)


def circular_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Shorter way round the year between two days, in days."""
    return np.abs(_signed(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)))


def _centre_of_pairs(values: Floats) -> Floats:
    """Find the value of each row whose summed distance to the others of its row is least."""
    present = np.isfinite(values)
    distance = circular_distance(values[:, :, None], values[:, None, :])
    cost = np.where(present, np.nansum(np.where(present[:, None, :], distance, 0.0), axis=2), np.inf)
    best = np.argmin(cost, axis=1)
    return np.take_along_axis(values, best[:, None], axis=1)[:, 0]


def _centre_of_histogram(values: Floats) -> float:
    days = np.floor(wrap_day(values[np.isfinite(values)])).astype(np.int64)
    if not days.size:
        return float("nan")
    counts = np.bincount(days, minlength=367)
    bins = np.arange(counts.size) + 0.5
    cost = circular_distance(bins[:, None], bins[None, :]) @ counts
    return float(bins[np.argmin(np.where(counts > 0, cost, np.inf))])


def circular_median(values: npt.ArrayLike) -> Floats:
    """Median on the circle of the year, along the last axis, NaN left out.

    The day whose summed distance round the circle to all values is least; of an even number of values the middle
    between the two central ones.

    Parameters
    ----------
    values : array_like, shape (..., n)
        Days of the year, on any turn of the circle.

    Returns
    -------
    numpy.ndarray, shape (...)
        In [1, 366.25); NaN where a row holds no value.
    """
    array = np.asarray(values, dtype=np.float64)
    shape = array.shape[:-1]
    flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    median = np.full(flat.shape[0], np.nan)
    filled = np.flatnonzero(np.isfinite(flat).any(axis=1))
    step = max(1, 2_000_000 // max(1, flat.shape[1] ** 2)) if flat.shape[1] <= _PAIRS_UP_TO else 1
    for start in range(0, len(filled), step):
        index = filled[start : start + step]
        part = flat[index]
        if flat.shape[1] <= _PAIRS_UP_TO:
            centre = _centre_of_pairs(part)
        else:
            centre = np.array([_centre_of_histogram(row) for row in part])
        # unrolled around the centre, the median is the ordinary one
        median[index] = wrap_day(centre + np.nanmedian(_signed(part - centre[:, None]), axis=1))
    return median.reshape(shape)


def circular_spread(values: npt.ArrayLike, centre: npt.ArrayLike) -> Floats:
    """Median distance round the circle of the values of each row to `centre`, days; NaN left out.

    Parameters
    ----------
    values : array_like, shape (..., n)
    centre : array_like, shape (...)

    Returns
    -------
    numpy.ndarray, shape (...)
        0 for a single value, NaN where a row holds none.
    """
    array = np.asarray(values, dtype=np.float64)
    distance = circular_distance(array, np.asarray(centre, dtype=np.float64)[..., None])
    flat = distance.reshape(-1, distance.shape[-1])
    spread = np.full(flat.shape[0], np.nan)
    filled = np.isfinite(flat).any(axis=1)
    if filled.any():
        spread[filled] = np.nanmedian(flat[filled], axis=1)
    return spread.reshape(array.shape[:-1])
