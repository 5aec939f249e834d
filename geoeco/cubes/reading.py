"""One band of one raster on a target grid: what the numbers in the file are, and which faults are which.

Files are opened with the drivers that Sentinel-2 comes in and no other, so that a file which is really a virtual
raster or a web service description cannot make GDAL read elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoeco.cubes.samplers import Sampler, Window, make_sampler
from geoeco.errors import ReadError, TransientError
from geoeco.gdal import gdal_env, gdal_story

__all__ = ["Raster", "read_window"]

#: Schemes that are read, and the scheme that rasterio knows them by.
_SCHEMES = {"": "", "file": "", "http": "http", "https": "https", "s3": "s3", "gs": "gs", "az": "az"}


def _path(href: str, where: str) -> str:
    """Return the href as rasterio shall open it, or refuse it."""
    parsed = urlparse(href)
    scheme = parsed.scheme.lower() if "://" in href or href.startswith("file:") else ""
    if (
        scheme not in _SCHEMES
        or href.lstrip("/").lower().startswith("vsi")
        or (not scheme and re.match(r"\w{2,}:", href))
    ):
        raise ReadError(
            f"{href!r} is not a path or address that is read here",
            where=where,
            what_to_do=f"give a file path or one of {', '.join(s + '://' for s in _SCHEMES if s)}",
            code="href-refused",
        )
    return unquote(parsed.path) if scheme == "file" else href


def _driver(path: str) -> str:
    """Name the one driver that may open a file, by the file's name."""
    return "JP2OpenJPEG" if urlparse(path).path.lower().endswith((".jp2", ".j2k")) else "GTiff"


_STATUS = r"(HTTP (response|error) code ?:? ?|response_code=)"
_GONE = re.compile(rf"No such file|does not exist|NoSuchKey|{_STATUS}(404|410)\b", re.IGNORECASE)
_PASSING = re.compile(
    rf"{_STATUS}(0|40[138]|429|5\d\d)\b|timed? ?out|could ?n.t connect|could not connect|failed to connect"
    r"|could not resolve|connection (was )?(reset|refused)|recv failure|transfer closed|Input/output error"
    r"|AccessDenied|InvalidCredentials|ExpiredToken|SlowDown",
    re.IGNORECASE,
)


def _fault(error: Exception, where: str, doing: str) -> ReadError | TransientError:
    story = gdal_story(error)
    if _GONE.search(story):
        return ReadError(
            "the asset is not there",
            where=where,
            what_to_do="check the item's href, or let the item be dropped",
            code="asset-missing",
        )
    if _PASSING.search(story):
        return TransientError(
            f"{doing} failed: {story[:300]}", where=where, what_to_do="try again; check the connection and the token"
        )
    return ReadError(
        f"{doing} failed: {story[:300]}",
        where=where,
        what_to_do="fetch the file again, or let the item be dropped",
        code="asset-corrupt",
    )


class Raster:
    """One open band; used by one thread at a time, never sent to another process.

    Parameters
    ----------
    href : str
        Path or address.
    where : str
        Item and asset, for errors.
    dtypes : tuple of str, optional
        Types that the band may have.

    Raises
    ------
    ReadError
        Codes ``asset-missing``, ``asset-corrupt``, ``asset-layout`` (band count, type, no CRS), ``href-refused``.
    TransientError
        Time-outs, refused connections, HTTP 401, 403, 408, 429 and 5xx.
    """

    def __init__(self, href: str, *, where: str = "", dtypes: tuple[str, ...] = ()) -> None:
        self.where = where or href
        self.href = href
        path = _path(href, self.where)
        try:
            self._file = rasterio.open(path, driver=_driver(path))
        except (RasterioError, OSError) as error:
            raise _fault(error, self.where, "opening") from error
        try:
            self._check(dtypes)
        except BaseException:
            self._file.close()
            raise

    def _check(self, dtypes: tuple[str, ...]) -> None:
        file = self._file
        problem = ""
        if file.count != 1:
            problem = f"the file has {file.count} bands, not one"
        elif dtypes and file.dtypes[0] not in dtypes:
            problem = f"the file holds {file.dtypes[0]}, not {' or '.join(dtypes)}"
        elif file.crs is None:
            problem = "the file has no CRS"
        elif file.transform.b or file.transform.d or file.transform.a <= 0 or file.transform.e >= 0:
            problem = "the file is rotated or not north up"
        if problem:
            raise ReadError(
                problem, where=self.where, what_to_do="check that the asset is the band it says", code="asset-layout"
            )
        self.dtype: np.dtype[Any] = np.dtype(file.dtypes[0])
        self.shape: tuple[int, int] = file.shape
        self.block_shape: tuple[int, int] = file.block_shapes[0]
        self.transform = file.transform
        self.nodata: float | None = file.nodata
        self.tile: tuple[int, int] = file.block_shapes[0]
        self.crs = CRS(file.crs.to_wkt() if file.crs.to_epsg() is None else f"EPSG:{file.crs.to_epsg()}")

    @property
    def grid(self) -> tuple[Any, ...]:
        """What decides where its pixels lie: files of one grid share samplers."""
        return (tuple(self.transform)[:6], self.shape, str(self.crs))

    def sampler(self, geobox: GeoBox, resampling: str) -> Sampler:
        """Sampler from this raster to a target grid."""
        return make_sampler(self.transform, self.shape, self.crs, geobox, resampling)

    def read(self, window: Window, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Pixels of rows ``window[0]:window[1]`` and columns ``window[2]:window[3]``, into `out` if it is given."""
        top, bottom, left, right = window
        part = RasterWindow(left, top, right - left, bottom - top)
        try:
            pixels: npt.NDArray[Any] = self._file.read(1, window=part, out=out)
        except (RasterioError, OSError) as error:
            raise _fault(error, self.where, "reading pixels") from error
        return pixels

    def coarse(self, largest: int = 512) -> npt.NDArray[Any]:
        """The whole raster thinned to at most `largest` pixels a side, from its overviews where it has them."""
        step = max(1.0, max(self.shape) / largest)
        shape = tuple(max(1, round(n / step)) for n in self.shape)
        try:
            pixels: npt.NDArray[Any] = self._file.read(1, out_shape=shape)
        except (RasterioError, OSError) as error:
            raise _fault(error, self.where, "reading an overview") from error
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def opened(href: str, *, where: str = "", dtypes: tuple[str, ...] = ()) -> Iterator[Raster]:
    """Open a `Raster` and close it at the end."""
    raster = Raster(href, where=where, dtypes=dtypes)
    try:
        yield raster
    finally:
        raster.close()


def read_window(
    href: str,
    geobox: GeoBox,
    *,
    resampling: str = "bilinear",
    nodata: float | None = None,
    where: str = "",
    dtypes: tuple[str, ...] = (),
) -> npt.NDArray[Any]:
    """Read one single-band raster on a target grid; the result does not depend on how the grid is cut into blocks.

    Parameters
    ----------
    href : str
        Path or address of a GeoTIFF or JPEG 2000 file.
    geobox : odc.geo.geobox.GeoBox
        Target grid ``(y, x)``, in any CRS, north up.
    resampling : str
        ``"bilinear"`` for continuous variables, ``"nearest"`` for all others.
    nodata : float, optional
        Value that means no data in the file and in the result; by default the file's own, or 0.
    where : str, optional
        Item and asset, for errors.
    dtypes : tuple of str, optional
        Types that the file may have.

    Returns
    -------
    numpy.ndarray
        ``(y, x)`` of the file's type; `nodata` outside the file.

    Raises
    ------
    ReadError, TransientError
        As `Raster`.
    GridError
        For rotated grids.
    """
    with gdal_env(), opened(href, where=where, dtypes=dtypes) as raster:
        sampler = raster.sampler(geobox, resampling)
        fill = nodata if nodata is not None else (raster.nodata if raster.nodata is not None else 0)
        if sampler.window is None:
            return np.full(tuple(int(n) for n in geobox.shape), fill, raster.dtype)
        return sampler(raster.read(sampler.window), fill)
