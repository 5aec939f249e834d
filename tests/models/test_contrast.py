"""Losses, gradients, queues and key branch of SeCo and MoCo, against NumPy and against cases worked by hand."""

from __future__ import annotations

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from geoeco.errors import InputError
from geoeco.models import MoCo, SeCo, create_backbone
from geoeco.models.backbones import SplitBatchNorm2d

BANDS, SIDE, FEATURES, DIM, BATCH, QUEUE = 3, 2, 6, 5, 4, 8


class Flat(nn.Module):
    """A linear backbone without batch normalisation."""

    def __init__(self, pixels: int = BANDS * SIDE * SIDE, num_features: int = FEATURES) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = nn.Linear(pixels, num_features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(image.flatten(1))


class Pixels(nn.Module):
    """The image itself as features, and a layer that splits batches beside it if asked."""

    def __init__(self, num_features: int, splits: int = 1) -> None:
        super().__init__()
        self.num_features = num_features
        if splits > 1:
            self.beside = SplitBatchNorm2d(nn.BatchNorm2d(1), splits)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)


def small(kind: type[SeCo] | type[MoCo], **settings) -> SeCo | MoCo:
    torch.manual_seed(7)
    return kind(**{"backbone": Flat(), "dim": DIM, "queue_size": QUEUE, **settings})


def views(n: int, *, batch: int = BATCH, bands: int = BANDS, side: int = SIDE, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, bands, side, side, generator=draw) for _ in range(n)]


def bare_heads(model: SeCo | MoCo) -> SeCo | MoCo:
    """Without projections: what is contrasted is the features."""
    model.heads = nn.ModuleList(nn.Identity() for _ in model.heads)
    model.key_heads = nn.ModuleList(nn.Identity() for _ in model.key_heads)
    return model


# --- the reference: momentum contrast in NumPy, gradients by hand


def branch(backbone: nn.Module, heads: nn.ModuleList) -> dict[str, np.ndarray]:
    named = {f"b.{name}": value for name, value in backbone.named_parameters()}
    named |= {f"h.{name}": value for name, value in heads.named_parameters()}
    return {name: value.detach().numpy().astype(np.float64) for name, value in named.items()}


def encode(weights: dict[str, np.ndarray], image: torch.Tensor) -> np.ndarray:
    flat = image.flatten(1).numpy().astype(np.float64)
    return flat @ weights["b.linear.weight"].T + weights["b.linear.bias"]


def project(weights: dict[str, np.ndarray], i: int, features: np.ndarray) -> tuple[np.ndarray, ...]:
    hidden = features @ weights[f"h.{i}.0.weight"].T + weights[f"h.{i}.0.bias"]
    rectified = np.maximum(hidden, 0)
    raw = rectified @ weights[f"h.{i}.2.weight"].T + weights[f"h.{i}.2.bias"]
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    return raw / length, length, hidden, rectified


def reference_step(query, key, queues, q, keys, temperature):
    """Return the losses, the gradients of the query branch and the keys to be put in the queues."""
    features, key_features = encode(query, q), [encode(key, k) for k in keys]
    gradients = {name: np.zeros_like(value) for name, value in query.items()}
    into_features = np.zeros_like(features)
    losses, positives = [], []
    for i in range(len(keys)):
        z, length, hidden, rectified = project(query, i, features)
        projected = [project(key, i, f)[0] for f in key_features]
        negatives = [queues[i]] + ([projected[j] for j in range(len(keys)) if j != i] if i > 0 else [])
        negatives = np.concatenate(negatives)
        logits = np.concatenate([(z * projected[i]).sum(1, keepdims=True), z @ negatives.T], axis=1) / temperature
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        losses.append(-np.log(share[:, 0]).mean())
        positives.append(projected[i])

        d_logits = share / len(z) / temperature
        d_logits[:, 0] -= 1 / len(z) / temperature
        d_z = d_logits[:, :1] * projected[i] + d_logits[:, 1:] @ negatives
        d_raw = (d_z - z * (z * d_z).sum(1, keepdims=True)) / length
        gradients[f"h.{i}.2.weight"] = d_raw.T @ rectified
        gradients[f"h.{i}.2.bias"] = d_raw.sum(0)
        d_hidden = (d_raw @ query[f"h.{i}.2.weight"]) * (hidden > 0)
        gradients[f"h.{i}.0.weight"] = d_hidden.T @ features
        gradients[f"h.{i}.0.bias"] = d_hidden.sum(0)
        into_features += d_hidden @ query[f"h.{i}.0.weight"]
    gradients["b.linear.weight"] = into_features.T @ q.flatten(1).numpy()
    gradients["b.linear.bias"] = into_features.sum(0)
    return losses, gradients, positives


@pytest.mark.parametrize("temperature", [0.2, 0.07])
@pytest.mark.parametrize(("kind", "n_keys"), [(SeCo, 3), (MoCo, 1)])
def test_losses_gradients_and_queues_equal_a_numpy_reference_over_five_steps(kind, n_keys, temperature):
    model = small(kind, momentum=0.9, temperature=temperature)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    query, key = branch(model.backbone, model.heads), branch(model.key_backbone, model.key_heads)
    queues = model.queue.numpy().astype(np.float64).copy()
    for step in range(5):
        q, *keys = views(1 + n_keys, seed=step)
        key = {name: 0.9 * key[name] + 0.1 * query[name] for name in key}
        losses, gradients, positives = reference_step(query, key, queues, q, keys, temperature)
        start = step * BATCH % QUEUE
        for queue, positive in zip(queues, positives, strict=True):
            queue[start : start + BATCH] = positive
        query = {name: query[name] - 0.3 * gradients[name] for name in query}

        optimiser.zero_grad()
        loss = model.loss(q, *keys)
        loss.total.backward()
        np.testing.assert_allclose(loss.heads.numpy(), losses, rtol=0, atol=1e-5)
        assert loss.total.item() == pytest.approx(sum(losses), abs=1e-5)
        for prefix, module in (("b", model.backbone), ("h", model.heads)):
            for name, parameter in module.named_parameters():
                wanted = gradients[f"{prefix}.{name}"]
                np.testing.assert_allclose(parameter.grad.numpy(), wanted, rtol=0, atol=1e-5, err_msg=name)
        optimiser.step()
        np.testing.assert_allclose(model.queue.numpy(), queues, rtol=0, atol=1e-5)


# --- cases worked by hand


def test_negatives_of_each_head_by_hand():
    """Projections in the plane: q east, k0 north, k1 east, k2 west; each queue holds north; temperature 1."""
    model = bare_heads(SeCo(Pixels(2), dim=2, queue_size=1, temperature=1.0))
    model.queue.copy_(torch.tensor([0.0, 1.0]).expand(3, 1, 2))
    q, k0, k1, k2 = (torch.tensor(v).view(1, 2, 1, 1) for v in ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]))
    loss = model.loss(q, k0, k1, k2)
    e = math.e
    by_hand = [math.log(1 + 1), -1 + math.log(e + 1 + 1 + 1 / e), 1 + math.log(1 / e + 1 + 1 + e)]
    assert loss.heads.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert loss.total.item() == pytest.approx(sum(by_hand), abs=1e-6)
    assert loss.accuracy.tolist() == [0.0, 1.0, 0.0]


def test_logits_per_head_are_65537_and_twice_66049():
    """Equal logits have the loss ln(number of logits): here all are 0, since the query's projections are."""
    model = SeCo(Flat(num_features=2), dim=2)
    for head in model.heads:
        nn.init.zeros_(head[-1].weight)
        nn.init.zeros_(head[-1].bias)
    with torch.no_grad():
        loss = model.loss(*views(4, batch=256))
    assert loss.heads.double().exp().tolist() == pytest.approx([65_537, 66_049, 66_049], abs=0.5)


def test_in_batch_negatives_are_those_of_the_whole_batch():
    model = SeCo(Flat(), dim=DIM, queue_size=12)
    for head in model.heads:
        nn.init.zeros_(head[-1].weight)
        nn.init.zeros_(head[-1].bias)
    for batch in (1, 3, 6):
        counts = model.loss(*views(4, batch=batch)).heads.exp().tolist()
        assert counts == pytest.approx([1 + 12, 1 + 12 + 2 * batch, 1 + 12 + 2 * batch], abs=1e-3)


def test_each_head_enqueues_its_own_positive_keys_in_turn():
    model = bare_heads(SeCo(Pixels(2), dim=2, queue_size=4))
    start = model.queue.clone()
    east, north, west = (torch.tensor(v).view(1, 2, 1, 1).expand(2, 2, 1, 1) for v in ([3.0, 0], [0.0, 2], [-1.0, 0]))
    model.loss(east, east, north, west)
    assert model.queue[:, :2].tolist() == [[[1, 0]] * 2, [[0, 1]] * 2, [[-1, 0]] * 2]
    assert torch.equal(model.queue[:, 2:], start[:, 2:])
    assert model.queue_pointer == 2
    model.loss(east, west, west, west)
    assert model.queue[:, :2].tolist() == [[[1, 0]] * 2, [[0, 1]] * 2, [[-1, 0]] * 2]
    assert model.queue[:, 2:].tolist() == [[[-1, 0]] * 2] * 3
    assert model.queue_pointer == 0
    model.loss(east, north, north, north)
    assert model.queue[:, :2].tolist() == [[[0, 1]] * 2] * 3


def test_key_branch_moves_before_keys_are_encoded():
    model = small(MoCo, momentum=0.5)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.fill_(3.0)
        for parameter in model.key_backbone.parameters():
            parameter.fill_(1.0)
    q, k = views(2)
    model.loss(q, k)
    assert all((parameter == 2.0).all() for parameter in model.key_backbone.parameters())
    with torch.no_grad():
        raw = model.key_heads[0](2.0 * k.flatten(1).sum(1, keepdim=True).expand(-1, FEATURES) + 2.0)
    torch.testing.assert_close(model.queue[0, :BATCH], raw / raw.norm(dim=1, keepdim=True))


def test_key_branch_takes_no_gradients_and_starts_as_the_query_branch():
    model = small(SeCo)
    for a, b in ((model.backbone, model.key_backbone), (model.heads, model.key_heads)):
        assert all(torch.equal(p, k) for p, k in zip(a.parameters(), b.parameters(), strict=True))
    model.loss(*views(4)).total.backward()
    assert all(p.grad is not None for m in (model.backbone, model.heads) for p in m.parameters())
    assert all(p.grad is None for m in (model.key_backbone, model.key_heads) for p in m.parameters())
    assert {p.requires_grad for m in (model.key_backbone, model.key_heads) for p in m.parameters()} == {False}


def test_collapsed_features_score_no_success():
    model = small(SeCo)
    for module in (*model.heads, *model.key_heads):
        nn.init.zeros_(module[-1].weight)
        nn.init.ones_(module[-1].bias)
    for _ in range(QUEUE // BATCH):
        loss = model.loss(*views(4))
    assert model.loss(*views(4)).accuracy.tolist() == [0, 0, 0]
    assert loss.accuracy.dtype == torch.float32


# --- state


def test_evaluation_changes_no_state():
    model = small(SeCo, backbone=create_backbone("resnet10t", BANDS)).eval()
    before = copy.deepcopy(model.state_dict())
    model.loss(*views(4, batch=3, side=32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_was_stored_goes_on_identically(tmp_path):
    model = small(SeCo, momentum=0.9)
    for step in range(3):
        model.loss(*views(4, seed=step)).total.backward()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    again = SeCo(Flat(), dim=DIM, queue_size=QUEUE, momentum=0.9)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        a, b = model.loss(*views(4, seed=step)), again.loss(*views(4, seed=step))
        assert torch.equal(a.total, b.total)
    assert torch.equal(model.queue, again.queue)
    assert torch.equal(model.queue_pointer, again.queue_pointer)


def test_keys_pass_one_by_one_and_batch_statistics_are_not_copied():
    model = small(SeCo, backbone=create_backbone("resnet10t", BANDS), momentum=1.0)
    key_backbone, (q, *keys) = copy.deepcopy(model.key_backbone), views(4, side=32)
    model.loss(q, *keys)
    tracked = "bn1.num_batches_tracked"
    assert model.backbone.state_dict()[tracked] == 1
    assert model.key_backbone.state_dict()[tracked] == 3
    with torch.no_grad():
        alone = [head(key_backbone(key)) for head, key in zip(model.key_heads, keys, strict=True)]
    torch.testing.assert_close(model.queue[:, :BATCH], nn.functional.normalize(torch.stack(alone), dim=-1))
    torch.testing.assert_close(model.key_backbone.state_dict(), key_backbone.state_dict())


def test_keys_are_shuffled_where_batches_are_split_and_come_back_in_order():
    torch.manual_seed(0)
    model = bare_heads(SeCo(Pixels(2, splits=2), dim=2, queue_size=16))
    seen = []
    model.key_backbone.register_forward_hook(lambda _, images, __: seen.append(images[0]))
    q, *keys = views(4, batch=8, bands=2, side=1)
    model.loss(q, *keys)
    torch.testing.assert_close(model.queue[:, :8], nn.functional.normalize(torch.stack(keys).flatten(2), dim=-1))
    orders = [
        [int((key == image).flatten(1).all(1).nonzero()) for image in s] for s, key in zip(seen, keys, strict=True)
    ]
    assert all(sorted(order) == list(range(8)) and order != list(range(8)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


# --- formats, devices, compilers


def test_logits_and_queues_are_float32_under_autocast():
    model = small(SeCo, momentum=1.0)
    exact = copy.deepcopy(model).loss(*views(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(views(1)[0]).dtype == torch.bfloat16
        loss = model.loss(*views(4))
    loss.total.backward()
    assert loss.heads.dtype == model.queue.dtype == torch.float32
    torch.testing.assert_close(loss.heads, exact.heads, rtol=0.03, atol=0)
    torch.testing.assert_close(model.queue.norm(dim=-1), torch.ones(3, QUEUE), rtol=0, atol=1e-6)


def test_a_step_compiles_to_one_graph_with_the_same_result():
    model = small(SeCo, backbone=Pixels(BANDS * SIDE * SIDE, splits=2))
    compiled = copy.deepcopy(model)
    step = torch.compile(compiled.loss, fullgraph=True, backend="eager")
    for seed in range(2):
        torch.manual_seed(seed)
        plain = model.loss(*views(4, seed=seed))
        torch.manual_seed(seed)
        torch.testing.assert_close(step(*views(4, seed=seed)).total, plain.total)
    torch.testing.assert_close(compiled.state_dict(), model.state_dict())


def test_channels_last_changes_nothing():
    model = small(SeCo, backbone=create_backbone("resnet10t", BANDS, norm_splits=2))
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = views(4, side=32)
    torch.manual_seed(0)
    plain = model.loss(*images)
    torch.manual_seed(0)
    other = last.loss(*(image.contiguous(memory_format=torch.channels_last) for image in images))
    torch.testing.assert_close(other.heads, plain.heads, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_cuda_equals_one_on_the_cpu():
    model = small(SeCo, momentum=0.9)
    on_cuda = copy.deepcopy(model).cuda()
    for seed in range(3):
        there = on_cuda.loss(*(view.cuda() for view in views(4, seed=seed)))
        torch.testing.assert_close(there.total.cpu(), model.loss(*views(4, seed=seed)).total, rtol=1e-4, atol=1e-4)
    assert on_cuda.queue.is_cuda
    torch.testing.assert_close(on_cuda.queue.cpu(), model.queue, rtol=1e-4, atol=1e-4)


# --- what heads learn


def test_two_heads_learn_to_ignore_the_date_and_one_keeps_it():
    """Images hold three codes: of place, of date and of augmentation."""
    torch.manual_seed(1)
    places, dates, looks = (torch.randn(n, 8) for n in (64, 3, 2))

    def image(place: torch.Tensor, date: torch.Tensor, look: int) -> torch.Tensor:
        look_code = looks[look].expand(len(place), -1)
        return torch.cat([places[place], dates[date], look_code], dim=1)[..., None, None]

    model = SeCo(Flat(24, 32), dim=16, queue_size=64, momentum=0.9)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for _ in range(300):
        place = torch.randperm(64)[:32]
        t0, t1, t2 = torch.rand(32, 3).argsort(1).T
        loss = model.loss(image(place, t0, 0), image(place, t1, 1), image(place, t2, 0), image(place, t0, 1))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert loss.accuracy.min() > 0.7

    place = torch.arange(32)
    with torch.no_grad():
        one, other = (model(image(place, torch.full((32,), date), 0)) for date in (0, 1))
        likeness = [float(nn.functional.cosine_similarity(head(one), head(other)).mean()) for head in model.heads]
    assert likeness[0] > 0.9
    assert likeness[1] > 0.9
    assert likeness[2] < 0.8


# --- settings and errors


@pytest.mark.parametrize("kind", [SeCo, MoCo])
def test_defaults_are_those_of_the_published_command(kind):
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    assert defaults == {
        "backbone": "resnet50",
        "in_channels": 9,
        "dim": 128,
        "queue_size": 65536,
        "momentum": 0.999,
        "temperature": 0.2,
    }


def test_heads_are_two_linear_layers_as_wide_as_the_features():
    model = SeCo("resnet10t", BANDS, queue_size=4)
    for head in model.heads:
        assert [tuple(p.shape) for p in head.parameters()] == [(512, 512), (512,), (128, 512), (128,)]
    assert model.queue.shape == (3, 4, 128)
    torch.testing.assert_close(model.queue.norm(dim=-1), torch.ones(3, 4))
    assert model(torch.rand(2, BANDS, 32, 32)).shape == (2, model.num_features)


def test_a_queue_that_the_batch_does_not_divide_is_refused_in_training_only():
    model = small(SeCo)
    with pytest.raises(InputError, match="queue of 8 keys is no multiple of a batch of 3"):
        model.loss(*views(4, batch=3))
    with pytest.raises(InputError, match="no multiple of a batch of 16"):
        model.loss(*views(4, batch=16))
    assert model.queue_pointer == 0
    assert model.eval().loss(*views(4, batch=3)).total > 0


def test_views_of_different_or_wrong_shapes_are_refused():
    model = small(SeCo)
    q, k0, k1, k2 = views(4)
    for wrong in ((q, k0, k1, k2[:2]), (q[0], k0[0], k1[0], k2[0]), tuple(v[:0] for v in (q, k0, k1, k2))):
        with pytest.raises(InputError, match="views of shapes"):
            model.loss(*wrong)


@pytest.mark.parametrize(
    "setting", [{"dim": 0}, {"queue_size": 0}, {"momentum": 1.1}, {"temperature": 0.0}, {"temperature": math.nan}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        small(SeCo, **setting)


def test_a_backbone_of_unknown_width_is_refused():
    with pytest.raises(InputError, match="how long its features are"):
        MoCo(nn.Flatten(), queue_size=4)
