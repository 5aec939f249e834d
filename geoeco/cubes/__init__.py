"""Stacks: the items of a block to one masked cube of reflectance on one grid, in memory or in Zarr.

Not about finding items (`geoeco.catalog`), nor about what is done with the cube.

What needs xarray is imported when it is first used: a worker that writes blocks needs neither it nor pandas, which
are half of such a worker's idle memory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from geoeco.cubes.reading import read_window
from geoeco.cubes.scenes import solar_days
from geoeco.cubes.stores import block_memory_bytes, cube_layout, open_cube, template, write_block

if TYPE_CHECKING:
    from geoeco.cubes.loading import load
    from geoeco.cubes.rasters import create_rasters, open_rasters, write_rasters

__all__ = [
    "block_memory_bytes",
    "create_rasters",
    "cube_layout",
    "load",
    "open_cube",
    "open_rasters",
    "read_window",
    "solar_days",
    "template",
    "write_block",
    "write_rasters",
]

_LATER = {
    "load": "geoeco.cubes.loading",
    "create_rasters": "geoeco.cubes.rasters",
    "open_rasters": "geoeco.cubes.rasters",
    "write_rasters": "geoeco.cubes.rasters",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'geoeco.cubes' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
