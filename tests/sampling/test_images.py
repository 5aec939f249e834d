"""Which image stands for which season."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from geoeco.errors import InputError
from geoeco.sampling import SEASONS, choose_images
from geoeco.sampling.images import window_offset

CENTRE = (601_810.0, 5_698_190.0)
SIZE = 66  # 660 m
FOUR = ("2021-04-10", "2021-07-09", "2021-10-07", "2021-01-10")


def choose(items, places, windows, **options):
    found = choose_images(items, places, windows, size=SIZE, threads=2, **options)
    return found.set_index(["name", "season"])


def patch_of(tile, value, rest, half=400):
    """A classification with `value` round the centre and `rest` elsewhere."""
    y, x = tile.grid(20)
    near = (np.abs(x - CENTRE[0]) < half) & (np.abs(y - CENTRE[1]) < half)
    return np.where(near, value, rest)


def test_each_season_gets_the_image_of_its_window(tile, place, windows):
    found = choose([tile().scene(d) for d in FOUR], place(CENTRE), windows())
    assert found["date"].dt.strftime("%Y-%m-%d").tolist() == list(FOUR)
    assert found["kept"].all()
    assert found["reason"].eq("").all()
    assert found["clear_fraction"].eq(1).all()
    assert found["season_year"].tolist() == [2021] * 4
    assert found["epsg"].eq(32631).all()


def test_the_patch_decides_not_the_tile(tile, place, windows):
    a = tile()
    overcast_but_clear_here = a.scene("2021-04-02", scl=patch_of(a, 4, 9), cloud=90.0, name="A")
    clear_but_cloud_here = a.scene("2021-04-10", scl=patch_of(a, 9, 4), cloud=5.0, name="B")
    found = choose([overcast_but_clear_here, clear_but_cloud_here], place(CENTRE), windows(), min_seasons=1)
    assert found.loc[("p0", "spring"), "item_id"] == overcast_but_clear_here.id
    assert found.loc[("p0", "spring"), "cloud_cover"] == 90
    # asked to look at no more than one scene, the tile's figure misleads
    found = choose(
        [overcast_but_clear_here, clear_but_cloud_here], place(CENTRE), windows(), min_seasons=1, max_candidates=1
    )
    assert found.loc[("p0", "spring"), "reason"] == "cloud"


def test_clear_part_comes_first_then_the_middle_then_the_newest(tile, place, windows):
    a = tile()
    y, x = a.grid(20)
    one_corner = np.where((x > CENTRE[0] + 150) & (y > CENTRE[1] + 150), 10, 4)  # thin cirrus, not grown
    spring = windows().iloc[:1]
    middle = a.scene("2021-04-10", scl=one_corner, name="middle")
    near, far = a.scene("2021-04-20", name="near"), a.scene("2021-05-05", name="far")
    older = a.scene("2019-04-20", name="older")
    assert choose([middle, far], place(CENTRE), spring, min_seasons=1).iloc[0]["item_id"] == far.id
    assert choose([middle, far, near], place(CENTRE), spring, min_seasons=1).iloc[0]["item_id"] == near.id
    assert choose([older, near, far], place(CENTRE), spring, min_seasons=1).iloc[0]["item_id"] == near.id
    # one wrong pixel does not outweigh a month
    speckle = np.full_like(one_corner, 4)
    speckle[90, 90] = 10
    speckled = a.scene("2021-04-11", scl=speckle, name="speckled")
    assert choose([speckled, far], place(CENTRE), spring, min_seasons=1).iloc[0]["item_id"] == speckled.id


def test_no_date_serves_two_seasons(tile, place, windows):
    # all four windows overlap: spring's best date is also summer's best
    overlapping = windows(mids=(100, 105, 110, 115), width=60)
    dates = ("2021-04-10", "2021-04-15", "2021-04-20", "2021-04-25")
    found = choose([tile().scene(d) for d in dates], place(CENTRE), overlapping)
    assert sorted(found["date"].dt.strftime("%Y-%m-%d")) == list(dates)
    # two products of one day are one date
    twins = [tile().scene("2021-04-10", name="S2A"), tile().scene("2021-04-10", name="S2B")]
    found = choose(twins, place(CENTRE), overlapping, min_seasons=1)
    assert sorted(found["reason"]) == ["", "date-taken", "date-taken", "date-taken"]


def test_snow_is_clear_and_cloud_has_soft_edges(tile, place, windows):
    a = tile()
    spring = windows().iloc[:1]
    snow = choose([a.scene("2021-04-10", scl=11)], place(CENTRE), spring, min_seasons=1)
    assert snow.iloc[0]["clear_fraction"] == 1
    # a cloud 40 m outside the patch still reaches 20 m into it
    _, x = a.grid(20)
    left_edge = np.floor((CENTRE[0] - 330) / 60 + 0.5) * 60
    beside = np.where(x < left_edge - 40, 9, 4)
    found = choose([a.scene("2021-04-11", scl=beside)], place(CENTRE), spring, min_seasons=1)
    assert found.iloc[0]["clear_fraction"] == pytest.approx(1 - 1 / 33)


def test_a_nodata_wedge_over_the_patch_drops_the_scene(tile, place, windows):
    a = tile()
    y, x = a.grid(20)
    wedge = np.where(x + y > CENTRE[0] + CENTRE[1] + 400, 0, 4)
    spring = windows().iloc[:1]
    found = choose([a.scene("2021-04-10", scl=wedge)], place(CENTRE), spring, min_seasons=1)
    assert found.iloc[0]["reason"] == "nodata"
    assert not found["kept"].any()
    allowed = choose([a.scene("2021-04-10", scl=wedge)], place(CENTRE), spring, min_seasons=1, max_nodata=0.2)
    assert 0 < allowed.iloc[0]["nodata_fraction"] < 0.2


def test_low_sun_is_left_out_and_winter_takes_the_nearest_lit_date(tile, place, windows):
    a = tile()
    scenes = [a.scene(d) for d in FOUR[:3]]
    dark = [a.scene("2021-01-10", sun=12.0), a.scene("2020-12-20", sun=9.0)]
    lit = [a.scene("2020-11-15", sun=25.0), a.scene("2021-02-25", sun=22.0), a.scene("2021-03-01", sun=24.0)]
    found = choose([*scenes, *dark, *lit], place(CENTRE), windows(interval=130.0))
    winter = found.loc[("p0", "winter")]
    assert winter["date"] == pd.Timestamp("2021-02-25")
    assert winter["flags"] == "nearest-lit-date,dark-middle"
    assert winter["season_year"] == 2021
    # the interval ends before any lit date: winter stays empty, with the reason
    found = choose([*scenes, *dark, *lit], place(CENTRE), windows(interval=62.0))
    assert found.loc[("p0", "winter"), "reason"] == "low-sun"
    assert found["kept"].all()
    # other seasons do not look beyond their windows
    late = choose([a.scene("2021-05-20", name="late")], place(CENTRE), windows(interval=130.0), min_seasons=1)
    assert late.loc[("p0", "spring"), "reason"] == "no-date"


def test_scenes_that_do_not_give_the_sun_are_kept(tile, place, windows):
    found = choose([tile().scene(d, sun=None) for d in FOUR], place(CENTRE), windows())
    assert found["reason"].eq("").all()


def test_a_window_across_new_year_finds_both_sides(tile, place, windows):
    for date, year in (("2020-12-25", 2021), ("2021-01-20", 2021), ("2021-12-20", 2022)):
        found = choose([tile().scene(date)], place(CENTRE), windows(mids=(100, 190, 280, 5)), min_seasons=1)
        assert found.loc[("p0", "winter"), "season_year"] == year
        assert abs(found.loc[("p0", "winter"), "offset_d"]) < 20


def test_offsets_are_counted_from_the_nearest_recurrence():
    days = np.array(["2020-12-31", "2021-01-01", "2020-02-29", "2021-07-02"], dtype="datetime64[D]")
    offset, year = window_offset(days, 1.0)
    assert offset.tolist() == [-1, 0, 59, 182]
    assert year.tolist() == [2021, 2021, 2020, 2021]
    offset, year = window_offset(days[:2], 365.0)
    assert offset.tolist() == [1, 2]
    assert year.tolist() == [2020, 2020]


def test_the_zone_whose_tile_holds_the_whole_patch_is_taken(tile, place, windows):
    # the location's own zone is 31; its tile ends 100 m east of it, the tile of zone 32 holds all
    from pyproj import Transformer

    own = tile(left=CENTRE[0] + 100 - 3600)
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(*CENTRE)
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    other = tile(left=np.round(x / 60) * 60 - 1800, top=np.round(y / 60) * 60 + 1800, epsg=32632)
    near = [own.scene(d) for d in FOUR]
    found = choose([*near, *(other.scene(d) for d in FOUR)], place(CENTRE), windows())
    assert found["epsg"].eq(32632).all()
    assert found["item_id"].str.contains("_32632_").all()
    alone = choose(near, place(CENTRE), windows())
    assert alone["reason"].eq("no-whole-patch").all()
    # where both hold it, its own zone wins, and no sample mixes zones
    both = choose([*(tile().scene(d) for d in FOUR[:2]), *(other.scene(d) for d in FOUR)], place(CENTRE), windows())
    assert both["epsg"].eq(32631).all()
    assert both["reason"].tolist() == ["", "", "no-date", "no-date"]


def test_a_tile_astride_the_antimeridian_serves_both_its_sides(tile, windows):
    import geopandas as gpd
    from pyproj import Transformer

    x, y = Transformer.from_crs(4326, 32760, always_xy=True).transform(180.0, -17.0)
    a = tile(left=np.round(x / 60) * 60 - 1800, top=np.round(y / 60) * 60 + 1800, epsg=32760)
    items = [a.scene(d) for d in FOUR]
    places = gpd.GeoDataFrame(
        {"name": ["p0", "p1", "p2"]},
        geometry=gpd.points_from_xy([180.0, -179.995, 179.995], [-17.0] * 3),
        crs="EPSG:4326",
    )
    found = choose(items, places, windows(3))
    assert found["reason"].eq("").all()
    # in zone 1 too, where scenes of zone 60 alone hold the patch
    assert found["epsg"].eq(32760).all()
    alone = choose(items, places.iloc[[1]], windows(3))
    assert alone["item_id"].tolist() == found.loc["p1", "item_id"].tolist()
    assert alone["date"].tolist() == found.loc["p1", "date"].tolist()


def test_every_missing_image_has_a_reason(tile, place, windows):
    a = tile()
    places = place(CENTRE, (601_800, 5_690_000), (600_100, 5_699_900), (601_000, 5_699_000))
    table = windows(3)
    cloudy = [a.scene(d, scl=9) for d in FOUR[:1]]
    found = choose([*cloudy, *(a.scene(d) for d in FOUR[1:2])], places, table)
    assert found.loc["p0", "reason"].to_dict() == {
        "spring": "cloud",
        "summer": "few-seasons",
        "autumn": "no-date",
        "winter": "no-date",
    }
    assert set(found.loc["p1", "reason"]) == {"outside-items"}
    assert set(found.loc["p2", "reason"]) == {"no-whole-patch"}
    assert set(found.loc["p3", "reason"]) == {"no-window"}
    assert not found["kept"].any()
    assert len(found) == 4 * len(SEASONS)


def test_without_any_item_every_location_is_named(place, windows):
    found = choose([], place(CENTRE), windows())
    assert found["reason"].eq("outside-items").all()
    assert len(found) == 4


def test_an_unreadable_classification_is_left_out_and_listed(tile, place, windows):
    from pathlib import Path

    a = tile()
    broken, whole = a.scene("2021-04-10", name="broken"), a.scene("2021-04-20", name="whole")
    Path(broken.assets["SCL"].href).write_bytes(b"not a TIFF")
    gone = a.scene("2021-04-12", name="gone")
    Path(gone.assets["SCL"].href).unlink()
    bare = a.scene("2021-04-14", name="bare")
    del bare.assets["SCL"]
    found = choose([broken, whole, gone, bare], place(CENTRE), windows(), min_seasons=1)
    assert found.loc[("p0", "spring"), "item_id"] == whole.id
    assert {(n["item"], n["asset"], n["code"]) for n in found.attrs["dropped"]} == {
        (broken.id, "SCL", "asset-corrupt"),
        (gone.id, "SCL", "asset-missing"),
        (bare.id, "SCL", "asset-missing"),
    }
    only = choose([broken], place(CENTRE), windows(), min_seasons=1)
    assert only.loc[("p0", "spring"), "reason"] == "unreadable"


def test_the_choice_depends_on_neither_order_nor_company(tile, place, windows):
    a = tile()
    rng = np.random.default_rng(3)
    scenes = [
        a.scene(str(day), scl=np.where(rng.random((180, 180)) < 0.002, 10, 4), name=f"S{i}")
        for i, day in enumerate(np.arange("2021-01-01", "2021-12-31", 16, dtype="datetime64[D]"))
    ]
    places = place(CENTRE, (601_000, 5_699_000), (602_400, 5_697_500))
    together = choose(scenes, places, windows(3))
    turned = choose(scenes[::-1], places.iloc[::-1], windows(3).iloc[::-1])
    columns = ["item_id", "offset_d", "clear_fraction", "reason"]
    assert turned.loc[together.index, columns].equals(together[columns])
    for name in ("p0", "p1", "p2"):
        alone = choose(scenes, places[places["name"] == name], windows(3))
        assert alone[columns].equals(together.loc[[name], columns])


def test_items_without_projection_are_opened_to_see(tile, place, windows):
    items = [tile().scene(d) for d in FOUR]
    for item in items:
        del item.properties["proj:code"]
        for asset in item.assets.values():
            asset.extra_fields.clear()
    assert choose(items, place(CENTRE), windows())["reason"].eq("").all()


def test_an_item_given_twice_and_windows_without_columns_are_refused(tile, place, windows):
    item = tile().scene(FOUR[0])
    with pytest.raises(InputError):
        choose([item, item], place(CENTRE), windows())
    with pytest.raises(InputError):
        choose([item], place(CENTRE), windows().drop(columns="mid"))
