"""Detectors of crowns: what they give, what they learn from, and that a bundle brings them back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.training import ModelBundle, Normalisation  # noqa: E402
from geoeco.training.detection import chip_targets  # noqa: E402

ARGUMENTS = {
    "backbone": "resnet10t",
    "in_channels": 4,
    "masks": True,
    "anchors": "4,6,8,12,16",
    "channels": 8,
    "most": 5,
    "frozen_norm": False,
}


def detector(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("crown_detector", ARGUMENTS | changes)


def test_targets_follow_the_edges_of_the_pixels_and_leave_out_crumbs():
    instance = torch.zeros(20, 30, dtype=torch.int32)
    instance[2:7, 10:14] = 7
    instance[12:16, 0:5] = 3
    instance[19, 25:30] = 9
    found = chip_targets(instance)
    assert found["boxes"].tolist() == [[0, 12, 5, 16], [10, 2, 14, 7]]
    assert found["masks"].sum((1, 2)).tolist() == [20, 20]
    assert found["labels"].tolist() == [1, 1]
    nothing = chip_targets(torch.zeros(8, 8, dtype=torch.int32), masks=False)
    assert nothing["boxes"].shape == (0, 4)
    assert "masks" not in nothing


@pytest.mark.parametrize("masks", [True, False])
def test_a_bundle_brings_a_detector_back_with_all_that_it_finds(tmp_path, masks):
    network = detector(masks=masks)
    bundle = ModelBundle(
        module=network,
        architecture="crown_detector",
        arguments=ARGUMENTS | {"masks": masks},
        bands=("red", "green", "blue", "nir"),
        normalisation=Normalisation((0.5,) * 4, (0.2,) * 4),
        size=40,
        task="detection",
        classes=("crown",),
    )
    bundle.save(tmp_path / "bundle")
    read = ModelBundle.load(tmp_path / "bundle")
    images = torch.rand(2, 4, 40, 40, generator=torch.Generator().manual_seed(1))
    ours, theirs = network.detect(images), read.module.detect(images)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert len(one.scores) <= 5
        assert (one.masks is None) == (not masks)
        assert not masks or (one.masks.shape[1:] == (40, 40) and torch.equal(one.masks, other.masks))
    assert torch.equal(network(images), read.module(images))


def test_images_are_not_resized_and_one_does_not_change_another():
    network = detector().eval()
    images = torch.rand(2, 4, 48, 64, generator=torch.Generator().manual_seed(1))
    together, alone = network.detect(images)[1], network.detect(images[1:])[0]
    assert torch.equal(together.boxes, alone.boxes)
    assert float(together.boxes[:, 0::2].max()) <= 64
    assert float(together.boxes[:, 1::2].max()) <= 48


@pytest.mark.parametrize("masks", [True, False])
def test_every_weight_of_a_network_with_classes_is_learned(masks):
    network = detector(masks=masks, num_classes=3, boxes=8).train()
    images = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    instance = torch.zeros(2, 32, 32, dtype=torch.int32)
    instance[0, 4:16, 6:20] = 1
    torch.manual_seed(0)
    targets = [chip_targets(one, masks=masks, classes={1: 2}) for one in instance]
    assert targets[0]["labels"].tolist() == [3]
    network.losses(images, targets).backward()
    without = [name for name, value in network.named_parameters() if value.grad is None]
    assert without == []


def test_weights_that_were_learned_elsewhere_keep_their_normalisation():
    names = {name for name, _ in detector(frozen_norm=True).encoder.named_buffers()}
    assert "bn1.running_mean" in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_tiny_patch16_224"}, "no residual network"),
        ({"anchors": "4,8"}, "anchors"),
        ({"anchors": "4,8,a,16,32"}, "anchors"),
        ({"channels": 12}, "channels"),
        ({"in_channels": 0}, "bands"),
        ({"num_classes": 0}, "classes"),
        ({"boxes": 3}, "boxes"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        detector(**changes)
