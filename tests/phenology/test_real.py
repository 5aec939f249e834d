"""Real series: a farmland patch in Flanders, PhenoCam greenness and MODIS at flux towers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.interpolate import make_smoothing_spline
from scipy.ndimage import binary_dilation

from geoeco import phenology

pytestmark = pytest.mark.real
GRASS, MAIZE = 9120, 1200


@pytest.fixture(scope="module")
def flanders(real_data):
    """The cube of the patch: cloud, shadow and cirrus masked, 20 m SCL doubled; and the crop types."""
    folder = real_data("sentinel2/flanders_field_2017-2018")
    fine = xr.open_dataset(folder / "S2_L2A_10m.nc", mask_and_scale=False).load()
    coarse = xr.open_dataset(folder / "S2_L2A_20m.nc", mask_and_scale=False).load()
    crop = xr.open_dataset(folder / "OUTPUT_POLY-110_10m.nc", mask_and_scale=False).CT.load().values
    scl = coarse.SCL.values.astype(np.uint8)
    cloud = np.stack([binary_dilation(one) for one in np.isin(scl, (3, 8, 9))]) | np.isin(scl, (0, 1, 10))
    scl, cloud = (np.kron(array, np.ones((1, 2, 2), array.dtype)) for array in (scl, cloud))
    bands = []
    for name in ("B02", "B04", "B08"):
        values = fine[name].values * np.float32(1e-4)
        bands.append(np.where(cloud | (fine[name].values == 0), np.nan, values).astype(np.float32))
    time = fine.timestamp.values.astype("datetime64[D]").astype("datetime64[ns]")
    cube = xr.Dataset(
        {"reflectance": (("time", "band", "y", "x"), np.stack(bands, 1)), "scl": (("time", "y", "x"), scl)},
        coords={"time": time, "band": ["B02", "B04", "B08"], "y": fine.y.values, "x": fine.x.values},
    )
    return cube, crop.reshape(cube.sizes["y"], cube.sizes["x"])


def test_the_crops_of_flanders_differ_as_agronomy_says(flanders):
    cube, crop = flanders
    m = phenology.metrics(cube)
    new_year = np.datetime64("2018-01-01", "D").astype(int)
    main = m.sel(year=2018, cycle=1)
    codes, counts = np.unique(crop[crop > 0], return_counts=True)
    for code, count in zip(codes, counts, strict=True):
        median = {
            name: np.nanmedian(main[name].values[crop == code]) - new_year for name in ("greenup", "peak", "dormancy")
        }
        print(f"crop {code}, {count} px, days of 2018:", {k: round(float(v)) for k, v in median.items()})
    maize, grass = crop == MAIZE, crop == GRASS
    assert maize.sum() >= 100
    assert grass.sum() >= 100

    def median(name, where):
        return float(np.nanmedian(main[name].values[where])) - new_year

    def day(text):
        return int(np.datetime64(text, "D").astype(int)) - new_year

    assert median("peak", maize) - median("peak", grass) >= 60
    assert day("2018-05-20") <= median("greenup", maize) <= day("2018-06-30")
    assert median("dormancy", maize) < day("2018-10-01")

    # the catch crop stands from autumn to spring, whichever year its peak falls in and whatever its rank
    peaks = m.peak.values[..., maize] - new_year
    catch = ((peaks > day("2017-10-01")) & (peaks < day("2018-05-15"))).any(axis=(0, 1))
    main_too = ((peaks > day("2018-06-15")) & (peaks < day("2018-09-15"))).any(axis=(0, 1))
    print(f"catch crop on {catch.mean():.0%} of the maize, beside a maize cycle on {(catch & main_too).mean():.0%}")
    assert (catch & main_too).mean() > 0.5


def greenness(path):
    table = pd.read_csv(path, comment="#", parse_dates=["date"])
    table = table.drop_duplicates("date").set_index("date")
    raw = table.gcc_90.where((table.outlierflag_gcc_90 != 1) & (table.snow_flag.fillna(0) != 1))
    return raw, table.smooth_gcc_90


def gcc_stack(series):
    return xr.DataArray(
        series.to_numpy(np.float64)[:, None, None],
        dims=("time", "y", "x"),
        coords={"time": series.index.to_numpy("datetime64[ns]")},
    )


THRESHOLDS = (0.1, 0.25, 0.5)
SMALL = {"min_amplitude": 0.02, "thresholds": THRESHOLDS, "dip_depth": 0.04, "lmbda": 300.0}


def test_phenocam_dates_agree_with_the_curves_of_the_files(real_data):
    """Dates at 10, 25 and 50 % of the files' own LOESS curves, found on those curves by hand, against ours from raw."""
    folder = real_data("phenology/phenocam")
    errors = []
    for path in sorted(folder.glob("*_DB_*.csv")):
        raw, smooth = greenness(path)
        m = phenology.metrics(gcc_stack(raw), **SMALL).isel(y=0, x=0).sel(cycle=1)
        curve = smooth.dropna().resample("1D").interpolate()
        for year in m.year.values:
            found = m.sel(year=year)
            if not np.isfinite(found.peak) or int(found.quality) > 3:
                continue
            ours = np.array([float(found[name]) for name in ("greenup", "midgreenup", "maturity")])
            fall = np.array([float(found[name]) for name in ("dormancy", "midgreendown", "senescence")])
            season = curve[f"{year}-01-01" : f"{year}-12-31"]
            top = season.to_numpy().argmax()
            if len(season) < 360 or not 0 < top < len(season) - 1:
                continue
            values = season.to_numpy()
            low = values[:top].min(), values[top:].min()
            first = np.datetime64(f"{year}-01-01", "D").astype(int)
            start = np.argmin(values[:top])
            for k, share in enumerate(THRESHOLDS):
                rise = start + np.argmax(values[start:top] >= low[0] + share * (values[top] - low[0]))
                drop = top + np.flatnonzero(values[top:] >= low[1] + share * (values[top] - low[1])).max()
                errors.append((path.name[:10], int(year), share, ours[k] - first - rise, fall[k] - first - drop))
    table = pd.DataFrame(errors, columns=["site", "year", "share", "rise", "fall"])
    print(
        table.groupby(["site", "share"])[["rise", "fall"]].agg(["median", lambda e: e.abs().median(), "count"]).round(1)
    )
    assert len(table) >= 15
    by_share = table.groupby("share")
    assert (by_share.rise.apply(lambda e: e.abs().median()) <= 5).all()
    assert (by_share.fall.apply(lambda e: e.abs().median()) <= 8).all()


@pytest.fixture(scope="module")
def modis(real_data):
    folder = real_data("phenology/mod13a1_flux_sites")
    table = pd.read_csv(folder / "MOD13A1_5sites.csv.gz", parse_dates=["date"])
    red, nir = table.sur_refl_b01 / 1e4, table.sur_refl_b02 / 1e4
    # composites carry the day on which each pixel was really seen
    seen = pd.to_datetime(table.date.dt.year.astype(str)) + pd.to_timedelta(table.DayOfYear - 1, unit="D")
    seen = seen.where(seen >= table.date - pd.Timedelta(days=1), seen + pd.DateOffset(years=1))
    table["seen"] = seen
    table["evi2"] = 2.5 * (nir - red) / (nir + 2.4 * red + 1)
    return table[table.SummaryQA <= 2]


def site_stack(table, site):
    one = table[table.site == site].sort_values("seen").drop_duplicates("seen").dropna(subset=["evi2"])
    values = one.evi2.where(one.SummaryQA < 2).to_numpy(np.float64)
    snow = (one.SummaryQA == 2).to_numpy()
    coords = {"time": one.seen.to_numpy("datetime64[ns]")}
    return (
        xr.DataArray(np.where(snow, 0.0, values)[:, None, None], dims=("time", "y", "x"), coords=coords),
        xr.DataArray(snow[:, None, None], dims=("time", "y", "x"), coords=coords),
    )


def test_modis_dates_agree_with_a_smoothing_spline(modis):
    """The half-amplitude dates against a generalised cross-validation spline of scipy, on the clear looks."""
    medians = {}
    for site in ("AT-Neu", "CN-Cha", "US-KS2"):
        series, snow = site_stack(modis, site)
        m = phenology.metrics(series, snow=snow).isel(y=0, x=0).sel(cycle=1)
        clear = np.isfinite(series.values[:, 0, 0]) & ~snow.values[:, 0, 0]
        day = series.time.values.astype("datetime64[D]").astype(float)[clear]
        spline = make_smoothing_spline(day, series.values[clear, 0, 0])
        errors = []
        for year in m.year.values:
            found = m.sel(year=year)
            if not np.isfinite(found.peak) or int(found.quality) == 9:
                continue
            first = np.datetime64(f"{year}-01-01", "D").astype(int)
            grid = np.arange(first, first + 365)
            v = spline(grid)
            top = int(np.argmax(v))
            if not 30 < top < 335:
                continue
            rise = grid[:top][np.argmax(v[:top] >= (v[:top].min() + v[top]) / 2)]
            fall = grid[top:][np.flatnonzero(v[top:] >= (v[top:].min() + v[top]) / 2).max()]
            errors.append((float(found.midgreenup) - rise, float(found.midgreendown) - fall))
        table = np.array(errors)
        medians[site] = np.median(np.abs(table), axis=0)
        bias = np.median(table, axis=0).round(1)
        print(f"{site}: {len(table)} years, median |error| {medians[site].round(1)} d, bias {bias} d (rise, fall)")
    assert medians["CN-Cha"].max() <= 8, "one strong cycle a year"
    assert medians["AT-Neu"][0] <= 12


def test_a_modis_site_moved_to_the_south_has_the_shifted_dates(modis):
    series, snow = site_stack(modis, "CN-Cha")
    half = np.timedelta64(183, "D")
    moved, moved_snow = (a.assign_coords(time=a.time + half) for a in (series, snow))
    north, south = phenology.metrics(series, snow=snow), phenology.metrics(moved, snow=moved_snow)
    for name in ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy"):
        a = np.sort(north[name].sel(cycle=1).values.ravel())
        b = np.sort(south[name].values.ravel())
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        nearest = np.abs(b[:, None] - (a + 183)[None]).min(axis=0)
        assert (nearest <= 1).mean() >= 0.9, name
    crossing = south.greenup_doy.sel(cycle=1) > south.dormancy_doy.sel(cycle=1)
    assert crossing.any(), "seasons cross 1 January"
