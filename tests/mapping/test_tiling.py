"""Windows of a map: whole pixels, multiples of the stride, every pixel covered, whatever the sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoeco.errors import InputError
from geoeco.mapping.tiling import CORE, Axis, Tiling, choose_tiling


@dataclass(frozen=True)
class Model:
    name: str = "a model"
    size: int = 64
    stride: int = 1
    halo: int | None = 3


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    stride = draw(st.sampled_from([1, 2, 8, 14, 32]))
    way = draw(st.sampled_from(["core", "hann"]))
    window = stride * draw(st.integers(1, 12))
    unit = 2 * stride if way == "core" else stride
    most = window - stride if way == "core" else window // 2
    overlap = unit * draw(st.integers(0, most // unit))
    return Axis(draw(st.integers(1, 700)), window, overlap, stride, way)


@given(axes())
@settings(max_examples=120, deadline=None)
def test_every_pixel_is_covered_and_the_weights_of_its_windows_sum_to_one(axis: Axis):
    total, times = np.zeros(axis.size), np.zeros(axis.size, int)
    for index in range(axis.count):
        first, last = axis.span(index)
        weights = axis.weights(index)
        assert len(weights) == last - first > 0
        assert weights.min() > 0
        total[first:last] += weights
        times[first:last] += 1
    np.testing.assert_allclose(total, 1, atol=1e-6)
    if axis.way == "core":
        assert (times == 1).all()


@given(axes())
@settings(max_examples=120, deadline=None)
def test_windows_begin_on_multiples_of_the_stride_and_hold_what_they_count_for(axis: Axis):
    for index in range(axis.count):
        origin, (first, last) = axis.origin(index), axis.span(index)
        assert origin % axis.stride == 0
        assert origin <= first < last <= origin + axis.window
        if axis.window <= axis.padded:
            assert origin + axis.window <= axis.padded
        else:
            assert axis.count == 1
        # a core has its halo on both sides, or the border of the mosaic
        assert first - origin >= axis.halo or origin == 0
        assert origin + axis.window - last >= axis.halo or origin + axis.window >= axis.padded


@given(axes(), st.data())
@settings(max_examples=80, deadline=None)
def test_the_windows_that_touch_a_span_are_found(axis: Axis, data: st.DataObject):
    start = data.draw(st.integers(0, axis.size - 1))
    span = start, data.draw(st.integers(start + 1, axis.size))
    expected = [i for i in range(axis.count) if axis.span(i)[0] < span[1] and axis.span(i)[1] > span[0]]
    assert list(range(*axis.touching(span))) == expected


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(1, 8),
    st.integers(1, 200),
    st.sampled_from([("core", 16), ("hann", 16), ("hann", 0), ("core", 0)]),
)
@settings(max_examples=50, deadline=None)
def test_a_block_runs_whole_batches_of_the_mosaic(
    shape: tuple[int, int], batch: int, block: int, kind: tuple[str, int]
):
    tiling = Tiling(shape, 48, kind[1], 8, kind[0], batch)  # type: ignore[arg-type]
    assert tiling.group[0] * tiling.group[1] == batch
    whole = set(tiling.rows_of_batches((0, shape[0])))
    for top in range(0, shape[0], block):
        assert set(tiling.rows_of_batches((top, min(top + block, shape[0])))) <= whole
    assert tiling.windows((0, shape[0]), (0, shape[1])) == tiling.y.count * tiling.x.count


def test_cores_of_the_usual_size_fall_on_the_usual_blocks():
    tiling = choose_tiling((8192, 4096), [Model(halo=3)])
    assert (tiling.way, tiling.window, tiling.overlap) == ("core", CORE + 6, 6)
    # no window is run twice
    assert sum(tiling.windows((top, top + 2048), (0, 4096)) for top in range(0, 8192, 2048)) == 16 * 8


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        (Model(halo=None), {}, ("hann", 64, 16)),
        (Model(halo=312, stride=32, size=256), {}, ("hann", 256, 64)),
        (Model(halo=312, stride=32, size=256), {"blend": "core"}, ("core", 512 + 640, 640)),
        (Model(halo=100, stride=32), {}, ("core", 512 + 256, 256)),
        (Model(halo=3), {"window": 18}, ("core", 18, 6)),
        (Model(halo=3), {"window": 14}, ("hann", 14, 3)),
        (Model(halo=3), {"window": 64, "overlap": 4}, ("hann", 64, 4)),
        (Model(halo=3), {"window": 64, "overlap": 8}, ("core", 64, 8)),
        (Model(halo=3), {"blend": "hann"}, ("hann", 64, 16)),
    ],
)
def test_cores_are_kept_where_the_receptive_field_is_known_and_affordable(model, asked, expected):
    tiling = choose_tiling((3000, 3000), [model], **asked)
    assert (tiling.way, tiling.window, tiling.overlap) == expected


def test_models_of_an_ensemble_see_the_same_windows():
    tiling = choose_tiling((3000, 3000), [Model(stride=8, halo=10, size=96), Model(stride=14, halo=3, size=70)])
    assert (tiling.stride, tiling.way, tiling.overlap) == (56, "core", 112)
    blended = choose_tiling((3000, 3000), [Model(stride=8, halo=None, size=96), Model(stride=14, halo=3, size=70)])
    assert (blended.way, blended.window) == ("hann", 112)


@pytest.mark.parametrize(
    ("model", "asked", "told"),
    [
        (Model(halo=3), {"blend": "core", "window": 64, "overlap": 4}, "leaves a halo of 2"),
        (Model(halo=None), {"blend": "core"}, "is not known"),
        (Model(halo=40), {"blend": "core", "window": 80}, "nothing but their halo"),
        (Model(stride=32, halo=None), {"window": 500}, "no whole number of the network's strides"),
        (Model(stride=32, halo=None), {"window": 512, "overlap": 100}, "cannot share 100"),
        (Model(halo=None), {"window": 64, "overlap": 40}, "cannot share 40"),
        (Model(halo=None), {"batch": 0}, "at least 1"),
    ],
)
def test_windows_that_do_not_fit_the_network_are_refused(model, asked, told):
    with pytest.raises(InputError) as error:
        choose_tiling((3000, 3000), [model], **asked)
    assert told in str(error.value)


def test_a_halo_for_a_network_of_unknown_view_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="model a model: how far this network sees is not known"):
        assert choose_tiling((3000, 3000), [Model(halo=None)], blend="core", overlap=32).way == "core"
