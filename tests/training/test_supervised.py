"""Training on labelled places: what is learned, what is kept and written, what is refused, and that it goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from lightning.pytorch import Callback  # noqa: E402
from sklearn.metrics import accuracy_score, f1_score  # noqa: E402

from geoeco.errors import InputError, OutputError  # noqa: E402
from geoeco.models import SeasonPredictor, build, create_backbone  # noqa: E402
from geoeco.training import (  # noqa: E402
    ChipDataset,
    ModelBundle,
    Normalisation,
    chip_statistics,
    embed_chips,
    location_features,
    train,
    trained_encoder,
)
from tests.training.drawn_chips import BANDS, draw_store  # noqa: E402

SETTINGS = {
    "task": "single-label",
    "columns": ["cover"],
    "encoder": "test_resnet",
    "epochs": 4,
    "batch": 16,
    "lr": 0.01,
    # epochs end after an even number of steps
    "checkpoint_every": 3,
    "device": "cpu",
    "seed": 4,
}
ARGUMENTS = {"name": "test_resnet", "in_channels": 3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixty places; four lack seasons."""
    return draw_store(
        tmp_path_factory.mktemp("chips"), size=16, without={3: (0,), 4: (0, 1), 9: (2,), 20: (1, 2, 3)}, seed=1
    )


@pytest.fixture(scope="module")
def split(world):
    parts = ["train"] * 34 + ["val"] * 12 + ["test"] * 12 + ["none"] * 2
    return pd.DataFrame({"name": world.labels["name"], "split": parts})


@pytest.fixture(scope="module")
def undisturbed(world, split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(world.store, folder, world.labels, split=split, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build("backbone", ARGUMENTS)
    return ModelBundle(
        module,
        "backbone",
        ARGUMENTS,
        BANDS,
        Normalisation((0.1,) * 3, (0.1,) * 3),
        16,
        name="drawn",
        training_hash="ab",
    )


def rows_of(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def same(one: Path, other: Path) -> bool:
    files = ("bundle/model.safetensors", "logs/metrics.csv", "logs/validation.csv", "evaluation.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


class Stop(Callback):
    """Raise before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == self.step:
            raise KeyError("power cut")


def by_hand(bundle: ModelBundle, store: str, names: list[str], seasons=None) -> np.ndarray:
    """Predictions of places, one after the other, from the bundle's parts."""
    answers = []
    for sample in ChipDataset(store, names=names, bands=bundle.bands, seasons=seasons):
        there = sample["present"] & sample["valid"].flatten(1).any(1)
        features = torch.stack(
            [bundle.module.encoder(bundle.normalisation(image)[None])[0] for image in sample["image"][there]]
        ).mean(0)
        answers.append(torch.softmax(bundle.module.head(features), 0).detach().numpy())
    return np.array(answers)


def test_a_training_leaves_a_bundle_that_knows_its_classes_bands_scale_and_where_its_weights_come_from(
    world, split, undisturbed
):
    bundle = ModelBundle.load(undisturbed / "bundle")
    assert (bundle.task, bundle.classes, bundle.bands) == ("classification", ("field", "grass", "wood"), BANDS)
    training = list(split.loc[split["split"] == "train", "name"])
    measured = chip_statistics(world.store, names=training, bands=BANDS, min_valid=0.9).normalisation
    assert bundle.normalisation == measured
    validation = rows_of(undisturbed / "logs" / "validation.csv")
    best = int(np.argmin([row["loss"] for row in validation])) + 1
    assert bundle.notes["best_epoch"] == best
    assert f"of epoch {best}" in bundle.notes["weights"]
    assert bundle.notes["places"] == {"train": 34, "val": 12, "test": 12}
    assert bundle.notes["encoder"]["start"] == "random weights"
    one = bundle(torch.rand(2, 3, 16, 16))
    assert one.shape == (2, 3)
    torch.testing.assert_close(one.sum(1), torch.ones(2))


def test_every_step_and_every_epoch_is_in_the_tables(undisturbed):
    steps, epochs = rows_of(undisturbed / "logs" / "metrics.csv"), rows_of(undisturbed / "logs" / "validation.csv")
    assert [row["step"] for row in steps] == list(range(8))
    assert list(steps[0]) == ["step", "epoch", "lr", "loss"]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(0, 1), (1, 3), (2, 5), (3, 7)]
    assert list(epochs[0]) == ["epoch", "step", "loss", "macro_f1", "accuracy"]


def test_scores_of_the_test_part_are_those_of_predictions_made_by_hand(world, split, undisturbed):
    bundle = ModelBundle.load(undisturbed / "bundle")
    names = sorted(split.loc[split["split"] == "test", "name"])
    predictions = by_hand(bundle, world.store, names)
    truth = world.labels.set_index("name").loc[names, "cover"]
    found = np.array(bundle.classes)[predictions.argmax(1)]
    rows = json.loads((undisturbed / "evaluation.json").read_text())
    assert [list(row) for row in rows] == [["encoder", "task", "protocol", "split", "metric", "mean", "sd", "n"]] * 2
    score = {row["metric"]: row["mean"] for row in rows}
    assert score["accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert score["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert {(row["encoder"], row["task"], row["protocol"], row["split"], row["n"]) for row in rows} == {
        ("test_resnet", "cover", "trained", "test", 1)
    }
    details = json.loads((undisturbed / "evaluation_details.json").read_text())["results"][0]
    assert details["support"] == truth.value_counts().to_dict()
    assert details["tested"] == [12]
    np.testing.assert_allclose([details["predictions"][name] for name in names], predictions, atol=1e-4)


def test_covers_that_a_season_tells_apart_are_learned(world, split, tmp_path):
    changes = {"epochs": 12, "batch": 8, "lr": 3e-3, "patience": None, "combine": "spring"}
    bundle = train(world.store, tmp_path, world.labels, split=split, **{**SETTINGS, **changes})
    assert bundle.notes["test"]["accuracy"] >= 0.9


def test_the_validation_loss_is_that_of_the_part_at_once_and_the_weights_kept_have_it(world, split, undisturbed):
    bundle = ModelBundle.load(undisturbed / "bundle")
    names = sorted(split.loc[split["split"] == "val", "name"])
    truth = world.labels.set_index("name").loc[names, "cover"]
    given = by_hand(bundle, world.store, names)[range(len(names)), [bundle.classes.index(name) for name in truth]]
    lowest = min(row["loss"] for row in rows_of(undisturbed / "logs" / "validation.csv"))
    assert -np.log(given).mean() == pytest.approx(lowest, rel=1e-4)


@pytest.mark.parametrize("step", [4, 7])
def test_a_training_that_was_stopped_goes_on_bit_by_bit(world, split, undisturbed, tmp_path, step):
    with pytest.raises(KeyError, match="power cut"):
        train(world.store, tmp_path, world.labels, split=split, **SETTINGS, callbacks=[Stop(step)])
    assert not (tmp_path / "bundle").exists()
    torch.manual_seed(step)
    train(world.store, tmp_path, world.labels, split=split, **SETTINGS)
    assert same(tmp_path, undisturbed)


def test_a_training_that_is_done_is_not_done_again_and_other_labels_are_another_training(
    world, split, undisturbed, tmp_path
):
    train(world.store, tmp_path, world.labels, split=split, **SETTINGS)
    (tmp_path / "logs" / "validation.csv").unlink()
    train(world.store, tmp_path, world.labels, split=split, **SETTINGS, callbacks=[Stop(0)])
    assert same(tmp_path, undisturbed)
    other = world.labels.assign(cover=np.roll(world.labels["cover"], 1))
    with pytest.warns(UserWarning, match="of another training"), pytest.raises(KeyError):
        train(world.store, tmp_path, other, split=split, **SETTINGS, callbacks=[Stop(0)])


def test_a_training_ends_after_patience_epochs_and_one_that_ended_so_is_done(world, split, tmp_path):
    settings = {**SETTINGS, "epochs": 30, "batch": 32, "patience": 2, "lr": 0.3, "schedule": "constant"}
    bundle = train(world.store, tmp_path, world.labels, split=split, **settings)
    losses = [row["loss"] for row in rows_of(tmp_path / "logs" / "validation.csv")]
    assert len(losses) < 30
    assert int(np.argmin(losses)) == len(losses) - 1 - 2
    assert bundle.notes["best_epoch"] == len(losses) - 2
    again = train(world.store, tmp_path, world.labels, split=split, **settings, callbacks=[Stop(0)])
    assert again.fingerprint() == bundle.fingerprint()


def test_a_frozen_encoder_stays_as_it_was_and_the_head_sees_the_features_that_probes_see(
    world, split, encoder, tmp_path
):
    settings = {**SETTINGS, "encoder": encoder, "epochs": 1, "freeze": True}
    bundle = train(world.store, tmp_path, world.labels, split=split, **settings)
    before, after = encoder.module.state_dict(), bundle.module.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert bundle.normalisation == encoder.normalisation
    assert bundle.notes["encoder"] == {
        "network": "test_resnet",
        "start": "drawn",
        "training_hash": "ab",
        "how": "frozen",
    }
    features = location_features(embed_chips(encoder, world.store, tmp_path / "embeddings"), "mean")
    details = json.loads((tmp_path / "evaluation_details.json").read_text())["results"][0]
    for name, prediction in details["predictions"].items():
        vector = torch.from_numpy(features.values[list(features["name"].values).index(name)])
        raw = torch.softmax(bundle.module.head(vector), 0).detach().numpy()
        np.testing.assert_allclose(prediction, raw, atol=1e-3)


def test_a_tuned_encoder_starts_at_the_bundles_weights_and_leaves_the_bundle_alone(world, split, encoder, tmp_path):
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    settings = {**SETTINGS, "encoder": encoder, "epochs": 1, "lr": 1e-3, "encoder_lr": 1e-9}
    bundle = train(world.store, tmp_path, world.labels, split=split, **settings)
    assert all(torch.equal(value, before[name]) for name, value in encoder.module.state_dict().items())
    for name, value in bundle.module.encoder.named_parameters():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    moved = bundle.module.encoder.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in moved.items() if "running_mean" in name)


def test_values_come_back_in_their_units(world, split, tmp_path):
    settings = {**SETTINGS, "task": "regression", "columns": ["temperature", "scaled"], "epochs": 6}
    labels = world.labels.assign(scaled=1000 * world.labels["temperature"])
    bundle = train(world.store, tmp_path, labels, split=split, **settings, target_units={"temperature": "degC"})
    assert (bundle.task, bundle.classes) == ("regression", ("temperature", "scaled"))
    assert bundle.notes["target_units"] == {"temperature": "degC"}
    chosen = labels.merge(split, on="name").query("split == 'train'")
    np.testing.assert_allclose(bundle.module.centre, chosen[["temperature", "scaled"]].mean(), rtol=1e-5)
    score = bundle.notes["test"]
    assert score["mae:scaled"] == pytest.approx(1000 * score["mae:temperature"], rel=0.6)
    assert score["mae:temperature"] < 3.0
    loaded = ModelBundle.load(tmp_path / "bundle")
    assert 0 < float(loaded(torch.full((1, 3, 16, 16), 0.1))[0, 0]) < 10


def test_several_labels_may_be_given_and_the_split_be_made_by_blocks(world, tmp_path):
    settings = {**SETTINGS, "task": "multi-label", "columns": ["wood", "light"], "epochs": 1}
    bundle = train(world.store, tmp_path, world.labels, **settings, precision="32", positive_weight=2.0)
    assert bundle.notes["split"] == "blocks"
    assert sum(bundle.notes["places"].values()) <= 60
    assert bundle.notes["least_distance_m"] > 0
    assert ((bundle(torch.rand(2, 3, 16, 16)) > 0) & (bundle(torch.rand(2, 3, 16, 16)) < 1)).all()
    assert {"micro_map", "micro_f1", "macro_f1"} == set(bundle.notes["test"])


def test_a_split_without_a_test_part_gives_no_scores(world, split, tmp_path):
    split = split.replace({"split": {"test": "train"}})
    bundle = train(world.store, tmp_path, world.labels, split=split, **{**SETTINGS, "epochs": 1})
    assert json.loads((tmp_path / "evaluation.json").read_text()) == []
    assert bundle.notes["test"] == {}


def test_one_season_may_be_asked_for_and_classes_that_were_never_learned_are_named(world, split, tmp_path):
    labels = world.labels.assign(cover=world.labels["cover"].where(split["split"] != "test", "moor"))
    bundle = train(world.store, tmp_path, labels, split=split, **{**SETTINGS, "epochs": 1, "combine": "summer"})
    # two of the training places lack it
    assert bundle.notes["places"] == {"train": 32, "val": 12, "test": 12}
    assert bundle.notes["never_learned"] == ["moor"]
    assert bundle.notes["test"]["accuracy"] == 0


def test_seasons_that_are_not_there_take_no_part():
    torch.manual_seed(1)
    model = SeasonPredictor(create_backbone("test_resnet", 3), 4, "single-label")
    image, there = torch.rand(3, 2, 3, 16, 16), torch.tensor([[True, True], [True, False], [False, False]])
    model.train()
    batch = model.raw(image, there)
    model.zero_grad()
    spoiled = image.clone()
    spoiled[~there] = float("nan")
    torch.testing.assert_close(model.raw(spoiled, there), batch)
    torch.testing.assert_close(batch[2], model.head.bias)
    model.eval()
    torch.testing.assert_close(model(image[1:2], there[1:2]), model(image[1:2, 0]))


def test_a_loss_that_is_no_number_ends_the_training(world, split, tmp_path):
    with pytest.raises(OutputError, match="diverged"):
        train(world.store, tmp_path, world.labels, split=split, **{**SETTINGS, "lr": 1e30})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"columns": ["biome"]}, "no column 'biome'"),
        ({"columns": []}, "no column of the labels"),
        ({"task": "guess"}, "no kind of task"),
        ({"task": "regression"}, "must be numbers"),
        ({"epochs": 0}, "must be positive"),
        ({"lr": 0.0}, "learning rates"),
        ({"patience": 0}, "must be positive"),
        ({"min_valid": 0.0}, "min_valid"),
        ({"batch": 40}, "do not fill a batch"),
        ({"combine": "concatenate"}, "may lack seasons"),
        ({"combine": "monsoon"}, "no season 'monsoon'"),
        ({"schedule": "up"}, "schedule is"),
        ({"positive_weight": 2.0}, "positive_weight"),
        ({"encoder": "resnet5"}, "no network"),
        ({"encoder": "vit_tiny_patch16_224"}, "does not take images of 16 x 16 pixels"),
        ({"bands": ("B02", "B05")}, "no band 'B05'"),
        ({"device": "tpu"}, "device is"),
        ({"precision": "bf16"}, "bfloat16 is for GPUs"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(world, split, tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        train(world.store, tmp_path, world.labels, split=split, **{**SETTINGS, **changes})
    assert not list(tmp_path.iterdir())


def test_labels_and_parts_that_cannot_work_are_refused_before_any_work(world, split, tmp_path):
    def refused(labels, parts, what):
        with pytest.raises(InputError, match=what):
            train(world.store, tmp_path, labels, split=parts, **SETTINGS)
        assert not list(tmp_path.iterdir())

    labels = world.labels
    refused(labels.assign(name="elsewhere-" + labels["name"]), split, "no place with an image has a label")
    refused(labels.assign(cover=None), split, "no location has a label")
    refused(labels.assign(cover="wood"), split, "all locations are of the class wood")
    one = labels.assign(cover=labels["cover"].where(split["split"] != "train", "wood"))
    refused(one, split, "part 'train' are of the class wood")
    refused(labels, split.replace({"split": {"val": "none"}}), "the part 'val' holds no labelled place")
    refused(labels, split.replace({"split": {"train": "none"}}), "the part 'train' holds no labelled place")
    refused(labels, split.rename(columns={"split": "part"}), "no column 'split'")
    refused(labels, pd.concat([split, split.head(1)]), "names 'p000' twice")


@pytest.mark.parametrize(
    ("facts", "changes", "what"),
    [
        ({"bands": ("B02", "B04", "B11")}, {}, "no band 'B11'"),
        ({"resolution": 20.0}, {}, "trained on pixels of 20 m"),
        ({}, {"bands": ("B04", "B02", "B08")}, "takes the bands B02, B04, B08"),
        ({"units": "10000"}, {}, "units of '10000'"),
    ],
)
def test_an_encoder_for_other_imagery_is_refused(world, split, encoder, tmp_path, facts, changes, what):
    given = {"bands": BANDS, "resolution": 10.0, "units": "1", **facts}
    other = ModelBundle(encoder.module, "backbone", ARGUMENTS, normalisation=encoder.normalisation, size=16, **given)
    with pytest.raises(InputError, match=what):
        train(world.store, tmp_path, world.labels, split=split, **{**SETTINGS, "encoder": other, **changes})
    assert not list(tmp_path.iterdir())


def test_a_trained_predictor_is_no_encoder(world, split, undisturbed, tmp_path):
    bundle = ModelBundle.load(undisturbed / "bundle")
    with pytest.raises(InputError, match="is no encoder"):
        train(world.store, tmp_path, world.labels, split=split, **{**SETTINGS, "encoder": bundle})


def test_the_encoder_of_a_predictor_is_a_bundle_of_its_own(undisturbed, tmp_path):
    predictor = ModelBundle.load(undisturbed / "bundle")
    trained_encoder(predictor).save(tmp_path)
    encoder = ModelBundle.load(tmp_path)
    assert (encoder.task, encoder.bands, encoder.size) == ("embedding", predictor.bands, predictor.size)
    images = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        answers = predictor.module.meaning(predictor.module.head(encoder(images)))
    torch.testing.assert_close(answers, predictor(images), atol=1e-6, rtol=1e-5)
    assert encoder.notes["encoder_of"] == predictor.fingerprint()
    with pytest.raises(InputError, match="no encoder to be taken out"):
        trained_encoder(encoder)
