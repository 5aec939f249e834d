"""GeoPackages: polygons and points as GIS users open them, the same table in the same bytes.

The one writer of vectors. Not for tables that geoeco itself reads back (those are GeoParquet), and not for reading
(`geoeco.vectors`).
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from geoeco.errors import GridError, InputError, OutputError
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.cog import WrittenFile, local_path
from geoeco.outputs.vector_styles import Shape, categories_qml

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["GeometryType", "WrittenTable", "write_gpkg"]

GeometryType = Literal["Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"]

#: What `last_change` says, which GeoPackage asks for: the same whenever it is written.
EPOCH = "1970-01-01T00:00:00.000Z"
#: Read by every GDAL since 2.2 and by ArcGIS; later versions bring nothing that is used here.
_GPKG_VERSION = "1.2"
_LAYER_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,62}"
_KEY, _GEOMETRY = "fid", "geom"
#: Table in which QGIS keeps styles, and looks for them.
_STYLES = "layer_styles"
# GDAL's settings belong to the whole process
_LOCK = threading.Lock()


@dataclass(frozen=True)
class WrittenTable(WrittenFile):
    """What `write_gpkg` wrote.

    Attributes
    ----------
    path, sha256, bytes
        Of the file.
    layer : str
    rows : int
    columns : tuple of (str, str)
        Name and SQL type of each, key and geometry included.
    crs_wkt : str
        WKT 2.
    bounds : tuple of float, optional
        Left, bottom, right and top of the rows; None where there are none.
    classes : ClassTable, optional
    """

    layer: str
    rows: int
    columns: tuple[tuple[str, str], ...]
    crs_wkt: str
    bounds: tuple[float, float, float, float] | None
    classes: ClassTable | None


def write_gpkg(
    frame: gpd.GeoDataFrame,
    path: str | os.PathLike[str],
    *,
    layer: str,
    geometry_type: GeometryType | None = None,
    description: str = "",
    tags: Mapping[str, str] | None = None,
    classes: ClassTable | None = None,
    class_column: str = "class",
) -> WrittenTable:
    """Write a GeoPackage of one layer; a file that is there is replaced in one step.

    The same frame gives the same bytes: ``last_change`` is that of the epoch, not of the clock. Rows keep their order
    and are numbered from 1 (``fid``); the frame's index is not written. Missing values become NULL.

    Parameters
    ----------
    frame : geopandas.GeoDataFrame
        With a CRS; every row with a geometry that is not empty. Columns of numbers, truth values, texts or dates.
    path : path-like
        Local, ``.gpkg``.
    layer : str
        Name of the layer: letters, digits and underscores.
    geometry_type : str, optional
        Type of the layer; single geometries become multiple ones where it begins with ``Multi``. When not given, the
        type of all rows, ``MultiPolygon`` where there are polygons of both types (and so for points and lines).
    description : str
    tags : mapping of str to str, optional
        Where the layer comes from, as metadata of the layer: for example ``GEOECO_MODEL``.
    classes : ClassTable, optional
        QGIS then opens the layer in the colours of the classes: a style in the table ``layer_styles``, which is a layer
        without geometry to other readers.
    class_column : str
        Column of the classes: their codes, if it has whole numbers, or their names.

    Returns
    -------
    WrittenTable

    Raises
    ------
    GridError
        If the frame has no CRS.
    InputError
        If a row has no geometry, geometries are of several kinds, or a name or a column cannot be written; or if there
        is no column of classes, or one that holds what the table of classes does not.
    OutputError
        If the file cannot be written or does not read back whole.
    """
    import pyogrio

    target = local_path(path)
    if target.suffix != ".gpkg":
        raise InputError(f"{target.name!r} is not the name of a GeoPackage", what_to_do="end it with .gpkg")
    if not re.fullmatch(_LAYER_NAME, layer) or layer.lower() == _STYLES:
        raise InputError(
            f"{layer!r} is not a name for a layer",
            where=str(target),
            what_to_do="use letters, digits and underscores, a letter first",
        )
    if frame.crs is None:
        raise GridError("the table has no CRS", where=str(target), what_to_do="give it one with set_crs")
    _check_columns(frame, target)
    kind = _geometry_type(frame, geometry_type, target)
    style = None if classes is None else _style(frame, layer, classes, class_column, kind, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".geoeco-", dir=target.parent) as folder:
            temporary = Path(folder) / target.name
            with _LOCK, _FixedDate():
                pyogrio.write_dataframe(
                    frame,
                    temporary,
                    layer=layer,
                    driver="GPKG",
                    geometry_type=kind,
                    promote_to_multi=kind.startswith("Multi"),
                    dataset_options={"VERSION": _GPKG_VERSION},
                    layer_options={"DESCRIPTION": description} if description else None,
                    # of the layer: readers of a file's own metadata leave a sidecar beside it
                    layer_metadata=dict(tags) if tags else None,
                )
                if style is not None:
                    pyogrio.write_dataframe(
                        style, temporary, layer=_STYLES, driver="GPKG", append=True, layer_options={"FID": "id"}
                    )
            with closing(sqlite3.connect(temporary)) as file:
                # GDAL is silent about what fails when it closes a file, at which it writes the spatial index
                tables = {layer: len(frame), f"rtree_{layer}_{_GEOMETRY}_rowid": len(frame)}
                if style is not None:
                    tables[_STYLES] = len(style)
                for name, rows in tables.items():
                    ((held,),) = file.execute(f'SELECT count(*) FROM "{name}"')  # noqa: S608  (names that are checked)
                    if held != rows:
                        raise OutputError(f"{held} of {rows} rows of {name} were written", where=str(target))
                columns = tuple((row[1], row[2]) for row in file.execute(f'PRAGMA table_info("{layer}")'))
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
            temporary.replace(target)
    except (OSError, RuntimeError, sqlite3.Error) as error:
        # GDAL's own errors are of RuntimeError
        raise OutputError(f"the GeoPackage could not be written: {error}", where=str(target)) from error
    return WrittenTable(
        path=target,
        sha256=digest,
        bytes=size,
        layer=layer,
        rows=len(frame),
        columns=columns,
        crs_wkt=frame.crs.to_wkt(),
        bounds=tuple(frame.total_bounds.tolist()) if len(frame) else None,
        classes=classes,
    )


class _FixedDate:
    """GDAL's clock stands still."""

    def __enter__(self) -> None:
        import pyogrio

        self.before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": EPOCH})

    def __exit__(self, *_: object) -> None:
        import pyogrio

        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": self.before})


def _check_columns(frame: gpd.GeoDataFrame, target: Path) -> None:
    import pandas as pd

    seen: set[str] = set()
    for name in frame.columns:
        if name == frame.geometry.name:
            continue
        low = str(name).lower()
        if not isinstance(name, str) or not name or low in (_KEY, _GEOMETRY) or low in seen:
            raise InputError(
                f"a GeoPackage cannot hold a column {name!r} beside the others",
                where=str(target),
                what_to_do="rename it: names are texts, differ not only in case, and are neither fid nor geom",
            )
        seen.add(low)
        values = frame[name]
        plain = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values)
        moments = pd.api.types.is_datetime64_any_dtype(values)
        texts = pd.api.types.infer_dtype(values, skipna=True) in ("string", "empty", "categorical", "date")
        if not (plain or moments or texts) or values.dtype == np.uint64:
            raise InputError(
                f"column {name!r} holds {values.dtype} that a GeoPackage cannot",
                where=str(target),
                what_to_do="make it numbers, truth values, texts or dates",
            )


def _style(
    frame: gpd.GeoDataFrame, layer: str, classes: ClassTable, column: str, kind: str, target: Path
) -> pd.DataFrame:
    """The row of `_STYLES` that QGIS takes as the layer's own."""
    import pandas as pd

    if column not in frame.columns:
        raise InputError(
            f"the table has no column {column!r} of classes", where=str(target), what_to_do="give class_column"
        )
    codes = pd.api.types.is_integer_dtype(frame[column])
    known: set[Any] = set(classes.codes if codes else classes.names)
    unknown = set(frame[column].dropna()) - known
    if unknown:
        raise InputError(
            f"column {column!r} has classes that {classes.name!r} has not: {', '.join(sorted(map(str, unknown))[:10])}",
            where=str(target),
            what_to_do="add them to the table of classes",
        )
    shape: Shape = kind.removeprefix("Multi")  # type: ignore[assignment]
    return pd.DataFrame(
        {
            "f_table_catalog": [""],
            "f_table_schema": [""],
            "f_table_name": [layer],
            "f_geometry_column": [_GEOMETRY],
            "styleName": [classes.name],
            "styleQML": [categories_qml(classes, column, "code" if codes else "name", shape)],
            "styleSLD": [""],
            "useAsDefault": [True],
            "description": [""],
            "owner": [""],
            "ui": [""],
            "update_time": [pd.Timestamp(EPOCH)],
        }
    )


def _geometry_type(frame: gpd.GeoDataFrame, wanted: str | None, target: Path) -> str:
    import shapely

    geometry: Any = frame.geometry
    if geometry.isna().any() or geometry.is_empty.any():
        row = int(np.flatnonzero(geometry.isna() | geometry.is_empty)[0])
        raise InputError(f"row {row} has no geometry", where=str(target), what_to_do="drop such rows first")
    if not np.isfinite(shapely.get_coordinates(geometry.array)).all():
        raise InputError("a geometry has coordinates that are not finite", where=str(target))
    held = set(geometry.geom_type)
    if wanted is None and not held:
        raise InputError(
            "a table without rows does not say what its geometries are",
            where=str(target),
            what_to_do="give geometry_type",
        )
    single = {kind.removeprefix("Multi") for kind in (*held, *([wanted] if wanted else []))}
    if len(single) != 1 or not single <= {"Point", "LineString", "Polygon"}:
        raise InputError(
            f"a layer holds geometries of one kind, not {', '.join(sorted(single))}",
            where=str(target),
            what_to_do="write points, lines and polygons to files of their own",
        )
    kind = wanted or (min(held) if len(held) == 1 else f"Multi{single.pop()}")
    if not kind.startswith("Multi") and any(one.startswith("Multi") for one in held):
        raise InputError(
            f"a layer of {kind} cannot hold {min(held)}",
            where=str(target),
            what_to_do=f"give geometry_type='Multi{kind}'",
        )
    return kind
