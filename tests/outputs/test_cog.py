"""Written files, read back by GDAL of today and, where its tools are installed, by the oldest supported one."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
import warnings
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine

from geoeco.errors import GridError, InputError, OutputError
from geoeco.outputs import ClassTable, cog_record, remove_leftovers, write_cog

COVER = ClassTable.of({1: "wood & <hedge>", 2: "grass", 3: "maize", 4: "Gewässer", 5: "town"}, name="cover")
KINDS = {
    "class": ("uint8", 255),
    "continuous": ("float32", -9999),
    "count": ("uint16", 65535),
    "angle": ("float32", -9999),
    "date": ("int16", -32768),
}


def gdalinfo(path):
    """What the GDAL tools of the system say, as JSON."""
    if shutil.which("gdalinfo") is None:
        pytest.skip("gdalinfo is not installed: the reading by an older GDAL is not checked")
    # PAM stays on, so that sidecars are read; nothing may be written beside the file
    before = sorted(path.parent.iterdir())
    done = subprocess.run(["gdalinfo", "-json", str(path)], capture_output=True, text=True, check=True)
    assert sorted(path.parent.iterdir()) == before
    return json.loads(done.stdout)


def levels(path, band=1):
    """Pixels of the base and of every overview."""
    with rasterio.open(path) as src:
        out = [src.read(band)]
        count = len(src.overviews(band))
    for level in range(count):
        with rasterio.open(path, overview_level=level) as src:
            out.append(src.read(band))
    return out


def of_kind(raster, kind, shape=(700, 900)):
    rng = np.random.default_rng(1)
    if kind == "class":
        return raster(rng.integers(1, 6, shape, dtype=np.uint8), kind="class")
    values = rng.normal(17600, 30, shape) if kind == "date" else rng.integers(0, 300, shape).astype(float)
    values[:20, :20] = np.nan
    return raster(values, kind=kind, units={"date": "days since 1970-01-01", "angle": "deg"}.get(kind, "1"), name=kind)


# --- what follows from the kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kind_decides_type_and_nodata(raster, tmp_path, kind):
    record = write_cog(of_kind(raster, kind), tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert (src.dtypes[0], src.nodata) == KINDS[kind]
        assert src.crs.to_epsg() == 32631
        assert src.transform == Affine(10, 0, 500_000, 0, -10, 5_650_000)
        assert src.tags()["AREA_OR_POINT"] == "Area"
        assert src.overviews(1) == [2]
        assert src.block_shapes == [(512, 512)]
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert src.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "ZSTD"
    assert (record.dtype, record.nodata) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_valid_cog(raster, tmp_path, kind):
    from rio_cogeo import cog_validate

    record = write_cog(of_kind(raster, kind), tmp_path / "a.tif")
    valid, errors, remarks = cog_validate(record.path, strict=True)
    assert (valid, errors, remarks) == (True, [], [])


def test_values_come_back(raster, tmp_path):
    values = np.random.default_rng(0).normal(0.3, 0.1, (2, 40, 60)).astype(np.float32)
    values[0, :5] = np.nan
    write_cog(raster(values), tmp_path / "a.tif")
    write_cog(raster(values), tmp_path / "b.tif", scale=1e-4, offset=0.1)
    with rasterio.open(tmp_path / "a.tif") as src:
        assert np.array_equal(src.read(masked=True).filled(np.nan), values, equal_nan=True)
    with rasterio.open(tmp_path / "b.tif") as src:
        assert (src.dtypes[0], src.nodata, src.scales, src.offsets) == ("int16", -32768, (1e-4, 1e-4), (0.1, 0.1))
        back = src.read(masked=True) * 1e-4 + 0.1
        assert np.abs(back.filled(np.nan) - values)[1].max() <= 0.5001e-4
        assert np.array_equal(np.ma.getmaskarray(back), np.isnan(values))


def test_dates_are_whole_days_since_1970_also_from_datetimes(raster, tmp_path):
    days = np.array([["2018-03-01", "NaT"], ["2019-12-31", "1969-12-31"]], dtype="datetime64[ns]")
    record = write_cog(raster(days, kind="date", units="days since 1970-01-01"), tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert src.read(1).tolist() == [[17591, -32768], [18261, -1]]
        assert src.units == ("days since 1970-01-01",)


def test_more_than_254_classes_or_code_255_need_sixteen_bits(raster, tmp_path):
    many = ClassTable.of({code: f"class {code}" for code in range(300)})
    codes = np.arange(300, dtype=np.uint16).reshape(15, 20)
    record = write_cog(raster(codes, kind="class"), tmp_path / "a.tif", classes=many)
    assert (record.dtype, record.nodata) == ("uint16", 65535)
    with rasterio.open(record.path) as src:
        assert np.array_equal(src.read(1), codes)
        assert src.colormap(1)[255] == many.entries[255].colour
    full = ClassTable.of({0: "none", 255: "all"})
    record = write_cog(raster(np.array([[0, 255]], np.uint8), kind="class"), tmp_path / "b.tif", classes=full)
    assert (record.dtype, record.counts) == ("uint16", {0: 1, 255: 1})


def test_a_class_map_without_a_table_gets_one_of_its_codes(raster, tmp_path):
    record = write_cog(raster(np.array([[3, 9, 255]], np.uint8), kind="class", name="cluster"), tmp_path / "a.tif")
    assert record.classes.codes == (3, 9)
    assert record.classes.name == "cluster"


def test_a_class_map_has_neither_unit_nor_scale_nor_statistics(raster, tmp_path):
    record = write_cog(of_kind(raster, "class"), tmp_path / "a.tif", classes=COVER)
    with rasterio.open(record.path) as src:
        assert (src.units, src.scales, src.offsets) == ((None,), (1.0,), (0.0,))
        assert [key for key in src.tags(1) if key.startswith("STATISTICS_")] == []


@pytest.mark.parametrize("compress", ["ZSTD", "DEFLATE", "LZW", "NONE"])
def test_any_compression_gives_the_same_pixels_and_numbers_are_predicted(raster, tmp_path, compress):
    array = of_kind(raster, "continuous")
    for name, storage, predictor in (("float", {}, "3"), ("whole", {"scale": 0.5}, "2")):
        plain = write_cog(array, tmp_path / f"{name}.tif", **storage)
        other = write_cog(array, tmp_path / f"{name}2.tif", compress=compress.lower(), **storage)
        with rasterio.open(plain.path) as src, rasterio.open(other.path) as dst:
            assert np.array_equal(src.read(), dst.read())
            structure = dst.tags(ns="IMAGE_STRUCTURE")
        packed = compress != "NONE"
        assert structure.get("COMPRESSION") == (compress if packed else None)
        assert structure.get("PREDICTOR") == (predictor if packed else None)


def test_embeddings_of_eight_bits_keep_their_scale(raster, tmp_path):
    values = np.random.default_rng(0).uniform(-1, 1, (6, 40, 50))
    values[:, :3] = np.nan
    record = write_cog(raster(values, name="embedding"), tmp_path / "a.tif", dtype="int8", scale=1 / 127)
    assert (record.dtype, record.nodata) == ("int8", -128)
    with rasterio.open(record.path) as src:
        assert set(src.nodatavals) == {-128}
        assert src.scales == pytest.approx((1 / 127,) * 6)
        back = src.read(masked=True) / 127
    assert np.abs(back - values).max() <= 0.5001 / 127
    assert np.array_equal(np.ma.getmaskarray(back), np.isnan(values))


def test_the_dataset_of_one_unit_becomes_bands_and_others_are_refused(raster, tmp_path):
    mean, std = raster(np.ones((9, 9))).rename("lma_mean"), raster(np.ones((9, 9))).rename("lma_std")
    record = write_cog(xr.Dataset({"lma_mean": mean, "lma_std": std}), tmp_path / "a.tif")
    assert record.bands == ("lma_mean", "lma_std")
    with pytest.raises(InputError, match="differ in units"):
        write_cog(xr.Dataset({"a": mean, "b": std.assign_attrs(units="m")}), tmp_path / "b.tif")
    with pytest.raises(InputError, match="differ in kind"):
        write_cog(xr.Dataset({"a": mean, "b": std.assign_attrs(kind="count")}), tmp_path / "b.tif")
    elsewhere = std.drop_vars("spatial_ref").rio.write_crs(32632, grid_mapping_name="other")
    with pytest.raises(InputError, match="differ in CRS"):
        write_cog(xr.Dataset({"a": mean, "b": elsewhere}), tmp_path / "b.tif")
    assert not (tmp_path / "b.tif").exists()


# --- opens right ----------------------------------------------------------------------------------------------------


def test_a_class_map_opens_right_with_an_old_gdal(raster, patches, tmp_path):
    record = write_cog(raster(patches(), kind="class", long_name="Land cover"), tmp_path / "cover.tif", classes=COVER)
    info = gdalinfo(record.path)
    band = info["bands"][0]
    assert (band["type"], band["noDataValue"], band["colorInterpretation"]) == ("Byte", 255, "Palette")
    assert band["description"] == "cover"
    assert [entry[:3] for entry in band["colorTable"]["entries"][1:6]] == [list(e.colour[:3]) for e in COVER]
    assert [level["size"] for level in band["overviews"]] == [[602, 551], [301, 276]]
    categories = subprocess.run(["gdalinfo", str(record.path)], capture_output=True, text=True, check=True).stdout
    for code, name in zip(COVER.codes, COVER.names, strict=True):
        assert f"      {code}: {name}\n" in categories
    # exactly one attribute table, with our names, colours and counts
    assert categories.count("<GDALRasterAttributeTable") == 1
    text = categories[categories.index("<GDALRasterAttributeTable") :]
    table = ET.fromstring(text[: text.index("</GDALRasterAttributeTable>") + 27])
    rows = [[cell.text for cell in row.iter("F")] for row in table.iter("Row")]
    values = patches()
    assert rows == [[str(e.code), str((values == e.code).sum()), e.name, *map(str, e.colour)] for e in COVER]
    columns = {c.findtext("Name"): (c.findtext("Type"), c.findtext("Usage")) for c in table.iter("FieldDefn")}
    assert columns["Value"] == ("0", "5")
    assert columns["Class"] == ("2", "2")
    assert columns["Count"] == ("0", "1")
    assert [columns[name][1] for name in ("Red", "Green", "Blue")] == ["6", "7", "8"]


def test_the_gdal_that_writes_sees_names_and_attribute_table_once(raster, patches, tmp_path):
    # it finds the table in the TIFF and in the sidecar; a virtual raster tells what it makes of both
    record = write_cog(raster(patches(), kind="class"), tmp_path / "cover.tif", classes=COVER)
    rasterio.shutil.copy(str(record.path), str(tmp_path / "seen.vrt"), driver="VRT")
    seen = ET.parse(tmp_path / "seen.vrt").getroot()
    assert [c.text or "" for c in seen.iter("Category")] == ["", *COVER.names]
    assert len(list(seen.iter("GDALRasterAttributeTable"))) == 1
    assert [row.findall("F")[2].text for row in seen.iter("Row")] == list(COVER.names)


def test_a_trait_map_opens_right_with_an_old_gdal(raster, tmp_path):
    values = np.random.default_rng(0).normal(80, 5, (2, 700, 600)).astype(np.float32)
    values[:, :100] = np.nan
    record = write_cog(raster(values, units="g m-2", name="lma"), tmp_path / "lma.tif", scale=0.01)
    info = gdalinfo(record.path)
    assert info["coordinateSystem"]["wkt"].endswith('ID["EPSG",32631]]')
    stored = np.rint(values[0, 100:].astype(float) / 0.01)
    band = info["bands"][0]
    assert (band["type"], band["noDataValue"], band["unit"]) == ("Int16", -32768, "g m-2")
    assert (band["scale"], band["offset"], band["description"]) == (0.01, 0, "lma_1")
    assert band["mean"] == pytest.approx(stored.mean(), abs=0.001)
    assert band["stdDev"] == pytest.approx(stored.std(), abs=0.001)
    assert (band["minimum"], band["maximum"]) == (stored.min(), stored.max())
    assert float(band["metadata"][""]["STATISTICS_VALID_PERCENT"]) == pytest.approx(100 * 600 / 700)


def test_the_attribute_table_travels_in_the_sidecar_alone_where_the_tiff_has_none(raster, patches, tmp_path):
    # readers before GDAL 3.11 look for names and table only there
    record = write_cog(raster(patches(64, 64), kind="class"), tmp_path / "a.tif", classes=COVER)
    root = ET.parse(f"{record.path}.aux.xml").getroot()
    assert len(root.findall(".//GDALRasterAttributeTable")) == 1
    assert [c.text or "" for c in root.iter("Category")] == ["", *COVER.names]


# --- metadata survive -----------------------------------------------------------------------------------------------


def spectral(raster):
    values = np.random.default_rng(0).random((3, 600, 600)).astype(np.float32)
    array = raster(values, units="1", name="reflectance").assign_coords(band=["B02", "B03", "B04"])
    return array.assign_coords(wavelength=("band", [492.4, 559.8, 664.6]), fwhm=("band", [66.0, 36.0, 31.0]))


def test_tags_wavelengths_units_and_statistics_all_survive_the_copy(raster, tmp_path):
    # the one combination that keeps everything: COPY_SRC_MDD loses band tags, STATISTICS=YES loses IMAGERY
    record = write_cog(
        spectral(raster),
        tmp_path / "a.tif",
        tags={"GEOECO_RECIPE_SHA256": "ab12", "GEOECO_PERIOD": "2018-01-01/2018-12-31"},
        description="Mean summer reflectance",
        datetime=dt.datetime(2018, 7, 1, 12, tzinfo=dt.UTC),
    )
    with rasterio.open(record.path) as src:
        tags = src.tags()
        assert tags["GEOECO_RECIPE_SHA256"] == "ab12"
        assert tags["GEOECO_PERIOD"] == "2018-01-01/2018-12-31"
        assert tags["GEOECO_VERSION"]
        assert tags["TIFFTAG_SOFTWARE"].startswith("geoeco ")
        assert tags["TIFFTAG_IMAGEDESCRIPTION"] == "Mean summer reflectance"
        assert tags["TIFFTAG_DATETIME"] == "2018:07:01 12:00:00"
        assert src.descriptions == ("B02", "B03", "B04")
        assert src.units == ("1", "1", "1")
        for band, (centre, width) in enumerate([(492.4, 66), (559.8, 36), (664.6, 31)], start=1):
            own, imagery = src.tags(band), src.tags(band, ns="IMAGERY")
            assert (own["wavelength"], own["wavelength_units"], own["fwhm"]) == (f"{centre}", "nm", f"{width}")
            assert float(imagery["CENTRAL_WAVELENGTH_UM"]) == pytest.approx(centre / 1000)
            assert float(imagery["FWHM_UM"]) == pytest.approx(width / 1000)
            assert float(own["STATISTICS_MEAN"]) == pytest.approx(src.read(band).mean(dtype=float), rel=1e-6)


def test_text_that_tiff_or_xml_cannot_hold_is_replaced(raster, tmp_path):
    tags = {"GEOECO_NOTE": "a < b & \x01 Gewässer"}
    record = write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif", tags=tags, description="Gewässer")
    with rasterio.open(record.path) as src:
        assert src.tags()["GEOECO_NOTE"] == "a < b & ? Gewässer"
        assert src.tags()["TIFFTAG_IMAGEDESCRIPTION"] == "Gew?sser"


def test_without_a_datetime_the_file_has_none(raster, tmp_path):
    record = write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert "TIFFTAG_DATETIME" not in src.tags()


@pytest.mark.parametrize("key", ["TIFFTAG_SOFTWARE", "STATISTICS_MEAN", "AREA_OR_POINT", "two words", "", "a=b"])
def test_tags_that_would_break_the_file_are_refused(raster, tmp_path, key):
    with pytest.raises(InputError, match="cannot be used"):
        write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif", tags={key: "x"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_read_back_equals_the_record_written(raster, tmp_path, kind):
    record = write_cog(of_kind(raster, kind), tmp_path / "a.tif")
    assert cog_record(record.path) == record


# --- identical bytes ------------------------------------------------------------------------------------------------


def digests(record):
    return [(file.path.name, file.sha256) for file in record.files]


@pytest.mark.parametrize("kind", ["class", "continuous"])
def test_bytes_do_not_depend_on_repeat_threads_blocks_or_laziness(raster, tmp_path, kind):
    array = of_kind(raster, kind, shape=(1101, 1303))
    first = digests(write_cog(array, tmp_path / "a" / "m.tif"))
    assert digests(write_cog(array, tmp_path / "b" / "m.tif", threads=1)) == first
    assert digests(write_cog(array, tmp_path / "b" / "m.tif", threads=3)) == first
    assert digests(write_cog(array.chunk({"y": 300, "x": 711}), tmp_path / "c" / "m.tif")) == first
    values = array.to_numpy()
    for size, in_memory in ((256, True), (1000, True), (1000, False)):
        windows = [
            (slice(y, min(y + size, 1101)), slice(x, min(x + size, 1303)))
            for x in range(0, 1303, size)
            for y in range(0, 1101, size)
        ]
        blocks = ((window, values[window]) for window in reversed(windows))
        assert (
            digests(
                write_cog(
                    array,
                    tmp_path / f"d{size}{in_memory}" / "m.tif",
                    blocks=blocks,
                    memory_bytes=1 << 30 if in_memory else 0,
                )
            )
            == first
        )
    assert [name for name, _ in first] == (
        ["m.tif", "m.tif.aux.xml", "m.qml"] if kind == "class" else ["m.tif", "m.qml"]
    )


def test_what_no_block_covers_is_nodata(raster, tmp_path):
    template = raster(np.zeros((600, 700), np.float32))
    block = ((slice(10, 20), slice(30, 40)), np.full((10, 10), 2.0))
    record = write_cog(template, tmp_path / "a.tif", blocks=[block])
    assert record.statistics[0].valid == 100
    with rasterio.open(record.path) as src:
        assert (src.read(1)[10:20, 30:40] == 2).all()


@pytest.mark.parametrize(
    "window", [(slice(0, 5), slice(0, 5)), (slice(0, 20, 2), slice(0, 10)), (slice(695, 705), slice(0, 10))]
)
def test_a_block_that_does_not_fit_its_window_is_refused(raster, tmp_path, window):
    with pytest.raises(InputError, match="does not fit"):
        write_cog(raster(np.zeros((700, 700))), tmp_path / "a.tif", blocks=[(window, np.zeros((10, 10)))])


# --- overviews ------------------------------------------------------------------------------------------------------


def test_overviews_of_a_class_map_hold_only_classes_of_the_map(raster, patches, tmp_path):
    codes = patches(1500, 1700, n=3) * 50
    codes[patches(1500, 1700, n=3) == 255] = 255
    found = levels(write_cog(raster(codes, kind="class"), tmp_path / "a.tif").path)
    assert len(found) == 3
    for level in found[1:]:
        assert set(np.unique(level)) <= set(np.unique(codes))


def test_the_commonest_class_wins_in_overviews(raster, tmp_path):
    codes = np.full((1024, 1024), 2, np.uint8)
    codes[::2, ::2] = 1
    _, half = levels(write_cog(raster(codes, kind="class"), tmp_path / "a.tif").path)
    assert (half == 2).all()


def test_nodata_stays_out_of_averages(raster, tmp_path):
    values = np.full((1024, 1024), 5.0, np.float32)
    values[::2, ::2] = np.nan
    values[:512, :512] = np.nan
    _, half = levels(write_cog(raster(values), tmp_path / "a.tif").path)
    assert set(np.unique(half).tolist()) == {-9999.0, 5.0}
    assert (half[:256, :256] == -9999).all()


def test_dates_in_overviews_are_dates_of_the_map(raster, tmp_path):
    rng = np.random.default_rng(0)
    days = rng.choice([17000.0, 18000.0, np.nan], (1024, 1030))
    found = levels(write_cog(raster(days, kind="date", units="days since 1970-01-01"), tmp_path / "a.tif").path)
    for level in found[1:]:
        assert set(np.unique(level).tolist()) <= {17000, 18000, -32768}


# --- grids ----------------------------------------------------------------------------------------------------------


def test_rows_from_south_to_north_are_turned(raster, tmp_path):
    array = raster(np.arange(12.0).reshape(3, 4))
    flipped = array.isel(y=slice(None, None, -1), x=slice(None, None, -1))
    assert write_cog(flipped, tmp_path / "b.tif").sha256 == write_cog(array, tmp_path / "a.tif").sha256
    block = [((slice(0, 2), slice(0, 4)), flipped.to_numpy()[:2]), ((slice(2, 3), slice(0, 4)), flipped.to_numpy()[2:])]
    assert write_cog(flipped, tmp_path / "c.tif", blocks=block).sha256 == write_cog(array, tmp_path / "a.tif").sha256


def test_a_geographic_grid_keeps_longitude_first(tmp_path):
    array = xr.DataArray(
        np.ones((3, 4), np.float32),
        coords={"latitude": [51.2, 51.1, 51.0], "longitude": [4.0, 4.1, 4.2, 4.3]},
        dims=("latitude", "longitude"),
        attrs={"kind": "continuous", "units": "1"},
        name="value",
    ).rio.write_crs(4326)
    record = write_cog(array, tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert src.bounds == pytest.approx((3.95, 50.95, 4.35, 51.25))
        assert src.crs.to_epsg() == 4326


def test_a_crs_without_an_epsg_code_is_kept_as_it_is(raster, tmp_path):
    crs = rasterio.CRS.from_proj4("+proj=laea +lat_0=3 +lon_0=18 +datum=WGS84 +units=m +no_defs")
    assert crs.to_epsg() is None
    record = write_cog(raster(np.ones((5, 5)), crs=crs), tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert src.crs == crs


def test_a_crs_that_geotiff_cannot_hold_is_refused_before_any_work(raster, tmp_path):
    rotated = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39 +lon_0=18 +R=6371000"

    def blocks():
        raise AssertionError("work was done")
        yield

    with pytest.raises(OutputError, match="cannot hold the CRS"):
        write_cog(raster(np.ones((5, 5)), crs=rotated), tmp_path / "a.tif", blocks=blocks())
    assert list(tmp_path.iterdir()) == []


def test_a_crs_in_words_gets_its_epsg_code_where_one_exists(raster, tmp_path):
    crs = rasterio.CRS.from_proj4("+proj=utm +zone=31 +datum=WGS84 +units=m +no_defs")
    record = write_cog(raster(np.ones((5, 5)), crs=crs), tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert src.crs.to_epsg() == 32631


def test_a_window_of_a_larger_raster_lies_where_it_lay(raster, tmp_path):
    # slicing leaves the parent's GeoTransform behind in spatial_ref
    whole = raster(np.arange(100.0).reshape(10, 10))
    whole = whole.rio.write_transform(whole.rio.transform())
    record = write_cog(whole[3:7, 2:9], tmp_path / "a.tif")
    with rasterio.open(record.path) as src:
        assert src.transform == Affine(10, 0, 500_020, 0, -10, 5_649_970)


def test_one_pixel_needs_a_transform(raster, tmp_path):
    one = raster(np.ones((5, 5)))[:1, :1]
    with pytest.raises(GridError, match="pixel size"):
        write_cog(one, tmp_path / "a.tif")
    record = write_cog(one.rio.write_transform(Affine(10, 0, 500_000, 0, -10, 5_650_000)), tmp_path / "a.tif")
    assert record.statistics[0].mean == 1


def test_grids_that_a_geotiff_cannot_say_right_are_refused(raster, tmp_path):
    good = raster(np.ones((5, 5)))
    with pytest.raises(GridError, match="no CRS"):
        write_cog(raster(np.ones((5, 5)), crs=None), tmp_path / "a.tif")
    with pytest.raises(GridError, match="rotated"):
        write_cog(good.rio.write_transform(Affine(10, 2, 500_000, 2, -10, 5_650_000)), tmp_path / "a.tif")
    with pytest.raises(GridError, match="not evenly spaced"):
        write_cog(good.assign_coords(x=[0.0, 10, 20, 30, 45]), tmp_path / "a.tif")
    with pytest.raises(GridError, match="not finite"):
        write_cog(good.assign_coords(x=[0.0, 10, np.nan, 30, 40]), tmp_path / "a.tif")
    with pytest.raises(InputError, match="transpose"):
        write_cog(good.transpose("x", "y"), tmp_path / "a.tif")
    with pytest.raises(InputError, match="empty"):
        write_cog(good[:0], tmp_path / "a.tif")
    assert list(tmp_path.iterdir()) == []


# --- hostile values -------------------------------------------------------------------------------------------------


def test_a_raster_without_a_valid_pixel_is_written(raster, tmp_path):
    for kind in KINDS:
        values = np.full((600, 600), 255, np.uint8) if kind == "class" else np.full((600, 600), np.nan)
        record = write_cog(raster(values, kind=kind), tmp_path / f"{kind}.tif")
        with rasterio.open(record.path) as src:
            assert not src.read_masks(1).any()
        assert cog_record(record.path).counts == {}


def refused(array, tmp_path, match, **options):
    with pytest.raises(InputError, match=match):
        write_cog(array, tmp_path / "a.tif", **options)
    assert list(tmp_path.iterdir()) == []


def test_values_that_cannot_be_stored_are_refused(raster, tmp_path):
    one = np.ones((4, 4))
    refused(raster(one * np.inf), tmp_path, "infinite")
    refused(raster(one * 1e300), tmp_path, "do not fit float32")
    refused(raster(one * 40_000), tmp_path, "do not fit int16", dtype="int16")
    refused(raster(one), tmp_path, "do not fit int16 at scale 1e-05", scale=1e-5)
    refused(raster(one * 70_000, kind="date", units="days since 1970-01-01"), tmp_path, "do not fit int16")
    refused(raster(one * -9999), tmp_path, "16 valid values .* equal the nodata value -9999")
    refused(raster(one * -1, kind="class"), tmp_path, "do not fit uint16")
    refused(raster(one * 1.5, kind="class"), tmp_path, "not whole numbers")
    refused(raster(one * 1.5, kind="count"), tmp_path, "not whole numbers")
    refused(raster(one.astype(str)), tmp_path, "not numbers")


def test_codes_that_the_class_table_does_not_have_are_named(raster, tmp_path):
    codes = np.array([[1, 2, 77], [77, 0, 5]], np.uint8)
    refused(raster(codes, kind="class"), tmp_path, r"0 \(1 px\), 77 \(2 px\)", classes=COVER)


def test_nodata_and_classes_never_share_a_code(raster, tmp_path):
    table = ClassTable.of({0: "water", 1: "land"})
    codes = raster(np.array([[0, 1]], np.uint8), kind="class")
    refused(codes, tmp_path, "nodata 0 .* is the code of class 'water'", classes=table, nodata=0)
    assert write_cog(codes, tmp_path / "a.tif", classes=table).counts == {0: 1, 1: 1}


def test_the_declared_nodata_of_the_source_becomes_nodata(raster, tmp_path):
    codes = raster(np.array([[0, 1, 2]], np.uint8), kind="class").rio.write_nodata(0)
    record = write_cog(codes, tmp_path / "a.tif", classes=COVER)
    assert record.counts == {1: 1, 2: 1}
    values = raster(np.array([[-1.0, 3.0, np.nan]]).astype(np.float32)).rio.write_nodata(-1.0)
    with rasterio.open(write_cog(values, tmp_path / "b.tif").path) as src:
        assert src.read(1).tolist() == [[-9999, 3, -9999]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"nodata": np.nan}, "not a finite number"),
        ({"nodata": 300, "dtype": "uint8"}, "does not fit uint8"),
        ({"nodata": 0.1}, "cannot be written exactly"),
        ({"dtype": "complex64"}, "do not hold complex64"),
        ({"scale": -1}, "positive"),
        ({"scale": 0.1, "dtype": "float32"}, "takes no scale"),
        ({"classes": COVER}, "set kind='class'"),
        ({"compress": "JPEG"}, "unknown compression"),
        ({"threads": 0}, "at least 1"),
        ({"interleave": "line"}, "unknown interleave"),
    ],
)
def test_wishes_that_contradict_the_data_are_refused(raster, tmp_path, options, match):
    refused(raster(np.ones((4, 4))), tmp_path, match, **options)


def test_variables_that_do_not_say_what_they_are_are_refused(raster, tmp_path):
    good = raster(np.ones((4, 4)))
    refused(good.drop_attrs(), tmp_path, "kind=None")
    refused(good.assign_attrs(units=""), tmp_path, "no units")
    refused(good.expand_dims(a=2, b=2), tmp_path, "stack the other dimensions")
    refused(raster(np.ones((2, 4, 4), np.uint8), kind="class"), tmp_path, "one file per class map")
    with pytest.raises(InputError, match=r"end in \.tif"):
        write_cog(good, tmp_path / "a.png")


def test_inputs_are_not_changed(raster, tmp_path):
    values = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
    array = raster(values.copy())
    before = array.copy(deep=True)
    write_cog(array, tmp_path / "a.tif")
    xr.testing.assert_identical(array, before)


# --- whole or not at all --------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys
import numpy as np
from geoeco.outputs import write_cog
from geoeco.errors import OutputError
import xarray as xr
noise = np.random.default_rng(0).random((900, 900), dtype=np.float32)
array = xr.DataArray(noise, dims=("y", "x"), coords={"y": -np.arange(900.), "x": np.arange(900.)}, name="v",
                     attrs={"kind": "continuous", "units": "1"}).rio.write_crs(32631)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    write_cog(array, sys.argv[1], memory_bytes=int(sys.argv[2]))
except OutputError as error:
    print("OutputError", error.what_to_do)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("in_memory", [1 << 30, 1])
def test_where_the_disk_is_full_nothing_is_left_and_the_old_file_stays(raster, tmp_path, in_memory):
    path = tmp_path / "a.tif"
    old = write_cog(raster(np.ones((5, 5))), path)
    names = sorted(file.name for file in tmp_path.iterdir())
    command = [sys.executable, "-c", FULL_DISK, str(path), str(in_memory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("OutputError check free space"), done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert cog_record(path) == old


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_output(raster, tmp_path):
    def blocks():
        yield (slice(0, 5), slice(0, 5)), np.ones((5, 5))
        raise FileNotFoundError("the scene has gone")

    with pytest.raises(FileNotFoundError, match="the scene has gone"):
        write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif", blocks=blocks())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_output_error(raster, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="could not be written"):
        write_cog(raster(np.ones((5, 5))), tmp_path / "file" / "a.tif")


def test_a_file_that_was_not_written_by_geoeco_has_no_record(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=2, height=2, count=1, dtype="uint8").close()
    with pytest.raises(OutputError, match="not written by geoeco"):
        cog_record(tmp_path / "a.tif")
    with pytest.raises(OutputError, match="cannot be read"):
        cog_record(tmp_path / "none.tif")


def test_an_old_sidecar_does_not_describe_a_new_file(raster, tmp_path):
    write_cog(raster(np.ones((5, 5), np.uint8), kind="class"), tmp_path / "a.tif")
    assert (tmp_path / "a.tif.aux.xml").exists()
    write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.qml", "a.tif"]


KILLED = """
import os, signal, sys
import numpy as np, xarray as xr
from geoeco.outputs import write_cog
array = xr.DataArray(np.zeros((9, 9)), dims=("y", "x"), coords={"y": -np.arange(9.), "x": np.arange(9.)}, name="v",
                     attrs={"kind": "continuous", "units": "1"}).rio.write_crs(32631)
def blocks():
    yield (slice(0, 9), slice(0, 9)), np.zeros((9, 9))
    os.kill(os.getpid(), signal.SIGKILL)
write_cog(array, sys.argv[1], blocks=blocks())
"""


def test_a_killed_writer_leaves_the_old_file_and_only_what_can_be_swept(raster, tmp_path):
    old = write_cog(raster(np.ones((5, 5))), tmp_path / "maps" / "a.tif")
    names = sorted(tmp_path.rglob("*"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(old.path)], check=False)
    assert done.returncode == -9
    assert cog_record(old.path) == old
    assert len(remove_leftovers(tmp_path)) == 1
    assert sorted(tmp_path.rglob("*")) == names


@pytest.mark.parametrize("path", ["s3://bucket/a.tif", "/vsimem/a.tif", "https://example.org/a.tif"])
def test_only_local_paths_are_written(raster, path):
    with pytest.raises(InputError, match="not a path on this machine"):
        write_cog(raster(np.ones((5, 5))), path)


def test_outputs_are_as_readable_as_other_new_files(raster, tmp_path):
    (tmp_path / "other").write_text("")
    record = write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif")
    assert {file.path.stat().st_mode for file in record.files} == {(tmp_path / "other").stat().st_mode}


# --- layout of several bands ----------------------------------------------------------------------------------------


def test_band_groups_are_read_alike_by_any_gdal_when_each_is_a_file(raster, tmp_path):
    # INTERLEAVE=BAND is ignored in silence by older writers: one file a band group does not depend on it
    cube = spectral(raster)
    for band in ("B02", "B03"):
        record = write_cog(cube.sel(band=[band]), tmp_path / f"{band}.tif")
        info = gdalinfo(record.path)
        assert info["metadata"]["IMAGE_STRUCTURE"]["INTERLEAVE"] == "BAND"
        assert info["bands"][0]["description"] == band


def test_band_interleaving_is_what_was_asked_for(raster, tmp_path):
    record = write_cog(spectral(raster), tmp_path / "a.tif", interleave="band")
    with rasterio.open(record.path) as src:
        assert src.interleaving.name == "band"
    pixel = write_cog(spectral(raster), tmp_path / "b.tif")
    with rasterio.open(pixel.path) as src:
        assert src.interleaving.name == "pixel"
        with rasterio.open(record.path) as other:
            assert np.array_equal(src.read(), other.read())
