"""From a catalogue to an embedding map: chips, pretraining, cube, map and files, as the recipe stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate
from sklearn.metrics import v_measure_score

from geoeco.cubes import open_rasters
from geoeco.engine import IDLE_WORKER_BYTES
from geoeco.simulate import read_truth
from tests.roads.conftest import copy_recipe, geoeco_alone, records


@pytest.fixture(scope="module")
def out(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    (folder / "world").symlink_to(world)
    copy_recipe("embedding_map", folder)
    done = geoeco_alone("run", "embedding_map.yaml", "--out", "map", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "map"


def test_the_recipe_leaves_files_that_open_right(out: Path) -> None:
    names = ("embedding", "pca_rgb", "clusters", "cluster_distance", "valid_fraction", "n_periods")
    assert {file.stem for file in (out / "cog").glob("*.tif")} == set(names)
    model = json.loads((out / "pretrain" / "bundle" / "mlm.json").read_text())
    for name in names:
        valid, errors, _ = cog_validate(out / "cog" / f"{name}.tif")
        assert valid, errors
        with rasterio.open(out / "cog" / f"{name}.tif") as file:
            tags = file.tags()
            assert file.transform.a == 160
            assert tags["GEOECO_MODEL"] == model["id"]
            assert model["assets"]["model"]["file:checksum"].endswith(tags["GEOECO_MODEL_SHA256"])
        item = json.loads((out / "cog" / f"{name}.json").read_text())
        sources = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
        assert "../pretrain/bundle/mlm.json" in sources
        assert all((out / "cog" / source).exists() for source in sources)
    report = (out / "report.html").read_text()
    assert "first three principal components" in report


def test_the_embedding_comes_back_from_its_bytes(out: Path) -> None:
    stored = open_rasters(str(out / "embed" / "rasters.zarr"))["embedding"].to_numpy()
    with rasterio.open(out / "cog" / "embedding.tif") as file:
        assert set(file.dtypes) == {"int8"}
        values = file.read(masked=True).astype(float) * file.scales[0] + file.offsets[0]
    assert values.shape == stored.shape
    np.testing.assert_allclose(values.filled(np.nan), stored, atol=1e-5)


def test_the_map_took_no_more_memory_than_planned(out: Path) -> None:
    plan = json.loads((out / "plan.json").read_text())
    step = next(step for step in plan["steps"] if step["name"] == "embed")
    planned = {task["id"]: task["memory_bytes"] for stage in step["stages"] for task in stage["tasks"]}
    largest = max(planned.values())
    measured = [json.loads(text) for text in records(out, "embed/*").values()]
    assert {record["id"] for record in measured} == set(planned)
    peak = max(record["peak_bytes"] for record in measured)
    print(f"bound {(IDLE_WORKER_BYTES + largest) / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
    # in one process, where composites come after pretraining: the libraries stay
    assert peak <= IDLE_WORKER_BYTES + largest


def test_clusters_follow_the_covers_of_the_world(out: Path, world: Path) -> None:
    clusters = open_rasters(str(out / "embed" / "rasters.zarr"))["cluster"]
    truth = read_truth(world, "31UGS", years=[2021])["cover"]
    x, y = clusters["x"].to_numpy(), clusters["y"].to_numpy()
    pairs = []
    for row, col in np.ndindex(clusters.shape):
        window = truth.sel(x=slice(x[col] - 80, x[col] + 80), y=slice(y[row] + 80, y[row] - 80)).to_numpy()
        code = int(clusters[row, col])
        if window.size == 256 and 1 <= code < 65535:
            values, counts = np.unique(window, return_counts=True)
            if counts.max() >= 200:
                pairs.append((int(values[counts.argmax()]), code))
    measure = v_measure_score(*zip(*pairs, strict=True))
    print(f"V-measure of clusters and covers {measure:.2f} over {len(pairs)} cells of mostly one cover")
    assert measure > 0.3
