"""What is known of an encoder before it is made: for the plan of a run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from geoeco.models import create_backbone

__all__ = ["ExpectedEncoder", "expect_encoder", "has_gpu"]


class ExpectedEncoder(NamedTuple):
    """Length of the features, and bytes of the weights."""

    features: int
    weight_bytes: int


def expect_encoder(
    backbone: str, in_channels: int, *, norm_splits: int = 1, group_norm: bool = False
) -> ExpectedEncoder:
    """Tell the shape of an encoder without its memory and without touching the random numbers.

    Parameters
    ----------
    backbone, in_channels, norm_splits, group_norm
        As the arguments of `geoeco.models.create_backbone`, the first one being its name.

    Raises
    ------
    InputError
        As `geoeco.models.create_backbone`.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = create_backbone(backbone, in_channels, norm_splits=norm_splits, group_norm=group_norm)
    state = network.state_dict().values()
    features = network.num_features
    assert isinstance(features, int), "create_backbone sets it"
    return ExpectedEncoder(features, sum(value.numel() * value.element_size() for value in state))


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available()
