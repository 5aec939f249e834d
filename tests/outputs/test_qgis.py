"""Maps and polygons opened and drawn by QGIS itself, where the system's Python has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image

from geoeco.mapping import class_polygons
from geoeco.outputs import ClassTable, write_cog, write_gpkg

pytestmark = pytest.mark.slow

PYTHON = "/usr/bin/python3"
COLOURS = {1: "#1b7837", 2: "#a6dba0", 3: "#f0e442", 4: "#2166ac", 5: "#b2182b"}
COVER = ClassTable.of({1: "wood & <hedge>", 2: "grass", 3: "maize", 4: "Gewässer", 5: "town"}, COLOURS, name="cover")

# what QGIS knows of each file, and a drawing of it at one pixel for two (so that an overview is read)
OPEN = """
import json, os, sys
from qgis.core import (QgsApplication, QgsMapRendererSequentialJob, QgsMapSettings, QgsPointXY, QgsRasterLayer)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
app = QgsApplication([], False)
app.initQgis()
known = []
for path in sys.argv[1:]:
    layer = QgsRasterLayer(path, "map")
    renderer, provider = layer.renderer(), layer.dataProvider()
    said = {"valid": layer.isValid(), "crs": layer.crs().authid(), "renderer": renderer.type(),
            "band": layer.bandName(1), "nodata": provider.sourceNoDataValue(1),
            "value": provider.sample(QgsPointXY(layer.extent().center()), 1)[0]}
    if renderer.type() == "paletted":
        said["classes"] = [[c.value, c.label, c.color.name()] for c in renderer.classes()]
    if renderer.type() == "singlebandpseudocolor":
        ramp = renderer.shader().rasterShaderFunction()
        said["stops"] = [[item.value, item.label] for item in ramp.colorRampItemList()]
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setDestinationCrs(layer.crs())
    settings.setExtent(layer.extent())
    settings.setOutputSize(QSize(layer.width() // 2, layer.height() // 2))
    settings.setBackgroundColor(QColor(255, 255, 255))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    said["drawn"] = not job.errors() and job.renderedImage().save(path + ".png")
    known.append(said)
print(json.dumps(known))
sys.stdout.flush()
# QGIS takes its layers apart in an order of its own when the interpreter ends
os._exit(0)
"""


# the same of the layer that a GeoPackage opens with, at a pixel a metre
OPEN_VECTORS = """
import json, os, sys
from qgis.core import QgsApplication, QgsMapRendererSequentialJob, QgsMapSettings, QgsVectorLayer
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
app = QgsApplication([], False)
app.initQgis()
known = []
for path in sys.argv[1:]:
    layer = QgsVectorLayer(path, "polygons", "ogr")
    renderer, extent = layer.renderer(), layer.extent()
    said = {"valid": layer.isValid(), "crs": layer.crs().authid(), "rows": layer.featureCount(),
            "table": [[row["class"], row["name"], row.geometry().area()] for row in layer.getFeatures()],
            "renderer": renderer.type()}
    if renderer.type() == "categorizedSymbol":
        said["column"] = renderer.classAttribute()
        said["classes"] = [[c.value(), c.label(), c.symbol().color().name()] for c in renderer.categories()]
    if said["rows"]:
        settings = QgsMapSettings()
        settings.setLayers([layer])
        settings.setDestinationCrs(layer.crs())
        settings.setExtent(extent)
        settings.setOutputSize(QSize(round(extent.width()), round(extent.height())))
        settings.setBackgroundColor(QColor(255, 255, 255))
        job = QgsMapRendererSequentialJob(settings)
        job.start()
        job.waitForFinished()
        said["drawn"] = not job.errors() and job.renderedImage().save(path + ".png")
    known.append(said)
print(json.dumps(known))
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that opens files with QGIS and gives what it says of each."""
    home = tmp_path_factory.mktemp("qgis")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LANG": "C.UTF-8"}
    environment["QT_QPA_PLATFORM"] = "offscreen"

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [PYTHON, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    if not Path(PYTHON).exists() or run("import qgis.core").returncode:
        pytest.skip(f"{PYTHON} has no PyQGIS: that maps open right in QGIS itself is not checked")

    def look(*paths: Path, code: str = OPEN) -> list[dict[str, Any]]:
        done = run(code, *map(str, paths))
        assert done.returncode == 0, done.stderr
        said: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return said

    return look


def drawing(path: Path) -> np.ndarray:
    """Red, green and blue of the drawing ``(y, x, 3)``."""
    return np.asarray(Image.open(f"{path}.png").convert("RGB"))


def rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour.removeprefix("#")))


def test_qgis_shows_a_class_map_with_its_names_and_colours(raster, patches, tmp_path, opened):
    codes = patches(1100, 1200)
    styled = write_cog(raster(codes, kind="class", name="cover"), tmp_path / "cover.tif", classes=COVER).path
    bare = tmp_path / "bare.tif"
    shutil.copy(styled, bare)
    shutil.copy(f"{styled}.aux.xml", f"{bare}.aux.xml")
    for path, said in zip((styled, bare), opened(styled, bare), strict=True):
        assert (said["valid"], said["crs"], said["nodata"], said["band"]) == (True, "EPSG:32631", 255, "Band 1: cover")
        # with its style, and from colours and names of the file alone
        assert said["renderer"] == "paletted"
        shown = {value: [label, colour] for value, label, colour in said["classes"]}
        assert [shown[e.code] for e in COVER] == [[e.name, e.hex] for e in COVER]
        assert said["value"] == codes[550, 600]
        # patches of sixteen pixels are eight wide in the drawing; their middles have one class
        seen = drawing(path)[4::8, 4::8]
        expected = np.array([rgb(COLOURS.get(code, "#ffffff")) for code in codes[8::16, 8::16].ravel()])
        assert np.array_equal(seen[: codes[8::16].shape[0]].reshape(-1, 3), expected)


@pytest.mark.parametrize("storage", [{}, {"scale": 0.01, "offset": 20.0}], ids=["float32", "int16"])
def test_qgis_colours_a_continuous_map_by_its_values_in_their_unit(raster, tmp_path, opened, storage):
    values = np.tile(np.linspace(60, 100, 1200), (1100, 1)).astype(np.float32)
    values[:100, :200] = np.nan
    path = write_cog(raster(values, units="g m-2", name="lma"), tmp_path / "lma.tif", **storage).path
    (said,) = opened(path)
    assert (said["valid"], said["crs"], said["band"]) == (True, "EPSG:32631", "Band 1: lma")
    assert said["value"] == pytest.approx(values[550, 600], abs=0.04)
    assert said["renderer"] == "singlebandpseudocolor"
    assert (said["stops"][0][0], said["stops"][-1][0]) == pytest.approx((60, 100), abs=0.05)
    assert said["stops"][0][1].endswith(" g m-2")
    picture = drawing(path).astype(int)
    assert (picture[:49, :99] == 255).all()
    # viridis: from dark to light
    light = picture[300].sum(axis=1)
    assert light[20] < light[300] < light[580]


def test_qgis_labels_dates_as_calendar_days(raster, tmp_path, opened):
    days = np.tile(np.linspace(17591, 17713, 600), (600, 1))
    path = write_cog(raster(days, kind="date", units="days since 1970-01-01", name="sos"), tmp_path / "sos.tif").path
    (said,) = opened(path)
    assert said["nodata"] == -32768
    assert all(np.datetime64(label, "D").astype(int) == value for value, label in said["stops"])


def test_qgis_shows_polygons_in_the_colours_of_the_map_and_under_its_names(raster, patches, tmp_path, opened):
    codes = patches(220, 240)
    classes = raster(codes, kind="class", name="cover").assign_attrs(COVER.to_attrs())
    made = class_polygons(classes, min_area_m2=3000)
    paths = [tmp_path / f"{name}.gpkg" for name in ("codes", "names", "none")]
    for path, rows, column in zip(paths, (made, made, made.iloc[:0]), ("class", "name", "class"), strict=True):
        write_gpkg(rows, path, layer="cover", geometry_type="MultiPolygon", classes=COVER, class_column=column)
    by_code, by_name, empty = opened(*paths, code=OPEN_VECTORS)
    for said, column in ((by_code, "class"), (by_name, "name")):
        assert (said["valid"], said["crs"], said["rows"], said["drawn"]) == (True, "EPSG:32631", len(made), True)
        assert [row[:2] for row in said["table"]] == made[["class", "name"]].to_numpy().tolist()
        assert [row[2] for row in said["table"]] == pytest.approx(shapely.area(made.geometry.array).tolist())
        assert (said["renderer"], said["column"]) == ("categorizedSymbol", column)
        keys = [str(e.code) for e in COVER] if column == "class" else list(COVER.names)
        assert said["classes"] == [[key, e.name, e.hex] for key, e in zip(keys, COVER, strict=True)]
    assert (empty["valid"], empty["rows"], empty["crs"]) == (True, 0, "EPSG:32631")
    picture = drawing(paths[0])
    assert np.array_equal(picture, drawing(paths[1]))
    for row in made.itertuples():
        point = row.geometry.representative_point()
        left, _, _, top = made.total_bounds
        seen = picture[int(top - point.y), int(point.x - left)].tolist()
        assert seen == rgb(COLOURS[row[2]]), row
