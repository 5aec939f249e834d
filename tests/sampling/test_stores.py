"""Chips on disk: the same chips, whole shards, the same bytes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
import zarr

from geoeco.cubes.chunks import ChunkReader
from geoeco.errors import InputError, OutputError
from geoeco.sampling import (
    assert_disjoint,
    chips_memory,
    chips_table,
    chips_template,
    finish_chips,
    open_chips,
    season_chips,
    spatial_split,
    store_chips,
    write_chips,
)
from geoeco.sensors import sentinel2

FOUR = ("2021-04-10", "2021-07-09", "2021-10-07", "2021-01-10")
BANDS = ("B02", "B05")
SIZE = 36
XY = [(600_400.0 + 500 * i, 5_699_500.0 - 450 * i) for i in range(5)] + [(650_000.0, 5_699_500.0)]


@pytest.fixture
def world(tile, place, windows):
    a = tile()
    rng = np.random.default_rng(0)
    items = [
        a.scene(d, bands={"B02": rng.integers(1001, 5000, (360, 360)), "B05": rng.integers(1001, 5000, (180, 180))})
        for d in FOUR
    ]
    return items, place(*XY), windows(len(XY))


def fill(store, world, *, per_shard=2, **options):
    items, places, table = world
    chips_template(store, len(places), size=SIZE, bands=BANDS, samples_per_shard=per_shard)
    records = [
        write_chips(store, items, places.iloc[first : first + per_shard], table, first=first, threads=2, **options)
        for first in range(0, len(places), per_shard)
    ]
    finish_chips(store)
    return records


def tree(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def test_a_store_gives_back_what_was_cut(tmp_path, world):
    store = str(tmp_path / "chips")
    records = fill(store, world)
    direct = season_chips(*world, size=SIZE, bands=BANDS)
    opened = open_chips(store)
    assert opened["chips"].dtype == np.float32
    xr.testing.assert_identical(opened.load().drop_attrs(), direct.drop_attrs())
    assert opened.attrs["size"] == SIZE
    assert chips_table(opened).drop(columns="geometry").equals(chips_table(direct).drop(columns="geometry"))
    assert sum(r["chips"] for r in records) == 20
    assert sum(r["kept"] for r in records) == 5
    # the location off the tile keeps its place, and the table says why it is empty
    table = gpd.read_parquet(f"{store}/chips.parquet")
    assert table["sample"].tolist() == [s for s in range(6) for _ in range(4)]
    assert set(table[table["name"] == "p5"]["reason"]) == {"outside-items"}
    assert records[-1]["left_out"][0]["names"] == ["p5"]
    everything = open_chips(store, kept=False)
    assert everything.sizes["sample"] == 6
    assert np.isnan(everything["chips"].values[5]).all()
    assert table.crs == "EPSG:4326"


@pytest.mark.parametrize("stored", [False, True])
def test_chips_from_arrays_make_the_same_store_as_chips_from_scenes(tmp_path, world, stored):
    """What was read from one store and written to another, kept or not, is the same to the byte."""
    fill(str(tmp_path / "cut"), world, per_shard=2)
    chips = open_chips(str(tmp_path / "cut"), kept=False, stored=stored)
    store = str(tmp_path / "arrays")
    chips_template(store, chips.sizes["sample"], size=SIZE, bands=BANDS, samples_per_shard=2)
    for first in (4, 0, 2):
        record = store_chips(store, chips.isel(sample=slice(first, first + 2)), first=first, threads=1)
        assert record["dropped"] == []
        assert record["kept"] == (1 if first == 4 else 2)
    finish_chips(store)
    assert tree(store) == tree(tmp_path / "cut")


def test_the_valid_part_of_chips_from_arrays_is_counted_from_their_pixels(tmp_path, world):
    chips = season_chips(*world, size=SIZE, bands=BANDS).load()
    chips["chips"][1, 2, 0, :9, :] = np.nan
    chips = chips.assign_coords(valid_fraction=chips["valid_fraction"] * 0)
    store = str(tmp_path / "chips")
    chips_template(store, chips.sizes["sample"], size=SIZE, bands=BANDS)
    store_chips(store, chips)
    finish_chips(store)
    expected = np.ones((5, 4))
    expected[1, 2] = 1 - 9 / SIZE
    np.testing.assert_allclose(open_chips(store)["valid_fraction"].values, expected)
    assert np.isnan(open_chips(store)["chips"].values[1, 2, 0, :9]).all()


def test_chips_that_the_store_is_not_made_for_are_refused(tmp_path, world):
    chips = season_chips(*world, size=SIZE, bands=BANDS).load()
    store = str(tmp_path / "chips")
    chips_template(store, chips.sizes["sample"], size=SIZE, bands=BANDS, samples_per_shard=2)
    bright, blank = chips.copy(deep=True), chips.copy(deep=True)
    bright["chips"][0, 0, 0, 0, 0] = 3.3
    blank["chips"][0, 0] = np.nan
    for wrong in (
        chips.isel(band=[1, 0]),
        chips.isel(band=[0]),
        chips.isel(season=[1, 0, 2, 3]),
        chips.isel(x=slice(1, None)),
        chips.assign_attrs(resolution=20.0),
        chips.drop_vars("scl"),
        chips.drop_vars("item_id"),
        chips.assign(chips=chips["chips"].fillna(0).astype(np.int32)),
        bright,
        blank,
    ):
        with pytest.raises(InputError):
            store_chips(store, wrong)
    for first, count in ((1, 2), (0, 3), (4, 2), (0, 0)):
        with pytest.raises(OutputError):
            store_chips(store, chips.isel(sample=slice(count)), first=first)
    assert not list(Path(store).rglob("c/*"))


def test_chips_open_lazily_and_as_stored(tmp_path, world):
    store = str(tmp_path / "chips")
    fill(store, world)
    lazy = open_chips(store, chunks={})
    assert lazy["chips"].chunks is not None
    assert np.array_equal(lazy["chips"].values, open_chips(store)["chips"].values)
    stored = open_chips(store, stored=True)["chips"]
    assert stored.dtype == np.int16
    assert np.allclose(stored.values * 1e-4, lazy["chips"].values, atol=1e-6)


def test_a_chip_is_a_chunk_and_a_shard_is_a_season_of_a_group(tmp_path, world):
    store = str(tmp_path / "chips")
    fill(store, world, per_shard=4)
    array = zarr.open_group(f"{store}/chips.zarr", mode="r")["chips"]
    assert array.metadata.zarr_format == 3
    assert array.chunks == (1, 1, 2, SIZE, SIZE)
    assert array.shards == (4, 1, 2, SIZE, SIZE)
    shards = [p for p in Path(store).rglob("c/*/*/0/0/0") if "chips.zarr/chips" in str(p)]
    assert len(shards) == 2 * 4
    # texts live in the table, not in Zarr
    kinds = {a.dtype.kind for _, a in zarr.open_group(f"{store}/chips.zarr", mode="r").arrays()}
    assert kinds <= {"i", "u", "f"}


def test_twice_the_same_bytes_whatever_the_memory_threads_and_group(tmp_path, world):
    trees, digests = [], []
    for name, options in {
        "a": {},
        "b": {"memory_mib": 1},
        "c": {"per_shard": 2},
    }.items():
        records = fill(str(tmp_path / name), world, **options)
        trees.append(tree(tmp_path / name))
        digests.append([r["digest"] for r in records])
    assert trees[0] == trees[1] == trees[2]
    assert digests[0] == digests[1]
    # writing a group again changes nothing
    items, places, table = world
    again = write_chips(str(tmp_path / "a"), items, places.iloc[2:4], table, first=2, threads=1)
    finish_chips(str(tmp_path / "a"))
    assert again["digest"] == digests[0][1]
    assert tree(tmp_path / "a") == trees[0]
    # other groups hold the same chips
    fill(str(tmp_path / "d"), world, per_shard=3)
    assert np.array_equal(
        open_chips(str(tmp_path / "d"))["chips"].values, open_chips(str(tmp_path / "a"))["chips"].values
    )


def test_broken_files_change_no_byte_between_many_seasons_at_a_time_and_one(tmp_path, tile, place, windows):
    a = tile()
    rng = np.random.default_rng(1)
    days = np.arange("2021-03-20", "2021-05-10", 6, dtype="datetime64[D]")
    items = [
        a.scene(str(d), bands={"B02": rng.integers(1001, 5000, (360, 360)), "B05": 2000}, name=f"S{i}")
        for i, d in enumerate(days)
    ]
    for i in (1, 2, 3, 5):
        Path(items[i].assets["B05"].href).unlink()
    # overlapping windows: the seasons compete for the same dates
    table = windows(len(XY), mids=(90, 96, 102, 108), width=40)
    trees = []
    for name, memory_mib in (("all", 512), ("one", 1)):
        fill(str(tmp_path / name), (items, place(*XY), table), memory_mib=memory_mib, min_seasons=2)
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1]
    read = open_chips(str(tmp_path / "one"))
    assert (read["reason"].values == "").sum() >= 10
    for ids in read["item_id"].values:
        assert not {items[i].id for i in (1, 2, 3, 5)} & set(ids)


def test_the_order_in_which_groups_are_written_does_not_matter(tmp_path, world):
    items, places, table = world
    store = str(tmp_path / "turned")
    chips_template(store, len(places), size=SIZE, bands=BANDS, samples_per_shard=2)
    for first in (4, 0, 2):
        write_chips(store, items, places.iloc[first : first + 2], table, first=first)
    finish_chips(store)
    fill(str(tmp_path / "straight"), world)
    assert tree(store) == tree(tmp_path / "straight")


def test_a_group_of_several_shards_is_written_like_its_parts(tmp_path, world):
    items, places, table = world
    store = str(tmp_path / "whole")
    chips_template(store, len(places), size=SIZE, bands=BANDS, samples_per_shard=2)
    write_chips(store, items, places, table)
    finish_chips(store)
    fill(str(tmp_path / "parts"), world)
    whole = {k: v for k, v in tree(store).items() if not k.startswith("parts/")}
    assert whole == {k: v for k, v in tree(tmp_path / "parts").items() if not k.startswith("parts/")}


def test_groups_that_are_not_whole_shards_are_refused(tmp_path, world):
    items, places, table = world
    store = str(tmp_path / "chips")
    chips_template(store, len(places), size=SIZE, bands=BANDS, samples_per_shard=4)
    for first, count in ((1, 4), (0, 3), (4, 3), (0, 0), (8, 1)):
        with pytest.raises(OutputError):
            write_chips(store, items, places.iloc[:count], table, first=first)
    assert not list(Path(store).rglob("c/*"))


def test_a_template_is_written_once_and_never_over_another(tmp_path, world):
    store = str(tmp_path / "chips")
    fill(store, world)
    before = tree(store)
    chips_template(store, len(XY), size=SIZE, bands=BANDS, samples_per_shard=2)
    assert tree(store) == before
    with pytest.raises(OutputError):
        chips_template(store, len(XY), size=SIZE + 1, bands=BANDS, samples_per_shard=2)
    with pytest.raises(OutputError):
        write_chips(str(tmp_path / "none"), *world)
    with pytest.raises(OutputError):
        open_chips(str(tmp_path / "none"))


def test_a_store_made_before_chips_bore_checksums_is_read_and_gone_on_with(tmp_path, world):
    store, new = tmp_path / "old", tmp_path / "new"
    chips_template(str(store), len(XY), size=SIZE, bands=BANDS, samples_per_shard=2)
    for name in ("", "chips/", "scl/"):
        path = store / f"chips.zarr/{name}zarr.json"
        metadata = json.loads(path.read_text())
        if name:
            (sharding,) = metadata["codecs"]
            assert sharding["configuration"]["codecs"].pop()["name"] == "crc32c"
        else:
            assert metadata["attributes"]["geoeco_chips"].pop("version") == 2
        path.write_text(json.dumps(metadata))
    before = tree(store)
    fill(str(store), world)
    fill(str(new), world)
    assert before.items() <= tree(store).items()
    xr.testing.assert_identical(open_chips(str(store)).load(), open_chips(str(new)).load())
    samples = [ChunkReader(f"{path}/chips.zarr", "chips").read((3, 1, 0, 0, 0)) for path in (store, new)]
    np.testing.assert_array_equal(*samples)
    # each of 2 x 4 chips of a shard is longer by its checksum
    sizes = [(path / "chips.zarr/chips/c/0/0/0/0/0").stat().st_size for path in (store, new)]
    assert sizes[1] - sizes[0] == 2 * 4


def test_a_store_of_a_newer_geoeco_says_so(tmp_path, world):
    store = tmp_path / "store"
    fill(str(store), world)
    path = store / "chips.zarr/zarr.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    for attempt in (open_chips, finish_chips):
        with pytest.raises(OutputError, match="version 3"):
            attempt(str(store))


def test_an_unfinished_store_says_so(tmp_path, world):
    items, places, table = world
    store = str(tmp_path / "chips")
    chips_template(store, len(places), size=SIZE, bands=BANDS, samples_per_shard=2)
    with pytest.raises(OutputError):
        finish_chips(store)
    with pytest.raises(OutputError):
        open_chips(store)
    write_chips(store, items, places.iloc[2:4], table, first=2)
    finish_chips(store)
    assert open_chips(store)["name"].values.tolist() == ["p2", "p3"]
    with pytest.raises(InputError):
        chips_template(str(tmp_path / "empty"), 0)


def test_a_store_in_an_object_store_is_the_same(tmp_path, world):
    import fsspec

    fill(str(tmp_path / "local"), world)
    fill("memory://chips-test/run", world)
    try:
        remote = open_chips("memory://chips-test/run").load()
        xr.testing.assert_identical(remote, open_chips(str(tmp_path / "local")).load())
    finally:
        fsspec.filesystem("memory").rm("/chips-test", recursive=True)


def test_the_table_of_chips_proves_the_split(tmp_path, world):
    store = str(tmp_path / "chips")
    fill(store, world)
    table = chips_table(open_chips(store)).drop_duplicates("sample")
    split = spatial_split(table, block_m=600, size_m=SIZE * 10, fractions=(0.6, 0.2, 0.2), seed=1)
    assert assert_disjoint(table, split, size=SIZE) > 0


def test_memory_is_bounded_by_the_group():
    assert chips_memory(128, memory_mib=1) > chips_memory(64, memory_mib=1) > chips_memory(64, bands=4, memory_mib=1)
    # 64 locations are read season by season within the default bound
    assert chips_memory(64) <= 512 << 20
    # small groups take all seasons at once, so that no block is decoded twice
    assert chips_memory(8) > chips_memory(8, memory_mib=1)


_PEAK = """
import sys
from pathlib import Path
import pystac, geopandas, pandas
from geoeco.sampling import chips_template, write_chips
items = [pystac.Item.from_file(path) for path in sys.argv[4:]]
places, windows = geopandas.read_parquet(sys.argv[2]), pandas.read_parquet(sys.argv[3])

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def run(folder, count):
    chips_template(folder, count, samples_per_shard=count)
    return write_chips(folder, items, places.iloc[:count], windows, memory_mib=MEMORY, threads=2)

run(sys.argv[1] + "/warm", 2)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
assert run(sys.argv[1] + "/chips", len(places))["chips"] == 4 * len(places)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_peak_memory_stays_below_what_is_announced(tmp_path, tile, place, windows):
    rng = np.random.default_rng(0)
    a = tile(side=4800, blocks=256)
    bands = {b: rng.integers(1001, 1200, (4800 // int(v.resolution),) * 2) for b, v in sentinel2.BANDS.items()}
    paths = []
    for date in FOUR:
        item = a.scene(date, bands=bands)
        paths.append(tmp_path / f"{item.id}.json")
        item.save_object(include_self_link=False, dest_href=str(paths[-1]))
    for count, memory_mib in ((8, 512), (24, 1)):
        folder = tmp_path / str(count)
        folder.mkdir()
        xy = rng.uniform((601_500, 5_696_700), (603_300, 5_698_500), (count, 2))
        place(*xy).to_parquet(folder / "places.parquet")
        windows(count).to_parquet(folder / "windows.parquet")
        command = [sys.executable, "-c", _PEAK.replace("MEMORY", str(memory_mib)), str(folder)]
        command += [str(folder / "places.parquet"), str(folder / "windows.parquet"), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, announced = int(done.stdout), chips_memory(count, threads=2, memory_mib=memory_mib)
        print(f"{count} locations: {peak >> 20} MiB, announced {announced >> 20} MiB")
        assert peak <= announced


def test_chips_from_the_demo_world(tmp_path):
    import pandas as pd

    from geoeco.catalog import open_catalog
    from geoeco.sampling import circular_distance, points_from_table, season_windows
    from geoeco.simulate import read_truth, write_s2_world

    catalog = write_s2_world(tmp_path / "world", seed=5, size=60, years=1, revisit_days=18, clouds=0.2)
    items = open_catalog(str(catalog)).search()
    truth = catalog.parent / "truth" / "mcd12q2.csv"
    windows = season_windows(truth)
    assert set(windows["source"]) <= {"own", "neighbour"}

    # the true rasters say the same as the table, where both have a cycle
    points = points_from_table(pd.read_csv(truth).drop_duplicates("id"), name="id")
    raster = season_windows(read_truth(catalog.parent, "31UGS"), points, patch_m=20, max_distance_km=0)
    both = windows.merge(raster, on=["name", "season"], suffixes=("", "_raster"))
    both = both[(both["source"] == "own") & (both["source_raster"] == "own")]
    assert len(both) >= 8
    assert np.median(circular_distance(both["interval_start"], both["interval_start_raster"])) <= 2
    places = points_from_table(pd.read_csv(truth).drop_duplicates("id"), name="id")
    data = season_chips(items, places, windows, size=24, bands=("B04", "B08"), min_clear=0.5)
    assert data.sizes["sample"] > 0
    assert set(data["epsg"].values) <= {32631, 32632}
    chosen = data["reason"].values == ""
    assert (data["clear_fraction"].values[chosen] >= 0.5).all()
    assert (data["sun_elevation"].values[chosen] >= 20).all()
    for row in data["date"].values:
        dates = row[~np.isnat(row)]
        assert len(set(dates.tolist())) == len(dates)
    # deciduous and crop patches are greener in summer than in winter
    ndvi = (data["chips"].sel(band="B08") - data["chips"].sel(band="B04")) / data["chips"].sum("band")
    season = ndvi.where(data["valid_fraction"] == 1).median(("sample", "y", "x"))
    assert float(season.sel(season="summer")) > float(season.sel(season="winter"))
