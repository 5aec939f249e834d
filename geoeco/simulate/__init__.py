"""A simulated world with known truth, on which accuracy is exact and every trap can be met on purpose."""

from __future__ import annotations

from geoeco.simulate.season_chips import ChipWorld, ChipWorldSettings, write_chip_world
from geoeco.simulate.truth import read_truth
from geoeco.simulate.world import S2World, WorldSettings, world_digest, world_settings, write_s2_world

__all__ = [
    "ChipWorld",
    "ChipWorldSettings",
    "S2World",
    "WorldSettings",
    "read_truth",
    "world_digest",
    "world_settings",
    "write_chip_world",
    "write_s2_world",
]
