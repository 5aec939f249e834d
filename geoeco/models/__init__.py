"""Networks: plain modules, one file a system. Needs torch and timm alone; no training code, no reading, no writing."""

from __future__ import annotations

from geoeco.models.architectures import build
from geoeco.models.backbones import create_backbone
from geoeco.models.contrast import ContrastiveLoss
from geoeco.models.conv_stack import ConvStack
from geoeco.models.dwff import DWFFNet
from geoeco.models.moco import MoCo
from geoeco.models.season_predictor import SeasonPredictor
from geoeco.models.seco import SeCo

__all__ = ["ContrastiveLoss", "ConvStack", "DWFFNet", "MoCo", "SeCo", "SeasonPredictor", "build", "create_backbone"]
