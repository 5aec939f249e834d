"""Contrastive losses over labels: what belongs together is drawn together, all else in the batch pushed apart.

`SupCon` draws views of one class together, `InfoNCE` two kinds of images of one thing. Losses over a queue of keys are
those of `geoeco.models.MoCo` and `geoeco.models.SeCo`; no network and no image is made here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError

__all__ = ["InfoNCE", "InfoNCELoss", "SupCon"]

#: As in momentum contrast (He et al. 2020).
TEMPERATURE = 0.07


class SupCon(nn.Module):
    """Supervised contrast: views of samples of one class are drawn together.

    Parameters
    ----------
    temperature : float

    Raises
    ------
    InputError
        If the temperature is not positive, or features and labels do not fit together.

    Notes
    -----
    With all views of all samples in one row of I = N * views features z of unit length, A(i) all of them but i, and
    P(i) those of A(i) with the label of i,

        L = mean over i of mean over p in P(i) of -log( exp(z_i z_p / t) / sum over A(i) of exp(z_i z_a / t) )

    which is L_out of Khosla et al., equation 2. The mean is over the views that have a positive: for a class with a
    single view in the batch P(i) is empty and the formula divides by zero. A batch without any positive has the loss 0
    and gives no gradient.

    References
    ----------
    Khosla et al. (2020), Supervised contrastive learning, NeurIPS, arXiv 2004.11362.
    """

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.temperature = _checked_temperature(temperature)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss ``()``, in nats, float32.

        Parameters
        ----------
        features : Tensor
            ``(N, view, D)``, any floating type; of any length, they are divided by it.
        labels : Tensor
            ``(N,)`` integers.
        """
        fits = features.ndim == 3 and labels.shape == features.shape[:1] and features.shape[2] > 0
        if not fits or features.shape[:2].numel() < 2:
            raise InputError(
                f"features of shape {tuple(features.shape)} with labels of shape {tuple(labels.shape)}",
                where="supervised contrast",
                what_to_do="give features (N, view, D) of two views or more in all, and one label a sample",
            )
        views = features.flatten(0, 1)
        label = labels.repeat_interleave(features.shape[1])
        itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
        alike = (label[:, None] == label[None, :]) & ~itself
        similarity = _similarity(views, views, self.temperature).masked_fill(itself, -torch.inf)
        return _mean_over_positives(similarity, alike)


class InfoNCELoss(NamedTuple):
    """What `InfoNCE` gives.

    Attributes
    ----------
    total : Tensor
        ``()``, nats, the mean of the two directions; differentiable.
    accuracy : Tensor
        ``()``, share of the images of the first kind whose most similar one of the second kind is of the same thing;
        a tie with one of another thing is no success. Detached.
    """

    total: Tensor
    accuracy: Tensor


class InfoNCE(nn.Module):
    """Symmetric contrast between two kinds of images of the same things, such as crowns from above and from near.

    Parameters
    ----------
    temperature : float

    Raises
    ------
    InputError
        If the temperature is not positive, features and ids do not fit together, or no thing is seen in both kinds.

    Notes
    -----
    Half the sum of two terms, from each kind to the other. From the first to the second, of features x and y of unit
    length, with P(i) the images y of the thing that x_i shows:

        L = mean over i of mean over p in P(i) of -log( exp(x_i y_p / t) / sum over all j of exp(x_i y_j / t) )

    With one image of each kind a thing this is the loss of CLIP (Radford et al. 2021, figure 3); with several it takes
    the mean over positives of `SupCon`. Images of things without a counterpart are negatives only. Positives are one
    *thing*, a crown, not one species: where the species is to be told afterwards, it is not given away here.

    References
    ----------
    van den Oord, Li & Vinyals (2018), arXiv 1807.03748, equation 4. Radford et al. (2021), arXiv 2103.00020.
    """

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.temperature = _checked_temperature(temperature)

    def forward(self, first: Tensor, second: Tensor, first_id: Tensor, second_id: Tensor) -> InfoNCELoss:
        """Contrast two kinds of images.

        Parameters
        ----------
        first, second : Tensor
            ``(N, D)`` and ``(M, D)``, any floating type and length.
        first_id, second_id : Tensor
            ``(N,)`` and ``(M,)`` integers: which thing an image shows.
        """
        fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1] and first.numel() and second.numel()
        if not fits or first_id.shape != first.shape[:1] or second_id.shape != second.shape[:1]:
            shapes = [tuple(given.shape) for given in (first, second, first_id, second_id)]
            raise InputError(
                f"features and ids of shapes {', '.join(map(str, shapes))}",
                where="contrast of two kinds of images",
                what_to_do="give (N, D), (M, D), (N,) and (M,)",
            )
        alike = first_id[:, None] == second_id[None, :]
        if not bool(alike.any()):
            raise InputError("no thing is seen in both kinds of images", where="contrast of two kinds of images")
        similarity = _similarity(first, second, self.temperature)
        total = (_mean_over_positives(similarity, alike) + _mean_over_positives(similarity.T, alike.T)) / 2
        seen = alike.any(1)
        right = similarity.masked_fill(~alike, -torch.inf).amax(1)
        wrong = similarity.masked_fill(alike, -torch.inf).amax(1)
        return InfoNCELoss(total, (right > wrong)[seen].float().mean().detach())


def _checked_temperature(temperature: float) -> float:
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature}", what_to_do="give a positive number, such as 0.07")
    return float(temperature)


def _similarity(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cosines over the temperature ``(N, M)``, in float32 also under autocast: bfloat16 has three digits."""
    with torch.autocast(first.device.type, enabled=False):
        return functional.normalize(first.float(), dim=1) @ functional.normalize(second.float(), dim=1).T / temperature


def _mean_over_positives(similarity: Tensor, alike: Tensor) -> Tensor:
    """Mean over rows with a positive of the mean negative log-share of the positives; 0 where there is no such row."""
    shares = functional.log_softmax(similarity, dim=1).masked_fill(~alike, 0.0)
    count = alike.sum(1)
    rows = -shares.sum(1) / count.clamp(min=1)
    return rows.sum() / (count > 0).sum().clamp(min=1)
