"""Real Sentinel-2 data, from a catalogue through the command line and a cluster to season maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geoeco.cubes import open_cube
from tests.roads.conftest import cluster, geoeco
from tests.roads.flanders import GRASS, MAIZE, build_catalog, crop_types

RECIPE = """
geoeco: 1
name: flanders
inputs:
  imagery: {catalog: catalog/catalog.json, collections: [sentinel-2-l2a], period: [2017-08-01, 2018-11-30]}
grid: {crs: EPSG:32631, block: 64}
steps:
  - {verb: cube, bands: [B02, B04, B08]}
  - {verb: seasons}
  - {verb: cog}
"""
DATES = ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy")
FEWEST_PIXELS = 100

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def run(real_data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = real_data("sentinel2/flanders_field_2017-2018/S2_L2A_10m.nc").parent
    folder = tmp_path_factory.mktemp("flanders")
    build_catalog(source, folder / "catalog")
    (folder / "flanders.yaml").write_text(RECIPE)
    with cluster(2, folder) as (address, _):
        done = geoeco("run", "flanders.yaml", "--out", "run", "--cluster", address, "-q", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def crops(real_data) -> np.ndarray:
    return crop_types(real_data("sentinel2/flanders_field_2017-2018/OUTPUT_POLY-110_10m.nc").parent)


def season_dates(run: Path, year: int, cycle: int) -> dict[str, np.ndarray]:
    """Dates of one year and cycle over the labelled patch, days since 1970, NaN where there is no cycle."""
    with rasterio.open(run / "cog" / f"dates_{year}_cycle{cycle}.tif") as file:
        assert file.descriptions == DATES
        stored = file.read(window=file.window(501360, 5629040, 502000, 5629680)).astype(float)
        stored[stored == file.nodata] = np.nan
    return dict(zip(DATES, stored, strict=True))


def day(text: str) -> float:
    return float(np.datetime64(text, "D").astype(int))


def test_the_run_worked_on_two_worker_processes(run: Path) -> None:
    records = [json.loads(path.read_text()) for path in run.glob("ledger/*/*/*.json")]
    assert len({record["process"] for record in records if "process" in record}) >= 2
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["state"], manifest["exit_code"]) == ("complete", 0)
    assert json.loads((run / "quarantine.json").read_text()) == []


def test_the_cube_holds_the_pixels_of_the_archive(run: Path, real_data) -> None:
    import xarray as xr

    source = xr.open_dataset(
        real_data("sentinel2/flanders_field_2017-2018/S2_L2A_10m.nc"), mask_and_scale=False
    ).sortby("timestamp")
    cube = open_cube(str(run / "cube" / "cube.zarr")).sel(band="B08")
    stored = cube["reflectance"].sel(x=source.x.values, y=source.y.values, method="nearest", tolerance=1.0)
    days = source.timestamp.values.astype("datetime64[D]")
    assert (stored.time.values.astype("datetime64[D]") == days).all()
    seen = np.isfinite(stored.values)
    assert 0.2 < seen.mean() < 0.8
    np.testing.assert_allclose(stored.values[seen], source.B08.values[seen] * 1e-4, atol=1e-6)


def test_grass_peaks_two_months_before_maize(run: Path, crops: np.ndarray) -> None:
    main = season_dates(run, 2018, 1)
    for code in np.unique(crops[crops > 0]):
        of_crop = crops == code
        dates = {name: np.nanmedian(values[of_crop]) for name, values in main.items()}
        text = ", ".join(f"{n} {np.datetime64(int(v), 'D')}" for n, v in dates.items() if np.isfinite(v))
        few = " (too few pixels to claim anything)" if of_crop.sum() < FEWEST_PIXELS else ""
        print(f"crop {code}, {of_crop.sum()} px{few}: {text}")
    peak = main["peak"]
    assert np.nanmedian(peak[crops == MAIZE]) - np.nanmedian(peak[crops == GRASS]) >= 60


def test_maize_greens_up_in_late_spring_and_is_harvested_by_october(run: Path, crops: np.ndarray) -> None:
    main = season_dates(run, 2018, 1)
    assert day("2018-05-20") <= np.nanmedian(main["greenup"][crops == MAIZE]) <= day("2018-06-30")
    assert np.nanmedian(main["dormancy"][crops == MAIZE]) < day("2018-10-01")


def test_the_winter_catch_crop_on_maize_is_a_second_cycle(run: Path, crops: np.ndarray) -> None:
    maize = crops == MAIZE
    of_winter = np.zeros(maize.sum(), bool)
    for year, cycle in ((2017, 1), (2017, 2), (2018, 2)):
        peak = season_dates(run, year, cycle)["peak"][maize]
        of_winter |= (peak >= day("2017-10-01")) & (peak <= day("2018-05-31"))
    main = season_dates(run, 2018, 1)["peak"][maize]
    print(f"maize pixels with a winter cycle beside the main one: {(of_winter & np.isfinite(main)).mean():.0%}")
    assert (of_winter & np.isfinite(main)).mean() >= 0.5
