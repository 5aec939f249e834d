"""Maps: from models to rasters of whole regions, block by block. Needs the extra ``ml``.

Names are imported when they are first used: composites and the geometry of windows need no torch, and the workers that
make them are spared it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoeco.mapping.clusters import Clusters, cluster
    from geoeco.mapping.coarse_maps import CoarseMapper, coarse_grid, coarse_map, coarse_variables
    from geoeco.mapping.composites import Period, season_composites
    from geoeco.mapping.crown_maps import classify_crowns
    from geoeco.mapping.detections import check_detector, detect_crowns, detect_tiles, detection_tiles, merge_tiles
    from geoeco.mapping.devices import device_of, fixed_arithmetic, precision_of
    from geoeco.mapping.embedding_maps import embed
    from geoeco.mapping.inputs import check_model, stored_bands
    from geoeco.mapping.lattice import Lattice
    from geoeco.mapping.map_layers import check_segmenters, map_variables
    from geoeco.mapping.map_polygons import class_polygons
    from geoeco.mapping.networks import Member, views_of
    from geoeco.mapping.object_scores import relative_f1
    from geoeco.mapping.objects import (
        crown_heights,
        crowns_from_instances,
        gather_objects,
        instances_from_crowns,
        own_objects,
        suppress_overlaps,
    )
    from geoeco.mapping.prediction_maps import predict, scene_levels, with_levels
    from geoeco.mapping.predictor import Predictor
    from geoeco.mapping.projections import PrincipalComponents, Quantisation
    from geoeco.mapping.reductions import Reduction
    from geoeco.mapping.similarity import nearest
    from geoeco.mapping.tiling import Tiling, choose_tiling
    from geoeco.mapping.windows import Embedder

__all__ = [
    "Clusters",
    "CoarseMapper",
    "Embedder",
    "Lattice",
    "Member",
    "Period",
    "Predictor",
    "PrincipalComponents",
    "Quantisation",
    "Reduction",
    "Tiling",
    "check_detector",
    "check_model",
    "check_segmenters",
    "choose_tiling",
    "class_polygons",
    "classify_crowns",
    "cluster",
    "coarse_grid",
    "coarse_map",
    "coarse_variables",
    "crown_heights",
    "crowns_from_instances",
    "detect_crowns",
    "detect_tiles",
    "detection_tiles",
    "device_of",
    "embed",
    "fixed_arithmetic",
    "gather_objects",
    "instances_from_crowns",
    "map_variables",
    "merge_tiles",
    "nearest",
    "own_objects",
    "precision_of",
    "predict",
    "relative_f1",
    "scene_levels",
    "season_composites",
    "stored_bands",
    "suppress_overlaps",
    "views_of",
    "with_levels",
]

_MODULES = {
    "check_detector": "detections",
    "Clusters": "clusters",
    "CoarseMapper": "coarse_maps",
    "Embedder": "windows",
    "Lattice": "lattice",
    "Member": "networks",
    "Period": "composites",
    "Predictor": "predictor",
    "PrincipalComponents": "projections",
    "Quantisation": "projections",
    "Reduction": "reductions",
    "Tiling": "tiling",
    "check_model": "inputs",
    "check_segmenters": "map_layers",
    "choose_tiling": "tiling",
    "class_polygons": "map_polygons",
    "classify_crowns": "crown_maps",
    "cluster": "clusters",
    "coarse_grid": "coarse_maps",
    "coarse_map": "coarse_maps",
    "coarse_variables": "coarse_maps",
    "crown_heights": "objects",
    "crowns_from_instances": "objects",
    "detect_crowns": "detections",
    "detect_tiles": "detections",
    "detection_tiles": "detections",
    "device_of": "devices",
    "embed": "embedding_maps",
    "fixed_arithmetic": "devices",
    "gather_objects": "objects",
    "instances_from_crowns": "objects",
    "map_variables": "map_layers",
    "merge_tiles": "detections",
    "nearest": "similarity",
    "own_objects": "objects",
    "precision_of": "devices",
    "predict": "prediction_maps",
    "relative_f1": "object_scores",
    "scene_levels": "prediction_maps",
    "season_composites": "composites",
    "stored_bands": "inputs",
    "suppress_overlaps": "objects",
    "views_of": "networks",
    "with_levels": "prediction_maps",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'geoeco.mapping' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"geoeco.mapping.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
