"""Objects of many tiles as one table: each counted once, none lost at the edge of the mosaic, none twice.

For what a detector finds tile by tile, and for rasters of instances. The order is: bring the tables to one CRS
(`gather_objects`), let each object belong to the tile that owns its place (`own_objects`), then remove what still
overlaps (`suppress_overlaps`). Not for the regions of class maps (`geoeco.mapping.map_polygons`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import odc.geo.xr
import shapely
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs
from geoeco.mapping.map_polygons import exact_grid, ground_pixel, minimum_pixels
from geoeco.mapping.outlines import block_outlines, fill_holes, join_outlines, placed
from geoeco.sensors.height_models import heights_within
from geoeco.variables import describe

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = [
    "Measure",
    "crown_heights",
    "crowns_from_instances",
    "gather_objects",
    "instances_from_crowns",
    "own_objects",
    "suppress_overlaps",
]

#: Overlap of two objects: intersection over union, or over the smaller of the two.
Measure = Literal["iou", "smaller"]
#: An object that ends within this part of a pixel of the edge of its tile touches it.
_TOUCHES = 1e-3


def gather_objects(frames: Sequence[gpd.GeoDataFrame], crs: str | int | CRS | None = None) -> gpd.GeoDataFrame:
    """One table of several in one CRS.

    Parameters
    ----------
    frames : sequence of geopandas.GeoDataFrame
        Each with its CRS; tables in another one are reprojected, none is left out. None is changed.
    crs : str, int or CRS, optional
        That of the first table when not given.

    Returns
    -------
    geopandas.GeoDataFrame
        Rows one table after the other, with a new index.

    Raises
    ------
    GridError
        If a table has no CRS.
    InputError
        If there is no table.
    """
    import geopandas as gpd
    import pandas as pd

    if not frames:
        raise InputError("there is no table of objects")
    for number, frame in enumerate(frames):
        if frame.crs is None:
            raise GridError(f"table {number} of the objects has no CRS", what_to_do="give it one with set_crs")
    wanted = frames[0].crs if crs is None else as_crs(crs).proj
    same = [frame if frame.crs == wanted else frame.to_crs(wanted) for frame in frames]
    return gpd.GeoDataFrame(pd.concat(same, ignore_index=True), crs=wanted)


def own_objects(
    objects: gpd.GeoDataFrame, windows: npt.ArrayLike, geobox: GeoBox, *, edge_px: float = 0.0
) -> gpd.GeoDataFrame:
    """Leave each object to the one tile that owns its place.

    The cores of the tiles partition the plane: they end in the middle of the overlap of neighbouring tiles. A tile
    owns what has its representative point (not the centroid, which may lie outside of a crescent) in its core. An
    object that touches the edge of its tile is cut off there, and is dropped if a neighbouring tile looks beyond that
    edge; at the outer edge of the mosaic it is kept, and flagged.

    Parameters
    ----------
    objects : geopandas.GeoDataFrame
        Polygons in the CRS of `geobox`, with a column ``tile``: row of the tile in `windows`.
    windows : array-like, (tile, 4)
        First and last (exclusive) row, first and last column of each tile in `geobox`: all combinations of some spans
        of rows and some of columns, in any order.
    geobox : odc.geo.geobox.GeoBox
        Grid of the mosaic.
    edge_px : float
        Width of the band along the edges in which an object counts as touching, pixels. The overlap of tiles must be
        at least the largest object plus two bands, or objects are lost.

    Returns
    -------
    geopandas.GeoDataFrame
        From top to bottom and left to right, with a new index, without ``tile``, with ``edge``: cut off by the edge of
        the mosaic. ``attrs`` has ``n_foreign`` (left to other tiles) and ``n_cut`` (dropped at inner edges).

    Raises
    ------
    GridError
        If objects and grid differ in CRS.
    InputError
        If there is no column ``tile``, it names no window, or the windows do not cover a rectangle.
    """
    spans = np.asarray(windows, np.int64).reshape(-1, 4)
    rows, columns = _spans(spans[:, :2], "rows"), _spans(spans[:, 2:], "columns")
    if len(np.unique(spans, axis=0)) != len(rows) * len(columns):
        raise InputError(
            f"{len(spans)} windows are not all combinations of {len(rows)} spans of rows and {len(columns)} of columns",
            what_to_do="give the windows of the whole grid of tiles",
        )
    _same_crs(objects, geobox)
    if "tile" not in objects or not objects["tile"].isin(range(len(spans))).all():
        raise InputError("objects need a column 'tile' with the row of their window", what_to_do="add it")
    tile = objects["tile"].to_numpy(np.int64)
    shapes = placed(objects.geometry.to_numpy(), ~geobox.affine)
    place = shapely.get_coordinates(shapely.point_on_surface(shapes))
    owner = np.stack([_core(place[:, 1], rows), _core(place[:, 0], columns)], axis=1)
    found = np.stack([_number(spans[tile, :2], rows), _number(spans[tile, 2:], columns)], axis=1)
    foreign = (owner != found).any(axis=1)
    left, top, right, bottom = shapely.bounds(shapes).T
    band = edge_px + _TOUCHES
    inner, outer = np.zeros(len(objects), bool), np.zeros(len(objects), bool)
    window = spans[tile]
    for touches, last in (
        (top <= window[:, 0] + band, found[:, 0] == 0),
        (bottom >= window[:, 1] - band, found[:, 0] == len(rows) - 1),
        (left <= window[:, 2] + band, found[:, 1] == 0),
        (right >= window[:, 3] - band, found[:, 1] == len(columns) - 1),
    ):
        inner |= touches & ~last
        outer |= touches & last
    kept = ~foreign & ~inner
    order = np.lexsort((shapely.area(shapes)[kept], place[kept, 0], place[kept, 1]))
    owned = objects.loc[kept].drop(columns="tile").assign(edge=outer[kept]).iloc[order].reset_index(drop=True)
    owned.attrs = {**objects.attrs, "n_foreign": int(foreign.sum()), "n_cut": int((inner & ~foreign).sum())}
    return owned


def suppress_overlaps(
    frame: gpd.GeoDataFrame,
    threshold: float,
    *,
    measure: Measure = "iou",
    score: str = "score",
    identifier: str | None = None,
) -> gpd.GeoDataFrame:
    """Remove objects that overlap a better one (greedy non-maximum suppression).

    Objects are taken from the highest score down, of equal scores the larger first, then by identifier; one is removed
    if it overlaps one *that was kept* by more than the threshold. So of a chain of touching objects, each overlapping
    the next, every other one stays: clusters of overlapping objects are not made one.

    Parameters
    ----------
    frame : geopandas.GeoDataFrame
        Valid polygons.
    threshold : float
        0..1; more overlap than this is too much.
    measure : {"iou", "smaller"}
        Intersection over union, or over the area of the smaller one.
    score : str
        Column of scores.
    identifier : str, optional
        Column that tells objects of the same score and area apart; the geometry does when not given.

    Returns
    -------
    geopandas.GeoDataFrame
        The rows kept, in their order. Which ones does not depend on the order of the rows.

    Raises
    ------
    InputError
        If a score is missing, a polygon is not valid or empty, or the threshold is not within 0..1.
    """
    if not 0 <= threshold <= 1 or measure not in ("iou", "smaller"):
        raise InputError(f"threshold {threshold}, measure {measure!r}", what_to_do="use 0..1 and 'iou' or 'smaller'")
    if score not in frame or frame[score].isna().any():
        raise InputError(f"not every object has a {score!r}", what_to_do="give each a score, or drop those without")
    shapes = frame.geometry.to_numpy()
    if len(shapes) and not (shapely.is_valid(shapes) & ~shapely.is_empty(shapes) & (shapely.area(shapes) > 0)).all():
        raise InputError("a polygon is not valid or empty", what_to_do="repair them first (geoeco.vectors.read_crowns)")
    area = shapely.area(shapes)
    rank = np.empty(len(frame), np.int64)
    last = shapely.to_wkb(shapely.normalize(shapes)) if identifier is None else frame[identifier].to_numpy()
    _, tie = np.unique(last, return_inverse=True)
    rank[np.lexsort((tie, -area, -frame[score].to_numpy(np.float64)))] = np.arange(len(frame))
    better, worse = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    earlier = rank[better] < rank[worse]
    better, worse = better[earlier], worse[earlier]
    common = shapely.area(shapely.intersection(shapes[better], shapes[worse]))
    smaller = np.minimum(area[better], area[worse])
    over = common / (smaller if measure == "smaller" else area[better] + area[worse] - common) > threshold
    better, worse = better[over], worse[over]
    kept = np.ones(len(frame), bool)
    # every pair is judged when all that is better than both has been
    for at in np.lexsort((rank[worse], rank[better])).tolist():
        if kept[better[at]]:
            kept[worse[at]] = False
    return frame.loc[kept]


def crowns_from_instances(
    instances: xr.DataArray, *, nodata: int = 0, fill_holes_m2: float = 0.0, min_piece_m2: float = 0.0
) -> gpd.GeoDataFrame:
    """Polygons of a raster of instances, along the edges of the pixels.

    Parameters
    ----------
    instances : xarray.DataArray, (y, x)
        Whole numbers, the number of the object of each pixel; with a projected CRS.
    nodata : int
        Number of pixels of no object.
    fill_holes_m2 : float
        Holes below this area are filled.
    min_piece_m2 : float
        Pieces of an object below this area are left out, unless it has no larger one.

    Returns
    -------
    geopandas.GeoDataFrame
        By number: ``crown_id``, ``area_m2`` on the ground, ``geometry``: a polygon, or a multipolygon of an object in
        several pieces.

    Raises
    ------
    GridError
        If there is no CRS or one in degrees.
    InputError
        If numbers are not whole, negative or above 2**31 - 1.
    """
    import geopandas as gpd

    geobox = exact_grid(instances)
    pixel_m2, _ = ground_pixel(geobox)
    assert geobox.crs is not None, "ground_pixel has checked it"
    values = instances.to_numpy()
    if values.dtype.kind not in "iu" or values.ndim != 2:
        raise InputError(f"a raster of instances holds whole numbers (y, x), not {values.dtype} {instances.dims}")
    numbered = np.where(values == nodata, 0, values)
    if numbered.size and (numbered.min() < 0 or numbered.max() > np.iinfo(np.int32).max):
        raise InputError(
            f"numbers of objects from {numbered.min()} to {numbered.max()}",
            what_to_do="number objects from 1 to 2147483647",
        )
    numbers, pieces = block_outlines(numbered)
    if min_piece_m2 > 0 and len(numbers):
        area = shapely.area(pieces)
        largest = np.zeros(int(numbers.max()) + 1)
        np.maximum.at(largest, numbers, area)
        kept = (area >= minimum_pixels(min_piece_m2, pixel_m2)) | (area == largest[numbers])
        numbers, pieces = numbers[kept], pieces[kept]
    numbers, outlines = join_outlines([numbers], [pieces])
    outlines = fill_holes(outlines, minimum_pixels(fill_holes_m2, pixel_m2))
    return gpd.GeoDataFrame(
        {"crown_id": numbers.astype(np.int32), "area_m2": shapely.area(outlines) * pixel_m2},
        geometry=placed(outlines, geobox.affine),
        crs=geobox.crs.proj,
    )


def instances_from_crowns(crowns: gpd.GeoDataFrame, geobox: GeoBox, *, identifier: str = "crown_id") -> xr.DataArray:
    """Raster of the crown of each pixel: the other way round than `crowns_from_instances`.

    A pixel belongs to the crowns that its centre lies in; where several overlap, to the smallest, of equal ones to
    that of the higher number. To be written with ``write_cog(raster, path, dtype="uint32", nodata=0)``.

    Parameters
    ----------
    crowns : geopandas.GeoDataFrame
        Polygons in the CRS of `geobox`.
    geobox : odc.geo.geobox.GeoBox
    identifier : str
        Column of whole numbers from 1, each once.

    Returns
    -------
    xarray.DataArray, (y, x)
        uint32, 0 for none. ``attrs["n_contested"]``: pixels that several crowns claim.

    Raises
    ------
    GridError
        If crowns and grid differ in CRS.
    InputError
        If the numbers are not whole, below 1 or above 2**31 - 1, or there twice.
    """
    from rasterio.features import MergeAlg, rasterize

    _same_crs(crowns, geobox)
    numbers = crowns[identifier].to_numpy() if identifier in crowns else np.zeros(0)
    whole = numbers.dtype.kind in "iu" and len(np.unique(numbers)) == len(numbers) == len(crowns)
    if not whole or (len(numbers) and not (numbers.min() >= 1 and numbers.max() <= np.iinfo(np.int32).max)):
        raise InputError(f"crowns need whole numbers from 1 in {identifier!r}, each once", what_to_do="number them")
    shapes = crowns.geometry.to_numpy()
    order = np.lexsort((numbers, -shapely.area(shapes)))
    burnt, claims = np.zeros(geobox.shape, np.int32), np.zeros(geobox.shape, np.int32)
    if len(crowns):
        pairs = list(zip(shapes[order], numbers[order].tolist(), strict=True))
        rasterize(pairs, out=burnt, transform=geobox.affine)
        ones = [(shape, 1) for shape, _ in pairs]
        rasterize(ones, out=claims, transform=geobox.affine, merge_alg=MergeAlg.add)
    raster = xr.DataArray(
        burnt.astype(np.uint32), dims=("y", "x"), coords=odc.geo.xr.xr_coords(geobox, dims=("y", "x")), name="instance"
    )
    # numbers are compared, never averaged: what is right for counts is right for them
    return describe(
        raster, kind="count", units="1", long_name="crown", _FillValue=0, n_contested=int((claims > 1).sum())
    )


def crown_heights(crowns: gpd.GeoDataFrame, chm: xr.DataArray, *, percentile: float = 95.0) -> gpd.GeoDataFrame:
    """Heights of a canopy height model inside each crown: of the pixels whose centre lies in it.

    Parameters
    ----------
    crowns : geopandas.GeoDataFrame
        Polygons in the CRS of `chm`; they may overlap.
    chm : xarray.DataArray, (y, x)
        Metres, NaN where unknown; read by the window of each crown.
    percentile : float

    Returns
    -------
    geopandas.GeoDataFrame
        The crowns with ``height_max`` and ``height_p95`` (or whichever percentile), metres, NaN where no height is
        known, and ``height_fraction``, part of the crown's pixels whose height is.

    Raises
    ------
    GridError
        If crowns and heights differ in CRS.
    InputError
        If the percentile is not within 0..100.
    """
    from rasterio.features import geometry_mask

    geobox = exact_grid(chm)
    _same_crs(crowns, geobox)
    found = np.full((len(crowns), 3), np.nan)
    rows, columns = (int(n) for n in geobox.shape)
    bounds = shapely.bounds(placed(crowns.geometry.to_numpy(), ~geobox.affine))
    for at, (shape, (left, top, right, bottom)) in enumerate(zip(crowns.geometry, bounds.tolist(), strict=True)):
        y = slice(max(0, int(np.floor(top))), min(rows, int(np.ceil(bottom))))
        x = slice(max(0, int(np.floor(left))), min(columns, int(np.ceil(right))))
        if y.stop <= y.start or x.stop <= x.start:
            continue
        own = geobox[y, x]
        inside = geometry_mask([shape], own.shape, own.affine, invert=True)
        if not inside.any():
            continue
        found[at] = heights_within(chm.isel(y=y, x=x).to_numpy().astype(np.float64), inside, percentile)
    return crowns.assign(
        height_max=found[:, 0], **{f"height_p{percentile:g}": found[:, 1]}, height_fraction=found[:, 2]
    )


# --- tiles -----------------------------------------------------------------------------------------------------------


def _same_crs(objects: gpd.GeoDataFrame, geobox: GeoBox) -> None:
    if objects.crs is None or geobox.crs is None or CRS(objects.crs) != geobox.crs:
        raise GridError(
            f"objects in {objects.crs and objects.crs.name} on a grid in {geobox.crs}",
            what_to_do="bring the objects to the CRS of the grid: gather_objects([objects], crs)",
        )


def _spans(spans: npt.NDArray[np.int64], what: str) -> npt.NDArray[np.int64]:
    """Spans ``(span, 2)`` in order, each beginning and ending after the one before, without gaps."""
    found = np.unique(spans, axis=0)
    if (
        (found[:, 0] >= found[:, 1]).any()
        or (np.diff(found, axis=0) <= 0).any()
        or (found[1:, 0] > found[:-1, 1]).any()
    ):
        raise InputError(
            f"the {what} of the windows do not follow one another without gaps: {found.tolist()[:6]}",
            what_to_do="give the windows of a grid of tiles that overlap or meet",
        )
    return found


def _core(place: npt.NDArray[np.float64], spans: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number of the span in whose core each place lies; the outer cores have no end."""
    middles = (spans[1:, 0] + spans[:-1, 1]) / 2
    return np.searchsorted(middles, place, side="right").astype(np.int64)


def _number(own: npt.NDArray[np.int64], spans: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.searchsorted(spans[:, 0], own[:, 0]).astype(np.int64)
