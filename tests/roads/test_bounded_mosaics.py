"""What the verbs of orthomosaics hold in memory stays below what their plans say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import IDLE_WORKER_BYTES, Plan
from geoeco.simulate import write_uav_world
from geoeco.steps import Recipe
from geoeco.steps.model_costs import LIBRARIES_BYTES
from tests.roads.conftest import geoeco_alone, records

RECIPE = """
geoeco: 1
name: bounded
inputs:
  tables:
    mosaic: world/orthomosaic.tif
    labels: world/labels.tif
    chm: world/chm.tif
    crowns: world/crowns.gpkg
    areas: world/areas.gpkg
    closeups: world/closeups.gpkg
grid: {like: mosaic, block: 256}
steps:
  - verb: uav_chips
    name: trees
    mosaic: mosaic
    kind: crown
    crowns: crowns
    crown_class: species
    chm: chm
    chip_m: 5
    buffer_m: 0.2
    too_large: resize
    context: zero
    split: {areas: areas}
  - {verb: crown_alignment, chips: trees, photos: closeups, backbone: test_resnet, closeup_size: 64, epochs: 1,
     batch: 8}
  - {verb: train_crowns, chips: trees, backbone: test_resnet, epochs: 1, batch: 8}
  - {verb: classify_crowns, chips: trees, bundle: train_crowns}
  - {verb: uav_chips, name: plots, mosaic: mosaic, labels: labels, chip_m: 6.4, split: {block_m: 12.8}}
  - {verb: train_segmentation, chips: plots, network: conv_stack, epochs: 1, batch: 4, cross_entropy: 1}
  - {verb: predict, mosaic: mosaic, bundle: train_segmentation, outputs: [class, confidence, entropy]}
  - {verb: polygons, min_area_m2: 1}
"""
#: Chips of a usual size, with all that can lie beside their pixels, so near to each other that a shard is full.
DENSE = """
geoeco: 1
name: dense
inputs:
  tables: {mosaic: world/orthomosaic.tif, labels: world/labels.tif, chm: world/chm.tif, crowns: world/crowns.gpkg}
steps:
  - {verb: uav_chips, mosaic: mosaic, labels: labels, chm: chm, crowns: crowns, chip_m: 51.2, overlap_m: 44.8}
"""
#: Steps that run no network. Planning those that do loads their libraries, which the process then holds in every step.
PLAIN = ("trees", "plots", "polygons")


def measured(folder: Path, recipe: str, size: int) -> tuple[Plan, dict[str, int]]:
    """Plan of a recipe on a world of so many pixels, and the peak of each step in a process of its own, bytes."""
    write_uav_world(folder / "world", size=size)
    (folder / "bounded.yaml").write_text(recipe)
    done = geoeco_alone("run", "bounded.yaml", "--out", "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = Recipe.load(folder / "bounded.yaml").plan()
    peaks = {
        step.name: max(json.loads(text)["peak_bytes"] for text in records(folder / "run", f"{step.name}/*").values())
        for step in plan.steps
    }
    return plan, peaks


def bounds(plan: Plan) -> dict[str, int]:
    found = {step.name: IDLE_WORKER_BYTES + max(task.memory_bytes for task in step.tasks) for step in plan.steps}
    print({name: f"{bound / 2**20:.0f} MiB" for name, bound in found.items()})
    return found


def test_the_measured_peaks_are_below_the_plans_bounds(tmp_path: Path) -> None:
    plan, peaks = measured(tmp_path, RECIPE, 512)
    print({name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()})
    assert max(peaks.values()) <= plan.peak_memory_bytes
    allowed = {name: bound + (LIBRARIES_BYTES if name in PLAIN else 0) for name, bound in bounds(plan).items()}
    assert [name for name, peak in peaks.items() if peak > allowed[name]] == []


@pytest.mark.slow
def test_full_shards_of_large_chips_are_within_the_bound(tmp_path: Path) -> None:
    plan, peaks = measured(tmp_path, DENSE, 1024)
    assert plan.steps[0].tasks[-1].memory_bytes > 512 * 2**20
    assert peaks["uav_chips"] <= bounds(plan)["uav_chips"]
