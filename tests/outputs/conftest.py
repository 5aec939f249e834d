"""Small rasters that the tests of this room share."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from affine import Affine

from geoeco.variables import describe


@pytest.fixture
def raster():
    """Return a function that wraps values ``(..., y, x)`` as a variable on a 10 m UTM grid."""

    def build(values, *, kind="continuous", units="1", name="value", long_name=None, crs=32631, **attrs):
        values = np.asarray(values)
        height, width = values.shape[-2:]
        array = xr.DataArray(
            values,
            dims=("y", "x") if values.ndim == 2 else ("band", "y", "x"),
            coords={"y": 5_650_000 - 5 - 10.0 * np.arange(height), "x": 500_000 + 5 + 10.0 * np.arange(width)},
            name=name,
        )
        units = "" if kind == "class" else units
        array = describe(array, kind=kind, units=units, long_name=long_name or name, **attrs)
        if crs is None:
            return array
        array = array.rio.write_crs(crs)
        # one row or column alone does not tell its own pixel size
        return array.rio.write_transform(Affine(10, 0, 500_000, 0, -10, 5_650_000)) if 1 in (height, width) else array

    return build


@pytest.fixture
def patches():
    """Return a function that makes a uint8 map of square patches of the codes 1..n, with some 255."""

    def build(height=1101, width=1203, n=5, seed=0):
        rng = np.random.default_rng(seed)
        small = rng.integers(1, n + 1, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
        values = np.kron(small, np.ones((16, 16), np.uint8))[:height, :width]
        values[:40, :70] = 255
        return values

    return build
