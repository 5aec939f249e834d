"""The Major TOM grid: counts of the method sheet, names, seams."""

from __future__ import annotations

import math

import numpy as np
import pytest
from majortom_eg import MajorTomGrid

from geoeco.errors import GridError, InputError
from geoeco.grid import utm_crs
from geoeco.sampling import is_land, major_tom_grid


@pytest.fixture(scope="module")
def globe():
    return major_tom_grid(23_000)


def test_23_km_gives_the_published_963919_cells(globe):
    assert len(globe) == 963_919
    assert globe["name"].is_unique


def test_872_rows_from_pole_to_pole():
    greenwich = major_tom_grid(23_000, latitude=(-90, 90), anchor="corner", bbox=(-1e-6, -90, 1e-6, 90))
    assert greenwich["row"].tolist() == list(range(-436, 436))


def test_columns_of_every_row_agree_with_majortom_eg(globe):
    peer = MajorTomGrid(23_000, False)
    assert peer.row_count == 872
    columns = globe.groupby("row").size()
    expected = {}
    for index in range(peer.row_count):
        latitude = peer.get_row_lat(index)
        if -85 <= latitude <= 85:
            expected[index - 436] = round(360 / peer.get_lon_spacing(latitude))
    assert columns.to_dict() == expected


def test_rows_and_columns_begin_where_the_grid_says():
    corner = major_tom_grid(23_000, anchor="corner", bbox=(0, 0, 10, 5)).set_index("name")
    cell = corner.loc["12U_34R"]
    assert cell.lat == pytest.approx(180 * 12 / 872, abs=1e-12)
    columns = math.ceil(2 * math.pi * 6378.137 * math.cos(math.radians(cell.lat)) / 23)
    assert cell.lon == pytest.approx(360 * 34 / columns, abs=1e-12)
    # the equator and Greenwich are cell edges
    assert (corner.loc["0U_0R", "lon"], corner.loc["0U_0R", "lat"]) == (0.0, 0.0)


def test_centres_lie_half_a_cell_from_their_corners(globe):
    corner = major_tom_grid(23_000, anchor="corner", bbox=(100, 40, 110, 45)).set_index("name")
    centre = globe.set_index("name").loc[corner.index]
    columns = globe.groupby("row").size().loc[corner["row"]].to_numpy()
    assert np.allclose(centre["lat"] - corner["lat"], 90 / 872)
    assert np.allclose(centre["lon"] - corner["lon"], 180 / columns)


@pytest.mark.parametrize("spacing", [23_000.0, 300_000.0, 2_000_000.0, math.pi * 6378137.0 / 11])
@pytest.mark.parametrize("anchor", ["centre", "corner"])
def test_longitudes_are_normalised_and_no_location_occurs_twice(spacing, anchor):
    latitude = (-85, 85) if spacing > 50_000 else (60, 61)
    grid = major_tom_grid(spacing, anchor=anchor, latitude=latitude)
    assert ((grid["lon"] >= -180) & (grid["lon"] < 180)).all()
    assert not grid.duplicated(["lon", "lat"]).any()
    assert not grid["name"].duplicated().any()
    for _, row in grid.groupby("row"):
        gaps = np.diff(np.sort(row["lon"].to_numpy()), append=row["lon"].min() + 360)
        assert np.allclose(gaps, 360 / len(row))


def test_a_circumference_of_whole_spacings_gains_no_column_by_rounding():
    for parts in range(1, 200, 3):
        spacing = 2 * math.pi * 6378137.0 / parts
        if spacing <= math.pi * 6378137.0:
            grid = major_tom_grid(spacing, latitude=(-1e-9, 1e-9))
            assert (grid.groupby("row").size() == parts).all()


def test_a_box_across_the_antimeridian_is_the_sum_of_its_halves():
    both = major_tom_grid(50_000, bbox=(175, -20, -175, -10))
    west = major_tom_grid(50_000, bbox=(175, -20, 180, -10))
    east = major_tom_grid(50_000, bbox=(-180, -20, -175, -10))
    assert set(both["name"]) == set(west["name"]) | set(east["name"])
    assert len(west)
    assert len(east)


def test_an_area_selects_the_same_cells_as_its_box():
    import geopandas as gpd
    from shapely.geometry import box

    area = gpd.GeoDataFrame(geometry=[box(5, 50, 7, 52)], crs="EPSG:4326")
    by_box = major_tom_grid(23_000, bbox=(5, 50, 7, 52))
    assert major_tom_grid(23_000, area=area)["name"].tolist() == by_box["name"].tolist()


def test_an_area_in_utm_across_the_antimeridian_selects_both_sides():
    from odc.geo.geom import box

    # zone 60 runs on beyond 180 degrees
    area = box(780_000, 8_100_000, 880_000, 8_200_000, "EPSG:32760")
    grid = major_tom_grid(10_000, area=area)
    assert (grid["lon"] > 179).any()
    assert (grid["lon"] < -179).any()
    assert (np.abs(grid["lon"]) > 179).all()
    assert len(grid) == pytest.approx(100, abs=12)


def test_zones_follow_the_exceptions_of_norway_and_svalbard(globe):
    sample = globe.sample(2000, random_state=0)
    assert all(utm_crs(r.lon, r.lat).epsg == r.epsg for r in sample.itertuples())
    bergen = major_tom_grid(23_000, bbox=(5.0, 60.2, 5.6, 60.6))
    svalbard = major_tom_grid(23_000, bbox=(15.0, 78.0, 17.0, 78.5))
    assert set(bergen["epsg"]) == {32632}
    assert set(svalbard["epsg"]) == {32633}


def test_land_cells_come_near_the_count_of_the_method_sheet(globe):
    count = int(is_land(globe["lon"], globe["lat"]).sum())
    print(f"land cells at 23 km by their centres: {count:,}; method sheet: about 281,000")
    assert count == 277_605
    assert abs(count / 281_000 - 1) < 0.02


def test_land_is_asked_where_the_anchor_lies():
    centre = major_tom_grid(100_000, land="naturalearth")
    corner = major_tom_grid(100_000, land="naturalearth", anchor="corner")
    assert is_land(centre["lon"], centre["lat"]).all()
    assert is_land(corner["lon"], corner["lat"]).all()
    assert set(centre["name"]) != set(corner["name"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"spacing_m": 0}, InputError),
        ({"spacing_m": math.nan}, InputError),
        ({"anchor": "middle"}, InputError),
        ({"latitude": (10, 5)}, GridError),
        ({"bbox": (0, 0, 1, 1), "area": "x"}, InputError),
        ({"bbox": (0, 5, 1, 1)}, GridError),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, error):
    with pytest.raises(error):
        major_tom_grid(**{"spacing_m": 23_000, **arguments})


def test_an_area_without_cells_is_an_empty_table():
    empty = major_tom_grid(500_000, bbox=(0.1, 0.1, 0.2, 0.2))
    assert len(empty) == 0
    assert list(empty.columns) == list(major_tom_grid(2_000_000).columns)
