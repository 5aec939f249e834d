"""Description of an orthomosaic, and its pixels by exact windows from any thread or process.

Not about xarray: that is `geoeco.sensors.orthomosaic`, from which users take these names.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RasterWindow

from geoeco.errors import InputError
from geoeco.sensors.area_means import area_mean, axis_shares
from geoeco.sensors.mosaic_bands import Bands, MaskSource, Nodata, bands_of, dtype_of, mask_of, scale_of
from geoeco.sensors.mosaic_files import check_whole, content_hash, opened_mosaic, source_path
from geoeco.sensors.mosaic_grids import geodesic_size, grid_of

__all__ = ["Orthomosaic", "describe_orthomosaic"]

#: Pixels may differ from squares by this much, and the ground from what the CRS says before that is worth a warning.
_TOLERANCE = 0.01
#: Finer pixels than the file's by more than this are made up, not measured.
LARGEST_UPSAMPLING = 1.5
#: Beyond this a floating-point value is no measurement but a mark (-3.4e38, -1.7e308).
_SENTINEL = 1e30
#: Fine pixels read at a time while a coarse window is averaged.
_STRIP_PIXELS = 4 << 20


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

    def read_bytes(self, rows: int, columns: int) -> int:
        """Bytes that `read` takes at most for a window, what it returns among them; GDAL's cache comes on top."""
        ratio_y, ratio_x = self._ratios
        if self.geobox == self.native:
            return self._stored_bytes(rows * columns)
        count, item = len(self.indexes), np.dtype(self.dtype).itemsize
        across = math.ceil(columns * ratio_x) + 2
        # a strip has one row of coarse pixels at least
        fine = max(_STRIP_PIXELS, across * (math.ceil(ratio_y) + 1))
        coarse = int(fine / ratio_y) + across
        return (
            rows * columns * (2 * count * item + 2)
            + self._stored_bytes(fine)
            + coarse * 8 * (3 + math.ceil(6 / ratio_x))
        )

    def _stored_bytes(self, pixels: int) -> int:
        """Memory of `_stored`: the bands and those of the mask, their padded copy, and flags."""
        count, item = len(self.indexes), np.dtype(self.dtype).itemsize
        beside = count * (item + 1) if np.dtype(self.dtype).kind == "f" else 0
        return pixels * ((2 * count + 1) * item + 4 + beside)

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
        np.copyto(image, 0, where=~valid)
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
    """Nearest whole number, or one over a whole number, where a ratio is that up to the tolerance; else the ratio."""
    if ratio < 1:
        return 1 / _whole(1 / ratio, tolerance)
    nearest = round(ratio)
    return float(nearest) if abs(ratio - nearest) <= tolerance * nearest else ratio


def _equals(band: npt.NDArray[Any], value: float) -> npt.NDArray[np.bool_]:
    if math.isnan(value):
        return np.isnan(band)
    with np.errstate(over="ignore"):
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
        The values are codes of classes on the mosaic's ground: a colour table is no obstacle, and the scale is 1. Read
        them on their own grid: `Orthomosaic.at` would average them.

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
        names, indexes, alpha = bands_of(file, bands, where)
        dtype = dtype_of(file, indexes, where, codes=codes)
        mask, mask_indexes, values = mask_of(file, alpha, nodata, dtype, where)
        geobox, gsd_x, gsd_y = grid_of(file, where, allow_ungeoreferenced, gsd_m)
        stored_scale = 1.0 if codes else scale_of(file, indexes, dtype, scale, where)
        check_whole(file, found)
        date = _date(file.tags().get("TIFFTAG_DATETIME", ""))
    grid = (tuple(geobox.shape), tuple(geobox.transform)[:6], str(geobox.crs))
    facts = (content_hash(found), grid, names, indexes, dtype, stored_scale, mask, mask_indexes, values)
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


def _date(text: str) -> str:
    found = re.match(r"(\d{4})[:-](\d{2})[:-](\d{2})", text.strip())
    try:
        return str(np.datetime64("-".join(found.groups()), "D")) if found else ""
    except ValueError:
        return ""


def _ground_size(native: GeoBox, x_m: float, y_m: float) -> tuple[float, float]:
    """Ground size of the file's own pixels; measured again where it can be, so that `at` of `at` loses nothing."""
    return (x_m, y_m) if native.crs is None else geodesic_size(native, "")
