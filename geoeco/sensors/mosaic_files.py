"""Files of orthomosaics: which may be opened and how, so that none makes GDAL read another one behind the user's back.

A mosaic is a TIFF, a virtual raster (VRT) of TIFFs in its own folder, or a PNG. The kind is told by the first bytes,
never by the name. Not about what is in the file: that is `geoeco.sensors.orthomosaic`.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from geoeco.errors import InputError, ReadError
from geoeco.gdal import gdal_env, gdal_story

__all__ = ["check_whole", "content_hash", "opened_mosaic", "read_fault", "source_path"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"

#: A virtual raster of ten thousand tiles is a few MB; more than this is no description of a mosaic.
_LARGEST_VRT = 32 << 20
#: Open files kept by each thread.
_KEPT_OPEN = 8
#: How much of a file is hashed: this many pieces of this many bytes, evenly spread from the first byte to the last.
_PIECES, _PIECE_BYTES = 256, 4096

#: All that a virtual raster may hold: a mosaic of parts of files. What computes pixels (pixel functions, warping,
#: kernels, raw bands, sub-data sets, options for drivers) is not among it.
_VRT_ELEMENTS = frozenset(
    {
        *("VRTDataset", "SRS", "GeoTransform", "Metadata", "MDI", "OverviewList", "BlockXSize", "BlockYSize"),
        *(
            "VRTRasterBand",
            "Description",
            "ColorInterp",
            "NoDataValue",
            "HideNoDataValue",
            "Scale",
            "Offset",
            "UnitType",
        ),
        *("ColorTable", "Entry", "CategoryNames", "Category", "Histograms", "MaskBand"),
        *("SimpleSource", "ComplexSource", "SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect"),
        *("NODATA", "UseMaskBand"),
    }
)


def source_path(path: str | os.PathLike[str]) -> Path:
    """Absolute path of a mosaic's file.

    Raises
    ------
    InputError
        If it is not a plain file of this machine.
    """
    text = os.fspath(path)
    if not text or "\0" in text or text.lstrip("/").lower().startswith("vsi") or "://" in text:
        raise InputError(
            f"{text!r} is not a path of a file",
            what_to_do="give a GeoTIFF, a VRT or a PNG on a disk that every worker sees",
        )
    found = Path(text).absolute()
    if not found.exists():
        raise InputError("there is no such file", where=str(found), what_to_do="check the path")
    if found.with_name(f"{found.name}.msk").exists():
        raise InputError(
            f"the mask lies in a file of its own, {found.name}.msk, which is not read",
            where=str(found),
            what_to_do=f"bring both into one file: gdal_translate -of COG {found.name} OUT.tif",
        )
    if not found.is_file():
        raise InputError("this is not a file", where=str(found), what_to_do="give a GeoTIFF, a VRT or a PNG")
    return found


def read_fault(error: BaseException, where: str, doing: str) -> ReadError:
    """What GDAL said when a file could not be opened or read, as an error that says what to do."""
    return ReadError(
        f"{doing} failed: {gdal_story(error)[:300]}",
        where=where,
        what_to_do="the file is damaged or cut off: copy it again and check it with `gdalinfo -checksum`",
        code="asset-corrupt",
    )


def _driver(path: Path) -> str:
    """Name the one driver that may open a file, by its first bytes; a virtual raster is looked through first."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise read_fault(error, str(path), "opening") from error
    if head.startswith(_TIFF):
        return "GTiff"
    if head.startswith(_PNG):
        return "PNG"
    if b"<VRTDataset" in head:
        _vrt_sources(path)
        return "VRT"
    raise ReadError(
        "this is no TIFF, VRT or PNG" if head else "this file is empty",
        where=str(path),
        what_to_do="convert it: gdal_translate -of COG IN OUT.tif",
        code="asset-layout",
    )


def _vrt_sources(path: Path) -> list[Path]:
    """Files that a virtual raster is made of; refused where it holds more than a mosaic of TIFFs in its own folder."""

    def refused(why: str) -> ReadError:
        return ReadError(
            f"this virtual raster is not read: {why}",
            where=str(path),
            what_to_do="make one file of it where you trust it: gdal_translate -of COG IN.vrt OUT.tif",
            code="href-refused",
        )

    if path.is_symlink():
        raise refused("it is a link, and GDAL looks for its sources where that leads")
    if path.stat().st_size > _LARGEST_VRT:
        raise refused(f"it is larger than {_LARGEST_VRT >> 20} MiB")
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise refused("it declares a document type")
    try:
        root = ET.fromstring(text)  # noqa: S314 -- neither document type nor entities got here
    except ET.ParseError as error:
        raise refused(f"it is no XML: {error}") from error
    folder = path.parent.resolve()
    sources: dict[str, Path] = {}
    for element in root.iter():
        if element.tag not in _VRT_ELEMENTS:
            raise refused(f"it holds <{element.tag}>")
        if element.get("subClass", "VRTRasterBand") != "VRTRasterBand":
            raise refused(f"it holds a {element.get('subClass')}")
        named = (element.text or "").strip()
        if element.tag == "SRS" and ("://" in named or named.startswith(("/", "."))):
            raise refused("its CRS is an address")
        if element.tag != "SourceFilename" or named in sources:
            continue
        source = (path.parent / named).resolve()
        # a relative name that is not said to be relative to the file would be looked for in the working folder
        placed = element.get("relativeToVRT") == "1" or named.startswith("/")
        if not (named and placed and source.is_relative_to(folder) and source.is_file()):
            raise refused(f"its source {named!r} is no file of its folder")
        with source.open("rb") as file:
            if not file.read(4).startswith(_TIFF):
                raise refused(f"its source {named!r} is no TIFF")
        sources[named] = source
    if not sources:
        raise refused("it has no source")
    return list(sources.values())


def content_hash(path: Path) -> str:
    """Hash of what a file holds, cheap for the largest, and the same wherever the file lies.

    It is SHA-256 of the file's length and of 256 pieces of 4 KiB, evenly spread from its first byte to its last (of all
    its bytes where it has no more than that). A compressed file in which pixels have changed has other bytes nearly
    everywhere behind them. For a virtual raster, the hashes of its sources in their order, and its own text.
    """
    digest = hashlib.sha256()
    files = [path, *(_vrt_sources(path) if _driver(path) == "VRT" else ())]
    for part in files:
        size = part.stat().st_size
        digest.update(f"{size};".encode())
        with part.open("rb") as file:
            if size <= _PIECES * _PIECE_BYTES:
                digest.update(file.read())
                continue
            for piece in range(_PIECES):
                file.seek(piece * (size - _PIECE_BYTES) // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


class _OpenFiles(threading.local):
    """Open files of one thread: a handle of GDAL is used by one thread of one process only."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.process = os.getpid()
        self.files: OrderedDict[tuple[str, int, int], Any] = OrderedDict()
        # a thread that ends with the interpreter is too late to close them itself
        weakref.finalize(threading.current_thread(), _close, self.files)

    def get(self, path: str) -> Any:
        if self.process != os.getpid():
            # a fork shares the position in the file with its parent
            self._begin()
        stat = Path(path).stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key in self.files:
            self.files.move_to_end(key)
            return self.files[key]
        file = rasterio.open(Path(path), driver=_driver(Path(path)))
        self.files[key] = file
        while len(self.files) > _KEPT_OPEN:
            self.files.popitem(last=False)[1].close()
        return file


def _close(files: OrderedDict[tuple[str, int, int], Any]) -> None:
    """Close what a thread that has ended, or the interpreter at its end, leaves open."""
    while files:
        files.popitem()[1].close()


_FILES = _OpenFiles()


@contextmanager
def opened_mosaic(path: str) -> Iterator[Any]:
    """Open file of a mosaic within GDAL's settings; kept open for the thread's next read.

    Raises
    ------
    ReadError
        If it cannot be opened or read, or is a virtual raster that is more than a mosaic of TIFFs in its folder.
    """
    with gdal_env():
        try:
            file = _FILES.get(path)
        except (RasterioError, OSError) as error:
            raise read_fault(error, path, "opening") from error
        try:
            yield file
        except (RasterioError, OSError) as error:
            raise read_fault(error, path, "reading pixels") from error


def check_whole(file: Any, path: Path) -> None:
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
