"""Probes against scikit-learn, torchmetrics and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

import torchmetrics.functional as metrics  # noqa: E402
from sklearn.linear_model import LogisticRegression, Ridge  # noqa: E402
from sklearn.metrics import f1_score  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # noqa: E402

from geoeco.errors import InputError  # noqa: E402
from geoeco.training import Fold, knn_probe, linear_probe, random_folds, scores  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world():
    """Features of 400 samples with what can be read from them: a class, labels, values, shares."""
    rng = np.random.default_rng(7)
    features = rng.normal(size=(400, 12)).astype(np.float32)
    mixing = rng.normal(size=(12, 4))
    signal = features @ mixing + 0.3 * rng.normal(size=(400, 4))
    shares = 1 / (1 + np.exp(-signal))
    return {
        "features": features,
        "single-label": np.array(["beech", "oak", "pine", "reed"])[signal.argmax(axis=1)],
        "multi-label": (signal > 1).astype(int),
        "regression": signal[:, :2] * [1.0, 500.0] + [0.0, 3000.0],
        "distribution": shares / shares.sum(axis=1, keepdims=True),
    }


FOLDS = random_folds(400, folds=4)
FAST = {"folds": FOLDS, "lr": 0.02}
TASKS = ("single-label", "multi-label", "regression", "distribution")


def test_a_linear_probe_finds_the_classes_that_logistic_regression_finds(world):
    x, y = world["features"], world["single-label"]
    probe = linear_probe(x, y, task="single-label", **FAST)
    assert probe.outputs == ("beech", "oak", "pine", "reed")
    for fold, result in zip(FOLDS, probe.folds, strict=True):
        oracle = LogisticRegression(max_iter=1000).fit(x[fold.train], y[fold.train])
        expected = f1_score(y[fold.test], oracle.predict(x[fold.test]), average="macro")
        assert result.scores["macro_f1"] == pytest.approx(expected, abs=0.06)
        assert expected > 0.8
        np.testing.assert_allclose(result.prediction.sum(axis=1), 1, atol=1e-5)


def test_a_linear_probe_finds_the_values_that_ridge_finds_in_their_own_units(world):
    x, y = world["features"], world["regression"]
    probe = linear_probe(x, y, task="regression", names=("temperature", "precipitation"), **FAST)
    for fold, result in zip(FOLDS, probe.folds, strict=True):
        oracle = Ridge(alpha=1e-3).fit(x[fold.train], y[fold.train]).predict(x[fold.test])
        assert result.scores["mae:precipitation"] == pytest.approx(np.abs(oracle - y[fold.test])[:, 1].mean(), rel=0.1)
        assert result.scores["r2:temperature"] > 0.97
    assert 50 < probe.mean["mae:precipitation"] < 200
    assert probe.mean["r2"] == pytest.approx(
        (probe.mean["r2:temperature"] + probe.mean["r2:precipitation"]) / 2, abs=1e-9
    )


def test_labels_and_shares_are_learned_far_above_chance(world):
    options = {"folds": FOLDS[:1], "lr": 0.02}
    labels = linear_probe(world["features"], world["multi-label"], task="multi-label", **options)
    assert labels.mean["micro_map"] > 0.93 > world["multi-label"].mean() + 0.3
    shares = linear_probe(world["features"], world["distribution"], task="distribution", **options)
    assert shares.mean["r2"] > 0.9
    for result in shares.folds:
        np.testing.assert_allclose(result.prediction.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_are_those_of_scikit_learn(world, task):
    x, y = world["features"], world[task]
    probe = knn_probe(x, y, task=task, folds=FOLDS[:1], k=7)

    def weights(distance):
        return np.exp((1 - distance) / 0.07)

    fold = FOLDS[0]
    if task == "single-label":
        oracle = KNeighborsClassifier(7, metric="cosine", weights=weights).fit(x[fold.train], y[fold.train])
        expected = oracle.predict_proba(x[fold.test])
    else:
        oracle = KNeighborsRegressor(7, metric="cosine", weights=weights).fit(x[fold.train], y[fold.train])
        expected = oracle.predict(x[fold.test])
    np.testing.assert_allclose(probe.folds[0].prediction, expected, rtol=2e-4, atol=2e-5)


def test_neighbours_of_distributions_give_distributions_as_they_are():
    """Passed through a sigmoid, as in the paper's code, shares are flattened and R2 falls below zero (trap 31)."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6))
    shares = np.eye(8)[rng.integers(0, 8, 60)]
    probe = knn_probe(
        np.tile(features[:60], (2, 1)),
        np.tile(shares, (2, 1)),
        task="distribution",
        folds=[Fold(np.arange(60), np.arange(60, 80), np.arange(80, 120))],
        k=1,
    )
    np.testing.assert_allclose(probe.folds[0].prediction, shares[20:], atol=1e-6)
    assert probe.mean["r2"] == pytest.approx(1)
    flattened = 1 / (1 + np.exp(-shares[20:]))
    flattened /= flattened.sum(axis=1, keepdims=True)
    assert scores("distribution", shares[20:], flattened)["r2"] < 0.2


def test_the_number_of_neighbours_is_chosen_on_the_validation_part_alone(world):
    x, y = world["features"], world["regression"]
    chosen = [r.chosen["k"] for r in knn_probe(x, y, task="regression", folds=FOLDS, k=(1, 5, 30)).folds]
    for fold, k in zip(FOLDS, chosen, strict=True):
        on_validation = Fold(fold.train, fold.test, fold.val)
        r2 = {n: knn_probe(x, y, task="regression", folds=[on_validation], k=n).mean["r2"] for n in (1, 5, 30)}
        assert k == max(r2, key=r2.get)
    changed = y.copy()
    changed[np.concatenate([fold.test for fold in FOLDS[:1]])] = 0
    assert knn_probe(x, changed, task="regression", folds=FOLDS[:1], k=(1, 5, 30)).folds[0].chosen["k"] == chosen[0]


def test_more_neighbours_than_training_samples_are_not_tried():
    x = np.random.default_rng(0).normal(size=(12, 3))
    fold = Fold(np.arange(6), [6, 7, 8], [9, 10, 11])
    assert knn_probe(x, np.arange(12.0), task="regression", folds=[fold]).folds[0].chosen["k"] <= 5
    with pytest.raises(InputError, match="6 training samples, fewer than k=7"):
        knn_probe(x, np.arange(12.0), task="regression", folds=[fold], k=7)


def test_targets_are_scaled_by_the_training_part_only(world):
    """What lies in the test part cannot reach the training (trap 36): extreme test targets leave predictions alone."""
    x, y = world["features"], world["regression"].copy()
    before = linear_probe(x, y, task="regression", folds=FOLDS[:1], max_epochs=9).folds[0].prediction
    y[FOLDS[0].test] = 1e7
    after = linear_probe(x, y, task="regression", folds=FOLDS[:1], max_epochs=9).folds[0].prediction
    np.testing.assert_array_equal(after, before)


def test_the_last_weights_are_tested_and_the_best_ones_on_request(world):
    """With a rate far too high the loss rises again at once: the last epoch is not the best (trap 33)."""
    options = {"task": "single-label", "folds": FOLDS[:1], "lr": 1.0, "patience": 3}
    last = linear_probe(world["features"], world["single-label"], **options)
    best = linear_probe(world["features"], world["single-label"], **options, use="best")
    chosen = last.folds[0].chosen
    assert chosen["epochs"] == chosen["best_epoch"] + 3
    assert best.folds[0].chosen == chosen
    assert not np.array_equal(last.folds[0].prediction, best.folds[0].prediction)
    stopped = linear_probe(world["features"], world["single-label"], **options | {"max_epochs": chosen["best_epoch"]})
    np.testing.assert_array_equal(stopped.folds[0].prediction, best.folds[0].prediction)


def test_training_ends_after_patience_epochs_without_a_lower_loss_and_at_the_latest_after_max_epochs(world):
    x, y = world["features"], world["single-label"]
    probe = linear_probe(x, y, task="single-label", folds=FOLDS[:1], max_epochs=4)
    assert probe.folds[0].chosen["epochs"] == 4
    chosen = linear_probe(x, y, task="single-label", folds=FOLDS[:1], lr=0.3).folds[0].chosen
    assert chosen["epochs"] == chosen["best_epoch"] + 10 < 1000


def test_the_seed_decides_the_result(world):
    options = {"task": "single-label", "folds": FOLDS[:2], "max_epochs": 3}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (
        linear_probe(world["features"], world["single-label"], seed=seed, **options) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    for a, b, c in zip(first.folds, again.folds, other.folds, strict=True):
        np.testing.assert_array_equal(a.prediction, b.prediction)
        assert not np.array_equal(a.prediction, c.prediction)


def test_scaled_features_do_not_depend_on_their_units(world):
    units = np.geomspace(1e-3, 1e3, 12)
    options = {"task": "single-label", "folds": FOLDS[:1], "max_epochs": 20, "scale": True}
    a = linear_probe(world["features"], world["single-label"], **options)
    b = linear_probe(world["features"] * units + 5, world["single-label"], **options)
    np.testing.assert_allclose(a.folds[0].prediction, b.folds[0].prediction, atol=2e-3)


def test_a_positive_weight_finds_more_of_what_is_rare(world):
    rare = (world["multi-label"].sum(axis=1, keepdims=True) >= 3).astype(int)
    options = {"task": "multi-label", "folds": FOLDS, "max_epochs": 30, "lr": 0.01}
    plain, weighted = (
        linear_probe(world["features"], rare, positive_weight=weight, **options) for weight in (None, 12)
    )
    given = [(np.concatenate([r.prediction for r in p.folds]) > 0.5).sum() for p in (plain, weighted)]
    assert given[1] > 1.3 * given[0]
    with pytest.raises(InputError, match="positive_weight"):
        linear_probe(world["features"], world["single-label"], task="single-label", positive_weight=12)


def test_spread_and_mean_are_over_folds(world):
    probe = linear_probe(world["features"], world["single-label"], task="single-label", folds=FOLDS, max_epochs=5)
    values = [fold.scores["accuracy"] for fold in probe.folds]
    assert probe.mean["accuracy"] == pytest.approx(np.mean(values))
    assert probe.sd["accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert probe.n["accuracy"] == 4
    alone = linear_probe(world["features"], world["single-label"], task="single-label", folds=FOLDS[:1], max_epochs=2)
    assert alone.sd["accuracy"] is None


def test_the_folds_of_the_paper_are_used_when_none_are_given(world):
    probe = knn_probe(world["features"], world["single-label"], task="single-label", k=5)
    expected = random_folds(400, labels=world["single-label"])
    assert len(probe.folds) == 10
    for fold, result in zip(expected, probe.folds, strict=True):
        np.testing.assert_array_equal(fold.test, result.test)


def test_scores_agree_with_torchmetrics():
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.ones(5), 200)
    classes = rng.integers(0, 4, 200)  # class 4 never occurs, but is predicted
    found = scores("single-label", classes, probabilities)
    as_tensors = torch.from_numpy(probabilities), torch.from_numpy(classes)
    assert found["macro_f1"] == pytest.approx(
        float(metrics.classification.multiclass_f1_score(*as_tensors, num_classes=5, average="macro")), abs=1e-6
    )
    assert found["accuracy"] == pytest.approx(
        float(metrics.classification.multiclass_accuracy(*as_tensors, num_classes=5, average="micro")), abs=1e-6
    )
    labels = rng.integers(0, 2, (200, 5))
    found = scores("multi-label", labels, probabilities)
    as_tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
    for name, function, average in (
        ("micro_f1", metrics.classification.multilabel_f1_score, "micro"),
        ("macro_f1", metrics.classification.multilabel_f1_score, "macro"),
        ("micro_map", metrics.classification.multilabel_average_precision, "micro"),
    ):
        assert found[name] == pytest.approx(float(function(*as_tensors, num_labels=5, average=average)), abs=1e-6), name
    truth = rng.normal(size=(200, 3)) * [1, 10, 100]
    predicted = truth + rng.normal(size=(200, 3))
    found = scores("regression", truth, predicted, names=("a", "b", "c"))
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    assert found["r2"] == pytest.approx(float(metrics.r2_score(*pair)), abs=1e-9)
    assert found["mae"] == pytest.approx(float(metrics.mean_absolute_error(*pair)), abs=1e-9)
    assert found["rmse:b"] == pytest.approx(
        float(metrics.mean_squared_error(pair[0][:, 1], pair[1][:, 1], squared=False))
    )


def test_small_logits_are_refused_and_never_read_as_probabilities():
    """torchmetrics applies a sigmoid only where a value leaves 0..1 (trap 38); here the caller says what they are."""
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    with pytest.raises(InputError, match="are not probabilities"):
        scores("multi-label", labels, np.array([[2.0, -1.0], [0.1, 0.4], [0.2, 0.3]]))
    # logits of a trained layer all within 0..1 are still turned to probabilities by the probe: 0.5 < p < 0.74
    x = np.full((60, 1), 1.0)
    y = np.ones((60, 2))
    probe = linear_probe(x, y, task="multi-label", folds=random_folds(60, folds=2), max_epochs=1)
    assert (probe.folds[0].prediction > 0).all()
    assert (probe.folds[0].prediction < 1).all()


def test_a_label_is_given_above_a_probability_not_above_a_logit():
    """A logit of 0.5 is a probability of 0.62 (trap 34)."""
    labels = np.array([[1], [1], [0], [0]])
    probabilities = np.array([[0.55], [0.7], [0.2], [0.1]])
    assert scores("multi-label", labels, probabilities)["micro_f1"] == 1
    assert scores("multi-label", labels, probabilities, threshold=0.622)["micro_f1"] == pytest.approx(2 / 3)


def test_where_no_label_passes_none_is_given():
    """Neither a label that stands in (trap 34) nor a sample that is dropped because it bears none (trap 37)."""
    labels = np.array([[1, 0], [0, 0], [0, 1]])
    nothing = scores("multi-label", labels, np.full((3, 2), 0.4))
    assert nothing["micro_f1"] == 0
    one_too_many = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    assert scores("multi-label", labels, one_too_many)["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))


def test_scores_that_are_not_defined_are_no_numbers_and_are_not_averaged():
    constant = scores("regression", np.array([[1.0, 1], [1, 2], [1, 3]]), np.array([[1.0, 1], [2, 2], [1, 3]]))
    assert np.isnan(constant["r2:0"])
    assert constant["r2"] == constant["r2:1"] == 1
    assert np.isnan(scores("multi-label", np.zeros((3, 2)), np.full((3, 2), 0.1))["micro_map"])
    x = np.random.default_rng(0).normal(size=(8, 3))
    y = np.array([0.0, 1, 2, 3, 4, 4, 5, 6])
    folds = [Fold([0, 1, 2], [3], [4, 5]), Fold([0, 1, 2], [3], [6, 7])]
    probe = knn_probe(x, y, task="regression", folds=folds, k=1)
    assert probe.n == {"r2": 1, "mae": 2, "rmse": 2}
    assert probe.sd["r2"] is None


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"features": np.zeros((0, 3))}, "features of shape"),
        ({"features": np.full((20, 3), np.nan)}, "20 of 20 samples are not finite"),
        ({"targets": np.arange(19)}, "20 samples have targets"),
        ({"targets": ["a"] * 20}, "all samples are of the class a"),
        ({"targets": ["a", None] * 10}, "none missing"),
        ({"task": "ranking"}, "no task 'ranking'"),
        ({"task": "regression", "targets": ["a", "b"] * 10}, "must be numbers"),
        ({"task": "regression", "targets": [1, np.nan] * 10}, "10 of 20 samples are not finite"),
        ({"task": "regression", "targets": np.arange(20), "names": ("a", "b")}, "1 outputs have 2 names"),
        ({"task": "multi-label", "targets": np.full((20, 2), 0.5)}, "0 or 1"),
        ({"task": "distribution", "targets": np.full((20, 2), 0.6)}, "sum to one"),
        ({"folds": [Fold([], [1], [2])]}, "'train' is empty"),
        ({"folds": []}, "no folds"),
    ],
)
def test_what_cannot_be_probed_is_refused(probe, change, what):
    given = {
        "features": np.random.default_rng(0).normal(size=(20, 3)),
        "targets": ["a", "b"] * 10,
        "task": "single-label",
        "folds": [Fold(np.arange(10), np.arange(10, 14), np.arange(14, 20))],
    } | change
    features, targets = given.pop("features"), given.pop("targets")
    with pytest.raises(InputError, match=what):
        probe(features, targets, **given)


def test_features_that_have_collapsed_are_said_to_have():
    with pytest.raises(InputError, match="20 of 20 feature vectors are zero"):
        knn_probe(np.zeros((20, 3)), np.arange(20.0), task="regression", folds=random_folds(20, folds=2))
