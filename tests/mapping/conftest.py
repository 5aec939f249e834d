"""A very small encoder with random weights, and composites to look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import rioxarray  # noqa: F401  (registers .rio)
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoeco.models import create_backbone
from geoeco.training import ModelBundle, Normalisation

BANDS = ("B02", "B04", "B08")


def tiny_bundle(network: str = "test_resnet", size: int = 32, **changes: object) -> ModelBundle:
    """An encoder of 32 px windows of three bands and NDVI."""
    torch.manual_seed(0)
    module = create_backbone(network, 4)
    settings = {
        "architecture": "backbone",
        "arguments": {"name": network, "in_channels": 4},
        "bands": (*BANDS, "ndvi"),
        "normalisation": Normalisation((0.1, 0.1, 0.3, 0.4), (0.1, 0.1, 0.2, 0.3)),
        "size": size,
        "name": "tiny",
        **changes,
    }
    return ModelBundle(module, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def bundle() -> ModelBundle:
    return tiny_bundle()


def region(rows: int = 90, cols: int = 75) -> GeoBox:
    return GeoBox((rows, cols), Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0), "EPSG:32631")


@pytest.fixture(scope="session")
def composites() -> Callable[..., xr.DataArray]:
    """Make composites ``(period, band, y, x)`` of smooth random reflectance with holes."""

    def make(rows: int = 90, cols: int = 75, periods: int = 2, holes: bool = True) -> xr.DataArray:
        rng = np.random.default_rng(3)
        pixels = rng.uniform(0.02, 0.5, (periods, len(BANDS), rows, cols)).astype(np.float32)
        if holes:
            pixels[:, :, 20:60, 10:45] = np.nan
            pixels[0, 1, :25, 50:] = np.nan
        return xr.DataArray(
            pixels,
            dims=("period", "band", "y", "x"),
            coords={
                "period": [f"p{n}" for n in range(periods)],
                "band": list(BANDS),
                **xr_coords(region(rows, cols), dims=("y", "x")),
            },
            attrs={"units": "1", "kind": "continuous"},
        )

    return make
