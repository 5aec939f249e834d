"""What numbers mean: one module a sensor, from digital numbers to physical units.

Not about finding imagery (`geoeco.catalog`) nor stacking it (`geoeco.cubes`).
"""

from __future__ import annotations

from geoeco.sensors import sentinel2

__all__ = ["sentinel2"]
