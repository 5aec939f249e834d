"""Dates that are drawn for contrast, NDVI, and the filter of chips by their valid part."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError, ReadError  # noqa: E402
from geoeco.training import ChipDataset  # noqa: E402
from geoeco.training.chip_dataset import Draw, ndvi_of  # noqa: E402
from tests.training.stores import BANDS, NODATA, pixels, store_of  # noqa: E402

WITH_NDVI = (*BANDS, "ndvi")


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Six locations; place 1 has two seasons, place 2 one, place 4 half its pixels of summer unknown."""
    chips = pixels(6)
    chips[4, 1, :, :8] = NODATA
    chips[0, 0, 3, 2, 5] = NODATA
    chips[0, 0, 2, 3, :3] = (-40, 0, -10)
    chips[0, 0, 3, 3, :3] = (70, 0, -20)
    return chips


@pytest.fixture(scope="module")
def store(values, tmp_path_factory) -> str:
    reason = np.full((6, 4), "", dtype=object)
    reason[1, [0, 3]] = "no-image"
    reason[2, 1:] = "no-image"
    return store_of(tmp_path_factory.mktemp("chips") / "store", values, reason=reason)


def test_ndvi_is_that_of_the_reflectance_negative_where_it_is_and_0_where_unknown(store, values):
    sample = ChipDataset(store, bands=WITH_NDVI)[0]
    red, nir = values[0, 0, 2].astype(float), values[0, 0, 3].astype(float)
    found = sample["image"][0, -1].numpy()
    plain = (red > 0) & (nir > 0)
    red, nir = red[plain], nir[plain]
    np.testing.assert_allclose(found[plain], (nir - red) / (nir + red), atol=1e-6)
    assert (found < 0).any()
    assert found[2, 5] == 0
    assert not sample["valid"][0, 2, 5]
    # negative reflectance counts as 0, and no reflectance at all has no index
    assert found[3, :3].tolist() == [1.0, 0.0, 0.0]


def test_ndvi_alone_and_bands_without_those_it_is_made_of(store):
    whole = ChipDataset(store, bands=WITH_NDVI)[0]["image"]
    assert torch.equal(ChipDataset(store, bands=["ndvi"])[0]["image"], whole[:, -1:])
    assert torch.equal(ChipDataset(store, bands=["B11", "B02", "ndvi"])[0]["image"], whole[:, [4, 0, 5]])
    with pytest.raises(InputError, match="comes last"):
        ChipDataset(store, bands=["ndvi", "B02"])


def test_ndvi_of_a_store_without_its_bands_is_refused(tmp_path):
    store = store_of(tmp_path / "store", pixels(1, bands=2), bands=("B02", "B04"))
    with pytest.raises(InputError, match="no B08"):
        ChipDataset(store, bands=["B02", "ndvi"])


def test_ndvi_keeps_its_type():
    assert ndvi_of(np.float32([0.1]), np.float32([0.3])).dtype == np.float32


@pytest.mark.parametrize("bands", [WITH_NDVI, ("B08", "B04", "ndvi"), ("B11", "B03")])
@pytest.mark.parametrize("dates", [None, 3])
def test_stored_samples_become_on_the_device_what_others_are(store, bands, dates):
    whole = ChipDataset(store, bands=bands, dates=dates, size=12)
    stored = ChipDataset(store, bands=bands, dates=dates, size=12, stored=True)
    for i in range(len(whole)):
        expected, sample = whole[i], stored[i]
        assert sample["image"].dtype == torch.int16
        decoded = stored.decode({key: value[None] for key, value in sample.items()})
        assert torch.equal(decoded["image"][0], expected["image"])
        assert torch.equal(decoded["valid"][0], expected["valid"])
        assert stored.decode(expected) is expected


def test_stored_samples_need_the_bands_of_ndvi(store):
    with pytest.raises(InputError, match="B04 and B08"):
        ChipDataset(store, bands=["B02", "ndvi"], stored=True)


def test_three_dates_of_a_location_are_distinct(store):
    dataset = ChipDataset(store, dates=3)
    for position, name in enumerate(dataset.names):
        for epoch in range(20):
            seasons = dataset[Draw(position, epoch)]["season"].tolist()
            assert len(set(seasons)) == (2 if name == "place-001" else 3)


def test_of_two_dates_the_second_is_taken_twice(store):
    dataset = ChipDataset(store, dates=3, names=["place-001"])
    drawn = [dataset[Draw(0, epoch)] for epoch in range(20)]
    assert all(sample["season"][1] == sample["season"][2] for sample in drawn)
    assert all(torch.equal(sample["image"][1], sample["image"][2]) for sample in drawn)
    assert {tuple(sample["season"].tolist()) for sample in drawn} == {(1, 2, 2), (2, 1, 1)}


def test_a_drawn_date_brings_its_own_pixels_and_day(store):
    plain, drawn = ChipDataset(store), ChipDataset(store, dates=3)
    for name in drawn.names:
        sample, whole = drawn[Draw(drawn.names.index(name), 3)], plain[plain.names.index(name)]
        for key in ("image", "valid", "day_of_year", "present"):
            assert torch.equal(sample[key], whole[key][sample["season"]])


def test_draws_follow_seed_epoch_and_location_and_nothing_else(store):
    def seasons(dataset, epoch):
        return {name: dataset[Draw(i, epoch)]["season"].tolist() for i, name in enumerate(dataset.names)}

    one = ChipDataset(store, dates=3, seed=1)
    reversed_names = one.names[::-1]
    assert seasons(one, 4) == seasons(ChipDataset(store, dates=3, seed=1, names=reversed_names), 4)
    torch.manual_seed(99)
    np.random.default_rng(3)
    assert seasons(one, 4) == seasons(one, 4)
    assert any(seasons(one, 4) != seasons(one, epoch) for epoch in (5, 6))
    assert any(seasons(one, epoch) != seasons(ChipDataset(store, dates=3, seed=2), epoch) for epoch in range(3))


def test_all_dates_are_drawn_equally_often(store):
    dataset = ChipDataset(store, dates=3, names=["place-003"])
    first = torch.stack([dataset[Draw(0, epoch)]["season"] for epoch in range(400)])
    for slot in range(3):
        counts = torch.bincount(first[:, slot], minlength=4)
        # 4 standard deviations of a binomial of 400 and 1/4
        assert ((counts - 100).abs() < 4 * (400 * 0.25 * 0.75) ** 0.5).all()


def test_random_windows_of_drawn_dates_lie_at_one_place(store):
    dataset = ChipDataset(store, dates=3, size=6, crop="random", names=["place-003"])
    whole = ChipDataset(store, names=["place-003"])[0]["image"]
    places = set()
    for epoch in range(12):
        sample = dataset[Draw(0, epoch)]
        windows = whole[sample["season"]].unfold(2, 6, 1).unfold(3, 6, 1)
        hits = (windows == sample["image"][:, :, None, None]).all(dim=(0, 1, 4, 5)).nonzero().tolist()
        assert len(hits) == 1
        places.add(tuple(hits[0]))
    assert len(places) > 3


def test_chips_below_min_valid_count_as_missing_and_places_with_one_season_are_left_out(store):
    assert ChipDataset(store, dates=3).left_out == ("place-002",)
    strict = ChipDataset(store, min_valid=0.9)
    assert not strict[strict.names.index("place-004")]["present"][1]
    assert not strict[strict.names.index("place-004")]["valid"][1].any()
    assert ChipDataset(store, min_valid=0.4)[4]["present"].all()
    drawn = ChipDataset(store, dates=3, min_valid=0.9, names=["place-004"])
    assert all(1 not in drawn[Draw(0, epoch)]["season"] for epoch in range(20))


def test_one_season_alone_and_chips_that_are_all_invalid_are_input_errors(store, tmp_path):
    with pytest.raises(InputError, match="has 2 seasons"):
        ChipDataset(store, seasons=["summer"], dates=3)
    with pytest.raises(InputError, match="has 2 seasons"):
        ChipDataset(store, names=["place-002"], dates=2)
    chips = pixels(2)
    chips[:, :, :, 0] = NODATA
    half = store_of(tmp_path / "half", chips)
    with pytest.raises(InputError, match="none of 2 locations"):
        ChipDataset(half, min_valid=0.99)
    with pytest.raises(InputError, match="no contrast"):
        ChipDataset(store, dates=1)


def test_a_shard_that_is_gone_is_a_read_error_and_no_black_image(values, tmp_path):
    store = store_of(tmp_path / "store", values)
    shard = tmp_path / "store" / "chips.zarr" / "chips" / "c" / "0" / "2" / "0" / "0" / "0"
    shard.unlink()
    with pytest.raises(ReadError, match="'place-001' in autumn is gone"):
        ChipDataset(store)[1]
