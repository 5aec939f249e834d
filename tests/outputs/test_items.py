from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from pystac.extensions.table import TableExtension
from rasterio.warp import transform_bounds

from geoeco.errors import InputError, OutputError
from geoeco.outputs import (
    ClassTable,
    cog_record,
    quicklook,
    write_cog,
    write_gpkg,
    write_item,
    write_table_item,
)
from tests.outputs.stac_schemas import schema_errors

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


def polygons(rows=2, crs=32631) -> gpd.GeoDataFrame:
    shapes = [shapely.box(500_000, 5_600_000, 500_030, 5_600_010), shapely.box(500_030, 5_600_000, 500_100, 5_600_040)]
    frame = gpd.GeoDataFrame(
        {"class": np.array([1, 2], np.int32), "name": list(COVER.names), "score": [0.5, np.nan]},
        geometry=shapes,
        crs=crs,
    )
    return frame.iloc[:rows]


def table(path, **more):
    return write_gpkg(polygons(**more), path, layer="cover", geometry_type="MultiPolygon", classes=COVER)


def test_the_item_of_a_table_is_valid_stac_with_its_columns_rows_and_classes(tmp_path):
    written = table(tmp_path / "cover.gpkg")
    described = {"score": "mean of the confidence", "geom": "outline"}
    write_table_item(tmp_path / "cover.json", written, period=YEAR, title="Cover", descriptions=described)
    document = json.loads((tmp_path / "cover.json").read_text())
    assert schema_errors(document) == []
    item = pystac.Item.from_dict(document)
    held = TableExtension.ext(item)
    assert [(c.name, c.col_type, c.description) for c in held.columns] == [
        ("fid", "integer", None),
        ("geom", "multipolygon", "outline"),
        ("class", "mediumint", None),
        ("name", "text", None),
        ("score", "real", "mean of the confidence"),
    ]
    assert (held.row_count, held.primary_geometry) == (2, "geom")
    asset = item.assets["cover"]
    assert asset.media_type == "application/geopackage+sqlite3"
    content = (tmp_path / asset.href).read_bytes()
    assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    assert asset.extra_fields["file:size"] == len(content)
    classes = ClassificationExtension.ext(asset).classes
    assert [(c.value, c.title, f"#{c.color_hint.lower()}") for c in classes] == [(e.code, e.name, e.hex) for e in COVER]


def test_the_footprint_of_a_table_is_that_of_its_rows_or_of_what_was_looked_at(tmp_path):
    item = write_table_item(tmp_path / "a.json", table(tmp_path / "a.gpkg"), period=YEAR)
    projection = ProjectionExtension.ext(item)
    assert (projection.code, projection.bbox) == ("EPSG:32631", [500_000, 5_600_000, 500_100, 5_600_040])
    assert item.bbox == pytest.approx(transform_bounds(32631, 4326, *projection.bbox, densify_pts=21), abs=1e-6)
    looked_at = (499_000, 5_599_000, 501_000, 5_601_000)
    empty = table(tmp_path / "b.gpkg", rows=0)
    wide = write_table_item(tmp_path / "b.json", empty, period=YEAR, bounds=looked_at)
    assert wide.bbox == pytest.approx(transform_bounds(32631, 4326, *looked_at, densify_pts=21), abs=1e-6)
    assert TableExtension.ext(wide).row_count == 0


def test_the_item_of_a_table_is_the_same_bytes_again_and_leads_to_its_sources(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written = table(tmp_path / name / "cover.gpkg")
        sources = [tmp_path / name / "model" / "mlm.json", "https://example.org/items/S2A"]
        write_table_item(tmp_path / name / "cover.json", written, period=YEAR, derived_from=sources)
    assert (tmp_path / "a/cover.json").read_bytes() == (tmp_path / "b/cover.json").read_bytes()
    links = [link.href for link in json_links(tmp_path / "a/cover.json") if link.rel == "derived_from"]
    assert links == ["./model/mlm.json", "https://example.org/items/S2A"]


def test_items_of_tables_that_would_lie_are_refused(tmp_path):
    empty = table(tmp_path / "a.gpkg", rows=0)
    with pytest.raises(InputError, match="does not say where it lies"):
        write_table_item(tmp_path / "a.json", empty, period=YEAR)
    with pytest.raises(InputError, match="no column 'height'"):
        write_table_item(tmp_path / "a.json", table(tmp_path / "a.gpkg"), period=YEAR, descriptions={"height": "m"})
    with pytest.raises(InputError, match="ends before it begins"):
        write_table_item(tmp_path / "a.json", table(tmp_path / "a.gpkg"), period=YEAR[::-1])
    assert not (tmp_path / "a.json").exists()
