"""The plan's memory bound holds, and memory does not grow with the number of blocks."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from geoeco.steps import Recipe
from tests.roads.conftest import geoeco_alone, records

RECIPE = """
geoeco: 1
name: bounded
inputs:
  imagery: {catalog: world/catalog.json, period: [2020-08-01, 2022-03-31]}
grid: {crs: EPSG:32631, block: 96}
steps:
  - {verb: cube, bands: [B02, B04, B08, B11]}
  - {verb: seasons, years: [2021]}
  - {verb: cog, layers: [n_cycles_2021, dates_2021_cycle1]}
"""


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bounded")
    (folder / "world").symlink_to(world)
    (folder / "bounded.yaml").write_text(RECIPE)
    return folder


@functools.cache
def run(folder: Path, name: str, *settings: str) -> tuple[int, int, int]:
    """Blocks, the plan's bound and the measured peak of one run in a process of its own, bytes."""
    plan = Recipe.load(folder / "bounded.yaml", settings=settings).plan()
    options = [word for setting in settings for word in ("--set", setting)]
    done = geoeco_alone("run", "bounded.yaml", "--out", name, "--quiet", *options, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    peak = max(json.loads(text)["peak_bytes"] for text in records(folder / name, "*/*").values())
    blocks = len(records(folder / name, "cube/blocks"))
    print(f"{blocks} blocks, bound {plan.peak_memory_bytes / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
    return blocks, plan.peak_memory_bytes, peak


@pytest.mark.parametrize("block", [96, 256])
def test_the_measured_peak_is_below_the_plans_bound(folder: Path, block: int) -> None:
    _, bound, peak = run(folder, f"run{block}", f"grid.block={block}")
    assert peak <= bound


def test_memory_does_not_grow_with_the_number_of_blocks(folder: Path) -> None:
    few, _, small = run(folder, "few", "grid.area=[5.994, 50.796, 6.0, 50.8]")
    many, _, large = run(folder, "run96", "grid.block=96")
    assert many >= 3 * few
    assert large <= 1.15 * small
