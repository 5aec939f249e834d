"""Blocks are cut into whole shards, and windows into tiles, without gap or overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoeco.engine import RunStore
from geoeco.steps.layers import MAX_SHARD, parts_of, shard_for, tiles


@given(st.integers(1, 600).map(lambda n: 8 * n))
def test_a_block_is_a_whole_number_of_shards_that_are_not_too_big(block: int) -> None:
    shard = shard_for(block)
    assert block % shard == 0
    assert 8 <= shard <= MAX_SHARD


@pytest.mark.parametrize(("block", "shard"), [(24, 24), (40, 40), (512, 512), (1000, 500), (1024, 512)])
def test_the_largest_shard_is_taken(block: int, shard: int) -> None:
    assert shard_for(block) == shard


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(1, 50))
def test_tiles_cover_a_window_once(top: int, height: int, left: int, width: int, size: int) -> None:
    seen = np.zeros((top + height, left + width), int)
    for y, x in tiles((top, top + height), (left, left + width), size):
        assert 0 < y[1] - y[0] <= size
        assert 0 < x[1] - x[0] <= size
        seen[slice(*y), slice(*x)] += 1
    assert (seen[top:, left:] == 1).all()
    assert seen.sum() == height * width


def test_parts_that_are_not_stored_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"12345")
    (part,) = parts_of(RunStore(tmp_path), ["there", "not-there"])
    assert (part.path, part.bytes, part.kind) == ("there", 5, "part")
