"""The recipe weak_coarse on a small simulated farmland: where the classes are, from labels of whole images alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import rasterio
import yaml

from geoeco.engine import IDLE_WORKER_BYTES
from geoeco.simulate import HABITATS, write_uav_world
from geoeco.steps import Recipe
from tests.roads.conftest import copy_recipe, geoeco_alone

#: Pixels of the world along a side of a patch.
PATCH = 8


def test_trees_and_water_are_found_where_they_are_within_the_planned_memory(tmp_path: Path) -> None:
    write_uav_world(tmp_path / "world", seed=42, size=512, gsd=0.4)
    copy_recipe("weak_coarse", tmp_path)
    settings = ["grid.resolution=null", "steps.0.target_gsd=null", "steps.3.quicklooks=false"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = geoeco_alone("run", "weak_coarse.yaml", "--out", "run", "--quiet", *words, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with rasterio.open(tmp_path / "run/cog/class.tif") as file:
        found, transform = file.read(1), file.transform
    with rasterio.open(tmp_path / "world/truth/habitat.tif") as file:
        truth = file.read(1)
        assert (transform.c, transform.f, transform.a) == (file.transform.c, file.transform.f, PATCH * file.transform.a)
    groups = yaml.safe_load((tmp_path / "weak_coarse.yaml").read_text())["steps"][1]["classes"]
    code = {name: number for number, name, _ in HABITATS}
    side = truth.shape[0] // PATCH
    cells = truth.reshape(side, PATCH, side, PATCH)
    shares = {name: np.isin(cells, [code[label] for label in groups[name]]).mean(axis=(1, 3)) for name in groups}
    for number, name in enumerate(sorted(groups)):
        # patches of one class alone, of the classes that images were labelled with
        sure = (shares[name] > 0.9) & (found != 255)
        share = float((found[sure] == number).mean())
        print(f"{name}: {share:.0%} of {int(sure.sum())} patches")
        assert share > 0.6
    rows = json.loads((tmp_path / "run/weak_coarse/evaluation.json").read_text())
    accuracy = {row["split"]: row["mean"] for row in rows if row["metric"] == "accuracy"}
    print(f"patches of chips that were not learned from: {accuracy}")
    assert set(accuracy) == {"val", "test"}
    assert min(accuracy.values()) > 0.6
    planned = Recipe.load(tmp_path / "weak_coarse.yaml", settings=settings).plan()
    bounds = {task.id: task.memory_bytes for task in planned.tasks if "coarse" in task.id}
    for name, bound in bounds.items():
        peak = json.loads((tmp_path / "run/ledger" / f"{name}.json").read_text())["peak_bytes"]
        print(f"{name}: bound {(IDLE_WORKER_BYTES + bound) / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
        assert 0 < peak <= IDLE_WORKER_BYTES + bound
