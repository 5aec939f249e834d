"""Training of detectors: that it goes on where it stopped, what its chips say of crowns, and how these are scored."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely

torch = pytest.importorskip("torch", reason="needs the extra ml")

from lightning.pytorch import Callback  # noqa: E402

from geoeco.errors import InputError  # noqa: E402
from geoeco.models.crown_detector import CrownDetector, FoundObjects  # noqa: E402
from geoeco.sampling import AreaSplit, grid_chips, open_uav_chips, store_uav_chips  # noqa: E402
from geoeco.training import Normalisation  # noqa: E402
from geoeco.training.detection import DetectionDataset, chip_targets, score_chips  # noqa: E402
from geoeco.training.detection_training import train_detector  # noqa: E402
from tests.steps.crown_world import draw_world  # noqa: E402

SETTINGS = {
    "backbone": "resnet10t",
    "channels": 8,
    "boxes": 16,
    "most": 8,
    "anchors_m": (1, 1.5, 2, 3, 4),
    "epochs": 2,
    "batch": 2,
    "checkpoint_every": 1,
    "device": "cpu",
    "seed": 4,
}


class Stop(Callback):
    """Raise before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == self.step:
            raise KeyError("power cut")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    folder = draw_world(tmp_path_factory.mktemp("world"))
    split = AreaSplit(folder / "areas.gpkg")
    chips = grid_chips(
        folder / "mosaic.tif", chip_m=3.2, crowns=folder / "crowns.gpkg", crown_class="species", split=split
    )
    made = str(folder / "uav.zarr")
    store_uav_chips(made, chips.isel(sample=slice(0, 12)))
    return made


def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(store, tmp_path):
    train_detector(store, tmp_path / "whole", **SETTINGS)
    with pytest.raises(KeyError, match="power cut"):
        train_detector(store, tmp_path / "stopped", callbacks=[Stop(2)], **SETTINGS)
    assert not (tmp_path / "stopped" / "bundle").exists()
    train_detector(store, tmp_path / "stopped", **SETTINGS)
    for name in ("bundle/model.safetensors", "bundle/mlm.json", "logs/metrics.csv", "evaluation.json"):
        one, other = ((tmp_path / side / name).read_bytes() for side in ("whole", "stopped"))
        assert one == other, name


def test_chips_without_crowns_teach_nothing(tmp_path):
    folder = draw_world(tmp_path)
    plain = str(Path(tmp_path) / "plain.zarr")
    store_uav_chips(plain, grid_chips(folder / "mosaic.tif", chip_m=3.2, split=AreaSplit(folder / "areas.gpkg")))
    with pytest.raises(InputError, match="have no crowns"):
        train_detector(plain, tmp_path / "trained", **SETTINGS)


class Told(torch.nn.Module):
    """Finds what it is told, chip after chip."""

    def __init__(self, answers, masks):
        super().__init__()
        self.answers, self.masks = iter(answers), masks
        self.one = torch.nn.Parameter(torch.ones(1))

    def detect(self, images):
        return [next(self.answers) for _ in images]


def answer(target, *, shift=0.0, label=None):
    """The true objects of a chip as if they were found, moved or of another class."""
    labels = target["labels"] - 1 if label is None else torch.full_like(target["labels"], label)
    return FoundObjects(target["boxes"] + shift, torch.full((len(labels),), 0.9), labels, None)


def test_the_class_of_a_crown_is_that_of_its_number_and_is_scored_where_it_is_known(store):
    names = [str(name) for name in open_uav_chips(store).attrs["crown_classes"]]
    assert names == ["birch", "larch", "oak"]
    data = DetectionDataset(store)
    # the world says so: the k-th crown is of the species k % 3
    classes = {number: (number - 1) % 3 for number in range(1, 37) if number % 5}
    targets = [chip_targets(one["instance"], masks=False, classes=classes) for one in data]
    for one, target in zip(data, targets, strict=True):
        numbers, pixels = np.unique(one["instance"][one["instance"] > 0], return_counts=True)
        known = [classes.get(int(number), -1) + 1 for number in numbers[pixels >= 9]]
        assert target["labels"].tolist() == known
    scale = Normalisation((0.0,) * 3, (1.0,) * 3)
    unknown = sum(int((target["labels"] == 0).sum()) for target in targets)
    larches = sum(int((target["labels"] == 2).sum()) for target in targets)
    crowns = sum(len(target["labels"]) for target in targets)
    assert min(unknown, larches) > 0
    right = score_chips(Told(map(answer, targets), masks=False), scale, data, classes)
    assert right[:5] == (1.0, 1.0, crowns, crowns, 1.0)
    alike = score_chips(Told((answer(one, label=1) for one in targets), masks=False), scale, data, classes)
    # whatever it is called, it is found
    assert alike[:4] == right[:4]
    assert alike.class_accuracy == pytest.approx(larches / (crowns - unknown))
    assert np.isnan(score_chips(Told(map(answer, targets), masks=False), scale, data).class_accuracy)


def test_chips_with_a_crown_of_no_species_are_left_out_and_other_species_refused(store, tmp_path):
    species = {number: ("birch", "larch", "oak")[(number - 1) % 3] for number in range(2, 37)}
    bundle = train_detector(store, tmp_path / "some", species=species, **SETTINGS | {"epochs": 1})
    with_the_first = sum(int((chip == 1).any()) for chip in open_uav_chips(store)["instance"].values[:12])
    assert bundle.notes["unnamed_chips"] == with_the_first > 0
    assert bundle.classes == ("birch", "larch", "oak")
    assert bundle.arguments["num_classes"] == 3
    with pytest.raises(InputError, match="know no species 'elm'"):
        train_detector(store, tmp_path / "other", species={1: "elm"}, **SETTINGS)
    with pytest.raises(InputError, match="without a species"):
        train_detector(store, tmp_path / "none", species={}, **SETTINGS)


@pytest.mark.real
def test_boxes_of_a_neon_plot_are_the_targets_of_its_chips_and_can_be_learned(real_data, tmp_path):
    tif, xml = real_data("crowns/neon_teak/TEAK_043.tif"), real_data("crowns/neon_teak/TEAK_043.xml")
    drawn = [
        shapely.box(*(int(one.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax")))
        for one in ET.parse(xml).iter("object")
    ]
    store = str(tmp_path / "plot.zarr")
    store_uav_chips(store, grid_chips(tif, chip_m=10, crowns=str(xml)))
    data = DetectionDataset(store)
    targets = [chip_targets(one["instance"], masks=False) for one in data]
    offsets = open_uav_chips(store)["offset"].values
    seen = 0
    for (row, column), target in zip(offsets, targets, strict=True):
        chip = shapely.box(column, row, column + 100, row + 100)
        for number, box in enumerate(drawn):
            apart = all(box.intersection(other).area == 0 for other in drawn[:number] + drawn[number + 1 :])
            part = box.intersection(chip)
            # in the corner of overlapping boxes the smaller one keeps the pixels
            if not apart or part.area < 9:
                continue
            bounds = (np.array(part.bounds) - (column, row, column, row)).tolist()
            assert bounds in target["boxes"].tolist()
            seen += 1
    assert seen >= 10
    scale = Normalisation((0.5,) * 3, (0.2,) * 3)
    assert score_chips(Told(map(answer, targets), masks=False), scale, data).ap50 == 1.0
    moved = (answer(target, shift=40.0) for target in targets)
    assert score_chips(Told(moved, masks=False), scale, data).ap50 < 0.1

    torch.manual_seed(0)
    network = CrownDetector("resnet10t", masks=False, anchors="10,20,30,40,60", channels=8, boxes=32).train()
    images = data.decode({name: value.unsqueeze(0) for name, value in data[5].items()})["image"]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        # the boxes that are learned from are drawn alike
        torch.manual_seed(1)
        losses.append(network.losses(scale(images), [targets[5]]))
        losses[-1].backward()
        optimiser.step()
    assert float(losses[1].detach()) < float(losses[0].detach())
