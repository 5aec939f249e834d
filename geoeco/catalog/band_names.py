"""Which asset of an item holds which band: one name for a band whatever catalogue it comes from.

Knows the naming habits of Earth Search (v0, v1, collection 1), Planetary Computer, the Copernicus Data Space
Ecosystem and Earth Engine exports. Not about what the numbers in a band mean: that is `geoeco.sensors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pystac

from geoeco.errors import CatalogError

__all__ = ["BAND_ALIASES", "NATIVE_RESOLUTION", "asset_for", "band_name", "bands_of", "is_raster"]

#: Other names of each Sentinel-2 layer, in lower case. ``nir08`` and the like are the keys of Earth Search v1; the
#: names ending in numbers such as ``rededge071`` are the common names of STAC's eo extension 2.0.
BAND_ALIASES: Mapping[str, tuple[str, ...]] = {
    "B01": ("coastal", "coastal-aerosol", "b1"),
    "B02": ("blue", "b2"),
    "B03": ("green", "b3"),
    "B04": ("red", "b4"),
    "B05": ("rededge1", "rededge071", "b5"),
    "B06": ("rededge2", "rededge075", "b6"),
    "B07": ("rededge3", "rededge078", "b7"),
    "B08": ("nir", "b8"),
    "B8A": ("nir08", "b08a"),
    "B09": ("nir09", "b9"),
    "B10": ("cirrus",),
    "B11": ("swir16",),
    "B12": ("swir22",),
    "SCL": ("scl",),
    "AOT": ("aot",),
    "WVP": ("wvp",),
}

#: Pixel size in metres at which each layer is made; a catalogue may also offer coarser copies.
NATIVE_RESOLUTION: Mapping[str, int] = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12", "SCL"), 20),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
    **dict.fromkeys(("AOT", "WVP"), 10),
}

_BY_ALIAS = {alias: band for band, aliases in BAND_ALIASES.items() for alias in (band.lower(), *aliases)}
_RESOLUTION_SUFFIX = re.compile(r"^(?P<stem>.+)[_-](?P<metres>10|20|60)m$")
_NOT_RASTER = ("json", "xml", "html", "png", "jpeg", "jpg", "text/", "pdf", "kml")
_COG = "profile=cloud-optimized"


def band_name(name: str) -> str | None:
    """Give geoeco's name of a layer (``B01`` .. ``B12``, ``B8A``, ``SCL``, ``AOT``, ``WVP``), or None if it is none.

    Parameters
    ----------
    name : str
        An asset key, band name or common name as some catalogue writes it: ``blue``, ``blue-jp2``, ``B02_10m``.
    """
    return _split(name)[0]


def _split(name: str) -> tuple[str | None, int | None]:
    """Band and, where the name tells it, pixel size in metres."""
    stem = name.strip().lower().removesuffix("-jp2")
    metres = None
    if found := _RESOLUTION_SUFFIX.match(stem):
        stem, metres = found["stem"], int(found["metres"])
    return _BY_ALIAS.get(stem), metres


def _declared(asset: pystac.Asset) -> list[dict[str, Any]]:
    """Bands that an asset declares: ``eo:bands`` (STAC 1.0) or ``bands`` (STAC 1.1)."""
    for key in ("eo:bands", "bands"):
        bands = asset.extra_fields.get(key)
        if isinstance(bands, list) and bands:
            return [band for band in bands if isinstance(band, dict)]
    return []


def is_raster(asset: pystac.Asset) -> bool:
    """Whether an asset may hold pixels that geoeco reads, judged by media type, roles and file name."""
    media = (asset.media_type or "").lower()
    if any(word in media for word in _NOT_RASTER):
        return False
    if {"thumbnail", "overview", "metadata"} & set(asset.roles or ()):
        return False
    suffix = asset.href.split("?")[0].lower()
    return "tiff" in media or "jp2" in media or suffix.endswith((".tif", ".tiff", ".jp2")) or not media


def _resolution(asset: pystac.Asset, from_name: int | None) -> float | None:
    transform = asset.extra_fields.get("proj:transform")
    if from_name is not None:
        return float(from_name)
    if isinstance(transform, list) and transform and isinstance(transform[0], int | float):
        return abs(float(transform[0]))
    gsd = asset.extra_fields.get("gsd")
    return float(gsd) if isinstance(gsd, int | float) else None


def _candidates(item: pystac.Item) -> Iterator[tuple[str, int, int | None, str, pystac.Asset]]:
    """Assets that hold one known layer: (layer, how it was named, pixel size from the name, key, asset).

    The key is the surest sign; then the band's own name; then its common name. Common names shared by several bands
    (``rededge`` is B05, B06 and B07 on some catalogues) name nothing and are absent from `BAND_ALIASES`.
    """
    for key, asset in item.assets.items():
        if not is_raster(asset):
            continue
        band, metres = _split(key)
        if band is not None:
            yield band, 0, metres, key, asset
            continue
        declared = _declared(asset)
        if len(declared) != 1:
            continue
        for rank, field in enumerate(("name", "common_name", "eo:common_name"), start=1):
            band, _ = _split(str(declared[0].get(field, "")))
            if band is not None:
                yield band, rank, metres, key, asset
                break


def asset_for(item: pystac.Item, band: str) -> pystac.Asset:
    """Find the asset of an item that holds a band, whatever the catalogue calls it.

    Parameters
    ----------
    item : pystac.Item
    band : str
        ``B01`` .. ``B12``, ``B8A``, ``SCL``, ``AOT``, ``WVP``, or any alias of these.

    Returns
    -------
    pystac.Asset
        Where an item offers several (`B02_10m` and `B02_20m`; a GeoTIFF and the JPEG 2000 it was made from): the one
        at the band's native pixel size, else the finest; among those a cloud-optimised GeoTIFF before JPEG 2000;
        then the first key in the alphabet.

    Raises
    ------
    CatalogError
        If the band is unknown or the item has no such asset; the message lists what it has.
    """
    wanted = band_name(band)
    if wanted is None:
        raise CatalogError(
            f"{band!r} is not a band that geoeco knows",
            where=f"item {item.id}",
            what_to_do=f"use one of {', '.join(BAND_ALIASES)}",
            code="catalog-band",
        )

    def order(candidate: tuple[str, int, int | None, str, pystac.Asset]) -> tuple[bool, float, bool, bool, int, str]:
        _, rank, metres, key, asset = candidate
        resolution = _resolution(asset, metres)
        media = (asset.media_type or "").lower()
        jp2 = "jp2" in media or asset.href.split("?")[0].lower().endswith(".jp2")
        native = resolution is not None and round(resolution) == NATIVE_RESOLUTION[wanted]
        return not native, resolution or float("inf"), jp2, _COG not in media, rank, key

    found = sorted((c for c in _candidates(item) if c[0] == wanted), key=order)
    if not found:
        raise CatalogError(
            f"item {item.id} has no asset for band {wanted}",
            where=f"item {item.id}; its assets are {', '.join(sorted(item.assets)) or 'none'}",
            what_to_do="leave this band out, or choose a collection that has it",
            code="catalog-asset-missing",
        )
    return found[0][4]


def bands_of(item: pystac.Item) -> tuple[str, ...]:
    """Layers that an item holds, in geoeco's names and order (B01 .. B12, SCL, AOT, WVP)."""
    held = {candidate[0] for candidate in _candidates(item)}
    return tuple(band for band in BAND_ALIASES if band in held)
