"""Losses of segmentation: worked by hand, beside segmentation-models-pytorch, and what must not count."""

from __future__ import annotations

import importlib.metadata
import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from geoeco.errors import InputError
from geoeco.training.segmentation_losses import SegmentationLoss, dice_loss, focal_loss, level_entropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(2, 16, 12, 10, generator=generator)
    target = torch.randint(0, 12, (2, 12, 10), generator=generator)
    return logits, target


def test_focal_of_one_pixel_is_summed_over_classes():
    """Logits 0 and ln 3: q of the true class is 3/4, that of the false one 1/2."""
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)
    expected = (1 / 4) ** 2 * math.log(4 / 3) + (1 / 2) ** 2 * math.log(2)
    assert focal_loss(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).item() == pytest.approx(expected)


def test_dice_of_two_pixels_by_hand():
    """Two classes, probabilities (.75, .25) and (.5, .5), truth 0 and 1."""
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]).T.reshape(1, 2, 1, 2)
    target = torch.tensor([[[0, 1]]])
    first = 1 - 2 * 0.75 / (0.75 + 0.5 + 1)
    second = 1 - 2 * 0.5 / (0.25 + 0.5 + 1)
    assert dice_loss(logits, target).item() == pytest.approx((first + second) / 2)


def test_dice_is_that_of_smp_and_shrinks_with_the_classes_that_a_batch_lacks(batch):
    logits, target = batch
    theirs = smp.losses.DiceLoss("multiclass")(logits, target)
    torch.testing.assert_close(dice_loss(logits, target), theirs)
    # trap 2: four of the sixteen classes are not there, and are divided by all the same
    twelve = dice_loss(logits, target) * 16 / 12
    softmax = logits.softmax(1)
    by_class = [
        1 - 2 * softmax[:, c][target == c].sum() / (softmax[:, c].sum() + (target == c).sum()) for c in range(12)
    ]
    torch.testing.assert_close(twelve, torch.stack(by_class).mean())


def test_focal_is_that_of_smp_times_the_number_of_classes_where_smp_averages(batch):
    logits, target = batch
    theirs = smp.losses.FocalLoss("multiclass", gamma=2.0)(logits, target)
    version = tuple(int(part) for part in importlib.metadata.version("segmentation_models_pytorch").split(".")[:2])
    assert (focal_loss(logits, target) / theirs).item() == pytest.approx(16 if version >= (0, 6) else 1, rel=1e-5)


def test_the_published_loss_needs_half_dice_and_eight_focal_of_smp_06(batch):
    logits, target = batch
    ours = SegmentationLoss()(logits, target)
    theirs = 0.5 * smp.losses.DiceLoss("multiclass")(logits, target) + 8.0 * smp.losses.FocalLoss("multiclass")(
        logits, target
    )
    torch.testing.assert_close(ours, theirs)


def test_entropy_lowers_the_loss_most_where_weights_are_equal(batch):
    logits, target = batch
    loss = SegmentationLoss()
    equal, single = torch.full((2, 4), 0.25), torch.tensor([[1.0, 0, 0, 0]] * 2)
    assert level_entropy(equal).item() == pytest.approx(math.log(4), abs=1e-6)
    assert level_entropy(single).item() == pytest.approx(0, abs=1e-6)
    assert (loss(logits, target) - loss(logits, target, equal)).item() == pytest.approx(0.01 * math.log(4), abs=1e-6)
    assert loss(logits, target, equal) < loss(logits, target, single)


@pytest.mark.parametrize("shares", [{"dice": 1.0, "focal": 0.0}, {"focal": 1.0, "dice": 0.0}, {"cross_entropy": 1.0}])
def test_pixels_without_a_label_change_nothing_and_have_no_gradient(batch, shares):
    logits, target = batch
    loss = SegmentationLoss(**shares)
    hidden = target.clone()
    hidden[:, :5] = 255
    logits.requires_grad_()
    value = loss(logits, hidden)
    value.backward()
    assert logits.grad[:, :, :5].abs().max() == 0
    assert logits.grad[:, :, 5:].abs().max() > 0
    torch.testing.assert_close(value, loss(logits[:, :, 5:], target[:, 5:]))


def test_a_batch_without_any_label_has_a_loss_of_zero_that_can_be_learned_from(batch):
    logits, _ = batch
    logits.requires_grad_()
    value = SegmentationLoss(cross_entropy=1.0)(logits, torch.full((2, 12, 10), 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_background_is_learned_as_any_other_class(batch):
    logits, target = batch
    worse = logits.clone()
    worse[:, 0] -= 3.0
    onlybackground = torch.where(target == 0, target, 255)
    assert SegmentationLoss()(worse, onlybackground) > SegmentationLoss()(logits, onlybackground)


def test_class_weights_weigh_classes_and_equal_ones_change_nothing(batch):
    logits, target = batch
    shares = {"dice": 0.5, "focal": 0.5, "cross_entropy": 1.0}
    plain = SegmentationLoss(**shares)(logits, target)
    torch.testing.assert_close(SegmentationLoss(**shares, class_weights=(3.0,) * 16)(logits, target), plain)
    weights = torch.linspace(0.5, 2.0, 16)
    weighted = SegmentationLoss(dice=0, focal=0, cross_entropy=1, class_weights=tuple(weights.tolist()))
    torch.testing.assert_close(weighted(logits, target), functional.cross_entropy(logits, target, weight=weights))
    theirs = smp.losses.DiceLoss("multiclass", class_weights=weights.tolist())(logits, target)
    torch.testing.assert_close(dice_loss(logits, target, weights), theirs)


@pytest.mark.parametrize(
    "arguments",
    [{"dice": -1.0}, {"dice": 0, "focal": 0}, {"class_weights": (1.0, 0.0)}, {"class_weights": (math.inf,)}],
)
def test_losses_that_make_no_sense_are_refused(arguments):
    with pytest.raises(InputError):
        SegmentationLoss(**arguments)
