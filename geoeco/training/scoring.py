"""Scores of predictions against targets, by kind of task; each number is scikit-learn's.

Probabilities are taken as such and never passed through a sigmoid: whether numbers are logits cannot be told from
their range, and a score that guesses (sigmoid where a value leaves 0..1) reads small logits as probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from geoeco.errors import InputError

__all__ = ["MAIN_SCORE", "TaskKind", "scores"]

#: Kinds of tasks: one class, several classes, values, shares that sum to one.
TaskKind = Literal["single-label", "multi-label", "regression", "distribution"]

#: The score by which settings are chosen on the validation part.
MAIN_SCORE: dict[TaskKind, str] = {
    "single-label": "macro_f1",
    "multi-label": "micro_map",
    "regression": "r2",
    "distribution": "r2",
}

#: Rounding of float32 may take a probability this far out of 0..1.
_SLACK = 1e-5


def scores(
    task: TaskKind,
    targets: npt.NDArray[np.generic],
    predictions: npt.NDArray[np.generic],
    *,
    names: Sequence[str] = (),
    threshold: float = 0.5,
) -> dict[str, float]:
    """Scores of one set of predictions.

    Parameters
    ----------
    task : {"single-label", "multi-label", "regression", "distribution"}
    targets : numpy.ndarray
        ``(sample,)`` positions of classes for a single label; ``(sample, output)`` else: 0 or 1 for several labels,
        values, or shares.
    predictions : numpy.ndarray, shape (sample, output)
        Probabilities for labels, values in the units of the targets, or shares.
    names : sequence of str, optional
        Of the outputs; their numbers when not given.
    threshold : float
        Probability above which one of several labels is given.

    Returns
    -------
    dict of str to float
        Single label: ``macro_f1`` (over the classes that occur or are predicted), ``accuracy``. Several labels:
        ``micro_map``, ``micro_f1``, ``macro_f1``. Values and shares: ``r2``, ``mae``, ``rmse``, means over the
        outputs; with several outputs of values also ``r2:<name>`` and so on of each, in its own units. NaN where a
        score is not defined: no positive label at all, or an output whose targets are all the same (which is left out
        of the mean of ``r2``).

    Raises
    ------
    InputError
        If shapes do not fit, a number is not finite, or probabilities lie outside 0..1.
    """
    known = get_args(TaskKind)
    if task not in known:
        raise InputError(f"there is no task {task!r}", what_to_do=f"use one of: {', '.join(known)}")
    predicted = np.asarray(predictions, dtype=np.float64)
    if predicted.ndim != 2 or len(predicted) != len(targets) or not len(predicted):
        raise InputError(f"predictions of shape {predicted.shape} do not fit targets of shape {targets.shape}")
    if not np.isfinite(predicted).all():
        raise InputError("a prediction is not finite", what_to_do="look at the features it was made of")
    if task in ("single-label", "multi-label") and not ((predicted > -_SLACK) & (predicted < 1 + _SLACK)).all():
        raise InputError(
            f"predictions from {predicted.min():.3g} to {predicted.max():.3g} are not probabilities",
            what_to_do="pass logits through softmax or sigmoid first",
        )
    if task == "single-label":
        found = predicted.argmax(axis=1)
        return {
            "macro_f1": float(f1_score(targets, found, average="macro", zero_division=np.nan)),
            "accuracy": float(accuracy_score(targets, found)),
        }
    if task == "multi-label":
        labels, given = np.asarray(targets).reshape(predicted.shape).astype(bool), predicted > threshold
        # flat, because micro averages are over all decisions, and because scikit-learn reads a single column as two
        # classes
        flat = float(f1_score(labels.ravel(), given.ravel(), zero_division=np.nan))
        return {
            "micro_map": float(average_precision_score(labels.ravel(), predicted.ravel()))
            if labels.any()
            else float("nan"),
            "micro_f1": flat,
            "macro_f1": flat
            if labels.shape[1] == 1
            else float(f1_score(labels, given, average="macro", zero_division=np.nan)),
        }
    truth = np.asarray(targets, dtype=np.float64).reshape(predicted.shape)
    r2 = _r2(truth, predicted)
    mae = np.asarray(mean_absolute_error(truth, predicted, multioutput="raw_values"))
    rmse = np.asarray(root_mean_squared_error(truth, predicted, multioutput="raw_values"))
    result = {
        "r2": float(r2[np.isfinite(r2)].mean()) if np.isfinite(r2).any() else float("nan"),
        "mae": float(mae.mean()),
        "rmse": float(rmse.mean()),
    }
    if task == "regression" and predicted.shape[1] > 1:
        for position, name in enumerate(names or range(predicted.shape[1])):
            result |= {
                f"r2:{name}": float(r2[position]),
                f"mae:{name}": float(mae[position]),
                f"rmse:{name}": float(rmse[position]),
            }
    return result


def _r2(truth: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """R2 of each output; NaN where the targets are all the same."""
    varies = np.ptp(truth, axis=0) > 0
    found = np.full(truth.shape[1], np.nan)
    if varies.any():
        found[varies] = r2_score(truth[:, varies], predicted[:, varies], multioutput="raw_values")
    return found
