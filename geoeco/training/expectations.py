"""What is known of a network before it is made: for the plan of a run."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from geoeco.errors import InputError
from geoeco.models import DWFFNet, create_backbone
from geoeco.training.architectures import build_network

__all__ = ["ExpectedEncoder", "ExpectedSegmenter", "expect_encoder", "expect_segmenter", "has_gpu"]


class ExpectedEncoder(NamedTuple):
    """Length of the features, and bytes of the weights."""

    features: int
    weight_bytes: int


class ExpectedSegmenter(NamedTuple):
    """What `expect_segmenter` tells of a segmentation network.

    Attributes
    ----------
    stride : int
    radius : int or None
        How far a pixel sees; None where it sees everything, or that is not known.
    weight_bytes, frozen_bytes : int
        All weights, and those of them that are not trained.
    """

    stride: int
    radius: int | None
    weight_bytes: int
    frozen_bytes: int


def expect_segmenter(architecture: str, arguments: Mapping[str, Any]) -> ExpectedSegmenter:
    """Tell what a segmentation network is like without its memory and without touching the random numbers.

    Parameters
    ----------
    architecture, arguments
        As of `geoeco.training.build_network`.

    Raises
    ------
    InputError
        As of `geoeco.training.build_network`; also if it is no segmentation network.
    """
    return _segmenter(architecture, json.dumps(dict(arguments), sort_keys=True))


@functools.lru_cache(maxsize=32)
def _segmenter(architecture: str, arguments: str) -> ExpectedSegmenter:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network: Any = build_network(architecture, json.loads(arguments))
    if not hasattr(network, "with_features"):
        raise InputError(f"the architecture {architecture!r} is no segmentation network")
    frozen = network.encoder if isinstance(network, DWFFNet) else None
    return ExpectedSegmenter(
        int(network.stride), network.receptive_radius, _bytes(network), 0 if frozen is None else _bytes(frozen)
    )


def _bytes(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def expect_encoder(
    backbone: str,
    in_channels: int,
    *,
    size: int | None = None,
    norm_splits: int = 1,
    group_norm: bool = False,
    weights: str | None = None,
) -> ExpectedEncoder:
    """Tell the shape of an encoder without its memory and without touching the random numbers.

    Parameters
    ----------
    backbone, in_channels, norm_splits, group_norm
        As the arguments of `geoeco.models.create_backbone`, the first one being its name.
    size : int, optional
        Pixels along a side of the images that it must take.
    weights : str, optional
        That it will start from, as the source of `load_weights`: a file is read, nothing is downloaded.

    Raises
    ------
    InputError
        As `geoeco.models.create_backbone`; also if the network does not take images of this size, or the weights
        cannot be its own.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = create_backbone(backbone, in_channels, norm_splits=norm_splits, group_norm=group_norm)
        if size is not None:
            _check_size(network.eval(), backbone, in_channels, size)
    if weights is not None:
        # torchgeo takes seconds to be imported, which a plan without such weights is spared
        from geoeco.training.weights import check_weights

        check_weights(network, weights, in_channels)
    features = network.num_features
    assert isinstance(features, int), "create_backbone sets it"
    return ExpectedEncoder(features, _bytes(network))


def _check_size(network: nn.Module, backbone: str, in_channels: int, size: int) -> None:
    try:
        network(torch.empty(1, in_channels, size, size))
    # timm asserts; convolutions and poolings raise what torch raises
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the network does not take images of {size} x {size} pixels: {error}",
            where=backbone,
            what_to_do="choose the size that it was made for, or a network that takes any, such as a ResNet",
            code="size",
        ) from error


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available()
