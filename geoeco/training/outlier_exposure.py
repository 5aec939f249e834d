"""Outlier exposure by mixing (MixOE): a classifier learns to be unsure, by degrees, of what is not one of its classes.

For classifiers only, an option of `geoeco.training.train_crowns`. Whether a place lies within what a model was trained
on is another question, that of `geoeco.applicability`. The outliers must hold none of the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from geoeco.errors import InputError

__all__ = ["MixOperation", "OutlierMixing", "exposure_targets", "soft_cross_entropy", "tnr_at_tpr"]

#: Linear mixing of all pixels, or a patch of the outlier pasted in.
MixOperation = Literal["mixup", "cutmix"]

#: Parameter of the Beta distribution, by operation, as in the authors' experiments.
_ALPHA: dict[MixOperation, float] = {"mixup": 1.0, "cutmix": 2.0}


@dataclass(frozen=True)
class OutlierMixing:
    """How images are mixed with outliers, and what that weighs.

    Attributes
    ----------
    op : {"mixup", "cutmix"}
        ``kept * x + (1 - kept) * outlier``, which is what a mixed pixel is; or a rectangle of the outlier in its own
        place in x, and `kept` the share of the area that is left of x.
    beta : float
        Weight of the mixed images in the loss.
    alpha : float, optional
        Kept shares follow Beta(alpha, alpha): 1 for mixup and 2 for cutmix when not given.

    Raises
    ------
    InputError
        If there is no such operation, or a number is not positive.

    Notes
    -----
    The loss is L = CE(f(x), y) + beta * SoftCE(f(mixed), kept * onehot(y) + (1 - kept) / K).
    A share is drawn for each image; the authors draw one a batch. A mixed pixel at a crown's edge is rightly
    uncertain, and no new class: what is learned is that, not a detector of novelty.

    References
    ----------
    Zhang, Inkawhich, Linderman, Chen & Li (2023), Mixture outlier exposure, WACV, arXiv 2106.03917.
    """

    op: MixOperation = "mixup"
    beta: float = 5.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.op not in get_args(MixOperation):
            raise InputError(f"op is {self.op!r}", what_to_do=f"use one of: {', '.join(get_args(MixOperation))}")
        if not self.beta > 0 or not (self.alpha is None or self.alpha > 0):
            raise InputError(f"beta {self.beta} and alpha {self.alpha} must be positive")

    def __call__(self, image: Tensor, outlier: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images with outliers; draws from torch's generator of the CPU.

        Parameters
        ----------
        image, outlier : Tensor
            ``(N, band, y, x)`` of one shape, both in the same units or both normalised.

        Returns
        -------
        mixed : Tensor
            ``(N, band, y, x)``.
        kept : Tensor
            ``(N,)``, share of each image that is left.
        """
        if image.shape != outlier.shape or image.ndim != 4:
            raise InputError(
                f"images of shape {tuple(image.shape)} and outliers of shape {tuple(outlier.shape)}",
                what_to_do="give both as (N, band, y, x), of one size",
            )
        alpha = torch.tensor(self.alpha or _ALPHA[self.op], dtype=torch.float64)
        kept = torch.distributions.Beta(alpha, alpha).sample((len(image),))
        if self.op == "mixup":
            share = kept.to(image)
            weight = share[:, None, None, None]
            return weight * image + (1 - weight) * outlier, share
        pasted = _rectangles(kept, image.shape[2], image.shape[3]).to(image.device)
        mixed = torch.where(pasted[:, None], outlier, image)
        return mixed, 1 - pasted.flatten(1).to(image.dtype).mean(1)


def _rectangles(kept: Tensor, height: int, width: int) -> Tensor:
    """Rectangles ``(N, y, x)`` bool about random centres, of the image's shape and of 1 - kept of its area, clipped.

    Yun et al. (2019), CutMix, equation 2.
    """
    side = (1 - kept).sqrt()[:, None]
    y, x = torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5
    centre_y, centre_x = torch.rand(2, len(kept), 1, dtype=torch.float64)
    rows = (y - centre_y * height).abs() < side * height / 2
    columns = (x - centre_x * width).abs() < side * width / 2
    inside: Tensor = rows[:, :, None] & columns[:, None, :]
    return inside


def exposure_targets(labels: Tensor, kept: Tensor, classes: int) -> Tensor:
    """Shares of the classes in mixed images.

    Parameters
    ----------
    labels : Tensor
        ``(N,)`` int64, of the images that outliers were mixed into.
    kept : Tensor
        ``(N,)``, share of each that is left.
    classes : int

    Returns
    -------
    Tensor
        ``(N, class)``: kept * onehot + (1 - kept) / K.
    """
    share = kept[:, None]
    return share * functional.one_hot(labels, classes).to(kept) + (1 - share) / classes


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy ``()`` of logits ``(N, class)`` against shares ``(N, class)``, mean over N, nats."""
    loss: Tensor = -(shares * functional.log_softmax(logits.float(), dim=1)).sum(1).mean()
    return loss


def tnr_at_tpr(inside: npt.ArrayLike, outside: npt.ArrayLike, tpr: float = 0.95) -> float:
    """Share of outliers that are told as such where so many of the samples of known classes are accepted.

    Parameters
    ----------
    inside, outside : array-like
        Scores of samples of known classes and of outliers, the higher the surer: the largest probability.
    tpr : float
        Least share of `inside` that is accepted.

    Returns
    -------
    float
        Share of `outside` below the highest threshold that accepts at least `tpr` of `inside`; a score equal to the
        threshold is accepted.

    Raises
    ------
    InputError
        If a set is empty, a score is not finite, or `tpr` is no share above 0.
    """
    known, odd = np.asarray(inside, dtype=np.float64).ravel(), np.asarray(outside, dtype=np.float64).ravel()
    if not known.size or not odd.size or not (np.isfinite(known).all() and np.isfinite(odd).all()):
        raise InputError("scores of known classes and of outliers must both be there and finite")
    if not 0 < tpr <= 1:
        raise InputError(f"tpr is {tpr}", what_to_do="give a share, such as 0.95")
    accepted = int(np.ceil(tpr * known.size - 1e-9))
    threshold = np.sort(known)[known.size - accepted]
    return float((odd < threshold).mean())
