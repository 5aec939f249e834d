"""``.geoeco`` on xarray objects: a few verbs for notebooks, each one call to a function of a room.

Registered when this module is imported, which `geoeco.open_cube`, ``geoeco.cubes`` and ``geoeco.phenology`` do on
first use. Not for what ``.rio`` and ``.odc`` do already (reprojection, clipping, CRS).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from geoeco.errors import InputError
from geoeco.variables import describe

__all__ = ["CubeAccessor", "VariableAccessor"]

#: The vegetation indices of `geoeco.phenology`, by name.
INDICES = ("evi2", "ndvi", "evi")

#: Reflectance that is shown as white: bare soil stays bright, vegetation keeps its shades.
WHITE = 0.3


def _valid_fraction(variable: xr.DataArray, dim: str) -> xr.DataArray:
    if dim not in variable.dims:
        raise InputError(
            f"variable {variable.name!r} has no dimension {dim!r}",
            what_to_do=f"use one of {', '.join(str(d) for d in variable.dims)}",
        )
    valid = variable.notnull()
    if "band" in valid.dims and dim != "band":
        valid = valid.all("band")
    fraction = valid.mean(dim).astype("float32")
    return describe(fraction, kind="continuous", units="1", long_name=f"fraction of valid values along {dim}")


@xr.register_dataset_accessor("geoeco")
class CubeAccessor:
    """``cube.geoeco``: verbs for a cube as `geoeco.cubes.load` and `geoeco.open_cube` return it.

    Parameters
    ----------
    dataset : xarray.Dataset
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def _reflectance(self) -> xr.DataArray:
        if "reflectance" not in self._dataset:
            raise InputError(
                "this data set is no cube: it has no variable 'reflectance'",
                what_to_do="use a cube of geoeco.cubes.load or geoeco.open_cube",
            )
        return self._dataset["reflectance"]

    def index(self, name: str) -> xr.DataArray:
        """Vegetation index of every date.

        Parameters
        ----------
        name : {"evi2", "ndvi", "evi"}

        Returns
        -------
        xarray.DataArray, shape (time, y, x)

        Raises
        ------
        geoeco.errors.InputError
            If there is no such index.
        """
        from geoeco import phenology

        if name not in INDICES:
            raise InputError(f"there is no index {name!r}", what_to_do=f"use one of {', '.join(INDICES)}")
        self._reflectance()
        return {"evi2": phenology.evi2, "ndvi": phenology.ndvi, "evi": phenology.evi}[name](self._dataset)

    def season(self, **settings: Any) -> xr.Dataset:
        """Season metrics of every pixel: `geoeco.phenology.metrics` with the same settings.

        Returns
        -------
        xarray.Dataset, dimensions (year, cycle, y, x)
        """
        from geoeco import phenology

        self._reflectance()
        return phenology.metrics(self._dataset, **settings)

    def valid_fraction(self, dim: str = "time") -> xr.DataArray:
        """Fraction of dates on which all bands of a pixel are valid.

        Parameters
        ----------
        dim : str
            The dimension to count along.

        Returns
        -------
        xarray.DataArray
            Float32 in 0..1; shape (y, x) where `dim` is ``"time"``.
        """
        return _valid_fraction(self._reflectance(), dim)

    def rgb(self, white: float = WHITE) -> xr.DataArray:
        """Red, green and blue for ``.plot.imshow(rgb="band")``.

        Parameters
        ----------
        white : float
            Reflectance that is shown as white.

        Returns
        -------
        xarray.DataArray
            Bands B04, B03, B02 of the reflectance, scaled to 0..1, NaN where invalid.

        Raises
        ------
        geoeco.errors.InputError
            If one of the three bands is missing.
        """
        reflectance = self._reflectance()
        missing = [band for band in ("B04", "B03", "B02") if band not in reflectance["band"].values]
        if missing:
            raise InputError(
                f"no true-colour picture without {', '.join(missing)}", what_to_do="load the bands B02, B03 and B04"
            )
        picture = (reflectance.sel(band=["B04", "B03", "B02"]) / white).clip(0.0, 1.0)
        return describe(picture, kind="continuous", units="1", long_name="true colour")

    def to_cog(self, path: str | Path, **settings: Any) -> Any:
        """Write the variables as cloud-optimised GeoTIFF: `geoeco.outputs.write_cog` with the same settings."""
        from geoeco.outputs import write_cog

        return write_cog(self._dataset, path, **settings)


@xr.register_dataarray_accessor("geoeco")
class VariableAccessor:
    """``variable.geoeco``: verbs for one variable.

    Parameters
    ----------
    variable : xarray.DataArray
    """

    def __init__(self, variable: xr.DataArray) -> None:
        self._variable = variable

    @property
    def classes(self) -> dict[int, str]:
        """Names of the classes by code, from the CF attributes ``flag_values`` and ``flag_meanings``."""
        from geoeco.outputs import ClassTable

        table = ClassTable.from_attrs(self._variable)
        if table is None:
            raise InputError(
                f"variable {self._variable.name!r} has no table of classes",
                what_to_do="set the CF attributes flag_values and flag_meanings",
            )
        return {entry.code: entry.name for entry in table}

    def valid_fraction(self, dim: str = "time") -> xr.DataArray:
        """Fraction of valid values along a dimension; of all bands at once where there are bands."""
        return _valid_fraction(self._variable, dim)

    def to_cog(self, path: str | Path, **settings: Any) -> Any:
        """Write as cloud-optimised GeoTIFF: `geoeco.outputs.write_cog` with the same settings."""
        from geoeco.outputs import write_cog

        return write_cog(self._variable, path, **settings)
