"""The verb train_segmentation: what it plans and refuses, what it leaves, and that it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import RunStore  # noqa: E402
from geoeco.errors import GeoecoError, InputError, RecipeError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.steps.train_segmentation import TrainSegmentationSettings  # noqa: E402
from geoeco.training import HabitatSegmentation, train_segmentation  # noqa: E402
from geoeco.training.segmentation_training import CHECKPOINT_EVERY  # noqa: E402
from tests.steps.keywords import keywords  # noqa: E402
from tests.training.drawn_habitats import CLASSES, draw_habitats  # noqa: E402

RECIPE = """
geoeco: 1
name: habitats
seed: 4
steps:
  - verb: train_segmentation
    store: chips/uav.zarr
    network: conv_stack
    arguments: {width: 4, layers: 2}
    epochs: 3
    batch: 4
    lr: 0.03
    cross_entropy: 1.0
    applicability_points: 200
    checkpoint_every: 2
    device: cpu
"""
SPLIT = ["train"] * 8 + ["val"] * 4 + ["test"] * 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of a recipe, with chips."""
    folder = tmp_path_factory.mktemp("recipe")
    draw_habitats(folder / "chips", SPLIT)
    return folder


def recipe(folder: Path, *settings: str, text: str = RECIPE) -> Recipe:
    return Recipe.parse(text, folder=str(folder), settings=list(settings))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return recipe(folder).run(tmp_path_factory.mktemp("run") / "run")


def test_a_run_leaves_a_bundle_scores_curves_and_pictures_in_the_manifest(run):
    assert run.exit_code == 0
    bundle = run.open("train_segmentation")
    assert (bundle.task, bundle.codes) == ("segmentation", (0, 2, 11))
    assert bundle.applicability is not None
    manifest = run.store.read_bytes("manifest.json").decode()
    for name in (
        *("bundle/model.safetensors", "bundle/applicability.safetensors", "bundle/mlm.json", "logs/metrics.csv"),
        *("logs/validation.csv", "evaluation.json", "confusion.csv", "confusion.png", "learning_curve.png"),
    ):
        assert f"train_segmentation/{name}" in manifest
    for name in ("confusion.png", "learning_curve.png"):
        assert run.store.read_bytes(f"train_segmentation/{name}")[:4] == b"\x89PNG"
    rows = json.loads(run.store.read_bytes("train_segmentation/evaluation.json"))
    assert {row["split"] for row in rows} == {"val", "test"}
    assert {"miou", "mf1_present", "mcc", "boundary_f1"} <= {row["metric"] for row in rows}


def test_the_plan_says_what_the_bundle_will_weigh(folder, run):
    (task,) = recipe(folder).plan().steps[0].tasks
    state = run.open("train_segmentation").module.state_dict().values()
    assert task.bytes_out == 9 * sum(value.numel() * value.element_size() for value in state)
    frozen = "arguments={backbone: test_vit}"
    (task,) = recipe(folder, "steps.0.network=dwff", f"steps.0.{frozen}").plan().steps[0].tasks
    module = build("dwff", {"backbone": "test_vit", "num_classes": 3})
    encoder = sum(4 * value.numel() for value in module.encoder.state_dict().values())
    everything = sum(4 * value.numel() for value in module.state_dict().values())
    # checkpoints are without the encoder
    assert task.bytes_out == 9 * (everything - encoder) + encoder


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_run_that_was_stopped_goes_on_from_its_last_checkpoint(folder, run, tmp_path, monkeypatch, where):
    out = str(tmp_path / "run") if where == "local" else f"memory://{tmp_path.name}/run"
    steps = []
    step = HabitatSegmentation.training_step

    def stopping(self, batch, batch_idx):
        steps.append(self.global_step)
        if steps == [0, 1, 2, 3]:
            raise InputError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(HabitatSegmentation, "training_step", stopping)
    assert recipe(folder).run(out).exit_code != 0
    assert not RunStore(out).exists("train_segmentation/bundle/mlm.json")
    assert recipe(folder).run(out).exit_code == 0
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    for name in (
        *("bundle/model.safetensors", "bundle/applicability.safetensors", "logs/metrics.csv", "logs/validation.csv"),
        *("evaluation.json", "confusion.csv"),
    ):
        name = f"train_segmentation/{name}"
        assert RunStore(out).read_bytes(name) == run.store.read_bytes(name), name


def test_what_decides_the_result_is_part_of_the_hash_and_what_does_not_is_not(folder, tmp_path):
    def hash_of(where, *settings):
        return recipe(where, *settings).plan().steps[0].hash

    base = hash_of(folder)
    for same in ("device=auto", "workers=0", "checkpoint_every=9"):
        assert hash_of(folder, f"steps.0.{same}") == base, same
    for other in ("lr=0.1", "epochs=4", "focal=0.4", "arguments={width: 5}", "size=16", "flips=false"):
        assert hash_of(folder, f"steps.0.{other}") != base, other
    assert hash_of(folder, "seed=5") != base
    draw_habitats(tmp_path / "chips", SPLIT[:12])
    assert hash_of(tmp_path) != base


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["network=dwff", "arguments={backbone: test_vit}", "size=24"], "multiples of 16"),
        (["size=64"], "the chips have 32"),
        (["network=smp", "arguments={encoder: resnet1}"], "cannot make Unet"),
        (["arguments={depth: 3}"], "unknown argument 'depth'"),
        (["store=nowhere"], "no store of chips"),
    ],
)
def test_what_cannot_work_is_refused_when_planned(folder, settings, what):
    with pytest.raises(GeoecoError, match=what):
        recipe(folder, *(f"steps.0.{setting}" for setting in settings)).plan()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["network=unet"], "network"),
        (["arguments={num_classes: 3}"], "num_classes"),
        (["encoder_weights=weights.safetensors"], "encoder_weights"),
        (["chips=chips"], "either chips"),
        (["dice=0", "focal=0", "cross_entropy=0"], "above 0"),
        (["epochs=0"], "epochs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_when_read(folder, settings, what):
    with pytest.raises(RecipeError, match=what):
        recipe(folder, *(f"steps.0.{setting}" for setting in settings))


def test_a_weights_file_that_is_not_there_is_refused_when_planned(folder):
    settings = ("network=dwff", "arguments={backbone: test_vit}", "encoder_weights=none.safetensors")
    with pytest.raises(InputError, match="no such file"):
        recipe(folder, *(f"steps.0.{setting}" for setting in settings)).plan()


@pytest.mark.parametrize(
    ("splits", "classes", "what"),
    [
        (["train"] * 4, CLASSES, "the set 'val' of the chips is empty"),
        (["train"] * 2 + ["val"] * 2, CLASSES[:1], "the labels name 1 classes"),
    ],
)
def test_chips_that_cannot_be_learned_from_are_refused_when_planned(tmp_path, splits, classes, what):
    draw_habitats(tmp_path / "chips", splits, classes=classes)
    with pytest.raises(InputError, match=what):
        recipe(tmp_path).plan()


def test_every_setting_is_an_argument_of_the_training_with_the_same_default():
    parameters = {**keywords(train_segmentation), "checkpoint_every": CHECKPOINT_EVERY}
    own = {"step", "name", "verb", "chips", "store"}
    for name, field in TrainSegmentationSettings.model_fields.items():
        if name in own:
            continue
        assert name in parameters, name
        ours, theirs = field.get_default(), parameters[name]
        assert ours == theirs or (ours, theirs) == ({}, None), name


def test_memory_of_the_plan_grows_with_classes_and_windows(folder):
    def memory(*settings):
        return recipe(folder, *(f"steps.0.{s}" for s in settings)).plan().steps[0].tasks[0].memory_bytes

    assert memory("size=16") < memory() < memory("batch=16", "at_once=16")
