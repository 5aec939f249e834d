"""What GIS users open: cloud-optimised GeoTIFFs, class tables, styles, STAC items and quicklooks."""

from __future__ import annotations

from geoeco.outputs.classes import ClassEntry, ClassTable
from geoeco.outputs.cog import CogRecord, WrittenFile, write_cog, write_cog_blocks

__all__ = ["ClassEntry", "ClassTable", "CogRecord", "WrittenFile", "write_cog", "write_cog_blocks"]
