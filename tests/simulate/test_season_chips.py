"""The world of season chips: deterministic, whole, true to its own phenology, and ambiguous on any one date."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from geoeco.cli import app
from geoeco.errors import InputError, OutputError
from geoeco.sampling import SEASONS, assert_disjoint, chips_table, is_land, open_chips, season_windows, spatial_split
from geoeco.simulate import ChipWorld, ChipWorldSettings, world_digest, world_settings, write_chip_world
from geoeco.simulate.growth import GROWTH_FORMS, Places, draw_locations, sun_elevation

SMALL = {"locations": 70, "size": 16, "bands": ("B02", "B04", "B08")}


@pytest.fixture(scope="module")
def world():
    return ChipWorld(ChipWorldSettings(locations=400, size=16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chip_world(tmp_path_factory.mktemp("chips") / "world", **SMALL)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, folder):
    digest = world_digest(folder)
    assert world_digest(write_chip_world(tmp_path / "again", **SMALL)) == digest
    assert world_digest(write_chip_world(tmp_path / "other", **SMALL, seed=7)) != digest
    # a whole world is left as it is
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert write_chip_world(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_an_unfinished_world_is_completed_and_another_folder_is_refused(tmp_path, folder):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_chip_world(tmp_path / "world", **SMALL, progress=stop)
    assert not (tmp_path / "world" / "labels.parquet").exists()
    assert world_digest(write_chip_world(tmp_path / "world", **SMALL)) == world_digest(folder)
    with pytest.raises(OutputError, match="does not hold this simulated world"):
        write_chip_world(tmp_path / "world", **SMALL, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        write_chip_world(tmp_path / "mine", **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"locations": 0},
        {"size": 4},
        {"seed": -1},
        {"bands": ("B10",)},
        {"bands": ("B04", "B04")},
        {"bands": ()},
        {"clouds": 1.0},
        {"noise": -0.1},
    ],
)
def test_settings_that_make_no_world_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(InputError):
        write_chip_world(tmp_path / "world", **{**SMALL, **wrong})
    assert not (tmp_path / "world").exists()


def test_both_stores_hold_the_same_places_and_are_like_any_other(folder):
    labels = gpd.read_parquet(folder / "labels.parquet").set_index("name")
    assert len(labels) == SMALL["locations"]
    for dates in ("phenology", "calendar"):
        chips = open_chips(str(folder / dates), kept=False).load()
        assert chips["name"].values.tolist() == labels.index.tolist()
        assert chips["chips"].shape == (70, 4, 3, 16, 16)
        used = chips["reason"].values == ""
        assert used.mean() > 0.8
        assert np.isfinite(chips["chips"].values[used]).all()
        assert np.isnan(chips["chips"].values[~used]).all()
        np.testing.assert_array_equal(chips["valid_fraction"].values, np.where(used, 1.0, np.nan))
        assert (chips["sun_elevation"].values[used] >= 20).all()
        assert (chips["clear_fraction"].values[used] >= 0.8).all()
        assert set(np.unique(chips["scl"].values[used])) <= {4, 5, 8}
        # no date serves two seasons, no item two chips
        for row, mask in zip(chips["date"].values, used, strict=True):
            assert len(set(row[mask])) == mask.sum()
        assert len(set(chips["item_id"].values[used])) == used.sum()
        table = chips_table(chips).drop_duplicates("sample")
        split = spatial_split(table, block_m=500_000, size_m=160)
        assert assert_disjoint(table, split, size=16) > 0
    assert world_settings(folder)["locations"] == 70
    assert json.loads((folder / "world.json").read_text())["version"] == 1


def test_places_lie_on_land_of_both_hemispheres_and_every_cover_is_there(world):
    labels = world.places.labels()
    assert is_land(labels["lon"], labels["lat"]).all()
    assert (labels["lat"] < 0).sum() > 40
    assert labels["name"].is_unique
    shares = labels["cover"].value_counts(normalize=True)
    assert set(shares.index) == {form.name for form in GROWTH_FORMS}
    assert shares.min() > 0.08
    # warm at the equator, cold near the poles, and no two seeds alike
    assert np.corrcoef(labels["lat"].abs(), labels["temperature"])[0, 1] < -0.8
    assert labels["precipitation"].between(30, 8000).all()
    assert not labels["cover"].equals(ChipWorld(ChipWorldSettings(locations=400, seed=1)).places.labels()["cover"])


def test_a_place_is_the_same_whatever_it_is_made_with(world):
    windows = world.windows("phenology")
    many, one = world.chips(windows, 3, 9), world.chips(windows, 5, 6)
    np.testing.assert_array_equal(many["chips"].values[2:3], one["chips"].values)
    assert many["item_id"].values[2].tolist() == one["item_id"].values[0].tolist()


def test_a_date_that_both_stores_chose_shows_the_same_image(folder):
    phenology, calendar = (
        open_chips(str(folder / d), kept=False, stored=True).load() for d in ("phenology", "calendar")
    )
    shared = 0
    for sample in range(70):
        for season, item in enumerate(phenology["item_id"].values[sample]):
            at = np.flatnonzero(calendar["item_id"].values[sample] == item)
            if item and len(at):
                shared += 1
                np.testing.assert_array_equal(
                    phenology["chips"].values[sample, season], calendar["chips"].values[sample, at[0]]
                )
    assert shared > 5


def test_greenness_is_gus_curve_and_half_way_at_the_inflections():
    places = Places(draw_locations(60, 3), 3, range(2019, 2022))
    deciduous = [form.name for form in GROWTH_FORMS].index("deciduous")
    form = GROWTH_FORMS[deciduous]
    for place in (0, 30, 59):
        _, start, end, length = places._cycles(place, deciduous)[4]
        base = places.base[deciduous, place]
        # 15, 50 and 90 % of a logistic rise lie at s - 1.735/r, s and s + 2.197/r
        days = start + np.array([-1.735, 0.0, 2.197]) * length / form.cycles[0].rise
        part = (places.greenness(place, deciduous, days) - base) / form.amplitude
        np.testing.assert_allclose(part, [0.15, 0.5, 0.9], atol=0.004)
        part = (places.greenness(place, deciduous, np.array([(start + end) / 2, end])) - base) / form.amplitude
        np.testing.assert_allclose(part, [0.99, 0.5], atol=0.012)


def test_the_table_of_dates_obeys_the_threshold_rule(world):
    """Each date against the daily EVI2 curve, sought anew."""
    table = world.dates[(world.dates["year"] == 2020) & (world.dates["NumCycles"] == 1)].iloc[::11]
    assert len(table) > 12
    names = world.places.locations["name"].tolist()
    for row in table.itertuples():
        place, peak = names.index(row.name), row.Peak_1
        rise = world.places.evi2(place, np.arange(peak - 185, peak + 1))
        fall = world.places.evi2(place, np.arange(peak, peak + 186))
        bottom = len(rise) - 1 - np.argmin(rise[::-1])
        for date, part in ((row.Greenup_1, 0.15), (row.Maturity_1, 0.9)):
            level = rise[bottom] + part * (rise[-1] - rise[bottom])
            assert peak - 185 + bottom + np.argmax(rise[bottom:] >= level - 1e-6) == pytest.approx(date, abs=1)
        bottom = np.argmin(fall)
        for date, part in ((row.Senescence_1, 0.9), (row.Dormancy_1, 0.15)):
            level = fall[bottom] + part * (fall[0] - fall[bottom])
            assert peak + np.flatnonzero(fall[: bottom + 1] >= level - 1e-6)[-1] == pytest.approx(date, abs=1)
    assert (world.dates.loc[world.dates["name"].isin(table["name"]), "year"].nunique()) == 3


def test_cycles_are_those_of_the_cover(world):
    number = world.dates.merge(world.places.labels()[["name", "cover"]], on="name").groupby("cover")["NumCycles"]
    most = number.agg(lambda n: n.mode()[0]).to_dict()
    assert most == {
        "evergreen": 0,
        "semi-evergreen": 1,
        "deciduous": 1,
        "flush": 1,
        "late-crop": 1,
        "double-crop": 2,
    }


def test_windows_by_phenology_follow_climate_and_hemisphere_and_those_by_calendar_do_not(world):
    labels = world.places.labels()
    by_phenology, by_calendar = world.windows("phenology"), world.windows("calendar")
    own = by_phenology[(by_phenology["season"] == "summer") & (by_phenology["source"] == "own")]
    merged = own.merge(labels, on="name")
    deciduous = merged[merged["cover"] == "deciduous"]
    north, south = deciduous[deciduous["lat"] > 0], deciduous[deciduous["lat"] < 0]
    assert north["mid"].between(120, 270).all()
    assert (~south["mid"].between(100, 270)).all()
    assert np.corrcoef(north["temperature"], north["mid"])[0, 1] < -0.5
    expected = season_windows(world.dates, world.places.locations, max_distance_km=2000.0)
    pd.testing.assert_frame_equal(by_phenology, expected)
    spring = by_calendar[by_calendar["season"] == "spring"]
    assert set(spring["mid"]) == {79.0, 265.0}
    with pytest.raises(InputError):
        world.windows("equinox")


def test_the_image_of_a_season_is_the_clearest_lit_one_nearest_to_its_middle(world):
    windows = world.windows("phenology")
    chips = world.chips(windows, 0, 12)
    mid, width = (windows[c].to_numpy().reshape(-1, 4) for c in ("mid", "width_d"))
    for place in range(12):
        looks = world._candidates(place)
        day_of_year = pd.DatetimeIndex(looks["day"].astype("datetime64[D]")).dayofyear.to_numpy()
        taken = []
        for season in range(4):
            away = np.abs((day_of_year - mid[place, season] + 182.625) % 365.25 - 182.625)
            good = (
                (away <= width[place, season] / 2) & (looks["sun_elevation"] >= 20) & (looks["clear_fraction"] >= 0.8)
            )
            good &= ~np.isin(looks["day"], taken)
            date = chips["date"].values[place, season]
            if not good.any():
                assert np.isnat(date)
                continue
            day = int(date.astype("datetime64[D]").astype(int))
            taken.append(day)
            chosen = np.flatnonzero(looks["day"] == day)[0]
            assert good[chosen]
            rank = np.round(looks["clear_fraction"] * 100)
            assert rank[chosen] == rank[good].max()
            assert away[chosen] == away[good & (rank == rank[chosen])].min()
            assert abs(chips["offset_d"].values[place, season]) == pytest.approx(away[chosen])
            # the year is that of the middle
            middle = pd.Timestamp(int(chips["season_year"].values[place, season]), 1, 1) + pd.Timedelta(
                days=mid[place, season] - 1 + chips["offset_d"].values[place, season]
            )
            assert abs((pd.Timestamp(date) - middle).days) <= 1


def test_chips_show_the_phenology_of_their_place(world):
    """The median EVI2 of a chip follows the curve of its main cover, through light, haze, noise and other covers."""
    chips = world.chips(world.windows("phenology"), 0, 60)
    red, nir = (chips["chips"].sel(band=b).values.astype(float) * 1e-4 for b in ("B04", "B08"))
    used = chips["reason"].values == ""
    seen = np.median(2.5 * (nir - red) / (nir + 2.4 * red + 1), axis=(-2, -1))[used]
    days = chips["date"].values.astype("datetime64[D]").astype(float)
    true = np.stack([world.places.evi2(place, days[place]) for place in range(60)])[used]
    assert np.corrcoef(seen, true)[0, 1] > 0.9
    by_season = {name: seen[np.nonzero(used)[1] == k].mean() for k, name in enumerate(SEASONS)}
    assert by_season["summer"] > by_season["spring"] > by_season["winter"]


def test_the_sun_stands_as_high_as_the_latitude_allows():
    solstice = int(np.datetime64("2020-06-20", "D").astype(int))
    assert sun_elevation(51.0, solstice) == pytest.approx(55.0, abs=3.0)
    assert sun_elevation(67.0, int(np.datetime64("2020-12-21", "D").astype(int))) < 1.0


def test_one_date_is_ambiguous_where_all_dates_together_are_not(world):
    """Nearest neighbours by the true spectra of the main cover: what a perfect reader of one or of all dates can know.

    The classes are those of `GROWTH_FORMS`; a guess is right in one of six cases or so.
    """
    windows = world.windows("phenology")
    mid = (2020 - 1970) * 365.25 + windows["mid"].to_numpy().reshape(-1, 4)
    places = world.places
    spectra = np.stack([places.reflectance(i, places.greenness(i, int(places.cover[i]), mid[i])) for i in range(400)])
    rng = np.random.default_rng(0)
    spectra = spectra * np.exp(rng.normal(0, 0.1, (400, 4, 1))) + rng.normal(0, 0.005, spectra.shape)
    index = (spectra[..., 7] - spectra[..., 3]) / (spectra[..., 7] + spectra[..., 3])
    features = np.concatenate([spectra / spectra.mean(axis=-1, keepdims=True), 3 * index[..., None]], axis=-1)

    def right(columns):
        known = columns.reshape(400, -1)
        distance = ((known[:, None] - known[None]) ** 2).sum(-1)
        np.fill_diagonal(distance, np.inf)
        near = np.argsort(distance, axis=1)[:, :7]
        votes = np.stack([(places.cover[near] == c).sum(axis=1) for c in range(len(GROWTH_FORMS))], axis=1)
        return (votes.argmax(axis=1) == places.cover).mean()

    single = [right(features[:, season]) for season in range(4)]
    together = right(features)
    print(f"right by one date {np.round(single, 2)}, by all {together:.2f}")
    assert max(single) < 0.6
    assert together > max(single) + 0.1


def test_the_command_writes_a_world(tmp_path):
    done = CliRunner().invoke(app, ["demo", "chips", str(tmp_path / "world"), "--locations", "3", "--size", "12"])
    assert done.exit_code == 0, done.output
    assert open_chips(str(tmp_path / "world" / "phenology")).sizes["x"] == 12
