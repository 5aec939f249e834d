"""How the simulated world writes its rasters: small cloud-optimised GeoTIFFs, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import rasterio
import rasterio.crs
from odc.geo.geobox import GeoBox

from geoeco.simulate.landscape import epsg_of

__all__ = ["crs_of", "write_cog"]


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
