"""The area of applicability: by hand, by brute force, and whatever the units, the batches and the folds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from geoeco.applicability import AreaOfApplicability, area_of_applicability, neighbours
from geoeco.applicability import dissimilarity as module
from geoeco.errors import InputError


def by_brute_force(train, new, folds, importance=None):
    """The definition, with all distances at once."""
    weights = np.ones(train.shape[1]) if importance is None else np.asarray(importance, float)
    mean, deviation = train.mean(axis=0), train.std(axis=0, ddof=1)
    points, asked = ((a - mean) / deviation * weights for a in (train, new))
    scale = pdist(points).mean()
    between = cdist(points, points)
    between[folds[:, None] == folds] = np.inf
    training = between.min(axis=1) / scale
    # hinges as R's fivenum has them
    ordered, n = np.sort(training), len(training)
    depth = ((n + 3) // 2) / 2
    lower = (ordered[int(np.floor(depth)) - 1] + ordered[int(np.ceil(depth)) - 1]) / 2
    upper = (ordered[::-1][int(np.floor(depth)) - 1] + ordered[::-1][int(np.ceil(depth)) - 1]) / 2
    threshold = training[training <= upper + 1.5 * (upper - lower)].max()
    return cdist(asked, points).min(axis=1) / scale, threshold


def clustered(seed=0, blocks=8, each=25, features=5):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(blocks, features))
    folds = np.repeat(np.arange(blocks), each)
    return centres[folds] + 0.7 * rng.normal(size=(blocks * each, features)), folds, rng


def test_a_case_worked_by_hand():
    # four points on a line, two folds: 0 and 1 | 3 and 7; mean 2.75, standard deviation 3.096
    train, folds = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([4, 4, 9, 9])
    fitted = AreaOfApplicability().fit(train, folds)
    deviation = np.sqrt((2.75**2 + 1.75**2 + 0.25**2 + 4.25**2) / 3)
    mean_distance = (1 + 3 + 7 + 2 + 6 + 4) / 6 / deviation
    assert fitted.mean_distance_ == pytest.approx(mean_distance, rel=1e-6)
    # from the nearest point of the other fold: 3, 2, 2, 6; in units of the mean distance of 23/6
    np.testing.assert_allclose(fitted.training_di_, np.array([3, 2, 2, 6]) * 6 / 23, rtol=1e-6)
    # hinges 2 and 4.5: nothing is above 8.25, so the threshold is the largest, 6
    assert fitted.threshold_ == pytest.approx(6 * 6 / 23, rel=1e-6)
    di, inside = fitted.predict(np.array([[7.0], [5.0], [12.9], [13.1], [np.nan]]))
    np.testing.assert_allclose(di, np.array([0, 2, 5.9, 6.1, np.nan]) * 6 / 23, rtol=1e-5)
    np.testing.assert_array_equal(inside, [True, True, True, False, False])


def test_an_outlying_training_point_does_not_widen_the_threshold():
    train = np.concatenate([np.arange(40.0), [400.0, 401.0]])[:, None]
    folds = np.concatenate([np.arange(40) % 2, [0, 1]])
    far = AreaOfApplicability().fit(np.concatenate([train[:-1], [[1000.0]]]), folds)
    assert far.training_di_.max() > 50 * far.threshold_


@pytest.mark.parametrize("importance", [None, [3.0, 1.0, 0.0, 0.5, 1.0]])
def test_it_is_the_definition(importance):
    train, folds, rng = clustered()
    new = rng.normal(size=(300, 5)) * 1.5
    di, inside = area_of_applicability(train, new, folds=folds, importance=importance)
    expected, threshold = by_brute_force(train, new, folds, importance)
    np.testing.assert_allclose(di, expected, rtol=1e-5)
    clear = np.abs(expected - threshold) > 1e-5
    np.testing.assert_array_equal(inside[clear], (expected <= threshold)[clear])
    assert 0.2 < inside.mean() < 0.999


def test_units_shifts_and_the_order_of_features_do_not_matter():
    train, folds, rng = clustered()
    new = rng.normal(size=(100, 5))
    di, inside = area_of_applicability(train, new, folds=folds, importance=[1, 2, 3, 4, 5])
    scale, shift = np.array([1000, 1e-3, -1, 7, 1e6]), np.array([5, -2, 0, 100, 1e7])
    order = [3, 1, 0, 4, 2]
    other = area_of_applicability(
        (train * scale + shift)[:, order],
        (new * scale + shift)[:, order],
        folds=folds,
        importance=10 * np.array([4, 2, 1, 5, 3]),
    )
    np.testing.assert_allclose(other[0], di, rtol=1e-4)
    assert (other[1] == inside).mean() > 0.98


def test_of_the_same_population_nearly_all_is_inside_and_of_a_shifted_one_nothing():
    rng = np.random.default_rng(3)
    train, folds = rng.normal(size=(2000, 6)), rng.integers(0, 10, 2000)
    fitted = AreaOfApplicability().fit(train, folds)
    within, shifted = rng.normal(size=(4000, 6)), rng.normal(size=(4000, 6)) + 6
    assert 0.97 < fitted.predict(within)[1].mean() < 1
    assert not fitted.predict(shifted)[1].any()


def test_neighbours_of_the_own_fold_do_not_count():
    """Points that come in tight groups of one block: random folds would call the rest of the space unknown."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(20, 3))
    groups = np.repeat(np.arange(20), 30)
    train = centres[groups] + 0.01 * rng.normal(size=(600, 3))
    spatial = AreaOfApplicability().fit(train, groups % 5)
    scattered = AreaOfApplicability().fit(train, np.arange(600) % 5)
    assert spatial.threshold_ > 10 * scattered.threshold_
    expected, threshold = by_brute_force(train, train, groups % 5)
    assert spatial.threshold_ == pytest.approx(threshold, rel=1e-5)
    assert expected.max() == 0


def test_as_many_components_as_features_change_nothing():
    train, folds, rng = clustered(features=7)
    new = rng.normal(size=(200, 7))
    plain, turned = AreaOfApplicability().fit(train, folds), AreaOfApplicability(32).fit(train, folds)
    np.testing.assert_allclose(turned.predict(new)[0], plain.predict(new)[0], rtol=1e-4, atol=1e-6)
    assert turned.threshold_ == pytest.approx(plain.threshold_, rel=1e-5)


def test_what_the_components_do_not_span_is_still_seen():
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(4, 40))
    train = rng.normal(size=(1500, 4)) @ mixing + 0.01 * rng.normal(size=(1500, 40))
    fitted = AreaOfApplicability(4).fit(train, rng.integers(0, 8, 1500))
    within = rng.normal(size=(500, 4)) @ mixing + 0.01 * rng.normal(size=(500, 40))
    assert fitted.predict(within)[1].mean() > 0.95
    # moved at right angles to all that varies in the training data
    away = np.linalg.svd(fitted.axes_)[2][-1] * fitted.deviation_
    assert not fitted.predict(within + 8 * away)[1].any()


def test_a_point_has_the_same_index_in_any_batch():
    train, folds, rng = clustered(features=60, each=60)
    new = rng.normal(size=(1000, 60)).astype(np.float32)
    fitted = AreaOfApplicability(16).fit(train, folds)
    di, inside = fitted.predict(new)
    for size in (1, 7, 300):
        parts = [fitted.predict(new[at : at + size]) for at in range(0, 600, size)]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts])[:600], di[:600])
    threads = fitted.predict(new.reshape(10, 100, 60), workers=2)
    assert threads[0].shape == (10, 100)
    np.testing.assert_array_equal(threads[0].ravel(), di)
    np.testing.assert_array_equal(threads[1].ravel(), inside)
    assert di.dtype == np.float32
    # the stored index and the stored threshold give the stored answer
    np.testing.assert_array_equal(di <= np.float32(fitted.threshold_), inside)


@pytest.mark.parametrize("components", [None, 3])
def test_it_reads_back_as_it_was(components):
    train, folds, rng = clustered()
    fitted = AreaOfApplicability(components).fit(train, folds, importance=[1, 0, 2, 3, 1])
    again = AreaOfApplicability.from_arrays({name: array.copy() for name, array in fitted.arrays().items()})
    new = rng.normal(size=(50, 5))
    new[3, 2] = np.inf
    for one, other in zip(fitted.predict(new), again.predict(new), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.threshold_ == fitted.threshold_
    assert all(array.flags["C_CONTIGUOUS"] for array in fitted.arrays().values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points", None),
        ("points", np.zeros((3, 9), np.float32)),
        ("points", np.zeros(3, np.float32)),
        ("mean", np.zeros(4)),
        ("mean", np.full(5, np.nan)),
        ("deviation", np.zeros(5)),
        ("kept", np.arange(5) + 3),
        ("kept", np.arange(5.0)),
        ("threshold", np.array([-1.0], np.float32)),
        ("mean_distance", np.array([0.0])),
        ("n_features", np.array([2.5])),
        ("axes", np.zeros((2, 5))),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, value):
    train, folds, _ = clustered()
    arrays = AreaOfApplicability().fit(train, folds).arrays()
    arrays = {key: array for key, array in arrays.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(InputError, match="not a stored area of applicability"):
        AreaOfApplicability.from_arrays(arrays)


def test_what_is_not_finite_and_what_does_not_vary_is_left_out_and_said():
    train, folds, rng = clustered()
    new = rng.normal(size=(40, 5))
    expected = area_of_applicability(train[:, :4], new[:, :4], folds=folds)
    spoilt = np.concatenate([train, np.full((3, 5), np.nan)])
    spoilt[:, 4] = 0.1 + 0.2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = area_of_applicability(spoilt, new, folds=np.concatenate([folds, [0, 0, 77]]))
    said = " ".join(str(one.message) for one in caught)
    assert "3 of 203 training points are not finite" in said
    assert "1 of 5 features do not vary" in said
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": np.zeros(200, int)}, "at least two"),
        ({"folds": np.r_[np.zeros(199, int), 1]}, "two points each"),
        ({"folds": np.arange(200) % 4 / 2}, "whole numbers"),
        ({"folds": np.zeros(10, int)}, "do not fit"),
        ({"importance": [1, 1, -1, 1, 1]}, "importance"),
        ({"importance": [0, 0, 0, 0, 0]}, "importance"),
        ({"importance": [1, np.nan, 1, 1, 1]}, "importance"),
        ({"importance": [1, 1]}, "importance"),
        ({"components": 0}, "components"),
        ({"train": np.ones((200, 5))}, "varies"),
        ({"train": np.full((200, 5), np.nan)}, "at least two"),
        ({"new": np.ones((3, 4))}, "4,"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_answered_is_refused(change, message):
    train, folds, rng = clustered()
    given = {"train": train, "new": rng.normal(size=(3, 5)), "folds": folds} | change
    with pytest.raises(InputError, match=message) as caught:
        area_of_applicability(given.pop("train"), given.pop("new"), **given)
    assert caught.value.what_to_do


def test_the_mean_distance_of_many_points_is_that_of_all_pairs_nearly(monkeypatch):
    points = np.random.default_rng(0).normal(size=(3000, 4))
    exact = pdist(points).mean()
    assert module._mean_distance(points) == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(module, "EXACT_UP_TO", 100)
    monkeypatch.setattr(module, "PAIRS", 2**18)
    assert module._mean_distance(points) == pytest.approx(exact, rel=3e-3)
    assert module._mean_distance(points) == module._mean_distance(points)


@pytest.mark.parametrize("coordinates", [3, 24])
def test_neighbours_by_tree_and_by_products_are_those_of_all_distances(coordinates, monkeypatch):
    monkeypatch.setattr(neighbours, "_POINTS", 100)
    rng = np.random.default_rng(6)
    points, queries = rng.normal(size=(650, coordinates)), rng.normal(size=(300, coordinates))
    every = cdist(queries, points)
    np.testing.assert_allclose(neighbours.Nearest(points)(queries), every.min(axis=1), rtol=1e-12)
    assert neighbours.Nearest(points)(points[40:41]) == 0
    for folds in (rng.integers(0, 7, 650), np.arange(650) // 300, (points[:, 0] > 2.5).astype(int)):
        between = cdist(points, points)
        between[folds[:, None] == folds] = np.inf
        np.testing.assert_allclose(neighbours.between_folds(points, folds), between.min(axis=1), rtol=1e-12)
