"""Backbones: any bands, any of timm's networks, and what splits or replaces batch normalisation."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from geoeco.errors import InputError
from geoeco.models import create_backbone
from geoeco.models.backbones import SplitBatchNorm2d

BATCH = 6


def reached(backbone: nn.Module) -> list[int]:
    """The samples of the batch on which the features of sample 0 depend in training."""
    images = torch.rand(BATCH, 2, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    backbone.train()(images)[0].square().sum().backward()
    return [i for i in range(BATCH) if images.grad[i].abs().max() > 0]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("bands", [1, 10])
def test_features_of_any_bands_are_as_long_as_said(name, bands):
    backbone = create_backbone(name, bands).eval()
    with torch.no_grad():
        assert backbone(torch.rand(2, bands, 32, 32)).shape == (2, backbone.num_features)


def test_resnet50_is_the_network_of_the_paper():
    backbone = create_backbone()
    assert backbone.num_features == 2048
    assert backbone.conv1.weight.shape == (64, 9, 7, 7)
    assert backbone.conv1.stride == (2, 2)
    assert not any(name.startswith("fc") for name in backbone.state_dict())


def test_batch_statistics_reach_every_sample_and_split_ones_every_second():
    """What a contrastive query could tell its own key by."""
    torch.manual_seed(0)
    assert reached(create_backbone("resnet10t", 2)) == list(range(BATCH))
    assert reached(create_backbone("resnet10t", 2, norm_splits=2)) == [0, 2, 4]
    assert reached(create_backbone("resnet10t", 2, norm_splits=3)) == [0, 3]
    assert reached(create_backbone("resnet10t", 2, group_norm=True)) == [0]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_splitting_and_replacing_keep_the_activations_of_the_network(name):
    torch.manual_seed(0)
    plain = create_backbone(name, 2).eval()
    split = create_backbone(name, 2, norm_splits=2).eval()
    split.load_state_dict(plain.state_dict())
    images = torch.rand(2, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(split(images), plain(images))
    replaced = create_backbone(name, 2, group_norm=True)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in replaced.modules())
    kinds = (nn.ReLU, nn.Hardswish)
    count = [sum(isinstance(layer, kinds) for layer in network.modules()) for network in (plain, replaced)]
    assert count[0] == count[1] > 0


def test_split_normalisation_is_that_of_interleaved_parts():
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4)
    nn.init.uniform_(plain.weight)
    nn.init.uniform_(plain.bias)
    split = SplitBatchNorm2d(plain, 3)
    images = torch.randn(6, 4, 5, 5) * torch.arange(1, 7).view(6, 1, 1, 1)
    got = split(images)
    means, variances = [], []
    for part in range(3):
        chunk = images[part::3]
        alone = nn.functional.batch_norm(chunk, None, None, plain.weight, plain.bias, training=True)
        torch.testing.assert_close(got[part::3], alone)
        means.append(chunk.mean((0, 2, 3)))
        variances.append(chunk.var((0, 2, 3)))
    torch.testing.assert_close(split.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))
    assert split.num_batches_tracked == 1
    plain.load_state_dict(split.state_dict())
    torch.testing.assert_close(split.eval()(images), plain.eval()(images))


def test_a_batch_that_cannot_be_split_is_refused():
    backbone = create_backbone("resnet10t", 2, norm_splits=4)
    with pytest.raises(InputError, match="batch of 6 cannot be normalised in 4 parts"):
        backbone(torch.rand(6, 2, 32, 32))


def test_group_norm_keeps_the_start_of_residual_branches():
    plain, replaced = (create_backbone("resnet10t", 2, group_norm=wanted) for wanted in (False, True))
    last = plain.layer1[0].bn2.weight
    assert torch.equal(replaced.layer1[0].bn2.weight, last)
    assert replaced.layer1[0].bn2.num_groups == 32


def test_pretrained_weights_leave_the_first_layer_fresh_unless_bands_are_three(monkeypatch):
    create = timm.create_model
    photographs = create("resnet10t", num_classes=0)
    with torch.no_grad():
        for parameter in photographs.parameters():
            parameter.fill_(0.5)
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained=False, **k: photographs if pretrained else create(*a, **k)
    )
    first = photographs.pretrained_cfg["first_conv"]
    for bands in (3, 9):
        weights = create_backbone("resnet10t", bands, pretrained=True).state_dict()
        halves = {name for name, value in weights.items() if value.is_floating_point() and (value == 0.5).all()}
        assert (f"{first}.weight" in halves) == (bands == 3)
        assert weights[f"{first}.weight"].std() > 0 or bands == 3
        rest = dict(photographs.named_parameters()).keys() - {f"{first}.weight"}
        assert rest <= halves


@pytest.mark.parametrize("name", ["resnet500", "hf-hub:timm/resnet18", "local-dir:/tmp", "../resnet18", ""])
def test_networks_that_timm_has_not_are_refused_before_anything_is_fetched(name):
    with pytest.raises(InputError, match="timm has no network"):
        create_backbone(name)


def test_a_near_name_is_offered():
    with pytest.raises(InputError, match="resnet50"):
        create_backbone("resnet_50")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 0}, "backbone of 0 bands"),
        ({"norm_splits": 0}, "norm_splits is 0"),
        ({"norm_splits": 2, "group_norm": True}, "no batch normalisation to split"),
        ({"pretrained": True, "group_norm": True}, "pretrained weights were learned"),
        ({"name": "convnext_atto", "norm_splits": 2}, "no batch normalisation to split or replace"),
        ({"name": "convnext_atto", "group_norm": True}, "no batch normalisation to split or replace"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        create_backbone(**{"name": "resnet10t", **settings})
