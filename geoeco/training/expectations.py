"""What is known of an encoder before it is made: for the plan of a run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from geoeco.errors import InputError
from geoeco.models import create_backbone

__all__ = ["ExpectedEncoder", "expect_encoder", "has_gpu"]


class ExpectedEncoder(NamedTuple):
    """Length of the features, and bytes of the weights."""

    features: int
    weight_bytes: int


def expect_encoder(
    backbone: str, in_channels: int, *, size: int | None = None, norm_splits: int = 1, group_norm: bool = False
) -> ExpectedEncoder:
    """Tell the shape of an encoder without its memory and without touching the random numbers.

    Parameters
    ----------
    backbone, in_channels, norm_splits, group_norm
        As the arguments of `geoeco.models.create_backbone`, the first one being its name.
    size : int, optional
        Pixels along a side of the images that it must take.

    Raises
    ------
    InputError
        As `geoeco.models.create_backbone`; also if the network does not take images of this size.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = create_backbone(backbone, in_channels, norm_splits=norm_splits, group_norm=group_norm)
        if size is not None:
            _check_size(network.eval(), backbone, in_channels, size)
    state = network.state_dict().values()
    features = network.num_features
    assert isinstance(features, int), "create_backbone sets it"
    return ExpectedEncoder(features, sum(value.numel() * value.element_size() for value in state))


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
