"""Where looks like here? The likeness of every cell to a place, by the angle between their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import odc.geo.xr  # noqa: F401  (registers .odc)
import xarray as xr

from geoeco.errors import InputError
from geoeco.mapping.lattice import cell_of
from geoeco.mapping.tables import features_of, raster_of
from geoeco.variables import describe

__all__ = ["cosine", "nearest"]


def cosine(features: npt.NDArray[np.floating[Any]], places: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Cosine ``(cell, place)`` of the angle between features ``(cell, feature)`` and those of places; NaN stays NaN."""
    exact, wanted = features.astype(np.float64), places.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)[:, np.newaxis] * np.linalg.norm(wanted, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((exact @ wanted.T) / lengths, -1.0, 1.0).astype(np.float32)


def nearest(embedding: xr.DataArray, lon: float, lat: float) -> xr.DataArray:
    """Where looks like here: cosine similarity of every cell with that of a place.

    Parameters
    ----------
    embedding : xarray.DataArray
        ``(feature, y, x)``, NaN where there is none, with CRS, as `embed` gives it.
    lon, lat : float
        The place, degrees.

    Returns
    -------
    xarray.DataArray
        ``(y, x)`` float32 from -1 to 1, 1 at the place itself; NaN where there is no embedding.

    Raises
    ------
    InputError
        If the place lies outside the map or has no embedding.
    """
    features, known = features_of(embedding)
    row, col = cell_of(lon, lat, embedding.odc.geobox)
    at = row * embedding.sizes["x"] + col
    if not known[at]:
        raise InputError(
            f"there is no embedding at {lon:g}, {lat:g}",
            what_to_do="choose a place with imagery",
            code="place",
        )
    likeness = cosine(features, features[at : at + 1])[:, 0]
    return describe(
        raster_of(likeness, embedding, "similarity"),
        kind="continuous",
        units="1",
        long_name=f"cosine similarity with {lon:g}, {lat:g}",
    )
