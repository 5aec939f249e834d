"""The networks that a stored model may name: a fixed list, so that reading a model never imports what a file says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from geoeco.errors import InputError
from geoeco.models.backbones import create_backbone
from geoeco.models.conv_stack import ConvStack
from geoeco.models.dwff import dwff
from geoeco.models.season_predictor import season_predictor

__all__ = ["ARCHITECTURES", "build"]


def crown_detector(
    backbone: str = "resnet50",
    in_channels: int = 3,
    masks: bool = True,
    anchors: str = "8,16,32,64,128",
    channels: int = 256,
    most: int = 200,
    frozen_norm: bool = False,
    num_classes: int = 1,
    boxes: int = 512,
) -> nn.Module:
    """Make a `geoeco.models.crown_detector.CrownDetector`, whose library is imported by those alone who use it."""
    from geoeco.models.crown_detector import CrownDetector

    return CrownDetector(backbone, in_channels, masks, anchors, channels, most, frozen_norm, num_classes, boxes)


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "backbone": create_backbone,
        "conv_stack": ConvStack,
        "crown_detector": crown_detector,
        "dwff": dwff,
        "season_predictor": season_predictor,
    }
)


def build(
    architecture: str,
    arguments: Mapping[str, Any],
    architectures: Mapping[str, Callable[..., nn.Module]] = ARCHITECTURES,
) -> nn.Module:
    """Build a network from its name and arguments, with weights to be loaded by the caller.

    Parameters
    ----------
    architecture : str
        ``"backbone"``: `create_backbone`; ``"season_predictor"``: a `SeasonPredictor` with such an encoder;
        ``"dwff"``: a `DWFFNet`; ``"conv_stack"``: a `ConvStack`; ``"crown_detector"``: a `CrownDetector`.
    arguments : mapping
        Arguments of that function by name, as JSON holds them.
    architectures : mapping of str to callable
        What is known: the networks of this room when not given. Every argument of a callable has a default, whose type
        is the one that is taken.

    Returns
    -------
    torch.nn.Module
        With random weights. Nothing is downloaded.

    Raises
    ------
    InputError
        If there is no such architecture, an argument is unknown or of another type, or it asks for a download.
    """
    if architecture not in architectures:
        raise InputError(
            f"unknown architecture {architecture!r}",
            what_to_do=f"known are: {', '.join(sorted(architectures))}; a newer geoeco may know it",
        )
    make = architectures[architecture]
    parameters = inspect.signature(make).parameters
    where = f"arguments of {architecture!r}"
    for name, value in arguments.items():
        if name not in parameters:
            raise InputError(
                f"unknown argument {name!r}", where=where, what_to_do=f"known are: {', '.join(parameters)}"
            )
        expected = type(parameters[name].default)
        if type(value) is not expected:
            raise InputError(f"{name} is {value!r}", where=where, what_to_do=f"give one of type {expected.__name__}")
    if arguments.get("pretrained"):
        raise InputError("a stored model brings its own weights", where=where, what_to_do="leave pretrained out")
    return make(**arguments)
