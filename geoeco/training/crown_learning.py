"""The task of telling species of crowns from chips for Lightning: views, losses, outliers that are mixed in.

Running it is `geoeco.training.train_crowns`'s. The network, its optimiser and its validation are those of
`geoeco.training.SeasonPrediction`, of which a crown is the case of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError
from geoeco.models import SeasonPredictor
from geoeco.training.bundles import Normalisation
from geoeco.training.contrast_losses import TEMPERATURE, SupCon
from geoeco.training.outlier_exposure import OutlierMixing, exposure_targets, soft_cross_entropy
from geoeco.training.prediction import SeasonPrediction, mirrored
from geoeco.training.season_contrast import step_seed

__all__ = ["CrownPrediction", "enlarged", "relit"]

#: Length of the projected features in Khosla et al. (2020), section 4.
PROJECTION = 128


def enlarged(image: Tensor, size: int) -> Tensor:
    """Images ``(N, band, y, x)`` of at least `size` pixels along a side; smaller ones are enlarged bicubically."""
    if image.shape[-1] >= size:
        return image
    return functional.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)


def relit(image: Tensor, jitter: float) -> Tensor:
    """Images ``(N, band, y, x)`` in another light: each times 1 +- jitter, each band of it times 1 +- jitter / 2.

    What is 0 because it is not valid stays so. Drawn on the CPU for each image, uniformly.
    """
    gain = 1 + jitter * (2 * torch.rand(len(image), 1, 1, 1) - 1)
    tint = 1 + jitter / 2 * (2 * torch.rand(len(image), image.shape[1], 1, 1) - 1)
    return image * (gain * tint).to(image)


class CrownPrediction(SeasonPrediction):
    """Learning of species from crown chips as a Lightning task.

    Parameters
    ----------
    model : SeasonPredictor
        Of a single label.
    targets : Tensor
        ``(crown,)`` int64, by position in the training set.
    loss : callable
        Of raw outputs ``(N, class)`` and targets ``(N,)``.
    normalisation : Normalisation
    contrast : float
        Weight of `SupCon` over two views of each crown beside the mean loss of both; 0 takes one view and none.
    temperature : float
        Of `SupCon`.
    jitter : float
        As of `relit`; below 1.
    exposure : OutlierMixing, optional
        Mixes outliers into the first view; its loss is added, by its weight.
    outliers : Tensor, optional
        ``(outlier, band, y, x)`` values, of the size of the chips; with `exposure`.
    **settings
        ``steps, size, lr, encoder_lr, weight_decay, schedule, freeze, flips, seed`` as of `SeasonPrediction`.

    Raises
    ------
    InputError
        If a weight is negative, jitter is no share, or exposure and outliers do not come together.

    Notes
    -----
    ``training_step`` takes ``image (N, band, y, x)`` in value units and ``index``, and gives ``loss``. The projection
    that contrast is made on is no part of the model that is kept.
    """

    outliers: Tensor

    def __init__(
        self,
        model: SeasonPredictor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        normalisation: Normalisation,
        *,
        contrast: float = 0.0,
        temperature: float = TEMPERATURE,
        jitter: float = 0.0,
        exposure: OutlierMixing | None = None,
        outliers: Tensor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, targets, loss, normalisation, **settings)
        if contrast < 0 or not 0 <= jitter < 1:
            raise InputError(f"contrast is {contrast} and jitter {jitter}: 0 or more, and from 0 to below 1")
        if (exposure is None) != (outliers is None):
            raise InputError("outliers are mixed in as exposure says: give both or none")
        self.contrast, self.jitter, self.exposure = contrast, jitter, exposure
        self.supervised_contrast = SupCon(temperature)
        self.register_buffer("outliers", torch.empty(0) if outliers is None else outliers, persistent=False)
        features = model.head.in_features
        self.projection: nn.Module = (
            nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, PROJECTION))
            if contrast
            else nn.Identity()
        )

    def features(self, image: Tensor) -> Tensor:
        """Features ``(N, feature)`` of images ``(N, band, y, x)`` in value units."""
        found: Tensor = self.model.encoder(self.normalisation(enlarged(image, self.size)))
        return found

    def raw(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw outputs ``(N, class)``; every crown has an image."""
        raw: Tensor = self.model.head(self.features(batch["image"]))
        return raw, torch.ones(len(raw), dtype=torch.bool, device=raw.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Learn from one batch."""
        torch.manual_seed(step_seed(self.seed, self.global_step))
        labels = self.targets[batch["index"]]
        views = [self._view(batch["image"]) for _ in range(2 if self.contrast else 1)]
        features = [self.features(view) for view in views]
        loss = torch.stack([self.loss(self.model.head(found), labels) for found in features]).mean()
        if self.contrast:
            projected = torch.stack([self.projection(found) for found in features], dim=1)
            loss = loss + self.contrast * self.supervised_contrast(projected, labels)
        if self.exposure is not None:
            rows = torch.randint(len(self.outliers), (len(labels),)).to(labels.device)
            mixed, kept = self.exposure(views[0], self._view(self.outliers[rows]))
            raw = self.model.head(self.features(mixed))
            shares = exposure_targets(labels, kept, raw.shape[1])
            loss = loss + self.exposure.beta * soft_cross_entropy(raw, shares)
        return {"loss": loss}

    def _view(self, image: Tensor) -> Tensor:
        return relit(mirrored(image) if self.flips else image, self.jitter)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is tuned, with its learning rates."""
        groups = super().parameter_groups()
        if self.contrast:
            groups.append({"params": list(self.projection.parameters()), "lr": self.lr})
        return groups
