"""Scores of a classification in which some classes are rare: overall, and by how many crowns there were to learn from.

What a mean over classes hides is how the rare ones fare, and what a share of crowns hides is that there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from geoeco.errors import InputError
from geoeco.training.scoring import scores

__all__ = ["FREQUENCIES", "frequency_bins", "rarity_details", "rarity_scores"]

Ints = npt.NDArray[np.int64]

#: Largest numbers of training crowns of a class in the bins but the last.
FREQUENCIES = (10, 50)


def frequency_bins(edges: Sequence[int] = FREQUENCIES) -> tuple[str, ...]:
    """Names of the bins, ``("1-10", "11-50", ">50")`` by default.

    Raises
    ------
    InputError
        If the edges do not grow, or the first is below 1.
    """
    if not edges or edges[0] < 1 or list(edges) != sorted(set(edges)):
        raise InputError(f"edges of frequency bins are {tuple(edges)}", what_to_do="give growing numbers, as (10, 50)")
    first = [1, *(edge + 1 for edge in edges[:-1])]
    return (*(f"{low}-{high}" for low, high in zip(first, edges, strict=True)), f">{edges[-1]}")


def rarity_scores(
    targets: Ints,
    probability: npt.NDArray[np.floating[Any]],
    learned: Ints,
    *,
    edges: Sequence[int] = FREQUENCIES,
    top: int = 3,
) -> dict[str, float]:
    """Scores of predictions, overall and by the frequency of the true class in training.

    Parameters
    ----------
    targets : numpy.ndarray of int64, shape (crown,)
        Positions of the true classes.
    probability : numpy.ndarray, shape (crown, class)
    learned : numpy.ndarray of int64, shape (class,)
        Number of training crowns of each class, at least 1: crowns of a class that was not learned are no part of the
        targets.
    edges : sequence of int
        As of `frequency_bins`.
    top : int
        ``top<k>_accuracy`` counts a crown as right if its class is among so many of the most probable.

    Returns
    -------
    dict of str to float
        ``macro_f1`` and ``accuracy`` as of `geoeco.training.scores`, ``mcc`` (Gorodkin's multi-class correlation;
        NaN where there is one class only),
        ``top<k>_accuracy`` where there are more classes than that; and of each bin that has a crown
        ``macro_f1:<bin>``, the mean F1 of the bin's classes that occur, where a prediction of such a class for a crown
        of any other counts against it, and ``accuracy:<bin>``, the share of the bin's crowns that are right.

    Raises
    ------
    InputError
        If shapes do not fit, there is no crown, or a class was not learned.
    """
    if len(learned) != probability.shape[1] or len(targets) != len(probability) or not len(targets):
        raise InputError(f"{len(targets)} crowns, predictions {probability.shape}, {len(learned)} classes")
    if (learned < 1).any():
        raise InputError("a class without a training crown cannot be scored", what_to_do="leave out its crowns")
    names = frequency_bins(edges)
    found = probability.argmax(axis=1)
    result = scores("single-label", targets, probability)
    # with one class in both it is not defined
    several = len(np.union1d(targets, found)) > 1
    result["mcc"] = float(matthews_corrcoef(targets, found)) if several else float("nan")
    if top < probability.shape[1]:
        own = np.take_along_axis(probability, targets[:, None], axis=1)
        # of a tie the class is taken to come last
        result[f"top{top}_accuracy"] = float(((probability >= own).sum(axis=1) <= top).mean())
    rarity = np.searchsorted(edges, learned)
    occurring = np.unique(targets)
    f1 = f1_score(targets, found, labels=occurring, average=None, zero_division=0.0)
    for position, name in enumerate(names):
        classes = occurring[rarity[occurring] == position]
        if len(classes):
            inside = np.isin(targets, classes)
            result[f"macro_f1:{name}"] = float(f1[np.isin(occurring, classes)].mean())
            result[f"accuracy:{name}"] = float((found[inside] == targets[inside]).mean())
    return result


def rarity_details(
    targets: Ints,
    probability: npt.NDArray[np.floating[Any]],
    learned: Ints,
    names: Sequence[str],
    *,
    edges: Sequence[int] = FREQUENCIES,
) -> dict[str, Any]:
    """What stands behind `rarity_scores`, JSON only: crowns and F1 of each class, and the confusion matrix.

    Parameters
    ----------
    targets, probability, learned, edges
        As of `rarity_scores`.
    names : sequence of str
        Of the classes.
    """
    found, every = probability.argmax(axis=1), np.arange(len(names))
    f1 = f1_score(targets, found, labels=every, average=None, zero_division=0.0)
    bins = [frequency_bins(edges)[position] for position in np.searchsorted(edges, learned)]
    tested = np.bincount(targets, minlength=len(names))
    return {
        "classes": [
            {
                "name": name,
                "bin": bins[code],
                "learned": int(learned[code]),
                "tested": int(tested[code]),
                "f1": round(float(f1[code]), 6) if tested[code] else None,
            }
            for code, name in enumerate(names)
        ],
        "confusion": confusion_matrix(targets, found, labels=every).tolist(),
    }
