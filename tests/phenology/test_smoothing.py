"""Smoothers against dense solves, other libraries and known curves."""

from __future__ import annotations

import numpy as np
import pytest
import whittaker_eilers

from geoeco import phenology
from geoeco.errors import InputError


def dense_whittaker(day, y, w, step, lmbda):
    """(A'WA + lambda D'D) z = A'W y with linear interpolation A, solved densely."""
    count = int(np.ceil(day[-1] / step)) + 1
    left = np.minimum(day // step, count - 2).astype(int)
    fraction = day / step - left
    a = np.zeros((len(day), count))
    a[np.arange(len(day)), left] = 1 - fraction
    a[np.arange(len(day)), left + 1] += fraction
    d = np.diff(np.eye(count), 2, axis=0)
    return np.linalg.solve(a.T @ (w[:, None] * a) + lmbda * d.T @ d, a.T @ (w * y))


@pytest.mark.parametrize("step", [1, 5, 16])
def test_whittaker_is_the_dense_solution_on_irregular_dates(make_stack, step):
    rng = np.random.default_rng(step)
    day = np.sort(rng.choice(700, 60, replace=False))
    day -= day[0]
    y = rng.normal(0.4, 0.2, (60, 3))
    w = rng.uniform(0.2, 1, (60, 3))
    series = make_stack(y, day)
    found = phenology.smooth(series, weights=series.copy(data=w[:, None, :]), lmbda=500.0, step_days=step)
    for pixel in range(3):
        expected = dense_whittaker(
            day.astype(float), y[:, pixel], w[:, pixel].astype(np.float32), step, 500.0 / step**3
        )
        np.testing.assert_allclose(found.values[:, 0, pixel], expected, atol=2e-5)


def test_whittaker_agrees_with_whittaker_eilers(make_stack):
    rng = np.random.default_rng(0)
    y = rng.normal(0.4, 0.2, 100)
    w = np.ones(100)
    w[rng.random(100) < 0.4] = 0
    expected = whittaker_eilers.WhittakerSmoother(lmbda=30.0, order=2, data_length=100, weights=w.tolist()).smooth(
        y.tolist()
    )
    series = make_stack(np.where(w > 0, y, np.nan), np.arange(100) * 16)
    found = phenology.smooth(series, lmbda=30.0, lmbda_step=16, step_days=16)
    np.testing.assert_allclose(found.values[:, 0, 0], expected, atol=2e-6)


def test_lambda_for_16_days_is_4096_times_as_large_for_daily_knots(make_stack, cycle):
    day = np.arange(0, 730, 16)
    series = make_stack(0.1 + cycle(day, 120, 0.06, 270, 0.05, 0.5), day)
    scaled = phenology.smooth(series, lmbda=15, lmbda_step=16, step_days=1)
    np.testing.assert_array_equal(scaled.values, phenology.smooth(series, lmbda=15 * 4096, step_days=1).values)
    coarse = phenology.smooth(series, lmbda=15, lmbda_step=16, step_days=16)
    at_knots = scaled.sel(time=coarse.time).values
    assert np.abs(at_knots - coarse.values).max() < 0.01, "the step does not change how stiff the curve is"


@pytest.mark.parametrize("method", ["whittaker", "savitzky-golay", "double-logistic"])
def test_every_smoother_follows_a_gappy_noisy_curve(make_stack, cycle, method):
    rng = np.random.default_rng(1)
    day = np.arange(0, 730, 5)

    def truth(t):
        return 0.1 + cycle(t, 120, 0.06, 270, 0.05, 0.5) + cycle(t, 485, 0.06, 635, 0.05, 0.5)

    y = truth(day) + 0.02 * rng.standard_normal(day.size)
    y[rng.random(day.size) < 0.4] = np.nan
    window = {"window_days": 75} if method == "savitzky-golay" else {}
    found = phenology.smooth(make_stack(y, day), method=method, **window)
    inside = slice(4, -4)
    error = found.values[inside, 0, 0] - truth(day)[inside]
    assert np.sqrt(np.mean(error**2)) < 0.02


def test_savitzky_golay_keeps_a_quadratic(make_stack):
    day = np.arange(0, 365, 5)
    y = 0.2 + 0.003 * day - 8e-6 * day**2
    found = phenology.smooth(make_stack(y, day), method="savitzky-golay", window_days=75)
    np.testing.assert_allclose(found.values[:, 0, 0], y, atol=1e-6)


def test_a_double_logistic_without_noise_is_found_back(make_stack, cycle):
    day = np.arange(0, 365, 8)
    y = 0.15 + cycle(day, 130, 0.08, 260, 0.06, 0.45)
    found = phenology.smooth(make_stack(y, day), method="double-logistic", step_days=8)
    assert np.abs(found.values[2:-2, 0, 0] - y[2:-2]).max() < 0.004


@pytest.mark.parametrize("method", ["whittaker", "savitzky-golay"])
def test_the_upper_envelope_is_not_pulled_down_by_clouds(make_stack, cycle, method):
    rng = np.random.default_rng(2)
    day = np.arange(0, 365, 5)
    truth = 0.1 + cycle(day, 110, 0.06, 270, 0.05, 0.5)
    y = truth.copy()
    y[rng.choice(day.size, 10, replace=False)] -= 0.25
    plain, raised = (
        phenology.smooth(make_stack(y, day), method=method, lmbda=1000, envelope=n, window_days=75) for n in (0, 3)
    )
    summer = (day > 140) & (day < 240)
    assert (raised.values[summer, 0, 0] - truth[summer]).mean() > -0.03
    assert (
        np.abs(raised.values[summer, 0, 0] - truth[summer]).mean()
        < np.abs(plain.values[summer, 0, 0] - truth[summer]).mean()
    )


def test_the_v_curve_smooths_noise_more_than_signal(make_stack, cycle):
    rng = np.random.default_rng(4)
    day = np.arange(0, 1095, 5)
    truth = 0.1 + sum(cycle(day - 365 * n, 120, 0.08, 270, 0.07, 0.5) for n in range(3))
    clean, dirty = truth, truth + 0.05 * rng.standard_normal(day.size)
    assert np.abs(phenology.smooth(make_stack(clean, day)).values[:, 0, 0] - truth).max() < 0.025
    error = phenology.smooth(make_stack(dirty, day)).values[:, 0, 0] - truth
    assert np.sqrt(np.mean(error**2)) < 0.03, "less than the noise that went in"


@pytest.mark.parametrize("method", ["whittaker", "savitzky-golay", "double-logistic"])
def test_smooth_is_the_same_for_any_chunks(noisy, method):
    pytest.importorskip("dask.array")
    series = noisy()
    whole = phenology.smooth(series, method=method, envelope=1)
    for chunks in ({"time": 10, "x": 7}, {"x": 1}):
        np.testing.assert_array_equal(
            phenology.smooth(series.chunk(chunks), method=method, envelope=1).values, whole.values
        )


def test_pixels_without_looks_stay_empty(make_stack):
    y = np.full((20, 2), np.nan)
    y[3, 1] = 0.3
    for method in ("whittaker", "savitzky-golay", "double-logistic"):
        found = phenology.smooth(make_stack(y, np.arange(20) * 5), method=method)
        assert np.isnan(found.values[:, 0, 0]).all()


def test_unknown_methods_and_wrong_lambdas_are_refused(noisy):
    with pytest.raises(InputError, match="no smoother 'loess'"):
        phenology.smooth(noisy(), method="loess")
    with pytest.raises(InputError, match="lmbda must be a positive number"):
        phenology.smooth(noisy(), lmbda=-1.0)
    with pytest.raises(InputError, match="step_days"):
        phenology.smooth(noisy(), step_days=0)
    with pytest.raises(InputError, match="ascending order"):
        phenology.smooth(noisy().isel(time=slice(None, None, -1)))
