"""A map of an orthomosaic that is killed goes on where it stopped, ends with the same bytes, and keeps its bounds."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from geoeco.engine import IDLE_WORKER_BYTES
from geoeco.steps import Recipe
from tests.roads.conftest import contents, geoeco_alone, records, start, until
from tests.steps.mosaic_runs import write_bundle, write_mosaic

RECIPE = """
geoeco: 1
name: habitats
inputs: {tables: {mosaic: mosaic.tif}}
grid: {like: mosaic, block: 128}
steps:
  - {verb: predict, mosaic: mosaic, bundle: bundle, window: 70, outputs: [class, probability, entropy, valid]}
  - {verb: cog, layers: [class, entropy], quicklooks: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mosaic of 25 blocks, mapped once without a break."""
    folder = tmp_path_factory.mktemp("habitats")
    write_mosaic(folder / "mosaic.tif", shape=(600, 620))
    write_bundle(folder / "bundle")
    (folder / "habitats.yaml").write_text(RECIPE)
    assert Recipe.load(folder / "habitats.yaml").run(folder / "undisturbed").exit_code == 0
    return folder


def test_a_map_that_is_killed_ends_with_the_same_bytes_within_its_bound(folder: Path) -> None:
    driver = start("run", "habitats.yaml", "--out", "run", "--quiet", folder=folder)
    until(lambda: len(records(folder / "run", "predict/blocks")) >= 3, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = records(folder / "run", "predict/blocks")
    assert 3 <= len(done) < 25
    assert geoeco_alone("resume", "run", "--quiet", folder=folder).returncode == 0
    after = records(folder / "run", "predict/blocks")
    assert len(after) == 25
    assert {name: after[name] for name in done} == done
    assert contents(folder / "run", "predict", "cog") == contents(folder / "undisturbed", "predict", "cog")
    planned = Recipe.load(folder / "habitats.yaml").plan()
    bound = max(task.memory_bytes for task in planned.tasks if task.stage == "blocks")
    peak = max(json.loads(text)["peak_bytes"] for text in after.values())
    print(f"bound {(IDLE_WORKER_BYTES + bound) / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
    assert peak <= IDLE_WORKER_BYTES + bound
