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

__all__ = ["block_outlines", "fill_holes", "join_outlines", "placed", "simplify_outlines"]

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


def simplify_outlines(outlines: Geometries, tolerance: float) -> Geometries:
    """Make the borders between regions simpler; neighbours keep sharing theirs, without gaps and without overlaps.

    Corners go where the triangle with the corners beside them is smaller than the square of the tolerance, the smallest
    first (Visvalingam & Whyatt 1993, "Line generalisation by repeated elimination of points"), as GEOS does it for a
    coverage. The points at which three regions meet stay, and so does the border to where there is no region: the
    regions together cover what they covered.

    Parameters
    ----------
    outlines : numpy.ndarray, (region,)
        As `join_outlines` gives them, of all regions: in columns and rows.
    tolerance : float
        In pixels; 0 changes nothing.

    Returns
    -------
    numpy.ndarray, (region,)
        In GEOS' normal form.
    """
    if tolerance <= 0 or not len(outlines):
        return outlines
    simpler = shapely.coverage_simplify(_with_junctions(outlines), tolerance, simplify_boundary=False)
    return np.asarray(shapely.normalize(simpler), object)


def _with_junctions(outlines: Geometries) -> Geometries:
    """The same outlines with a point wherever a corner of another region lies on a straight edge."""
    parts, of_part = shapely.get_parts(outlines, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    points, of_point = shapely.get_coordinates(rings, return_index=True)
    corners = points.astype(np.int64)
    side = int(corners.max()) + 2
    # an edge begins at every point but the last of a ring, which is its first once more
    begins = np.r_[of_point[1:] == of_point[:-1], False]
    ends = np.roll(corners, -1, axis=0)
    first, count, step = (np.zeros(len(corners), np.int64) for _ in range(3))
    between: list[Ints] = []
    for along in (0, 1):
        across = 1 - along
        # corners in the order of rows, and along these; or of columns
        keys = np.unique(corners[:, across] * side + corners[:, along])
        mine = begins & (corners[:, across] == ends[:, across])
        start = corners[mine, across] * side + corners[mine, along]
        end = ends[mine, across] * side + ends[mine, along]
        low = np.searchsorted(keys, np.minimum(start, end), side="right")
        high = np.searchsorted(keys, np.maximum(start, end), side="left")
        forward = end > start
        shift = sum(map(len, between))
        first[mine] = np.where(forward, low, high - 1) + shift
        count[mine], step[mine] = high - low, np.where(forward, 1, -1)
        found = np.empty((len(keys), 2), np.int64)
        found[:, across], found[:, along] = np.divmod(keys, side)
        between.append(found)
    others = np.concatenate(between)
    # each point, and behind it those on its edge
    source = np.repeat(np.arange(len(corners)), count + 1)
    place = np.arange(len(source)) - np.repeat(np.cumsum(count + 1) - count - 1, count + 1)
    inserted = place > 0
    made = corners[source]
    own = source[inserted]
    made[inserted] = others[first[own] + step[own] * (place[inserted] - 1)]
    linear = np.asarray(shapely.linearrings(made.astype(np.float64), indices=of_point[source]), object)
    polygons = np.asarray(shapely.polygons(linear, indices=of_ring), object)
    found_outlines = outlines.copy()
    multiple = shapely.get_type_id(outlines) == shapely.GeometryType.MULTIPOLYGON
    found_outlines[~multiple] = polygons[~multiple[of_part]]
    for at in np.flatnonzero(multiple).tolist():
        found_outlines[at] = shapely.multipolygons(polygons[of_part == at])
    return found_outlines


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
