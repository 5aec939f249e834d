"""Batches of locations: weighted, without repeats, the same from any start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError
from geoeco.training import LocationBatches, location_weights


def names(n: int) -> list[str]:
    return [f"place-{i}" for i in range(n)]


def test_with_equal_weights_an_epoch_holds_each_location_at_most_once():
    batches = LocationBatches(names(23), 4, epochs=3)
    for epoch in range(3):
        drawn = batches.epoch(epoch).ravel()
        assert len(drawn) == 20
        assert len(set(drawn)) == 20


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0, 50.0]), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_no_batch_holds_a_location_twice_whatever_the_weights(weights, batch, seed):
    usable = sum(weight > 0 for weight in weights)
    if usable < batch:
        with pytest.raises(InputError, match="fill a batch"):
            LocationBatches(names(len(weights)), batch, weights=np.array(weights))
        return
    batches = LocationBatches(names(len(weights)), batch, weights=np.array(weights), seed=seed)
    drawn = batches.epoch(0)
    assert drawn.shape == (len(weights) // batch, batch)
    assert all(len(set(row)) == batch for row in drawn.tolist())
    assert all(weights[position] > 0 for position in drawn.ravel())


def test_locations_are_drawn_as_often_as_their_weights_say():
    weights = np.array([0.25] * 20 + [1.0] * 60 + [2.0] * 20)
    batches = LocationBatches(names(100), 10, weights=weights)
    epochs = 300
    counts = np.bincount(np.concatenate([batches.epoch(e).ravel() for e in range(epochs)]), minlength=100) / epochs
    expected = weights / weights.mean()
    # each epoch's count is the expected one rounded down or up: at most a variance of 1/4
    assert np.abs(counts - expected).max() < 4.5 * 0.5 / epochs**0.5
    np.testing.assert_allclose([counts[:20].sum(), counts[80:].sum()], [20 * expected[0], 20 * expected[-1]], rtol=0.02)


def test_the_order_follows_names_and_not_the_order_of_the_data_set():
    listed = names(30)
    shuffled = list(np.random.default_rng(1).permutation(listed))
    weights = np.linspace(0.2, 2, 30)
    one = LocationBatches(listed, 7, seed=5, weights=weights)
    other = LocationBatches(shuffled, 7, seed=5, weights=np.array([weights[listed.index(name)] for name in shuffled]))
    for epoch in range(2):
        assert np.array(listed)[one.epoch(epoch)].tolist() == np.array(shuffled)[other.epoch(epoch)].tolist()


def test_seed_and_epoch_change_the_order():
    batches = LocationBatches(names(30), 7, seed=5)
    assert not np.array_equal(batches.epoch(0), batches.epoch(1))
    assert not np.array_equal(batches.epoch(0), LocationBatches(names(30), 7, seed=6).epoch(0))


@pytest.mark.parametrize("start", [0, 1, 3, 4, 6, 8])
def test_a_start_at_any_step_goes_on_with_the_same_batches(start):
    whole = list(LocationBatches(names(9), 2, epochs=2, seed=3))
    assert len(whole) == 8
    rest = LocationBatches(names(9), 2, epochs=2, seed=3, start=start)
    assert list(rest) == whole[start:]
    assert len(rest) == 8


def test_every_draw_knows_its_epoch():
    assert [draw.epoch for batch in LocationBatches(names(4), 2, epochs=2) for draw in batch] == [0] * 4 + [1] * 4


def test_weights_of_the_paper_a_quarter_for_bare_ground_and_twice_for_mountains():
    ndvi = np.array([[0.05, 0.09], [0.05, 0.3], [np.nan, 0.02], [np.nan, np.nan], [-0.2, -0.1]])
    weights = location_weights(names(5), ndvi, favoured=["place-1", "place-4", "not here"])
    assert weights.tolist() == [0.25, 2.0, 0.25, 1.0, 0.5]
    assert location_weights(names(2), favoured={"place-1": 3.0}).tolist() == [1.0, 3.0]


def test_what_makes_no_batches_is_refused():
    with pytest.raises(InputError, match="3 locations do not fill a batch of 4"):
        LocationBatches(names(3), 4)
    with pytest.raises(InputError, match="named twice"):
        LocationBatches(["a", "a"], 1)
    with pytest.raises(InputError, match="finite"):
        LocationBatches(names(3), 1, weights=np.array([1, np.nan, 1]))
    with pytest.raises(InputError, match="shape"):
        location_weights(names(3), np.zeros((2, 4)))
