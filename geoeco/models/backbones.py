"""Encoders of images of any number of bands: timm's networks without their classifier.

No zoo of its own: timm has the networks and their initialisation. What is added is what contrastive learning on one
device asks of batch normalisation, and errors before a download or a training starts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError

__all__ = ["SplitBatchNorm2d", "check_name", "create_backbone"]

#: Groups of the group normalisation that takes the place of batch normalisation (Wu & He 2018, table 3).
NORM_GROUPS = 32


def create_backbone(
    name: str = "resnet50",
    in_channels: int = 9,
    *,
    pretrained: bool = False,
    norm_splits: int = 1,
    group_norm: bool = False,
) -> nn.Module:
    """Create an encoder of images: ``(N, band, y, x)`` in, ``(N, num_features)`` out.

    Parameters
    ----------
    name : str
        A network of timm that gives pooled features: ``"resnet50"``, ``"resnet18"``, ``"convnext_tiny"``, ... Networks
        made for one size of image (most transformers) take that size alone.
    in_channels : int
        Number of bands.
    pretrained : bool
        Start from timm's weights of RGB photographs (this downloads them). The first convolution is fresh where
        `in_channels` is not 3: photographs say nothing of the other bands. By default all weights are random, as in
        SSL4Eco.
    norm_splits : int
        Compute the statistics of batch normalisation in training within that many parts of the batch, as if each were
        a device of its own; `SplitBatchNorm2d`. The weights are named as without it.
    group_norm : bool
        Normalise within each sample (`torch.nn.GroupNorm`) in place of batch normalisation, so that nothing passes
        between the samples of a batch.

    Returns
    -------
    torch.nn.Module
        With an attribute ``num_features``, the length of the features.

    Raises
    ------
    InputError
        If timm has no such network, a number is out of range, or the network has no batch normalisation to split or
        replace.

    Notes
    -----
    Without shuffled batches on several devices, the statistics of a batch tell a contrastive query which of the keys
    was in its own batch (He et al. 2020, section 3.3). The authors of SSL4Eco trained on one device without a
    remedy, and so does the default; `norm_splits` with the shuffled keys of `SeCo` and `MoCo`, and `group_norm`, are
    remedies.

    References
    ----------
    He, Fan, Wu, Xie & Girshick (2020), Momentum contrast, CVPR. Wu & He (2018), Group normalization, ECCV.
    """
    if in_channels < 1:
        raise InputError(f"a backbone of {in_channels} bands", what_to_do="give the number of bands, at least 1")
    if norm_splits < 1:
        raise InputError(f"norm_splits is {norm_splits}", what_to_do="use 1 for the whole batch, or more")
    if group_norm and (pretrained or norm_splits > 1):
        raise InputError(
            "group_norm takes the place of batch normalisation, with which the pretrained weights were learned"
            if pretrained
            else "group_norm leaves no batch normalisation to split",
            where=name,
            what_to_do="use one of the two",
        )
    check_name(name)
    network: Any = timm.create_model(name, in_chans=in_channels, num_classes=0)
    # some networks put a layer between the pooling and the classifier: what counts is what comes out
    network.num_features = getattr(network, "head_hidden_size", None) or network.num_features
    backbone: nn.Module = network
    if pretrained:
        _load_photograph_weights(backbone, name, in_channels)
    if norm_splits > 1:
        _replace_batch_norms(backbone, name, lambda norm: SplitBatchNorm2d(norm, norm_splits))
    if group_norm:
        _replace_batch_norms(backbone, name, _group_norm)
    return backbone


def check_name(name: str) -> None:
    """Refuse what is no name of a network of timm.

    Raises
    ------
    InputError
        With the nearest names.
    """
    # names like "hf-hub:..." or "local-dir:..." would have timm fetch a description of the network
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    raise InputError(
        f"timm has no network {name!r}",
        what_to_do=f"did you mean {' or '.join(near)}?" if near else "see timm.list_models() for their names",
    )


def _load_photograph_weights(backbone: nn.Module, name: str, in_channels: int) -> None:
    photographs: Any = timm.create_model(name, pretrained=True, num_classes=0)
    first = photographs.pretrained_cfg["first_conv"]
    weights = photographs.state_dict()
    if in_channels != 3:
        for layer in (first,) if isinstance(first, str) else first:
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{layer}.")}
    backbone.load_state_dict(weights, strict=in_channels == 3)


def _replace_batch_norms(backbone: nn.Module, name: str, make: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    norms = {path: norm for path, norm in backbone.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    if not norms:
        raise InputError(
            "the network has no batch normalisation to split or replace",
            where=name,
            what_to_do="leave norm_splits and group_norm as they are: nothing passes between its samples",
        )
    for path, norm in norms.items():
        parent, _, child = path.rpartition(".")
        setattr(backbone.get_submodule(parent), child, make(norm))


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics in training are those of interleaved parts of the batch.

    Sample i is normalised with the samples i + `splits`, i + 2 `splits`, ... The running statistics are the mean over
    the parts. In evaluation it is `torch.nn.BatchNorm2d`, whose state it has.

    Parameters
    ----------
    norm : torch.nn.BatchNorm2d
        The layer whose weights and settings it takes over, timm's fused activation included.
    splits : int
        Number of parts.

    Raises
    ------
    InputError
        In training, if the parts of a batch would not be of one size.
    """

    def __init__(self, norm: nn.BatchNorm2d, splits: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.load_state_dict(norm.state_dict())
        self.splits = splits
        self.drop, self.act = _fused(norm)

    def forward(self, image: Tensor) -> Tensor:
        """Normalise ``(N, channel, y, x)``."""
        normalised = self._normalise_parts(image) if self.training else super().forward(image)
        activated: Tensor = self.act(self.drop(normalised))
        return activated

    def _normalise_parts(self, image: Tensor) -> Tensor:
        samples, channels, height, width = image.shape
        if samples % self.splits:
            raise InputError(
                f"a batch of {samples} cannot be normalised in {self.splits} parts of one size",
                what_to_do="choose a batch size that norm_splits divides",
            )
        mean = _repeated(self.running_mean, self.splits)
        variance = _repeated(self.running_var, self.splits)
        parts = functional.batch_norm(
            image.reshape(samples // self.splits, self.splits * channels, height, width),
            mean,
            variance,
            _repeated(self.weight, self.splits),
            _repeated(self.bias, self.splits),
            True,
            self.momentum or 0.0,
            self.eps,
        )
        with torch.no_grad():
            if self.running_mean is not None and mean is not None:
                self.running_mean.copy_(mean.view(self.splits, channels).mean(0))
            if self.running_var is not None and variance is not None:
                self.running_var.copy_(variance.view(self.splits, channels).mean(0))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return parts.reshape(image.shape)


def _repeated(values: Tensor | None, times: int) -> Tensor | None:
    return None if values is None else values.repeat(times)


def _fused(norm: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module]:
    """Return what timm's layers of normalisation and activation do after the normalisation."""
    return getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    group_norm = nn.GroupNorm(math.gcd(NORM_GROUPS, norm.num_features), norm.num_features, norm.eps, norm.affine)
    if norm.affine:
        # some networks start with the last weights of a residual branch at zero
        group_norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    fused = [layer for layer in _fused(norm) if not isinstance(layer, nn.Identity)]
    return nn.Sequential(group_norm, *fused) if fused else group_norm
