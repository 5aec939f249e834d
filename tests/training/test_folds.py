"""Folds: the paper's, and those by blocks that share no ground."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError, OutputError
from geoeco.sampling import assert_disjoint
from geoeco.training import Fold, block_folds, random_folds
from geoeco.training.folds import assert_apart, check_folds, places_of


def region(count=600, west=5.0, south=45.0, side=8.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(west, west + side, count), rng.uniform(south, south + side, count)


def all_tested(folds):
    return np.sort(np.concatenate([fold.test for fold in folds]))


def test_random_folds_are_those_of_the_paper_ten_tests_and_the_rest_ninety_to_ten():
    folds = random_folds(1000)
    assert len(folds) == 10
    np.testing.assert_array_equal(all_tested(folds), np.arange(1000))
    for fold in folds:
        assert [len(fold.train), len(fold.val), len(fold.test)] == [810, 90, 100]
        assert len(set(fold.train) | set(fold.val) | set(fold.test)) == 1000


def test_the_seed_decides_the_folds():
    first, again, other = random_folds(200), random_folds(200, seed=42), random_folds(200, seed=43)
    for part in ("train", "val", "test"):
        assert all(np.array_equal(getattr(a, part), getattr(b, part)) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].test, other[0].test)


def test_single_labels_have_the_same_shares_in_every_test_part():
    labels = np.repeat(["wood", "grass", "water"], [700, 250, 50])
    for fold in random_folds(1000, labels=labels):
        assert [(labels[fold.test] == name).sum() for name in ("wood", "grass", "water")] == [70, 25, 5]


def test_random_folds_tear_duplicates_apart_unless_their_places_are_given():
    lon, lat = region(300)
    lon, lat = np.concatenate([lon, lon[:100]]), np.concatenate([lat, lat[:100]])
    with pytest.raises(OutputError, match=r"lies 0\.0 m from"):
        assert_apart(random_folds(400), lon, lat)
    places = places_of(lon, lat)
    assert len(np.unique(places)) == 300
    np.testing.assert_array_equal(places[:100], places[300:])
    for labels in (None, np.arange(400) % 3):
        kept = random_folds(400, groups=places, labels=labels)
        assert assert_apart(kept, lon, lat) > 1
        np.testing.assert_array_equal(all_tested(kept), np.arange(400))


def test_both_ends_of_the_world_map_are_one_place():
    assert len(np.unique(places_of([180.0, -180.0, 179.9], [10, 10, 10]))) == 2


def test_block_folds_learn_from_no_block_that_they_test():
    lon, lat = region()
    folds = block_folds(lon, lat, block_m=60_000, size_m=0)
    np.testing.assert_array_equal(all_tested(folds), np.arange(600))
    # independent of geoeco's numbering: what lies within 5 km is mostly in the same part; random folds give 0.82
    x, y = lon * 111_320 * np.cos(np.radians(lat)), lat * 111_320
    close = np.hypot(x[:, None] - x, y[:, None] - y) < 5_000
    np.fill_diagonal(close, False)
    for name, made, low, high in (("blocks", folds, 0.93, 1.0), ("random", random_folds(600), 0.7, 0.92)):
        same = []
        for fold in made:
            inside = np.zeros(600, bool)
            inside[fold.test] = True
            same.append((inside[:, None] == inside)[close].mean())
        assert low <= np.mean(same) <= high, name


def test_the_share_of_the_parts_comes_near_what_random_folds_have():
    lon, lat = region(3000)
    for fold in block_folds(lon, lat, block_m=50_000, size_m=0):
        assert len(fold.test) == pytest.approx(300, abs=45)
        assert len(fold.val) == pytest.approx(270, abs=45)


@pytest.mark.parametrize(("west", "south", "side"), [(176.0, -20.0, 8.0), (14.0, 76.0, 6.0)])
def test_a_buffer_holds_on_the_ground_also_at_the_antimeridian_and_near_the_pole(west, south, side):
    lon, lat = region(500, west, south, side)
    lon = (lon + 180) % 360 - 180
    folds = block_folds(lon, lat, folds=5, block_m=60_000, buffer_m=4_000, size_m=640)
    assert assert_apart(folds, lon, lat) > 4_000
    places = gpd.GeoDataFrame(
        {"name": [str(i) for i in range(500)]}, geometry=gpd.points_from_xy(lon, lat), crs="EPSG:4326"
    )
    for fold in folds[:2]:
        split = np.full(500, "none", dtype=object)
        for part in ("train", "val", "test"):
            split[getattr(fold, part)] = part
        assert assert_disjoint(places, split, size=64, buffer_m=4_000) >= 4_000


def test_duplicates_of_a_location_go_together_in_block_folds():
    lon, lat = region(300)
    folds = block_folds(np.tile(lon, 2), np.tile(lat, 2), block_m=50_000)
    for fold in folds:
        for part in (fold.train, fold.val, fold.test):
            assert set(part % 300) == set(part[part < 300])


def test_block_folds_do_not_depend_on_the_order_of_the_samples():
    lon, lat = region(400)
    mixed = np.random.default_rng(1).permutation(400)
    for a, b in zip(block_folds(lon, lat), block_folds(lon[mixed], lat[mixed]), strict=True):
        for part in ("train", "val", "test"):
            assert set(getattr(a, part)) == set(mixed[getattr(b, part)])


def test_a_proof_of_distance_can_fail():
    lon, lat = np.array([0.0, 1.0, 2.0, 3.0]), np.zeros(4)
    folds = [Fold([0], [1], [3])]
    degree = np.pi / 180 * 6_378_137
    assert assert_apart(folds, lon, lat) == pytest.approx(2 * degree, rel=1e-3)
    with pytest.raises(OutputError, match="its fold learns from"):
        assert_apart(folds, lon, lat, least_m=2.01 * degree)


@pytest.mark.parametrize(
    ("fold", "what"),
    [
        (([], [1], [2]), "'train' is empty"),
        (([0], [], [2]), "'val' is empty"),
        (([0], [1], []), "'test' is empty"),
        (([0], [1], [9]), "outside 0..4"),
        (([-1], [1], [2]), "outside 0..4"),
        (([0, 2], [1], [2]), "in two parts"),
        (([0, 0], [1], [2]), "twice"),
    ],
)
def test_folds_that_cannot_be_used_are_named(fold, what):
    with pytest.raises(InputError, match=what) as caught:
        check_folds([Fold([0], [1], [2]), Fold(*fold)], 5)
    assert caught.value.where == "fold 1"


def test_a_mask_is_no_list_of_positions():
    with pytest.raises(InputError, match="bool"):
        Fold(np.ones(3, bool), [1], [2])


def test_what_cannot_be_divided_is_said_before_it_is_tried():
    with pytest.raises(InputError, match="9 samples are too few for 10 folds"):
        random_folds(9)
    with pytest.raises(InputError, match="one member only"):
        random_folds(41, labels=["common"] * 40 + ["rare"])
    with pytest.raises(InputError, match="largest class has 4 members"):
        random_folds(40, labels=np.arange(40) % 10)
    with pytest.raises(InputError, match="3 places are too few"):
        random_folds(40, groups=np.arange(40) % 3)
    with pytest.raises(InputError, match="lie in 1 blocks"):
        block_folds(*region(50), block_m=10_000_000)
    with pytest.raises(InputError, match="is empty"):
        block_folds(*region(100), block_m=100_000, buffer_m=2_000_000)
    with pytest.raises(InputError, match="no longitude and latitude"):
        block_folds([0, np.nan], [0, 0])
    with pytest.raises(InputError, match="1 folds"):
        random_folds(40, folds=1)
