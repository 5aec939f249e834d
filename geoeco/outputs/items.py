"""The STAC item beside a set of outputs: where it lies, when it holds, what it was made from.

One item per output set; each file is an asset with its statistics, classes, size and checksum, sidecars included.
Statistics are those of every pixel, from the records; nothing is sampled again. Links are relative, so the folder can
be moved; times are those of the data, never of the clock.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pystac
import rasterio
from odc.geo.crs import CRS
from odc.geo.geom import box
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, RasterBand, RasterExtension, Sampling, Statistics
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from geoeco.catalog import area_lonlat
from geoeco.errors import InputError, OutputError
from geoeco.outputs.cog import CogRecord, WrittenFile, local_path
from geoeco.outputs.pyramid import rounded

__all__ = ["write_item"]

# about a centimetre
_DECIMALS = 7
_SHA256_MULTIHASH = "1220"


def write_item(
    path: str | os.PathLike[str],
    assets: Mapping[str, CogRecord],
    *,
    period: tuple[dt.datetime, dt.datetime] | dt.datetime,
    id: str | None = None,  # noqa: A002  (STAC's own name)
    title: str | None = None,
    properties: Mapping[str, Any] | None = None,
    derived_from: Sequence[str | os.PathLike[str]] = (),
    thumbnail: str | os.PathLike[str] | None = None,
) -> pystac.Item:
    """Write the STAC item of an output set.

    Parameters
    ----------
    path : path-like
        Local path of the item, ``.json``; hrefs are relative to its folder.
    assets : mapping of asset key to CogRecord
        Files on one grid; files of different unit, scale or nodata are assets of one item. Sidecars become assets
        ``<key>-style`` and ``<key>-pam``.
    period : (datetime, datetime) or datetime
        Of the *data*, first and last. Times without a zone are UTC.
    id : str, optional
        By default the stem of `path`.
    title : str, optional
    properties : mapping, optional
        Further properties, for example ``geoeco:recipe_sha256``.
    derived_from : sequence of str
        Items and files this one was made from: URLs are kept, local paths made relative.
    thumbnail : path-like, optional
        PNG of `quicklook`.

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
    start, end = (_utc(moment) for moment in (period if isinstance(period, tuple) else (period, period)))
    if end < start:
        raise InputError(f"the period {start.isoformat()} .. {end.isoformat()} ends before it begins", where=str(path))
    grid = _common_grid(assets)
    item = pystac.Item(
        id=id or path.stem,
        geometry=grid["geometry"],
        bbox=grid["bbox"],
        datetime=start if start == end else None,
        start_datetime=None if start == end else start,
        end_datetime=None if start == end else end,
        properties={**({"title": title} if title else {}), **(properties or {})},
    )
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.apply(
        code=grid["code"],
        wkt2=None if grid["code"] else grid["wkt2"],
        shape=list(grid["shape"]),
        transform=list(grid["transform"])[:6],
        bbox=list(grid["bounds"]),
    )
    for key, record in assets.items():
        _add_raster(item, key, record, path.parent)
    if thumbnail is not None:
        asset = pystac.Asset(_relative(thumbnail, path.parent), media_type=pystac.MediaType.PNG, roles=["thumbnail"])
        item.add_asset("thumbnail", asset)
    for source in derived_from:
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
                    left, bottom, right, top = src.bounds
                    crs = CRS(src.crs.to_wkt(version="WKT2_2019"))
                    outline = area_lonlat(box(left, bottom, right, top, crs))
                    geometry = mapping(outline)
                    epsg = src.crs.to_epsg()
                    grid = {
                        **own,
                        "bounds": tuple(src.bounds),
                        "code": None if epsg is None else f"EPSG:{epsg}",
                        "wkt2": src.crs.to_wkt(version="WKT2_2019"),
                        "geometry": {**geometry, "coordinates": _rounded(geometry["coordinates"])},
                        "bbox": _lonlat_bbox(outline),
                    }
        except rasterio.errors.RasterioError as error:
            raise OutputError(f"asset {key!r} cannot be read: {error}", where=str(record.path)) from error
        if any(own[name] != grid[name] for name in own):
            raise InputError(
                f"asset {key!r} lies on another grid than the first one", what_to_do="write one STAC item per grid"
            )
    return grid


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
            Classification.create(
                entry.code,
                description=entry.name,
                # the extension allows only these characters in a name
                name=re.sub(r"[^0-9A-Za-z_-]+", "_", entry.name).strip("_") or f"class_{entry.code}",
                title=entry.name,
                color_hint=entry.hex[1:].upper(),
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
