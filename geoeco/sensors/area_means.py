"""Means by area: pixels of a fine grid to a coarser one that begins at the same corner, invalid pixels left out.

Every weight is the exact share of a pixel's area, and sums run in an order that does not depend on the window, so that
a window of the coarse grid has the same bytes however the grid is cut. Not about warping between CRSs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["AxisShares", "area_mean", "axis_shares", "reduce_axis"]

#: A coarse pixel is valid where at least this share of its area is.
SMALLEST_VALID_SHARE = 0.5


@dataclass(frozen=True)
class AxisShares:
    """Which fine pixels of one axis lie under which coarse ones, and with how much of their length.

    Attributes
    ----------
    first, last : int
        Fine pixels that are needed, ``first`` inclusive and ``last`` exclusive, within the fine axis.
    index : numpy.ndarray
        ``(coarse, tap)`` positions counted from ``first``.
    share : numpy.ndarray
        ``(coarse, tap)`` length of the fine pixel under the coarse one, in fine pixels; 0 beyond the fine axis.
    """

    first: int
    last: int
    index: npt.NDArray[np.intp]
    share: npt.NDArray[np.float64]


def axis_shares(ratio: float, start: int, stop: int, size: int) -> AxisShares:
    """Shares of the fine pixels of one axis under coarse pixels ``start:stop``.

    Parameters
    ----------
    ratio : float
        Length of a coarse pixel in fine pixels.
    start, stop : int
        Coarse pixels, counted from the common corner.
    size : int
        Number of fine pixels on the axis.
    """
    low = np.arange(start, stop) * ratio
    high = np.arange(start + 1, stop + 1) * ratio
    whole = np.floor(low)[:, None] + np.arange(math.ceil(ratio) + 1)
    share = np.minimum(high[:, None], whole + 1) - np.maximum(low[:, None], whole)
    inside = (whole >= 0) & (whole < size)
    share = np.where(inside, np.maximum(share, 0.0), 0.0)
    used = whole[share > 0].astype(np.intp)
    first, last = (int(used.min()), int(used.max()) + 1) if used.size else (0, 0)
    index = np.clip(whole.astype(np.intp) - first, 0, max(last - first - 1, 0))
    return AxisShares(first, last, index, share)


def reduce_axis(values: npt.NDArray[np.generic], shares: AxisShares, axis: int) -> npt.NDArray[np.float64]:
    """Sum of values weighted by their shares along one axis, tap by tap."""
    spread = [1] * values.ndim
    spread[axis] = -1
    total: npt.NDArray[np.float64] | None = None
    for tap in range(shares.index.shape[1]):
        weight = shares.share[:, tap]
        if not weight.any():
            continue
        part = np.take(values, shares.index[:, tap], axis=axis) * weight.reshape(spread)
        total = part if total is None else np.add(total, part, out=total)
    if total is None:
        shape = list(values.shape)
        shape[axis] = shares.index.shape[0]
        return np.zeros(shape)
    return total


def area_mean(
    image: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_], rows: AxisShares, columns: AxisShares, area: float
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Mean of the valid part of every coarse pixel.

    Parameters
    ----------
    image : numpy.ndarray
        ``(band, y, x)`` of the fine pixels that `rows` and `columns` ask for, 0 where invalid.
    valid : numpy.ndarray
        ``(y, x)`` bool.
    rows, columns : AxisShares
    area : float
        Area of a coarse pixel in fine pixels.

    Returns
    -------
    image : numpy.ndarray
        ``(band, y, x)`` of the type given (integers rounded to the nearest), 0 where invalid.
    valid : numpy.ndarray
        ``(y, x)`` bool: at least half of the pixel's area is valid.
    """
    covered = reduce_axis(reduce_axis(valid, rows, 0), columns, 1)
    good = covered >= SMALLEST_VALID_SHARE * area * (1 - 1e-9)
    divisor = np.where(good, covered, 1.0)
    out = np.zeros((image.shape[0], *good.shape), image.dtype)
    for band in range(image.shape[0]):
        mean = reduce_axis(reduce_axis(image[band], rows, 0), columns, 1) / divisor
        out[band] = np.where(good, np.rint(mean) if image.dtype.kind in "iu" else mean, 0)
    return out, good
