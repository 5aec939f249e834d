"""What a variable is: its kind, units and nodata, and what follows from its kind.

The kind of a variable (class, continuous, count, angle or date) decides how it is resampled, how its overviews are
made and which nodata value it is stored with. Every room asks here; none decides for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError

__all__ = ["EPOCH", "KINDS", "Kind", "describe", "kind_of", "nodata_for", "overview_resampling", "resampling"]

Kind = Literal["class", "continuous", "count", "angle", "date"]
KINDS: tuple[str, ...] = get_args(Kind)

#: Dates are stored as days since this day (the convention of MCD12Q2).
EPOCH = np.datetime64("1970-01-01", "D")


@dataclass(frozen=True)
class _Rules:
    resampling: str
    overview: str


_RULES: dict[str, _Rules] = {
    "class": _Rules("nearest", "mode"),
    "continuous": _Rules("bilinear", "average"),
    # counts and dates are never averaged: half a cycle or the mean of two cycles' dates means nothing
    "count": _Rules("nearest", "nearest"),
    "angle": _Rules("nearest", "nearest"),
    "date": _Rules("nearest", "nearest"),
}

_NODATA: dict[str, float] = {"uint8": 255, "uint16": 65535, "int8": -128, "int16": -32768, "int32": -2147483648}


def _rules(kind: str) -> _Rules:
    if kind not in _RULES:
        raise InputError(f"unknown kind of variable {kind!r}", what_to_do=f"use one of {', '.join(KINDS)}")
    return _RULES[kind]


def resampling(kind: str) -> str:
    """Name of the GDAL resampling method for warping a variable of this kind."""
    return _rules(kind).resampling


def overview_resampling(kind: str) -> str:
    """Name of the GDAL resampling method for the overviews of a variable of this kind."""
    return _rules(kind).overview


def nodata_for(dtype: npt.DTypeLike) -> float:
    """Nodata value that geoeco stores for a data type (-9999 for floats)."""
    name = np.dtype(dtype).name
    if name.startswith("float"):
        return -9999.0
    if name not in _NODATA:
        raise InputError(
            f"no nodata value is defined for {name}", what_to_do="store as uint8, uint16, int8, int16, int32 or float"
        )
    return _NODATA[name]


def kind_of(array: xr.DataArray) -> str:
    """The ``kind`` attribute of a variable, checked.

    Raises
    ------
    InputError
        If the attribute is missing or not one of `KINDS`.
    """
    kind = array.attrs.get("kind")
    if kind not in KINDS:
        raise InputError(
            f"variable {array.name!r} has kind={kind!r}",
            what_to_do=f"set array.attrs['kind'] to one of {', '.join(KINDS)}",
        )
    return str(kind)


def describe(array: xr.DataArray, *, kind: str, units: str, long_name: str, **more: Any) -> xr.DataArray:
    """Return `array` with the attributes that every geoeco variable carries.

    Parameters
    ----------
    array : xarray.DataArray
    kind : str
        One of `KINDS`.
    units : str
        UCUM/CF unit, ``"1"`` for ratios, ``""`` for classes.
    long_name : str
    **more
        Further attributes.
    """
    _rules(kind)
    return array.assign_attrs(kind=kind, units=units, long_name=long_name, **more)
