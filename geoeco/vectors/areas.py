"""Areas of interest: one valid polygon with its CRS, from boxes, GeoJSON, files and geometries.

Not about areas that split data (`geoeco.vectors.crowns`) nor about grids over them (`geoeco.grid`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs, bbox_geometry
from geoeco.vectors.layers import agreed_crs, check_domain, frame_crs, geojson_crs, is_plain_geojson, read_layer

__all__ = ["AreaSource", "area_of_interest"]

#: What `area_of_interest` reads.
AreaSource = str | os.PathLike[str] | Sequence[float] | Mapping[str, Any] | Geometry


def area_of_interest(source: AreaSource, *, crs: str | int | CRS | None = None, layer: str | None = None) -> Geometry:
    """Area of interest as one valid polygon (or multipolygon) with its CRS.

    Parameters
    ----------
    source : bbox, GeoJSON mapping, path or Geometry
        ``(west, south, east, north)`` in degrees (west > east crosses the antimeridian), or in the units of `crs`; a
        GeoJSON geometry, Feature or FeatureCollection; a file that GDAL reads (GeoPackage, GeoJSON, Shapefile,
        FlatGeobuf); or a geometry, which is only checked. All features are joined to one area.
    crs : str, int or CRS, optional
        CRS of a bbox or of a file that states none. GeoJSON is in longitude and latitude (RFC 7946) unless it says
        otherwise. A CRS that contradicts the file's own is an error, not a reprojection.
    layer : str, optional
        Layer of a file with several.

    Returns
    -------
    odc.geo.geom.Geometry
        In the CRS of the source; self-intersections are repaired with a warning.

    Raises
    ------
    InputError
        If the file is missing, unreadable, empty, or holds points or lines.
    GridError
        If there is no CRS, it contradicts, or the coordinates do not fit it.
    """
    if isinstance(source, Geometry):
        if source.crs is None:
            raise GridError("the area of interest has no CRS", what_to_do="give its CRS")
        return _area(source.geom, source.crs, "the area of interest")
    if isinstance(source, Mapping):
        stated = geojson_crs(source)
        return _area(
            _geojson_geometry(source), agreed_crs(stated or as_crs(4326), crs, stated is not None, "GeoJSON"), "GeoJSON"
        )
    if isinstance(source, str | os.PathLike):
        return _area_from_file(Path(source), crs, layer)
    values = [float(v) for v in source]
    if len(values) != 4:
        raise GridError(f"a bounding box has four values (west, south, east, north), not {len(values)}")
    if crs is None or as_crs(crs).epsg == 4326:
        return bbox_geometry((values[0], values[1], values[2], values[3]))
    from shapely.geometry import box

    if not (values[0] < values[2] and values[1] < values[3]):
        raise GridError(f"bounding box {tuple(values)} holds no area", what_to_do="give left, bottom, right, top")
    return _area(box(values[0], values[1], values[2], values[3]), as_crs(crs), "the bounding box")


def _geojson_geometry(record: Mapping[str, Any]) -> Any:
    import shapely
    from shapely.geometry import shape

    kind = record.get("type")
    try:
        if kind == "FeatureCollection":
            geometries = [shape(f["geometry"]) for f in record["features"] if f.get("geometry")]
            return shapely.union_all([g if g.is_valid else shapely.make_valid(g) for g in geometries])
        return shape(dict(record["geometry"] if kind == "Feature" else record))
    except Exception as error:
        raise InputError(
            f"this is not a GeoJSON geometry: {type(error).__name__}: {error}",
            what_to_do="give a Polygon, MultiPolygon, Feature or FeatureCollection",
        ) from error


def _area(geometry: Any, crs: CRS, where: str) -> Geometry:
    """One valid polygon or multipolygon, checked against its CRS."""
    import shapely
    from shapely.geometry import mapping

    if geometry is None or geometry.is_empty:
        raise InputError("the area of interest is empty", where=where)
    geometry = shapely.force_2d(geometry)
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise GridError("the area of interest has coordinates that are not finite", where=where)
    if not geometry.is_valid:
        reason = shapely.is_valid_reason(geometry)
        warnings.warn(f"the area of interest was repaired ({where}: {reason})", stacklevel=3)
        geometry = shapely.make_valid(geometry)
    polygons = [part for part in shapely.get_parts(geometry) if part.geom_type in ("Polygon", "MultiPolygon")]
    if not polygons or not any(part.area > 0 for part in polygons):
        raise InputError(
            f"an area of interest is a polygon, not a {geometry.geom_type}",
            where=where,
            what_to_do="draw a polygon, or buffer the points or lines",
        )
    joined = shapely.union_all(polygons)
    check_domain(joined.bounds, crs, where)
    return Geometry(mapping(joined), crs)


def _area_from_file(path: Path, crs: str | int | CRS | None, layer: str | None) -> Geometry:
    import shapely

    frame = read_layer(path, layer)
    if frame.empty or frame.geometry.isna().all() or frame.geometry.is_empty.all():
        raise InputError("this layer has no features", where=str(path))
    own = frame_crs(frame)
    stated = own is not None and not is_plain_geojson(path)
    # repaired one by one, so that one bad polygon among many does not swallow the rest
    shapes = [g for g in frame.geometry if g is not None and not g.is_empty]
    broken = sum(not g.is_valid for g in shapes)
    if broken:
        warnings.warn(f"{broken} polygons of {path} were repaired", stacklevel=3)
        shapes = [g if g.is_valid else shapely.make_valid(g) for g in shapes]
    return _area(shapely.union_all(shapes), agreed_crs(own, crs, stated, str(path)), str(path))
