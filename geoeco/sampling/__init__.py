"""Which places and which dates: location grids, season windows, image choice, chips and splits."""

from __future__ import annotations

from geoeco.sampling.chips import chips_table, season_chips
from geoeco.sampling.circular import circular_distance, circular_median, circular_spread, day_of_year
from geoeco.sampling.closeups import closeup_path, pair_closeups, read_closeup
from geoeco.sampling.footprints import chip_geobox
from geoeco.sampling.grids import major_tom_grid
from geoeco.sampling.images import REASONS, choose_images
from geoeco.sampling.land import is_land, land_mask, natural_earth
from geoeco.sampling.mosaic_chips import ChipPlan, cut_chips
from geoeco.sampling.mosaic_plans import ChipDesign, largest_number, plan_chips
from geoeco.sampling.mosaic_sampling import chip_footprints, crown_chips, grid_chips, random_chips
from geoeco.sampling.mosaic_sources import MosaicSources, open_sources
from geoeco.sampling.mosaic_splits import AreaSplit, BlockSplit, assert_no_leak, share_seen
from geoeco.sampling.mosaic_stores import create_uav_chips, open_uav_chips, store_uav_chips, write_uav_chips
from geoeco.sampling.mosaic_windows import check_overlap, grid_windows
from geoeco.sampling.places import check_locations, points_from_table, sort_by_place
from geoeco.sampling.scenes import SceneClasses, chip_scenes, patch_classes, scene_table
from geoeco.sampling.splits import assert_disjoint, footprint_rings, spatial_split
from geoeco.sampling.stores import (
    chips_fingerprint,
    chips_memory,
    chips_template,
    finish_chips,
    open_chips,
    store_chips,
    write_chips,
)
from geoeco.sampling.windows import SEASONS, calendar_windows, season_windows

__all__ = [
    "REASONS",
    "SEASONS",
    "AreaSplit",
    "BlockSplit",
    "ChipDesign",
    "ChipPlan",
    "MosaicSources",
    "SceneClasses",
    "assert_disjoint",
    "assert_no_leak",
    "calendar_windows",
    "check_locations",
    "check_overlap",
    "chip_footprints",
    "chip_geobox",
    "chip_scenes",
    "chips_fingerprint",
    "chips_memory",
    "chips_table",
    "chips_template",
    "choose_images",
    "circular_distance",
    "circular_median",
    "circular_spread",
    "closeup_path",
    "create_uav_chips",
    "crown_chips",
    "cut_chips",
    "day_of_year",
    "finish_chips",
    "footprint_rings",
    "grid_chips",
    "grid_windows",
    "is_land",
    "land_mask",
    "largest_number",
    "major_tom_grid",
    "natural_earth",
    "open_chips",
    "open_sources",
    "open_uav_chips",
    "pair_closeups",
    "patch_classes",
    "plan_chips",
    "points_from_table",
    "random_chips",
    "read_closeup",
    "scene_table",
    "season_chips",
    "season_windows",
    "share_seen",
    "sort_by_place",
    "spatial_split",
    "store_chips",
    "store_uav_chips",
    "write_chips",
    "write_uav_chips",
]
