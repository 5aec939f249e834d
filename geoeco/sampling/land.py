"""Land or sea: which locations lie on land.

The outlines that come with geoeco are coarse (1:110 million, Natural Earth, public domain) and meant for sampling the
globe; for a coast or an island bring finer polygons.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geoeco.errors import GridError, InputError

__all__ = ["is_land", "land_mask", "natural_earth"]

#: Side of the squares into which polygons are cut before points are looked up, degrees.
_TILE_DEG = 5.0


def natural_earth(layer: str = "land") -> gpd.GeoDataFrame:
    """Outlines of Natural Earth 1:110 million that come with geoeco, EPSG:4326.

    Parameters
    ----------
    layer : {"land", "countries"}
        Land without borders, or countries with ``name``, ``iso_a3`` and ``continent``.
    """
    if layer not in ("land", "countries"):
        raise InputError(f"no Natural Earth layer {layer!r}", what_to_do='use "land" or "countries"')
    with resources.as_file(resources.files("geoeco") / "data" / "naturalearth" / f"ne_110m_{layer}.parquet") as path:
        return gpd.read_parquet(path)


def _cut(polygons: gpd.GeoDataFrame) -> npt.NDArray[np.object_]:
    """Cut polygons into small pieces: looking a point up in a large outline is slow."""
    pieces: list[shapely.Geometry] = []
    for geom in polygons.geometry.explode(index_parts=False):
        if geom is None or geom.is_empty:
            continue
        west, south, east, north = geom.bounds
        if max(east - west, north - south) <= _TILE_DEG:
            pieces.append(geom)
            continue
        for left in np.arange(np.floor(west / _TILE_DEG) * _TILE_DEG, east, _TILE_DEG):
            column = shapely.clip_by_rect(geom, left, -90.0, left + _TILE_DEG, 90.0)
            if column.is_empty:
                continue
            for bottom in np.arange(np.floor(south / _TILE_DEG) * _TILE_DEG, north, _TILE_DEG):
                piece = shapely.clip_by_rect(column, left, bottom, left + _TILE_DEG, bottom + _TILE_DEG)
                if not piece.is_empty:
                    pieces.append(piece)
    return np.array(pieces, dtype=object)


@cache
def _shipped_pieces() -> npt.NDArray[np.object_]:
    return _cut(natural_earth("land"))


def _pieces(land: str | Path | gpd.GeoDataFrame) -> npt.NDArray[np.object_]:
    if isinstance(land, str) and land == "naturalearth":
        return _shipped_pieces()
    if isinstance(land, str | Path):
        try:
            table = gpd.read_parquet(land) if str(land).endswith(".parquet") else gpd.read_file(land)
        except Exception as error:
            raise InputError(
                "the land polygons cannot be read",
                where=str(land),
                what_to_do='give a vector file that GDAL reads, or "naturalearth"',
            ) from error
    elif isinstance(land, gpd.GeoDataFrame):
        table = land
    else:
        raise InputError(f"land={land!r} is neither a path nor polygons", what_to_do='use "naturalearth" or a path')
    if table.crs is None:
        raise GridError("the land polygons have no CRS", where=str(land) if isinstance(land, str | Path) else "")
    if not table.geometry.geom_type.isin(["Polygon", "MultiPolygon"]).all():
        raise InputError("land must be polygons", what_to_do="leave out points and lines")
    return _cut(table.to_crs("EPSG:4326"))


def is_land(
    lon: npt.ArrayLike, lat: npt.ArrayLike, land: str | Path | gpd.GeoDataFrame = "naturalearth"
) -> npt.NDArray[np.bool_]:
    """For arrays of degrees: True where the point is on land (or on its shore line).

    Parameters
    ----------
    lon, lat : array_like, shape (n,)
        Degrees. Points that are not finite are not on land.
    land : str, path or geopandas.GeoDataFrame
        ``"naturalearth"``, a vector file, or polygons.
    """
    lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
    found = np.zeros(lon.shape, dtype=bool)
    finite = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat))
    pieces = _pieces(land)
    if not len(pieces) or not len(finite):
        return found
    tree = shapely.STRtree(pieces)
    wrapped = np.mod(lon[finite] + 180.0, 360.0) - 180.0
    points = shapely.points(wrapped, lat[finite])
    found[finite[np.unique(tree.query(points, predicate="intersects")[0])]] = True
    # -180 and 180 are one meridian, and outlines may end on either
    seam = finite[wrapped == -180.0]
    if len(seam):
        east = shapely.points(np.full(len(seam), 180.0), lat[seam])
        found[seam[np.unique(tree.query(east, predicate="intersects")[0])]] = True
    return found


def land_mask(
    locations: gpd.GeoDataFrame, land: str | Path | gpd.GeoDataFrame = "naturalearth"
) -> npt.NDArray[np.bool_]:
    """Which locations lie on land.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        Points in any CRS.
    land : str, path or geopandas.GeoDataFrame
        ``"naturalearth"`` for the outlines that come with geoeco (1:110 million: islands below some tens of
        kilometres are missing), or finer polygons.

    Returns
    -------
    numpy.ndarray of bool, shape (location,)

    Raises
    ------
    GridError
        If the locations or the polygons have no CRS.
    """
    if locations.crs is None:
        raise GridError("the locations have no CRS", what_to_do="set it, for example EPSG:4326")
    points = locations.geometry.to_crs("EPSG:4326")
    return is_land(points.x.to_numpy(), points.y.to_numpy(), land)
