"""Species of crowns: data, scores by rarity, what is learned and kept, outliers, that it goes on, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from lightning.pytorch import Callback  # noqa: E402
from sklearn.metrics import f1_score, matthews_corrcoef  # noqa: E402

from geoeco.errors import InputError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.sampling import open_uav_chips  # noqa: E402
from geoeco.training import (  # noqa: E402
    CrownDataset,
    ModelBundle,
    Normalisation,
    OutlierMixing,
    crown_table,
    embed_crowns,
    frequency_bins,
    rarity_scores,
    train_crowns,
)
from geoeco.training.crown_chips import pixel_statistics  # noqa: E402
from geoeco.training.crown_learning import relit  # noqa: E402
from geoeco.training.crown_training import folds_of_blocks, labelled_crowns  # noqa: E402
from tests.training.drawn_crowns import BANDS, draw_crowns  # noqa: E402

SPECIES = ["birch", "larch", "oak"] * 14 + ["birch"] * 4 + ["larch", "oak"]
#: Rows of eight are blocks: three for training, one each for validation and test, the last one for both.
SPLITS = ["train"] * 24 + ["val"] * 12 + ["test"] * 12
SETTINGS = {
    "encoder": "test_resnet",
    "epochs": 3,
    "batch": 8,
    "lr": 0.01,
    # epochs end after three steps
    "checkpoint_every": 2,
    "device": "cpu",
    "seed": 2,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return draw_crowns(tmp_path_factory.mktemp("crowns"), SPECIES, SPLITS)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_crowns(store, folder, contrast=0.5, **SETTINGS)
    return folder


class Stop(Callback):
    """Raise before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == self.step:
            raise KeyError("power cut")


def same(one: Path, other: Path) -> bool:
    files = (
        "bundle/model.safetensors",
        "bundle/mlm.json",
        "logs/metrics.csv",
        "logs/validation.csv",
        "evaluation.json",
    )
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_a_sample_is_what_is_stored_and_a_batch_is_decoded_to_values_with_0_where_nothing_is_known(store):
    data = CrownDataset(store, [5, 0])
    chips = open_uav_chips(store)
    sample = data[1]
    assert torch.equal(sample["image"], torch.from_numpy(chips["image"].values[0]))
    assert int(sample["index"]) == 1
    values = data.decode({name: value[None] for name, value in sample.items()})["image"][0].numpy()
    expected = chips["image"].values[0] * np.float32(1 / 255)
    assert np.allclose(values, np.where(chips["valid"].values[0], expected, 0), atol=1e-7)
    assert (values[:, :4, :4] == 0).all()
    assert (data.all_bands, data.resolution, data.chip_size) == (BANDS, 0.1, 16)


def test_the_table_names_species_sets_and_days(store):
    table = crown_table(store)
    assert table["class_name"].tolist() == SPECIES
    assert table["split"].tolist() == SPLITS
    assert set(table["date"]) == {"2026-07-01"}


def test_statistics_are_those_of_valid_pixels_alone(store):
    chips = open_uav_chips(store)
    values = np.moveaxis(chips["image"].values[:3], 1, 3)[chips["valid"].values[:3]] / 255
    found = pixel_statistics(CrownDataset(store, [0, 1, 2]))
    assert np.allclose(found.mean, values.mean(0))
    assert np.allclose(found.std, values.std(0))


def test_scores_by_rarity_of_a_case_worked_by_hand():
    # classes with 5, 20 and 100 training crowns
    targets = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2])
    found = np.array([0, 2, 1, 1, 0, 2, 2, 2, 0])
    probability = np.full((9, 3), 0.1)
    probability[np.arange(9), found] = 0.8
    scores = rarity_scores(targets, probability, np.array([5, 20, 100]), top=2)
    # precision and recall of class 0: 1 of 3 and 1 of 2
    assert scores["macro_f1:1-10"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert scores["accuracy:1-10"] == 0.5
    assert scores["accuracy:11-50"] == pytest.approx(2 / 3)
    assert scores["accuracy:>50"] == 0.75
    assert scores["accuracy"] == pytest.approx(6 / 9)
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(targets, found))
    assert scores["macro_f1"] == pytest.approx(f1_score(targets, found, average="macro"))
    # the mean over the bins, of one class each, is the macro-F1
    bins = [scores[f"macro_f1:{name}"] for name in frequency_bins()]
    assert np.mean(bins) == pytest.approx(scores["macro_f1"])
    # the true class of a wrong crown shares the last place: it is not taken to be among two
    assert scores["top2_accuracy"] == pytest.approx(6 / 9)


def test_a_bin_without_a_tested_crown_has_no_score():
    scores = rarity_scores(np.array([0, 0]), np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([30, 5]))
    assert "macro_f1:1-10" not in scores
    assert scores["macro_f1:11-50"] == 1.0
    assert np.isnan(scores["mcc"])
    with pytest.raises(InputError, match="cannot be scored"):
        rarity_scores(np.array([0]), np.array([[1.0, 0.0]]), np.array([1, 0]))
    with pytest.raises(InputError, match="edges"):
        frequency_bins((10, 10))


def test_a_training_learns_and_leaves_a_bundle_that_says_what_it_is(store, trained):
    bundle = ModelBundle.load(trained / "bundle")
    assert (bundle.task, bundle.bands, bundle.resolution, bundle.size) == ("classification", BANDS, 0.1, 16)
    assert bundle.classes == ("birch", "larch", "oak")
    assert bundle.notes["crowns"] == {"train": 24, "val": 12, "test": 12}
    assert bundle.notes["never_learned"] == []
    rows = {row["metric"]: row["mean"] for row in json.loads((trained / "evaluation.json").read_text())}
    assert {"macro_f1", "accuracy", "mcc", "macro_f1:1-10", "accuracy:1-10"} == set(rows)
    # a third would be chance
    assert rows["accuracy"] > 0.8
    details = json.loads((trained / "evaluation_details.json").read_text())["results"][0]
    assert np.array(details["confusion"]).sum() == 12
    found = embed_crowns(bundle, store, samples=range(36, 48))
    listed = np.array([details["predictions"][str(crown)] for crown in range(37, 49)])
    assert np.allclose(found.probability, listed, atol=1e-5)
    # the same numbers as the bundle called by itself
    data = CrownDataset(store, [40])
    image = data.decode({name: value[None] for name, value in data[0].items()})["image"]
    assert np.allclose(bundle(image)[0], found.probability[4], atol=1e-5)


def test_the_area_of_applicability_holds_like_crowns_and_not_what_looks_like_no_crown(store, trained, tmp_path):
    bundle = ModelBundle.load(trained / "bundle")
    _, inside = bundle.applicability.predict(embed_crowns(bundle, store, samples=range(24, 48)).features)
    assert inside.mean() > 0.8
    image = torch.rand((20, 3, 16, 16), generator=torch.Generator().manual_seed(0)).mul(8).frac()
    strange = bundle.module.encoder(bundle.normalisation(1 - image)).detach().numpy()
    assert not bundle.applicability.predict(strange)[1].any()


@pytest.mark.parametrize(
    ("blocks", "folds"),
    [
        ([5, 5, 7, 7, 7], [0, 0, 1, 1, 1]),
        ([5, 5, 7, 7, 7, 9], [0, 0, 1, 1, 1, 0]),
        ([5, 5, 7, 9], [0, 0, 3, 3]),
        ([5, 7, 9], None),
        ([5, 5, 5], None),
        ([5, 5, 5, 7], None),
    ],
)
def test_folds_are_blocks_and_lone_crowns_share_one(blocks, folds):
    found = folds_of_blocks(np.array(blocks))
    assert (None if found is None else found.tolist()) == folds


@pytest.mark.parametrize("step", [4])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(store, trained, tmp_path, step):
    with pytest.raises(KeyError, match="power cut"):
        train_crowns(store, tmp_path, contrast=0.5, callbacks=[Stop(step)], **SETTINGS)
    assert not (tmp_path / "bundle").exists()
    train_crowns(store, tmp_path, contrast=0.5, **SETTINGS)
    assert same(trained, tmp_path)


def test_outliers_that_were_mixed_in_make_the_classifier_unsure_of_them(store, tmp_path):
    # crowns that are bare, in the colours of none of the species
    rng = np.random.default_rng(5)
    odd = draw_crowns(tmp_path, ["birch"] * 24, ["none"] * 24, kind="grid", seed=9)
    group = open_uav_chips(odd)
    import zarr

    pixels = zarr.open_group(odd, mode="r+")["image"]
    pixels[...] = rng.integers(120, 250, group["image"].shape).astype(np.uint8)
    surest = {}
    for name, more in (("plain", {}), ("exposed", {"exposure": OutlierMixing("mixup", 5.0), "outliers": odd})):
        settings = {**SETTINGS, "epochs": 6, "patience": None}
        bundle = train_crowns(store, tmp_path / name, **settings, **more)
        outside = bundle(torch.from_numpy(group["image"].values).float() / 255).max(1).values
        surest[name] = float(outside.mean())
    rows = {row["metric"]: row["mean"] for row in json.loads((tmp_path / "exposed" / "evaluation.json").read_text())}
    assert 0.0 <= rows["tnr_at_95_tpr"] <= 1.0
    assert surest["exposed"] < surest["plain"] - 0.1
    assert bundle.notes["settings"]["exposure"] == {"op": "mixup", "beta": 5.0, "alpha": None}


def test_species_without_a_training_crown_are_named_and_scored_nowhere(tmp_path):
    named = ["larch" if name == "larch" else "oak" for name in SPECIES]
    named[30], named[40], named[41] = "birch", "birch", ""
    store = draw_crowns(tmp_path, SPECIES, SPLITS, named=named)
    known = labelled_crowns(store)
    assert known.classes == ("larch", "oak")
    assert known.facts["never_learned"] == ["birch"]
    assert known.facts["crowns"] == {"train": 24, "val": 12, "test": 11}
    assert (len(known.part("val")[0]), len(known.part("test")[0])) == (11, 10)


def test_light_changes_and_what_is_not_known_stays_0():
    image = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    image[:, :, 0] = 0
    torch.manual_seed(1)
    changed = relit(image, 0.2)
    ratio = (changed / image)[:, :, 1:]
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio), rtol=1e-4)
    assert float((ratio - 1).abs().max()) <= 0.2 + 0.1 + 0.02 + 1e-4
    assert float(ratio.std()) > 0.05
    assert (changed[:, :, 0] == 0).all()


def test_an_encoder_brings_its_weights_normalisation_and_size(store, tmp_path):
    arguments = {"name": "test_resnet", "in_channels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = build("backbone", arguments)
    scale = Normalisation((0.4,) * 3, (0.2,) * 3)
    encoder = ModelBundle(module, "backbone", arguments, BANDS, scale, 20, 0.1, name="e")
    bundle = train_crowns(store, tmp_path, **{**SETTINGS, "encoder": encoder, "epochs": 1}, freeze=True)
    assert bundle.normalisation == encoder.normalisation
    # chips of 16 pixels are enlarged to what the encoder saw
    assert bundle.size == 20
    state = bundle.module.encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    other = ModelBundle(module, "backbone", arguments, BANDS, scale, 20, 0.2, name="e")
    with pytest.raises(InputError, match=r"0\.2 m"):
        train_crowns(store, tmp_path, **{**SETTINGS, "encoder": other})


def test_what_cannot_be_learned_from_is_refused_before_any_work(store, tmp_path):
    def refused(what, species=SPECIES, splits=SPLITS, **more):
        drawn = {name: more.pop(name) for name in ("named", "kind") if name in more}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        chips = (
            store
            if species is SPECIES and splits is SPLITS and not drawn
            else draw_crowns(folder, species, splits, **drawn)
        )
        with pytest.raises(InputError, match=what):
            train_crowns(chips, folder / "training", **{**SETTINGS, **more})
        assert not (folder / "training").exists()

    refused("no crown has both", named=[""] * 48)
    refused("'val' holds no crown", splits=["train"] * 40 + ["test"] * 8)
    refused("all crowns of the set 'train' are of the species birch", species=["birch"] * 24 + SPECIES[24:])
    refused("not those of crowns", kind="grid")
    refused("min_valid", min_valid=0.0)
    refused("class_weights", class_weights="some")
    refused("must be positive", epochs=0)
    refused("smaller than the chips", size=8)
    refused("contrast is -1", contrast=-1.0)
    refused("give both or none", exposure=OutlierMixing())
    refused("no network 'resnet5'", encoder="resnet5")
    refused("cannot be had|no weights", weights="resnet18.nothing")
