"""What a training writes while it runs: checkpoints to go on from, and the learning curve.

Both are whole at any time: each file is written aside and renamed, and the checkpoint before the last one is kept.
"""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from geoeco.errors import OutputError

__all__ = ["LAST", "PREVIOUS", "CheckpointFiles", "LearningCurve", "Resumed", "find_checkpoint", "write_table"]

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
_RECORD = "geoeco_training"
#: Steps whose numbers are fetched from the device, checked and logged at a time.
_FLUSH = 50


class Resumed(NamedTuple):
    """A checkpoint to go on from, and its content."""

    path: Path
    step: int
    state: Mapping[str, Any]


def find_checkpoint(folder: Path, key: str) -> Resumed | None:
    """Find the newest checkpoint of a training that can be read; None to begin at the beginning.

    Parameters
    ----------
    folder : Path
    key : str
        Of the training; checkpoints of another one are not used.

    Warns
    -----
    UserWarning
        If a checkpoint is damaged or of another training.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            # tensors and plain values only: Lightning's checkpoint of such a module holds nothing else
            state = torch.load(path, map_location="cpu", weights_only=True)
            record = state[_RECORD]
            found, step = str(record["key"]), int(record["step"])
        # torch raises what pickle and zip raise, or a RuntimeError, depending on where it stumbles
        except Exception as error:
            warnings.warn(f"the checkpoint {path} is damaged and was not used: {error!r:.200}", stacklevel=2)
            continue
        if found != key:
            warnings.warn(f"the checkpoint {path} is of another training and was not used", stacklevel=2)
            continue
        return Resumed(path, step, state)
    return None


class CheckpointFiles(Checkpoint):
    """Keeps the last two checkpoints.

    Parameters
    ----------
    folder : Path
    every : int
        Steps between checkpoints; one is written at the end too.
    key : str
        Of the training.
    saved : callable, optional
        Called with `folder` after each checkpoint.
    """

    def __init__(self, folder: Path, every: int, key: str, saved: Callable[[Path], None] | None = None) -> None:
        self.folder = folder
        self.every = every
        self.key = key
        self.saved = saved
        self._step = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:  # noqa: ARG002
        """Write a checkpoint where one is due."""
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the last one."""
        if trainer.global_step != self._step:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Say whose checkpoint this is."""
        checkpoint[_RECORD] = {"key": self.key, "step": trainer.global_step}

    def _save(self, trainer: Trainer) -> None:
        part = self.folder / f".{LAST}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part)
            last = self.folder / LAST
            if last.exists():
                last.replace(self.folder / PREVIOUS)
            part.replace(last)
        except OSError as error:
            raise OutputError(
                f"a checkpoint cannot be written: {error}", where=str(self.folder), what_to_do="make room on the disk"
            ) from error
        self._step = trainer.global_step
        if self.saved is not None:
            self.saved(self.folder)


class LearningCurve(Callback):
    """Keeps loss and accuracy of every step, writes them as CSV and passes them to the trainer's loggers.

    Parameters
    ----------
    path : Path
        Of the CSV file: ``step, epoch, lr, loss``, and where a task has heads ``loss_<head>..., accuracy_<head>...``.
    steps_per_epoch : int

    Attributes
    ----------
    rows : list of tuple of float
        In the order of the columns.

    Notes
    -----
    The curve so far is part of each checkpoint: a training that goes on has the curve of one that was not disturbed.
    """

    def __init__(self, path: Path, steps_per_epoch: int) -> None:
        self.path = path
        self.steps_per_epoch = steps_per_epoch
        self.rows: list[tuple[float, ...]] = []
        self._waiting: list[tuple[int, float, Tensor]] = []
        self._lr = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        heads = (len(self.rows[0]) - 4) // 2 if self.rows else 0
        return (
            *("step", "epoch", "lr", "loss"),
            *(f"loss_{head}" for head in range(heads)),
            *(f"accuracy_{head}" for head in range(heads)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, for the checkpoint."""
        self._fetch()
        return {"rows": torch.tensor(self.rows, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint."""
        self.rows = [tuple(row) for row in state_dict["rows"].tolist()]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:  # noqa: ARG002
        """Note the learning rate of the step."""
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        *rest: Any,  # noqa: ARG002
    ) -> None:
        """Note the step; numbers stay on the device until some are together."""
        further = [outputs[name] for name in ("heads", "accuracy") if name in outputs]
        numbers = torch.cat([outputs["loss"].detach().reshape(1), *further])
        self._waiting.append((trainer.global_step - 1, self._lr, numbers))
        if len(self._waiting) >= _FLUSH:
            self.flush(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write what is left."""
        self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Fetch, check, log and write the steps since the last call."""
        first = len(self.rows)
        self._fetch()
        for row in self.rows[first:]:
            named = dict(zip(self.columns, row, strict=True))
            step = int(named.pop("step"))
            for logger in trainer.loggers:
                logger.log_metrics(named, step)
        self.write()

    def _fetch(self) -> None:
        if not self._waiting:
            return
        numbers = torch.stack([row for _, _, row in self._waiting]).double().cpu()
        steps = [(step, lr) for step, lr, _ in self._waiting]
        self._waiting = []
        for (step, lr), row in zip(steps, numbers.tolist(), strict=True):
            if not math.isfinite(row[0]):
                raise OutputError(
                    f"the loss is {row[0]} at step {step}: the training has diverged",
                    where=str(self.path),
                    what_to_do="use a lower learning rate, or look at the training data",
                    code="diverged",
                )
            self.rows.append((float(step), float(step // self.steps_per_epoch), lr, *row))

    def write(self) -> None:
        """Write the CSV file, whole."""
        write_table(self.path, self.columns, [(int(row[0]), int(row[1]), *row[2:]) for row in self.rows])


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Write numbers as CSV, all their digits, aside and renamed; the folder is made where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([repr(value) for value in row] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text.getvalue())
    part.replace(path)
