"""The experiment of season contrast: in full by `make experiments`, and one small seed of it with the other tests."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from tests.experiments.flanders_windows import macro_f1  # noqa: E402
from tests.experiments.season_contrast import (  # noqa: E402
    CUDA,
    ENCODERS,
    SMOKE,
    TASKS,
    Setting,
    by_task,
    main_scores,
    make_world,
    over_seeds,
    score,
    table,
    train,
)

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results" / "season_contrast.json"
SEEDS = (0, 1, 2)


def show(record, scores):
    """Put the table of scores into the page, between its marks."""
    page = DOCS / "season-contrast.md"
    before, rest = page.read_text().split("<!-- scores -->\n")
    _, after = rest.split("<!-- /scores -->\n")
    seeds = ", ".join(map(str, record["seeds"]))
    told = (
        f"Over the seeds {seeds}: mean ± standard deviation. {record['device']}, settings {record['experiment'][:12]}."
    )
    scores = f"{told}\n\n{scores}\n"
    page.write_text(f"{before}<!-- scores -->\n{scores}<!-- /scores -->\n{after}")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The setting and the folder where worlds, models and embeddings are kept.

    GEOECO_EXPERIMENTS names a lasting one: there a run that was stopped goes on.
    """
    setting = CUDA if torch.cuda.is_available() else Setting()
    root = os.environ.get("GEOECO_EXPERIMENTS") or tmp_path_factory.mktemp("experiments")
    return setting, Path(root) / f"season_contrast-{setting.digest[:8]}"


def test_season_contrast_beats_random_weights_on_a_small_world(tmp_path, one_thread):
    """The whole road in small: world, training, embeddings, both probes, both kinds of folds."""
    world = make_world(tmp_path / "world", SMOKE)
    bundles = train(world, tmp_path / "models", SMOKE, 0, ("random", "seco_phenology"))
    rows = score(bundles, world, tmp_path / "scores", SMOKE, 0)
    assert {(row["encoder"], row["task"], row["protocol"], row["split"]) for row in rows} == {
        (encoder, task, protocol, split)
        for encoder in bundles
        for task in TASKS
        for protocol in ("linear", "knn")
        for split in ("random", "blocks")
    }
    assert all(np.isfinite(row["mean"]) and row["n"] == SMOKE.folds for row in rows)
    scores = main_scores(over_seeds(rows))
    print(table(over_seeds(rows)))
    # so little data and training tell covers apart; temperature and precipitation ask for more of both
    better = [
        scores["cover", protocol, split, "seco_phenology"][0] - scores["cover", protocol, split, "random"][0]
        for protocol in ("linear", "knn")
        for split in ("random", "blocks")
    ]
    assert np.mean(better) > 0.02


@pytest.mark.experiment
def test_season_contrast_beats_random_weights_beyond_the_spread(experiment):
    """The table of docs/season-contrast.md, kept as docs/results/season_contrast.json.

    A score of a task is the mean over probes and kinds of folds; its spread is that over the seeds. MoCo is the
    control: its scores are shown, and nothing is asked of them.
    """
    setting, root = experiment
    world = make_world(root / "world", setting)
    rows = []
    for seed in SEEDS:
        bundles = train(world, root / "models", setting, seed, tuple(ENCODERS))
        rows += score(bundles, world, root / f"scores-{seed}", setting, seed)
        summary = over_seeds(rows)
        print(f"seeds 0 to {seed}\n{table(summary)}", flush=True)
        record = {
            "experiment": setting.digest,
            "setting": asdict(setting),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "seeds": list(range(seed + 1)),
            "scores": [*summary, *rows],
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
        show(record, table(summary))
    scores = by_task(rows)
    short = [
        (task, name, values, scores[task, "random"])
        for (task, name), values in scores.items()
        if name.startswith("seco") and np.mean(values) - np.std(values, ddof=1) <= _upper(scores[task, "random"])
    ]
    assert not short, f"not better than random weights beyond the spread: {short}"


def _upper(values):
    return np.mean(values) + np.std(values, ddof=1)


@pytest.mark.experiment
@pytest.mark.real
def test_windows_of_real_fields_are_shown_to_the_encoders(experiment, real_data, capsys):
    """An illustration, no claim: one patch, six fields, two folds, windows that reach into their neighbours."""
    setting, root = experiment
    source = real_data("sentinel2/flanders_field_2017-2018/S2_L2A_10m.nc").parent
    world = make_world(root / "world", setting)
    for name, bundle in train(world, root / "models", setting, SEEDS[0], tuple(ENCODERS)).items():
        mean, sd, folds = macro_f1(bundle, source)
        with capsys.disabled():
            print(f"maize or grass in Flanders, k-NN, macro F1 of {folds} folds by field: {name} {mean:.2f} ± {sd:.2f}")
        assert 0 <= mean <= 1
        assert folds >= 2
