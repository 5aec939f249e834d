"""Vegetation indices from a reflectance cube: EVI2, NDVI and EVI.

Formulas on reflectance in 0..1, never on digital numbers: the constants of EVI and EVI2 mean something only there,
and no index is invariant to an offset that was not taken off. Not a collection of indices: these three carry the
phenology; spyndex has the rest.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.variables import describe

__all__ = ["evi", "evi2", "ndvi"]

#: Reflectance is at most a little above 1 (snow, glint, steep slopes); beyond this the values are digital numbers.
LARGEST_REFLECTANCE = 2.0


def evi2(cube: xr.Dataset | xr.DataArray, *, red: str = "B04", nir: str = "B08") -> xr.DataArray:
    """Two-band enhanced vegetation index, 2.5 (N - R) / (N + 2.4 R + 1).

    Parameters
    ----------
    cube : xarray.Dataset or xarray.DataArray
        A cube with ``reflectance (time, band, y, x)`` in 0..1, or that array itself.
    red, nir : str
        Names of the bands.

    Returns
    -------
    xarray.DataArray
        ``(time, y, x)`` float32, unit 1, NaN where a band is NaN or the denominator is not positive.

    Raises
    ------
    InputError
        If a band is missing or the values are digital numbers.

    References
    ----------
    Jiang, Huete, Didan & Miura (2008), Remote Sensing of Environment 112, 3833-3845, equation 10.
    """
    n, r = _bands(cube, (nir, red))
    return _index("evi2", "two-band enhanced vegetation index", _evi2, n, r)


def ndvi(cube: xr.Dataset | xr.DataArray, *, red: str = "B04", nir: str = "B08") -> xr.DataArray:
    """Normalised difference vegetation index, (N - R) / (N + R).

    Parameters and errors as in `evi2`.

    References
    ----------
    Tucker (1979), Remote Sensing of Environment 8, 127-150.
    """
    n, r = _bands(cube, (nir, red))
    return _index("ndvi", "normalised difference vegetation index", _ndvi, n, r)


def evi(cube: xr.Dataset | xr.DataArray, *, blue: str = "B02", red: str = "B04", nir: str = "B08") -> xr.DataArray:
    """Enhanced vegetation index, 2.5 (N - R) / (N + 6 R - 7.5 B + 1).

    Over clouds and snow the blue term can bring the denominator near zero; such values (denominator below 0.1) are
    NaN. Parameters and errors as in `evi2`.

    References
    ----------
    Huete et al. (2002), Remote Sensing of Environment 83, 195-213, equation 2.
    """
    n, r, b = _bands(cube, (nir, red, blue))
    return _index("evi", "enhanced vegetation index", _evi, n, r, b)


def red_and_nir(cube: xr.Dataset) -> list[xr.DataArray]:
    """The two bands of a cube ``(time, y, x)`` whose sum is its brightness."""
    return _bands(cube, ("B04", "B08"))


def _evi2(n: Any, r: Any) -> Any:
    return _ratio(2.5 * (n - r), n + 2.4 * r + 1.0, 0.0)


def _ndvi(n: Any, r: Any) -> Any:
    return _ratio(n - r, n + r, 0.0)


def _evi(n: Any, r: Any, b: Any) -> Any:
    return _ratio(2.5 * (n - r), n + 6.0 * r - 7.5 * b + 1.0, 0.1)


def _ratio(above: Any, below: Any, least: float) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > least, above / below, np.nan).astype(np.float32)


def _index(name: str, long_name: str, formula: Any, *bands: xr.DataArray) -> xr.DataArray:
    def checked(*arrays: npt.NDArray[np.floating[Any]]) -> Any:
        for array in arrays:
            _refuse_digital_numbers(array)
        return formula(*arrays)

    # the attributes of coordinates are kept or dropped with those of the values: spatial_ref holds the CRS in its own
    values = xr.apply_ufunc(checked, *bands, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True)
    return describe(values.drop_attrs(deep=False).rename(name), kind="continuous", units="1", long_name=long_name)


def _bands(cube: xr.Dataset | xr.DataArray, names: tuple[str, ...]) -> list[xr.DataArray]:
    if isinstance(cube, xr.Dataset):
        if "reflectance" not in cube:
            raise InputError(
                f"the dataset has no variable 'reflectance', only {_listed(cube.data_vars)}",
                what_to_do="give a cube as geoeco.cubes.load or geoeco.open_cube returns it",
            )
        cube = cube["reflectance"]
    if "band" not in cube.dims:
        raise InputError(
            f"the cube has the dimensions {_listed(cube.dims)}, without 'band'",
            what_to_do="give reflectance (time, band, y, x)",
        )
    present = [str(b) for b in cube["band"].values]
    missing = [name for name in names if name not in present]
    if missing:
        raise InputError(
            f"the cube lacks the band {', '.join(missing)}; it has {', '.join(present)}",
            what_to_do="load these bands, or name others by the arguments red, nir and blue",
        )
    chosen = [cube.isel(band=present.index(name), drop=True) for name in names]
    for name, band in zip(names, chosen, strict=True):
        _refuse_integers(band, name)
    return [band if band.dtype.kind == "f" else band.astype(np.float32) for band in chosen]


def _refuse_integers(band: xr.DataArray, name: str) -> None:
    if band.dtype.kind in "iu":
        raise InputError(
            f"band {name} holds {band.dtype} values, not reflectance in 0..1",
            what_to_do="turn digital numbers into reflectance first (geoeco.sensors.sentinel2.radiometry)",
        )


def _refuse_digital_numbers(values: npt.NDArray[np.floating[Any]]) -> None:
    """Refuse an array that lies far above 1 as a whole; runs on each block, so that lazy cubes are checked too."""
    # the median of a thin sample is enough to tell 0.3 from 3000, and single bright outliers do not matter
    sample = values.reshape(-1)
    sample = sample[:: max(1, sample.size // 10_000)]
    sample = sample[np.isfinite(sample)]
    if sample.size and float(np.median(sample)) > LARGEST_REFLECTANCE:
        raise InputError(
            f"a band has a median of {float(np.median(sample)):.4g}: these are digital numbers, not reflectance",
            what_to_do="turn digital numbers into reflectance first (geoeco.sensors.sentinel2.radiometry)",
        )


def _listed(names: Any) -> str:
    listed: list[Hashable] = list(names)
    return ", ".join(str(n) for n in listed) or "none"
