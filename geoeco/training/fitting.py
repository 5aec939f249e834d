"""Running a Lightning task to its end, from its last checkpoint if there is one: what all trainings of this room share.

What is learned is the task's; which batches come is `geoeco.training.LocationBatches`'s; files are those of
`geoeco.training.checkpoints`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from geoeco.errors import InputError, OutputError
from geoeco.training.checkpoints import CheckpointFiles, LearningCurve, find_checkpoint
from geoeco.training.datamodule import ChipDataModule

__all__ = ["Watch", "fit", "reading_processes", "uses_gpu"]


class Watch(Callback):
    """Looks at a training while it runs and may end it early; its state is part of each checkpoint.

    Attributes
    ----------
    stopped : bool
        Whether the training is to end before its last step.
    """

    stopped: bool = False


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
