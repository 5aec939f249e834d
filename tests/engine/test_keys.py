"""Hashes: equal for equal work whatever the order of keys, different for any change anywhere above."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoeco.engine.keys import canonical_json, step_hash, task_key

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
settings_values = st.dictionaries(st.text(min_size=1, max_size=6), json_values, max_size=4)


def hash_of(settings, upstream=None, facts=None, verb="v", version=1):
    return step_hash(verb=verb, version=version, settings=settings, upstream=upstream or {}, facts=facts or {})


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return [reordered(child) for child in value] if isinstance(value, list) else value


@given(settings_values)
def test_the_order_of_keys_does_not_matter(settings):
    assert hash_of(settings) == hash_of(reordered(copy.deepcopy(settings)))


@given(settings_values, settings_values)
def test_different_settings_have_different_hashes(first, second):
    assert (hash_of(first) == hash_of(second)) == (canonical_json(first) == canonical_json(second))


@given(st.lists(settings_values, min_size=2, max_size=5), st.data())
def test_a_change_in_one_step_changes_it_and_all_below_but_none_above(chain, data):
    def hashes(steps):
        found = []
        for settings in steps:
            found.append(hash_of(settings, {"before": found[-1]} if found else {}))
        return found

    place = data.draw(st.integers(0, len(chain) - 1))
    edited = [dict(settings) for settings in chain]
    edited[place]["__edited__"] = True
    before, after = hashes(chain), hashes(edited)
    assert before[:place] == after[:place]
    assert all(a != b for a, b in zip(before[place:], after[place:], strict=True))


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=4), st.data())
def test_a_task_key_follows_the_digest_of_each_upstream_task(depends, data):
    key = task_key("s", "a/b/c", {"x": 1}, depends)
    assert key == task_key("s", "a/b/c", {"x": 1}, list(depends))
    if depends:
        place = data.draw(st.integers(0, len(depends) - 1))
        healed = [(name, digest + "!") if n == place else (name, digest) for n, (name, digest) in enumerate(depends)]
        assert key != task_key("s", "a/b/c", {"x": 1}, healed)
        assert key != task_key("s", "a/b/c", {"x": 1}, depends[:-1])


def test_what_is_not_json_has_no_hash():
    for value in (float("nan"), float("inf"), {1, 2}, object()):
        with pytest.raises((TypeError, ValueError)):
            hash_of({"x": value})
