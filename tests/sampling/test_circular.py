"""Dates on the circle of the year."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoeco.sampling import circular_distance, circular_median, circular_spread, day_of_year
from geoeco.sampling.circular import YEAR_DAYS, wrap_day

days = st.floats(1, 366, allow_nan=False)


def test_days_359_and_5_meet_at_the_turn_of_the_year():
    median = circular_median([359.0, 5.0])
    assert circular_distance(median, 1.0) < 5
    assert circular_distance(median, 182.0) > 170


def test_spring_days_have_their_ordinary_median():
    assert circular_median([100.0, 110.0, 130.0]) == pytest.approx(110)
    assert circular_median([100.0, 110.0, 130.0, 140.0]) == pytest.approx(120)


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=9), days)
def test_days_within_a_season_have_the_median_of_the_unrolled_days(offsets, centre):
    expected = centre + np.median(offsets)
    assert circular_distance(circular_median(centre + np.array(offsets)), expected) < 1e-6


@given(st.lists(days, min_size=1, max_size=12), st.floats(0, 365))
def test_turning_the_year_does_not_change_how_far_the_median_is(values, turn):
    array = np.array(values)
    cost = circular_distance(array, circular_median(array)).sum()
    turned = circular_distance(array + turn, circular_median(array + turn)).sum()
    assert cost == pytest.approx(turned, abs=1e-4)


@given(st.lists(days, min_size=1, max_size=7))
def test_no_given_day_lies_nearer_to_all_others_than_the_median(values):
    array = np.array(values)
    best = min(circular_distance(array, day).sum() for day in array)
    assert circular_distance(array, circular_median(array)).sum() <= best + 1e-6


def test_many_values_take_the_same_median_as_few():
    rng = np.random.default_rng(0)
    few = wrap_day(rng.normal(2, 12, 61))
    many = np.repeat(few, 41)
    assert circular_median(many) == pytest.approx(float(circular_median(few)), abs=1e-9)


def test_missing_values_are_left_out_and_empty_rows_stay_empty():
    table = np.array([[10.0, np.nan, 12.0], [np.nan] * 3])
    median = circular_median(table)
    assert median[0] == 11
    assert np.isnan(median[1])
    assert circular_spread(table, median).tolist()[0] == 1
    assert np.isnan(circular_spread(table, median)[1])


def test_day_of_year_knows_leap_years():
    dates = np.array(["2019-12-31", "2020-12-31", "2020-02-29", "2021-03-01", "1969-12-31"], dtype="datetime64[D]")
    found = day_of_year(dates.astype(np.int64))
    assert found.tolist() == [365, 366, 60, 60, 365]
    assert np.isnan(day_of_year(np.nan))
    # the last day of a leap year and New Year are a day apart, not a year
    assert circular_distance(366, 1) < 1


def test_days_are_brought_onto_the_circle():
    assert wrap_day(0.0) == YEAR_DAYS
    assert wrap_day(367.0) == pytest.approx(1.75)
    assert wrap_day(1.0) == 1.0
