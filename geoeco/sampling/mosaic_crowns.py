"""Crowns on the pixels of an orthomosaic: their windows, and their ids burnt into the grid of a chip.

Not about reading crowns, which is `geoeco.vectors`', nor about finding them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geoeco.errors import InputError
from geoeco.sampling.mosaic_layers import burnt

__all__ = ["CrownWindows", "PlacedCrowns", "crown_windows", "lying_over", "place_crowns"]

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Shapes = npt.NDArray[np.object_]

#: Column of a crown's height, metres, by which tall crowns are burnt over low ones.
HEIGHT = "height_m"
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class PlacedCrowns:
    """Crowns in the pixels of one mosaic.

    Attributes
    ----------
    ids : numpy.ndarray of int32, shape (crown,)
    classes : numpy.ndarray of int16, shape (crown,)
        Positions in the list of classes, -1 unknown.
    shapes : numpy.ndarray of shapely polygons, shape (crown,)
        In columns (x) and rows (y) of the mosaic, from its upper left corner, and parts of them.
    points : numpy.ndarray of shapely points, shape (crown,)
        A point within each crown, on the map (in the units of the CRS).
    rank : numpy.ndarray of int64, shape (crown,)
        Order of burning: a crown of a higher rank lies over one of a lower.
    """

    ids: Ints
    classes: npt.NDArray[np.int16]
    shapes: Shapes
    points: Shapes
    rank: npt.NDArray[np.int64]

    @property
    def bounds(self) -> Floats:
        """First row, first column, last row, last column of each crown, shape (crown, 4)."""
        return np.asarray(shapely.bounds(self.shapes)[:, [1, 0, 3, 2]])

    def within(self, offset: tuple[int, int], reach: int) -> npt.NDArray[np.intp]:
        """Positions of the crowns that reach into a square window, in the order of burning."""
        top, left = offset
        found = self._tree.query(shapely.box(left, top, left + reach, top + reach))
        return np.asarray(found[np.argsort(self.rank[found], kind="stable")])

    def on_map(self, transform: Affine) -> Shapes:
        """Outlines in map coordinates, by the affine of the mosaic's pixels."""
        scale, corner = [transform.a, transform.e], [transform.c, transform.f]
        return np.asarray(shapely.transform(self.shapes, lambda xy: xy * scale + corner))

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    def burn(self, offset: tuple[int, int], size: int, step: int = 1) -> Ints:
        """Crown of each pixel of a chip.

        Parameters
        ----------
        offset : tuple of int
            Row and column of the chip's upper left pixel in the mosaic.
        size : int
            Pixels of the chip along a side.
        step : int
            Pixels of the mosaic along a side of a pixel of the chip.

        Returns
        -------
        numpy.ndarray of int32, shape (size, size)
            Id of the topmost crown that the pixel's centre lies in; 0 where there is none.
        """
        found = self.within(offset, size * step)
        return burnt([(self.shapes[i], int(self.ids[i])) for i in found], size, _grid(offset, step))

    def mask(self, position: int, offset: tuple[int, int], size: int, step: int = 1) -> npt.NDArray[np.bool_]:
        """Pixels of a chip whose centre lies in one crown, whatever lies over it."""
        return np.asarray(burnt([(self.shapes[position], 1)], size, _grid(offset, step)) == 1)


def _grid(offset: tuple[int, int], step: int) -> Affine:
    """Pixels of a chip to the pixels of the mosaic."""
    return Affine(step, 0.0, offset[1], 0.0, step, offset[0])


def place_crowns(crowns: gpd.GeoDataFrame, geobox: GeoBox, classes: Sequence[str]) -> PlacedCrowns:
    """Put crowns on the pixels of a mosaic.

    Parameters
    ----------
    crowns : geopandas.GeoDataFrame
        As of `geoeco.vectors.read_crowns`, in the CRS of the mosaic. Of crowns that overlap the tall lies over the low
        where there is a column ``height_m``, else the small over the large; ties by id.
    geobox : odc.geo.geobox.GeoBox
        Of the mosaic.
    classes : sequence of str
        Names that the classes are numbered by.
    """
    transform = geobox.transform
    geometry = crowns.geometry.to_numpy()
    shapes = shapely.transform(geometry, lambda xy: (xy - [transform.c, transform.f]) / [transform.a, transform.e])
    number = {name: index for index, name in enumerate(classes)}
    ids = crowns["crown_id"].to_numpy(dtype=np.int32)
    return PlacedCrowns(
        ids,
        np.array([number.get(str(name), -1) for name in crowns["class_name"]], dtype=np.int16),
        shapes,
        shapely.point_on_surface(geometry),
        lying_over(crowns, shapely.area(geometry)),
    )


def lying_over(crowns: gpd.GeoDataFrame, area: Floats) -> npt.NDArray[np.int64]:
    """Rank of crowns from below to above: the tall over the low, the small over the large where heights are unknown.

    Parameters
    ----------
    crowns : geopandas.GeoDataFrame
        With ``crown_id``, by which ties are settled, and perhaps ``height_m``.
    area : numpy.ndarray, shape (crown,)

    Returns
    -------
    numpy.ndarray of int64, shape (crown,)
    """
    height = crowns[HEIGHT].to_numpy(dtype=np.float64) if HEIGHT in crowns.columns else np.full(len(crowns), np.nan)
    order = np.lexsort((-crowns["crown_id"].to_numpy(dtype=np.int64), -area, np.nan_to_num(height, nan=-np.inf)))
    rank = np.empty(len(crowns), dtype=np.int64)
    rank[order] = np.arange(len(crowns))
    return rank


@dataclass(frozen=True, eq=False)
class CrownWindows:
    """Windows round crowns, one each.

    Attributes
    ----------
    crown : numpy.ndarray of int, shape (window,)
        Position of the crown.
    offsets : numpy.ndarray of int32, shape (window, 2)
        Row and column of the upper left pixel.
    steps : numpy.ndarray of int32, shape (window,)
        Pixels of the mosaic along a side of a pixel of the chip; above 1 for crowns that are too large for a chip.
    too_large : tuple of int
        Ids of crowns left out because they are too large.
    """

    crown: npt.NDArray[np.intp]
    offsets: Ints
    steps: Ints
    too_large: tuple[int, ...]


def spans(crowns: PlacedCrowns, buffer: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First pixels and pixels across of the smallest whole windows round crowns with a buffer, each (crown, 2)."""
    bounds = crowns.bounds
    first = np.floor(bounds[:, :2] - buffer + _TINY).astype(np.int64)
    return first, np.ceil(bounds[:, 2:] + buffer - _TINY).astype(np.int64) - first


def crown_windows(
    crowns: PlacedCrowns, size: int, buffer: float, *, too_large: str = "refuse", where: str = ""
) -> CrownWindows:
    """One window round each crown, which holds it whole.

    Parameters
    ----------
    crowns : PlacedCrowns
    size : int
        Pixels of a chip along a side.
    buffer : float
        Least distance, pixels, between a crown and the sides of its chip.
    too_large : {"refuse", "drop", "resize"}
        What becomes of crowns that do not fit: an error, left out, or a chip of coarser pixels, a whole number of the
        mosaic's along each side.
    where : str
        For messages.

    Raises
    ------
    InputError
        If a crown does not fit and `too_large` is "refuse".
    """
    first, across = spans(crowns, buffer)
    across = across.max(axis=1)
    steps = -(-across // size)
    big = np.flatnonzero(steps > 1)
    if len(big) and too_large == "refuse":
        raise InputError(
            f"{len(big)} crowns are larger than a chip of {size} pixels with their buffer, the largest needs "
            f"{across.max()}: crowns {', '.join(str(i) for i in crowns.ids[big][:10])}",
            where=where,
            what_to_do="take larger chips, or too_large: resize (coarser pixels for these) or drop",
        )
    kept = np.flatnonzero(steps == 1) if too_large == "drop" else np.arange(len(across))
    steps = steps[kept]
    middle = first[kept] + spans(crowns, buffer)[1][kept] // 2
    offsets = middle - (size * steps[:, None]) // 2
    left_out = tuple(int(i) for i in crowns.ids[big]) if too_large == "drop" else ()
    return CrownWindows(kept, offsets.astype(np.int32), steps.astype(np.int32), left_out)
