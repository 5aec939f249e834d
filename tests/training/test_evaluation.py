"""Evaluation of encoders: the right numbers, on the same ground for all, and errors before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError, OutputError  # noqa: E402
from geoeco.training import (  # noqa: E402
    ProbeTask,
    block_folds,
    embed_chips,
    evaluate,
    knn_probe,
    location_features,
    random_folds,
)
from geoeco.training.folds import assert_apart, places_of  # noqa: E402

from .drawn_chips import Means, bundle_of, draw_store  # noqa: E402

torch.set_num_threads(1)

TASKS = {
    "cover": "single-label",
    "temperature": "regression",
    "kind": ProbeTask("multi-label", ("wood", "light")),
}
QUICK = {"folds": 3, "block_m": 150_000, "linear": {"max_epochs": 30, "lr": 0.2, "scale": True}, "knn": {"k": (1, 3)}}


class Blind(torch.nn.Module):
    """The same answer to everything, but for a trace of noise."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, image):
        return self.gain + 1e-6 * image[:, :1, 0, 0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_store(tmp_path_factory.mktemp("drawn"), locations=60, size=8, without={3: (1, 3)})


@pytest.fixture(scope="module")
def done(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    encoders = {"means": bundle_of(Means()), "blind": bundle_of(Blind())}
    rows = evaluate(encoders, drawn.store, drawn.labels, TASKS, folder=folder, combine="concatenate", **QUICK)
    return folder, rows


def by(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_the_table_has_a_row_for_every_encoder_task_protocol_split_and_metric(done):
    folder, rows = done
    assert json.loads((folder / "evaluation.json").read_text()) == rows
    assert {tuple(row) for row in rows} == {("encoder", "task", "protocol", "split", "metric", "mean", "sd", "n")}
    metrics = {
        "cover": ("macro_f1", "accuracy"),
        "temperature": ("r2", "mae", "rmse"),
        "kind": ("micro_map", "micro_f1", "macro_f1"),
    }
    for encoder in ("means", "blind"):
        for task, names in metrics.items():
            for protocol in ("linear", "knn"):
                for split in ("random", "blocks"):
                    found = by(rows, encoder=encoder, task=task, protocol=protocol, split=split)
                    assert tuple(row["metric"] for row in found) == names
                    assert all(row["n"] == 3 for row in found)
    assert len(rows) == 2 * 2 * 2 * 8


def test_an_encoder_that_sees_beats_one_that_does_not(done):
    _, rows = done
    for protocol in ("linear", "knn"):
        for split in ("random", "blocks"):
            for task, metric, good in (("cover", "macro_f1", 0.9), ("kind", "micro_map", 0.9)):
                (seeing,) = by(rows, encoder="means", task=task, protocol=protocol, split=split, metric=metric)
                (blind,) = by(rows, encoder="blind", task=task, protocol=protocol, split=split, metric=metric)
                assert seeing["mean"] > good
                assert blind["mean"] < 0.7


def test_the_numbers_are_those_of_the_probe_on_the_embeddings(drawn, done, tmp_path):
    _, rows = done
    features = location_features(embed_chips(bundle_of(Means()), drawn.store, tmp_path), "concatenate")
    kept = np.isfinite(features.values).all(axis=1)
    table = drawn.labels.set_index("name").loc[features["name"].values[kept]].sort_index()
    x = features.isel(sample=np.flatnonzero(kept)).sortby("name").values
    where = drawn.chips.isel(sample=np.flatnonzero(kept)).sortby("name")
    folds = {
        "random": random_folds(len(x), folds=3),
        "blocks": block_folds(where["lon"].values, where["lat"].values, folds=3, block_m=150_000, size_m=80),
    }
    for split, parts in folds.items():
        expected = knn_probe(x, table["temperature"].to_numpy(), task="regression", folds=parts, k=(1, 3))
        for metric in ("r2", "mae", "rmse"):
            (row,) = by(rows, encoder="means", task="temperature", protocol="knn", split=split, metric=metric)
            assert row["mean"] == pytest.approx(expected.mean[metric], abs=1e-5)
            assert row["sd"] == pytest.approx(expected.sd[metric], abs=1e-5)


def test_the_details_say_what_stands_behind_a_mean(done):
    folder, rows = done
    details = json.loads((folder / "evaluation_details.json").read_text())
    assert details["tasks"]["cover"]["locations"] == 59
    assert details["tasks"]["cover"]["duplicates"] == 0
    assert details["tasks"]["cover"]["least_distance_m"] > 80
    for result in details["results"]:
        about = {key: result[key] for key in ("encoder", "task", "protocol", "split")}
        for row in by(rows, **about):
            assert row["mean"] == pytest.approx(np.mean(result["scores"][row["metric"]]))
        assert sum(result["tested"]) == 59
        assert {"epochs", "best_epoch"} == set(result["chosen"][0]) or result["chosen"][0]["k"] in (1, 3)


def test_the_same_call_gives_the_same_bytes_and_embeds_nothing_again(drawn, tmp_path):
    module, written = Means(), []
    for labels in (drawn.labels, drawn.labels.sample(frac=1, random_state=0)):
        module.batches.clear()
        evaluate(
            {"means": bundle_of(module)},
            drawn.store,
            labels,
            {"cover": "single-label"},
            folder=tmp_path,
            splits=["random"],
            folds=3,
            linear={"max_epochs": 5},
        )
        written.append([(tmp_path / name).read_bytes() for name in ("evaluation.json", "evaluation_details.json")])
    assert module.batches == []
    assert written[0] == written[1]


def test_an_evaluation_that_was_killed_half_way_goes_on_from_the_embeddings_that_are_whole(drawn, tmp_path):
    def power_cut(module, inputs):
        if len(module.batches) == 2:
            raise KeyboardInterrupt

    def score(folder, second):
        with torch.no_grad():
            second.gain.fill_(2.0)
        encoders = {"first": bundle_of(first), "second": bundle_of(second)}
        options = {"splits": ["random"], "folds": 3, "linear": {"max_epochs": 5}, "batch": 64}
        evaluate(encoders, drawn.store, drawn.labels, {"cover": "single-label"}, folder=folder, **options)
        return [(folder / name).read_bytes() for name in ("evaluation.json", "evaluation_details.json")]

    first = Means()
    undisturbed = score(tmp_path / "whole", Means())
    first.batches.clear()
    broken = Means()
    broken.register_forward_pre_hook(power_cut)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "killed", broken)
    assert first.batches
    assert not (tmp_path / "killed" / "evaluation.json").exists()
    first.batches.clear()
    assert score(tmp_path / "killed", Means()) == undisturbed
    assert first.batches == [], "what is whole is not embedded again"


def test_all_encoders_are_scored_on_the_locations_that_each_of_them_sees(drawn, tmp_path):
    """Of two stores, and with a window in which a chip holds nothing."""
    other = draw_store(
        tmp_path / "other", locations=60, size=8, seed=1, without={7: (0, 1, 2, 3)}, invalid={9: (0, 1, 2, 3)}
    )
    encoders = {"whole": bundle_of(Means()), "centre": bundle_of(Means(), size=4)}
    stores = {"whole": drawn.store, "centre": other.store}
    evaluate(
        encoders,
        stores,
        drawn.labels,
        {"cover": "single-label"},
        folder=tmp_path,
        protocols=["knn"],
        splits=["random"],
        folds=3,
    )
    facts = json.loads((tmp_path / "evaluation_details.json").read_text())["tasks"]["cover"]
    assert facts["locations"] == 58
    with pytest.raises(InputError, match="no store is given for the encoder 'centre'"):
        evaluate(encoders, {"whole": drawn.store}, drawn.labels, {"cover": "single-label"}, folder=tmp_path)


def test_locations_without_a_label_are_left_out_of_that_task_alone(drawn, tmp_path):
    labels = drawn.labels.copy()
    labels.loc[:9, "temperature"] = np.nan
    labels = pd.concat([labels, pd.DataFrame([{"name": "elsewhere", "cover": "wood", "temperature": 3.0}])])
    evaluate(
        {"means": bundle_of(Means())},
        drawn.store,
        labels,
        {"cover": "single-label", "temperature": "regression"},
        folder=tmp_path,
        protocols=["knn"],
        splits=["random"],
        folds=3,
    )
    facts = json.loads((tmp_path / "evaluation_details.json").read_text())["tasks"]
    assert facts["cover"]["locations"] == 60
    assert facts["temperature"] == {
        "kind": "regression",
        "columns": ["temperature"],
        "locations": 50,
        "without_image": 1,
        "without_label": 10,
        "duplicates": 0,
    }


def test_labels_of_whole_numbers_name_the_locations_too(tmp_path):
    drawn = draw_store(tmp_path, locations=20, size=4, names="{}")
    labels = drawn.labels.assign(name=drawn.labels["name"].astype(int))
    rows = evaluate(
        {"means": bundle_of(Means(), size=4)},
        drawn.store,
        labels,
        {"cover": "single-label"},
        folder=tmp_path,
        protocols=["knn"],
        splits=["random"],
        folds=3,
    )
    assert len(rows) == 2


def test_one_output_of_several_has_scores_in_its_own_units(drawn, tmp_path):
    labels = drawn.labels.assign(kelvin=drawn.labels["temperature"] + 273.15)
    task = {"climate": ProbeTask("regression", ("temperature", "kelvin"))}
    rows = evaluate(
        {"means": bundle_of(Means())},
        drawn.store,
        labels,
        task,
        folder=tmp_path,
        protocols=["knn"],
        splits=["random"],
        folds=3,
    )
    found = {row["metric"]: row["mean"] for row in rows}
    assert next(iter(found)) == "r2"
    assert found["mae:kelvin"] == pytest.approx(found["mae:temperature"], rel=1e-3)


def test_the_settings_of_the_probes_reach_them(drawn, tmp_path):
    options = {"folder": tmp_path, "splits": ["random"], "folds": 3}
    encoders, task = {"means": bundle_of(Means())}, {"cover": "single-label"}
    evaluate(encoders, drawn.store, drawn.labels, task, linear={"max_epochs": 2}, knn={"k": 7}, **options)
    chosen = [r["chosen"][0] for r in json.loads((tmp_path / "evaluation_details.json").read_text())["results"]]
    assert chosen[0]["epochs"] == 2
    assert chosen[1] == {"k": 7}
    with pytest.raises(InputError, match="linear has no setting 'epochs'"):
        evaluate(encoders, drawn.store, drawn.labels, task, linear={"epochs": 2}, **options)


def test_random_folds_tell_of_duplicates_and_keep_them_together_on_request(tmp_path):
    drawn = draw_store(tmp_path, locations=40, size=4)
    twin = draw_store(tmp_path / "twin", locations=40, size=4, names="twin{:03d}")
    # both worlds are drawn with one seed: their places are the same
    np.testing.assert_array_equal(drawn.chips["lon"].values, twin.chips["lon"].values)
    lon, lat = (np.tile(drawn.chips[name].values, 2) for name in ("lon", "lat"))
    with pytest.raises(OutputError, match="that its fold learns from"):
        assert_apart(random_folds(80), lon, lat)
    assert assert_apart(random_folds(80, groups=places_of(lon, lat)), lon, lat) > 0


class Never(Means):
    """An encoder that must not be asked."""

    def forward(self, image):
        raise AssertionError("a pixel was embedded before all was checked")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"encoders": {}}, "no encoders"),
        ({"tasks": {}}, "no tasks"),
        ({"tasks": {"cover": "ranking"}}, "no kind of task 'ranking'"),
        ({"tasks": {"biome": "single-label"}}, "no column 'biome'"),
        ({"tasks": {"both": ProbeTask("single-label", ("cover", "wood"))}}, "in one column, not in 2"),
        ({"tasks": {"cover": "regression"}}, "must be numbers"),
        ({"tasks": {"temperature": "multi-label"}}, "must hold 0 or 1"),
        ({"tasks": {"temperature": "distribution"}}, "must sum to one"),
        ({"tasks": {"temperature": "single-label"}}, "one member only"),
        ({"protocols": ["svm"]}, "protocols are"),
        ({"protocols": []}, "protocols are"),
        ({"splits": ["random", "random"]}, "splits are"),
        ({"folds": 59}, "too few for 59 folds"),
        ({"block_m": 5_000_000}, "too few for 3 folds"),
        ({"buffer_m": 900_000}, "is empty"),
        ({"combine": "monsoon"}, "no season 'monsoon'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_embedded(drawn, tmp_path, change, what):
    given = {
        "encoders": {"never": bundle_of(Never())},
        "store": drawn.store,
        "labels": drawn.labels,
        "tasks": {"cover": "single-label"},
        "folds": 3,
        "block_m": 150_000,
    } | change
    with pytest.raises(InputError, match=what):
        evaluate(folder=tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (lambda t: t.iloc[:0], "table of labels is empty"),
        (lambda t: t.rename(columns={"name": "place"}), "no column 'name'"),
        (lambda t: t.assign(cover=None), "no location has a label in cover"),
        (lambda t: t.assign(name="x" + t["name"]), "no location with an image has a row"),
        (lambda t: pd.concat([t, t.iloc[:2]]), "labelled twice: p000, p001"),
        (lambda t: t.assign(cover="wood"), "all locations are of the class wood"),
        (lambda t: t.iloc[:4], "too few"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_anything_is_embedded(drawn, tmp_path, labels, what):
    with pytest.raises(InputError, match=what):
        evaluate(
            {"never": bundle_of(Never())},
            drawn.store,
            labels(drawn.labels),
            {"cover": "single-label"},
            folder=tmp_path,
            folds=3,
            splits=["random"],
        )
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_for_other_imagery_is_named(drawn, tmp_path):
    encoders = {"good": bundle_of(Never()), "coarse": dataclasses.replace(bundle_of(Never()), resolution=20.0)}
    with pytest.raises(InputError, match="pixels of 20 m") as caught:
        evaluate(encoders, drawn.store, drawn.labels, {"cover": "single-label"}, folder=tmp_path)
    assert "encoder coarse" in caught.value.where
    with pytest.raises(InputError) as caught:
        evaluate(
            {"good": bundle_of(Never())}, tmp_path / "none", drawn.labels, {"cover": "single-label"}, folder=tmp_path
        )
    assert "encoder good" in caught.value.where


def test_a_store_of_one_season_can_be_averaged_and_not_concatenated(tmp_path):
    drawn = draw_store(tmp_path, locations=30, size=4, without=dict.fromkeys(range(30), (1, 2, 3)))
    options = {"folds": 3, "protocols": ["knn"], "splits": ["random"]}
    with pytest.raises(InputError, match="no location has an image of every season"):
        evaluate(
            {"a": bundle_of(Never(), size=4)},
            drawn.store,
            drawn.labels,
            {"cover": "single-label"},
            folder=tmp_path / "x",
            combine="concatenate",
            **options,
        )
    with pytest.raises(InputError, match="no location has an image of the season 'winter'"):
        evaluate(
            {"a": bundle_of(Never(), size=4)},
            drawn.store,
            drawn.labels,
            {"cover": "single-label"},
            folder=tmp_path / "x",
            combine="winter",
            **options,
        )
    assert not (tmp_path / "x").exists()
    assert evaluate(
        {"a": bundle_of(Means(), size=4)},
        drawn.store,
        drawn.labels,
        {"cover": "single-label"},
        folder=tmp_path / "x",
        **options,
    )
    assert Path(tmp_path / "x" / "evaluation.json").exists()
