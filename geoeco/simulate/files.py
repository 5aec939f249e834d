"""How simulated worlds are written: whose folder it is, and small cloud-optimised GeoTIFFs of the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt
import rasterio
import rasterio.crs
from odc.geo.geobox import GeoBox

from geoeco.errors import InputError, OutputError
from geoeco.simulate.landscape import epsg_of

__all__ = ["MARKER", "crs_of", "holds_world", "marker_text", "world_digest", "world_settings", "write_cog"]

#: The file that says which world a folder holds, written first.
MARKER = "world.json"


def marker_text(marker: dict[str, Any]) -> str:
    """Text of ``world.json``."""
    return json.dumps(marker, indent=2) + "\n"


def holds_world(folder: Path, marker: dict[str, Any]) -> bool:
    """Whether a folder holds this very world, whole or unfinished; False where there is none or it is empty.

    Parameters
    ----------
    folder : pathlib.Path
    marker : dict
        What ``world.json`` must say; it may say more.

    Raises
    ------
    OutputError
        If the folder holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found | json.loads(marker_text(marker)) != found:
        raise OutputError(
            "the folder is not empty and does not hold this simulated world",
            where=str(folder),
            what_to_do="choose a new folder, or delete this one if it is an old world",
            code="output-exists",
        )
    return True


def world_settings(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings that a world on disk was written with."""
    marker = Path(directory) / MARKER
    if not marker.is_file():
        raise InputError("the folder holds no simulated world", where=str(directory))
    return cast(dict[str, Any], json.loads(marker.read_text(encoding="utf-8"))["settings"])


def world_digest(directory: str | os.PathLike[str]) -> str:
    """SHA-256 over the names and bytes of all files of a folder."""
    folder, digest = Path(directory), hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write_cog(
    path: Path,
    array: npt.NDArray[Any],
    geobox: GeoBox,
    *,
    nodata: float | None,
    overviews: str = "AVERAGE",
    names: tuple[str, ...] = (),
) -> None:
    """Write a small COG with GDAL's driver: ``(y, x)`` or ``(band, y, x)``."""
    bands = array[None] if array.ndim == 2 else array
    count, height, width = bands.shape
    small = max(height, width) <= 512
    with rasterio.open(
        path, "w", driver="COG", height=height, width=width, count=count, dtype=bands.dtype,
        crs=crs_of(epsg_of(geobox)), transform=geobox.affine, nodata=nodata,
        compress="DEFLATE", level=1, predictor="YES" if bands.dtype.itemsize > 1 else "NO",
        blocksize=128 if max(height, width) <= 128 else 256 if max(height, width) <= 256 else 512,
        overviews="NONE" if small else "AUTO", overview_resampling=overviews, num_threads="1",
    ) as target:  # fmt: skip
        target.write(bands)
        for index, name in enumerate(names, start=1):
            target.set_band_description(index, name)


_CRS: dict[int, rasterio.crs.CRS] = {}


def crs_of(epsg: int) -> rasterio.crs.CRS:
    """Look up the CRS of an EPSG code, once."""
    # in PROJ's database that takes as long as writing a small file
    if epsg not in _CRS:
        _CRS[epsg] = rasterio.crs.CRS.from_epsg(epsg)
    return _CRS[epsg]
