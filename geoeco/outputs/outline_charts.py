"""Outlines over a picture as PNG: crowns, chips or polygons on imagery, for reports. Not a map product."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from geoeco.errors import InputError
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.preview import save_figure, shown_name

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["outline_chart"]

_DPI = 100
#: What is written in the legend for rows without a value.
_UNKNOWN = "not known"
_GREY = "#bbbbbb"
#: Height of a line of the legend, dots.
_LEGEND_LINE = 18


def outline_chart(
    image: npt.NDArray[np.uint8],
    bounds: tuple[float, float, float, float],
    frame: gpd.GeoDataFrame,
    path: str | os.PathLike[str],
    *,
    column: str | None = None,
    colours: Mapping[str, str] | None = None,
    title: str = "",
    size: int = 800,
) -> Path:
    """Draw the outlines of shapes over a picture, in colours by a column.

    Parameters
    ----------
    image : numpy.ndarray
        ``(y, x, 3)`` uint8, north up.
    bounds : tuple of float
        Left, bottom, right and top of the image, in the CRS of `frame`.
    frame : geopandas.GeoDataFrame
        Polygons.
    path : path-like
        ``.png``; replaced in one step. The same input gives the same bytes.
    column : str, optional
        With text; its values get a colour each and a legend with their numbers of rows, the commonest ones first where
        there are more than it has room for. All outlines are alike when not given.
    colours : mapping of str to str, optional
        ``"#rrggbb"`` of values; the palette of class maps, in alphabetical order, when not given.
    title : str
    size : int
        Pixels of the longer side of the picture.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If the image is none, or there is no such column.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    left, bottom, right, top = bounds
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or not (right > left and top > bottom):
        raise InputError(f"an image of shape {image.shape} within {bounds}", where=str(path))
    if column is not None and column not in frame.columns:
        raise InputError(f"the table has no column {column!r}", where=str(path))
    values = np.full(len(frame), "", dtype=object) if column is None else _texts(frame[column])
    names = sorted(set(values))
    palette = _palette([name for name in names if name != _UNKNOWN], colours)
    aspect = (top - bottom) / (right - left)
    wide, high = (size, size * aspect) if aspect <= 1 else (size / aspect, size)
    counts = {name: int((values == name).sum()) for name in names}
    listed = sorted(sorted(names, key=lambda name: (-counts[name], name))[: max(1, int(high / _LEGEND_LINE) - 2)])
    labels = [f"{shown_name(name)} ({counts[name]})" for name in listed]
    handles = [Line2D([], [], color=palette.get(name, _GREY), linewidth=3) for name in listed]
    if len(listed) < len(names):
        labels.append(f"and {len(names) - len(listed)} more")
        handles.append(Line2D([], [], linestyle="none"))
    legend = 0.0 if column is None else 0.6 + 0.075 * max(map(len, labels), default=0)
    figure = Figure(figsize=(wide / _DPI + legend + 0.2, high / _DPI + 0.6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image, extent=(left, right, bottom, top), interpolation="nearest")
    for name in names:
        lines = _rings(frame.geometry.to_numpy()[values == name])
        for width, colour, alpha in ((4.0, "black", 0.6), (2.0, palette.get(name, _GREY), 1.0)):
            axes.add_collection(LineCollection(lines, linewidths=width, colors=colour, alpha=alpha))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    if column is not None:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return save_figure(figure, path)


def _texts(values: Any) -> npt.NDArray[np.object_]:
    found = [_UNKNOWN if _missing(value) else str(value) for value in values]
    return np.array(found, dtype=object)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _palette(names: list[str], colours: Mapping[str, str] | None) -> dict[str, str]:
    if not names:
        return {}
    # for its colours
    table = ClassTable.of([f"class {number}" for number in range(len(names))])
    given = dict(colours or {})
    return {name: given.get(name, entry.hex) for name, entry in zip(names, table, strict=True)}


def _rings(shapes: npt.NDArray[np.object_]) -> list[npt.NDArray[np.float64]]:
    """Corners ``(corner, 2)`` of all outer and inner borders."""
    rings = shapely.get_rings(shapely.get_parts(shapes))
    return [shapely.get_coordinates(ring) for ring in rings]
