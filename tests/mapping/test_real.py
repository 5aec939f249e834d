"""A real farmland patch (Flanders, Sentinel-2, 118 dates): seasonal composites and their embedding map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (registers .rio)
import xarray as xr

from geoeco.mapping import Lattice, embed, nearest, season_composites
from geoeco.training import ModelBundle
from tests.mapping.conftest import BANDS

pytestmark = pytest.mark.real
MASKED = (0, 1, 3, 8, 9, 10)
#: Crop type of the labels.
MAIZE = 1200


@pytest.fixture(scope="module")
def cube(real_data: Callable[[str], Path]) -> xr.Dataset:
    folder = real_data("sentinel2/flanders_field_2017-2018/S2_L2A_10m.nc").parent
    fine = xr.open_dataset(folder / "S2_L2A_10m.nc", mask_and_scale=False).load()
    coarse = xr.open_dataset(folder / "S2_L2A_20m.nc", mask_and_scale=False).load()
    cloud = np.kron(np.isin(coarse["SCL"].values, MASKED), np.ones((1, 2, 2), bool))
    pixels = np.stack([fine[band].values * np.float32(1e-4) for band in BANDS], axis=1).astype(np.float32)
    pixels[np.broadcast_to(cloud[:, np.newaxis], pixels.shape)] = np.nan
    made = xr.Dataset(
        {"reflectance": (("time", "band", "y", "x"), pixels)},
        coords={
            "time": fine["timestamp"].values.astype("datetime64[D]").astype("datetime64[ns]"),
            "band": list(BANDS),
            "y": fine["y"].values,
            "x": fine["x"].values,
        },
    )
    return made.rio.write_crs("EPSG:32631")


def test_maize_is_bare_in_spring_and_green_in_summer(cube: xr.Dataset, real_data: Callable[[str], Path]) -> None:
    crops = xr.open_dataset(
        real_data("sentinel2/flanders_field_2017-2018/OUTPUT_POLY-110_10m.nc"), mask_and_scale=False
    )["CT"].values.reshape(64, 64)
    made = season_composites(cube)
    assert float(np.isfinite(made).mean()) > 0.999
    assert float(made.min()) > 0
    assert float(made.max()) < 1
    ndvi = (made.sel(band="B08") - made.sel(band="B04")) / (made.sel(band="B08") + made.sel(band="B04"))
    maize = {str(p): float(np.nanmedian(ndvi.sel(period=p).values[crops == MAIZE])) for p in made["period"].values}
    print("median NDVI of maize:", {name: round(value, 2) for name, value in maize.items()})
    assert maize["JJA"] > maize["MAM"] + 0.1


def test_the_patch_is_embedded_wherever_it_was_seen(cube: xr.Dataset, bundle: ModelBundle) -> None:
    made = embed(cube, bundle, stride=4, window=16, min_valid=0.5)
    assert made.odc.geobox == Lattice(cube.odc.geobox, 16, 4).cells
    # in the corners only a quarter of the window lies on the patch
    assert int(np.isnan(made).any("feature").sum()) == 4
    assert (made["n_periods"].values[np.isfinite(made).all("feature")] == 4).all()
    x, y = float(cube["x"][30]), float(cube["y"][30])
    lon, lat = cube.odc.geobox.crs.transformer_to_crs("EPSG:4326")(x, y)
    likeness = nearest(made, lon, lat)
    assert float(likeness.isel(y=7, x=7)) == pytest.approx(1, abs=1e-6)
