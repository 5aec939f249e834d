"""Mixing with outliers: shares and areas, the loss by hand, and how well outliers are told."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError  # noqa: E402
from geoeco.training import OutlierMixing, tnr_at_tpr  # noqa: E402
from geoeco.training.outlier_exposure import exposure_targets, soft_cross_entropy  # noqa: E402


def mixed(op: str, count: int = 400, side: int = 12, seed: int = 0):
    torch.manual_seed(seed)
    return OutlierMixing(op)(torch.ones(count, 2, side, side), torch.zeros(count, 2, side, side))


def test_mixup_is_a_linear_mixture_by_the_share_that_is_kept():
    image, kept = mixed("mixup")
    assert torch.equal(image, kept[:, None, None, None].expand_as(image))
    # Beta(1, 1) is uniform
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(kept.var()) == pytest.approx(1 / 12, rel=0.15)


def test_cutmix_pastes_one_rectangle_and_keeps_exactly_the_area_that_is_left():
    image, kept = mixed("cutmix")
    assert set(torch.unique(image).tolist()) == {0.0, 1.0}
    assert torch.equal(image[:, 0], image[:, 1])
    assert torch.allclose(image[:, 0].flatten(1).mean(1), kept)
    for picture in image[:50, 0].numpy() == 0:
        rows, columns = picture.any(1), picture.any(0)
        assert np.array_equal(picture, rows[:, None] & columns[None, :])
    # Beta(2, 2) has few extremes; rectangles that reach over the border keep more
    assert 0.5 < float(kept.mean()) < 0.8


@pytest.mark.parametrize("op", ["mixup", "cutmix"])
def test_one_seed_gives_one_mixture(op):
    assert all(torch.equal(a, b) for a, b in zip(mixed(op, 5), mixed(op, 5), strict=True))
    assert not torch.equal(mixed(op, 5)[0], mixed(op, 5, seed=1)[0])


def test_targets_and_loss_of_a_case_worked_by_hand():
    shares = exposure_targets(torch.tensor([2, 0]), torch.tensor([0.7, 0.0]), 4)
    assert torch.allclose(shares, torch.tensor([[0.075, 0.075, 0.775, 0.075], [0.25] * 4]))
    logits = torch.tensor([[0.0, 0.0, math.log(3.0), 0.0], [5.0, 5.0, 5.0, 5.0]])
    # softmax: 1/6, 1/6, 1/2, 1/6; and 1/4 each
    first = -(0.225 * math.log(1 / 6) + 0.775 * math.log(1 / 2))
    assert float(soft_cross_entropy(logits, shares)) == pytest.approx((first + math.log(4)) / 2, rel=1e-6)


def test_what_is_kept_whole_has_the_loss_of_its_label():
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    found = soft_cross_entropy(logits, exposure_targets(labels, torch.ones(5), 3))
    assert float(found) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6)


def test_share_of_outliers_told_by_hand():
    known = np.arange(1, 21) / 20
    # 19 of 20 are accepted from 0.10 on
    assert tnr_at_tpr(known, [0.0, 0.09, 0.10, 0.5]) == 0.5
    assert tnr_at_tpr(known, [0.0, 0.05, 0.1], tpr=1.0) == pytest.approx(1 / 3)
    assert tnr_at_tpr([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert tnr_at_tpr([0.5, 0.5], [0.5]) == 0.0


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="op is"):
        OutlierMixing("blend")
    for numbers in ({"beta": 0.0}, {"alpha": -1.0}):
        with pytest.raises(InputError, match="must be positive"):
            OutlierMixing(**numbers)
    with pytest.raises(InputError, match="outliers of shape"):
        OutlierMixing()(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 5, 5))
    for inside, outside in (([], [0.1]), ([0.1], []), ([np.nan], [0.1])):
        with pytest.raises(InputError, match="must both be there"):
            tnr_at_tpr(inside, outside)
    with pytest.raises(InputError, match="tpr"):
        tnr_at_tpr([0.1], [0.1], tpr=0.0)
