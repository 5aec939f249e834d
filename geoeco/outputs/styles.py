"""QGIS layer styles (QML) beside rasters.

QGIS loads ``map.qml`` with ``map.tif`` by itself and then takes the *whole* style from it, so a style is written
complete: renderer, colours, contrast, resampling, blending. Colours and names come from the class table that the
TIFF carries too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np

from geoeco.outputs.classes import ClassTable
from geoeco.outputs.layout import Layout
from geoeco.outputs.pyramid import BandStatistics
from geoeco.variables import EPOCH

__all__ = ["DOCTYPE", "colour_stops", "display_range", "qml", "rgb_bands"]

#: First line of a style.
DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_STEPS = 9

# viridis (van der Walt & Smith 2015, CC0) for quantities; for dates the order of the year, from spring green over
# summer yellow to autumn red; for angles a cycle that ends where it begins
_RAMPS = {
    "continuous": ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"),
    "count": ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"),
    "date": ("#1a5e8a", "#2b8a7e", "#3fae5f", "#8cc751", "#d9d94b", "#f2b134", "#e57a2e", "#b83a2e", "#6b1f3a"),
    "angle": ("#3b4cc0", "#4f9fd8", "#57c4ad", "#9ccf5c", "#f0e05a", "#f0a04b", "#d5544f", "#8c3b8f", "#3b4cc0"),
}
#: Band centres (nm) of a natural-colour image.
_RGB_NM = (665.0, 560.0, 490.0)


def display_range(
    kind: str, units: str, statistics: BandStatistics, scale: float, offset: float
) -> tuple[float, float]:
    """Values between which a band is coloured: its mean plus and minus two standard deviations, within its range.

    Angles in degrees take the full circle.
    """
    if kind == "angle" and units.startswith(("deg", "°")):
        return 0.0, 360.0
    if not statistics.valid:
        return 0.0, 1.0
    low = max(statistics.minimum, statistics.mean - 2 * statistics.std)
    high = min(statistics.maximum, statistics.mean + 2 * statistics.std)
    if kind in ("count", "date"):
        low, high = math.floor(low), math.ceil(high)
    low, high = low * scale + offset, high * scale + offset
    return (low, high) if high > low else (low, low + 1.0)


def colour_stops(kind: str, units: str, low: float, high: float) -> list[tuple[float, str, str]]:
    """List the stops of a kind's colour ramp: value, ``#rrggbb``, label (calendar days for days since 1970)."""
    stops = []
    for value, colour in zip(np.linspace(low, high, _STEPS).tolist(), _RAMPS[kind], strict=True):
        if kind == "date":
            value = round(value)
            # a day of the year is a date too, but no calendar day: its year is not known here
            label = str(EPOCH + np.timedelta64(value, "D")) if units.startswith("days since") else f"day {value}"
        else:
            label = f"{value:.4g}"
        stops.append((value, colour, label))
    return stops


def _paletted(pipe: ET.Element, classes: ClassTable) -> None:
    renderer = _renderer(pipe, "paletted", band="1")
    palette = ET.SubElement(renderer, "colorPalette")
    for entry in classes:
        attributes = {"value": str(entry.code), "label": entry.name, "color": entry.hex, "alpha": str(entry.colour[3])}
        ET.SubElement(palette, "paletteEntry", attributes)


def _renderer(pipe: ET.Element, kind: str, **attributes: str) -> ET.Element:
    attributes = {"type": kind, "opacity": "1", "alphaBand": "-1", "nodataColor": "", **attributes}
    renderer = ET.SubElement(pipe, "rasterrenderer", attributes)
    ET.SubElement(renderer, "rasterTransparency")
    origin = ET.SubElement(renderer, "minMaxOrigin")
    for tag, text in (("limits", "None"), ("extent", "WholeRaster"), ("statAccuracy", "Exact")):
        ET.SubElement(origin, tag).text = text
    return renderer


def _pseudocolour(pipe: ET.Element, layout: Layout, statistics: BandStatistics) -> None:
    low, high = display_range(layout.kind, layout.units, statistics, layout.scale, layout.offset)
    renderer = _renderer(
        pipe, "singlebandpseudocolor", band="1", classificationMin=f"{low:.10g}", classificationMax=f"{high:.10g}"
    )
    shader = ET.SubElement(renderer, "rastershader")
    attributes = {
        "colorRampType": "INTERPOLATED",
        "classificationMode": "1",
        "clip": "0",
        "minimumValue": f"{low:.10g}",
        "maximumValue": f"{high:.10g}",
        "labelPrecision": "4",
    }
    ramp = ET.SubElement(shader, "colorrampshader", attributes)
    for value, colour, label in colour_stops(layout.kind, layout.units, low, high):
        unit = "" if layout.kind == "date" or layout.units == "1" else f" {layout.units}"
        ET.SubElement(
            ramp, "item", {"value": f"{value:.10g}", "label": f"{label}{unit}", "color": colour, "alpha": "255"}
        )
    ET.SubElement(ramp, "rampLegendSettings", {"useContinuousLegend": "0" if layout.kind == "date" else "1"})


def rgb_bands(wavelengths: Sequence[float | None]) -> tuple[int, int, int]:
    """Bands (from 1) to show as red, green and blue: the nearest by wavelength (nm), else the first three."""
    centres = [math.nan if wavelength is None else wavelength for wavelength in wavelengths]
    if any(math.isnan(centre) for centre in centres):
        return 1, 2, 3
    red, green, blue = (int(np.abs(np.asarray(centres) - target).argmin()) + 1 for target in _RGB_NM)
    return red, green, blue


def _multiband(pipe: ET.Element, layout: Layout, statistics: Sequence[BandStatistics]) -> None:
    bands = dict(zip(("red", "green", "blue"), rgb_bands([band.wavelength for band in layout.bands]), strict=True))
    renderer = _renderer(pipe, "multibandcolor", **{f"{colour}Band": str(band) for colour, band in bands.items()})
    for colour, band in bands.items():
        low, high = display_range(layout.kind, layout.units, statistics[band - 1], layout.scale, layout.offset)
        contrast = ET.SubElement(renderer, f"{colour}ContrastEnhancement")
        ET.SubElement(contrast, "minValue").text = f"{low:.10g}"
        ET.SubElement(contrast, "maxValue").text = f"{high:.10g}"
        ET.SubElement(contrast, "algorithm").text = "StretchToMinimumMaximum"


def qml(layout: Layout, statistics: Sequence[BandStatistics]) -> str:
    """Complete QGIS style of a raster.

    Class maps are paletted with their table; continuous rasters of three bands or more are shown in colour (by
    wavelength where bands have one, else the first three); everything else is one band in pseudocolour, dates with
    calendar days as labels.

    Parameters
    ----------
    layout : Layout
        With its class table, for a class map.
    statistics : sequence of BandStatistics
        Of the stored numbers; not used for class maps.
    """
    root = ET.Element(
        "qgis",
        {
            "version": "3.28.0",
            "styleCategories": "AllStyleCategories",
            "hasScaleBasedVisibilityFlag": "0",
            "minScale": "1e+08",
            "maxScale": "0",
        },
    )
    flags = ET.SubElement(root, "flags")
    for tag, text in (("Identifiable", "1"), ("Removable", "1"), ("Searchable", "1"), ("Private", "0")):
        ET.SubElement(flags, tag).text = text
    ET.SubElement(root, "customproperties")
    pipe = ET.SubElement(root, "pipe")
    smooth = layout.kind == "continuous"
    provider = ET.SubElement(pipe, "provider")
    method = "bilinear" if smooth else "nearestNeighbour"
    ET.SubElement(
        provider,
        "resampling",
        {
            "enabled": "false",
            "zoomedInResamplingMethod": "nearestNeighbour",
            "zoomedOutResamplingMethod": method,
            "maxOversampling": "2",
        },
    )
    if layout.classes is not None:
        _paletted(pipe, layout.classes)
    elif layout.kind == "continuous" and len(layout.bands) >= 3:
        _multiband(pipe, layout, statistics)
    else:
        _pseudocolour(pipe, layout, statistics[0])
    ET.SubElement(pipe, "brightnesscontrast", {"brightness": "0", "contrast": "0", "gamma": "1"})
    ET.SubElement(
        pipe,
        "huesaturation",
        {
            "saturation": "0",
            "grayscaleMode": "0",
            "invertColors": "0",
            "colorizeOn": "0",
            "colorizeRed": "255",
            "colorizeGreen": "128",
            "colorizeBlue": "128",
            "colorizeStrength": "100",
        },
    )
    resampler = {"maxOversampling": "2", "zoomedOutResampler": "bilinear"} if smooth else {"maxOversampling": "2"}
    ET.SubElement(pipe, "rasterresampler", resampler)
    ET.SubElement(pipe, "resamplingStage").text = "resamplingFilter"
    ET.SubElement(root, "blendMode").text = "0"
    ET.indent(root, space="  ")
    return DOCTYPE + ET.tostring(root, encoding="unicode") + "\n"
