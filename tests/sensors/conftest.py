"""Small Sentinel-2 items and scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pystac
import pytest

# machines differ in speed, and a test that fails must fail again
hypothesis.settings.register_profile("geoeco", deadline=None, derandomize=True)
hypothesis.settings.load_profile("geoeco")

KEYS = {
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B8A": "nir08",
    "B11": "swir16",
    "B12": "swir22",
    "SCL": "scl",
    "AOT": "aot",
}


def make_item(
    *,
    name: str = "S2A_31UGS_20210615_0_L2A",
    collection: str = "sentinel-2-l2a",
    declared: tuple[float, float] | None = None,
    declare_as: str = "raster:bands",
    moment: str = "2021-06-15T10:30:00Z",
    geometry: dict[str, Any] | None = None,
    host: str = "https://example.org",
    **properties: Any,
) -> pystac.Item:
    """An item with the reflectance bands that the tests need and, where asked, a declared scale and offset."""
    assets: dict[str, Any] = {}
    for band, key in KEYS.items():
        asset: dict[str, Any] = {"href": f"{host}/{band}.tif", "type": "image/tiff"}
        if declared is not None and band.startswith("B"):
            scale, offset = declared
            if declare_as == "raster:bands":
                asset["raster:bands"] = [{"nodata": 0, "scale": scale, "offset": offset}]
            elif declare_as == "bands":
                asset["bands"] = [{"name": band, "raster:scale": scale, "raster:offset": offset}]
            else:
                asset |= {"raster:scale": scale, "raster:offset": offset}
        assets[key] = asset
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": collection,
            "geometry": geometry,
            "properties": {"datetime": moment, **properties},
            "links": [],
            "assets": assets,
        }
    )


@pytest.fixture
def item() -> Callable[..., pystac.Item]:
    return make_item


def make_scene(cover: dict[str, float], *, seed: int = 7, size: int = 160, noise: float = 0.01) -> dict[str, Any]:
    """Reflectance (0..1) of a scene of covers (name -> share), per verification band."""
    spectra = {
        "water": (0.03, 0.025, 0.015, 0.005, 0.002, 0.001),
        "forest": (0.02, 0.04, 0.025, 0.30, 0.14, 0.06),
        "crop": (0.05, 0.08, 0.06, 0.40, 0.22, 0.12),
        "soil": (0.09, 0.13, 0.18, 0.28, 0.36, 0.32),
        "desert": (0.16, 0.24, 0.34, 0.40, 0.48, 0.46),
        "cloud": (0.60, 0.58, 0.57, 0.62, 0.40, 0.31),
        "snow": (0.90, 0.88, 0.86, 0.78, 0.14, 0.10),
    }
    rng = np.random.default_rng(seed)
    which = rng.choice(len(cover), size=(size, size), p=list(cover.values()))
    table = np.array([spectra[name] for name in cover])
    return {
        band: table[which, number] + rng.normal(0, noise, (size, size))
        for number, band in enumerate(("B02", "B03", "B04", "B8A", "B11", "B12"))
    }


@pytest.fixture
def scene() -> Callable[..., dict[str, Any]]:
    return make_scene
