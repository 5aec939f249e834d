"""Orthomosaics of drones and aircraft: what is in the file, where its pixels lie, which of them are valid.

A mosaic is described once (`describe_orthomosaic`), with every check that can be made before work starts, and is then
read by exact windows from any thread or process. Values keep their stored type; value = stored x scale is a number
without unit, 0..1 for images of 8 and 16 bits. Not about chips (`geoeco.sampling`) nor about maps (`geoeco.mapping`).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as RasterWindow
from xarray.backends import BackendArray
from xarray.core import indexing

from geoeco.errors import GridError, InputError, ReadError
from geoeco.grid import as_crs, utm_crs
from geoeco.sensors.area_means import area_mean, axis_shares
from geoeco.sensors.mosaic_files import content_hash, opened_mosaic, read_fault, source_path
from geoeco.variables import describe

__all__ = ["Orthomosaic", "as_orthomosaic", "describe_orthomosaic", "open_orthomosaic"]

#: Pixels may differ from squares by this much, and the ground from what the CRS says before that is worth a warning.
_TOLERANCE = 0.01
#: Finer pixels than the file's by more than this are made up, not measured.
LARGEST_UPSAMPLING = 1.5
#: Beyond this a floating-point value is no measurement but a mark (-3.4e38, -1.7e308).
_SENTINEL = 1e30
#: Fine pixels read at a time while a coarse window is averaged.
_STRIP_PIXELS = 16 << 20

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


@dataclass(frozen=True)
class Orthomosaic:
    """What an orthomosaic is, without an open file: it pickles, compares and hashes by value.

    Attributes
    ----------
    path : str
        Absolute path.
    bands : tuple of str
        Names: ``red``, ``green``, ``blue``, ``nir``, ... from the file, else ``band1``, ...; never the alpha band.
    indexes : tuple of int
        Number of each band in the file, from 1.
    geobox : odc.geo.geobox.GeoBox
        Grid on which `read` answers.
    native : odc.geo.geobox.GeoBox
        Grid of the file.
    dtype : str
        NumPy type of the stored values.
    scale : float
        Value = stored x scale, unit "1".
    mask : {"internal", "alpha", "nodata", "rule", "none"}
        What says which pixels are valid. Pixels of floating-point files are also invalid where a band is not finite
        or beyond 1e30.
    nodata_values : tuple of float
        One for each of `mask_indexes`; a pixel is invalid where *all* of these bands have it. Empty for other masks.
    mask_indexes : tuple of int
        Bands that `mask` reads: the alpha band, or all bands but it.
    gsd_m, gsd_x_m, gsd_y_m : float
        True size of a pixel on the ground (geodesic, at the mosaic's centre): mean of both axes, and each.
    date : str
        ISO day of the file's ``TIFFTAG_DATETIME``, or "". Some programs write the day of processing there.
    fingerprint : str
        Hash of the file's content (`geoeco.sensors.mosaic_files.content_hash`), the bands, their scale, the mask's
        source and the grid; not of the path.
    """

    path: str
    bands: tuple[str, ...]
    indexes: tuple[int, ...]
    geobox: GeoBox
    native: GeoBox
    dtype: str
    scale: float
    mask: MaskSource
    nodata_values: tuple[float, ...]
    mask_indexes: tuple[int, ...]
    gsd_m: float
    gsd_x_m: float
    gsd_y_m: float
    date: str
    fingerprint: str

    def __post_init__(self) -> None:
        # one NaN for all, so that descriptions with NaN equal each other
        for name in ("gsd_m", "gsd_x_m", "gsd_y_m"):
            object.__setattr__(self, name, _one_nan(getattr(self, name)))
        object.__setattr__(self, "nodata_values", tuple(_one_nan(value) for value in self.nodata_values))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        rows, columns = self.geobox.shape
        return int(rows), int(columns)

    @property
    def georeferenced(self) -> bool:
        """Whether the pixels have a place on Earth: without it no map can be written."""
        return self.geobox.crs is not None

    @property
    def nodata(self) -> float | None:
        """The value that marks invalid pixels, where the mask is ``nodata`` or ``rule`` and all bands have the same."""
        values = self.nodata_values
        return values[0] if len(set(values)) == 1 else None

    def read(self, y: tuple[int, int], x: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels of one window of the grid.

        Parameters
        ----------
        y, x : tuple of int
            First (inclusive) and last (exclusive) row and column; they may lie beyond the grid.

        Returns
        -------
        image : numpy.ndarray
            ``(band, y, x)`` of the stored type, 0 where invalid.
        valid : numpy.ndarray
            ``(y, x)`` bool, False beyond the grid.

        Raises
        ------
        InputError
            If the window is empty.
        ReadError
            If the file cannot be read.
        """
        rows, columns = self.shape
        y0, y1 = (int(v) for v in y)
        x0, x1 = (int(v) for v in x)
        if y0 >= y1 or x0 >= x1:
            raise InputError(f"window rows {y}, columns {x} holds no pixel", where=self.path)
        image = np.zeros((len(self.indexes), y1 - y0, x1 - x0), self.dtype)
        valid = np.zeros((y1 - y0, x1 - x0), dtype=bool)
        top, bottom, left, right = max(y0, 0), min(y1, rows), max(x0, 0), min(x1, columns)
        if top >= bottom or left >= right:
            return image, valid
        reader = self._stored if self.geobox == self.native else self._averaged
        part, part_valid = reader((top, bottom), (left, right))
        if part_valid.shape == valid.shape:
            return part, part_valid
        image[:, top - y0 : bottom - y0, left - x0 : right - x0] = part
        valid[top - y0 : bottom - y0, left - x0 : right - x0] = part_valid
        return image, valid

    def at(self, gsd_m: float, *, force: bool = False) -> Orthomosaic:
        """The same mosaic on a grid of another ground sampling distance.

        The grid keeps the mosaic's upper-left corner. A ratio within 1 % of a whole number is that number, so that the
        scale of the projection (0.9996 for UTM) does not make every pixel a mixture. Values are means weighted by area
        and validity; a pixel is valid where at least half of its area is.

        Parameters
        ----------
        gsd_m : float
            Metres on the ground.
        force : bool
            Allow pixels finer than the file's by more than 1.5 times.

        Raises
        ------
        InputError
            If `gsd_m` is no positive number, is finer than that, or the mosaic has no ground sampling distance.
        """
        if not (math.isfinite(gsd_m) and gsd_m > 0):
            raise InputError(f"a ground sampling distance is a positive number of metres, not {gsd_m}")
        x_m, y_m = _ground_size(self.native, self.gsd_x_m / self._ratios[1], self.gsd_y_m / self._ratios[0])
        if not (math.isfinite(x_m) and math.isfinite(y_m)):
            raise InputError("the mosaic has no ground sampling distance", where=self.path, what_to_do="give `gsd_m`")
        ratio_x, ratio_y = _whole(gsd_m / x_m), _whole(gsd_m / y_m)
        if min(ratio_x, ratio_y) < 1 / LARGEST_UPSAMPLING and not force:
            raise InputError(
                f"{gsd_m:g} m is {1 / min(ratio_x, ratio_y):.2f} times finer than the mosaic's {(x_m + y_m) / 2:.4g} m",
                where=self.path,
                what_to_do=f"take at least {(x_m + y_m) / 2 / LARGEST_UPSAMPLING:.4g} m, or set force=True",
            )
        rows, columns = (int(n) for n in self.native.shape)
        transform = self.native.transform
        shape = (math.ceil(rows / ratio_y - 1e-9), math.ceil(columns / ratio_x - 1e-9))
        grid = GeoBox(
            shape,
            Affine(transform.a * ratio_x, 0.0, transform.c, 0.0, transform.e * ratio_y, transform.f),
            self.native.crs,
        )
        if (ratio_x, ratio_y) == (1.0, 1.0):
            grid = self.native
        gsd_x, gsd_y = x_m * ratio_x, y_m * ratio_y
        return replace(self, geobox=grid, gsd_m=(gsd_x + gsd_y) / 2, gsd_x_m=gsd_x, gsd_y_m=gsd_y)

    @property
    def _ratios(self) -> tuple[float, float]:
        """Size of the grid's pixels in the file's pixels, rows and columns."""
        grid, native = self.geobox.transform, self.native.transform
        return _whole(grid.e / native.e, 1e-9), _whole(grid.a / native.a, 1e-9)

    def _stored(self, y: tuple[int, int], x: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels of a window within the file's own grid."""
        window = RasterWindow(x[0], y[0], x[1] - x[0], y[1] - y[0])
        count = len(self.indexes)
        with opened_mosaic(self.path) as file:
            if self.mask == "alpha":
                bands = file.read([*self.indexes, *self.mask_indexes], window=window)
                image, valid = bands[:count], bands[count] != 0
            else:
                image = file.read(list(self.indexes), window=window)
                valid = self._valid(file, window, image)
        if image.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                valid &= (np.abs(image) < _SENTINEL).all(axis=0)
        if not valid.all():
            image[:, ~valid] = 0
        return image, valid

    def _valid(self, file: Any, window: RasterWindow, image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if self.mask == "internal":
            inside: npt.NDArray[np.bool_] = file.read_masks(self.indexes[0], window=window) != 0
            return inside
        if self.mask == "none":
            return np.ones(image.shape[1:], dtype=bool)
        values = dict(zip(self.mask_indexes, self.nodata_values, strict=True))
        marked = np.ones(image.shape[1:], dtype=bool)
        for position, index in enumerate(self.indexes):
            marked &= _equals(image[position], values.pop(index))
        # a bright or dark pixel of the chosen bands is invalid only if the others have the mark too
        for index, value in values.items():
            if not marked.any():
                break
            marked &= _equals(file.read(index, window=window), value)
        return ~marked

    def _averaged(self, y: tuple[int, int], x: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels of a window within a coarser grid, strip by strip so that memory does not grow with the ratio."""
        ratio_y, ratio_x = self._ratios
        rows, columns = (int(n) for n in self.native.shape)
        across = axis_shares(ratio_x, x[0], x[1], columns)
        step = max(1, int(_STRIP_PIXELS / (ratio_y * max(1, across.last - across.first))))
        image = np.zeros((len(self.indexes), y[1] - y[0], x[1] - x[0]), self.dtype)
        valid = np.zeros(image.shape[1:], dtype=bool)
        for top in range(y[0], y[1], step):
            bottom = min(top + step, y[1])
            down = axis_shares(ratio_y, top, bottom, rows)
            fine, fine_valid = self._stored((down.first, down.last), (across.first, across.last))
            part = slice(top - y[0], bottom - y[0])
            image[:, part], valid[part] = area_mean(fine, fine_valid, down, across, ratio_x * ratio_y)
        return image, valid


def _one_nan(value: float) -> float:
    return math.nan if math.isnan(value) else value


def _whole(ratio: float, tolerance: float = _TOLERANCE) -> float:
    """Nearest whole number where a ratio is that up to the tolerance, else the ratio."""
    nearest = round(ratio)
    return float(nearest) if nearest and abs(ratio - nearest) <= tolerance * nearest else ratio


def _equals(band: npt.NDArray[Any], value: float) -> npt.NDArray[np.bool_]:
    if math.isnan(value):
        return np.isnan(band)
    marked: npt.NDArray[np.bool_] = band == band.dtype.type(value)
    return marked


# --- description -----------------------------------------------------------------------------------------------------


def describe_orthomosaic(
    path: str | os.PathLike[str],
    *,
    bands: Bands | None = None,
    scale: float | None = None,
    nodata: Nodata = "auto",
    allow_ungeoreferenced: bool = False,
    gsd_m: float | None = None,
    codes: bool = False,
) -> Orthomosaic:
    """Open an orthomosaic once, check it, and say what it is.

    Parameters
    ----------
    path : path
        GeoTIFF or COG, a VRT of TIFFs in its own folder, or a PNG without georeference.
    bands : sequence or mapping, optional
        Bands in the order wanted, by name or by number from 1; or a mapping from new names to numbers, which also
        takes a band as image that the file wrongly calls alpha. All bands but alpha by default.
    scale : float, optional
        Value = stored x scale. By default the file's own scale; else 1/255 for uint8, 1/65535 for uint16 and 1 for
        floating point.
    nodata : "auto", float, sequence of float or None
        Validity comes from the file's internal mask or alpha band, else from its nodata tag (all bands equal it), else
        from this rule: a value, or one for each band, that all bands of an invalid pixel have. ``None`` does not
        believe the tag. Black and white mean nothing by themselves.
    allow_ungeoreferenced : bool
        Take a file without CRS or place: chips can be cut from it, maps cannot be written.
    gsd_m : float, optional
        Ground sampling distance of a file without georeference.
    codes : bool
        The values are codes of classes on the mosaic's ground: a colour table is no obstacle, and the scale is 1.

    Returns
    -------
    Orthomosaic

    Raises
    ------
    InputError
        If the file is missing, a band does not exist, the type needs a `scale`, or the rule contradicts the file.
    GridError
        If it has no CRS, a geographic one, or pixels that are rotated, mirrored or not square.
    ReadError
        If it cannot be read, is cut off, or is a virtual raster that is more than a mosaic of TIFFs in its folder.

    Warns
    -----
    UserWarning
        If the true size of a pixel differs by more than 1 % from what the CRS says.
    """
    found = source_path(path)
    where = str(found)
    with opened_mosaic(where) as file:
        names, indexes, alpha = _bands(file, bands, where)
        dtype = _dtype(file, indexes, where, codes=codes)
        mask, mask_indexes, values = _mask(file, alpha, nodata, dtype, where)
        geobox, gsd_x, gsd_y = _grid(file, where, allow_ungeoreferenced, gsd_m)
        stored_scale = 1.0 if codes else _scale(file, indexes, dtype, scale, where)
        _check_whole(file, found)
        date = _date(file.tags().get("TIFFTAG_DATETIME", ""))
    facts = (content_hash(found), names, indexes, tuple(geobox.shape), tuple(geobox.transform)[:6], str(geobox.crs))
    facts = (*facts, dtype, stored_scale, mask, mask_indexes, values)
    return Orthomosaic(
        path=where,
        bands=names,
        indexes=indexes,
        geobox=geobox,
        native=geobox,
        dtype=dtype,
        scale=stored_scale,
        mask=mask,
        nodata_values=values,
        mask_indexes=mask_indexes,
        gsd_m=(gsd_x + gsd_y) / 2,
        gsd_x_m=gsd_x,
        gsd_y_m=gsd_y,
        date=date,
        fingerprint=hashlib.sha256(repr(facts).encode()).hexdigest(),
    )


def _band_name(file: Any, index: int) -> str:
    """Name of a band: of its description where that names a colour, of its colour, of its description, its number."""
    description = re.sub(r"[^a-z0-9]+", "_", (file.descriptions[index - 1] or "").strip().lower()).strip("_")
    known = _DESCRIPTIONS.get(description, description)
    if known in _COLOURS.values():
        return known
    return _COLOURS.get(file.colorinterp[index - 1]) or description or f"band{index}"


def _bands(file: Any, wanted: Bands | None, where: str) -> tuple[tuple[str, ...], tuple[int, ...], int | None]:
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
        known = {**own, **{index: index for index in own.values()}}
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
    return tuple(chosen), tuple(chosen.values()), alpha


def _dtype(file: Any, indexes: Sequence[int], where: str, *, codes: bool) -> str:
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


def _scale(file: Any, indexes: Sequence[int], dtype: str, given: float | None, where: str) -> float:
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


def _mask(
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
    values = tuple(float(tag) for tag in tags) if own == "nodata" else ()
    if rule is None or isinstance(rule, str):
        if isinstance(rule, str) and rule != "auto":
            raise InputError(f"nodata is 'auto', a value, one value for each band or None, not {rule!r}")
        return own, {"alpha": (alpha or 0,), "nodata": colours}.get(own, ()), values
    given = tuple(float(v) for v in rule) if isinstance(rule, Sequence) else (float(rule),) * len(colours)
    if len(given) != len(colours):
        raise InputError(f"nodata has {len(given)} values for {len(colours)} bands", where=where)
    if own != "none" and repr(given) != repr(values):
        story = {"internal": "an internal mask", "alpha": "an alpha band", "nodata": f"nodata {values[:1]}"}[own]
        raise InputError(
            f"the file says itself which pixels are valid ({story}): the rule nodata={rule} would not be used",
            where=where,
            what_to_do="leave `nodata` out; where the file is wrong, correct its tag: gdal_edit.py -unsetnodata",
        )
    return ("rule" if own == "none" else own), colours, given


def _holds(dtype: str, value: float) -> bool:
    """Whether a type can hold a value, so that the value can mark a pixel."""
    if np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(dtype)
    return math.isfinite(value) and limits.min <= value <= limits.max and value == int(value)


def _date(text: str) -> str:
    found = re.match(r"(\d{4})[:-](\d{2})[:-](\d{2})", text.strip())
    try:
        return str(np.datetime64("-".join(found.groups()), "D")) if found else ""
    except ValueError:
        return ""


# --- the grid --------------------------------------------------------------------------------------------------------


def _grid(file: Any, where: str, unplaced: bool, gsd_m: float | None) -> tuple[GeoBox, float, float]:
    """Grid of a file and the true size of its pixels, or the reason why it is none that can be worked on."""
    transform, name = file.transform, Path(where).name
    if file.crs is None or transform == Affine.identity():
        if not unplaced:
            raise _unplaced(file, where)
        size = math.nan if gsd_m is None else float(gsd_m)
        pixel = 1.0 if gsd_m is None else size
        return GeoBox(file.shape, Affine(pixel, 0, 0, 0, -pixel, 0), None), size, size
    if gsd_m is not None:
        raise InputError(
            "the file is georeferenced: its ground sampling distance is measured, not given",
            where=where,
            what_to_do="leave `gsd_m` out; `at` changes the grid",
        )
    crs = _horizontal_crs(file.crs)
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise GridError(
            "the mosaic is rotated, sheared or not north up",
            where=where,
            what_to_do=f"gdalwarp -r bilinear -dstalpha -of COG {name} north_up.tif",
        )
    if crs.geographic:
        centre = file.transform * (file.width / 2, file.height / 2)
        advised = utm_crs(*centre).epsg if abs(centre[1]) <= 90 else "UTM"
        raise GridError(
            f"the mosaic is in degrees ({crs}): its pixels have no size in metres",
            where=where,
            what_to_do=f"gdalwarp -t_srs EPSG:{advised} -r bilinear -dstalpha -of COG {name} projected.tif",
        )
    if not crs.projected:
        raise GridError(
            "the mosaic's CRS is local: nothing says where on Earth it lies",
            where=where,
            what_to_do="give the file a projected CRS: gdal_edit.py -a_srs EPSG:... , or allow_ungeoreferenced=True",
        )
    width, height = transform.a, -transform.e
    if abs(width / height - 1) > _TOLERANCE:
        size = min(width, height)
        raise GridError(
            f"the mosaic's pixels are not square: {width:g} x {height:g} units of its CRS",
            where=where,
            what_to_do=f"gdalwarp -tr {size:g} {size:g} -r bilinear -dstalpha -of COG {name} square.tif",
        )
    geobox = GeoBox(file.shape, transform, crs)
    gsd_x, gsd_y = _geodesic(geobox, where)
    unit = crs.proj.axis_info[0].unit_conversion_factor
    nominal = (width + height) / 2 * unit
    if abs((gsd_x + gsd_y) / 2 / nominal - 1) > _TOLERANCE:
        warnings.warn(
            f"{where}: a pixel is {(gsd_x + gsd_y) / 2:.4f} m on the ground, not the {nominal:.4f} m that {crs} says;"
            " sizes in metres are those on the ground",
            stacklevel=3,
        )
    return geobox, gsd_x, gsd_y


def _unplaced(file: Any, where: str) -> GridError:
    name = Path(where).name
    if file.gcps[0]:
        advice = f"it has ground control points: gdalwarp -r bilinear -dstalpha -of COG {name} placed.tif"
    elif file.crs is None and file.transform != Affine.identity():
        advice = f"name its CRS: gdal_edit.py -a_srs EPSG:... {name}"
    else:
        advice = "export it with georeference (world files and .aux.xml are not read: gdal_translate makes one file)"
    return GridError(
        "the mosaic has no CRS" if file.crs is None else "the mosaic has a CRS but no place: its pixels are counted",
        where=where,
        what_to_do=f"{advice}; or allow_ungeoreferenced=True to cut chips only",
        code="grid-unplaced",
    )


def _horizontal_crs(stated: Any) -> CRS:
    """CRS of the map, by its EPSG code where it has one; the vertical part of a compound CRS is left out."""
    crs = as_crs(f"EPSG:{stated.to_epsg()}" if stated.to_epsg() else stated.to_wkt())
    if crs.proj.is_compound:
        flat = crs.proj.sub_crs_list[0]
        crs = as_crs(f"EPSG:{flat.to_epsg()}" if flat.to_epsg() else flat.to_wkt())
    return crs


def _geodesic(geobox: GeoBox, where: str) -> tuple[float, float]:
    """True width and height of a pixel at the centre of a grid, by geodesics (Karney 2013) over up to 64 pixels."""
    from pyproj import Geod, Transformer

    rows, columns = (int(n) for n in geobox.shape)
    span_x, span_y = min(columns, 64), min(rows, 64)
    row, column = rows / 2, columns / 2
    ends = [
        geobox.transform * point
        for point in (
            (column - span_x / 2, row),
            (column + span_x / 2, row),
            (column, row - span_y / 2),
            (column, row + span_y / 2),
        )
    ]
    crs = geobox.crs.proj
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform([x for x, _ in ends], [y for _, y in ends])
    if not np.isfinite([*lon, *lat]).all():
        raise GridError("the mosaic lies outside of its CRS", where=where, what_to_do="check its CRS")
    geod: Geod = crs.get_geod()
    lengths = geod.inv(lon[0::2], lat[0::2], lon[1::2], lat[1::2])[2]
    return float(lengths[0] / span_x), float(lengths[1] / span_y)


def _ground_size(native: GeoBox, x_m: float, y_m: float) -> tuple[float, float]:
    """Ground size of the file's own pixels; measured again where it can be, so that `at` of `at` loses nothing."""
    return (x_m, y_m) if native.crs is None else _geodesic(native, "")


def _check_whole(file: Any, path: Path) -> None:
    """Refuse a TIFF whose tiles lead beyond its end: the copy was cut off."""
    if file.driver != "GTiff":
        return
    size = path.stat().st_size
    height, width = file.block_shapes[0]
    down, across = -(-file.height // height), -(-file.width // width)
    for row in {0, down // 2, down - 1}:
        for column in {0, across // 2, across - 1}:
            offset = file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1)
            length = file.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
            if offset is not None and length is not None and int(offset) + int(length) > size:
                raise read_fault(OSError(f"the file ends at byte {size}, before its pixels do"), str(path), "reading")


# --- xarray ----------------------------------------------------------------------------------------------------------


class _Lazy(BackendArray):
    """Image or valid mask of a mosaic as xarray reads it: a window at a time, when it is asked for."""

    def __init__(self, mosaic: Orthomosaic, what: Literal["image", "valid"]) -> None:
        self.mosaic = mosaic
        self.what = what
        self.shape: tuple[int, ...] = mosaic.shape if what == "valid" else (len(mosaic.bands), *mosaic.shape)
        self.dtype = np.dtype(bool if what == "valid" else mosaic.dtype)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.what, self.mosaic.fingerprint, self.mosaic.path, str(self.mosaic.geobox))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        *bands, rows, columns = key
        (y, pick_y), (x, pick_x) = _span(rows, self.shape[-2]), _span(columns, self.shape[-1])
        if y[0] >= y[1] or x[0] >= x[1]:
            return np.zeros(self.shape, self.dtype)[key]
        image, valid = self.mosaic.read(y, x)
        if self.what == "valid":
            return np.asarray(valid[pick_y, pick_x])
        return np.asarray(image[(*bands, pick_y, pick_x)])


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

    Returns
    -------
    xarray.Dataset
        ``image (band, y, x)`` as stored (0 where invalid; value = stored x ``image.attrs["scale"]``) and
        ``valid (y, x)`` bool, with coordinates ``band``, ``y``, ``x`` and ``spatial_ref`` (none without georeference);
        attributes ``gsd_m``, ``mask``, ``date`` and ``source``.

    Raises
    ------
    InputError, GridError, ReadError
        As `describe_orthomosaic`.
    """
    mosaic = describe_orthomosaic(
        path, bands=bands, scale=scale, nodata=nodata, allow_ungeoreferenced=allow_ungeoreferenced, gsd_m=gsd_m
    )
    dataset = _dataset(mosaic)
    return dataset if chunks is None else dataset.chunk(chunks)


def _dataset(mosaic: Orthomosaic) -> xr.Dataset:
    from odc.geo.xr import xr_coords

    image = xr.DataArray(indexing.LazilyIndexedArray(_Lazy(mosaic, "image")), dims=("band", "y", "x"))
    valid = xr.DataArray(indexing.LazilyIndexedArray(_Lazy(mosaic, "valid")), dims=("y", "x"))
    image = describe(image, kind="continuous", units="1", long_name="orthomosaic", scale=mosaic.scale)
    valid = valid.assign_attrs(long_name=f"pixel is valid (by {mosaic.mask})")
    coords: dict[str, Any] = {"band": list(mosaic.bands)}
    if mosaic.georeferenced:
        coords |= dict(xr_coords(mosaic.geobox, dims=("y", "x")))
        for variable in (image, valid):
            variable.encoding["grid_mapping"] = "spatial_ref"
    dataset = xr.Dataset({"image": image, "valid": valid}, coords=coords)
    dataset.attrs = {
        "gsd_m": mosaic.gsd_m,
        "mask": mosaic.mask,
        "date": mosaic.date,
        "source": mosaic.path,
    }
    dataset.encoding["orthomosaic"] = mosaic
    return dataset


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
    mosaic = source.encoding.get("orthomosaic")
    sizes = tuple(source.sizes.get(dim) for dim in ("y", "x"))
    if not isinstance(mosaic, Orthomosaic) or sizes != mosaic.shape or tuple(source["band"].values) != mosaic.bands:
        raise InputError(
            "this data set is not an orthomosaic as it was opened",
            what_to_do="give the data set of open_orthomosaic unchanged, or the path",
        )
    return mosaic
