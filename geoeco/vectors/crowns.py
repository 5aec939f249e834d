"""Crowns of trees, other objects with outlines, and the areas that split them, read onto the CRS of a raster.

Not about rasterising or cutting them (`geoeco.sampling`), nor about writing them (`geoeco.outputs`).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.vectors.layers import check_domain, crs_name, frame_crs, read_layer

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["read_crowns", "read_split_areas"]

#: Names of the parts of a data set that areas may be given.
SPLITS = ("train", "val", "test")
#: Part of the smaller area by which areas of two splits may overlap: digitised borders never agree to the last digit.
_SLIVER = 1e-6
_LARGEST_ID = np.iinfo(np.int32).max


def read_crowns(
    source: str | os.PathLike[str] | gpd.GeoDataFrame,
    geobox: GeoBox | None = None,
    *,
    layer: str | None = None,
    class_column: str | None = None,
    id_column: str | None = None,
) -> gpd.GeoDataFrame:
    """Crowns (or other outlined objects) with whole ids, names of classes and valid polygons.

    Parameters
    ----------
    source : path or geopandas.GeoDataFrame
        GeoPackage, GeoJSON, Shapefile, ...; a frame is not changed.
    geobox : odc.geo.geobox.GeoBox, optional
        Grid of the raster that the crowns lie on: they are reprojected to its CRS and must overlap it.
    layer : str, optional
        Layer of a file with several.
    class_column : str, optional
        Column with the class (species) of a crown; ``class_name`` where there is one.
    id_column : str, optional
        Column with ids, whole numbers from 1; ``crown_id`` where there is one, else crowns are numbered in their order.

    Returns
    -------
    geopandas.GeoDataFrame
        ``crown_id`` int32, unique; ``class_name`` str, "" where unknown; the source's other columns; ``geometry`` of
        valid Polygons and MultiPolygons in two dimensions; in the order of the source with a fresh index. In
        ``attrs``: ``n_empty`` crowns without area left out, ``n_outside`` that lie off the grid left out,
        ``n_repaired`` with crossing borders repaired, ``overlap_m2`` ground covered by two crowns, once for each pair.

    Raises
    ------
    InputError
        If the source cannot be read, has no crowns, a column is missing, or ids are not whole, unique and from 1.
    GridError
        If the source has no CRS, or no crown overlaps the raster (pixel coordinates among them).
    """
    where = str(source) if isinstance(source, str | os.PathLike) else "the table of crowns"
    frame = _frame(source, layer, where)
    class_names = _class_names(frame, class_column, where)
    ids = _ids(frame, id_column, where)
    geometries, repaired = _polygons(frame, where)
    empty = np.array([geometry is None for geometry in geometries], dtype=bool)
    if empty.all():
        raise InputError("no crown has an area", where=where)
    placed = frame.drop(columns=[c for c in ("crown_id", "class_name") if c in frame.columns]).set_geometry(
        list(geometries), crs=frame.crs
    )
    placed = _renamed(placed)
    placed.insert(0, "crown_id", ids)
    placed.insert(1, "class_name", class_names)
    placed = placed[~empty]
    outside = 0
    if geobox is not None:
        placed = _onto(placed, geobox, where)
        on_grid = placed.intersects(_extent(geobox)).to_numpy()
        if not on_grid.any():
            raise _off_grid(frame, placed, geobox, where)
        outside = int((~on_grid).sum())
        placed = placed[on_grid]
    placed = placed.reset_index(drop=True)
    placed.attrs = {
        "n_empty": int(empty.sum()),
        "n_outside": outside,
        "n_repaired": repaired,
        "overlap_m2": _overlap_m2(placed),
    }
    return placed


def read_split_areas(
    source: str | os.PathLike[str] | gpd.GeoDataFrame, geobox: GeoBox, *, layer: str | None = None
) -> gpd.GeoDataFrame:
    """Areas that say which ground is for training, validation and test.

    Parameters
    ----------
    source : path or geopandas.GeoDataFrame
        Polygons with a column ``split`` of train, val or test.
    geobox : odc.geo.geobox.GeoBox
        Grid of the raster: the areas are reprojected to its CRS and must overlap it.
    layer : str, optional
        Layer of a file with several.

    Returns
    -------
    geopandas.GeoDataFrame
        ``split``, the source's other columns, ``geometry``: valid, areas of different splits disjoint.

    Raises
    ------
    InputError
        If there is no such column, another word in it, an empty area, or areas of two splits overlap.
    GridError
        If the source has no CRS, or no area overlaps the raster.
    """
    where = str(source) if isinstance(source, str | os.PathLike) else "the table of areas"
    frame = _frame(source, layer, where)
    if "split" not in frame.columns:
        raise InputError(
            "the areas have no column 'split'",
            where=f"{where}; its columns are {', '.join(map(str, frame.columns))}",
            what_to_do=f"name each area's part in it: {', '.join(SPLITS)}",
        )
    splits = frame["split"].astype(str).str.strip().str.lower().to_numpy()
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise InputError(f"{unknown[0]!r} is no part of a data set", where=where, what_to_do=f"use {', '.join(SPLITS)}")
    geometries, repaired = _polygons(frame, where)
    if any(geometry is None for geometry in geometries):
        raise InputError("an area is empty", where=where, what_to_do="draw it, or delete it")
    if repaired:
        warnings.warn(f"{repaired} areas of {where} had crossing borders and were repaired", stacklevel=2)
    areas = _renamed(frame.set_geometry(list(geometries), crs=frame.crs)).assign(split=splits)
    _refuse_overlap(areas, where)
    placed = _onto(areas, geobox, where)
    if not placed.intersects(_extent(geobox)).any():
        raise _off_grid(frame, placed, geobox, where)
    return placed.reset_index(drop=True)


def _frame(source: str | os.PathLike[str] | gpd.GeoDataFrame, layer: str | None, where: str) -> gpd.GeoDataFrame:
    """Features of a source with a CRS, in a frame of our own."""
    import geopandas as gpd

    if isinstance(source, gpd.GeoDataFrame):
        frame = source.copy().reset_index(drop=True)
    else:
        frame = read_layer(Path(source), layer)
    if len(frame) == 0:
        raise InputError("there are no features", where=where)
    if frame_crs(frame) is None:
        raise GridError(
            "the outlines have no CRS",
            where=where,
            what_to_do="state it: ogr2ogr -a_srs EPSG:... (a Shapefile needs its .prj)",
        )
    return frame


def _renamed(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    return frame if frame.geometry.name == "geometry" else frame.rename_geometry("geometry")


def _class_names(frame: pd.DataFrame, column: str | None, where: str) -> npt.NDArray[np.object_]:
    if column is None and "class_name" not in frame.columns:
        return np.full(len(frame), "", dtype=object)
    named = frame[_column(frame, column or "class_name", where)]
    return named.astype(object).where(named.notna(), "").astype(str).str.strip().to_numpy(dtype=object)


def _column(frame: pd.DataFrame, column: str, where: str) -> str:
    if column not in frame.columns:
        raise InputError(
            f"there is no column {column!r}", where=f"{where}; its columns are {', '.join(map(str, frame.columns))}"
        )
    return column


def _ids(frame: pd.DataFrame, column: str | None, where: str) -> npt.NDArray[np.int32]:
    """Ids of a column as whole numbers, or numbers from 1 in the order of the rows."""
    import pandas as pd

    if column is None and "crown_id" not in frame.columns:
        return np.arange(1, len(frame) + 1, dtype=np.int32)
    name = _column(frame, column or "crown_id", where)
    numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
    bad = ~((numbers >= 1) & (numbers <= _LARGEST_ID) & (numbers == np.floor(numbers)))
    if bad.any():
        raise InputError(
            f"'{frame[name].iloc[int(np.flatnonzero(bad)[0])]}' in column {name!r} is no whole number from 1",
            where=f"{where}, row {int(np.flatnonzero(bad)[0])}",
            what_to_do="leave `id_column` out to have the crowns numbered; the column is kept under its own name"
            if column is not None
            else "rename the column, so that the crowns are numbered",
        )
    values, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"id {int(values[counts > 1][0])} stands for {int(counts[counts > 1][0])} crowns"
            f" ({int((counts > 1).sum())} ids are not unique)",
            where=where,
            what_to_do="number the crowns, or join the parts of one crown to a multipolygon",
            code="crowns-duplicate",
        )
    return numbers.astype(np.int32)


def _polygons(frame: gpd.GeoDataFrame, where: str) -> tuple[npt.NDArray[np.object_], int]:
    """Valid polygons and multipolygons in two dimensions, None where there is no area; and how many were repaired."""
    import shapely

    kinds = set(frame.geometry.dropna().geom_type) - {"Polygon", "MultiPolygon", "GeometryCollection"}
    if kinds:
        raise InputError(
            f"these are not outlines but {', '.join(sorted(kinds))}", where=where, what_to_do="give polygons"
        )
    shapes = shapely.force_2d(frame.geometry.to_numpy())
    missing = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    for row in np.flatnonzero(~missing):
        if not np.isfinite(shapely.get_coordinates(shapes[row])).all():
            raise InputError("an outline has coordinates that are not finite", where=f"{where}, row {int(row)}")
    broken = ~missing & ~shapely.is_valid(shapes)
    out = np.full(len(shapes), None, dtype=object)
    for i, shape in enumerate(shapes):
        if not missing[i]:
            out[i] = _areal(shapely.make_valid(shape) if broken[i] else shape)
    return out, int(sum(bool(b) and out[i] is not None for i, b in enumerate(broken)))


def _areal(shape: Any) -> Any:
    """The part of a geometry that has an area, or None."""
    import shapely

    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape if shape.area > 0 else None
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")]
    joined = shapely.union_all(parts)
    return joined if joined.area > 0 else None


def _onto(frame: gpd.GeoDataFrame, geobox: GeoBox, where: str) -> gpd.GeoDataFrame:
    """Outlines in the CRS of a grid."""
    if geobox.crs is None:
        raise GridError(
            "the raster has no CRS: outlines on the map cannot be put on it",
            where=where,
            what_to_do="give the raster a CRS, or boxes in pixels (read_boxes)",
        )
    own = frame_crs(frame)
    if own is None or own == geobox.crs:
        return frame.set_crs(str(geobox.crs), allow_override=True)
    west, south, east, north = (float(v) for v in frame.total_bounds)
    check_domain((west, south, east, north), own, where)
    moved = frame.to_crs(str(geobox.crs))
    if not np.isfinite(moved.total_bounds).all():
        raise GridError(f"the outlines cannot be brought from {crs_name(own)} to {crs_name(geobox.crs)}", where=where)
    return moved


def _extent(geobox: GeoBox) -> Any:
    from shapely.geometry import box

    frame = geobox.boundingbox
    return box(frame.left, frame.bottom, frame.right, frame.top)


def _off_grid(own: gpd.GeoDataFrame, placed: gpd.GeoDataFrame, geobox: GeoBox, where: str) -> GridError:
    """Say why outlines do not meet a raster: they may be in pixels though they claim a CRS."""
    rows, columns = (int(n) for n in geobox.shape)
    west, south, east, north = (float(v) for v in own.total_bounds)
    pixels = west >= -1 and east <= columns + 1 and max(abs(south), abs(north)) <= rows + 1
    left, bottom, right, top = (float(v) for v in placed.total_bounds)
    grid = geobox.boundingbox
    return GridError(
        f"no outline overlaps the raster: outlines {left:.6g}..{right:.6g}, {bottom:.6g}..{top:.6g}; raster"
        f" {grid.left:.6g}..{grid.right:.6g}, {grid.bottom:.6g}..{grid.top:.6g}",
        where=where,
        what_to_do="the coordinates look like pixels: multiply them by the raster's transform first"
        if pixels
        else "check the CRS of both, and that they are of one place",
        code="crowns-outside",
    )


def _overlap_m2(frame: gpd.GeoDataFrame) -> float:
    """Ground that two outlines cover, summed over pairs."""
    import shapely

    flat = frame.to_crs(frame.estimate_utm_crs()) if frame.crs.is_geographic else frame
    unit = float(flat.crs.axis_info[0].unit_conversion_factor)
    shapes = flat.geometry.to_numpy()
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = one < other
    shared = shapely.area(shapely.intersection(shapes[one[pairs]], shapes[other[pairs]]))
    return float(shared.sum()) * unit**2


def _refuse_overlap(areas: gpd.GeoDataFrame, where: str) -> None:
    import shapely

    joined = {split: shapely.union_all(areas.geometry[areas["split"] == split].to_numpy()) for split in SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = joined[one].intersection(joined[other]).area
        if shared > _SLIVER * min(joined[one].area, joined[other].area):
            raise InputError(
                f"areas for {one} and {other} overlap by {shared:.6g} square units of their CRS",
                where=where,
                what_to_do="cut one from the other: ground of two parts leaks from training into the test",
                code="areas-overlap",
            )
