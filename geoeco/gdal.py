"""How GDAL is set while imagery is read: the same for cubes of many scenes, for orthomosaics and on every worker.

Not about what is read: that is `geoeco.cubes` for scenes and `geoeco.sensors` for orthomosaics.
"""

from __future__ import annotations

import rasterio
from rasterio.session import DummySession

__all__ = ["gdal_env", "gdal_settings", "gdal_story"]


def gdal_env(cache_mib: int = 64) -> rasterio.Env:
    """Environment in which imagery is read: `gdal_settings`, and no session of a cloud until a file asks for one.

    Without a session of its own rasterio would start one of boto3 for every environment, which takes longer than
    reading a window, as soon as keys stand in the process's environment. `rasterio.open` still starts one for a file in
    an object store.

    Parameters
    ----------
    cache_mib : int
        As of `gdal_settings`.
    """
    return rasterio.Env(session=DummySession(), **gdal_settings(cache_mib))


def gdal_settings(cache_mib: int = 64, threads: int = 1) -> dict[str, str | int | bool]:
    """GDAL configuration for reading imagery, for `rasterio.Env` and for every worker's environment.

    Parameters
    ----------
    cache_mib : int
        Cache of decoded tiles of the whole process. GDAL's own default is 5 % of the machine's memory for each
        process.
    threads : int
        Threads that decode within one file; geoeco reads several files at a time instead.

    Returns
    -------
    dict
        Time-outs and retries on HTTP, no listing of folders, nothing but the file itself decides about its pixels
        (no ``.aux.xml``, no world files).
    """
    return {
        # in bytes: rasterio.Env hands the number over as bytes, and in the environment more than 100000 means bytes
        "GDAL_CACHEMAX": cache_mib << 20,
        "GDAL_NUM_THREADS": str(threads),
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_PAM_ENABLED": "NO",
        "GDAL_GEOREF_SOURCES": "INTERNAL",
        "GDAL_HTTP_MAX_RETRY": "4",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_CONNECTTIMEOUT": "20",
        "GDAL_HTTP_TIMEOUT": "120",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_MULTIPLEX": "YES",
        "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
        # what a server once said of an address is forgotten when the file is closed: otherwise a 503 or 404 stays an
        # error for the life of the process, however often the block is tried again
        "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
        "CPL_VSIL_CURL_CHUNK_SIZE": "262144",
        "CPL_VSIL_CURL_CACHE_SIZE": str(16 << 20),
        "VSI_CACHE": "FALSE",
    }


def gdal_story(error: BaseException) -> str:
    """Messages of an exception and of all that led to it: GDAL's own words are in the causes."""
    told: list[str] = []
    current: BaseException | None = error
    while current is not None:
        told.append(str(current))
        current = current.__cause__ or current.__context__
    return " | ".join(told)
