"""Statistics of a store: those of NumPy over its valid pixels, whatever the blocks."""

from __future__ import annotations

import dask
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError
from geoeco.sampling import open_chips
from geoeco.training import chip_statistics, seco_eco_normalisation, statistics
from tests.training.stores import BANDS, NODATA, pixels, store_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    chips = pixels(7)
    chips[:, :, 0] -= 350
    chips[1, 2, 1, :5] = NODATA
    chips[2, 0, :, 3:6, 3:6] = NODATA
    chips[3, 3] = NODATA
    reason = np.full((7, 4), "", dtype=object)
    reason[3, 3] = "no-image"
    return store_of(tmp_path_factory.mktemp("chips") / "store", chips, reason=reason)


def test_mean_and_std_are_those_of_numpy_over_valid_pixels(store):
    chips = open_chips(store)["chips"].values.astype(np.float64)
    valid = np.isfinite(chips).all(axis=2)
    values = np.moveaxis(chips, 2, 0)[:, valid]
    found = chip_statistics(store)
    assert found.pixels == valid.sum()
    np.testing.assert_allclose(found.normalisation.mean, values.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.normalisation.std, values.std(axis=1), rtol=1e-6)


def test_ndvi_has_statistics_of_its_own_and_a_mean_of_each_chip(store):
    chips = open_chips(store)["chips"].values.astype(np.float64)
    red, nir = chips[:, :, 2], chips[:, :, 3]
    valid = np.isfinite(chips).all(axis=2)
    ndvi = np.where(valid, (nir - red) / (nir + red), np.nan)
    found = chip_statistics(store, bands=[*BANDS, "ndvi"])
    np.testing.assert_allclose(found.normalisation.mean[-1], np.nanmean(ndvi), rtol=1e-5)
    np.testing.assert_allclose(found.normalisation.std[-1], np.nanstd(ndvi), rtol=1e-5)
    assert found.mean_ndvi.shape == (7, 4)
    assert np.isnan(found.mean_ndvi[3, 3])
    np.testing.assert_allclose(found.mean_ndvi[:3], np.nanmean(ndvi[:3], axis=(2, 3)), rtol=1e-5)
    assert chip_statistics(store).mean_ndvi is not None


def test_neither_blocks_nor_schedulers_nor_order_change_a_digit(store, monkeypatch):
    bands = [*BANDS, "ndvi"]
    whole = chip_statistics(store, bands=bands)
    monkeypatch.setattr(statistics, "_BLOCK", 2)
    with dask.config.set(scheduler="synchronous"):
        again = chip_statistics(store, bands=bands, names=whole.names[::-1])
    assert again.normalisation == whole.normalisation
    np.testing.assert_array_equal(again.mean_ndvi[::-1], whole.mean_ndvi)


def test_bands_that_are_the_same_everywhere_are_refused(tmp_path):
    chips = pixels(2)
    chips[:, :, 4] = 0
    with pytest.raises(InputError, match="band B11 is the same everywhere"):
        chip_statistics(store_of(tmp_path / "constant", chips))
    # chips without data are refused by the store or filtered by the data set; a single valid pixel is no spread
    chips = pixels(1)
    chips[:, :, 1] = NODATA
    chips[0, :, 1, 3, 3] = 500
    chips[0, :, :, 3, 3] = 500
    with pytest.raises(InputError, match="same everywhere"):
        chip_statistics(store_of(tmp_path / "one", chips))


def test_the_scale_of_seco_eco_is_digital_numbers_over_255():
    import torch

    image = torch.full((1, 2, 1, 1), 0.51)
    scaled = seco_eco_normalisation(["B02", "ndvi"])(image)
    torch.testing.assert_close(scaled, image * 10_000 / 255)
