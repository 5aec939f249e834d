"""How far a model may be trusted: how far new data lie from what it was trained on. NumPy and SciPy only."""

from __future__ import annotations

from geoeco.applicability.dissimilarity import AreaOfApplicability, area_of_applicability

__all__ = ["AreaOfApplicability", "area_of_applicability"]
