"""Where windows lie: a lattice of cells over a grid, the window around each cell, and the batches they are taken in.

Integers only: cells, windows and halos are whole pixels, so that neither a block's size nor where it lies can move a
window. Nothing here knows what is done with the windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import point

from geoeco.errors import InputError

__all__ = ["Lattice", "Span", "cell_of"]

#: First (inclusive) and last (exclusive) row or column.
Span = tuple[int, int]

#: Pixels along each side of the piece that is in memory at once, beside its halo.
PIECE = 512


def cell_of(lon: float, lat: float, cells: GeoBox) -> tuple[int, int]:
    """Row and column of the cell of a grid that a place lies in, given in degrees.

    Raises
    ------
    InputError
        If it lies outside the grid, or the grid has no CRS.
    """
    if cells.crs is None:
        raise InputError("the grid has no CRS", what_to_do="set it with rio.write_crs")
    rows, cols = (int(n) for n in cells.shape)
    if math.isfinite(lon) and abs(lat) <= 90:
        ((x, y),) = point(float(lon), float(lat), "EPSG:4326").to_crs(cells.crs).coords
        col, row = ~cells.affine * (x, y)
        if 0 <= row < rows and 0 <= col < cols:
            return int(row), int(col)
    raise InputError(
        f"the place {lon:g}, {lat:g} lies outside the region",
        what_to_do="give longitude and latitude in degrees, within the map",
        code="place",
    )


@dataclass(frozen=True)
class Lattice:
    """Cells of `stride` x `stride` pixels from the top left of a grid, and a window centred on each.

    Attributes
    ----------
    geobox : odc.geo.geobox.GeoBox
        The grid of the pixels.
    window : int
        Pixels along a side of a window.
    stride : int
        Pixels along a side of a cell; at most `window`, and odd where the window is odd.
    side : int
        Cells along a side of a batch. Batches lie on multiples of it, whatever part of the lattice is asked for.

    Raises
    ------
    InputError
        If window and stride do not fit each other or the grid.
    """

    geobox: GeoBox
    window: int
    stride: int
    side: int = 4

    def __post_init__(self) -> None:
        rows, cols = (int(n) for n in self.geobox.shape)
        if self.stride < 1 or self.window < self.stride or (self.window - self.stride) % 2:
            raise InputError(
                f"windows of {self.window} pixels cannot be centred on cells of {self.stride}",
                what_to_do="take a stride from 1 to the window, both even or both odd",
                code="window",
            )
        if self.window > min(rows, cols):
            raise InputError(
                f"windows of {self.window} pixels do not fit in a region of {rows} x {cols}",
                what_to_do="take a smaller window or a larger region",
                code="window",
            )
        if self.side < 1:
            raise InputError(f"a batch has at least one cell along a side, not {self.side}")

    @property
    def halo(self) -> int:
        """Pixels by which a window reaches beyond its cell, on every side."""
        return (self.window - self.stride) // 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; cells at the right and bottom edge may reach beyond the grid."""
        rows, cols = (int(n) for n in self.geobox.shape)
        return math.ceil(rows / self.stride), math.ceil(cols / self.stride)

    @property
    def cells(self) -> GeoBox:
        """The grid of the cells: same origin, pixels `stride` times as large."""
        return GeoBox(self.shape, self.geobox.affine * Affine.scale(self.stride), self.geobox.crs)

    def cell_of(self, lon: float, lat: float) -> tuple[int, int]:
        """Row and column of the cell that a place lies in; see `cell_of`."""
        return cell_of(lon, lat, self.cells)

    def pixels(self, cells: Span) -> Span:
        """Pixels that the windows of a span of rows or columns of cells cover; may lead beyond the grid."""
        return cells[0] * self.stride - self.halo, cells[1] * self.stride + self.halo

    def batches(self, rows: Span, cols: Span) -> Iterator[tuple[Span, Span]]:
        """Batches, `side` x `side` cells each, that touch a part of the lattice, row by row; whole ones always."""
        for top in range(rows[0] // self.side * self.side, rows[1], self.side):
            for left in range(cols[0] // self.side * self.side, cols[1], self.side):
                yield (top, top + self.side), (left, left + self.side)

    @property
    def piece(self) -> int:
        """Cells along a side of a piece of whole batches that is read at once."""
        return max(1, PIECE // (self.side * self.stride)) * self.side

    def pieces(self, rows: Span, cols: Span) -> Iterator[tuple[Span, Span]]:
        """Cut a part of the lattice into pieces of whole batches."""
        for top in range(rows[0] // self.side * self.side, rows[1], self.piece):
            for left in range(cols[0] // self.side * self.side, cols[1], self.piece):
                yield (
                    (top, min(top + self.piece, math.ceil(rows[1] / self.side) * self.side)),
                    (left, min(left + self.piece, math.ceil(cols[1] / self.side) * self.side)),
                )
