"""Where the pixels of an orthomosaic lie, and how large they truly are on the ground.

Not about the numbers in them: that is `geoeco.sensors.mosaic_bands`.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs, utm_crs

__all__ = ["geodesic_size", "grid_of"]

#: Pixels may differ from squares by this much, and the ground from what the CRS says before that is worth a warning.
_TOLERANCE = 0.01


def grid_of(file: Any, where: str, unplaced: bool, gsd_m: float | None) -> tuple[GeoBox, float, float]:
    """Grid of a file and the true size of its pixels, or the reason why it is none that can be worked on."""
    transform, name = file.transform, Path(where).name
    if file.crs is None or transform == Affine.identity():
        if not unplaced:
            raise _unplaced(file, where)
        size = math.nan if gsd_m is None else float(gsd_m)
        pixel = 1.0 if gsd_m is None else size
        return GeoBox(file.shape, Affine(pixel, 0, 0, 0, -pixel, 0), None), size, size
    if gsd_m is not None:
        raise InputError(
            "the file is georeferenced: its ground sampling distance is measured, not given",
            where=where,
            what_to_do="leave `gsd_m` out; `at` changes the grid",
        )
    crs = _horizontal_crs(file.crs)
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise GridError(
            "the mosaic is rotated, sheared or not north up",
            where=where,
            what_to_do=f"gdalwarp -r bilinear -dstalpha -of COG {name} north_up.tif",
        )
    if crs.geographic:
        centre = (transform.c + transform.a * file.width / 2, transform.f + transform.e * file.height / 2)
        advised = utm_crs(*centre).epsg if abs(centre[1]) <= 90 else "UTM"
        raise GridError(
            f"the mosaic is in degrees ({crs}): its pixels have no size in metres",
            where=where,
            what_to_do=f"gdalwarp -t_srs EPSG:{advised} -r bilinear -dstalpha -of COG {name} projected.tif",
        )
    if not crs.projected:
        raise GridError(
            "the mosaic's CRS is local: nothing says where on Earth it lies",
            where=where,
            what_to_do="give the file a projected CRS: gdal_edit.py -a_srs EPSG:... , or allow_ungeoreferenced=True",
        )
    width, height = transform.a, -transform.e
    if abs(width / height - 1) > _TOLERANCE:
        size = min(width, height)
        raise GridError(
            f"the mosaic's pixels are not square: {width:g} x {height:g} units of its CRS",
            where=where,
            what_to_do=f"gdalwarp -tr {size:g} {size:g} -r bilinear -dstalpha -of COG {name} square.tif",
        )
    geobox = GeoBox(file.shape, transform, crs)
    gsd_x, gsd_y = geodesic_size(geobox, where)
    unit = crs.proj.axis_info[0].unit_conversion_factor
    nominal = (width + height) / 2 * unit
    if abs((gsd_x + gsd_y) / 2 / nominal - 1) > _TOLERANCE:
        warnings.warn(
            f"{where}: a pixel is {(gsd_x + gsd_y) / 2:.4f} m on the ground, not the {nominal:.4f} m that {crs} says;"
            " sizes in metres are those on the ground",
            stacklevel=3,
        )
    return geobox, gsd_x, gsd_y


def _unplaced(file: Any, where: str) -> GridError:
    name = Path(where).name
    if file.gcps[0]:
        advice = f"it has ground control points: gdalwarp -r bilinear -dstalpha -of COG {name} placed.tif"
    elif file.crs is None and file.transform != Affine.identity():
        advice = f"name its CRS: gdal_edit.py -a_srs EPSG:... {name}"
    else:
        advice = "export it with georeference (world files and .aux.xml are not read: gdal_translate makes one file)"
    return GridError(
        "the mosaic has no CRS" if file.crs is None else "the mosaic has a CRS but no place: its pixels are counted",
        where=where,
        what_to_do=f"{advice}; or allow_ungeoreferenced=True to cut chips only",
        code="grid-unplaced",
    )


def _horizontal_crs(stated: Any) -> CRS:
    """CRS of the map, by its EPSG code where it has one; the vertical part of a compound CRS is left out."""
    crs = as_crs(f"EPSG:{stated.to_epsg()}" if stated.to_epsg() else stated.to_wkt())
    if crs.proj.is_compound:
        flat = crs.proj.sub_crs_list[0]
        crs = as_crs(f"EPSG:{flat.to_epsg()}" if flat.to_epsg() else flat.to_wkt())
    return crs


def geodesic_size(geobox: GeoBox, where: str) -> tuple[float, float]:
    """True width and height of a pixel at the centre of a grid, by geodesics (Karney 2013) over up to 64 pixels."""
    from pyproj import Geod, Transformer

    rows, columns = (int(n) for n in geobox.shape)
    span_x, span_y = min(columns, 64), min(rows, 64)
    place = geobox.transform
    across = place.c + place.a * (columns / 2 + np.array([-span_x / 2, span_x / 2, 0, 0]))
    down = place.f + place.e * (rows / 2 + np.array([0, 0, -span_y / 2, span_y / 2]))
    to_degrees = Transformer.from_crs(str(geobox.crs), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(across, down)
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        raise GridError("the mosaic lies outside of its CRS", where=where, what_to_do="check its CRS")
    lengths = Geod(ellps="WGS84").inv(lon[0::2], lat[0::2], lon[1::2], lat[1::2])[2]
    return float(lengths[0] / span_x), float(lengths[1] / span_y)
