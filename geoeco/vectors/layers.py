"""Layers of features as they are in their files: reading, and the CRS that a file states.

Not about what the features stand for: areas, points and crowns have modules of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.crs import CRS

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["agreed_crs", "check_domain", "crs_name", "frame_crs", "geojson_crs", "is_plain_geojson", "read_layer"]


def geojson_crs(record: Mapping[str, Any]) -> CRS | None:
    """CRS that a GeoJSON states in the way of 2008 (``crs`` member)."""
    stated = record.get("crs")
    name = (stated or {}).get("properties", {}).get("name") if isinstance(stated, Mapping) else None
    return None if name is None else as_crs(str(name))


def agreed_crs(own: CRS | None, given: str | int | CRS | None, stated: bool, where: str) -> CRS:
    """CRS of a source: its own, or the given one where it states none; an error if both differ."""
    if given is None:
        if own is None:
            raise GridError("this layer states no CRS", where=where, what_to_do="give it by `crs`")
        return own
    wanted = as_crs(given)
    if own is not None and stated and own != wanted:
        raise GridError(
            f"the layer is in {crs_name(own)}, not in {crs_name(wanted)}",
            where=where,
            what_to_do="leave `crs` out, or reproject the layer first",
        )
    return wanted


def crs_name(crs: CRS) -> str:
    """Short name of a CRS for messages."""
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs)[:60]


def check_domain(bounds: Sequence[float], crs: CRS, where: str) -> None:
    """Refuse coordinates that cannot be of this CRS: metres called degrees, or latitude before longitude."""
    west, south, east, north = bounds
    if not crs.geographic:
        return
    if south < -90 or north > 90 or west < -360 or east > 360:
        degrees = max(abs(west), abs(east)) <= 360 and max(abs(south), abs(north)) <= 360
        raise GridError(
            f"coordinates {west:.6g} {south:.6g} {east:.6g} {north:.6g} are not degrees of longitude and latitude",
            where=where,
            what_to_do="write longitude before latitude" if degrees else "give the CRS they are in",
        )


def frame_crs(frame: gpd.GeoDataFrame) -> CRS | None:
    """CRS of a layer, by its EPSG code where it has one; None for the placeholders that GeoPackage writes for none."""
    if frame.crs is None or frame.crs.name.lower().startswith(("undefined", "unknown")):
        return None
    epsg = frame.crs.to_epsg()
    return as_crs(epsg if epsg is not None else frame.crs.to_wkt())


def is_plain_geojson(path: Path) -> bool:
    """Whether a file is GeoJSON that states no CRS, so that GDAL's longitude and latitude is a default."""
    if path.suffix.lower() not in (".geojson", ".json"):
        return False
    try:
        return geojson_crs(json.loads(path.read_text(encoding="utf-8"))) is None
    except (OSError, ValueError):
        return False


def read_layer(path: Path, layer: str | None) -> gpd.GeoDataFrame:
    """Read the features of a file, nothing checked but that they have geometries.

    Raises
    ------
    InputError
        If the file is missing, cannot be read, holds several layers of which none is named, or is a virtual layer that
        may name files and addresses elsewhere.
    """
    import geopandas as gpd

    if str(path).startswith("/vsi"):
        raise InputError("GDAL virtual file systems are not read", where=str(path), what_to_do="give a plain file")
    if not path.exists():
        raise InputError("there is no such file", where=str(path), what_to_do="check the path")
    if path.is_file():
        with path.open("rb") as file:
            if b"<OGRVRT" in file.read(4096):
                raise InputError(
                    "this is a virtual layer", where=str(path), what_to_do="make a file of it: ogr2ogr OUT.gpkg IN.vrt"
                )
    try:
        # GIS programs keep tables of styles beside the layers
        layers = gpd.list_layers(path)
        names = list(layers["name"][layers["geometry_type"].notna()])
        if layer is not None or len(names) <= 1:
            frame = gpd.read_file(path, layer=layer or (names[0] if names else None))
    except Exception as error:
        raise InputError(
            f"this file cannot be read as a vector layer: {error}",
            where=str(path),
            what_to_do="give GeoPackage, GeoJSON or Shapefile",
        ) from error
    if layer is None and len(names) > 1:
        raise InputError(
            f"the file has {len(names)} layers", where=str(path), what_to_do=f"name one by `layer`: {', '.join(names)}"
        )
    if not isinstance(frame, gpd.GeoDataFrame) or frame._geometry_column_name is None:
        raise InputError("this layer has no geometry", where=str(path))
    return frame
