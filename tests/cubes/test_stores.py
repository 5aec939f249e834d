"""Cubes in memory, lazily and on disk: the same numbers, masked and fused, whatever the blocks."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  # registers .rio
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox

from geoeco.cubes import cube_layout, load, open_cube, solar_days, template, write_block
from geoeco.cubes.shards import Objects
from geoeco.errors import GridError, InputError, OutputError, ReadError, TransientError
from geoeco.grid import blocks
from geoeco.sensors import sentinel2

BANDS = ("B04", "B8A")


@pytest.fixture(scope="module")
def items(tmp_path_factory, world):
    """Four days; on the second, three scenes overlap, one of them from the next zone."""
    folder = tmp_path_factory.mktemp("world")
    made = [world.random_scene(folder, f"S{i}", f"2020-06-{3 * i + 1:02d}T10:00:00", i) for i in range(4)]
    made.append(world.random_scene(folder, "S1-late", "2020-06-04T10:00:20", 9))
    other = {"crs": "EPSG:32632", "origin": (27000.0, 5013000.0)}
    made.append(world.random_scene(folder, "A-zone-32", "2020-06-04T10:00:10", 10, baseline="02.14", **other))
    return made


@pytest.fixture(scope="module")
def grid(world):
    return world.grid(256, 200, left=500040.0, top=4999980.0)


def _write(store, items, grid, block, **more):
    template(str(store), grid, solar_days(items, grid), BANDS, block=block)
    return [write_block(str(store), items, grid, b.y, b.x, **more) for b in blocks(grid, block)]


def _contents(store):
    root = Path(store)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory, items, grid):
    store = tmp_path_factory.mktemp("store") / "cube.zarr"
    return store, _write(store, items, grid, 128)


# --- one cube, three ways ---


def test_eager_lazy_and_stored_cubes_are_identical(stored, items, grid):
    eager = load(items, grid, bands=BANDS)
    lazy = load(items, grid, bands=BANDS, chunks={"y": 100, "x": 64, "time": 3})
    assert lazy.reflectance.chunks is not None
    xr.testing.assert_identical(lazy.compute(), eager)
    opened = open_cube(str(stored[0]))
    xr.testing.assert_equal(opened, eager)
    for name in ("reflectance", "scl"):
        assert opened[name].dtype == eager[name].dtype
        assert opened[name].attrs == eager[name].attrs


def test_a_cube_carries_what_rooms_below_rely_on(stored, grid):
    for cube in (open_cube(str(stored[0])), open_cube(str(stored[0]), chunks={})):
        assert cube.reflectance.dims == ("time", "band", "y", "x")
        assert cube.reflectance.dtype == np.float32
        assert cube.reflectance.attrs["kind"] == "continuous"
        assert cube.reflectance.attrs["units"] == "1"
        assert cube.scl.dtype == np.uint8
        assert cube.scl.attrs["kind"] == "class"
        assert list(cube.band.values) == list(BANDS)
        assert cube.time.dtype == "datetime64[ns]"
        assert cube.rio.crs.to_epsg() == 32631
        assert cube.odc.geobox == grid


def test_the_default_reader_of_xarray_gets_the_same_reflectance(stored):
    plain = xr.open_zarr(str(stored[0]), consolidated=False, chunks=None)
    np.testing.assert_allclose(plain.reflectance.values, open_cube(str(stored[0])).reflectance.values, rtol=1e-6)


def test_zarr_python_reads_the_shards_that_are_put_together_by_hand(stored, items, grid, tmp_path):
    array = zarr.open_array(str(stored[0]), path="reflectance", mode="r")
    values = array[:]
    assert array.shards is not None
    other = tmp_path / "by-zarr.zarr"
    template(str(other), grid, solar_days(items, grid), BANDS, block=128)
    zarr.open_array(str(other), path="reflectance", mode="r+")[:] = values
    np.testing.assert_array_equal(zarr.open_array(str(other), path="reflectance", mode="r")[:], values)
    # and the other way about: zarr-python rewrites one of ours
    rewritten = zarr.open_array(str(other), path="reflectance", mode="r+")
    rewritten[:, 0, :128, :128] = values[:, 0, :128, :128] * 0 + 5
    assert (rewritten[:, 0, :128, :128] == 5).all()


@pytest.mark.parametrize("block", [64, 256])
def test_pixels_do_not_depend_on_the_block(stored, items, grid, tmp_path, block):
    store = tmp_path / "other.zarr"
    _write(store, items, grid, block)
    xr.testing.assert_identical(open_cube(str(store)).load(), open_cube(str(stored[0])).load())


def test_pixels_do_not_depend_on_regions_threads_or_cache(stored, items, grid, tmp_path):
    store = tmp_path / "other.zarr"
    records = _write(store, items, grid, 128, stage_mib=0, threads=1, cache_mib=1)
    assert [r["checksum"] for r in records] == [r["checksum"] for r in stored[1]]
    assert _contents(store) == _contents(stored[0])


def test_a_block_written_twice_leaves_the_same_bytes(stored, items, grid):
    before = _contents(stored[0])
    first = next(blocks(grid, 128))
    again = write_block(str(stored[0]), list(reversed(items)), grid, first.y, first.x)
    assert again == stored[1][0]
    assert _contents(stored[0]) == before


# --- what the pixels are ---


def _uniform(world, folder, name, when, number, scl, **more):
    size = 40
    bands = {"SCL": np.broadcast_to(np.asarray(scl, np.uint8), (size, size)).copy()}
    bands["B04"] = np.full((2 * size, 2 * size), number, np.uint16)
    bands["B8A"] = np.full((size, size), number, np.uint16)
    return world.scene(folder, name, when, bands, **{"origin": (499980.0, 5000040.0), **more})


def test_offset_is_taken_out_by_baseline_and_nodata_masked_first(tmp_path, world):
    old = _uniform(world, tmp_path, "old", "2020-06-01T10:00:00", 1200, 4, baseline="02.14")
    new = _uniform(world, tmp_path, "new", "2020-06-05T10:00:00", 2200, 4, baseline="05.00")
    empty = _uniform(world, tmp_path, "empty", "2020-06-09T10:00:00", 0, 4, baseline="05.00")
    dark = _uniform(world, tmp_path, "dark", "2020-06-13T10:00:00", 900, 4, baseline="05.00")
    bright = _uniform(world, tmp_path, "bright", "2020-06-17T10:00:00", 65535, 4, baseline="05.00")
    cube = load([old, new, empty, dark, bright], world.grid(32, 32), bands=BANDS).reflectance.isel(y=5, x=5)
    for band in BANDS:
        np.testing.assert_allclose(cube.sel(band=band), [0.12, 0.12, np.nan, -0.01, 3.2767], rtol=1e-6)


def test_radiometry_that_was_verified_overrules_the_metadata(tmp_path, world):
    item = _uniform(world, tmp_path, "new", "2020-06-05T10:00:00", 2200, 4)
    given = {"new": sentinel2.Radiometry(scale=1e-4, offset=0.0)}
    assert float(load([item], world.grid(8, 8), bands=["B04"], radiometry=given).reflectance[0, 0, 0, 0]) == np.float32(
        0.22
    )
    odd = {"new": sentinel2.Radiometry(scale=2e-4, offset=-0.05)}
    got = load([item], world.grid(8, 8), bands=["B04"], radiometry=odd).reflectance[0, 0, 0, 0]
    np.testing.assert_allclose(got, 0.39, rtol=1e-6)


def test_snow_stays_and_clouds_go_with_their_surroundings(tmp_path, world):
    scl = np.full((40, 40), 11, np.uint8)
    scl[20, 20] = 9
    item = _uniform(world, tmp_path, "s", "2020-06-05T10:00:00", 2200, scl)
    cube = load([item], world.grid(80, 80), bands=BANDS)
    hidden = np.isnan(cube.reflectance[0])
    y, x = np.ogrid[-20:20, -20:20]
    disk = (y * y + x * x <= 9).repeat(2, 0).repeat(2, 1)  # 60 m are 3 px of 20 m
    for band in range(2):
        np.testing.assert_array_equal(hidden[band], disk)
    assert (cube.scl[0].values == scl.repeat(2, 0).repeat(2, 1)).all()
    assert not np.isnan(load([item], world.grid(80, 80), bands=BANDS, mask=False).reflectance).any()
    settings = {"masked": (0, 11), "dilate": (), "radius_m": 0}
    assert np.isnan(load([item], world.grid(80, 80), bands=BANDS, mask=settings).reflectance).sum() == 2 * (6400 - 4)


def test_a_cloud_in_the_next_block_darkens_this_one(tmp_path, world):
    scl = np.full((40, 40), 4, np.uint8)
    scl[10, 16] = 9  # 20 m pixel 16 begins at 10 m pixel 32, the next block's first
    item = _uniform(world, tmp_path, "s", "2020-06-05T10:00:00", 2200, scl)
    whole = load([item], world.grid(64, 64), bands=["B04"])
    left = load([item], world.grid(64, 64)[:, :32], bands=["B04"])
    assert np.isnan(left.reflectance).any()
    np.testing.assert_array_equal(left.reflectance, whole.reflectance[..., :32])


def test_the_first_clear_scene_of_a_day_fills_a_pixel_in_all_bands(tmp_path, world):
    cloudy = np.full((40, 40), 4, np.uint8)
    cloudy[:, 20:] = 10
    a = _uniform(world, tmp_path, "a", "2020-06-05T10:00:00", 2000, cloudy)
    b = _uniform(world, tmp_path, "b", "2020-06-05T10:00:30", 3000, 5)
    for items in ([a, b], [b, a]):
        cube = load(items, world.grid(80, 80), bands=BANDS)
        assert cube.sizes["time"] == 1
        np.testing.assert_allclose(cube.reflectance[0, :, :, :40], 0.1, rtol=1e-6)
        np.testing.assert_allclose(cube.reflectance[0, :, :, 40:], 0.2, rtol=1e-6)
        assert (cube.scl[0, :, :40] == 4).all()
        assert (cube.scl[0, :, 40:] == 5).all()


def test_the_grids_own_zone_comes_before_another(tmp_path, world):
    # zone 32's scene has the smaller id and covers the same ground
    own = _uniform(world, tmp_path, "z-own", "2020-06-05T10:00:00", 2000, 4, origin=(799980.0, 5000040.0))
    ground = (
        GeoBox((1, 1), world.grid(1, 1, left=799980.0).affine, "EPSG:32631").extent.to_crs("EPSG:32632").boundingbox
    )
    other = _uniform(
        world,
        tmp_path,
        "a-other",
        "2020-06-05T10:00:00",
        3000,
        4,
        crs="EPSG:32632",
        origin=(ground.left - 200, ground.top + 200),
    )
    where = world.grid(40, 40, left=799980.0)
    both = load([own, other], where, bands=BANDS)
    np.testing.assert_allclose(both.reflectance, 0.1, rtol=1e-6)
    alone = load([other], where, bands=BANDS)
    np.testing.assert_allclose(alone.reflectance, 0.2, rtol=1e-6)


def test_scenes_of_one_overpass_share_a_day_across_the_antimeridian(tmp_path, world):
    west = _uniform(world, tmp_path, "w", "2020-06-05T22:30:00", 2000, 4, crs="EPSG:32660", lonlat=(179.5, 45.0))
    east = _uniform(world, tmp_path, "e", "2020-06-05T22:30:20", 2000, 4, crs="EPSG:32601", lonlat=(-179.5, 45.0))
    grid = world.grid(8, 8, left=735000.0, top=4990000.0, crs="EPSG:32660")
    assert solar_days([west, east], grid).astype(str).tolist() == ["2020-06-06"]


def test_swath_edges_and_all_cloud_days_are_nan_not_zero(tmp_path, world):
    scl = np.full((40, 40), 9, np.uint8)
    scl[:, :20] = 0
    item = _uniform(world, tmp_path, "s", "2020-06-05T10:00:00", 2200, scl)
    cube = load([item], world.grid(80, 80), bands=BANDS)
    assert np.isnan(cube.reflectance).all()
    assert (cube.scl[0, :, :40] == 0).all()


def test_bands_of_three_resolutions_lie_over_each_other(tmp_path, world):
    """A gradient along x in metres is the same in 10, 20 and 60 m bands: no shift by half a coarse pixel."""
    bands = {}
    for band, resolution in (("B04", 10), ("B8A", 20), ("B01", 60), ("SCL", 20)):
        n = 2400 // resolution
        metres = (np.arange(n) + 0.5) * resolution
        bands[band] = np.broadcast_to(metres.astype(np.uint16) + 1000, (n, n)).copy()
    bands["SCL"] = np.full((120, 120), 4, np.uint8)
    item = world.scene(tmp_path, "s", "2020-06-05T10:00:00", bands, origin=(499980.0, 5000040.0))
    cube = load([item], world.grid(200, 200)[30:170, 30:170], bands=["B04", "B8A", "B01"]).reflectance[0]
    assert float(abs(cube.sel(band="B8A") - cube.sel(band="B04")).max()) <= 1.01e-4
    assert float(abs(cube.sel(band="B01") - cube.sel(band="B04")).max()) <= 1.01e-4


# --- bad scenes ---


@pytest.fixture
def breakable(tmp_path, world):
    return [world.random_scene(tmp_path / "in", f"S{i}", f"2020-06-{3 * i + 1:02d}T10:00:00", i) for i in range(3)]


def _break(item, band, how):
    path = Path(item.assets[band].href)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    else:
        del item.assets[band]


@pytest.mark.parametrize("how", ["missing", "truncated", "no asset"])
@pytest.mark.parametrize("band", ["SCL", "B8A"])
def test_a_bad_scene_is_left_out_whole_and_named(breakable, tmp_path, world, how, band):
    grid = world.grid(128, 128, left=500040.0)
    _break(breakable[1], band, how)
    store = str(tmp_path / "cube.zarr")
    template(store, grid, solar_days(breakable, grid), BANDS, block=128)
    record = write_block(store, breakable, grid, (0, 128), (0, 128))
    assert [(d["item"], d["asset"]) for d in record["dropped"]] == [("S1", band)]
    assert record["dropped"][0]["code"] == ("asset-corrupt" if how == "truncated" else "asset-missing")
    assert record["items"] == ["S0", "S2"]
    cube = open_cube(store)
    assert np.isnan(cube.reflectance[1]).all()
    assert (cube.scl[1] == 0).all()
    without = load([breakable[0], breakable[2]], grid, bands=BANDS)
    xr.testing.assert_equal(cube.isel(time=[0, 2]), without)
    assert json.loads(json.dumps(record)) == record


def test_a_repaired_scene_is_the_same_as_one_never_broken(breakable, tmp_path, world):
    grid = world.grid(128, 128, left=500040.0)
    days = solar_days(breakable, grid)
    stores = [str(tmp_path / name) for name in ("a.zarr", "b.zarr")]
    for store in stores:
        template(store, grid, days, BANDS, block=128)
    write_block(stores[0], breakable, grid, (0, 128), (0, 128))
    path = Path(breakable[1].assets["B04"].href)
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    assert write_block(stores[1], breakable, grid, (0, 128), (0, 128))["dropped"]
    path.write_bytes(whole)
    assert not write_block(stores[1], breakable, grid, (0, 128), (0, 128))["dropped"]
    assert _contents(stores[0]) == _contents(stores[1])


def test_on_bad_scene_fail_raises_with_item_and_asset(breakable, tmp_path, world):
    grid = world.grid(128, 128, left=500040.0)
    store = str(tmp_path / "cube.zarr")
    template(store, grid, solar_days(breakable, grid), BANDS, block=128)
    _break(breakable[1], "B04", "truncated")
    with pytest.raises(ReadError, match="S1, asset B04"):
        write_block(store, breakable, grid, (0, 128), (0, 128), on_bad_scene="fail")
    with pytest.raises(ReadError, match="S1, asset B04"):
        load(breakable, grid, bands=BANDS)
    with pytest.warns(UserWarning, match="S1"):
        cube = load(breakable, grid, bands=BANDS, on_bad_scene="drop")
    assert np.isnan(cube.reflectance[1]).all()


def test_transient_faults_are_not_bad_scenes(breakable, tmp_path, world):
    grid = world.grid(128, 128, left=500040.0)
    store = str(tmp_path / "cube.zarr")
    template(store, grid, solar_days(breakable, grid), BANDS, block=128)
    breakable[1].assets["B04"].href = "http://127.0.0.1:9/B04.tif"
    with pytest.raises(TransientError):
        write_block(store, breakable, grid, (0, 128), (0, 128))


# --- the store ---


def test_shards_divide_blocks_and_chunks_divide_shards():
    for n in (1, 24, 73, 146, 500):
        for block in (64, 128, 256, 512, 1000, 1024, 2048, 4096):
            shard, chunk = cube_layout(n, block)
            assert block % shard == 0
            assert shard % chunk == 0
            assert shard % 8 == 0
            assert n * shard**2 * 2 <= 32 << 20 or shard <= 128
    with pytest.raises(InputError):
        cube_layout(10, 100)


def test_the_template_is_metadata_and_written_once(tmp_path, items, grid):
    store = tmp_path / "cube.zarr"
    days = solar_days(items, grid)
    template(str(store), grid, days, BANDS, block=128)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert not [path for path in before if path.match("reflectance/c/*")]
    template(str(store), grid, days, BANDS, block=128)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before
    assert np.isnan(open_cube(str(store)).reflectance).all()


def test_a_half_made_template_is_completed(tmp_path, items, grid):
    store = tmp_path / "cube.zarr"
    template(str(store), grid, solar_days(items, grid), BANDS, block=128)
    whole = _contents(store)
    (store / "zarr.json").unlink()
    (store / "band" / "zarr.json").unlink()
    template(str(store), grid, solar_days(items, grid), BANDS, block=128)
    assert _contents(store) == whole


def test_a_store_of_another_layout_is_never_touched(tmp_path, items, grid):
    store = tmp_path / "cube.zarr"
    days = solar_days(items, grid)
    template(str(store), grid, days, BANDS, block=128)
    before = _contents(store)
    for arguments in (
        (grid, days[:-1], BANDS, 128),
        (grid, days, ("B04",), 128),
        (grid, days, ("B8A", "B04"), 128),
        (grid, days, BANDS, 64),
        (grid[:, :128], days, BANDS, 128),
    ):
        with pytest.raises(OutputError) as caught:
            template(str(store), *arguments[:3], block=arguments[3])
        assert caught.value.code == "store-differs"
    assert _contents(store) == before


def test_no_strings_and_no_consolidated_metadata_in_the_store(stored):
    for path in Path(stored[0]).rglob("zarr.json"):
        meta = json.loads(path.read_text())
        assert meta["zarr_format"] == 3
        assert "consolidated_metadata" not in meta
        if meta["node_type"] == "array":
            assert meta["data_type"] in ("int16", "int32", "uint8", "float64")


def test_blocks_that_are_not_whole_shards_are_refused(stored, items, grid):
    before = _contents(stored[0])
    for y, x in (((0, 64), (0, 128)), ((64, 192), (0, 128)), ((0, 128), (0, 199)), ((0, 512), (0, 128))):
        with pytest.raises(OutputError) as caught:
            write_block(str(stored[0]), items, grid, y, x)
        assert caught.value.code == "shard-alignment"
    with pytest.raises(GridError):
        write_block(str(stored[0]), items, grid.translate_pix(1, 0), (0, 128), (0, 128))
    assert _contents(stored[0]) == before


def test_a_block_without_a_template_says_so(tmp_path, items, grid):
    with pytest.raises(OutputError) as caught:
        write_block(str(tmp_path / "none.zarr"), items, grid, (0, 128), (0, 128))
    assert caught.value.code == "no-template"


def test_blocks_without_data_leave_no_object_and_a_record(stored, items, grid, tmp_path):
    store = tmp_path / "cube.zarr"
    template(str(store), grid, solar_days(items, grid), BANDS, block=128)
    record = write_block(str(store), [], grid, (0, 128), (0, 128))
    assert record["bytes"] == 0
    assert record["blind"] == record["pixels"]
    assert not (store / "reflectance" / "c").exists()
    assert record["checksum"] == write_block(str(store), [], grid, (0, 128), (0, 128))["checksum"]
    # a block that had data and has none any more leaves none behind
    full = write_block(str(store), items, grid, (0, 128), (0, 128))
    assert full["checksum"] != record["checksum"]
    assert all((store / key).exists() for key in full["objects"])
    assert write_block(str(store), [], grid, (0, 128), (0, 128))["checksum"] == record["checksum"]
    assert np.isnan(open_cube(str(store)).reflectance).all()


def test_the_record_counts_what_is_there(stored, grid):
    store, records = stored
    cube = open_cube(str(store)).load()
    for block, record in zip(blocks(grid, 128), records, strict=True):
        part = cube.isel(y=slice(*block.y), x=slice(*block.x))
        finite = np.isfinite(part.reflectance).sum(("y", "x")).min("band")
        assert list(record["valid"].values()) == finite.values.tolist()
        assert record["pixels"] == part.sizes["y"] * part.sizes["x"]


def test_what_does_not_read_back_is_an_error(tmp_path, items, grid, monkeypatch):
    store = tmp_path / "cube.zarr"
    template(str(store), grid, solar_days(items, grid), BANDS, block=128)
    real = Objects.put

    def flipped(self, key, parts):
        real(self, key, [*parts[:-1], b"wrong"] if key.startswith("reflectance/c") else parts)

    monkeypatch.setattr(Objects, "put", flipped)
    with pytest.raises(OutputError) as caught:
        write_block(str(store), items, grid, (0, 128), (0, 128))
    assert caught.value.code == "read-back"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, items, grid):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        template(str(tmp_path / "cube.zarr"), grid, solar_days(items, grid), BANDS)


def test_no_part_files_stay_behind_when_a_write_fails(tmp_path, monkeypatch):
    objects = Objects(str(tmp_path))

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space"):
        objects.put("a/b", [b"x"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_store_may_be_an_fsspec_url(items, grid, stored):
    import fsspec

    url = "memory://cubes/cube.zarr"
    template(url, grid, solar_days(items, grid), BANDS, block=128)
    template(url, grid, solar_days(items, grid), BANDS, block=128)
    records = [write_block(url, items, grid, b.y, b.x) for b in blocks(grid, 128)]
    assert [r["checksum"] for r in records] == [r["checksum"] for r in stored[1]]
    xr.testing.assert_identical(open_cube(url).load(), open_cube(str(stored[0])).load())
    write_block(url, [], grid, (0, 128), (0, 128))
    assert not fsspec.filesystem("memory").exists("/cubes/cube.zarr/scl/c/0/0/0")


def test_opening_what_is_no_cube_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="no cube"):
        open_cube(str(tmp_path / "nothing.zarr"))
    xr.Dataset({"a": ("x", [1])}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(InputError, match="not a cube"):
        open_cube(str(tmp_path / "other.zarr"))


# --- bad arguments ---


def test_arguments_that_make_no_sense_are_refused(items, grid, tmp_path):
    with pytest.raises(InputError, match="no items"):
        load([], grid)
    with pytest.raises(InputError, match="twice"):
        load([items[0], items[0]], grid)
    with pytest.raises(InputError, match="bands"):
        load(items, grid, bands=["B04", "SCL"])
    with pytest.raises(InputError, match="on_bad_scene"):
        load(items, grid, bands=BANDS, on_bad_scene="ignore")
    with pytest.raises(InputError, match="chunks"):
        load(items, grid, bands=BANDS, chunks={"z": 3})
    with pytest.raises(InputError, match="ascending"):
        template(str(tmp_path / "c"), grid, np.array(["2020-02-01", "2020-01-01"], "datetime64[D]"), BANDS)
    with pytest.raises(GridError, match="no CRS"):
        template(str(tmp_path / "c"), GeoBox(grid.shape, grid.affine, None), solar_days(items), BANDS)
    template(str(tmp_path / "c"), grid, solar_days(items[:1]), BANDS, block=128)
    with pytest.raises(InputError, match="time axis"):
        write_block(str(tmp_path / "c"), items, grid, (0, 128), (0, 128))


def test_a_grid_whose_crs_has_no_epsg_code_works_throughout(tmp_path, world, items):
    grid = GeoBox(
        (64, 64), world.grid(1, 1, left=-61000.0, top=1000.0).affine, "+proj=laea +lat_0=45.15 +lon_0=3.79 +units=m"
    )
    assert grid.crs.epsg is None
    store = str(tmp_path / "cube.zarr")
    template(store, grid, solar_days(items, grid), BANDS, block=64)
    template(store, grid, solar_days(items, grid), BANDS, block=64)
    write_block(store, items, grid, (0, 64), (0, 64))
    opened = open_cube(store)
    xr.testing.assert_equal(opened, load(items, grid, bands=BANDS))
    assert opened.odc.geobox.crs == grid.crs
    assert np.isfinite(opened.reflectance).any()


def test_files_are_read_ahead_only_where_that_saves_decoding():
    from geoeco.cubes.fusing import Tiling
    from geoeco.cubes.stores import _groups

    rows = [[((y, y + 512), (x, x + 512)) for x in range(0, 2048, 512)] for y in range(0, 2048, 512)]

    def windows(offset, factor=1, margin=0):
        return [
            tuple(v // factor + d for v, d in zip((*y, *x), (offset - margin, offset + margin) * 2, strict=True))
            for row in rows
            for y, x in row
        ]

    whole = [list(range(16))]
    by_row = [list(range(at, at + 4)) for at in range(0, 16, 4)]
    alone = [[i] for i in range(16)]
    aligned = Tiling((512, 512), 2, windows(0))
    assert _groups(aligned, rows, 24, 1 << 40) == alone
    coarse = Tiling((512, 512), 2, windows(8, factor=2, margin=1))
    assert _groups(coarse, rows, 24, 1 << 40) == whole
    shifted = Tiling((1024, 1024), 2, windows(300))
    assert _groups(shifted, rows, 24, 1 << 40) == whole
    assert _groups(shifted, rows, 24, 24 * 2 * 512 * 2048) == by_row
    assert _groups(shifted, rows, 24, 0) == alone
    assert _groups(None, rows, 24, 1 << 40) == alone


def test_a_cube_lives_in_an_object_store(items, grid, stored, monkeypatch):
    """Through s3fs against a local S3 server; the same pixels, and a server that is gone may come back."""
    pytest.importorskip("s3fs")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        boto3.client("s3").create_bucket(Bucket="cubes")
        store = "s3://cubes/run/cube.zarr"
        template(store, grid, solar_days(items, grid), BANDS, block=128)
        template(store, grid, solar_days(items, grid), BANDS, block=128)
        records = [write_block(store, items, grid, b.y, b.x) for b in blocks(grid, 128)]
        assert [r["checksum"] for r in records] == [r["checksum"] for r in stored[1]]
        xr.testing.assert_identical(open_cube(store).load(), open_cube(str(stored[0])).load())
        write_block(store, [], grid, (0, 128), (0, 128))
        assert np.isnan(open_cube(store).reflectance[..., :128, :128]).all()
        with pytest.raises(OutputError):
            Objects("s3://no-such-bucket/x").put("key", [b"x"])
    finally:
        server.stop()
    with pytest.raises(TransientError):
        Objects(store).put("key", [b"x"])
