"""Composites are the median, or the nearest look, of each period, pixel by pixel."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.xr import xr_coords

from geoeco.errors import InputError
from geoeco.mapping import Period, season_composites
from tests.mapping.conftest import BANDS, region

DAYS = np.arange("2019-11-01", "2022-02-01", 9, dtype="datetime64[D]").astype("datetime64[ns]")


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 0.6, (len(DAYS), len(BANDS), 37, 30)).astype(np.float32)
    pixels[np.broadcast_to(rng.random((len(DAYS), 1, 37, 30)) < 0.7, pixels.shape)] = np.nan
    pixels[:, 1][rng.random(pixels[:, 1].shape) < 0.1] = np.nan
    pixels[:, :, :5, :5] = np.nan
    coords = {"time": DAYS, "band": list(BANDS), **xr_coords(region(37, 30), dims=("y", "x"))}
    return xr.Dataset({"reflectance": (("time", "band", "y", "x"), pixels)}, coords)


@given(st.dates(min_value=dt.date(1999, 1, 1), max_value=dt.date(2040, 12, 31)))
def test_every_day_lies_in_one_quarter(day: dt.date) -> None:
    when = np.array([np.datetime64(day)])
    assert sum(bool(Period.of(name).holds(when)[0]) for name in ("DJF", "MAM", "JJA", "SON")) == 1


@pytest.mark.parametrize(
    ("day", "inside"),
    [("2020-12-01", True), ("2021-01-15", True), ("2020-02-28", True), ("2021-03-01", False), ("2020-11-29", False)],
)
def test_a_period_may_cross_the_new_year(day: str, inside: bool) -> None:
    assert Period("winter", 335, 59).holds(np.array([np.datetime64(day)]))[0] == inside


def test_the_middle_of_a_period_across_the_new_year_is_in_it() -> None:
    days = np.array(["2020-12-01", "2021-01-13", "2021-02-27", "2021-07-15"], "datetime64[D]")
    off = Period("winter", 335, 59).off_middle(days)
    assert off.argmin() == 1
    assert off[1] < 2
    assert off[3] > 150


def test_years_can_be_chosen() -> None:
    found = Period("summer of 2021", 152, 243, (2021,)).dates(DAYS)
    assert set(DAYS[found].astype("datetime64[Y]").astype(int) + 1970) == {2021}


def test_the_median_is_numpys(cube: xr.Dataset) -> None:
    made = season_composites(cube, ["DJF", "JJA"], bands=["B08", "B02"])
    assert made.dims == ("period", "band", "y", "x")
    assert made.rio.crs.to_epsg() == 32631
    month = cube["time"].dt.month
    for season, months in {"DJF": (12, 1, 2), "JJA": (6, 7, 8)}.items():
        looks = cube["reflectance"].sel(time=month.isin(months), band=["B08", "B02"]).to_numpy()
        # the quarters are cut by day of the year, so that the last of November may lie in DJF
        expected = np.nanmedian(looks, axis=0)
        np.testing.assert_allclose(made.sel(period=season), expected, atol=1e-7, equal_nan=True)


def test_the_nearest_look_is_one_measured_spectrum(cube: xr.Dataset) -> None:
    summer = Period("summer", 160, 260)
    made = season_composites(cube, [summer], method="nearest").isel(period=0).to_numpy()
    looks, times = cube["reflectance"].to_numpy(), cube["time"].to_numpy()
    days = [int(str(np.datetime64(t, "D") - np.datetime64(t, "Y")).split()[0]) + 1 for t in times]
    for y in range(0, 37, 4):
        for x in range(0, 30, 3):
            candidates = [
                (abs(day - 210.0), -at)
                for at, day in enumerate(days)
                if 160 <= day <= 260 and np.isfinite(looks[at, :, y, x]).all()
            ]
            expected = looks[-min(candidates)[1], :, y, x] if candidates else np.full(3, np.nan)
            np.testing.assert_array_equal(made[:, y, x], expected)


@pytest.mark.parametrize("method", ["median", "nearest"])
def test_the_cut_does_not_matter_nor_that_the_cube_is_lazy(cube: xr.Dataset, method: str) -> None:
    whole = season_composites(cube, method=method)  # type: ignore[arg-type]
    pieces = season_composites(cube.chunk({"time": 7, "y": 10, "x": 11}), method=method, tile=13)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole, pieces)
    assert np.isnan(whole[:, :, :5, :5]).all()


def test_what_cannot_be_made_is_refused(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="no date of the cube"):
        season_composites(cube.isel(time=np.datetime64("2020-02-01") > DAYS), ["JJA"])
    with pytest.raises(InputError, match="B8A"):
        season_composites(cube, bands=["B8A"])
    with pytest.raises(InputError, match="no season 'spring'"):
        season_composites(cube, ["spring"])
    with pytest.raises(InputError, match="same name"):
        season_composites(cube, ["DJF", Period("DJF", 1, 20)])
    with pytest.raises(InputError, match="1 to 366"):
        Period("never", 0, 400)
    with pytest.raises(InputError, match="median"):
        season_composites(cube, method="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reflectance"):
        season_composites(cube.rename(reflectance="numbers"))
    with pytest.raises(InputError, match="int16"):
        season_composites((cube * 10_000).fillna(0).astype("int16"))
