"""Folds for probing frozen features: the paper's random folds, and folds by spatial blocks beside them.

Random folds are what published figures were measured with; neighbouring chips look alike, so they tell how well a
model interpolates. Folds by blocks ask how well it does where it has seen nothing near. Splits for training networks
are `geoeco.sampling.spatial_split`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    ShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
)

from geoeco.errors import InputError, OutputError
from geoeco.sampling.grids import EARTH_RADIUS_M
from geoeco.sampling.splits import block_codes, hand_out_blocks, reach_of_footprints, within_reach
from geoeco.sampling.windows import unit_vectors

__all__ = ["Fold", "assert_apart", "block_folds", "check_folds", "places_of", "random_folds"]

#: Folds and seed of SSL4Eco (arXiv 2504.18256); of what is left beside a test part, a tenth is for validation.
FOLDS = 10
SEED = 42
VALIDATION = 0.1

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of one division into training, validation and test.

    Attributes
    ----------
    train, val, test : numpy.ndarray of int64
        Positions of the samples, ascending; anything that makes a one-dimensional array of integers is taken.
    """

    train: Indices
    val: Indices
    test: Indices

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            given = np.asarray(getattr(self, part))
            if given.ndim != 1 or not (given.dtype.kind in "iu" or given.size == 0):
                raise InputError(
                    f"the part {part!r} of a fold is {given.dtype} of shape {given.shape}",
                    what_to_do="give positions of samples: a one-dimensional array of integers",
                )
            object.__setattr__(self, part, np.sort(given.astype(np.int64)))


def check_folds(folds: Sequence[Fold], samples: int) -> None:
    """Refuse folds that cannot be used: empty parts, rows that are not there, rows in two parts.

    Parameters
    ----------
    folds : sequence of Fold
    samples : int
        Number of samples that they divide.

    Raises
    ------
    InputError
        Naming the first fold and part that is wrong.
    """
    if not folds:
        raise InputError("there are no folds", what_to_do="give at least one, or leave them out for ten random folds")
    for number, fold in enumerate(folds):
        where = f"fold {number}"
        for part in ("train", "val", "test"):
            rows: Indices = getattr(fold, part)
            if not rows.size:
                raise InputError(
                    f"the part {part!r} is empty",
                    where=where,
                    what_to_do="give more locations, fewer folds or smaller blocks",
                    code="empty-split",
                )
            if rows[0] < 0 or rows[-1] >= samples:
                raise InputError(f"the part {part!r} names rows outside 0..{samples - 1}", where=where)
        together = np.concatenate([fold.train, fold.val, fold.test])
        if len(np.unique(together)) != len(together):
            raise InputError("a sample is in two parts, or twice in one", where=where, code="leak")


def places_of(lon: Sequence[float] | Floats, lat: Sequence[float] | Floats) -> Indices:
    """Number of each sample's place: samples with the very same coordinates share one.

    Parameters
    ----------
    lon, lat : array-like, shape (sample,)
        Degrees; longitudes 180 and -180 are the same.

    Returns
    -------
    numpy.ndarray of int64, shape (sample,)
        For the argument `groups` of `random_folds`.
    """
    x, y = _coordinates(lon, lat)
    return np.unique(np.stack([np.mod(x + 180.0, 360.0), y]), axis=1, return_inverse=True)[1].astype(np.int64).ravel()


def random_folds(
    samples: int,
    *,
    folds: int = FOLDS,
    seed: int = SEED,
    labels: Sequence[object] | npt.NDArray[np.generic] | None = None,
    groups: Sequence[int] | Indices | None = None,
) -> tuple[Fold, ...]:
    """Shuffled folds: each sample is in the test part once; of the rest a tenth is for validation.

    With `labels` and without `groups` this is the protocol of SSL4Eco for single-label tasks, without both for the
    others: 10 folds, seed 42.

    Parameters
    ----------
    samples : int
        Number of samples.
    folds : int
        Number of folds.
    seed : int
        Of all draws.
    labels : array-like, shape (sample,), optional
        Class of each sample: each test part then has about the shares of the whole.
    groups : array-like of int, shape (sample,), optional
        Samples of one group stay together: `places_of` keeps duplicates of a location from being in training and in
        test. The paper's own lists have such duplicates, and its folds tear them apart.

    Returns
    -------
    tuple of Fold

    Raises
    ------
    InputError
        If there are fewer samples or groups than folds, or a class has one member only: it cannot be learned and
        tested.
    """
    if folds < 2:
        raise InputError(f"{folds} folds cannot be made", what_to_do="ask for two or more")
    parts = samples if groups is None else len(np.unique(np.asarray(groups)))
    if parts < folds + 2:
        what = "samples" if groups is None else "places"
        raise InputError(
            f"{parts} {what} are too few for {folds} folds of training, validation and test",
            what_to_do=f"give at least {folds + 2} {what}, or ask for fewer folds",
            code="empty-split",
        )
    rows = np.arange(samples)
    classes = None if labels is None else np.unique(_checked_labels(labels, samples), return_inverse=True)[1].ravel()
    split: KFold | StratifiedKFold | GroupKFold | StratifiedGroupKFold
    if groups is None:
        split = (KFold if classes is None else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    else:
        split = (GroupKFold if classes is None else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    held = None if groups is None else np.asarray(groups)
    if classes is not None:
        counts = np.bincount(classes)
        if counts.max() < folds:
            raise InputError(
                f"the largest class has {counts.max()} members, fewer than the {folds} folds",
                what_to_do="ask for fewer folds",
                code="empty-split",
            )
    found = []
    for number, (rest, test) in enumerate(split.split(rows, classes, held)):
        draw = seed + number
        if held is None:
            train, val = next(ShuffleSplit(1, test_size=VALIDATION, random_state=draw).split(rest))
        else:
            one = GroupShuffleSplit(1, test_size=VALIDATION, random_state=draw)
            train, val = next(one.split(rest, groups=held[rest]))
        found.append(Fold(rest[train], rest[val], test))
    check_folds(found, samples)
    return tuple(found)


def block_folds(
    lon: Sequence[float] | Floats,
    lat: Sequence[float] | Floats,
    *,
    folds: int = FOLDS,
    seed: int = SEED,
    block_m: float = 100_000.0,
    buffer_m: float = 0.0,
    size_m: float = 2_640.0,
) -> tuple[Fold, ...]:
    """Folds by spatial blocks: no location of a block that is tested is learned from.

    Blocks are those of `geoeco.sampling.spatial_split`, of about equal area and without a seam at the antimeridian.
    They are shared out to the test parts at random so that these get about equal numbers of locations; the blocks left
    beside a test part are shared out again, a tenth for validation.

    Parameters
    ----------
    lon, lat : array-like, shape (sample,)
        Degrees.
    folds, seed
        As of `random_folds`. The folds do not depend on the order of the samples.
    block_m : float
        Side of the blocks, metres.
    buffer_m : float
        Least ground distance between footprints of different parts, metres. Of samples nearer than that, training
        gives way to validation, both to test; they are in no part of that fold.
    size_m : float
        Side of a footprint, metres: footprints of different parts never overlap. 0 looks at the points alone.

    Returns
    -------
    tuple of Fold
        Each sample is in the test part of one of them.

    Raises
    ------
    InputError
        If there are fewer blocks than folds, or the buffer leaves a part empty.
    """
    x, y = _coordinates(lon, lat)
    if folds < 2:
        raise InputError(f"{folds} folds cannot be made", what_to_do="ask for two or more")
    if not (block_m > 0 and buffer_m >= 0 and size_m >= 0):
        raise InputError("block_m must be positive, buffer_m and size_m not negative")
    codes = block_codes(x, y, block_m)
    blocks = len(np.unique(codes))
    if blocks < folds + 2:
        raise InputError(
            f"{len(codes)} locations lie in {blocks} blocks of {block_m:g} m, too few for {folds} folds",
            what_to_do=f"take smaller blocks or fewer folds: {folds} folds need {folds + 2} blocks",
            code="empty-split",
        )
    tested = hand_out_blocks(codes, np.full(folds, 1.0 / folds), seed)
    pairs = within_reach(x, y, reach_of_footprints(size_m, buffer_m) if size_m else buffer_m)
    either_way = np.concatenate([pairs, pairs[:, ::-1]])
    found = []
    for number in range(folds):
        part = np.full(len(codes), 2)
        rest = np.flatnonzero(tested != number)
        part[rest] = hand_out_blocks(codes[rest], np.array([1.0 - VALIDATION, VALIDATION]), seed + number)
        for loser in (1, 0):
            hit = (part[either_way[:, 0]] == loser) & (part[either_way[:, 1]] > loser)
            part[either_way[hit, 0]] = -1
        found.append(Fold(*(np.flatnonzero(part == position) for position in range(3))))
    check_folds(found, len(codes))
    return tuple(found)


def assert_apart(
    folds: Sequence[Fold], lon: Sequence[float] | Floats, lat: Sequence[float] | Floats, *, least_m: float = 0.0
) -> float:
    """Prove that no tested place is learned from, and say how near the two come.

    Parameters
    ----------
    folds : sequence of Fold
    lon, lat : array-like, shape (sample,)
        Degrees.
    least_m : float
        Great-circle distance that is asked for, metres.

    Returns
    -------
    float
        Least distance between a tested location and one of training or validation in the same fold, metres.

    Raises
    ------
    OutputError
        If the two are the same place or nearer than `least_m`.
    """
    vectors = unit_vectors(*_coordinates(lon, lat))
    chord = math.inf
    for fold in folds:
        seen = cKDTree(vectors[np.concatenate([fold.train, fold.val])])
        chord = min(chord, float(seen.query(vectors[fold.test])[0].min()))
    distance = 2.0 * EARTH_RADIUS_M * math.asin(min(chord / 2.0, 1.0))
    # a millimetre: what is left of equal coordinates after sine and cosine
    if distance < max(least_m, 1e-3):
        raise OutputError(
            f"a tested location lies {distance:.1f} m from one that its fold learns from",
            what_to_do="keep duplicates together (groups=places_of(lon, lat)), or make folds by blocks",
            code="leak",
        )
    return distance


def _coordinates(lon: Sequence[float] | Floats, lat: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    x, y = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"longitudes of shape {x.shape} and latitudes of shape {y.shape} do not fit together")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.abs(y) <= 90.0).all()):
        raise InputError("a location has no longitude and latitude in degrees", what_to_do="leave it out")
    return x, y


def _checked_labels(labels: Sequence[object] | npt.NDArray[np.generic], samples: int) -> npt.NDArray[np.generic]:
    given = np.asarray(labels)
    if given.shape != (samples,):
        raise InputError(f"{samples} samples have labels of shape {given.shape}", what_to_do="give one a sample")
    classes, counts = np.unique(given, return_counts=True)
    if (counts == 1).any():
        alone = ", ".join(map(str, classes[counts == 1][:5]))
        raise InputError(
            f"a class has one member only, which cannot be both learned and tested: {alone}",
            what_to_do="leave such classes out, or join them with others",
            code="empty-split",
        )
    return given
