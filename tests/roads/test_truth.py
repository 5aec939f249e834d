"""Season dates of the whole road against the truth of the simulated world, under cloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geoeco.cubes import open_rasters
from geoeco.simulate import read_truth, write_s2_world
from geoeco.steps import Recipe

RECIPE = """
geoeco: 1
name: truth
inputs:
  imagery: {{catalog: world/catalog.json, period: [{first}-08-01, {last}-04-30]}}
grid: {{crs: EPSG:32631, block: 256}}
steps:
  - {{verb: cube, bands: [B04, B08]}}
  - {{verb: seasons, years: {years}, curve: {curve}}}
"""
DATES = ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy")
TILE = "31UGS"


def measure(
    folder: Path, *, years: int = 2, curve: str = "double-logistic", **world: object
) -> dict[str, dict[str, float]]:
    """Errors by cover: median absolute error of each date of cycle 1 in days, and shares of the numbers of cycles."""
    if not (folder / "world").exists():
        write_s2_world(folder / "world", years=years, **world)
    wanted = list(range(2021, 2021 + years))
    text = RECIPE.format(first=2020, last=2021 + years, years=wanted, curve=curve)
    (folder / f"{curve}.yaml").write_text(text)
    run = Recipe.load(folder / f"{curve}.yaml").run(folder / curve, progress=False)
    assert run.exit_code == 0, run.failures
    truth = read_truth(folder / "world", TILE, years=wanted)
    found = open_rasters(str(folder / curve / "seasons" / "rasters.zarr")).sel(
        x=truth.x.values, y=truth.y.values, method="nearest", tolerance=1.0
    )
    cover = truth["cover"].to_numpy()
    names = zip(truth["cover"].attrs["flag_values"], str(truth["cover"].attrs["flag_meanings"]).split(), strict=True)
    table: dict[str, dict[str, float]] = {}
    for code, name in names:
        of_cover = cover == code
        number = found["n_cycles"].to_numpy()[:, of_cover]
        row = {f"n={n}": float((number == n).mean()) for n in (0, 1, 2)}
        for date in DATES:
            error = np.abs(found[date].sel(cycle=1).to_numpy() - truth[date].sel(cycle=1).to_numpy())[:, of_cover]
            row[date] = float(np.nanmedian(error)) if np.isfinite(error).any() else np.nan
        table[name] = row
    return table


def test_dates_within_three_days_and_no_cycle_where_there_is_none(tmp_path: Path) -> None:
    # the default world, in smaller tiles, with the settings that users get
    table = measure(tmp_path, size=120)
    for name, row in table.items():
        print(name, {key: round(value, 2) for key, value in row.items()})
    strong = table["deciduous"]
    assert strong["n=1"] >= 0.95
    assert table["crop"]["n=2"] >= 0.85
    assert {date: strong[date] for date in DATES if not strong[date] <= 3.0} == {}
    for name in ("evergreen", "bare", "water"):
        assert table[name]["n=0"] >= 0.95, name


@pytest.mark.experiment
@pytest.mark.parametrize("clouds", [0.4, 0.6, 0.75])
def test_the_table_of_accuracy(tmp_path: Path, clouds: float) -> None:
    """Print the table of docs/phenology.md: the default world (seed 42), two years, at three cloud fractions."""
    for curve in ("whittaker", "double-logistic"):
        table = measure(tmp_path, curve=curve, clouds=clouds)
        print(f"\n{clouds:.0%} cloud, {curve}")
        print("| cover | " + " | ".join(DATES) + " | no cycle | one | two |")
        print("|---" * (len(DATES) + 4) + "|")
        for name, row in table.items():
            dates = " | ".join("-" if np.isnan(row[d]) else f"{row[d]:.1f}" for d in DATES)
            print(f"| {name} | {dates} | {row['n=0']:.3f} | {row['n=1']:.3f} | {row['n=2']:.3f} |")
