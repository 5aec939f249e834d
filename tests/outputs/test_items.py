from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil

import numpy as np
import pystac
import pytest
import rasterio
from jsonschema import Draft7Validator
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.warp import transform_bounds
from referencing import Registry, Resource

from geoeco.errors import InputError, OutputError
from geoeco.outputs import ClassTable, cog_record, quicklook, write_cog, write_item

YEAR = (dt.datetime(2018, 1, 1, tzinfo=dt.UTC), dt.datetime(2018, 12, 31, tzinfo=dt.UTC))
COVER = ClassTable.of({1: "beech wood", 2: "Gewässer"}, name="cover")


def outputs(raster, folder):
    codes = np.ones((30, 40), np.uint8)
    codes[:10] = 2
    greenup = np.linspace(17600, 17700, 1200).reshape(30, 40)
    reflectance = np.random.default_rng(0).random((2, 30, 40))
    return {
        "cover": write_cog(raster(codes, kind="class"), folder / "cover.tif", classes=COVER),
        "greenup": write_cog(
            raster(greenup, kind="date", units="days since 1970-01-01", name="greenup"), folder / "greenup.tif"
        ),
        "evi2": write_cog(raster(reflectance, name="evi2"), folder / "evi2.tif", scale=1e-4),
    }


def schema_errors(document):
    """Check against the STAC core schemas that pystac carries; no network."""
    schemas = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(schema)) for uri, schema in schemas.items()])
    item_schema = next(schema for uri, schema in schemas.items() if uri.endswith("/item.json"))
    return [error.message for error in Draft7Validator(item_schema, registry=registry).iter_errors(document)]


def test_the_item_is_valid_stac(raster, tmp_path):
    write_item(tmp_path / "seasons.json", outputs(raster, tmp_path), period=YEAR, title="Seasons 2018")
    document = json.loads((tmp_path / "seasons.json").read_text())
    assert schema_errors(document) == []
    assert document["id"] == "seasons"
    assert document["properties"]["title"] == "Seasons 2018"
    # the check itself must be able to fail
    assert schema_errors({**document, "bbox": "everywhere"}) != []


def test_footprint_box_and_grid_are_those_of_the_raster(raster, tmp_path):
    records = outputs(raster, tmp_path)
    item = write_item(tmp_path / "a.json", records, period=YEAR)
    with rasterio.open(records["cover"].path) as src:
        expected = transform_bounds(src.crs, "EPSG:4326", *src.bounds, densify_pts=21)
        assert item.bbox == pytest.approx(expected, abs=1e-6)
        projection = ProjectionExtension.ext(item)
        assert projection.code == "EPSG:32631"
        assert projection.shape == list(src.shape)
        assert projection.transform == list(src.transform)[:6]
    ring = np.array(item.geometry["coordinates"][0])
    assert [*ring.min(axis=0), *ring.max(axis=0)] == pytest.approx(item.bbox)


def test_an_item_across_the_antimeridian_has_west_greater_than_east(raster, tmp_path):
    array = raster(np.ones((20, 2000), np.float32), crs=32660)
    array = array.assign_coords(x=array.x + 131_000, y=array.y + 1_550_000)
    item = write_item(tmp_path / "a.json", {"x": write_cog(array, tmp_path / "x.tif")}, period=YEAR)
    west, _, east, _ = item.bbox
    assert 179 < west < 180
    assert -180 < east < -179
    assert item.geometry["type"] == "MultiPolygon"


def test_hrefs_are_relative_and_hold_after_the_folder_moved(raster, tmp_path):
    folder = tmp_path / "run"
    records = outputs(raster, folder / "maps")
    picture = quicklook(records["greenup"].path, folder / "maps" / "greenup.png")
    (folder / "model").mkdir()
    (folder / "model" / "mlm.json").write_text("{}")
    write_item(
        folder / "items" / "a.json",
        records,
        period=YEAR,
        derived_from=[folder / "model" / "mlm.json", "https://example.org/items/S2A"],
        thumbnail=picture,
    )
    shutil.move(folder, tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "items" / "a.json"
    item = pystac.Item.from_file(str(path))
    expected = {"cover", "cover-pam", "cover-style", "greenup", "greenup-style", "evi2", "evi2-style", "thumbnail"}
    assert set(item.assets) == expected
    for asset in item.assets.values():
        assert not asset.href.startswith(("/", "file:"))
        assert (path.parent / asset.href).exists()
    model, scene = [link.href for link in json_links(path) if link.rel == "derived_from"]
    assert (path.parent / model).resolve() == (tmp_path / "elsewhere" / "model" / "mlm.json").resolve()
    assert scene == "https://example.org/items/S2A"
    assert "self" not in [link.rel for link in json_links(path)]


def json_links(path):
    return [pystac.Link(link["rel"], link["href"]) for link in json.loads(path.read_text())["links"]]


def test_every_file_has_its_checksum_and_size(raster, tmp_path):
    write_item(tmp_path / "a.json", outputs(raster, tmp_path), period=YEAR)
    for asset in json.loads((tmp_path / "a.json").read_text())["assets"].values():
        content = (tmp_path / asset["href"]).read_bytes()
        # multihash: 0x12 is sha2-256, 0x20 its length
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
        assert asset["file:size"] == len(content)


def test_bands_tell_unit_nodata_scale_and_statistics_in_physical_units(raster, tmp_path):
    item = write_item(tmp_path / "a.json", outputs(raster, tmp_path), period=YEAR)
    bands = RasterExtension.ext(item.assets["evi2"]).bands
    assert [band.properties["name"] for band in bands] == ["evi2_1", "evi2_2"]
    assert (bands[0].nodata, bands[0].unit, bands[0].scale, bands[0].offset) == (-32768, "1", 1e-4, 0)
    assert bands[0].statistics.mean == pytest.approx(np.random.default_rng(0).random((2, 30, 40))[0].mean(), abs=1e-5)
    assert RasterExtension.ext(item.assets["greenup"]).bands[0].unit == "days since 1970-01-01"


def test_classes_are_listed_with_names_colours_and_counts(raster, tmp_path):
    item = write_item(tmp_path / "a.json", outputs(raster, tmp_path), period=YEAR)
    wood, water = ClassificationExtension.ext(item.assets["cover"]).classes
    assert (wood.value, wood.name, wood.title, wood.count) == (1, "beech_wood", "beech wood", 800)
    assert (water.value, water.title, water.count) == (2, "Gewässer", 400)
    assert f"#{wood.color_hint.lower()}" == COVER.entries[0].hex


def test_the_same_outputs_give_the_same_item_also_from_records_read_back(raster, tmp_path):
    records = outputs(raster, tmp_path)
    write_item(tmp_path / "a.json", records, period=YEAR, id="x")
    again = {key: cog_record(record.path) for key, record in records.items()}
    write_item(tmp_path / "b.json", again, period=YEAR, id="x")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_single_date_is_the_items_datetime(raster, tmp_path):
    item = write_item(tmp_path / "a.json", outputs(raster, tmp_path), period=dt.datetime(2018, 6, 1, tzinfo=dt.UTC))
    assert item.to_dict()["properties"]["datetime"] == "2018-06-01T00:00:00Z"


def test_items_that_would_lie_are_refused(raster, tmp_path):
    records = outputs(raster, tmp_path)
    shifted = raster(np.ones((30, 40)))
    shifted = shifted.assign_coords(x=shifted.x + 10)
    with pytest.raises(InputError, match="another grid"):
        write_item(tmp_path / "a.json", {**records, "x": write_cog(shifted, tmp_path / "x.tif")}, period=YEAR)
    with pytest.raises(InputError, match="at least one asset"):
        write_item(tmp_path / "a.json", {}, period=YEAR)
    with pytest.raises(InputError, match="ends before it begins"):
        write_item(tmp_path / "a.json", records, period=YEAR[::-1])
    records["cover"].path.unlink()
    with pytest.raises(OutputError, match="'cover' cannot be read"):
        write_item(tmp_path / "a.json", records, period=YEAR)
    assert not (tmp_path / "a.json").exists()
