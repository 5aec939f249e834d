"""Land or sea."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from shapely.geometry import box

from geoeco.errors import GridError, InputError
from geoeco.sampling import is_land, land_mask, natural_earth


def test_continents_are_land_and_oceans_are_not():
    lon = [10.0, -60.0, 134.0, 25.0, -30.0, 160.0, 0.0]
    lat = [50.0, -5.0, -25.0, 0.0, 40.0, -30.0, 0.0]
    assert is_land(lon, lat).tolist() == [True, True, True, True, False, False, False]


def test_the_antimeridian_is_one_line():
    # Chukotka lies on both sides of it
    assert is_land([180.0, -180.0, 179.99, -179.99, 540.0], [68.5] * 5).all()


def test_points_without_coordinates_are_not_land():
    assert is_land([np.nan, 10.0, np.inf], [50.0, np.nan, 0.0]).tolist() == [False, False, False]


def test_cutting_the_outlines_changes_no_answer():
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(-180, 180, 3000), np.degrees(np.arcsin(rng.uniform(-1, 1, 3000)))
    whole = natural_earth("land").union_all()
    shapely.prepare(whole)
    assert (is_land(lon, lat) == shapely.intersects_xy(whole, lon, lat)).all()


def test_countries_cover_the_land():
    countries = natural_earth("countries")
    assert {"name", "iso_a3", "continent"} <= set(countries.columns)
    assert countries.union_all().symmetric_difference(natural_earth("land").union_all()).area < 1e-6


def test_finer_polygons_by_argument(tmp_path):
    island = gpd.GeoDataFrame(geometry=[box(300_000, 0, 310_000, 10_000)], crs="EPSG:32631")
    path = tmp_path / "island.gpkg"
    island.to_file(path)
    inside = island.geometry.centroid.to_crs("EPSG:4326").iloc[0]
    for land in (island, str(path), path):
        assert is_land([inside.x, 10.0], [inside.y, 50.0], land).tolist() == [True, False]


def test_locations_in_any_crs():
    points = gpd.GeoDataFrame(geometry=gpd.points_from_xy([10.0, -30.0], [50.0, 40.0]), crs="EPSG:4326")
    assert land_mask(points.to_crs("EPSG:3857")).tolist() == [True, False]
    with pytest.raises(GridError):
        land_mask(gpd.GeoDataFrame(geometry=points.geometry.to_numpy()))


def test_land_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError):
        is_land([0.0], [0.0], tmp_path / "missing.gpkg")
    with pytest.raises(InputError):
        is_land([0.0], [0.0], gpd.GeoDataFrame(geometry=gpd.points_from_xy([0], [0]), crs="EPSG:4326"))
    with pytest.raises(GridError):
        is_land([0.0], [0.0], gpd.GeoDataFrame(geometry=[box(0, 0, 1, 1)]))


def test_the_shipped_outlines_are_small_and_have_their_notice():
    from importlib import resources

    folder = resources.files("geoeco") / "data" / "naturalearth"
    files = {entry.name: len(entry.read_bytes()) for entry in folder.iterdir() if entry.is_file()}
    assert "public domain" in (folder / "LICENSE.txt").read_text().replace("\n", " ")
    assert sum(size for name, size in files.items() if name.endswith(".parquet")) < 400_000
