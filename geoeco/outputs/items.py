"""The STAC item beside a set of outputs: where it lies, when it holds, what it was made from.

One item per output set; each file is an asset with its statistics, classes, size and checksum, sidecars included. A
table is an item of its own, with its columns. Statistics are those of every pixel, from the records; nothing is sampled
again. Links are relative, so the folder can be moved; times are those of the data, never of the clock.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack
from urllib.parse import urlsplit

import pystac
import rasterio
from odc.geo.crs import CRS
from odc.geo.geom import box
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, RasterBand, RasterExtension, Sampling, Statistics
from pystac.extensions.table import Column, TableExtension
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from geoeco.catalog import area_lonlat
from geoeco.errors import InputError, OutputError
from geoeco.outputs.classes import ClassEntry
from geoeco.outputs.cog import CogRecord, WrittenFile, local_path
from geoeco.outputs.pyramid import rounded
from geoeco.outputs.vectors import WrittenTable

__all__ = ["ItemFacts", "write_item", "write_table_item"]

# about a centimetre
_DECIMALS = 7
_SHA256_MULTIHASH = "1220"
#: SQL types of the geometry of a layer.
_GEOMETRIES = frozenset({"POINT", "MULTIPOINT", "LINESTRING", "MULTILINESTRING", "POLYGON", "MULTIPOLYGON"})

Period = tuple[dt.datetime, dt.datetime] | dt.datetime


class ItemFacts(TypedDict, total=False):
    """What every item says; keywords of `write_item` and `write_table_item`.

    Attributes
    ----------
    period : (datetime, datetime) or datetime
        Of the *data*, first and last. Times without a zone are UTC.
    id : str
        By default the stem of the item's path.
    title : str
    properties : mapping
        Further properties, for example ``geoeco:recipe_sha256``.
    derived_from : sequence of str
        Items and files this one was made from: URLs are kept, local paths made relative.
    thumbnail : path-like, optional
        PNG.
    """

    period: Required[Period]
    id: str
    title: str
    properties: Mapping[str, Any]
    derived_from: Sequence[str | os.PathLike[str]]
    thumbnail: str | os.PathLike[str] | None


def write_item(
    path: str | os.PathLike[str], assets: Mapping[str, CogRecord], **facts: Unpack[ItemFacts]
) -> pystac.Item:
    """Write the STAC item of an output set.

    Parameters
    ----------
    path : path-like
        Local path of the item, ``.json``; hrefs are relative to its folder.
    assets : mapping of asset key to CogRecord
        Files on one grid; files of different unit, scale or nodata are assets of one item. Sidecars become assets
        ``<key>-style`` and ``<key>-pam``.
    **facts
        `ItemFacts`; ``period`` is needed.

    Returns
    -------
    pystac.Item

    Raises
    ------
    InputError
        If there is no asset, the assets lie on different grids, or the period is reversed.
    OutputError
        If a file is missing or the item cannot be written.
    """
    path = local_path(path)
    if not assets:
        raise InputError("a STAC item needs at least one asset", where=str(path))
    # before any file is read
    moments = _moments(facts["period"], path)
    grid = _common_grid(assets)
    item = _item(path, grid, moments, facts)
    projection = ProjectionExtension.ext(item)
    projection.shape, projection.transform = list(grid["shape"]), list(grid["transform"])[:6]
    for key, record in assets.items():
        _add_raster(item, key, record, path.parent)
    return _finished(item, path, facts)


def write_table_item(
    path: str | os.PathLike[str],
    table: WrittenTable,
    *,
    bounds: tuple[float, float, float, float] | None = None,
    descriptions: Mapping[str, str] | None = None,
    **facts: Unpack[ItemFacts],
) -> pystac.Item:
    """Write the STAC item of a GeoPackage, with its columns by the table extension.

    Parameters
    ----------
    path : path-like
        Local path of the item, ``.json``; hrefs are relative to its folder.
    table : WrittenTable
        What `write_gpkg` gave; its layer is the key of the asset.
    bounds : tuple of float, optional
        Left, bottom, right and top of what was looked at, in the table's CRS: the footprint. Those of the rows by
        default.
    descriptions : mapping, optional
        What the columns hold, by their names.
    **facts
        `ItemFacts`; ``period`` is needed.

    Returns
    -------
    pystac.Item

    Raises
    ------
    InputError
        If the period is reversed, there are neither bounds nor rows, or a column is described that there is not.
    OutputError
        If the item cannot be written.
    """
    path = local_path(path)
    moments = _moments(facts["period"], path)
    described = dict(descriptions or {})
    unknown = set(described) - {name for name, _ in table.columns}
    if unknown:
        raise InputError(f"the table has no column {min(unknown)!r} that is described", where=str(path))
    extent = bounds or table.bounds
    if extent is None:
        raise InputError("a table without rows does not say where it lies", where=str(path), what_to_do="give bounds")
    item = _item(path, _place(extent, rasterio.crs.CRS.from_wkt(table.crs_wkt)), moments, facts)
    columns = []
    for name, kind in table.columns:
        column = Column({"name": name, "type": kind.lower()})
        column.description = described.get(name)
        columns.append(column)
    extension = TableExtension.ext(item, add_if_missing=True)
    extension.columns, extension.row_count = columns, table.rows
    extension.primary_geometry = next(name for name, kind in table.columns if kind in _GEOMETRIES)
    asset = pystac.Asset(
        _relative(table.path, path.parent),
        title=table.layer,
        media_type=pystac.MediaType.GEOPACKAGE,
        roles=["data"],
    )
    item.add_asset(table.layer, asset)
    if table.classes is not None:
        ClassificationExtension.ext(asset, add_if_missing=True).classes = [
            _classification(entry) for entry in table.classes
        ]
    _add_file(asset, table)
    return _finished(item, path, facts)


def _moments(period: Period, path: Path) -> tuple[dt.datetime, dt.datetime]:
    start, end = (_utc(moment) for moment in (period if isinstance(period, tuple) else (period, period)))
    if end < start:
        raise InputError(f"the period {start.isoformat()} .. {end.isoformat()} ends before it begins", where=str(path))
    return start, end


def _item(
    path: Path, place: Mapping[str, Any], moments: tuple[dt.datetime, dt.datetime], facts: ItemFacts
) -> pystac.Item:
    start, end = moments
    title = facts.get("title")
    item = pystac.Item(
        id=facts.get("id") or path.stem,
        geometry=place["geometry"],
        bbox=place["bbox"],
        datetime=start if start == end else None,
        start_datetime=None if start == end else start,
        end_datetime=None if start == end else end,
        properties={**({"title": title} if title else {}), **facts.get("properties", {})},
    )
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=place["code"], wkt2=None if place["code"] else place["wkt2"], bbox=list(place["bounds"])
    )
    return item


def _finished(item: pystac.Item, path: Path, facts: ItemFacts) -> pystac.Item:
    """Say what an item was made from, and write it."""
    thumbnail = facts.get("thumbnail")
    if thumbnail is not None:
        asset = pystac.Asset(_relative(thumbnail, path.parent), media_type=pystac.MediaType.PNG, roles=["thumbnail"])
        item.add_asset("thumbnail", asset)
    for source in facts.get("derived_from", ()):
        target = _relative(source, path.parent)
        media_type = pystac.MediaType.JSON if target.endswith(".json") else None
        item.add_link(pystac.Link("derived_from", target, media_type=media_type))
    _save(item, path)
    return item


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _relative(target: str | os.PathLike[str], folder: Path) -> str:
    text = os.fspath(target)
    if urlsplit(text).scheme not in ("", "file"):
        return text
    relative = os.path.relpath(text.removeprefix("file://"), folder)
    return Path(relative).as_posix() if relative.startswith("..") else f"./{Path(relative).as_posix()}"


def _common_grid(assets: Mapping[str, CogRecord]) -> dict[str, Any]:
    grid: dict[str, Any] = {}
    for key, record in assets.items():
        try:
            with rasterio.open(record.path) as src:
                own = {"shape": src.shape, "transform": tuple(src.transform), "crs": src.crs}
                if not grid:
                    grid = {**own, **_place(tuple(src.bounds), src.crs)}
        except rasterio.errors.RasterioError as error:
            raise OutputError(f"asset {key!r} cannot be read: {error}", where=str(record.path)) from error
        if any(own[name] != grid[name] for name in own):
            raise InputError(
                f"asset {key!r} lies on another grid than the first one", what_to_do="write one STAC item per grid"
            )
    return grid


def _place(bounds: tuple[float, float, float, float], crs: rasterio.crs.CRS) -> dict[str, Any]:
    """What an item says of where it lies: footprint and box in degrees, CRS and bounds on the map."""
    wkt2 = crs.to_wkt(version="WKT2_2019")
    outline = area_lonlat(box(*bounds, CRS(wkt2)))
    geometry = mapping(outline)
    epsg = crs.to_epsg()
    return {
        "bounds": bounds,
        "code": None if epsg is None else f"EPSG:{epsg}",
        "wkt2": wkt2,
        "geometry": {**geometry, "coordinates": _rounded(geometry["coordinates"])},
        "bbox": _lonlat_bbox(outline),
    }


def _lonlat_bbox(outline: BaseGeometry) -> list[float]:
    """Box of a footprint; west > east where it crosses the antimeridian (RFC 7946, section 5.2)."""
    west, south, east, north = (round(edge, _DECIMALS) for edge in outline.bounds)
    pieces = [piece.bounds for piece in getattr(outline, "geoms", [outline])]
    if len(pieces) > 1 and (west, east) == (-180.0, 180.0):
        west = round(min(piece[0] for piece in pieces if piece[0] > -180), _DECIMALS)
        east = round(max(piece[2] for piece in pieces if piece[2] < 180), _DECIMALS)
    return [west, south, east, north]


def _rounded(coordinates: Any) -> Any:
    if isinstance(coordinates, float):
        return round(coordinates, _DECIMALS)
    return [_rounded(part) for part in coordinates]


def _add_raster(item: pystac.Item, key: str, record: CogRecord, folder: Path) -> None:
    asset = pystac.Asset(
        _relative(record.path, folder),
        title=", ".join(record.bands),
        media_type=pystac.MediaType.COG,
        roles=["data"],
        extra_fields={"geoeco:kind": record.kind},
    )
    item.add_asset(key, asset)
    bands = []
    for position in range(len(record.bands)):
        statistics = None
        if record.statistics and record.statistics[position].valid:
            own = record.statistics[position]
            # in the units of the variable, unlike the TIFF's own, which are of the stored numbers
            statistics = Statistics.create(
                minimum=rounded(own.minimum * record.scale + record.offset),
                maximum=rounded(own.maximum * record.scale + record.offset),
                mean=rounded(own.mean * record.scale + record.offset),
                stddev=rounded(own.std * record.scale),
                valid_percent=rounded(100 * own.valid / own.total),
            )
        scaled = record.scale != 1 or record.offset != 0
        bands.append(
            RasterBand.create(
                nodata=record.nodata,
                sampling=Sampling.AREA,
                data_type=DataType(record.dtype),
                statistics=statistics,
                unit=record.units or None,
                scale=record.scale if scaled else None,
                offset=record.offset if scaled else None,
            )
        )
    RasterExtension.ext(asset, add_if_missing=True).apply(bands=bands)
    for band, name in zip(bands, record.bands, strict=True):
        band.properties["name"] = name
    if record.classes is not None:
        total = sum(record.counts.values())
        ClassificationExtension.ext(asset, add_if_missing=True).classes = [
            _classification(
                entry,
                count=record.counts.get(entry.code, 0),
                percentage=rounded(100 * record.counts.get(entry.code, 0) / total) if total else None,
            )
            for entry in record.classes
        ]
    _add_file(asset, record.files[0])
    for sidecar in record.sidecars:
        style = sidecar.path.suffix == ".qml"
        extra = pystac.Asset(
            _relative(sidecar.path, folder),
            title="QGIS style" if style else "GDAL metadata",
            media_type=pystac.MediaType.XML,
            roles=["metadata", "style"] if style else ["metadata"],
        )
        item.add_asset(f"{key}-{'style' if style else 'pam'}", extra)
        _add_file(extra, sidecar)


def _classification(entry: ClassEntry, **counted: Any) -> Classification:
    return Classification.create(
        entry.code,
        description=entry.name,
        # the extension allows only these characters in a name
        name=re.sub(r"[^0-9A-Za-z_-]+", "_", entry.name).strip("_") or f"class_{entry.code}",
        title=entry.name,
        color_hint=entry.hex[1:].upper(),
        **counted,
    )


def _add_file(asset: pystac.Asset, written: WrittenFile) -> None:
    checksum = _SHA256_MULTIHASH + written.sha256
    FileExtension.ext(asset, add_if_missing=True).apply(size=written.bytes, checksum=checksum)


def _save(item: pystac.Item, path: Path) -> None:
    text = json.dumps(item.to_dict(include_self_link=False), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".geoeco-", suffix=".json", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            # a temporary file is private; an output is as readable as its neighbours
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"the STAC item could not be written: {error}", where=str(path)) from error
    item.set_self_href(str(path.resolve()))
