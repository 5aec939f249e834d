"""The two XML documents that GDAL reads beside pixels: the virtual raster and the ``.aux.xml`` sidecar.

rasterio has no interface for category names and attribute tables; a virtual raster (VRT) that is copied to a COG
carries them, with colours, descriptions, units, statistics and overviews, in one go. The sidecar repeats names and
attribute table, because readers before GDAL 3.11 look for them only there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.etree import ElementTree as ET

from geoeco.outputs.classes import ClassEntry, ClassTable
from geoeco.outputs.layout import Layout
from geoeco.outputs.pyramid import BandStatistics, Planes, gdal_type

__all__ = ["aux_xml", "read_aux_xml", "read_statistics", "statistics_tags", "vrt_xml"]

# GDALRATFieldType (0 integer, 2 string) and GDALRATFieldUsage
_RAT_COLUMNS = (
    ("Value", 0, 5),
    ("Count", 0, 1),
    ("Class", 2, 2),
    ("Red", 0, 6),
    ("Green", 0, 7),
    ("Blue", 0, 8),
    ("Alpha", 0, 9),
)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _metadata(parent: ET.Element, tags: Mapping[str, str], domain: str = "") -> None:
    if not tags:
        return
    element = ET.SubElement(parent, "Metadata", {"domain": domain} if domain else {})
    for key, value in tags.items():
        _text(element, "MDI", value, key=key)


def _categories(parent: ET.Element, classes: ClassTable) -> None:
    names = dict(zip(classes.codes, classes.names, strict=True))
    element = ET.SubElement(parent, "CategoryNames")
    for code in range(classes.codes[-1] + 1):
        _text(element, "Category", names.get(code, ""))


def _attribute_table(parent: ET.Element, classes: ClassTable, counts: Mapping[int, int]) -> None:
    table = ET.SubElement(parent, "GDALRasterAttributeTable", {"tableType": "thematic"})
    large = max(counts.values(), default=0) > 2**31 - 1
    for index, (name, kind, usage) in enumerate(_RAT_COLUMNS):
        # GDAL's integer column has 32 bits: larger counts become real numbers (type 1)
        kind = 1 if large and name == "Count" else kind
        column = ET.SubElement(table, "FieldDefn", {"index": str(index)})
        _text(column, "Name", name)
        _text(column, "Type", str(kind))
        _text(column, "Usage", str(usage))
    for index, entry in enumerate(classes):
        row = ET.SubElement(table, "Row", {"index": str(index)})
        for value in (entry.code, counts.get(entry.code, 0), entry.name, *entry.colour):
            _text(row, "F", str(value))


def _colour_table(parent: ET.Element, classes: ClassTable) -> None:
    colours = {entry.code: entry.colour for entry in classes}
    table = ET.SubElement(parent, "ColorTable")
    for code in range(classes.codes[-1] + 1):
        c1, c2, c3, c4 = colours.get(code, (0, 0, 0, 0))
        ET.SubElement(table, "Entry", {"c1": str(c1), "c2": str(c2), "c3": str(c3), "c4": str(c4)})


def statistics_tags(statistics: BandStatistics) -> dict[str, str]:
    """GDAL's band tags for the statistics of a band."""
    values = {"VALID_PERCENT": 100 * statistics.valid / statistics.total}
    if statistics.valid:
        values |= {
            "MAXIMUM": statistics.maximum,
            "MEAN": statistics.mean,
            "MINIMUM": statistics.minimum,
            "STDDEV": statistics.std,
        }
    return {f"STATISTICS_{key}": f"{value:.10g}" for key, value in sorted(values.items())}


def _source(parent: ET.Element, planes: Planes, band: int) -> None:
    _text(parent, "SourceFilename", planes.source(), relativeToVRT="0")
    _text(parent, "SourceBand", str(band))


def vrt_xml(
    layout: Layout,
    base: Planes,
    overviews: Iterable[Planes],
    statistics: Iterable[BandStatistics],
    counts: Mapping[int, int],
    tags: Mapping[str, str],
) -> str:
    """Virtual raster over finished levels, with everything that the COG is to carry."""
    height, width = layout.shape
    size = {"xSize": str(width), "ySize": str(height), "xOff": "0", "yOff": "0"}
    levels = list(overviews)
    per_band = list(statistics)
    root = ET.Element("VRTDataset", {"rasterXSize": str(width), "rasterYSize": str(height)})
    # without an axis mapping GDAL takes x (or longitude) first, whatever the CRS's authority prescribes
    _text(root, "SRS", layout.crs.to_wkt(version="WKT2_2019"))
    _text(root, "GeoTransform", ", ".join(repr(float(part)) for part in layout.transform.to_gdal()))
    _metadata(root, {"AREA_OR_POINT": "Area", **tags})
    for number, band in enumerate(layout.bands, start=1):
        element = ET.SubElement(root, "VRTRasterBand", {"dataType": gdal_type(layout.dtype), "band": str(number)})
        own: dict[str, str] = {}
        imagery: dict[str, str] = {}
        if band.wavelength is not None:
            own |= {"wavelength": f"{band.wavelength:g}", "wavelength_units": "nm"}
            imagery["CENTRAL_WAVELENGTH_UM"] = f"{band.wavelength / 1000:.10g}"
        if band.fwhm is not None:
            own["fwhm"] = f"{band.fwhm:g}"
            imagery["FWHM_UM"] = f"{band.fwhm / 1000:.10g}"
        if per_band:
            own |= statistics_tags(per_band[number - 1])
        _text(element, "Description", band.name)
        _metadata(element, own)
        _metadata(element, imagery, "IMAGERY")
        _text(element, "NoDataValue", repr(layout.nodata))
        if layout.units:
            _text(element, "UnitType", layout.units)
        if layout.scaled:
            _text(element, "Offset", repr(layout.offset))
            _text(element, "Scale", repr(layout.scale))
        if layout.classes is not None:
            _text(element, "ColorInterp", "Palette")
            _colour_table(element, layout.classes)
            _categories(element, layout.classes)
            _attribute_table(element, layout.classes, counts)
        else:
            _text(element, "ColorInterp", "Gray" if number == 1 else "Undefined")
        source = ET.SubElement(element, "SimpleSource")
        _source(source, base, number)
        ET.SubElement(source, "SrcRect", size)
        ET.SubElement(source, "DstRect", size)
        for level in levels:
            _source(ET.SubElement(element, "Overview"), level, number)
    return ET.tostring(root, encoding="unicode")


def aux_xml(classes: ClassTable, counts: Mapping[int, int]) -> str:
    """Sidecar of a class map: category names and the one attribute table."""
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", {"band": "1"})
    _categories(band, classes)
    _attribute_table(band, classes, counts)
    ET.indent(root, space="  ")
    return ET.tostring(root, encoding="unicode") + "\n"


def read_aux_xml(text: str, name: str) -> tuple[ClassTable | None, dict[int, int]]:
    """Class table and pixel counts from a sidecar that `aux_xml` made; None where it has no attribute table."""
    # our own sidecars only; expat of the standard library expands no external entities
    table = ET.fromstring(text).find(".//GDALRasterAttributeTable")  # noqa: S314
    if table is None:
        return None, {}
    entries, counts = [], {}
    for row in table.iter("Row"):
        code, count, label, *colour = [cell.text or "" for cell in row.iter("F")]
        red, green, blue, alpha = (int(part) for part in colour)
        entries.append(ClassEntry(int(code), label, (red, green, blue, alpha)))
        if float(count):
            counts[int(code)] = int(float(count))
    return ClassTable(tuple(entries), name), counts


def read_statistics(tags: Mapping[str, str], total: int) -> BandStatistics:
    """Statistics from the band tags that `statistics_tags` made, of a raster of `total` pixels."""
    keys = ("MINIMUM", "MAXIMUM", "MEAN", "STDDEV")
    values = [float(tags.get(f"STATISTICS_{key}", "nan")) for key in keys]
    valid = round(float(tags.get("STATISTICS_VALID_PERCENT", "0")) / 100 * total)
    return BandStatistics(valid, total, *values)
