"""Season windows: medians on the circle, order, neighbours, the calendar."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rioxarray  # noqa: F401 - registers the accessor
import xarray as xr

from geoeco.errors import GridError, InputError
from geoeco.sampling import SEASONS, calendar_windows, circular_distance, season_windows

FILL = 32767
DATES = ("Greenup", "Maturity", "Senescence", "Dormancy")


def day(year: int, doy: float) -> int:
    """Days since 1970 of a day of a year; days below 1 or above the year's length lie in its neighbours."""
    return int((np.datetime64(f"{year}-01-01", "D") - np.datetime64("1970-01-01", "D")).astype(int) + doy - 1)


def rows(lon, lat, cycles, *, years=range(2015, 2020), qa=0, **more):
    """One row a year of a place; `cycles` is one tuple of four days of the year for each cycle, or None."""
    table = []
    for year in years:
        row = {"lon": lon, "lat": lat, "year": year, "QA_Overall_1": qa, **more}
        for number in (1, 2):
            found = cycles[number - 1] if number <= len(cycles) else None
            for position, date in enumerate(DATES):
                row[f"{date}_{number}"] = FILL if found is None else day(year, found[position])
        table.append(row)
    return table


def windows_of(*tables, **options):
    frame = pd.DataFrame([row for table in tables for row in table])
    return season_windows(frame, **options).set_index(["sample", "season"])


def points(*lonlat):
    return gpd.GeoDataFrame(geometry=gpd.points_from_xy(*zip(*lonlat, strict=True)), crs="EPSG:4326")


def test_windows_are_the_intervals_between_the_median_dates():
    table = rows(5.0, 50.0, [(100, 150, 230, 300)])
    table[0]["Greenup_1"] += 9  # one odd year moves a mean, not a median
    found = windows_of(table).loc[0]
    assert found.loc["spring", ["start", "end", "mid"]].tolist() == [100, 150, 125]
    assert found.loc["summer", ["start", "end"]].tolist() == [150, 230]
    assert found.loc["autumn", ["start", "end"]].tolist() == [230, 300]
    assert found.loc["winter", ["start", "end"]].tolist() == [300, 100]
    assert found.loc["winter", "mid"] == pytest.approx((300 + 100 + 365.25) / 2 - 365.25)
    assert set(found["source"]) == {"own"}
    assert set(found["n_years"]) == {5}
    assert found.index.tolist() == list(SEASONS)


def test_a_southern_summer_crosses_new_year():
    # maturity on 20 December or 5 January, by the year: a plain median would say July
    tables = [rows(30.0, -20.0, [(-70, -12 if y % 2 else 5, 60, 130)], years=[y]) for y in range(2014, 2020)]
    found = windows_of(*tables).loc[0]
    summer = found.loc["summer"]
    assert summer["start"] > 340 or summer["start"] < 10
    assert summer["end"] == 60
    assert circular_distance(summer["mid"], 28) < 6
    assert found.loc["winter", ["start"]].tolist() == [130]


def test_the_product_year_is_not_the_calendar_year_of_its_dates():
    # greenup of "2019" in November 2018, in leap years and others
    found = windows_of(rows(30.0, -20.0, [(-50, 10, 60, 120)], years=range(2016, 2021))).loc[0]
    assert circular_distance(found.loc["spring", "start"], 315) <= 1


def test_leap_years_move_a_date_by_no_more_than_a_day():
    found = windows_of(rows(5.0, 50.0, [(60, 150, 300, 365)], years=range(2012, 2020))).loc[0]
    assert circular_distance(found.loc["winter", "start"], 365) <= 1


def test_fill_and_poor_years_are_left_out():
    good = rows(5.0, 50.0, [(100, 150, 230, 300)], years=range(2010, 2013))
    poor = rows(5.0, 50.0, [(10, 20, 30, 40)], years=range(2013, 2019), qa=3)
    empty = rows(5.0, 50.0, [None], years=range(2019, 2024))
    found = windows_of(good, poor, empty).loc[0]
    assert found.loc["spring", "start"] == 100
    assert found.loc["spring", "n_years"] == 3
    assert windows_of(good, poor, empty, worst_qa=3).loc[0].loc["spring", "interval_start"] == 10


def test_two_cycles_that_change_places_are_told_apart_once_for_the_location():
    main, catch = (130, 170, 230, 270), (280, 310, 330, 360)
    tables = []
    for year in range(2012, 2020):
        swapped = year % 2 == 0
        row = rows(5.0, 50.0, [catch, main] if swapped else [main, catch], years=[year])
        row[0]["EVI_Amplitude_1"], row[0]["EVI_Amplitude_2"] = (3100, 3000) if swapped else (5000, 2900)
        tables.append(row)
    found = windows_of(*tables).loc[0]
    assert [found.loc[s, "start"] for s in SEASONS] == list(main)
    assert found.loc["spring", "n_years"] == 8
    assert found.loc["spring", "spread_d"] <= 1


def test_a_single_cycle_column_that_changes_places_keeps_the_more_frequent_cycle():
    tables = [rows(5.0, 50.0, [(280, 300, 330, 360)], years=[2013, 2016])]
    tables.append(rows(5.0, 50.0, [(100, 150, 200, 250)], years=[2012, 2014, 2015, 2017]))
    frame = pd.DataFrame([r for t in tables for r in t]).drop(columns=[f"{d}_2" for d in DATES])
    found = season_windows(frame).set_index("season")
    assert found.loc["spring", "start"] == 100
    assert found.loc["spring", "n_years"] == 4


def test_dates_out_of_order_come_from_the_year_nearest_to_the_medians():
    # medians: maturity 235 of (150, 235, 240), senescence 230 of (230, 240, 140)
    years = [(100, 150, 230, 300), (101, 235, 240, 301), (102, 240, 140, 302)]
    tables = [rows(5.0, 50.0, [y], years=[2015 + i]) for i, y in enumerate(years)]
    found = windows_of(*tables).loc[0]
    assert found["repaired"].all()
    assert [found.loc[s, "interval_start"] for s in SEASONS] == [101, 235, 240, 301]
    assert not windows_of(rows(5.0, 50.0, [years[0]])).loc[0]["repaired"].any()


def test_dates_in_no_order_in_any_year_are_not_a_season():
    found = windows_of(rows(5.0, 50.0, [(100, 90, 80, 70)])).loc[0]
    assert set(found["source"]) == {"calendar"}


def test_narrow_windows_are_widened_by_the_same_on_both_sides():
    found = windows_of(rows(5.0, 50.0, [(100, 180, 184, 300)])).loc[0]
    summer = found.loc["summer"]
    assert (summer["start"], summer["end"], summer["mid"], summer["width_d"]) == (167, 197, 182, 30)
    assert (summer["interval_start"], summer["interval_end"]) == (180, 184)
    # also across New Year
    found = windows_of(rows(5.0, -50.0, [(250, 364, 366, 450)])).loc[0]
    assert circular_distance(found.loc["summer", "start"], 350) <= 1
    assert circular_distance(found.loc["summer", "end"], 15) <= 1
    assert (found["width_d"] >= 30).all()


def test_a_location_without_cycle_borrows_from_the_nearest_and_says_so():
    near, far = rows(5.0, 50.0, [(100, 150, 230, 300)]), rows(8.0, 50.0, [(10, 50, 130, 200)])
    found = windows_of(near, far, rows(5.5, 50.0, [None])).loc[2]
    assert set(found["source"]) == {"neighbour"}
    assert found.loc["spring", "start"] == 100
    assert found.loc["spring", "distance_km"] == pytest.approx(0.5 * 111.195 * np.cos(np.radians(50)), rel=0.001)
    assert found.loc["spring", "donor"] == "5.00000 50.00000"


def test_neighbours_are_sought_across_the_antimeridian():
    found = windows_of(
        rows(179.9, -17.0, [None]),
        rows(-179.9, -17.0, [(100, 150, 230, 300)]),
        rows(178.0, -17.0, [(10, 50, 130, 200)]),
    ).loc[0]
    assert found.loc["spring", "start"] == 100
    assert found.loc["spring", "distance_km"] == pytest.approx(21.3, abs=0.2)


def test_beyond_the_cap_the_calendar_takes_over_by_hemisphere():
    donor = rows(0.0, 50.0, [(100, 150, 230, 300)])
    found = windows_of(donor, rows(60.0, 50.0, [None]), rows(60.0, -50.0, [None]), max_distance_km=500)
    north, south = found.loc[1], found.loc[2]
    assert set(north["source"]) == {"calendar"} == set(south["source"])
    assert circular_distance(north.loc["summer", "mid"], 172) < 2
    assert circular_distance(south.loc["summer", "mid"], 355) < 2
    assert north["width_d"].sum() == pytest.approx(365.25)
    assert north["distance_km"].isna().all()
    assert set(windows_of(donor, rows(60.0, 50.0, [None]), max_distance_km=1e5).loc[1]["source"]) == {"neighbour"}


def test_locations_find_their_own_row_by_name_or_by_place():
    table = rows(5.0, 50.0, [(100, 150, 230, 300)], name="a") + rows(6.0, 50.0, [(110, 160, 240, 310)], name="b")
    named = gpd.GeoDataFrame({"name": ["b"]}, geometry=gpd.points_from_xy([5.0], [50.0]), crs="EPSG:4326")
    found = season_windows(pd.DataFrame(table), named).set_index("season")
    assert found.loc["spring", "start"] == 110
    frame = pd.DataFrame(table).drop(columns="name")
    near = season_windows(frame, points((5.003, 50.0))).set_index("season")
    assert near.loc["spring", "source"] == "own"
    assert near.loc["spring", "distance_km"] == pytest.approx(0.214, abs=0.01)
    assert season_windows(frame, points((5.1, 50.0)))["source"].eq("neighbour").all()


def test_few_years_are_no_dates_of_its_own():
    table = [rows(5.0, 50.0, [(100, 150, 230, 300)], years=[2019]), rows(5.2, 50.0, [(90, 140, 220, 290)])]
    assert set(windows_of(*table, min_years=2).loc[0]["source"]) == {"neighbour"}


def metrics(cycles, *, years=(2018, 2019, 2020), shape=(20, 20), crs="EPSG:32631", quality=1):
    """Season metrics of a field; `cycles(year, cycle, y, x)` gives four days of the year or NaN, and an amplitude."""
    size = (len(years), 2, *shape)
    dates = np.full((4, *size), np.nan)
    amplitude = np.full(size, np.nan)
    for index in np.ndindex(*size):
        found = cycles(years[index[0]], index[1] + 1, index[2], index[3])
        if found is not None:
            dates[(slice(None), *index)] = [day(years[index[0]], d) for d in found[0]]
            amplitude[index] = found[1]
    names = ("greenup", "maturity", "senescence", "dormancy")
    data = xr.Dataset(
        {n: (("year", "cycle", "y", "x"), dates[i].astype("float32")) for i, n in enumerate(names)},
        coords={
            "year": list(years),
            "cycle": [1, 2],
            "y": 5_700_000 - 5.0 - 10 * np.arange(shape[0]),
            "x": 600_000 + 5.0 + 10 * np.arange(shape[1]),
        },
    )
    data["amplitude"] = (("year", "cycle", "y", "x"), amplitude.astype("float32"))
    data["peak"] = (data["maturity"] + data["senescence"]) / 2
    data["quality"] = xr.where(data["greenup"].notnull(), quality, 255).astype("uint8")
    return data.rio.write_crs(crs)


def utm_points(*xy):
    return gpd.GeoDataFrame(geometry=gpd.points_from_xy(*zip(*xy, strict=True)), crs="EPSG:32631").to_crs("EPSG:4326")


def test_a_raster_of_metrics_gives_the_patch_median_round_each_location():
    data = metrics(lambda y, c, i, j: ((100 + j, 150 + j, 230 + j, 300 + j), 0.5) if c == 1 else None)
    found = season_windows(data, utm_points((600_055, 5_699_900), (600_155, 5_699_900)), patch_m=50)
    starts = found[found["season"] == "spring"]["start"].tolist()
    assert starts == [105, 115]
    assert found["n_years"].eq(3).all()
    lazy = season_windows(
        data.chunk({"y": 7, "x": 7}), utm_points((600_055, 5_699_900), (600_155, 5_699_900)), patch_m=50
    )
    assert lazy.equals(found)


def test_a_raster_in_degrees_takes_the_same_patch():
    data = metrics(lambda y, c, i, j: ((100 + j, 150 + j, 230 + j, 300 + j), 0.5) if c == 1 else None)
    step = 10 / 111_195
    degrees = data.drop_vars("spatial_ref").assign_coords(
        y=60.0 - step * (np.arange(20) + 0.5), x=5.0 + 2 * step * (np.arange(20) + 0.5)
    )
    degrees = degrees.rio.write_crs("EPSG:4326")
    found = season_windows(degrees, points((5.0 + 2 * step * 5.5, 60.0 - step * 10)), patch_m=50)
    assert found["start"].iloc[0] == 105


def test_pixels_that_peak_on_either_side_of_new_year_agree():
    # the same field, but half the pixels peak in late December: their cycle carries the year before
    def cycles(year, cycle, i, j):
        shift = -3 if j % 2 else 2
        base = 365 if j % 2 else 0
        return (
            ((base - 80 + shift, base - 20 + shift, base + 20 + shift, base + 90 + shift), 0.4) if cycle == 1 else None
        )

    found = season_windows(metrics(cycles), utm_points((600_100, 5_699_900)), patch_m=150).set_index("season")
    assert circular_distance(found.loc["summer", "mid"], 0.5) <= 4
    assert found.loc["summer", "width_d"] == pytest.approx(40, abs=6)


def test_one_pixel_in_ten_does_not_speak_for_a_patch():
    lonely = metrics(lambda y, c, i, j: ((100, 150, 230, 300), 0.5) if c == 1 and i == 0 and j < 4 else None)
    assert set(season_windows(lonely, utm_points((600_020, 5_699_980)), patch_m=60)["source"]) == {"calendar"}
    assert set(season_windows(lonely, utm_points((600_020, 5_699_980)), patch_m=60, min_fraction=0.05)["source"]) == {
        "own"
    }


def test_poor_pixels_and_places_off_the_raster_have_no_dates_of_their_own():
    data = metrics(lambda y, c, i, j: ((100, 150, 230, 300), 0.5) if c == 1 else None)
    places = utm_points((600_100, 5_699_900), (650_000, 5_699_900))
    found = season_windows(data, places, patch_m=60)
    assert found.groupby("sample")["source"].first().tolist() == ["own", "neighbour"]
    assert found.groupby("sample")["distance_km"].first().iloc[1] == pytest.approx(50, rel=0.02)
    poor = season_windows(data.assign(quality=xr.full_like(data["quality"], 5)), places, patch_m=60)
    assert set(poor["source"]) == {"calendar"}


def test_a_raster_without_crs_or_locations_is_refused():
    data = metrics(lambda y, c, i, j: None, shape=(4, 4))
    with pytest.raises(InputError):
        season_windows(data)
    with pytest.raises(GridError):
        season_windows(data.drop_vars("spatial_ref"), utm_points((600_000, 5_700_000)))
    with pytest.raises(InputError):
        season_windows(data.drop_vars("maturity"), utm_points((600_000, 5_700_000)))


def test_calendar_windows_are_the_four_dates_and_thirty_days():
    found = calendar_windows(points((5.0, 50.0), (5.0, -50.0))).set_index(["sample", "season"])
    dates = {"spring": "2021-03-20", "summer": "2021-06-21", "autumn": "2021-09-22", "winter": "2021-12-21"}
    for season, date in dates.items():
        doy = pd.Timestamp(date).day_of_year
        assert found.loc[(0, season), "mid"] == doy
        assert found.loc[(0, season), "width_d"] == 60
    southern = {"autumn": 79, "winter": 172, "spring": 265, "summer": 355}
    assert {s: found.loc[(1, s), "mid"] for s in southern} == southern
    assert found.loc[(0, "winter"), "start"] > found.loc[(0, "winter"), "end"]
    assert set(found["source"]) == {"calendar"}


def test_locations_left_out_are_named_with_the_windows():
    places = gpd.GeoDataFrame(geometry=gpd.points_from_xy([5.0, np.nan], [50.0, 50.0]), crs="EPSG:4326")
    found = calendar_windows(places)
    assert len(found) == 4
    assert found.attrs["dropped"][0]["code"] == "no-coordinates"


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"lon": [1.0]}),
        pd.DataFrame(rows(5.0, 50.0, [None])).iloc[:0],
        pd.DataFrame(rows(np.nan, 50.0, [None])),
    ],
)
def test_tables_without_dates_are_refused(table):
    with pytest.raises(InputError):
        season_windows(table)


def test_a_table_in_a_file_reads_as_in_memory(tmp_path):
    frame = pd.DataFrame(rows(5.0, 50.0, [(100, 150, 230, 300)]) + rows(5.5, 50.0, [None]))
    frame.to_csv(tmp_path / "dates.csv", index=False)
    frame.to_parquet(tmp_path / "dates.parquet")
    expected = season_windows(frame)
    assert season_windows(tmp_path / "dates.csv").equals(expected)
    assert season_windows(str(tmp_path / "dates.parquet")).equals(expected)
    with pytest.raises(InputError):
        season_windows(tmp_path / "missing.csv")
