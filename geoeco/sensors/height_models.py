"""Heights above the ground beside an orthomosaic: a canopy height model, or a surface model minus a terrain model.

Heights come on a grid of their own, in the mosaic's CRS, and are read on the mosaic's grid. Not for elevations of the
terrain, and not for making a canopy height model from points.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.sensors.mosaic_files import opened_mosaic, source_path
from geoeco.sensors.mosaic_reading import Orthomosaic, describe_orthomosaic

__all__ = ["HeightModel", "HeightsWithin", "describe_height_file", "describe_heights", "heights_within"]

#: Metres in a unit of height, by the names that files give it.
_UNITS = {
    **dict.fromkeys(("", "m", "metre", "meter", "metres", "meters"), 1.0),
    **dict.fromkeys(("ft", "foot", "feet"), 0.3048),
    **dict.fromkeys(("us-ft", "us survey foot", "foot_us", "ftus"), 1200 / 3937),
}
_BLOCK = 2048

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class HeightModel:
    """Heights on the grid of a mosaic, without an open file: it pickles, compares and hashes by value.

    Attributes
    ----------
    geobox : odc.geo.geobox.GeoBox
        Grid on which `read` answers.
    upper : Orthomosaic
        The canopy height model, or the surface model.
    lower : Orthomosaic or None
        The terrain model, on the grid of the surface model.
    resampling : {"max", "mean"}
        What becomes of several heights in one pixel; where heights are coarser than pixels, each pixel has the height
        of the cell that its centre lies in.
    """

    geobox: GeoBox
    upper: Orthomosaic
    lower: Orthomosaic | None
    resampling: Literal["max", "mean"]

    def read(self, y: tuple[int, int], x: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Heights of one window of the grid.

        Parameters
        ----------
        y, x : tuple of int
            First (inclusive) and last (exclusive) row and column; they may lie beyond the grid.

        Returns
        -------
        numpy.ndarray
            ``(y, x)`` float32, metres; not below 0, NaN where there is no height (and where fewer than half of the
            cells of a pixel have one).
        """
        down, across = self._cells(y, 0), self._cells(x, 1)
        rows, columns = (int(down.min()), int(down.max()) + 1), (int(across.min()), int(across.max()) + 1)
        cells = np.maximum(self._stored(rows, columns), np.float32(0))
        return self._reduced(cells, down - rows[0], across - columns[0])

    def count_negative(self) -> int:
        """How many cells of the height model are below 0, which `read` gives as 0; reads the whole model once."""
        rows, columns = self.upper.shape
        return sum(
            int((self._stored((top, min(top + _BLOCK, rows)), (left, min(left + _BLOCK, columns))) < 0).sum())
            for top in range(0, rows, _BLOCK)
            for left in range(0, columns, _BLOCK)
        )

    def _stored(self, rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Heights of the model's own cells, NaN where there are none."""
        heights = _metres(self.upper, rows, columns)
        if self.lower is not None:
            heights -= _metres(self.lower, rows, columns)
        return heights.astype(np.float32)

    def _cells(self, span: tuple[int, int], axis: int) -> npt.NDArray[np.intp]:
        """Cells of the model of each pixel along one axis, ``(pixel, cell)``.

        A pixel without a cell of its own has the one that its centre lies in; short lists end in their last cell again.
        """
        mine, own = self.geobox.transform, self.upper.geobox.transform
        if axis == 0:
            step, start = mine.e / own.e, (mine.f - own.f) / own.e
        else:
            step, start = mine.a / own.a, (mine.c - own.c) / own.a
        edges = start + step * np.arange(span[0], span[1] + 1)
        # a cell belongs to the pixel in which its centre lies; the tolerance is for grids that agree up to rounding
        first = np.ceil(edges - 0.5 - 1e-6).astype(np.intp)
        count = np.diff(first)
        centre = np.floor((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(np.intp)
        begin = np.where(count > 0, first[:-1], centre)
        last = np.maximum(count - 1, 0)[:, None]
        cells: npt.NDArray[np.intp] = begin[:, None] + np.minimum(np.arange(max(1, int(count.max()))), last)
        return cells

    def _reduced(
        self, cells: npt.NDArray[np.float32], down: npt.NDArray[np.intp], across: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.float32]:
        """One height for each pixel from the cells in it."""
        shape = (len(down), len(across))
        highest = np.full(shape, np.nan, np.float32)
        total, known, all_cells = np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for i in range(down.shape[1]):
            new_row = (down[:, i] != down[:, i - 1]) if i else np.ones(len(down), bool)
            for j in range(across.shape[1]):
                new = np.outer(new_row, (across[:, j] != across[:, j - 1]) if j else np.ones(len(across), bool))
                part = cells[np.ix_(down[:, i], across[:, j])]
                has = new & ~np.isnan(part)
                all_cells += new
                known += has
                if self.resampling == "max":
                    np.fmax(highest, part, out=highest)
                else:
                    total += np.where(has, part, 0)
        enough = (known > 0) & (2 * known >= all_cells)
        heights = highest if self.resampling == "max" else (total / np.maximum(known, 1)).astype(np.float32)
        return np.where(enough, heights, np.float32(np.nan))


def _metres(model: Orthomosaic, rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[np.float64]:
    stored, valid = model.read(rows, columns)
    return np.where(valid, stored[0].astype(np.float64) * model.scale, np.nan)


def describe_heights(
    mosaic: Orthomosaic,
    *,
    chm: Path | None = None,
    dsm: Path | None = None,
    dtm: Path | None = None,
    nodata: float | Literal["auto"] | None = "auto",
    resampling: Literal["max", "mean"] = "max",
) -> HeightModel:
    """Check a height model against a mosaic and say how it is read.

    Parameters
    ----------
    mosaic : Orthomosaic
    chm : path, optional
        Heights above the ground.
    dsm, dtm : path, optional
        Elevations of surface and terrain on one grid; the height is their difference. A surface model by itself is no
        canopy.
    nodata : float, "auto" or None
        As of `geoeco.sensors.orthomosaic.describe_orthomosaic`, for all files. ``None`` where a canopy height model
        says that 0 is no data but 0 m is the ground.
    resampling : {"max", "mean"}
        Several cells in one pixel: the highest, which keeps the tops of trees, or their mean.

    Returns
    -------
    HeightModel

    Raises
    ------
    InputError
        If it is neither `chm` nor both of `dsm` and `dtm`, or the files are in units that are not known or not equal.
    GridError
        If a model has another CRS than the mosaic, does not overlap it, or the two models' grids differ.
    ReadError
        If a file cannot be read.
    """
    if resampling not in ("max", "mean"):
        raise InputError(f"heights are resampled by 'max' or 'mean', not {resampling!r}")
    if chm is not None and dsm is None and dtm is None:
        upper, lower = describe_height_file(chm, nodata=nodata), None
    elif chm is None and dsm is not None and dtm is not None:
        upper, lower = describe_height_file(dsm, "dsm", nodata=nodata), describe_height_file(dtm, "dtm", nodata=nodata)
        if not _same_grid(upper.geobox, lower.geobox):
            raise GridError(
                "surface and terrain model lie on different grids",
                where=f"{upper.path} and {lower.path}",
                what_to_do="warp one to the other's grid (gdalwarp -te ... -tr ... -r bilinear), or give `chm`",
            )
    else:
        raise InputError(
            "heights are a canopy height model, or a surface and a terrain model",
            what_to_do="give `chm` alone, or `dsm` and `dtm`: a surface model by itself holds the hills too",
        )
    if upper.geobox.crs != mosaic.geobox.crs:
        raise GridError(
            f"the height model is in {upper.geobox.crs}, the mosaic in {mosaic.geobox.crs}",
            where=upper.path,
            what_to_do=f"gdalwarp -t_srs {mosaic.geobox.crs} -r bilinear IN OUT.tif",
        )
    boxes = [grid.boundingbox for grid in (upper.geobox, mosaic.geobox)]
    if max(box.left for box in boxes) >= min(box.right for box in boxes) or max(box.bottom for box in boxes) >= min(
        box.top for box in boxes
    ):
        raise GridError("the height model does not overlap the mosaic", where=upper.path)
    return HeightModel(mosaic.geobox, upper, lower, resampling)


class HeightsWithin(NamedTuple):
    """Heights of the pixels of one crown, metres; NaN where none is known.

    Attributes
    ----------
    highest : float
    top : float
        The percentile that was asked for.
    fraction : float
        Part of the pixels whose height is known; NaN where there is no pixel.
    """

    highest: float
    top: float
    fraction: float


def heights_within(heights: npt.NDArray[Any], inside: npt.NDArray[np.bool_], percentile: float = 95.0) -> HeightsWithin:
    """Sum up the heights of the pixels of one crown.

    Parameters
    ----------
    heights : numpy.ndarray, shape (y, x)
        Metres, NaN where unknown.
    inside : numpy.ndarray of bool, shape (y, x)
        The crown.
    percentile : float
        Within 0..100. 95 is the top of a crown, but not one stray return.

    Raises
    ------
    InputError
        If the percentile is not within 0..100.
    """
    if not 0 <= percentile <= 100:
        raise InputError(f"there is no percentile {percentile}", what_to_do="give 0 to 100")
    values = heights[inside]
    known = values[np.isfinite(values)]
    if not known.size:
        return HeightsWithin(math.nan, math.nan, 0.0 if values.size else math.nan)
    return HeightsWithin(float(known.max()), float(np.percentile(known, percentile)), known.size / values.size)


def describe_height_file(
    path: Path, role: str = "chm", *, nodata: float | Literal["auto"] | None = "auto"
) -> Orthomosaic:
    """Describe a height model as a mosaic of one band whose scale leads to metres.

    Parameters
    ----------
    path : path
    role : str
        What it is, for messages.
    nodata : float, "auto" or None
        As of `describe_heights`.

    Raises
    ------
    InputError
        If the file has several bands, an offset, or is in a unit that is not known.
    ReadError
        If it cannot be read.
    """
    found = source_path(path)
    with opened_mosaic(str(found)) as file:
        count, unit = file.count, (file.units[0] or "").strip().lower()
        scale, offset = float(file.scales[0]), float(file.offsets[0])
    if count != 1:
        raise InputError(f"the {role} has {count} bands, not one", where=str(found))
    if unit not in _UNITS:
        raise InputError(
            f"the {role} is in {unit!r}", where=str(found), what_to_do="convert it to metres, or correct its unit"
        )
    if offset:
        raise InputError(
            f"the {role} has an offset of {offset:g}", where=str(found), what_to_do="gdal_translate -unscale IN OUT.tif"
        )
    with warnings.catch_warnings():
        # the ground sampling distance that matters is the mosaic's
        warnings.simplefilter("ignore", UserWarning)
        model = describe_orthomosaic(found, bands=[1], scale=scale * _UNITS[unit], nodata=nodata)
    if model.mask == "nodata" and model.nodata == 0:
        warnings.warn(
            f"{found}: 0 means no data, so that no ground is known; set nodata=None where 0 m is a height", stacklevel=4
        )
    return model


def _same_grid(one: GeoBox, other: GeoBox) -> bool:
    if one.crs != other.crs or tuple(one.shape) != tuple(other.shape):
        return False
    pixel = abs(one.transform.a)
    return all(
        math.isclose(a, b, abs_tol=1e-6 * pixel)
        for a, b in zip(tuple(one.transform)[:6], tuple(other.transform)[:6], strict=True)
    )
