"""An embedding map as a table of cells, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError

__all__ = ["features_of", "raster_of"]


def features_of(embedding: xr.DataArray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Cells of an embedding, row by row.

    Parameters
    ----------
    embedding : xarray.DataArray
        ``(feature, y, x)``.

    Returns
    -------
    features : numpy.ndarray, (cell, feature)
    known : numpy.ndarray, (cell,)
        Which cells have all features.

    Raises
    ------
    InputError
        If it has other dimensions.
    """
    if set(embedding.dims) != {"feature", "y", "x"}:
        raise InputError(
            f"an embedding has the dimensions feature, y, x, not {', '.join(map(str, embedding.dims))}",
            what_to_do="give what geoeco.mapping.embed returns",
        )
    values = embedding.transpose("y", "x", "feature").to_numpy()
    features = values.reshape(-1, values.shape[-1])
    return features, np.isfinite(features).all(axis=1)


def raster_of(values: npt.NDArray[Any], like: xr.DataArray, name: str) -> xr.DataArray:
    """Cells, row by row, as ``(y, x)`` on the grid of an embedding."""
    grid = like.isel(feature=0, drop=True).transpose("y", "x")
    made = xr.DataArray(
        values.reshape(grid.shape),
        dims=("y", "x"),
        coords={k: c for k, c in grid.coords.items() if k in ("y", "x", "spatial_ref")},
        name=name,
    )
    if "spatial_ref" in made.coords:
        made.encoding["grid_mapping"] = "spatial_ref"
    return made
