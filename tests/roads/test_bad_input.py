"""Wrong input gets a clear error before any work, or a documented result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

import geoeco
from geoeco.cubes import open_cube
from geoeco.errors import GeoecoError
from geoeco.steps import Recipe
from tests.roads.conftest import geoeco as command

GOOD = """
geoeco: 1
name: good
inputs:
  imagery: {catalog: world/catalog.json, period: [2020-08-01, 2022-03-31]}
grid: {crs: EPSG:32631, area: [5.994, 50.796, 6.0, 50.8], block: 64}
steps:
  - {verb: cube, bands: [B04, B08]}
  - {verb: seasons, years: [2021]}
  - {verb: cog, layers: [n_cycles_2021, dates_2021_cycle1], quicklooks: false}
"""


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path


def planned(folder: Path, *settings: str) -> object:
    return Recipe.load(folder / "good.yaml", settings=settings).plan()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("steps.0.band=[B04]", ["steps", "band", "bands"]),
        ("steps.0.bands=[B04, B99]", ["B99", "B8A"]),
        ("grid.resolution=ten", ["resolution", "number"]),
        ("steps.1.verb=saesons", ["saesons", "seasons"]),
        ("inputs.imagery.period=[2022-03-31, 2020-08-01]", ["period", "ends"]),
        ("grid.crs=EPSG:999999", ["EPSG:999999"]),
        ("inputs.imagery.catalog=../world/catalog.json", ["folder"]),
        ("inputs.imagery.catalog=/vsizip/world.zip/catalog.json", ["virtual"]),
        ("steps.0.masked=[42]", ["42"]),
        ("steps.2.layers=[greenness]", ["greenness", "n_cycles_2021"]),
        ("steps.0.bands=[B03, B04]", ["evi2", "B08"]),
        ("grid.block=100", ["multiple of 8"]),
        ("steps.1.years=[2021, 2023]", ["consecutive"]),
        ("steps.2.layers=[n_cycles_2021, n_cycles_2021]", ["twice"]),
        ("steps.1.cube=seasons", ["no earlier step", "cube"]),
    ],
)
def test_a_wrong_recipe_is_refused_in_words(folder: Path, setting: str, says: list[str]) -> None:
    with pytest.raises(GeoecoError) as refused:
        planned(folder, setting)
    text = str(refused.value)
    assert all(word in text for word in says), text


def test_a_missing_catalogue_is_named(folder: Path) -> None:
    with pytest.raises(GeoecoError, match=r"nowhere\.json"):
        planned(folder, "inputs.imagery.catalog=nowhere.json")


@pytest.mark.parametrize(
    "setting", ["inputs.imagery.period=[1999-01-01, 1999-12-31]", "grid.area=[20.0, 10.0, 20.1, 10.1]"]
)
def test_an_empty_search_says_what_the_catalogue_holds(folder: Path, setting: str) -> None:
    with pytest.raises(GeoecoError) as refused:
        planned(folder, setting)
    text = str(refused.value)
    assert "no imagery" in text
    assert "sentinel-2-l2a" in text
    assert "2020" in text


def test_the_command_line_refuses_with_line_and_key_and_writes_nothing(folder: Path) -> None:
    (folder / "bad.yaml").write_text(GOOD.replace("bands:", "band:"))
    done = command("run", "bad.yaml", "--out", "run", folder=folder)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "bad.yaml" in said
    assert "bad.yaml:8" in said  # the line
    assert "bands" in said
    assert not (folder / "run").exists()


def test_points_that_all_lie_elsewhere_are_refused_before_any_work(folder: Path) -> None:
    (folder / "points.csv").write_text("name,lon,lat\na,50.798,5.996\n")  # latitude and longitude in each other's place
    text = GOOD.replace(
        "period: [2020-08-01, 2022-03-31]}", "period: [2020-08-01, 2022-03-31]}\n  tables: {points: points.csv}"
    )
    (folder / "points.yaml").write_text(
        text.replace("- {verb: cog", "- {verb: windows, points: points}\n  - {verb: cog")
    )
    with pytest.raises(GeoecoError, match="none of the 1 places") as refused:
        Recipe.load(folder / "points.yaml").plan()
    assert "longitude first" in str(refused.value)


@pytest.mark.parametrize("out", ["good.yaml", "good.yaml/run"])
def test_a_run_below_a_file_is_refused(folder: Path, out: str) -> None:
    with pytest.raises(GeoecoError, match="is a file"):
        Recipe.load(folder / "good.yaml").run(folder / out)


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:os.system ['touch hacked']",
        "!!python/name:os.system",
        "!!python/object/new:subprocess.Popen [[touch, hacked]]",
    ],
)
def test_yaml_cannot_run_code(folder: Path, payload: str) -> None:
    (folder / "bad.yaml").write_text(GOOD.replace("name: good", f"name: {payload}"))
    with pytest.raises(GeoecoError):
        Recipe.load(folder / "bad.yaml")
    assert not (folder / "hacked").exists()


def test_a_catalogue_cannot_read_outside_its_folder(folder: Path, world: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.tif"
    secret.write_bytes(b"not yours")
    item = json.loads(next((world / "sentinel-2-l2a").glob("*31U*_202105*/*.json")).read_text())
    item["assets"]["red"]["href"] = "../secret.tif"
    catalogue = tmp_path / "elsewhere"
    catalogue.mkdir()
    (catalogue / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    with pytest.raises(GeoecoError, match="secret"):
        planned(folder, "inputs.imagery.catalog=elsewhere/items.json")


def run(folder: Path, *settings: str) -> geoeco.engine.Run:
    return Recipe.load(folder / "good.yaml", settings=settings).run(folder / "run")


def layer(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / "run" / "cog" / f"{name}.tif") as file:
        return np.ma.filled(file.read(masked=True).astype(float), np.nan)


def test_a_crs_without_epsg_code_works_and_is_kept(folder: Path) -> None:
    wkt = rasterio.CRS.from_proj4("+proj=laea +lat_0=50.8 +lon_0=6 +ellps=WGS84 +units=m").to_wkt()
    (folder / "good.yaml").write_text(GOOD.replace("EPSG:32631", json.dumps(wkt)))
    assert run(folder, "inputs.imagery.period=[2021-04-01, 2021-09-30]").exit_code == 0
    with rasterio.open(folder / "run" / "cog" / "n_cycles_2021.tif") as file:
        assert file.crs.to_epsg() is None
        assert "laea" in file.crs.to_proj4()


def test_an_area_across_two_utm_zones_comes_on_the_grid_of_one(folder: Path) -> None:
    ran = run(folder, "grid.area=[5.996, 50.798, 6.006, 50.802]", "grid.crs=utm")
    assert ran.exit_code == 0
    seen = np.isfinite(open_cube(str(folder / "run" / "cube" / "cube.zarr"))["reflectance"].max("time").sel(band="B08"))
    assert float(seen.mean()) > 0.95
    with rasterio.open(folder / "run" / "cog" / "n_cycles_2021.tif") as file:
        assert file.crs.to_epsg() in (32631, 32632)


def test_a_single_date_is_no_season_and_no_error(folder: Path) -> None:
    ran = run(folder, "inputs.imagery.period=[2021-06-01, 2021-06-11]")
    assert ran.exit_code == 0
    assert np.isnan(layer(folder, "dates_2021_cycle1")).all()


def test_a_stack_of_clouds_is_no_season_and_no_error(folder: Path) -> None:
    # SCL class 4 to 7 and 11 masked as well: nothing is left, as under cloud all year
    ran = run(folder, "steps.0.masked=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]")
    assert ran.exit_code == 0
    assert np.isnan(layer(folder, "dates_2021_cycle1")).all()
    assert np.isnan(layer(folder, "n_cycles_2021")).all()


def test_an_area_across_the_antimeridian(tmp_path: Path) -> None:
    geoeco.simulate.write_s2_world(
        tmp_path / "world", seed=3, size=60, years=1, revisit_days=30, hemisphere="south", location=(180.0, -17.0)
    )
    (tmp_path / "good.yaml").write_text(
        GOOD.replace("crs: EPSG:32631, area: [5.994, 50.796, 6.0, 50.8]", "area: [179.998, -17.003, -179.998, -16.999]")
    )
    assert run(tmp_path).exit_code == 0
    seen = layer(tmp_path, "n_cycles_2021")
    assert seen.shape[-1] < 120
