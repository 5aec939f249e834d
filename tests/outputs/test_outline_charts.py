"""Outlines over a picture: what the legend says, and that no name breaks the picture."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from matplotlib.figure import Figure
from PIL import Image

from geoeco.outputs import outline_charts
from geoeco.outputs.outline_charts import outline_chart

IMAGE = np.full((50, 60, 3), 200, np.uint8)


def frame(names: list[str | None]) -> gpd.GeoDataFrame:
    shapes = [shapely.box(number % 60, 0, number % 60 + 1, 5) for number in range(len(names))]
    return gpd.GeoDataFrame({"name": names}, geometry=shapes, crs=32652)


def drawn(names: list[str | None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], tuple[int, int]]:
    """Lines of the legend, and the size of the picture."""
    figures: list[Figure] = []
    save = outline_charts.save_figure
    monkeypatch.setattr(
        outline_charts, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
    )
    path = outline_chart(IMAGE, (0, 0, 60, 50), frame(names), folder / "chart.png", column="name")
    with Image.open(path) as picture:
        return [text.get_text() for text in figures[0].legends[0].get_texts()], picture.size


def test_each_name_has_a_line_with_its_number_of_rows(tmp_path, monkeypatch):
    lines, _ = drawn(["oak", "elm\nwych", "oak", "$a$", None, " ", float("nan")], tmp_path, monkeypatch)
    assert sorted(lines) == ["$a$ (1)", "elm wych (1)", "not known (3)", "oak (2)"]


def test_a_name_without_end_does_not_make_a_picture_without_end(tmp_path, monkeypatch):
    lines, (width, height) = drawn(["x" * 100_000, "a\x01b"], tmp_path, monkeypatch)
    assert lines[1] == f"{'x' * 39}… (1)"
    assert width < 1500
    assert height < 1000


def test_a_legend_without_room_has_the_commonest_names(tmp_path, monkeypatch):
    names = [f"species {number}" for number in range(300)] + ["species 7"] * 2 + ["species 299"] * 3
    lines, (_, height) = drawn(names, tmp_path, monkeypatch)
    assert {"species 7 (3)", "species 299 (4)"} < set(lines)
    assert lines[-1] == f"and {300 - (len(lines) - 1)} more"
    assert len(lines) * 14 < height
