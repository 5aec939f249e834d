"""What digital numbers mean: by baseline, flags and declared offsets, never by date; and by the pixels themselves."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoeco.catalog import asset_for, open_catalog
from geoeco.errors import CatalogError, InputError
from geoeco.sensors import sentinel2
from geoeco.sensors.sentinel2 import Radiometry

from .conftest import make_item

OLD, NEW = "02.14", "05.09"
ES = "earthsearch:boa_offset_applied"
V0 = "sentinel:boa_offset_applied"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("04.00", (4, 0)),
        ("4.0", (4, 0)),
        ("4", (4, 0)),
        ("N0400", (4, 0)),
        ("0400", (4, 0)),
        ("N04.00", (4, 0)),
        (4.0, (4, 0)),
        (5.1, (5, 10)),
        ("5.1", (5, 10)),
        (5, (5, 0)),
        (" 02.14 ", (2, 14)),
        ("05.11", (5, 11)),
        ("0.1.0", None),
        ("99.99", None),
        ("", None),
        ("latest", None),
        (None, None),
        (True, None),
        (["04.00"], None),
    ],
)
def test_baselines_are_read_however_they_are_written(text, expected):
    assert sentinel2.parse_baseline(text) == expected


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"s2:processing_baseline": "05.00"}, (5, 0)),
        ({"sentinel:processing_baseline": "04.00"}, (4, 0)),
        ({"processing:version": "05.11"}, (5, 11)),
        ({"processing:version": "1.2.3"}, None),
        ({"s2:product_uri": "S2B_MSIL2A_20220626T095029_N0400_R079_T33UXP_20220626T104753.SAFE"}, (4, 0)),
        ({"sentinel:product_id": "S2A_MSIL2A_20200714T115221_N0214_R123_T28QCH_20200714T191310"}, (2, 14)),
        ({"s2:granule_id": "S2A_OPER_MSI_L2A_TL_ESRI_20200818T062758_A026673_T35MNM_N02.12"}, (2, 12)),
        ({"s2:datatake_id": "GS2A_20200219T112111_024344_N05.00"}, (5, 0)),
        ({}, None),
    ],
)
def test_the_baseline_is_found_in_properties_and_product_names(item, properties, expected):
    assert sentinel2.processing_baseline(item(**properties))[0] == expected


def test_the_baseline_is_found_in_the_item_id(item):
    name = "S2B_MSIL2A_20250302T095029_N0511_R079_T33UXP_20250302T104753"
    assert sentinel2.processing_baseline(item(name=name))[:2] == ((5, 11), "id")


# baseline, flag property and value, declared (scale, offset), collection -> offset, trusted
CASES = {
    # before 04.00
    "old, nothing else": (OLD, {}, None, 0.0, True),
    "old, declared 0": (OLD, {}, (1e-4, 0), 0.0, True),
    "old, flag false (Earth Search v1)": (OLD, {ES: False}, (1e-4, 0), 0.0, True),
    "old, flag true contradicts": (OLD, {ES: True}, None, 0.0, False),
    "old, declared -0.1 contradicts": (OLD, {}, (1e-4, -0.1), 0.0, False),
    # from 04.00 on, as ESA made it
    "new, no flag (Planetary Computer)": (NEW, {}, None, -0.1, True),
    "new, declared -0.1 (Data Space)": (NEW, {}, (1e-4, -0.1), -0.1, True),
    "new, declared in digital numbers": (NEW, {}, (1e-4, -1000), -0.1, True),
    "new, tool defaults 1 and 0 declare nothing": (NEW, {}, (1, 0), -0.1, True),
    "new, declared 0 without a flag": (NEW, {}, (1e-4, 0), 0.0, False),
    "new, declared nonsense": (NEW, {}, (1e-4, -0.05), -0.1, False),
    "04.00 itself has it": ("04.00", {}, None, -0.1, True),
    "03.01 has it not": ("03.01", {}, None, 0.0, True),
    # from 04.00 on, by Earth Search
    "new, flag true": (NEW, {ES: True}, (1e-4, 0), 0.0, True),
    "new, flag true (v0)": ("04.00", {V0: True}, None, 0.0, True),
    "new, flag true as text": (NEW, {ES: "True"}, None, 0.0, True),
    "new, flag true but declared -0.1": (NEW, {ES: True}, (1e-4, -0.1), 0.0, False),
    "new, flag false, known to be wrong at times": (NEW, {ES: False}, (1e-4, -0.1), -0.1, False),
    "new, flag false but declared 0": (NEW, {ES: False}, (1e-4, 0), -0.1, False),
    "new, v0 without a flag": ("04.00", {"sentinel:sequence": "0"}, None, -0.1, False),
    # no baseline
    "nothing known": (None, {}, None, 0.0, False),
    "no baseline, declared -0.1": (None, {}, (1e-4, -0.1), -0.1, True),
    "no baseline, declared 0": (None, {}, (1e-4, 0), 0.0, True),
    "no baseline, flag true": (None, {ES: True}, None, 0.0, False),
    "test product 99.99": ("99.99", {}, None, 0.0, False),
}


@pytest.mark.parametrize("case", CASES)
def test_offset_and_trust_follow_baseline_flag_and_declaration(item, case):
    baseline, flags, declared, offset, trusted = CASES[case]
    properties = dict(flags) if baseline is None else {"s2:processing_baseline": baseline, **flags}
    how = sentinel2.radiometry(item(declared=declared, **properties))
    assert how.offset == pytest.approx(offset)
    assert how.scale == pytest.approx(1e-4)
    assert how.nodata == 0
    assert how.trusted is trusted
    assert bool(how.note) is not trusted, "what is not trusted says why"
    assert how.source


@pytest.mark.parametrize("declare_as", ["raster:bands", "bands", "asset"])
def test_scale_and_offset_are_read_in_stac_1_0_and_1_1(item, declare_as):
    how = sentinel2.radiometry(item(declared=(1e-4, -0.1), declare_as=declare_as))
    assert (how.offset, how.source) == (-0.1, "no baseline, declared offset")


def test_collection_1_of_earth_search_leaves_the_offset_in_and_is_trusted(item):
    how = sentinel2.radiometry(
        item(
            collection="sentinel-2-c1-l2a",
            declared=(1e-4, -0.1),
            **{"s2:processing_baseline": "05.00", ES: False},
        )
    )
    assert (how.offset, how.trusted) == (-0.1, True)


@pytest.mark.parametrize(("collection", "offset"), [("S2_SR_HARMONIZED", 0.0), ("COPERNICUS/S2_SR", -0.1)])
def test_earth_engine_took_the_offset_out_of_its_harmonised_collection_only(item, collection, offset):
    how = sentinel2.radiometry(item(collection=collection, **{"s2:processing_baseline": "05.09"}))
    assert (how.offset, how.trusted) == (offset, True)


def test_a_property_that_contradicts_the_product_name_is_not_trusted_and_the_name_counts(item):
    name = "S2B_MSIL2A_20220626T095029_N0400_R079_T33UXP_20220626T104753.SAFE"
    how = sentinel2.radiometry(item(**{"s2:processing_baseline": "03.01", "s2:product_uri": name}))
    assert (how.offset, how.trusted) == (-0.1, False)
    assert "different baselines" in how.note


def test_bands_that_declare_different_offsets_are_not_trusted(item):
    odd = item(declared=(1e-4, -0.1), **{"s2:processing_baseline": NEW})
    odd.assets["red"].extra_fields["raster:bands"][0]["offset"] = 0
    assert not sentinel2.radiometry(odd).trusted
    assert sentinel2.radiometry(odd, "B02").trusted
    assert not sentinel2.radiometry(odd, "red").trusted


def test_classification_and_atmosphere_layers_have_no_offset(item):
    new = item(**{"s2:processing_baseline": NEW})
    assert sentinel2.radiometry(new, "SCL") == Radiometry(1.0, 0.0, source="layer without offset")
    assert sentinel2.radiometry(new, "AOT").scale == 1e-3
    with pytest.raises(CatalogError, match="no asset for band WVP"):
        sentinel2.radiometry(new, "WVP")
    with pytest.raises(CatalogError, match="not a band"):
        sentinel2.radiometry(new, "B13")


@pytest.mark.parametrize("scale", [0, -1e-4, math.inf, math.nan])
def test_a_senseless_scale_is_not_trusted_and_not_used(item, scale):
    how = sentinel2.radiometry(item(declared=(scale, -0.1), **{"s2:processing_baseline": NEW}))
    assert (how.scale, how.offset, how.trusted) == (1e-4, -0.1, False)


DAYS = st.dates(min_value=__import__("datetime").date(2015, 7, 1), max_value=__import__("datetime").date(2030, 1, 1))


@given(DAYS, st.sampled_from(list(CASES)))
def test_the_date_never_decides(day, case):
    baseline, flags, declared, offset, trusted = CASES[case]
    properties = dict(flags) if baseline is None else {"s2:processing_baseline": baseline, **flags}
    how = sentinel2.radiometry(make_item(moment=f"{day}T10:30:00Z", declared=declared, **properties))
    assert (round(how.offset, 6), how.trusted) == (offset, trusted)


# --- real items ---


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("stac/S2A_28QCH_20200714_0_L2A.json", "baseline 02.14 (sentinel:product_id)"),
        ("stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json", "baseline 02.12 (s2:processing_baseline)"),
        ("stac/site2-2020_jun_jul-35MNM.geojson", "baseline 02.12 (s2:processing_baseline)"),
        (
            "sentinel2/S2A_29RKH_20200219_0_L2A_cog/S2A_29RKH_20200219_0_L2A.json",
            "baseline 02.14 (s2:processing_baseline)",
        ),
    ],
)
def test_real_items_before_04_00_have_no_offset_on_any_catalogue(real_data, path, source):
    for item in open_catalog(real_data(path)).search():
        for band in (None, "B02", "B8A", "B12"):
            how = sentinel2.radiometry(item, band)
            assert (how.scale, how.offset, how.nodata, how.trusted) == (1e-4, 0.0, 0, True)
            assert how.source.startswith(source)
        assert sentinel2.radiometry(item, "SCL").scale == 1


@pytest.mark.real
@pytest.mark.parametrize("path", ["stac/S2A_28QCH_20200714_0_L2A.json", "stac/site2-2020_jun_jul-35MNM.geojson"])
def test_the_same_real_items_reprocessed_to_collection_1_would_have_the_offset(real_data, path):
    for item in open_catalog(real_data(path)).search():
        for name in ("sentinel:product_id", "s2:product_uri", "s2:granule_id", "s2:datastrip_id", "s2:datatake_id"):
            if name in item.properties:
                text = item.properties[name]
                item.properties[name] = text.replace("_N0214_", "_N0500_").replace("_N0212_", "_N0500_")
        item.properties["s2:processing_baseline"] = "05.00"
        assert item.datetime.year == 2020
        assert sentinel2.radiometry(item).offset == -0.1


# --- the pixels ---


def reader(reflectance, added):
    def read(band):
        return np.clip(np.rint(reflectance[band] * 10_000) + added, 1, 65535).astype(np.uint16)

    return read


DARK = {
    "water and forest": {"water": 0.1, "forest": 0.9},
    "crop with a little water": {"crop": 0.97, "water": 0.03},
    "forest": {"forest": 1.0},
    "half cloud over forest": {"cloud": 0.5, "forest": 0.5},
    "cloud with two per cent of water": {"cloud": 0.98, "water": 0.02},
}
BRIGHT = {"desert": {"desert": 1.0}, "cloud": {"cloud": 1.0}, "desert and cloud": {"desert": 0.5, "cloud": 0.5}}


@pytest.mark.parametrize("cover", DARK)
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("added", [0, 1000])
def test_dark_targets_tell_whether_the_offset_is_in_whatever_the_flag_says(item, scene, cover, flag, added):
    odd = item(declared=(1e-4, -0.1), **{"s2:processing_baseline": NEW, ES: flag})
    assert not sentinel2.radiometry(odd).trusted
    how = sentinel2.verify_radiometry(odd, reader(scene(DARK[cover]), added))
    assert how.offset == pytest.approx(-added / 10_000)
    assert how.trusted
    assert how.source.startswith("data: ")
    assert ("said otherwise" in how.note) is (flag is (added == 1000))


@pytest.mark.parametrize("cover", BRIGHT)
@pytest.mark.parametrize("added", [0, 1000])
def test_scenes_without_dark_targets_leave_the_metadata_as_they_were(item, scene, cover, added):
    odd = item(declared=(1e-4, -0.1), **{"s2:processing_baseline": NEW, ES: False})
    said = sentinel2.radiometry(odd)
    how = sentinel2.verify_radiometry(odd, reader(scene(BRIGHT[cover]), added))
    assert (how.offset, how.scale, how.source, how.trusted) == (said.offset, said.scale, said.source, said.trusted)
    assert "the pixels cannot tell" in how.note


@pytest.mark.parametrize("seed", range(8))
def test_a_sky_nearly_full_of_cloud_never_makes_an_offset(item, scene, seed):
    rng = np.random.default_rng(seed)
    cover = {"forest": 0.02 * rng.random(), "crop": 0.01 * rng.random()}
    cover["cloud"] = 1 - sum(cover.values())
    pixels = scene(cover, seed=seed)
    haze = rng.random((160, 160)) ** 3 * 0.2  # soft edges of cloud lie between clear and cloudy
    pixels = {band: values + haze for band, values in pixels.items()}
    old = item(**{"s2:processing_baseline": OLD})
    assert sentinel2.verify_radiometry(old, reader(pixels, 0)).offset == 0


def test_snow_is_not_taken_for_an_offset(item, scene):
    odd = item(**{"s2:processing_baseline": NEW, ES: True})
    how = sentinel2.verify_radiometry(odd, reader(scene({"snow": 0.9, "cloud": 0.1}), 0))
    assert how.offset == 0


def test_nodata_and_the_pixels_beside_it_do_not_count(item, scene):
    reflectance = scene({"water": 0.1, "forest": 0.9})
    read_clean = reader(reflectance, 1000)

    def read(band):
        dn = read_clean(band).copy()
        dn[:, :40] = 0
        dn[:, 40] //= 2  # an overview made without a nodata value
        return dn

    how = sentinel2.verify_radiometry(item(**{"s2:processing_baseline": NEW, ES: False}), read)
    assert how.offset == -0.1
    assert how.source.startswith("data")


def test_an_empty_scene_leaves_the_metadata_as_they_were(item):
    odd = item(**{"s2:processing_baseline": NEW, ES: False})
    how = sentinel2.verify_radiometry(odd, lambda band: np.zeros((50, 50), np.uint16))
    assert how.offset == -0.1
    assert not how.trusted
    assert "too few valid pixels" in how.note


def test_bands_that_an_item_lacks_are_not_read(item, scene):
    odd = item(**{"s2:processing_baseline": NEW, ES: False})
    del odd.assets["swir16"]
    asked = []
    read = reader(scene({"water": 1.0}), 0)
    how = sentinel2.verify_radiometry(odd, lambda band: asked.append(band) or read(band))
    assert asked == ["B02", "B03", "B04", "B8A", "B12"]
    assert how.offset == 0


@pytest.mark.real
def test_the_real_amazon_scene_is_seen_to_hold_the_offset(real_data, item):
    import rasterio

    with rasterio.open(real_data("sentinel2/amazon_tapajos_12band/sen2.tif")) as source:
        order = {
            name.replace("B", "B0") if len(name) == 2 else name: n + 1 for n, name in enumerate(source.descriptions)
        }
        pixels = {band: np.nan_to_num(np.rint(source.read(n) * 10_000)).astype(np.uint16) for band, n in order.items()}
    unknown = item()
    how = sentinel2.verify_radiometry(unknown, pixels.__getitem__)
    assert (how.offset, how.trusted) == (-0.1, True)
    taken_out = {band: np.where(dn > 1000, dn - 1000, 0).astype(np.uint16) for band, dn in pixels.items()}
    assert sentinel2.verify_radiometry(unknown, taken_out.__getitem__).offset == 0.0


@pytest.mark.real
def test_a_small_real_patch_can_show_that_there_is_no_offset_but_never_that_there_is_one(real_data, item):
    import xarray as xr

    folder = real_data("sentinel2/flanders_field_2017-2018")
    pixels = {}
    for name in ("S2_L2A_10m.nc", "S2_L2A_20m.nc"):
        with xr.open_dataset(folder / name, mask_and_scale=False) as data:
            pixels |= {band: data[band].values for band in sentinel2.VERIFICATION_BANDS if band in data}
    decided = []
    for date in range(pixels["B02"].shape[0]):
        how = sentinel2.verify_radiometry(item(), lambda band, date=date: pixels[band][date])
        decided.append(how.trusted)
        assert how.offset == 0.0, how.note
        shifted = lambda band, date=date: np.where(pixels[band][date] > 0, pixels[band][date] + 1000, 0)  # noqa: E731
        how = sentinel2.verify_radiometry(item(**{"s2:processing_baseline": NEW, ES: False}), shifted)
        assert how.offset == -0.1, how.note
    assert np.mean(decided) > 0.4


@pytest.mark.real
def test_a_real_desert_is_left_to_its_metadata(real_data):
    import rasterio

    folder = real_data("sentinel2/S2A_29RKH_20200219_0_L2A_cog")
    (item,) = open_catalog(folder / "S2A_29RKH_20200219_0_L2A.json").search()

    def read(band):
        with rasterio.open(folder / asset_for(item, band).href.rsplit("/", 1)[1]) as source:
            return source.read(1, out_shape=(183, 183))

    assert sentinel2.verify_radiometry(item, read).offset == 0.0
    added = item.clone()
    added.properties |= {"s2:processing_baseline": "05.00", "s2:product_uri": "", ES: False}
    added.properties = {k: v for k, v in added.properties.items() if "N02.14" not in str(v)}
    assert sentinel2.verify_radiometry(added, lambda band: read(band) + np.uint16(1000)).offset == -0.1


@pytest.mark.real
def test_a_real_sample_of_four_bands_is_enough(real_data, item):
    with gzip.open(real_data("sentinel2/spyndex_10m_sample/S2_10m.json.gz")) as file:
        bands = dict(zip(("B02", "B03", "B04", "B08"), np.array(json.load(file), dtype=np.uint16), strict=True))
    some = item()
    for key in ("nir08", "swir16", "swir22"):
        del some.assets[key]
    assert sentinel2.verify_radiometry(some, bands.__getitem__).source == "data: the pixels hold no offset"


# --- digital numbers to reflectance ---

WITH = Radiometry(1e-4, -0.1)
WITHOUT = Radiometry(1e-4, 0.0)


def test_nodata_is_masked_before_the_offset_and_never_wraps():
    dn = np.array([0, 1, 999, 1000, 11000, 65535], dtype=np.uint16)
    reflectance = sentinel2.to_reflectance(dn, WITH)
    assert reflectance.dtype == np.float32
    assert np.isnan(reflectance[0])
    np.testing.assert_allclose(reflectance[1:], [-0.0999, -0.0001, 0.0, 1.0, 6.4535], atol=1e-7)
    assert np.nanmax(sentinel2.to_reflectance(np.zeros(4, np.uint16), WITH), initial=-1) == -1


def test_stored_integers_are_exact_negative_where_due_and_saturate():
    dn = np.array([0, 1, 999, 1000, 1001, 11000, 33767, 33768, 65535], dtype=np.uint16)
    stored = sentinel2.to_reflectance(dn, WITH, dtype="int16")
    assert stored.dtype == np.int16
    assert stored.tolist() == [-32768, -999, -1, 0, 1, 10000, 32767, 32767, 32767]
    assert sentinel2.to_reflectance(dn, WITHOUT, dtype="int16").tolist()[:6] == [-32768, 1, 999, 1000, 1001, 11000]


@pytest.mark.parametrize("how", [WITH, WITHOUT])
def test_every_digital_number_is_stored_as_itself_plus_a_whole_offset(how):
    dn = np.arange(1, 65536, dtype=np.uint16)
    expected = np.clip(dn.astype(np.int64) + round(how.offset * 10_000), -32767, 32767)
    np.testing.assert_array_equal(sentinel2.to_reflectance(dn, how, dtype="int16"), expected)
    np.testing.assert_allclose(
        sentinel2.to_reflectance(dn, how), dn * np.float64(1e-4) + how.offset, rtol=1e-6, atol=1e-7
    )


def test_nodata_never_equals_a_stored_value():
    for how in (WITH, WITHOUT, Radiometry(1e-4, -0.1, nodata=65535)):
        table = sentinel2.reflectance_table(how, "int16")
        assert np.flatnonzero(table == sentinel2.REFLECTANCE_NODATA).tolist() == [how.nodata]


def test_shape_is_kept_and_other_integers_are_checked():
    assert sentinel2.to_reflectance(np.ones((2, 3, 4), np.int32), WITH).shape == (2, 3, 4)
    assert sentinel2.to_reflectance(np.ones((0,), np.int64), WITH).shape == (0,)
    for bad in (np.array([-1]), np.array([70_000])):
        with pytest.raises(InputError, match=r"0\.\.65535"):
            sentinel2.to_reflectance(bad, WITH)
    with pytest.raises(InputError, match="integers"):
        sentinel2.to_reflectance(np.array([0.5]), WITH)


def test_bands_are_ordered_with_ascending_names_and_sensible_widths():
    assert sentinel2.REFLECTANCE_BANDS == (
        "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12",
    )  # fmt: skip
    waves = [band.wavelength for band in sentinel2.BANDS.values()]
    assert waves == sorted(waves)
    assert all(10 < band.fwhm < 200 for band in sentinel2.BANDS.values())


@pytest.mark.real
def test_wavelengths_agree_with_those_of_real_items(real_data):
    path = real_data("stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json")
    (item,) = open_catalog(path).search()
    for band in sentinel2.BANDS.values():
        (declared,) = asset_for(item, band.name).extra_fields["eo:bands"]
        assert declared["center_wavelength"] * 1000 == pytest.approx(band.wavelength, abs=17)
