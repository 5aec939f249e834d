"""Losses of segmentation, in one convention that no version of a library changes.

DWFF-Net's is half Dice, half focal, and a small reward for weights of the feature levels that stay apart from one
level. Pixels of the label `IGNORE` take no part in anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError

__all__ = ["IGNORE", "SegmentationLoss", "dice_loss", "focal_loss", "level_entropy"]

#: Label of pixels that are not known.
IGNORE = 255
_EPSILON = 1e-7
_LOG_EPSILON = 1e-8


def dice_loss(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss over a batch, as segmentation-models-pytorch has it for classes that exclude each other.

    Parameters
    ----------
    logits : Tensor
        ``(N, class, y, x)``.
    target : Tensor
        ``(N, y, x)`` int64, classes from 0, `IGNORE` where not known.
    class_weights : Tensor, optional
        ``(class,)``; all alike when not given.

    Returns
    -------
    Tensor
        Weighted mean over classes of 1 - 2 sum(p t) / sum(p + t), p the softmax and t 1 where the class is; sums go
        over the pixels of the batch. **A class that is not in the batch counts as 0 and is still part of the mean**:
        the more classes a batch lacks, the smaller the loss.

    References
    ----------
    Milletari, Navab & Ahmadi (2016), V-Net, 3DV, section 3, without squares in the denominator.
    """
    known = (target != IGNORE).unsqueeze(1)
    probability = torch.softmax(logits.float(), dim=1) * known
    truth = _one_hot(target, logits.shape[1]) * known
    across = (0, 2, 3)
    there = truth.sum(across)
    overlap = (2.0 * (probability * truth).sum(across)) / (probability.sum(across) + there).clamp_min(_EPSILON)
    return _weighted(torch.where(there > 0, 1.0 - overlap, torch.zeros_like(overlap)), class_weights)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, class_weights: Tensor | None = None) -> Tensor:
    """Focal loss of a sigmoid for each class on raw logits, summed over classes, a mean over known pixels.

    Parameters
    ----------
    logits, target, class_weights
        As of `dice_loss`; weights are scaled to a mean of one.
    gamma : float

    Returns
    -------
    Tensor
        sum over classes of the mean over pixels of (1 - q)^gamma (-log q), with q = sigmoid(logit) where the class is
        and 1 - sigmoid(logit) elsewhere. 0 where no pixel is known.

    Notes
    -----
    This is the sum of segmentation-models-pytorch 0.5; its version 0.6 divides by the number of classes. It is no
    focal loss of a softmax.

    References
    ----------
    Lin, Goyal, Girshick, He & Dollar (2017), Focal loss for dense object detection, ICCV, equation 4, alpha 1.
    """
    known = (target != IGNORE).unsqueeze(1)
    scores = logits.float()
    surprise = functional.binary_cross_entropy_with_logits(scores, _one_hot(target, logits.shape[1]), reduction="none")
    focal = (1.0 - torch.exp(-surprise)).pow(gamma) * surprise * known
    by_class = focal.sum((0, 2, 3)) / known.sum().clamp_min(1)
    return _weighted(by_class, class_weights) * logits.shape[1]


def level_entropy(weights: Tensor) -> Tensor:
    """Mean over a batch of the entropy -sum(w log(w + 1e-8)) of the weights ``(N, level)`` of levels, nats."""
    return -(weights * torch.log(weights + _LOG_EPSILON)).sum(dim=1).mean()


class SegmentationLoss(nn.Module):
    """A weighted sum: ``dice`` Dice + ``focal`` focal + ``cross_entropy`` cross-entropy - ``entropy`` H(w).

    Parameters
    ----------
    dice, focal, cross_entropy : float
        Shares; .5, .5 and 0 are DWFF-Net's (code of its authors).
    entropy : float
        Of the entropy of the levels' weights, which is subtracted: it is a reward that keeps all levels in use. .01 in
        DWFF-Net; only where weights are given.
    class_weights : tuple of float, optional
        One a class.

    Raises
    ------
    InputError
        If a share is negative, or all are 0, or a class weight is not positive.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        dice: float = 0.5,
        focal: float = 0.5,
        cross_entropy: float = 0.0,
        entropy: float = 0.01,
        class_weights: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if min(dice, focal, cross_entropy, entropy) < 0 or not dice + focal + cross_entropy > 0:
            raise InputError(
                f"shares of losses: dice {dice}, focal {focal}, cross_entropy {cross_entropy}, entropy {entropy}",
                what_to_do="give none that is negative, and one of the first three above 0",
            )
        if class_weights is not None and not all(0 < weight < float("inf") for weight in class_weights):
            raise InputError(f"class weights are {class_weights}", what_to_do="give positive numbers")
        self.dice, self.focal, self.cross_entropy, self.entropy = dice, focal, cross_entropy, entropy
        self.register_buffer(
            "class_weights", None if class_weights is None else torch.tensor(class_weights), persistent=False
        )

    def forward(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Loss of logits ``(N, class, y, x)``, labels ``(N, y, x)`` and weights of levels ``(N, level)``."""
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.dice:
            loss = loss + self.dice * dice_loss(logits, target, self.class_weights)
        if self.focal:
            loss = loss + self.focal * focal_loss(logits, target, class_weights=self.class_weights)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * _cross_entropy(logits, target, self.class_weights)
        if weights is not None and self.entropy:
            loss = loss - self.entropy * level_entropy(weights.float())
        return loss


def _cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    total = functional.cross_entropy(logits.float(), target, weight=class_weights, ignore_index=IGNORE, reduction="sum")
    if class_weights is None:
        return total / (target != IGNORE).sum().clamp_min(1)
    return total / class_weights[target[target != IGNORE]].sum().clamp_min(_EPSILON)


def _one_hot(target: Tensor, classes: int) -> Tensor:
    """``(N, class, y, x)`` float32, 0 everywhere where the label is not known."""
    numbers = torch.arange(classes, device=target.device).reshape(1, -1, 1, 1)
    return (target.unsqueeze(1) == numbers).float()


def _weighted(by_class: Tensor, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        return by_class.mean()
    return (by_class * class_weights).sum() / class_weights.sum()
