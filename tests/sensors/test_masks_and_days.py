"""Scene classification, angles, solar days."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odc.stac import parse_item
from scipy import ndimage

from geoeco.catalog import open_catalog
from geoeco.errors import CatalogError, InputError
from geoeco.sensors import sentinel2

from .conftest import make_item

SCL = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 11))


def disk(radius):
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x * x + y * y <= radius * radius + 1e-9


def test_by_default_snow_dark_and_unclassified_pixels_stay():
    scl = np.arange(12, dtype=np.uint8).reshape(1, 12)
    clear = sentinel2.scl_mask(scl, radius_m=0)
    assert np.flatnonzero(clear).tolist() == [2, 4, 5, 6, 7, 11]


def test_a_pixel_of_cloud_takes_a_disk_with_it_and_cirrus_only_itself():
    scl = np.full((11, 11), 4, np.uint8)
    scl[5, 5] = 9
    assert np.array_equal(~sentinel2.scl_mask(scl, radius_m=60)[2:9, 2:9], disk(3))
    scl[5, 5] = 10
    assert (~sentinel2.scl_mask(scl, radius_m=60)).sum() == 1


@settings(max_examples=60)
@given(SCL, st.floats(0, 160), st.sampled_from([10.0, 20.0]))
def test_dilation_equals_that_of_scipy(scl, radius_m, pixel_size):
    expected = ~np.isin(scl, [0, 1, 3, 8, 9, 10])
    expected &= ~ndimage.binary_dilation(np.isin(scl, [3, 8, 9]), disk(radius_m / pixel_size))
    assert np.array_equal(sentinel2.scl_mask(scl, radius_m=radius_m, pixel_size=pixel_size), expected)


@settings(max_examples=60)
@given(SCL, st.floats(0, 160), st.data())
def test_a_block_read_with_its_halo_equals_the_whole(scl, radius_m, data):
    rows, cols = scl.shape
    top = data.draw(st.integers(0, rows - 1))
    left = data.draw(st.integers(0, cols - 1))
    bottom = data.draw(st.integers(top + 1, rows))
    right = data.draw(st.integers(left + 1, cols))
    halo = sentinel2.dilation_halo(radius_m)
    y0, x0 = max(top - halo, 0), max(left - halo, 0)
    wide = scl[y0 : min(bottom + halo, rows), x0 : min(right + halo, cols)]
    block = sentinel2.scl_mask(wide, radius_m=radius_m)[top - y0 : bottom - y0, left - x0 : right - x0]
    assert np.array_equal(block, sentinel2.scl_mask(scl, radius_m=radius_m)[top:bottom, left:right])


def test_the_halo_is_needed_and_no_larger_than_needed():
    assert [sentinel2.dilation_halo(r) for r in (0, 19, 20, 60, 61)] == [0, 0, 1, 3, 3]
    scl = np.full((1, 10), 4, np.uint8)
    scl[0, 0] = 8
    whole = sentinel2.scl_mask(scl, radius_m=60)
    assert not whole[0, 3]
    assert sentinel2.scl_mask(scl[:, 1:], radius_m=60)[0, 2]


def test_a_stack_is_masked_date_by_date():
    rng = np.random.default_rng(3)
    stack = rng.integers(0, 12, (4, 30, 25)).astype(np.uint8)
    each = [sentinel2.scl_mask(scl) for scl in stack]
    assert np.array_equal(sentinel2.scl_mask(stack), np.stack(each))


def test_masking_leaves_its_input_alone():
    scl = np.full((9, 9), 9, np.uint8)
    scl.setflags(write=False)
    assert not sentinel2.scl_mask(scl).any()


def test_classes_that_are_not_masked_are_not_dilated():
    scl = np.full((9, 9), 4, np.uint8)
    scl[4, 4] = 3
    assert sentinel2.scl_mask(scl, masked=(0, 8, 9)).all()


def test_values_beyond_the_table_are_not_clear():
    assert not sentinel2.scl_mask(np.array([[12, 255]], np.uint8)).any()
    assert not sentinel2.scl_mask(np.array([[300, 1000]], np.uint16)).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sentinel2.scl_mask(np.zeros(5, np.uint8)),
        lambda: sentinel2.scl_mask(np.zeros((5, 5))),
        lambda: sentinel2.scl_mask(np.zeros((5, 5), np.uint8), masked=(12,)),
        lambda: sentinel2.scl_mask(np.zeros((5, 5), np.uint8), radius_m=-1),
        lambda: sentinel2.dilation_halo(60, 0),
        lambda: sentinel2.dilation_halo(float("nan")),
    ],
)
def test_senseless_masks_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_the_class_table_is_complete_and_distinct():
    assert [c.value for c in sentinel2.SCL_CLASSES] == list(range(12))
    assert len({c.name for c in sentinel2.SCL_CLASSES}) == 12
    assert len({c.color for c in sentinel2.SCL_CLASSES}) == 12


# --- angles ---


def test_angles_are_read_from_either_convention(item):
    es = item(**{"view:sun_azimuth": 147.7, "view:sun_elevation": 48.3, "view:off_nadir": 3})
    assert sentinel2.sun_angles(es) == pytest.approx((147.7, 41.7))
    assert sentinel2.view_angles(es).zenith == 3
    pc = item(**{"s2:mean_solar_azimuth": 170.1, "s2:mean_solar_zenith": 37.9})
    assert sentinel2.sun_angles(pc) == pytest.approx((170.1, 37.9))
    both = item(**{"view:incidence_angle": 7.5, "view:off_nadir": 0, "view:azimuth": 104})
    assert sentinel2.view_angles(both) == (104, 7.5)


def test_angles_that_are_not_given_are_nan(item):
    assert np.isnan([*sentinel2.sun_angles(item()), *sentinel2.view_angles(item(**{"view:azimuth": "N"}))]).all()


@pytest.mark.real
def test_real_items_give_the_sun_where_their_catalogue_does(real_data):
    (es,) = open_catalog(real_data("sentinel2/S2A_29RKH_20200219_0_L2A_cog/S2A_29RKH_20200219_0_L2A.json")).search()
    assert sentinel2.sun_angles(es) == pytest.approx((147.67, 90 - 48.29), abs=0.01)
    for pc in open_catalog(real_data("stac/site2-2020_jun_jul-35MNM.geojson")).search():
        azimuth, zenith = sentinel2.sun_angles(pc)
        assert 30 < azimuth < 60
        assert 25 < zenith < 45
    (v0,) = open_catalog(real_data("stac/S2A_28QCH_20200714_0_L2A.json")).search()
    assert np.isnan(sentinel2.sun_angles(v0)).all()
    assert sentinel2.view_angles(v0).zenith == 0


# --- solar days ---


def square(lon, lat=0.0, half=0.5):
    west, east = lon - half, lon + half
    ring = [[west, lat - half], [east, lat - half], [east, lat + half], [west, lat + half], [west, lat - half]]
    return {"type": "Polygon", "coordinates": [[[(x + 180) % 360 - 180, y] for x, y in ring]]}


@pytest.mark.parametrize(
    ("moment", "lon", "day"),
    [
        ("2021-06-15T10:30:00Z", 0, "2021-06-15"),
        ("2021-06-14T23:30:00Z", 165, "2021-06-15"),  # Kamchatka: UTC is still the day before
        ("2021-06-15T00:10:00Z", 155, "2021-06-15"),
        ("2021-06-15T21:25:00Z", -147, "2021-06-15"),
        ("2021-06-16T00:10:00Z", -170, "2021-06-15"),
        ("2021-06-15T22:30:00+02:00", -147, "2021-06-15"),
        ("2021-12-31T23:40:00Z", 150, "2022-01-01"),
    ],
)
def test_the_solar_day_follows_the_sun_not_utc(item, moment, lon, day):
    assert sentinel2.solar_day(item(moment=moment, geometry=square(lon))) == np.datetime64(day, "D")


@given(st.floats(-179, 179), st.floats(9.5, 12.5), st.dates(min_value=__import__("datetime").date(2016, 1, 1)))
def test_at_overpass_time_the_solar_day_is_that_of_odc_stac(lon, local_hour, date):
    if date.year > 2100:
        date = date.replace(year=2020, day=min(date.day, 28))
    utc = np.datetime64(date) + np.timedelta64(round((local_hour - lon / 15) * 3600), "s")
    moment = f"{np.datetime_as_string(utc, unit='s')}Z"
    item = make_item(moment=moment, geometry=square(round(lon, 3)))
    day = sentinel2.solar_day(item)
    assert day == np.datetime64(date)
    if abs(lon) < 178:  # there odc-stac's centroid of a footprint that jumps is on the wrong side of the globe
        assert day == np.datetime64(parse_item(item).solar_date.date())


def test_one_overpass_over_the_antimeridian_is_one_day_near_the_area(item):
    moment = "2021-06-15T22:40:00Z"
    tiles = [item(moment=moment, geometry=square(lon)) for lon in (178.4, 179.4, 180.0, -179.4, -178.4)]
    alone = {sentinel2.solar_day(tile) for tile in tiles}
    assert len(alone) == 2
    assert {sentinel2.solar_day(tile, near=179.9) for tile in tiles} == {np.datetime64("2021-06-16")}
    assert {sentinel2.solar_day(tile, near=-179.9) for tile in tiles} == {np.datetime64("2021-06-15")}


def test_without_a_footprint_the_area_or_greenwich_gives_the_day(item):
    nowhere = item(moment="2021-06-14T23:30:00Z")
    assert sentinel2.solar_day(nowhere) == np.datetime64("2021-06-14")
    assert sentinel2.solar_day(nowhere, near=165) == np.datetime64("2021-06-15")


def test_an_item_without_a_time_has_no_solar_day(item):
    timeless = item()
    timeless.datetime = None
    with pytest.raises(CatalogError, match="no datetime"):
        sentinel2.solar_day(timeless)
