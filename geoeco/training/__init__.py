"""Learning: data sets of season chips for torch, contrastive training, bundles, evaluation. Needs the extra ``ml``.

What is offered is imported when it is first used: a process that only reads chips for a training needs neither
networks nor trainers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoeco.training.architectures import build_network
    from geoeco.training.bundles import ModelBundle, Normalisation
    from geoeco.training.chip_dataset import ChipDataset
    from geoeco.training.closeup_pairs import CrownPairs
    from geoeco.training.confusion import ConfusionMatrix
    from geoeco.training.confusion_files import finite_scores, write_confusions
    from geoeco.training.contrast_losses import InfoNCE, SupCon
    from geoeco.training.crown_alignment import CrownAlignment, align_crowns, gallery_scores
    from geoeco.training.crown_chips import CrownDataset, crown_table
    from geoeco.training.crown_embeddings import embed_crowns
    from geoeco.training.crown_learning import CrownPrediction
    from geoeco.training.crown_scores import frequency_bins, rarity_scores
    from geoeco.training.crown_training import labelled_crowns, train_crowns
    from geoeco.training.datamodule import ChipDataModule
    from geoeco.training.detection_training import detector_bytes, train_detector
    from geoeco.training.embeddings import embed_chips, location_features
    from geoeco.training.evaluation import ProbeTask, evaluate, untrained
    from geoeco.training.expectations import (
        ExpectedEncoder,
        ExpectedSegmenter,
        expect_encoder,
        expect_segmenter,
        has_gpu,
    )
    from geoeco.training.fitting import Fitting, FittingOptions
    from geoeco.training.folds import Fold, block_folds, random_folds
    from geoeco.training.outlier_exposure import OutlierMixing, tnr_at_tpr
    from geoeco.training.photo_points import PhotoPoints, soft_label_loss
    from geoeco.training.prediction import SeasonPrediction
    from geoeco.training.pretraining import pretrain
    from geoeco.training.probes import FoldResult, ProbeResult, knn_probe, linear_probe
    from geoeco.training.samplers import LocationBatches, location_weights
    from geoeco.training.scene_images import ChipScenes, FileScenes, Scenes, start_encoder
    from geoeco.training.scoring import scores
    from geoeco.training.season_contrast import SeasonContrast
    from geoeco.training.segmentation import HabitatSegmentation
    from geoeco.training.segmentation_chips import SegmentationDataset
    from geoeco.training.segmentation_losses import SegmentationLoss
    from geoeco.training.segmentation_training import train_segmentation
    from geoeco.training.segmenters import SEGMENTER_DEFAULTS, segmenter_arguments
    from geoeco.training.statistics import ChipStatistics, chip_statistics, seco_eco_normalisation
    from geoeco.training.supervised import train, trained_encoder
    from geoeco.training.views import FourViews, MoCoViews, SeasonViews
    from geoeco.training.weak_labels import Templates, learn_patches, patch_features, score_patches
    from geoeco.training.weights import LoadedWeights, hub_bundle, load_weights

__all__ = [
    "SEGMENTER_DEFAULTS",
    "ChipDataModule",
    "ChipDataset",
    "ChipScenes",
    "ChipStatistics",
    "ConfusionMatrix",
    "CrownAlignment",
    "CrownDataset",
    "CrownPairs",
    "CrownPrediction",
    "ExpectedEncoder",
    "ExpectedSegmenter",
    "FileScenes",
    "Fitting",
    "FittingOptions",
    "Fold",
    "FoldResult",
    "FourViews",
    "HabitatSegmentation",
    "InfoNCE",
    "LoadedWeights",
    "LocationBatches",
    "MoCoViews",
    "ModelBundle",
    "Normalisation",
    "OutlierMixing",
    "PhotoPoints",
    "ProbeResult",
    "ProbeTask",
    "Scenes",
    "SeasonContrast",
    "SeasonPrediction",
    "SeasonViews",
    "SegmentationDataset",
    "SegmentationLoss",
    "SupCon",
    "Templates",
    "align_crowns",
    "block_folds",
    "build_network",
    "chip_statistics",
    "crown_table",
    "detector_bytes",
    "embed_chips",
    "embed_crowns",
    "evaluate",
    "expect_encoder",
    "expect_segmenter",
    "finite_scores",
    "frequency_bins",
    "gallery_scores",
    "has_gpu",
    "hub_bundle",
    "knn_probe",
    "labelled_crowns",
    "learn_patches",
    "linear_probe",
    "load_weights",
    "location_features",
    "location_weights",
    "patch_features",
    "pretrain",
    "random_folds",
    "rarity_scores",
    "score_patches",
    "scores",
    "seco_eco_normalisation",
    "segmenter_arguments",
    "soft_label_loss",
    "start_encoder",
    "tnr_at_tpr",
    "train",
    "train_crowns",
    "train_detector",
    "train_segmentation",
    "trained_encoder",
    "untrained",
    "write_confusions",
]

_HOME = {
    "ChipDataModule": "geoeco.training.datamodule",
    "ChipDataset": "geoeco.training.chip_dataset",
    "ChipScenes": "geoeco.training.scene_images",
    "ChipStatistics": "geoeco.training.statistics",
    "ConfusionMatrix": "geoeco.training.confusion",
    "CrownAlignment": "geoeco.training.crown_alignment",
    "CrownDataset": "geoeco.training.crown_chips",
    "CrownPairs": "geoeco.training.closeup_pairs",
    "CrownPrediction": "geoeco.training.crown_learning",
    "ExpectedEncoder": "geoeco.training.expectations",
    "ExpectedSegmenter": "geoeco.training.expectations",
    "FileScenes": "geoeco.training.scene_images",
    "Fitting": "geoeco.training.fitting",
    "FittingOptions": "geoeco.training.fitting",
    "Fold": "geoeco.training.folds",
    "FoldResult": "geoeco.training.probes",
    "FourViews": "geoeco.training.views",
    "HabitatSegmentation": "geoeco.training.segmentation",
    "InfoNCE": "geoeco.training.contrast_losses",
    "LoadedWeights": "geoeco.training.weights",
    "LocationBatches": "geoeco.training.samplers",
    "MoCoViews": "geoeco.training.views",
    "ModelBundle": "geoeco.training.bundles",
    "Normalisation": "geoeco.training.bundles",
    "OutlierMixing": "geoeco.training.outlier_exposure",
    "PhotoPoints": "geoeco.training.photo_points",
    "ProbeResult": "geoeco.training.probes",
    "ProbeTask": "geoeco.training.evaluation",
    "SEGMENTER_DEFAULTS": "geoeco.training.segmenters",
    "Scenes": "geoeco.training.scene_images",
    "SeasonContrast": "geoeco.training.season_contrast",
    "SeasonPrediction": "geoeco.training.prediction",
    "SeasonViews": "geoeco.training.views",
    "SegmentationDataset": "geoeco.training.segmentation_chips",
    "SegmentationLoss": "geoeco.training.segmentation_losses",
    "SupCon": "geoeco.training.contrast_losses",
    "Templates": "geoeco.training.weak_labels",
    "align_crowns": "geoeco.training.crown_alignment",
    "block_folds": "geoeco.training.folds",
    "build_network": "geoeco.training.architectures",
    "chip_statistics": "geoeco.training.statistics",
    "crown_table": "geoeco.training.crown_chips",
    "detector_bytes": "geoeco.training.detection_training",
    "embed_chips": "geoeco.training.embeddings",
    "embed_crowns": "geoeco.training.crown_embeddings",
    "evaluate": "geoeco.training.evaluation",
    "expect_encoder": "geoeco.training.expectations",
    "expect_segmenter": "geoeco.training.expectations",
    "finite_scores": "geoeco.training.confusion_files",
    "frequency_bins": "geoeco.training.crown_scores",
    "gallery_scores": "geoeco.training.crown_alignment",
    "has_gpu": "geoeco.training.expectations",
    "hub_bundle": "geoeco.training.weights",
    "knn_probe": "geoeco.training.probes",
    "labelled_crowns": "geoeco.training.crown_training",
    "learn_patches": "geoeco.training.weak_labels",
    "linear_probe": "geoeco.training.probes",
    "load_weights": "geoeco.training.weights",
    "location_features": "geoeco.training.embeddings",
    "location_weights": "geoeco.training.samplers",
    "patch_features": "geoeco.training.weak_labels",
    "pretrain": "geoeco.training.pretraining",
    "random_folds": "geoeco.training.folds",
    "rarity_scores": "geoeco.training.crown_scores",
    "score_patches": "geoeco.training.weak_labels",
    "scores": "geoeco.training.scoring",
    "seco_eco_normalisation": "geoeco.training.statistics",
    "segmenter_arguments": "geoeco.training.segmenters",
    "soft_label_loss": "geoeco.training.photo_points",
    "start_encoder": "geoeco.training.scene_images",
    "tnr_at_tpr": "geoeco.training.outlier_exposure",
    "train": "geoeco.training.supervised",
    "train_crowns": "geoeco.training.crown_training",
    "train_detector": "geoeco.training.detection_training",
    "train_segmentation": "geoeco.training.segmentation_training",
    "trained_encoder": "geoeco.training.supervised",
    "untrained": "geoeco.training.evaluation",
    "write_confusions": "geoeco.training.confusion_files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'geoeco.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
