"""What can be known to be wrong is refused before any work."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from geoeco.steps.chips import SplitSettings
from geoeco.steps.cog import CogSettings
from geoeco.steps.seasons import SeasonsSettings


@pytest.mark.parametrize("years", [(), (2021, 2023), (2022, 2021), (2021, 2021), (-5,)])
def test_years_are_consecutive(years: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        SeasonsSettings(years=years)


def test_years_may_be_one_or_left_out() -> None:
    assert SeasonsSettings(years=(2021,)).years == (2021,)
    assert SeasonsSettings().years is None


@pytest.mark.parametrize("thresholds", [(0.9, 0.5, 0.15), (0.15, 0.15, 0.9), (0.0, 0.5, 0.9), (0.1, 0.5, 1.0)])
def test_thresholds_ascend_between_0_and_1(thresholds: tuple[float, float, float]) -> None:
    with pytest.raises(ValidationError):
        SeasonsSettings(thresholds=thresholds)


@pytest.mark.parametrize("layers", [(), ("n_cycles_2021", "n_cycles_2021")])
def test_layers_are_named_once(layers: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        CogSettings(layers=layers)


@pytest.mark.parametrize("fractions", [(0.0, 0.0, 0.0), (0.6, 0.6, -0.2), (7.0, 2.0, 1.0)])
def test_shares_of_the_sets_are_shares(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValidationError):
        SplitSettings(fractions=fractions)
