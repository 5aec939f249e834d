"""Splits share no ground, and the proof of it can fail."""

from __future__ import annotations

import math

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from geoeco.errors import InputError, OutputError
from geoeco.sampling import assert_disjoint, chip_geobox, footprint_rings, major_tom_grid, spatial_split


def random_places(count, west, south, east, north, seed=0):
    rng = np.random.default_rng(seed)
    lon = rng.uniform(west, east, count)
    return gpd.GeoDataFrame(
        {"name": [f"p{i}" for i in range(count)]},
        geometry=gpd.points_from_xy((lon + 180) % 360 - 180, rng.uniform(south, north, count)),
        crs="EPSG:4326",
    )


@pytest.mark.parametrize(
    "bounds",
    [
        (5.5, 50, 6.5, 51),  # two UTM zones
        (179.5, -17.5, 180.5, -16.5),  # the antimeridian
        (14, 78, 22, 79),  # Svalbard's zones
        (-1, -0.5, 1, 0.5),  # the equator: two zones, two hemispheres
    ],
)
def test_no_ground_is_shared_between_sets(bounds):
    places = random_places(400, *bounds)
    split = spatial_split(places, block_m=15_000, buffer_m=1_000, seed=3)
    assert assert_disjoint(places, split, buffer_m=1_000) >= 1_000
    assert set(split) == {"train", "val", "test", "none"}
    assert split.index.tolist() == places["name"].tolist()


def test_shares_come_near_what_was_asked_for():
    places = major_tom_grid(23_000, bbox=(-10, 36, 30, 60))
    share = spatial_split(places, block_m=100_000, fractions=(0.7, 0.15, 0.15)).value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.7, abs=0.03)
    assert share["val"] == pytest.approx(0.15, abs=0.03)


def test_labels_depend_on_the_seed_and_not_on_the_order_of_the_table():
    places = random_places(300, 0, 40, 5, 45)
    split = spatial_split(places, block_m=50_000, seed=1)
    mixed = places.sample(frac=1, random_state=5)
    assert spatial_split(mixed, block_m=50_000, seed=1).reindex(split.index).equals(split)
    assert not spatial_split(places, block_m=50_000, seed=2).equals(split)


def test_a_block_goes_to_one_set_as_a_whole():
    places = random_places(500, 178, -20, 182, -16)
    split = spatial_split(places, block_m=60_000, size_m=10)
    projected = places.to_crs("EPSG:3832")  # Pacific: no seam at the antimeridian
    nearest = {}
    for name in ("train", "val", "test"):
        nearest[name] = projected[split.to_numpy() == name]
    # neighbours within 5 km mostly share their set: a random split would give 0.54
    distance = projected.geometry.apply(lambda p: projected.geometry.distance(p)).to_numpy()
    close = (distance < 5_000) & (distance > 0)
    same = split.to_numpy()[:, None] == split.to_numpy()[None, :]
    assert same[close].mean() > 0.8


def test_train_gives_way_to_validation_and_both_to_test():
    places = random_places(600, 5, 50, 6, 51)
    without = spatial_split(places, block_m=20_000, size_m=1, buffer_m=0, seed=4)
    with_buffer = spatial_split(places, block_m=20_000, buffer_m=3_000, seed=4)
    changed = without != with_buffer
    assert (with_buffer[changed] == "none").all()
    assert not changed[without == "test"].any()
    assert changed[without == "train"].any()
    assert changed[without == "val"].any()


def test_the_proof_finds_one_pixel_of_overlap():
    a = chip_geobox(5.9, 50.5, 32631)
    x, y = a.boundingbox.left, a.boundingbox.top
    table = gpd.GeoDataFrame(
        {"name": ["a", "b"], "lon": 0.0, "lat": 0.0, "epsg": 32631, "x0": [x, x + 2630], "y1": y},
        geometry=gpd.points_from_xy([5.9, 5.9], [50.5, 50.5]),
        crs="EPSG:4326",
    )
    with pytest.raises(OutputError) as caught:
        assert_disjoint(table, ["train", "test"])
    assert "a (train)" in caught.value.what
    # side by side, but nearer than the buffer
    table["x0"] = [x, x + 2650]
    assert assert_disjoint(table, ["train", "test"]) == pytest.approx(10, abs=0.02)
    with pytest.raises(OutputError):
        assert_disjoint(table, ["train", "test"], buffer_m=20)
    # one set alone, or one put aside, shares nothing
    table["x0"] = [x, x]
    assert assert_disjoint(table, ["train", "train"]) == math.inf
    assert assert_disjoint(table, ["train", "none"]) == math.inf


def test_the_proof_sees_overlap_across_zones():
    places = gpd.GeoDataFrame(
        {"name": ["west", "east"]}, geometry=gpd.points_from_xy([5.99, 6.01], [50.5, 50.5]), crs="EPSG:4326"
    )
    with pytest.raises(OutputError):
        assert_disjoint(places, ["train", "val"])


def test_distances_agree_with_plane_geometry_within_a_zone():
    places = random_places(60, 3.0, 49.0, 3.4, 49.3)
    label = np.where(places.geometry.x < 3.2, "train", "test")
    away = np.abs(places.geometry.x - 3.2) > 0.03
    places, label = places[away.to_numpy()].reset_index(drop=True), label[away.to_numpy()]
    squares = [box(*chip_geobox(p.x, p.y, 32631).boundingbox) for p in places.geometry]
    plane = min(
        a.distance(b)
        for a, one in zip(squares, label, strict=True)
        for b, two in zip(squares, label, strict=True)
        if one != two
    )
    # UTM is 0.04 % too short at its central meridian
    assert assert_disjoint(places, label) == pytest.approx(plane / 0.9996, rel=1e-3)


def test_rings_are_squares_of_the_right_size_in_every_zone():
    places = random_places(5, 100, 10, 140, 60)
    from geoeco.sampling import check_locations

    rings = footprint_rings(check_locations(places), size=264)
    side = np.linalg.norm(rings[:, 8] - rings[:, 0], axis=-1)
    assert np.allclose(side, 2640, rtol=2e-3)


def test_a_set_that_would_be_empty_is_an_error():
    places = random_places(20, 5, 50, 5.1, 50.1)
    with pytest.raises(InputError) as caught:
        spatial_split(places, block_m=1_000_000)
    assert "smaller blocks" in caught.value.what_to_do
    # asked for nothing, got nothing
    assert set(spatial_split(places, block_m=1_000_000, fractions=(1, 0, 0))) == {"train"}


@pytest.mark.parametrize(
    "options",
    [
        {"fractions": (0.5, 0.5)},
        {"fractions": (1, -0.1, 0)},
        {"fractions": (0, 0, 0)},
        {"block_m": 0},
        {"buffer_m": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        spatial_split(random_places(20, 5, 50, 6, 51), **options)


def test_a_split_of_other_locations_is_refused():
    places = random_places(5, 5, 50, 6, 51)
    with pytest.raises(InputError):
        assert_disjoint(places, ["train"])
    other = pd.Series(["train"] * 5, index=pd.Index(list("abcde"), name="name"))
    with pytest.raises(InputError):
        assert_disjoint(places, other)
