"""Overviews and statistics of a raster, by rules that do not depend on how its pixels arrived.

The raster is walked in fixed tiles, whatever the blocks were in which it was written; sums of tiles are added
exactly (`math.fsum`), so that statistics are the same to the last bit for any block size and any number of threads.
Overviews are halved level by level on whole 2 x 2 windows: mode for classes, mean for continuous variables, the top
left pixel otherwise. Nodata never enters a mode or a mean and never wins while one of the four pixels is valid.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

__all__ = [
    "BandStatistics",
    "FilePlanes",
    "MemoryPlanes",
    "Planes",
    "band_statistics",
    "build_overviews",
    "halve",
    "overview_shapes",
    "rounded",
]

Array = npt.NDArray[Any]

#: Rows and columns of the tiles in which a raster is walked. Part of the definition of the statistics: fixed.
TILE = (512, 2048)
BLOCK = 512
_FILL_BYTES = 1 << 22

_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}


def gdal_type(dtype: npt.DTypeLike) -> str:
    """GDAL's name of a data type."""
    return _GDAL_TYPES[np.dtype(dtype).name]


class Planes(Protocol):
    """The pixels of one level, ``(band, y, x)``, wherever they are kept."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def read(self, rows: slice, cols: slice) -> Array:
        """Pixels of a window, ``(band, rows, cols)``; not to be changed."""
        ...

    def write(self, rows: slice, cols: slice, values: Array) -> None:
        """Store the pixels of a window, ``(band, rows, cols)``."""
        ...

    def fill(self, value: float) -> None:
        """Store one value in all pixels."""
        ...

    def source(self) -> str:
        """Name under which GDAL opens the level."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class MemoryPlanes:
    """A level in memory; GDAL reads the very same bytes, without a copy."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.shape = (int(values.shape[0]), int(values.shape[1]), int(values.shape[2]))
        self.dtype = values.dtype

    @classmethod
    def empty(cls, shape: tuple[int, int, int], dtype: npt.DTypeLike) -> MemoryPlanes:
        """Make a level whose pixels are all still to be written."""
        return cls(np.empty(shape, dtype))

    def read(self, rows: slice, cols: slice) -> Array:
        """Pixels of a window (a view)."""
        view: Array = self.values[:, rows, cols]
        return view

    def write(self, rows: slice, cols: slice, values: Array) -> None:
        """Store the pixels of a window."""
        self.values[:, rows, cols] = values

    def fill(self, value: float) -> None:
        """Store one value in all pixels."""
        self.values.fill(value)

    def source(self) -> str:
        """Name under which GDAL opens the level (needs ``GDAL_MEM_ENABLE_OPEN=YES``)."""
        bands, height, width = self.shape
        return (
            f"MEM:::DATAPOINTER={self.values.ctypes.data},PIXELS={width},LINES={height},BANDS={bands},"
            f"DATATYPE={gdal_type(self.dtype)}"
        )

    def close(self) -> None:
        """Nothing to do."""


class FilePlanes:
    """A level in a raw file, for rasters larger than memory: all pixels are still to be written.

    Safe to use from several threads.

    Plain file calls on purpose: they raise where the disk is full, which a GDAL dataset may keep to itself when it is
    closed; a memory map would end the process.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._path = path
        self._file = path.open("w+b", buffering=0)

    def fill(self, value: float) -> None:
        """Store one value in all pixels."""
        bands, height, width = self.shape
        rows = max(1, _FILL_BYTES // (width * self.dtype.itemsize))
        lines = np.full((min(rows, bands * height), width), value, self.dtype)
        for start in range(0, bands * height, rows):
            self._put(lines[: min(rows, bands * height - start)], start * width)

    def _put(self, values: Array, position: int) -> None:
        view = memoryview(np.ascontiguousarray(values)).cast("B")
        start = position * self.dtype.itemsize
        while view:
            done = os.pwrite(self._file.fileno(), view, start)
            view, start = view[done:], start + done

    def read(self, rows: slice, cols: slice) -> Array:
        """Pixels of a window (a copy)."""
        bands, height, width = self.shape
        out = np.empty((bands, rows.stop - rows.start, cols.stop - cols.start), self.dtype)
        for band, plane in enumerate(out):
            for row, line in enumerate(plane, start=band * height + rows.start):
                start = (row * width + cols.start) * self.dtype.itemsize
                if os.preadv(self._file.fileno(), [line], start) != line.nbytes:
                    raise OSError(f"{self._path} is shorter than it was")
        return out

    def write(self, rows: slice, cols: slice, values: Array) -> None:
        """Store the pixels of a window."""
        _, height, width = self.shape
        for band, plane in enumerate(values):
            start = (band * height + rows.start) * width
            if (cols.start, cols.stop) == (0, width):
                self._put(plane, start)
                continue
            for row, line in enumerate(plane):
                self._put(line, start + row * width + cols.start)

    def source(self) -> str:
        """Name under which GDAL opens the level (needs ``GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE=ALL``)."""
        bands, height, width = self.shape
        size = self.dtype.itemsize
        root = ET.Element("VRTDataset", {"rasterXSize": str(width), "rasterYSize": str(height)})
        for band in range(bands):
            attributes = {"dataType": gdal_type(self.dtype), "band": str(band + 1), "subClass": "VRTRawRasterBand"}
            element = ET.SubElement(root, "VRTRasterBand", attributes)
            ET.SubElement(element, "SourceFilename", {"relativetoVRT": "0"}).text = str(self._path.resolve())
            parts = {"ImageOffset": band * height * width * size, "PixelOffset": size, "LineOffset": width * size}
            for tag, number in parts.items():
                ET.SubElement(element, tag).text = str(number)
            ET.SubElement(element, "ByteOrder").text = "LSB" if sys.byteorder == "little" else "MSB"
        return ET.tostring(root, encoding="unicode")

    def close(self) -> None:
        """Give the file handle back; GDAL opens its own."""
        self._file.close()


def overview_shapes(height: int, width: int, smallest: int = BLOCK) -> list[tuple[int, int]]:
    """Sizes of the overviews of a raster: halved, rounded up, until one block holds everything."""
    shapes = []
    while max(height, width) > smallest:
        height, width = (height + 1) // 2, (width + 1) // 2
        shapes.append((height, width))
    return shapes


def _corners(values: Array) -> tuple[Array, Array, Array, Array]:
    # an odd edge is completed with its own last row or column, which changes neither a mean nor a mode
    _, height, width = values.shape
    if height % 2 or width % 2:
        values = np.pad(values, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    return values[:, ::2, ::2], values[:, ::2, 1::2], values[:, 1::2, ::2], values[:, 1::2, 1::2]


def _copied_corners(values: Array) -> list[Array]:
    _, height, width = values.shape
    if values.dtype != np.uint8 or height % 2 or width % 2 or values.strides[2] != 1:
        return [np.ascontiguousarray(corner) for corner in _corners(values)]
    # two neighbours are one number of sixteen bits: its halves are had faster than every second pixel
    pairs = values.view("<u2")
    rows = pairs[:, ::2], pairs[:, 1::2]
    return [half.astype(np.uint8) for row in rows for half in (row, row >> 8)]


def _replace(out: Array, values: Array, where: npt.NDArray[np.bool_]) -> None:
    # by bits: NumPy has no fast masked copy of small integers
    bits = where.astype(out.dtype)
    np.negative(bits, out=bits)
    bits &= out ^ values
    out ^= bits


def _mode(values: Array, nodata: float) -> Array:
    # a pair of equal pixels wins; of two pairs, or of four different pixels, the first in reading order
    a, b, c, d = _copied_corners(values)
    a_wins, b_wins, c_wins = (a == b) | (a == c) | (a == d), (b == c) | (b == d), c == d
    valid = [corner != values.dtype.type(nodata) for corner in (a, b, c, d)]
    if all(known.all() for known in valid):
        mode = a.copy()
    else:
        a_wins &= valid[0]
        b_wins &= valid[1]
        c_wins &= valid[2]
        mode = d.copy()
        for corner, known in zip((c, b, a), valid[2::-1], strict=True):
            _replace(mode, corner, known)
    for corner, wins in ((c, c_wins), (b, b_wins), (a, a_wins)):
        _replace(mode, corner, wins)
    return mode


def _mean(values: Array, nodata: float) -> Array:
    corners = _corners(values)
    exact = values.dtype.itemsize <= 2 or values.dtype == np.float32
    wide = np.float32 if exact else np.float64
    none = values.dtype.type(nodata)
    total: Array
    if (values == none).any():
        count = np.zeros(corners[0].shape, np.uint8)
        total = np.zeros(corners[0].shape, wide)
        for corner in corners:
            valid = corner != none
            count += valid
            total += np.multiply(corner, valid, dtype=wide)
        total /= np.maximum(count, 1)
        total[count == 0] = nodata
    else:
        total = np.add(corners[0], corners[1], dtype=wide)
        total += corners[2]
        total += corners[3]
        total *= wide(0.25)
    if values.dtype.kind in "iu":
        np.rint(total, out=total)
    out: Array = total.astype(values.dtype, copy=False)
    return out


def halve(values: Array, method: str, nodata: float) -> Array:
    """Half-size overview of a raster.

    Parameters
    ----------
    values : numpy.ndarray, (band, y, x)
        Starts on even rows and columns of the raster.
    method : {"mode", "average", "nearest"}
    nodata : float

    Returns
    -------
    numpy.ndarray, (band, ceil(y / 2), ceil(x / 2))
    """
    if method == "mode":
        return _mode(values, nodata)
    if method == "average":
        return _mean(values, nodata)
    nearest: Array = np.ascontiguousarray(values[:, ::2, ::2])
    return nearest


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of the valid stored values of one band (before scale and offset).

    Attributes
    ----------
    valid, total : int
        Number of valid pixels, of all pixels.
    minimum, maximum, mean, std : float
        To ten significant digits; NaN where no pixel is valid. ``std`` is that of the population, as GDAL computes
        it.
    """

    valid: int
    total: int
    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class _Tile:
    count: int
    minimum: float
    maximum: float
    mean: float
    total: float
    squares: float


def _tile_statistics(values: Array, nodata: float) -> _Tile:
    valid = values != values.dtype.type(nodata)
    count = int(np.count_nonzero(valid))
    if count == 0:
        return _Tile(0, math.nan, math.nan, math.nan, 0.0, 0.0)
    kept = values if count == values.size else values[valid]
    wide = kept.astype(np.float64)
    total = float(wide.sum())
    mean = total / count
    minimum, maximum = float(kept.min()), float(kept.max())
    wide -= mean
    np.multiply(wide, wide, out=wide)
    return _Tile(count, minimum, maximum, mean, total, float(wide.sum()))


def rounded(value: float) -> float:
    """Round to ten significant digits: more would show in which order a processor adds up."""
    return float(f"{value:.10g}")


def _merge(tiles: list[_Tile], total: int) -> BandStatistics:
    tiles = [tile for tile in tiles if tile.count]
    count = sum(tile.count for tile in tiles)
    if not count:
        return BandStatistics(0, total, math.nan, math.nan, math.nan, math.nan)
    mean = math.fsum(tile.total for tile in tiles) / count
    squares = math.fsum(tile.squares for tile in tiles) + math.fsum(t.count * (t.mean - mean) ** 2 for t in tiles)
    minimum, maximum = min(tile.minimum for tile in tiles), max(tile.maximum for tile in tiles)
    std = math.sqrt(squares / count)
    return BandStatistics(count, total, rounded(minimum), rounded(maximum), rounded(mean), rounded(std))


def band_statistics(values: Array, nodata: float) -> BandStatistics:
    """Statistics of one band in memory, ``(y, x)``."""
    tiles = [_tile_statistics(values[window], nodata) for window in _tiles(*values.shape)]
    return _merge(tiles, values.size)


def _histogram(values: Array) -> Array:
    flat = np.ascontiguousarray(values).ravel()
    if flat.dtype == np.uint8 and flat.size % 2 == 0:
        # counting pairs of pixels halves the work; the pairs are taken apart afterwards
        pairs = np.bincount(flat.view(np.uint16), minlength=65536).reshape(256, 256)
        both: Array = pairs.sum(axis=0) + pairs.sum(axis=1)
        return both
    counts: Array = np.bincount(flat, minlength=256 if flat.dtype == np.uint8 else 65536)
    return counts


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, TILE[0]):
        for left in range(0, width, TILE[1]):
            yield slice(top, min(top + TILE[0], height)), slice(left, min(left + TILE[1], width))


def _half(window: slice) -> slice:
    return slice(window.start // 2, (window.stop + 1) // 2)


def build_overviews(
    base: Planes,
    make: Callable[[tuple[int, int, int]], Planes],
    *,
    method: str,
    nodata: float,
    histogram: bool,
    threads: int,
) -> tuple[list[Planes], list[BandStatistics], Array]:
    """Overviews and statistics of a raster in one walk over its pixels.

    Parameters
    ----------
    base : Planes
        Full resolution.
    make : callable
        Makes a level of a given shape, of which every pixel will be written.
    method : {"mode", "average", "nearest"}
    nodata : float
    histogram : bool
        Count codes (unsigned integers) instead of computing statistics.
    threads : int

    Returns
    -------
    overviews : list of Planes
    statistics : list of BandStatistics
        One a band; empty where `histogram`.
    counts : numpy.ndarray of int
        Pixels of every code; empty where not `histogram`.
    """
    bands, height, width = base.shape
    overviews = [make((bands, *shape)) for shape in overview_shapes(height, width)]
    size = 256 if base.dtype == np.uint8 else 65536
    counts = np.zeros(size if histogram else 0, np.int64)
    per_band: list[list[_Tile]] = [[] for _ in range(bands)]

    def first(window: tuple[slice, slice]) -> tuple[list[_Tile], Array]:
        values = base.read(*window)
        if overviews:
            overviews[0].write(_half(window[0]), _half(window[1]), halve(values, method, nodata))
        if histogram:
            return [], _histogram(values)
        return [_tile_statistics(band, nodata) for band in values], counts

    with ThreadPoolExecutor(threads) as pool:
        # map keeps the order of the tiles, whichever thread finishes first
        for tiles, tile_counts in pool.map(first, _tiles(height, width)):
            if histogram:
                counts += tile_counts
            for band, tile in enumerate(tiles):
                per_band[band].append(tile)
        for finer, coarser in pairwise(overviews):

            def step(window: tuple[slice, slice], finer: Planes = finer, coarser: Planes = coarser) -> None:
                coarser.write(_half(window[0]), _half(window[1]), halve(finer.read(*window), method, nodata))

            list(pool.map(step, _tiles(*finer.shape[1:])))
    statistics = [] if histogram else [_merge(tiles, height * width) for tiles in per_band]
    return overviews, statistics, counts
