"""The verbs of a recipe, one module a verb, and the recipe type that knows them."""

from __future__ import annotations

from geoeco.engine import Registry
from geoeco.steps.chips import ChipsVerb
from geoeco.steps.classify_crowns import ClassifyCrownsVerb
from geoeco.steps.coarse_map import CoarseMapVerb
from geoeco.steps.cog import CogVerb
from geoeco.steps.crown_alignment import CrownAlignmentVerb
from geoeco.steps.cube import CubeVerb
from geoeco.steps.detect_crowns import DetectCrownsVerb
from geoeco.steps.embed import EmbedVerb
from geoeco.steps.evaluate import EvaluateVerb
from geoeco.steps.layers import Layer, RasterVerb
from geoeco.steps.polygons import PolygonsVerb
from geoeco.steps.predict import PredictVerb
from geoeco.steps.pretrain import PretrainVerb
from geoeco.steps.seasons import SeasonsVerb
from geoeco.steps.train import TrainVerb
from geoeco.steps.train_crowns import TrainCrownsVerb
from geoeco.steps.train_detector import TrainDetectorVerb
from geoeco.steps.train_segmentation import TrainSegmentationVerb
from geoeco.steps.uav_chips import UavChipsVerb
from geoeco.steps.weak_coarse import WeakCoarseVerb
from geoeco.steps.windows import WindowsVerb

__all__ = ["Layer", "RasterVerb", "Recipe", "registry"]

registry = Registry()
for _verb in (
    CubeVerb,
    SeasonsVerb,
    WindowsVerb,
    ChipsVerb,
    UavChipsVerb,
    PretrainVerb,
    EmbedVerb,
    EvaluateVerb,
    TrainVerb,
    TrainSegmentationVerb,
    TrainCrownsVerb,
    CrownAlignmentVerb,
    ClassifyCrownsVerb,
    TrainDetectorVerb,
    DetectCrownsVerb,
    PredictVerb,
    WeakCoarseVerb,
    CoarseMapVerb,
    PolygonsVerb,
    CogVerb,
):
    registry.register(_verb)
registry.load_entry_points()

Recipe = registry.recipe_type(__name__)
