"""Season chips: right pixels, right place, right numbers, each block decoded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pystac
import pytest

from geoeco.cubes import read_window
from geoeco.cubes.reading import Raster
from geoeco.errors import InputError, TransientError
from geoeco.sampling import calendar_windows, chip_geobox, chips_table, season_chips
from geoeco.sensors.sentinel2 import BANDS, Radiometry, radiometry, to_reflectance

CENTRE = (601_810.0, 5_698_190.0)
PLACES = (CENTRE, (601_200.0, 5_699_100.0), (602_333.0, 5_697_777.0))
FOUR = ("2021-04-10", "2021-07-09", "2021-10-07", "2021-01-10")
SIZE = 66


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return {b: rng.integers(1001, 9000, (3600 // int(v.resolution),) * 2) for b, v in BANDS.items()}


def cut(items, places, windows, **options):
    return season_chips(items, places, windows, **{"size": SIZE, "threads": 2, **options})


def test_chips_are_the_pixels_that_a_window_read_gives(tile, place, windows, noise):
    a = tile()
    items = [a.scene(d, bands={b: v + 10 * k for b, v in noise.items()}) for k, d in enumerate(FOUR)]
    data = cut(items, place(*PLACES), windows(3), dtype="int16")
    assert data["chips"].dims == ("sample", "season", "band", "y", "x")
    assert data["chips"].shape == (3, 4, 12, SIZE, SIZE)
    by_id = {i.id: i for i in items}
    for sample, (x, y) in enumerate(PLACES):
        lonlat = place((x, y)).geometry.iloc[0]
        box = chip_geobox(lonlat.x, lonlat.y, 32631, size=SIZE)
        for season in range(4):
            item = by_id[str(data["item_id"].values[sample, season])]
            for position, band in enumerate(BANDS):
                dn = read_window(item.assets[band].href, box, resampling="bilinear", nodata=0)
                expected = to_reflectance(dn, radiometry(item, band), dtype="int16")
                assert np.array_equal(data["chips"].values[sample, season, position], expected)


def test_chips_are_centred_and_snapped_to_60_m(tile, place, windows):
    a = tile(side=3600)
    items = [a.scene(d, bands={"B02": 2000}) for d in FOUR]
    data = cut(items, place(*PLACES), windows(3), bands=("B02",))
    x0, y1 = data["x0"].values, data["y1"].values
    assert (x0 % 60 == 0).all()
    assert (y1 % 60 == 0).all()
    for sample, (x, y) in enumerate(PLACES):
        assert abs(x0[sample] + 330 - x) <= 30
        assert abs(y1[sample] - 330 - y) <= 30
    table = chips_table(data)
    assert table["transform"].iloc[0] == [10.0, 0.0, x0[0], 0.0, -10.0, y1[0]]


def test_coarse_bands_lie_under_the_fine_ones(tile, place, windows):
    """A plane is the same plane at 10, 20 and 60 m: half a coarse pixel of shift would show as 5 or 25 m."""
    a = tile()

    def plane(resolution):
        y, x = a.grid(resolution)
        return np.rint(2000 + (x - a.left) / 2.5 + (a.top - y) / 5)

    bands = {b: plane(int(BANDS[b].resolution)) for b in ("B01", "B02", "B05")}
    items = [a.scene(d, bands=bands) for d in FOUR]
    data = cut(items, place(CENTRE), windows(), bands=("B01", "B02", "B05"), dtype="int16")
    chip = data["chips"].values[0, 0].astype(int)
    assert np.abs(chip[0] - chip[1]).max() <= 1
    assert np.abs(chip[2] - chip[1]).max() <= 1
    y, x = data["y1"].values[0] - 10 * np.arange(SIZE) - 5, data["x0"].values[0] + 10 * np.arange(SIZE) + 5
    truth = 2000 + (x[None, :] - a.left) / 2.5 + (a.top - y[:, None]) / 5 - 1000
    assert np.abs(chip[1] - truth).max() <= 1


def test_the_offset_goes_by_the_baseline_and_nodata_is_masked_first(tile, place, windows):
    a = tile()
    with_gap = np.full((360, 360), 1500)
    with_gap[180, 181] = 0
    items = [
        a.scene(FOUR[0], bands={"B02": with_gap}, baseline="05.00"),
        a.scene(FOUR[1], bands={"B02": 500}, baseline="02.14"),
        a.scene(FOUR[2], bands={"B02": 950}, baseline="05.00"),  # darker than the offset: negative reflectance
        a.scene(FOUR[3], bands={"B02": 40000}, baseline="02.14"),  # brighter than int16 holds
    ]
    data = cut(items, place(CENTRE), windows(), bands=("B02",))
    chips = data["chips"].values[0, :, 0]
    assert np.isnan(chips[0]).sum() == 1
    assert np.allclose(np.nanmax(chips[0]), 0.05)
    assert np.allclose(chips[1], 0.05)
    assert np.allclose(chips[2], -0.005)
    assert np.allclose(chips[3], 3.2767)
    assert data["valid_fraction"].values[0].tolist() == [1 - 1 / SIZE**2, 1, 1, 1]
    # told otherwise by item, the metadata are overruled
    how = {items[0].id: Radiometry(1e-4, 0.0)}
    told = cut(items, place(CENTRE), windows(), bands=("B02",), radiometry=how)
    assert np.allclose(np.nanmax(told["chips"].values[0, 0, 0]), 0.15)


def test_doubtful_radiometry_is_flagged_unless_it_was_settled(tile, place, windows):
    a = tile()
    items = [a.scene(d, bands={"B02": 2000}) for d in FOUR]
    # the flag of the catalogue and the baseline contradict each other
    doubtful = items[1]
    doubtful.properties |= {"s2:processing_baseline": "02.14", "earthsearch:boa_offset_applied": True}
    assert not radiometry(doubtful).trusted
    data = cut(items, place(CENTRE), windows(), bands=("B02",))
    assert data["flags"].values[0].tolist() == ["", "untrusted-radiometry", "", ""]
    settled = {doubtful.id: Radiometry(1e-4, -0.1)}
    assert set(cut(items, place(CENTRE), windows(), bands=("B02",), radiometry=settled)["flags"].values[0]) == {""}


def test_every_block_is_decoded_once(tile, place, windows, noise, monkeypatch):
    a = tile(blocks=32)
    items = [a.scene(d, bands=noise) for d in FOUR]
    places = place(*((x, y) for x in (601_000, 601_400, 601_800) for y in (5_698_000, 5_698_500, 5_699_000)))
    decoded: Counter[tuple[str, int, int]] = Counter()
    read = Raster.read

    def counted(self, window):
        height, width = self.block_shape
        for row in range(window[0] // height, -(-window[1] // height)):
            for col in range(window[2] // width, -(-window[3] // width)):
                decoded[(self.href, row, col)] += 1
        return read(self, window)

    table = windows(9)
    monkeypatch.setattr(Raster, "read", counted)
    season_chips(items, places, table, size=SIZE, threads=1, dtype="int16")
    bands = {key: n for key, n in decoded.items() if not key[0].endswith("SCL.tif")}
    assert set(bands.values()) == {1}
    # the classification is looked at once for the choice and once for the chips
    assert max(n for key, n in decoded.items() if key[0].endswith("SCL.tif")) <= 2
    # and not every block of the file: those that chips touch
    fine = {key for key in bands if key[0].endswith("B02.tif")}
    assert len(fine) < 4 * (360 // 32 + 1) ** 2


@pytest.mark.parametrize("threads", [1, 3])
def test_company_threads_and_order_change_no_pixel(tile, place, windows, noise, threads):
    a = tile()
    items = [a.scene(d, bands={b: noise[b] for b in ("B02", "B05", "B09")}) for d in FOUR]
    bands = ("B02", "B05", "B09")
    together = cut(items, place(*PLACES), windows(3), bands=bands, threads=threads)
    turned = cut(items[::-1], place(*PLACES).iloc[::-1], windows(3), bands=bands)
    assert np.array_equal(turned["chips"].values[::-1], together["chips"].values)
    alone = cut(items, place(*PLACES).iloc[[1]], windows(3), bands=bands)
    assert np.array_equal(alone["chips"].values[0], together["chips"].values[1])


def test_classes_are_never_interpolated(tile, place, windows):
    a = tile()
    rng = np.random.default_rng(5)
    scl = rng.choice([4, 5, 6, 11], (180, 180))
    data = cut([a.scene(d, scl=scl, bands={"B02": 2000}) for d in FOUR], place(CENTRE), windows(), bands=("B02",))
    chip = data["scl"].values[0, 0]
    assert chip.dtype == np.uint8
    row, col = round((a.top - data["y1"].values[0]) / 20), round((data["x0"].values[0] - a.left) / 20)
    assert np.array_equal(chip, np.kron(scl[row : row + 33, col : col + 33], np.ones((2, 2), int)))


def test_a_broken_band_gives_way_to_the_next_image_and_is_listed(tile, place, windows):
    a = tile()
    items = [a.scene(d, bands={"B02": 2000, "B03": 2100}) for d in FOUR]
    second = a.scene("2021-04-20", bands={"B02": 2500, "B03": 2600})
    path = Path(items[0].assets["B03"].href)
    path.write_bytes(path.read_bytes()[:400])
    data = cut([*items, second], place(*PLACES[:2]), windows(2), bands=("B02", "B03"))
    assert data["item_id"].values[:, 0].tolist() == [second.id] * 2
    assert np.allclose(data["chips"].values[:, 0, 0], 0.15)
    assert [(n["item"], n["asset"]) for n in data.attrs["dropped"]] == [(items[0].id, "B03")]
    # without a second image the season stays empty
    alone = cut(items, place(CENTRE), windows(), bands=("B02", "B03"))
    assert alone["reason"].values[0].tolist() == ["unreadable", "", "", ""]
    assert np.isnan(alone["chips"].values[0, 0]).all()
    assert not np.isnan(alone["chips"].values[0, 1:]).any()


def test_the_next_image_does_not_take_another_seasons_date(tile, place, windows):
    a = tile()
    overlapping = windows(mids=(100, 110, 280, 10))
    broken, shared = a.scene("2021-04-10", bands={"B02": 2000}), a.scene("2021-04-20", bands={"B02": 2000})
    Path(broken.assets["B02"].href).unlink()
    data = cut([broken, shared], place(CENTRE), overlapping, bands=("B02",), min_seasons=1)
    assert data["item_id"].values[0, :2].tolist() == ["", shared.id]
    assert data["reason"].values[0, 0] == "date-taken"


def test_pixels_missing_in_one_band_alone_give_way_too(tile, place, windows):
    """The classification may claim data where a band has none."""
    a = tile()
    _, x = a.grid(10)
    items = [a.scene(d, bands={"B02": np.where(x > CENTRE[0], 0, 2000)}) for d in FOUR[:1]]
    items += [a.scene(d, bands={"B02": 2000}) for d in ("2021-04-30", *FOUR[1:])]
    data = cut(items, place(CENTRE), windows(), bands=("B02",))
    assert data["date"].values[0, 0] == np.datetime64("2021-04-30")
    assert (data["valid_fraction"].values == 1).all()


def test_faults_that_may_pass_are_not_taken_for_broken_files(tile, place, windows, monkeypatch):
    items = [tile().scene(d, bands={"B02": 2000}) for d in FOUR]

    def fails(self, window):
        raise TransientError("time-out", where=self.where)

    monkeypatch.setattr(Raster, "read", fails)
    with pytest.raises(TransientError):
        cut(items, place(CENTRE), windows(), bands=("B02",))


def test_locations_with_one_season_are_left_out_and_named(tile, place, windows):
    a = tile()
    items = [a.scene(FOUR[0], bands={"B02": 2000})]
    data = cut(items, place(CENTRE, (601_800, 5_600_000)), windows(2), bands=("B02",))
    assert data.sizes["sample"] == 0
    reasons = {name: n["what"] for n in data.attrs["dropped"] for name in n["names"]}
    assert "no-date" in reasons["p0"]
    assert "outside-items" in reasons["p1"]
    kept = cut(items, place(CENTRE), windows(), bands=("B02",), min_seasons=1)
    assert kept.sizes["sample"] == 1
    assert kept["reason"].values[0].tolist() == ["", "no-date", "no-date", "no-date"]


def test_samples_keep_their_zone(tile, place, windows):
    """Two locations in two zones: each chip in its own CRS, both in one set."""
    from pyproj import Transformer

    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(707_000.0, 5_700_000.0)
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon + 0.04, lat)
    west = tile(left=705_240.0, top=5_701_800.0)
    east = tile(left=np.round(x / 60) * 60 - 1800, top=np.round(y / 60) * 60 + 1800, epsg=32632)
    items = [t.scene(d, bands={"B02": 2000}) for t in (west, east) for d in FOUR]
    import geopandas as gpd

    places = gpd.GeoDataFrame(
        {"name": ["p0", "p1"]}, geometry=gpd.points_from_xy([lon, lon + 0.04], [lat, lat]), crs="EPSG:4326"
    )
    data = cut(items, places, windows(2), bands=("B02",))
    assert data["epsg"].values.tolist() == [32631, 32632]


def test_chips_of_any_size_and_resolution(tile, place, windows):
    a = tile()
    rng = np.random.default_rng(2)
    bands = {"B02": rng.integers(1500, 3000, (360, 360)), "B05": rng.integers(1500, 3000, (180, 180))}
    items = [a.scene(d, bands=bands) for d in FOUR]
    for size, resolution in ((17, 10), (64, 20), (9, 60)):
        data = cut(
            items, place(CENTRE), windows(), size=size, resolution=resolution, bands=("B02", "B05"), dtype="int16"
        )
        lonlat = place(CENTRE).geometry.iloc[0]
        box = chip_geobox(lonlat.x, lonlat.y, 32631, size=size, resolution=resolution)
        for position, band in enumerate(("B02", "B05")):
            item = next(i for i in items if i.id == data["item_id"].values[0, 0])
            dn = read_window(item.assets[band].href, box, nodata=0)
            expected = to_reflectance(dn, radiometry(item, band), dtype="int16")
            assert np.array_equal(data["chips"].values[0, 0, position], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"bands": ("B02", "B10")},
        {"bands": ()},
        {"bands": ("B02", "blue")},
        {"dtype": "uint8"},
        {"min_clear": 2},
        {"min_seasons": 5},
    ],
)
def test_settings_that_make_no_sense_are_refused(tile, place, windows, options):
    with pytest.raises(InputError):
        cut([], place(CENTRE), windows(), **options)


@pytest.mark.real
def test_chips_of_a_real_scene(real_data):
    """Tile 29RKH, stored at a tenth of its resolution: chips of 100 m pixels."""
    folder = real_data("sentinel2/S2A_29RKH_20200219_0_L2A_cog")
    item = pystac.Item.from_file(str(folder / "S2A_29RKH_20200219_0_L2A.json"))
    for key, asset in item.assets.items():
        asset.href = str(folder / Path(asset.href).name)
        assert key
    import geopandas as gpd

    centre = gpd.GeoSeries(gpd.points_from_xy([255_000.0], [2_745_000.0]), crs="EPSG:32629").to_crs("EPSG:4326")
    places = gpd.GeoDataFrame({"name": ["desert"]}, geometry=centre)
    table = calendar_windows(places, half_width_d=45)
    data = season_chips(
        [item], places, table, size=24, resolution=100.0, min_seasons=1, min_clear=0.0, dtype="int16", threads=2
    )
    table = chips_table(data)
    row = table[table["reason"] == ""].iloc[0]
    assert (row["season"], row["epsg"], row["item_id"]) == ("spring", 32629, item.id)
    box = chip_geobox(centre.x.iloc[0], centre.y.iloc[0], 32629, size=24, resolution=100.0)
    for position, band in enumerate(BANDS):
        href = next(a.href for a in item.assets.values() if Path(a.href).name == f"{band}.tif")
        expected = to_reflectance(read_window(href, box, nodata=0), radiometry(item, band), dtype="int16")
        assert np.array_equal(data["chips"].values[0, 0, position], expected)
    assert 0.01 < float(data["chips"].values[0, 0, 3].mean()) * 1e-4 < 0.9
