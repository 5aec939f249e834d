"""Bands of an orthomosaic: their names, what their numbers mean, and what says which pixels are valid.

Not about where the pixels lie: that is `geoeco.sensors.mosaic_grids`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as RasterWindow

from geoeco.errors import InputError, ReadError

__all__ = ["Bands", "MaskSource", "Nodata", "bands_of", "dtype_of", "mask_of", "scale_of"]

_COLOURS = {
    ColorInterp.red: "red",
    ColorInterp.green: "green",
    ColorInterp.blue: "blue",
    ColorInterp.pan: "pan",
    ColorInterp.coastal: "coastal",
    ColorInterp.rededge: "rededge",
    ColorInterp.nir: "nir",
    ColorInterp.swir: "swir",
    ColorInterp.lwir: "lwir",
    ColorInterp.tir: "lwir",
}
_DESCRIPTIONS = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "near_infrared": "nir",
    "nearinfrared": "nir",
    "near_ir": "nir",
    "red_edge": "rededge",
    "re": "rededge",
    "panchromatic": "pan",
    "coastal_blue": "coastal",
    "thermal": "lwir",
}

MaskSource = Literal["internal", "alpha", "nodata", "rule", "none"]
Bands = Sequence[str | int] | Mapping[str, int]
Nodata = Literal["auto"] | float | Sequence[float] | None


def _band_name(file: Any, index: int) -> str:
    """Name of a band: of its description where that names a colour, of its colour, of its description, its number."""
    description = re.sub(r"[^a-z0-9]+", "_", (file.descriptions[index - 1] or "").strip().lower()).strip("_")
    known = _DESCRIPTIONS.get(description, description)
    if known in _COLOURS.values():
        return known
    return _COLOURS.get(file.colorinterp[index - 1]) or description or f"band{index}"


def bands_of(file: Any, wanted: Bands | None, where: str) -> tuple[tuple[str, ...], tuple[int, ...], int | None]:
    """Names and numbers of the bands asked for, and the number of the alpha band."""
    alphas = [i for i in file.indexes if file.colorinterp[i - 1] == ColorInterp.alpha]
    own: dict[str, int] = {}
    for index in file.indexes:
        if index not in alphas:
            name = _band_name(file, index)
            own[name if name not in own else f"{name}_{index}"] = index
    alpha = alphas[0] if alphas else None
    if isinstance(wanted, Mapping):
        chosen = {str(name): int(index) for name, index in wanted.items()}
        alpha = next((index for index in alphas if index not in chosen.values()), None)
    elif wanted is None:
        chosen = own
    else:
        if isinstance(wanted, str):
            raise InputError(f"bands are a list of names, not {wanted!r}", what_to_do=f"write [{wanted!r}]")
        known: dict[str | int, int] = {index: index for index in own.values()}
        known.update(own)
        unknown = [band for band in wanted if band not in known]
        if unknown:
            raise InputError(
                f"the mosaic has no band {unknown[0]!r}",
                where=where,
                what_to_do=f"its bands are {', '.join(f'{name} ({index})' for name, index in own.items())};"
                " a mapping such as {'nir': 4} names others",
            )
        by_index = {index: name for name, index in own.items()}
        chosen = {by_index[known[band]]: known[band] for band in wanted}
        if len(chosen) < len(wanted):
            raise InputError("a band is asked for twice", where=where)
    if not chosen:
        raise InputError("no band is left to read", where=where, what_to_do="name at least one band")
    if bad := [index for index in chosen.values() if index not in file.indexes]:
        raise InputError(f"the mosaic has no band number {bad[0]}: it has {file.count}", where=where)
    if len(set(chosen.values())) < len(chosen):
        raise InputError("two names are given to one band", where=where)
    return tuple(chosen), tuple(chosen.values()), alpha


def dtype_of(file: Any, indexes: Sequence[int], where: str, *, codes: bool) -> str:
    """NumPy type of the bands, which must be one; a colour table is refused unless the values are codes."""
    types = sorted({str(file.dtypes[index - 1]) for index in indexes})
    if len(types) > 1:
        raise ReadError(f"the bands are of several types: {', '.join(types)}", where=where, code="asset-layout")
    if np.dtype(types[0]).kind not in "iuf":
        raise ReadError(f"values of type {types[0]} are no image", where=where, code="asset-layout")
    if not codes and file.colorinterp[indexes[0] - 1] == ColorInterp.palette:
        raise ReadError(
            "the values are numbers of a colour table, not colours",
            where=where,
            what_to_do="expand it: gdal_translate -expand rgb IN OUT.tif",
            code="asset-layout",
        )
    return types[0]


def scale_of(file: Any, indexes: Sequence[int], dtype: str, given: float | None, where: str) -> float:
    """Factor from stored values to values of unit "1": the one given, the file's own, or that of the type."""
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise InputError(f"a scale is a positive number, not {given}", where=where)
        return float(given)
    scales, offsets = ({float(values[index - 1]) for index in indexes} for values in (file.scales, file.offsets))
    if len(scales) > 1 or offsets != {0.0}:
        raise InputError(
            "the file's bands have several scales or an offset",
            where=where,
            what_to_do="give `scale`, or rescale the file: gdal_translate -unscale -ot Float32 IN OUT.tif",
        )
    if (own := scales.pop()) != 1.0:
        return own
    defaults = {"uint8": 1 / 255, "uint16": 1 / 65535, "float16": 1.0, "float32": 1.0, "float64": 1.0}
    if dtype not in defaults:
        raise InputError(
            f"nothing says what values of {dtype} mean",
            where=where,
            what_to_do="give `scale`, such as 0.0001 for reflectance times 10000",
        )
    return defaults[dtype]


def mask_of(
    file: Any, alpha: int | None, rule: Nodata, dtype: str, where: str
) -> tuple[MaskSource, tuple[int, ...], tuple[float, ...]]:
    """Where validity comes from, the bands it reads, and the values that mark what is invalid."""
    colours = tuple(index for index in file.indexes if index != alpha)
    tags = [file.nodatavals[index - 1] for index in colours]
    stated = all(tag is not None and _holds(dtype, tag) for tag in tags)
    own: MaskSource = "nodata" if stated and rule is not None else "none"
    if alpha is not None:
        own = "alpha"
    if MaskFlags.per_dataset in file.mask_flag_enums[0] and MaskFlags.alpha not in file.mask_flag_enums[0]:
        own = "internal"
    if own == "alpha":
        _check_alpha(file, alpha or 0, where)
    values = tuple(float(tag) for tag in tags) if own == "nodata" else ()
    if rule is None or isinstance(rule, str):
        if isinstance(rule, str) and rule != "auto":
            raise InputError(f"nodata is 'auto', a value, one value for each band or None, not {rule!r}")
        return own, {"alpha": (alpha or 0,), "nodata": colours}.get(own, ()), values
    given = tuple(float(v) for v in rule) if isinstance(rule, Sequence) else (float(rule),) * len(colours)
    if len(given) != len(colours):
        raise InputError(f"nodata has {len(given)} values for {len(colours)} bands", where=where)
    never = next((value for value in given if not _holds(dtype, value)), None)
    if never is not None:
        raise InputError(
            f"no pixel of {dtype} can have the value {never:g}, which nodata names",
            where=where,
            what_to_do="give a value that pixels without data have, or null where all are valid",
        )
    if own != "none" and repr(given) != repr(values):
        story = {"internal": "an internal mask", "alpha": "an alpha band", "nodata": f"nodata {values[:1]}"}[own]
        raise InputError(
            f"the file says itself which pixels are valid ({story}): the rule nodata={rule} would not be used",
            where=where,
            what_to_do="leave `nodata` out; where the file is wrong, correct its tag: gdal_edit.py -unsetnodata",
        )
    return ("rule" if own == "none" else own), colours, given


def _check_alpha(file: Any, index: int, where: str) -> None:
    """Refuse an alpha band that holds an image: GDAL calls the fourth band of 8 bits alpha unless told otherwise."""
    step_y, step_x = max(1, file.height // 4), max(1, file.width // 4)
    looks = [
        file.read(index, window=RasterWindow(x, y, min(64, file.width - x), min(64, file.height - y)))
        for y in range(0, file.height, step_y)
        for x in range(0, file.width, step_x)
    ]
    values = np.concatenate([look.ravel() for look in looks])
    ends = (values == 0) | (values == values.max())
    if ends.mean() < 0.5 and len(np.unique(values)) > 16:
        raise InputError(
            f"band {index} is called alpha but holds an image",
            where=where,
            what_to_do="name the bands by a mapping, such as bands={'red': 1, 'green': 2, 'blue': 3, 'nir': 4}",
        )


def _holds(dtype: str, value: float) -> bool:
    """Whether a type can hold a value, so that the value can mark a pixel."""
    if np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(dtype)
    return math.isfinite(value) and limits.min <= value <= limits.max and value == int(value)
