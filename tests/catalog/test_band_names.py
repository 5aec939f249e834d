"""One name for a band, whatever catalogue it comes from."""

from __future__ import annotations

import json
import string

import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoeco.catalog import BAND_ALIASES, NATIVE_RESOLUTION, asset_for, band_name, bands_of, open_catalog
from geoeco.errors import CatalogError
from geoeco.sensors import sentinel2

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
TIFF = "image/tiff; application=geotiff"
REFLECTANCE = [band for band in BAND_ALIASES if band.startswith("B") and band != "B10"]
LAYERS = [*REFLECTANCE, "SCL", "AOT", "WVP"]


def item_with(assets):
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "x",
            "geometry": None,
            "properties": {"datetime": "2021-06-15T10:30:00Z"},
            "links": [],
            "assets": assets,
        }
    )


def cdse_item():
    """Assets as the Copernicus Data Space names them: every layer at its own and all coarser pixel sizes."""
    assets = {
        "Product": {"href": "https://download.dataspace.copernicus.eu/x.zip", "type": "application/zip"},
        "thumbnail": {"href": "https://x/ql.jpg", "type": "image/jpeg"},
        "TCI_10m": {"href": "s3://eodata/TCI_10m.jp2", "type": "image/jp2"},
    }
    for band in LAYERS:
        for metres in (60, 20, 10):
            if metres >= NATIVE_RESOLUTION[band]:
                assets[f"{band}_{metres}m"] = {
                    "href": f"s3://eodata/{band}_{metres}m.jp2",
                    "type": "image/jp2",
                    "roles": ["data"],
                    "bands": [{"name": band, "eo:common_name": sentinel2.BANDS[band].common_name}]
                    if band in sentinel2.BANDS
                    else [{"name": band}],
                    "gsd": metres,
                }
    return item_with(assets)


def test_the_copernicus_data_space_gives_each_layer_at_its_native_pixel_size():
    item = cdse_item()
    assert bands_of(item) == tuple(LAYERS)
    for band in LAYERS:
        assert asset_for(item, band).href == f"s3://eodata/{band}_{NATIVE_RESOLUTION[band]}m.jp2"


def test_without_the_native_pixel_size_the_finest_is_taken():
    item = cdse_item()
    del item.assets["B02_10m"]
    assert asset_for(item, "B02").href.endswith("B02_20m.jp2")


def test_geotiff_goes_before_the_jpeg_2000_it_was_made_from():
    pair = {
        "blue-jp2": {"href": "s3://sentinel-s2-l2a/B02.jp2", "type": "image/jp2", "gsd": 10},
        "blue": {"href": "https://h/B02.tif", "type": COG, "gsd": 10},
    }
    assert asset_for(item_with(pair), "B02").href.endswith(".tif")
    del pair["blue"]
    assert asset_for(item_with(pair), "B02").href.endswith(".jp2")


def test_bands_are_found_by_their_declared_names_under_any_key():
    names = {"name": "rededge2", "common_name": "rededge"}
    one = item_with({"band_6": {"href": "https://h/x.tif", "type": TIFF, "eo:bands": [names]}})
    assert bands_of(one) == ("B06",)
    new = item_with({"image": {"href": "https://h/x.tif", "type": TIFF, "bands": [{"eo:common_name": "swir16"}]}})
    assert bands_of(new) == ("B11",)


def test_a_common_name_shared_by_three_bands_names_none():
    shared = item_with({"x": {"href": "https://h/x.tif", "type": TIFF, "eo:bands": [{"common_name": "rededge"}]}})
    assert bands_of(shared) == ()


def test_the_key_weighs_more_than_a_common_name_that_contradicts_it():
    # Planetary Computer calls B8A "rededge"; others call B08 "nir08"
    odd = item_with({"B8A": {"href": "https://h/x.tif", "type": TIFF, "eo:bands": [{"common_name": "nir"}]}})
    assert bands_of(odd) == ("B8A",)


def test_colour_composites_and_previews_hold_no_band():
    rgb = [{"name": "red", "common_name": "red"}, {"name": "green"}, {"name": "blue"}]
    item = item_with(
        {
            "visual": {"href": "https://h/TCI.tif", "type": COG, "eo:bands": rgb},
            "blue": {"href": "https://h/blue.png", "type": "image/png"},
            "red": {"href": "https://h/red.tif", "type": COG, "roles": ["thumbnail"]},
        }
    )
    assert bands_of(item) == ()
    with pytest.raises(CatalogError, match=r"(?s)no asset for band B02.*blue, red, visual"):
        asset_for(item, "B02")


def test_an_unknown_band_is_refused_with_those_there_are():
    with pytest.raises(CatalogError, match=r"(?s)'B13'.*B8A"):
        asset_for(cdse_item(), "B13")
    with pytest.raises(CatalogError, match="not a band"):
        asset_for(cdse_item(), "rededge")


SPELLINGS = [(band, name) for band, names in BAND_ALIASES.items() for name in (band, *names)]


@given(
    st.sampled_from(SPELLINGS),
    st.sampled_from([str.lower, str.upper, str.title]),
    st.sampled_from(["", "_10m", "_20m", "_60m", "-jp2"]),
    st.sampled_from(["", " "]),
)
def test_every_spelling_of_a_name_gives_the_same_band(spelling, case, suffix, space):
    band, name = spelling
    assert band_name(space + case(name + suffix) + space) == band


@given(st.permutations(list(cdse_item().assets.items())), st.sampled_from(LAYERS))
def test_the_order_of_assets_does_not_matter(assets, band):
    item = item_with({key: asset.to_dict() for key, asset in assets})
    assert asset_for(item, band).href == f"s3://eodata/{band}_{NATIVE_RESOLUTION[band]}m.jp2"


@given(st.text(alphabet=string.printable, max_size=12))
def test_no_text_makes_the_lookup_fail(text):
    assert band_name(text) is None or band_name(text) in BAND_ALIASES


def test_names_and_pixel_sizes_agree_with_the_sensor():
    for band in sentinel2.BANDS.values():
        assert band_name(band.common_name) == band.name
        assert NATIVE_RESOLUTION[band.name] == band.resolution


REAL = {
    "stac/S2A_28QCH_20200714_0_L2A.json": "{band}.tif",  # Earth Search v0
    "sentinel2/S2A_29RKH_20200219_0_L2A_cog/S2A_29RKH_20200219_0_L2A.json": "{band}.tif",  # Earth Search v1
    "stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json": "{band}_{metres}m.tif",  # Planetary Computer
    "stac/site2-2020_jun_jul-35MNM.geojson": "{band}_{metres}m.tif",
}


@pytest.mark.real
@pytest.mark.parametrize("path", REAL)
def test_real_items_of_every_catalogue_name_all_bands_alike(real_data, path):
    items = open_catalog(real_data(path)).search()
    assert len(items) == (13 if path.endswith("geojson") else 1)
    for item in items:
        assert bands_of(item) == tuple(LAYERS)
        for band in [*REFLECTANCE, "SCL"]:
            href = asset_for(item, band).href
            assert href.endswith(REAL[path].format(band=band, metres=NATIVE_RESOLUTION[band]))


@pytest.mark.real
def test_a_real_collection_document_opens_and_holds_no_items(real_data):
    catalog = open_catalog(real_data("stac/sentinel-2-l2a.collection.json"))
    assert catalog.id == "sentinel-2-l2a"
    with pytest.raises(CatalogError, match=r"(?s)refused to follow 'https://planetarycomputer.*items link"):
        catalog.search()


@pytest.mark.real
def test_real_items_survive_json(real_data):
    for path in REAL:
        for item in open_catalog(real_data(path)).search():
            again = pystac.Item.from_dict(json.loads(json.dumps(item.to_dict())))
            assert again.to_dict() == item.to_dict()
            assert asset_for(again, "SCL").href == asset_for(item, "SCL").href
