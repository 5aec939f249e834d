"""Crowns at two scales: pairs and photos, what alignment learns, the gallery, that it goes on, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from PIL import Image  # noqa: E402

from geoeco.errors import GeoecoError, InputError, ReadError  # noqa: E402
from geoeco.training import CrownDataset, CrownPairs, ModelBundle, align_crowns, gallery_scores, train_crowns  # noqa: E402
from geoeco.training.chip_dataset import Draw  # noqa: E402
from geoeco.training.closeup_pairs import photo_statistics, photos_of_crowns  # noqa: E402
from tests.training.drawn_crowns import appearance, draw_crowns  # noqa: E402
from tests.training.test_crowns import Stop  # noqa: E402

SPECIES = ["birch", "larch", "oak"] * 12
SPLITS = ["train"] * 16 + ["val"] * 8 + ["test"] * 12
SIZE = 16
SETTINGS = {
    "encoder": "test_resnet",
    "epochs": 4,
    "batch": 8,
    "lr": 0.003,
    "closeup_size": 24,
    "temperature": 0.2,
    "checkpoint_every": 3,
    "device": "cpu",
    "seed": 3,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[str, Path, pd.DataFrame]:
    """Chips of 36 crowns, and one or two photos of each but every sixth."""
    folder = tmp_path_factory.mktemp("crowns")
    store = draw_crowns(folder, SPECIES, SPLITS, size=SIZE)
    rng = np.random.default_rng(8)
    rows = []
    (folder / "photos").mkdir()
    for crown, species in enumerate(SPECIES, start=1):
        for number in range(0 if crown % 6 == 0 else 1 + crown % 2):
            name = f"photos/{crown:03d}_{number}.png"
            pixels = np.moveaxis(appearance(species, 24, rng, noise=0.02), 0, -1)
            Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(folder / name)
            rows.append({"photo": name, "crown_id": crown})
    rows.append({"photo": "photos/nobody.png", "crown_id": 0})
    return store, folder, pd.DataFrame(rows)


@pytest.fixture(scope="module")
def aligned(world, tmp_path_factory) -> Path:
    store, photos, pairs = world
    folder = tmp_path_factory.mktemp("aligned")
    align_crowns(store, folder, pairs, photos, **SETTINGS)
    return folder


def pairs_of(world, **more) -> CrownPairs:
    store, photos, table = world
    named = photos_of_crowns(table)
    with_photo = [crown for crown in range(1, 17) if crown in named]
    chips = CrownDataset(store, [crown - 1 for crown in with_photo])
    return CrownPairs(chips, with_photo, photos, named, size=24, **more)


def test_a_photo_goes_with_its_crown_so_that_no_two_sets_share_the_photos_of_a_crown(world):
    _, _, table = world
    named = photos_of_crowns(table)
    assert 6 not in named
    assert named[1] == ("photos/001_0.png", "photos/001_1.png")
    sets = {photo: SPLITS[crown - 1] for crown, photos in named.items() for photo in photos}
    # each photo is of one crown, each crown of one set
    assert sorted(sets) == sorted(table.loc[table["crown_id"] > 0, "photo"])
    with pytest.raises(InputError, match="listed for two crowns"):
        photos_of_crowns(pd.concat([table, pd.DataFrame([{"photo": "photos/001_0.png", "crown_id": 2}])]))


def test_photos_are_drawn_by_crown_and_epoch_alone_and_missing_ones_are_marked(world):
    pairs = pairs_of(world, per_crown=2, seed=1)
    sample = pairs[0]
    assert sample["closeup"].shape == (2, 3, 24, 24)
    assert sample["closeup_there"].tolist() == [True, True]
    one = pairs[1]
    assert one["closeup_there"].tolist() == [True, False]
    assert not one["closeup"][1].any()
    single = pairs_of(world, per_crown=1, seed=1)
    drawn = {single.drawn(Draw(0, epoch)) for epoch in range(12)}
    assert drawn == {("photos/001_0.png",), ("photos/001_1.png",)}
    again = pairs_of(world, per_crown=1, seed=1)
    assert [again.drawn(Draw(0, epoch)) for epoch in range(12)] == [single.drawn(Draw(0, epoch)) for epoch in range(12)]
    values = pairs.decode({name: value[None] for name, value in sample.items()})["closeup"]
    assert torch.equal(values[0], sample["closeup"].float() / 255)


def test_statistics_of_photos_are_those_of_all_their_pixels(world):
    _, photos, table = world
    names = table["photo"][:5].tolist()
    values = np.stack([np.asarray(Image.open(photos / name)) for name in names]) / 255
    found = photo_statistics(photos, names, 24)
    assert np.allclose(found.mean, values.mean((0, 1, 2)))
    assert np.allclose(found.std, values.std((0, 1, 2)))


def test_alignment_leaves_the_encoder_of_chips_and_what_neighbours_tell(world, aligned):
    bundle = ModelBundle.load(aligned / "bundle")
    assert (bundle.task, bundle.architecture, bundle.size) == ("embedding", "backbone", SIZE)
    assert bundle.notes["crowns_learned"] == 14
    rows = json.loads((aligned / "evaluation.json").read_text())
    score = {(row["encoder"], row["metric"]): row["mean"] for row in rows}
    assert {encoder for encoder, _ in score} == {"random", "aligned", "close-up"}
    # the loss goes down, and a third of the species would be right by chance
    losses = pd.read_csv(aligned / "logs" / "metrics.csv")
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]
    assert list(losses.columns[-2:]) == ["loss_0", "accuracy_0"]
    assert score["aligned", "accuracy"] > 0.5
    assert 0 <= score["aligned", "crown_retrieval"] <= 1


def test_the_encoder_starts_a_training_on_species(world, aligned, tmp_path):
    encoder = ModelBundle.load(aligned / "bundle")
    bundle = train_crowns(world[0], tmp_path, encoder=encoder, epochs=1, batch=8, freeze=True, device="cpu", lr=0.01)
    assert bundle.notes["encoder"]["training_hash"] == encoder.training_hash


def test_an_alignment_that_was_stopped_goes_on_to_the_same_bytes(world, aligned, tmp_path):
    store, photos, pairs = world
    with pytest.raises(KeyError, match="power cut"):
        align_crowns(store, tmp_path, pairs, photos, callbacks=[Stop(2)], **{**SETTINGS, "checkpoint_every": 1})
    align_crowns(store, tmp_path, pairs, photos, **SETTINGS)
    for name in ("bundle/model.safetensors", "bundle/mlm.json", "logs/metrics.csv", "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (aligned / name).read_bytes(), name


def test_a_gallery_of_features_that_tell_the_species_is_right_and_rare_ones_have_a_bin():
    species = ["a"] * 30 + ["b"] * 6 + ["", "c"]
    splits = (
        (["train"] * 20 + ["val"] * 5 + ["test"] * 5) + (["train"] * 2 + ["val"] * 2 + ["test"] * 2) + ["train", "test"]
    )
    angle = np.array([0.0 if name == "a" else 2.0 for name in species]) + np.linspace(0, 0.3, len(species))
    features = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    found = gallery_scores(features, species, splits)
    # neither the crown that nobody named nor that of a species without one in the gallery is asked
    assert found.outputs == ("a", "b")
    assert found.folds[0].test.tolist() == [25, 26, 27, 28, 29, 34, 35]
    assert found.mean["macro_f1:1-10"] == found.mean["accuracy:11-50"] == 1.0
    with pytest.raises(InputError, match="holds 1 species"):
        gallery_scores(features[:30], species[:30], splits[:30])
    with pytest.raises(InputError, match="'val' holds no crown"):
        gallery_scores(features, species, ["test" if part == "val" else part for part in splits])


def test_what_cannot_be_aligned_is_refused_before_any_work(world, tmp_path):
    store, photos, pairs = world

    def refused(kind, what, table=pairs, folder=photos, **more):
        with pytest.raises(kind, match=what):
            align_crowns(store, tmp_path / "training", table, folder, **{**SETTINGS, **more})
        assert not (tmp_path / "training").exists()

    refused(InputError, "no photo shows a crown", pairs.assign(crown_id=0))
    refused(InputError, "0 crowns of the set 'train'", pairs[pairs["crown_id"] > 16])
    refused(InputError, "no column 'photo'", pairs.drop(columns="photo"))
    refused(InputError, "does not lie in the folder", pairs.assign(photo="../" + pairs["photo"]))
    refused(ReadError, "no such photo", folder=tmp_path)
    refused(InputError, "must be positive", closeups=0)
    refused(InputError, "jitter", jitter=1.0)
    refused(GeoecoError, "no network", encoder="resnet5")
