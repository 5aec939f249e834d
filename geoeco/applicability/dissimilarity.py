"""The dissimilarity index and the area of applicability of Meyer and Pebesma (2021).

How unlike its training data is what a model is asked about, beside how unlike the folds of its cross-validation were
to each other? Not a probability of error, and no substitute for the model's own doubt: a point may be inside the area
of applicability and hard all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from geoeco.applicability.neighbours import Nearest, between_folds, parts, product
from geoeco.errors import InputError

__all__ = ["EXACT_UP_TO", "PAIRS", "AreaOfApplicability", "area_of_applicability"]

Floats = npt.NDArray[np.floating[Any]]

#: Training points up to which the mean distance is that of all pairs.
EXACT_UP_TO = 4096
#: Pairs drawn beyond that; the standard error of the mean is then below a thousandth of the spread of the distances.
PAIRS = 2**21
#: Rows that are worked on at once.
_ROWS = 2**14
_LIKE_CONSTANT = 1e-12
_SCALARS = ("mean_distance", "n_features", "threshold")
_BY_FEATURE = ("deviation", "importance", "mean")
_ARRAYS = frozenset({*_SCALARS, *_BY_FEATURE, "axes", "kept", "points", "training_di"})
_NEED_FOLDS = (
    "give every training point the number of the spatial block (or other fold) that it was held out with; at least "
    "two folds with two points each"
)


class AreaOfApplicability:
    """Dissimilarity index (DI) of new data, and whether it lies within that of the training data.

    Features are centred and divided by their standard deviation in the training data and multiplied by their
    importance. The DI of a point is its Euclidean distance from the nearest training point, divided by the mean
    distance of all pairs of training points. The DI of a *training* point is measured from the nearest point of
    **another fold**. The threshold is the largest DI of the training data that is not an outlier by Tukey's rule
    (above the upper hinge by more than 1.5 times the distance of the hinges). What has a DI up to the threshold is
    inside the area of applicability.

    Parameters
    ----------
    components : int, optional
        For features of deep networks: principal axes of the scaled and weighted features along which distances are
        measured. They are turned, not stretched, so that as many components as features change nothing. With
        fewer, the distance from the subspace is kept as one more coordinate: what is unlike all training data in a
        direction that these do not vary in is still seen.

    Attributes
    ----------
    mean_, deviation_, importance_ : numpy.ndarray, (kept,)
        Of the features kept.
    kept_ : numpy.ndarray, (kept,)
        Which features are kept: those that vary in the training data and have an importance above 0.
    n_features_ : int
        Features of a point, constant ones included.
    axes_ : numpy.ndarray, (component, kept)
        Principal axes; no rows without `components`.
    points_ : numpy.ndarray, (n, coordinate)
        float32, the training points as distances are measured from them.
    mean_distance_ : float
        Mean distance of pairs of training points.
    training_di_ : numpy.ndarray, (n,)
        float32.
    threshold_ : float
        Exactly a float32, so that ``di <= threshold_`` of stored DIs gives the stored answer.

    References
    ----------
    Meyer, H., Pebesma, E. (2021): Predicting into unknown space? Estimating the area of applicability of spatial
    prediction models. Methods in Ecology and Evolution 12, 1620-1633, section 2.
    https://doi.org/10.1111/2041-210X.13650. The hinges are those of the authors' R package CAST (``boxplot.stats``).

    Notes
    -----
    Folds that are not spatial make the threshold too small where training data are clustered in space: neighbours are
    alike. That cannot be seen from the features; it is for the caller to give spatial folds.
    """

    mean_: npt.NDArray[np.float64]
    deviation_: npt.NDArray[np.float64]
    importance_: npt.NDArray[np.float64]
    kept_: npt.NDArray[np.int64]
    n_features_: int
    axes_: npt.NDArray[np.float64]
    points_: npt.NDArray[np.float32]
    mean_distance_: float
    training_di_: npt.NDArray[np.float32]
    threshold_: float

    def __init__(self, components: int | None = None) -> None:
        self.components = components

    def fit(
        self, features: Floats, folds: npt.NDArray[np.integer[Any]], importance: npt.ArrayLike | None = None
    ) -> Self:
        """Learn the training data.

        Parameters
        ----------
        features : numpy.ndarray, (n, f)
            Rows that are not finite are left out with a warning; features that do not vary likewise.
        folds : numpy.ndarray, (n,)
            Spatial fold of each point, any whole numbers.
        importance : array-like, (f,), optional
            How much each feature counts, for example the model's importance of its predictors; not negative. Only
            their ratios matter. All alike when not given.

        Raises
        ------
        InputError
            If there are fewer than two folds with two points each, shapes differ, an importance is negative or not
            finite, or no feature varies.
        """
        table, folds = _checked(np.asarray(features), np.asarray(folds))
        weights = _weights(importance, table.shape[1])
        self.n_features_ = table.shape[1]
        mean, deviation = table.mean(axis=0), table.std(axis=0, ddof=1)
        varies = deviation > _LIKE_CONSTANT * np.maximum(np.abs(table).max(axis=0), np.finfo(np.float64).tiny)
        if not varies.all():
            warnings.warn(
                f"{(~varies).sum()} of {varies.size} features do not vary in the training data and are left out",
                stacklevel=2,
            )
        self.kept_ = np.flatnonzero(varies & (weights > 0))
        if not self.kept_.size:
            raise InputError(
                "no feature of the training data varies",
                what_to_do="look at the features: the dissimilarity of constants means nothing",
                code="applicability",
            )
        self.mean_, self.deviation_ = mean[self.kept_], deviation[self.kept_]
        self.importance_ = weights[self.kept_]
        self.axes_ = _principal_axes(self._scaled(table), self.components)
        coordinates = self._coordinates(table)
        self.points_ = np.ascontiguousarray(coordinates, np.float32)
        self.mean_distance_ = _mean_distance(coordinates)
        if not self.mean_distance_ > 0:
            raise InputError("all training points are alike", what_to_do="look at the features", code="applicability")
        self.__dict__.pop("_nearest", None)
        apart = between_folds(coordinates, folds)
        self.training_di_ = (apart / self.mean_distance_).astype(np.float32)
        self.threshold_ = _upper_whisker(self.training_di_)
        return self

    def predict(self, features: Floats, *, workers: int = 1) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Dissimilarity index of points, and whether they are inside the area of applicability.

        Parameters
        ----------
        features : numpy.ndarray, (..., f)
        workers : int
            Threads that search, where there are few features; the answer is the same.

        Returns
        -------
        di : numpy.ndarray, (...)
            float32; NaN where a feature is not finite.
        inside : numpy.ndarray, (...)
            bool; False where a feature is not finite.

        Raises
        ------
        InputError
            If the number of features is another than in the training data.
        """
        features = np.asarray(features)
        if features.ndim < 1 or features.shape[-1] != self.n_features_:
            raise InputError(
                f"points have {features.shape[-1:] or (0,)} features, the training data had {self.n_features_}",
                what_to_do="give the features that the area of applicability was fitted on, in their order",
                code="applicability",
            )
        rows = features.reshape(-1, self.n_features_)
        di = np.full(len(rows), np.nan, np.float32)
        for part in parts(len(rows), _ROWS):
            known = np.isfinite(rows[part]).all(axis=1)
            distance = self._nearest(self._coordinates(rows[part][known]), workers=workers)
            di[part.start : part.stop][known] = distance / self.mean_distance_
        return di.reshape(features.shape[:-1]), (di <= np.float32(self.threshold_)).reshape(features.shape[:-1])

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All that was learnt, as arrays by name; `from_arrays` takes them."""
        return {
            "axes": self.axes_,
            "deviation": self.deviation_,
            "importance": self.importance_,
            "kept": self.kept_,
            "mean": self.mean_,
            "mean_distance": np.array([self.mean_distance_]),
            "n_features": np.array([self.n_features_], np.int64),
            "points": self.points_,
            "threshold": np.array([self.threshold_], np.float32),
            "training_di": self.training_di_,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """An area of applicability as it was learnt before.

        Parameters
        ----------
        arrays : mapping of str to numpy.ndarray
            As `arrays` gave them.

        Raises
        ------
        InputError
            If an array is missing, or of another shape or type than the others ask for.
        """
        _check_arrays(arrays)
        axes = np.array(arrays["axes"], np.float64)
        made = cls(len(axes) or None)
        made.axes_ = axes
        made.mean_, made.deviation_, made.importance_ = (
            np.array(arrays[name], np.float64) for name in ("mean", "deviation", "importance")
        )
        made.kept_ = np.array(arrays["kept"], np.int64)
        made.n_features_ = int(arrays["n_features"][0])
        made.points_ = np.array(arrays["points"], np.float32)
        made.training_di_ = np.array(arrays["training_di"], np.float32)
        made.mean_distance_, made.threshold_ = float(arrays["mean_distance"][0]), float(arrays["threshold"][0])
        return made

    @cached_property
    def _nearest(self) -> Nearest:
        return Nearest(self.points_.astype(np.float64))

    def _scaled(self, rows: Floats) -> npt.NDArray[np.float64]:
        chosen = rows[:, self.kept_].astype(np.float64)
        return np.ascontiguousarray((chosen - self.mean_) / self.deviation_ * self.importance_)

    def _coordinates(self, rows: Floats) -> npt.NDArray[np.float64]:
        """Coordinates ``(n, coordinate)`` between which distances are measured.

        Rounded to the precision in which training points are stored, so that a training point lies on itself.
        """
        scaled = self._scaled(rows)
        if not len(self.axes_):
            return scaled.astype(np.float32).astype(np.float64)
        along = product(scaled, self.axes_.T)
        beyond = np.maximum((scaled**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        if len(self.axes_) == len(self.kept_):
            beyond[:] = 0.0
        return np.column_stack([along, np.sqrt(beyond)]).astype(np.float32).astype(np.float64)


def area_of_applicability(
    train: Floats,
    new: Floats,
    *,
    folds: npt.NDArray[np.integer[Any]],
    importance: npt.ArrayLike | None = None,
    components: int | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Dissimilarity index of new points, and whether a model of the training points may be applied to them.

    Parameters
    ----------
    train : numpy.ndarray, (n, f)
        Predictors (or features of a network) of the training points.
    new : numpy.ndarray, (..., f)
    folds : numpy.ndarray, (n,)
        Spatial fold of each training point.
    importance : array-like, (f,), optional
        How much each predictor counts.
    components : int, optional
        See `AreaOfApplicability`.

    Returns
    -------
    di : numpy.ndarray, (...)
        float32, 0 for a training point; NaN where a predictor is not finite.
    inside : numpy.ndarray, (...)
        bool.

    Raises
    ------
    InputError
        As `AreaOfApplicability.fit` and `AreaOfApplicability.predict`.

    References
    ----------
    Meyer, H., Pebesma, E. (2021), https://doi.org/10.1111/2041-210X.13650
    """
    return AreaOfApplicability(components).fit(train, folds, importance).predict(new)


# --- checks ----------------------------------------------------------------------------------------------------------


def _checked(
    features: np.ndarray[Any, Any], folds: np.ndarray[Any, Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Finite rows and the number of their fold, 0 and up."""
    if features.ndim != 2 or folds.shape != features.shape[:1]:
        raise InputError(
            f"training features {features.shape} and folds {folds.shape} do not fit",
            what_to_do="give features (n, f) and one fold for each of the n points",
            code="applicability",
        )
    if folds.dtype.kind not in "iu":
        raise InputError(f"folds are whole numbers, not {folds.dtype}", what_to_do=_NEED_FOLDS, code="applicability")
    known = np.isfinite(features).all(axis=1)
    if not known.all():
        warnings.warn(f"{(~known).sum()} of {known.size} training points are not finite and are left out", stacklevel=3)
    names, numbers, counts = np.unique(folds[known], return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        held = ", ".join(f"{name}: {count}" for name, count in zip(names.tolist(), counts.tolist(), strict=True))
        raise InputError(
            "the dissimilarity of training data is measured between folds: at least two, with two points each",
            where=f"points by fold: {held or 'none'}"[:200],
            what_to_do=_NEED_FOLDS,
            code="applicability",
        )
    return features[known].astype(np.float64), numbers.astype(np.int64)


def _weights(importance: npt.ArrayLike | None, features: int) -> npt.NDArray[np.float64]:
    if importance is None:
        return np.ones(features)
    weights = np.asarray(importance, np.float64)
    if weights.shape != (features,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise InputError(
            f"importance must be {features} numbers of 0 or more, not all 0",
            where=f"importance of shape {weights.shape}",
            what_to_do="set the importance of predictors that do not help to 0",
            code="applicability",
        )
    # only ratios matter
    scaled: npt.NDArray[np.float64] = weights / weights.max()
    return scaled


def _check_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    def refuse(what: str) -> InputError:
        return InputError(
            f"this is not a stored area of applicability: {what}", what_to_do="fit it again", code="applicability"
        )

    if missing := sorted(_ARRAYS - set(arrays)):
        raise refuse(f"{missing[0]} is missing")
    if arrays["points"].ndim != 2 or arrays["axes"].ndim != 2 or arrays["kept"].ndim != 1:
        raise refuse("an array has too few or too many dimensions")
    kept, (count, coordinates), components = len(arrays["kept"]), arrays["points"].shape, len(arrays["axes"])
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(_BY_FEATURE, (kept,)),
        **dict.fromkeys(_SCALARS, (1,)),
        "axes": (components, kept),
        "training_di": (count,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise refuse(f"{name} has the shape {arrays[name].shape}, not {shape}")
    if not kept or not count or coordinates != (components + 1 if components else kept):
        raise refuse(f"{count} points of {coordinates} coordinates for {kept} features and {components} components")
    whole = all(arrays[name].dtype.kind in "iu" for name in ("kept", "n_features"))
    if not whole or not all(np.isfinite(arrays[name]).all() for name in _ARRAYS):
        raise refuse("a value is not finite or not a whole number")
    if not (arrays["kept"].min() >= 0 and arrays["kept"].max() < arrays["n_features"][0]):
        raise refuse("a feature is kept that is not there")
    if not (arrays["deviation"].min() > 0 and arrays["mean_distance"][0] > 0 and arrays["threshold"][0] >= 0):
        raise refuse("a scale is not positive")


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _principal_axes(scaled: npt.NDArray[np.float64], components: int | None) -> npt.NDArray[np.float64]:
    """Unit vectors ``(component, feature)``, largest variance first; the largest element of each is positive."""
    features = scaled.shape[1]
    if components is None:
        return np.empty((0, features))
    if components < 1:
        raise InputError(
            f"{components} components", what_to_do="ask for one or more, or for None", code="applicability"
        )
    _, vectors = np.linalg.eigh(scaled.T @ scaled)
    axes = vectors[:, ::-1][:, : min(components, features)].T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, np.newaxis], axis=1)
    return np.ascontiguousarray(axes * np.sign(largest))


def _mean_distance(points: npt.NDArray[np.float64]) -> float:
    """Mean distance of pairs: of all, or of `PAIRS` drawn with a fixed seed where there are more points."""
    count = len(points)
    if count <= EXACT_UP_TO:
        total = sum(float(cdist(points[part], points).sum()) for part in parts(count, 512))
        return total / (count * (count - 1))
    rng = np.random.default_rng(0)
    first = rng.integers(0, count, PAIRS)
    # never a point and itself
    second = (first + rng.integers(1, count, PAIRS)) % count
    drawn = parts(PAIRS, _ROWS)
    total = sum(float(np.linalg.norm(points[first[p]] - points[second[p]], axis=1).sum()) for p in drawn)
    return total / PAIRS


def _upper_whisker(values: npt.NDArray[np.float32]) -> float:
    """Largest value that is not above the upper hinge by more than 1.5 times the distance of the hinges (Tukey)."""
    ordered = np.sort(values).astype(np.float64)
    half = (len(ordered) + 1) // 2
    lower, upper = float(np.median(ordered[:half])), float(np.median(ordered[-half:]))
    return float(ordered[ordered <= upper + 1.5 * (upper - lower)].max())
