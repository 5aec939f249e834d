"""Location grids that cover the globe evenly.

`major_tom_grid` is the grid of Major TOM (Francis and Czerkawski, 2024, arXiv 2402.12095) at any spacing: rows of
equal height, and in each row as many columns as keep the cells at least as narrow as they are high. It says where
samples lie, not what is imaged there.
"""

from __future__ import annotations

import math

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from geoeco.catalog import area_lonlat
from geoeco.errors import GridError, InputError
from geoeco.grid import bbox_geometry
from geoeco.sampling.land import is_land

__all__ = ["major_tom_grid"]

#: Earth radius of the Major TOM grid, metres (the equatorial radius of WGS 84).
EARTH_RADIUS_M = 6_378_137.0


def normalise_longitude(lon: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Longitudes in [-180, 180): 180 and -180 are one meridian."""
    values = np.asarray(lon, dtype=np.float64)
    wrapped = np.mod(values + 180.0, 360.0) - 180.0
    # a longitude just west of -180 rounds up to +180 in floating point
    return np.where(wrapped >= 180.0, -180.0, wrapped)


def utm_epsg(lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """EPSG codes of the UTM zones (WGS 84) of many points, with the exceptions of Norway and Svalbard.

    Same zones as `geoeco.grid.utm_crs`, for arrays of degrees.
    """
    lon, lat = normalise_longitude(lon), np.asarray(lat, dtype=np.float64)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and (np.abs(lat) <= 90).all()):
        raise GridError("longitudes and latitudes must be finite, latitudes within -90..90")
    zone = np.minimum((lon + 180.0) // 6.0 + 1, 60).astype(np.int64)
    zone = np.where((lat >= 56) & (lat < 64) & (lon >= 3) & (lon < 12), 32, zone)
    svalbard = (lat >= 72) & (lat < 84) & (lon >= 0) & (lon < 42)
    zone = np.where(svalbard, np.select([lon < 9, lon < 21, lon < 33], [31, 33, 35], 37), zone)
    return np.asarray(np.where(lat >= 0, 32600, 32700) + zone, dtype=np.int64)


def _columns(latitude: float, spacing_m: float) -> int:
    circumference = 2.0 * math.pi * EARTH_RADIUS_M * math.cos(math.radians(latitude))
    # a circumference that is a whole number of spacings must not gain a column through rounding
    return max(1, math.ceil(circumference / spacing_m - 1e-9))


def _inside(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], area: BaseGeometry | None
) -> npt.NDArray[np.bool_]:
    if area is None:
        return np.ones(lon.shape, dtype=bool)
    shapely.prepare(area)
    inside: npt.NDArray[np.bool_] = shapely.intersects_xy(area, lon, lat)
    # 180 and -180 degrees are one meridian, and an area may end on either
    seam = lon == -180.0
    inside[seam] |= shapely.intersects_xy(area, 180.0, lat[seam])
    return inside


def _lonlat_area(
    bbox: tuple[float, float, float, float] | None, area: Geometry | gpd.GeoDataFrame | gpd.GeoSeries | None
) -> BaseGeometry | None:
    """Bring an area to longitude and latitude, cut at the antimeridian."""
    if bbox is not None and area is not None:
        raise InputError("both bbox and area are given", what_to_do="give one of them")
    if bbox is not None:
        return area_lonlat(bbox_geometry(bbox))
    if area is None:
        return None
    if isinstance(area, gpd.GeoDataFrame | gpd.GeoSeries):
        if area.crs is None:
            raise GridError("the area of interest has no CRS", what_to_do="give its CRS")
        area = Geometry(area.geometry.union_all(), str(area.crs))
    return area_lonlat(area)


def _names(index: npt.NDArray[np.int64], plus: str, minus: str) -> npt.NDArray[np.object_]:
    values, inverse = np.unique(index, return_inverse=True)
    texts = np.array([f"{abs(int(v))}{plus if v >= 0 else minus}" for v in values], dtype=object)
    return np.asarray(texts[inverse])


def major_tom_grid(
    spacing_m: float = 23_000.0,
    *,
    latitude: tuple[float, float] = (-85.0, 85.0),
    bbox: tuple[float, float, float, float] | None = None,
    area: Geometry | gpd.GeoDataFrame | gpd.GeoSeries | None = None,
    land: str | gpd.GeoDataFrame | None = None,
    anchor: str = "centre",
) -> gpd.GeoDataFrame:
    """Locations of the Major TOM grid.

    With R the equatorial radius and D the spacing there are ``n = ceil(pi R / D)`` rows in all, row ``k`` begins at
    latitude ``180 k / n``, and a row at latitude ``phi`` has ``m = ceil(2 pi R cos(phi) / D)`` columns, column ``j``
    beginning at longitude ``360 j / m``. The equator and Greenwich are always cell edges. A cell is named after its
    lower left corner, ``12U_34R``: rows up or down from the equator, columns right or left of Greenwich.

    Parameters
    ----------
    spacing_m : float
        Height and greatest width of a cell, metres.
    latitude : tuple of float
        Rows whose *lower edge* lies within these latitudes (both inclusive) are kept.
    bbox : tuple of float, optional
        west, south, east, north in degrees; ``west > east`` crosses the antimeridian. Cells whose anchor lies inside
        are kept.
    area : odc.geo.geom.Geometry or geopandas.GeoDataFrame, optional
        The same with any area, in any CRS.
    land : str, path or geopandas.GeoDataFrame, optional
        Keep only cells whose anchor is on land: ``"naturalearth"`` for the 1:110 million outlines that come with
        geoeco, or polygons of your own. Testing centres or corners changes the count by percents.
    anchor : {"centre", "corner"}
        Where in its cell a location lies. The cell names are the same for both.

    Returns
    -------
    geopandas.GeoDataFrame
        One row a location, south to north and west to east: ``name``, ``row``, ``col`` (signed integers, 0 is the
        first row north of the equator and the first column east of Greenwich), ``lon``, ``lat`` (degrees, longitudes
        in [-180, 180)), ``epsg`` (UTM zone at the anchor, with the exceptions of Norway and
        Svalbard) and the point, EPSG:4326.

    Raises
    ------
    InputError
        If the spacing or the anchor make no sense.
    GridError
        If the area or the latitudes make no sense.

    Notes
    -----
    At 23 km and +-85 degrees: 872 rows from pole to pole, 963 919 cells.
    """
    if not (math.isfinite(spacing_m) and 0 < spacing_m <= math.pi * EARTH_RADIUS_M):
        raise InputError(f"spacing_m={spacing_m} is not a distance on Earth", what_to_do="give metres")
    if anchor not in ("centre", "corner"):
        raise InputError(f"unknown anchor {anchor!r}", what_to_do='use "centre" or "corner"')
    low, high = latitude
    if not -90 <= low < high <= 90:
        raise GridError(f"latitudes {latitude}: give the southern, then the northern limit, within -90..90")
    region = _lonlat_area(bbox, area)
    count = math.ceil(math.pi * EARTH_RADIUS_M / spacing_m - 1e-9)
    half = 0.5 if anchor == "centre" else 0.0

    rows, cols, lons, lats = [], [], [], []
    south, north = (-90.0, 90.0) if region is None else region.bounds[1::2]
    for k in range(-(count // 2), count - count // 2):
        edge, row_lat = 180.0 * k / count, 180.0 * (k + half) / count
        if not (low <= edge <= high) or not (south <= row_lat <= north):
            continue
        m = _columns(edge, spacing_m)
        j = np.arange(-(m // 2), m - m // 2, dtype=np.int64)
        lon = normalise_longitude(360.0 * (j + half) / m)
        lat = np.full(m, row_lat)
        keep = _inside(lon, lat, region)
        rows.append(np.full(int(keep.sum()), k, dtype=np.int64))
        cols.append(j[keep])
        lons.append(lon[keep])
        lats.append(lat[keep])
    row = np.concatenate(rows) if rows else np.empty(0, np.int64)
    col = np.concatenate(cols) if cols else np.empty(0, np.int64)
    lon = np.concatenate(lons) if lons else np.empty(0)
    lat = np.concatenate(lats) if lats else np.empty(0)
    if land is not None and lon.size:
        keep = is_land(lon, lat, land)
        row, col, lon, lat = row[keep], col[keep], lon[keep], lat[keep]
    names = _names(row, "U", "D") + "_" + _names(col, "R", "L") if row.size else np.empty(0, dtype=object)
    table = pd.DataFrame({"name": names, "row": row, "col": col, "lon": lon, "lat": lat, "epsg": utm_epsg(lon, lat)})
    return gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(lon, lat), crs="EPSG:4326")
