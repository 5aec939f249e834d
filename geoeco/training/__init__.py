"""Learning: data sets of season chips for torch. Needs the extra ``ml``; no other room imports torch."""

from __future__ import annotations

from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.chip_dataset import ChipDataset

__all__ = ["ChipDataset", "ModelBundle", "Normalisation"]
