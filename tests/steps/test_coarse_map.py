"""The verb coarse_map on hard ground: small and strange mosaics, and a run that is killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import GeoecoError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.training import ModelBundle, Normalisation, learn_patches  # noqa: E402

PATCH = 8


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Stored values ``(band, y, x)``."""
    return np.random.default_rng(seed).integers(1, 255, (3, rows, columns)).astype(np.uint8)


def write(path: Path, values: np.ndarray, **profile: Any) -> None:
    settings = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype.name,
        "crs": "EPSG:32652",
        "transform": from_origin(500_000, 5_200_000, 0.1, 0.1),
        "nodata": 0,
        **profile,
    }
    with rasterio.open(path, "w", **settings) as file:
        file.write(values)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of patches of noise and of even ground."""
    arguments = {"name": "test_resnet", "in_channels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build("backbone", arguments)
    bands = ("red", "green", "blue")
    encoder = ModelBundle(
        module, "backbone", arguments, bands, Normalisation((0.5,) * 3, (0.3,) * 3), PATCH, 0.1, name="drawn"
    )
    valid = np.ones((2 * PATCH, 2 * PATCH), bool)
    noise = [picture(2 * PATCH, 2 * PATCH, seed) / np.float32(255) for seed in range(3)]
    even = [np.full_like(noise[0], value) for value in (0.2, 0.5)]
    images = [*((image, valid, "rough") for image in noise), *((image, valid, "even") for image in even)]
    folder = tmp_path_factory.mktemp("bundle") / "patches"
    learn_patches(encoder, images, background="even", patch=PATCH, name="patches").save(folder)
    return folder


def recipe(folder: Path, bundle: Path, settings: str = "", block: int = 16) -> Recipe:
    text = f"""
geoeco: 1
name: shore
inputs: {{tables: {{mosaic: mosaic.tif}}}}
grid: {{like: mosaic, block: {block}}}
steps:
  - {{verb: coarse_map, mosaic: mosaic, side: 2, bundle: {bundle}{settings}}}
"""
    return Recipe.parse(text, folder=str(folder))


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "coarse_map").rglob("*"))
        if path.is_file()
    }


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(bundle: Path, tmp_path: Path):
    write(tmp_path / "mosaic.tif", picture(5 * PATCH, 6 * PATCH))
    assert recipe(tmp_path, bundle).run(tmp_path / "undisturbed").exit_code == 0
    script = """
        import os, signal, sys
        from geoeco.cubes import stores
        from geoeco.steps import Recipe, coarse_map
        write, calls = coarse_map.write_rasters, []
        def written(*args):
            calls.append(write(*args))
            if len(calls) == 3:
                # the pixels are there, the ledger does not know
                os.kill(os.getpid(), signal.SIGKILL)
            return calls[-1]
        coarse_map.write_rasters = written
        Recipe.parse(open("recipe.yaml").read(), folder=os.getcwd()).run("run")
    """
    text = recipe(tmp_path, bundle).text
    (tmp_path / "recipe.yaml").write_text(text)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, check=False, env={**os.environ}
    )
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "run"
    done = {path.name: path.read_bytes() for path in (run / "ledger" / "coarse_map" / "blocks").glob("*.json")}
    assert 0 < len(done) < 9
    again = recipe(tmp_path, bundle).run(run)
    assert again.exit_code == 0
    after = {path.name: path.read_bytes() for path in (run / "ledger" / "coarse_map" / "blocks").glob("*.json")}
    assert len(after) == 9
    assert {name: after[name] for name in done} == done
    assert contents(run) == contents(tmp_path / "undisturbed")


def test_half_written_shards_are_told_and_made_again(bundle: Path, tmp_path: Path):
    write(tmp_path / "mosaic.tif", picture(2 * PATCH, 4 * PATCH))
    asked = recipe(tmp_path, bundle)
    assert asked.run(tmp_path / "run").exit_code == 0
    whole = contents(tmp_path / "run")
    (shard, *_) = sorted((tmp_path / "run/coarse_map/rasters.zarr/prob/c").rglob("*/*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    again = asked.run(tmp_path / "run")
    assert again.exit_code == 0
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize("values", ["nothing", "one pixel", "nan", "int16"])
def test_what_has_no_data_has_no_class(bundle: Path, tmp_path: Path, values: str):
    image = picture(2 * PATCH, 3 * PATCH)
    settings, profile, lost = "", {}, np.zeros((2, 3), bool)
    if values == "nothing":
        image[:], lost = 0, ~lost
    elif values == "one pixel":
        image[:, :, :-1], image[:, :-1], lost = 0, 0, ~lost
    elif values == "nan":
        image = image.astype(np.float32) / 255
        image[:, :PATCH, :PATCH], profile, lost[0, 0] = np.nan, {"nodata": None}, True
    else:
        image = image.astype(np.int16) * 10
        image[:, PATCH:, PATCH:], profile, lost[1, 1:] = -9999, {"nodata": -9999}, True
        settings = ", scale: 0.0004"
    write(tmp_path / "mosaic.tif", image, **profile)
    done = recipe(tmp_path, bundle, settings + ", bands: {red: 1, green: 2, blue: 3}").run(tmp_path / "run")
    assert done.exit_code == 0
    made = done.open("coarse_map")
    assert np.array_equal(made["class"] == 255, lost)
    for name in ("prob", "margin"):
        assert np.array_equal(np.isnan(made[name]), lost)


def test_a_mosaic_smaller_than_a_patch_is_refused_before_any_work(bundle: Path, tmp_path: Path):
    write(tmp_path / "mosaic.tif", picture(PATCH - 1, 300))
    with pytest.raises(GeoecoError, match="no whole patch of 8"):
        recipe(tmp_path, bundle, ", bands: {red: 1, green: 2, blue: 3}").plan()


def test_values_that_the_model_cannot_take_are_told_and_make_no_class(bundle: Path, tmp_path: Path):
    write(tmp_path / "mosaic.tif", picture(2 * PATCH, 2 * PATCH))
    done = recipe(tmp_path, bundle, ", scale: 1.0e+36, bands: {red: 1, green: 2, blue: 3}").run(tmp_path / "run")
    assert done.exit_code != 0
    assert "not finite" in (tmp_path / "run" / "quarantine.json").read_text()


def test_a_bundle_whose_classes_cannot_be_told_apart_is_refused(bundle: Path, tmp_path: Path):
    write(tmp_path / "mosaic.tif", picture(2 * PATCH, 2 * PATCH))
    shutil.copytree(bundle, tmp_path / "patches")
    path = tmp_path / "patches" / "mlm.json"
    document = json.loads(path.read_text())
    document["properties"]["geoeco:bundle"]["classes"] = ["eel  grass", "eel grass"]
    path.write_text(json.dumps(document))
    with pytest.raises(GeoecoError, match="the same name twice: eel grass"):
        recipe(tmp_path, tmp_path / "patches", ", bands: {red: 1, green: 2, blue: 3}").plan()
