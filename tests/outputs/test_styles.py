"""Styles: QGIS itself is not run; a style must be complete, and must say what the file beside it says."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from geoeco.outputs import ClassTable, write_cog


def style_of(record):
    text = record.path.with_suffix(".qml").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n")
    return ET.fromstring(text.split("\n", 1)[1])


# what QGIS writes when it saves a whole raster style; a part that is missing is reset to its default on loading
COMPLETE = ["flags", "pipe/provider/resampling", "pipe/rasterrenderer", "pipe/brightnesscontrast"]
COMPLETE += ["pipe/huesaturation", "pipe/rasterresampler", "pipe/resamplingStage", "blendMode"]


@pytest.mark.parametrize("kind", ["class", "continuous", "count", "angle", "date"])
def test_every_kind_has_a_complete_style(raster, tmp_path, kind):
    values = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    root = style_of(write_cog(raster(values, kind=kind, units="deg"), tmp_path / "a.tif"))
    assert root.get("styleCategories") == "AllStyleCategories"
    assert [part for part in COMPLETE if root.find(part) is None] == []
    renderer = root.find("pipe/rasterrenderer")
    assert (renderer.get("opacity"), renderer.get("band")) == ("1", "1")


def test_the_palette_says_what_the_attribute_table_says(raster, tmp_path):
    table = ClassTable.of({0: "bare", 2: 'wood & "hedge" <x>', 9: "Gewässer"}, ["#aa0000", "#00bb00", (0, 0, 204, 128)])
    record = write_cog(raster(np.array([[0, 2, 9]], np.uint8), kind="class"), tmp_path / "a.tif", classes=table)
    renderer = style_of(record).find("pipe/rasterrenderer")
    assert renderer.get("type") == "paletted"
    shown = [
        (entry.get("value"), entry.get("label"), entry.get("color"), entry.get("alpha"))
        for entry in renderer.iter("paletteEntry")
    ]
    rows = [[cell.text for cell in row.iter("F")] for row in ET.parse(f"{record.path}.aux.xml").getroot().iter("Row")]
    hexes = ["#{:02x}{:02x}{:02x}".format(*map(int, row[3:6])) for row in rows]
    assert shown == [(row[0], row[2], colour, row[6]) for row, colour in zip(rows, hexes, strict=True)]
    assert len(shown) == 3


def test_continuous_maps_are_coloured_over_their_values_in_their_unit(raster, tmp_path):
    values = np.linspace(10, 20, 10_000).reshape(100, 100)
    record = write_cog(raster(values, units="g m-2"), tmp_path / "a.tif", scale=0.001)
    shader = style_of(record).find("pipe/rasterrenderer/rastershader/colorrampshader")
    stops = [float(item.get("value")) for item in shader.iter("item")]
    assert all(a < b for a, b in pairwise(stops))
    # physical values, not stored ones: QGIS applies scale and offset before it colours
    assert (stops[0], stops[-1]) == pytest.approx((10, 20), abs=0.002)
    assert shader.find("item").get("label").endswith(" g m-2")


def test_dates_are_labelled_as_calendar_days(raster, tmp_path):
    days = np.linspace(17591, 17713, 100).reshape(10, 10)
    record = write_cog(raster(days, kind="date", units="days since 1970-01-01"), tmp_path / "a.tif")
    items = list(style_of(record).iter("item"))
    for item in items:
        assert np.datetime64(item.get("label"), "D").astype(int) == int(item.get("value"))
    assert items[0].get("label") == "2018-03-01"


def test_days_of_the_year_are_no_calendar_days(raster, tmp_path):
    days = np.linspace(19, 216, 100).reshape(10, 10)
    record = write_cog(raster(days, kind="date", units="d"), tmp_path / "a.tif")
    labels = [item.get("label") for item in style_of(record).iter("item")]
    assert labels[0].startswith("day ")
    assert not any("1970" in label for label in labels)


def test_angles_are_coloured_around_the_whole_circle(raster, tmp_path):
    record = write_cog(raster(np.full((5, 5), 40.0), kind="angle", units="deg"), tmp_path / "a.tif")
    items = list(style_of(record).iter("item"))
    assert (items[0].get("value"), items[-1].get("value")) == ("0", "360")
    assert items[0].get("color") == items[-1].get("color")


def test_spectral_rasters_are_shown_in_natural_colour(raster, tmp_path):
    centres = [842.0, 665.0, 490.0, 560.0]
    array = raster(np.random.default_rng(0).random((4, 9, 9))).assign_coords(wavelength=("band", centres))
    renderer = style_of(write_cog(array, tmp_path / "a.tif")).find("pipe/rasterrenderer")
    assert renderer.get("type") == "multibandcolor"
    assert [renderer.get(f"{colour}Band") for colour in ("red", "green", "blue")] == ["2", "4", "3"]


def test_a_map_without_valid_pixels_still_has_a_style(raster, tmp_path):
    shader = style_of(write_cog(raster(np.full((5, 5), np.nan)), tmp_path / "a.tif")).find(".//colorrampshader")
    assert (shader.get("minimumValue"), shader.get("maximumValue")) == ("0", "1")


def test_a_style_can_be_left_out_and_then_an_own_one_stays(raster, tmp_path):
    (tmp_path / "a.qml").write_text("mine")
    record = write_cog(raster(np.ones((5, 5))), tmp_path / "a.tif", style=False)
    assert record.sidecars == ()
    assert (tmp_path / "a.qml").read_text() == "mine"
