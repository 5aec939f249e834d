"""Styles of vector layers inside the GeoPackage: the table's own categories, in a file that stays valid."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely

from geoeco.errors import InputError
from geoeco.outputs import ClassTable, write_gpkg
from geoeco.vectors import read_crowns

COVER = ClassTable.of(
    {0: "wood & <hedge>", 3: "Gewässer", 7: 'said "town"'}, {0: "#1b7837", 3: "#2166ac80", 7: "#b2182b"}, name="cover"
)
FILLS = {"0": "27,120,55,255", "3": "33,102,172,128", "7": "178,24,43,255"}


def fields(shapes=None) -> gpd.GeoDataFrame:
    shapes = [shapely.box(x, 0, x + 1, 1) for x in (0, 1, 2)] if shapes is None else shapes
    return gpd.GeoDataFrame(
        {"class": np.array([3, 0, 3], np.int32), "name": ["Gewässer", "wood & <hedge>", None], "crown_id": [1, 2, 3]},
        geometry=shapes,
        crs=32631,
    )


def style_of(path) -> ET.Element:
    """The style that QGIS takes: the default one of the layer's own name and geometry column."""
    with sqlite3.connect(path) as file:
        (text,) = file.execute(
            "SELECT styleQML FROM layer_styles WHERE useAsDefault AND f_table_schema = '' AND (f_table_name, "
            "f_geometry_column) = (SELECT table_name, column_name FROM gpkg_geometry_columns)"
        ).fetchone()
    return ET.fromstring(text)


def categories(style: ET.Element) -> dict[str, tuple[str, str]]:
    """Label and fill of each category by its value."""
    fills = {
        symbol.get("name"): symbol.find("layer/prop[@k='color']").get("v")
        for symbol in style.iterfind("renderer-v2/symbols/symbol")
    }
    found = style.iterfind("renderer-v2/categories/category")
    return {one.get("value"): (one.get("label"), fills[one.get("symbol")]) for one in found}


def test_each_class_is_a_category_in_the_tables_colour_under_its_code_or_its_name(tmp_path):
    codes = style_of(write_gpkg(fields(), tmp_path / "a.gpkg", layer="fields", classes=COVER).path)
    assert codes.find("renderer-v2").get("attr") == "class"
    assert categories(codes) == {str(e.code): (e.name, FILLS[str(e.code)]) for e in COVER}
    names = style_of(write_gpkg(fields(), tmp_path / "b.gpkg", layer="fields", classes=COVER, class_column="name").path)
    assert names.find("renderer-v2").get("attr") == "name"
    assert categories(names) == {e.name: (e.name, FILLS[str(e.code)]) for e in COVER}


@pytest.mark.parametrize(
    ("shapes", "symbol"),
    [
        ([shapely.Point(x, 0) for x in range(3)], "marker"),
        ([shapely.LineString([(x, 0), (x, 1)]) for x in range(3)], "line"),
    ],
)
def test_points_and_lines_have_symbols_of_their_own(tmp_path, shapes, symbol):
    written = write_gpkg(fields(shapes), tmp_path / "a.gpkg", layer="fields", classes=COVER)
    assert {one.get("type") for one in style_of(written.path).iter("symbol")} == {symbol}


def test_the_file_is_a_geopackage_all_the_same_and_the_same_bytes_again(tmp_path):
    first = write_gpkg(fields(), tmp_path / "a.gpkg", layer="fields", classes=COVER, tags={"K": "v"})
    second = write_gpkg(fields(), tmp_path / "b.gpkg", layer="fields", classes=COVER, tags={"K": "v"})
    assert first.path.read_bytes() == second.path.read_bytes()
    with sqlite3.connect(first.path) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
        contents = "SELECT table_name, data_type, last_change FROM gpkg_contents"
        assert file.execute(contents).fetchall() == [
            ("fields", "features", "1970-01-01T00:00:00.000Z"),
            ("layer_styles", "attributes", "1970-01-01T00:00:00.000Z"),
        ]
        assert file.execute("SELECT update_time FROM layer_styles").fetchall() == [("1970-01-01T00:00:00.000Z",)]
    assert pyogrio.read_info(first.path, layer="fields")["layer_metadata"]["K"] == "v"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.gpkg", "b.gpkg"]


def test_geoeco_reads_the_layer_without_its_name(tmp_path):
    written = write_gpkg(fields(), tmp_path / "a.gpkg", layer="crowns", classes=COVER)
    assert read_crowns(written.path, class_column="name")["crown_id"].tolist() == [1, 2, 3]


@pytest.mark.skipif(shutil.which("ogrinfo") is None, reason="the system has no GDAL of its own")
def test_an_older_gdal_reads_the_layer_and_the_table_of_styles(tmp_path):
    written = write_gpkg(fields(), tmp_path / "a.gpkg", layer="fields", classes=COVER)
    done = subprocess.run(["ogrinfo", "-al", "-so", written.path], capture_output=True, text=True, check=True)
    assert "Layer name: fields" in done.stdout
    assert "Feature Count: 3" in done.stdout
    assert "Layer name: layer_styles" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.assign(**{"class": [3, 4, 0]}), {}, "'cover' has not: 4"),
        (lambda f: f.assign(name=["Gewässer", "sea", ""]), {"class_column": "name"}, "has not: , sea"),
        (lambda f: f, {"class_column": "species"}, "no column 'species'"),
        (lambda f: f, {"layer": "layer_styles"}, "not a name for a layer"),
    ],
)
def test_classes_that_would_not_be_drawn_are_refused(tmp_path, change, options, message):
    with pytest.raises(InputError, match=message):
        write_gpkg(change(fields()), tmp_path / "a.gpkg", **({"layer": "fields", "classes": COVER} | options))
    assert not list(tmp_path.iterdir())
