"""Contact sheets show the chips as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

from geoeco.errors import InputError
from geoeco.outputs import contact_sheet


def chips(samples: int = 3) -> xr.Dataset:
    pixels = np.random.default_rng(1).random((samples, 2, 3, 12, 12), np.float32)
    pixels[0, 1] = np.nan
    date = np.full((samples, 2), np.datetime64("2021-05-01", "ns"))
    date[0, 1] = np.datetime64("NaT")
    return xr.Dataset(
        {"chips": (("sample", "season", "band", "y", "x"), pixels)},
        {
            "band": ["B02", "B03", "B04"],
            "season": ["spring", "summer"],
            "name": ("sample", [f"place {i}" for i in range(samples)]),
            "date": (("sample", "season"), date),
        },
    )


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_same_chips_give_the_same_picture(tmp_path: Path) -> None:
    first, second = (contact_sheet(chips(), tmp_path / f"{name}.png") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with rasterio.open(first) as file:
        assert file.width > 250
        assert len(np.unique(file.read(1))) > 50


def test_names_with_odd_characters_are_no_formulas(tmp_path: Path) -> None:
    odd = chips().assign_coords(name=("sample", ["a$b$_{", "$x^2$", "100 % <&>"]))
    assert contact_sheet(odd, tmp_path / "odd.png").stat().st_size > 1000


def test_no_chip_and_no_band_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no chip"):
        contact_sheet(chips().isel(sample=slice(0, 0)), tmp_path / "a.png")
    with pytest.raises(InputError, match="B11"):
        contact_sheet(chips(), tmp_path / "a.png", bands=("B11", "B03", "B02"))
    assert not list(tmp_path.iterdir())
