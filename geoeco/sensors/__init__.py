"""What numbers mean: one module a sensor, from digital numbers to physical units.

Not about finding imagery (`geoeco.catalog`) nor stacking it (`geoeco.cubes`).

Orthomosaics need xarray and are imported when they are first used: a worker that writes blocks of scenes does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from geoeco.sensors import sentinel2

if TYPE_CHECKING:
    from geoeco.sensors import orthomosaic

__all__ = ["orthomosaic", "sentinel2"]


def __getattr__(name: str) -> Any:
    if name == "orthomosaic":
        return importlib.import_module("geoeco.sensors.orthomosaic")
    raise AttributeError(f"module 'geoeco.sensors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
