"""Where imagery is: static STAC catalogues and STAC APIs, one name for each band, signing inside the task.

Not about pixels (`geoeco.cubes`) nor what they mean (`geoeco.sensors`).
"""

from __future__ import annotations

from geoeco.catalog.band_names import BAND_ALIASES, NATIVE_RESOLUTION, asset_for, band_name, bands_of
from geoeco.catalog.catalogs import ApiCatalog, Catalog, CollectionExtent, StaticCatalog, open_catalog
from geoeco.catalog.faults import fault, status_fault
from geoeco.catalog.filters import parse_period
from geoeco.catalog.footprints import area_lonlat, centre_longitude, footprint
from geoeco.catalog.hrefs import PUBLIC_ARCHIVES, RASTER_DRIVERS
from geoeco.catalog.signing import Signer, register_signer, sign, signers

__all__ = [
    "BAND_ALIASES",
    "NATIVE_RESOLUTION",
    "PUBLIC_ARCHIVES",
    "RASTER_DRIVERS",
    "ApiCatalog",
    "Catalog",
    "CollectionExtent",
    "Signer",
    "StaticCatalog",
    "area_lonlat",
    "asset_for",
    "band_name",
    "bands_of",
    "centre_longitude",
    "fault",
    "footprint",
    "open_catalog",
    "parse_period",
    "register_signer",
    "sign",
    "signers",
    "status_fault",
]
