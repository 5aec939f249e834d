"""The truth about seasons: the threshold rule on noise-free daily curves.

Rise date at p: the first day between the left minimum and the peak with v >= v_L + p (v_peak - v_L); fall date: the
last day between the peak and the right minimum with v >= v_R + p (v_peak - v_R); values are compared after rounding
to six decimals. Minima are sought at most 185 days either side of a peak and not past the neighbouring peak. A cycle
counts if both sides rise by at least max(0.1, 0.35 x the curve's range), and belongs to the year of its peak; the two
of largest amplitude are kept, the larger as cycle 1. (MCD12Q2 v6.1 user guide; Bolton et al. 2020, MSLSP.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoeco.simulate.landscape import COVERS, Landscape, first_of_january

__all__ = ["DATES", "FILL", "SeasonTruth", "season_truth", "threshold_dates"]

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

#: Names of the dates, in order of time.
DATES = ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy")
_RISE = (0.15, 0.50, 0.90)
_FALL = (0.90, 0.50, 0.15)
#: Marks "no date" in the integer arrays.
FILL = -32768
_SIDE_DAYS = 185
_MINIMUM_AMPLITUDE = 0.1
_MINIMUM_SHARE = 0.35
_ROWS_AT_ONCE = 2000


@dataclass(frozen=True)
class SeasonTruth:
    """Season metrics of every curve.

    Attributes
    ----------
    dates : numpy.ndarray
        int32 ``(curve, year, cycle, date)``, days since 1970-01-01 in the order of `DATES`; `FILL` where no cycle.
    base, amplitude : numpy.ndarray
        ``(curve, year, cycle)``: mean of the two minima, and peak less base; NaN where no cycle.
    integral : numpy.ndarray
        ``(curve, year, cycle)``: trapezoid of EVI2 from greenup to dormancy, in index x days.
    n_cycles : numpy.ndarray
        uint8 ``(curve, year)``.
    """

    dates: IntArray
    base: FloatArray
    amplitude: FloatArray
    integral: FloatArray
    n_cycles: IntArray


def threshold_dates(values: FloatArray, left: IntArray, peak: IntArray, right: IntArray) -> IntArray:
    """Positions of the seven dates of one segment per row.

    Parameters
    ----------
    values : numpy.ndarray
        Daily curves ``(row, day)``.
    left, peak, right : numpy.ndarray
        Positions ``(row,)`` of the left minimum, the peak and the right minimum.

    Returns
    -------
    numpy.ndarray
        Positions ``(row, 7)`` in the order of `DATES`.
    """
    rows = np.arange(len(values))
    day = np.arange(values.shape[1])[None, :]
    v = np.round(values, 6)
    top, low_left, low_right = v[rows, peak], v[rows, left], v[rows, right]
    rising = (day >= left[:, None]) & (day <= peak[:, None])
    falling = (day >= peak[:, None]) & (day <= right[:, None])
    out = np.empty((len(values), len(DATES)), np.int64)
    for column, p in enumerate(_RISE):
        level = np.round(low_left + p * (top - low_left), 6)
        out[:, column] = np.argmax(rising & (v >= level[:, None]), axis=1)
    out[:, 3] = peak
    for column, p in enumerate(_FALL):
        level = np.round(low_right + p * (top - low_right), 6)
        above = falling & (v >= level[:, None])
        out[:, 4 + column] = values.shape[1] - 1 - np.argmax(above[:, ::-1], axis=1)
    return out


def season_truth(landscape: Landscape, first_year: int, last_year: int) -> SeasonTruth:
    """Season metrics of every curve of a landscape for each product year (see the module's rule)."""
    n, n_years = landscape.n_curves, last_year - first_year + 1
    out = SeasonTruth(
        dates=np.full((n, n_years, 2, len(DATES)), FILL, np.int32),
        base=np.full((n, n_years, 2), np.nan),
        amplitude=np.full((n, n_years, 2), np.nan),
        integral=np.full((n, n_years, 2), np.nan),
        n_cycles=np.zeros((n, n_years), np.uint8),
    )
    day0 = first_of_january(first_year - 1)
    days = np.arange(day0, first_of_january(last_year + 2), dtype=np.float64)
    year_of = (np.datetime64("1970-01-01", "D") + days.astype(int)).astype("datetime64[Y]").astype(int) + 1970

    for cover in COVERS:
        all_rows = np.flatnonzero(landscape.cover_of_curve == cover.code)
        cycles = landscape.cycles_of(cover)
        for begin in range(0, len(all_rows), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            rows = all_rows[part]
            values = landscape.evi2(days, rows)
            found = _segments(values, [(s[part] - day0, e[part] - day0) for _, s, e in cycles])
            spread = np.ptp(values, axis=1)
            needed = np.maximum(_MINIMUM_AMPLITUDE, _MINIMUM_SHARE * spread)
            index = np.arange(len(rows))
            metrics = []
            for left, peak, right in found:
                top, low_left, low_right = values[index, peak], values[index, left], values[index, right]
                real = (top - low_left >= needed) & (top - low_right >= needed)
                positions = threshold_dates(values, left, peak, right)
                low = (low_left + low_right) / 2.0
                metrics.append((real, positions, low, top - low, _trapezoid(values, positions)))
            for column in range(n_years):
                _keep_two_largest(out, rows, column, metrics, year_of == first_year + column, day0)
    return out


def _segments(
    values: FloatArray, inflections: list[tuple[FloatArray, FloatArray]]
) -> list[tuple[IntArray, IntArray, IntArray]]:
    """Left minimum, peak and right minimum of each cycle whose surroundings lie within the curve."""
    length = values.shape[1]
    day = np.arange(length)[None, :]

    def best(low: npt.NDArray[Any], high: npt.NDArray[Any], *, peak: bool, last: bool = False) -> IntArray:
        inside = (day >= low[:, None]) & (day <= high[:, None])
        score = np.where(inside, values if peak else -values, -np.inf)
        if last:
            return np.asarray(length - 1 - np.argmax(score[:, ::-1], axis=1))
        return np.asarray(np.argmax(score, axis=1))

    inside = [(s, e) for s, e in inflections if s.min() > _SIDE_DAYS and e.max() < length - _SIDE_DAYS]
    peaks = [best(s, e, peak=True) for s, e in inside]
    out = []
    for k, peak in enumerate(peaks):
        before = peaks[k - 1] if k else np.zeros_like(peak)
        after = peaks[k + 1] if k + 1 < len(peaks) else np.full_like(peak, length - 1)
        # the minimum nearest to the peak, where a flat winter holds several equal ones
        left = best(np.maximum(peak - _SIDE_DAYS, before), peak, peak=False, last=True)
        right = best(peak, np.minimum(peak + _SIDE_DAYS, after), peak=False)
        out.append((left, peak, right))
    return out


def _trapezoid(values: FloatArray, positions: IntArray) -> FloatArray:
    total = np.concatenate([np.zeros((len(values), 1)), np.cumsum((values[:, 1:] + values[:, :-1]) / 2.0, axis=1)], 1)
    rows = np.arange(len(values))
    return np.asarray(total[rows, positions[:, -1]] - total[rows, positions[:, 0]])


def _keep_two_largest(
    out: SeasonTruth,
    rows: IntArray,
    column: int,
    metrics: Sequence[tuple[npt.NDArray[np.bool_], IntArray, FloatArray, FloatArray, FloatArray]],
    in_year: npt.NDArray[np.bool_],
    day0: int,
) -> None:
    """Put the two cycles of largest amplitude that peak within the year into the result, the larger first."""
    belongs = np.stack([real & in_year[positions[:, 3]] for real, positions, _, _, _ in metrics])
    positions, low, height, area = (np.stack([one[k] for one in metrics]) for k in range(1, 5))
    order = np.argsort(-np.where(belongs, height, -np.inf), axis=0, kind="stable")[:2]
    out.n_cycles[rows, column] = belongs.sum(axis=0)
    index = np.arange(len(rows))
    for cycle, choice in enumerate(order):
        there = belongs[choice, index]
        target = rows[there]
        out.dates[target, column, cycle] = positions[choice, index][there] + day0
        out.base[target, column, cycle] = low[choice, index][there]
        out.amplitude[target, column, cycle] = height[choice, index][there]
        out.integral[target, column, cycle] = area[choice, index][there]
