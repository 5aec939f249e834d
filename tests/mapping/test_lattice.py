"""Windows lie where they should, to the pixel, however a map is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from geoeco.errors import InputError
from geoeco.mapping import Lattice
from tests.mapping.conftest import region

SIZES = st.tuples(st.integers(40, 120), st.integers(40, 120))
#: Windows that can be centred on their cells: half the difference is a whole number.
WINDOWS = st.tuples(st.integers(1, 12), st.integers(0, 12)).map(lambda t: (t[0] + 2 * t[1], t[0]))


@given(SIZES, WINDOWS)
def test_cells_are_the_grid_made_coarser_from_the_same_corner(size: tuple[int, int], window: tuple[int, int]) -> None:
    grid = region(*size)
    cells = Lattice(grid, *window).cells
    assert cells.crs == grid.crs
    assert cells.affine * (0, 0) == grid.affine * (0, 0)
    for corner in ((1, 1), (3, 7)):
        assert cells.affine * corner == grid.affine * (corner[0] * window[1], corner[1] * window[1])
    assert all(0 <= have * window[1] - n < window[1] for have, n in zip(cells.shape, size, strict=True))


@given(WINDOWS, st.integers(0, 30))
def test_a_window_is_centred_on_its_cell(window: tuple[int, int], cell: int) -> None:
    lattice = Lattice(region(), *window)
    first, last = lattice.pixels((cell, cell + 1))
    assert last - first == window[0]
    assert first + last == 2 * cell * window[1] + window[1]


@given(SIZES, WINDOWS, st.integers(1, 5), st.data())
def test_every_cell_is_in_one_batch_and_batches_do_not_move(
    size: tuple[int, int], window: tuple[int, int], side: int, data: st.DataObject
) -> None:
    lattice = Lattice(region(*size), *window, side=side)
    rows, cols = (tuple(sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in lattice.shape)
    seen = np.zeros(lattice.shape, int)
    for piece in lattice.pieces(rows, cols):
        asked = tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(piece, (rows, cols), strict=True))
        for y, x in lattice.batches(*asked):
            assert y[1] - y[0] == x[1] - x[0] == side
            assert y[0] % side == x[0] % side == 0
            assert piece[0][0] <= y[0] < y[1] <= piece[0][1]
            assert piece[1][0] <= x[0] < x[1] <= piece[1][1]
            seen[slice(*y), slice(*x)] += 1
    assert (seen[slice(*rows), slice(*cols)] == 1).all()


@pytest.mark.parametrize(
    ("window", "stride", "side"), [(8, 10, 4), (9, 4, 4), (8, 3, 4), (8, 0, 4), (76, 2, 4), (8, 4, 0)]
)
def test_windows_that_cannot_be_are_refused(window: int, stride: int, side: int) -> None:
    with pytest.raises(InputError):
        Lattice(region(90, 75), window, stride, side)


def test_a_place_is_found_in_its_cell() -> None:
    lattice = Lattice(region(), 16, 8)
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    for row, col in ((0, 0), (5, 3), (11, 9)):
        x, y = lattice.cells.affine * (col + 0.9, row + 0.1)
        assert lattice.cell_of(*to_degrees.transform(x, y)) == (row, col)


@pytest.mark.parametrize("place", [(0.0, 0.0), (183.0, 50.5), (float("nan"), 50.0), (3.0, 95.0), (2.9999, 50.55)])
def test_a_place_beyond_the_region_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="outside the region"):
        Lattice(region(), 16, 8).cell_of(*place)
