"""Distances from the nearest of many points, in few dimensions and in many.

A k-d tree finds neighbours fast along up to about ten coordinates; along the thirty or so of a deep network's features
it looks at most points all the same, one by one, and products of matrices are ten times faster. Either way the
distance itself is that of the differences of the coordinates, and the same in whatever batches it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

__all__ = ["TREE_UP_TO", "Nearest", "between_folds", "parts", "product"]

Floats = npt.NDArray[np.float64]

#: Coordinates up to which a tree is used.
TREE_UP_TO = 10
#: Queries of one product of matrices, and points.
_ROWS = 256
_POINTS = 4096
#: Neighbours among which one of another fold is sought before a tree without the fold is built.
_NEIGHBOURS = 16


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that make up a whole of `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def product(rows: Floats, matrix: Floats) -> Floats:
    """``rows @ matrix`` in products of one shape, so that a row's result does not depend on how many there are."""
    found = np.empty((len(rows), matrix.shape[1]))
    padded = np.zeros((_ROWS, rows.shape[1]))
    for part in parts(len(rows), _ROWS):
        count = part.stop - part.start
        padded[:count] = rows[part]
        found[part] = (padded @ matrix)[:count]
    return found


class Nearest:
    """Distance from the nearest of some points.

    Parameters
    ----------
    points : numpy.ndarray, (n, coordinate)
        At least one, about their mean.
    """

    def __init__(self, points: Floats) -> None:
        self._points = points
        few = points.shape[1] <= TREE_UP_TO
        self._tree = cKDTree(points) if few else None
        self._tiles = [] if few else _tiles(points)

    def __call__(self, queries: Floats, *, workers: int = 1) -> Floats:
        """Distance ``(m,)`` of each query ``(m, coordinate)``."""
        if self._tree is not None:
            return np.asarray(self._tree.query(queries, workers=workers)[0], np.float64)
        index = np.empty(len(queries), np.int64)
        for part in parts(len(queries), _ROWS):
            count = part.stop - part.start
            padded = np.zeros((_ROWS, queries.shape[1]))
            padded[:count] = queries[part]
            index[part] = _nearest(padded, self._tiles)[:count]
        return np.asarray(np.linalg.norm(queries - self._points[index], axis=1), np.float64)


def between_folds(points: Floats, folds: npt.NDArray[np.integer[Any]]) -> Floats:
    """Distance ``(n,)`` of each point ``(n, coordinate)`` from the nearest point of another fold ``(n,)``."""
    return _by_tree(points, folds) if points.shape[1] <= TREE_UP_TO else _by_products(points, folds)


def _by_tree(points: Floats, folds: npt.NDArray[np.integer[Any]]) -> Floats:
    """Most points have a neighbour of another fold among their nearest; a tree without their own fold for the rest."""
    count = len(points)
    tree = cKDTree(points)
    found = np.full(count, np.inf)
    for part in parts(count, 2**14):
        distance, index = tree.query(points[part], k=min(_NEIGHBOURS, count))
        other = folds[index] != folds[part, np.newaxis]
        found[part] = np.where(other, distance, np.inf).min(axis=1)
    for fold in np.unique(folds[np.isinf(found)]):
        own = np.flatnonzero(np.isinf(found) & (folds == fold))
        found[own], _ = cKDTree(points[folds != fold]).query(points[own])
    return found


def _by_products(points: Floats, folds: npt.NDArray[np.integer[Any]]) -> Floats:
    order = np.argsort(folds, kind="stable")
    ordered = points[order]
    tiles = _tiles(ordered)
    _, starts, counts = np.unique(folds[order], return_index=True, return_counts=True)
    nearest = np.empty(len(points), np.int64)
    for start, stop in zip(starts.tolist(), (starts + counts).tolist(), strict=True):
        for first in range(start, stop, _ROWS):
            part = slice(first, min(first + _ROWS, stop))
            nearest[part] = _nearest(ordered[part], tiles, (start, stop))
    found = np.empty(len(points))
    found[order] = np.linalg.norm(ordered - ordered[nearest], axis=1)
    return found


def _tiles(points: Floats) -> list[tuple[int, Floats]]:
    """For each tile of points its first one, and a matrix whose product with ``(q, 1)`` is ``|p|^2 - 2 q.p``."""
    return [
        (part.start, np.vstack([-2 * points[part].T, (points[part] ** 2).sum(axis=1)]))
        for part in parts(len(points), _POINTS)
    ]


def _nearest(
    queries: Floats, tiles: list[tuple[int, Floats]], without: tuple[int, int] = (0, 0)
) -> npt.NDArray[np.int64]:
    """Index of the nearest point; those from the first to before the second number of `without` do not count."""
    longer = np.column_stack([queries, np.ones(len(queries))])
    least = np.full(len(queries), np.inf)
    index = np.zeros(len(queries), np.int64)
    rows = np.arange(len(queries))
    for first, matrix in tiles:
        squares = longer @ matrix
        left, right = (min(max(end - first, 0), matrix.shape[1]) for end in without)
        squares[:, left:right] = np.inf
        place = squares.argmin(axis=1)
        own = squares[rows, place]
        closer = own < least
        least[closer], index[closer] = own[closer], place[closer] + first
    return index
