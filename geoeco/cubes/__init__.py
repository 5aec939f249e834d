"""Stacks: the items of a block to one masked cube of reflectance on one grid, in memory or in Zarr.

Not about finding items (`geoeco.catalog`), nor about what is done with the cube.
"""

from __future__ import annotations

from geoeco.cubes.loading import load
from geoeco.cubes.rasters import create_rasters, open_rasters, write_rasters
from geoeco.cubes.reading import gdal_settings, read_window
from geoeco.cubes.scenes import solar_days
from geoeco.cubes.stores import block_memory_bytes, cube_layout, open_cube, template, write_block

__all__ = [
    "block_memory_bytes",
    "create_rasters",
    "cube_layout",
    "gdal_settings",
    "load",
    "open_cube",
    "open_rasters",
    "read_window",
    "solar_days",
    "template",
    "write_block",
    "write_rasters",
]
