"""Contrastive losses over labels: the formulas one by one, rows without a positive, short formats, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from torch.nn import functional  # noqa: E402

from geoeco.errors import InputError  # noqa: E402
from geoeco.training import InfoNCE, SupCon  # noqa: E402


def drawn(*shape: int, seed: int = 0, length: float = 3.0):
    return length * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_loops(features: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """L_out of Khosla et al., equation 2, term by term, in float64."""
    views = features.reshape(-1, features.shape[-1]).astype(np.float64)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    of = np.repeat(labels, features.shape[1])
    rows = []
    for i, z in enumerate(views):
        others = [a for a in range(len(views)) if a != i]
        positives = [p for p in others if of[p] == of[i]]
        if positives:
            total = sum(math.exp(z @ views[a] / temperature) for a in others)
            rows.append(
                -sum(math.log(math.exp(z @ views[p] / temperature) / total) for p in positives) / len(positives)
            )
    return sum(rows) / len(rows)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_supervised_contrast_is_the_formula_term_by_term(views):
    features, labels = drawn(7, views, 5), torch.tensor([2, 0, 2, 0, 2, 5, 7])
    expected = by_loops(features.numpy(), labels.numpy(), 0.2)
    assert float(SupCon(0.2)(features, labels)) == pytest.approx(expected, rel=1e-5)


def test_supervised_contrast_of_a_case_worked_by_hand():
    # two samples of one class at right angles and one of another class opposite to the first, t = 1:
    # rows 0 and 1 have one positive with cosine 0; the others in their sums are cosines -1 and 0
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
    first = math.log(math.exp(0) + math.exp(-1))
    second = math.log(math.exp(0) + math.exp(0))
    loss = SupCon(1.0)(features, torch.tensor([0, 0, 1]))
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)


def test_rows_without_a_positive_count_neither_in_the_sum_nor_in_the_mean():
    features = drawn(4, 1, 6).requires_grad_()
    loss = SupCon(0.5)(features, torch.tensor([0, 0, 1, 2]))
    expected = by_loops(features.detach().numpy(), np.array([0, 0, 1, 2]), 0.5)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert torch.isfinite(features.grad).all()
    # those are negatives all the same
    assert features.grad[2].abs().max() > 0


def test_a_batch_without_any_positive_has_no_loss_and_no_gradient():
    features = drawn(3, 1, 4).requires_grad_()
    loss = SupCon()(features, torch.tensor([0, 1, 2]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(features.grad.abs().max()) == 0.0


def test_with_one_image_of_each_kind_a_thing_the_loss_is_that_of_clip():
    first, second, ids = drawn(6, 8), drawn(6, 8, seed=1), torch.tensor([4, 1, 9, 3, 7, 2])
    logits = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T / 0.07
    target = torch.arange(6)
    expected = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    # the order of the second kind does not matter: ids say what belongs together
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    found = InfoNCE()(first, second[order], ids, ids[order])
    assert float(found.total) == pytest.approx(float(expected), rel=1e-5)
    assert float(found.accuracy) == pytest.approx(float((logits.argmax(1) == target).float().mean()))


def test_several_near_images_of_a_thing_are_all_its_positives_and_strangers_are_negatives_only():
    first, second = drawn(3, 4), drawn(5, 4, seed=1)
    first_id, second_id = torch.tensor([10, 20, 30]), torch.tensor([20, 10, 20, 10, 40])

    def direction(x, y, x_id, y_id):
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x.numpy(), y.numpy()))
        share = np.exp(x @ y.T / 0.5)
        share /= share.sum(1, keepdims=True)
        rows = [
            -np.mean(np.log(row[y_id.numpy() == thing]))
            for row, thing in zip(share, x_id.numpy(), strict=True)
            if thing in y_id
        ]
        return np.mean(rows)

    expected = (direction(first, second, first_id, second_id) + direction(second, first, second_id, first_id)) / 2
    assert float(InfoNCE(0.5)(first, second, first_id, second_id).total) == pytest.approx(expected, rel=1e-5)


def test_accuracy_does_not_count_features_that_collapsed():
    collapsed = torch.ones(4, 3)
    assert float(InfoNCE()(collapsed, collapsed, torch.arange(4), torch.arange(4)).accuracy) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_short_formats_and_low_temperatures_give_finite_losses_and_gradients(dtype):
    features = drawn(8, 2, 16, length=200.0).to(getattr(torch, dtype)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SupCon(0.01)(features, torch.arange(8) // 2)
        cross = InfoNCE(0.01)(features[:, 0], features[:, 1], torch.arange(8), torch.arange(8)).total
    (loss + cross).backward()
    assert loss.dtype == cross.dtype == torch.float32
    assert bool(torch.isfinite(features.grad.float()).all())
    exact = SupCon(0.01)(features.detach().float(), torch.arange(8) // 2)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-6)


def test_what_makes_no_contrast_is_refused():
    ids = torch.arange(2)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="temperature"):
            SupCon(temperature)
    for shape, count in (((2, 3), 2), ((2, 1, 3), 3), ((1, 1, 3), 1)):
        with pytest.raises(InputError, match="features of shape"):
            SupCon()(torch.ones(shape), torch.arange(count))
    with pytest.raises(InputError, match="features and ids"):
        InfoNCE()(torch.ones(2, 3), torch.ones(2, 4), ids, ids)
    with pytest.raises(InputError, match="no thing is seen in both"):
        InfoNCE()(torch.ones(2, 3), torch.ones(2, 3), ids, ids + 2)
