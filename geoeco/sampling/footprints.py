"""Where the chip of a location lies: exact pixel windows, centred on the location.

The window is snapped to whole 60 m in UTM, so that 10, 20 and 60 m bands of Sentinel-2 line up in it; the location is
never further than 30 m from the chip's centre in either direction. No window is ever derived from a box in degrees.
"""

from __future__ import annotations

import math
from functools import cache

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from geoeco.errors import InputError
from geoeco.grid import SENTINEL2_SNAP_M

__all__ = ["chip_geobox"]


@cache
def _to_utm(epsg: int) -> Transformer:
    return Transformer.from_crs("EPSG:4326", CRS(f"EPSG:{epsg}").proj, always_xy=True)


@cache
def _crs(epsg: int) -> CRS:
    return CRS(f"EPSG:{epsg}")


def chip_geobox(
    lon: float, lat: float, epsg: int, *, size: int = 264, resolution: float = 10.0, snap: float = SENTINEL2_SNAP_M
) -> GeoBox:
    """Grid of the chip that is centred on a location.

    Parameters
    ----------
    lon, lat : float
        Degrees.
    epsg : int
        Projected CRS of the chip, metres.
    size : int
        Pixels along a side.
    resolution : float
        Metres.
    snap : float
        The edges of the chip nearest the origin are whole multiples of this, metres.

    Returns
    -------
    odc.geo.geobox.GeoBox
        ``size`` x ``size`` pixels, north up. Its centre lies within ``snap / 2`` of the location in x and in y.
    """
    if size < 1 or not resolution > 0 or not snap > 0:
        raise InputError("size, resolution and snap of a chip must be positive")
    x, y = _to_utm(epsg).transform(lon, lat)
    if not (math.isfinite(x) and math.isfinite(y)):
        raise InputError(f"({lon}, {lat}) has no coordinates in EPSG:{epsg}")
    # a location on the edge between two windows must not fall to either by the last bit of its projection
    x, y = round(x, 3), round(y, 3)
    extent = size * resolution
    left = math.floor((x - extent / 2.0) / snap + 0.5) * snap
    top = math.floor((y + extent / 2.0) / snap + 0.5) * snap
    return GeoBox((size, size), Affine(resolution, 0.0, left, 0.0, -resolution, top), _crs(epsg))
