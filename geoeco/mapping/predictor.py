"""From windows to a map: class, probabilities and doubt of the pixels of a mosaic, block by block, in bounded memory.

Windows come from `geoeco.mapping.tiling`, their probabilities from `geoeco.mapping.networks`. A block is made a row of
batches at a time: probabilities are summed on a canvas that is as high as such a row, and the rows of pixels that no
later window touches are turned into what was asked for and leave it. Batches and the order of the sums are those of the
whole mosaic, so that a pixel's numbers do not depend on the block that it was asked for with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoeco.errors import InputError, OutputError
from geoeco.mapping.devices import fixed_arithmetic
from geoeco.mapping.lattice import Span
from geoeco.mapping.map_layers import NODATA, OUTPUTS
from geoeco.mapping.networks import Member
from geoeco.mapping.sources import Pixels
from geoeco.mapping.tiling import Tiling
from geoeco.training.allocator import freed_memory_kept

__all__ = ["Predictor"]

#: Rows of pixels that are turned into outputs at a time.
ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Predictor:
    """Maps of the pixels of a mosaic.

    Attributes
    ----------
    pixels : Pixels
        With the bands of the bundles, in their order, among its bands.
    members : sequence of Member
        One, or several of the same classes: an ensemble, whose probabilities are averaged.
    tiling : Tiling
        Over the grid of `pixels`.
    outputs : sequence of str
        Of `OUTPUTS`.
    threads : int
        Of torch.
    """

    pixels: Pixels
    members: tuple[Member, ...]
    tiling: Tiling
    outputs: tuple[str, ...] = ("class",)
    threads: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        if unknown or not self.outputs or len(set(self.outputs)) < len(self.outputs):
            raise InputError(
                f"outputs of a map are {', '.join(map(repr, self.outputs)) or 'none'}",
                what_to_do=f"name any of {', '.join(OUTPUTS)}, each once",
            )
        if "spread" in self.outputs and len(self.members) < 2:
            raise InputError("one model has no spread", what_to_do="give several bundles, or leave spread out")
        for member in self.members:
            needs = int(getattr(member.bundle.module, "stride", 1))
            if self.tiling.stride % needs:
                raise InputError(
                    f"the network has a stride of {needs}, the windows are cut for one of {self.tiling.stride}",
                    where=member.where,
                    what_to_do=f"make the bundle with stride={needs}",
                    code="bundle",
                )
        if self.judges:
            for member in self.members:
                _ = member.applicability

    @property
    def judges(self) -> bool:
        """Whether the area of applicability is asked for."""
        return bool({"di", "aoa"} & set(self.outputs))

    @property
    def codes(self) -> tuple[int, ...]:
        """Code of each class."""
        return tuple(self.members[0].bundle.codes)

    @cached_property
    def _indexes(self) -> tuple[tuple[int, ...], ...]:
        """Positions of each member's bands among those of the pixels."""
        place = {band: at for at, band in enumerate(self.pixels.bands)}
        return tuple(tuple(place[band] for band in member.bundle.bands) for member in self.members)

    @freed_memory_kept()
    def block(self, y: Span, x: Span) -> dict[str, npt.NDArray[Any]]:
        """Map some rows and columns of pixels.

        Parameters
        ----------
        y, x : tuple of int
            First (inclusive) and last (exclusive), within the mosaic.

        Returns
        -------
        dict
            By output: ``class (y, x)`` uint8 codes; ``probability (class, y, x)``, ``entropy``, ``confidence``,
            ``spread`` and ``di (y, x)`` float32, NaN where invalid; ``aoa (y, x)`` uint8, 1 inside; 255 where invalid;
            ``valid (y, x)`` uint8, 0 or 1. Beside them, always: ``windows``, how many were run.

        Raises
        ------
        OutputError
            If the network gives numbers that are not finite.
        """
        made = self.empty(y, x)
        windows = 0
        rows, cols = list(self.tiling.rows_of_batches(y)), list(self.tiling.batches(x))
        with fixed_arithmetic(self.threads), ThreadPoolExecutor(1, "geoeco-read") as reader:
            batches = self._ahead(reader, rows, cols)
            canvas: _Canvas | None = None
            for at, row in enumerate(rows):
                top = max(self.tiling.y.span(row[0])[0], y[0])
                bottom = min(self.tiling.y.span(row[1] - 1)[1], y[1])
                canvas = _Canvas.over(self, (top, bottom), x, canvas)
                for _ in cols:
                    batch = next(batches)
                    if canvas.wants(batch):
                        canvas.add(batch)
                        windows += len(batch.images)
                last = y[1] if at == len(rows) - 1 else min(self.tiling.y.span(rows[at + 1][0])[0], y[1])
                canvas.derive((top, last), made, y[0])
        made["windows"] = np.array(windows)
        return made

    def sample(self, count: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Images of windows drawn over the whole mosaic, at least half of each valid, one at a time.

        Parameters
        ----------
        count : int
            How many; fewer where the mosaic has not as many.
        seed : int
            The same windows for the same seed.

        Yields
        ------
        tuple
            By member, the window's image ``(1, band, y, x)`` with its bands and in its units.
        """
        total = self.tiling.y.count * self.tiling.x.count
        found = 0
        for drawn in np.random.default_rng(seed).permutation(total).tolist():
            row, col = divmod(drawn, self.tiling.x.count)
            batch = self._read((row, row + 1), (col, col + 1))
            if 2 * batch.valid.sum() < batch.valid.size:
                continue
            yield tuple(
                batch.values(indexes, self.pixels.scale, member.device)
                for member, indexes in zip(self.members, self._indexes, strict=True)
            )
            found += 1
            if found == count:
                return

    def empty(self, y: Span, x: Span) -> dict[str, npt.NDArray[Any]]:
        """Outputs of some rows and columns in which nothing is valid."""
        rows, cols = y[1] - y[0], x[1] - x[0]
        made: dict[str, npt.NDArray[Any]] = {}
        for name in self.outputs:
            if name in ("class", "aoa"):
                made[name] = np.full((rows, cols), NODATA, np.uint8)
            elif name == "valid":
                made[name] = np.zeros((rows, cols), np.uint8)
            else:
                lead = (len(self.codes),) if name == "probability" else ()
                made[name] = np.full((*lead, rows, cols), np.nan, np.float32)
        return made

    def _ahead(self, reader: ThreadPoolExecutor, rows: Sequence[Span], cols: Sequence[Span]) -> Iterator[_Batch]:
        """Read batches in order, one ahead of the one that is being worked on."""
        coming: list[Future[_Batch]] = []
        try:
            for row in rows:
                for col in cols:
                    coming.append(reader.submit(self._read, row, col))
                    if len(coming) > 1:
                        yield coming.pop(0).result()
            while coming:
                yield coming.pop(0).result()
        finally:
            for future in coming:
                future.cancel()

    def _read(self, rows: Span, cols: Span) -> _Batch:
        tiling = self.tiling
        tops = [tiling.y.origin(row) for row in range(*rows)]
        lefts = [tiling.x.origin(col) for col in range(*cols)]
        height, width = tiling.y.window, tiling.x.window
        y, x = (tops[0], tops[-1] + height), (lefts[0], lefts[-1] + width)
        stored, valid = self.pixels.read(y, x)
        corners = [(top - y[0], left - x[0]) for top in tops for left in lefts]
        images = np.stack([stored[:, top : top + height, left : left + width] for top, left in corners])
        return _Batch(rows, cols, (y[0], x[0]), images, valid)


@dataclass(frozen=True)
class _Batch:
    """Windows of some rows and columns of windows.

    Attributes
    ----------
    rows, cols : tuple of int
        Of windows.
    corner : tuple of int
        Row and column of the mosaic's pixel at which `valid` begins.
    images : numpy.ndarray, (window, band, y, x)
        As stored.
    valid : numpy.ndarray, (y, x)
        Of the rectangle that the windows cover.
    """

    rows: Span
    cols: Span
    corner: tuple[int, int]
    images: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]

    def values(self, indexes: Sequence[int], scale: float, device: torch.device) -> Tensor:
        """Images ``(window, band, y, x)`` of some bands, as float32 values."""
        stored = self.images
        if tuple(indexes) != tuple(range(stored.shape[1])):
            stored = stored[:, list(indexes)]
        if stored.dtype != np.uint8:
            stored = stored.astype(np.float32)
        return torch.from_numpy(stored).to(device).float() * scale


@dataclass(frozen=True)
class _Canvas:
    """Sums of what the windows of some rows of pixels give.

    Attributes
    ----------
    predictor : Predictor
    y, x : tuple of int
        Its pixels in the mosaic.
    probability : list of Tensor, (class, y, x)
        By member.
    di : list of Tensor, (y, x)
        By member; none where the area of applicability is not asked for.
    valid : numpy.ndarray, (y, x)
    """

    predictor: Predictor
    y: Span
    x: Span
    probability: list[Tensor]
    di: list[Tensor]
    valid: npt.NDArray[np.bool_]

    @classmethod
    def over(cls, predictor: Predictor, y: Span, x: Span, before: _Canvas | None) -> _Canvas:
        """An empty canvas, but for the rows that it shares with the one before."""
        shape = y[1] - y[0], x[1] - x[0]
        members = predictor.members
        made = cls(
            predictor,
            y,
            x,
            [torch.zeros((len(predictor.codes), *shape), device=member.device) for member in members],
            [torch.zeros(shape, device=member.device) for member in members] if predictor.judges else [],
            np.zeros(shape, bool),
        )
        if before is not None and before.y[1] > y[0]:
            kept, first = before.y[1] - y[0], y[0] - before.y[0]
            for new, old in zip((*made.probability, *made.di), (*before.probability, *before.di), strict=True):
                new[..., :kept, :] = old[..., first:, :]
            made.valid[:kept] = before.valid[first:]
        return made

    def wants(self, batch: _Batch) -> bool:
        """Whether any valid pixel of the canvas is a batch's; takes note of them."""
        tiling = self.predictor.tiling
        y = _within((tiling.y.span(batch.rows[0])[0], tiling.y.span(batch.rows[1] - 1)[1]), self.y)
        x = _within((tiling.x.span(batch.cols[0])[0], tiling.x.span(batch.cols[1] - 1)[1]), self.x)
        top, left = batch.corner
        valid = batch.valid[y[0] - top : y[1] - top, x[0] - left : x[1] - left]
        self.valid[y[0] - self.y[0] : y[1] - self.y[0], x[0] - self.x[0] : x[1] - self.x[0]] = valid
        return bool(valid.any())

    def add(self, batch: _Batch) -> None:
        """Run a batch through every member and add what its windows give."""
        predictor = self.predictor
        for at, (member, indexes) in enumerate(zip(predictor.members, predictor._indexes, strict=True)):
            images = batch.values(indexes, predictor.pixels.scale, member.device)
            if predictor.judges:
                found, features = member.with_features(images)
                self._paste(self.di[at], _dissimilarity(member, features, (images.shape[-2], images.shape[-1])), batch)
            else:
                found = member.probabilities(images)
            self._paste(self.probability[at], found, batch)

    def _paste(self, target: Tensor, values: Tensor, batch: _Batch) -> None:
        """Add values ``(window, ..., y, x)`` where their windows lie, by their weights."""
        tiling = self.predictor.tiling
        places = [(row, col) for row in range(*batch.rows) for col in range(*batch.cols)]
        for value, (row, col) in zip(values, places, strict=True):
            y, x = _within(tiling.y.span(row), self.y), _within(tiling.x.span(col), self.x)
            if y[0] >= y[1] or x[0] >= x[1]:
                continue
            top, left = tiling.y.origin(row), tiling.x.origin(col)
            part = value[..., y[0] - top : y[1] - top, x[0] - left : x[1] - left]
            place = target[..., y[0] - self.y[0] : y[1] - self.y[0], x[0] - self.x[0] : x[1] - self.x[0]]
            if tiling.way == "core":
                place.copy_(part)
                continue
            down = tiling.y.weights(row)[y[0] - tiling.y.span(row)[0] :][: y[1] - y[0]]
            across = tiling.x.weights(col)[x[0] - tiling.x.span(col)[0] :][: x[1] - x[0]]
            weights = torch.from_numpy(down).to(target.device)[:, None] * torch.from_numpy(across).to(target.device)
            place.addcmul_(part, weights)

    def derive(self, y: Span, made: dict[str, npt.NDArray[Any]], origin: int) -> None:
        """Turn finished rows into outputs, and put them into those of a block that begins at the row `origin`."""
        for first in range(y[0], y[1], ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, y[1])
            rows = slice(first - self.y[0], last - self.y[0])
            found = self._derived(rows)
            for name, values in found.items():
                made[name][..., first - origin : last - origin, :] = values

    def _derived(self, rows: slice) -> dict[str, npt.NDArray[Any]]:
        predictor, outputs = self.predictor, self.predictor.outputs
        valid = self.valid[rows]
        if "valid" in outputs and not valid.any():
            return {"valid": valid.astype(np.uint8)}
        if not valid.any():
            return {}
        device = self.probability[0].device
        known = torch.from_numpy(valid).to(device)
        members = [member[:, rows].to(device) for member in self.probability]
        mean = members[0] if len(members) == 1 else torch.stack(members).mean(dim=0)
        confidence, index = mean.max(dim=0)
        if not torch.isfinite(confidence[known]).all():
            raise OutputError(
                "the model gives numbers that are not finite",
                where=", ".join(member.where for member in predictor.members),
                what_to_do="look at its training: it may have diverged",
                code="model",
            )
        made: dict[str, npt.NDArray[Any]] = {}

        def keep(name: str, values: Tensor) -> None:
            if name in outputs:
                made[name] = torch.where(known, values, math.nan).cpu().numpy()

        if "class" in outputs:
            codes = torch.tensor(predictor.codes, dtype=torch.uint8, device=device)
            made["class"] = torch.where(known, codes[index], NODATA).cpu().numpy()
        keep("probability", mean)
        keep("confidence", confidence)
        if {"entropy", "spread"} & set(outputs):
            entropy = _entropy(mean)
            keep("entropy", entropy)
            if "spread" in outputs:
                within = torch.stack([_entropy(member) for member in members]).mean(dim=0)
                keep("spread", (entropy - within).clamp_min(0))
        if self.di:
            by_member = [di[rows].to(device) for di in self.di]
            keep("di", torch.stack(by_member).mean(dim=0))
            if "aoa" in outputs:
                inside = known.clone()
                for member, di in zip(predictor.members, by_member, strict=True):
                    inside &= di <= member.applicability.threshold_
                made["aoa"] = torch.where(known, inside.to(torch.uint8), NODATA).cpu().numpy()
        if "valid" in outputs:
            made["valid"] = valid.astype(np.uint8)
        return made


def _within(span: Span, limits: Span) -> Span:
    return max(span[0], limits[0]), min(span[1], limits[1])


def _entropy(probability: Tensor) -> Tensor:
    """Entropy ``(y, x)`` of class probabilities ``(class, y, x)``, as a part of its largest, ln of the classes."""
    entropy: Tensor = torch.special.entr(probability).sum(dim=0) / math.log(len(probability))
    return entropy


def _dissimilarity(member: Member, features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Dissimilarity index ``(N, y, x)`` of the pixels of windows: that of the cell of features that they lie in."""
    rows, cols = features.shape[-2:]
    if shape[0] % rows or shape[1] % cols:
        raise InputError(
            f"the network's features come in {rows} x {cols} cells, which do not divide a window of {shape[0]} x "
            f"{shape[1]} pixels",
            where=member.where,
            code="bundle",
        )
    di, _ = member.applicability.predict(features.permute(0, 2, 3, 1).cpu().numpy())
    cells = torch.from_numpy(np.ascontiguousarray(di, np.float32)).to(features.device)
    return cells.repeat_interleave(shape[0] // rows, 1).repeat_interleave(shape[1] // cols, 2)
