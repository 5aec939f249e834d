"""Tables of points: columns found, CRS checked, bad and repeated places refused in words."""

from __future__ import annotations

import gzip

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely.geometry import Point

from geoeco.errors import GridError, InputError
from geoeco.vectors import points_table

GOOD = pd.DataFrame({"id": ["a", "b", "c"], "lon": [5.0, 6.0, -7.5], "lat": [50.0, 51.0, 40.25]})


def write(tmp_path, text, name="points.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_a_table_becomes_points_in_degrees_and_keeps_its_columns():
    table = points_table(GOOD)
    assert table.crs.to_epsg() == 4326
    assert list(table["id"]) == ["a", "b", "c"]
    np.testing.assert_array_equal(np.c_[table.geometry.x, table.geometry.y], GOOD[["lon", "lat"]])
    assert table.attrs["dropped"] == {}


@pytest.mark.parametrize(
    "names",
    [("lon", "lat"), ("Longitude", "Latitude"), ("decimalLongitude", "decimalLatitude"), ("X", "Y"), (" lng ", "LAT")],
)
def test_usual_column_names_are_found(names):
    table = points_table(GOOD.rename(columns={"lon": names[0], "lat": names[1]}))
    assert table.geometry.x.tolist() == [5.0, 6.0, -7.5]


def test_other_column_names_are_named_by_the_caller():
    odd = GOOD.rename(columns={"lon": "ost", "lat": "nord"})
    with pytest.raises(InputError, match=r"(?s)looks like longitude.*id, ost, nord.*`lon` and `lat`"):
        points_table(odd)
    assert len(points_table(odd, lon="ost", lat="nord")) == 3
    with pytest.raises(InputError, match="no column 'west'"):
        points_table(odd, lon="west", lat="nord")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_text_tables_open_whatever_their_separator(tmp_path, separator):
    path = write(tmp_path, GOOD.to_csv(index=False, sep=separator))
    assert len(points_table(path)) == 3


def test_text_tables_open_with_a_byte_order_mark_in_latin_1_and_compressed(tmp_path):
    text = "lon,lat,name\n5,50,Göteborg\n6,51,Åbo\n"
    assert points_table(write(tmp_path, "\ufeff" + text))["name"][0] == "Göteborg"
    assert points_table(write(tmp_path, text, encoding="latin-1"))["name"][1] == "Åbo"
    packed = tmp_path / "points.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert len(points_table(packed)) == 2


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "shp", "parquet"])
def test_layers_of_points_keep_their_place_in_any_crs(tmp_path, suffix):
    metres = gpd.GeoDataFrame(GOOD[["id"]], geometry=gpd.points_from_xy(GOOD.lon, GOOD.lat), crs=4326)
    metres = metres if suffix == "geojson" else metres.to_crs(3035)
    path = tmp_path / f"points.{suffix}"
    metres.to_parquet(path) if suffix == "parquet" else metres.to_file(path)
    table = points_table(path)
    np.testing.assert_allclose(np.c_[table.geometry.x, table.geometry.y], GOOD[["lon", "lat"]], atol=1e-7)
    assert list(table["id"]) == ["a", "b", "c"]
    if suffix != "geojson":
        with pytest.raises(GridError, match="EPSG:3035, not in EPSG:4326"):
            points_table(path, crs=4326)


def test_plain_parquet_is_a_table(tmp_path):
    GOOD.to_parquet(tmp_path / "points.parquet")
    assert len(points_table(tmp_path / "points.parquet")) == 3


def test_projected_columns_are_brought_to_degrees():
    metres = pd.DataFrame({"x": [500_000.0, 501_000.0], "y": [5_600_000.0, 5_600_000.0]})
    table = points_table(metres, crs=32631)
    assert table.geometry.x[0] == pytest.approx(3.0, abs=1e-9)
    with pytest.raises(InputError, match=r"(?s)outside EPSG:4326.*look like metres"):
        points_table(metres)


@pytest.mark.parametrize(
    ("lon", "lat", "reason"),
    [
        (np.nan, 50, "missing"),
        (5, np.inf, "missing"),
        (0, 0, r"exactly \(0, 0\)"),
        (5, 91, "outside EPSG:4326"),
        (-181, 50, "outside EPSG:4326"),
        (1e9, 50, "outside EPSG:4326"),
    ],
)
def test_bad_places_are_refused_with_count_and_row_or_dropped_with_a_count(lon, lat, reason):
    bad = pd.concat([GOOD, pd.DataFrame({"id": ["bad"], "lon": [lon], "lat": [lat]})], ignore_index=True)
    with pytest.raises(InputError, match=rf"(?s)1 of 4 points: .*{reason}.*first at row 3") as caught:
        points_table(bad)
    assert caught.value.code == "points-bad"
    table = points_table(bad, bad="drop")
    assert list(table["id"]) == ["a", "b", "c"]
    assert list(table.index) == [0, 1, 2]
    assert list(table.attrs["dropped"].values()) == [1]


def test_longitudes_up_to_360_are_brought_round():
    assert points_table(pd.DataFrame({"lon": [355.0, 181.0, 180.0], "lat": [1.0, 2.0, 3.0]})).geometry.x.tolist() == [
        -5.0,
        -179.0,
        -180.0,
    ]


def test_the_same_place_written_in_two_ways_is_a_repeat():
    with pytest.raises(InputError, match="repeat the place"):
        points_table(pd.DataFrame({"lon": [355.0, -5.0], "lat": [1.0, 1.0]}))
    with pytest.raises(InputError, match="repeat the place"):
        points_table(pd.DataFrame({"lon": [180.0, -180.0], "lat": [2.0, 2.0]}))


def test_swapped_columns_are_pointed_out():
    with pytest.raises(InputError, match="may be swapped"):
        points_table(pd.DataFrame({"lon": [50.0, 51.0], "lat": [105.0, 106.0]}))


def test_repeated_places_are_refused_dropped_or_kept():
    twice = pd.concat([GOOD, GOOD.iloc[[1]].assign(id="again")])
    with pytest.raises(InputError, match=r"(?s)1 of 4 points repeat.*first at row 3.*duplicates='drop'"):
        points_table(twice)
    assert list(points_table(twice, duplicates="drop")["id"]) == ["a", "b", "c"]
    assert points_table(twice, duplicates="drop").attrs["dropped"] == {"repeats an earlier place": 1}
    assert list(points_table(twice, duplicates="keep")["id"]) == ["a", "b", "c", "again"]


def test_missing_places_are_not_repeats_of_each_other():
    holes = pd.concat([GOOD, pd.DataFrame({"id": ["x", "y"], "lon": [np.nan] * 2, "lat": [np.nan] * 2})])
    assert points_table(holes, bad="drop").attrs["dropped"] == {"coordinates are missing or not finite": 2}


def test_text_in_a_coordinate_is_shown(tmp_path):
    with pytest.raises(InputError, match=r"(?s)'52,25' in column 'lon' is not a number.*row 1"):
        points_table(write(tmp_path, 'lon;lat\n5.0;50\n"52,25";51\n'))
    assert len(points_table(write(tmp_path, "lon,lat\n5.0,50\n ,51\n"), bad="drop")) == 1


def test_empty_missing_and_foreign_tables_are_refused(tmp_path):
    for path, message in [
        (write(tmp_path, "", "a.csv"), "empty"),
        (write(tmp_path, "lon,lat\n", "b.csv"), "no rows"),
        (write(tmp_path, "x", "c.xlsx"), "no reader"),
        (write(tmp_path, "x", "d.parquet"), "not a Parquet file"),
        (write(tmp_path, "x", "e.gpkg"), "cannot be read"),
        (tmp_path / "nowhere.csv", "no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            points_table(path)
    with pytest.raises(InputError, match="no rows"):
        points_table(GOOD.iloc[:0])
    with pytest.raises(InputError, match=r"(?s)no usable point.*3: coordinates are missing"):
        points_table(GOOD.assign(lon=np.nan), bad="drop")


def test_polygons_are_no_points():
    circles = gpd.GeoDataFrame(geometry=[Point(5, 50).buffer(1)], crs=4326)
    with pytest.raises(InputError, match=r"(?s)not points but Polygon.*centroids"):
        points_table(circles)


def test_a_layer_without_a_crs_needs_one():
    bare = gpd.GeoDataFrame(geometry=[Point(5, 50)])
    with pytest.raises(GridError, match="no CRS"):
        points_table(bare)
    assert len(points_table(bare, crs=4326)) == 1


def test_features_without_geometry_count_as_missing():
    holes = gpd.GeoDataFrame({"id": ["a", "b", "c"]}, geometry=[Point(5, 50), None, Point()], crs=4326)
    with pytest.raises(InputError, match="2 of 3 points"):
        points_table(holes)
    assert list(points_table(holes, bad="drop")["id"]) == ["a"]


def test_the_callers_table_is_left_alone():
    before = GOOD.copy()
    table = points_table(GOOD)
    table["id"] = "changed"
    pd.testing.assert_frame_equal(GOOD, before)


@pytest.mark.real
def test_real_occurrence_tables_are_cleaned_and_counted(real_data):
    acaule = real_data("sdm/south_america/acaule.csv")  # Latin-1, missing and repeated places
    with pytest.raises(InputError, match="284 of 1366 points: coordinates are missing"):
        points_table(acaule)
    table = points_table(acaule, bad="drop", duplicates="drop")
    assert table.attrs["dropped"]["coordinates are missing or not finite"] == 284
    assert len(table) + sum(table.attrs["dropped"].values()) == 1366

    assert len(points_table(real_data("sdm/south_america/bradypus.csv"))) == 116
    semicolons = real_data("sdm/geolifeclef2023_sample/Presences_only_train_sample.csv")
    assert len(points_table(semicolons)) == 100


@pytest.mark.real
def test_real_projected_tables_land_where_they_belong(real_data):
    sites = points_table(real_data("sdm/nceas_nz/NZtest_env.csv.gz"), crs=27200)
    west, south, east, north = sites.total_bounds
    assert 166 < west < east < 179
    assert -48 < south < north < -34
    california = points_table(real_data("sdm/elapid/ariolimax.gpkg"), duplicates="drop")
    assert -125 < california.geometry.x.min() < california.geometry.x.max() < -114
