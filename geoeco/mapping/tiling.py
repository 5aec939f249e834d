"""Where the windows of a map lie, which of their pixels count, and how much: whole pixels only.

Two ways. *Core*: a window is a core with a halo around it, cores do not overlap, and only they are kept; where the halo
covers the receptive field of a convolutional network, the map is that of the whole image. *Blended*: windows overlap,
and each pixel is the mean of the windows that cover it, with weights that fade towards a window's edge and sum to 1.

Windows begin on multiples of the network's stride, counted from the corner of the mosaic, and have sides that are
multiples of it: a network with strides sees another image when it is moved by less. Windows that would lead beyond the
mosaic are moved in, so that the border of the mosaic is the border of the window, as it is of a whole image. Of a
mosaic smaller than a window, cores are cut from a window as small as the mosaic; windows that are blended are filled
up. Nothing here depends on blocks, and nothing here knows what the windows hold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError
from geoeco.mapping.lattice import Span

__all__ = ["CORE", "Axis", "Blend", "Tiling", "Way", "Windowed", "choose_tiling"]

Blend = Literal["auto", "core", "hann"]
Way = Literal["core", "hann"]

#: Pixels along a side of a core when no window is asked for: a divisor of the usual blocks, so that no window of a
#: block is wanted by its neighbour.
CORE = 512
#: Least weight of a pixel, before weights are divided by their sum.
FLOOR = 1e-3


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a mosaic.

    Attributes
    ----------
    size : int
        Pixels of the mosaic.
    window : int
        Pixels of a window; a multiple of `stride`.
    overlap : int
        Pixels that neighbouring windows share: the halo twice, or the width over which they are blended.
    stride : int
        Of the network.
    way : {"core", "hann"}
    """

    size: int
    window: int
    overlap: int
    stride: int
    way: Way

    @property
    def step(self) -> int:
        """Pixels from one window to the next, away from the ends."""
        return self.window - self.overlap

    @property
    def halo(self) -> int:
        """Pixels around a core."""
        return self.overlap // 2 if self.way == "core" else 0

    @property
    def padded(self) -> int:
        """Pixels of the mosaic, made whole multiples of the stride."""
        return math.ceil(self.size / self.stride) * self.stride

    @cached_property
    def count(self) -> int:
        """Number of windows."""
        if self.window >= self.padded:
            return 1
        if self.way == "core":
            return math.ceil((self.padded - self.halo) / self.step)
        return math.ceil((self.padded - self.window) / self.step) + 1

    def origin(self, index: int) -> int:
        """First pixel of a window; never before the mosaic, and a multiple of the stride."""
        return max(0, min(index * self.step - self.halo, self.padded - self.window))

    def span(self, index: int) -> Span:
        """Pixels of the mosaic that a window counts for."""
        if self.way == "hann":
            first = self.origin(index)
            return first, min(first + self.window, self.size)
        return index * self.step, self.size if index == self.count - 1 else (index + 1) * self.step

    def touching(self, span: Span) -> Span:
        """First (inclusive) and last (exclusive) of the windows that count for any pixel of a span."""
        # spans begin and end in the order of the windows
        first = next(i for i in range(self.count) if self.span(i)[1] > span[0])
        last = next((i for i in range(first, self.count) if self.span(i)[0] >= span[1]), self.count)
        return first, last

    @cached_property
    def _taper(self) -> npt.NDArray[np.float64]:
        """Weight of each pixel of a window, before those of all windows are made to sum to 1: a Hann window's flanks.

        sin² over the overlap, 1 between; two such flanks sum to 1 where windows lie a step apart.
        """
        edge = np.minimum(np.arange(self.window), np.arange(self.window)[::-1]) + 0.5
        part = np.minimum(edge / max(self.overlap, 0.5), 1.0)
        found: npt.NDArray[np.float64] = np.maximum(np.sin(0.5 * np.pi * part) ** 2, FLOOR)
        return found

    @cached_property
    def _sums(self) -> npt.NDArray[np.float64]:
        sums = np.zeros(self.size)
        for index in range(self.count):
            first, last = self.span(index)
            sums[first:last] += self._taper[: last - first]
        return sums

    def weights(self, index: int) -> npt.NDArray[np.float32]:
        """Weight of each pixel of a window's span; those of all windows sum to 1 in every pixel of the mosaic."""
        first, last = self.span(index)
        if self.way == "core":
            return np.ones(last - first, np.float32)
        weights: npt.NDArray[np.float32] = (self._taper[: last - first] / self._sums[first:last]).astype(np.float32)
        return weights


@dataclass(frozen=True)
class Tiling:
    """Windows over a mosaic, and the batches that they are always taken in.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the mosaic.
    window, overlap : int
        Pixels along a side of a window, and those shared with its neighbour.
    stride : int
        Of the network.
    way : {"core", "hann"}
    batch : int
        Windows of a batch: a rectangle of neighbours, as square as their number allows. Batches lie at fixed places
        whatever part of the mosaic is asked for.

    Raises
    ------
    InputError
        If these do not fit each other.
    """

    shape: tuple[int, int]
    window: int
    overlap: int
    stride: int = 1
    way: Way = "core"
    batch: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.batch < 1 or min(self.shape) < 1:
            raise InputError(
                f"a stride of {self.stride}, batches of {self.batch} windows, a mosaic of {self.shape[0]} x "
                f"{self.shape[1]} pixels",
                what_to_do="give numbers of at least 1",
                code="window",
            )
        unit = self.stride * (2 if self.way == "core" else 1)
        if self.window % self.stride or self.window < self.stride:
            raise InputError(
                f"windows of {self.window} pixels are no whole number of the network's strides of {self.stride}",
                what_to_do=f"take a window of {max(1, round(self.window / self.stride)) * self.stride}",
                code="window",
            )
        if not 0 <= self.overlap < self.window or self.overlap % unit:
            raise InputError(
                f"windows of {self.window} pixels cannot share {self.overlap}",
                what_to_do=f"take a multiple of {unit} below the window",
                code="window",
            )
        if self.way == "hann" and 2 * self.overlap > self.window:
            raise InputError(
                f"windows of {self.window} pixels that are blended cannot share {self.overlap}",
                what_to_do=f"take at most half of the window, {self.window // 2 // unit * unit}",
                code="window",
            )

    @cached_property
    def y(self) -> Axis:
        """Windows from top to bottom."""
        return self._axis(self.shape[0])

    @cached_property
    def x(self) -> Axis:
        """Windows from left to right."""
        return self._axis(self.shape[1])

    def _axis(self, size: int) -> Axis:
        whole = math.ceil(size / self.stride) * self.stride
        if self.way == "core" and whole < self.window:
            return Axis(size, whole, 0, self.stride, "core")
        return Axis(size, self.window, self.overlap, self.stride, self.way)

    @cached_property
    def group(self) -> tuple[int, int]:
        """Rows and columns of windows of a batch."""
        rows = next(n for n in range(math.isqrt(self.batch), 0, -1) if self.batch % n == 0)
        return rows, self.batch // rows

    def rows_of_batches(self, y: Span) -> Iterator[Span]:
        """Rows of windows that are taken together, for some rows of pixels, from the top."""
        yield from _groups(self.y, y, self.group[0])

    def batches(self, x: Span) -> Iterator[Span]:
        """Columns of windows that are taken together, for some columns of pixels, from the left."""
        yield from _groups(self.x, x, self.group[1])

    def windows(self, y: Span, x: Span) -> int:
        """Number of windows that are run for a part of the mosaic."""
        rows = sum(last - first for first, last in self.rows_of_batches(y))
        return rows * sum(last - first for first, last in self.batches(x))


def _groups(axis: Axis, span: Span, side: int) -> Iterator[Span]:
    first, last = axis.touching(span)
    for start in range(first // side * side, last, side):
        yield start, min(start + side, axis.count)


class Windowed(Protocol):
    """What must be known of a network to cut windows for it: part of `geoeco.training.ModelBundle`."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def size(self) -> int:
        """Pixels along a side of the windows it was trained on."""

    @property
    def stride(self) -> int:
        """Sides and origins of windows are multiples of it."""

    @property
    def halo(self) -> int | None:
        """Pixels around an output pixel that can change it; None where that is the whole image, or unknown."""


def choose_tiling(
    shape: tuple[int, int],
    models: Sequence[Windowed],
    *,
    window: int | None = None,
    overlap: int | None = None,
    blend: Blend = "auto",
    batch: int = 1,
) -> Tiling:
    """Windows for a model, or for several that see the same ones.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the mosaic.
    models : sequence of Windowed
    window : int, optional
        Pixels along a side. When not given: cores of `CORE` pixels with their halo; the size that the models were
        trained on where windows are blended.
    overlap : int, optional
        Pixels that neighbours share. When not given: the halo that the models need, twice; a quarter of the window
        where windows are blended.
    blend : {"auto", "core", "hann"}
        Keep the cores, which is exact for convolutional networks; or blend. ``auto`` keeps cores where it is known how
        far every model sees and that is at most a quarter of a core, so that at most 2.25 times the pixels of the
        mosaic pass the network.
    batch : int
        Windows of a batch.

    Raises
    ------
    InputError
        If windows do not fit the models, or an overlap is smaller than the receptive field asks for.

    Warns
    -----
    UserWarning
        If cores are kept of a model of which it is not known how far it sees.
    """
    stride = math.lcm(*(model.stride for model in models))
    radii = [model.halo for model in models]
    halo = None if None in radii else math.ceil(max(r for r in radii if r is not None) / stride) * stride
    if blend == "hann" or (blend == "auto" and not _affords_cores(halo, window, overlap)):
        side = math.ceil(max(model.size for model in models) / stride) * stride if window is None else window
        shared = side // 4 // stride * stride if overlap is None else overlap
        return Tiling(shape, side, shared, stride, "hann", batch)
    shared = _shared_by_cores(models, halo, overlap)
    side = math.ceil(CORE / stride) * stride + shared if window is None else window
    if side <= shared:
        raise InputError(
            f"windows of {side} pixels hold nothing but their halo of {shared // 2} on each side",
            what_to_do=f"take a window of more than {shared} pixels, or blend the windows (blend: hann)",
            code="window",
        )
    return Tiling(shape, side, shared, stride, "core", batch)


def _affords_cores(halo: int | None, window: int | None, overlap: int | None) -> bool:
    if halo is None:
        return False
    if overlap is not None:
        return overlap >= 2 * halo
    return 4 * halo <= (CORE if window is None else window - 2 * halo)


def _shared_by_cores(models: Sequence[Windowed], halo: int | None, overlap: int | None) -> int:
    names = ", ".join(model.name or "without a name" for model in models if halo is not None or model.halo is None)
    where = f"model {names}"
    if halo is None:
        if overlap is None:
            raise InputError(
                "how far this network sees is not known, so no halo can be derived",
                where=where,
                what_to_do="give overlap, twice the halo in pixels; or blend the windows (blend: hann)",
                code="window",
            )
        warnings.warn(
            f"{where}: how far this network sees is not known; with a halo of {overlap // 2} pixels there may be seams",
            stacklevel=4,
        )
        return overlap
    if overlap is not None and overlap < 2 * halo:
        raise InputError(
            f"an overlap of {overlap} pixels leaves a halo of {overlap // 2}, and the network needs {halo}",
            where=where,
            what_to_do=f"take an overlap of at least {2 * halo}, or none; or blend the windows (blend: hann)",
            code="window",
        )
    return 2 * halo if overlap is None else overlap
