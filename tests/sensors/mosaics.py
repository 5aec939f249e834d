"""Small orthomosaics as programs write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

UTM = "EPSG:32652"
#: Upper-left corner at no round number, as drones' mosaics have it; 0.1 m pixels.
PLACE = Affine(0.1, 0.0, 500_000.03, 0.0, -0.1, 5_100_000.07)


def noise(bands: int = 3, rows: int = 48, columns: int = 64, *, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Values that are neither black nor white."""
    return np.random.default_rng(seed).integers(1, 254, (bands, rows, columns)).astype(dtype)


def mosaic(path: Path, image: np.ndarray | None = None, *, mask: np.ndarray | None = None, **options) -> Path:
    """Write an image as GeoTIFF; `mask` becomes an internal one."""
    image = noise() if image is None else image
    profile = {
        "driver": "GTiff",
        "count": image.shape[0],
        "height": image.shape[1],
        "width": image.shape[2],
        "dtype": image.dtype,
        "crs": UTM,
        "transform": PLACE,
        "tiled": True,
        "blockxsize": 16,
        "blockysize": 16,
    }
    colours = options.pop("colorinterp", None)
    profile |= options
    if image.shape[0] >= 3 and image.dtype == np.uint8:
        profile.setdefault("photometric", "RGB")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
        file.write(image)
        if colours:
            file.colorinterp = colours
        if mask is not None:
            file.write_mask(mask)
    return path
