"""Where scenes lie, also across the antimeridian."""

from __future__ import annotations

import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geom import Geometry, box
from shapely.geometry import box as shapely_box
from shapely.geometry import mapping

from geoeco.catalog import area_lonlat, centre_longitude, footprint
from geoeco.errors import GridError


def item_at(geometry=None, bbox=None):
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "x",
            "geometry": geometry,
            **({} if bbox is None else {"bbox": bbox}),
            "properties": {"datetime": "2021-06-15T10:30:00Z"},
            "links": [],
            "assets": {},
        }
    )


def ring(west, south, east, north):
    return {
        "type": "Polygon",
        "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
    }


CROSSING = {
    "jumps": {"geometry": ring(179, -17, -179.5, -16)},
    "beyond 180": {"geometry": ring(179, -17, 180.5, -16)},
    "below -180": {"geometry": ring(-181, -17, -179.5, -16)},
    "cut in two": {
        "geometry": {
            "type": "MultiPolygon",
            "coordinates": [ring(179, -17, 180, -16)["coordinates"], ring(-180, -17, -179.5, -16)["coordinates"]],
        }
    },
    "bbox only": {"bbox": [179, -17, -179.5, -16]},
    "bbox of six": {"bbox": [179, -17, 0, -179.5, -16, 100]},
}


@pytest.mark.parametrize("how", CROSSING)
def test_however_a_footprint_crosses_the_antimeridian_it_is_cut_in_two(how):
    outline = footprint(item_at(**CROSSING[how]))
    pieces = sorted(part.bounds for part in outline.geom.geoms)
    assert pieces == [(-180, -17, -179.5, -16), (179, -17, 180, -16)]
    assert outline.crs.epsg == 4326


@pytest.mark.parametrize("how", CROSSING)
def test_the_centre_of_a_crossing_footprint_is_near_the_antimeridian(how):
    assert centre_longitude(item_at(**CROSSING[how])) == pytest.approx(179.75)


def test_a_footprint_touching_the_antimeridian_stays_in_one_piece():
    for geometry in (ring(179, 0, 180, 1), ring(-180, 0, -179, 1)):
        assert footprint(item_at(geometry)).geom.geom_type == "Polygon"


def test_a_global_footprint_stays_global():
    assert footprint(item_at(ring(-180, -90, 180, 90))).geom.area == pytest.approx(360 * 180)
    assert centre_longitude(item_at(ring(-180, -90, 180, 90))) == pytest.approx(0)


def test_an_item_without_geometry_and_bbox_lies_nowhere():
    assert footprint(item_at()) is None
    assert centre_longitude(item_at()) is None


def test_a_self_crossing_footprint_is_repaired():
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
    assert footprint(item_at(bow)).geom.is_valid


@given(
    st.floats(-180, 179.99),
    st.floats(0.01, 20),
    st.floats(-80, 79),
    st.floats(0.01, 1),
    st.sampled_from([0, 360, -360]),
)
def test_centre_and_area_do_not_depend_on_how_longitudes_are_written(west, width, south, height, turn):
    wrapped = [(x + 180) % 360 - 180 for x in (west, west + width)]
    plain = footprint(item_at(ring(west + turn, south, west + width + turn, south + height)))
    jumping = footprint(item_at(ring(wrapped[0], south, wrapped[1], south + height)))
    assert plain.geom.area == pytest.approx(width * height, rel=1e-6)
    assert jumping.geom.area == pytest.approx(width * height, rel=1e-6)
    centre = centre_longitude(item_at(mapping(plain.geom)))
    away = (centre - (west + width / 2) + 180) % 360 - 180
    assert away == pytest.approx(0, abs=1e-6)
    left, _, right, _ = plain.geom.bounds
    assert -180 <= left < right <= 180


def test_a_projected_area_across_the_antimeridian_is_cut_not_stretched():
    area = area_lonlat(box(790_000, 8_120_000, 870_000, 8_180_000, "EPSG:32760"))
    assert area.area < 1
    assert area.bounds[0] == -180
    assert area.bounds[2] == 180


def test_an_area_must_have_a_crs_an_extent_and_fit_its_crs():
    with pytest.raises(GridError, match="no CRS"):
        area_lonlat(Geometry(mapping(shapely_box(0, 0, 1, 1)), None))
    with pytest.raises(GridError, match="empty"):
        area_lonlat(Geometry({"type": "Polygon", "coordinates": []}, "EPSG:4326"))
    with pytest.raises(GridError, match="does not lie within"):
        area_lonlat(box(1e9, 1e9, 1.1e9, 1.1e9, "EPSG:3035"))
