"""The recipe uav_detect: from some crowns to all that are found on a mosaic, within the memory of its plan."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import pytest
import shapely

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import IDLE_WORKER_BYTES
from geoeco.outputs import read_coco
from geoeco.simulate import write_uav_world
from tests.roads.conftest import copy_recipe, geoeco_alone, records

#: One look at a few small chips, of which little is learned, and all that is found; all else is the recipe's own.
SETTINGS = (
    *("steps.0.chip_m=12.8", "steps.0.overlap_m=0", "steps.0.split={block_m: 25.6, fractions: [0.5, 0.25, 0.25]}"),
    *("steps.1.epochs=1", "steps.1.boxes=32", "steps.1.most=6", "steps.1.channels=16"),
    *("steps.2.overlap_m=2", "steps.2.min_score=0.05"),
)


def test_the_recipe_leads_to_crowns_that_are_each_found_once_within_its_memory(tmp_path: Path) -> None:
    write_uav_world(tmp_path / "world", size=256, gsd=0.2)
    copy_recipe("uav_detect", tmp_path)
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    done = geoeco_alone("run", "uav_detect.yaml", "--out", "run", "--quiet", *words, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "run"

    plan = json.loads((out / "plan.json").read_text())
    for step in plan["steps"]:
        name, tasks = step["name"], [task for stage in step["stages"] for task in stage["tasks"]]
        peak = max(json.loads(text)["peak_bytes"] for text in records(out, f"{name}/*").values())
        bound = IDLE_WORKER_BYTES + max(task["memory_bytes"] for task in tasks)
        print(f"{name}: {peak / 2**20:.0f} of {bound / 2**20:.0f} MiB")
        # the libraries of the network are loaded as soon as the recipe is planned
        assert 0 < peak <= (plan["peak_memory_bytes"] if name == "uav_chips" else bound), name

    bundle = json.loads((out / "train_detector/bundle/mlm.json").read_text())["properties"]["geoeco:bundle"]
    assert bundle["task"] == "detection"
    assert "RANDOM" in bundle["description"]
    crowns = gpd.read_file(out / "detect_crowns/crowns.gpkg", layer="crowns")
    assert len(crowns)
    shapes = crowns.geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    common = shapely.area(shapely.intersection(shapes[one], shapes[other]))[one < other]
    smaller = shapely.area(shapes[one]).clip(max=shapely.area(shapes[other]))[one < other]
    assert (common <= 0.3 * smaller + 1e-6).all()
    assert crowns["height_p95"].notna().all()
    assert (crowns["class"] == "crown").all()
    assert len(read_coco(out / "detect_crowns/crowns_coco.json")) == len(crowns)
    assert (out / "report.html").exists()
