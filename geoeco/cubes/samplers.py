"""Where the pixels of a grid lie in a raster, and what their values there are.

A sampler is made once for a raster's grid and a target grid, and applied to the window of every band and date that
shares the raster's grid. Each target pixel is a function of its own centre and of the raster alone, never of the
window it is read with, so any cut into blocks gives the same pixels. That is why GDAL's warper is not used here: its
transformer is approximated between scan lines and its kernels are cut at chunk edges unless told otherwise; told
otherwise it gives the same values as these samplers (tests compare them).

Only nearest and bilinear are here, which is all that the kinds of variables ask for; on grids coarser than the
raster, bilinear values are averaged over the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from geoeco.errors import GridError

__all__ = ["Sampler", "Window", "make_sampler", "union"]

Array = npt.NDArray[Any]
#: First (inclusive) and last (exclusive) row, then column, of a raster.
Window = tuple[int, int, int, int]

#: Coordinates are compared in pixels of the raster; less than this is rounding of the projection.
_TINY = 1e-6
#: Target pixels that are worked on at a time: bounds the scratch, and keeps it in the processor's cache.
_STRIP = 1 << 15


class Sampler(Protocol):
    """Takes the target's values out of a window of the raster."""

    @property
    def window(self) -> Window | None:
        """Part of the raster to read, or None where target and raster do not meet."""

    def __call__(self, source: Array, nodata: float) -> Array:
        """Values ``(y, x)`` of the target from ``source``, the pixels of `window`; `nodata` where there are none."""


def _axis_window(first: int, last: int, size: int) -> tuple[int, int] | None:
    start, stop = max(first, 0), min(last + 1, size)
    return (start, stop) if start < stop else None


@dataclass(frozen=True)
class _Axis:
    """One axis of a target whose pixels are a whole fraction of the raster's.

    Target pixel ``i`` has its centre at ``(start + i + shift + 0.5) / ratio - 0.5`` in raster pixels. The shift
    is rounded, so that it is the same number for every block of one grid.
    """

    start: int
    shift: float
    ratio: int
    count: int
    size: int

    def base(self, i: int) -> int:
        """Raster pixel at or before the centre of target pixel `i`."""
        return math.floor((self.start + i + self.shift + 0.5) / self.ratio - 0.5 + _TINY)

    def holder(self, i: int) -> int:
        """Raster pixel that holds the centre of target pixel `i`."""
        return math.floor((self.start + i + self.shift + 0.5) / self.ratio + _TINY)

    def near(self, pixels: npt.NDArray[np.int64]) -> slice:
        """Target pixels between the first and the last that has one of these raster pixels as a neighbour."""
        centres = (self.start + np.arange(self.count) + self.shift + 0.5) / self.ratio - 0.5
        bases = np.floor(centres + _TINY).astype(np.int64)
        return slice(int(np.searchsorted(bases + 1, pixels[0])), int(np.searchsorted(bases, pixels[-1], side="right")))

    def part(self, first: int, last: int) -> _Axis:
        """Target pixels `first` up to `last` as an axis of their own."""
        return replace(self, start=self.start + first, count=last - first)

    def phases(self) -> list[tuple[int, int, int, np.float32, int]]:
        """First target pixel, its base, its holder, the weight of the pixel after the base, and how many, by phase."""
        found = []
        for first in range(min(self.ratio, self.count)):
            phase = (self.start + first) % self.ratio
            position = (phase + self.shift + 0.5) / self.ratio - 0.5
            weight = position - math.floor(position + _TINY)
            n = len(range(first, self.count, self.ratio))
            found.append((first, self.base(first), self.holder(first), np.float32(max(weight, 0.0)), n))
        return found


@dataclass(frozen=True)
class _Copy:
    """The target's pixels are the raster's own."""

    rows: _Axis
    cols: _Axis

    @property
    def window(self) -> Window | None:
        y = _axis_window(self.rows.start, self.rows.start + self.rows.count - 1, self.rows.size)
        x = _axis_window(self.cols.start, self.cols.start + self.cols.count - 1, self.cols.size)
        return None if y is None or x is None else (*y, *x)

    def __call__(self, source: Array, nodata: float) -> Array:
        shape = (self.rows.count, self.cols.count)
        if source.shape == shape:
            return source
        window = self.window
        out = np.full(shape, nodata, source.dtype)
        if window is not None:
            y, x = window[0] - self.rows.start, window[2] - self.cols.start
            out[y : y + source.shape[0], x : x + source.shape[1]] = source
        return out


@dataclass(frozen=True)
class _Fractions:
    """Same CRS, target pixels a whole fraction (or shifted by a part) of the raster's: separable weights by phase."""

    rows: _Axis
    cols: _Axis
    bilinear: bool

    def _span(self, axis: _Axis) -> tuple[int, int]:
        if self.bilinear:
            return axis.base(0), axis.base(axis.count - 1) + 1
        return axis.holder(0), axis.holder(axis.count - 1)

    @property
    def window(self) -> Window | None:
        y = _axis_window(*self._span(self.rows), self.rows.size)
        x = _axis_window(*self._span(self.cols), self.cols.size)
        return None if y is None or x is None else (*y, *x)

    def __call__(self, source: Array, nodata: float) -> Array:
        window = self.window
        if window is None:
            return np.full((self.rows.count, self.cols.count), nodata, source.dtype)
        (top, bottom), (left, right) = self._span(self.rows), self._span(self.cols)
        if window != (top, bottom + 1, left, right + 1):
            edges = ((window[0] - top, bottom + 1 - window[1]), (window[2] - left, right + 1 - window[3]))
            source = np.pad(source, edges, constant_values=source.dtype.type(nodata))
        if not self.bilinear:
            return self._nearest(source, top, left)
        out = np.empty((self.rows.count, self.cols.count), source.dtype)
        invalid = np.isnan(source) if math.isnan(nodata) else source == source.dtype.type(nodata)
        holes = invalid.any()
        known = np.where(invalid, source.dtype.type(0), source) if holes else source
        for target, total in self._weighted(known, top, left):
            _round_into(out[target], total)
        if holes:
            # most often a swath's edge: only the rectangle around the pixels without data needs weights
            y = self.rows.near(np.flatnonzero(invalid.any(axis=1)) + top)
            x = self.cols.near(np.flatnonzero(invalid.any(axis=0)) + left)
            if y.stop > y.start and x.stop > x.start:
                part = _Fractions(self.rows.part(y.start, y.stop), self.cols.part(x.start, x.stop), bilinear=True)
                (first, last), (west, east) = part._span(part.rows), part._span(part.cols)
                inner = slice(first - top, last + 1 - top), slice(west - left, east + 1 - left)
                part._fill_holes(out[y, x], known[inner], ~invalid[inner], nodata)
        return out

    def _fill_holes(self, out: Array, known: Array, valid: npt.NDArray[np.bool_], nodata: float) -> None:
        """Weight what has data by what has data; `known` is 0 elsewhere."""
        top, left = self.rows.base(0), self.cols.base(0)
        held = self._nearest(valid, top, left)
        sums = zip(self._weighted(known, top, left), self._weighted(valid, top, left), strict=True)
        for (target, total), (_, weight) in sums:
            inside = held[target]
            np.copyto(weight, 1, where=~inside)
            total /= weight
            values = np.empty(total.shape, out.dtype)
            _round_into(values, total)
            np.copyto(values, out.dtype.type(nodata), where=~inside)
            out[target] = values

    def _nearest(self, source: Array, top: int, left: int) -> Array:
        wide = np.empty((source.shape[0], self.cols.count), source.dtype)
        for first, _, holder, _, n in self.cols.phases():
            wide[:, first :: self.cols.ratio] = source[:, holder - left : holder - left + n]
        out = np.empty((self.rows.count, self.cols.count), source.dtype)
        for first, _, holder, _, n in self.rows.phases():
            out[first :: self.rows.ratio] = wide[holder - top : holder - top + n]
        return out

    def _weighted(self, source: Array, top: int, left: int) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Rows of the target and their weighted sums, in strips that stay in the processor's cache."""
        columns, ratio, width = self.cols.phases(), self.cols.ratio, self.cols.count
        height = max(1, _STRIP // max(1, width * self.rows.ratio)) * self.rows.ratio
        height = min(height, self.rows.count)
        # one set of arrays for all strips: fresh ones would be fresh pages each time
        tall = self.rows.base(height - 1) - self.rows.base(0) + 3
        all_wide, all_total = np.empty((tall, width), np.float32), np.empty((height, width), np.float32)
        scratch = np.empty(max(tall, height) * width, np.float32)
        for start in range(0, self.rows.count, height):
            rows = self.rows.part(start, min(start + height, self.rows.count))
            base = rows.base(0)
            narrow = source[base - top : rows.base(rows.count - 1) + 2 - top].astype(np.float32)
            wide, total = all_wide[: narrow.shape[0]], all_total[: rows.count]
            for first, at, _, weight, n in columns:
                at -= left
                _mix(wide[:, first::ratio], narrow[:, at : at + n], narrow[:, at + 1 : at + 1 + n], weight, scratch)
            for first, at, _, weight, n in rows.phases():
                at -= base
                _mix(total[first :: rows.ratio], wide[at : at + n], wide[at + 1 : at + 1 + n], weight, scratch)
            yield slice(start, start + rows.count), total


def _mix(
    out: npt.NDArray[np.float32],
    before: npt.NDArray[np.float32],
    after: npt.NDArray[np.float32],
    weight: np.float32,
    scratch: npt.NDArray[np.float32],
) -> None:
    # two products, not before + w * (after - before): exact for the quarters and halves of 20 m on 10 m
    part = scratch[: after.size].reshape(after.shape)
    np.multiply(after, weight, out=part)
    np.multiply(before, np.float32(1) - weight, out=out)
    out += part


def _round_into(out: Array, values: npt.NDArray[np.float32]) -> None:
    """Round halves up, as GDAL does; floats stay as they are."""
    if out.dtype.kind != "f":
        values += np.float32(0.5)
        if out.dtype.kind == "i":
            np.floor(values, out=values)
    np.copyto(out, values, casting="unsafe")


@dataclass(frozen=True)
class _Points:
    """Any other grid: every target pixel's own place in the raster, projected point by point."""

    window: Window | None
    shape: tuple[int, int]
    base: npt.NDArray[np.int32]  # flat index of the upper left of the four neighbours in the padded window
    holder: npt.NDArray[np.int8]  # which of the four holds the centre: row * 2 + column; -1 outside the raster
    weight_y: npt.NDArray[np.float32]
    weight_x: npt.NDArray[np.float32]
    bilinear: bool

    def __call__(self, source: Array, nodata: float) -> Array:
        out = np.full(self.shape, nodata, source.dtype)
        if self.window is None:
            return out
        # one pixel of nodata all around: neighbours of edge pixels
        padded = np.pad(source, 1, constant_values=source.dtype.type(nodata))
        width = padded.shape[1]
        flat, target = padded.ravel(), out.ravel()
        for start in range(0, target.size, _STRIP):
            part = slice(start, start + _STRIP)
            base, holder = self.base[part], self.holder[part]
            held = flat[base + np.where(holder > 1, width, 0) + (holder & 1)]
            inside = holder >= 0
            inside &= ~np.isnan(held) if math.isnan(nodata) else held != source.dtype.type(nodata)
            if self.bilinear:
                held = self._weighted(flat, width, part, nodata, inside)
            np.copyto(target[part], held, where=inside)
        return out

    def _weighted(
        self, flat: Array, width: int, part: slice, nodata: float, inside: npt.NDArray[np.bool_]
    ) -> npt.NDArray[Any]:
        base, wy, wx = self.base[part], self.weight_y[part], self.weight_x[part]
        total = np.zeros(base.shape, np.float32)
        weights = np.zeros(base.shape, np.float32)
        for step, weight in (
            (0, (1 - wy) * (1 - wx)),
            (1, (1 - wy) * wx),
            (width, wy * (1 - wx)),
            (width + 1, wy * wx),
        ):
            values = flat[base + step]
            valid = ~np.isnan(values) if math.isnan(nodata) else values != flat.dtype.type(nodata)
            weight *= valid
            total += np.where(valid, values, 0) * weight
            weights += weight
        weights[~inside] = 1
        total /= weights
        out = np.empty(total.shape, flat.dtype)
        _round_into(out, total)
        return out


@dataclass(frozen=True)
class _Averaged:
    """Target coarser than the raster: mean of the values at ``factor`` x ``factor`` points of each pixel.

    In strips of rows, each with a sampler of its own: the points are many times the pixels.
    """

    strips: tuple[tuple[slice, Sampler], ...]
    shape: tuple[int, int]
    factor: int

    @property
    def window(self) -> Window | None:
        return union(fine.window for _, fine in self.strips)

    def __call__(self, source: Array, nodata: float) -> Array:
        out = np.full(self.shape, nodata, source.dtype)
        whole = self.window
        for rows, fine in self.strips:
            window = fine.window
            if whole is not None and window is not None:
                (top, bottom, left, right), (up, _, west, _) = window, whole
                self._average(
                    fine(source[top - up : bottom - up, left - west : right - west], nodata), nodata, out[rows]
                )
        return out

    def _average(self, values: Array, nodata: float, out: Array) -> None:
        k = self.factor
        valid = ~np.isnan(values) if math.isnan(nodata) else values != out.dtype.type(nodata)
        total, count = np.zeros(out.shape, np.float64), np.zeros(out.shape, np.int32)
        for i in range(k):
            for j in range(k):
                at = valid[i::k, j::k]
                total += np.where(at, values[i::k, j::k], 0)
                count += at
        empty = count == 0
        count[empty] = 1
        means = np.empty(out.shape, out.dtype)
        _round_into(means, (total / count).astype(np.float32))
        np.copyto(out, means, where=~empty)


def union(windows: Iterable[Window | None]) -> Window | None:
    """Smallest window that holds all of them; None if there is none."""
    found = [window for window in windows if window is not None]
    if not found:
        return None
    top, bottom, left, right = zip(*found, strict=True)
    return min(top), max(bottom), min(left), max(right)


def _axes(transform: Affine, shape: tuple[int, int], geobox: GeoBox, ratio: int) -> tuple[_Axis, _Axis]:
    target = geobox.affine
    rows, cols = (int(n) for n in geobox.shape)
    # how many target pixels the target's corner is away from the raster's
    across = (target.c - transform.c) / target.a
    down = (target.f - transform.f) / target.e
    axes = []
    for offset, count, size in ((down, rows, shape[0]), (across, cols, shape[1])):
        start = math.floor(offset + _TINY)
        shift = round((offset - start) / _TINY) * _TINY
        axes.append(_Axis(start, 0.0 if abs(shift) < 2 * _TINY else shift, ratio, count, size))
    return axes[0], axes[1]


def _points(transform: Affine, shape: tuple[int, int], crs: CRS, geobox: GeoBox, bilinear: bool) -> _Points:
    rows, cols = (int(n) for n in geobox.shape)
    to_source = None if geobox.crs == crs else Transformer.from_crs(geobox.crs, crs, always_xy=True)
    target = geobox.affine
    total = rows * cols
    row0, col0 = np.empty(total, np.int32), np.empty(total, np.int32)
    holder = np.empty(total, np.int8)
    weights = total if bilinear else 0
    weight_y, weight_x = np.empty(weights, np.float32), np.empty(weights, np.float32)
    for start in range(0, total, _STRIP):
        part = slice(start, min(start + _STRIP, total))
        i, j = np.divmod(np.arange(part.start, part.stop), cols)
        x, y = target.a * (j + 0.5) + target.c, target.e * (i + 0.5) + target.f
        if to_source is not None:
            x, y = to_source.transform(x, y)
        u, v = (x - transform.c) / transform.a, (y - transform.f) / transform.e
        with np.errstate(invalid="ignore"):
            outside = ~((u >= -_TINY) & (v >= -_TINY) & (u < shape[1] - _TINY) & (v < shape[0] - _TINY))
        u, v = np.where(outside, 0.5, u), np.where(outside, 0.5, v)
        in_row, in_col = np.floor(v + _TINY), np.floor(u + _TINY)
        up, left = np.floor(v - 0.5 + _TINY), np.floor(u - 0.5 + _TINY)
        row0[part], col0[part] = up, left
        if bilinear:
            weight_y[part], weight_x[part] = np.maximum(v - 0.5 - up, 0), np.maximum(u - 0.5 - left, 0)
        where = ((in_row - up) * 2 + (in_col - left)).astype(np.int8)
        holder[part] = np.where(outside, -1, where)
    inside = holder >= 0
    if not inside.any():
        return _Points(None, (rows, cols), row0, holder, weight_y, weight_x, bilinear)
    top, bottom = int(row0[inside].min()), int(row0[inside].max()) + 2
    first, last = int(col0[inside].min()), int(col0[inside].max()) + 2
    window = (max(top, 0), min(bottom, shape[0]), max(first, 0), min(last, shape[1]))
    width = window[3] - window[2] + 2
    base = (row0 - (window[0] - 1)) * width + (col0 - (window[2] - 1))
    base[~inside] = 0
    return _Points(window, (rows, cols), base.astype(np.int32), holder, weight_y, weight_x, bilinear)


def make_sampler(transform: Affine, shape: tuple[int, int], crs: CRS, geobox: GeoBox, resampling: str) -> Sampler:
    """Sampler from a raster's grid to another grid.

    Parameters
    ----------
    transform : affine.Affine
        Of the raster; north up.
    shape : tuple of int
        Rows and columns of the raster.
    crs : odc.geo.crs.CRS
        Of the raster.
    geobox : odc.geo.geobox.GeoBox
        Target grid; north up.
    resampling : str
        ``"nearest"`` or ``"bilinear"``. A pixel whose centre falls on a raster pixel without data has no data;
        other missing neighbours are left out of the weights.

    Raises
    ------
    GridError
        For rotated grids, a target without CRS, or another resampling.
    """
    if resampling not in {"nearest", "bilinear"}:
        raise GridError(f"no resampling {resampling!r} here", what_to_do="use nearest or bilinear")
    if geobox.crs is None:
        raise GridError("the target grid has no CRS")
    target = geobox.affine
    for name, affine in (("raster", transform), ("target grid", target)):
        if affine.b or affine.d or affine.a <= 0 or affine.e >= 0:
            raise GridError(f"the {name} is rotated or not north up", what_to_do="warp it to a north-up grid first")
    bilinear = resampling == "bilinear"
    same = geobox.crs == crs
    ratio_x, ratio_y = transform.a / target.a, transform.e / target.e
    ratio = round(ratio_x)
    if same and ratio >= 1 and abs(ratio_x - ratio) < _TINY and abs(ratio_y - ratio) < _TINY:
        axes = _axes(transform, shape, geobox, ratio)
        if ratio == 1 and axes[0].shift == 0 and axes[1].shift == 0:
            return _Copy(*axes)
        return _Fractions(*axes, bilinear)
    step = _step(crs, geobox) if not same else max(target.a, -target.e)
    factor = round(step / max(transform.a, -transform.e))
    if bilinear and factor >= 2:
        rows, cols = (int(n) for n in geobox.shape)
        height = max(1, _STRIP // (cols * factor**2))
        strips = []
        for start in range(0, rows, height):
            part = slice(start, min(start + height, rows))
            fine = geobox[part, :].zoom_out(1 / factor)
            strips.append((part, make_sampler(transform, shape, crs, fine, resampling)))
        return _Averaged(tuple(strips), (rows, cols), factor)
    return _points(transform, shape, crs, geobox, bilinear)


def _step(crs: CRS, geobox: GeoBox) -> float:
    """Size of a target pixel in the raster's CRS, from the CRS alone so that it is the same for every block."""
    target = geobox.affine
    size = max(target.a, -target.e)
    if geobox.crs is not None and geobox.crs.geographic == crs.geographic:
        return size
    # mean Earth radius; a factor of two matters here, not a percent
    metres = math.pi * 6371008.8 / 180
    return size * metres if geobox.crs is not None and geobox.crs.geographic else size / metres
