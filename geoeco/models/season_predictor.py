"""What a place is, from its season chips: one encoder for all seasons, the mean of their features, one linear layer.

The encoder is `geoeco.models.create_backbone`'s. Losses and training are not here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from geoeco.errors import InputError
from geoeco.models.backbones import create_backbone

__all__ = ["AnswerKind", "SeasonPredictor", "answer", "season_predictor", "shares"]

#: What is asked: one class, several classes, values, shares that sum to one.
AnswerKind = Literal["single-label", "multi-label", "regression", "distribution"]


def answer(raw: Tensor, kind: AnswerKind) -> Tensor:
    """What the outputs of a linear layer mean.

    Parameters
    ----------
    raw : Tensor
        ``(N, output)``.
    kind : {"single-label", "multi-label", "regression", "distribution"}

    Returns
    -------
    Tensor
        ``(N, output)``: probabilities by softmax, or each by a sigmoid; values as they are; `shares`.
    """
    if kind == "single-label":
        return torch.softmax(raw, dim=1)
    if kind == "multi-label":
        return torch.sigmoid(raw)
    return raw if kind == "regression" else shares(raw)


def shares(raw: Tensor) -> Tensor:
    """Shares ``(N, output)`` that sum to one: sigmoid, then divided by the sum."""
    positive = torch.sigmoid(raw).clamp_min(torch.finfo(raw.dtype).tiny)
    return positive / positive.sum(dim=1, keepdim=True)


class SeasonPredictor(nn.Module):
    """Classes or values of a place from any number of images of it.

    Each image is encoded by itself with the same weights. The features of those that are there are averaged, so that
    a place may lack seasons, and one image is the case of a single season.

    Parameters
    ----------
    encoder : torch.nn.Module
        ``(N, band, y, x)`` to ``(N, num_features)``, with an attribute ``num_features``.
    outputs : int
        Number of classes or values.
    kind : {"single-label", "multi-label", "regression", "distribution"}
        What is asked: decides what the outputs mean.

    Attributes
    ----------
    encoder, head : torch.nn.Module
    centre, unit : Tensor
        ``(output,)``, buffers: values are ``raw * unit + centre``, so that the layer learns numbers about 0; 0 and 1
        of other kinds.
    """

    centre: Tensor
    unit: Tensor

    def __init__(self, encoder: nn.Module, outputs: int, kind: AnswerKind) -> None:
        super().__init__()
        if kind not in get_args(AnswerKind):
            raise InputError(f"kind is {kind!r}", what_to_do=f"use one of: {', '.join(get_args(AnswerKind))}")
        if outputs < 1:
            raise InputError(f"a predictor of {outputs} outputs", what_to_do="give at least one")
        features = getattr(encoder, "num_features", None)
        if not isinstance(features, int):
            raise InputError(
                "the encoder does not say how long its features are",
                where=type(encoder).__name__,
                what_to_do="make it with create_backbone",
            )
        self.kind: AnswerKind = kind
        self.encoder = encoder
        self.head = nn.Linear(features, outputs)
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("unit", torch.ones(outputs))

    def raw(self, image: Tensor, there: Tensor | None = None) -> Tensor:
        """Outputs of the linear layer ``(N, output)``, before they are given a meaning.

        Parameters
        ----------
        image : Tensor
            ``(N, band, y, x)``, or ``(N, season, band, y, x)``, as the encoder takes it.
        there : Tensor, optional
            ``(N, season)`` bool: images that count; the others are not encoded. All when not given. Of a place without
            any the features are 0.
        """
        seasons = image if image.ndim == 5 else image[:, None]
        if there is None:
            there = torch.ones(seasons.shape[:2], dtype=torch.bool, device=image.device)
        features = image.new_zeros(*there.shape, self.head.in_features, dtype=self.head.weight.dtype)
        if there.any():
            # only these, so that images that are not there take no part in the statistics of a batch
            features[there] = self.encoder(seasons[there]).to(features.dtype)
        mean = features.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        raw: Tensor = self.head(mean)
        return raw

    def meaning(self, raw: Tensor) -> Tensor:
        """Probabilities, values in the units of the targets, or shares, of raw outputs ``(N, output)``."""
        return answer(raw, self.kind) * self.unit + self.centre

    def forward(self, image: Tensor, there: Tensor | None = None) -> Tensor:
        """Probabilities, values in the units of the targets, or shares ``(N, output)``; arguments as of `raw`."""
        return self.meaning(self.raw(image, there))


def season_predictor(
    name: str = "resnet50",
    in_channels: int = 9,
    *,
    outputs: int = 1,
    kind: str = "single-label",
    group_norm: bool = False,
) -> SeasonPredictor:
    """Create a predictor with random weights from numbers and names.

    Parameters
    ----------
    name, in_channels, group_norm
        As of `geoeco.models.create_backbone`.
    outputs, kind
        As of `SeasonPredictor`.

    Raises
    ------
    InputError
        As those two.
    """
    return SeasonPredictor(create_backbone(name, in_channels, group_norm=group_norm), outputs, kind)  # type: ignore[arg-type]
