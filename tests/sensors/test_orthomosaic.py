"""Orthomosaics: which pixels are valid, where they lie, how large they are, and what is refused before work starts."""

from __future__ import annotations

import math
import pickle
import shutil
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import reproject

from geoeco.errors import GridError, InputError, ReadError
from geoeco.sensors.orthomosaic import Orthomosaic, as_orthomosaic, describe_orthomosaic, open_orthomosaic
from tests.sensors.mosaics import PLACE, UTM, mosaic, noise

EVERYTHING = ((0, 48), (0, 64))
COLOURS = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.nir]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Image, validity and description of a mosaic with an internal mask."""
    image = noise(4)
    valid = np.random.default_rng(1).random((48, 64)) < 0.8
    path = mosaic(
        tmp_path_factory.mktemp("mosaic") / "plain.tif",
        image,
        mask=valid,
        colorinterp=COLOURS,
    )
    return np.where(valid, image, 0), valid, describe_orthomosaic(path)


# --- windows ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(-70, 70), st.integers(1, 60), st.integers(-70, 70), st.integers(1, 60))
def test_a_window_holds_the_pixels_of_the_file_and_nothing_beyond_it(plain, top, height, left, width):
    image, valid, described = plain
    pixels, there = described.read((top, top + height), (left, left + width))
    around = ((200, 200), (200, 200))
    rows, columns = slice(200 + top, 200 + top + height), slice(200 + left, 200 + left + width)
    np.testing.assert_array_equal(pixels, np.pad(image, ((0, 0), *around))[:, rows, columns])
    np.testing.assert_array_equal(there, np.pad(valid, around)[rows, columns])
    assert pixels.dtype == np.uint8
    assert there.dtype == bool


def test_bands_are_named_by_their_colours_and_chosen_in_any_order(plain):
    image, _, described = plain
    assert described.bands == ("red", "green", "blue", "nir")
    chosen = describe_orthomosaic(described.path, bands=["nir", 2])
    assert chosen.bands == ("nir", "green")
    np.testing.assert_array_equal(chosen.read(*EVERYTHING)[0], image[[3, 1]])
    renamed = describe_orthomosaic(described.path, bands={"thermal": 4})
    assert renamed.bands == ("thermal",)
    np.testing.assert_array_equal(renamed.read(*EVERYTHING)[0], image[[3]])


def test_a_band_is_named_by_its_description_before_its_colour(tmp_path):
    path = mosaic(tmp_path / "m.tif", noise(5, dtype="uint16"))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Red", "Near Infrared", "Red edge", None, "NDVI mean")
    assert describe_orthomosaic(path).bands == ("red", "nir", "rededge", "band4", "ndvi_mean")


def test_threads_read_the_same_as_one_after_the_other(plain):
    image, _, described = plain
    spans = [((row, row + 8), (column, column + 8)) for row in range(0, 48, 8) for column in range(0, 64, 8)] * 4
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda span: described.read(*span)[0], spans))
    for (y, x), part in zip(spans, parts, strict=True):
        np.testing.assert_array_equal(part, image[:, slice(*y), slice(*x)])


def test_an_empty_window_is_refused(plain):
    with pytest.raises(InputError, match="holds no pixel"):
        plain[2].read((5, 5), (0, 10))


# --- descriptions ----------------------------------------------------------------------------------------------------


def test_a_description_is_a_value(plain, tmp_path):
    described = plain[2]
    again = pickle.loads(pickle.dumps(described))
    assert again == described
    assert hash(again) == hash(described)
    unplaced = mosaic(tmp_path / "m.tif", noise(1, dtype="float32"), nodata=math.nan, crs=None, transform=None)
    nan = describe_orthomosaic(unplaced, allow_ungeoreferenced=True)
    assert math.isnan(nan.gsd_m)
    assert math.isnan(nan.nodata)
    assert pickle.loads(pickle.dumps(nan)) == nan


def test_the_fingerprint_is_of_the_content_not_of_the_path(plain, tmp_path):
    image, valid, described = plain
    moved = describe_orthomosaic(shutil.copy(described.path, tmp_path / "elsewhere.tif"))
    assert moved.fingerprint == described.fingerprint
    assert moved.path != described.path
    image = image.copy()
    image[0, 20, 20] ^= 1
    other = mosaic(tmp_path / "other.tif", image, mask=valid, colorinterp=COLOURS)
    assert describe_orthomosaic(other).fingerprint != described.fingerprint
    assert describe_orthomosaic(described.path, bands=["red"]).fingerprint != described.fingerprint


@pytest.mark.parametrize(
    ("dtype", "tag", "given", "scale"),
    [
        ("uint8", None, None, 1 / 255),
        ("uint16", None, None, 1 / 65535),
        ("uint16", 0.0001, None, 0.0001),
        ("uint16", 0.0001, 0.5, 0.5),
        ("float32", None, None, 1.0),
        ("int16", None, 0.0001, 0.0001),
    ],
)
def test_the_scale_is_the_one_given_or_of_the_file_or_of_the_type(tmp_path, dtype, tag, given, scale):
    path = mosaic(tmp_path / "m.tif", noise(2, dtype=dtype))
    if tag:
        with rasterio.open(path, "r+") as file:
            file.scales = (tag, tag)
    assert describe_orthomosaic(path, scale=given).scale == scale


def test_a_type_that_says_nothing_of_its_values_needs_a_scale(tmp_path):
    with pytest.raises(InputError, match="what values of int16 mean"):
        describe_orthomosaic(mosaic(tmp_path / "m.tif", noise(2, dtype="int16")))


@pytest.mark.parametrize(("tag", "day"), [("2021:07:14 11:03:00", "2021-07-14"), ("2021:17:14 ", ""), ("July", "")])
def test_the_day_is_that_of_the_tag_or_none(tmp_path, tag, day):
    path = mosaic(tmp_path / "m.tif")
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME=tag)
    assert describe_orthomosaic(path).date == day


# --- validity --------------------------------------------------------------------------------------------------------


def test_a_nodata_tag_of_255_does_not_eat_highlights(tmp_path):
    """As in NEON's mosaics: the tag says 255, and sunlit crowns have bands at 255 too."""
    image = noise()
    image[0, :10] = 255
    image[:, 40:, :8] = 255
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", image, nodata=255))
    assert (described.mask, described.nodata) == ("nodata", 255.0)
    pixels, valid = described.read(*EVERYTHING)
    np.testing.assert_array_equal(~valid, (image == 255).all(axis=0))
    assert (~valid).sum() == 64
    assert (image == 255).any(axis=0).sum() == 64 + 640
    np.testing.assert_array_equal(pixels[:, valid], image[:, valid])
    assert not pixels[:, ~valid].any()


def test_bands_that_are_not_read_decide_too_whether_a_pixel_is_nodata(tmp_path):
    image = noise()
    image[0, :10] = 255
    image[:, 40:, :8] = 255
    path = mosaic(tmp_path / "m.tif", image, nodata=255)
    expected = ~(image == 255).all(axis=0)
    np.testing.assert_array_equal(describe_orthomosaic(path, bands=["red"]).read(*EVERYTHING)[1], expected)


def test_black_and_white_mean_nothing_by_themselves(tmp_path):
    image = noise()
    image[:, :10], image[:, 10:20] = 0, 255
    path = mosaic(tmp_path / "m.tif", image)
    assert describe_orthomosaic(path).mask == "none"
    assert describe_orthomosaic(path).read(*EVERYTHING)[1].all()
    ruled = describe_orthomosaic(path, nodata=0)
    assert ruled.mask == "rule"
    np.testing.assert_array_equal(ruled.read(*EVERYTHING)[1], ~(image == 0).all(axis=0))


def test_the_mask_inside_the_file_comes_before_its_nodata_tag(tmp_path):
    image, valid = noise(), np.random.default_rng(3).random((48, 64)) < 0.5
    image[:, :10] = 7
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", image, mask=valid, nodata=7))
    assert described.mask == "internal"
    np.testing.assert_array_equal(described.read(*EVERYTHING)[1], valid)


def test_an_alpha_band_is_the_mask_and_no_band(tmp_path):
    image, valid = noise(4), np.random.default_rng(3).random((48, 64)) < 0.5
    image[3] = np.where(valid, 255, 0)
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", image, alpha="YES", nodata=7))
    assert (described.mask, described.bands) == ("alpha", ("red", "green", "blue"))
    pixels, there = described.read(*EVERYTHING)
    np.testing.assert_array_equal(there, valid)
    np.testing.assert_array_equal(pixels, np.where(valid, image[:3], 0))


def test_near_infrared_that_the_file_calls_alpha_is_found_out(tmp_path):
    image = noise(4)
    path = mosaic(tmp_path / "m.tif", image, alpha="YES")
    with pytest.raises(InputError, match="called alpha but holds an image"):
        describe_orthomosaic(path)
    named = describe_orthomosaic(path, bands={"red": 1, "green": 2, "blue": 3, "nir": 4})
    assert named.mask == "none"
    np.testing.assert_array_equal(named.read(*EVERYTHING)[0], image)


def test_a_rule_that_would_not_be_used_is_refused(tmp_path):
    path = mosaic(tmp_path / "m.tif", nodata=255)
    with pytest.raises(InputError, match="would not be used"):
        describe_orthomosaic(path, nodata=0)
    assert describe_orthomosaic(path, nodata=255).mask == "nodata"
    assert describe_orthomosaic(path, nodata=None).mask == "none"


@pytest.mark.parametrize("rule", [-9999, 300, 0.5, 1e30, math.nan, (1, 2, -1)])
def test_a_rule_that_no_pixel_can_meet_is_refused(tmp_path, rule):
    with pytest.raises(InputError, match="no pixel of uint8 can have the value"):
        describe_orthomosaic(mosaic(tmp_path / "m.tif"), nodata=rule)


@pytest.mark.parametrize(("dtype", "mark"), [("float32", -3.4028235e38), ("float64", -1.7e308), ("float32", math.inf)])
@pytest.mark.parametrize("tagged", [True, False])
def test_marks_in_floating_point_files_are_never_values(tmp_path, dtype, mark, tagged):
    image = noise(3, dtype=dtype) / 255
    image[:, :10] = mark
    image[1, 20, 20] = math.nan
    options = {"nodata": mark} if tagged else {}
    pixels, valid = describe_orthomosaic(mosaic(tmp_path / "m.tif", image, **options)).read(*EVERYTHING)
    expected = np.ones((48, 64), bool)
    expected[:10] = expected[20, 20] = False
    np.testing.assert_array_equal(valid, expected)
    assert np.isfinite(pixels).all()
    assert not pixels[:, ~valid].any()


def test_a_tag_that_the_type_cannot_hold_marks_nothing(tmp_path):
    path = mosaic(tmp_path / "m.tif")
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="", GDAL_NODATA="-9999")
    assert describe_orthomosaic(path).read(*EVERYTHING)[1].all()


def test_a_mask_beside_the_file_is_not_lost_in_silence(tmp_path):
    path = mosaic(tmp_path / "m.tif")
    shutil.copy(path, tmp_path / "m.tif.msk")
    with pytest.raises(InputError, match=r"m\.tif\.msk"):
        describe_orthomosaic(path)


def test_compression_with_losses_leaves_the_mask_exact(tmp_path):
    valid = np.zeros((64, 64), bool)
    valid[5:61, 3:50] = True
    path = mosaic(
        tmp_path / "m.tif", noise(3, 64, 64), mask=valid, compress="jpeg", photometric="YCBCR", interleave="pixel"
    )
    np.testing.assert_array_equal(describe_orthomosaic(path).read((0, 64), (0, 64))[1], valid)


# --- ground sampling distance ----------------------------------------------------------------------------------------


def test_the_ground_distance_is_the_pixel_divided_by_the_scale_of_mercator(tmp_path):
    """Scale of the ellipsoidal Mercator: sqrt(1 - e2 sin2(phi)) / cos(phi) (Snyder 1987, eq. 7-8)."""
    phi, e2 = math.radians(52.0), 0.00669437999014
    north = 6_766_432.77  # World Mercator's northing of 52 degrees
    here = Affine(0.1, 0.0, 1_000_000.0, 0.0, -0.1, north + 2.4)
    with pytest.warns(UserWarning, match=r"0\.0617 m on the ground, not the 0\.1000 m"):
        described = describe_orthomosaic(mosaic(tmp_path / "m.tif", transform=here, crs="EPSG:3395"))
    scale = math.sqrt(1 - e2 * math.sin(phi) ** 2) / math.cos(phi)
    assert described.gsd_m == pytest.approx(0.1 / scale, rel=1e-6)
    assert described.gsd_x_m == pytest.approx(described.gsd_y_m, rel=1e-6)


def test_utm_is_true_to_its_scale_on_the_central_meridian_and_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described = describe_orthomosaic(mosaic(tmp_path / "m.tif"))
    assert described.gsd_m == pytest.approx(0.1 / 0.9996, rel=1e-7)


def test_feet_are_read_and_metres_are_counted(tmp_path):
    here = Affine(0.25, 0.0, 984_250.0, 0.0, -0.25, 200_000.0)
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", transform=here, crs="EPSG:2263"))
    assert described.gsd_m == pytest.approx(0.25 * 1200 / 3937, rel=1e-4)


@pytest.mark.real
@pytest.mark.parametrize(
    ("tile", "gsd"),
    [("5b90f92da0d7280005fab355_4310", (0.0969, 0.0968)), ("5dded5bc0140b80006d2e565_23", (0.0962, 0.0963))],
)
def test_tiles_of_open_aerial_map_are_not_at_a_tenth_of_a_metre(real_data, tile, gsd):
    path = real_data(f"crowns/open_aerial_map/{tile}.tif")
    with pytest.warns(UserWarning, match="on the ground"):
        described = describe_orthomosaic(path)
    assert (round(described.gsd_x_m, 4), round(described.gsd_y_m, 4)) == gsd


@pytest.mark.real
def test_a_real_plot_loses_no_highlight_to_its_nodata_tag(real_data):
    path = real_data("hyperspectral/neon_harv/2019_D01_HARV_DP3_726000_4699000_image_crop.tif")
    described = describe_orthomosaic(path)
    assert (described.mask, described.nodata) == ("nodata", 255.0)
    with rasterio.open(path) as file:
        image = file.read()
    pixels, valid = described.read((0, 400), (0, 400))
    np.testing.assert_array_equal(valid, (image != 255).any(axis=0))
    assert (image == 255).any(axis=0).sum() > (~valid).sum()
    np.testing.assert_array_equal(pixels, np.where(valid, image, 0))


# --- grids that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message", "advice"),
    [
        ({"transform": PLACE @ Affine.rotation(3.0)}, "rotated", "gdalwarp -r bilinear"),
        ({"transform": PLACE @ Affine.shear(3.0)}, "rotated", "gdalwarp"),
        ({"transform": Affine(0.1, 0, 5e5, 0, 0.1, 5.1e6)}, "not north up", "gdalwarp"),
        ({"transform": Affine(0.1, 0, 5e5, 0, -0.11, 5.1e6)}, "not square", "-tr 0.1 0.1"),
        ({"transform": Affine(1e-6, 0, 129.0, 0, -1e-6, 46.0), "crs": "EPSG:4326"}, "degrees", "-t_srs EPSG:32652"),
        ({"crs": None}, "no CRS", "gdal_edit.py -a_srs"),
        ({"transform": None}, "no place", "allow_ungeoreferenced"),
        ({"crs": 'LOCAL_CS["field",UNIT["metre",1]]'}, "local", "a_srs"),
        (
            {
                "transform": None,
                "crs": None,
                "gcps": [(0, 0, 5e5, 5.1e6), (48, 64, 500_006, 5_099_995), (0, 64, 500_006, 5.1e6)],
            },
            "no CRS",
            "ground control points",
        ),
    ],
)
def test_a_grid_that_cannot_be_worked_on_is_refused_with_the_way_out(tmp_path, options, message, advice):
    options = dict(options)
    points = options.pop("gcps", None)
    path = mosaic(tmp_path / "m.tif", **options)
    if points:
        with rasterio.open(path, "r+") as file:
            file.gcps = ([rasterio.control.GroundControlPoint(*point) for point in points], UTM)
    with pytest.raises(GridError, match=message) as caught:
        describe_orthomosaic(path)
    assert advice in caught.value.what_to_do
    assert caught.value.where == str(path)


def test_a_compound_crs_is_its_horizontal_part(tmp_path):
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", crs="EPSG:32652+5773"))
    assert described.geobox.crs.epsg == 32652


def test_a_file_without_a_place_is_read_only_when_that_is_wanted(tmp_path):
    image = noise()
    path = tmp_path / "m.png"
    with rasterio.open(path, "w", driver="PNG", count=3, height=48, width=64, dtype="uint8") as file:
        file.write(image)
    with pytest.raises(GridError, match="no CRS"):
        describe_orthomosaic(path)
    described = describe_orthomosaic(path, allow_ungeoreferenced=True, gsd_m=0.3)
    assert not described.georeferenced
    assert (described.gsd_m, described.shape) == (0.3, (48, 64))
    np.testing.assert_array_equal(described.read(*EVERYTHING)[0], image)
    assert described.at(0.6).shape == (24, 32)
    with pytest.raises(InputError, match="no ground sampling distance"):
        describe_orthomosaic(path, allow_ungeoreferenced=True).at(0.6)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (["red", "nir"], "no band 'nir'"),
        ([], "no band is left"),
        (["red", 1], "asked for twice"),
        ({"nir": 9}, "no band number 9"),
        ({"a": 1, "b": 1}, "two names"),
        ("red", "a list of names"),
    ],
)
def test_bands_that_are_not_there_are_named(tmp_path, bands, message):
    with pytest.raises(InputError, match=message):
        describe_orthomosaic(mosaic(tmp_path / "m.tif"), bands=bands)


# --- another ground sampling distance --------------------------------------------------------------------------------


def test_whole_ratios_give_the_means_of_blocks_of_valid_pixels(plain):
    image, valid, described = plain
    coarse = described.at(0.4)
    assert coarse.shape == (12, 16)
    pixels, there = coarse.read((0, 12), (0, 16))
    counts = valid.reshape(12, 4, 16, 4).sum((1, 3))
    sums = image.astype(int).reshape(4, 12, 4, 16, 4).sum((2, 4))
    np.testing.assert_array_equal(there, counts >= 8)
    np.testing.assert_array_equal(pixels, np.where(counts >= 8, np.rint(sums / np.maximum(counts, 1)), 0))


@pytest.mark.parametrize("gsd", [0.17, 0.25, 0.3001, 0.08])
def test_any_ratio_gives_the_means_by_area_of_gdal(tmp_path, gsd):
    image = noise(2, dtype="float32")
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", image))
    coarse = described.at(gsd)
    pixels, there = coarse.read((0, coarse.shape[0]), (0, coarse.shape[1]))
    expected = np.full(pixels.shape, np.nan, np.float32)
    reproject(
        image,
        expected,
        src_transform=PLACE,
        src_crs=UTM,
        dst_transform=coarse.geobox.transform,
        dst_crs=UTM,
        resampling=Resampling.average,
        dst_nodata=np.nan,
    )
    ratio = gsd / (0.1 / 0.9996)
    inside = (slice(0, int(48 / ratio)), slice(0, int(64 / ratio)))
    assert there[inside].all()
    np.testing.assert_allclose(pixels[:, *inside], expected[:, *inside], rtol=2e-6)


def test_the_edge_of_a_mosaic_makes_no_grey_fringe(tmp_path):
    rows, columns = np.mgrid[0:60, 0:60]
    valid = rows + 0.37 * columns < 45
    image = np.where(valid, np.full((3, 60, 60), 200, np.uint8), 0).astype("uint8")
    coarse = describe_orthomosaic(mosaic(tmp_path / "m.tif", image, nodata=0)).at(0.37)
    pixels, there = coarse.read((0, coarse.shape[0]), (0, coarse.shape[1]))
    assert 0 < there.mean() < 1
    assert set(np.unique(pixels[:, there])) == {200}
    assert set(np.unique(pixels[:, ~there])) == {0}


@settings(max_examples=30)
@given(st.integers(0, 12), st.integers(1, 9), st.integers(0, 16), st.integers(1, 9))
def test_a_coarse_pixel_does_not_depend_on_the_window(plain, top, height, left, width):
    coarse = plain[2].at(0.27)
    whole, there = coarse.read((0, 30), (0, 30))
    part, part_there = coarse.read((top, top + height), (left, left + width))
    np.testing.assert_array_equal(part, whole[:, top : top + height, left : left + width])
    np.testing.assert_array_equal(part_there, there[top : top + height, left : left + width])


def test_strips_leave_no_trace(plain, monkeypatch):
    whole = plain[2].at(0.27).read((0, 18), (0, 24))
    monkeypatch.setattr("geoeco.sensors.mosaic_reading._STRIP_PIXELS", 200)
    for one, other in zip(whole, plain[2].at(0.27).read((0, 18), (0, 24)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_scale_of_the_projection_does_not_blur(plain):
    """0.1 m of UTM are 0.10004 m on the ground: the ratio 0.9996 stands for 1."""
    described = plain[2]
    assert described.at(0.1) == described
    assert described.at(0.2).geobox.transform.a == pytest.approx(0.2, rel=1e-12)
    assert described.at(0.5).at(0.1) == described


def test_details_that_were_not_measured_are_not_made_up(plain):
    described = plain[2]
    assert described.at(0.07).gsd_m == pytest.approx(0.07)
    with pytest.raises(InputError, match=r"2\.00 times finer"):
        described.at(0.05)
    finer = described.at(0.05, force=True)
    assert finer.shape == (96, 128)
    np.testing.assert_array_equal(finer.read((0, 96), (0, 128))[0], plain[0].repeat(2, 1).repeat(2, 2))
    with pytest.raises(InputError, match="positive number"):
        described.at(0.0)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("float32", -9999), ("uint8", None)])
@pytest.mark.parametrize("gsd", [None, 0.2, 0.37, 0.08])
def test_reading_takes_no_more_memory_than_it_says(tmp_path, monkeypatch, dtype, nodata, gsd):
    monkeypatch.setattr("geoeco.sensors.mosaic_reading._STRIP_PIXELS", 100_000)
    described = describe_orthomosaic(mosaic(tmp_path / "m.tif", noise(3, 512, 512, dtype=dtype), nodata=nodata))
    described = described if gsd is None else described.at(gsd)
    rows, columns = described.shape
    described.read((0, 8), (0, 8))
    tracemalloc.start()
    described.read((-1, rows), (-1, columns))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= described.read_bytes(rows + 1, columns + 1) <= 3 * peak + 100_000


# --- files that are refused ------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_off_is_found_before_work_starts(tmp_path):
    path = mosaic(tmp_path / "m.tif", noise(3, 256, 256))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError, match="before its pixels do"):
        describe_orthomosaic(path)


def test_damaged_pixels_are_an_error_with_the_file_named(tmp_path):
    path = mosaic(tmp_path / "m.tif", noise(3, 256, 256), compress="deflate")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    with pytest.raises(ReadError) as caught:
        describe_orthomosaic(path).read((0, 256), (0, 256))
    assert caught.value.where == str(path)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"hello, world", "no TIFF"), (b"II*\0", "opening")])
def test_what_is_no_raster_is_refused(tmp_path, content, message):
    path = tmp_path / "m.tif"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=message):
        describe_orthomosaic(path)


@pytest.mark.parametrize(
    "path", ["/vsicurl/http://localhost/m.tif", "https://example.org/m.tif", "", "missing.tif", "."]
)
def test_what_is_no_file_is_refused(path):
    with pytest.raises(InputError):
        describe_orthomosaic(path)


def test_a_colour_table_holds_no_colours(tmp_path):
    path = mosaic(tmp_path / "m.tif", noise(1), photometric="palette")
    with pytest.raises(ReadError, match="expand"):
        describe_orthomosaic(path)


# --- virtual rasters -------------------------------------------------------------------------------------------------

VRT = """<VRTDataset rasterXSize="64" rasterYSize="48"><SRS>EPSG:32652</SRS>
<GeoTransform>500000.03, 0.1, 0, 5100000.07, 0, -0.1</GeoTransform>{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="Byte" band="{n}"{more}><ColorInterp>{colour}</ColorInterp><SimpleSource>
<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>{n}</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="64" ySize="48"/><DstRect xOff="0" yOff="0" xSize="64" ySize="48"/>
</SimpleSource>{inside}</VRTRasterBand>"""


def virtual(path, name="m.tif", *, relative=1, more="", inside="", colours=("Red", "Green", "Blue")):
    bands = [
        BAND.format(n=n, colour=colour, name=name, relative=relative, more=more, inside=inside)
        for n, colour in enumerate(colours, 1)
    ]
    path.write_text(VRT.format(bands="".join(bands)))
    return path


def test_a_virtual_raster_of_files_beside_it_is_read(tmp_path):
    mosaic(tmp_path / "m.tif")
    described = describe_orthomosaic(virtual(tmp_path / "m.vrt"))
    assert described.bands == ("red", "green", "blue")
    np.testing.assert_array_equal(described.read(*EVERYTHING)[0], noise())
    before = described.fingerprint
    mosaic(tmp_path / "m.tif", noise(seed=1))
    assert describe_orthomosaic(tmp_path / "m.vrt").fingerprint != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../secret.tif"}, "no file of its folder"),
        ({"name": "{elsewhere}/secret.tif", "relative": 0}, "no file of its folder"),
        ({"name": "/vsicurl/http://localhost/m.tif", "relative": 0}, "no file of its folder"),
        ({"name": "link.tif"}, "no file of its folder"),
        ({"name": "m.tif", "relative": 0}, "no file of its folder"),
        ({"name": "other.vrt"}, "no TIFF"),
        ({"name": "&lt;VRTDataset/&gt;"}, "no file of its folder"),
        ({"more": ' subClass="VRTDerivedRasterBand"'}, "VRTDerivedRasterBand"),
        ({"inside": "<PixelFunctionCode>import os</PixelFunctionCode>"}, "PixelFunctionCode"),
        ({"inside": "<PixelFunctionType>sqrt</PixelFunctionType>"}, "PixelFunctionType"),
        ({"inside": "<OpenOptions><OOI key='a'>b</OOI></OpenOptions>"}, "OpenOptions"),
    ],
)
def test_a_virtual_raster_reaches_nothing_but_tiffs_of_its_folder(tmp_path, options, message):
    folder = tmp_path / "here"
    folder.mkdir()
    mosaic(tmp_path / "secret.tif")
    mosaic(folder / "m.tif")
    (folder / "link.tif").symlink_to(tmp_path / "secret.tif")
    virtual(folder / "other.vrt")
    if "name" in options:
        options = {**options, "name": options["name"].format(elsewhere=tmp_path)}
    with pytest.raises(ReadError, match=message) as caught:
        describe_orthomosaic(virtual(folder / "m.vrt", **options))
    assert caught.value.code == "href-refused"


@pytest.mark.parametrize("options", [{"mask": np.arange(48 * 64).reshape(48, 64) % 3 > 0}, {"nodata": 255}, {}])
def test_a_virtual_raster_of_gdal_is_as_good_as_its_file(tmp_path, options):
    path = mosaic(tmp_path / "m.tif", **options)
    rasterio.shutil.copy(path, tmp_path / "m.vrt", driver="VRT")
    one, other = describe_orthomosaic(path), describe_orthomosaic(tmp_path / "m.vrt")
    assert (one.mask, one.bands, one.geobox) == (other.mask, other.bands, other.geobox)
    for pixels, same in zip(one.read(*EVERYTHING), other.read(*EVERYTHING), strict=True):
        np.testing.assert_array_equal(pixels, same)


def test_a_virtual_raster_whose_place_is_decided_elsewhere_is_refused(tmp_path):
    mosaic(tmp_path / "m.tif")
    path = virtual(tmp_path / "m.vrt")
    (tmp_path / "link.vrt").symlink_to(path)
    with pytest.raises(ReadError, match="it is a link"):
        describe_orthomosaic(tmp_path / "link.vrt")
    path.write_text(path.read_text().replace("EPSG:32652", "http://localhost/crs"))
    with pytest.raises(ReadError, match="CRS is an address"):
        describe_orthomosaic(path)


def test_a_virtual_raster_with_entities_or_under_another_name_is_looked_through_too(tmp_path):
    mosaic(tmp_path / "m.tif")
    path = virtual(tmp_path / "m2.tif", name="../m.tif")
    with pytest.raises(ReadError, match="no file of its folder"):
        describe_orthomosaic(path)
    path = virtual(tmp_path / "m.vrt")
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + path.read_text())
    with pytest.raises(ReadError, match="document type"):
        describe_orthomosaic(path)


# --- xarray ----------------------------------------------------------------------------------------------------------


def test_the_data_set_reads_what_is_asked_for(plain, monkeypatch):
    image, valid, described = plain
    asked = []
    read = Orthomosaic.read
    monkeypatch.setattr(Orthomosaic, "read", lambda self, y, x: asked.append((y, x)) or read(self, y, x))
    dataset = open_orthomosaic(described.path)
    assert not asked
    part = dataset["image"].isel(band=[3, 0], y=slice(10, 20), x=slice(30, 12, -3))
    np.testing.assert_array_equal(part.values, image[[3, 0], 10:20, 30:12:-3])
    assert asked == [((10, 20), (15, 31))]
    np.testing.assert_array_equal(dataset["image"][1, 5].values, image[1, 5])
    np.testing.assert_array_equal(dataset["valid"][:, 7].values, valid[:, 7])
    assert dataset["image"][0, 4:4].shape == (0, 64)
    assert dataset["image"][0, 4:4].values.shape == (0, 64)


def test_the_data_set_says_where_it_lies_and_what_its_numbers_are(plain, tmp_path):
    image, valid, described = plain
    dataset = open_orthomosaic(described.path, chunks={"y": 20, "x": 32})
    assert dataset.odc.geobox == described.geobox
    assert dataset["image"].chunks == ((4,), (20, 20, 8), (32, 32))
    assert dataset["image"].attrs["kind"] == "continuous"
    assert dataset["image"].attrs["units"] == "1"
    assert dataset["image"].attrs["scale"] == 1 / 255
    assert dataset.attrs == {
        "gsd_m": described.gsd_m,
        "mask": "internal",
        "date": "",
        "source": described.path,
    }
    np.testing.assert_array_equal(dataset["image"].values, image)
    dataset.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    copy = xr.open_zarr(tmp_path / "copy.zarr", decode_coords="all", consolidated=False)
    assert copy.odc.geobox == described.geobox
    np.testing.assert_array_equal(copy["valid"].values, valid)


def test_a_data_set_stands_for_its_mosaic_until_it_is_changed(plain):
    described = plain[2]
    dataset = open_orthomosaic(described.path, chunks={})
    for same in (described.path, described, dataset):
        assert as_orthomosaic(same) == described
    changed = (
        dataset.isel(y=slice(10)),
        dataset.assign(image=dataset["image"] + 1),
        dataset.drop_vars("image"),
        xr.Dataset(),
    )
    for other in changed:
        with pytest.raises(InputError, match="not an orthomosaic as it was opened"):
            as_orthomosaic(other)


@pytest.mark.real
def test_a_real_crop_is_the_same_through_every_door(real_data):
    path = real_data("crowns/neon_bart/2019_BART_5_320000_4881000_image_crop.tif")
    with rasterio.open(path) as file:
        expected = file.read()
    dataset = open_orthomosaic(path, chunks={"y": 512, "x": 512})
    np.testing.assert_array_equal(dataset["image"].values, expected)
    assert dataset["valid"].values.all()
    assert dataset.attrs["gsd_m"] == pytest.approx(0.1, abs=1e-5)
