"""What a variable is: its kind, units and nodata, and what follows from its kind.

The kind of a variable (class, continuous, count, angle or date) decides how it is resampled, how its overviews are
made and which nodata value it is stored with; a variable of classes carries their names and colours. Every room asks
here; none decides for itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError

__all__ = [
    "EPOCH",
    "KINDS",
    "UNPRINTABLE",
    "Kind",
    "check_class_names",
    "class_flags",
    "class_names",
    "describe",
    "kind_of",
    "nodata_for",
    "overview_resampling",
    "resampling",
]

Kind = Literal["class", "continuous", "count", "angle", "date"]
KINDS: tuple[str, ...] = get_args(Kind)

#: Dates are stored as days since this day (the convention of MCD12Q2).
EPOCH = np.datetime64("1970-01-01", "D")
#: What no XML document can hold (XML 1.0, section 2.2), and so no style and no attribute table.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


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


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuse names of classes that a map cannot be told apart by.

    Parameters
    ----------
    names : sequence of str
    where : str
        What has these classes, for the message.

    Raises
    ------
    InputError
        If a name is empty, stands twice (blanks at its ends and how many there are in a row do not count), or has
        characters that no XML document can hold.
    """
    plain = [" ".join(name.split()) for name in names]
    twice = sorted({name for name in plain if plain.count(name) > 1})
    if not all(plain):
        fault = "a class has no name"
    elif twice:
        fault = f"classes have the same name twice: {', '.join(twice)}"
    elif any(UNPRINTABLE.search(name) for name in names):
        fault = "control characters stand in the name of a class"
    else:
        return
    raise InputError(fault, where=where, what_to_do="give each class a name of its own", code="classes")


def class_flags(codes: Sequence[int], names: Sequence[str], colours: Sequence[str] = ()) -> dict[str, Any]:
    """Attributes that tell the classes of a variable.

    Parameters
    ----------
    codes : sequence of int
    names : sequence of str
        Of each code.
    colours : sequence of str
        ``#rrggbb`` of each code, or none.

    Returns
    -------
    dict
        The CF attributes ``flag_values`` and ``flag_meanings``, words without blanks, and ``flag_colors`` where there
        are colours; beside them ``class_names``, the names as they are.

    References
    ----------
    CF conventions 1.11, section 3.5.
    """
    plain = [" ".join(name.split()) for name in names]
    return {
        "flag_values": [int(code) for code in codes],
        "flag_meanings": " ".join(name.replace(" ", "_") for name in plain),
        **({"flag_colors": " ".join(colours)} if colours else {}),
        "class_names": plain,
    }


def class_names(array: xr.DataArray) -> dict[int, str]:
    """Names of the classes of a variable by code: the inverse of `class_flags`; empty where it carries none.

    Where there are CF attributes alone, underscores become blanks.

    Raises
    ------
    InputError
        If there are more codes than names, or fewer.
    """
    values, meanings = array.attrs.get("flag_values"), array.attrs.get("flag_meanings")
    if values is None or meanings is None:
        return {}
    if isinstance(values, str):
        values = values.replace(",", " ").split()
    codes = [int(value) for value in np.atleast_1d(np.asarray(values)).tolist()]
    words = meanings.split() if isinstance(meanings, str) else [str(word) for word in meanings]
    if len(codes) != len(words):
        raise InputError(
            f"variable {array.name!r} has {len(codes)} flag_values and {len(words)} flag_meanings",
            what_to_do="write the blanks inside a meaning as underscores",
        )
    names = [str(name) for name in np.atleast_1d(array.attrs.get("class_names", [])).tolist()]
    if [name.replace(" ", "_") for name in names] != words:
        # not there, or of other meanings than those that somebody wrote since
        names = [word.replace("_", " ") for word in words]
    return dict(zip(codes, names, strict=True))
