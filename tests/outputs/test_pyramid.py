"""Overviews and statistics against the plainest possible loops, and against each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.enums import Resampling

from geoeco.outputs.pyramid import FilePlanes, MemoryPlanes, band_statistics, build_overviews, halve, overview_shapes


def quads(values):
    height, width = values.shape
    for row in range(0, height, 2):
        for col in range(0, width, 2):
            yield (row // 2, col // 2), values[row : row + 2, col : col + 2].ravel()


class_maps = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([1, 2, 3, 255])
)


@given(class_maps)
@settings(deadline=None)
def test_mode_takes_the_most_frequent_valid_class_and_the_first_of_equals(values):
    out = halve(values[np.newaxis], "mode", 255)[0]
    for place, four in quads(values):
        valid = [v for v in four.tolist() if v != 255]
        # Counter keeps the order of first appearance among equals
        expected = Counter(valid).most_common(1)[0][0] if valid else 255
        assert out[place] == expected


@given(
    hnp.arrays(
        np.int16, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([-32768, -5, 0, 9, 32767])
    )
)
@settings(deadline=None)
def test_average_is_the_rounded_mean_of_the_valid_pixels(values):
    out = halve(values[np.newaxis], "average", -32768)[0]
    for place, four in quads(values):
        valid = four[four != -32768]
        expected = np.rint(valid.astype(float).mean()) if valid.size else -32768
        # an odd edge repeats its pixels, which changes no mean
        assert out[place] == expected


def test_nodata_never_leaks_into_a_float_average():
    values = np.full((1, 4, 4), -9999, np.float32)
    values[0, 0, 0], values[0, 2, 2:], values[0, 3, 2:] = 7, 1, 3
    out = halve(values, "average", -9999)[0]
    assert out.tolist() == [[7, -9999], [-9999, 2]]


def gdal_overview(values, method, nodata):
    """First overview as GDAL builds it."""
    options = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "nodata": nodata, "tiled": True}
    transform = Affine(10, 0, 0, 0, -10, 0)
    with rasterio.MemoryFile() as memory:
        height, width = values.shape
        with memory.open(**options, height=height, width=width, transform=transform) as dst:
            dst.write(values, 1)
            dst.build_overviews([2], method)
        with memory.open(overview_level=0) as src:
            return src.read(1)


def test_averages_equal_those_of_gdal():
    rng = np.random.default_rng(5)
    values = rng.normal(10, 3, (640, 512)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = -9999
    expected = gdal_overview(values, Resampling.average, -9999)
    assert np.allclose(halve(values[np.newaxis], "average", -9999)[0], expected, rtol=1e-6, atol=0)


def test_modes_equal_those_of_gdal_where_one_class_wins():
    rng = np.random.default_rng(5)
    values = rng.choice(np.array([1, 2, 255], np.uint8), (640, 512), p=[0.5, 0.3, 0.2])
    four = np.stack([values[::2, ::2], values[::2, 1::2], values[1::2, ::2], values[1::2, 1::2]])
    clear = (four == 1).sum(axis=0) != (four == 2).sum(axis=0)
    found, expected = halve(values[np.newaxis], "mode", 255)[0], gdal_overview(values, Resampling.mode, 255)
    assert clear.mean() > 0.5
    assert np.array_equal(found[clear], expected[clear])


def test_dates_are_never_averaged():
    values = np.arange(16, dtype=np.int16).reshape(1, 4, 4)
    assert halve(values, "nearest", -32768)[0].tolist() == [[0, 2], [8, 10]]


def test_overviews_stop_when_one_block_holds_everything():
    assert overview_shapes(512, 512) == []
    assert overview_shapes(513, 3) == [(257, 2)]
    assert overview_shapes(1101, 2050)[-1] == (138, 257)


def test_statistics_equal_those_of_numpy():
    rng = np.random.default_rng(3)
    values = rng.normal(1000, 3, (700, 2500)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = -9999
    valid = values[values != -9999].astype(np.float64)
    found = band_statistics(values, -9999)
    assert found.valid == valid.size
    assert (found.minimum, found.maximum) == pytest.approx((valid.min(), valid.max()), rel=1e-9)
    assert (found.mean, found.std) == pytest.approx((valid.mean(), valid.std()), rel=1e-9)


def test_a_band_without_a_valid_pixel_has_no_statistics():
    found = band_statistics(np.full((5, 5), 255, np.uint8), 255)
    assert found.valid == 0
    assert np.isnan(found.mean)


@pytest.mark.parametrize("method", ["mode", "average", "nearest"])
def test_levels_in_files_and_any_number_of_threads_give_the_same_pyramid(tmp_path, method):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (2, 1301, 2501)).astype(np.uint16)
    results = []
    for threads, in_memory in ((1, True), (3, True), (3, False)):
        numbers = iter(range(99))

        def make(shape, in_memory=in_memory, numbers=numbers):
            if in_memory:
                return MemoryPlanes.empty(shape, np.uint16)
            return FilePlanes(tmp_path / f"{next(numbers)}.raw", shape, np.uint16)

        base = make(values.shape)
        base.write(slice(0, 1301), slice(100, 2501), values[..., 100:])
        base.write(slice(0, 1301), slice(0, 100), values[..., :100])
        levels, statistics, counts = build_overviews(
            base, make, method=method, nodata=65535, histogram=method == "mode", threads=threads
        )
        pixels = [level.read(slice(0, level.shape[1]), slice(0, level.shape[2])) for level in levels]
        results.append((pixels, statistics, counts))
        for planes in (base, *levels):
            planes.close()
    first = results[0]
    assert [level.shape for level in first[0]] == [(2, 651, 1251), (2, 326, 626), (2, 163, 313)]
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(first[0], other[0], strict=True))
        assert first[1] == other[1]
        assert np.array_equal(first[2], other[2])
    if method == "mode":
        assert np.array_equal(first[2][:9], np.bincount(values.ravel(), minlength=9))
