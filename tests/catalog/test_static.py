"""Static catalogues: found, filtered, sorted; broken ones refused in words."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geom import Geometry, box

from geoeco.catalog import ApiCatalog, StaticCatalog, open_catalog
from geoeco.errors import CatalogError, GeoecoError, GridError, InputError
from geoeco.sensors import sentinel2

from .conftest import make_item


def ids(items):
    return [item.id for item in items]


def test_items_come_sorted_by_time_and_id_whatever_the_order_of_links(item, catalog_on_disk):
    path = catalog_on_disk([item("c", "2021-07-01"), item("b", "2021-06-01"), item("a", "2021-07-01")])
    assert ids(open_catalog(path).search()) == ["b", "a", "c"]


@pytest.mark.parametrize("spell", [str, lambda p: p, lambda p: p.as_uri()], ids=["text", "path", "file-url"])
def test_a_catalogue_opens_by_path_text_or_file_url(item, catalog_on_disk, spell):
    catalog = open_catalog(spell(catalog_on_disk([item("a")])))
    assert isinstance(catalog, StaticCatalog)
    assert ids(catalog.search()) == ["a"]


def test_a_relative_path_is_taken_from_the_working_folder(item, catalog_on_disk, monkeypatch):
    path = catalog_on_disk([item("a")])
    monkeypatch.chdir(path.parent)
    found = open_catalog("catalog.json").search()
    assert found[0].assets["blue"].href == str(path.parent / "sentinel-2-l2a" / "a" / "B02.tif")


def test_relative_asset_links_become_absolute_below_the_item(item, catalog_on_disk):
    path = catalog_on_disk([item("a", assets={"red": {"href": "../shared/B04.tif", "type": "image/tiff"}})])
    (found,) = open_catalog(path).search()
    assert found.assets["red"].href == str(path.parent / "sentinel-2-l2a" / "shared" / "B04.tif")


def test_a_found_item_survives_json_and_keeps_only_its_own_link(item, catalog_on_disk):
    (found,) = open_catalog(catalog_on_disk([item("a")])).search()
    record = json.loads(json.dumps(found.to_dict()))
    assert [link["rel"] for link in record["links"]] == ["self"]
    assert record["collection"] == "sentinel-2-l2a"


def test_the_period_includes_both_of_its_days(item, catalog_on_disk):
    days = ["2021-05-31", "2021-06-01", "2021-06-30", "2021-07-01"]
    catalog = open_catalog(catalog_on_disk([item(f"i{day}", day) for day in days]))
    assert ids(catalog.search(period=("2021-06-01", "2021-06-30"))) == ["i2021-06-01", "i2021-06-30"]
    assert ids(catalog.search(period="2021-06")) == ["i2021-06-01", "i2021-06-30"]
    assert ids(catalog.search(period=(None, "2021-05"))) == ["i2021-05-31"]
    assert len(catalog.search(period=("2021", "2021"))) == 4
    assert catalog.search(period=("2022-01-01", None)) == []


def test_a_period_that_ends_before_it_starts_is_refused(item, catalog_on_disk):
    with pytest.raises(InputError, match="ends before it starts"):
        open_catalog(catalog_on_disk([item("a")])).search(period=("2021-07-01", "2021-06-01"))


def test_items_that_last_match_where_they_overlap_the_period(item, catalog_on_disk):
    lasting = item("mosaic")
    lasting["properties"] |= {
        "datetime": None,
        "start_datetime": "2021-06-01T00:00:00Z",
        "end_datetime": "2021-08-31T00:00:00Z",
    }
    catalog = open_catalog(catalog_on_disk([lasting]))
    assert ids(catalog.search(period="2021-07")) == ["mosaic"]
    assert catalog.search(period="2021-09") == []


def test_cloudy_items_and_items_of_unknown_cloud_are_left_out(item, catalog_on_disk):
    catalog = open_catalog(
        catalog_on_disk([item("clear", cloud=20), item("cloudy", cloud=20.1), item("?", cloud=None)])
    )
    assert ids(catalog.search(max_cloud_cover=20)) == ["clear"]
    assert len(catalog.search()) == 3
    with pytest.raises(InputError, match="percentage"):
        catalog.search(max_cloud_cover=120)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"s2:mgrs_tile": "31UGS"}, ["a"]),
        ({"s2:mgrs_tile": {"in": ["31UGS", "32UKB"]}}, ["a", "b"]),
        ({"s2:mgrs_tile": {"neq": "31UGS"}}, ["b", "c"]),
        ({"view:sun_elevation": {"gte": 20, "lt": 40}}, ["a"]),
        ({"view:sun_elevation": {"gt": "x"}}, []),
        ({"s2:mgrs_tile": {"startsWith": "3"}, "view:sun_elevation": {"lte": 15}}, ["b"]),
        ({"id": {"in": ["c"]}}, ["c"]),
    ],
)
def test_property_queries_select_items(item, catalog_on_disk, query, expected):
    items = [
        item("a", **{"s2:mgrs_tile": "31UGS", "view:sun_elevation": 30}),
        item("b", **{"s2:mgrs_tile": "32UKB", "view:sun_elevation": 15}),
        item("c"),
    ]
    assert ids(open_catalog(catalog_on_disk(items)).search(query=query)) == expected


def test_an_unknown_operator_is_refused_with_those_there_are(item, catalog_on_disk):
    with pytest.raises(InputError, match=r"(?s)'like'.*startsWith"):
        open_catalog(catalog_on_disk([item("a")])).search(query={"id": {"like": "a%"}})


def test_area_by_bbox_geometry_and_utm_agree(item, catalog_on_disk):
    catalog = open_catalog(catalog_on_disk([item("in", bbox=(5, 50, 6, 51)), item("out", bbox=(9, 50, 10, 51))]))
    assert ids(catalog.search(bbox=(5.5, 50.5, 5.6, 50.6))) == ["in"]
    area = box(5.5, 50.5, 5.6, 50.6, "EPSG:4326")
    assert ids(catalog.search(geometry=area)) == ["in"]
    assert ids(catalog.search(geometry=area.to_crs("EPSG:32631"))) == ["in"]
    with pytest.raises(InputError, match="not both"):
        catalog.search(bbox=(5, 50, 6, 51), geometry=area)
    with pytest.raises(InputError, match="four values"):
        catalog.search(bbox=(5, 50, 6))
    with pytest.raises(GridError, match="no CRS"):
        catalog.search(geometry=Geometry({"type": "Point", "coordinates": [5, 50]}, None))


def test_an_area_across_the_antimeridian_finds_items_on_both_sides(item, catalog_on_disk):
    crossing = item("crossing", bbox=(179.5, -17, 180, -16))
    crossing["geometry"]["coordinates"] = [[[179.5, -17], [-179.5, -17], [-179.5, -16], [179.5, -16], [179.5, -17]]]
    crossing["bbox"] = [179.5, -17, -179.5, -16]
    items = [
        item("west", bbox=(178, -17, 179, -16)),
        item("east", bbox=(-179, -17, -178, -16)),
        item("far", bbox=(0, -17, 1, -16)),
        crossing,
    ]
    catalog = open_catalog(catalog_on_disk(items))
    assert ids(catalog.search(bbox=(178.5, -17, -178.5, -16))) == ["crossing", "east", "west"]
    assert ids(catalog.search(bbox=(-179.8, -17, -179.7, -16))) == ["crossing"]
    assert ids(catalog.search(bbox=(-10, -17, 10, -16))) == ["far"]
    utm = box(790_000, 8_120_000, 870_000, 8_180_000, "EPSG:32760")  # runs over 180 degrees
    assert "crossing" in ids(catalog.search(geometry=utm))
    assert "far" not in ids(catalog.search(geometry=utm))


def test_items_without_a_place_match_only_searches_without_an_area(item, catalog_on_disk):
    boxed = item("boxed")
    boxed["geometry"] = None
    catalog = open_catalog(catalog_on_disk([item("nowhere", bbox=None), boxed]))
    assert ids(catalog.search()) == ["boxed", "nowhere"]
    assert ids(catalog.search(bbox=(5, 50, 6, 51))) == ["boxed"]


def test_an_item_without_a_time_is_named_in_the_error(item, catalog_on_disk):
    timeless = item("timeless")
    timeless["properties"]["datetime"] = None
    with pytest.raises(CatalogError, match=r"(?s)no datetime.*timeless"):
        open_catalog(catalog_on_disk([timeless])).search()
    timeless["properties"]["datetime"] = "yesterday"
    with pytest.raises(CatalogError, match=r"(?s)yesterday.*timeless"):
        open_catalog(catalog_on_disk([timeless])).search()


@pytest.mark.parametrize("geometry", [{"type": "Polygon"}, {"type": "Blob", "coordinates": []}, "POLYGON ((0 0))"])
def test_an_unreadable_geometry_is_named_in_the_error(item, catalog_on_disk, geometry):
    broken = item("broken")
    broken["geometry"] = geometry
    with pytest.raises(CatalogError, match=r"(?s)geometry.*broken"):
        open_catalog(catalog_on_disk([broken])).search(bbox=(5, 50, 6, 51))


@pytest.mark.parametrize(
    "spoil", [lambda r: r.pop("id"), lambda r: r.update(assets=[1]), lambda r: r.update(assets={"blue": {}})]
)
def test_an_item_that_is_no_item_is_an_error_not_a_crash(item, catalog_on_disk, spoil):
    record = item("odd")
    path = catalog_on_disk([record])
    spoil(record)
    (path.parent / "sentinel-2-l2a" / "odd" / "odd.json").write_text(json.dumps(record))
    with pytest.raises(CatalogError, match="an item cannot be read"):
        open_catalog(path).search()


def test_missing_files_are_named(item, catalog_on_disk, tmp_path):
    with pytest.raises(CatalogError, match=r"(?s)no such file.*nowhere\.json") as caught:
        open_catalog(tmp_path / "nowhere.json")
    assert caught.value.code == "catalog-missing"
    path = catalog_on_disk([item("a")])
    (path.parent / "sentinel-2-l2a" / "a" / "a.json").unlink()
    with pytest.raises(CatalogError, match=r"(?s)no such file.*a\.json"):
        open_catalog(path).search()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", '"text"', '{"type": "Topology"}', "\x89PNG\r\n", "[" * 100_000],
    ids=["empty", "cut", "list", "string", "other-type", "binary", "nested"],
)
def test_what_is_no_catalogue_is_refused_in_words(tmp_path, text):
    path = tmp_path / "catalog.json"
    path.write_text(text)
    with pytest.raises(CatalogError) as caught:
        open_catalog(path)
    assert caught.value.where == str(path)


def test_text_that_is_not_utf8_is_refused_in_words(tmp_path):
    path = tmp_path / "catalog.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(CatalogError, match="not JSON"):
        open_catalog(path)


def test_a_folder_is_refused_in_words(tmp_path):
    with pytest.raises(CatalogError, match="no such file"):
        open_catalog(tmp_path)


def test_an_empty_catalogue_gives_no_items_and_says_so(tmp_path):
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "", "links": []}))
    catalog = open_catalog(path)
    assert catalog.search() == []
    assert "no collections and no items" in catalog.describe()


def test_links_that_run_in_circles_end(item, catalog_on_disk):
    path = catalog_on_disk([item("a"), item("b")])
    collection = path.parent / "sentinel-2-l2a" / "collection.json"
    record = json.loads(collection.read_text())
    record["links"] += [
        {"rel": "child", "href": "../catalog.json"},
        {"rel": "child", "href": "./collection.json"},
        {"rel": "item", "href": "./a/../a/a.json"},
    ]
    collection.write_text(json.dumps(record))
    assert ids(open_catalog(path).search()) == ["a", "b"]


def test_a_repeated_item_is_taken_once_with_a_warning(item, tmp_path):
    path = tmp_path / "items.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [item("a"), item("a"), item("b")]}))
    with pytest.warns(UserWarning, match="1 items"):
        assert ids(open_catalog(path).search()) == ["a", "b"]


def test_item_collections_single_items_and_collections_open(item, catalog_on_disk, tmp_path):
    path = catalog_on_disk([item("a"), item("b")])
    assert ids(open_catalog(path.parent / "sentinel-2-l2a" / "collection.json").search()) == ["a", "b"]
    assert ids(open_catalog(path.parent / "sentinel-2-l2a" / "a" / "a.json").search()) == ["a"]
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"type": "FeatureCollection", "features": [item("c")]}))
    assert ids(open_catalog(saved).search()) == ["c"]
    saved.write_text(json.dumps({"type": "FeatureCollection", "features": None}))
    with pytest.raises(CatalogError, match="features"):
        open_catalog(saved).search()


def test_searching_twice_gives_the_same_items_and_leaves_the_catalogue_as_it_was(item, tmp_path):
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"type": "FeatureCollection", "features": [item("c")]}))
    catalog = open_catalog(saved)
    first = catalog.search()
    first[0].assets.clear()
    first[0].properties["datetime"] = "gone"
    assert [i.to_dict() for i in catalog.search()] == [i.to_dict() for i in open_catalog(saved).search()]


def test_an_unknown_collection_is_named_with_those_there_are(item, catalog_on_disk):
    catalog = open_catalog(catalog_on_disk([item("a")]))
    assert ids(catalog.search(collections="sentinel-2-l2a")) == ["a"]
    with pytest.raises(CatalogError, match=r"(?s)'sentinel-2-l1c'.*sentinel-2-l2a"):
        catalog.search(collections=["sentinel-2-l1c"])
    assert catalog.search(collections=["sentinel-2-l2a"], period="1999") == []


def test_documents_of_unwanted_collections_are_not_read(item, catalog_on_disk):
    path = catalog_on_disk([item("a", collection="other")], collection="other")
    catalog = json.loads(path.read_text())
    wanted = item("w", collection="wanted")
    (path.parent / "w.json").write_text(json.dumps(wanted))
    catalog["links"].append({"rel": "item", "href": "./w.json"})
    path.write_text(json.dumps(catalog))
    (path.parent / "other" / "a" / "a.json").write_text("not JSON at all")
    assert ids(open_catalog(path).search(collections="wanted")) == ["w"]


def test_a_limit_stops_reading(item, catalog_on_disk):
    path = catalog_on_disk([item(f"i{n}") for n in range(5)])
    (path.parent / "sentinel-2-l2a" / "i4" / "i4.json").write_text("not JSON at all")
    assert len(open_catalog(path).search(limit=3)) == 3
    with pytest.raises(InputError, match="limit"):
        open_catalog(path).search(limit=0)


def test_describe_says_which_collections_days_and_places_there_are(item, catalog_on_disk):
    items = [item("a", "2020-03-01", bbox=(5, 50, 6, 51)), item("b", "2021-09-30", bbox=(7, 52, 8, 53))]
    catalog = open_catalog(catalog_on_disk(items))
    assert re.search(r"sentinel-2-l2a: 2020-03-01 to 2021-09-30, bbox 5 50 8 53, 2 items", catalog.describe())
    (extent,) = catalog.collections()
    assert (extent.id, extent.items, extent.bbox) == ("sentinel-2-l2a", 2, (5, 50, 8, 53))


def test_catalogues_older_than_the_type_member_are_read(item, catalog_on_disk):
    path = catalog_on_disk([item("a")])
    for file in (path, path.parent / "sentinel-2-l2a" / "collection.json"):
        record = json.loads(file.read_text())
        del record["type"]
        record["stac_version"] = "1.0.0-beta.2"
        file.write_text(json.dumps(record))
    assert ids(open_catalog(path).search()) == ["a"]
    assert not isinstance(open_catalog(path), ApiCatalog)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "x", "2021-06-15T10:30:00Z", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["href", "type", "a"]), inner),
    max_leaves=4,
)
PLACES = [
    ("type",), ("id",), ("geometry",), ("geometry", "type"), ("geometry", "coordinates"), ("bbox",), ("properties",),
    ("properties", "datetime"), ("properties", "eo:cloud_cover"), ("properties", "s2:processing_baseline"),
    ("properties", "earthsearch:boa_offset_applied"), ("collection",), ("links",), ("stac_version",),
    ("stac_extensions",), ("assets",), ("assets", "blue"), ("assets", "blue", "href"), ("assets", "blue", "type"),
    ("assets", "blue", "roles"), ("assets", "blue", "eo:bands"), ("assets", "blue", "raster:bands"),
    ("assets", "blue", "gsd"), ("assets", "blue", "proj:transform"),
]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), ODD)
def test_whatever_stands_in_an_item_it_is_read_or_refused_in_words(tmp_path, place, odd):
    record = make_item("a", assets={"blue": {"href": "./B02.tif", "type": "image/tiff", "gsd": 10}})
    holder = record
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = odd
    path = tmp_path / "items.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [record]}))
    try:
        catalog = open_catalog(path)
        catalog.describe()
        for found in catalog.search(bbox=(5, 50, 6, 51), period="2021", max_cloud_cover=50) + catalog.search():
            sentinel2.radiometry(found)
            sentinel2.radiometry(found, "B02")
            sentinel2.solar_day(found)
            json.dumps(found.to_dict())
    except GeoecoError:
        pass
