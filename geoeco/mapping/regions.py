"""Regions of a class map: connected pixels of one class, found block by block and joined across the blocks.

A map larger than memory is worked through twice. First every block is labelled on its own (`label_block`), and what
is kept of it is a table of its parts: their pixels, scores, neighbours, and the labels along its four sides.
`join_parts` then finds which parts are one region, and lets regions below the minimum mapping unit go up in their
neighbours: that needs the tables alone. Which region each part belongs to is all that the second pass (the outlines,
`geoeco.mapping.outlines`) must be told. Everything that is added up is a whole number, so the regions, their areas
and scores do not depend on how the map is cut. Not for objects that a detector found (`geoeco.mapping.objects`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError

__all__ = ["SCORE_STEPS", "Connectivity", "Parts", "Regions", "Small", "join_parts", "label_block"]

Connectivity = Literal[4, 8]
#: What becomes of regions below the minimum mapping unit.
Small = Literal["merge", "drop"]
Ints = npt.NDArray[np.int64]

#: Scores are added up in steps of 1 / SCORE_STEPS: whole numbers have the same sum in any order. A float32 in 0.5..1
#: is a whole number of these steps.
SCORE_STEPS = 2**24


@dataclass(frozen=True)
class Parts:
    """The parts of regions that lie in one block: what is kept of the block.

    Parts are numbered from 1 in the block; arrays by part begin with part 1.

    Attributes
    ----------
    y, x : numpy.ndarray, (2,)
        First and last (exclusive) row and column of the block.
    code : numpy.ndarray, (part,)
        Class of each part.
    pixels : numpy.ndarray, (part,)
    first : numpy.ndarray, (part,)
        Place of the first pixel, counted along the rows of the whole map.
    score : numpy.ndarray, (part,)
        Sum of the scores, in steps of 1 / `SCORE_STEPS`.
    scored : numpy.ndarray, (part,)
        Pixels with a score.
    pairs : numpy.ndarray, (pair, 2)
        Parts that touch in the block, each pair once.
    borders : numpy.ndarray, (pair,)
        Pixel sides along which they touch; 0 for those that touch in a corner alone.
    top, bottom, left, right : numpy.ndarray
        Part of each pixel along the sides of the block, 0 where there is none.
    """

    y: Ints
    x: Ints
    code: Ints
    pixels: Ints
    first: Ints
    score: Ints
    scored: Ints
    pairs: Ints
    borders: Ints
    top: Ints
    bottom: Ints
    left: Ints
    right: Ints

    def arrays(self) -> dict[str, Ints]:
        """All arrays by name; `from_arrays` takes them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The parts as they were."""
        return cls(**{one.name: np.asarray(arrays[one.name], np.int64) for one in fields(cls)})


@dataclass(frozen=True)
class Regions:
    """Regions of the whole map, in the order of their first pixels along the rows of the map.

    Attributes
    ----------
    lookup : tuple of numpy.ndarray
        For each block: the region (from 1; 0 for none) of each part, with a 0 for "no part" before them.
    code : numpy.ndarray, (region,)
    pixels : numpy.ndarray, (region,)
        Pixels, those of smaller regions that went up in it included.
    own : numpy.ndarray, (region,)
        Those of its own class.
    score : numpy.ndarray, (region,)
        float64, mean over the own pixels that have a score; NaN where none has.
    dropped, merged : int
        Regions below the minimum mapping unit that were left out and that went up in others.
    """

    lookup: tuple[Ints, ...]
    code: Ints
    pixels: Ints
    own: Ints
    score: npt.NDArray[np.float64]
    dropped: int
    merged: int

    def __len__(self) -> int:
        return len(self.code)


# --- one block -------------------------------------------------------------------------------------------------------


def label_block(
    codes: npt.NDArray[np.integer[Any]],
    nodata: int,
    score: npt.NDArray[np.floating[Any]] | None,
    *,
    origin: tuple[int, int] = (0, 0),
    width: int,
    nothing: Sequence[int] = (),
) -> tuple[npt.NDArray[np.int32], Parts]:
    """Label the 4-connected pixels of one class in a block.

    Parameters
    ----------
    codes : numpy.ndarray, (y, x)
    nodata : int
        Code of pixels without a class.
    score : numpy.ndarray, (y, x), optional
        0..1, for example the probability of the class; NaN where there is none.
    origin : tuple of int
        Row and column of the block's first pixel in the whole map.
    width : int
        Columns of the whole map.
    nothing : sequence of int
        Further codes that are treated as nodata.

    Returns
    -------
    labels : numpy.ndarray, (y, x)
        Part of each pixel, 0 where there is no class.
    parts : Parts

    Raises
    ------
    InputError
        If a score is not within 0..1.
    """
    from scipy import ndimage

    labels = np.zeros(codes.shape, np.int32)
    count = 0
    held = []
    for code in np.unique(codes).tolist():
        if code == nodata or code in nothing:
            continue
        found, number = ndimage.label(codes == code)
        np.add(labels, found + count, out=labels, where=found > 0, casting="unsafe")
        held.append(np.full(number, code, np.int64))
        count += number
    flat = labels.ravel()
    rows, columns = codes.shape
    places = ((np.arange(rows)[:, np.newaxis] + origin[0]) * width + np.arange(columns) + origin[1]).ravel()
    first = np.zeros(count + 1, np.int64)
    # of equal indices the last one stays
    first[flat[::-1]] = places[::-1]
    total, scored = _scores(flat, score, count)
    pairs, borders = _pairs(labels, count)
    sides = {"top": labels[0], "bottom": labels[-1], "left": labels[:, 0], "right": labels[:, -1]}
    return labels, Parts(
        y=np.array([origin[0], origin[0] + rows]),
        x=np.array([origin[1], origin[1] + columns]),
        code=np.concatenate(held) if held else np.zeros(0, np.int64),
        pixels=np.bincount(flat, minlength=count + 1)[1:],
        first=first[1:],
        score=total,
        scored=scored,
        pairs=pairs,
        borders=borders,
        **{name: side.astype(np.int64) for name, side in sides.items()},
    )


def _scores(flat: npt.NDArray[np.int32], score: npt.NDArray[np.floating[Any]] | None, count: int) -> tuple[Ints, Ints]:
    if score is None:
        return np.zeros(count, np.int64), np.zeros(count, np.int64)
    values = score.ravel().astype(np.float64)
    known = np.isfinite(values) & (flat > 0)
    if known.any() and not (values[known].min() >= 0 and values[known].max() <= 1):
        raise InputError(
            f"scores of {values[known].min():g} to {values[known].max():g}",
            what_to_do="score polygons by a variable between 0 and 1, such as confidence",
        )
    steps = np.rint(values[known] * SCORE_STEPS)
    # whole numbers below 2**53 add up exactly as floats too
    total = np.bincount(flat[known], weights=steps, minlength=count + 1)[1:]
    return total.astype(np.int64), np.bincount(flat[known], minlength=count + 1)[1:]


def _neighbours(one: npt.NDArray[Any], other: npt.NDArray[Any], count: int) -> Ints:
    """Keys ``smaller * (count + 1) + larger`` of parts that lie side by side."""
    differ = (one != other) & (one > 0) & (other > 0)
    low, high = np.minimum(one[differ], other[differ]), np.maximum(one[differ], other[differ])
    keys: Ints = low.astype(np.int64) * (count + 1) + high
    return keys


def _pairs(labels: npt.NDArray[np.int32], count: int) -> tuple[Ints, Ints]:
    beside = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    across = [(labels[:-1, :-1], labels[1:, 1:]), (labels[:-1, 1:], labels[1:, :-1])]
    sides = np.concatenate([_neighbours(*two, count) for two in beside])
    corners = np.unique(np.concatenate([_neighbours(*two, count) for two in across]))
    keys, borders = np.unique(sides, return_counts=True)
    corners = np.setdiff1d(corners, keys, assume_unique=True)
    every = np.concatenate([keys, corners])
    pairs = np.stack(np.divmod(every, count + 1), axis=1)
    return pairs, np.concatenate([borders, np.zeros(len(corners), np.int64)])


# --- the whole map ---------------------------------------------------------------------------------------------------


def join_parts(
    blocks: Sequence[Parts], *, connectivity: Connectivity = 4, min_pixels: float = 0, small: Small = "merge"
) -> Regions:
    """Join the parts of all blocks to regions.

    A region below the minimum mapping unit goes up in the neighbour with which it shares the longest border (of equal
    ones the larger, then the one that comes first along the rows), the smallest region first; regions of one class
    that thereby touch become one. A small region without neighbours is left out.

    Parameters
    ----------
    blocks : sequence of Parts
        Blocks of one map that do not overlap, in any order; some may be missing.
    connectivity : {4, 8}
        Whether pixels of a class that touch in a corner alone belong together.
    min_pixels : float
        Minimum mapping unit, pixels.
    small : {"merge", "drop"}
        Let smaller regions go up in their neighbours, or leave them out.

    Returns
    -------
    Regions
    """
    if connectivity not in (4, 8) or small not in ("merge", "drop"):
        raise InputError(f"connectivity={connectivity!r}, small={small!r}", what_to_do="use 4 or 8, 'merge' or 'drop'")
    offsets = np.concatenate([[0], np.cumsum([len(block.code) for block in blocks])]).astype(np.int64)
    count = int(offsets[-1])

    def of(name: str) -> Ints:
        return np.concatenate([getattr(block, name) for block in blocks]) if blocks else np.zeros(0, np.int64)

    code = of("code")
    pairs, borders = _all_pairs(blocks, offsets)
    if connectivity == 4:
        pairs, borders = pairs[borders > 0], borders[borders > 0]
    same = code[pairs[:, 0]] == code[pairs[:, 1]]
    region = _components(pairs[same], count)
    total = int(region.max(initial=-1)) + 1
    sums = {name: _summed(of(name), region, total) for name in ("pixels", "score", "scored")}
    first = np.full(total, np.iinfo(np.int64).max)
    np.minimum.at(first, region, of("first"))
    codes = np.zeros(total, np.int64)
    codes[region] = code
    target = np.arange(total)
    merged = 0
    if min_pixels > 0 and small == "merge":
        edges, lengths = _region_pairs(region[pairs[~same]], borders[~same], total)
        target, merged = _merge_small(sums["pixels"], codes, first, edges, lengths, min_pixels)
    pixels = _summed(sums["pixels"], target, total)
    begins = np.full(total, np.iinfo(np.int64).max)
    np.minimum.at(begins, target, first)
    # a region is counted by those of its parts that have its class
    own = codes == codes[target]
    score, scored, own_pixels = (
        _summed(np.where(own, sums[name], 0), target, total) for name in ("score", "scored", "pixels")
    )
    kept = np.flatnonzero((target == np.arange(total)) & (pixels >= min_pixels))
    kept = kept[np.argsort(begins[kept], kind="stable")]
    number = np.zeros(total, np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    of_part = number[target[region]]
    with np.errstate(invalid="ignore"):
        mean = score[kept] / SCORE_STEPS / scored[kept]
    return Regions(
        lookup=tuple(
            np.concatenate([[0], of_part[start:stop]]).astype(np.int64) for start, stop in itertools.pairwise(offsets)
        ),
        code=codes[kept],
        pixels=pixels[kept],
        own=own_pixels[kept],
        score=mean,
        dropped=int((target == np.arange(total)).sum()) - len(kept),
        merged=merged,
    )


def _all_pairs(blocks: Sequence[Parts], offsets: Ints) -> tuple[Ints, Ints]:
    """Parts that touch, numbered over all blocks, within blocks and across their sides."""
    pairs = [np.zeros((0, 2), np.int64)]
    borders = [np.zeros(0, np.int64)]
    by_corner = {(int(block.y[0]), int(block.x[0])): at for at, block in enumerate(blocks)}
    by_far_corner = {(int(block.y[0]), int(block.x[1])): at for at, block in enumerate(blocks)}
    for at, block in enumerate(blocks):
        pairs.append(block.pairs - 1 + offsets[at])
        borders.append(block.borders)
        (top, bottom), (left, right) = block.y.tolist(), block.x.tolist()
        for corner, mine, name in (((top, right), block.right, "left"), ((bottom, left), block.bottom, "top")):
            if (beside := by_corner.get(corner)) is not None:
                _across(pairs, borders, mine, offsets[at], getattr(blocks[beside], name), offsets[beside])
        if (after := by_corner.get((bottom, right))) is not None:
            _touching(pairs, borders, block.bottom[-1:], offsets[at], blocks[after].top[:1], offsets[after], 0)
        if (before := by_far_corner.get((bottom, left))) is not None:
            _touching(pairs, borders, block.bottom[:1], offsets[at], blocks[before].top[-1:], offsets[before], 0)
    return np.concatenate(pairs), np.concatenate(borders)


def _across(pairs: list[Ints], borders: list[Ints], mine: Ints, own: int, theirs: Ints, other: int) -> None:
    if len(mine) != len(theirs):
        raise InputError("blocks of one row or column have sides of different length", what_to_do="cut the map evenly")
    _touching(pairs, borders, mine, own, theirs, other, 1)
    _touching(pairs, borders, mine[:-1], own, theirs[1:], other, 0)
    _touching(pairs, borders, mine[1:], own, theirs[:-1], other, 0)


def _touching(
    pairs: list[Ints], borders: list[Ints], mine: Ints, own: int, theirs: Ints, other: int, length: int
) -> None:
    both = (mine > 0) & (theirs > 0)
    pairs.append(np.stack([mine[both] - 1 + own, theirs[both] - 1 + other], axis=1))
    borders.append(np.full(int(both.sum()), length, np.int64))


def _components(pairs: Ints, count: int) -> Ints:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, np.int64)


def _summed(values: Ints, into: Ints, count: int) -> Ints:
    found = np.zeros(count, np.int64)
    np.add.at(found, into, values)
    return found


def _region_pairs(pairs: Ints, borders: Ints, count: int) -> tuple[Ints, Ints]:
    """Regions that touch, each pair once, and the length of their common border."""
    keys = pairs.min(axis=1) * count + pairs.max(axis=1) if len(pairs) else np.zeros(0, np.int64)
    every, place = np.unique(keys, return_inverse=True)
    return np.stack(np.divmod(every, max(count, 1)), axis=1), _summed(borders, place, len(every))


def _merge_small(pixels: Ints, codes: Ints, first: Ints, edges: Ints, lengths: Ints, least: float) -> tuple[Ints, int]:
    """Region that each region goes up in (itself, where it stays), and how many went up in another one."""
    size, begins = dict(enumerate(pixels.tolist())), dict(enumerate(first.tolist()))
    beside: dict[int, dict[int, int]] = {}
    involved = (pixels[edges] < least).any(axis=1)
    for (one, other), length in zip(edges[involved].tolist(), lengths[involved].tolist(), strict=True):
        beside.setdefault(one, {})[other] = length
        beside.setdefault(other, {})[one] = length
    into: dict[int, int] = {}
    merged = 0

    def absorb(gone: int, kept: int) -> None:
        into[gone] = kept
        size[kept] += size.pop(gone)
        begins[kept] = min(begins[kept], begins.pop(gone))
        mine = beside.setdefault(kept, {})
        for neighbour, length in beside.pop(gone).items():
            beside[neighbour].pop(gone)
            if neighbour != kept:
                mine[neighbour] = beside[neighbour][kept] = mine.get(neighbour, 0) + length

    waiting = [(size[at], begins[at], at) for at in np.flatnonzero(pixels < least).tolist()]
    heapq.heapify(waiting)
    while waiting:
        was, began, at = heapq.heappop(waiting)
        if size.get(at) != was or begins[at] != began:
            continue
        # a corner is no border: nothing goes up in what it touches in a corner alone
        sides = [(length, size[other], -begins[other], other) for other, length in beside.get(at, {}).items() if length]
        if not sides:
            continue
        kept = max(sides)[-1]
        touched = [other for other in beside[at] if other != kept and codes[other] == codes[kept]]
        absorb(at, kept)
        merged += 1
        for other in touched:
            # the larger one stands for both, and of equal ones that which comes first
            stays, goes = sorted((kept, other), key=lambda region: (-size[region], begins[region]))
            absorb(goes, stays)
            kept = stays
        if size[kept] < least:
            heapq.heappush(waiting, (size[kept], begins[kept], kept))
    target = np.arange(len(pixels))
    for gone in into:
        stays = gone
        while stays in into:
            stays = into[stays]
        target[gone] = stays
    return target, merged
