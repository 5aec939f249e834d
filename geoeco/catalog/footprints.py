"""Where scenes lie on the globe: footprints in longitude and latitude that survive the antimeridian.

Everything is a shapely geometry with longitudes in -180..180; what crosses 180 degrees is in two pieces, as GeoJSON
asks (RFC 7946, section 3.1.9).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pystac
import shapely
from odc.geo.geom import Geometry
from shapely.geometry import MultiPolygon, Polygon, box, mapping, shape
from shapely.geometry.base import BaseGeometry

from geoeco.errors import CatalogError, GridError

__all__ = ["area_lonlat", "centre_longitude", "footprint", "footprint_of"]

_WORLD = 360.0


def _moved(geometry: BaseGeometry, degrees: float) -> BaseGeometry:
    """Geometry with its longitudes moved."""
    return shapely.transform(geometry, lambda xy: xy + np.array([degrees, 0.0]))


def _pieces(geometry: BaseGeometry) -> BaseGeometry:
    """Bring a geometry whose longitudes may lie beyond 180 degrees back to -180..180, cut where it crosses."""
    west, _, east, _ = geometry.bounds
    if west >= -180 and east <= 180:
        return geometry
    parts = []
    for turn in range(math.floor((west + 180) / _WORLD), math.floor((east + 180) / _WORLD) + 1):
        strip = geometry.intersection(box(-180 + turn * _WORLD, -90, 180 + turn * _WORLD, 90))
        if strip.area > 0 or (not strip.is_empty and geometry.area == 0):
            parts.append(_moved(strip, -turn * _WORLD))
    return shapely.union_all(parts)


def _unwrapped_ring(ring: Any) -> list[tuple[float, float]]:
    """Vertices of a ring with longitudes made continuous: no edge goes the long way round the globe."""
    points = [(float(x), float(y)) for x, y in shapely.get_coordinates(ring)]
    steps = [b[0] - a[0] for a, b in itertools.pairwise(points)]
    spans_the_globe = any(math.isclose(abs(step), _WORLD) for step in steps)
    if spans_the_globe or all(abs(step) <= 180 for step in steps):
        return points
    out = [points[0]]
    turn = 0.0
    for step, (x, y) in zip(steps, points[1:], strict=True):
        if step > 180:
            turn -= _WORLD
        elif step < -180:
            turn += _WORLD
        out.append((x + turn, y))
    if not math.isclose(out[0][0], out[-1][0]):  # winds round a pole: no finite unwrapping exists
        return points
    return out


def _unwrap(geometry: BaseGeometry) -> BaseGeometry:
    """Polygons with continuous longitudes; other geometries unchanged."""
    polygons = [part for part in getattr(geometry, "geoms", [geometry]) if isinstance(part, Polygon)]
    if not polygons:
        return geometry
    unwrapped = [
        Polygon(_unwrapped_ring(p.exterior), [_unwrapped_ring(hole) for hole in p.interiors]) for p in polygons
    ]
    return unwrapped[0] if len(unwrapped) == 1 else MultiPolygon(unwrapped)


def _valid(geometry: BaseGeometry) -> BaseGeometry:
    return geometry if geometry.is_valid else shapely.make_valid(geometry)


def area_lonlat(area: Geometry) -> BaseGeometry:
    """Bring an area of interest to longitude and latitude, cut at the antimeridian.

    Parameters
    ----------
    area : odc.geo.geom.Geometry
        In any CRS. In a geographic one longitudes beyond 180 degrees are taken as they are (see
        `geoeco.grid.bbox_geometry`).

    Raises
    ------
    GridError
        If it has no CRS, is empty, or lies outside the CRS's domain.
    """
    if area.crs is None:
        raise GridError("the area of interest has no CRS", what_to_do="give its CRS")
    if area.is_empty:
        raise GridError("the area of interest is empty")
    if area.crs.geographic:
        lonlat = area.geom if area.crs.epsg == 4326 else area.to_crs("EPSG:4326").geom
    else:
        span = area.boundingbox
        step = max(span.span_x, span.span_y, 1.0) / 64
        lonlat = _unwrap(area.to_crs("EPSG:4326", resolution=step).geom)
    if not all(math.isfinite(v) for v in lonlat.bounds):
        raise GridError(f"the area of interest does not lie within {area.crs}", what_to_do="check its CRS")
    return _pieces(_valid(lonlat))


def footprint_of(record: Mapping[str, Any]) -> BaseGeometry | None:
    """Footprint of an item given as its JSON dictionary; see `footprint`."""
    geometry, bbox = record.get("geometry"), record.get("bbox")
    try:
        if geometry is not None:
            return _pieces(_valid(_unwrap(shape(geometry))))
        if bbox is not None:
            west, south, east, north = bbox if len(bbox) == 4 else (bbox[0], bbox[1], bbox[3], bbox[4])
            return _pieces(box(west, south, east + _WORLD if west > east else east, north))
    except Exception as error:
        raise CatalogError(
            "an item's geometry or bbox is not readable",
            where=f"item {record.get('id')}",
            what_to_do="repair the item, or leave it out of the catalogue",
            code="catalog-geometry",
        ) from error
    return None


def footprint(item: pystac.Item) -> Geometry | None:
    """Footprint of an item in longitude and latitude.

    Parameters
    ----------
    item : pystac.Item

    Returns
    -------
    odc.geo.geom.Geometry or None
        In EPSG:4326 with longitudes in -180..180, cut in two at the antimeridian, whether the item's own polygon was
        cut, runs beyond 180 degrees or jumps from one side to the other; from the bounding box where the item has
        no geometry; None where it has neither.

    Raises
    ------
    CatalogError
        If geometry or bbox cannot be read.
    """
    geometry = footprint_of({"id": item.id, "geometry": item.geometry, "bbox": item.bbox})
    return None if geometry is None else Geometry(mapping(geometry), "EPSG:4326")


def centre_longitude(item: pystac.Item) -> float | None:
    """Longitude of an item's centre in -180..180, right also across the antimeridian; None without a footprint."""
    if (outline := footprint(item)) is None:
        return None
    pieces = [part for part in getattr(outline.geom, "geoms", [outline.geom]) if not part.is_empty]
    west = min(part.bounds[0] for part in pieces)
    east = max(part.bounds[2] for part in pieces)
    crosses = east - west > 180 and len(pieces) > 1
    moved = [
        shapely.transform(p, lambda xy: xy + np.array([_WORLD, 0.0])) if crosses and p.bounds[2] <= 0 else p
        for p in pieces
    ]
    centre = float(shapely.union_all(moved).centroid.x)
    return (centre + 180.0) % _WORLD - 180.0
