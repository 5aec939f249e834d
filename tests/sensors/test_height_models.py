"""Heights beside an orthomosaic: on its grid, in metres, never a surface model taken for a canopy."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoeco.errors import GridError, InputError
from geoeco.sensors.orthomosaic import describe_heights, describe_orthomosaic, open_orthomosaic
from tests.sensors.mosaics import PLACE, UTM, mosaic

WHOLE = ((0, 48), (0, 64))


def heights(path, values, *, pixels=1.0, corner=(0.0, 0.0), **options):
    """Write a height model whose cells have a size and a corner in pixels of the mosaic."""
    there = PLACE @ Affine.translation(*corner) @ Affine.scale(pixels)
    return mosaic(path, values[None], **{"transform": there, "nodata": -9999, **options})


def drawn(rows=48, columns=64, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 30, (rows, columns)).astype("float32")


@pytest.fixture(scope="module")
def ortho(tmp_path_factory):
    return describe_orthomosaic(mosaic(tmp_path_factory.mktemp("heights") / "m.tif"))


def test_heights_on_the_grid_of_the_mosaic_are_the_file(ortho, tmp_path):
    values = drawn()
    values[3:5] = -9999
    model = describe_heights(ortho, chm=heights(tmp_path / "c.tif", values))
    expected = np.where(values == -9999, np.nan, values)
    np.testing.assert_array_equal(model.read(*WHOLE), expected)
    np.testing.assert_array_equal(model.read((2, 9), (5, 70))[:, :59], expected[2:9, 5:])
    assert np.isnan(model.read((2, 9), (5, 70))[:, 59:]).all()
    assert model.read(*WHOLE).dtype == np.float32
    assert pickle.loads(pickle.dumps(model)) == model


@pytest.mark.parametrize(("resampling", "merge"), [("max", np.max), ("mean", np.mean)])
def test_finer_heights_keep_the_tops_of_trees_or_their_mean(ortho, tmp_path, resampling, merge):
    values = drawn(144, 192)
    model = describe_heights(ortho, chm=heights(tmp_path / "c.tif", values, pixels=1 / 3), resampling=resampling)
    expected = merge(values.reshape(48, 3, 64, 3).astype(float), axis=(1, 3))
    np.testing.assert_allclose(model.read(*WHOLE), expected, rtol=1e-6)


def test_half_of_the_cells_must_have_a_height(ortho, tmp_path):
    values = drawn(96, 128)
    values[0:2, 0:2] = [[5, -9999], [-9999, 7]]
    values[0:2, 2:4] = [[5, -9999], [-9999, -9999]]
    model = describe_heights(ortho, chm=heights(tmp_path / "c.tif", values, pixels=0.5))
    np.testing.assert_array_equal(model.read((0, 1), (0, 2)), [[7, np.nan]])


def test_coarser_heights_are_those_of_the_cell_under_the_centre_of_the_pixel(ortho, tmp_path):
    """A grid of no common corner: every pixel is looked up by its own coordinates."""
    values = drawn(20, 26)
    model = describe_heights(ortho, chm=heights(tmp_path / "c.tif", values, pixels=2.7, corner=(-3.37, -1.21)))
    rows, columns = (np.arange(48) + 0.5 + 1.21) / 2.7, (np.arange(64) + 0.5 + 3.37) / 2.7
    np.testing.assert_array_equal(model.read(*WHOLE), values[np.ix_(rows.astype(int), columns.astype(int))])


def test_a_window_of_heights_does_not_depend_on_how_it_is_cut(ortho, tmp_path):
    model = describe_heights(ortho, chm=heights(tmp_path / "c.tif", drawn(80, 120), pixels=0.61, corner=(-0.4, 0.3)))
    whole = model.read((-2, 50), (0, 64))
    for top in range(-2, 50, 13):
        part = model.read((top, top + 13), (11, 40))
        np.testing.assert_array_equal(part, whole[top + 2 : top + 15, 11:40])


def test_canopy_is_surface_minus_terrain_and_never_below_the_ground(ortho, tmp_path):
    ground, canopy = 200 + drawn(seed=1), drawn(seed=2)
    canopy[:4] = -0.25
    ground[10, 10] = -9999
    model = describe_heights(
        ortho, dsm=heights(tmp_path / "s.tif", ground + canopy), dtm=heights(tmp_path / "t.tif", ground)
    )
    expected = np.maximum(canopy, 0)
    expected[10, 10] = np.nan
    np.testing.assert_allclose(model.read(*WHOLE), expected, atol=3e-5)
    assert model.count_negative() == 4 * 64


def test_the_data_set_counts_what_was_below_the_ground(ortho, tmp_path):
    values = drawn()
    values[0, :5] = -1
    dataset = open_orthomosaic(ortho.path, chm=heights(tmp_path / "c.tif", values), chunks={"y": 16, "x": 16})
    assert dataset["chm"].attrs["n_negative"] == 5
    assert (dataset["chm"].attrs["units"], dataset["chm"].attrs["resampling"]) == ("m", "max")
    np.testing.assert_array_equal(dataset["chm"].values, np.maximum(values, 0))
    assert dataset["chm"].odc.geobox == ortho.geobox


def test_heights_follow_the_mosaic_to_another_ground_sampling_distance(ortho, tmp_path):
    values = drawn()
    model = describe_heights(ortho.at(0.4), chm=heights(tmp_path / "c.tif", values))
    np.testing.assert_array_equal(model.read((0, 12), (0, 16)), values.reshape(12, 4, 16, 4).max((1, 3)))


@pytest.mark.parametrize(("unit", "metres"), [("m", 1.0), ("ft", 0.3048), ("US survey foot", 1200 / 3937)])
def test_heights_in_feet_become_metres(ortho, tmp_path, unit, metres):
    values = drawn()
    path = heights(tmp_path / "c.tif", values)
    with rasterio.open(path, "r+") as file:
        file.units = (unit,)
    np.testing.assert_allclose(describe_heights(ortho, chm=path).read(*WHOLE), values * metres, rtol=1e-6)


@pytest.mark.parametrize("mark", [-1.7e308, -3.4028234663852886e38, math.nan])
def test_marks_of_missing_heights_never_become_heights(ortho, tmp_path, mark):
    """A file of float64 with -1.7e308 becomes -inf when it is cast to float32."""
    values = drawn().astype("float64")
    values[:10] = mark
    model = describe_heights(ortho, chm=heights(tmp_path / "c.tif", values, nodata=None))
    assert np.isnan(model.read(*WHOLE)[:10]).all()
    assert np.isfinite(model.read(*WHOLE)[10:]).all()
    assert model.count_negative() == 0


def test_a_height_of_0_that_is_called_no_data_is_pointed_out(ortho, tmp_path):
    values = drawn()
    values[:10] = 0
    path = heights(tmp_path / "c.tif", values, nodata=0)
    with pytest.warns(UserWarning, match="no ground is known"):
        assert np.isnan(describe_heights(ortho, chm=path).read((0, 10), (0, 64))).all()
    assert (describe_heights(ortho, chm=path, nodata=None).read((0, 10), (0, 64)) == 0).all()


def test_heights_that_are_none_are_refused(ortho, tmp_path):
    surface, terrain = heights(tmp_path / "s.tif", drawn()), heights(tmp_path / "t.tif", drawn(), corner=(0.5, 0))
    for given in ({}, {"dsm": surface}, {"dtm": surface}, {"chm": surface, "dsm": surface}):
        with pytest.raises(InputError, match="a surface and a terrain model"):
            describe_heights(ortho, **given)
    with pytest.raises(GridError, match="different grids"):
        describe_heights(ortho, dsm=surface, dtm=terrain)
    with pytest.raises(GridError, match="does not overlap"):
        describe_heights(ortho, chm=heights(tmp_path / "far.tif", drawn(), corner=(64, 0)))
    with pytest.raises(GridError, match=f"EPSG:32653, the mosaic in {UTM}"):
        describe_heights(ortho, chm=heights(tmp_path / "crs.tif", drawn(), crs="EPSG:32653"))
    with pytest.raises(InputError, match="3 bands, not one"):
        describe_heights(ortho, chm=ortho.path)
    with pytest.raises(InputError, match="by 'max' or 'mean'"):
        describe_heights(ortho, chm=surface, resampling="average")
    with rasterio.open(surface, "r+") as file:
        file.units = ("fathom",)
    with pytest.raises(InputError, match="'fathom'"):
        describe_heights(ortho, chm=surface)


@pytest.mark.real
def test_a_real_canopy_model_reads_as_its_file(real_data):
    path = real_data("crowns/kootenay_chm/CHM_test.tif")
    with rasterio.open(path) as file:
        expected = file.read(1)
    itself = describe_orthomosaic(path)
    np.testing.assert_array_equal(describe_heights(itself, chm=path).read((0, 471), (0, 570)), expected)
    coarse = describe_heights(itself.at(1.0), chm=path).read((0, 117), (0, 142))
    tops = np.nanmax(np.where(np.isnan(expected), -1, expected)[:468, :568].reshape(117, 4, 142, 4), axis=(1, 3))
    np.testing.assert_array_equal(coarse[~np.isnan(coarse)], tops[~np.isnan(coarse)])
