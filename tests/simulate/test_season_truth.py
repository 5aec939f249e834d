"""The truth about seasons: closed forms, the rule restated plainly, both hemispheres."""

from __future__ import annotations

import numpy as np
import pytest

from geoeco.phenology import evi2
from geoeco.simulate.landscape import COVERS, first_of_january, mgrs_name
from geoeco.simulate.season_dates import DATES, FILL, season_truth, threshold_dates

CODE = {cover.name: cover.code for cover in COVERS}


def calendar_year(days):
    return days.astype("datetime64[D]").astype("datetime64[Y]").astype(int) + 1970


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_dates_of_a_logistic_are_those_of_the_closed_form(rate):
    t = np.arange(0.0, 801.0)
    rise_at, fall_at = 200.3, 600.8
    curve = np.where(t < 400, 1 / (1 + np.exp(-rate * (t - rise_at))), 1 / (1 + np.exp(rate * (t - fall_at))))
    found = threshold_dates(curve[None], np.array([0]), np.array([400]), np.array([800]))[0]
    # p is reached at s - ln((1-p)/p)/r; the first whole day at or after it, the last at or before it
    for name, p in (("greenup", 0.15), ("midgreenup", 0.5), ("maturity", 0.9)):
        assert found[DATES.index(name)] == np.ceil(rise_at - np.log((1 - p) / p) / rate)
    for name, p in (("senescence", 0.9), ("midgreendown", 0.5), ("dormancy", 0.15)):
        assert found[DATES.index(name)] == np.floor(fall_at + np.log((1 - p) / p) / rate)


@pytest.mark.parametrize("where", ["northern", "southern"])
def test_dates_equal_the_rule_applied_in_a_plain_loop(where, request):
    world = request.getfixturevalue(where)
    years = world.settings.product_years
    truth = season_truth(world.landscape, years[0], years[-1])
    rng = np.random.default_rng(1)
    vegetated = np.flatnonzero(world.landscape.cover_of_curve <= 3)
    for curve in rng.choice(vegetated, 12, replace=False):
        start = first_of_january(years[0] - 1)
        days = np.arange(start, first_of_january(years[-1] + 2))
        v = [round(float(value), 6) for value in world.landscape.evi2(days.astype(float), np.array([curve]))[0]]
        for column, year in enumerate(years):
            for cycle in range(int(truth.n_cycles[curve, column])):
                got = truth.dates[curve, column, cycle] - start
                peak = int(got[3])
                assert calendar_year(days[peak]) == year
                assert v[peak] == max(v[got[0] : got[6]])
                lowest_left = (
                    min(v[max(peak - 185, 0) : peak]) if cycle == 0 and truth.n_cycles[curve, column] == 1 else None
                )
                if lowest_left is None:
                    continue
                lowest_right = min(v[peak : peak + 186])
                for name, p in (("greenup", 0.15), ("midgreenup", 0.5), ("maturity", 0.9)):
                    k = int(got[DATES.index(name)])
                    level = round(lowest_left + p * (v[peak] - lowest_left), 6)
                    assert v[k] >= level > v[k - 1]
                for name, p in (("senescence", 0.9), ("midgreendown", 0.5), ("dormancy", 0.15)):
                    k = int(got[DATES.index(name)])
                    level = round(lowest_right + p * (v[peak] - lowest_right), 6)
                    assert v[k] >= level > v[k + 1]


@pytest.mark.parametrize("where", ["northern", "southern"])
def test_covers_have_the_cycles_they_should(where, request):
    world = request.getfixturevalue(where)
    years = world.settings.product_years
    truth = season_truth(world.landscape, years[0], years[-1])
    expected = {"deciduous": 1, "crop": 2, "grassland": 1, "evergreen": 0, "bare": 0, "water": 0}
    for name, n in expected.items():
        rows = world.landscape.cover_of_curve == CODE[name]
        assert rows.any()
        assert (truth.n_cycles[rows] == n).all()
        assert (truth.dates[rows][:, :, n:] == FILL).all()
        assert (truth.dates[rows][:, :, :n] != FILL).all()
        assert np.isfinite(truth.amplitude[rows][:, :, :n]).all()
    real = truth.dates[truth.n_cycles > 0][:, 0]
    assert (np.diff(real, axis=-1) > 0).all()


def test_the_larger_cycle_of_the_crop_is_the_later_one(northern):
    truth = season_truth(northern.landscape, *northern.settings.product_years)
    rows = northern.landscape.cover_of_curve == CODE["crop"]
    assert (truth.amplitude[rows, :, 0] > truth.amplitude[rows, :, 1]).all()
    assert (truth.dates[rows, :, 0, 3] > truth.dates[rows, :, 1, 3]).all()


def test_the_southern_season_crosses_new_year(southern):
    truth = season_truth(southern.landscape, *southern.settings.product_years)
    rows = southern.landscape.cover_of_curve == CODE["deciduous"]
    for column, year in enumerate(southern.settings.product_years):
        dates = truth.dates[rows, column, 0]
        assert (calendar_year(dates[:, DATES.index("greenup")]) == year - 1).all()
        assert (calendar_year(dates[:, DATES.index("peak")]) == year).all()
        assert (calendar_year(dates[:, DATES.index("dormancy")]) == year).all()


@pytest.mark.parametrize("where", ["northern", "southern"])
def test_all_cycles_of_the_product_years_lie_within_the_imagery(where, request):
    world = request.getfixturevalue(where)
    truth = season_truth(world.landscape, *world.settings.product_years)
    real = truth.dates[truth.dates != FILL]
    # a month of dormancy on either side
    assert world.acquisitions[0].ordinal + 30 < real.min()
    assert real.max() < world.acquisitions[-1].ordinal - 30


def test_reflectance_has_exactly_the_evi2_of_the_curve(northern):
    from xarray import DataArray, Dataset

    for day in (18700, 18830, 18900, 19200):
        spectra = northern.landscape.reflectance(day)
        truth = northern.landscape.evi2(np.array([float(day)]))[:, 0]
        stack = DataArray(
            spectra[None, :, [3, 7]].transpose(0, 2, 1)[..., None],
            dims=("time", "band", "y", "x"),
            coords={"band": ["B04", "B08"]},
            attrs={"kind": "continuous", "units": "1"},
        )
        measured = evi2(Dataset({"reflectance": stack})).values.ravel()
        np.testing.assert_allclose(measured, truth, atol=2e-6)
        assert spectra.min() >= 0
        assert spectra.max() < 0.7


def test_dates_vary_within_patches_by_whole_quarter_days(northern):
    landscape = northern.landscape
    patches, counts = np.unique(landscape.patch_of_curve, return_counts=True)
    assert counts.max() >= 3
    assert landscape.n_curves > len(patches)


@pytest.mark.parametrize(
    ("zone", "lat", "easting", "northing", "name"),
    [
        (31, 50.8, 480_000, 5_629_000, "31UDS"),
        (29, 24.8, 250_000, 2_750_000, "29RKH"),
        (33, 48.2, 600_000, 5_340_000, "33UXP"),
        (18, 40.7, 583_960, 4_507_523, "18TWL"),
        (56, -33.86, 334_000, 6_252_000, "56HLH"),
    ],
)
def test_tiles_bear_the_names_of_mgrs(zone, lat, easting, northing, name):
    assert mgrs_name(zone, lat, easting, northing) == name
