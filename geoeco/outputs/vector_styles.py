"""QGIS styles of vector layers: a class table as categories, in the colours that the raster of the classes has.

The style goes into the GeoPackage itself (`geoeco.outputs.write_gpkg`), where QGIS looks first. Not for rasters
(`geoeco.outputs.styles`).
"""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree as ET

from geoeco.outputs.classes import ClassEntry, ClassTable
from geoeco.outputs.styles import DOCTYPE

__all__ = ["Shape", "categories_qml"]

Shape = Literal["Point", "LineString", "Polygon"]

# type of the symbol, class of its one layer, and QGIS' number for the geometry
_SYMBOLS = {"Point": ("marker", "SimpleMarker", 0), "LineString": ("line", "SimpleLine", 1)}
_POLYGON = ("fill", "SimpleFill", 2)
_OUTLINE = "35,35,35,255"


def categories_qml(classes: ClassTable, column: str, by: Literal["code", "name"], shape: Shape) -> str:
    """QGIS style that colours each row by its class.

    Parameters
    ----------
    classes : ClassTable
        Each class is a category with its colour, its name as label.
    column : str
        Column of the layer that holds the classes.
    by : {"code", "name"}
        What the column holds.
    shape : {"Point", "LineString", "Polygon"}
        Geometry of the layer, single or multiple.
    """
    symbol_type, layer_class, number = _SYMBOLS.get(shape, _POLYGON)
    root = ET.Element("qgis", {"version": "3.22.0", "styleCategories": "Symbology"})
    renderer = ET.SubElement(
        root,
        "renderer-v2",
        {"type": "categorizedSymbol", "attr": column, "symbollevels": "0", "enableorderby": "0", "forceraster": "0"},
    )
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for position, entry in enumerate(classes):
        value = str(entry.code) if by == "code" else entry.name
        ET.SubElement(
            categories,
            "category",
            {"render": "true", "symbol": str(position), "value": value, "label": entry.name},
        )
        symbol = ET.SubElement(
            symbols,
            "symbol",
            {"name": str(position), "type": symbol_type, "alpha": "1", "clip_to_extent": "1", "force_rhr": "0"},
        )
        layer = ET.SubElement(symbol, "layer", {"class": layer_class, "enabled": "1", "locked": "0", "pass": "0"})
        # the older notation, which later versions read as well
        for key, text in _properties(entry, shape).items():
            ET.SubElement(layer, "prop", {"k": key, "v": text})
    ET.SubElement(root, "blendMode").text = "0"
    ET.SubElement(root, "featureBlendMode").text = "0"
    ET.SubElement(root, "layerGeometryType").text = str(number)
    ET.indent(root, space="  ")
    return DOCTYPE + ET.tostring(root, encoding="unicode") + "\n"


def _properties(entry: ClassEntry, shape: Shape) -> dict[str, str]:
    colour = ",".join(map(str, entry.colour))
    if shape == "LineString":
        return {"line_color": colour, "line_style": "solid", "line_width": "0.5", "line_width_unit": "MM"}
    outline = {
        "outline_color": _OUTLINE,
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
    }
    if shape == "Point":
        return {"color": colour, "name": "circle", "size": "2.5", "size_unit": "MM", **outline}
    return {"color": colour, "style": "solid", "joinstyle": "bevel", **outline}
