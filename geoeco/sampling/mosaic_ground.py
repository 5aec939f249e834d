"""Blocks of ground over orthomosaics: the same ground is the same block, whichever mosaic and date shows it.

Not about which set a block is of: `geoeco.sampling.mosaic_splits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geoeco.errors import GridError
from geoeco.sampling.mosaic_sources import ChipSource
from geoeco.sampling.mosaic_windows import pixels_across

__all__ = ["Ground", "grounds_of"]

Ints = npt.NDArray[np.int32]
Shapes = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Ground:
    """Blocks of ground over all sources of one CRS: the same ground is the same block, on whatever date.

    Attributes
    ----------
    members : tuple of int
        Positions of the sources.
    corner, side, shape
        Upper left corner, side (units of the CRS), rows and columns of the blocks; the last ones reach as far as
        there is ground, so that none is narrower than half a block.
    first : int
        Number of the first block.
    bounds : tuple of float
        Left, bottom, right, top of all sources.
    metres : float
        True metres in a unit of the CRS.
    crs : CRS or None
    """

    members: tuple[int, ...]
    corner: tuple[float, float]
    side: float
    shape: tuple[int, int]
    first: int
    bounds: tuple[float, float, float, float]
    metres: float
    crs: Any

    def numbers(self, points: Shapes) -> Ints:
        """Block of each point, counted row by row from the top."""
        column = np.floor((shapely.get_x(points) - self.corner[0]) / self.side)
        row = np.floor((self.corner[1] - shapely.get_y(points)) / self.side)
        rows, columns = self.shape
        number = self.first + np.clip(row, 0, rows - 1) * columns + np.clip(column, 0, columns - 1)
        return np.asarray(number, dtype=np.int32)

    def boxes(self, blocks: Ints) -> Shapes:
        """Outlines of blocks."""
        row, column = np.divmod(blocks - self.first, self.shape[1])
        left, top = self.corner[0] + column * self.side, self.corner[1] - row * self.side
        right = np.where(column == self.shape[1] - 1, self.bounds[2], left + self.side)
        bottom = np.where(row == self.shape[0] - 1, self.bounds[1], top - self.side)
        return np.asarray(shapely.box(left, bottom, right, top))


def grounds_of(sources: Sequence[ChipSource], block_m: float) -> list[Ground]:
    """Lay blocks over all sources, one grid of them for each CRS.

    Raises
    ------
    GridError
        If sources of different CRSs lie on the same ground, which could not be told to be the same.
    """
    by_crs: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        crs = source.mosaic.geobox.crs
        # mosaics without a place on Earth are each on ground of their own
        by_crs.setdefault(f"none {index}" if crs is None else str(crs), []).append(index)
    found, first = [], 0
    for members in by_crs.values():
        one = sources[members[0]].mosaic
        boxes = [sources[i].mosaic.geobox.boundingbox for i in members]
        left, top = min(b.left for b in boxes), max(b.top for b in boxes)
        right, bottom = max(b.right for b in boxes), min(b.bottom for b in boxes)
        pixel = one.geobox.transform.a
        side = pixel * pixels_across(block_m, one.gsd_m, up=True)
        shape = (max(1, round((top - bottom) / side)), max(1, round((right - left) / side)))
        found.append(
            Ground(
                tuple(members),
                (left, top),
                side,
                shape,
                first,
                (left, bottom, right, top),
                one.gsd_m / pixel,
                one.geobox.crs,
            )
        )
        first += shape[0] * shape[1]
    _check_apart(found, sources)
    return found


def _check_apart(found: Sequence[Ground], sources: Sequence[ChipSource]) -> None:
    unplaced = sum(ground.crs is None for ground in found)
    if len(found) < 2 or unplaced == len(found):
        return
    if unplaced:
        raise GridError("some mosaics have a CRS and some have none", what_to_do="put them into stores of their own")
    boxes = [shapely.box(*s.mosaic.geobox.geographic_extent.boundingbox) for s in sources]
    owner = {index: number for number, ground in enumerate(found) for index in ground.members}
    for a, b in zip(*shapely.STRtree(boxes).query(boxes, predicate="intersects"), strict=True):
        if owner[int(a)] != owner[int(b)]:
            raise GridError(
                f"{sources[a].name} and {sources[b].name} show the same ground in different CRSs",
                what_to_do="warp one into the CRS of the other, so that their sets can be kept apart",
            )
