"""Training of detectors: that it goes on where it stopped, that it repeats, and that its chips say where crowns are."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from lightning.pytorch import Callback  # noqa: E402

from geoeco.errors import InputError  # noqa: E402
from geoeco.sampling import AreaSplit, grid_chips, store_uav_chips  # noqa: E402
from geoeco.training.detection_training import train_detector  # noqa: E402
from tests.steps.crown_world import draw_world  # noqa: E402

SETTINGS = {
    "backbone": "resnet10t",
    "channels": 16,
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
    chips = grid_chips(folder / "mosaic.tif", chip_m=3.2, crowns=folder / "crowns.gpkg", split=split)
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
