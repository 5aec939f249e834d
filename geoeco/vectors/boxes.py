"""Boxes in pixels, as annotation tools write them, as polygons on the map.

Coordinates are counted from the outer corner of the upper-left pixel, so that a box of ``xmin`` 0 and ``xmax`` 1 is the
first column. Not about outlines that have a CRS: that is `geoeco.vectors.crowns`.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.vectors.points import read_table

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["read_boxes"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LARGEST_XML = 64 << 20


def read_boxes(path: str | os.PathLike[str], geobox: GeoBox, *, image: str | None = None) -> gpd.GeoDataFrame:
    """Boxes in pixels of a raster, on the map.

    Parameters
    ----------
    path : path
        Pascal-VOC XML, or a table (CSV, Parquet) with columns ``xmin``, ``ymin``, ``xmax``, ``ymax`` and, if there is
        one, ``label`` or ``name``.
    geobox : odc.geo.geobox.GeoBox
        Grid of the raster that the boxes were drawn on.
    image : str, optional
        Take the rows of this image from a table of several (column ``image_path``).

    Returns
    -------
    geopandas.GeoDataFrame
        ``crown_id`` int32 from 1 in the order of the file, ``class_name``, ``geometry``, in the grid's CRS (none where
        the grid has none); ``attrs["n_empty"]`` boxes without area were left out.

    Raises
    ------
    InputError
        If the file cannot be read, has no boxes, sides that are no numbers, or boxes of several images.
    GridError
        If the file is of an image of another size, or a box lies off the grid.
    """
    import geopandas as gpd
    import shapely

    where = str(path)
    found = Path(path)
    if found.suffix.lower() == ".xml":
        table, size = _voc(found)
        if size is not None and size != tuple(int(n) for n in geobox.shape):
            raise GridError(
                f"the boxes are of an image of {size[1]} x {size[0]} pixels, the raster has"
                f" {geobox.shape[1]} x {geobox.shape[0]}",
                where=where,
                what_to_do="give the raster that they were drawn on",
            )
    else:
        table = _rows(read_table(found), image, where)
    if len(table) == 0:
        raise InputError("there are no boxes", where=where)
    sides = table[list(_SIDES)].to_numpy(dtype=float)
    if not np.isfinite(sides).all():
        row = int(np.flatnonzero(~np.isfinite(sides).all(axis=1))[0])
        raise InputError("a side of a box is no number", where=f"{where}, row {row}")
    ids = np.arange(1, len(sides) + 1, dtype=np.int32)
    whole = (sides[:, 2] > sides[:, 0]) & (sides[:, 3] > sides[:, 1])
    rows, columns = (int(n) for n in geobox.shape)
    off = whole & ((sides[:, 2] <= 0) | (sides[:, 3] <= 0) | (sides[:, 0] >= columns) | (sides[:, 1] >= rows))
    if off.any():
        raise GridError(
            f"{int(off.sum())} of {len(sides)} boxes lie off the raster of {columns} x {rows} pixels",
            where=f"{where}, first in row {int(np.flatnonzero(off)[0])}",
            what_to_do="give the raster that they were drawn on",
        )
    if not whole.any():
        raise InputError("no box has an area", where=where)
    a, _, c, _, e, f = tuple(geobox.transform)[:6]
    left, top, right, bottom = sides[whole].T
    shapes = shapely.box(c + a * left, f + e * bottom, c + a * right, f + e * top)
    frame = gpd.GeoDataFrame(
        {"crown_id": ids[whole], "class_name": table["class_name"].to_numpy(dtype=object)[whole]},
        geometry=list(shapes),
        crs=None if geobox.crs is None else str(geobox.crs),
    )
    frame.attrs = {"n_empty": int((~whole).sum())}
    return frame


def _rows(table: pd.DataFrame, image: str | None, where: str) -> pd.DataFrame:
    """Boxes of one image of a table."""
    import pandas as pd

    if missing := [side for side in _SIDES if side not in table.columns]:
        raise InputError(
            f"there is no column {missing[0]!r}", where=f"{where}; its columns are {', '.join(map(str, table.columns))}"
        )
    if "image_path" in table.columns:
        images = table["image_path"].astype(str).map(lambda text: Path(text).name)
        if image is not None:
            table = table[images == Path(image).name]
        elif images.nunique() > 1:
            raise InputError(
                f"the boxes are of {images.nunique()} images", where=where, what_to_do="name one by `image`"
            )
    named = next((table[name] for name in ("label", "name", "class_name") if name in table.columns), None)
    out = pd.DataFrame({side: pd.to_numeric(table[side], errors="coerce") for side in _SIDES})
    out["class_name"] = "" if named is None else named.astype(object).where(named.notna(), "").astype(str).str.strip()
    return out.reset_index(drop=True)


def _voc(path: Path) -> tuple[pd.DataFrame, tuple[int, int] | None]:
    """Boxes of a Pascal-VOC annotation, and rows and columns of its image."""
    import pandas as pd

    if not path.exists():
        raise InputError("there is no such file", where=str(path), what_to_do="check the path")
    if path.stat().st_size > _LARGEST_XML:
        raise InputError(f"this annotation is larger than {_LARGEST_XML >> 20} MiB", where=str(path))
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise InputError(
            "the annotation declares a document type", where=str(path), what_to_do="remove the declaration"
        )
    try:
        root = ET.fromstring(text)  # noqa: S314 -- neither document type nor entities got here
    except ET.ParseError as error:
        raise InputError(f"this is no XML: {error}", where=str(path)) from error
    size = (root.findtext("size/height"), root.findtext("size/width"))
    rows = [
        {
            **{side: _number(box.findtext(f"bndbox/{side}")) for side in _SIDES},
            "class_name": (box.findtext("name") or "").strip(),
        }
        for box in root.iter("object")
    ]
    table = pd.DataFrame(rows, columns=[*_SIDES, "class_name"])
    stated = tuple(int(_number(n)) for n in size if np.isfinite(_number(n)))
    return table, (stated[0], stated[1]) if len(stated) == 2 else None


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
