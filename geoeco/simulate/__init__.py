"""A simulated world with known truth, on which accuracy is exact and every trap can be met on purpose."""

from __future__ import annotations

from geoeco.simulate.files import world_digest, world_settings
from geoeco.simulate.season_chips import ChipWorld, ChipWorldSettings, write_chip_world
from geoeco.simulate.truth import read_truth
from geoeco.simulate.uav_layout import HABITATS
from geoeco.simulate.uav_world import SPECIES, UavWorld, UavWorldSettings, write_uav_world
from geoeco.simulate.world import S2World, WorldSettings, write_s2_world

__all__ = [
    "HABITATS",
    "SPECIES",
    "ChipWorld",
    "ChipWorldSettings",
    "S2World",
    "UavWorld",
    "UavWorldSettings",
    "WorldSettings",
    "read_truth",
    "world_digest",
    "world_settings",
    "write_chip_world",
    "write_s2_world",
    "write_uav_world",
]
