"""What writing a block needs is bounded by what the plan says, and does not grow with the number of blocks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pystac
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")

BANDS = ("B04", "B03", "B8A")
DATES, SIZE = 12, 1024

CHILD = """
import json, sys
import pystac
from affine import Affine
from odc.geo.geobox import GeoBox
from geoeco.cubes import block_memory_bytes, solar_days, template, write_block
from geoeco.grid import blocks

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

listing, store, size, crs = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
items = [pystac.Item.from_dict(item) for item in json.load(open(listing))]
grid = GeoBox((1024, 1024), Affine(10, 0, float(sys.argv[5]), 0, -10, float(sys.argv[6])), crs)
template(store, grid, solar_days(items, grid), ("B04", "B03", "B8A"), block=size)
idle, peaks, valid = status("VmRSS"), [], 0
for block in list(blocks(grid, size))[:8]:
    record = write_block(store, items, grid, block.y, block.x)
    valid += sum(record["valid"].values())
    peaks.append(status("VmHWM") - idle)
n = len({item.datetime for item in items})
bound = block_memory_bytes(n, (size, size), n_items=len(items), other_crs=crs != "EPSG:32631")
print(json.dumps({"peaks": peaks, "bound": bound, "valid": valid}))
"""


@pytest.fixture(scope="module")
def listing(tmp_path_factory, world):
    """One scene's files under many dates: what counts here is how many are read, not what is in them."""
    folder = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(0)
    arrays = {"SCL": np.full((SIZE // 2, SIZE // 2), 4, np.uint8)}
    arrays["SCL"][:, :9] = 0
    for band in BANDS:
        n = SIZE if band != "B8A" else SIZE // 2
        arrays[band] = rng.integers(1001, 9000, (n, n)).astype(np.uint16)
    first = world.scene(folder, "S", "2020-01-01T10:00:00", arrays, origin=(499980.0, 5000040.0))
    items = []
    for day in range(DATES):
        item = pystac.Item.from_dict(first.to_dict(transform_hrefs=False))
        item.id = f"S{day}"
        item.datetime = (
            np.datetime64("2020-01-01T10:00:00").astype("datetime64[us]").item()
            + np.timedelta64(day, "D").astype("timedelta64[us]").item()
        )
        items.append(item.to_dict(transform_hrefs=False))
    path = folder / "items.json"
    path.write_text(json.dumps(items))
    return path


def _measure(listing, store, size, crs="EPSG:32631", left=500000.0, top=5000030.0):
    # half a tile off the files' own tiles, as real blocks are
    command = [sys.executable, "-c", CHILD, str(listing), str(store), str(size), crs, str(left), str(top)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", [256, 1024])
def test_peak_memory_stays_below_the_bound_and_does_not_grow_with_blocks(listing, tmp_path, size):
    measured = _measure(listing, tmp_path / "cube.zarr", size)
    assert measured["valid"] > 0
    assert max(measured["peaks"]) <= measured["bound"]
    # the bound means something: it is not many times what is needed
    assert measured["bound"] < 8 * max(measured["peaks"])
    if len(measured["peaks"]) > 4:
        assert measured["peaks"][-1] - measured["peaks"][2] < 16 << 20


@pytest.mark.slow
def test_the_bound_holds_where_scenes_lie_in_another_zone(listing, tmp_path):
    measured = _measure(listing, tmp_path / "cube.zarr", 1024, "EPSG:32632", left=30000.0, top=5008000.0)
    assert measured["valid"] > 0
    assert max(measured["peaks"]) <= measured["bound"]
