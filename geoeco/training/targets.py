"""What is learned from labels, by kind of task: targets as checked tensors, and the losses of probes and networks.

What outputs mean is said in `geoeco.models`, scores are `geoeco.training.scores`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from geoeco.errors import InputError
from geoeco.models.season_predictor import shares
from geoeco.training.scoring import TaskKind, scores

__all__ = ["Targets", "checked_targets", "loss_of", "moments"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """Targets in the one form that training needs, with what scoring needs."""

    task: TaskKind
    values: Tensor
    """(sample,) int64 class positions for a single label, else (sample, output) float32."""
    outputs: tuple[str, ...] = field(default_factory=tuple)

    def vectors(self) -> Tensor:
        """One vector a sample whose mean is a prediction: one-hot classes, labels, values or shares."""
        if self.task == "single-label":
            return functional.one_hot(self.values, len(self.outputs)).float()
        return self.values

    def scored(self, rows: npt.NDArray[np.int64], prediction: Floats, threshold: float) -> dict[str, float]:
        """Scores of predictions ``(row, output)`` for some of the samples, as of `geoeco.training.scores`."""
        return scores(
            self.task, self.values[torch.from_numpy(rows)].numpy(), prediction, names=self.outputs, threshold=threshold
        )


def loss_of(task: TaskKind, positive_weight: float | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss of raw outputs ``(sample, output)`` against `Targets.values`, a mean over the samples.

    Parameters
    ----------
    task : {"single-label", "multi-label", "regression", "distribution"}
        Cross-entropy; multi-label soft margin, or binary cross-entropy with `positive_weight`; squared error;
        Kullback-Leibler divergence.
    positive_weight : float, optional
        Weight of given labels in a multi-label task.

    Raises
    ------
    InputError
        If the weight is not positive, or given for another task.
    """
    if positive_weight is not None and (task != "multi-label" or not positive_weight > 0):
        raise InputError(
            f"positive_weight={positive_weight} in a {task} task", what_to_do="give a positive one for multi-label only"
        )
    if task == "single-label":
        return functional.cross_entropy
    if task == "regression":
        return functional.mse_loss
    if task == "distribution":
        return lambda raw, wanted: functional.kl_div(shares(raw).log(), wanted, reduction="batchmean")
    if positive_weight is None:
        return functional.multilabel_soft_margin_loss
    weight = torch.tensor(positive_weight)
    return lambda raw, given: functional.binary_cross_entropy_with_logits(raw, given, pos_weight=weight.to(raw.device))


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each column; a column that does not vary keeps its unit."""
    spread = values.std(dim=0, correction=0)
    return values.mean(dim=0), torch.where(spread > 0, spread, torch.ones_like(spread))


def checked_targets(targets: npt.ArrayLike | Tensor, task: TaskKind, names: Sequence[str], samples: int) -> Targets:
    """Targets in the one form that training needs.

    Parameters
    ----------
    targets : array-like
        Single label: ``(sample,)`` classes. Several labels: ``(sample, class)`` of 0 and 1. Regression: ``(sample,)``
        or ``(sample, output)``. Distribution: ``(sample, bin)`` of shares that sum to one.
    task : {"single-label", "multi-label", "regression", "distribution"}
    names : sequence of str
        Of the outputs; classes of a single label are named by themselves.
    samples : int
        How many there must be.

    Raises
    ------
    InputError
        If they are of the wrong kind or shape, missing, not finite, or all of one class.
    """
    kinds = get_args(TaskKind)
    if task not in kinds:
        raise InputError(f"there is no task {task!r}", what_to_do=f"use one of: {', '.join(kinds)}")
    given: npt.NDArray[Any] = targets.detach().cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if len(given) != samples if given.ndim else True:
        raise InputError(f"{samples} samples have targets of shape {given.shape}", what_to_do="give one a sample")
    if task == "single-label":
        if given.ndim != 1 or _missing(given):
            raise InputError(
                "single-label targets must be one class a sample, none missing",
                what_to_do="leave out samples without a label",
            )
        classes, positions = np.unique(given.astype(str) if given.dtype == object else given, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"all samples are of the class {classes[0]}", what_to_do="give two classes or more")
        return Targets(task, torch.from_numpy(positions.astype(np.int64).ravel()), tuple(map(str, classes)))
    try:
        values = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{task} targets must be numbers: {error}") from error
    if values.ndim == 1 and task == "regression":
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise InputError(f"{task} targets of shape {values.shape}", what_to_do="give (sample, output)")
    if not np.isfinite(values).all():
        raise InputError(
            f"the targets of {int((~np.isfinite(values)).any(axis=1).sum())} of {samples} samples are not finite",
            what_to_do="leave out samples without a label",
        )
    if task == "multi-label" and not np.isin(values, (0, 1)).all():
        raise InputError("multi-label targets must be 0 or 1")
    if task == "distribution" and not ((values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3)):
        raise InputError("the shares of a distribution must not be negative and must sum to one")
    outputs = tuple(map(str, names)) or tuple(str(i) for i in range(values.shape[1]))
    if len(outputs) != values.shape[1]:
        raise InputError(f"{values.shape[1]} outputs have {len(outputs)} names", what_to_do="name each or none")
    return Targets(task, torch.from_numpy(values), outputs)


def _missing(labels: npt.NDArray[Any]) -> bool:
    return bool(pd.isna(labels).any())
