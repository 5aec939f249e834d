"""The verb evaluate: a table of scores and its picture; what can be known to be wrong is said when it is planned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

import geoeco  # noqa: E402
from geoeco.engine import RunStore, TaskContext  # noqa: E402
from geoeco.errors import GeoecoError, InputError, RecipeError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.steps.bundles import PlannedModel  # noqa: E402
from geoeco.training import ModelBundle, Normalisation, evaluate, untrained  # noqa: E402
from tests.training.drawn_chips import BANDS, draw_store  # noqa: E402
from tests.training.stores import pixels, store_of  # noqa: E402

ARGUMENTS = {"name": "resnet10t", "in_channels": 3}

RECIPE = """
geoeco: 1
name: scores
inputs:
  tables: {labels: labels.csv}
steps:
  - verb: evaluate
    store: chips
    encoders: {chance: random, first: bundles/first}
    labels: labels
    tasks: {cover: single-label, weather: {kind: regression, columns: [temperature]}}
    folds: 3
    block_m: 150000
    max_epochs: 3
    k: [3]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with chips, labels and two bundles."""
    folder = tmp_path_factory.mktemp("evaluate")
    drawn = draw_store(folder, locations=45, size=8)
    drawn.labels.to_csv(folder / "labels.csv", index=False)
    for position, name in enumerate(("first", "second")):
        torch.manual_seed(position)
        bundle = ModelBundle(
            build("backbone", ARGUMENTS),
            "backbone",
            ARGUMENTS,
            BANDS,
            Normalisation((0.1,) * 3, (0.1,) * 3),
            8,
            name=name,
        )
        bundle.save(folder / "bundles" / name)
    return folder


def recipe(world, **changes):
    text = RECIPE
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return geoeco.Recipe.parse(text, folder=str(world))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return recipe(world).run(out), out


def test_a_run_writes_the_table_the_details_and_a_picture(run, world):
    done, out = run
    assert done.exit_code == 0
    rows = json.loads((out / "evaluate" / "evaluation.json").read_text())
    assert {row["encoder"] for row in rows} == {"chance", "first"}
    assert {row["task"] for row in rows} == {"cover", "weather"}
    assert all(list(row) == ["encoder", "task", "protocol", "split", "metric", "mean", "sd", "n"] for row in rows)
    assert (out / "evaluate" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "Main score of each task, mean over 3 folds" in (out / "report.html").read_text()
    pd.testing.assert_frame_equal(done.open("evaluate"), pd.DataFrame(rows))


def test_the_numbers_are_those_of_the_function(run, world, tmp_path):
    _, out = run
    bundle = ModelBundle.load(world / "bundles" / "first")
    rows = evaluate(
        {"first": bundle},
        str(world / "chips"),
        pd.read_csv(world / "labels.csv"),
        {"cover": "single-label"},
        folder=tmp_path,
        folds=3,
        block_m=150_000,
        linear={"max_epochs": 3},
        knn={"k": 3},
        threads=1,
    )
    written = json.loads((out / "evaluate" / "evaluation.json").read_text())
    assert [row for row in written if row["encoder"] == "first" and row["task"] == "cover"] == rows


def test_random_weights_are_those_of_the_recipes_seed_and_never_those_of_the_bundle(run, world, tmp_path):
    _, out = run

    def features(folder):
        encoders = json.loads((folder / "evaluate" / "evaluation_details.json").read_text())["encoders"]
        return {name: facts["bundle"] for name, facts in encoders.items()}

    first = features(out)
    assert first["chance"] != first["first"]
    quick = ("max_epochs: 3", "protocols: [knn]\n    splits: [random]")
    again = recipe(world, seed=("name: scores", "name: scores\nseed: 7"), quick=quick)
    again.run(tmp_path / "out")
    assert features(tmp_path / "out")["chance"] != first["chance"]
    assert features(tmp_path / "out")["first"] == first["first"]


def test_an_untrained_model_says_so_and_leaves_the_callers_random_numbers_alone(world):
    bundle = ModelBundle.load(world / "bundles" / "first")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = untrained(bundle, seed=1), untrained(bundle, seed=1), untrained(bundle, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.notes == {"weights": "random"}
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert not one.module.training


def test_a_run_that_is_done_is_not_done_again_until_labels_or_bundles_change(world, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("chips", "bundles"):
        (folder / name).symlink_to(world / name)
    table = pd.read_csv(world / "labels.csv")
    table.to_csv(folder / "labels.csv", index=False)

    def hash_of():
        return recipe(folder).plan().steps[0].hash

    before = hash_of()
    assert hash_of() == before
    table.assign(temperature=table["temperature"] + 1).to_csv(folder / "labels.csv", index=False)
    changed = hash_of()
    assert changed != before
    (folder / "bundles").unlink()
    (folder / "bundles").mkdir()
    (folder / "bundles" / "first").symlink_to(world / "bundles" / "second")
    assert hash_of() != changed


def test_labels_that_no_task_reads_do_not_matter(world, tmp_path):
    table = pd.read_csv(world / "labels.csv")
    plans = []
    for number, extra in enumerate((1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("chips", "bundles"):
            (folder / name).symlink_to(world / name)
        table.assign(remark=extra).to_csv(folder / "labels.csv", index=False)
        plans.append(recipe(folder).plan().steps[0].hash)
    assert plans[0] == plans[1]


TRAINED = (
    RECIPE.replace("first: bundles/first", "seco: seco")
    .replace("max_epochs: 3", "protocols: [knn]")
    .replace(
        "steps:",
        """steps:
  - verb: pretrain
    name: seco
    store: chips
    bands: [B02, B04, B08]
    ndvi: false
    backbone: resnet10t
    size: 8
    epochs: 1
    batch: 16
    queue: 16
    device: cpu""",
    )
)


def test_an_encoder_may_be_a_step_of_the_recipe(world, tmp_path):
    trained = geoeco.Recipe.parse(TRAINED, folder=str(world))
    plan = trained.plan()
    assert plan.steps[1].upstream == ("seco",)
    other = geoeco.Recipe.parse(TRAINED.replace("epochs: 1\n", "epochs: 2\n"), folder=str(world))
    assert other.plan().steps[1].hash != plan.steps[1].hash
    done = trained.run(tmp_path / "out")
    assert done.exit_code == 0
    assert set(done.open("evaluate")["encoder"]) == {"chance", "seco"}


def test_the_model_of_a_step_that_failed_is_not_taken_from_its_folder(world, tmp_path):
    trained = geoeco.Recipe.parse(TRAINED, folder=str(world))
    step = trained.plan().steps[1]
    shutil.copytree(world / "bundles" / "first", tmp_path / "seco" / "bundle")
    context = TaskContext(
        store=RunStore(tmp_path),
        folder="evaluate",
        settings=step.settings,
        recipe=trained,
        geobox=None,
        recipe_folder=str(world),
        missing=("seco/training/all",),
    )
    with pytest.raises(InputError, match="encoder 'seco' was not made"):
        step.verb.run(step.settings, step.tasks[0], context)


def test_bands_that_the_chips_lack_are_named_with_the_encoder(world, tmp_path):
    shutil.copytree(world / "bundles", tmp_path / "bundles")
    (tmp_path / "labels.csv").symlink_to(world / "labels.csv")
    store_of(tmp_path / "chips", pixels(4, bands=2), bands=("B02", "B04"))
    with pytest.raises(InputError, match="the encoder 'first' needs B08, which the chips lack"):
        recipe(tmp_path).plan()


@pytest.mark.parametrize(
    "body", ["", "[]", "[" * 200_000, '{"properties": {"geoeco:bundle": {}, "mlm:memory_size": 1e999}}']
)
def test_what_is_no_item_of_a_bundle_is_an_input_error_when_it_is_planned(tmp_path, body):
    (tmp_path / "mlm.json").write_text(body)
    with pytest.raises(InputError, match="not the item of a bundle"):
        PlannedModel.read(str(tmp_path))


@pytest.mark.slow
def test_the_plan_bounds_what_the_task_takes_in_a_process_of_its_own(world, tmp_path):
    (world / "recipe.yaml").write_text(RECIPE)
    command = [str(Path(sys.executable).with_name("geoeco")), "run", "recipe.yaml", "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=world, check=True, capture_output=True)
    record = json.loads((tmp_path / "out" / "ledger" / "evaluate" / "evaluate" / "all.json").read_text())
    assert 0 < record["peak_bytes"] < recipe(world).plan().peak_memory_bytes


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("tasks: {cover", "tasks: {biome"), "no column 'biome'"),
        (("labels: labels\n", "labels: truth\n"), "no table 'truth'"),
        (("labels.csv", "nowhere.csv"), "no such file"),
        (("store: chips", "store: nowhere"), "no finished store of chips"),
        (("store: chips", "chips: chips"), "no earlier step"),
        (("first: bundles/first", "first: bundles/none"), "no model bundle"),
        ((", first: bundles/first}", "}"), "random weights need the architecture"),
    ],
)
def test_what_a_plan_can_know_to_be_wrong_is_said_before_any_work(world, tmp_path, change, what):
    with pytest.raises(GeoecoError, match=what):
        recipe(world, one=change).plan()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("single-label", "ranking"), "ranking"),
        (("store: chips", "store: chips\n    chips: chips"), "either chips"),
        (("folds: 3", "folds: 1"), "folds"),
        (("k: [3]", "k: [0]"), "positive"),
        (("k: [3]", "k: [3, 3]"), "each once"),
        (("folds: 3", "folds: 3\n    random_like: other"), "no encoder 'other'"),
        (("folds: 3", "folds: 3\n    splits: []"), "splits"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_recipe(world, change, what):
    with pytest.raises(RecipeError, match=what):
        recipe(world, one=change)


def test_names_that_do_not_overlap_end_the_run_before_anything_is_embedded(world, tmp_path):
    for name in ("chips", "bundles"):
        (tmp_path / name).symlink_to(world / name)
    table = pd.read_csv(world / "labels.csv")
    table.assign(name="x" + table["name"]).to_csv(tmp_path / "labels.csv", index=False)
    done = recipe(tmp_path).run(tmp_path / "out")
    assert done.exit_code != 0
    assert not (tmp_path / "out" / "evaluate" / "embeddings").exists()
    assert any("no location with an image" in path.read_text() for path in Path(tmp_path / "out").rglob("*.json"))


def test_a_bundle_with_changed_weights_is_refused(world, tmp_path):
    shutil.copytree(world / "bundles", tmp_path / "bundles")
    (tmp_path / "chips").symlink_to(world / "chips")
    (tmp_path / "labels.csv").symlink_to(world / "labels.csv")
    weights = tmp_path / "bundles" / "first" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(InputError, match="checksum"):
        recipe(tmp_path).plan()
