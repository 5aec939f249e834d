"""Tables on the map: areas of interest, points and crowns, read with their CRS checked and their geometry valid.

Not about grids (`geoeco.grid`) nor about what is sampled at the points and crowns (`geoeco.sampling`).
"""

from __future__ import annotations

from geoeco.vectors.areas import AreaSource, area_of_interest
from geoeco.vectors.boxes import read_boxes
from geoeco.vectors.crowns import read_crowns, read_split_areas
from geoeco.vectors.points import PointSource, points_table, read_table

__all__ = [
    "AreaSource",
    "PointSource",
    "area_of_interest",
    "points_table",
    "read_boxes",
    "read_crowns",
    "read_split_areas",
    "read_table",
]
