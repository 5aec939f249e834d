"""Where the chips of an orthomosaic lie: metres to whole pixels, windows and their edge policies, the overlap rule.

Integers in, integers out: no pixels are read here, and nothing here knows a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError

__all__ = ["EdgePolicy", "OverlapCheck", "check_overlap", "grid_windows", "pixels_across", "whole_in"]

EdgePolicy = Literal["shift", "pad", "drop"]

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

#: Part of a pixel by which an object may miss the side of a window and still be in it.
_TINY = 1e-6
#: Part of a length by which it may miss a whole number of pixels and still be meant as one: the scale of a projection
#: (0.9996 in the middle of a UTM zone, 1.001 at its sides) makes pixels of 10 cm a little more or less on the ground.
_SCALE = 2e-3


def pixels_across(metres: float, gsd_m: float, *, up: bool = False) -> int:
    """Length on the ground as a whole number of pixels.

    Parameters
    ----------
    metres : float
    gsd_m : float
        True ground sampling distance, metres.
    up : bool
        Round up unless the length is a whole number of pixels to 0.2 %; to the nearest otherwise.

    Raises
    ------
    InputError
        If the length is negative or not finite.
    """
    if not (math.isfinite(metres) and metres >= 0):
        raise InputError(f"a length of {metres} m is none", what_to_do="give metres, not negative")
    exact = metres / gsd_m
    return round(exact) if not up or abs(exact - round(exact)) <= _SCALE * exact else math.ceil(exact)


def _origins(length: int, size: int, stride: int, edge: EdgePolicy) -> npt.NDArray[np.int64]:
    """First pixels of the windows along one axis."""
    if edge == "drop":
        return np.arange(0, length - size + 1, stride)
    origins = np.arange(0, max(length - size, 0) + stride, stride)
    # a window that only repeats what the one before it holds is none
    origins = origins[: 1 + int(np.argmax(origins + size >= length))]
    if edge == "shift":
        origins[-1] = length - size
    return origins


def grid_windows(shape: tuple[int, int], size: int, overlap: int = 0, *, edge: EdgePolicy = "shift") -> Ints:
    """Windows of a regular grid over a raster.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the raster.
    size : int
        Pixels along a side of a window.
    overlap : int
        Pixels that neighbours share; below `size`.
    edge : {"shift", "pad", "drop"}
        What becomes of the last window, which would reach beyond the raster: it is moved in, kept (its pixels beyond
        are invalid), or left out, so that a strip along the right and lower edge is in no window.

    Returns
    -------
    numpy.ndarray of int32, shape (window, 2)
        Row and column of the upper left pixel, row by row from the top. Under "shift" and "pad" each pixel of the
        raster is in at least one window.

    Raises
    ------
    InputError
        If a window is larger than the raster and not padded, or the overlap leaves no step.
    """
    if edge not in get_args(EdgePolicy):
        raise InputError(f"edge={edge!r} is no policy", what_to_do=f"use one of {', '.join(get_args(EdgePolicy))}")
    if size < 1 or not 0 <= overlap < size:
        raise InputError(
            f"windows of {size} pixels with an overlap of {overlap} make no grid",
            what_to_do="take an overlap below the side of a chip",
        )
    if edge != "pad" and min(shape) < size:
        raise InputError(
            f"a chip of {size} pixels is larger than the mosaic of {shape[0]} x {shape[1]} pixels",
            what_to_do="take smaller chips, or edge: pad",
        )
    rows, cols = (_origins(length, size, size - overlap, edge) for length in shape)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)


def whole_in(bounds: Floats, offsets: Ints, size: int | Ints, *, edge_band: float = 0.0) -> npt.NDArray[np.int64]:
    """In how many windows each object is whole.

    Parameters
    ----------
    bounds : numpy.ndarray, shape (object, 4)
        First row, first column, last row, last column of each object, in pixels and parts of them.
    offsets : numpy.ndarray of int, shape (window, 2)
        As of `grid_windows`.
    size : int or numpy.ndarray of int, shape (window,)
        Pixels along a side.
    edge_band : float
        Pixels along each side of a window that do not count.

    Returns
    -------
    numpy.ndarray of int64, shape (object,)
    """
    import shapely

    top, left = offsets[:, 0] + edge_band, offsets[:, 1] + edge_band
    bottom, right = offsets[:, 0] + size - edge_band, offsets[:, 1] + size - edge_band
    tree = shapely.STRtree(shapely.box(left, top, right, bottom))
    count = np.zeros(len(bounds), dtype=np.int64)
    middle = shapely.points((bounds[:, 1] + bounds[:, 3]) / 2, (bounds[:, 0] + bounds[:, 2]) / 2)
    obj, win = tree.query(middle)
    whole = (
        (bounds[obj, 0] >= top[win] - _TINY)
        & (bounds[obj, 1] >= left[win] - _TINY)
        & (bounds[obj, 2] <= bottom[win] + _TINY)
        & (bounds[obj, 3] <= right[win] + _TINY)
    )
    np.add.at(count, obj[whole], 1)
    return count


@dataclass(frozen=True)
class OverlapCheck:
    """Whether a grid of chips holds every crown whole in some chip.

    Attributes
    ----------
    largest_m : float
        Side of the box round the largest crown, metres.
    needed_m : float
        Overlap that suffices wherever the crowns stand: ``largest_m + 2 * edge_band_m``.
    overlap_m : float
        Overlap of the grid.
    cut : tuple of int
        Positions of the crowns that are whole in no chip, although they lie on the mosaic as a whole.
    """

    largest_m: float
    needed_m: float
    overlap_m: float
    cut: tuple[int, ...]

    @property
    def warning(self) -> str:
        """What to tell; empty where every crown is whole in some chip."""
        if not self.cut:
            return ""
        return (
            f"{len(self.cut)} crowns are whole in no chip: an overlap of {self.needed_m:.1f} m would hold the largest "
            f"({self.largest_m:.1f} m across), {self.overlap_m:.1f} m does not"
        )


def check_overlap(
    bounds: Floats,
    offsets: Ints,
    size: int,
    overlap: int,
    gsd_m: float,
    *,
    shape: tuple[int, int],
    edge_band_m: float = 0.0,
) -> OverlapCheck:
    """Compare the overlap of a grid of chips with the crowns that it has to hold.

    A crown of diameter D is whole inside some chip, and clear of a band e along its sides, wherever it stands, if and
    only if the overlap is at least D + 2 e.

    Parameters
    ----------
    bounds, offsets, size
        As of `whole_in`; crowns that reach beyond the raster are not asked about.
    overlap : int
        Pixels.
    gsd_m : float
        Metres a pixel.
    shape : tuple of int
        Rows and columns of the raster.
    edge_band_m : float
        Metres along each side of a chip that do not count.
    """
    inside = (bounds[:, :2] >= -_TINY).all(axis=1) & (bounds[:, 2:] <= np.asarray(shape) + _TINY).all(axis=1)
    if not inside.any():
        return OverlapCheck(0.0, 2 * edge_band_m, overlap * gsd_m, ())
    largest = float((bounds[inside, 2:] - bounds[inside, :2]).max()) * gsd_m
    held = whole_in(bounds, offsets, size, edge_band=edge_band_m / gsd_m)
    cut = np.flatnonzero(inside & (held == 0))
    return OverlapCheck(largest, largest + 2 * edge_band_m, overlap * gsd_m, tuple(int(i) for i in cut))
