"""Where assets and links may point."""

from __future__ import annotations

import json
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoeco.catalog import PUBLIC_ARCHIVES, open_catalog
from geoeco.catalog.hrefs import HrefPolicy
from geoeco.errors import CatalogError

ESCAPES = [
    "../../../../etc/passwd",
    "../../../outside.tif",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://server/share/B02.tif",
    "/vsizip/archive.zip/B02.tif",
    "/vsicurl/https://example.org/B02.tif",
    "/vsigzip//etc/passwd",
    "vrt:///etc/passwd",
    "vrt://B02.tif?bands=1",
    "GTIFF_RAW:/etc/passwd",
    "GTIFF_DIR:1:B02.tif",
    "NETCDF:/etc/passwd:x",
    "zip://x.zip!B02.tif",
    "ftp://example.org/B02.tif",
    "javascript:alert(1)",
    "./B02.vrt",
    "./B02.VRT",
    "https://example.org/B02.tif",
    "http://169.254.169.254/latest/meta-data",
    "s3://somebody/B02.tif",
    "https://sentinel-cogs.s3.us-west-2.amazonaws.com.evil.org/B02.tif",
    "https://sentinel-cogs.s3.us-west-2.amazonaws.com@evil.org/B02.tif",
    "https://user@sentinel-cogs.s3.us-west-2.amazonaws.com/B02.tif",
    "https://evil.org\\@sentinel-cogs.s3.us-west-2.amazonaws.com/B02.tif",
    "s3://sentinel-cogs-evil/B02.tif",
    "<VRTDataset></VRTDataset>",
    "B02.tif\nX",
    "B02\x00.tif",
    "",
]


@pytest.mark.parametrize("href", ESCAPES)
def test_assets_that_leave_the_catalogue_are_refused_by_item_and_asset(item, catalog_on_disk, href):
    path = catalog_on_disk([item("S2X", assets={"blue": {"href": href, "type": "image/tiff"}})])
    with pytest.raises(CatalogError, match=r"(?s)refused to follow.*asset blue of item S2X") as caught:
        open_catalog(path).search()
    assert caught.value.code == "catalog-href"
    assert "allow" in caught.value.what_to_do


@pytest.mark.parametrize("href", [h for h in ESCAPES if h])
def test_links_that_leave_the_catalogue_are_refused(item, catalog_on_disk, href):
    path = catalog_on_disk([item("a")])
    record = json.loads(path.read_text())
    record["links"].append({"rel": "child", "href": href})
    path.write_text(json.dumps(record))
    with pytest.raises(CatalogError, match=r"(?s)refused to follow.*child link in"):
        open_catalog(path).search()


def test_a_symbolic_link_out_of_the_catalogue_is_refused(item, catalog_on_disk, tmp_path):
    path = catalog_on_disk([item("a"), item("b", assets={"red": {"href": "../data/B04.tif", "type": "image/tiff"}})])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "B02.tif").touch()
    folder = path.parent / "sentinel-2-l2a"
    (folder / "a" / "B02.tif").symlink_to(outside / "B02.tif")
    with pytest.raises(CatalogError, match=r"(?s)outside.*asset blue of item a"):
        open_catalog(path).search()
    (folder / "a" / "B02.tif").unlink()
    (folder / "data").symlink_to(outside)
    with pytest.raises(CatalogError, match=r"(?s)outside.*asset red of item b"):
        open_catalog(path).search()
    assert len(open_catalog(path, allow=[str(outside)]).search()) == 2


def test_a_catalogue_reached_through_a_symbolic_link_works(item, catalog_on_disk, tmp_path):
    path = catalog_on_disk([item("a")])
    (tmp_path / "alias").symlink_to(path.parent)
    assert len(open_catalog(tmp_path / "alias" / "catalog.json").search()) == 1


@pytest.mark.parametrize(
    ("href", "allow"),
    [
        ("https://example.org/data/B02.tif", "https://example.org/data"),
        ("https://example.org/data/B02.tif?token=1", "https://example.org/data/"),
        ("https://EXAMPLE.org/B02.tif", "https://example.org"),
        ("s3://mine/x/B02.tif", "s3://mine/"),
        ("https://account.blob.core.windows.net/c/B02.tif", "https://.blob.core.windows.net/"),
    ],
)
def test_allowed_prefixes_let_assets_through(item, catalog_on_disk, href, allow):
    path = catalog_on_disk([item("a", assets={"blue": {"href": href, "type": "image/tiff"}})])
    (found,) = open_catalog(path, allow=[allow]).search()
    assert found.assets["blue"].href == href


@pytest.mark.parametrize(
    ("href", "allow"),
    [
        ("https://example.org/database/B02.tif", "https://example.org/data"),
        ("https://example.org/data/../secret/B02.tif", "https://example.org/data/"),
        ("https://example.org/data/%2e%2e/secret/B02.tif", "https://example.org/data/"),
        ("http://example.org/data/B02.tif", "https://example.org/data/"),
        ("https://example.org:8443/data/B02.tif", "https://example.org/data/"),
        ("/vsizip/x.zip", "/"),
        ("/srv/data.vrt", "/srv"),
        ("/srv/database/B02.tif", "/srv/data"),
    ],
)
def test_allowing_one_place_allows_no_other(item, catalog_on_disk, href, allow):
    path = catalog_on_disk([item("a", assets={"blue": {"href": href, "type": "image/tiff"}})])
    with pytest.raises(CatalogError, match="refused"):
        open_catalog(path, allow=[allow]).search()


@pytest.mark.parametrize("prefix", PUBLIC_ARCHIVES)
def test_public_archives_need_no_permission(item, catalog_on_disk, prefix):
    path = catalog_on_disk([item("a", assets={"blue": {"href": f"{prefix}x/B02.tif", "type": "image/tiff"}})])
    assert open_catalog(path).search()[0].assets["blue"].href == f"{prefix}x/B02.tif"


def test_previews_elsewhere_do_not_stop_a_search_but_go(item, catalog_on_disk):
    assets = {
        "blue": {"href": "./B02.tif", "type": "image/tiff"},
        "thumbnail": {"href": "https://example.org/preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
        "metadata": {"href": "file:///etc/passwd", "type": "application/xml"},
    }
    (found,) = open_catalog(catalog_on_disk([item("a", assets=assets)])).search()
    assert list(found.assets) == ["blue"]


@pytest.mark.parametrize("href", ["/vsicurl/https://example.org/c.json", "vrt://x", "ftp://x/c.json", "", "\x00"])
def test_a_catalogue_itself_is_opened_only_by_plain_addresses(href):
    with pytest.raises(CatalogError, match="cannot be opened"):
        open_catalog(href)


@given(st.lists(st.sampled_from(["..", ".", "a", "b.tif", "", "%2e%2e", "...", "~"]), max_size=12), st.booleans())
def test_no_spelling_of_a_relative_path_leaves_the_root(parts, leading):
    policy = HrefPolicy("/data/catalogue/catalog.json")
    href = ("/" if leading else "") + "/".join(parts)
    try:
        target = policy.check(href, "/data/catalogue/items/a.json")
    except ValueError:
        return
    assert os.path.realpath(target).startswith("/data/catalogue")


@given(st.text(alphabet=string.printable, max_size=40))
def test_whatever_text_stands_in_an_href_it_stays_in_the_root_or_is_refused(text):
    policy = HrefPolicy("/data/catalogue/catalog.json")
    try:
        target = policy.check(text, "/data/catalogue/items/a.json")
    except ValueError:
        return
    assert target.startswith(("/data/catalogue", *PUBLIC_ARCHIVES))
