"""Labels by majority of area, heights by their maximum, on grids of any ratio."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geoeco.errors import GridError, InputError
from geoeco.gdal import gdal_env
from geoeco.sampling.mosaic_layers import IGNORE, area_majority, burnt, check_layer, overlapping_max, read_codes
from geoeco.sampling.mosaic_sources import class_rows
from geoeco.sensors.orthomosaic import describe_orthomosaic


def brute_majority(codes, y, x):
    """The same by hand: areas of every pair of pixels, added up in a table."""
    out = np.full((len(y) - 1, len(x) - 1), IGNORE, dtype=np.uint8)
    for i in range(len(y) - 1):
        for j in range(len(x) - 1):
            area: dict[int, float] = {}
            for r in range(codes.shape[0]):
                for c in range(codes.shape[1]):
                    shared = max(0, min(y[i + 1], r + 1) - max(y[i], r)) * max(0, min(x[j + 1], c + 1) - max(x[j], c))
                    if codes[r, c] != IGNORE:
                        area[int(codes[r, c])] = area.get(int(codes[r, c]), 0.0) + shared
            whole = (y[i + 1] - y[i]) * (x[j + 1] - x[j])
            if round(sum(area.values()), 5) >= round(0.5 * whole, 5):
                out[i, j] = min(area, key=lambda k: (-round(area[k], 6), k))
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.4, 1.0, 1.7, 2.0, 2.5]), st.floats(0, 0.9))
def test_majority_by_area_equals_adding_up_all_pairs_of_pixels(seed, ratio, start):
    rng = np.random.default_rng(seed)
    codes = rng.choice([0, 1, 2, IGNORE], (6, 5)).astype(np.uint8)
    y = start + ratio * np.arange(int((6 - start) / ratio) + 1)
    x = 0.25 + ratio * np.arange(int((5 - 0.25) / ratio) + 1)
    assert (area_majority(codes, y, x) == brute_majority(codes, y, x)).all()


def test_majority_of_whole_ratios_is_that_of_gdal():
    rng = np.random.default_rng(3)
    codes = rng.integers(1, 6, (60, 90)).astype(np.uint8)
    expected = np.zeros((20, 30), dtype=np.uint8)
    fine, coarse = Affine(1, 0, 0, 0, -1, 60), Affine(3, 0, 0, 0, -3, 60)
    crs = {"src_crs": "EPSG:32631", "dst_crs": "EPSG:32631"}
    reproject(codes, expected, src_transform=fine, dst_transform=coarse, resampling=Resampling.mode, **crs)
    ours = area_majority(codes, np.arange(21) * 3.0, np.arange(31) * 3.0)
    # GDAL settles ties by the order in which it meets the codes
    counts = np.array(
        [
            [
                np.sort(np.bincount(codes[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].ravel(), minlength=6))[-2:]
                for j in range(30)
            ]
            for i in range(20)
        ]
    )
    settled = counts[..., 0] < counts[..., 1]
    assert settled.mean() > 0.4
    assert (ours[settled] == expected[settled]).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0, 2.5]), st.sampled_from([0.0, 0.25, 0.5]))
def test_the_maximum_keeps_tree_tops_and_sees_only_pixels_it_shares_area_with(seed, ratio, start):
    rng = np.random.default_rng(seed)
    heights = rng.uniform(0, 30, (6, 6)).astype(np.float32)
    heights[rng.random((6, 6)) < 0.3] = np.nan
    edges = start + ratio * np.arange(int((6 - start) / ratio) + 1)
    ours = overlapping_max(heights, edges, edges)
    for i, j in np.ndindex(ours.shape):
        rows = [r for r in range(6) if min(edges[i + 1], r + 1) - max(edges[i], r) > 1e-9]
        cols = [c for c in range(6) if min(edges[j + 1], c + 1) - max(edges[j], c) > 1e-9]
        part = heights[np.ix_(rows, cols)]
        expected = np.nan if np.isnan(part).all() else np.nanmax(part)
        np.testing.assert_equal(ours[i, j], np.float32(expected))


def test_ids_are_burnt_at_pixel_centres_with_the_last_on_top_and_no_half_pixel_lost():
    from shapely import box

    grid = Affine(0.1, 0, 500000, 0, -0.1, 5000000)
    low, high = box(500000.2, 4999998.8, 500001.2, 4999999.8), box(500000.7, 4999998.8, 500001.4, 4999999.3)
    ids = burnt([(low, 7), (high, 9)], 20, grid)
    assert (ids == 7).sum() + (ids == 9).sum() == 10 * 10 + 2 * 5
    assert (ids == 9).sum() == 7 * 5
    assert (ids[2:7, 2:12] == 7).all()
    assert burnt([], 4, grid).sum() == 0


@pytest.fixture
def raster(tmp_path):
    def write(name, values, *, nodata=None, left=500000.0, pixel=0.5, crs="EPSG:32631", colours=False):
        path = tmp_path / name
        profile = {
            "driver": "GTiff",
            "height": values.shape[-2],
            "width": values.shape[-1],
            "nodata": nodata,
            "crs": crs,
        }
        count = 1 if values.ndim == 2 else len(values)
        affine = Affine(pixel, 0, left, 0, -pixel, 5_000_000)
        with rasterio.open(path, "w", count=count, dtype=values.dtype, transform=affine, **profile) as file:
            file.write(values if values.ndim == 3 else values[None])
            if colours:
                file.write_colormap(1, {1: (255, 0, 0, 255)})
        return path

    return write


def test_codes_of_the_same_grid_are_read_as_they_are_and_of_a_finer_one_by_majority(raster):
    codes = np.arange(48, dtype=np.uint8).reshape(6, 8)
    layer = describe_orthomosaic(raster("same.tif", codes, nodata=10, colours=True), codes=True)
    got = read_codes(layer, Affine(0.5, 0, 500001.0, 0, -0.5, 4999999.5), (3, 3))
    expected = codes[1:4, 2:5].copy()
    expected[expected == 10] = IGNORE
    assert (got == expected).all()
    # a window that leads beyond: no label there
    assert (read_codes(layer, Affine(0.5, 0, 499999.0, 0, -0.5, 5000001), (2, 2)) == IGNORE).all()
    fine = describe_orthomosaic(raster("fine.tif", np.kron(codes, np.ones((2, 2), np.uint8)), pixel=0.25), codes=True)
    assert (read_codes(fine, Affine(0.5, 0, 500000.0, 0, -0.5, 5_000_000), (6, 8)) == codes).all()


def test_labels_that_are_no_codes_are_refused(raster):
    layer = describe_orthomosaic(raster("wide.tif", np.full((4, 4), 300, np.uint16)), codes=True)
    with pytest.raises(InputError, match="300 are no class codes"):
        read_codes(layer, layer.geobox.transform, (4, 4))


def test_layers_that_do_not_lie_on_the_mosaic_are_refused(raster):
    image = describe_orthomosaic(raster("image.tif", np.ones((3, 6, 8), np.uint8)))
    flat = np.ones((6, 8), np.uint8)
    check_layer(describe_orthomosaic(raster("fits.tif", flat, left=500002.0), codes=True), image, "labels")
    with pytest.raises(GridError, match="in EPSG:32632, the mosaic is in EPSG:32631") as error:
        check_layer(describe_orthomosaic(raster("zone.tif", flat, crs="EPSG:32632"), codes=True), image, "labels")
    assert "-r mode" in error.value.what_to_do
    with pytest.raises(GridError, match="share no ground"):
        check_layer(describe_orthomosaic(raster("far.tif", flat, left=600000.0), codes=True), image, "labels")
    with pytest.raises(InputError, match="one band"):
        check_layer(image, image, "labels")


def test_names_beside_a_class_raster_are_found_whatever_settings_the_process_has(raster, tmp_path):
    path = raster("named.tif", np.ones((4, 4), np.uint8))
    (tmp_path / "named.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category/><Category>field</Category></CategoryNames>'
        "</PAMRasterBand></PAMDataset>"
    )
    with gdal_env():
        assert class_rows(str(path)) == ((1, "field", ""),)
