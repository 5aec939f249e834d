"""The recipe habitat_dwff as it stands: chips, a network, its map and polygons; a map that is killed goes on."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import IDLE_WORKER_BYTES
from geoeco.simulate import write_uav_world
from geoeco.steps import Recipe
from tests.roads.conftest import contents, copy_recipe, geoeco, records, start, until

#: A small transformer and a short training; all else is the recipe's own.
SETTINGS = ("steps.1.arguments={backbone: test_vit}", "steps.1.epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small farmland, whose map takes four blocks, and a run of the recipe without a break."""
    folder = tmp_path_factory.mktemp("habitats")
    write_uav_world(folder / "world", size=640, gsd=0.2)
    copy_recipe("habitat_dwff", folder)
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    done = geoeco("run", "habitat_dwff.yaml", "--out", "undisturbed", "--quiet", *words, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_recipe_leads_from_labels_to_rasters_with_names_and_to_polygons_of_the_same_ground(folder: Path) -> None:
    out = folder / "undisturbed"
    bundle = json.loads((out / "train_segmentation/bundle/mlm.json").read_text())["properties"]["geoeco:bundle"]
    assert bundle["architecture"] == "dwff"
    assert "RANDOM" in bundle["description"] + json.dumps(bundle["notes"])
    scored = json.loads((out / "train_segmentation/evaluation.json").read_text())
    assert {row["split"] for row in scored} == {"val", "test"}
    made = {file.stem: file for file in (out / "cog").glob("*.tif")}
    assert set(made) == {"class", "confidence", "entropy", "di", "aoa"}
    for name, file in made.items():
        valid, errors, _ = cog_validate(file)
        assert valid, (name, errors)
    with rasterio.open(folder / "world/orthomosaic.tif") as file:
        seen = file.dataset_mask() > 0
    with rasterio.open(made["class"]) as file:
        classes, colours = file.read(1), file.colormap(1)
        assert file.shape == seen.shape
    assert np.array_equal(classes != 255, seen)
    named = dict(zip(bundle["codes"], bundle["classes"], strict=True))
    assert set(np.unique(classes[seen])) <= set(named)
    with rasterio.open(folder / "world/labels.tif") as file:
        assert all(colours[code] == file.colormap(1)[code] for code in named)
    for name, most in (("confidence", 1), ("entropy", 1), ("aoa", 1), ("di", np.inf)):
        with rasterio.open(made[name]) as file:
            values = file.read(1)
            assert np.array_equal(values != file.nodata, seen), name
        assert ((values[seen] >= 0) & (values[seen] <= most)).all(), name
    regions = gpd.read_file(out / "polygons/habitats.gpkg", layer="habitats")
    assert set(regions["name"]) <= set(named.values())
    # a pixel is 0.04 m²; no ground is lost where small regions go to their neighbours
    assert regions.geometry.area.sum() == pytest.approx(0.04 * seen.sum(), rel=1e-6)
    assert (out / "report.html").exists()


def test_a_map_that_is_killed_ends_with_the_same_bytes_within_its_bound(folder: Path) -> None:
    run, last = folder / "run", ("predict", "polygons", "cog")
    shutil.copytree(folder / "undisturbed", run)
    for step in last:
        shutil.rmtree(run / step)
        shutil.rmtree(run / "ledger" / step)
    driver = start("resume", "run", "--quiet", folder=folder)
    until(lambda: len(records(run, "predict/blocks")) >= 1, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = records(run, "predict/blocks")
    assert 1 <= len(done) < 4
    assert geoeco("resume", "run", "--quiet", folder=folder).returncode == 0
    after = records(run, "predict/blocks")
    assert len(after) == 4
    assert {name: after[name] for name in done} == done
    assert contents(run, *last) == contents(folder / "undisturbed", *last)
    planned = Recipe.load(folder / "habitat_dwff.yaml", settings=SETTINGS).plan()
    bound = max(task.memory_bytes for task in planned.tasks if task.id.startswith("predict/blocks/"))
    # of the first one: it was mapped in a process of its own
    peak = max(json.loads(text)["peak_bytes"] for text in done.values())
    print(f"bound {(IDLE_WORKER_BYTES + bound) / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
    assert 0 < peak <= IDLE_WORKER_BYTES + bound
