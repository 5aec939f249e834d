"""The only door to torchgeo: what geoeco takes from it, under geoeco's roof.

torchgeo changes its interfaces between minor versions; all of it that this room needs is named here, so that such a
change is met in one file.
"""

from __future__ import annotations

from torchgeo.datasets import NonGeoDataset

__all__ = ["NonGeoDataset"]
