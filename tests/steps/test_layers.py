"""Blocks are cut into whole shards, and windows into tiles, without gap or overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoeco.cubes import create_rasters, write_rasters
from geoeco.engine import RunStore
from geoeco.steps.layers import MAX_SHARD, parts_of, shard_files, shard_for, tiles
from geoeco.variables import describe


@given(st.integers(1, 600).map(lambda n: 8 * n))
def test_a_block_is_a_whole_number_of_shards_that_are_not_too_big(block: int) -> None:
    shard = shard_for(block)
    assert block % shard == 0
    assert 8 <= shard <= MAX_SHARD


@pytest.mark.parametrize(("block", "shard"), [(24, 24), (40, 40), (512, 512), (1000, 500), (1024, 512)])
def test_the_largest_shard_is_taken(block: int, shard: int) -> None:
    assert shard_for(block) == shard


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(1, 50))
def test_tiles_cover_a_window_once(top: int, height: int, left: int, width: int, size: int) -> None:
    seen = np.zeros((top + height, left + width), int)
    for y, x in tiles((top, top + height), (left, left + width), size):
        assert 0 < y[1] - y[0] <= size
        assert 0 < x[1] - x[0] <= size
        seen[slice(*y), slice(*x)] += 1
    assert (seen[top:, left:] == 1).all()
    assert seen.sum() == height * width


def test_parts_that_are_not_stored_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"12345")
    (part,) = parts_of(RunStore(tmp_path), ["there", "not-there"])
    assert (part.path, part.bytes, part.kind) == ("there", 5, "part")


def test_the_files_of_a_shard_are_those_that_are_written(tmp_path: Path) -> None:
    grid = GeoBox((32, 48), Affine(1, 0, 500_000, 0, -1, 5_300_000), "EPSG:32652")
    whole = xr.Dataset(
        {
            "class": describe(
                xr.DataArray(np.ones((16, 16), np.uint8), dims=("y", "x")), kind="class", units="", long_name="class"
            ),
            "share": describe(
                xr.DataArray(np.ones((2, 16, 16), np.float32), dims=("label", "y", "x"), coords={"label": [1, 2]}),
                kind="continuous",
                units="1",
                long_name="share",
            ),
        }
    )
    store = tmp_path / "map" / "rasters.zarr"
    create_rasters(str(store), whole, grid, shard=16)
    before = {path for path in store.rglob("*") if path.is_file()}
    write_rasters(str(store), whole, (16, 32), (32, 48))
    made = {path.relative_to(tmp_path).as_posix() for path in store.rglob("*") if path.is_file() and path not in before}
    assert made == set(shard_files("map/rasters.zarr", whole, (16, 32), (32, 48), 16))
