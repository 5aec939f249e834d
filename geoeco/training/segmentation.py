"""The task of segmentation for Lightning: views, loss, optimiser, schedule, and the validation after each epoch.

The networks are `geoeco.models`' and `geoeco.training.smp_adapter`'s; running it is
`geoeco.training.train_segmentation`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from geoeco.errors import OutputError
from geoeco.models import DWFFNet
from geoeco.training.bundles import Normalisation
from geoeco.training.checkpoints import write_table
from geoeco.training.confusion import BoundaryMatches, ConfusionMatrix, boundary_matches
from geoeco.training.fitting import Watch
from geoeco.training.photo_points import soft_label_loss
from geoeco.training.season_contrast import Schedule, schedule_factor, step_seed
from geoeco.training.segmentation_chips import SegmentationDataset
from geoeco.training.segmentation_losses import IGNORE, SegmentationLoss
from geoeco.training.segmentation_views import mirrored, recoloured
from geoeco.training.torchgeo_adapter import SemanticSegmentation

__all__ = ["HabitatSegmentation", "PartScores", "PixelLoader", "SegmentationValidation"]


class HabitatSegmentation(SemanticSegmentation):
    """Segmentation of labelled chips as a Lightning task: torchgeo's, with a network and a loss of one's own.

    Parameters
    ----------
    network : torch.nn.Module
        ``(N, band, y, x)`` normalised to logits ``(N, class, y, x)``. The encoder of a `DWFFNet` is not trained, and
        not part of the task's state.
    loss : SegmentationLoss
    normalisation : Normalisation
    classes : int
    epochs, steps_per_epoch : int
    at_once : int
        Images that go through the network together, at most; the gradients of all of a batch are added before a step.
    lr, weight_decay : float
        Of AdamW.
    schedule : {"constant", "cosine", "step"}
        Of the learning rate, which changes from epoch to epoch and not within one.
    flips : bool
        Whether images are mirrored and turned.
    colour : float
        As `strength` of `recoloured`; 0 for none.
    seed : int
        What is drawn in a step follows `seed` and the number of the step.
    photo_weight : float
        Weight of `soft_label_loss` where a batch has ``shares (N, class, y, x)`` and ``share_weight (N, y, x)``.

    Notes
    -----
    ``training_step`` takes ``image (N, band, y, x)`` in values, ``valid`` and ``mask (N, y, x)``, and gives ``loss``:
    the mean over the parts of a batch that went through the network together.
    """

    # of the arguments only plain values may come into a checkpoint, which is read without unpickling
    ignore = ("weights", "network", "loss", "normalisation")

    def __init__(
        self,
        network: nn.Module,
        loss: SegmentationLoss,
        normalisation: Normalisation,
        *,
        classes: int,
        epochs: int,
        steps_per_epoch: int,
        at_once: int,
        lr: float,
        weight_decay: float,
        schedule: Schedule,
        flips: bool,
        colour: float,
        seed: int,
        photo_weight: float = 0.0,
    ) -> None:
        super().__init__(in_channels=len(normalisation.mean), num_classes=classes, ignore_index=IGNORE, lr=lr)
        self.automatic_optimization = False
        self.model = network
        self.criterion = loss
        self.normalisation = normalisation
        self.epochs, self.steps_per_epoch, self.at_once = epochs, steps_per_epoch, at_once
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        self.schedule: Schedule = schedule
        self.flips, self.colour, self.photo_weight = flips, colour, photo_weight
        self.train()

    def configure_models(self) -> None:
        """Nothing: the network is given."""

    def configure_losses(self) -> None:
        """Nothing: the loss is given."""

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(N, class, y, x)`` of images ``(N, band, y, x)`` in values."""
        logits: Tensor = self.model(self.normalisation(image))
        return logits

    def on_train_epoch_end(self) -> None:
        """Nothing: scores come from one confusion matrix, after each pass through the chips."""

    def _frozen(self) -> dict[str, Tensor]:
        if not isinstance(self.model, DWFFNet):
            return {}
        return {f"model.encoder.{name}": value for name, value in self.model.encoder.state_dict().items()}

    def state_dict(self, *arguments: Any, **named: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is learned; a frozen encoder is not."""
        frozen = self._frozen()
        state: dict[str, Any] = super().state_dict(*arguments, **named)
        for name in frozen:
            del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take up what was learned; a frozen encoder stays as it is."""
        return super().load_state_dict({**self._frozen(), **state_dict}, strict=strict, assign=assign)

    def judged(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and logits ``(N, class, y, x)``, of images in values and their labels."""
        normalised = self.normalisation(image)
        if isinstance(self.model, DWFFNet):
            logits, weights = self.model.with_weights(normalised)
            learned = weights if self.model.fusion == "dynamic" else None
            return self.criterion(logits, mask, learned), logits
        logits = self.model(normalised)
        return self.criterion(logits, mask), logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:  # noqa: ARG002
        """Learn from one batch."""
        torch.manual_seed(step_seed(self.seed, self.global_step))
        image, mask, valid = batch["image"], batch["mask"], batch["valid"]
        if self.colour:
            image = recoloured(image, valid, self.colour)
        soft = [batch[name] for name in ("shares", "share_weight") if name in batch]
        if self.flips:
            image, mask, *soft = mirrored(image, mask, *soft)
        optimiser: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        optimiser.zero_grad()
        total = image.new_zeros(())
        # of about one size: statistics over a last image that is left alone would be none
        parts = -(-len(image) // self.at_once)
        split = [whole.tensor_split(parts) for whole in (image, mask, *soft)]
        for some, labels, *beside in zip(*split, strict=True):
            loss, logits = self.judged(some, labels)
            if beside:
                loss = loss + self.photo_weight * soft_label_loss(logits, *beside)
            share = len(some) / len(image)
            self.manual_backward(loss * share)
            total += loss.detach() * share
        optimiser.step()
        scheduler.step()
        return {"loss": total}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is learned; its rate changes with the epoch."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: schedule_factor(step // self.steps_per_epoch, self.epochs, self.schedule)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class PartScores(NamedTuple):
    """What a part of the chips says of a network."""

    loss: float
    confusion: ConfusionMatrix
    boundary: BoundaryMatches | None


class PixelLoader:
    """Chips of one part that are predicted whole, or in their centre windows."""

    def __init__(self, data: SegmentationDataset, at_once: int, workers: int, unscored: tuple[str, ...]) -> None:
        data.stored = True
        self.data = data
        self.unscored = unscored
        self.loader: DataLoader[dict[str, Tensor]] = DataLoader(
            data,
            batch_size=at_once,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
        )

    @torch.no_grad()
    def batches(self, task: HabitatSegmentation) -> Iterator[dict[str, Tensor]]:
        """Batches of values on the task's device; the task is in evaluation meanwhile, in float32."""
        training, device = task.training, task.device
        task.eval()
        with torch.autocast(device.type, enabled=False):
            for batch in self.loader:
                yield self.data.decode({name: value.to(device) for name, value in batch.items()})
        task.train(training)

    @torch.no_grad()
    def scores(self, task: HabitatSegmentation, tolerance: float | None = None) -> PartScores:
        """Loss and confusion of the part; of outlines too where a tolerance in pixels is given."""
        names = self.data.classes.names
        confusion = ConfusionMatrix(np.zeros((len(names),) * 2, np.int64), names, self.unscored)
        boundary: BoundaryMatches | None = None
        total, samples = 0.0, 0
        for batch in self.batches(task):
            loss, logits = task.judged(batch["image"], batch["mask"])
            total += float(loss) * len(logits)
            samples += len(logits)
            truth, found = batch["mask"].cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
            confusion += ConfusionMatrix.from_arrays(truth, found, names, ignore=IGNORE, unscored=self.unscored)
            for number in range(len(truth) if tolerance is not None else 0):
                assert tolerance is not None, "no chip is looked at otherwise"
                matches = boundary_matches(truth[number], found[number], len(names), tolerance=tolerance, ignore=IGNORE)
                boundary = matches if boundary is None else boundary + matches
        return PartScores(total / samples, confusion, boundary)


class SegmentationValidation(Watch):
    """Scores the validation part after each epoch, keeps the weights of the highest mean IoU, ends in time.

    Parameters
    ----------
    path : Path
        Of the CSV file: ``epoch, step, loss, miou, mf1, accuracy``.
    loader : PixelLoader
    steps_per_epoch : int
    patience : int, optional
        Epochs without a higher mean IoU after which the training ends.
    """

    columns = ("epoch", "step", "loss", "miou", "mf1", "accuracy")

    def __init__(self, path: Path, loader: PixelLoader, steps_per_epoch: int, patience: int | None) -> None:
        self.path = path
        self.part = loader
        self.steps_per_epoch = steps_per_epoch
        self.patience = patience
        self.rows: list[tuple[float, ...]] = []
        self.highest, self.best_epoch, self.stopped = -math.inf, -1, False
        self.best: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """All of it, for the checkpoint."""
        return {
            "rows": torch.tensor(self.rows, dtype=torch.float64),
            "highest": self.highest,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "best": self.best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.rows = [tuple(row) for row in state_dict["rows"].tolist()]
        self.highest, self.best_epoch = state_dict["highest"], state_dict["best_epoch"]
        self.stopped, self.best = state_dict["stopped"], state_dict["best"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:  # noqa: ARG002
        """Score the part where an epoch is done."""
        if trainer.global_step % self.steps_per_epoch:
            return
        assert isinstance(pl_module, HabitatSegmentation), "the task that this is made for"
        epoch = trainer.global_step // self.steps_per_epoch - 1
        loss, confusion, _ = self.part.scores(pl_module)
        if not math.isfinite(loss):
            raise OutputError(
                f"the validation loss is {loss} after epoch {epoch}: the training has diverged",
                where=str(self.path),
                what_to_do="use a lower learning rate, or look at the training data",
                code="diverged",
            )
        # the classes that validation lacks would only lower every epoch alike
        found = {
            "loss": loss,
            "miou": confusion.mean(confusion.iou, "leave-out"),
            "mf1": confusion.mean(confusion.f1, "leave-out"),
            "accuracy": confusion.accuracy,
        }
        self.rows.append((float(epoch), float(trainer.global_step - 1), *found.values()))
        for logger in trainer.loggers:
            logger.log_metrics({f"val_{name}": value for name, value in found.items()}, trainer.global_step - 1)
        self.write()
        if found["miou"] > self.highest:
            self.highest, self.best_epoch = found["miou"], epoch
            self.best = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
        elif self.patience is not None and epoch - self.best_epoch >= self.patience:
            self.stopped = trainer.should_stop = True

    def write(self) -> None:
        """Write the CSV file, whole."""
        write_table(self.path, self.columns, [(int(row[0]), int(row[1]), *row[2:]) for row in self.rows])
