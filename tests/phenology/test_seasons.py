"""Season metrics: closed forms, rules of the search, hemispheres, chunks and poor input."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from geoeco import phenology
from geoeco.errors import InputError


def test_dates_of_a_logistic_are_its_closed_forms(make_stack, cycle, days_since):
    day = np.arange(730)
    # the default lambda is made for noisy looks and rounds the corners of steeper curves: the V-curve sees that
    for rise, fall, settings in ((0.1, 0.09, {}), (0.15, 0.12, {"lmbda": None}), (0.2, 0.15, {"lmbda": None})):
        y = 0.1 + cycle(day, 250, rise, 400, fall, 0.5)
        m = phenology.metrics(make_stack(y, day), **settings).isel(y=0, x=0)
        found = m.sel(year=2019 if float(m.peak.sel(year=2019, cycle=1)) > 0 else 2020, cycle=1)
        expected = {
            "greenup": 250 - 1.735 / rise,
            "midgreenup": 250,
            "maturity": 250 + 2.197 / rise,
            "senescence": 400 - 2.197 / fall,
            "midgreendown": 400,
            "dormancy": 400 + 1.735 / fall,
        }
        for name, date in expected.items():
            assert abs(float(days_since(found[name])) - date) < 0.5, (rise, name)
        assert abs(float(found.base) - 0.1) < 0.005
        assert abs(float(found.amplitude) - 0.5) < 0.005


def test_the_integral_is_the_area_from_greenup_to_dormancy(make_stack, cycle, days_since):
    day = np.arange(365)
    y = 0.1 + cycle(day, 110, 0.1, 260, 0.08, 0.5)
    found = phenology.metrics(make_stack(y, day)).isel(y=0, x=0, year=0, cycle=0)
    fine = np.linspace(float(days_since(found.greenup)), float(days_since(found.dormancy)), 20_001)
    expected = np.trapezoid(0.1 + cycle(fine, 110, 0.1, 260, 0.08, 0.5), fine)
    assert abs(float(found.integral) - expected) < 0.2


def test_day_of_year_counts_from_one_and_knows_leap_years(make_stack, cycle):
    day = np.arange(366)
    y = 0.1 + cycle(day, 120, 0.1, 260, 0.1, 0.5)
    found = phenology.metrics(make_stack(y, day, "2020-01-01")).isel(y=0, x=0, year=0, cycle=0)
    start = np.datetime64("2020-01-01").astype(int)
    assert abs(float(found.midgreenup_doy) - (float(found.midgreenup) - start + 1)) < 0.01
    assert abs(float(found.midgreenup_doy) - 121) < 0.5


def test_a_date_and_its_day_of_year_are_the_same_day_when_rounded(noisy, date_names):
    """Also around New Year: 31 December, 18:00 is 1 January, day 0.75, and not day 366.75."""
    first = np.datetime64("2020-09-10", "D")
    series = noisy()
    for shift in range(0, 20, 5):
        moved = series.assign_coords(
            time=series.time.values - series.time.values[0] + first + np.timedelta64(shift, "D")
        )
        m = phenology.metrics(moved)
        for name in date_names:
            date, of_year = m[name].values, m[f"{name}_doy"].values
            there = np.isfinite(date)
            assert (np.isfinite(of_year) == there).all()
            whole = np.floor(date[there] + 0.5).astype(int).astype("datetime64[D]")
            expected = (whole - whole.astype("datetime64[Y]")).astype(int) + 1
            assert (np.floor(of_year[there] + 0.5).astype(int) == expected).all()


def test_two_cycles_are_ranked_by_amplitude_not_by_time(make_stack, cycle, days_since):
    day = np.arange(0, 730, 3)
    y = 0.12 + sum(
        cycle(day - 365 * n, 95, 0.12, 150, 0.12, 0.35) + cycle(day - 365 * n, 215, 0.12, 280, 0.12, 0.55)
        for n in (0, 1)
    )
    m = phenology.metrics(make_stack(y, day)).isel(y=0, x=0)
    assert m.n_cycles.values.tolist() == [2, 2]
    first, second = days_since(m.peak.sel(year=2019).values)
    assert abs(first - 247) < 5
    assert abs(second - 122) < 5
    assert (m.amplitude.sel(cycle=1) > m.amplitude.sel(cycle=2)).all()


def test_a_crop_that_follows_another_keeps_the_base_it_rises_from(make_stack, cycle, days_since):
    """The trough between two crops lies above the ground after the second: one base for both would rise too early."""

    def curve(t):
        return 0.15 + cycle(t, 95, 0.09, 165, 0.09, 0.40) + cycle(t, 212, 0.1, 272, 0.09, 0.52)

    fine = np.arange(60, 365, 0.01)
    between = fine[(fine > 120) & (fine < 240)][np.argmin(curve(fine[(fine > 120) & (fine < 240)]))]
    top = fine[(fine > 200)][np.argmax(curve(fine[fine > 200]))]
    rise = fine[(fine > between) & (fine < top)]
    truth = [
        rise[np.argmax(curve(rise) >= curve(between) + share * (curve(top) - curve(between)))] for share in (0.15, 0.5)
    ]
    rng = np.random.default_rng(8)
    days = np.arange(0, 365, 5)
    values = curve(days[:, None]) + 0.015 * rng.standard_normal((days.size, 100))
    values[rng.random(values.shape) < 0.5] = np.nan
    found = phenology.metrics(make_stack(values, days)).isel(y=0, year=0, cycle=0)
    for date, true in zip((found.greenup, found.midgreenup), truth, strict=True):
        assert abs(np.nanmedian(days_since(date)) - true) < 2


def test_a_ripple_is_no_second_cycle(make_stack, cycle):
    day = np.arange(0, 365, 5)
    y = 0.12 + cycle(day, 100, 0.1, 270, 0.1, 0.5) + 0.04 * np.cos(day / 12)
    assert phenology.metrics(make_stack(y, day)).n_cycles.values.ravel().tolist() == [1]


@pytest.mark.parametrize("level", [0.45, 0.11, -0.03])
def test_no_cycle_is_an_answer_not_an_error(make_stack, level):
    rng = np.random.default_rng(0)
    day = np.arange(0, 730, 8)
    m = phenology.metrics(make_stack(level + 0.02 * rng.standard_normal((day.size, 30)), day))
    assert (m.n_cycles == 0).mean() >= 0.95
    none = m.n_cycles == 0
    assert m.quality.sel(cycle=1).where(none).isin([6, 7]).sum() == none.sum()
    assert np.isnan(m.peak.sel(cycle=1).where(none)).all()


def test_a_southern_season_across_new_year_has_the_shifted_dates(noisy, date_names):
    """The same looks half a year later: every date moves by that and no other thing changes."""
    north = noisy()
    south = north.assign_coords(time=north.time + np.timedelta64(183, "D"))
    a, b = (
        phenology.metrics(north, years=[2018, 2019, 2020, 2021]),
        phenology.metrics(south, years=[2018, 2019, 2020, 2021]),
    )
    for name in date_names:
        dates_a = np.sort(a[name].values.reshape(-1, 40), axis=0)
        dates_b = np.sort(b[name].values.reshape(-1, 40), axis=0)
        np.testing.assert_allclose(dates_b, dates_a + 183, atol=0.01)
    year = b.peak.sel(cycle=1).isel(y=0, x=0)
    assert (b.midgreenup_doy.values[np.isfinite(b.midgreenup.values)] > 260).all(), "greenup falls in the year before"
    for y in year.year.values:
        if np.isfinite(year.sel(year=y)):
            peak = np.datetime64(int(year.sel(year=y)), "D")
            assert peak.astype("datetime64[Y]").astype(int) + 1970 == y, "a cycle belongs to the year of its peak"


def test_metrics_are_the_same_for_any_chunks_tiles_and_threads(noisy):
    series = noisy(pixels=150)
    whole = phenology.metrics(series)
    for other in (
        phenology.metrics(series, threads=3),
        phenology.metrics(series.chunk(x=17, time=20)),
        phenology.metrics(series.chunk(x=64)),
        xr.concat([phenology.metrics(series.isel(x=slice(i, i + 50))) for i in (0, 50, 100)], "x"),
    ):
        xr.testing.assert_identical(other.compute(), whole)


def cube_of(series):
    """A cube whose red is constant and whose near infrared gives the index."""
    red = xr.full_like(series, 0.05)
    nir = (2.5 * red + series * (2.4 * red + 1)) / (2.5 - series)
    data = xr.concat([red, red, nir], "band").assign_coords(band=["B02", "B04", "B08"])
    scl = xr.full_like(series, 4, dtype=np.uint8)
    return xr.Dataset({"reflectance": data.transpose("time", "band", "y", "x").astype(np.float32), "scl": scl})


def test_a_cube_gives_the_metrics_of_its_index(noisy):
    cube = cube_of(noisy())
    a = phenology.metrics(cube, screen=False)
    b = phenology.metrics(phenology.evi2(cube), snow=cube.scl == 11)
    xr.testing.assert_allclose(a, b)
    xr.testing.assert_identical(phenology.metrics(cube.chunk(x=16)).compute(), phenology.metrics(cube))


def test_undetected_clouds_do_not_make_a_season_of_an_evergreen(make_stack):
    rng = np.random.default_rng(5)
    day = np.arange(0, 730, 6)
    shape = (day.size, 60)
    red, nir = 0.03 + 0.008 * rng.standard_normal(shape), 0.26 + 0.008 * rng.standard_normal(shape)
    opacity = np.where(rng.random(shape) < 0.25, rng.uniform(0.15, 1.0, shape), 0)
    red, nir = red * (1 - opacity) + 0.6 * opacity, nir * (1 - opacity) + 0.64 * opacity
    bands = xr.concat([make_stack(red, day), make_stack(nir, day)], "band").assign_coords(band=["B04", "B08"])
    cube = xr.Dataset({"reflectance": bands.transpose("time", "band", "y", "x").astype(np.float32)})
    assert (phenology.metrics(cube, min_amplitude=0.1).n_cycles == 0).mean() >= 0.95
    as_they_come = phenology.metrics(cube, screen=False, dip_depth=0, envelope=0, min_amplitude=0.1)
    assert (as_they_come.n_cycles == 0).mean() < 0.9


def test_the_screen_keeps_the_bare_weeks_between_two_crops(make_stack, cycle):
    """Soil raises red and lowers near infrared; a cloud raises both."""
    day = np.arange(0, 365, 8)
    green = cycle(day, 80, 0.12, 150, 0.15, 1.0) + cycle(day, 200, 0.15, 280, 0.12, 1.0)
    bands = xr.concat([make_stack(0.14 - 0.11 * green, day), make_stack(0.24 + 0.24 * green, day)], "band")
    cube = xr.Dataset(
        {"reflectance": bands.assign_coords(band=["B04", "B08"]).transpose("time", "band", "y", "x").astype(np.float32)}
    )
    assert phenology.metrics(cube).n_cycles.values.ravel().tolist() == [2]


def test_snow_counts_as_dormant(make_stack, cycle, days_since):
    day = np.arange(0, 730, 10)
    y = 0.2 + cycle(day, 150, 0.1, 270, 0.1, 0.4) + cycle(day, 515, 0.1, 635, 0.1, 0.4)
    winter = ((day % 365) < 90) | ((day % 365) > 320)
    snowy = np.where(winter, -0.1, y)
    series = make_stack(snowy, day)
    flags = series.copy(data=winter[:, None, None])
    with_flags, without = phenology.metrics(series, snow=flags), phenology.metrics(series)
    assert abs(float(with_flags.base.sel(year=2019, cycle=1).squeeze()) - 0.2) < 0.03
    assert float(without.base.sel(year=2019, cycle=1).squeeze()) < 0
    assert abs(float(days_since(with_flags.midgreenup.sel(year=2019, cycle=1).squeeze())) - 150) < 3
    assert int(with_flags.quality.sel(year=2019, cycle=1).squeeze()) in (1, 2, 3)


def test_cut_cycles_are_flagged(make_stack, cycle):
    day = np.arange(130, 700, 5)
    y = 0.1 + cycle(day, 120, 0.08, 260, 0.08, 0.5) + cycle(day, 485, 0.08, 625, 0.08, 0.5)
    m = phenology.metrics(make_stack(y, day - 130, "2019-05-11")).isel(y=0, x=0)
    assert int(m.quality.sel(year=2019, cycle=1)) in (9, 255)
    assert int(m.quality.sel(year=2020, cycle=1)) == 1


def test_a_long_gap_lowers_the_quality(make_stack, cycle):
    day = np.arange(0, 365, 5)
    y = 0.1 + cycle(day, 110, 0.08, 260, 0.08, 0.5)
    y[(day > 95) & (day < 150)] = np.nan
    m = phenology.metrics(make_stack(y, day)).isel(y=0, x=0)
    assert int(m.quality.sel(cycle=1).squeeze()) == 5


@pytest.mark.parametrize("dates", [1, 2, 5])
def test_too_few_dates_cannot_tell(make_stack, dates):
    m = phenology.metrics(make_stack(np.full((dates, 3), 0.3), np.arange(dates) * 10))
    assert (m.n_cycles == 255).all()
    assert (m.quality == 255).all()
    assert np.isnan(m.peak).all()


def test_all_cloud_cannot_tell(make_stack):
    m = phenology.metrics(make_stack(np.full((40, 3), np.nan), np.arange(40) * 9))
    assert (m.n_cycles == 255).all()
    assert np.isnan(m.greenup).all()


def test_a_year_that_is_hardly_seen_cannot_tell(make_stack):
    m = phenology.metrics(make_stack(np.full(60, 0.4), np.arange(60) * 8), years=[2018, 2019, 2020])
    assert m.n_cycles.values.ravel().tolist() == [255, 0, 255]


def test_every_variable_says_what_it_is(noisy, date_names):
    m = phenology.metrics(noisy())
    assert m.peak.dims == ("year", "cycle", "y", "x")
    assert m.n_cycles.dims == ("year", "y", "x")
    for name in date_names:
        assert m[name].dtype == np.float32
        assert m[name].attrs["kind"] == "date"
        assert m[name].attrs["units"] == "days since 1970-01-01"
        assert f"{name}_doy" in m
    assert m.quality.dtype == np.uint8
    assert m.quality.attrs["flag_values"] == list(phenology.QUALITY)
    assert m.cycle.values.tolist() == [1, 2]


def test_dates_keep_the_order_of_a_cycle(noisy, date_names):
    m = phenology.metrics(noisy(pixels=100))
    dates = np.stack([m[name].values for name in date_names])
    there = np.isfinite(dates[0])
    assert there.any()
    assert (np.diff(dates[:, there], axis=0) >= -1e-3).all()


def test_stacks_that_are_none_are_refused(noisy):
    series = noisy()
    for bad, message in (
        (series.rename(time="date"), "without 'time'"),
        (series.isel(time=slice(None, None, -1)), "ascending order"),
        (series.rename(y="row"), "dimensions"),
        (series.expand_dims(band=2), "band"),
        (series.assign_coords(time=np.arange(series.time.size)), "not dates"),
        (series.isel(time=slice(0, 0)), "no date"),
    ):
        with pytest.raises(InputError, match=message):
            phenology.metrics(bad)
    with pytest.raises(InputError, match="three ascending"):
        phenology.metrics(series, thresholds=(0.5, 0.2, 0.9))
    with pytest.raises(InputError, match="consecutive"):
        phenology.metrics(series, years=[2019, 2021])
    with pytest.raises(InputError, match="no index 'savi'"):
        phenology.metrics(cube_of(series), index="savi")
    with pytest.raises(InputError, match="do not lie on"):
        phenology.metrics(series, snow=series.isel(time=slice(1, None)).notnull())
