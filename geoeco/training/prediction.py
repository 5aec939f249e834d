"""The task of learning labels from season chips for Lightning: windows, loss, optimiser, validation after each epoch.

Which places and labels is `geoeco.training.labelled`'s, the network is `geoeco.models.SeasonPredictor`, and running it
`geoeco.training.train`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from geoeco.errors import InputError, OutputError
from geoeco.models import SeasonPredictor
from geoeco.training.bundles import Normalisation
from geoeco.training.checkpoints import write_table
from geoeco.training.fitting import Watch
from geoeco.training.season_contrast import Schedule, schedule_factor, step_seed
from geoeco.training.stored_chips import StoredChips
from geoeco.training.targets import Targets

__all__ = ["PartLoader", "SeasonPrediction", "Validation", "learnable", "mirrored", "predicted"]


class SeasonPrediction(LightningModule):
    """Learning of labels from season chips as a Lightning task.

    Parameters
    ----------
    model : SeasonPredictor
    targets : Tensor
        By position in the training set: ``(place,)`` int64 classes, else ``(place, output)``, of values the distances
        from ``model.centre`` in ``model.unit``.
    loss : callable
        Of raw outputs and targets, a mean over places.
    normalisation : Normalisation
    steps : int
        Of the whole training.
    size : int
        Pixels along a side that the encoder sees; smaller chips are enlarged bicubically.
    lr, encoder_lr, weight_decay : float
        Of AdamW.
    schedule : {"constant", "cosine", "step"}
    freeze : bool
        The encoder is not tuned; it stays in evaluation mode, so that its normalisation does not change either.
    flips : bool
        Each place is mirrored along x, y and the diagonal at random, all its seasons alike.
    seed : int
        What is drawn in a step follows `seed` and the number of the step.

    Notes
    -----
    ``training_step`` takes ``image (N, season, band, y, x)`` in reflectance, ``valid``, ``present`` and ``index``, and
    gives ``loss``. A season counts where it is present with a valid pixel; a place without any is left out of the step.
    """

    targets: Tensor

    def __init__(
        self,
        model: SeasonPredictor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        normalisation: Normalisation,
        *,
        steps: int,
        size: int,
        lr: float,
        encoder_lr: float,
        weight_decay: float,
        schedule: Schedule,
        freeze: bool,
        flips: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("targets", targets, persistent=False)
        self.loss = loss
        self.normalisation = normalisation
        self.steps, self.size, self.seed = steps, size, seed
        self.lr, self.encoder_lr, self.weight_decay = lr, encoder_lr, weight_decay
        self.schedule: Schedule = schedule
        self.freeze_encoder, self.flips = freeze, flips
        if freeze:
            model.encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; a frozen encoder is always in evaluation."""
        super().train(mode)
        if self.freeze_encoder:
            self.model.encoder.eval()
        return self

    def raw(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw outputs ``(N, output)``, and ``(N,)`` whether a place has an image at all."""
        there = batch["present"] & batch["valid"].flatten(2).any(dim=2)
        image = batch["image"]
        if image.shape[-1] < self.size:
            flat = functional.interpolate(image.flatten(0, 1), size=(self.size, self.size), mode="bicubic")
            image = flat.reshape(*image.shape[:2], *flat.shape[1:])
        return self.model.raw(self.normalisation(image), there), there.any(dim=1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Learn from one batch."""
        torch.manual_seed(step_seed(self.seed, self.global_step))
        image = mirrored(batch["image"]) if self.flips else batch["image"]
        raw, known = self.raw({**batch, "image": image})
        if not known.any():
            raise InputError(
                "no place of a batch has a valid pixel in its window",
                what_to_do="raise min_valid, or use a larger batch",
                code="no-locations",
            )
        return {"loss": self.loss(raw[known], self.targets[batch["index"]][known])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is tuned, with its learning rates; the first one is that of the learning curve."""
        groups = [{"params": list(self.model.head.parameters()), "lr": self.lr}]
        if not self.freeze_encoder:
            groups.append({"params": list(self.model.encoder.parameters()), "lr": self.encoder_lr})
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is tuned, with the schedule a step at a time."""
        optimiser = torch.optim.AdamW(self.parameter_groups(), lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: schedule_factor(step, max(self.steps, 1), self.schedule)
        )
        chosen: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimiser, "lr_scheduler": chosen}  # type: ignore[return-value]


def mirrored(image: Tensor) -> Tensor:
    """Square images ``(N, ..., y, x)`` in one of the eight positions of a square, drawn for each of N."""
    # on the CPU: one seed gives one image on every device
    along_x, along_y, diagonal = (torch.rand(3, len(image), *[1] * (image.ndim - 1)) < 0.5).to(image.device)
    image = torch.where(along_x, image.flip(-1), image)
    image = torch.where(along_y, image.flip(-2), image)
    return torch.where(diagonal, image.transpose(-1, -2), image)


class Validation(Watch):
    """Scores the validation part after each epoch, keeps the weights of the lowest loss, ends the training in time."""

    def __init__(
        self,
        path: Path,
        loader: PartLoader,
        targets: Targets,
        steps_per_epoch: int,
        patience: int | None,
        threshold: float,
    ) -> None:
        self.path = path
        self.part = loader
        self.targets = targets
        self.steps_per_epoch = steps_per_epoch
        self.patience = patience
        self.threshold = threshold
        self.columns: tuple[str, ...] = ()
        self.rows: list[tuple[float, ...]] = []
        self.lowest, self.best_epoch, self.stopped = math.inf, -1, False
        self.best: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """All of it, for the checkpoint."""
        return {
            "columns": list(self.columns),
            "rows": torch.tensor(self.rows, dtype=torch.float64),
            "lowest": self.lowest,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "best": self.best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.columns = tuple(state_dict["columns"])
        self.rows = [tuple(row) for row in state_dict["rows"].tolist()]
        self.lowest, self.best_epoch = state_dict["lowest"], state_dict["best_epoch"]
        self.stopped, self.best = state_dict["stopped"], state_dict["best"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:  # noqa: ARG002
        """Score the part where an epoch is done."""
        if trainer.global_step % self.steps_per_epoch:
            return
        assert isinstance(pl_module, SeasonPrediction), "the task that this is made for"
        epoch = trainer.global_step // self.steps_per_epoch - 1
        raw, rows = self.part.raw(pl_module)
        loss = float(pl_module.loss(raw, learnable(self.targets, pl_module.model)[rows]))
        if not math.isfinite(loss):
            raise OutputError(
                f"the validation loss is {loss} after epoch {epoch}: the training has diverged",
                where=str(self.path),
                what_to_do="use a lower learning rate, or look at the training data",
                code="diverged",
            )
        prediction = predicted(pl_module.model, raw)
        scores = self.targets.scored(rows.numpy(), prediction, self.threshold)
        self.columns = ("epoch", "step", "loss", *scores)
        self.rows.append((float(epoch), float(trainer.global_step - 1), loss, *scores.values()))
        for logger in trainer.loggers:
            named = {f"val_{name}": value for name, value in {"loss": loss, **scores}.items() if math.isfinite(value)}
            logger.log_metrics(named, trainer.global_step - 1)
        self.write()
        if loss < self.lowest:
            self.lowest, self.best_epoch = loss, epoch
            self.best = {name: value.detach().cpu().clone() for name, value in pl_module.model.state_dict().items()}
        elif self.patience is not None and epoch - self.best_epoch >= self.patience:
            self.stopped = trainer.should_stop = True

    def write(self) -> None:
        """Write the CSV file, whole."""
        write_table(self.path, self.columns, [(int(row[0]), int(row[1]), *row[2:]) for row in self.rows])


class PartLoader:
    """Places of one part that are predicted, in batches, in the order of the data set."""

    def __init__(self, data: StoredChips, batch: int, workers: int) -> None:
        self.data = data
        self.loader: DataLoader[dict[str, Tensor]] = DataLoader(
            data,
            batch_size=batch,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
        )

    @torch.no_grad()
    def raw(self, task: SeasonPrediction) -> tuple[Tensor, Tensor]:
        """Raw outputs ``(row, output)`` on the CPU, and the positions of the places that have an image."""
        training = task.training
        device = task.model.head.weight.device
        task.eval()
        outputs, rows = [], []
        with torch.autocast(device.type, enabled=False):
            for batch in self.loader:
                raw, known = task.raw(self.data.decode({name: value.to(device) for name, value in batch.items()}))
                outputs.append(raw[known].cpu())
                rows.append(batch["index"][known.cpu()])
        task.train(training)
        found = torch.cat(outputs)
        if not len(found):
            raise InputError(
                "no place of a part has a valid pixel in its window",
                where=self.data.store,
                what_to_do="raise min_valid, or use other places",
                code="no-locations",
            )
        return found, torch.cat(rows)


def learnable(targets: Targets, model: SeasonPredictor) -> Tensor:
    """Targets as the loss takes them: values as distances from the centre, in units of the training part's spread."""
    if targets.task != "regression":
        return targets.values
    return (targets.values - model.centre.cpu()) / model.unit.cpu()


def predicted(model: SeasonPredictor, raw: Tensor) -> npt.NDArray[np.float32]:
    """Probabilities, values or shares ``(row, output)`` of raw outputs."""
    found: npt.NDArray[np.float32] = model.meaning(raw.to(model.unit.device)).detach().cpu().numpy()
    return found
