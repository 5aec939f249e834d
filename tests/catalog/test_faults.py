"""What may pass by itself and what will not."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import urllib.error

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from geoeco.catalog import fault, parse_period, status_fault
from geoeco.errors import CatalogError, InputError, TransientError


@pytest.mark.parametrize("status", [403, 408, 425, 429, 500, 502, 503, 504, 599])
def test_these_answers_may_pass(status):
    assert isinstance(status_fault(status, "x"), TransientError)


@pytest.mark.parametrize("status", [400, 401, 404, 405, 410, 416])
def test_these_answers_will_not_pass(status):
    error = status_fault(status, "x", "gone " * 100)
    assert isinstance(error, CatalogError)
    assert len(error.what) < 300


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.exceptions.ReadTimeout("x"), TransientError),
        (requests.exceptions.ChunkedEncodingError("x"), TransientError),
        (requests.exceptions.SSLError("x"), TransientError),
        (ConnectionResetError("x"), TransientError),
        (TimeoutError("x"), TransientError),
        (urllib.error.HTTPError("http://x", 503, "busy", None, None), TransientError),
        (urllib.error.HTTPError("http://x", 404, "gone", None, None), CatalogError),
        (FileNotFoundError("x"), CatalogError),
        (PermissionError("x"), CatalogError),
        (json.JSONDecodeError("x", "y", 0), CatalogError),
        (KeyError("links"), CatalogError),
    ],
)
def test_faults_are_told_apart_by_their_kind_and_travel_between_processes(error, kind):
    told = fault(error, "the catalogue")
    assert type(told) is kind
    assert told.where == "the catalogue"
    assert str(pickle.loads(pickle.dumps(told))) == str(told)


def test_the_reason_is_found_below_the_error_that_hides_it():
    outer = RuntimeError("could not search")
    outer.__cause__ = requests.exceptions.ConnectTimeout("slow")
    assert isinstance(fault(outer, "x"), TransientError)
    outer.__cause__ = outer  # a chain that bites its tail ends
    assert isinstance(fault(outer, "x"), CatalogError)


# --- periods ---

UTC = dt.UTC


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (("2021", "2021"), (2021, 1, 1), (2022, 1, 1)),
        (("2020-02", "2020-02"), (2020, 2, 1), (2020, 3, 1)),
        (("2021-12", "2021-12"), (2021, 12, 1), (2022, 1, 1)),
        ("2021-06-15", (2021, 6, 15), (2021, 6, 16)),
        ("2021-06-15/2021-07", (2021, 6, 15), (2021, 8, 1)),
        ((dt.date(2021, 6, 15), np.datetime64("2021-06-20")), (2021, 6, 15), (2021, 6, 21)),
    ],
)
def test_dates_without_a_time_mean_the_whole_of_them(period, start, end):
    first, last = parse_period(period)
    assert first == dt.datetime(*start, tzinfo=UTC)
    assert last + dt.timedelta(microseconds=1) == dt.datetime(*end, tzinfo=UTC)


def test_times_are_taken_as_they_are_and_without_a_zone_as_utc():
    first, last = parse_period(("2021-06-15T12:00:00+02:00", np.datetime64("2021-06-15T11:00")))
    assert (first.hour, last.hour) == (10, 11)
    assert first.tzinfo == last.tzinfo == UTC


@pytest.mark.parametrize("period", [(None, None), None, "../..", ("", "..")])
def test_open_periods_are_open(period):
    assert parse_period(period) == (None, None)


@pytest.mark.parametrize(
    "period", ["2021/2022/2023", ("2021",), ("June", None), ("2021-13", None), ("2021-02-30", None), ("2022", "2021")]
)
def test_senseless_periods_are_refused(period):
    with pytest.raises(InputError):
        parse_period(period)


@given(st.dates(dt.date(1990, 1, 1), dt.date(2100, 1, 1)), st.integers(0, 400))
def test_a_period_of_days_holds_exactly_its_days(start, length):
    end = start + dt.timedelta(days=length)
    first, last = parse_period((start, end))
    assert (last - first + dt.timedelta(microseconds=1)).days == length + 1
    assert (first.date(), last.date()) == (start, end)
