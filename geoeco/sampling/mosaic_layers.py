"""Rasters beside an orthomosaic on the grid of its chips: classes by majority of area, heights by their maximum.

Both are exact for any ratio of pixel sizes. Not about the orthomosaic's own pixels, which its reader averages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from geoeco.errors import GridError, InputError

if TYPE_CHECKING:
    from geoeco.sensors.orthomosaic import Orthomosaic

__all__ = ["IGNORE", "area_majority", "burnt", "check_layer", "overlapping_max", "read_codes", "read_heights"]

#: Code of pixels without a label.
IGNORE = 255
#: Pixels by which two grids may miss each other and still be one grid.
_SAME_GRID = 1e-3
#: Decimals of a pixel to which areas are compared, so that a tie is one wherever the chip begins.
_AREA_DECIMALS = 6
# rasterio changes the process's filter of warnings while it burns: two threads would undo each other's change
_BURNING = threading.Lock()

Codes = npt.NDArray[np.uint8]
Heights = npt.NDArray[np.float32]
Edges = npt.NDArray[np.float64]


def _integral(values: npt.NDArray[np.float64], edges: Edges) -> npt.NDArray[np.float64]:
    """Integrals along the first axis between neighbouring edges, of values that are constant in each pixel."""
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    whole = np.clip(np.floor(edges).astype(np.int64), 0, len(values) - 1)
    part = (edges - whole).reshape(-1, *([1] * (values.ndim - 1)))
    return np.diff(total[whole] + part * values[whole], axis=0)


def area_majority(codes: Codes, y: Edges, x: Edges) -> Codes:
    """Class that covers most of each pixel of another grid.

    Parameters
    ----------
    codes : numpy.ndarray of uint8, shape (row, column)
        255 where there is no label.
    y, x : numpy.ndarray, shapes (out row + 1,), (out column + 1,)
        Edges of the other grid's rows and columns, in rows and columns of `codes` and parts of them; within them.

    Returns
    -------
    numpy.ndarray of uint8, shape (out row, out column)
        255 where less than half of the pixel has a label; of classes with the same area the one with the lower code.
    """
    best = np.zeros((len(y) - 1, len(x) - 1))
    labelled = np.zeros_like(best)
    out = np.full(best.shape, IGNORE, dtype=np.uint8)
    for code in np.unique(codes):
        if code == IGNORE:
            continue
        rows = _integral((codes == code).astype(np.float64), y)
        area = np.round(np.ascontiguousarray(_integral(rows.T, x).T), _AREA_DECIMALS)
        labelled += area
        larger = area > best
        out[larger] = code
        best[larger] = area[larger]
    whole = np.outer(np.diff(y), np.diff(x))
    out[labelled < 0.5 * whole - 10.0**-_AREA_DECIMALS] = IGNORE
    return out


def _interval_max(values: Heights, edges: Edges) -> Heights:
    """Largest value along the first axis in each interval between edges; a pixel that is only touched has no part."""
    first = np.clip(np.floor(edges[:-1] + _SAME_GRID).astype(np.int64), 0, len(values) - 1)
    stop = np.maximum(np.ceil(edges[1:] - _SAME_GRID).astype(np.int64), first + 1)
    # one row more than there are, because reduceat has no way to say "up to the end"
    padded = np.concatenate([values, np.full_like(values[:1], np.nan)])
    pairs = np.stack([first, np.minimum(stop, len(values))], axis=1).reshape(-1)
    return np.asarray(np.fmax.reduceat(padded, pairs, axis=0)[::2], dtype=np.float32)


def overlapping_max(heights: Heights, y: Edges, x: Edges) -> Heights:
    """Largest height under each pixel of another grid, so that tree tops stay.

    Parameters
    ----------
    heights : numpy.ndarray of float32, shape (row, column)
        NaN where unknown.
    y, x
        As of `area_majority`.

    Returns
    -------
    numpy.ndarray of float32, shape (out row, out column)
        Of the pixels that the other grid's pixel shares area with; NaN where none is known.
    """
    return np.ascontiguousarray(_interval_max(np.ascontiguousarray(_interval_max(heights, y).T), x).T)


def burnt(shapes: Sequence[tuple[BaseGeometry, int]], size: int, affine: Affine) -> npt.NDArray[np.int32]:
    """Value of the last shape that each pixel's centre lies in; 0 where there is none.

    Parameters
    ----------
    shapes : sequence of (geometry, int)
        In the coordinates that `affine` leads to.
    size : int
        Pixels along a side.
    affine : Affine
    """
    if not shapes:
        return np.zeros((size, size), dtype=np.int32)
    with _BURNING:
        return np.asarray(rasterize(shapes, (size, size), transform=affine, all_touched=False, dtype="int32"))


def check_layer(layer: Orthomosaic, mosaic: Orthomosaic, what: str) -> None:
    """Refuse a raster that cannot be laid over the mosaic.

    Raises
    ------
    GridError
        If it is in another CRS, or shares no ground with the mosaic.
    InputError
        If it has more than one band.
    """
    if len(layer.bands) != 1:
        raise InputError(f"{what} come in one band, not in {len(layer.bands)}", where=str(layer.path))
    own, other = layer.geobox, mosaic.geobox
    if own.crs != other.crs:
        resampling = "mode" if what == "labels" else "max"
        raise GridError(
            f"the {what} are in {_name(own.crs)}, the mosaic is in {_name(other.crs)}",
            where=str(layer.path),
            what_to_do=f"warp them first: gdalwarp -t_srs {_name(other.crs)} -r {resampling} ...",
        )
    a, b = own.extent.boundingbox, other.extent.boundingbox
    if not (a.left < b.right and b.left < a.right and a.bottom < b.top and b.bottom < a.top):
        raise GridError(
            f"the {what} share no ground with the mosaic",
            where=str(layer.path),
            what_to_do="check that both are of the same place",
        )


def _name(crs: object) -> str:
    epsg = getattr(crs, "epsg", None)
    return f"EPSG:{epsg}" if epsg else str(crs)[:60]


def _on_grid[T: np.generic](
    read: Callable[[tuple[int, int], tuple[int, int]], npt.NDArray[T]],
    own: Affine,
    affine: Affine,
    shape: tuple[int, int],
    resample: Callable[[npt.NDArray[T], Edges, Edges], npt.NDArray[T]],
) -> npt.NDArray[T]:
    """Pixels of a layer on another grid: read as they are where the grids are one, else resampled."""
    edges: list[Edges] = []
    same = True
    for origin, own_origin, step, own_step, count in (
        (affine.f, own.f, affine.e, own.e, shape[0]),
        (affine.c, own.c, affine.a, own.a, shape[1]),
    ):
        start, ratio = (origin - own_origin) / own_step, step / own_step
        same &= abs(start - round(start)) < _SAME_GRID and abs(ratio - 1) * count < _SAME_GRID
        edges.append(np.asarray(start + ratio * np.arange(count + 1), dtype=np.float64))
    y, x = edges
    if same:
        top, left = round(y[0]), round(x[0])
        return read((top, top + shape[0]), (left, left + shape[1]))
    window = [(int(np.floor(e[0])), int(np.ceil(e[-1]))) for e in edges]
    return resample(read(window[0], window[1]), y - window[0][0], x - window[1][0])


def read_codes(layer: Orthomosaic, affine: Affine, shape: tuple[int, int]) -> Codes:
    """Classes on a grid of the same CRS, by majority of area where the grids differ; 255 where there is no label.

    Raises
    ------
    InputError
        If codes do not fit 0..254.
    """

    def read(y: tuple[int, int], x: tuple[int, int]) -> Codes:
        values, valid = layer.read(y, x)
        codes = values[0]
        seen = codes[valid]
        if seen.size and (seen.min() < 0 or seen.max() > IGNORE or (seen != np.floor(seen)).any()):
            raise InputError(
                f"labels of {seen.min():g} to {seen.max():g} are no class codes",
                where=str(layer.path),
                what_to_do="codes are whole numbers from 0 to 254; 255 is no label",
            )
        return np.where(valid, codes, IGNORE).astype(np.uint8)

    return _on_grid(read, layer.geobox.transform, affine, shape, area_majority)


def read_heights(layer: Orthomosaic, affine: Affine, shape: tuple[int, int]) -> Heights:
    """Heights, metres, on a grid of the same CRS, the largest where the grids differ; NaN where unknown."""

    def read(y: tuple[int, int], x: tuple[int, int]) -> Heights:
        values, valid = layer.read(y, x)
        return np.where(valid, values[0] * np.float32(layer.scale), np.nan).astype(np.float32)

    return _on_grid(read, layer.geobox.transform, affine, shape, overlapping_max)
