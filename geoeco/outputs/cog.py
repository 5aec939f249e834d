"""Cloud-optimised GeoTIFFs that open right in any GIS.

One call writes one file: dtype, nodata, overviews, colours, names, statistics and style follow from the variable's
kind. The COG driver of GDAL lays out and compresses; overviews and statistics are ours, because they must not depend
on blocks or threads and because one compression is enough. Files appear whole or not at all, and the same input gives
the same bytes. Uploading them is not done here.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import xarray as xr
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from geoeco.errors import InputError, OutputError
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.gdal_xml import aux_xml, read_aux_xml, read_statistics, vrt_xml
from geoeco.outputs.layout import Layout, bands_of, layout_of
from geoeco.outputs.pyramid import BLOCK, BandStatistics, FilePlanes, MemoryPlanes, Planes, build_overviews
from geoeco.outputs.styles import qml
from geoeco.variables import UNPRINTABLE

__all__ = ["CogRecord", "WrittenFile", "cog_record", "local_path", "remove_leftovers", "write_cog"]

Array = npt.NDArray[Any]
Window = tuple[slice, slice]
_Make = Callable[[tuple[int, int, int]], Planes]
_Fill = Callable[[_Make], Planes]

COMPRESSIONS = ("ZSTD", "DEFLATE", "LZW", "NONE")
#: Above this many bytes of stored pixels, levels are kept in files beside the output: for what is in memory anyhow, and
#: for what comes piece by piece.
MEMORY_BYTES, MEMORY_BYTES_LAZY = 2 << 30, 256 << 20
DEFAULT_LEVEL = 6
# levels are read where they are made, in memory or beside the output; the sidecar is ours
_GDAL = {"GDAL_MEM_ENABLE_OPEN": "YES", "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "ALL", "GDAL_PAM_ENABLED": "NO"}
#: Pixels that GDAL reads at a time while it compresses, in bytes: its own choice is rows of blocks, and the compressing
#: threads run out of work while one is read.
_SWATH_BYTES = 4 << 20
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_SCRATCH = ".geoeco-"
_RESERVED = ("TIFFTAG_", "STATISTICS_", "AREA_OR_POINT")


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written: path, sha256 (hex) and size in bytes."""

    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class CogRecord:
    """What `write_cog` wrote.

    Attributes
    ----------
    path : pathlib.Path
    sha256 : str
        Of the TIFF, hex.
    bytes : int
        Of the TIFF.
    sidecars : tuple of WrittenFile
        ``.aux.xml`` (class maps) and ``.qml``.
    kind, units, dtype : str
    nodata, scale, offset : float
        value = stored x scale + offset.
    bands : tuple of str
        Band descriptions.
    statistics : tuple of BandStatistics
        Of the stored numbers, one a band; empty for class maps.
    classes : ClassTable or None
    counts : dict of int to int
        Pixels of every class, class maps only.
    """

    path: Path
    sha256: str
    bytes: int
    sidecars: tuple[WrittenFile, ...]
    kind: str
    units: str
    dtype: str
    nodata: float
    scale: float
    offset: float
    bands: tuple[str, ...]
    statistics: tuple[BandStatistics, ...]
    classes: ClassTable | None
    counts: Mapping[int, int]

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        """The TIFF and its sidecars."""
        return (WrittenFile(self.path, self.sha256, self.bytes), *self.sidecars)


@dataclass(frozen=True)
class _Wishes:
    compress: str
    level: int | None
    threads: int
    memory_bytes: int
    interleave: str | None
    style: bool
    tags: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.compress not in COMPRESSIONS:
            raise InputError(
                f"unknown compression {self.compress!r}", what_to_do=f"use one of {', '.join(COMPRESSIONS)}"
            )
        if self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")
        if self.interleave not in (None, "pixel", "band"):
            raise InputError(f"unknown interleave {self.interleave!r}", what_to_do="use 'pixel' or 'band'")


def _software() -> str:
    try:
        return version("geoeco")
    except PackageNotFoundError:
        return "unknown"


def _tags(
    layout: Layout, tags: Mapping[str, Any] | None, description: str | None, datetime: dt.datetime | None
) -> dict[str, str]:
    # the kind is not part of GeoTIFF; a reader of geoeco finds it again
    out = {"GEOECO_VERSION": _software(), "GEOECO_KIND": layout.kind}
    for key, value in (tags or {}).items():
        if not _KEY.match(key) or key.startswith(_RESERVED):
            raise InputError(
                f"tag {key!r} cannot be used",
                what_to_do="use letters, digits and underscores; description= and datetime= set the TIFF tags",
            )
        out[key] = str(value)
    out["TIFFTAG_SOFTWARE"] = f"geoeco {_software()}"
    out["TIFFTAG_IMAGEDESCRIPTION"] = description or layout.long_name
    if datetime is not None:
        out["TIFFTAG_DATETIME"] = datetime.strftime("%Y:%m:%d %H:%M:%S")
    for key, value in out.items():
        # tags are XML, which holds no control characters; TIFF's own are ASCII
        clean = UNPRINTABLE.sub("?", value)
        out[key] = clean.encode("ascii", "replace").decode("ascii") if key.startswith("TIFFTAG_") else clean
    return dict(sorted(out.items()))


def _available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_cog(
    data: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    blocks: Iterable[tuple[Window, Any]] | None = None,
    classes: ClassTable | None = None,
    tags: Mapping[str, Any] | None = None,
    compress: str = "ZSTD",
    level: int | None = None,
    nodata: float | None = None,
    dtype: npt.DTypeLike | None = None,
    scale: float | None = None,
    offset: float | None = None,
    description: str | None = None,
    datetime: dt.datetime | None = None,
    interleave: str | None = None,
    style: bool = True,
    threads: int | None = None,
    memory_bytes: int | None = None,
) -> CogRecord:
    """Write a variable, or several of one kind and unit, to a cloud-optimised GeoTIFF.

    ========== ================== ======== ========= =====================================
    kind       dtype              nodata   overviews beside the pixels
    ========== ================== ======== ========= =====================================
    class      uint8 (uint16 [1]) 255      mode      colours, names, attribute table, QML
               ..                 (65535)
    continuous float32            -9999    average   statistics, QML
    ..         int16 with `scale` -32768   ..        ..
    date       int16 days         -32768   nearest   statistics, QML with calendar dates
    count      own, or uint16     by dtype nearest   statistics, QML
    angle      float32            -9999    nearest   statistics, QML
    ========== ================== ======== ========= =====================================

    [1] where a code is above 254.

    Parameters
    ----------
    data : xarray.DataArray, (y, x) or (band, y, x), or xarray.Dataset of (y, x) variables
        With attributes ``kind``, ``units`` and a CRS. NumPy- or Dask-backed; a Dask array is computed chunk by chunk.
        Rows or columns that run the other way are turned, so that the file is north-up. Coordinates ``wavelength`` and
        ``fwhm`` (nm) along the band dimension are written as GDAL expects them.
    path : path-like
        Local path, ``.tif``; sidecars take its stem. An existing file is replaced, in one step.
    blocks : iterable of ((slice, slice), array), optional
        For a raster larger than memory: its values, one by one, in any order and of any size. Rows and columns in
        `data`, and the values there, ``(y, x)`` or ``(band, y, x)``. Of `data` only form and attributes are used, so
        it may be lazy and hold nothing. Pixels that no block covers are nodata; where blocks overlap, the later one
        stays. The file has the same bytes as without.
    classes : ClassTable, optional
        Of a class map; by default its CF flags, and without those a table of the codes found.
    tags : mapping, optional
        Provenance for the file's default domain (``GEOECO_RECIPE_SHA256`` ...).
    compress : {"ZSTD", "DEFLATE", "LZW", "NONE"}
        DEFLATE for old ArcGIS.
    level : int, optional
        Compression level; 6 by default.
    nodata, dtype, scale, offset : optional
        Override the profile; value = stored x scale + offset.
    description : str, optional
        TIFFTAG_IMAGEDESCRIPTION; ``long_name`` by default.
    datetime : datetime.datetime, optional
        TIFFTAG_DATETIME: of the data or of the recipe. Never the clock, or the bytes would differ on repeat.
    interleave : {"pixel", "band"}, optional
        Of a file with several bands; pixel by default. ``"band"`` needs GDAL 3.11 or newer.
    style : bool
        Whether to write the QML.
    threads : int, optional
        By default the processors this process may use. The bytes do not depend on it.
    memory_bytes : int, optional
        Rasters of more bytes than this, as stored, pass through files beside the output instead of memory (a third
        more for their overviews). By default 2 GiB, for Dask arrays and blocks 256 MiB.

    Returns
    -------
    CogRecord

    Raises
    ------
    InputError
        If the data do not fit their kind, dtype, class table or nodata value, or a block does not fit its window.
    GridError
        If the CRS or the grid is missing, uneven or rotated.
    OutputError
        If the file cannot be written (disk full, no permission) or does not read back as written. Nothing is left
        behind, and an older file of that name stays.

    Notes
    -----
    The profile is that of the common GIS readers: a CRS with an EPSG code is written as that code; one without is
    written as its GeoTIFF keys, and refused where those cannot hold it. Colour and category readers before GDAL 3.11
    need the ``.aux.xml`` to travel along.
    """
    arrays, target = bands_of(data), local_path(path)
    lazy = blocks is not None or any(array.chunks is not None for array in arrays)
    layout = layout_of(data, classes=classes, dtype=dtype, nodata=nodata, scale=scale, offset=offset)
    wishes = _Wishes(
        compress=compress.upper(),
        level=level,
        threads=_available_threads() if threads is None else threads,
        memory_bytes=memory_bytes if memory_bytes is not None else MEMORY_BYTES_LAZY if lazy else MEMORY_BYTES,
        interleave=interleave,
        style=style,
        tags=_tags(layout, tags, description, datetime),
    )

    def fill(make: _Make) -> Planes:
        if blocks is None:
            return _fill_from_arrays(arrays, layout, make, wishes.threads, target)
        return _fill_from_blocks(blocks, layout, make, target)

    return _write(layout, fill, target, wishes)


def _write_window(base: Planes, layout: Layout, window: Window, values: Array, path: Path) -> None:
    values = values[np.newaxis] if values.ndim == 2 else values
    (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(window, layout.shape, strict=True))
    if values.shape != (len(layout.bands), y1 - y0, x1 - x0) or any(part.step not in (None, 1) for part in window):
        raise InputError(
            f"a block of shape {values.shape} does not fit rows {window[0]} and columns {window[1]} of a raster of "
            f"{len(layout.bands)} bands and {layout.shape[0]} x {layout.shape[1]} pixels"
        )
    if layout.flip[0]:
        y0, y1, values = layout.shape[0] - y1, layout.shape[0] - y0, values[:, ::-1]
    if layout.flip[1]:
        x0, x1, values = layout.shape[1] - x1, layout.shape[1] - x0, values[:, :, ::-1]
    stored = layout.encode(values)
    with _guard(path):
        base.write(slice(y0, y1), slice(x0, x1), stored)


def _fill_from_blocks(blocks: Iterable[tuple[Window, Any]], layout: Layout, make: _Make, path: Path) -> Planes:
    base = make((len(layout.bands), *layout.shape))
    with _guard(path):
        base.fill(layout.nodata)
    for window, values in blocks:
        _write_window(base, layout, window, np.asarray(values), path)
    return base


def _fill_from_arrays(arrays: Sequence[xr.DataArray], layout: Layout, make: _Make, threads: int, path: Path) -> Planes:
    shape = (len(layout.bands), *layout.shape)
    lazy = any(array.chunks is not None for array in arrays)
    rows_of = arrays[0].chunks[-2] if arrays[0].chunks is not None else None
    cols_of = arrays[0].chunks[-1] if arrays[0].chunks is not None else None
    windows = list(product(_edges(rows_of, layout.shape[0], BLOCK), _edges(cols_of, layout.shape[1], layout.shape[1])))
    if len(arrays) == 1 and not lazy:
        values = arrays[0].to_numpy()
        values = values[np.newaxis] if values.ndim == 2 else values
        if values.dtype == layout.dtype and not any(layout.flip) and values.flags.c_contiguous:
            with ThreadPoolExecutor(threads) as pool:
                parts = (values[:, rows, cols] for rows, cols in windows)
                if all(pool.map(lambda part: layout.encode(part) is part, parts)):
                    return MemoryPlanes(values)
    base = make(shape)

    def one(window: Window) -> None:
        parts = [array[..., window[0], window[1]].to_numpy() for array in arrays]
        _write_window(base, layout, window, parts[0] if len(parts) == 1 else np.stack(parts), path)

    if lazy:
        # Dask brings its own threads; one chunk at a time bounds the memory
        for window in windows:
            one(window)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, windows))
    return base


def _edges(chunks: tuple[int, ...] | None, size: int, step: int) -> Iterator[slice]:
    start = 0
    for length in chunks if chunks is not None else (step,) * (-(-size // step)):
        yield slice(start, min(start + length, size))
        start += length


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    try:
        yield
    # rasterio lets some of GDAL's errors through under their own names
    except (OSError, RasterioError, CPLE_BaseError) as error:
        raise OutputError(
            f"the GeoTIFF could not be written: {error}",
            where=str(path),
            what_to_do="check free space, quota and permissions of the folder; nothing was left there",
        ) from error


def _write(layout: Layout, fill: _Fill, path: Path, wishes: _Wishes) -> CogRecord:
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"a GeoTIFF is to end in .tif, not {path.name!r}")
    with _guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # beside the target: the last step is a rename, which works only within one file system
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=path.parent))
    try:
        return _write_in(scratch, layout, fill, path, wishes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_in(scratch: Path, layout: Layout, fill: _Fill, path: Path, wishes: _Wishes) -> CogRecord:
    size = len(layout.bands) * layout.shape[0] * layout.shape[1] * layout.dtype.itemsize

    def make(shape: tuple[int, int, int]) -> Planes:
        if size <= wishes.memory_bytes:
            return MemoryPlanes.empty(shape, layout.dtype)
        with _guard(path):
            return FilePlanes(scratch / f"{shape[1]}x{shape[2]}.raw", shape, layout.dtype)

    made = scratch / "cog.tif"
    _check_crs(layout, path)
    # outside the guard: what a lazy array fails to read is no fault of the output
    base = fill(make)
    with _guard(path):
        overviews, statistics, histogram = build_overviews(
            base,
            make,
            method=layout.overview,
            nodata=layout.nodata,
            histogram=layout.kind == "class",
            threads=wishes.threads,
        )
        counts = {int(code): int(histogram[code]) for code in np.flatnonzero(histogram) if code != layout.nodata}
        layout = _with_classes(layout, counts)
        for planes in (base, *overviews):
            planes.close()
        vrt = vrt_xml(layout, base, overviews, statistics, counts, wishes.tags)
        block_bytes = len(layout.bands) * BLOCK * BLOCK * layout.dtype.itemsize
        with rasterio.Env(**_GDAL, GDAL_SWATH_SIZE=max(_SWATH_BYTES, block_bytes)):
            rasterio.shutil.copy(vrt, str(made), driver="COG", **_creation_options(layout, wishes, bool(overviews)))
            _verify(made, layout, len(overviews), wishes.interleave, path)
    with _guard(path):
        return _publish(scratch, made, layout, statistics, counts, path, wishes)


def _check_crs(layout: Layout, path: Path) -> None:
    """Refuse a CRS that GeoTIFF keys cannot hold, before any work is done; those with an EPSG code they all can."""
    if layout.crs.to_epsg() is not None:
        return
    with rasterio.Env(**_GDAL), rasterio.MemoryFile() as memory:
        form = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
        with memory.open(**form, crs=layout.crs, transform=layout.transform):
            pass
        with memory.open() as src:
            held = src.crs
    if held != layout.crs:
        raise OutputError(
            f"a GeoTIFF cannot hold the CRS of {layout.name!r}",
            where=str(path),
            what_to_do="reproject to a CRS with an EPSG code, or to one of the usual projections",
        )


def _with_classes(layout: Layout, counts: Mapping[int, int]) -> Layout:
    if layout.kind != "class":
        return layout
    if layout.classes is None:
        found = {code: f"class {code}" for code in counts} or {0: "class 0"}
        return replace(layout, classes=ClassTable.of(found, name=layout.bands[0].name))
    unknown = {code: count for code, count in counts.items() if code not in layout.classes.codes}
    if unknown:
        listed = ", ".join(f"{code} ({count} px)" for code, count in list(unknown.items())[:10])
        raise InputError(
            f"class map {layout.name!r} holds codes that class table {layout.classes.name!r} does not have: {listed}",
            what_to_do=f"add them to the table, or declare the nodata value of the data (here {layout.nodata:g})",
        )
    return layout


def _creation_options(layout: Layout, wishes: _Wishes, overviews: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "BLOCKSIZE": BLOCK,
        "COMPRESS": wishes.compress,
        "BIGTIFF": "IF_SAFER",
        # GDAL's own thread hands out blocks and mostly waits: one more than processors keeps all of them compressing
        "NUM_THREADS": wishes.threads + 1 if wishes.threads > 1 else 1,
        # explicit, although ours are used: the driver's own choice for floats is CUBIC
        "OVERVIEW_RESAMPLING": layout.overview.upper(),
        "OVERVIEWS": "FORCE_USE_EXISTING" if overviews else "NONE",
    }
    if wishes.compress in ("ZSTD", "DEFLATE"):
        options["LEVEL"] = DEFAULT_LEVEL if wishes.level is None else wishes.level
    if layout.kind != "class" and wishes.compress != "NONE":
        options["PREDICTOR"] = "YES"
    if wishes.interleave is not None:
        options["INTERLEAVE"] = wishes.interleave.upper()
    return options


def _verify(made: Path, layout: Layout, overviews: int, interleave: str | None, path: Path) -> None:
    # a full disk may leave a file whose header is whole and whose last pixels are missing
    with rasterio.open(made) as src:
        found: dict[str, Any] = {
            "size": src.shape,
            "data types": set(src.dtypes),
            "bands": src.descriptions,
            "nodata": set(src.nodatavals),
            "CRS": src.crs,
            "transform": src.transform,
            "overviews": [len(src.overviews(band)) for band in src.indexes],
        }
        wanted: dict[str, Any] = {
            "size": layout.shape,
            "data types": {layout.dtype.name},
            "bands": tuple(band.name for band in layout.bands),
            "nodata": {layout.nodata},
            "CRS": layout.crs,
            "transform": layout.transform,
            "overviews": [overviews] * len(layout.bands),
        }
        if interleave is not None and len(layout.bands) > 1:
            # GDAL before 3.11 ignores the wish in silence
            found["interleaving"], wanted["interleaving"] = src.interleaving.name, interleave
        last = [(edge - 1) // BLOCK for edge in layout.shape]
        place = f"{last[1]}_{last[0]}"
        band = len(layout.bands)
        start = int(src.get_tag_item(f"BLOCK_OFFSET_{place}", dm="TIFF", bidx=band) or 0)
        length = int(src.get_tag_item(f"BLOCK_SIZE_{place}", dm="TIFF", bidx=band) or 0)
    for key, value in wanted.items():
        same = value.almost_equals(found[key], precision=1e-9) if key == "transform" else value == found[key]
        if not same:
            raise OutputError(f"{key} read back as {found[key]}, not {value}", where=str(path))
    if length and start + length > made.stat().st_size:
        raise OutputError("the last block of the file is missing", where=str(path), what_to_do="check free space")


def _publish(
    scratch: Path,
    made: Path,
    layout: Layout,
    statistics: list[BandStatistics],
    counts: Mapping[int, int],
    path: Path,
    wishes: _Wishes,
) -> CogRecord:
    aux, style = Path(f"{path}.aux.xml"), path.with_suffix(".qml")
    texts: dict[Path, str] = {}
    if layout.classes is not None:
        texts[aux] = aux_xml(layout.classes, counts)
    if wishes.style:
        texts[style] = qml(layout, statistics)
    moves: list[tuple[Path, Path]] = []
    for final, text in texts.items():
        temporary = scratch / final.name
        temporary.write_text(text, encoding="utf-8")
        moves.append((temporary, final))
    sidecars = tuple(_written(temporary, final) for temporary, final in moves)
    cog = _written(made, path)
    if aux not in texts:
        # of an earlier file of that name: it would speak of other classes
        aux.unlink(missing_ok=True)
    # the TIFF last: who sees it sees all of it
    for temporary, final in [*moves, (made, path)]:
        temporary.replace(final)
    return CogRecord(
        path=path,
        sha256=cog.sha256,
        bytes=cog.bytes,
        sidecars=sidecars,
        kind=layout.kind,
        units=layout.units,
        dtype=layout.dtype.name,
        nodata=layout.nodata,
        scale=layout.scale,
        offset=layout.offset,
        bands=tuple(band.name for band in layout.bands),
        statistics=tuple(statistics),
        classes=layout.classes,
        counts=counts if layout.kind == "class" else {},
    )


def _written(temporary: Path, final: Path) -> WrittenFile:
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return WrittenFile(final, digest.hexdigest(), temporary.stat().st_size)


def local_path(path: str | os.PathLike[str]) -> Path:
    """Take a path of this machine's file system; outputs are written there and uploaded by whoever needs it.

    Raises
    ------
    InputError
        If it is a URL or one of GDAL's virtual paths.
    """
    text = os.fspath(path)
    if "://" in text or text.startswith("/vsi"):
        raise InputError(
            f"{text!r} is not a path on this machine", what_to_do="write to a local path and upload what it names"
        )
    return Path(text)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what a killed process left behind in a folder and below: never a finished file.

    Only while nothing is being written there.

    Returns
    -------
    list of pathlib.Path
        What was removed.
    """
    found = sorted(Path(folder).rglob(f"{_SCRATCH}*"))
    for leftover in found:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return found


def cog_record(path: str | os.PathLike[str]) -> CogRecord:
    """Read back the record of a file that `write_cog` wrote, from the file and its sidecars.

    Raises
    ------
    OutputError
        If the file cannot be read or was not written by geoeco.
    """
    path = Path(path)
    try:
        with rasterio.open(path) as src:
            tags = src.tags()
            bands = tuple(str(description) for description in src.descriptions)
            band_tags = [src.tags(band) for band in src.indexes]
            dtype, nodata, total = src.dtypes[0], src.nodata, src.width * src.height
            scale, offset, units = src.scales[0], src.offsets[0], src.units[0] or ""
        candidates = (Path(f"{path}.aux.xml"), path.with_suffix(".qml"))
        sidecars = tuple(_written(sidecar, sidecar) for sidecar in candidates if sidecar.exists())
        cog = _written(path, path)
        aux = candidates[0].read_text(encoding="utf-8") if candidates[0].exists() else None
    except (OSError, RasterioError) as error:
        raise OutputError(f"the GeoTIFF cannot be read: {error}", where=str(path)) from error
    kind = tags.get("GEOECO_KIND")
    if kind is None or nodata is None:
        raise OutputError("the GeoTIFF was not written by geoeco: it does not tell its kind", where=str(path))
    classes, counts = (None, {}) if aux is None else read_aux_xml(aux, bands[0])
    return CogRecord(
        path=path,
        sha256=cog.sha256,
        bytes=cog.bytes,
        sidecars=sidecars,
        kind=kind,
        units=units,
        dtype=dtype,
        nodata=nodata,
        scale=scale,
        offset=offset,
        bands=bands,
        statistics=() if kind == "class" else tuple(read_statistics(own, total) for own in band_tags),
        classes=classes,
        counts=counts,
    )
