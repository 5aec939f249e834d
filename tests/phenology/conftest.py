"""Curves with known dates, shared by the tests of the room."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

DATES = ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy")


def logistic_cycle(t, start, rise, end, fall, amplitude):
    return amplitude * (1 / (1 + np.exp(-rise * (t - start))) + 1 / (1 + np.exp(fall * (t - end))) - 1)


def stack(values, days, origin="2019-01-01"):
    """(time,) or (time, pixel) values as (time, 1, pixel)."""
    values = np.asarray(values)
    if values.ndim == 1:
        values = values[:, None]
    time = (np.datetime64(origin, "D") + np.asarray(days).astype(int)).astype("datetime64[ns]")
    return xr.DataArray(
        values[:, None, :],
        dims=("time", "y", "x"),
        coords={"time": time, "y": [0.0], "x": np.arange(values.shape[1]) * 10.0},
        name="evi2",
    )


def since(dates, origin="2019-01-01"):
    """Days from `origin` of dates in days since 1970."""
    return np.asarray(dates) - np.datetime64(origin, "D").astype(int)


@pytest.fixture
def cycle():
    return logistic_cycle


@pytest.fixture
def make_stack():
    return stack


@pytest.fixture
def days_since():
    return since


@pytest.fixture
def date_names():
    return DATES


@pytest.fixture
def noisy(cycle):
    """Two years of looks every 7 days with noise, gaps and a few dips, 40 pixels."""

    def make(dtype=np.float32, pixels=40):
        rng = np.random.default_rng(3)
        days = np.arange(0, 730, 7)
        shift = rng.uniform(-15, 15, pixels)
        values = 0.12 + sum(cycle(days[:, None] - 365 * year - shift, 120, 0.1, 270, 0.08, 0.5) for year in (0, 1))
        values += 0.02 * rng.standard_normal(values.shape)
        values[rng.random(values.shape) < 0.05] -= 0.3
        values[rng.random(values.shape) < 0.35] = np.nan
        return stack(values.astype(dtype), days)

    return make
