"""Tables of locations."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from geoeco.errors import GridError, InputError
from geoeco.sampling import check_locations, major_tom_grid, points_from_table, sort_by_place


def test_a_csv_of_points_becomes_locations(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("id,Longitude,Latitude,cover\na,4.5,51,forest\nb,180,-17,mangrove\n")
    table = points_from_table(path, name="id")
    assert table["name"].tolist() == ["a", "b"]
    assert table["lon"].tolist() == [4.5, -180.0]
    assert table["epsg"].tolist() == [32631, 32701]
    assert table["cover"].tolist() == ["forest", "mangrove"]
    assert table.crs == "EPSG:4326"
    assert table.attrs["dropped"] == []


def test_projected_columns_and_geometries_give_the_same_locations(tmp_path):
    points = gpd.GeoDataFrame({"name": ["a", "b"]}, geometry=gpd.points_from_xy([4.5, 4.6], [51, 51]), crs="EPSG:4326")
    projected = points.to_crs("EPSG:32631")
    columns = pd.DataFrame({"name": ["a", "b"], "x": projected.geometry.x, "y": projected.geometry.y})
    path = tmp_path / "points.gpkg"
    projected.to_file(path)
    projected.to_parquet(tmp_path / "points.parquet")
    for table in (
        points_from_table(points),
        points_from_table(projected),
        points_from_table(path),
        points_from_table(tmp_path / "points.parquet"),
        points_from_table(columns, crs=32631),
    ):
        assert np.allclose(table["lon"], [4.5, 4.6], atol=1e-8)
        assert table["epsg"].tolist() == [32631, 32631]


def test_points_without_coordinates_are_left_out_and_named():
    frame = pd.DataFrame({"name": list("abcd"), "lon": [1.0, np.nan, 3.0, 4.0], "lat": [50.0, 50.0, np.inf, 95.0]})
    table = points_from_table(frame)
    assert table["name"].tolist() == ["a"]
    assert [(n["code"], n["count"], n["names"]) for n in table.attrs["dropped"]] == [
        ("no-coordinates", 2, ["b", "c"]),
        ("outside-world", 1, ["d"]),
    ]


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (pd.DataFrame({"lon": [], "lat": []}), InputError),
        (pd.DataFrame({"east": [1.0], "north": [2.0]}), InputError),
        (pd.DataFrame({"lon": [np.nan], "lat": [1.0]}), InputError),
        (pd.DataFrame({"name": ["a", "a"], "lon": [1.0, 2.0], "lat": [1.0, 2.0]}), InputError),
        (gpd.GeoDataFrame(geometry=gpd.points_from_xy([1], [1])), GridError),
    ],
)
def test_tables_that_hold_no_locations_are_refused(frame, error):
    with pytest.raises(error) as caught:
        points_from_table(frame)
    assert caught.value.what


def test_lines_are_no_locations():
    from shapely.geometry import LineString

    lines = gpd.GeoDataFrame(geometry=[LineString([(0, 0), (1, 1)])], crs="EPSG:4326")
    with pytest.raises(InputError):
        points_from_table(lines)


def test_checking_twice_changes_nothing():
    table = points_from_table(pd.DataFrame({"lon": [179.0, np.nan, -181.0], "lat": [0.0, 0.0, 1.0]}))
    again = check_locations(table)
    assert again.drop(columns="geometry").equals(table.drop(columns="geometry"))
    assert again.attrs["dropped"] == table.attrs["dropped"]
    assert table["lon"].tolist() == [179.0, 179.0]


def test_neighbours_come_together_whatever_the_order_of_the_table():
    grid = major_tom_grid(10_000, bbox=(4, 50, 8, 52))
    ordered = sort_by_place(grid)
    assert sorted(ordered["name"]) == sorted(grid["name"])
    mixed = sort_by_place(grid.sample(frac=1, random_state=0))
    assert mixed["name"].tolist() == ordered["name"].tolist()

    def extent(table):
        groups = [table.iloc[i : i + 64] for i in range(0, len(table), 64)]
        return np.mean([g.geometry.x.max() - g.geometry.x.min() for g in groups])

    assert extent(ordered) < extent(grid) / 1.5
    assert ordered["epsg"].is_monotonic_increasing
