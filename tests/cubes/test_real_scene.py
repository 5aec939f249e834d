"""A real scene through the reader and the fused cube: the pixels of its files, with the offset of its baseline."""

from __future__ import annotations

import json

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from geoeco.catalog import asset_for
from geoeco.cubes import load, open_cube, solar_days, template, write_block
from geoeco.sensors import sentinel2

pytestmark = pytest.mark.real
SCENE = "sentinel2/S2A_29RKH_20200219_0_L2A_cog"
BANDS = ("B04", "B08", "B11", "B01")


@pytest.fixture(scope="module")
def item(real_data):
    folder = real_data(SCENE)
    found = json.loads((folder / "S2A_29RKH_20200219_0_L2A.json").read_text())
    # the files are the scene at a tenth of its resolution, and the item's own hrefs point to the archive
    for asset in found["assets"].values():
        here = folder / asset["href"].rpartition("/")[2]
        if here.exists():
            asset["href"] = str(here)
    return pystac.Item.from_dict(found)


def _file(item, band):
    return rasterio.open(asset_for(item, band).href)


@pytest.fixture(scope="module")
def grid(item):
    with _file(item, "B04") as file:
        return GeoBox((600, 480), file.transform @ Affine.translation(300, 240), file.crs.to_string())


def test_reflectance_is_that_of_the_files(item, grid):
    cube = load([item], grid, bands=BANDS, mask=False)
    how = sentinel2.radiometry(item)
    with _file(item, "B04") as file:
        numbers = file.read(1)[240:840, 300:780]
    wanted = np.where(numbers == 0, np.nan, numbers * how.scale + how.offset)
    np.testing.assert_allclose(cube.reflectance.sel(band="B04")[0], wanted, atol=1e-6)
    with _file(item, "SCL") as file:
        scl = file.read(1).repeat(2, 0).repeat(2, 1)[240:840, 300:780]
    np.testing.assert_array_equal(cube.scl[0], scl)


def test_coarse_bands_keep_their_mean_and_their_place(item, grid):
    cube = load([item], grid, bands=BANDS, mask=False).reflectance[0]
    for band, factor in (("B11", 2), ("B01", 6)):
        with _file(item, band) as file:
            numbers = file.read(1).astype(float) * 1e-4
        rows, cols = slice(240 // factor, 840 // factor), slice(300 // factor, 780 // factor)
        native = numbers[rows, cols]
        back = cube.sel(band=band).values.reshape(native.shape[0], factor, native.shape[1], factor).mean((1, 3))
        inner = np.s_[2:-2, 2:-2]
        assert abs(np.nanmean(back[inner]) - native[inner].mean()) < 1e-3
        # bilinear smooths, but what it smooths lies where the file has it
        assert np.corrcoef(back[inner].ravel(), native[inner].ravel())[0, 1] > 0.98


def test_the_stored_cube_is_the_loaded_one(item, grid, tmp_path):
    store = str(tmp_path / "cube.zarr")
    template(store, grid, solar_days([item], grid), BANDS, block=304)
    for y in ((0, 304), (304, 600)):
        for x in ((0, 304), (304, 480)):
            assert not write_block(store, [item], grid, y, x)["dropped"]
    stored, loaded = open_cube(store), load([item], grid, bands=BANDS)
    np.testing.assert_array_equal(stored.reflectance, loaded.reflectance)
    np.testing.assert_array_equal(stored.scl, loaded.scl)
    assert 0.5 < float(np.isfinite(stored.reflectance).mean()) <= 1
