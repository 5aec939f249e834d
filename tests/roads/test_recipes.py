"""The recipes that come with geoeco run as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from geoeco.sampling import open_chips
from geoeco.simulate import read_truth, write_chip_world
from geoeco.steps import Recipe
from tests.roads.conftest import copy_recipe, geoeco, geoeco_alone


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    (tmp_path / "world").symlink_to(world)
    return tmp_path


def run(folder: Path, recipe: str, *options: str, alone: bool = False) -> Path:
    """Run a recipe as it stands, `alone` in a process of its own; give the folder of the run."""
    copy_recipe(recipe, folder)
    command = geoeco_alone if alone else geoeco
    done = command("run", f"{recipe}.yaml", "--out", recipe, "--quiet", *options, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / recipe


def test_a_recipe_is_copied_as_it_is(tmp_path: Path) -> None:
    copied = geoeco_alone("recipes", "copy", "quickstart", folder=tmp_path)
    assert copied.returncode == 0, copied.stdout + copied.stderr
    written = (tmp_path / "quickstart.yaml").read_bytes()
    copy_recipe("quickstart", tmp_path)
    assert written == (tmp_path / "quickstart.yaml").read_bytes()


def test_the_quickstart_walks_the_whole_road(folder: Path) -> None:
    out = run(folder, "quickstart", "--set", "steps.1.years=[2021]", "--set", "steps.3.split=null")
    for name in ("run.json", "plan.json", "manifest.json", "report.html", "ledger", "cube", "seasons", "chips", "cog"):
        assert (out / name).exists(), name
    for file in sorted((out / "cog").glob("*.tif")):
        valid, errors, _ = cog_validate(file)
        assert valid, errors
    report = (out / "report.html").read_text()
    assert "<svg" in report
    assert "data:image/png;base64" in report


def test_s2_phenology_finds_the_seasons_of_the_world(folder: Path, world: Path) -> None:
    out = run(folder, "s2_phenology", "--set", "steps.1.years=[2021]", "--set", "grid.crs=EPSG:32631")
    truth = read_truth(world, "31UGS", years=[2021])
    with rasterio.open(out / "cog" / "dates_2021_cycle1.tif") as file:
        window = file.window(
            float(truth.x.min()) - 5, float(truth.y.min()) - 5, float(truth.x.max()) + 5, float(truth.y.max()) + 5
        )
        found = file.read(4, window=window).astype(float)
        found[found == file.nodata] = np.nan
    true = truth["peak"].sel(year=2021, cycle=1).to_numpy()
    cover = truth["cover"]
    names = dict(zip(cover.attrs["flag_values"], str(cover.attrs["flag_meanings"]).split(), strict=True))
    deciduous = cover.to_numpy() == next(code for code, name in names.items() if "deciduous" in name)
    error = np.abs(found - true)[deciduous]
    print(f"peak of deciduous: median error {np.nanmedian(error):.1f} d, found in {np.isfinite(error).mean():.0%}")
    # images every ten days under 60 % cloud: coarser than the default world, whose figures are in docs/phenology.md
    assert np.isfinite(error).mean() > 0.9
    assert np.nanmedian(error) <= 8


def test_s2_season_chips_by_phenology_and_by_calendar(folder: Path) -> None:
    # the sun of a winter at 50 degrees north is low, and the world of these tests is looked at every ten days
    out = run(folder, "s2_season_chips", "--set", "steps.1.min_clear=0.5")
    chips = open_chips(str(out / "chips"))
    assert chips.sizes["sample"] >= 3
    assert chips.chips.shape[-2:] == (48, 48)
    table = gpd.read_parquet(out / "chips" / "chips.parquet")
    assert {"season", "date", "item_id", "epsg", "transform", "valid_fraction"} <= set(table.columns)
    taken = table[table["reason"] == ""]
    assert (taken["valid_fraction"] >= 0.99).all()
    split = json.loads((out / "chips" / "split.json").read_text())
    assert split["least_distance_m"] > 0
    assert (out / "chips_calendar" / "chips.parquet").exists()


def test_train_covers_learns_covers_from_their_seasons(tmp_path: Path) -> None:
    write_chip_world(tmp_path / "chips_world", locations=300, size=16)
    out = run(tmp_path, "train_covers", "--set", "steps.0.epochs=4", alone=True) / "train"
    item = json.loads((out / "bundle" / "mlm.json").read_text())
    record = item["properties"]["geoeco:bundle"]
    assert record["bands"] == ["B04", "B08", "B11", "ndvi"]
    assert len(record["classes"]) == 6
    rows = json.loads((out / "evaluation.json").read_text())
    scores = {row["metric"]: row["mean"] for row in rows}
    print({name: round(value, 2) for name, value in scores.items()}, record["notes"]["places"])
    # one in six is told by chance
    assert scores["accuracy"] > 0.25
    assert (out / "learning_curve.png").stat().st_size > 10_000
    peak = json.loads((tmp_path / "train_covers" / "ledger" / "train" / "training" / "all.json").read_text())[
        "peak_bytes"
    ]
    bound = Recipe.load(tmp_path / "train_covers.yaml").plan().peak_memory_bytes
    print(f"bound {bound / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
    assert 0 < peak <= bound
