"""Momentum contrast: what `MoCo` and `SeCo` share, a query branch, a key branch that follows it, queues of keys.

No images are made here and no optimiser is run: the views come from the caller, the loss goes back to it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError
from geoeco.models.backbones import SplitBatchNorm2d, create_backbone

__all__ = ["ContrastiveLoss", "MomentumContrast"]


class ContrastiveLoss(NamedTuple):
    """What one step of contrastive learning gives.

    Attributes
    ----------
    total : Tensor
        ``()``, the sum of the cross-entropies of the heads, in nats; differentiable.
    heads : Tensor
        ``(head,)``, the cross-entropy of each head; detached.
    accuracy : Tensor
        ``(head,)``, the share of samples whose positive key is nearer than every negative one. A tie is no success,
        so that features that collapsed to a point score 0.
    """

    total: Tensor
    heads: Tensor
    accuracy: Tensor


class MomentumContrast(nn.Module):
    """A query branch and a key branch of one backbone and several projection heads, with one queue of keys a head.

    The base of `MoCo` and `SeCo`, which name the views. Head i draws its query to key i. Head 0 sees the keys of its
    queue as negatives; each further head sees those of its own queue and its projections of all other keys of the
    whole batch.

    Parameters
    ----------
    n_heads : int
        Number of heads, and of keys a step takes.
    backbone, in_channels, dim, queue_size, momentum, temperature
        As in `SeCo`.

    Attributes
    ----------
    backbone, heads : torch.nn.Module
        The query branch.
    key_backbone, key_heads : torch.nn.Module
        The key branch; its parameters take no gradients.
    queue : Tensor
        ``(head, queue_size, dim)``, a buffer: the last keys of each head, of unit length.
    queue_pointer : Tensor
        ``()``, a buffer: the next row of the queue to be overwritten.
    num_features : int
        Length of the features.
    """

    queue: Tensor
    queue_pointer: Tensor

    def __init__(
        self,
        n_heads: int,
        backbone: str | nn.Module,
        in_channels: int,
        *,
        dim: int,
        queue_size: int,
        momentum: float,
        temperature: float,
    ) -> None:
        super().__init__()
        _check_settings(dim, queue_size, momentum, temperature)
        self.momentum = momentum
        self.temperature = temperature
        self.backbone = create_backbone(backbone, in_channels) if isinstance(backbone, str) else backbone
        self.num_features = _num_features(self.backbone)
        self.heads = nn.ModuleList(_projection_head(self.num_features, dim) for _ in range(n_heads))
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_heads = copy.deepcopy(self.heads).requires_grad_(False)
        self.register_buffer("queue", functional.normalize(torch.randn(n_heads, queue_size, dim), dim=-1))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))
        self._shuffles_keys = any(isinstance(layer, SplitBatchNorm2d) for layer in self.backbone.modules())

    def forward(self, image: Tensor) -> Tensor:
        """Return the features ``(N, num_features)`` of images ``(N, band, y, x)``: the query backbone, no head."""
        features: Tensor = self.backbone(image)
        return features

    def _contrast(self, query: Tensor, keys: Sequence[Tensor]) -> ContrastiveLoss:
        self._check_views(query, keys)
        features = self.backbone(query)
        with torch.no_grad():
            if self.training:
                self._follow_query_branch()
            # each key by itself, as the query: views that were augmented and views that were not do not share the
            # statistics of a batch
            key_features = [self._encode_key(key) for key in keys]
        losses, accuracies, positives = [], [], []
        for i, (head, key_head) in enumerate(zip(self.heads, self.key_heads, strict=True)):
            others = [j for j in range(len(keys)) if j != i] if i else []
            with torch.no_grad():
                positive = _project(key_head, key_features[i])
                negatives = torch.cat([self.queue[i], *(_project(key_head, key_features[j]) for j in others)])
            logits = _logits(_project(head, features), positive, negatives, self.temperature)
            losses.append(functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64)))
            accuracies.append((logits[:, 0] > logits[:, 1:].amax(1)).float().mean())
            positives.append(positive)
        if self.training:
            self._enqueue(torch.stack(positives))
        heads = torch.stack(losses)
        return ContrastiveLoss(heads.sum(), heads.detach(), torch.stack(accuracies).detach())

    def _check_views(self, query: Tensor, keys: Sequence[Tensor]) -> None:
        shapes = [tuple(view.shape) for view in (query, *keys)]
        if query.ndim != 4 or not len(query) or len(set(shapes)) > 1:
            raise InputError(
                f"views of shapes {', '.join(map(str, shapes))}",
                where="contrastive loss",
                what_to_do="give views of one shape (N, band, y, x), N at least 1",
            )
        if self.training and self.queue.shape[1] % len(query):
            raise InputError(
                f"a queue of {self.queue.shape[1]} keys is no multiple of a batch of {len(query)}",
                where="contrastive loss",
                what_to_do="choose a batch size that divides the queue, and drop the last batch of an epoch",
            )

    def _follow_query_branch(self) -> None:
        """Move the parameters of the key branch towards the query's; its running statistics are its own."""
        key = [*self.key_backbone.parameters(), *self.key_heads.parameters()]
        query = [*self.backbone.parameters(), *self.heads.parameters()]
        for follower, parameter in zip(key, query, strict=True):
            follower.lerp_(parameter, 1 - self.momentum)

    def _encode_key(self, image: Tensor) -> Tensor:
        if not (self.training and self._shuffles_keys):
            features: Tensor = self.key_backbone(image)
            return features
        # else sample i of query and key would be normalised with the same neighbours, and could be told by them
        order = torch.randperm(len(image), device=image.device)
        shuffled: Tensor = self.key_backbone(image[order])
        return shuffled[order.argsort()]

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        n = keys.shape[1]
        rows = self.queue_pointer + torch.arange(n, device=self.queue.device)
        self.queue.index_copy_(1, rows.remainder(self.queue.shape[1]), keys)
        self.queue_pointer.add_(n).remainder_(self.queue.shape[1])


def _check_settings(dim: int, queue_size: int, momentum: float, temperature: float) -> None:
    wrong = [
        f"{name} is {value}, {asked}"
        for name, value, fits, asked in (
            ("dim", dim, dim >= 1, "at least 1 is needed"),
            ("queue_size", queue_size, queue_size >= 1, "at least 1 is needed"),
            ("momentum", momentum, 0 <= momentum <= 1, "it lies between 0 and 1"),
            ("temperature", temperature, temperature > 0, "it is above 0"),
        )
        if not fits
    ]
    if wrong:
        raise InputError("; ".join(wrong), where="settings of momentum contrast")


def _num_features(backbone: nn.Module) -> int:
    count = getattr(backbone, "num_features", None)
    if not isinstance(count, int):
        raise InputError(
            "the backbone does not say how long its features are",
            where=type(backbone).__name__,
            what_to_do="give it an attribute num_features, or make it with create_backbone",
        )
    return count


def _projection_head(num_features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, dim))


def _project(head: nn.Module, features: Tensor) -> Tensor:
    """Return projections of unit length, in float32 also where the head runs in a shorter format."""
    return functional.normalize(head(features).float(), dim=1)


def _logits(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return similarities over the temperature ``(N, 1 + M)``: the positive key's, then those of M negative keys."""
    with torch.autocast(query.device.type, enabled=False):
        similarity = torch.cat([(query * positive).sum(1, keepdim=True), query @ negatives.T], dim=1)
    return similarity / temperature
