"""The verb uav_chips: a store with its tables and pictures, the same bytes however it is run, errors before work."""

from __future__ import annotations

import hashlib
import io
import json

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr

from geoeco.errors import GeoecoError, InputError, RecipeError
from geoeco.sampling import AreaSplit, BlockSplit, crown_chips, grid_chips, open_uav_chips
from geoeco.steps import Recipe
from tests.sampling.test_mosaic_chips import CRS, LEFT, TOP, World, write

RECIPE = """
geoeco: 1
name: plots
seed: 4
inputs:
  tables: {ortho: mosaic.tif, habitat: labels.tif, heights: chm.tif, trees: crowns.gpkg, areas: areas.gpkg}
steps:
  - verb: uav_chips
    mosaic: ortho
    labels: habitat
    chm: heights
    crowns: trees
    crown_class: species
    chip_m: 12
    overlap_m: 2
    min_valid: 0.3
    split: {block_m: 24, guard_m: 1, fractions: [0.5, 0.25, 0.25]}
    chips_per_shard: 8
"""
TREES = """
geoeco: 1
name: trees
seed: 4
inputs:
  tables: {ortho: mosaic.tif, trees: crowns.gpkg, areas: areas.gpkg}
steps:
  - verb: uav_chips
    mosaic: ortho
    kind: crown
    crowns: trees
    crown_class: species
    context: mask
    split: {areas: areas}
    chips_per_shard: 4
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    world = World(folder)
    world.folder = folder
    world.crowns.to_file(folder / "crowns.gpkg")
    from shapely import box

    west, east = box(LEFT, TOP - 60, LEFT + 38, TOP), box(LEFT + 45, TOP - 60, LEFT + 80, TOP)
    gpd.GeoDataFrame({"split": ["train", "test"]}, geometry=[west, east], crs=CRS).to_file(folder / "areas.gpkg")
    return world


def recipe(world, text=RECIPE, *settings):
    return Recipe.parse(text, folder=str(world.folder), settings=list(settings))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    with pytest.warns(UserWarning, match="crowns are whole in no chip"):
        return recipe(world).run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def trees(world, tmp_path_factory):
    return recipe(world, TREES).run(tmp_path_factory.mktemp("trees") / "run")


def tree(run, step="uav_chips"):
    return {name: hashlib.sha256(run.store.read_bytes(name)).hexdigest() for name in run.store.sizes(step)}


@pytest.mark.filterwarnings("ignore:.*crowns are whole")
def test_a_run_holds_what_the_function_gives(world, run):
    assert run.exit_code == 0
    chips = run.open("uav_chips").load()
    expected = grid_chips(
        world.mosaic,
        chip_m=12,
        overlap_m=2,
        labels=world.label_file,
        chm=world.chm,
        crowns=world.crowns,
        crown_class="species",
        min_valid=0.3,
        split=BlockSplit(24, 1, (0.5, 0.25, 0.25)),
        seed=4,
    )
    xr.testing.assert_identical(chips, expected)
    assert chips.sizes["sample"] % 8


def test_a_store_has_a_chunk_a_chip_and_few_files(run):
    meta = json.loads(run.store.read_bytes("uav_chips/uav.zarr/image/zarr.json"))
    chips = run.open("uav_chips")
    assert meta["chunk_grid"]["configuration"]["chunk_shape"] == [8, 3, 24, 24]
    assert meta["codecs"][0]["configuration"]["chunk_shape"] == [1, 3, 24, 24]
    shards = -(-chips.sizes["sample"] // 8)
    files = [name for name in run.store.sizes("uav_chips/uav.zarr") if not name.endswith("zarr.json")]
    assert len(files) <= 5 * shards + 11
    assert not any(v.dtype.kind in "OUT" for v in chips.data_vars.values())


def test_tables_outlines_and_pictures_lie_beside_the_store_and_in_the_manifest(run):
    manifest = run.store.read_bytes("manifest.json").decode()
    for name in ("chips.parquet", "plan.json", "crowns.parquet", "chips.gpkg", "contact_sheet.png", "overlay.png"):
        assert f"uav_chips/{name}" in manifest
    for name in ("contact_sheet.png", "overlay.png"):
        assert run.store.read_bytes(f"uav_chips/{name}")[:4] == b"\x89PNG"
    chips = run.open("uav_chips")
    outlines = gpd.read_file(io.BytesIO(run.store.read_bytes("uav_chips/chips.gpkg")))
    assert outlines.crs == CRS
    assert outlines["split"].tolist() == [chips.attrs["splits"][k] for k in chips["split"].to_numpy()]
    assert (outlines.area.round(6) == 144).all()
    notes = json.loads(run.store.read_bytes("uav_chips/plan.json"))["notes"]
    assert notes["splits"]["train"] == int((chips["split"] == 0).sum())
    assert notes["proof"][0]["seen"] < 1e-9
    assert notes["proof"][0]["least_distance_m"] >= 1
    assert sum(notes["label_pixels"]["train"].values()) == int((chips["label"][chips["split"] == 0] != 255).sum())
    assert notes["sources"][0]["crowns_whole_in_no_chip"]
    assert notes["sources"][0]["crowns_read"]["overlap_m2"] > 0
    assert notes["sources"][0]["crowns_read"]["n_repaired"] == 0


def test_crowns_keep_ids_class_set_and_outline_from_table_to_chips_to_table(world, trees):
    table = gpd.read_parquet(io.BytesIO(trees.store.read_bytes("uav_chips/crowns.parquet")))
    assert table["crown_id"].tolist() == world.crowns["crown_id"].tolist()
    assert table.geometry.geom_equals_exact(world.crowns.geometry, 1e-6).all()
    assert table["class_name"].tolist() == world.crowns["species"].tolist()
    chips = trees.open("uav_chips")
    names = np.array(chips.attrs["splits"])[chips["split"].to_numpy()]
    assert dict(zip(chips["crown_id"].to_numpy(), names, strict=True)) == dict(
        zip(table["crown_id"], table["split"], strict=True)
    )
    # at 40 m, between the areas, is no set
    assert table.set_index("crown_id")["split"].to_dict() == {
        4: "train",
        9: "none",
        11: "test",
        12: "test",
        20: "train",
        31: "test",
    }
    notes = json.loads(trees.store.read_bytes("uav_chips/plan.json"))["notes"]
    assert notes["crown_classes_without_training"] == ["ash", "lime"]
    expected = crown_chips(
        world.mosaic,
        world.crowns,
        crown_class="species",
        context="mask",
        split=AreaSplit(world.folder / "areas.gpkg"),
        seed=4,
    )
    xr.testing.assert_identical(chips.load(), expected)


@pytest.mark.filterwarnings("ignore:.*crowns are whole")
def test_bytes_do_not_depend_on_workers_or_on_what_was_lost(world, run, tmp_path):
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, Client(cluster) as client:
        spread = recipe(world).run(tmp_path / "run", client)
    assert tree(spread) == tree(run)
    # what is missing is made again
    for name in ("label/c/2/0/0", "offset/c/0/0"):
        spread.store.remove(f"uav_chips/uav.zarr/{name}")
    assert recipe(world).run(tmp_path / "run").exit_code == 0
    assert tree(spread) == tree(run)


def test_a_change_of_what_lies_on_the_mosaic_is_another_step(world, tmp_path):
    before = recipe(world, TREES).plan().steps[0].hash
    moved = world.crowns.copy()
    moved.loc[0, "geometry"] = moved.geometry[0].buffer(0.1)
    other = tmp_path / "inputs"
    other.mkdir()
    for name in ("mosaic.tif", "labels.tif", "chm.tif", "areas.gpkg"):
        (other / name).write_bytes((world.folder / name).read_bytes())
    world.crowns.to_file(other / "crowns.gpkg")
    # another folder, another day: the same content is the same step
    assert Recipe.parse(TREES, folder=str(other)).plan().steps[0].hash == before
    moved.to_file(other / "crowns.gpkg")
    assert Recipe.parse(TREES, folder=str(other)).plan().steps[0].hash != before


def test_the_plan_holds_all_chips_there_might_be(world, run, trees):
    plan = recipe(world).plan()
    tasks = plan.steps[0].tasks
    assert [task.stage for task in tasks] == ["survey"] + ["groups"] * (len(tasks) - 1)
    assert 8 * (len(tasks) - 1) >= run.open("uav_chips").sizes["sample"]
    chip = 24 * 24 * (3 + 1 + 1 + 4 + 4)
    assert all(task.memory_bytes > 8 * chip for task in tasks[1:])


def test_what_the_file_does_not_say_of_nodata_and_the_day_the_recipe_says(world, tmp_path):
    write(tmp_path / "bare.tif", world.image)
    text = """
geoeco: 1
name: bare
inputs: {tables: {ortho: bare.tif}}
steps:
  - {verb: uav_chips, mosaic: ortho, chip_m: 30, nodata: 0, date: 2024-05-03}
"""
    run = Recipe.parse(text, folder=str(tmp_path)).run(tmp_path / "run")
    chips, expected = run.open("uav_chips").load(), grid_chips(world.mosaic, chip_m=30)
    assert (chips.attrs["dates"], expected.attrs["dates"]) == (["2024-05-03"], ["2025-07-14"])
    np.testing.assert_array_equal(chips["valid"], expected["valid"])
    assert not grid_chips(tmp_path / "bare.tif", chip_m=30)["valid"].equals(expected["valid"])
    # where the file says it, another rule is an error and not left aside
    with pytest.raises(InputError, match=r"the rule nodata=7\.0 would not be used"):
        recipe(world, TREES, "steps.0.nodata=7").plan()


WRONG = [
    (["steps.0.date=[2024-05-03, 2024-05-04]"], RecipeError, "2 dates for 1 mosaics"),
    (["steps.0.nodata=none"], RecipeError, "nodata"),
    (["steps.0.chip_m=null"], RecipeError, "grid chips need chip_m"),
    (["steps.0.split={}"], RecipeError, "either areas or block_m"),
    (["steps.0.context=zero"], RecipeError, "only crown chips"),
    (["steps.0.kind=crown", "steps.0.crowns=null"], RecipeError, "crown chips need crowns"),
    (["steps.0.edge=crop"], RecipeError, "edge"),
    (["steps.0.mosaic=orto"], InputError, "did you mean 'ortho'"),
    (["steps.0.chip_m=80"], InputError, "larger than the mosaic"),
    (["steps.0.crown_class=name"], InputError, "no column 'name'"),
    (["steps.0.kind=crown", "steps.0.chip_m=5"], InputError, "crowns are larger than a chip"),
    (["steps.0.target_gsd=0.2"], InputError, "finer"),
    (["steps.0.bands={nir: 9}"], InputError, "no band number 9"),
]


@pytest.mark.parametrize(("settings", "error", "story"), WRONG)
def test_wrong_settings_are_told_before_work_starts(world, settings, error, story):
    with pytest.raises(error, match=story):
        recipe(world, RECIPE, *settings).plan()


def test_what_only_the_pixels_tell_ends_in_quarantine_with_its_reason(world, tmp_path):
    run = recipe(world, TREES, "steps.0.split={block_m: 22, guard_m: 40}").run(tmp_path / "run")
    assert run.exit_code == 1
    assert "no chip is left for" in run.store.read_bytes("quarantine.json").decode()


def test_a_store_is_not_written_over_another(world, run, tmp_path):
    from geoeco.sampling import create_uav_chips, store_uav_chips, write_uav_chips

    chips = run.open("uav_chips").isel(sample=slice(12)).load()
    store = str(tmp_path / "some.zarr")
    store_uav_chips(store, chips, chips_per_shard=4)
    xr.testing.assert_identical(open_uav_chips(store).load(), chips)
    store_uav_chips(store, chips, chips_per_shard=4)
    with pytest.raises(GeoecoError, match="another layout"):
        store_uav_chips(store, chips.isel(sample=slice(10)), chips_per_shard=4)
    with pytest.raises(GeoecoError, match="not whole shards"):
        write_uav_chips(store, chips.isel(sample=slice(2)), first=4)
    with pytest.raises(InputError, match="another size, type or kind"):
        write_uav_chips(store, chips.isel(sample=slice(4), y=slice(5)), first=0)
    with pytest.raises(InputError, match="at least one chip"):
        create_uav_chips(str(tmp_path / "none.zarr"), chips.isel(sample=slice(0)))
    with pytest.raises(GeoecoError, match="no store of chips"):
        open_uav_chips(str(tmp_path / "nowhere.zarr"))
