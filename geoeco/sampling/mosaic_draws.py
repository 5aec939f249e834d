"""Random chips of an orthomosaic, drawn evenly over classes and blocks of ground.

A plain random draw gives the common class and the large field; here each class gets its turn in each block where it
lies, and each chip holds the pixel that it was drawn for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from geoeco.errors import InputError
from geoeco.sampling.mosaic_chips import chip_affine, chip_label
from geoeco.sampling.mosaic_ground import Ground
from geoeco.sampling.mosaic_layers import IGNORE
from geoeco.sampling.mosaic_sources import ChipSource

__all__ = ["draw_windows"]

Ints = npt.NDArray[np.int32]
#: Pixels along a side of the pieces that classes are counted in.
_PIECE = 512


def _pieces(source: ChipSource) -> list[tuple[int, int]]:
    rows, cols = source.mosaic.shape
    return [(top, left) for top in range(0, rows, _PIECE) for left in range(0, cols, _PIECE)]


def _strata(source: ChipSource, piece: tuple[int, int], ground: Ground) -> npt.NDArray[np.int64]:
    """Stratum (block x 256 + class) of each pixel of a piece, -1 where invalid or without a label."""
    side = min(_PIECE, max(source.mosaic.shape))
    _, valid = source.mosaic.read((piece[0], piece[0] + side), (piece[1], piece[1] + side))
    code = np.zeros(valid.shape, dtype=np.uint8)
    if source.labels is not None:
        code = chip_label(source, piece, side, 1, valid, None)
        valid = code != IGNORE
    t = chip_affine(source.mosaic, piece)
    middle = np.arange(side) + 0.5
    # the block of a pixel is that of its row and of its column
    down = ground.numbers(np.asarray(shapely.points(np.full(side, t.c + t.a / 2), t.f + middle * t.e)))
    along = ground.numbers(np.asarray(shapely.points(t.c + middle * t.a, np.full(side, t.f + t.e / 2))))
    column = (along - ground.first) % ground.shape[1]
    block = (down - (down - ground.first) % ground.shape[1])[:, None] + column[None, :]
    return np.where(valid, block.astype(np.int64) * 256 + code, -1)


def draw_windows(source: ChipSource, size: int, count: int, ground: Ground, *, seed: tuple[int, int]) -> Ints:
    """Windows of a fixed size at random, evenly over classes, and over the blocks where each class lies.

    Parameters
    ----------
    source : ChipSource
        Without labels, all valid pixels are one class.
    size : int
        Pixels of a chip along a side.
    count : int
        Chips wanted; fewer come back where several draws fall on the same window.
    ground : Ground
        Blocks. A chip's centre lies in the block of the pixel that it was drawn for.
    seed : tuple of int

    Returns
    -------
    numpy.ndarray of int32, shape (window, 2)
        Row and column of the upper left pixel, sorted.

    Raises
    ------
    InputError
        If the mosaic is smaller than a chip, or holds nothing to draw from.
    """
    shape = source.mosaic.shape
    if count < 1:
        raise InputError(f"count={count}: give the number of random chips of each mosaic")
    if min(shape) < size:
        raise InputError(
            f"a chip of {size} pixels is larger than the mosaic of {shape[0]} x {shape[1]} pixels",
            where=source.name,
            what_to_do="take smaller chips",
        )
    pieces = _pieces(source)
    totals: dict[int, int] = {}
    for piece in pieces:
        for stratum, number in zip(*np.unique(_strata(source, piece, ground), return_counts=True), strict=True):
            if stratum >= 0:
                totals[int(stratum)] = totals.get(int(stratum), 0) + int(number)
    if not totals:
        raise InputError("there is no valid pixel with a label to draw chips from", where=source.name)
    turns = _turns(sorted(totals), count)
    picks = {
        stratum: np.sort(np.random.default_rng([*seed, stratum]).integers(0, totals[stratum], turns.count(stratum)))
        for stratum in set(turns)
    }
    found = []
    passed = dict.fromkeys(totals, 0)
    for piece in pieces:
        strata = _strata(source, piece, ground)
        order = np.argsort(strata, axis=None, kind="stable")
        present, first, number = np.unique(strata.reshape(-1)[order], return_index=True, return_counts=True)
        for stratum, start, count_here in zip(present.tolist(), first, number, strict=True):
            if stratum not in picks:
                continue
            wanted = picks[stratum] - passed[stratum]
            here = order[start + wanted[(wanted >= 0) & (wanted < count_here)]]
            passed[stratum] += int(count_here)
            rows, columns = np.divmod(here, strata.shape[1])
            found += [(stratum, piece[0] + row, piece[1] + column) for row, column in zip(rows, columns, strict=True)]
    pixels = np.array(sorted(found), dtype=np.int64)
    jitter = np.random.default_rng([*seed, 2**31]).integers(-(size // 2), size - size // 2, (len(pixels), 2))
    offsets = _placed(source, pixels, jitter, size, ground)
    return np.unique(offsets, axis=0).astype(np.int32)


def _turns(strata: list[int], count: int) -> list[int]:
    """Whose turn each draw is: the classes in turn, and for each class its blocks in turn."""
    by_class: dict[int, list[int]] = {}
    for stratum in strata:
        by_class.setdefault(stratum % 256, []).append(stratum)
    classes = sorted(by_class)
    return [
        by_class[code][(k // len(classes)) % len(by_class[code])]
        for k in range(count)
        for code in [classes[k % len(classes)]]
    ]


def _placed(
    source: ChipSource, pixels: npt.NDArray[np.int64], jitter: npt.NDArray[np.int64], size: int, ground: Ground
) -> npt.NDArray[np.int64]:
    """Offsets of windows that hold their pixel, whose centre lies in the pixel's block, within the mosaic."""
    t = source.mosaic.geobox.transform
    block = ground.boxes((pixels[:, 0] // 256).astype(np.int32))
    left, bottom, right, top = shapely.bounds(block).T
    low = np.stack([(top - t.f) / t.e, (left - t.c) / t.a], axis=1)
    high = np.stack([(bottom - t.f) / t.e, (right - t.c) / t.a], axis=1)
    centre = np.clip(pixels[:, 1:] + 0.5 + jitter, low + 0.5, high - 0.5)
    limit = np.array(source.mosaic.shape) - size
    return np.asarray(np.clip(np.round(centre - size / 2).astype(np.int64), 0, limit))
