"""Areas of interest: read from anything, with CRS and validity checked."""

from __future__ import annotations

import json

import geopandas as gpd
import pytest
from odc.geo.geom import Geometry
from odc.geo.geom import box as odc_box
from shapely.geometry import LineString, Point, Polygon, box, mapping

from geoeco.errors import GridError, InputError
from geoeco.grid import area_geobox
from geoeco.vectors import area_of_interest

SQUARE = box(5.0, 50.0, 5.1, 50.1)
BOW = Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])


def layer(path, shapes, crs="EPSG:4326", **options):
    gpd.GeoDataFrame({"name": [str(n) for n in range(len(shapes))]}, geometry=shapes, crs=crs).to_file(path, **options)
    return path


def test_a_bbox_is_degrees_and_may_cross_the_antimeridian():
    assert area_of_interest((5, 50, 5.1, 50.1)).boundingbox.bbox == (5, 50, 5.1, 50.1)
    crossing = area_of_interest([179.5, -17, -179.5, -16])
    assert crossing.boundingbox.bbox == (179.5, -17, 180.5, -16)
    assert crossing.crs.epsg == 4326


def test_a_bbox_in_metres_keeps_its_crs():
    area = area_of_interest((500_000, 5_600_000, 501_000, 5_601_000), crs=32631)
    assert area.crs.epsg == 32631
    assert area.area == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("bbox", "options"),
    [
        ((5, 50, 6), {}),
        ((5, 51, 6, 50), {}),
        ((500_000, 5_600_000, 501_000, 5_601_000), {}),
        ((5, 50, float("nan"), 51), {}),
        ((10, 10, 0, 20), {"crs": 32631}),
        ((5, 50, 6, 51), {"crs": "EPSG:999999"}),
    ],
)
def test_a_senseless_bbox_is_refused(bbox, options):
    with pytest.raises(GridError):
        area_of_interest(bbox, **options)


@pytest.mark.parametrize(
    "record",
    [
        mapping(SQUARE),
        {"type": "Feature", "properties": {}, "geometry": mapping(SQUARE)},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": mapping(SQUARE)}]},
    ],
    ids=["geometry", "feature", "collection"],
)
def test_geojson_mappings_are_longitude_and_latitude(record):
    area = area_of_interest(record)
    assert area.crs.epsg == 4326
    assert area.boundingbox.bbox == pytest.approx(SQUARE.bounds)


def test_geojson_that_states_a_crs_keeps_it(tmp_path):
    record = {
        **mapping(box(500_000, 5_600_000, 501_000, 5_601_000)),
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}},
    }
    assert area_of_interest(record).crs.epsg == 32631
    with pytest.raises(GridError, match="EPSG:32631, not in EPSG:32632"):
        area_of_interest(record, crs=32632)


def test_geojson_in_metres_without_a_crs_is_refused_unless_it_is_given(tmp_path):
    path = tmp_path / "aoi.geojson"
    path.write_text(json.dumps(mapping(box(500_000, 5_600_000, 501_000, 5_601_000))))
    with pytest.raises(GridError, match=r"(?s)not degrees.*give the CRS"):
        area_of_interest(path)
    assert area_of_interest(path, crs=32631).crs.epsg == 32631


def test_swapped_latitude_and_longitude_are_pointed_out():
    with pytest.raises(GridError, match="longitude before latitude"):
        area_of_interest(mapping(box(50.0, 105.0, 50.1, 105.1)))


@pytest.mark.parametrize(("suffix", "crs"), [("gpkg", 32631), ("shp", 32631), ("geojson", 4326), ("fgb", 3035)])
def test_files_keep_their_crs_and_join_their_features(tmp_path, suffix, crs):
    two = gpd.GeoSeries([SQUARE, box(5.05, 50.05, 5.2, 50.2)], crs=4326).to_crs(crs)
    area = area_of_interest(str(layer(tmp_path / f"aoi.{suffix}", list(two), crs)))
    assert area.crs.epsg == crs
    assert area.area == pytest.approx(two.union_all().area)
    assert area.geom.is_valid


def test_a_layer_without_a_crs_needs_one(tmp_path):
    path = layer(tmp_path / "aoi.gpkg", [SQUARE], None)
    with pytest.raises(GridError, match=r"(?s)no CRS.*crs"):
        area_of_interest(path)
    assert area_of_interest(path, crs=4326).crs.epsg == 4326


def test_a_given_crs_never_overrides_the_file(tmp_path):
    path = layer(tmp_path / "aoi.gpkg", [SQUARE])
    assert area_of_interest(path, crs="EPSG:4326").crs.epsg == 4326
    with pytest.raises(GridError, match="EPSG:4326, not in EPSG:32631"):
        area_of_interest(path, crs=32631)


def test_one_layer_of_many_can_be_named(tmp_path):
    path = tmp_path / "aoi.gpkg"
    layer(path, [SQUARE], layer="first")
    layer(path, [box(7, 50, 7.1, 50.1)], layer="second", mode="a")
    assert area_of_interest(path, layer="second").boundingbox.left == 7
    with pytest.raises(InputError, match="cannot be read"):
        area_of_interest(path, layer="third")


@pytest.mark.parametrize("shape", [Point(5, 50), LineString([(5, 50), (6, 51)])])
def test_points_and_lines_are_no_area(tmp_path, shape):
    with pytest.raises(InputError, match=r"(?s)polygon, not a.*buffer"):
        area_of_interest(layer(tmp_path / "aoi.gpkg", [shape]))
    with pytest.raises(InputError, match="polygon, not a"):
        area_of_interest(mapping(shape))


def test_a_self_crossing_polygon_is_repaired_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="repaired"):
        area = area_of_interest(mapping(BOW))
    assert area.geom.is_valid
    assert area.area == pytest.approx(0.5)
    with pytest.warns(UserWarning, match="1 polygons of"):
        area = area_of_interest(layer(tmp_path / "aoi.gpkg", [BOW, SQUARE]))
    assert area.area == pytest.approx(0.51)


def test_heights_are_dropped_and_holes_kept():
    ring = [(0, 0, 5), (4, 0, 5), (4, 4, 5), (0, 4, 5)]
    hole = [(1, 1, 5), (2, 1, 5), (2, 2, 5), (1, 2, 5)]
    area = area_of_interest(mapping(Polygon(ring, [hole])))
    assert not area.geom.has_z
    assert area.area == pytest.approx(15)


def test_empty_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"(?s)no such file.*nowhere"):
        area_of_interest(tmp_path / "nowhere.gpkg")
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(InputError, match=r"no features|no geometry"):
        area_of_interest(empty)
    foreign = tmp_path / "x.gpkg"
    foreign.write_text("not a package")
    with pytest.raises(InputError, match="cannot be read"):
        area_of_interest(foreign)
    with pytest.raises(InputError, match="virtual file systems"):
        area_of_interest("/vsicurl/https://example.org/aoi.gpkg")
    with pytest.raises(InputError, match="not a GeoJSON geometry"):
        area_of_interest({"type": "Feature"})
    with pytest.raises(InputError, match="empty"):
        area_of_interest({"type": "Polygon", "coordinates": []})
    with pytest.raises(GridError, match="not finite"):
        area_of_interest({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [float("nan"), 1], [0, 0]]]})


def test_geometries_pass_through_the_same_checks():
    area = odc_box(5, 50, 5.1, 50.1, "EPSG:4326")
    assert area_of_interest(area) == area
    with pytest.raises(GridError, match="no CRS"):
        area_of_interest(Geometry(mapping(SQUARE), None))


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "epsg"),
    [
        ("sentinel2/slovenia_patch_2015-2017/bbox.geojson", 32633),
        ("terrain/rocky_mountain_np/rmnp.shp", 4326),
        ("sdm/nceas_nz/border_nz.gpkg", 27200),
        ("sdm/nceas_swi/border_swi.gpkg", None),  # a CRS that has no EPSG code
        ("sentinel2/slovenia_patch_2015-2017/vector_timeless/LULC.gpkg", 32633),
    ],
)
def test_real_layers_become_grids(real_data, path, epsg):
    area = area_of_interest(real_data(path))
    assert area.crs.epsg == epsg
    grid = area_geobox(area, resolution=1000)
    assert grid.crs.projected
    assert min(grid.shape) > 0
