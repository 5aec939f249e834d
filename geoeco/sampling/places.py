"""Tables of sampling locations: from a file or a table of points to the columns that this room works on.

A table of locations is a GeoDataFrame with ``name`` (text), ``lon``, ``lat`` (degrees, longitudes in [-180, 180)),
``epsg`` (UTM zone) and the point in EPSG:4326. Rows that cannot be used are left out and listed, with the reason, in
``table.attrs["dropped"]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs
from geoeco.sampling.grids import normalise_longitude, utm_epsg
from geoeco.vectors import read_table

__all__ = ["check_locations", "points_from_table", "sort_by_place"]

#: Rows listed by name in one reason for dropping; the count is always complete.
_LISTED = 20


def dropped(names: list[str], code: str, what: str) -> dict[str, Any]:
    """One entry of ``attrs["dropped"]``: how many rows went, which (the first ones), and why."""
    return {"code": code, "what": what, "count": len(names), "names": [str(n) for n in names[:_LISTED]]}


def _column(table: pd.DataFrame, wanted: str | None, guesses: tuple[str, ...], where: str) -> str:
    if wanted is not None:
        if wanted not in table.columns:
            raise InputError(
                f"the table has no column {wanted!r}",
                where=where,
                what_to_do=f"its columns are {', '.join(map(str, table.columns))}",
            )
        return wanted
    lower = {str(c).lower(): str(c) for c in table.columns}
    for guess in guesses:
        if guess in lower:
            return lower[guess]
    raise InputError(
        f"no column named {' or '.join(guesses)}",
        where=where,
        what_to_do="name the columns: lon=..., lat=...",
    )


def points_from_table(
    table: str | Path | pd.DataFrame,
    *,
    lon: str | None = None,
    lat: str | None = None,
    name: str | None = None,
    crs: str | int | None = None,
) -> gpd.GeoDataFrame:
    """Locations from a table of points.

    Parameters
    ----------
    table : path, pandas.DataFrame or geopandas.GeoDataFrame
        A CSV, Parquet or vector file, or a table in memory. Points of a geometry column are used where there is
        one, otherwise two columns.
    lon, lat : str, optional
        Columns of x and y; by default ``lon``/``longitude``/``x`` and ``lat``/``latitude``/``y``.
    name : str, optional
        Column of unique names; by default ``name`` where there is one, else the row number.
    crs : str or int, optional
        CRS of the coordinates: EPSG:4326 for columns unless given; a geometry column must carry its own.

    Returns
    -------
    geopandas.GeoDataFrame
        ``name``, ``lon``, ``lat``, ``epsg``, the other columns of the table, and the point, in the order of the
        table. ``attrs["dropped"]`` lists what was left out: points without finite coordinates or outside the world.

    Raises
    ------
    InputError
        If the table cannot be read, lacks the columns, is empty, or names a location twice.
    GridError
        If the CRS is missing or unknown.
    """
    where = str(table) if isinstance(table, str | Path) else ""
    frame = read_table(table)
    if not len(frame):
        raise InputError("the table of points is empty", where=where, what_to_do="give at least one row")
    if isinstance(frame, gpd.GeoDataFrame) and lon is None and lat is None:
        if frame.crs is None and crs is None:
            raise GridError("the points have no CRS", where=where, what_to_do="give crs=, for example EPSG:4326")
        geometry = frame.geometry if frame.crs is not None else frame.geometry.set_crs(str(as_crs(crs or 4326)))
        if not (geometry.geom_type.isna() | (geometry.geom_type == "Point")).all():
            raise InputError("the table holds lines or polygons", where=where, what_to_do="give points")
        points = geometry.to_crs("EPSG:4326")
        x, y = points.x.to_numpy(dtype=float), points.y.to_numpy(dtype=float)
        rest = pd.DataFrame(frame.drop(columns=frame.geometry.name))
    else:
        x_name = _column(frame, lon, ("lon", "longitude", "x"), where)
        y_name = _column(frame, lat, ("lat", "latitude", "y"), where)
        x = pd.to_numeric(frame[x_name], errors="coerce").to_numpy(dtype=float)
        y = pd.to_numeric(frame[y_name], errors="coerce").to_numpy(dtype=float)
        source = as_crs(crs if crs is not None else 4326)
        if not source.geographic:
            points = gpd.GeoSeries(gpd.points_from_xy(x, y), crs=str(source)).to_crs("EPSG:4326")
            x, y = points.x.to_numpy(dtype=float), points.y.to_numpy(dtype=float)
        rest = pd.DataFrame(frame)
        if isinstance(frame, gpd.GeoDataFrame):
            rest = rest.drop(columns=frame.geometry.name)
    if name is not None or "name" in rest.columns:
        names = rest[_column(rest, name or "name", (), where)].astype(str)
    else:
        names = pd.Series([str(i) for i in range(len(rest))], index=rest.index)
    others = rest.drop(columns=[c for c in ("name", "lon", "lat", "epsg") if c in rest.columns])
    result = gpd.GeoDataFrame(
        pd.concat(
            [
                pd.DataFrame({"name": names.to_numpy(dtype=object), "lon": x, "lat": y}),
                others.reset_index(drop=True),
            ],
            axis=1,
        ),
        geometry=gpd.points_from_xy(x, y),
        crs="EPSG:4326",
    )
    return check_locations(result)


def check_locations(locations: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Bring locations to the columns that this room needs; unusable rows are left out and listed.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        Points in any CRS; ``name`` is made from the row number and ``epsg`` from the UTM zone where missing.

    Returns
    -------
    geopandas.GeoDataFrame
        In EPSG:4326 with a fresh index; ``attrs["dropped"]`` lists points that are missing, not finite or outside
        the world.

    Raises
    ------
    InputError
        If the table is empty, holds no usable point, or names a location twice.
    GridError
        If it has no CRS.
    """
    if not len(locations):
        raise InputError("there are no locations", what_to_do="give at least one point")
    if locations.crs is None:
        raise GridError("the locations have no CRS", what_to_do="set it, for example EPSG:4326")
    table = locations.reset_index(drop=True)
    if table.geometry.name != "geometry":
        table = table.rename_geometry("geometry")
    if str(table.crs) != "EPSG:4326":
        table = table.to_crs("EPSG:4326")
    x, y = table.geometry.x.to_numpy(dtype=float), table.geometry.y.to_numpy(dtype=float)
    names = table["name"].astype(str) if "name" in table else pd.Series([str(i) for i in range(len(table))])
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore"):
        world = finite & (np.abs(y) <= 90.0) & (np.abs(x) <= 360.0)
    notes = list(locations.attrs.get("dropped", []))
    if (~finite).any():
        notes.append(dropped(list(names[~finite]), "no-coordinates", "longitude or latitude is missing or not finite"))
    if (finite & ~world).any():
        notes.append(dropped(list(names[finite & ~world]), "outside-world", "not a longitude and latitude in degrees"))
    if not world.any():
        raise InputError(
            f"none of the {len(table)} locations has usable coordinates",
            where="; ".join(f"{n['count']} x {n['what']}" for n in notes),
            what_to_do="check the columns of longitude and latitude and the CRS",
        )
    table, names = table[world].reset_index(drop=True), names[world].reset_index(drop=True)
    if names.duplicated().any():
        twice = sorted(set(names[names.duplicated()]))[:5]
        raise InputError(f"locations are named twice: {', '.join(twice)}", what_to_do="give each location its own name")
    lon, lat = normalise_longitude(x[world]), y[world]
    table["name"], table["lon"], table["lat"] = names.to_numpy(dtype=object), lon, lat
    table["epsg"] = utm_epsg(lon, lat)
    front = ["name", "lon", "lat", "epsg"]
    table = table[[*front, *[c for c in table.columns if c not in (*front, "geometry")], "geometry"]]
    table = table.set_geometry(gpd.points_from_xy(lon, lat), crs="EPSG:4326")
    table.attrs["dropped"] = notes
    return table


def sort_by_place(locations: gpd.GeoDataFrame, *, square_m: float = 100_000.0) -> gpd.GeoDataFrame:
    """Bring neighbours together, so that a group of consecutive locations shares scenes.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        As `check_locations` takes them.
    square_m : float
        Locations of one square of the UTM zone follow each other; 100 km is about a Sentinel-2 tile.

    Returns
    -------
    geopandas.GeoDataFrame
        The same rows by zone, square, northing and name; the order of the input does not matter.
    """
    table = check_locations(locations)
    if not square_m > 0:
        raise InputError(f"square_m={square_m} must be positive")
    x, y = np.empty(len(table)), np.empty(len(table))
    for epsg, rows in table.groupby("epsg").indices.items():
        projected = table.geometry.iloc[rows].to_crs(f"EPSG:{epsg}")
        x[rows], y[rows] = projected.x.to_numpy(), projected.y.to_numpy()
    keys = (table["name"].to_numpy(dtype=str), x, y, x // square_m, y // square_m, table["epsg"].to_numpy())
    ordered = table.iloc[np.lexsort(keys)].reset_index(drop=True)
    ordered.attrs["dropped"] = table.attrs["dropped"]
    return ordered
