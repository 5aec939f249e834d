"""The verb pretrain: what it refuses, what it leaves, and that it goes on after a stop."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import RunStore  # noqa: E402
from geoeco.errors import ClusterError, GeoecoError, InputError, RecipeError  # noqa: E402
from geoeco.models import create_backbone  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.steps.pretrain import PretrainSettings, _names, training_memory  # noqa: E402
from geoeco.steps.training_files import needs_ml  # noqa: E402
from geoeco.training import ModelBundle, fitting, pretrain, pretraining  # noqa: E402
from tests.steps.keywords import keywords  # noqa: E402
from tests.training.stores import pixels, store_of  # noqa: E402

RECIPE = """
geoeco: 1
name: tiny
seed: 4
inputs: {}
steps:
  - verb: pretrain
    store: store
    bands: [B02, B04, B08]
    backbone: test_resnet
    size: 16
    batch: 4
    epochs: 2
    queue: 8
    dim: 8
    lr: 0.5
    checkpoint_every: 2
    device: cpu
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of a recipe with a store of thirteen places, ten of them in the training set."""
    folder = tmp_path_factory.mktemp("recipe")
    store_of(folder / "store", pixels(13))
    names = [f"place-{i:03d}" for i in range(13)]
    split = pd.DataFrame({"name": names, "split": ["train"] * 10 + ["test"] * 3})
    split.to_parquet(folder / "store" / "split.parquet", index=False)
    pd.DataFrame({"name": names[:2]}).to_csv(folder / "mountains.csv", index=False)
    return folder


def recipe(folder: Path, *settings: str) -> Recipe:
    return Recipe.parse(RECIPE, folder=str(folder), settings=list(settings))


def hash_of(folder: Path, *settings: str) -> str:
    return recipe(folder, *settings).plan().steps[0].hash


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return recipe(folder).run(tmp_path_factory.mktemp("run") / "run")


def test_a_run_leaves_a_bundle_a_curve_and_a_picture_in_the_manifest(run):
    assert run.exit_code == 0
    bundle = run.open("pretrain")
    assert isinstance(bundle, ModelBundle)
    assert bundle.bands == ("B02", "B04", "B08", "ndvi")
    assert bundle.notes["locations"] == 10
    manifest = json.loads(run.store.read_bytes("manifest.json"))
    text = json.dumps(manifest)
    for name in ("bundle/model.safetensors", "bundle/mlm.json", "logs/metrics.csv", "learning_curve.png"):
        assert f"pretrain/{name}" in text
    table = pd.read_csv(io.BytesIO(run.store.read_bytes("pretrain/logs/metrics.csv")))
    # ten places, four a step, two epochs
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert run.store.read_bytes("pretrain/learning_curve.png")[:4] == b"\x89PNG"


def test_a_second_run_does_nothing_and_a_lost_bundle_is_made_again_from_the_checkpoint(folder, run, monkeypatch):
    before = run.store.read_bytes("pretrain/bundle/model.safetensors")
    calls = []
    whole = pretraining.pretrain
    monkeypatch.setattr("geoeco.training.pretrain", lambda *a, **k: calls.append(1) or whole(*a, **k))
    assert recipe(folder).run(run.store.root).exit_code == 0
    assert not calls
    run.store.remove("pretrain/bundle")
    monkeypatch.setattr(fitting.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert recipe(folder).run(run.store.root).exit_code == 0
    assert calls == [1]
    assert run.store.read_bytes("pretrain/bundle/model.safetensors") == before


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_run_that_was_stopped_goes_on_from_its_last_checkpoint(folder, run, tmp_path, monkeypatch, where):
    out = str(tmp_path / "run") if where == "local" else f"memory://{tmp_path.name}/run"
    steps = []
    step = pretraining.SeasonContrast.training_step

    def stopping(self, batch, batch_idx):
        steps.append(self.global_step)
        if steps == [0, 1, 2, 3]:
            raise InputError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(pretraining.SeasonContrast, "training_step", stopping)
    assert recipe(folder).run(out).exit_code != 0
    assert RunStore(out).exists("pretrain/checkpoints/last.ckpt")
    assert not RunStore(out).exists("pretrain/bundle/mlm.json")
    assert recipe(folder).run(out).exit_code == 0
    assert steps == [0, 1, 2, 3, 2, 3]
    for name in ("bundle/model.safetensors", "logs/metrics.csv"):
        assert RunStore(out).read_bytes(f"pretrain/{name}") == run.store.read_bytes(f"pretrain/{name}")


def test_an_edited_recipe_does_not_go_on_with_the_training_of_another(folder, tmp_path):
    recipe(folder).run(tmp_path)
    done = recipe(folder, "steps.0.temperature=0.07").run(tmp_path, rebuild=True)
    assert done.exit_code == 0
    assert done.open("pretrain").notes["settings"]["temperature"] == 0.07
    table = pd.read_csv(io.BytesIO(done.store.read_bytes("pretrain/logs/metrics.csv")))
    assert table["step"].tolist() == [0, 1, 2, 3]


def test_the_control_without_training_says_so(folder, tmp_path):
    run = recipe(folder, "steps.0.method=none").run(tmp_path)
    assert run.exit_code == 0
    assert run.open("pretrain").notes["weights"].startswith("random")
    assert not run.store.exists("pretrain/logs/metrics.csv")


def test_group_norm_is_planned_and_trained(folder, tmp_path):
    changed = recipe(folder, "steps.0.group_norm=true", "steps.0.epochs=1")
    step = changed.plan().steps[0]
    run = changed.run(tmp_path)
    assert run.exit_code == 0
    bundle = run.open("pretrain")
    assert bundle.arguments["group_norm"] is True
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in bundle.module.modules())
    weights = sum(value.numel() * value.element_size() for value in bundle.module.state_dict().values())
    assert step.verb.model(step.settings, None).weight_bytes == weights
    with pytest.raises(RecipeError, match="no batch normalisation to split"):
        recipe(folder, "steps.0.group_norm=true", "steps.0.norm_splits=2")


def test_what_changes_the_result_changes_the_hash_and_nothing_else_does(folder):
    base = hash_of(folder)
    for same in ("device=auto", "workers=1", "checkpoint_every=7", "compile_networks=true"):
        assert hash_of(folder, f"steps.0.{same}") == base, same
    for other in ("temperature=0.1", "views.ndvi=leave", "part=all", "precision=bf16", "lr=0.1"):
        assert hash_of(folder, f"steps.0.{other}") != base, other
    assert hash_of(folder, "seed=5") != base


def test_another_store_or_table_changes_the_hash(folder, tmp_path):
    settings = ("inputs.tables.mountains=mountains.csv", "steps.0.favoured=mountains")
    before = hash_of(folder, *settings)
    (folder / "mountains.csv").write_text("name,weight\nplace-003,4\n")
    assert hash_of(folder, *settings) != before
    run = recipe(folder, *settings).run(tmp_path / "run")
    assert run.exit_code == 0
    store_of(tmp_path / "store", pixels(9))
    assert hash_of(tmp_path) != hash_of(folder)


def test_weights_to_start_from_that_cannot_be_used_are_refused_when_planning(folder, tmp_path):
    (tmp_path / "store").symlink_to(folder / "store")

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    good = create_backbone("test_resnet", 4).state_dict()
    name = next(iter(good))
    for content, what in (
        (Trap(), "more than tensors, or is damaged"),
        ({key: value for key, value in good.items() if key != name}, "the weights lack"),
        (create_backbone("test_resnet", 3).state_dict(), "weights of another shape"),
        ({**good, name: good[name] * float("nan")}, "not finite"),
    ):
        torch.save(content, tmp_path / "start.pth")
        with pytest.raises(InputError, match=what):
            recipe(tmp_path, "steps.0.initial_weights=start.pth").plan()
    assert not (tmp_path / "ran").exists()
    torch.save(good, tmp_path / "start.pth")
    assert recipe(tmp_path, "steps.0.initial_weights=start.pth").plan().steps


def test_a_store_whose_pixels_were_changed_is_another_store_though_its_tables_are_the_same(folder, tmp_path):
    shutil.copytree(folder / "store", tmp_path / "store")
    assert hash_of(tmp_path) == hash_of(folder), "a store is known wherever it lies"
    tables = [(tmp_path / "store" / name).read_bytes() for name in ("chips.parquet", "split.parquet")]
    changed = pixels(13)
    changed[7, 2, 1] = 500
    shutil.rmtree(tmp_path / "store" / "chips.zarr")
    store_of(tmp_path / "store", changed)
    assert tables == [(tmp_path / "store" / name).read_bytes() for name in ("chips.parquet", "split.parquet")]
    assert hash_of(tmp_path) != hash_of(folder)


def test_settings_of_the_step_are_those_of_the_function():
    function = keywords(pretrain)
    fields = PretrainSettings.model_fields
    assert fields["bands"].default == pretraining.DEFAULT_BANDS[:-1]
    shared = [
        name for name in function if name in fields and name not in {"store", "bands", "views", "favoured", "name"}
    ]
    assert len(shared) > 20
    for name in shared:
        assert fields[name].default == function[name], name


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("steps.0.bands=[B02,B04]", "B04 and B08"),
        ("steps.0.bands=[B02,B99]", "no band 'B99'"),
        ("steps.0.queue=10", "no multiple"),
        ("steps.0.chips=somewhere", "either chips"),
        ("steps.0.method=simclr", "simclr|seco"),
        ("steps.0.norm_splits=3", "does not divide"),
        ("steps.0.epochs=0", "epochs"),
        ("steps.0.lr=.inf", "finite"),
        ("steps.0.views.blur_sigma=[0.1, .inf]", "finite"),
    ],
)
def test_recipes_that_cannot_work_are_refused_when_read(folder, setting, what):
    with pytest.raises(RecipeError, match=what):
        recipe(folder, setting)


@pytest.mark.parametrize("content", [b"nonsense", pd.DataFrame({"name": ["a"]}).to_parquet()])
def test_a_split_that_is_no_table_of_sets_is_an_input_error(tmp_path, content):
    (tmp_path / "split.parquet").write_bytes(content)
    with pytest.raises(InputError, match="no table of names and sets"):
        _names(None, str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("steps.0.store=nowhere",), "no finished store"),
        (("steps.0.store=null",), "no earlier step"),
        (("steps.0.backbone=resnet5",), "no network 'resnet5'"),
        (("steps.0.favoured=mountains",), "mountains"),
        (("steps.0.initial_weights=none.pth",), "no such file"),
        (("inputs.tables.m=none.csv", "steps.0.favoured=m"), "no such file"),
        (("steps.0.bands=[B02,B04,B08,B05]",), "needs B05, which the chips lack"),
        (("steps.0.initial_weights=ResNet50_Weights.SENTINEL2_NONE",), "no weights"),
        (("steps.0.initial_weights=ResNet50_Weights.SENTINEL2_ALL_SECO_ECO",), "for 12 channels, the network has 4"),
    ],
)
def test_what_is_not_there_is_refused_when_planning(folder, settings, what):
    with pytest.raises(GeoecoError, match=what):
        recipe(folder, *settings).plan()


@pytest.mark.parametrize(
    ("settings", "code"),
    [(("steps.0.part=val",), "no-locations"), (("steps.0.batch=12", "steps.0.queue=null"), "batch")],
)
def test_what_only_the_chips_can_tell_fails_the_step_before_training(folder, tmp_path, settings, code):
    run = recipe(folder, *settings).run(tmp_path)
    assert run.exit_code == 1
    events = [json.loads(line) for line in run.store.read_bytes("events.jsonl").splitlines()]
    assert [event["code"] for event in events if event["event"] == "TaskFinished"] == [code]
    assert not run.store.exists("pretrain/checkpoints")


def test_a_store_without_a_split_is_used_whole_and_asked_for_a_set_is_refused(tmp_path):
    store_of(tmp_path / "store", pixels(5))
    assert recipe(tmp_path, "steps.0.epochs=1").run(tmp_path / "run").open("pretrain").notes["locations"] == 5
    with pytest.raises(InputError, match="no split"):
        recipe(tmp_path, "steps.0.part=train").plan()


def test_packages_that_are_not_installed_are_named_when_planning():
    with pytest.raises(InputError, match=r"not installed.*'torchlike'") as caught, needs_ml("pretrain"):
        raise ModuleNotFoundError("No module named 'torchlike'", name="torchlike")
    assert "geoeco[ml]" in caught.value.what_to_do


def test_the_plan_says_what_the_model_will_be(folder):
    step = recipe(folder).plan().steps[0]
    model = step.verb.model(step.settings, None)
    assert (model.bands, model.size, model.task) == (("B02", "B04", "B08", "ndvi"), 16, "embedding")
    assert model.weight_bytes > 4 * 1000
    assert np.isfinite(model.features)


def test_a_training_that_does_not_fit_says_that_its_batch_is_to_be_smaller(folder):
    plan = recipe(folder).plan()
    with pytest.raises(ClusterError, match="would need up to") as caught:
        plan.check_memory(plan.peak_memory_bytes - 1)
    assert str(caught.value.what_to_do).startswith("make batch of pretrain smaller, ")


def test_the_plan_of_a_larger_batch_takes_more_memory_and_a_gpu_spares_it():
    small = PretrainSettings(batch=32, queue=None)
    large = PretrainSettings(batch=256, queue=None)
    on_cpu = [training_memory(settings, 10**8, on_gpu=False) for settings in (small, large)]
    assert on_cpu[0] < on_cpu[1]
    assert training_memory(large, 10**8, on_gpu=True) < on_cpu[1]
