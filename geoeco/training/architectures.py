"""The networks that a stored model may name, those of libraries that only this room may use included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from geoeco import models
from geoeco.models.architectures import ARCHITECTURES

__all__ = ["build_network"]


def build_network(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network from its name and arguments, with weights to be loaded by the caller.

    Parameters
    ----------
    architecture : str
        One of `geoeco.models.build`, or ``"smp"``: a network of segmentation-models-pytorch.
    arguments : mapping
        Arguments by name, as JSON holds them.

    Raises
    ------
    InputError
        As of `geoeco.models.build`.
    """
    return models.build(architecture, arguments, {**ARCHITECTURES, "smp": _smp})


def _smp(model: str = "Unet", encoder: str = "resnet18", in_channels: int = 3, num_classes: int = 2) -> nn.Module:
    # the library takes seconds to import, and few models are of it
    from geoeco.training.smp_adapter import SmpSegmenter

    return SmpSegmenter(model, encoder, in_channels, num_classes)
