"""Orthomosaics of drones and aircraft: what is in the file, where its pixels lie, which of them are valid.

A mosaic is described once (`describe_orthomosaic`), with every check that can be made before work starts, and is then
read by exact windows. Values keep their stored type; value = stored x scale is a number without unit, 0..1 for images
of 8 and 16 bits. Not about chips (`geoeco.sampling`) nor about maps (`geoeco.mapping`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from geoeco.errors import InputError
from geoeco.sensors.height_models import HeightModel, describe_heights
from geoeco.sensors.mosaic_bands import Bands, Nodata
from geoeco.sensors.mosaic_reading import Orthomosaic, describe_orthomosaic
from geoeco.variables import describe

__all__ = [
    "HeightModel",
    "Orthomosaic",
    "as_orthomosaic",
    "describe_heights",
    "describe_orthomosaic",
    "open_orthomosaic",
]


_Read = Callable[[tuple[int, int], tuple[int, int]], npt.NDArray[Any]]


class _Lazy(BackendArray):
    """Array as xarray reads it: one window at a time, when it is asked for.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)``, with other dimensions before.
    dtype : dtype
    read : callable
        Gives the window of rows ``(y0, y1)`` and columns ``(x0, x1)``; pickles.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, read: _Read) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.window = read

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.shape, str(self.dtype), self.window)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        *before, rows, columns = key
        (y, pick_y), (x, pick_x) = _span(rows, self.shape[-2]), _span(columns, self.shape[-1])
        if y[0] >= y[1] or x[0] >= x[1]:
            return np.zeros(self.shape, self.dtype)[key]
        return np.asarray(self.window(y, x)[(*before, pick_y, pick_x)])


def _span(key: int | slice, size: int) -> tuple[tuple[int, int], int | slice]:
    """Contiguous range that a key lies in, and the key within it."""
    if isinstance(key, int | np.integer):
        return (int(key), int(key) + 1), 0
    start, stop, step = key.indices(size)
    if step < 0:
        chosen = range(start, stop, step)
        return ((chosen[-1], chosen[0] + 1), slice(None, None, step)) if chosen else ((0, 0), slice(0, 0))
    return (start, stop), slice(None, None, step)


def open_orthomosaic(
    path: str | os.PathLike[str],
    *,
    chunks: Any = None,
    dsm: str | os.PathLike[str] | None = None,
    dtm: str | os.PathLike[str] | None = None,
    chm: str | os.PathLike[str] | None = None,
    bands: Bands | None = None,
    scale: float | None = None,
    nodata: Nodata = "auto",
    allow_ungeoreferenced: bool = False,
    gsd_m: float | None = None,
) -> xr.Dataset:
    """Orthomosaic as an xarray data set that reads pixels when they are asked for.

    Parameters
    ----------
    path, bands, scale, nodata, allow_ungeoreferenced, gsd_m
        As of `describe_orthomosaic`.
    chunks : int, dict or "auto", optional
        Chunks of Dask arrays, as of `xarray.Dataset.chunk`; without it the arrays are lazy NumPy ones.
    dsm, dtm, chm : path, optional
        Heights, as of `geoeco.sensors.height_models.describe_heights`.

    Returns
    -------
    xarray.Dataset
        ``image (band, y, x)`` as stored (0 where invalid; value = stored x ``image.attrs["scale"]``), ``valid (y, x)``
        bool and, with heights, ``chm (y, x)`` float32 in metres, NaN where unknown; coordinates ``band``, ``y``, ``x``
        and ``spatial_ref`` (none without georeference); attributes ``gsd_m``, ``mask``, ``date`` and ``source``.
        Heights below 0 are 0, and ``chm.attrs["n_negative"]`` counts them, for which the height model is read once.

    Raises
    ------
    InputError, GridError, ReadError
        As `describe_orthomosaic` and `geoeco.sensors.height_models.describe_heights`.
    """
    mosaic = describe_orthomosaic(
        path, bands=bands, scale=scale, nodata=nodata, allow_ungeoreferenced=allow_ungeoreferenced, gsd_m=gsd_m
    )
    given = any(source is not None for source in (dsm, dtm, chm))
    dataset = _dataset(mosaic, describe_heights(mosaic, chm=chm, dsm=dsm, dtm=dtm) if given else None)
    return dataset if chunks is None else dataset.chunk(chunks)


def _dataset(mosaic: Orthomosaic, heights: HeightModel | None) -> xr.Dataset:
    from odc.geo.xr import xr_coords

    layers = {
        "image": describe(
            _array(("band", "y", "x"), (len(mosaic.bands), *mosaic.shape), mosaic.dtype, partial(_image, mosaic)),
            kind="continuous",
            units="1",
            long_name="orthomosaic",
            scale=mosaic.scale,
        ),
        "valid": _array(("y", "x"), mosaic.shape, bool, partial(_valid, mosaic)).assign_attrs(
            long_name=f"pixel is valid (by {mosaic.mask})"
        ),
    }
    if heights is not None:
        layers["chm"] = describe(
            _array(("y", "x"), mosaic.shape, np.float32, heights.read),
            kind="continuous",
            units="m",
            long_name="height above the ground",
            source=heights.upper.path if heights.lower is None else f"{heights.upper.path} - {heights.lower.path}",
            resampling=heights.resampling,
            n_negative=heights.count_negative(),
        )
    coords: dict[str, Any] = {"band": list(mosaic.bands)}
    if mosaic.georeferenced:
        coords.update({str(name): values for name, values in xr_coords(mosaic.geobox, dims=("y", "x")).items()})
        for layer in layers.values():
            layer.encoding["grid_mapping"] = "spatial_ref"
    layers["image"].encoding["orthomosaic"] = mosaic
    attrs = {"gsd_m": mosaic.gsd_m, "mask": mosaic.mask, "date": mosaic.date, "source": mosaic.path}
    return xr.Dataset(layers, coords=coords, attrs=attrs)


def _array(dims: tuple[str, ...], shape: tuple[int, ...], dtype: npt.DTypeLike, read: _Read) -> xr.DataArray:
    return xr.DataArray(xr.Variable(dims, indexing.LazilyIndexedArray(_Lazy(shape, dtype, read))))


def _image(mosaic: Orthomosaic, y: tuple[int, int], x: tuple[int, int]) -> npt.NDArray[Any]:
    return mosaic.read(y, x)[0]


def _valid(mosaic: Orthomosaic, y: tuple[int, int], x: tuple[int, int]) -> npt.NDArray[Any]:
    return mosaic.read(y, x)[1]


def as_orthomosaic(source: str | os.PathLike[str] | Orthomosaic | xr.Dataset) -> Orthomosaic:
    """Description of a mosaic given as a path, as its description, or as the data set of `open_orthomosaic`.

    Raises
    ------
    InputError
        If the data set is not as `open_orthomosaic` returned it (cut, computed, or from elsewhere).
    """
    if isinstance(source, Orthomosaic):
        return source
    if not isinstance(source, xr.Dataset):
        return describe_orthomosaic(source)
    image = source.get("image")
    mosaic = None if image is None else image.encoding.get("orthomosaic")
    shape = () if image is None else image.shape
    if not isinstance(mosaic, Orthomosaic) or shape != (len(mosaic.bands), *mosaic.shape):
        raise InputError(
            "this data set is not an orthomosaic as it was opened",
            what_to_do="give the data set of open_orthomosaic unchanged, or the path",
        )
    return mosaic
