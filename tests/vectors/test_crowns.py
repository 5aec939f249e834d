"""Crowns, split areas and boxes: on the raster's ground, valid, ids unique; what is left out is told."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from odc.geo.geobox import GeoBox
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from geoeco.errors import GridError, InputError
from geoeco.vectors import read_boxes, read_crowns, read_split_areas

UTM = "EPSG:32652"
#: 100 m x 80 m at 0.1 m.
GRID = GeoBox((800, 1000), Affine(0.1, 0.0, 500_000.0, 0.0, -0.1, 5_100_080.0), UTM)


def square(x, y, side=4.0):
    """A square in metres from the lower-left corner of the grid."""
    return box(500_000 + x, 5_100_000 + y, 500_000 + x + side, 5_100_000 + y + side)


def crowns(shapes, crs=UTM, **columns):
    return gpd.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


BOW = Polygon([(500_010, 5_100_010), (500_014, 5_100_014), (500_014, 5_100_010), (500_010, 5_100_014)])


# --- crowns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "shp"])
def test_crowns_of_a_file_have_ids_classes_and_their_other_columns(tmp_path, suffix):
    path = tmp_path / f"crowns.{suffix}"
    crowns([square(0, 0), square(10, 0)], species=["oak ", None], height=[12.5, 9.0], tag=[7, 3]).to_file(path)
    found = read_crowns(path, GRID, class_column="species", id_column="tag")
    assert list(found.columns) == ["crown_id", "class_name", "species", "height", "tag", "geometry"]
    assert found["crown_id"].dtype == np.int32
    assert found["crown_id"].tolist() == [7, 3]
    assert found["class_name"].tolist() == ["oak", ""]
    assert found.crs.to_epsg() == 32652
    assert found.area.tolist() == pytest.approx([16, 16], rel=1e-6)
    assert found.attrs == {"n_empty": 0, "n_outside": 0, "n_repaired": 0, "overlap_m2": 0.0}


def test_crowns_without_ids_are_numbered_by_their_rows_whatever_is_left_out():
    found = read_crowns(crowns([square(0, 0), Polygon(), square(10, 0), square(500, 0)]), GRID)
    assert found["crown_id"].tolist() == [1, 3]
    assert found["class_name"].tolist() == ["", ""]
    assert found.index.tolist() == [0, 1]
    assert (found.attrs["n_empty"], found.attrs["n_outside"]) == (1, 1)


def test_what_has_no_area_is_left_out_and_counted():
    flat = Polygon([(500_001, 5_100_001), (500_002, 5_100_002), (500_003, 5_100_003)])
    found = read_crowns(crowns([None, Polygon(), flat, square(0, 0)]), GRID)
    assert found["crown_id"].tolist() == [4]
    assert found.attrs["n_empty"] == 3
    with pytest.raises(InputError, match="no crown has an area"):
        read_crowns(crowns([None, flat]), GRID)


def test_crossing_borders_are_repaired_and_counted():
    mixed = GeometryCollection([square(30, 30), LineString([(500_000, 5_100_000), (500_001, 5_100_000)])])
    found = read_crowns(crowns([BOW, square(20, 0), mixed]), GRID)
    assert found.geometry.is_valid.all()
    assert set(found.geom_type) <= {"Polygon", "MultiPolygon"}
    # two triangles of base 4 and height 2
    assert found.area.tolist() == pytest.approx([8, 16, 16])
    assert found.attrs["n_repaired"] == 1


def test_parts_of_one_crown_stay_one_crown():
    found = read_crowns(crowns([MultiPolygon([square(0, 0), square(10, 0)])]), GRID)
    assert len(found) == 1
    assert found.area[0] == pytest.approx(32)


def test_crowns_in_another_crs_are_brought_to_the_rasters_and_the_callers_table_stays_as_it_is():
    given = crowns([square(50, 40), square(60, 40)], crown_id=[5, 6])
    degrees = given.to_crs("EPSG:4326")
    before = degrees.copy()
    found = read_crowns(degrees, GRID)
    assert_geodataframe_equal(degrees, before)
    assert degrees.crs.to_epsg() == 4326
    assert found.crs.to_epsg() == 32652
    assert found.geometry.to_numpy()[0].symmetric_difference(given.geometry.to_numpy()[0]).area < 1e-3
    neighbour = read_crowns(given.to_crs("EPSG:32651"), GRID)
    assert neighbour.geometry.to_numpy()[1].symmetric_difference(given.geometry.to_numpy()[1]).area < 1e-3


def test_without_a_raster_crowns_keep_their_crs():
    degrees = crowns([square(50, 40), square(52, 40)]).to_crs("EPSG:4326")
    found = read_crowns(degrees)
    assert found.crs.to_epsg() == 4326
    assert found.attrs["overlap_m2"] == pytest.approx(8, rel=1e-3)


def test_heights_of_vertices_are_dropped():
    solid = Polygon([(500_000, 5_100_000, 7), (500_004, 5_100_000, 7), (500_004, 5_100_004, 8)])
    assert not read_crowns(crowns([solid]), GRID).has_z.any()


def test_overlap_is_the_ground_that_pairs_share():
    found = read_crowns(crowns([square(0, 0), square(2, 0), square(3, 0), square(50, 50)]), GRID)
    assert found.attrs["overlap_m2"] == pytest.approx(2 * 4 + 1 * 4 + 3 * 4)


def test_overlap_in_feet_is_told_in_square_metres():
    feet = GeoBox((100, 100), Affine(1.0, 0, 984_250.0, 0, -1.0, 200_100.0), "EPSG:2263")
    pair = [box(984_260, 200_010, 984_270, 200_020), box(984_265, 200_010, 984_275, 200_020)]
    assert read_crowns(crowns(pair, crs="EPSG:2263"), feet).attrs["overlap_m2"] == pytest.approx(
        50 * 0.3048**2, rel=1e-5
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 1], "id 1 stands for 2 crowns"),
        ([0, 1], "'0' in column 'tag' is no whole number"),
        ([1.5, 2], "'1.5' in column"),
        (["T1", "T2"], "'T1' in column"),
        ([1, None], "'nan' in column"),
        ([1, 2**31], "2147483648"),
    ],
)
def test_ids_are_whole_unique_and_from_1(ids, message):
    with pytest.raises(InputError, match=message):
        read_crowns(crowns([square(0, 0), square(10, 0)], tag=ids), GRID, id_column="tag")


def test_crowns_that_cannot_be_put_on_the_raster_are_refused(tmp_path):
    pair = [square(0, 0), square(10, 0)]
    with pytest.raises(GridError, match="no CRS"):
        read_crowns(crowns(pair, crs=None), GRID)
    with pytest.raises(GridError, match="no outline overlaps") as caught:
        read_crowns(crowns([square(1000, 1000)]), GRID)
    assert caught.value.code == "crowns-outside"
    unplaced = GeoBox((10, 10), Affine(1, 0, 0, 0, -1, 0), None)
    with pytest.raises(GridError, match="raster has no CRS"):
        read_crowns(crowns(pair), unplaced)
    with pytest.raises(GridError, match="not degrees"):
        read_crowns(crowns(pair, crs="EPSG:4326"), GRID)
    with pytest.raises(InputError, match="not outlines but Point"):
        read_crowns(crowns([Point(500_001, 5_100_001)]), GRID)
    with pytest.raises(InputError, match="no column 'species'"):
        read_crowns(crowns(pair), GRID, class_column="species")
    with pytest.raises(InputError, match="no features"):
        read_crowns(crowns([]), GRID)
    with pytest.raises(InputError, match="no such file"):
        read_crowns(tmp_path / "none.gpkg", GRID)


@pytest.mark.parametrize("flip", [1, -1])
def test_pixel_coordinates_that_wear_a_crs_are_recognised(flip):
    """As in the test data of detectree2: bounds of 0 to 1486 with the code of a UTM zone."""
    with pytest.raises(GridError, match="no outline overlaps") as caught:
        read_crowns(crowns([box(10, flip * 20, 400, flip * 300)]), GRID)
    assert "look like pixels" in caught.value.what_to_do


def test_a_file_of_several_layers_wants_one_named(tmp_path):
    path = tmp_path / "all.gpkg"
    crowns([square(0, 0)]).to_file(path, layer="crowns")
    crowns([square(0, 0, 50)]).to_file(path, layer="areas")
    with pytest.raises(InputError, match="has 2 layers") as caught:
        read_crowns(path, GRID)
    assert "crowns, areas" in caught.value.what_to_do
    assert read_crowns(path, GRID, layer="crowns").area[0] == pytest.approx(16)


def test_a_virtual_layer_is_not_followed(tmp_path):
    path = tmp_path / "crowns.gpkg"
    inner = "<OGRVRTLayer name='a'><SrcDataSource>/etc/x</SrcDataSource></OGRVRTLayer>"
    path.write_text(f"<OGRVRTDataSource>{inner}</OGRVRTDataSource>")
    with pytest.raises(InputError, match="virtual layer"):
        read_crowns(path, GRID)


@pytest.mark.real
def test_the_real_crown_lies_in_its_chip(real_data):
    from geoeco.sensors.orthomosaic import describe_orthomosaic

    chip = describe_orthomosaic(real_data("crowns/australia_uav/australia.tif"))
    found = read_crowns(real_data("crowns/australia_uav/australia.shp"), chip.geobox, class_column="Code")
    assert found["class_name"].tolist() == ["EUMIN"]
    assert found.area[0] == pytest.approx(40.2, abs=0.05)
    inside = found.geometry[0].intersection(box(*chip.geobox.boundingbox.bbox)).area
    assert inside == pytest.approx(found.area[0], rel=1e-9)


@pytest.mark.real
def test_real_footprints_cover_as_many_pixels_as_they_have_area(real_data):
    from rasterio.features import rasterize

    from geoeco.sensors.orthomosaic import describe_orthomosaic

    image = describe_orthomosaic(real_data("landcover/buildings_atlanta_50cm/sample_geotiff.tif"))
    found = read_crowns(real_data("landcover/buildings_atlanta_50cm/geotiff_labels.geojson"), image.geobox)
    assert len(found) == 43
    inside = found.intersection(box(*image.geobox.boundingbox.bbox)).area.sum() - found.attrs["overlap_m2"]
    burnt = rasterize(found.geometry, out_shape=image.shape, transform=image.geobox.transform)
    assert burnt.sum() * 0.25 == pytest.approx(inside, rel=0.002)


# --- areas -----------------------------------------------------------------------------------------------------------


def test_split_areas_are_words_and_ground_that_share_nothing(tmp_path):
    path = tmp_path / "areas.gpkg"
    parts = [box(500_000, 5_100_000, 500_050, 5_100_080), box(500_050, 5_100_000, 500_100, 5_100_080)]
    crowns(parts, split=["Train", "test "], name=["west", "east"]).to_crs("EPSG:4326").to_file(path)
    found = read_split_areas(path, GRID)
    assert found["split"].tolist() == ["train", "test"]
    assert found["name"].tolist() == ["west", "east"]
    assert found.crs.to_epsg() == 32652
    assert found.area.tolist() == pytest.approx([4000, 4000], rel=1e-3)


@pytest.mark.parametrize(
    ("shapes", "columns", "error", "message"),
    [
        ([square(0, 0)], {"part": ["train"]}, InputError, "no column 'split'"),
        ([square(0, 0)], {"split": ["training"]}, InputError, "'training' is no part"),
        ([square(0, 0), Polygon()], {"split": ["train", "val"]}, InputError, "an area is empty"),
        ([square(0, 0), square(3.99, 0)], {"split": ["train", "test"]}, InputError, "train and test overlap"),
        ([square(900, 0)], {"split": ["train"]}, GridError, "no outline overlaps"),
    ],
)
def test_areas_that_do_not_split_are_refused(shapes, columns, error, message):
    with pytest.raises(error, match=message):
        read_split_areas(crowns(shapes, **columns), GRID)


def test_areas_of_one_part_may_overlap_and_borders_may_be_digitised():
    shapes = [square(0, 0), square(1, 0), square(5 - 1e-9, 0)]
    assert len(read_split_areas(crowns(shapes, split=["train", "train", "val"]), GRID)) == 3


# --- boxes -----------------------------------------------------------------------------------------------------------

SIDES = ("xmin", "ymin", "xmax", "ymax")
VOC = """<annotation><size><width>{width}</width><height>800</height></size>{objects}</annotation>"""
OBJECT = "<object><name>{name}</name><bndbox>{sides}</bndbox></object>"


def voc(path, rows, width=1000):
    objects = []
    for name, *values in rows:
        sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, values, strict=True))
        objects.append(OBJECT.format(name=name, sides=sides))
    path.write_text(VOC.format(width=width, objects="".join(objects)))
    return path


def test_a_box_in_pixels_is_a_rectangle_on_the_map(tmp_path):
    rows = [("Tree", 0, 0, 1, 1), ("Oak", 10, 20, 30, 60), ("Tree", 5, 5, 5, 9)]
    found = read_boxes(voc(tmp_path / "a.xml", rows), GRID)
    assert found["crown_id"].tolist() == [1, 2]
    assert found["class_name"].tolist() == ["Tree", "Oak"]
    assert found.attrs == {"n_empty": 1}
    assert found.bounds.to_numpy()[0] == pytest.approx([500_000, 5_100_079.9, 500_000.1, 5_100_080])
    assert found.bounds.to_numpy()[1] == pytest.approx([500_001, 5_100_074, 500_003, 5_100_078])
    assert found.crs.to_epsg() == 32652


def test_boxes_of_a_table_are_those_of_one_image(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("image_path,xmin,ymin,xmax,ymax,label\na.tif,0,0,1,1,Tree\nplots/b.tif,10,20,30,60,Oak\n")
    with pytest.raises(InputError, match="boxes are of 2 images"):
        read_boxes(path, GRID)
    found = read_boxes(path, GRID, image="b.tif")
    assert found["class_name"].tolist() == ["Oak"]
    assert found.bounds.to_numpy()[0] == pytest.approx([500_001, 5_100_074, 500_003, 5_100_078])
    with pytest.raises(InputError, match="no boxes"):
        read_boxes(path, GRID, image="c.tif")


def test_boxes_of_a_raster_without_a_place_have_none(tmp_path):
    grid = GeoBox((800, 1000), Affine(1, 0, 0, 0, -1, 0), None)
    found = read_boxes(voc(tmp_path / "a.xml", [("Tree", 10, 20, 30, 60)]), grid)
    assert found.crs is None
    assert found.bounds.to_numpy()[0] == pytest.approx([10, -60, 30, -20])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("<annotation></annotation>", InputError, "no boxes"),
        ("not xml", InputError, "no XML"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]><annotation/>', InputError, "document type"),
        (VOC.format(width=999, objects=""), GridError, "999 x 800 pixels"),
        (VOC.format(width=1000, objects=OBJECT.format(name="a", sides="<xmin>1</xmin>")), InputError, "no number"),
    ],
)
def test_annotations_that_are_none_are_refused(tmp_path, content, error, message):
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_boxes(path, GRID)


def test_a_box_off_the_raster_is_refused(tmp_path):
    with pytest.raises(GridError, match="1 of 2 boxes lie off"):
        read_boxes(voc(tmp_path / "a.xml", [("Tree", 0, 0, 5, 5), ("Tree", 1000, 3, 1010, 9)]), GRID)


@pytest.mark.real
@pytest.mark.parametrize(("site", "count"), [("neon_harv", 226), ("neon_teak", 376)])
def test_real_boxes_go_to_the_map_and_back_without_loss(real_data, tmp_path, site, count):
    import xml.etree.ElementTree as ET

    from geoeco.sensors.orthomosaic import describe_orthomosaic

    seen = 0
    for number, path in enumerate(sorted(real_data(f"crowns/{site}").glob("*.xml"))):
        grid = describe_orthomosaic(path.with_suffix(".tif")).geobox
        boxes = read_boxes(path, grid)
        back = boxes
        if number == 0:
            boxes.to_file(tmp_path / "boxes.gpkg")
            back = read_crowns(tmp_path / "boxes.gpkg", grid)
        stated = [[float(node.findtext(side)) for side in SIDES] for node in ET.parse(path).iter("bndbox")]
        a, _, c, _, e, f = tuple(grid.transform)[:6]
        west, south, east, north = back.bounds.to_numpy().T
        pixels = np.stack([(west - c) / a, (north - f) / e, (east - c) / a, (south - f) / e], axis=1)
        # a millionth of a metre
        np.testing.assert_allclose(pixels * a, np.array(stated) * a, atol=1e-6)
        seen += len(back)
    assert seen == count
