"""Which places and which dates: location grids, season windows, image choice, chips and splits."""

from __future__ import annotations

from geoeco.sampling.circular import circular_distance, circular_median, circular_spread, day_of_year
from geoeco.sampling.footprints import chip_geobox
from geoeco.sampling.grids import major_tom_grid
from geoeco.sampling.land import is_land, land_mask, natural_earth
from geoeco.sampling.places import check_locations, points_from_table
from geoeco.sampling.splits import assert_disjoint, footprint_rings, spatial_split
from geoeco.sampling.windows import SEASONS, calendar_windows, season_windows

__all__ = [
    "SEASONS",
    "assert_disjoint",
    "calendar_windows",
    "check_locations",
    "chip_geobox",
    "circular_distance",
    "circular_median",
    "circular_spread",
    "day_of_year",
    "footprint_rings",
    "is_land",
    "land_mask",
    "major_tom_grid",
    "natural_earth",
    "points_from_table",
    "season_windows",
    "spatial_split",
]
