"""Small networks with random weights and mosaics to map with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from geoeco.models import ConvStack
from geoeco.training import ModelBundle, Normalisation

BANDS = ("red", "green", "blue")
NAMES = ("dry land", "grass belt", "river", "ridge")
CODES = (2, 3, 13, 11)


def bundle_of(module: nn.Module, classes: int = 4, **changes: Any) -> ModelBundle:
    """A bundle of a network of three bands; of pixels of 0.1 m."""
    settings: dict[str, Any] = {
        "architecture": "conv_stack",
        "arguments": {},
        "bands": BANDS,
        "normalisation": Normalisation((0.45, 0.5, 0.55), (0.2, 0.25, 0.2)),
        "size": 64,
        "resolution": 0.1,
        "task": "segmentation",
        "classes": NAMES[:classes],
        "codes": CODES[:classes],
        "stride": int(getattr(module, "stride", 1)),
        "halo": getattr(module, "receptive_radius", None),
        "name": "tiny",
        **changes,
    }
    return ModelBundle(module, **settings)


def conv_bundle(seed: int = 0, **changes: Any) -> ModelBundle:
    """A stack of three convolutions, decided enough that classes differ."""
    torch.manual_seed(seed)
    arguments = {"in_channels": 3, "num_classes": 4, "width": 8, "layers": 3, "kernel": 3}
    module = ConvStack(**arguments)
    with torch.no_grad():
        module.classifier.weight.mul_(20)
    return bundle_of(module, **{"arguments": arguments, **changes})


class Smeared(nn.Module):
    """A network that sees the whole window: the mean of it moves every logit."""

    stride = 4
    receptive_radius = None

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.classifier(images) + 40 * images.mean(dim=(1, 2, 3), keepdim=True) * torch.arange(
            -1.5, 2
        ).reshape(1, 4, 1, 1)


def grid(rows: int, cols: int, pixel: float = 0.1) -> GeoBox:
    return GeoBox((rows, cols), Affine(pixel, 0.0, 500_000.0, 0.0, -pixel, 5_300_000.0), "EPSG:32652")


def image(rows: int, cols: int, seed: int = 0, holes: bool = True, blur: float = 2.0) -> xr.DataArray:
    """An image ``(band, y, x)`` of smooth random values with holes."""
    noise = np.random.default_rng(seed).normal(size=(3, rows, cols))
    values = np.stack([gaussian_filter(band, blur, mode="wrap") for band in noise])
    values = (0.5 + 0.2 * values / values.std()).clip(0, 1).astype(np.float32)
    if holes:
        values[:, rows // 3 : rows // 2, cols // 4 : cols // 2] = np.nan
        values[:, :7, cols - 20 :] = np.nan
    coords = {"band": list(BANDS), **xr_coords(grid(rows, cols), dims=("y", "x"))}
    return xr.DataArray(values, dims=("band", "y", "x"), coords=coords)


def whole_logits(bundle: ModelBundle, source: xr.DataArray) -> np.ndarray:
    """Logits ``(class, y, x)`` of the whole image at once."""
    given = torch.from_numpy(np.nan_to_num(source.to_numpy()))[None]
    return bundle(given)[0].numpy()


def known(source: xr.DataArray) -> np.ndarray:
    return np.isfinite(source.to_numpy()).all(axis=0)
