"""Where a map's pixels come from: an orthomosaic's file, or an array that is in memory or read as it is needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import odc.geo.xr  # noqa: F401  (registers .odc)
import xarray as xr
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.mapping.lattice import Span

__all__ = ["ArrayPixels", "Pixels", "pixels_of"]


class Pixels(Protocol):
    """What is mapped; `geoeco.sensors.orthomosaic.Orthomosaic` is one.

    ``value = stored x scale``.
    """

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""

    @property
    def scale(self) -> float:
        """Value of one stored unit."""

    @property
    def geobox(self) -> GeoBox:
        """Grid of the pixels."""

    @property
    def gsd_m(self) -> float:
        """Metres on the ground along a pixel."""

    def read(self, y: Span, x: Span) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Stored numbers ``(band, y, x)`` and validity ``(y, x)`` of rows and columns that may lead beyond the grid.

        Invalid pixels and those beyond the grid are 0.
        """


@dataclass(frozen=True)
class ArrayPixels:
    """Pixels of an xarray object.

    Attributes
    ----------
    image : xarray.DataArray
        ``(band, y, x)``.
    valid : xarray.DataArray, optional
        ``(y, x)`` bool; where every band is a finite number when not given.
    """

    image: xr.DataArray
    valid: xr.DataArray | None = None

    @classmethod
    def of(cls, source: xr.Dataset | xr.DataArray) -> ArrayPixels:
        """Take what `geoeco.sensors.orthomosaic.open_orthomosaic` gives, or an image in the units of its values.

        Raises
        ------
        InputError
            If dimensions or names of bands are missing.
        GridError
            If it has no even grid with a CRS.
        """
        if isinstance(source, xr.Dataset):
            if "image" not in source:
                raise InputError(
                    f"a dataset with {', '.join(map(str, source.data_vars)) or 'no variables'} is no orthomosaic",
                    what_to_do="give a dataset of open_orthomosaic, or its image",
                )
            image = source["image"]
            if "gsd_m" in source.attrs:
                image = image.assign_attrs(gsd_m=source.attrs["gsd_m"])
            found = cls(image, source.get("valid"))
        else:
            found = cls(source)
        image = found.image
        if set(image.dims) != {"band", "y", "x"}:
            raise InputError(f"an image has the dimensions (band, y, x), not {tuple(image.dims)}")
        if "band" not in image.coords:
            raise InputError("the bands of the image have no names", what_to_do="give the coordinate band")
        if not isinstance(image.odc.geobox, GeoBox) or image.odc.geobox.crs is None:
            raise GridError(
                "the image has no even grid with a CRS",
                what_to_do="give imagery with CRS and coordinates y and x",
            )
        return cls(image.transpose("band", "y", "x"), found.valid)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(str(band) for band in self.image["band"].values)

    @property
    def scale(self) -> float:
        """Value of one stored unit."""
        return float(self.image.attrs.get("scale", 1.0))

    @property
    def units(self) -> str:
        """Of the values."""
        return str(self.image.attrs.get("units", "1"))

    @property
    def geobox(self) -> GeoBox:
        """Grid of the pixels."""
        box: GeoBox = self.image.odc.geobox
        return box

    @property
    def gsd_m(self) -> float:
        """Metres along a pixel: what the dataset says, else that of the grid."""
        return float(self.image.attrs.get("gsd_m", abs(self.geobox.resolution.x)))

    def read(self, y: Span, x: Span) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Stored numbers ``(band, y, x)`` and validity ``(y, x)``; 0 and False beyond the grid and where invalid."""
        rows, cols = self.image.sizes["y"], self.image.sizes["x"]
        top, bottom, left, right = max(y[0], 0), min(y[1], rows), max(x[0], 0), min(x[1], cols)
        stored = np.zeros((self.image.sizes["band"], y[1] - y[0], x[1] - x[0]), self.image.dtype)
        valid = np.zeros(stored.shape[1:], bool)
        if top < bottom and left < right:
            inside = self.image[:, top:bottom, left:right].to_numpy()
            if self.valid is not None:
                there = self.valid[top:bottom, left:right].to_numpy().astype(bool)
            else:
                there = np.isfinite(inside).all(axis=0)
            target = slice(top - y[0], bottom - y[0]), slice(left - x[0], right - x[0])
            stored[(slice(None), *target)] = np.where(there, inside, stored.dtype.type(0))
            valid[target] = there
        return stored, valid


def pixels_of(source: str | os.PathLike[str] | xr.Dataset | xr.DataArray | Pixels) -> Pixels:
    """Pixels of a file, of what `geoeco.sensors.orthomosaic` gives of it, or of an image."""
    if isinstance(source, str | os.PathLike):
        from geoeco.sensors.orthomosaic import describe_orthomosaic

        return describe_orthomosaic(source)
    if isinstance(source, xr.Dataset | xr.DataArray):
        return ArrayPixels.of(source)
    return source
