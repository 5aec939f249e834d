"""Running a Lightning task to its end, from its last checkpoint if there is one: what all trainings of this room share.

What is learned is the task's; which batches come is `geoeco.training.LocationBatches`'s; files are those of
`geoeco.training.checkpoints`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from geoeco.errors import InputError, OutputError
from geoeco.training.allocator import freed_memory_kept
from geoeco.training.checkpoints import CheckpointFiles, LearningCurve, find_checkpoint
from geoeco.training.datamodule import ChipDataModule
from geoeco.training.samplers import LocationBatches
from geoeco.training.season_contrast import Schedule, schedule_factor
from geoeco.training.stored_chips import StoredChips

__all__ = ["Fitting", "FittingOptions", "Watch", "check_course", "fit", "reading_processes", "uses_gpu"]


class FittingOptions(TypedDict, total=False):
    """Keywords that every training takes; what they are, and what they are when not given, `Fitting` says."""

    seed: int
    checkpoint_every: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "32", "bf16"]
    workers: int | None
    key: str
    name: str
    saved: Callable[[Path], None] | None
    callbacks: Sequence[Callback]


@dataclass(frozen=True)
class Fitting:
    """How a training runs, whatever it learns.

    Parameters
    ----------
    root : Path
        Local folder of the training: ``checkpoints/``, ``logs/metrics.csv`` (each step) and TensorBoard's files.
    seed : int
        Of all that is drawn.
    checkpoint_every : int
        Steps between checkpoints.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "32", "bf16"}
        ``"auto"`` is bfloat16 autocast on CUDA and float32 on a CPU, where ``"bf16"`` is refused.
    workers : int, optional
        Reading processes. When not given: none on a CPU, and with a GPU as many as there are cores, at most 16.
    key : str
        What else the training rests on; a checkpoint of another key is not gone on from.
    name : str
        Of the bundle; chosen by the training when empty.
    saved : callable, optional
        Called with `root` after each checkpoint, when its files are whole.
    callbacks : sequence of lightning.pytorch.Callback
        Further callbacks.

    Raises
    ------
    InputError
        If there is no such device or precision, or a number is out of its range.
    """

    root: Path
    seed: int = 0
    checkpoint_every: int = 500
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32", "bf16"] = "auto"
    workers: int | None = None
    key: str = ""
    name: str = ""
    saved: Callable[[Path], None] | None = None
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        uses_gpu(self.device, self.precision)
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every is {self.checkpoint_every}: the number of steps must be positive")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers is {self.workers}: workers are not negative")

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return uses_gpu(self.device, self.precision)

    @property
    def torch_device(self) -> str:
        """Where networks are during it, as torch calls it."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def processes(self) -> int:
        """Number of reading processes."""
        return reading_processes(self.workers, self.on_gpu)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw from the seed in here; what is drawn afterwards is as if nothing had been."""
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.on_gpu else []):
            torch.manual_seed(self.seed)
            yield

    def run(
        self,
        task: LightningModule,
        data: StoredChips,
        batches: LocationBatches,
        training_hash: str,
        watch: Watch | None = None,
    ) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Parameters
        ----------
        task : lightning.pytorch.LightningModule
        data : StoredChips
        batches : LocationBatches
            Those of the whole training.
        training_hash : str
            Checkpoints of another one are not gone on from.
        watch : Watch, optional

        Raises
        ------
        InputError, OutputError
            As of `fit` and `ChipDataModule`.
        """
        fit(
            task,
            ChipDataModule(data, batches, workers=self.processes, pin_memory=self.on_gpu),
            self.root,
            LearningCurve(self.root / "logs" / "metrics.csv", batches.steps_per_epoch),
            key=training_hash,
            every=self.checkpoint_every,
            on_gpu=self.on_gpu,
            precision=self.precision,
            watch=watch,
            saved=self.saved,
            callbacks=self.callbacks,
        )


def check_course(
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    schedule: Schedule,
    *,
    encoder_lr: float | None = None,
    patience: int | None = None,
) -> None:
    """Refuse lengths and rates of a training that cannot be.

    Raises
    ------
    InputError
        If one is out of its range, or there is no such schedule.
    """
    if min(epochs, batch, 1 if patience is None else patience) < 1:
        raise InputError("epochs, batch and patience must be positive")
    if not lr > 0 or not (encoder_lr is None or encoder_lr > 0) or not weight_decay >= 0:
        raise InputError("learning rates must be positive, weight_decay not negative")
    schedule_factor(0, 1, schedule)


class Watch(Callback):
    """Looks at a training while it runs and may end it early; its state is part of each checkpoint.

    Attributes
    ----------
    stopped : bool
        Whether the training is to end before its last step.
    """

    stopped: bool = False


@freed_memory_kept()
def fit(
    task: LightningModule,
    data: ChipDataModule,
    root: Path,
    curve: LearningCurve,
    *,
    key: str,
    every: int,
    on_gpu: bool,
    precision: str = "auto",
    watch: Watch | None = None,
    saved: Callable[[Path], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train to the end, from the last checkpoint of this training if there is one.

    Parameters
    ----------
    task : lightning.pytorch.LightningModule
        Left as it is at the end. All that it draws must follow the number of the step.
    data : ChipDataModule
        Its batches are those of the whole training.
    root : Path
        Local folder: ``checkpoints/`` and ``logs/``.
    curve : LearningCurve
    key : str
        Of the training; checkpoints of another key are not gone on from.
    every : int
        Steps between checkpoints.
    on_gpu : bool
    precision : {"auto", "32", "bf16"}
        ``"auto"`` is bfloat16 autocast on CUDA and float32 on a CPU.
    watch : Watch, optional
    saved : callable, optional
        Called with `root` after each checkpoint.
    callbacks : sequence of lightning.pytorch.Callback
        Further ones.

    Raises
    ------
    OutputError
        If the training diverges, ends early, or a checkpoint cannot be written.
    """
    batches = data.batches
    resumed = find_checkpoint(root / "checkpoints", key)
    if resumed is not None:
        states = resumed.state["callbacks"]
        if watch is not None:
            watch.load_state_dict(states[watch.state_key])
        if resumed.step >= len(batches) or (watch is not None and watch.stopped):
            # it had come to its end
            task.load_state_dict(resumed.state["state_dict"])
            curve.load_state_dict(states[curve.state_key])
            curve.write()
            return
    batches.start = resumed.step if resumed is not None else 0
    if resumed is None:
        # of a training that was not gone on from
        for events in (root / "logs").glob("events.out.tfevents.*"):
            events.unlink()
    files = CheckpointFiles(root / "checkpoints", every, key, None if saved is None else lambda _: saved(root))
    # what Lightning says of itself is nothing that whoever runs a recipe has asked for
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    bf16 = precision == "bf16" or (precision == "auto" and on_gpu)
    trainer = Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=1,
        # one process, also where a batch system suggests more
        plugins=[LightningEnvironment()],
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(str(root / "logs"), name="", version="", purge_step=batches.start or None),
        callbacks=[curve, *([] if watch is None else [watch]), *callbacks, files],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(root),
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        # the batches begin at the step of the checkpoint, which Lightning cannot know
        warnings.filterwarnings("ignore", message=r".*your dataloader is.not resumable.*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        # validation is a callback's
        warnings.filterwarnings("ignore", message=r".*have no `val_dataloader`.*")
        # Lightning's own use of torch
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        # a frozen encoder is meant to be
        warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")
        path = str(resumed.path) if resumed is not None else None
        trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
    if trainer.global_step != len(batches) and not (watch is not None and watch.stopped):
        raise OutputError(
            f"the training ended after {trainer.global_step} of {len(batches)} steps",
            where=str(root),
            what_to_do="run it again: it goes on from its last checkpoint",
            code="stopped",
        )


def uses_gpu(device: str, precision: str = "auto") -> bool:
    """Whether a training runs on a GPU.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "32", "bf16"}

    Raises
    ------
    InputError
        If there is no such device or precision, or bfloat16 is asked for without a GPU: with torch 2.15 on a CPU with
        AMX the gradients of small convolutions are now and then not finite.
    """
    if precision not in ("auto", "32", "bf16"):
        raise InputError(f"precision is {precision!r}", what_to_do="use 'auto', '32' or 'bf16'")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}", what_to_do="use 'auto', 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device", what_to_do="use device: auto or cpu", code="device")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if precision == "bf16" and not on_gpu:
        raise InputError(
            "bfloat16 is for GPUs: on a CPU its gradients cannot be relied on",
            what_to_do="use precision: auto or 32",
            code="precision",
        )
    return on_gpu


def reading_processes(workers: int | None, on_gpu: bool) -> int:
    """Number of reading processes: as asked for, else none on a CPU, as many as there are cores with a GPU."""
    if workers is not None:
        return workers
    return min(16, os.cpu_count() or 1) if on_gpu else 0
