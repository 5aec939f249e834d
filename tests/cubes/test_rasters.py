"""Rasters come out of their store as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (the accessor .rio)
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox

from geoeco.cubes import create_rasters, open_rasters, write_rasters
from geoeco.errors import OutputError
from geoeco.variables import describe

GRID = GeoBox.from_bbox((600_000, 5_000_000, 600_700, 5_000_500), "EPSG:32631", resolution=10)


def rasters(rows: int, cols: int) -> xr.Dataset:
    rng = np.random.default_rng(3)
    days = rng.uniform(18_000, 19_000, (2, rows, cols)).astype(np.float32)
    days[rng.random(days.shape) < 0.2] = np.nan
    classes = rng.integers(1, 5, (rows, cols)).astype(np.uint8)
    classes[0, 0] = 255
    return xr.Dataset(
        {
            "day": describe(
                xr.DataArray(days, dims=("year", "y", "x")), kind="date", units="days since 1970-01-01", long_name="day"
            ),
            "class": describe(xr.DataArray(classes, dims=("y", "x")), kind="class", units="", long_name="class"),
            "size": describe(
                xr.DataArray(days[0] / 1e4, dims=("y", "x")), kind="continuous", units="1", long_name="size"
            ),
        },
        {"year": [2021, 2022]},
    )


def written(store: str, shard: int) -> xr.Dataset:
    whole = rasters(50, 70)
    create_rasters(store, whole, GRID, shard=shard)
    for top in range(0, 50, shard):
        for left in range(0, 70, shard):
            y, x = (top, min(top + shard, 50)), (left, min(left + shard, 70))
            write_rasters(store, whole.isel(y=slice(*y), x=slice(*x)), y, x)
    return whole


@pytest.mark.parametrize("shard", [24, 40, 1000])
def test_what_is_written_is_read_whatever_the_shard(tmp_path: Path, shard: int) -> None:
    whole, found = written(f"{tmp_path}/r.zarr", shard), open_rasters(f"{tmp_path}/r.zarr")
    np.testing.assert_array_equal(found["class"], whole["class"])
    np.testing.assert_array_equal(found["size"], whole["size"])
    np.testing.assert_array_equal(found["day"], np.floor(whole["day"] + 0.5))
    assert found["year"].values.tolist() == [2021, 2022]
    assert found.rio.crs.to_epsg() == 32631
    assert "nodata" not in found["class"].attrs


def test_what_was_never_written_is_no_data(tmp_path: Path) -> None:
    create_rasters(f"{tmp_path}/r.zarr", rasters(1, 1), GRID, shard=40)
    found = open_rasters(f"{tmp_path}/r.zarr")
    assert np.isnan(found["day"]).all()
    assert np.isnan(found["size"]).all()
    assert (found["class"] == 255).all()


@pytest.mark.parametrize(("shard", "chunk"), [(24, 24), (500, 250), (512, 256), (1016, 254)])
def test_the_unit_of_reading_is_not_tiny_for_odd_shards(tmp_path: Path, shard: int, chunk: int) -> None:
    create_rasters(f"{tmp_path}/r.zarr", rasters(1, 1), GRID, shard=shard)
    array = zarr.open_group(f"{tmp_path}/r.zarr", mode="r")["class"]
    assert array.chunks == (chunk, chunk)


def test_halves_of_days_go_up(tmp_path: Path) -> None:
    block = rasters(50, 70)
    block["day"][:] = np.array([18_992.5, 18_993.5])[:, None, None]
    create_rasters(f"{tmp_path}/r.zarr", block, GRID, shard=1000)
    write_rasters(f"{tmp_path}/r.zarr", block, (0, 50), (0, 70))
    assert open_rasters(f"{tmp_path}/r.zarr")["day"].values[:, 0, 0].tolist() == [18_993, 18_994]


@pytest.mark.parametrize(("y", "x"), [((0, 20), (0, 40)), ((10, 50), (0, 40)), ((0, 40), (40, 60))])
def test_a_part_of_a_shard_is_refused(tmp_path: Path, y: tuple[int, int], x: tuple[int, int]) -> None:
    create_rasters(f"{tmp_path}/r.zarr", rasters(1, 1), GRID, shard=40)
    with pytest.raises(OutputError, match="whole number of shards"):
        write_rasters(f"{tmp_path}/r.zarr", rasters(y[1] - y[0], x[1] - x[0]), y, x)


@pytest.mark.parametrize("left", [b"", None])
def test_a_half_written_shard_is_written_again_at_the_edge_too(tmp_path: Path, left: bytes | None) -> None:
    whole = written(f"{tmp_path}/r.zarr", 40)
    shards = {path: path.read_bytes() for path in sorted(tmp_path.glob("r.zarr/*/c/**/*")) if path.is_file()}
    shards = {path: content for path, content in shards.items() if path.parts[-4] in whole or path.parts[-5] in whole}
    assert len(shards) == 3 * 4
    for path, content in shards.items():
        path.write_bytes(content[: len(content) // 2] if left is None else left)
    assert written(f"{tmp_path}/r.zarr", 40).equals(whole)
    assert {path: path.read_bytes() for path in shards} == shards


def test_another_layout_is_refused(tmp_path: Path) -> None:
    create_rasters(f"{tmp_path}/r.zarr", rasters(1, 1), GRID, shard=40)
    create_rasters(f"{tmp_path}/r.zarr", rasters(9, 9), GRID, shard=40)
    with pytest.raises(OutputError, match="another layout"):
        create_rasters(f"{tmp_path}/r.zarr", rasters(1, 1), GRID, shard=24)


def test_values_beyond_the_type_are_refused(tmp_path: Path) -> None:
    block = rasters(50, 70)
    block["day"][0, 0, 0] = 40_000
    create_rasters(f"{tmp_path}/r.zarr", block, GRID, shard=1000)
    with pytest.raises(OutputError, match="int16"):
        write_rasters(f"{tmp_path}/r.zarr", block, (0, 50), (0, 70))


@pytest.mark.parametrize("file", ["zarr.json", "day/zarr.json"])
def test_broken_metadata_is_named(tmp_path: Path, file: str) -> None:
    written(f"{tmp_path}/r.zarr", 1000)
    broken = tmp_path / "r.zarr" / file
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(OutputError, match=r"metadata.*zarr\.json"):
        create_rasters(f"{tmp_path}/r.zarr", rasters(1, 1), GRID, shard=1000)
    with pytest.raises(OutputError, match=r"metadata.*zarr\.json"):
        write_rasters(f"{tmp_path}/r.zarr", rasters(50, 70), (0, 50), (0, 70))
