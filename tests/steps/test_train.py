"""The verb train: what it refuses, what it leaves, and that it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import RunStore  # noqa: E402
from geoeco.errors import GeoecoError, InputError, RecipeError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.steps.train import TrainSettings  # noqa: E402
from geoeco.training import ModelBundle, Normalisation, SeasonPrediction, train  # noqa: E402
from tests.steps.keywords import keywords  # noqa: E402
from tests.training.drawn_chips import BANDS, draw_store  # noqa: E402

RECIPE = """
geoeco: 1
name: covers
seed: 4
inputs:
  tables: {labels: labels.csv}
steps:
  - verb: train
    store: chips
    labels: labels
    task: single-label
    columns: [cover]
    backbone: test_resnet
    bands: [B02, B04, B08]
    epochs: 2
    batch: 16
    lr: 0.01
    checkpoint_every: 2
    device: cpu
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def split_of(drawn, parts):
    return pd.DataFrame({"name": drawn.labels["name"], "split": parts})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of a recipe: chips of fifty places with a split, labels, a bundle."""
    folder = tmp_path_factory.mktemp("recipe")
    drawn = draw_store(folder, locations=50, size=12)
    split_of(drawn, ["train"] * 32 + ["val"] * 9 + ["test"] * 9).to_parquet(folder / "chips" / "split.parquet")
    drawn.labels.to_csv(folder / "labels.csv", index=False)
    for name, bands in (("bundle", BANDS), ("foreign", ("B02", "B04", "B11"))):
        torch.manual_seed(1)
        arguments = {"name": "test_resnet", "in_channels": 3}
        scale = Normalisation((0.1,) * 3, (0.1,) * 3)
        ModelBundle(build("backbone", arguments), "backbone", arguments, bands, scale, 12, name=name).save(
            folder / name
        )
    return folder


def recipe(folder: Path, *settings: str, text: str = RECIPE) -> Recipe:
    return Recipe.parse(text, folder=str(folder), settings=list(settings))


def with_encoder(source: str) -> str:
    return RECIPE.replace("backbone: test_resnet\n    bands: [B02, B04, B08]", f"encoder: {source}")


def hash_of(folder: Path, *settings: str) -> str:
    return recipe(folder, *settings).plan().steps[0].hash


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return recipe(folder).run(tmp_path_factory.mktemp("run") / "run")


def test_a_run_leaves_a_bundle_scores_curves_and_a_picture_in_the_manifest(run):
    assert run.exit_code == 0
    bundle = run.open("train")
    assert (bundle.task, bundle.classes) == ("classification", ("field", "grass", "wood"))
    assert bundle.bands == (*BANDS, "ndvi")
    assert bundle.notes["places"] == {"train": 32, "val": 9, "test": 9}
    manifest = run.store.read_bytes("manifest.json").decode()
    for name in (
        *("bundle/model.safetensors", "bundle/mlm.json", "logs/metrics.csv", "logs/validation.csv"),
        *("evaluation.json", "evaluation_details.json", "learning_curve.png"),
    ):
        assert f"train/{name}" in manifest
    assert run.store.read_bytes("train/learning_curve.png")[:4] == b"\x89PNG"
    rows = json.loads(run.store.read_bytes("train/evaluation.json"))
    assert {row["metric"] for row in rows} == {"macro_f1", "accuracy"}


def test_the_plan_says_what_the_model_will_be(folder, run):
    plan = recipe(folder).plan()
    step = plan.steps[0]
    state = run.open("train").module.state_dict().values()
    (task,) = step.tasks
    assert task.bytes_out == 6 * sum(value.numel() * value.element_size() for value in state)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_run_that_was_stopped_goes_on_from_its_last_checkpoint(folder, run, tmp_path, monkeypatch, where):
    out = str(tmp_path / "run") if where == "local" else f"memory://{tmp_path.name}/run"
    steps = []
    step = SeasonPrediction.training_step

    def stopping(self, batch, batch_idx):
        steps.append(self.global_step)
        if steps == [0, 1, 2, 3]:
            raise InputError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SeasonPrediction, "training_step", stopping)
    assert recipe(folder).run(out).exit_code != 0
    assert not RunStore(out).exists("train/bundle/mlm.json")
    assert recipe(folder).run(out).exit_code == 0
    assert steps == [0, 1, 2, 3, 2, 3]
    for name in ("bundle/model.safetensors", "logs/metrics.csv", "logs/validation.csv", "evaluation.json"):
        assert RunStore(out).read_bytes(f"train/{name}") == run.store.read_bytes(f"train/{name}")


def test_an_encoder_comes_from_a_bundle_or_from_a_step_of_the_recipe(folder, tmp_path):
    pretraining = """  - verb: pretrain
    store: chips
    part: all
    bands: [B02, B04, B08]
    ndvi: false
    backbone: test_resnet
    method: none
    size: 12
    batch: 4
    views: {blur_sigma: [0.1, 1.0]}
    device: cpu
"""
    text = with_encoder("pretrain").replace("steps:\n", f"steps:\n{pretraining}")
    done = recipe(folder, "steps.1.freeze=true", "steps.1.epochs=1", text=text).run(tmp_path / "step")
    assert done.exit_code == 0
    encoder, bundle = done.open("pretrain"), done.open("train")
    assert bundle.notes["encoder"]["training_hash"] == encoder.training_hash
    found = bundle.module.encoder.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in encoder.module.state_dict().items())
    given = recipe(folder, "steps.0.epochs=1", text=with_encoder("bundle")).run(tmp_path / "bundle")
    assert given.open("train").bands == BANDS
    assert given.open("train").notes["encoder"]["start"] == "bundle"


def test_what_changes_the_result_changes_the_hash_and_nothing_else_does(folder):
    base = hash_of(folder)
    for same in ("device=auto", "workers=1", "checkpoint_every=7"):
        assert hash_of(folder, f"steps.0.{same}") == base, same
    for other in ("lr=0.1", "freeze=true", "patience=null", "combine=summer"):
        assert hash_of(folder, f"steps.0.{other}") != base, other
    assert hash_of(folder, "seed=5") != base


def test_other_labels_change_the_hash_and_other_columns_of_the_table_do_not(folder, tmp_path):
    for name in ("chips", "bundle"):
        (tmp_path / name).symlink_to(folder / name)
    table = pd.read_csv(folder / "labels.csv")
    table.assign(note="x").to_csv(tmp_path / "labels.csv", index=False)
    assert hash_of(tmp_path) == hash_of(folder)
    table.assign(cover=table["cover"].replace("wood", "heath")).to_csv(tmp_path / "labels.csv", index=False)
    assert hash_of(tmp_path) != hash_of(folder)


def test_settings_of_the_step_are_those_of_the_function():
    function = keywords(train)
    fields = TrainSettings.model_fields
    apart = {"store", "labels", "task", "columns", "encoder", "bands", "name", "split"}
    shared = [name for name in function if name in fields and name not in apart]
    assert len(shared) > 15
    for name in shared:
        assert fields[name].default == function[name], name
    for name, value in fields["split"].default.model_dump().items():
        assert value == function[name], name


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("steps.0.encoder=bundle", "either encoder"),
        ("steps.0.backbone=null", "either encoder"),
        ("steps.0.chips=somewhere", "either chips"),
        ("steps.0.columns=[cover,wood]", "one column"),
        ("steps.0.columns=[]", "columns"),
        ("steps.0.bands=[B99]", "no band 'B99'"),
        ("steps.0.positive_weight=2", "multi-label tasks only"),
        ("steps.0.combine=concatenate", "may lack seasons"),
        ("steps.0.min_valid=0", "min_valid"),
        ("steps.0.patience=0", "patience"),
    ],
)
def test_recipes_that_cannot_work_are_refused_when_read(folder, setting, what):
    with pytest.raises(RecipeError, match=what):
        recipe(folder, setting)


def test_an_encoder_brings_its_own_bands(folder):
    with pytest.raises(RecipeError, match="leave bands and ndvi out"):
        recipe(folder, "steps.0.ndvi=false", text=with_encoder("bundle"))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("steps.0.store=nowhere",), "no finished store"),
        (("steps.0.store=null",), "no earlier step"),
        (("steps.0.labels=nothing",), "nothing"),
        (("steps.0.columns=[biome]",), "no column 'biome'"),
        (("steps.0.backbone=resnet5",), "no network 'resnet5'"),
        (("steps.0.bands=[B02,B04,B08,B11]",), "needs B11, which the chips lack"),
    ],
)
def test_what_is_not_there_is_refused_when_planning(folder, settings, what):
    with pytest.raises(GeoecoError, match=what):
        recipe(folder, *settings).plan()


def test_labels_and_models_that_cannot_be_used_are_refused_when_planning(folder, tmp_path, run):
    (tmp_path / "chips").symlink_to(folder / "chips")
    table = pd.read_csv(folder / "labels.csv")

    def refused(labels, what):
        labels.to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(InputError, match=what):
            recipe(tmp_path).plan()

    refused(table.assign(name="q" + table["name"]), "no place of the chips has a label")
    refused(table.assign(cover="wood"), "all labels are of the class wood")
    refused(table.assign(cover=None), "no place has a label")
    refused(table.head(32), "the set 'val' of the split holds no labelled place")
    refused(table.tail(18), "the set 'train' of the split holds no labelled place")
    for source, what in (
        ("foreign", "needs B11"),
        ("nothing", "no model bundle"),
        (run.store.url("train/bundle"), "no encoder"),
    ):
        with pytest.raises(InputError, match=what):
            recipe(folder, text=with_encoder(source)).plan()
