"""Windows through a model: embeddings of the windows of a lattice, in batches whose make-up never changes.

A batch is `Lattice.side` x `Lattice.side` neighbouring cells at fixed places of the lattice, whole even where only
part of it is asked for or where part of it has no data. So a cell's numbers depend neither on the block that it was
asked for with, nor on what was done before: the same device and number of threads give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from geoeco.errors import InputError, OutputError
from geoeco.mapping.devices import fixed_arithmetic
from geoeco.mapping.lattice import Lattice, Span
from geoeco.training import ModelBundle
from geoeco.training.allocator import freed_memory_kept
from geoeco.training.chip_dataset import NDVI, ndvi_of

__all__ = ["Combine", "Embedder", "Read"]

Floats = npt.NDArray[np.float32]
#: Pixels ``(period, band, y, x)`` of rows and columns that may lead beyond the grid; NaN there and where invalid.
Read = Callable[[Span, Span], Floats]
Combine = Literal["mean", "concat"]

#: Cells drawn for each cell that a sample is to hold, at most: those without data are left out.
DRAWS = 4


def _model_inputs(pixels: Floats, there: Sequence[str], bands: Sequence[str]) -> Floats:
    """A model's input from reflectance, as `geoeco.training.ChipDataset` gives it: 0 where invalid.

    Parameters
    ----------
    pixels : numpy.ndarray, (..., band, y, x)
        Reflectance in 0..1, NaN where invalid.
    there : sequence of str
        Bands of `pixels`.
    bands : sequence of str
        Bands of the model.
    """
    known = np.isfinite(pixels)
    filled = np.where(known, pixels, np.float32(0))
    place = {band: at for at, band in enumerate(there)}
    made = np.empty((*pixels.shape[:-3], len(bands), *pixels.shape[-2:]), np.float32)
    for at, band in enumerate(bands):
        if band == NDVI:
            red, nir = place["B04"], place["B08"]
            index = ndvi_of(filled[..., red, :, :], filled[..., nir, :, :])
            made[..., at, :, :] = np.where(known[..., red, :, :] & known[..., nir, :, :], index, np.float32(0))
        else:
            made[..., at, :, :] = filled[..., place[band], :, :]
    return made


def _reader(composites: xr.DataArray) -> Read:
    """Read windows of ``(period, band, y, x)``, in memory or in Zarr, with NaN beyond the edges."""
    rows, cols = composites.sizes["y"], composites.sizes["x"]

    def read(y: Span, x: Span) -> Floats:
        shape = (*composites.shape[:2], y[1] - y[0], x[1] - x[0])
        pixels = np.full(shape, np.nan, np.float32)
        top, bottom = max(y[0], 0), min(y[1], rows)
        left, right = max(x[0], 0), min(x[1], cols)
        if top < bottom and left < right:
            inside = composites[..., top:bottom, left:right].to_numpy()
            pixels[..., top - y[0] : bottom - y[0], left - x[0] : right - x[0]] = inside
        return pixels

    return read


@dataclass(frozen=True)
class Embedder:
    """Embeddings of the cells of a lattice.

    Attributes
    ----------
    read : callable
        Gives pixels ``(period, band, y, x)``, see `Read`.
    bands : tuple of str
        Their bands.
    lattice : Lattice
    bundle : ModelBundle
    combine : {"mean", "concat"}
        Mean of the features of the periods that have data, or those of all periods one after another, where all have.
    min_valid : float
        A cell has an embedding in a period if this part of its window is valid in every band, and at least one pixel
        of the cell itself.
    threads : int
        Of torch, while the model runs.
    """

    read: Read
    bands: tuple[str, ...]
    lattice: Lattice
    bundle: ModelBundle
    combine: Combine = "mean"
    min_valid: float = 0.75
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_valid <= 1:
            raise InputError(f"min_valid is a part from 0 to 1, not {self.min_valid}")
        if self.combine not in ("mean", "concat"):
            raise InputError(f"periods are combined by {self.combine!r}", what_to_do="use 'mean' or 'concat'")
        if self.lattice.window > self.bundle.size:
            raise InputError(
                f"windows of {self.lattice.window} pixels are larger than the {self.bundle.size} the model was "
                "trained on",
                what_to_do=f"take a window of at most {self.bundle.size}",
                code="window",
            )

    @classmethod
    def of(
        cls, composites: xr.DataArray, bands: Sequence[str], lattice: Lattice, bundle: ModelBundle, **more: Any
    ) -> Self:
        """Embed composites ``(period, band, y, x)``, in memory or in Zarr; NaN is taken beyond their edges.

        Parameters
        ----------
        composites : xarray.DataArray
        bands : sequence of str
            Names of the bands, in order.
        lattice, bundle
            As of the class.
        **more
            Its further attributes.
        """
        return cls(_reader(composites), tuple(bands), lattice, bundle, **more)

    @freed_memory_kept()
    def block(
        self, rows: Span, cols: Span, derive: Callable[[Floats], Mapping[str, npt.NDArray[Any]]] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Embed the cells of some rows and columns.

        Parameters
        ----------
        rows, cols : tuple of int
            Of the lattice.
        derive : callable, optional
            Makes what is kept of a batch from its features ``(cell, feature)``, NaN where there is none: arrays with
            the cells first. It sees the same batches whatever `rows` and `cols` are. The features themselves, as
            ``features``, when not given.

        Returns
        -------
        dict
            What `derive` makes, ``(..., y, x)``; ``valid_fraction (y, x)``, part of the window's pixels that is valid,
            mean of the periods; ``n_periods (y, x)`` uint8, periods with an embedding.
        """
        shape = rows[1] - rows[0], cols[1] - cols[0]
        made: dict[str, npt.NDArray[Any]] = {}
        for span in self.lattice.pieces(rows, cols):
            piece = _Piece.cut(self, *span)
            asked = tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(span, (rows, cols), strict=True))
            for batch in self.lattice.batches(*asked):
                with fixed_arithmetic(self.threads):
                    features, fraction, periods = self._batch(piece, *batch)
                kept = {"features": features} if derive is None else derive(features)
                for name, values in {**kept, "valid_fraction": fraction, "n_periods": periods}.items():
                    if name not in made:
                        made[name] = np.empty((*values.shape[1:], *shape), values.dtype)
                    _paste(made[name], values, batch, rows, cols)
        return made

    def at(self, cells: npt.NDArray[np.int64]) -> Floats:
        """Embed single cells.

        Parameters
        ----------
        cells : numpy.ndarray, (n, 2)
            Rows and columns of the lattice; at least one cell.

        Returns
        -------
        numpy.ndarray, (n, feature)
            NaN where there is none.
        """
        count = self.lattice.side**2
        features = []
        for start in range(0, len(cells), count):
            group = cells[start : start + count]
            windows = [
                self.read(self.lattice.pixels((row, row + 1)), self.lattice.pixels((col, col + 1)))
                for row, col in group.tolist()
            ]
            pixels = np.stack(windows)
            valid = np.isfinite(pixels).all(axis=2)
            seen = valid.sum(axis=(2, 3)).T
            inner = slice(self.lattice.halo, self.lattice.halo + self.lattice.stride)
            usable = self._usable(seen, valid[:, :, inner, inner].any(axis=(2, 3)).T)
            inputs = np.zeros((pixels.shape[1], count, len(self.bundle.bands), *pixels.shape[-2:]), np.float32)
            inputs[:, : len(group)] = np.moveaxis(_model_inputs(pixels, self.bands, self.bundle.bands), 1, 0)
            padded = np.zeros((len(usable), count), bool)
            padded[:, : len(group)] = usable
            with fixed_arithmetic(self.threads):
                by_period = [self._encode(inputs[p]) if padded[p].any() else None for p in range(len(padded))]
            features.append(self._combined(by_period, padded)[: len(group)])
        return np.concatenate(features)

    def sample(self, cells: int, seed: int) -> Floats:
        """Embed cells drawn at random over the whole lattice, without replacement.

        Parameters
        ----------
        cells : int
            How many; fewer where that many have no embedding among four times as many that are drawn.
        seed : int
            The same cells are drawn for the same seed, whatever else was done.

        Returns
        -------
        numpy.ndarray, (cell, feature)
            Finite.

        Raises
        ------
        InputError
            If no cell has an embedding.
        """
        rows, cols = self.lattice.shape
        total = rows * cols
        drawn = np.random.default_rng(seed).choice(total, min(total, DRAWS * cells), replace=False)
        found: list[Floats] = []
        for start in range(0, len(drawn), cells):
            # in the order of the grid, which is the order in which they are stored
            part = np.sort(drawn[start : start + cells])
            features = self.at(np.stack(np.divmod(part, cols), axis=1))
            found.append(features[np.isfinite(features).all(axis=1)])
            if sum(map(len, found)) >= cells:
                break
        sample = np.concatenate(found)[:cells]
        if not len(sample):
            raise InputError(
                f"none of {len(drawn)} windows drawn over the region has enough valid pixels",
                what_to_do="lower min_valid, take other periods, or stack more imagery",
                code="sample",
            )
        return sample

    @cached_property
    def length(self) -> int:
        """Number of features of a window."""
        size = self.bundle.size
        return int(self._encode(np.zeros((1, len(self.bundle.bands), size, size), np.float32)).shape[1])

    def _usable(self, seen: npt.NDArray[Any], own: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        least = max(1, math.ceil(self.min_valid * self.lattice.window**2 - 1e-9))
        usable: npt.NDArray[np.bool_] = (seen >= least) & own
        return usable

    def _batch(self, piece: _Piece, rows: Span, cols: Span) -> tuple[Floats, Floats, npt.NDArray[np.uint8]]:
        """Features ``(cell, feature)``, valid part and periods of the cells of one batch."""
        window, stride, side = self.lattice.window, self.lattice.stride, self.lattice.side
        y, x = (rows[0] - piece.rows[0]) * stride, (cols[0] - piece.cols[0]) * stride
        seen = piece.counts(y, x, side, stride, window)
        own = piece.counts(y + self.lattice.halo, x + self.lattice.halo, side, stride, stride) > 0
        usable = self._usable(seen, own)
        reach = (side - 1) * stride + window
        by_period: list[Floats | None] = []
        for period in range(len(usable)):
            if not usable[period].any():
                by_period.append(None)
                continue
            pixels = piece.inputs[period, :, y : y + reach, x : x + reach]
            windows = np.lib.stride_tricks.sliding_window_view(pixels, (window, window), axis=(1, 2))
            windows = np.moveaxis(windows[:, ::stride, ::stride], 0, 2)
            by_period.append(self._encode(windows.reshape(side * side, -1, window, window)))
        fraction = (seen / window**2).mean(axis=0).astype(np.float32)
        return self._combined(by_period, usable), fraction, usable.sum(axis=0).astype(np.uint8)

    def _encode(self, images: Floats) -> Floats:
        """Features of a batch of images ``(N, band, y, x)``; small ones are enlarged to the model's size."""
        batch = torch.from_numpy(np.ascontiguousarray(images))
        size = self.bundle.size
        if batch.shape[-1] < size:
            batch = torch.nn.functional.interpolate(batch, size=(size, size), mode="bicubic", align_corners=False)
        features: Floats = self.bundle(batch).float().cpu().numpy()
        if features.ndim != 2:
            raise InputError(
                f"the model gives {features.ndim - 2} spatial dimensions, not an embedding of each window",
                where=f"model {self.bundle.name or self.bundle.architecture}",
                what_to_do="take a bundle whose task is embedding",
            )
        return features

    def _combined(self, by_period: Sequence[Floats | None], usable: npt.NDArray[np.bool_]) -> Floats:
        """Join the features of the periods ``(cell, feature)``; None for a period of which no cell has any."""
        cells = usable.shape[1]
        filled = [np.zeros((cells, self.length), np.float32) if one is None else one for one in by_period]
        if not all(np.isfinite(one[there]).all() for one, there in zip(filled, usable, strict=True)):
            raise OutputError(
                "the model gives features that are not finite",
                where=f"model {self.bundle.name or self.bundle.architecture}",
                what_to_do="look at its training: it may have diverged",
                code="model",
            )
        if self.combine == "concat":
            joined = np.concatenate(filled, axis=1)
            joined[~usable.all(axis=0)] = np.nan
            return joined
        total = np.zeros_like(filled[0])
        for features, there in zip(filled, usable, strict=True):
            total += np.where(there[:, np.newaxis], features, np.float32(0))
        count = usable.sum(axis=0).astype(np.float32)
        count[count == 0] = np.nan
        mean: Floats = total / count[:, np.newaxis]
        return mean


@dataclass(frozen=True)
class _Piece:
    """Pixels of some rows and columns of cells with their halo, as the model takes them.

    Attributes
    ----------
    rows, cols : tuple of int
        Of the lattice; whole batches.
    inputs : numpy.ndarray, (period, band, y, x)
    sums : numpy.ndarray, (period, y + 1, x + 1)
        Valid pixels above and to the left.
    """

    rows: Span
    cols: Span
    inputs: Floats
    sums: npt.NDArray[np.int32]

    @classmethod
    def cut(cls, embedder: Embedder, rows: Span, cols: Span) -> _Piece:
        pixels = embedder.read(embedder.lattice.pixels(rows), embedder.lattice.pixels(cols))
        valid = np.isfinite(pixels).all(axis=1)
        sums = np.zeros((valid.shape[0], valid.shape[1] + 1, valid.shape[2] + 1), np.int32)
        np.cumsum(valid, axis=1, out=sums[:, 1:, 1:])
        np.cumsum(sums[:, 1:, 1:], axis=2, out=sums[:, 1:, 1:])
        return cls(rows, cols, _model_inputs(pixels, embedder.bands, embedder.bundle.bands), sums)

    def counts(self, y: int, x: int, side: int, stride: int, size: int) -> npt.NDArray[np.int32]:
        """Valid pixels ``(period, cell)`` in squares of `size`, `side` x `side` of them from (y, x) on."""
        top, left = (y + stride * np.arange(side))[:, np.newaxis], x + stride * np.arange(side)
        sums = self.sums
        found = (
            sums[:, top + size, left + size]
            - sums[:, top, left + size]
            - sums[:, top + size, left]
            + sums[:, top, left]
        )
        return found.reshape(len(found), side * side)


def _paste(
    target: npt.NDArray[Any], values: npt.NDArray[Any], batch: tuple[Span, Span], rows: Span, cols: Span
) -> None:
    """Put those cells of a batch, ``(cell, ...)``, that were asked for where they belong in ``(..., y, x)``."""
    (top, bottom), (left, right) = batch
    square = np.moveaxis(values.reshape(bottom - top, right - left, *values.shape[1:]), (0, 1), (-2, -1))
    first, last = max(top, rows[0]), min(bottom, rows[1])
    west, east = max(left, cols[0]), min(right, cols[1])
    inside = square[..., first - top : last - top, west - left : east - left]
    target[..., first - rows[0] : last - rows[0], west - cols[0] : east - cols[0]] = inside
