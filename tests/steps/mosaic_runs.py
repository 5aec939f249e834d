"""A small orthomosaic file with bundles beside it, and recipes that map it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

from geoeco.steps import Recipe
from tests.mapping.mosaics import conv_bundle, image

COLOURS = ("#aa5500", "#00cc00", "#0000ff", "#ffcc00")


def write_mosaic(path: Path, *, shape: tuple[int, int] = (200, 260), seed: int = 0, **profile: Any) -> Path:
    """An orthomosaic of three bands of uint8 with an internal mask, flown on 3 July 2024."""
    source = image(*shape, seed=seed)
    values = source.to_numpy()
    valid = np.isfinite(values).all(axis=0)
    settings = {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32652",
        "transform": Affine(0.1, 0, 500_000, 0, -0.1, 5_300_000),
        "tiled": True,
        "blockxsize": 128,
        "blockysize": 128,
        "compress": "deflate",
        "photometric": "RGB",
        **profile,
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "w", **settings) as file:
        file.write((np.nan_to_num(values, nan=0.7) * 255).round().astype(settings["dtype"])[: settings["count"]])
        file.write_mask(valid)
        file.update_tags(TIFFTAG_DATETIME="2024:07:03 10:12:00")
    return path


def write_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    conv_bundle(seed, name=f"stack {seed}", colours=COLOURS, **changes).save(folder)
    return folder


def recipe(
    folder: Path, predict: str = "", *, grid: str = "like: mosaic, block: 64", more: str = "", tables: str = ""
) -> Recipe:
    """A recipe that maps ``mosaic.tif`` with the bundle in ``bundle``; `predict` adds to the settings of the verb."""
    bundle = "" if "bundle:" in predict else "bundle: bundle, "
    return Recipe.parse(
        f"""
geoeco: 1
name: habitats
inputs: {{tables: {{mosaic: mosaic.tif{tables}}}}}
grid: {{{grid}}}
steps:
  - {{verb: predict, mosaic: mosaic, {bundle}{predict}}}
{more}
""",
        folder=str(folder),
    )
