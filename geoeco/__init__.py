"""geoeco: Earth observation in, georeferenced answers out.

The names below and the rooms (``geoeco.phenology``, ``geoeco.sampling``, ...) are imported when they are first used,
so that ``import geoeco`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoeco.catalog import open_catalog
    from geoeco.cubes import open_cube
    from geoeco.steps import Recipe

__all__ = ["Recipe", "__version__", "open_catalog", "open_cube"]

__version__ = "0.1.0"

#: What to import for each public name; it lives in the last of these. The accessor comes with all that gives cubes.
_NAMES = {
    "Recipe": ("geoeco.accessor", "geoeco.steps"),
    "open_catalog": ("geoeco.catalog",),
    "open_cube": ("geoeco.accessor", "geoeco.cubes"),
}

_ROOMS = frozenset(
    {
        "accessor",
        "applicability",
        "catalog",
        "cubes",
        "engine",
        "errors",
        "gdal",
        "grid",
        "mapping",
        "models",
        "outputs",
        "phenology",
        "sampling",
        "sensors",
        "simulate",
        "steps",
        "training",
        "variables",
        "vectors",
    }
)

#: Rooms that bring cubes or season metrics with them: with these comes the xarray accessor ``.geoeco``.
_ROOMS_OF_CUBES = frozenset({"cubes", "mapping", "phenology", "sampling", "simulate", "steps", "training"})


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr([importlib.import_module(module) for module in _NAMES[name]][-1], name)
    elif name in _ROOMS:
        if name in _ROOMS_OF_CUBES:
            importlib.import_module("geoeco.accessor")
        value = importlib.import_module(f"geoeco.{name}")
    else:
        raise AttributeError(f"module 'geoeco' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
