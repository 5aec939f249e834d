"""Scores of class maps: all of them from one confusion matrix, which adds up over tiles, and from outlines.

What is not defined (a class that is neither there nor predicted) is NaN, and every mean says how such classes count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geoeco.errors import InputError

__all__ = ["Absent", "BoundaryMatches", "ConfusionMatrix", "boundary_matches"]

Absent = Literal["zero", "leave-out"]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """How often which class was predicted where which class is.

    Attributes
    ----------
    counts : numpy.ndarray
        ``(class, class)`` int64: rows are the truth, columns the prediction.
    classes : tuple of str
        Their names.
    unscored : tuple of str
        Classes whose pixels take no part in scores, background for example. A pixel of another class that is predicted
        as one of these is still a miss of its class.

    Raises
    ------
    InputError
        If shapes or names do not fit.
    """

    counts: Counts
    classes: tuple[str, ...]
    unscored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "unscored", tuple(self.unscored))
        counts = np.asarray(self.counts)
        side = len(self.classes)
        if counts.shape != (side, side) or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise InputError(f"a confusion matrix of shape {counts.shape} and type {counts.dtype} for {side} classes")
        unknown = [name for name in self.unscored if name not in self.classes]
        if unknown or len(set(self.classes)) < side:
            raise InputError(
                f"there is no class {unknown[0]!r}" if unknown else f"a class is named twice in {self.classes}",
                what_to_do=f"the classes are: {', '.join(self.classes)}",
            )
        object.__setattr__(self, "counts", counts.astype(np.int64))

    @classmethod
    def from_arrays(
        cls,
        truth: npt.NDArray[Any],
        prediction: npt.NDArray[Any],
        classes: Sequence[str],
        *,
        ignore: int = 255,
        unscored: Sequence[str] = (),
    ) -> ConfusionMatrix:
        """Count pixels.

        Parameters
        ----------
        truth, prediction : numpy.ndarray
            Of one shape, numbers of classes from 0.
        classes : sequence of str
        ignore : int
            Pixels of this truth are not counted.
        unscored : sequence of str

        Raises
        ------
        InputError
            If shapes differ, or a counted number is no class.
        """
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        if truth.shape != prediction.shape:
            raise InputError(f"truth of shape {truth.shape} and prediction of shape {prediction.shape}")
        known = truth != ignore
        rows, columns = truth[known].astype(np.int64), prediction[known].astype(np.int64)
        side = len(classes)
        for what, values in (("truth", rows), ("prediction", columns)):
            if values.size and not (int(values.min()) >= 0 and int(values.max()) < side):
                raise InputError(
                    f"the {what} has class {int(values.max() if values.max() >= side else values.min())}, "
                    f"there are {side} classes",
                    what_to_do=f"give numbers from 0 to {side - 1}; {ignore} in the truth where it is not known",
                )
        counts = np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)
        return cls(counts, tuple(classes), tuple(unscored))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Both together.

        Raises
        ------
        InputError
            If their classes differ.
        """
        if (self.classes, self.unscored) != (other.classes, other.unscored):
            raise InputError("confusion matrices of different classes cannot be added")
        return ConfusionMatrix(self.counts + other.counts, self.classes, self.unscored)

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """``(class,)`` whether a class takes part in scores."""
        return np.array([name not in self.unscored for name in self.classes])

    @property
    def _used(self) -> Counts:
        return np.where(self.scored[:, None], self.counts, 0)

    @property
    def support(self) -> Counts:
        """``(class,)`` pixels of each class in the truth."""
        support: Counts = self.counts.sum(axis=1)
        return support

    def _parts(self) -> tuple[Floats, Floats, Floats]:
        used = self._used
        hits = np.diag(used).astype(np.float64)
        return hits, used.sum(axis=1) - hits, used.sum(axis=0) - hits

    @property
    def precision(self) -> Floats:
        """``(class,)`` share of the pixels predicted as a class that are of it; NaN where there are none."""
        hits, _, false = self._parts()
        return self._of_scored(hits, hits + false)

    @property
    def recall(self) -> Floats:
        """``(class,)`` share of the pixels of a class that are predicted as it; NaN where there are none."""
        hits, missed, _ = self._parts()
        return self._of_scored(hits, hits + missed)

    @property
    def iou(self) -> Floats:
        """``(class,)`` intersection over union (Jaccard); NaN where the class is neither there nor predicted."""
        hits, missed, false = self._parts()
        return self._of_scored(hits, hits + missed + false)

    @property
    def f1(self) -> Floats:
        """``(class,)`` 2 hits / (2 hits + missed + false); NaN where the class is neither there nor predicted."""
        hits, missed, false = self._parts()
        return self._of_scored(2 * hits, 2 * hits + missed + false)

    @property
    def accuracy(self) -> float:
        """Share of the scored pixels whose class is right; NaN where there are none."""
        used = self._used
        return float(np.trace(used) / used.sum()) if used.any() else float("nan")

    @property
    def mcc(self) -> float:
        """Matthews' correlation coefficient of several classes; 0 where truth or prediction is one class only.

        References
        ----------
        Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient, equation 8.
        """
        used = self._used.astype(np.float64)
        total, hits = used.sum(), np.trace(used)
        truth, predicted = used.sum(axis=1), used.sum(axis=0)
        spread = np.sqrt(total**2 - predicted @ predicted) * np.sqrt(total**2 - truth @ truth)
        return float((hits * total - truth @ predicted) / spread) if spread > 0 else 0.0

    def mean(self, values: Floats, absent: Absent = "zero") -> float:
        """Mean of scores over the scored classes.

        Parameters
        ----------
        values : numpy.ndarray
            ``(class,)``, one of the scores above.
        absent : {"zero", "leave-out"}
            How a class counts whose score is not defined or that is not in the truth: as 0 ("zero", as the authors of
            DWFF-Net have it, so that the mean is always one over the same classes), or not at all ("leave-out": the
            mean over the classes that are there).
        """
        if absent not in ("zero", "leave-out"):
            raise InputError(f"absent is {absent!r}", what_to_do="use 'zero' or 'leave-out'")
        there = self.scored & (self.support > 0)
        used = there if absent == "leave-out" else self.scored
        if not used.any():
            return float("nan")
        return float(np.nan_to_num(values[used], nan=0.0).mean())

    def rows(self) -> list[dict[str, Any]]:
        """One row a class: ``class, support, iou, f1, precision, recall``; None where not defined."""
        scores = {"iou": self.iou, "f1": self.f1, "precision": self.precision, "recall": self.recall}
        return [
            {
                "class": name,
                "support": int(self.support[number]),
                **{score: _plain(values[number]) for score, values in scores.items()},
            }
            for number, name in enumerate(self.classes)
        ]

    def summary(self) -> dict[str, float]:
        """Means over classes both ways, accuracy and MCC."""
        return {
            "miou": self.mean(self.iou),
            "miou_present": self.mean(self.iou, "leave-out"),
            "mf1": self.mean(self.f1),
            "mf1_present": self.mean(self.f1, "leave-out"),
            "mprecision": self.mean(self.precision),
            "mrecall": self.mean(self.recall),
            "accuracy": self.accuracy,
            "mcc": self.mcc,
        }

    def _of_scored(self, part: Floats, whole: Floats) -> Floats:
        found = np.full(len(self.classes), np.nan)
        np.divide(part, whole, out=found, where=(whole > 0) & self.scored)
        return found


@dataclass(frozen=True, eq=False)
class BoundaryMatches:
    """Pixels of outlines, and how many of them have an outline of the other side near; adds up over tiles.

    Attributes
    ----------
    truth, truth_matched, predicted, predicted_matched : numpy.ndarray
        ``(class,)`` int64.
    """

    truth: Counts
    truth_matched: Counts
    predicted: Counts
    predicted_matched: Counts

    def __add__(self, other: BoundaryMatches) -> BoundaryMatches:
        """Both together."""
        return BoundaryMatches(
            self.truth + other.truth,
            self.truth_matched + other.truth_matched,
            self.predicted + other.predicted,
            self.predicted_matched + other.predicted_matched,
        )

    @property
    def f1(self) -> Floats:
        """``(class,)`` harmonic mean of precision and recall; NaN where neither side has an outline of a class.

        References
        ----------
        Csurka, Larlus & Perronnin (2013), What is a good evaluation measure for semantic segmentation?, BMVC,
        section 2.3.
        """
        found = np.full(len(self.truth), np.nan)
        for number, (truth, hit, predicted, right) in enumerate(
            zip(self.truth, self.truth_matched, self.predicted, self.predicted_matched, strict=True)
        ):
            if truth or predicted:
                recall, precision = hit / truth if truth else 0.0, right / predicted if predicted else 0.0
                found[number] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return found


def boundary_matches(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], classes: int, *, tolerance: float = 3.0, ignore: int = 255
) -> BoundaryMatches:
    """Compare the outlines of the classes of one tile.

    Parameters
    ----------
    truth, prediction : numpy.ndarray
        ``(y, x)``, numbers of classes from 0.
    classes : int
    tolerance : float
        Pixels, Euclidean, between the centres of pixels of an outline.
    ignore : int
        Where the truth is this nothing is compared, and its border is no outline.

    Returns
    -------
    BoundaryMatches
        A pixel of a class is of its outline if one of its four neighbours, inside the tile and not ignored, is of
        another class. The tile's border is none.

    Raises
    ------
    InputError
        If shapes differ, are not of two dimensions, or the tolerance is negative.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 2 or not tolerance >= 0:
        raise InputError(
            f"outlines of shapes {truth.shape} and {prediction.shape} with a tolerance of {tolerance} pixels"
        )
    known = truth != ignore
    outlines = [_outline(np.where(known, side, ignore), known) for side in (truth, prediction)]
    counts = np.zeros((4, classes), np.int64)
    for number in range(classes):
        first, second = (
            outline & (side == number) for outline, side in zip(outlines, (truth, prediction), strict=True)
        )
        counts[:, number] = (
            first.sum(),
            _near(first, second, tolerance),
            second.sum(),
            _near(second, first, tolerance),
        )
    return BoundaryMatches(*counts)


def _outline(labels: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    outline = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        low, high = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        differs = (labels[low] != labels[high]) & known[low] & known[high]
        outline[low] |= differs
        outline[high] |= differs
    return outline


def _near(pixels: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_], tolerance: float) -> int:
    """How many pixels have one of the others within reach."""
    if not pixels.any() or not others.any():
        return 0
    distance = ndimage.distance_transform_edt(~others)
    return int((distance[pixels] <= tolerance).sum())


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
