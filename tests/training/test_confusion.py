"""Scores of class maps beside scikit-learn, torchmetrics and counting by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from geoeco.errors import InputError
from geoeco.training.confusion import BoundaryMatches, ConfusionMatrix, boundary_matches

NAMES = ("background", "ridge", "dry land", "river", "water")


@pytest.fixture
def maps():
    random = np.random.default_rng(3)
    truth = random.integers(0, 4, (40, 50))
    found = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, 4, truth.shape))
    truth[:5, :5] = 255
    return truth, found


def matrix(truth, found, **settings):
    return ConfusionMatrix.from_arrays(truth, found, NAMES, **settings)


def test_scores_are_those_of_scikit_learn(maps):
    truth, found = maps
    known = truth != 255
    confusion, numbers = matrix(truth, found), list(range(5))
    np.testing.assert_array_equal(
        confusion.counts, metrics.confusion_matrix(truth[known], found[known], labels=numbers)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {"labels": numbers[:4], "average": None}
        for ours, theirs in (
            (confusion.f1, metrics.f1_score),
            (confusion.precision, metrics.precision_score),
            (confusion.recall, metrics.recall_score),
            (confusion.iou, metrics.jaccard_score),
        ):
            np.testing.assert_allclose(ours[:4], theirs(truth[known], found[known], **arguments))
            assert np.isnan(ours[4])
    assert confusion.mcc == pytest.approx(metrics.matthews_corrcoef(truth[known], found[known]))
    assert confusion.accuracy == pytest.approx(metrics.accuracy_score(truth[known], found[known]))
    assert confusion.support.tolist() == [*np.bincount(truth[known]).tolist(), 0]


def test_tiles_add_up_to_the_whole(maps):
    truth, found = maps
    added = matrix(truth[:13], found[:13]) + matrix(truth[13:], found[13:])
    np.testing.assert_array_equal(added.counts, matrix(truth, found).counts)


def test_unscored_classes_are_left_out_but_predicting_them_is_a_miss():
    truth = np.array([0, 0, 0, 1, 1, 2])
    found = np.array([1, 2, 0, 0, 1, 2])
    confusion = matrix(truth, found, unscored=("background",))
    # the pixels of background are nobody's false alarms; the ridge that was called background is missed
    np.testing.assert_allclose(confusion.iou[1:3], [0.5, 1.0])
    np.testing.assert_allclose(confusion.recall[1:3], [0.5, 1.0])
    np.testing.assert_allclose(confusion.precision[1:3], [1.0, 1.0])
    assert np.isnan(confusion.iou[0])
    assert confusion.accuracy == pytest.approx(2 / 3)
    # three and a half... of four scored classes, two of which are not there
    assert confusion.mean(confusion.iou) == pytest.approx(1.5 / 4)
    assert confusion.mean(confusion.iou, "leave-out") == pytest.approx(0.75)


def test_an_ignored_class_is_left_out_of_every_mean_where_torchmetrics_counts_it_as_zero_in_one():
    """Trap 4: torchmetrics leaves the ignored class out of the mean IoU, and takes it as 0 into the mean F1."""
    truth, found = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 0])
    tensors = torch.from_numpy(found), torch.from_numpy(truth)
    assert float(multiclass_jaccard_index(*tensors, 4, average="macro", ignore_index=0)) == pytest.approx(2 / 3)
    assert float(multiclass_f1_score(*tensors, 4, average="macro", ignore_index=0)) == pytest.approx(0.8 / 2)
    confusion = ConfusionMatrix.from_arrays(truth, found, NAMES[:4], unscored=NAMES[:1])
    assert confusion.mean(confusion.iou, "leave-out") == pytest.approx(2 / 3)
    assert confusion.mean(confusion.f1, "leave-out") == pytest.approx(0.8)
    # as the authors have it: always over the same classes, of which two are not there
    assert confusion.mean(confusion.iou) == pytest.approx(2 / 9)
    assert confusion.mean(confusion.f1) == pytest.approx(0.8 / 3)


def test_a_class_that_is_only_predicted_has_iou_zero_and_does_not_count_as_present():
    confusion = matrix(np.array([1, 1]), np.array([1, 4]))
    assert confusion.iou[4] == 0
    assert np.isnan(confusion.recall[4])
    assert confusion.mean(confusion.iou, "leave-out") == 0.5


def test_correlation_of_one_class_alone_is_zero():
    assert matrix(np.ones(5, int), np.ones(5, int)).mcc == 0.0
    assert np.isnan(matrix(np.full(4, 255), np.zeros(4, int)).accuracy)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (np.zeros(3), np.zeros(4), "of shape"),
        (np.array([7]), np.array([0]), "truth has class 7"),
        (np.array([0]), np.array([-1]), "prediction has class -1"),
    ],
)
def test_maps_that_do_not_fit_are_refused(truth, found, message):
    with pytest.raises(InputError, match=message):
        matrix(truth, found)


def test_matrices_of_other_classes_are_refused():
    with pytest.raises(InputError, match="cannot be added"):
        _ = matrix(np.zeros(1), np.zeros(1)) + ConfusionMatrix(np.zeros((1, 1), int), ("a",))
    with pytest.raises(InputError, match="no class 'sea'"):
        matrix(np.zeros(1), np.zeros(1), unscored=("sea",))
    with pytest.raises(InputError, match="for 5 classes"):
        ConfusionMatrix(np.zeros((2, 2), int), NAMES)


# outlines


def by_hand(truth, found, classes, tolerance):
    """Every pixel of an outline beside every other one."""

    def known(y, x):
        return 0 <= y < truth.shape[0] and 0 <= x < truth.shape[1] and truth[y, x] != 255

    def outline(labels, number):
        return [
            (y, x)
            for y, x in np.ndindex(*labels.shape)
            if labels[y, x] == number
            and known(y, x)
            and any(known(a, b) and labels[a, b] != number for a, b in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)))
        ]

    def near(pixel, others):
        return any((pixel[0] - y) ** 2 + (pixel[1] - x) ** 2 <= tolerance**2 for y, x in others)

    scores = []
    for number in range(classes):
        ours, theirs = outline(truth, number), outline(found, number)
        recall = np.mean([near(p, theirs) for p in ours]) if ours else 0.0
        precision = np.mean([near(p, ours) for p in theirs]) if theirs else 0.0
        if not ours and not theirs:
            scores.append(np.nan)
        else:
            scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return scores


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 3.0])
def test_outlines_are_matched_as_by_hand(tolerance):
    yy, xx = np.mgrid[:20, :24]
    truth = np.where((yy - 9) ** 2 + (xx - 10) ** 2 < 40, 1, 0) + 2 * (xx > 18)
    found = np.where((yy - 11) ** 2 + (xx - 11) ** 2 < 40, 1, 0) + 2 * (xx > 17)
    truth[3:6, 15:22] = 255
    matches = boundary_matches(truth, found, 5, tolerance=tolerance)
    np.testing.assert_allclose(matches.f1, by_hand(truth, found, 5, tolerance))


def test_the_same_map_has_all_its_outlines_met_and_the_border_of_a_tile_is_none():
    labels = np.zeros((10, 10), int)
    labels[:, 5:] = 1
    same = boundary_matches(labels, labels, 3, tolerance=0.0)
    np.testing.assert_array_equal(same.f1, [1.0, 1.0, np.nan])
    assert same.truth.tolist() == [10, 10, 0]
    other = boundary_matches(labels, np.zeros_like(labels), 3, tolerance=2.0)
    np.testing.assert_array_equal((same + other).truth, [20, 20, 0])
    assert isinstance(same + other, BoundaryMatches)
    assert (same + other).f1[0] == pytest.approx(2 / 3)


def test_tiles_without_a_plane_are_refused():
    with pytest.raises(InputError, match="outlines of shapes"):
        boundary_matches(np.zeros(4), np.zeros(4), 2)
