"""Windows of chips: whole pixels, nothing left out, crowns whole in some chip if and only if the overlap holds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoeco.errors import InputError
from geoeco.sampling import check_overlap, grid_windows
from geoeco.sampling.mosaic_windows import pixels_across, whole_in


def covered(shape, size, offsets):
    """Number of windows that hold each pixel, and the number of their pixels beyond the raster."""
    count = np.zeros(shape, dtype=int)
    for row, col in offsets:
        count[max(row, 0) : row + size, max(col, 0) : col + size] += 1
    return count, len(offsets) * size**2 - count.sum()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_pixel_is_in_a_window_whatever_the_size_the_chip_and_the_overlap(data):
    shape = (data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)))
    size = data.draw(st.integers(1, 40))
    overlap = data.draw(st.integers(0, size - 1))
    count, beyond = covered(shape, size, grid_windows(shape, size, overlap, edge="pad"))
    assert (count > 0).all()
    if size > min(shape):
        with pytest.raises(InputError, match="larger than the mosaic"):
            grid_windows(shape, size, overlap)
        return
    shifted = grid_windows(shape, size, overlap, edge="shift")
    count, beyond = covered(shape, size, shifted)
    assert (count > 0).all()
    assert beyond == 0
    assert len(np.unique(shifted, axis=0)) == len(shifted)
    dropped = grid_windows(shape, size, overlap, edge="drop")
    count, beyond = covered(shape, size, dropped)
    assert beyond == 0
    # what is left out is a strip along the right and lower edge, narrower than a step
    step = size - overlap
    assert (count[: shape[0] - step + 1, : shape[1] - step + 1] > 0).all()


def test_windows_that_fit_need_no_shift():
    for edge in ("shift", "pad", "drop"):
        assert grid_windows((8, 12), 4, edge=edge).tolist() == [[r, c] for r in (0, 4) for c in (0, 4, 8)]
    assert grid_windows((10, 4), 4, edge="shift")[:, 0].tolist() == [0, 4, 6]
    assert grid_windows((10, 4), 4, edge="pad")[:, 0].tolist() == [0, 4, 8]
    assert grid_windows((10, 4), 4, edge="drop")[:, 0].tolist() == [0, 4]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_windows_without_a_step_are_refused(size, overlap):
    with pytest.raises(InputError):
        grid_windows((10, 10), size, overlap)


@pytest.mark.parametrize(
    ("metres", "gsd", "up", "pixels"),
    [
        (12.8, 0.1, False, 128),
        # the scale of a UTM zone is no reason for another pixel
        (12.8, 0.09996, True, 128),
        (12.8, 0.10004, True, 128),
        (12.86, 0.1, True, 129),
        (12.84, 0.1, False, 128),
        # World Mercator at 52 degrees: a pixel of "0.1 m" is 0.062 m
        (80.0, 0.0616, False, 1299),
    ],
)
def test_metres_become_whole_pixels(metres, gsd, up, pixels):
    assert pixels_across(metres, gsd, up=up) == pixels


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 20), st.integers(0, 15), st.floats(0.5, 16), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_crowns_are_whole_in_some_chip_where_the_overlap_is_their_diameter_and_twice_the_band(
    size, overlap, diameter, band, seed
):
    overlap = min(overlap, size - 4)
    rng = np.random.default_rng(seed)
    length = 4 * size
    offsets = grid_windows((length, length), size, overlap, edge="pad")
    corner = rng.uniform(band, max(length - diameter - band - size, band + 1), (12, 2))
    bounds = np.concatenate([corner, corner + diameter], axis=1)
    held = whole_in(bounds, offsets, size, edge_band=band)
    brute = [
        sum(
            (row + band <= b[0] + 1e-6)
            and (col + band <= b[1] + 1e-6)
            and (b[2] <= row + size - band + 1e-6)
            and (b[3] <= col + size - band + 1e-6)
            for row, col in offsets
        )
        for b in bounds[:2]
    ]
    assert held[:2].tolist() == brute
    inner = (bounds[:, 2:] + band <= length).all(axis=1)
    if overlap >= diameter + 2 * band:
        assert (held[inner] > 0).all()
    elif overlap < diameter + 2 * band - 1 and size >= diameter + 2 * band:
        # somewhere there is a place where it is cut: just before the second window begins
        edge = size - overlap + band - 1e-3
        cut = np.array([[edge, edge, edge + diameter, edge + diameter]])
        assert whole_in(cut, offsets, size, edge_band=band)[0] == 0


def test_the_overlap_rule_of_published_tilings():
    """80 m tiles at 75 % overlap serve crowns up to 60 m (52 m with a band of 5 %), at 50 % up to 40 m (32 m)."""
    for share, band, largest in ((0.75, 0, 60), (0.75, 0.05, 52), (0.5, 0, 40), (0.5, 0.05, 32)):
        overlap = round(80 * share)
        offsets = grid_windows((400, 400), 80, overlap)
        for diameter, whole in ((largest, True), (largest + 2, False)):
            start = np.arange(100.0, 200.0, 0.5)
            bounds = np.stack([start, start, start + diameter, start + diameter], axis=1)
            check = check_overlap(bounds, offsets, 80, overlap, 1.0, shape=(400, 400), edge_band_m=80 * band)
            assert (check.warning == "") is whole
            assert check.needed_m == pytest.approx(diameter + 160 * band)


def test_the_warning_names_how_many_crowns_are_cut_and_what_would_help():
    offsets = grid_windows((100, 100), 20, 2)
    bounds = np.array([[1, 1, 5, 5], [15, 15, 25, 22], [-3, 0, 4, 4.0]])
    check = check_overlap(bounds, offsets, 20, 2, 0.5, shape=(100, 100))
    # the third reaches beyond the mosaic: no chip could hold it
    assert check.cut == (1,)
    assert check.warning.startswith("1 crowns are whole in no chip: an overlap of 5.0 m would hold")
    assert "1.0 m does not" in check.warning
