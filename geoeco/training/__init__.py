"""Learning: data sets of season chips, views, tasks, model bundles, probes. Needs the extra ``ml``."""

from __future__ import annotations

from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.chip_dataset import ChipDataset
from geoeco.training.datamodule import ChipDataModule
from geoeco.training.embeddings import embed_chips, location_features
from geoeco.training.evaluation import ProbeTask, evaluate, untrained
from geoeco.training.folds import Fold, block_folds, random_folds
from geoeco.training.pretraining import pretrain
from geoeco.training.probes import FoldResult, ProbeResult, knn_probe, linear_probe
from geoeco.training.samplers import LocationBatches, location_weights
from geoeco.training.scoring import scores
from geoeco.training.season_contrast import SeasonContrast
from geoeco.training.statistics import ChipStatistics, chip_statistics, seco_eco_normalisation
from geoeco.training.views import FourViews, MoCoViews, SeasonViews
from geoeco.training.weights import LoadedWeights, hub_bundle, load_weights

__all__ = [
    "ChipDataModule",
    "ChipDataset",
    "ChipStatistics",
    "Fold",
    "FoldResult",
    "FourViews",
    "LoadedWeights",
    "LocationBatches",
    "MoCoViews",
    "ModelBundle",
    "Normalisation",
    "ProbeResult",
    "ProbeTask",
    "SeasonContrast",
    "SeasonViews",
    "block_folds",
    "chip_statistics",
    "embed_chips",
    "evaluate",
    "hub_bundle",
    "knn_probe",
    "linear_probe",
    "load_weights",
    "location_features",
    "location_weights",
    "pretrain",
    "random_folds",
    "scores",
    "seco_eco_normalisation",
    "untrained",
]
