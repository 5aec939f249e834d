"""Maps: from models to rasters of whole regions, block by block. Needs the extra ``ml``.

Names are imported when they are first used: composites and the geometry of windows need no torch, and the workers that
make them are spared it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoeco.mapping.clusters import Clusters, cluster
    from geoeco.mapping.composites import Period, season_composites
    from geoeco.mapping.embedding_maps import embed
    from geoeco.mapping.inputs import check_model, stored_bands
    from geoeco.mapping.lattice import Lattice
    from geoeco.mapping.projections import PrincipalComponents, Quantisation
    from geoeco.mapping.reductions import Reduction
    from geoeco.mapping.similarity import nearest
    from geoeco.mapping.windows import Embedder, device_of

__all__ = [
    "Clusters",
    "Embedder",
    "Lattice",
    "Period",
    "PrincipalComponents",
    "Quantisation",
    "Reduction",
    "check_model",
    "cluster",
    "device_of",
    "embed",
    "nearest",
    "season_composites",
    "stored_bands",
]

_MODULES = {
    "Clusters": "clusters",
    "Embedder": "windows",
    "Lattice": "lattice",
    "Period": "composites",
    "PrincipalComponents": "projections",
    "Quantisation": "projections",
    "Reduction": "reductions",
    "check_model": "inputs",
    "cluster": "clusters",
    "device_of": "windows",
    "embed": "embedding_maps",
    "nearest": "similarity",
    "season_composites": "composites",
    "stored_bands": "inputs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'geoeco.mapping' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"geoeco.mapping.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
