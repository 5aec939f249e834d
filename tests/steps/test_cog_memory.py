"""What writing a file holds stays below what the plan says, through memory and through the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from geoeco.outputs.cog import MEMORY_BYTES_LAZY
from geoeco.steps.cog import file_memory

# a raster that comes block by block, as the verb cog writes it; its peak in bytes
WRITE = """
import os, resource, sys
os.environ["GDAL_CACHEMAX"] = str(64 << 20)
import dask.array, numpy as np, rioxarray, xarray as xr
from affine import Affine
from geoeco.outputs import quicklook, write_cog
from geoeco.variables import describe
size, kind, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dtype = np.uint8 if kind == "class" else np.float32
data = xr.DataArray(dask.array.zeros((size, size), dtype=dtype, chunks=1024), dims=("y", "x"), name="value")
data = data.assign_coords(y=5e6 - 0.5 - np.arange(size), x=5e5 + 0.5 + np.arange(size)).rio.write_crs(32631)
data = describe(data, kind=kind, units="" if kind == "class" else "1", long_name="value")
tile = np.kron(np.random.default_rng(0).integers(0, 9, (128, 128)), np.ones((8, 8))).astype(dtype)
windows = [(y, x) for y in range(0, size, 1024) for x in range(0, size, 1024)]
blocks = (((slice(y, min(size, y + 1024)), slice(x, min(size, x + 1024))), tile[: size - y, : size - x])
          for y, x in windows)
write_cog(data, path, blocks=blocks, threads=1, level=1)
quicklook(path, path + ".png")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measured(size: int, kind: str, path: Path) -> int:
    command = [sys.executable, "-c", WRITE, str(size), kind, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind"), [(17_000, "class"), (7_000, "continuous")], ids=["disk", "memory"])
def test_a_file_is_written_within_the_memory_that_the_plan_says(size: int, kind: str, tmp_path: Path) -> None:
    itemsize = 1 if kind == "class" else 4
    assert (size**2 * itemsize > MEMORY_BYTES_LAZY) == (kind == "class")
    peak = measured(size, kind, tmp_path / "map.tif")
    for known in (itemsize, None):
        assert peak <= file_memory(size**2, 1, known)
    # not by much: a bound that counts pixels twice refuses maps that would fit
    assert file_memory(size**2, 1, itemsize) < 1.5 * peak


def test_the_bound_of_a_map_of_any_size_is_that_of_its_windows() -> None:
    assert file_memory(10**11, 1, 1) == file_memory(10**9, 1, 1) < 600 * 2**20
    assert file_memory(10**11, 1) == file_memory(10**9, 1) < 900 * 2**20
    assert file_memory(10**6, 1, 1) < file_memory(10**6, 1)
