"""What GIS users open: cloud-optimised GeoTIFFs, class tables, styles, STAC items and quicklooks."""

from __future__ import annotations

from geoeco.outputs.classes import ClassEntry, ClassTable
from geoeco.outputs.coco import read_coco, write_coco
from geoeco.outputs.cog import CogRecord, WrittenFile, cog_record, remove_leftovers, write_cog
from geoeco.outputs.contact_sheets import contact_sheet
from geoeco.outputs.items import write_item, write_table_item
from geoeco.outputs.preview import quicklook
from geoeco.outputs.score_charts import score_chart
from geoeco.outputs.vectors import WrittenTable, write_gpkg

__all__ = [
    "ClassEntry",
    "ClassTable",
    "CogRecord",
    "WrittenFile",
    "WrittenTable",
    "cog_record",
    "contact_sheet",
    "quicklook",
    "read_coco",
    "remove_leftovers",
    "score_chart",
    "write_coco",
    "write_cog",
    "write_gpkg",
    "write_item",
    "write_table_item",
]
