"""``.geoeco`` on xarray objects: says what the rooms say, and no more."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  (registers .rio)
import xarray as xr

import geoeco.accessor
from geoeco import phenology
from geoeco.errors import InputError
from geoeco.variables import describe

BANDS = ["B02", "B03", "B04", "B08"]


@pytest.fixture
def cube():
    """36 dates over three years, 6 x 5 pixels: a season in every pixel, one pixel cloudy on the first date."""
    days = np.arange("2018-01-01", "2021-01-01", 30, dtype="datetime64[D]")
    phase = np.cos(2 * np.pi * (days.astype("int64") % 365.25) / 365.25)
    green = 0.5 - 0.4 * phase
    spectrum = {"B02": 0.04 - 0.01 * green, "B03": 0.07 + 0 * green, "B04": 0.15 - 0.1 * green}
    spectrum["B08"] = 0.15 + 0.3 * green
    values = np.stack([spectrum[band] for band in BANDS], axis=1)[:, :, None, None] * np.ones((1, 1, 6, 5))
    values[0, :, 2, 3] = np.nan
    reflectance = xr.DataArray(
        values.astype("float32"),
        dims=("time", "band", "y", "x"),
        coords={
            "time": days.astype("datetime64[ns]"),
            "band": BANDS,
            "y": 5_000_000 - 10.0 * np.arange(6) - 5,
            "x": 500_000 + 10.0 * np.arange(5) + 5,
        },
    )
    scl = xr.full_like(reflectance.isel(band=0, drop=True), 4, dtype="uint8")
    dataset = xr.Dataset(
        {
            "reflectance": describe(reflectance, kind="continuous", units="1", long_name="surface reflectance"),
            "scl": describe(scl, kind="class", units="", long_name="scene classification").assign_attrs(
                flag_values=np.array([4, 5, 6], "uint8"), flag_meanings="vegetation bare water"
            ),
        }
    )
    return dataset.rio.write_crs("EPSG:32631")


@pytest.mark.parametrize("name", ["evi2", "ndvi", "evi"])
def test_an_index_is_that_of_phenology(cube, name):
    xr.testing.assert_identical(cube.geoeco.index(name), getattr(phenology, name)(cube))


def test_the_crs_stays_through_index_and_seasons(cube):
    for made in (cube.geoeco.index("evi2"), cube.geoeco.season(years=[2019]), cube.geoeco.valid_fraction()):
        assert made.rio.crs.to_epsg() == 32631


def test_an_unknown_index_is_refused_with_the_known_ones(cube):
    with pytest.raises(InputError, match="no index 'savi'") as caught:
        cube.geoeco.index("savi")
    assert "evi2" in caught.value.what_to_do


def test_seasons_are_those_of_phenology_with_the_same_settings(cube):
    ours = cube.geoeco.season(index="ndvi", years=[2019])
    xr.testing.assert_identical(ours, phenology.metrics(cube, index="ndvi", years=[2019]))


def test_the_valid_fraction_counts_dates_on_which_all_bands_are_there(cube):
    cube["reflectance"][1, 0, 2, 3] = np.nan
    fraction = cube.geoeco.valid_fraction()
    assert fraction.dims == ("y", "x")
    dates = cube.sizes["time"]
    assert fraction[2, 3].item() == pytest.approx((dates - 2) / dates)
    assert fraction[0, 0].item() == 1.0
    assert cube["reflectance"].geoeco.valid_fraction().identical(fraction)


def test_true_colour_is_red_green_blue_between_0_and_1_and_keeps_gaps(cube):
    picture = cube.geoeco.rgb(white=0.1)
    assert picture["band"].values.tolist() == ["B04", "B03", "B02"]
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1
    assert np.isnan(picture[0, :, 2, 3]).all()
    with pytest.raises(InputError, match="without B02"):
        cube.sel(band=["B03", "B04"]).geoeco.rgb()


def test_classes_are_read_from_the_cf_attributes(cube):
    assert cube["scl"].geoeco.classes == {4: "vegetation", 5: "bare", 6: "water"}
    with pytest.raises(InputError, match="no table of classes"):
        _ = cube["reflectance"].geoeco.classes


def test_a_map_goes_to_a_geotiff_on_its_grid(cube, tmp_path):
    fraction = cube.geoeco.valid_fraction()
    fraction.geoeco.to_cog(tmp_path / "valid.tif")
    with rasterio.open(tmp_path / "valid.tif") as file:
        assert file.crs.to_epsg() == 32631
        assert (file.height, file.width) == (6, 5)
        assert file.transform.c == 500_000
        np.testing.assert_array_equal(file.read(1), fraction.values)


def test_what_is_no_cube_says_so(cube):
    with pytest.raises(InputError, match="no variable 'reflectance'"):
        cube[["scl"]].geoeco.valid_fraction()
    with pytest.raises(InputError, match="no dimension 'date'"):
        cube.geoeco.valid_fraction("date")


def test_lazy_cubes_stay_lazy(cube):
    lazy = cube.chunk({"time": -1, "y": 3, "x": 5})
    for result in (lazy.geoeco.valid_fraction(), lazy.geoeco.rgb(), lazy.geoeco.index("evi2")):
        assert result.chunks is not None
    np.testing.assert_allclose(lazy.geoeco.valid_fraction(), cube.geoeco.valid_fraction())


def test_the_example_of_the_readme_runs_as_it_stands(cube, tmp_path, monkeypatch):
    """On a small cube of three years in the place of the quickstart's."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    later = cube.assign_coords(time=cube["time"] + np.timedelta64(730, "D").astype("timedelta64[ns]"))
    monkeypatch.setattr(geoeco, "open_cube", lambda store: later, raising=False)
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    exec(compile(example, "README.md", "exec"), {})
    with rasterio.open(tmp_path / "greenup.tif") as file:
        days = file.read(1, masked=True)
        assert 1 <= days.min() <= days.max() <= 366
