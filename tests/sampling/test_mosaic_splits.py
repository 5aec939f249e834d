"""Sets of chips by ground: what a random split leaks, and that ours leaks nothing."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoeco.errors import GridError, InputError, OutputError
from geoeco.sampling import AreaSplit, BlockSplit, assert_no_leak, grid_windows, share_seen
from geoeco.sampling.mosaic_splits import SPLIT_NAMES, own_ground, put_aside, split_by_areas, split_by_blocks

TRAIN, VAL, TEST, NONE = range(4)


def tiles(length, size, overlap):
    offsets = grid_windows((length, length), size, overlap)
    return shapely.box(offsets[:, 1], -offsets[:, 0] - size, offsets[:, 1] + size, -offsets[:, 0])


def frame(footprints, split, ground=None, crs="EPSG:32631"):
    names = np.array(SPLIT_NAMES, dtype=object)[split]
    columns = {"split": names} if ground is None else {"split": names, "ground": ground}
    return gpd.GeoDataFrame(columns, geometry=footprints, crs=crs)


@pytest.mark.parametrize(("overlap", "seen"), [(0, 0.0), (25, 0.64), (50, 0.987), (75, 1.0)])
def test_a_random_split_of_overlapping_tiles_shows_most_of_the_test_ground_in_training(overlap, seen):
    footprints = tiles(1300, 100, overlap)
    shares = []
    for seed in range(3):
        split = np.where(np.random.default_rng(seed).random(len(footprints)) < 0.8, TRAIN, TEST)
        shares.append(share_seen(frame(footprints, split)))
    assert np.mean(shares) == pytest.approx(seen, abs=0.03 if overlap == 25 else 0.012)
    if overlap:
        with pytest.raises(OutputError, match="of the ground of one set is seen") as error:
            assert_no_leak(frame(footprints, split))
        assert error.value.code == "split-overlap"


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([0, 16, 32, 48]),
    st.sampled_from([0.0, 5.0, 20.0]),
    st.integers(1, 3),
    st.integers(0, 2**31 - 1),
)
def test_sets_by_blocks_share_no_ground_and_keep_the_guard(overlap, guard, blocks, seed):
    size, side = 64, 128 * blocks
    footprints = tiles(768, size, overlap)
    middle = shapely.centroid(footprints)
    columns = -(-768 // side)
    block = (shapely.get_x(middle) // side + columns * (-shapely.get_y(middle) // side)).astype(np.int32)
    split = split_by_blocks(block, (0.6, 0.2, 0.2), seed)
    numbers, first = np.unique(block, return_index=True)
    row, column = np.divmod(numbers, columns)
    parts = shapely.box(column * side, -(row + 1) * side, (column + 1) * side, -row * side)
    ground = own_ground(footprints, split, parts, split[first])
    kept = put_aside(footprints, ground, split, guard)
    proof = assert_no_leak(frame(footprints, kept, ground), guard_m=guard)
    assert proof.seen < 1e-9
    assert proof.distance_m >= guard * (1 - 1e-6)
    # nobody but losers is put aside, and test never is
    assert (kept[split == TEST] == TEST).all()
    assert set(kept[kept != split]) <= {NONE}
    # without the guard rule the same sets leak as soon as chips straddle
    straddling = np.array([g is not None for g in ground])
    if straddling.any() and (split[straddling] != TEST).any() and guard:
        with pytest.raises(OutputError):
            assert_no_leak(frame(footprints, split, ground), guard_m=guard)


def test_a_straddling_chip_keeps_only_its_own_ground():
    footprints = shapely.box([0, 6], 0, [10, 16], 10)
    parts = shapely.box([0, 10], 0, [10, 20], 10)
    ground = own_ground(footprints, np.array([TRAIN, TRAIN], np.int8), parts, np.array([TRAIN, TEST], np.int8))
    assert ground[0] is None
    assert ground[1].equals(shapely.box(6, 0, 10, 10))
    # two blocks of one set are one ground
    assert own_ground(footprints, np.array([VAL, VAL], np.int8), parts, np.array([VAL, VAL], np.int8))[1] is None


def test_chips_that_only_touch_the_other_ground_stay_and_train_gives_way():
    footprints = shapely.box([0, 10, 19, 30], 0, [10, 20, 29, 40], 10)
    none = np.full(4, None, dtype=object)
    kept = put_aside(footprints, none, np.array([TRAIN, TEST, TRAIN, VAL], np.int8), 0.0)
    assert kept.tolist() == [TRAIN, TEST, NONE, VAL]
    kept = put_aside(footprints, none, np.array([TRAIN, TEST, NONE, VAL], np.int8), 10.5)
    assert kept.tolist() == [NONE, TEST, NONE, NONE]
    kept = put_aside(footprints, none, np.array([TRAIN, TEST, NONE, VAL], np.int8), 10.0)
    assert kept.tolist() == [NONE, TEST, NONE, VAL]


def test_areas_that_are_drawn_hand_out_what_lies_in_them():
    areas = gpd.GeoDataFrame(
        {"split": ["train", "test"]}, geometry=[shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10)], crs="EPSG:32631"
    )
    points = shapely.points([5, 15, 25], 5)
    assert split_by_areas(points, areas).tolist() == [TRAIN, NONE, TEST]


def test_the_proof_measures_in_true_metres_and_refuses_degrees():
    footprints = shapely.box([0, 30], 0, [10, 40], 10)
    split = np.array([TRAIN, TEST])
    proof = assert_no_leak(frame(footprints, split, crs="EPSG:3395"), metres_per_unit=0.96)
    assert proof.distance_m == pytest.approx(19.2)
    assert proof.chips == {"train": 1, "val": 0, "test": 1, "none": 0}
    with pytest.raises(OutputError, match=r"chips 0 \(train\) and 1 \(test\) lie 19.20 m apart"):
        assert_no_leak(frame(footprints, split), guard_m=19.3, metres_per_unit=0.96)
    with pytest.raises(GridError, match="degrees"):
        assert_no_leak(frame(footprints, split, crs="EPSG:4326"))
    assert np.isinf(assert_no_leak(frame(footprints, np.array([TRAIN, TRAIN]))).distance_m)


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_m": 0.0},
        {"block_m": np.nan},
        {"block_m": 10.0, "guard_m": -1.0},
        {"block_m": 10.0, "fractions": (0.5, 0.5)},
        {"block_m": 10.0, "fractions": (0.0, 0.0, 0.0)},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError):
        BlockSplit(**wrong)
    with pytest.raises(InputError):
        AreaSplit("areas.gpkg", guard_m=np.inf)
