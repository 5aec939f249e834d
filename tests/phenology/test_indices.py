"""The indices are their formulas, on reflectance only."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from geoeco import phenology
from geoeco.errors import InputError


def cube(dtype=np.float32):
    rng = np.random.default_rng(0)
    values = rng.uniform(0.01, 0.6, (4, 3, 5, 6)).astype(dtype)
    values[0, 1, 0, 0] = np.nan
    return xr.Dataset(
        {"reflectance": (("time", "band", "y", "x"), values)},
        coords={
            "time": np.arange("2020-01-01", "2020-01-05", dtype="datetime64[ns]".replace("ns", "D")).astype(
                "datetime64[ns]"
            ),
            "band": ["B02", "B04", "B08"],
        },
    )


@pytest.mark.parametrize("name", ["evi2", "ndvi", "evi"])
def test_indices_agree_with_spyndex(name):
    spyndex = pytest.importorskip("spyndex")
    data = cube()
    blue, red, nir = (data.reflectance.sel(band=b, drop=True).values.astype(float) for b in ("B02", "B04", "B08"))
    constants = {"g": 2.5, "C1": 6.0, "C2": 7.5, "L": 1.0}
    expected = spyndex.computeIndex(name.upper(), {"N": nir, "R": red, "B": blue, **constants})
    if name == "evi":
        expected = np.where(nir + 6 * red - 7.5 * blue + 1 > 0.1, expected, np.nan)
    found = getattr(phenology, name)(data)
    np.testing.assert_allclose(found.values, expected, rtol=2e-5)
    assert found.dims == ("time", "y", "x")
    assert found.attrs["kind"] == "continuous"
    assert np.isnan(found.values[0, 0, 0]), "a missing band makes the index missing"


@pytest.mark.parametrize("lazy", [False, True])
def test_digital_numbers_are_refused(lazy):
    data = cube() * 10_000
    if lazy:
        data = data.chunk(x=3)
    with pytest.raises(InputError, match="digital numbers"):
        phenology.evi2(data).compute()
    with pytest.raises(InputError, match=r"reflectance in 0\.\.1"):
        phenology.evi2(data.fillna(0).astype(np.uint16))


def test_an_index_from_digital_numbers_is_refused(noisy):
    with pytest.raises(InputError, match="digital numbers or is scaled"):
        phenology.metrics(noisy() * 10_000)


def test_a_missing_band_is_named():
    with pytest.raises(InputError, match="lacks the band B08; it has B02, B04"):
        phenology.evi2(cube().sel(band=["B02", "B04"]))
    assert phenology.evi2(cube().assign_coords(band=["B02", "B04", "B8A"]), nir="B8A").shape == (4, 5, 6)


def test_an_offset_changes_ndvi():
    data = cube()
    assert float(abs(phenology.ndvi(data) - phenology.ndvi(data + 0.1)).max()) > 0.05
