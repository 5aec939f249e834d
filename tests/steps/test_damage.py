"""A flipped byte in what a step keeps for others is told, with the file or the store; no number is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
import zarr
from pyproj import CRS

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.cubes.shards import intact_shards
from geoeco.errors import ReadError
from geoeco.mapping import classify_crowns
from geoeco.models import build
from geoeco.sampling import open_uav_chips
from geoeco.steps import Recipe
from geoeco.training import CrownDataset, ModelBundle, Normalisation
from tests.steps.crown_world import draw_world
from tests.steps.mosaic_runs import recipe, write_bundle, write_mosaic
from tests.training.drawn_crowns import draw_crowns

PIXELS = ("image", "valid", "chm", "instance")
MAP = "  - {verb: polygons, min_area_m2: 0.05, connectivity: 8}\n  - {verb: cog}"


def flip(path: Path, part: float = 0.4, bit: int = 4) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * part)] ^= 1 << bit
    path.write_bytes(content)


def shards(array: Path) -> list[Path]:
    return sorted(path for path in (array / "c").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def crowns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of crown chips. Read only."""
    return Path(draw_crowns(tmp_path_factory.mktemp("crowns"), ["birch", "oak"] * 4, ["train"] * 4 + ["test"] * 4))


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a mosaic, a bundle and a run that mapped it and drew polygons. Read only."""
    folder = tmp_path_factory.mktemp("mapped")
    write_mosaic(folder / "mosaic.tif", shape=(64, 70))
    write_bundle(folder / "bundle")
    assert recipe(folder, "window: 32", more=MAP).run(folder / "run").exit_code == 0
    return folder


def test_every_array_of_a_store_of_chips_tells_its_damage(crowns: Path, tmp_path: Path):
    names = sorted(path.name for path in crowns.iterdir() if (path / "c").exists())
    assert set(PIXELS) < set(names)
    for name in names:
        store = tmp_path / name / "uav.zarr"
        shutil.copytree(crowns, store)
        for path in shards(store / name):
            flip(path)
        with pytest.raises(ReadError, match="a shard is damaged") as caught, intact_shards(str(store)):
            open_uav_chips(str(store))[name].load()
        assert str(store) in str(caught.value.where), name


@pytest.mark.parametrize("name", ["image", "valid"])
def test_training_reads_no_damaged_chip(crowns: Path, tmp_path: Path, name: str):
    store = tmp_path / "uav.zarr"
    shutil.copytree(crowns, store)
    for path in shards(store / name):
        # in the first chip
        flip(path, part=0.005)
    data = CrownDataset(store)
    with pytest.raises(ReadError, match="a shard is damaged"):
        data.stored_chip(0)


def test_a_damaged_height_makes_no_height_of_a_crown(crowns: Path, tmp_path: Path):
    store = tmp_path / "uav.zarr"
    shutil.copytree(crowns, store)
    zarr.open_group(str(store), mode="r+").attrs["crs_wkt"] = CRS.from_epsg(32652).to_wkt()
    chips = open_uav_chips(str(store))
    left, top = chips["affine"].values[:, 2], chips["affine"].values[:, 5]
    outlines = gpd.GeoDataFrame(
        {"crown_id": chips["crown_id"].values}, geometry=shapely.box(left, top - 1, left + 1, top), crs=32652
    )
    arguments = {"name": "test_resnet", "in_channels": 3, "outputs": 2, "kind": "single-label"}
    bundle = ModelBundle(
        module=build("season_predictor", arguments).eval(),
        architecture="season_predictor",
        arguments=arguments,
        bands=("red", "green", "blue"),
        normalisation=Normalisation((0.4,) * 3, (0.2,) * 3),
        size=16,
        resolution=0.1,
        task="classification",
        classes=("birch", "oak"),
    )
    whole = classify_crowns(store, bundle, outlines)
    assert whole["height_p95"].tolist() == [5 + crown for crown in range(8)]
    for path in shards(store / "chm"):
        flip(path)
    with pytest.raises(ReadError, match="a shard is damaged"):
        classify_crowns(store, bundle, outlines)


def again(mapped: Path, out: Path, *steps: str) -> str:
    """Do some steps of a run again; what it says of its troubles."""
    for step in steps:
        shutil.rmtree(out / "ledger" / step)
    done = recipe(mapped, "window: 32", more=MAP).run(out)
    assert (done.exit_code == 0) == (not done.store.read_json("quarantine.json"))
    return done.store.read_bytes("quarantine.json").decode()


def test_a_damaged_map_ends_no_step_and_is_mapped_again_once_it_is_gone(mapped: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(mapped / "run", out)
    (shard, *_) = shards(out / "predict" / "rasters.zarr" / "class")
    kept = shard.read_bytes()
    flip(shard)
    assert again(mapped, out, "polygons", "cog").count("a shard is damaged") > 1
    shard.unlink()
    assert json.loads(again(mapped, out, "polygons", "cog")) == []
    assert shard.read_bytes() == kept
    for name in ("polygons/habitats.gpkg", "cog/class.tif"):
        assert (out / name).read_bytes() == (mapped / "run" / name).read_bytes()


@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_damaged_parts_of_polygons_are_told(mapped: Path, tmp_path: Path, part: float):
    out = tmp_path / "run"
    shutil.copytree(mapped / "run", out)
    for path in (out / "polygons" / "outlines").glob("*.npz"):
        flip(path, part)
    (out / "ledger" / "polygons" / "table" / "all.json").unlink()
    said = again(mapped, out)
    assert "a shard is damaged" in said
    assert "outlines/" in said


def test_chips_are_not_cut_by_a_damaged_plan(tmp_path: Path):
    draw_world(tmp_path)
    text = """
geoeco: 1
name: crowns
inputs: {tables: {mosaic: mosaic.tif, crowns: crowns.gpkg}}
steps:
  - {verb: uav_chips, kind: crown, mosaic: mosaic, crowns: crowns, chips_per_shard: 64}
"""
    recipe = Recipe.parse(text, folder=str(tmp_path))
    assert recipe.run(tmp_path / "run").exit_code == 0
    for name in ("plan.json", "chips.parquet", "crowns.parquet"):
        path = tmp_path / "run" / "uav_chips" / name
        whole = path.read_bytes()
        if name == "plan.json":
            path.write_bytes(whole.replace(b'"seed": 0', b'"seed": 1'))
        else:
            flip(path, 0.3)
        assert path.read_bytes() != whole
        shutil.rmtree(tmp_path / "run" / "ledger" / "uav_chips" / "groups")
        done = recipe.run(tmp_path / "run")
        assert done.exit_code != 0
        assert "is not as the survey wrote it" in done.store.read_bytes("quarantine.json").decode()
        path.write_bytes(whole)
