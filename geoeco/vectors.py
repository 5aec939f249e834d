"""Tables on the map: areas of interest and tables of points, read with their CRS checked and their geometry valid.

Not about grids (`geoeco.grid`) nor about what is sampled at the points (`geoeco.sampling`).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs, bbox_geometry

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["AreaSource", "PointSource", "area_of_interest", "points_table", "read_table"]

#: What `area_of_interest` reads.
AreaSource = str | os.PathLike[str] | Sequence[float] | Mapping[str, Any] | Geometry
#: What `points_table` reads: a path, a pandas DataFrame or a geopandas GeoDataFrame.
PointSource = Any

_LON_NAMES = ("lon", "longitude", "decimallongitude", "long", "lng", "x")
_LAT_NAMES = ("lat", "latitude", "decimallatitude", "y")
_VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".gml", ".zip")


# --- areas -----------------------------------------------------------------------------------------------------------


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
        stated = _geojson_crs(source)
        return _area(
            _geojson_geometry(source), _agreed(stated or as_crs(4326), crs, stated is not None, "GeoJSON"), "GeoJSON"
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


def _geojson_crs(record: Mapping[str, Any]) -> CRS | None:
    """CRS that a GeoJSON states in the way of 2008 (``crs`` member)."""
    stated = record.get("crs")
    name = (stated or {}).get("properties", {}).get("name") if isinstance(stated, Mapping) else None
    return None if name is None else as_crs(str(name))


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


def _agreed(own: CRS | None, given: str | int | CRS | None, stated: bool, where: str) -> CRS:
    """CRS of a source: its own, or the given one where it states none; an error if both differ."""
    if given is None:
        if own is None:
            raise GridError("this layer states no CRS", where=where, what_to_do="give it by `crs`")
        return own
    wanted = as_crs(given)
    if own is not None and stated and own != wanted:
        raise GridError(
            f"the layer is in {_name(own)}, not in {_name(wanted)}",
            where=where,
            what_to_do="leave `crs` out, or reproject the layer first",
        )
    return wanted


def _name(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs)[:60]


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
    _check_domain(joined.bounds, crs, where)
    return Geometry(mapping(joined), crs)


def _check_domain(bounds: Sequence[float], crs: CRS, where: str) -> None:
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


def _area_from_file(path: Path, crs: str | int | CRS | None, layer: str | None) -> Geometry:
    import shapely

    frame = _read_vector(path, layer)
    if frame.empty or frame.geometry.isna().all() or frame.geometry.is_empty.all():
        raise InputError("this layer has no features", where=str(path))
    own = _frame_crs(frame)
    stated = own is not None and not _is_plain_geojson(path)
    # repaired one by one, so that one bad polygon among many does not swallow the rest
    shapes = [g for g in frame.geometry if g is not None and not g.is_empty]
    broken = sum(not g.is_valid for g in shapes)
    if broken:
        warnings.warn(f"{broken} polygons of {path} were repaired", stacklevel=3)
        shapes = [g if g.is_valid else shapely.make_valid(g) for g in shapes]
    return _area(shapely.union_all(shapes), _agreed(own, crs, stated, str(path)), str(path))


def _frame_crs(frame: gpd.GeoDataFrame) -> CRS | None:
    """CRS of a layer, by its EPSG code where it has one; None for the placeholders that GeoPackage writes for none."""
    if frame.crs is None or frame.crs.name.lower().startswith(("undefined", "unknown")):
        return None
    epsg = frame.crs.to_epsg()
    return as_crs(epsg if epsg is not None else frame.crs.to_wkt())


def _is_plain_geojson(path: Path) -> bool:
    """Whether a file is GeoJSON that states no CRS, so that GDAL's longitude and latitude is a default."""
    if path.suffix.lower() not in (".geojson", ".json"):
        return False
    try:
        return _geojson_crs(json.loads(path.read_text(encoding="utf-8"))) is None
    except (OSError, ValueError):
        return False


def _read_vector(path: Path, layer: str | None) -> gpd.GeoDataFrame:
    import geopandas as gpd

    if str(path).startswith("/vsi"):
        raise InputError("GDAL virtual file systems are not read", where=str(path), what_to_do="give a plain file")
    if not path.exists():
        raise InputError("there is no such file", where=str(path), what_to_do="check the path")
    try:
        frame = gpd.read_file(path, layer=layer) if layer else gpd.read_file(path)
    except Exception as error:
        raise InputError(
            f"this file cannot be read as a vector layer: {error}",
            where=str(path),
            what_to_do="give GeoPackage, GeoJSON or Shapefile",
        ) from error
    if not isinstance(frame, gpd.GeoDataFrame) or frame._geometry_column_name is None:
        raise InputError("this layer has no geometry", where=str(path))
    return frame


# --- points ----------------------------------------------------------------------------------------------------------


def points_table(
    source: PointSource,
    *,
    lon: str | None = None,
    lat: str | None = None,
    crs: str | int | CRS | None = None,
    layer: str | None = None,
    bad: Literal["raise", "drop"] = "raise",
    duplicates: Literal["raise", "drop", "keep"] = "raise",
) -> gpd.GeoDataFrame:
    """Table of points in longitude and latitude.

    Parameters
    ----------
    source : path, DataFrame or GeoDataFrame
        CSV (also semicolon- or tab-separated, UTF-8 or Latin-1, compressed), Parquet, GeoParquet, GeoPackage,
        GeoJSON, Shapefile.
    lon, lat : str, optional
        Columns with the coordinates; found by their usual names (lon, longitude, decimalLongitude, x; lat, ...)
        where not given. Not used where the source has point geometries.
    crs : str, int or CRS, optional
        CRS of the coordinates: longitude and latitude where they are columns, the layer's own where it has one.
    layer : str, optional
        Layer of a file with several.
    bad : {"raise", "drop"}
        What to do with points whose coordinates are missing, not finite, outside the CRS, or exactly (0, 0).
    duplicates : {"raise", "drop", "keep"}
        What to do with points at exactly the place of an earlier one; they would be sampled twice, and leak between
        training and test.

    Returns
    -------
    geopandas.GeoDataFrame
        EPSG:4326, point geometries with longitudes in -180..180 (180 itself becomes -180), a fresh index; the source's
        other columns kept; ``attrs["dropped"]`` holds how many rows were left out and why.

    Raises
    ------
    InputError
        If the file is missing or unreadable, a column is missing, the table is empty (also after dropping), or it
        holds bad or duplicate points that are not to be dropped; the message gives counts and first rows.
    GridError
        If there is no CRS or it contradicts the layer's own.
    """
    import geopandas as gpd

    where = str(source) if isinstance(source, str | os.PathLike) else "the table"
    frame = read_table(source, layer=layer)
    if len(frame) == 0:
        raise InputError("the table has no rows", where=where)
    if isinstance(frame, gpd.GeoDataFrame) and frame._geometry_column_name is not None and lon is None and lat is None:
        x, y = _geometry_coordinates(frame, where)
        own = _frame_crs(frame)
        table_crs = _agreed(own, crs, own is not None, where)
        data: pd.DataFrame = frame.drop(columns=frame.geometry.name)
    else:
        x = _coordinate(frame, lon, _LON_NAMES, "longitude", where)
        y = _coordinate(frame, lat, _LAT_NAMES, "latitude", where)
        table_crs = as_crs(4326 if crs is None else crs)
        data = frame.drop(columns=frame.geometry.name) if isinstance(frame, gpd.GeoDataFrame) else frame
    dropped: dict[str, int] = {}
    reasons = _bad_points(x, y, table_crs)
    keep = np.ones(len(x), dtype=bool)
    for reason, flags in reasons.items():
        if not (hit := flags & keep).any():
            continue
        if bad == "raise":
            raise InputError(
                f"{int(hit.sum())} of {len(x)} points: {reason}",
                where=f"{where}, first at row {int(np.flatnonzero(hit)[0])} (x {x[hit][0]}, y {y[hit][0]})",
                what_to_do=_hint(reason, x, y, table_crs),
                code="points-bad",
            )
        dropped[reason] = int(hit.sum())
        keep &= ~hit
    import pandas as pd

    if table_crs.geographic:
        # 180 and -180 are one meridian, 355 and -5 another
        x = np.where(x >= 180, x - 360, x)
    again = np.zeros(len(x), dtype=bool)
    again[keep] = pd.DataFrame({"x": x[keep], "y": y[keep]}).duplicated().to_numpy()
    if again.any() and duplicates != "keep":
        if duplicates == "raise":
            raise InputError(
                f"{int(again.sum())} of {len(x)} points repeat the place of an earlier one",
                where=f"{where}, first at row {int(np.flatnonzero(again)[0])}",
                what_to_do="set duplicates='drop' to keep the first of each, or 'keep' to keep all",
                code="points-duplicate",
            )
        dropped["repeats an earlier place"] = int(again.sum())
        keep &= ~again
    if not keep.any():
        raise InputError(
            "no usable point is left",
            where=where,
            what_to_do="; ".join(f"{count}: {reason}" for reason, count in dropped.items()),
        )
    geometry = gpd.points_from_xy(x[keep], y[keep], crs=str(table_crs))
    table = gpd.GeoDataFrame(data.loc[keep].reset_index(drop=True), geometry=geometry)
    table = table if table_crs.epsg == 4326 else table.to_crs("EPSG:4326")
    table.attrs["dropped"] = dropped
    return table


def _hint(reason: str, x: npt.NDArray[Any], y: npt.NDArray[Any], crs: CRS) -> str:
    if "outside" in reason and crs.geographic:
        if np.nanmax(np.abs(x)) <= 90 and np.nanmax(np.abs(y)) <= 360:
            return "longitude and latitude may be swapped: check `lon` and `lat`"
        if np.nanmedian(np.abs(x)) > 360:
            return "these look like metres: give their CRS by `crs`"
    return "repair the table, or set bad='drop'"


def _bad_points(x: npt.NDArray[Any], y: npt.NDArray[Any], crs: CRS) -> dict[str, npt.NDArray[np.bool_]]:
    missing = ~(np.isfinite(x) & np.isfinite(y))
    null_island = (x == 0) & (y == 0)
    if crs.geographic:
        outside = (np.abs(y) > 90) | (np.abs(x) > 360) | (x < -180)
    else:
        from pyproj import Transformer

        lon, lat = Transformer.from_crs(str(crs), "EPSG:4326", always_xy=True).transform(x, y)
        outside = ~(np.isfinite(lon) & np.isfinite(lat)) & ~missing
    return {
        "coordinates are missing or not finite": missing,
        "coordinates are exactly (0, 0), which stands for unknown": null_island,
        f"coordinates lie outside {_name(crs)}": outside,
    }


def _geometry_coordinates(frame: gpd.GeoDataFrame, where: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    kinds = sorted({str(kind) for kind in frame.geometry.geom_type.dropna().unique()})
    if kinds != ["Point"] and kinds:
        raise InputError(
            f"these are not points but {', '.join(kinds)}", where=where, what_to_do="take centroids, or explode them"
        )
    empty = (frame.geometry.isna() | frame.geometry.is_empty).to_numpy()
    x, y = np.full(len(frame), np.nan), np.full(len(frame), np.nan)
    x[~empty], y[~empty] = frame.geometry[~empty].x.to_numpy(), frame.geometry[~empty].y.to_numpy()
    return x, y


def _coordinate(
    frame: pd.DataFrame, column: str | None, usual: tuple[str, ...], what: str, where: str
) -> npt.NDArray[Any]:
    """Coordinates of a column as floats; what is no number is an error that shows it."""
    import pandas as pd

    names = {str(name).strip().lower(): name for name in frame.columns}
    if column is not None:
        found = column if column in frame.columns else names.get(column.strip().lower())
    else:
        found = next((names[name] for name in usual if name in names), None)
    if found is None:
        raise InputError(
            f"the table has no column {column!r}" if column else f"no column of the table looks like {what}",
            where=f"{where}; its columns are {', '.join(map(str, list(frame.columns)[:30]))}",
            what_to_do="name the columns by `lon` and `lat`",
        )
    numbers = pd.to_numeric(frame[found], errors="coerce")
    wrong = numbers.isna() & frame[found].notna() & (frame[found].astype(str).str.strip() != "")
    if wrong.any():
        raise InputError(
            f"{frame.loc[wrong, found].iloc[0]!r} in column {found!r} is not a number",
            where=f"{where}, row {int(np.flatnonzero(wrong.to_numpy())[0])}",
            what_to_do="write decimal degrees with a point, 52.25",
        )
    values: npt.NDArray[Any] = numbers.to_numpy(dtype=float)
    return values


def read_table(source: PointSource, *, layer: str | None = None) -> pd.DataFrame:
    """Read a table as it is, nothing checked but that it can be read.

    Parameters
    ----------
    source : path, DataFrame or GeoDataFrame
        As in `points_table`.
    layer : str, optional
        Layer of a file with several.

    Returns
    -------
    pandas.DataFrame
        A GeoDataFrame where the source has geometries; with a fresh index.

    Raises
    ------
    InputError
        If it is missing or cannot be read.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source.reset_index(drop=True)
    path = Path(source)
    if not path.exists():
        raise InputError("there is no such file", where=str(path), what_to_do="check the path")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if {".parquet", ".geoparquet"} & set(suffixes):
        return _read_parquet(path)
    if suffixes and suffixes[-1] in _VECTOR_SUFFIXES:
        layer_table: pd.DataFrame = _read_vector(path, layer)
        return layer_table
    if {".csv", ".tsv", ".txt"} & set(suffixes):
        return _read_csv(path)
    raise InputError(
        f"no reader for {path.suffix or 'a file without suffix'}",
        where=str(path),
        what_to_do="give CSV, Parquet, GeoPackage, GeoJSON or Shapefile",
    )


def _read_parquet(path: Path) -> pd.DataFrame:
    import geopandas as gpd
    import pandas as pd

    try:
        import pyarrow.parquet as pq

        is_geo = b"geo" in (pq.read_schema(path).metadata or {})
        frame: pd.DataFrame = gpd.read_parquet(path) if is_geo else pd.read_parquet(path)
    except Exception as error:
        raise InputError(f"this is not a Parquet file: {error}", where=str(path)) from error
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a table of text: the separator is the one that splits the header most, Latin-1 where it is not UTF-8."""
    import pandas as pd

    def read(encoding: str) -> pd.DataFrame:
        import fsspec

        with fsspec.open(str(path), "rt", compression="infer", encoding=encoding) as file:
            header = file.readline()
        separator = max(",;\t|", key=header.count)
        return pd.read_csv(path, sep=separator, encoding=encoding, low_memory=False)

    readers: Sequence[Callable[[], pd.DataFrame]] = (lambda: read("utf-8-sig"), lambda: read("latin-1"))
    try:
        try:
            return readers[0]()
        except UnicodeDecodeError:
            return readers[1]()
    except pd.errors.EmptyDataError as error:
        raise InputError("the table is empty", where=str(path)) from error
    except Exception as error:
        raise InputError(f"this file cannot be read as a table: {error}", where=str(path)) from error
