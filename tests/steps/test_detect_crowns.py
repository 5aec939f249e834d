"""The verbs of detectors: from an orthomosaic with some crowns to all crowns on the map; what they leave and refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import GeoecoError, RecipeError  # noqa: E402
from geoeco.mapping import detect_crowns  # noqa: E402
from geoeco.outputs.coco import read_coco  # noqa: E402
from geoeco.sensors.orthomosaic import describe_orthomosaic  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.training import ModelBundle  # noqa: E402
from tests.outputs.stac_schemas import schema_errors  # noqa: E402
from tests.steps.crown_world import CRS, LEFT, SPECIES, TOP, draw_world  # noqa: E402

RECIPE = """
geoeco: 1
name: detect
seed: 3
inputs:
  tables: {mosaic: mosaic.tif, chm: chm.tif, crowns: crowns.gpkg, areas: areas.gpkg}
steps:
  - verb: uav_chips
    mosaic: mosaic
    kind: grid
    chip_m: 6.4
    overlap_m: 3.2
    crowns: crowns
    crown_class: species
    split: {areas: areas}
  - verb: train_detector
    backbone: resnet10t
    channels: 8
    boxes: 16
    most: 8
    species: true
    anchors_m: [1, 1.5, 2, 3, 4]
    epochs: 1
    batch: 4
    lr: 0.002
    device: cpu
"""
DETECT = """
  - verb: detect_crowns
    mosaic: mosaic
    bundle: train_detector
    overlap_m: 2.4
    chm: chm
    min_score: 0.05
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The world of crowns, its left half to learn from and its right half to be judged by."""
    made = draw_world(tmp_path_factory.mktemp("world"))
    halves = [shapely.box(LEFT + side * 9, TOP - 18, LEFT + (side + 1) * 9, TOP) for side in (0, 1)]
    (made / "areas.gpkg").unlink()
    gpd.GeoDataFrame({"split": ["train", "test"]}, geometry=halves, crs=CRS).to_file(made / "areas.gpkg", layer="areas")
    return made


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return Recipe.parse(RECIPE + DETECT, folder=str(folder)).run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def crowns(run) -> gpd.GeoDataFrame:
    return run.open("detect_crowns")


def test_a_run_leaves_a_bundle_its_scores_and_the_crowns_in_the_manifest(run):
    assert run.exit_code == 0
    manifest = run.store.read_bytes("manifest.json").decode()
    for name in (
        *("train_detector/bundle/model.safetensors", "train_detector/evaluation.json"),
        *("train_detector/learning_curve.png", "detect_crowns/crowns.gpkg", "detect_crowns/crowns_coco.json"),
        *("detect_crowns/crowns.png", "detect_crowns/crowns.json"),
    ):
        assert name in manifest, name
    assert schema_errors(json.loads(run.store.read_bytes("detect_crowns/crowns.json"))) == []
    bundle = run.open("train_detector")
    assert bundle.task == "detection"
    assert "RANDOM" in bundle.notes["encoder"]
    scores = json.loads(run.store.read_bytes("train_detector/evaluation.json"))
    assert {row["metric"] for row in scores} >= {"ap50", "class_accuracy"}
    assert {row["split"] for row in scores} == {"test"}


def test_a_crown_has_its_height_its_area_and_its_mosaic(crowns, folder):
    assert len(crowns)
    with rasterio.open(folder / "chm.tif") as file:
        height, transform = file.read(1), file.transform
    for crown in crowns.itertuples():
        inside = geometry_mask([crown.geometry], height.shape, transform, invert=True)
        assert crown.height_p95 == pytest.approx(np.percentile(height[inside], 95), abs=1e-3)
    assert np.allclose(crowns["area_m2"], crowns.area, rtol=1e-3)
    assert set(crowns["source"]) == {"mosaic.tif"}
    assert crowns["score"].between(0.05, 1).all()
    assert set(crowns["class"]) <= set(SPECIES)


def test_the_json_has_the_numbers_and_the_pixels_of_the_table(run, crowns):
    held = read_coco(Path(run.store.url("detect_crowns")) / "crowns_coco.json")
    assert held["crown_id"].tolist() == crowns["crown_id"].tolist()
    assert shapely.area(shapely.symmetric_difference(held.geometry.to_numpy(), crowns.geometry.to_numpy())).max() < 1e-6


def test_neither_the_tasks_nor_the_library_change_a_crown(run, crowns, folder, tmp_path):
    bundle = run.store.url("train_detector/bundle")
    text = RECIPE.split("steps:")[0] + "steps:" + DETECT.replace("bundle: train_detector", f"bundle: {bundle}")
    other = Recipe.parse(text + "    tiles_per_task: 3\n", folder=str(folder)).run(tmp_path / "run")
    assert len(other.store.sizes("detect_crowns/tiles")) > 1
    # the item of a model from elsewhere is kept, for links to lead to
    assert "detect_crowns/model.json" in other.store.read_bytes("manifest.json").decode()
    found = other.open("detect_crowns")
    assert found.to_wkb().equals(crowns.to_wkb())
    ours = detect_crowns(
        describe_orthomosaic(str(folder / "mosaic.tif")), ModelBundle.load(bundle), overlap_m=2.4, min_score=0.05
    )
    assert shapely.equals_exact(ours.geometry.to_numpy(), crowns.geometry.to_numpy(), 1e-9).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: grid", "kind: crown", "cut round crowns"),
        ("    crowns: crowns\n    crown_class: species\n", "", "do not say which crown"),
        ("    crown_class: species\n", "", "do not say which crown"),
        ("resnet10t", "vit_tiny", "no residual network"),
        ("[1, 1.5, 2, 3, 4]", "[1, 2]", "five ascending"),
        ("bundle: train_detector", "bundle: uav_chips", "makes no model"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_planned(folder, old, new, message):
    text = (RECIPE + DETECT).replace(old, new)
    with pytest.raises((GeoecoError, RecipeError), match=message):
        Recipe.parse(text, folder=str(folder)).plan()


def test_planning_says_when_the_extra_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "geoeco.mapping", None)
    with pytest.raises(GeoecoError, match=r"geoeco\[ml\]"):
        Recipe.parse(RECIPE + DETECT, folder=str(folder)).plan()
