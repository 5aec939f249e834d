"""Outlines of the regions of a raster, as polygons along the edges of pixels.

The outline runs along the *edges* of the pixels, so that a square of ten by ten pixels has an area of a hundred: not
through their centres, as contours do. Pieces of a region from several blocks are joined to the very polygon that one
block would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

__all__ = ["block_outlines", "fill_holes", "join_outlines", "placed"]

Ints = npt.NDArray[np.int64]
Geometries = npt.NDArray[np.object_]


def block_outlines(regions: npt.NDArray[np.integer[Any]], origin: tuple[int, int] = (0, 0)) -> tuple[Ints, Geometries]:
    """Outline the regions of one block.

    Parameters
    ----------
    regions : numpy.ndarray, (y, x)
        Number of the region of each pixel, 0 for none; below 2**31.
    origin : tuple of int
        Row and column of the block's first pixel.

    Returns
    -------
    numbers : numpy.ndarray, (piece,)
    pieces : numpy.ndarray, (piece,)
        Polygons in columns and rows of the whole raster; one for each 4-connected piece of a region.
    """
    from rasterio.features import shapes

    numbered = np.ascontiguousarray(regions, np.int32)
    numbers: list[int] = []
    rings: list[Any] = []
    ring_of: list[int] = []
    for shape, number in shapes(
        numbered, mask=numbered > 0, connectivity=4, transform=Affine.translation(origin[1], origin[0])
    ):
        ring_of += [len(numbers)] * len(shape["coordinates"])
        rings += shape["coordinates"]
        numbers.append(int(number))
    if not numbers:
        return np.zeros(0, np.int64), np.zeros(0, object)
    points = np.concatenate([np.asarray(ring, np.float64) for ring in rings])
    of_point = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    made = np.asarray(shapely.linearrings(points, indices=of_point), object)
    return np.array(numbers, np.int64), np.asarray(shapely.polygons(made, indices=np.array(ring_of)), object)


def join_outlines(numbers: Sequence[Ints], pieces: Sequence[Geometries]) -> tuple[Ints, Geometries]:
    """Join the pieces of each region.

    Parameters
    ----------
    numbers, pieces : sequence of numpy.ndarray
        As `block_outlines` gives them, of each block.

    Returns
    -------
    numbers : numpy.ndarray, (region,)
        Ascending.
    outlines : numpy.ndarray, (region,)
        Polygons, or multipolygons where a region hangs together by corners; without points along straight edges, in
        GEOS' normal form: the same whatever the blocks were.
    """
    of_piece = np.concatenate([np.zeros(0, np.int64), *numbers])
    every = np.concatenate([np.zeros(0, object), *pieces])
    order = np.argsort(of_piece, kind="stable")
    found, starts, counts = np.unique(of_piece[order], return_index=True, return_counts=True)
    outlines = every[order[starts]] if len(found) else np.zeros(0, object)
    for at in np.flatnonzero(counts > 1).tolist():
        outlines[at] = shapely.union_all(every[order[starts[at] : starts[at] + counts[at]]])
    # the first point of a normal ring is a corner: none can be left on a straight edge
    return found, shapely.normalize(shapely.simplify(shapely.normalize(outlines), 0, preserve_topology=False))


def fill_holes(outlines: Geometries, area: float) -> Geometries:
    """Fill the holes of polygons that are smaller than an area, in the square of their units."""
    if area <= 0 or not len(outlines):
        return outlines
    parts, of_part = shapely.get_parts(outlines, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    outer = np.r_[True, of_ring[1:] != of_ring[:-1]]
    kept = outer | (shapely.area(shapely.polygons(rings)) >= area)
    filled = shapely.polygons(rings[kept], indices=of_ring[kept])
    found = outlines.copy()
    for at in np.unique(of_part).tolist():
        members = filled[of_part == at]
        found[at] = members[0] if len(members) == 1 else shapely.union_all(members)
    return shapely.normalize(found)


def placed(outlines: Geometries, transform: Affine) -> Geometries:
    """Polygons on the map from polygons in columns and rows."""
    a, b, c, d, e, f = tuple(transform)[:6]

    def onto(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        column, row = points.T
        return np.stack([a * column + b * row + c, d * column + e * row + f], axis=1)

    moved: Geometries = shapely.transform(outlines, onto)
    return moved
