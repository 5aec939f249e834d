"""The task of contrastive learning on season chips for Lightning: views, scaling, loss, optimiser, schedule.

What a view, a head and a queue is lies in `geoeco.models` and `geoeco.training.SeasonViews`; running it is
`geoeco.training.pretrain`'s. A plain LightningModule: torchgeo's BaseTask would add its own optimiser and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from geoeco.errors import InputError
from geoeco.models import MoCo, SeCo
from geoeco.training.bundles import Normalisation
from geoeco.training.views import MoCoViews, SeasonViews

__all__ = ["Schedule", "SeasonContrast", "schedule_factor"]

Schedule = Literal["constant", "cosine", "step"]


def schedule_factor(step: int, steps: int, schedule: Schedule, milestones: Sequence[float] = (0.6, 0.8)) -> float:
    """By what the learning rate is multiplied at a step.

    Parameters
    ----------
    step, steps : int
        Step from 0, and number of steps of the training.
    schedule : {"constant", "cosine", "step"}
        1; (1 + cos(pi step / steps)) / 2 (Loshchilov & Hutter 2017, equation 5, one cycle to 0); or a tenth of before
        from each milestone on.
    milestones : sequence of float
        Parts of the training; those of SeCo, epochs 120 and 160 of 200, when not given.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))
    if schedule == "step":
        return float(0.1 ** sum(step >= milestone * steps for milestone in milestones))
    raise InputError(f"schedule is {schedule!r}", what_to_do="use 'constant', 'cosine' or 'step'")


class SeasonContrast(LightningModule):
    """Season-contrastive learning, or its control MoCo, as a Lightning task.

    Parameters
    ----------
    model : SeCo or MoCo
    views : SeasonViews or MoCoViews
        `SeasonViews` for SeCo, `MoCoViews` for MoCo.
    normalisation : Normalisation
        Applied to the views: colours are jittered in reflectance.
    steps : int
        Of the whole training.
    lr : float
        Learning rate at the start.
    momentum, weight_decay : float
        Of SGD.
    schedule : {"constant", "cosine", "step"}
    milestones : sequence of float
        As of `schedule_factor`.
    seed : int
        What is random in a step (crops, colours, blur, shuffles) follows `seed` and the number of the step alone, so
        that a training that goes on from a checkpoint does what it would have done.
    channels_last : bool
        Memory format of the images, faster for convolutions on GPUs.

    Notes
    -----
    ``training_step`` takes ``image (N, date, band, y, x)`` in reflectance and gives ``loss``, ``heads (head,)`` and
    ``accuracy (head,)``.
    """

    def __init__(
        self,
        model: SeCo | MoCo,
        views: SeasonViews | MoCoViews,
        normalisation: Normalisation,
        *,
        steps: int,
        lr: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        milestones: Sequence[float] = (0.6, 0.8),
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, SeCo) != isinstance(views, SeasonViews):
            raise InputError("SeCo goes with SeasonViews, MoCo with MoCoViews")
        schedule_factor(0, max(steps, 1), schedule, milestones)
        self.model = model
        self.views = views
        self.normalisation = normalisation
        self.steps = steps
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.schedule: Schedule = schedule
        self.milestones = tuple(milestones)
        self.seed = seed
        self.channels_last = channels_last

    def forward(self, image: Tensor) -> Tensor:
        """Features ``(N, num_features)`` of images ``(N, band, y, x)`` in reflectance."""
        features: Tensor = self.model(self.normalisation(image))
        return features

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Contrast the views of one batch."""
        torch.manual_seed(step_seed(self.seed, self.global_step))
        views = [self.normalisation(view) for view in self.views(batch["image"])]
        if self.channels_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        # the numbers of views and of keys agree: the constructor has seen to it
        loss = self.model.loss(*views)
        return {"loss": loss.total, "heads": loss.heads, "accuracy": loss.accuracy}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD over what requires gradients, with the schedule a step at a time."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimiser = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: schedule_factor(step, max(self.steps, 1), self.schedule, self.milestones)
        )
        chosen: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimiser, "lr_scheduler": chosen}  # type: ignore[return-value]


def step_seed(seed: int, step: int) -> int:
    """Seed of one step, 63 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest(), "big") >> 1
