"""A simulated world with known truth, on which accuracy is exact and every trap can be met on purpose."""

from __future__ import annotations

from geoeco.simulate.truth import read_truth
from geoeco.simulate.world import S2World, WorldSettings, world_digest, world_settings, write_s2_world

__all__ = ["S2World", "WorldSettings", "read_truth", "world_digest", "world_settings", "write_s2_world"]
