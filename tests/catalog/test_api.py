"""STAC APIs and remote files, against a server on this machine."""

from __future__ import annotations

import json
import pickle

import pytest

from geoeco.catalog import ApiCatalog, StaticCatalog, catalogs, open_catalog
from geoeco.errors import CatalogError, TransientError


def remote(item, name, day="2021-06-15", **options):
    options.setdefault("assets", {"blue": {"href": f"https://data.example.org/{name}/B02.tif", "type": "image/tiff"}})
    return item(name, day, **options)


@pytest.fixture
def five(server, item):
    server.items = [remote(item, f"i{n}", f"2021-06-0{9 - n}", cloud=10.0 * n) for n in range(5)]
    return server


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_all_pages_of_a_search_are_read(five, method):
    five.method = method
    catalog = open_catalog(five.url)
    assert isinstance(catalog, ApiCatalog)
    assert [i.id for i in catalog.search()] == ["i4", "i3", "i2", "i1", "i0"]
    assert [command for command, path, *_ in five.requests if path == "/search"] == [method] * 3


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_area_and_period_are_asked_of_the_server(five, item, method):
    five.method = method
    five.items.append(remote(item, "far", "2021-06-07", bbox=(50, 0, 51, 1)))
    found = open_catalog(five.url).search(bbox=(5.2, 50.2, 5.3, 50.3), period=("2021-06-06", "2021-06-08"))
    assert [i.id for i in found] == ["i3", "i2", "i1"]
    asked = next(a for _, path, a, _ in five.requests if path == "/search")
    assert asked["intersects"]["type"] == "Polygon"
    assert asked["datetime"].startswith("2021-06-06T00:00:00Z/2021-06-08T23:59:59")


def test_an_area_across_the_antimeridian_is_asked_for_in_two_pieces(server, item):
    server.items = [
        remote(item, "west", bbox=(178, -17, 179, -16)),
        remote(item, "east", bbox=(-179, -17, -178, -16)),
        remote(item, "far", bbox=(0, -17, 1, -16)),
    ]
    assert [i.id for i in open_catalog(server.url).search(bbox=(178.5, -17, -178.5, -16))] == ["east", "west"]
    asked = next(a for _, path, a, _ in server.requests if path == "/search")
    assert asked["intersects"]["type"] == "MultiPolygon"


@pytest.mark.parametrize("supports_query", [True, False])
def test_cloud_cover_is_filtered_whether_or_not_the_server_can(five, supports_query):
    if supports_query:
        five.conformance.append("https://api.stacspec.org/v1.0.0/item-search#query")
    assert [i.id for i in open_catalog(five.url).search(max_cloud_cover=15)] == ["i1", "i0"]
    asked = next(a for _, path, a, _ in five.requests if path == "/search")
    assert ("query" in asked) is supports_query


def test_static_files_and_an_api_with_the_same_items_give_the_same_answer(five, tmp_path):
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"type": "FeatureCollection", "features": five.items}))
    search = {"period": ("2021-06-06", None), "max_cloud_cover": 25, "bbox": (5, 50, 6, 51)}
    from_api = open_catalog(five.url).search(**search)
    from_file = open_catalog(saved, allow=["https://data.example.org/"]).search(**search)
    drop_links = [{**i.to_dict(), "links": []} for i in from_api]
    assert drop_links == [{**i.to_dict(), "links": []} for i in from_file]
    assert len(drop_links) == 3


def test_a_limit_stops_paging(five):
    assert len(open_catalog(five.url).search(limit=2)) == 2
    assert sum(path == "/search" for _, path, _, _ in five.requests) == 1


def test_paging_that_runs_in_circles_is_an_error(five, monkeypatch):
    monkeypatch.setattr(catalogs, "_LOOP", 10)
    five.endless = True
    with pytest.raises(CatalogError, match="again and again"):
        open_catalog(five.url).search()


def test_an_api_describes_its_collections(five, item):
    five.items.append(remote(item, "x", collection="landsat"))
    catalog = open_catalog(five.url)
    assert [extent.id for extent in catalog.collections()] == ["landsat", "sentinel-2-l2a"]
    assert "sentinel-2-l2a: 2015-06-27 to .." in catalog.describe()
    assert catalog.title == "A local API"


def test_an_unknown_collection_of_an_api_is_named_with_those_there_are(five):
    with pytest.raises(CatalogError, match=r"(?s)'sentinel2'.*sentinel-2-l2a"):
        open_catalog(five.url).search(collections=["sentinel2"])


def test_headers_go_to_the_catalogue(five):
    open_catalog(five.url, headers={"Authorization": "Bearer secret"}).search()
    assert all(headers.get("Authorization") == "Bearer secret" for *_, headers in five.requests)


def test_headers_do_not_go_to_other_hosts(server, item, catalog_on_disk):
    path = catalog_on_disk([item("a")])
    server.folder = path.parent
    other = server.url.replace("127.0.0.1", "localhost")
    record = json.loads(path.read_text())
    record["links"] = [{"rel": "child", "href": f"{other}/static/sentinel-2-l2a/collection.json"}]
    path.write_text(json.dumps(record))
    catalog = open_catalog(f"{server.url}/static/catalog.json", headers={"Authorization": "x"}, allow=[other])
    assert len(catalog.search()) == 1
    told = {path: "Authorization" in headers for _, path, _, headers in server.requests}
    assert told["/static/catalog.json"]
    assert not told["/static/sentinel-2-l2a/collection.json"]
    assert not told["/static/sentinel-2-l2a/a/a.json"]


@pytest.mark.parametrize("href", ["file:///etc/passwd", "/etc/passwd.tif", "/vsicurl/http://x/y.tif", "vrt://x.tif"])
def test_an_api_cannot_name_files_of_this_machine(server, item, href):
    server.items = [item("evil", assets={"blue": {"href": href, "type": "image/tiff"}})]
    catalog = open_catalog(server.url)
    if href == "/etc/passwd.tif":  # a path on the server's own host
        assert catalog.search()[0].assets["blue"].href == f"{server.url}/etc/passwd.tif"
        return
    with pytest.raises(CatalogError, match=r"(?s)refused.*asset blue of item evil"):
        catalog.search()


def test_a_static_catalogue_over_http_opens_and_keeps_to_its_host(server, item, catalog_on_disk):
    path = catalog_on_disk([item("a")])
    server.folder = path.parent
    catalog = open_catalog(f"{server.url}/static/catalog.json")
    assert isinstance(catalog, StaticCatalog)
    (found,) = catalog.search()
    assert found.assets["blue"].href == f"{server.url}/static/sentinel-2-l2a/a/B02.tif"

    for href, why in [
        ("https://elsewhere.example.org/B02.tif", "another host"),
        ("file:///etc/passwd", "a file of this machine"),
        ("http://127.0.0.1.example.org/B02.tif", "another host"),
        (f"//elsewhere.example.org:{server.url.rpartition(':')[2]}/B02.tif", "another host"),
    ]:
        catalog_on_disk([item("a", assets={"blue": {"href": href, "type": "image/tiff"}})])
        with pytest.raises(CatalogError, match=f"(?s){why}.*asset blue of item a"):
            open_catalog(f"{server.url}/static/catalog.json").search()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408, 403])
def test_faults_that_may_pass_are_transient(five, status):
    catalog = open_catalog(five.url)
    five.spoil = lambda path: status
    with pytest.raises(TransientError, match=str(status)) as caught:
        catalog.search()
    assert caught.value.code == f"http-{status}"
    assert pickle.loads(pickle.dumps(caught.value)).code == f"http-{status}"
    with pytest.raises(TransientError):
        open_catalog(five.url)


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_faults_that_will_not_pass_are_final(five, status):
    catalog = open_catalog(five.url)
    five.spoil = lambda path: status
    with pytest.raises(CatalogError, match=str(status)):
        catalog.search()
    with pytest.raises(CatalogError, match=str(status)):
        open_catalog(five.url)


def test_a_fault_on_a_later_page_does_not_give_half_an_answer(five):
    seen = []
    five.spoil = lambda path: 503 if path == "/search" and (seen.append(path) or len(seen) > 1) else None
    with pytest.raises(TransientError, match="503"):
        open_catalog(five.url).search()


def test_a_server_that_does_not_answer_is_transient(five, monkeypatch):
    monkeypatch.setattr(catalogs, "TIMEOUT", 0.05)
    five.hanging = {"/search"}
    with pytest.raises(TransientError, match="no answer"):
        open_catalog(five.url).search()


def test_a_server_that_is_not_there_is_transient(server):
    url = server.url
    server.close()
    with pytest.raises(TransientError, match="no answer"):
        open_catalog(url)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b'{"type": "Catalog"', b"\xff\xfe", b"[]"])
def test_a_page_that_is_no_catalogue_is_refused_in_words(server, body):
    server.answer = lambda *_: body
    with pytest.raises(CatalogError):
        open_catalog(server.url)
