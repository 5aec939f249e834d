"""DWFF-Net and its variants: exact sizes, levels and weights as published, a frozen encoder, any plain transformer."""

from __future__ import annotations

import functools
import logging
import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from geoeco.errors import InputError, ReadError
from geoeco.models import ConvStack, DWFFNet, build, dwff
from geoeco.models.dwff import tap_blocks
from geoeco.models.encoder_weights import weights_sha256

TINY = "test_vit"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return DWFFNet(TINY, 5).eval()


@functools.cache
def _shared_encoder(name, in_channels, make=dwff._encoder):
    return make(name, in_channels)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


# habitat.md, section 7
@pytest.mark.parametrize(
    ("backbone", "fusion", "taps", "expected"),
    [
        ("vit_large_patch16_dinov3", "dynamic", 4, 4_842_005),
        ("vit_large_patch16_dinov3", "static", 4, 4_316_692),
        ("vit_large_patch16_dinov3", "none", 4, 4_316_688),
        ("vit_large_patch16_dinov3", "none", 3, 3_791_376),
        ("vit_large_patch16_dinov3", "none", 2, 3_266_064),
        ("vit_large_patch16_dinov3", "none", 1, 2_740_752),
        ("vit_base_patch16_dinov3", "dynamic", 4, 4_317_717),
        ("vit_small_patch16_dinov3", "dynamic", 4, 3_531_285),
    ],
)
def test_trainable_parameters_are_those_published(backbone, fusion, taps, expected, monkeypatch):
    # variants on one backbone share it here: making a large transformer takes most of the time
    monkeypatch.setattr(dwff, "_encoder", _shared_encoder)
    with torch.device("meta"):
        model = build("dwff", {"backbone": backbone, "fusion": fusion, "taps": taps, "num_classes": 16})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    if backbone == "vit_large_patch16_dinov3":
        assert sum(p.numel() for p in model.encoder.parameters()) == 303_079_424
        assert (model.encoder.num_prefix_tokens, model.stride, model.receptive_radius) == (5, 16, None)
        assert model.blocks == {4: (0, 7, 15, 23), 3: (0, 15, 23), 2: (0, 23), 1: (23,)}[taps]


def test_parts_of_the_published_network_have_their_published_sizes():
    with torch.device("meta"):
        model = build("dwff", {})
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["projections"] == 2_101_248
    assert sizes["scores"] == 525_316
    assert model.tau.numel() == 1
    assert sizes["context"] + sizes["detail"] + sizes["classifier"] == 2_215_440


def test_an_image_of_1248_pixels_gives_features_of_78():
    with torch.device("meta"):
        model = build("dwff", {"backbone": TINY})
        logits, features = model.eval().with_features(torch.zeros(1, 3, 1248, 1248))
    assert features.shape == (1, 512, 78, 78)
    assert logits.shape == (1, 16, 1248, 1248)


@pytest.mark.parametrize(("depth", "blocks"), [(24, (0, 7, 15, 23)), (12, (0, 3, 7, 11)), (6, (0, 1, 3, 5))])
def test_levels_lie_at_the_same_parts_of_shallower_transformers(depth, blocks):
    assert tap_blocks(depth, 4) == blocks


@pytest.mark.parametrize(("depth", "taps"), [(3, 4), (1, 2), (24, 5), (24, 0)])
def test_levels_that_a_transformer_lacks_are_refused(depth, taps):
    with pytest.raises(InputError, match=r"taps|levels"):
        tap_blocks(depth, taps)


@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_levels_are_the_hidden_states_of_the_blocks_the_last_one_after_the_norm(backbone, images):
    """Tokens caught at the blocks by hooks, as ``hidden_states`` of transformers: raw, but for the last."""
    torch.manual_seed(0)
    model = DWFFNet(backbone, 3).eval()
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda _, __, out, number=number: seen.__setitem__(number, out))
        for number, block in enumerate(model.encoder.blocks)
    ]
    with torch.no_grad():
        whole = model.encoder.forward_features(images)
        levels = model.taps(images)
    for hook in hooks:
        hook.remove()
    prefix = model.encoder.num_prefix_tokens
    assert prefix == {"test_vit": 1, "vit_tiny_patch16_dinov3_qkvb": 5}[backbone]
    for level, block in zip(levels[:-1], model.blocks[:-1], strict=True):
        expected = seen[block][:, prefix:].transpose(1, 2).reshape(level.shape)
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-5)
    # the whole network's own end: after its final norm
    expected = whole[:, prefix:].transpose(1, 2).reshape(levels[-1].shape)
    torch.testing.assert_close(levels[-1], expected, rtol=0, atol=1e-4)
    raw = seen[model.blocks[-1]][:, prefix:].transpose(1, 2).reshape(levels[-1].shape)
    assert float((levels[-1] - raw).abs().max()) > 0.1
    # a 64 x 96 image has 4 x 6 patches, row by row: the level of its upper left patch is token 1 after the prefix
    torch.testing.assert_close(levels[0][:, :, 0, 1], seen[model.blocks[0]][:, prefix + 1], rtol=0, atol=1e-5)


def test_weights_of_levels_sum_to_one_at_the_published_temperature(net, images):
    assert net.temperature.item() == pytest.approx(1.31326, abs=1e-5)
    weights = net.level_weights(images)
    assert weights.shape == (2, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_equal_scores_give_equal_weights_and_the_scores_are_scaled_by_the_temperature(images):
    model = DWFFNet(TINY, 3).eval()
    last = model.scores[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        torch.testing.assert_close(model.level_weights(images), torch.full((2, 4), 0.25))
        last.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        expected = torch.softmax(torch.tensor([0.0, 1.0, 2.0, 3.0]) / (math.log(1 + math.e) + 1e-6), 0)
        torch.testing.assert_close(model.level_weights(images), expected.expand(2, -1))


def test_weights_follow_the_direction_of_mean_features_not_their_size():
    model = DWFFNet(TINY, 3).eval()
    levels = [torch.rand(1, 512, 3, 3) for _ in range(4)]
    once = model.weigh(levels)
    torch.testing.assert_close(model.weigh([level * 7 for level in levels]), once, rtol=1e-4, atol=1e-6)
    assert (model.weigh([levels[1], levels[0], *levels[2:]]) - once).abs().max().item() > 1e-5


def test_swff_and_nwff_are_plain_weighted_sums(images):
    static = DWFFNet(TINY, 3, "static").eval()
    torch.testing.assert_close(static.level_scalars.detach(), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    plain = DWFFNet(TINY, 3, "none").eval()
    plain.load_state_dict({k: v for k, v in static.state_dict().items() if k != "level_scalars"})
    with torch.no_grad():
        levels = static.levels(images)
        weighted = sum(w * level for w, level in zip((0.1, 0.2, 0.3, 0.4), levels, strict=True))
        torch.testing.assert_close(static.with_features(images)[1], weighted)
        torch.testing.assert_close(plain.with_features(images)[1], sum(levels))


def test_weights_of_a_scene_take_the_place_of_those_of_each_image(net, images):
    with torch.no_grad():
        own = net.level_weights(images)
        torch.testing.assert_close(net(images, own), net(images))
        scene = own.mean(0)
        logits, features = net.with_features(images, scene)
        assert float((logits - net(images)).abs().max()) > 0
        torch.testing.assert_close(features, sum(w * p for w, p in zip(scene, net.levels(images), strict=True)))


def test_classifying_before_the_last_upsampling_is_the_published_order(net, images):
    with torch.no_grad():
        logits, fused = net.with_features(images)
        big = net.context(fused)
        for _ in range(2):
            big = functional.interpolate(big, scale_factor=2, mode="bilinear")
        big = net.detail(big)
        for _ in range(2):
            big = functional.interpolate(big, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(net.classifier(big), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 65), (1250, 1248), (0, 64), (8, 64)])
def test_images_whose_sides_are_no_multiples_of_the_patch_are_refused(net, shape):
    with pytest.raises(InputError, match="pixels") as error:
        net(torch.zeros(1, 3, *shape))
    assert "multiples of 16" in error.value.what_to_do


def test_the_encoder_stays_frozen_in_training(images):
    model = DWFFNet(TINY, 3)
    before = weights_sha256(model.encoder)
    model.train()
    assert model.training
    assert model.context.training
    assert not any(module.training for module in model.encoder.modules())
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images).square().mean().backward()
    optimiser.step()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("encoder."))
    assert weights_sha256(model.encoder) == before


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet18", "no plain vision transformer"),
        ("swin_tiny_patch4_window7_224", "no plain vision transformer"),
        ("vit_tiny_r_s16_p8_224", "no plain vision transformer"),
        ("vit_small_patch14_dinov2", "14 x 14"),
        ("vit_tny_patch16_224", "timm has no network"),
    ],
)
def test_backbones_that_are_no_plain_transformers_are_refused(backbone, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        DWFFNet(backbone)


def test_random_weights_are_said_loudly(caplog):
    with caplog.at_level(logging.WARNING):
        model = DWFFNet(TINY, 3)
    assert "RANDOM" in caplog.text
    assert model.weights_of_encoder.kind == "random"


def test_a_local_file_of_weights_is_loaded_without_unpickling_and_known_by_its_content(tmp_path):
    torch.manual_seed(5)
    source = timm.create_model(TINY, num_classes=0)
    path = tmp_path / "encoder.safetensors"
    save_file({**source.state_dict(), "head.weight": torch.zeros(3, 64)}, path)
    model = DWFFNet(TINY, 3, encoder_weights=str(path))
    assert model.weights_of_encoder.kind == "file"
    assert model.weights_of_encoder.name == "encoder.safetensors"
    assert model.weights_of_encoder.sha256 == weights_sha256(source)
    with pytest.raises(InputError, match="not those of test_vit2"):
        DWFFNet("test_vit2", 3, encoder_weights=str(path))
    path.write_bytes(b"\x80\x04not a safetensors file")
    with pytest.raises(ReadError, match="cannot be read"):
        DWFFNet(TINY, 3, encoder_weights=str(path))


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        DWFFNet(TINY, 3, encoder_weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match=r"no weights 'weights\.pth'"):
        DWFFNet(TINY, 3, encoder_weights="weights.pth")


def test_published_weights_that_cannot_be_fetched_are_a_passing_fault(monkeypatch):
    from geoeco.errors import TransientError

    made = timm.create_model

    def offline(name, pretrained=False, **rest):
        if pretrained:
            raise OSError("no route to host")
        return made(name, **rest)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(TransientError, match="cannot be had") as error:
        DWFFNet(TINY, 3, encoder_weights="test_vit.r160_in1k")
    assert "test_vit.r160_in1k" in str(error.value)


# the stack of convolutions


def test_a_stack_sees_exactly_its_radius():
    torch.manual_seed(0)
    model = ConvStack(2, 3, width=4, layers=3, kernel=5).double()
    assert model.receptive_radius == 6
    image = torch.randn(1, 2, 31, 31, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(image)[0, :, 15, 15].sum(), image)
    seen = gradient.abs().sum((0, 1)).nonzero()
    assert seen.min(0).values.tolist() == [9, 9]
    assert seen.max(0).values.tolist() == [21, 21]


def test_a_window_of_a_stack_equals_the_whole_image_inside_its_radius_and_not_beyond():
    torch.manual_seed(0)
    model = ConvStack(3, 2, width=4).eval()
    image = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        whole, window = model(image), model(image[:, :, 10:30, 15:40])
    radius = model.receptive_radius
    inside = (slice(None), slice(None), slice(radius, -radius), slice(radius, -radius))
    torch.testing.assert_close(window[inside], whole[:, :, 10:30, 15:40][inside], rtol=0, atol=1e-5)
    assert float((window - whole[:, :, 10:30, 15:40])[:, :, 0].abs().max()) > 1e-3
    assert model(image)[0].shape == (2, 40, 50)


@pytest.mark.parametrize("arguments", [{"kernel": 4}, {"layers": 0}, {"num_classes": 1}, {"width": 0}])
def test_stacks_that_make_no_sense_are_refused(arguments):
    with pytest.raises(InputError, match="a stack of"):
        build("conv_stack", arguments)
