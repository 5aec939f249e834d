"""What chips are cut from: an orthomosaic with the labels, heights and crowns that lie on it.

Opening and checking only, before any work starts; nothing here reads pixels.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import rasterio.shutil

from geoeco.errors import GridError, InputError
from geoeco.sampling.mosaic_crowns import PlacedCrowns, place_crowns
from geoeco.sampling.mosaic_layers import IGNORE, check_layer
from geoeco.sensors.height_models import describe_height_file
from geoeco.sensors.orthomosaic import Orthomosaic, as_orthomosaic, describe_orthomosaic
from geoeco.vectors import read_boxes, read_crowns

__all__ = ["ChipSource", "ClassRow", "MosaicSources", "class_rows", "open_sources"]

#: Code, name and colour (``#rrggbb``, "" unknown) of a class.
ClassRow = tuple[int, str, str]
#: Part by which the ground sampling distances of sources may differ before chips of them are no longer alike.
_SAME_GSD = 0.05


@dataclass(frozen=True, eq=False)
class ChipSource:
    """One orthomosaic, on the grid that chips are cut on, and what lies on it.

    Attributes
    ----------
    name : str
        File name of the mosaic.
    mosaic : Orthomosaic
    labels, chm : Orthomosaic or None
        One band each: class codes, heights in metres.
    crowns : PlacedCrowns or None
    """

    name: str
    mosaic: Orthomosaic
    labels: Orthomosaic | None = None
    chm: Orthomosaic | None = None
    crowns: PlacedCrowns | None = None

    @property
    def placed(self) -> PlacedCrowns:
        """The crowns.

        Raises
        ------
        InputError
            If there are none.
        """
        if self.crowns is None or not len(self.crowns.ids):
            raise InputError("there are no crowns on the mosaic", where=self.name, what_to_do="give `crowns`")
        return self.crowns


@dataclass(frozen=True, eq=False)
class MosaicSources:
    """All that chips of one store are cut from.

    Attributes
    ----------
    sources : tuple of ChipSource
    classes : tuple of (code, name, colour)
        Of the labels; empty where these name none.
    crown_classes : tuple of str
    crowns : tuple of geopandas.GeoDataFrame or None
        Crowns on each source, in its CRS.
    """

    sources: tuple[ChipSource, ...]
    classes: tuple[ClassRow, ...]
    crown_classes: tuple[str, ...]
    crowns: tuple[gpd.GeoDataFrame | None, ...]


def class_rows(path: str) -> tuple[ClassRow, ...]:
    """Names and colours of the classes of a raster, as its file or the ``.aux.xml`` beside it tell.

    Returns
    -------
    tuple of (code, name, colour)
        In ascending order of codes; empty where the raster names no classes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # rasterio has no interface for category names; a virtual raster that GDAL makes of the file tells them
        target = Path(scratch) / "classes.vrt"
        # whatever the process reads imagery with: each of these can hide the file beside this one
        beside = rasterio.Env(
            GDAL_PAM_ENABLED="YES", GDAL_DISABLE_READDIR_ON_OPEN="FALSE", GDAL_GEOREF_SOURCES="PAM,INTERNAL"
        )
        with beside, rasterio.open(path) as raster:
            rasterio.shutil.copy(raster, target, driver="VRT")
        # written by GDAL itself; expat of the standard library expands no external entities
        band = ET.fromstring(target.read_text(encoding="utf-8")).find("VRTRasterBand")  # noqa: S314
    if band is None:
        return ()
    colours = [
        "#{:02x}{:02x}{:02x}".format(*(int(entry.get(c, "0")) for c in ("c1", "c2", "c3")))
        for entry in band.iterfind("ColorTable/Entry")
    ]
    names = {code: (entry.text or "") for code, entry in enumerate(band.iterfind("CategoryNames/Category"))}
    if not any(names.values()):
        names = _attribute_table_names(band)
    return tuple(
        (code, name, colours[code] if code < len(colours) else "")
        for code, name in sorted(names.items())
        if name and code != IGNORE
    )


def _attribute_table_names(band: ET.Element) -> dict[int, str]:
    """Names of the classes by the raster attribute table (usage 5 or 0: value; 2: name)."""
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return {}
    usage = [field.findtext("Usage", "") for field in table.iterfind("FieldDefn")]
    heads = [field.findtext("Name", "").lower() for field in table.iterfind("FieldDefn")]
    value = usage.index("5") if "5" in usage else heads.index("value") if "value" in heads else None
    if value is None or "2" not in usage:
        return {}
    cells = [[cell.text or "" for cell in row.iterfind("F")] for row in table.iterfind("Row")]
    return {int(float(row[value])): row[usage.index("2")] for row in cells}


def _as_list(value: Any, count: int, what: str) -> list[Any]:
    """One thing for each mosaic: a list as it is, anything else for all of them."""
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise InputError(
                f"{len(value)} {what} for {count} mosaics", what_to_do="give one for each mosaic, in their order"
            )
        return list(value)
    return [value] * count


def open_sources(
    mosaic: Any,
    *,
    target_gsd: float | None = None,
    labels: Any = None,
    chm: Any = None,
    crowns: Any = None,
    crown_class: str | None = None,
    crown_layer: str | None = None,
) -> MosaicSources:
    """Open what chips are cut from, and check that it lies together.

    Parameters
    ----------
    mosaic : path, Orthomosaic, xarray.Dataset of `open_orthomosaic`, or a list of these
        Several mosaics need the same bands and type of numbers.
    target_gsd : float, optional
        Ground sampling distance of the chips, metres; the mosaic's own when not given.
    labels, chm : path, or a list with one (or None) for each mosaic, optional
        Class raster; heights above ground in metres. In the CRS of the mosaic, on any grid.
    crowns : path, geopandas.GeoDataFrame, or a list with one (or None) for each mosaic, optional
        As of `geoeco.vectors.read_crowns`, or boxes in pixels (``.xml``, ``.csv``) as of `read_boxes`. One table for
        several mosaics means that an id is one tree, whenever it was flown over.
    crown_class : str, optional
        Column that names the class of a crown.
    crown_layer : str, optional

    Raises
    ------
    InputError, GridError, ReadError
        If something cannot be read, or does not lie on its mosaic.
    """
    mosaics = mosaic if isinstance(mosaic, list | tuple) else [mosaic]
    if not mosaics:
        raise InputError("chips need a mosaic")
    described = [as_orthomosaic(one) for one in mosaics]
    if target_gsd is not None:
        described = [one.at(target_gsd) for one in described]
    for one in described:
        if math.isnan(one.gsd_m):
            raise InputError(
                "the mosaic has no ground sampling distance, so that metres mean nothing",
                where=one.path,
                what_to_do="give describe_orthomosaic its gsd_m",
            )
    _check_alike(described)
    count = len(described)
    frames = _crowns_of(described, crowns, crown_class, crown_layer)
    kinds = sorted({str(n) for f in frames if f is not None for n in f["class_name"]} - {""})
    sources = []
    tables: dict[int, ClassRow] = {}
    beside = zip(
        described, _as_list(labels, count, "label rasters"), _as_list(chm, count, "height models"), frames, strict=True
    )
    for one, label_path, chm_path, frame in beside:
        label, height = (
            None if path is None else _beside(path, one, codes=codes)
            for path, codes in ((label_path, True), (chm_path, False))
        )
        if label is not None:
            check_layer(label, one, "labels")
            for row in class_rows(str(label.path)):
                if tables.setdefault(row[0], row)[1] != row[1]:
                    raise InputError(
                        f"class {row[0]} is {tables[row[0]][1]!r} in one label raster and {row[1]!r} in another",
                        where=str(label.path),
                        what_to_do="give label rasters of one scheme of classes",
                    )
        if height is not None:
            check_layer(height, one, "heights")
            if not np.issubdtype(height.dtype, np.floating):
                raise InputError(
                    f"heights of type {height.dtype}", where=str(height.path), what_to_do="give floats, metres"
                )
        placed = None if frame is None else place_crowns(frame, one.geobox, kinds)
        sources.append(ChipSource(Path(one.path).name, one, label, height, placed))
    if len({s.labels is None for s in sources}) > 1 or len({s.chm is None for s in sources}) > 1:
        raise InputError(
            "some mosaics have labels or heights and some have none", what_to_do="give them for all or for none"
        )
    return MosaicSources(tuple(sources), tuple(tables[code] for code in sorted(tables)), tuple(kinds), tuple(frames))


def _beside(path: Any, mosaic: Orthomosaic, *, codes: bool) -> Orthomosaic:
    """Raster of codes or of heights beside a mosaic; one of a mosaic without georeference has the same pixels."""
    if mosaic.georeferenced:
        return describe_orthomosaic(path, codes=True) if codes else describe_height_file(path)
    gsd = None if math.isnan(mosaic.gsd_m) else mosaic.native.transform.a
    return describe_orthomosaic(path, codes=codes, allow_ungeoreferenced=True, gsd_m=gsd)


def _check_alike(described: Sequence[Orthomosaic]) -> None:
    """Refuse mosaics whose chips would not be alike."""
    first = described[0]
    for other in described[1:]:
        for what in ("bands", "dtype", "scale"):
            if getattr(other, what) != getattr(first, what):
                raise InputError(
                    f"{what} of the mosaics differ: {getattr(first, what)} and {getattr(other, what)}",
                    where=str(other.path),
                    what_to_do="put mosaics of other cameras into a store of their own, or choose common bands",
                )
        if abs(other.gsd_m / first.gsd_m - 1) > _SAME_GSD:
            raise InputError(
                f"pixels of {first.gsd_m:.4g} m and of {other.gsd_m:.4g} m do not go into one store",
                where=str(other.path),
                what_to_do="give target_gsd, to which all are brought",
            )


def _crowns_of(
    described: Sequence[Orthomosaic], crowns: Any, crown_class: str | None, crown_layer: str | None
) -> list[gpd.GeoDataFrame | None]:
    """Crowns on each mosaic, in its CRS."""
    if crowns is None:
        return [None] * len(described)
    shared = not isinstance(crowns, list | tuple)
    found: list[gpd.GeoDataFrame | None] = []
    refused: GridError | None = None
    taken = 0
    for one, table in zip(described, _as_list(crowns, len(described), "tables of crowns"), strict=True):
        if table is None:
            found.append(None)
            continue
        boxes = isinstance(table, str | os.PathLike) and str(table).lower().endswith((".xml", ".csv"))
        try:
            frame = (
                read_boxes(table, one.native)
                if boxes
                else read_crowns(table, one.geobox, layer=crown_layer, class_column=crown_class)
            )
        except GridError as error:
            if not shared or len(described) == 1:
                raise
            # a table for several mosaics need not reach all of them, but one
            refused = error
            found.append(None)
            continue
        if boxes:
            # boxes bear no ids of their own: numbered on, so that those of two mosaics are two trees
            frame = frame.assign(crown_id=(frame["crown_id"] + taken).astype(np.int32))
            taken = int(frame["crown_id"].max()) if len(frame) else taken
        found.append(frame)
    if all(frame is None for frame in found) and refused is not None:
        raise refused
    ids = pd.concat([f["crown_id"] for f in found if f is not None], ignore_index=True)
    if not shared and ids.duplicated().any():
        raise InputError(
            f"the crown id {ids[ids.duplicated()].iloc[0]} is in two tables",
            what_to_do="give one table for all mosaics if it is the same tree, other ids if not",
        )
    return found
