"""Which places and which dates: location grids, season windows, image choice, chips and splits."""

from __future__ import annotations

from geoeco.sampling.chips import chips_table, season_chips
from geoeco.sampling.circular import circular_distance, circular_median, circular_spread, day_of_year
from geoeco.sampling.footprints import chip_geobox
from geoeco.sampling.grids import major_tom_grid
from geoeco.sampling.images import REASONS, choose_images
from geoeco.sampling.land import is_land, land_mask, natural_earth
from geoeco.sampling.places import check_locations, points_from_table, sort_by_place
from geoeco.sampling.splits import assert_disjoint, footprint_rings, spatial_split
from geoeco.sampling.stores import chips_memory, chips_template, finish_chips, open_chips, store_chips, write_chips
from geoeco.sampling.windows import SEASONS, calendar_windows, season_windows

__all__ = [
    "REASONS",
    "SEASONS",
    "assert_disjoint",
    "calendar_windows",
    "check_locations",
    "chip_geobox",
    "chips_memory",
    "chips_table",
    "chips_template",
    "choose_images",
    "circular_distance",
    "circular_median",
    "circular_spread",
    "day_of_year",
    "finish_chips",
    "footprint_rings",
    "is_land",
    "land_mask",
    "major_tom_grid",
    "natural_earth",
    "open_chips",
    "points_from_table",
    "season_chips",
    "season_windows",
    "sort_by_place",
    "spatial_split",
    "store_chips",
    "write_chips",
]
