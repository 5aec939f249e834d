"""Tables of points in longitude and latitude, read with their CRS checked.

Not about what is sampled at the points (`geoeco.sampling`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from odc.geo.crs import CRS

from geoeco.errors import InputError
from geoeco.grid import as_crs
from geoeco.vectors.layers import agreed_crs, crs_name, frame_crs, read_layer

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["PointSource", "points_table", "read_table"]

#: What `points_table` reads: a path, a pandas DataFrame or a geopandas GeoDataFrame.
PointSource = Any

_LON_NAMES = ("lon", "longitude", "decimallongitude", "long", "lng", "x")
_LAT_NAMES = ("lat", "latitude", "decimallatitude", "y")
_VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".gml", ".zip")


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
        own = frame_crs(frame)
        table_crs = agreed_crs(own, crs, own is not None, where)
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
        f"coordinates lie outside {crs_name(crs)}": outside,
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
        layer_table: pd.DataFrame = read_layer(path, layer)
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
