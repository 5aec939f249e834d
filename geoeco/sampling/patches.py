"""Many small windows out of one raster, each of its blocks decoded once.

Chips share the blocks of a file: read one by one, a block of 1024 x 1024 pixels is fetched and decoded for every chip
that touches it. Here the windows of one file are sorted, its blocks are read row by row, each once, and the windows are
cut from them. Memory holds the open windows and one row of blocks, never the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from geoeco.cubes.reading import Raster

__all__ = ["read_patches"]

#: Rows read at a time from files that are not tiled.
_LEAST_ROWS = 256
#: Blocks side by side that are asked for at once: one request where the file is remote, and still little memory.
_MOST_BLOCKS = 4


def _runs(columns: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last (exclusive) index of each stretch of True, long ones in parts."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], columns, [False]]).astype(np.int8)))
    return [
        (start, min(start + _MOST_BLOCKS, last))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        for start in range(first, last, _MOST_BLOCKS)
    ]


def read_patches(
    raster: Raster, geoboxes: Sequence[GeoBox], *, resampling: str, nodata: float = 0
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Read a raster on many small grids.

    Parameters
    ----------
    raster : geoeco.cubes.reading.Raster
        Open file.
    geoboxes : sequence of odc.geo.geobox.GeoBox
        Grids to read; the same pixels as `geoeco.cubes.read_window` gives for each of them alone.
    resampling : str
        ``"bilinear"`` or ``"nearest"``.
    nodata : float
        Value that means no data in the file and in the result.

    Yields
    ------
    (int, numpy.ndarray)
        Index of the grid and its pixels ``(y, x)``, in the order in which they are complete.
    """
    samplers = [raster.sampler(geobox, resampling) for geobox in geoboxes]
    waiting: list[tuple[int, tuple[int, int, int, int]]] = []
    for index, sampler in enumerate(samplers):
        if sampler.window is None:
            yield index, np.full(tuple(int(n) for n in geoboxes[index].shape), nodata, raster.dtype)
        else:
            waiting.append((index, sampler.window))
    waiting.sort(key=lambda entry: (entry[1][0], entry[1][2], entry[0]))
    height, width = raster.block_shape
    height = -(-_LEAST_ROWS // height) * height
    rows, cols = raster.shape
    open_windows: dict[int, tuple[tuple[int, int, int, int], npt.NDArray[Any]]] = {}
    position, top = 0, 0
    while position < len(waiting) or open_windows:
        # the next row of blocks that anybody needs
        if not open_windows:
            top = waiting[position][1][0] // height * height
        bottom = min(top + height, rows)
        while position < len(waiting) and waiting[position][1][0] < bottom:
            index, window = waiting[position]
            open_windows[index] = (window, np.empty((window[1] - window[0], window[3] - window[2]), raster.dtype))
            position += 1
        touched = np.zeros(-(-cols // width), dtype=bool)
        for window, _ in open_windows.values():
            touched[window[2] // width : (window[3] - 1) // width + 1] = True
        for first, last in _runs(touched):
            left, right = first * width, min(last * width, cols)
            pixels = raster.read((top, bottom, left, right))
            for window, buffer in open_windows.values():
                y0, y1 = max(window[0], top), min(window[1], bottom)
                x0, x1 = max(window[2], left), min(window[3], right)
                if y0 < y1 and x0 < x1:
                    buffer[y0 - window[0] : y1 - window[0], x0 - window[2] : x1 - window[2]] = pixels[
                        y0 - top : y1 - top, x0 - left : x1 - left
                    ]
        for index in [i for i, (window, _) in open_windows.items() if window[1] <= bottom]:
            _, buffer = open_windows.pop(index)
            yield index, samplers[index](buffer, nodata)
        top = bottom
