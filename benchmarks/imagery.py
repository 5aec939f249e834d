"""Made-up satellite imagery as the benchmarks need it: one band a COG, deflated as real archives deflate it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["write_band"]


def write_band(
    path: Path, pixels: np.ndarray, *, crs: str, corner: tuple[float, float], resolution: float, block: int, level: int
) -> None:
    """Write one band ``(y, x)`` as a COG without overviews, 0 meaning no data.

    Parameters
    ----------
    path : pathlib.Path
    pixels : numpy.ndarray
    crs : str
    corner : tuple of float
        Left and top edge.
    resolution : float
        Of a pixel, in units of the CRS.
    block : int
        Pixels along a tile.
    level : int
        Of DEFLATE.
    """
    import rasterio
    import rasterio.shutil
    from affine import Affine

    height, width = pixels.shape
    with (
        rasterio.MemoryFile() as memory,
        memory.open(
            driver="GTiff",
            width=width,
            height=height,
            count=1,
            dtype=pixels.dtype,
            crs=crs,
            transform=Affine(resolution, 0, corner[0], 0, -resolution, corner[1]),
            nodata=0,
        ) as plain,
    ):
        plain.write(pixels, 1)
        options = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "LEVEL": level, "OVERVIEWS": "NONE", "BLOCKSIZE": block}
        rasterio.shutil.copy(plain, str(path), driver="COG", NUM_THREADS="2", **options)
