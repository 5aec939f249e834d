"""How a variable is stored in a GeoTIFF: what follows from its kind, its grid and the caller's wishes.

Decides everything before a pixel is written, and turns values into stored numbers; writes no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401  (registers .rio)
import xarray as xr
from affine import Affine
from rasterio.crs import CRS

from geoeco.errors import GridError, InputError
from geoeco.outputs.classes import ClassTable
from geoeco.variables import EPOCH, kind_of, nodata_for, overview_resampling

__all__ = ["Band", "Layout", "bands_of", "layout_of"]

Array = npt.NDArray[Any]

_STORABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
#: How far, in pixels, a coordinate may lie from its place on an even grid.
_UNEVEN = 0.01


@dataclass(frozen=True)
class Band:
    """One band: its name and, for spectral bands, its centre wavelength and width in nm."""

    name: str
    wavelength: float | None = None
    fwhm: float | None = None


@dataclass(frozen=True)
class Layout:
    """Everything that is known about a GeoTIFF before its pixels.

    Attributes
    ----------
    bands : tuple of Band
    shape : tuple of int
        Rows and columns.
    crs : rasterio.crs.CRS
    transform : affine.Affine
        North-up.
    flip : tuple of bool
        Whether the rows, the columns of the given object run the other way.
    kind, units, name, long_name : str
    dtype : numpy.dtype
    nodata : float
        In stored numbers.
    scale, offset : float
        value = stored x scale + offset.
    classes : ClassTable or None
    source_nodata : float or None
        Value that stands for nodata in what is given, beside NaN and NaT.
    """

    bands: tuple[Band, ...]
    shape: tuple[int, int]
    crs: CRS
    transform: Affine
    flip: tuple[bool, bool]
    kind: str
    units: str
    name: str
    long_name: str
    dtype: np.dtype[Any]
    nodata: float
    scale: float
    offset: float
    classes: ClassTable | None
    source_nodata: float | None

    @property
    def scaled(self) -> bool:
        """Whether stored numbers differ from values."""
        return self.scale != 1.0 or self.offset != 0.0

    @property
    def overview(self) -> str:
        """Method of the overviews."""
        return overview_resampling(self.kind)

    @property
    def spectral(self) -> bool:
        """Whether every band has a wavelength."""
        return all(band.wavelength is not None for band in self.bands)

    def encode(self, values: Array) -> Array:
        """Turn values into stored numbers.

        NaN, NaT and the declared nodata value of the source become nodata. Integers without a declared nodata value
        are nodata where they equal the nodata value of the file.

        Parameters
        ----------
        values : numpy.ndarray, (band, y, x)
            In the units of the variable; datetime64 for dates. Not changed; returned itself where nothing differs.

        Raises
        ------
        InputError
            If a value is infinite, does not fit the data type, is no whole number where it must be, or is valid and
            equals the nodata value.
        """
        integers = values.dtype.kind in "iub"
        missing: Array | None = None
        if values.dtype.kind == "M":
            missing = np.isnat(values)
            values = values.astype("datetime64[D]").astype(np.int64) - int(EPOCH.astype(np.int64))
        elif values.dtype.kind == "f":
            missing = self._not_numbers(values)
        elif values.dtype.kind == "b":
            values = values.astype(np.uint8)
        elif not integers:
            raise InputError(f"variable {self.name!r} holds {values.dtype}, not numbers")
        # the nodata value of the source is that of the file: it stays as it is
        kept = self.source_nodata == self.nodata and values.dtype == self.dtype and not self.scaled
        if self.source_nodata is not None and not kept:
            declared = values == self.source_nodata
            missing = declared if missing is None else missing | declared
        if missing is not None and not missing.any():
            missing = None
        stored = self._fit(values if missing is None else np.where(missing, values.dtype.type(0), values))
        if not kept and (not integers or self.source_nodata is not None):
            clash = stored == self.dtype.type(self.nodata)
            if missing is not None:
                clash &= ~missing
            if clash.any():
                raise InputError(
                    f"{int(clash.sum())} valid values of {self.name!r} equal the nodata value {self.nodata:g}",
                    what_to_do="declare that value as nodata (rio.write_nodata), or choose another nodata= or dtype=",
                )
        if missing is not None:
            stored[missing] = self.dtype.type(self.nodata)
        return stored

    def _not_numbers(self, values: Array) -> Array | None:
        """Where a value is NaN; None if it is so nowhere."""
        finite = np.isfinite(values)
        if finite.all():
            return None
        missing: Array = np.isnan(values)
        infinite = ~(finite | missing)
        if self.source_nodata is not None:
            infinite &= values != self.source_nodata
        if infinite.any():
            raise InputError(
                f"{int(infinite.sum())} values of {self.name!r} are infinite",
                what_to_do="mask them (NaN) where they arise",
            )
        return missing

    def _fit(self, values: Array) -> Array:
        if self.scaled:
            values = (values.astype(np.float64) - self.offset) / self.scale
        if values.dtype == self.dtype:
            return values
        if self.dtype.kind in "iu":
            if values.dtype.kind == "f":
                whole = np.rint(values)
                if self.kind in ("class", "count") and not np.array_equal(whole, values):
                    raise InputError(f"{self.name!r} is a {self.kind} and holds values that are not whole numbers")
                values = whole
            limits = np.iinfo(self.dtype)
            fits = not values.size or (values.min() >= limits.min and values.max() <= limits.max)
            stored = values.astype(self.dtype) if fits else values
        else:
            with np.errstate(over="ignore"):
                stored = values.astype(self.dtype)
            fits = bool(np.isfinite(stored).all())
        if not fits:
            scaling = f" at scale {self.scale:g}, offset {self.offset:g}" if self.scaled else ""
            raise InputError(
                f"stored values {values.min():g}..{values.max():g} of {self.name!r} do not fit {self.dtype}{scaling}",
                what_to_do="choose a wider dtype=, another scale= and offset=, or declare the nodata value of the data",
            )
        return stored


def bands_of(data: xr.DataArray | xr.Dataset) -> list[xr.DataArray]:
    """List the arrays of an object, ``(y, x)`` each or one ``(band, y, x)``, checked for dimensions.

    Raises
    ------
    InputError
        If it is empty, has more dimensions, or mixes kinds, units, nodata values, CRSs or data types.
    """
    if isinstance(data, xr.DataArray):
        if data.ndim not in (2, 3):
            raise InputError(
                f"variable {data.name!r} has dimensions {data.dims}",
                what_to_do="give (y, x) or (band, y, x); select or stack the other dimensions first",
            )
        return [data]
    variables = [data[name] for name in data.data_vars]
    if not variables:
        raise InputError("the Dataset has no variables")
    for variable in variables:
        if variable.dims != variables[0].dims or variable.ndim != 2:
            raise InputError(
                f"variable {variable.name!r} of the Dataset has dimensions {variable.dims}",
                what_to_do="give a Dataset of (y, x) variables on one grid",
            )
    for key in ("kind", "units", "_FillValue"):
        values = {str(variable.attrs.get(key)) for variable in variables}
        if len(values) > 1:
            raise InputError(
                f"the variables of the Dataset differ in {key}: {', '.join(sorted(values))}",
                what_to_do="write one file per kind, unit and nodata value, and link them in one STAC item",
            )
    # each variable may name a grid mapping of its own
    if len({str(variable.rio.crs) for variable in variables}) > 1:
        raise InputError(
            "the variables of the Dataset differ in CRS",
            what_to_do="bring them to one grid (odc.reproject), or write several files",
        )
    if len({variable.dtype for variable in variables}) > 1:
        raise InputError(
            "the variables of the Dataset differ in data type", what_to_do="convert them to one, or write several files"
        )
    return variables


def _band_names(array: xr.DataArray) -> tuple[Band, ...]:
    name = str(array.name or "band")
    if array.ndim == 2:
        return (Band(name),)
    dim = array.dims[0]
    labels: Array = array[dim].to_numpy() if dim in array.coords else np.arange(1, array.sizes[dim] + 1)
    if labels.dtype.kind == "M":
        labels = np.datetime_as_string(labels, unit="D")
    spectral: dict[str, Array] = {}
    for key in ("wavelength", "fwhm"):
        if key in array.coords and array[key].dims == (dim,):
            spectral[key] = array[key].to_numpy().astype(np.float64)
    bands = []
    for position, label in enumerate(labels.tolist()):
        if dim == "wavelength":
            text = f"{label:g} nm"
        else:
            text = str(label) if isinstance(label, str) and dim == "band" else f"{name}_{label}"
        own = {key: float(values[position]) for key, values in spectral.items() if math.isfinite(values[position])}
        bands.append(Band(text, own.get("wavelength"), own.get("fwhm")))
    return tuple(bands)


def _axis(array: xr.DataArray, dim: str, declared: tuple[float, float] | None) -> tuple[float, float] | None:
    """Edge and signed pixel size of one axis; `declared` is what spatial_ref says."""
    if dim not in array.coords:
        return declared
    centres = array[dim].to_numpy().astype(np.float64)
    if not np.isfinite(centres).all():
        raise GridError(f"coordinate {dim!r} of {array.name!r} holds values that are not finite")
    if len(centres) > 1:
        step = float(centres[-1] - centres[0]) / (len(centres) - 1)
        even = centres[0] + step * np.arange(len(centres))
        if step == 0 or np.abs(centres - even).max() > _UNEVEN * abs(step):
            raise GridError(
                f"coordinate {dim!r} of {array.name!r} is not evenly spaced", what_to_do="resample to a regular grid"
            )
    elif declared is not None:
        step = declared[1]
    else:
        raise GridError(
            f"the pixel size along {dim!r} of {array.name!r} cannot be told from one coordinate",
            what_to_do="set the transform (rio.write_transform)",
        )
    edge = float(centres[0]) - step / 2
    if declared is not None and math.isclose(abs(declared[1]), abs(step), rel_tol=1e-6):
        # the transform of the parent grid has the exact numbers; the coordinates say where in it this piece lies
        exact = math.copysign(declared[1], step)
        shift = (edge - declared[0]) / exact
        if abs(shift - round(shift)) < _UNEVEN:
            return declared[0] + round(shift) * exact, exact
    return edge, step


def _grid(array: xr.DataArray) -> tuple[tuple[int, int], CRS, Affine, tuple[bool, bool]]:
    try:
        y_dim, x_dim = str(array.rio.y_dim), str(array.rio.x_dim)
    except Exception as error:
        raise InputError(f"variable {array.name!r} has no dimensions y and x, but {array.dims}") from error
    if array.dims[-2:] != (y_dim, x_dim):
        raise InputError(f"variable {array.name!r} has dimensions {array.dims}", what_to_do="transpose to (..., y, x)")
    shape = array.sizes[y_dim], array.sizes[x_dim]
    if 0 in array.shape:
        raise InputError(f"variable {array.name!r} is empty: {dict(array.sizes)}")
    crs = array.rio.crs
    if crs is None:
        raise GridError(f"variable {array.name!r} has no CRS", what_to_do="set it with rio.write_crs")
    crs = CRS.from_user_input(crs)
    epsg = crs.to_epsg()
    if epsg is not None and CRS.from_epsg(epsg) == crs:
        crs = CRS.from_epsg(epsg)
    text = (
        str(array[array.rio.grid_mapping].attrs.get("GeoTransform", ""))
        if array.rio.grid_mapping in array.coords
        else ""
    )
    declared = Affine.from_gdal(*(float(part) for part in text.split())) if text else None
    if declared is not None and (declared.b or declared.d):
        raise GridError(
            f"the grid of {array.name!r} is rotated or sheared",
            what_to_do="resample it to a north-up grid (odc.reproject)",
        )
    x = _axis(array, x_dim, None if declared is None else (declared.c, declared.a))
    y = _axis(array, y_dim, None if declared is None else (declared.f, declared.e))
    if x is None or y is None:
        raise GridError(
            f"variable {array.name!r} has neither coordinates nor a transform",
            what_to_do="set the coordinates, or the transform with rio.write_transform",
        )
    flip = y[1] > 0, x[1] < 0
    if flip[0]:
        y = y[0] + y[1] * shape[0], -y[1]
    if flip[1]:
        x = x[0] + x[1] * shape[1], -x[1]
    return shape, crs, Affine(x[1], 0.0, x[0], 0.0, y[1], y[0]), flip


def _class_dtype(array: xr.DataArray, classes: ClassTable | None) -> str:
    if classes is not None:
        # 255 stays free for nodata
        return "uint8" if classes.codes[-1] <= 254 else "uint16"
    return "uint8" if array.dtype in (np.uint8, np.bool_) else "uint16"


def _default_dtype(array: xr.DataArray, kind: str, classes: ClassTable | None, scaled: bool) -> str:
    if kind == "class":
        return _class_dtype(array, classes)
    if kind == "date" or scaled:
        return "int16"
    if array.dtype.kind in "iu":
        narrow = {"int64": "int32", "uint32": "int32", "uint64": "int32"}
        return narrow.get(array.dtype.name, array.dtype.name)
    return "uint16" if kind == "count" else "float32"


def layout_of(
    data: xr.DataArray | xr.Dataset,
    *,
    classes: ClassTable | None = None,
    dtype: npt.DTypeLike | None = None,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
) -> Layout:
    """Decide how an object is stored.

    Parameters
    ----------
    data : xarray.DataArray, (y, x) or (band, y, x), or xarray.Dataset of (y, x)
        With ``kind``, ``units`` and a CRS; its values are not looked at.
    classes : ClassTable, optional
        By default the variable's own CF flags.
    dtype, nodata, scale, offset : optional
        Override what follows from the kind.

    Raises
    ------
    InputError
        If the wishes contradict each other or the kind.
    GridError
        If the grid is missing, uneven or rotated.
    """
    variables = bands_of(data)
    first = variables[0]
    kind = kind_of(first)
    shape, crs, transform, flip = _grid(first)
    name = str(first.name or kind)
    units = str(first.attrs.get("units", ""))
    if kind == "class":
        classes = classes or ClassTable.from_attrs(first)
        units = ""
    elif classes is not None:
        raise InputError(f"variable {name!r} is {kind} and was given a class table", what_to_do="set kind='class'")
    elif not units:
        raise InputError(f"variable {name!r} has no units", what_to_do="set attrs['units'] ('1' for ratios)")
    if isinstance(data, xr.Dataset):
        bands = tuple(band for variable in variables for band in _band_names(variable))
        long_name = str(data.attrs.get("title") or ", ".join(band.name for band in bands))
    else:
        bands = _band_names(first)
        long_name = str(first.attrs.get("long_name") or name)
    if kind == "class":
        if len(bands) > 1:
            raise InputError(
                f"class map {name!r} has {len(bands)} bands",
                what_to_do="write one file per class map: a TIFF has one colour table",
            )
        bands = (Band(classes.name if classes is not None else name),)
    scaled = (scale is not None and scale != 1) or (offset is not None and offset != 0)
    stored = np.dtype(dtype if dtype is not None else _default_dtype(first, kind, classes, scaled))
    if stored.name not in _STORABLE:
        raise InputError(
            f"GeoTIFFs of geoeco do not hold {stored.name}", what_to_do=f"use one of {', '.join(_STORABLE)}"
        )
    if kind == "class" and stored.name not in ("uint8", "uint16"):
        raise InputError(f"class map {name!r} cannot be stored as {stored.name}", what_to_do="use uint8 or uint16")
    if scaled and (kind in ("class", "date", "count") or stored.kind == "f"):
        raise InputError(f"{name!r} ({kind}, {stored.name}) takes no scale or offset")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be a positive number, not {scale}")
    none = float(nodata_for(stored) if nodata is None else nodata)
    _check_nodata(none, stored, name, classes)
    source = first.rio.nodata
    return Layout(
        bands=bands,
        shape=shape,
        crs=crs,
        transform=transform,
        flip=flip,
        kind=kind,
        units=units,
        name=name,
        long_name=long_name,
        dtype=stored,
        nodata=none,
        scale=float(scale or 1.0),
        offset=float(offset or 0.0),
        classes=classes,
        source_nodata=None if source is None or math.isnan(float(source)) else float(source),
    )


def _check_nodata(nodata: float, dtype: np.dtype[Any], name: str, classes: ClassTable | None) -> None:
    if not math.isfinite(nodata):
        raise InputError(
            f"nodata {nodata} of {name!r} is not a finite number", what_to_do="leave nodata= out: -9999 for floats"
        )
    if dtype.kind in "iu" and (nodata != int(nodata) or not np.iinfo(dtype).min <= nodata <= np.iinfo(dtype).max):
        raise InputError(f"nodata {nodata:g} of {name!r} does not fit {dtype}")
    if dtype.kind == "f" and float(dtype.type(nodata)) != nodata:
        raise InputError(f"nodata {nodata!r} of {name!r} cannot be written exactly as {dtype}")
    if classes is None:
        return
    if nodata in classes.codes:
        raise InputError(
            f"nodata {nodata:g} of {name!r} is the code of class {classes.names[classes.codes.index(int(nodata))]!r}",
            what_to_do="leave nodata= out, or take a value that is no class",
        )
    if classes.codes[-1] > np.iinfo(dtype).max:
        raise InputError(f"class code {classes.codes[-1]} of {name!r} does not fit {dtype}", what_to_do="use uint16")
