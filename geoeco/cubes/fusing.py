"""From the scenes of each solar day to one masked layer a day, in the integers that are stored.

The one place where pixels are masked, fused and scaled: the eager cube, the lazy cube and the store are the same
numbers because all three come from here.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from geoeco.cubes.reading import Raster
from geoeco.cubes.samplers import Sampler, Window, union
from geoeco.cubes.scenes import SCL, Scene
from geoeco.errors import ReadError
from geoeco.gdal import gdal_env
from geoeco.sensors import sentinel2

__all__ = ["FILL", "MOST_THREADS", "SCALE", "BadScene", "Clear", "Stack", "Tiling", "available_threads", "pages"]

#: Stored reflectance: int16 times SCALE, FILL where there is none.
SCALE = sentinel2.STORED_SCALE
FILL = sentinel2.REFLECTANCE_NODATA
_HIGHEST = 32767
#: More readers at a time only fill the memory.
MOST_THREADS = 4

Int16 = npt.NDArray[np.int16]
UInt8 = npt.NDArray[np.uint8]


class BadScene(Exception):  # noqa: N818  # never reaches the user: the caller drops the scene or raises its cause
    """A scene of which an asset cannot be read."""

    def __init__(self, scene: Scene, band: str, error: ReadError) -> None:
        super().__init__(scene.id, band)
        self.scene, self.band, self.error = scene, band, error

    @property
    def record(self) -> dict[str, str]:
        """What ledgers keep."""
        return {"item": self.scene.id, "asset": self.band, "code": self.error.code, "what": self.error.what}


@dataclass(frozen=True)
class Clear:
    """Which pixels of which scene a region is filled with.

    Attributes
    ----------
    planes : dict
        By scene id: one bit a pixel, ``(y, ceil(x / 8))``; scenes that fill nothing are absent.
    width : int
        Pixels along x.
    """

    planes: dict[str, UInt8]
    width: int

    def of(self, scene: Scene) -> npt.NDArray[np.bool_] | None:
        """Pixels ``(y, x)`` that the scene fills, or None where it fills none."""
        plane = self.planes.get(scene.id)
        return None if plane is None else np.unpackbits(plane, axis=1, count=self.width).view(np.bool_)


@dataclass(frozen=True)
class Tiling:
    """How a file is cut into tiles, and which part of it each of some grids needs.

    Attributes
    ----------
    tile : tuple of int
        Rows and columns of a tile.
    itemsize : int
        Bytes a pixel.
    windows : list of Window or None
    """

    tile: tuple[int, int]
    itemsize: int
    windows: list[Window | None]

    def cost(self, groups: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Tiles decoded, and pixels of the largest window, when the grids are read in groups."""
        tiles, largest = 0, 0
        for group in groups:
            window = union(self.windows[i] for i in group)
            if window is not None:
                top, bottom, left, right = window
                rows, cols = self.tile
                tiles += (math.ceil(bottom / rows) - top // rows) * (math.ceil(right / cols) - left // cols)
                largest = max(largest, (bottom - top) * (right - left))
        return tiles, largest


def pages(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make an array of zeros in pages of its own, which go back to the system with it.

    What threads allocate and free by turns stays with the C library's allocator otherwise, and a worker's memory
    grows beyond what any one step of it needs.
    """
    kind = np.dtype(dtype)
    held = mmap.mmap(-1, max(1, math.prod(shape) * kind.itemsize))
    return np.frombuffer(held, kind, math.prod(shape)).reshape(shape)


def available_threads() -> int:
    """Processors that this process may use, at most `MOST_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


class Stack:
    """Scenes by solar day, and the threads that read them.

    Parameters
    ----------
    days : sequence of sequence of Scene
        As `scenes_by_day` gives them; a day without scenes is a layer without data.
    mask : bool or mapping
        True: the default classes are masked. A mapping: settings of `geoeco.sensors.sentinel2.scl_mask`. False:
        everything that has data is taken.
    sign : str, optional
        Signing method, applied just before a file is opened.
    threads : int, optional
        Files read at a time.
    """

    def __init__(
        self,
        days: Sequence[Sequence[Scene]],
        *,
        mask: bool | Mapping[str, Any] = True,
        sign: str | None = None,
        threads: int | None = None,
        cache_mib: int = 16,
    ) -> None:
        self.days = days
        self.mask = mask
        self._settings = dict(mask) if isinstance(mask, Mapping) else {}
        self._radius = float(self._settings.get("radius_m", sentinel2.DILATION_RADIUS_M))
        self.sign = sign
        self._cache_mib = cache_mib
        self.pool = ThreadPoolExecutor(threads or available_threads())
        self._rasters: dict[tuple[str, str], Raster] = {}
        self._samplers: dict[tuple[Any, ...], Sampler] = {}
        self._staged: dict[tuple[str, str], tuple[Window, npt.NDArray[Any]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.close_files()

    def close_files(self) -> None:
        """Close the open files, which also frees GDAL's cache of their tiles."""
        self._staged.clear()
        for raster in self._rasters.values():
            raster.close()
        self._rasters.clear()

    def map(self, work: Any, *arguments: Sequence[Any]) -> list[Any]:
        """Results of `work` on each set of arguments, in order; the first fault is raised when all have stopped."""
        futures: list[Future[Any]] = [self.pool.submit(work, *each) for each in zip(*arguments, strict=True)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.exception()
            raise

    def tiling(self, band: str, geoboxes: Sequence[GeoBox]) -> Tiling | None:
        """How the band's files are cut into tiles, by the first file that meets the grids; None if none does.

        Parameters
        ----------
        band : str
        geoboxes : sequence of odc.geo.geobox.GeoBox
            Grids whose windows in the file are wanted, one a shard.
        """
        with gdal_env(self._cache_mib):
            for scene in (scene for day in self.days for scene in day):
                try:
                    raster = self._raster(scene, band)
                except ReadError as error:
                    raise BadScene(scene, band, error) from error
                windows = [self._window(raster, band, geobox) for geobox in geoboxes]
                if any(window is not None for window in windows):
                    return Tiling(raster.tile, raster.dtype.itemsize, windows)
        return None

    def stage(self, band: str, geoboxes: Sequence[GeoBox], clears: Sequence[Clear | None]) -> None:
        """Read what the files hold of some grids, once, so that no tile is decoded for each grid anew.

        Parameters
        ----------
        band : str
        geoboxes : sequence of odc.geo.geobox.GeoBox
        clears : sequence of Clear or None
            What is wanted of each scene, by grid; None: all.
        """
        self._staged.clear()
        scenes = [scene for day in self.days for scene in day]
        n = len(scenes)
        self.map(self._stage_scene, scenes, [band] * n, [geoboxes] * n, [clears] * n)

    def _stage_scene(self, scene: Scene, band: str, geoboxes: Sequence[GeoBox], clears: Sequence[Clear | None]) -> None:
        wanted = [g for g, clear in zip(geoboxes, clears, strict=True) if clear is None or scene.id in clear.planes]
        if not wanted:
            return
        with gdal_env(self._cache_mib):
            try:
                raster = self._raster(scene, band)
                window = union(self._window(raster, band, geobox) for geobox in wanted)
                if window is not None:
                    shape = window[1] - window[0], window[3] - window[2]
                    self._staged[scene.id, band] = window, raster.read(window, pages(shape, raster.dtype))
            except ReadError as error:
                raise BadScene(scene, band, error) from error

    def _window(self, raster: Raster, band: str, geobox: GeoBox) -> Window | None:
        """Part of a file that a grid needs, for SCL with what may grow into it."""
        found = self._sampler(raster, geobox, "nearest" if band == SCL else "bilinear").window
        if found is None or band != SCL or not self.mask:
            return found
        halo = sentinel2.dilation_halo(self._radius, raster.transform.a)
        rows, cols = raster.shape
        return (
            max(found[0] - halo, 0),
            min(found[1] + halo, rows),
            max(found[2] - halo, 0),
            min(found[3] + halo, cols),
        )

    def _pixels(self, scene: Scene, band: str, raster: Raster, window: Window) -> npt.NDArray[Any]:
        staged = self._staged.get((scene.id, band))
        if staged is None:
            return raster.read(window)
        (top, _, left, _), pixels = staged
        return pixels[window[0] - top : window[1] - top, window[2] - left : window[3] - left]

    def classes(self, geobox: GeoBox, *, padded: tuple[int, int] | None = None) -> tuple[UInt8, Clear]:
        """Scene classification of each day, and which pixels of which scene are used.

        The first scene that is clear at a pixel gives all its bands there. Where none is clear, the class is that
        of the first scene with data.

        Parameters
        ----------
        geobox : odc.geo.geobox.GeoBox
            Region.
        padded : tuple of int, optional
            Rows and columns of the result, beyond the region filled with 0.

        Returns
        -------
        scl : numpy.ndarray
            ``(time, y, x)`` uint8, 0 = no data.
        clear : Clear
        """
        shape = padded or _shape(geobox)
        scl = pages((len(self.days), *shape), np.uint8)
        planes: dict[str, UInt8] = {}
        rows, cols = _shape(geobox)
        layers = [layer[:rows, :cols] for layer in scl]
        for found in self.map(self._classes_of_day, self.days, [geobox] * len(self.days), layers):
            planes.update(found)
        return scl, Clear(planes, cols)

    def reflectance(self, band: str, geobox: GeoBox, clear: Clear, out: Int16) -> npt.NDArray[np.int64]:
        """Fill a band's stored integers.

        Parameters
        ----------
        band : str
        geobox : odc.geo.geobox.GeoBox
            Region, the one that `clear` was made for.
        clear : Clear
        out : numpy.ndarray
            ``(time, y, x)`` int16, at least as large as the region; filled with FILL first.

        Returns
        -------
        numpy.ndarray
            Pixels with data, by day.
        """
        rows, cols = _shape(geobox)
        layers = [layer[:rows, :cols] for layer in out]
        days = len(self.days)
        out.fill(FILL)
        counts = self.map(self._band_of_day, self.days, [band] * days, [geobox] * days, [clear] * days, layers)
        return np.array(counts, np.int64)

    def _raster(self, scene: Scene, band: str) -> Raster:
        key = scene.id, band
        if key not in self._rasters:
            dtypes = ("uint8",) if band == SCL else ("uint16", "int16", "uint8")
            self._rasters[key] = Raster(scene.href(band, self.sign), where=scene.where(band), dtypes=dtypes)
        return self._rasters[key]

    def _sampler(self, raster: Raster, geobox: GeoBox, resampling: str) -> Sampler:
        # made again by two threads at worst; a lock would make all wait for one projection
        key = raster.grid, geobox, resampling
        if key not in self._samplers:
            self._samplers[key] = raster.sampler(geobox, resampling)
        return self._samplers[key]

    def forget_samplers(self) -> None:
        """Free the projected coordinates of the last regions."""
        self._samplers.clear()

    def _classes_of_day(self, scenes: Sequence[Scene], geobox: GeoBox, out: UInt8) -> dict[str, UInt8]:
        planes: dict[str, UInt8] = {}
        taken = np.zeros(out.shape, np.bool_)
        with gdal_env(self._cache_mib):
            for scene in scenes:
                found = self._classes_of_scene(scene, geobox)
                if found is None:
                    continue
                scl, clear = found
                np.copyto(out, scl, where=out == 0)
                clear &= ~taken
                if clear.any():
                    np.copyto(out, scl, where=clear)
                    taken |= clear
                    planes[scene.id] = np.packbits(clear, axis=1)
        return planes

    def _classes_of_scene(self, scene: Scene, geobox: GeoBox) -> tuple[UInt8, npt.NDArray[np.bool_]] | None:
        try:
            raster = self._raster(scene, SCL)
            sampler = self._sampler(raster, geobox, "nearest")
            # clouds grow at the layer's own pixel size; what grows in from outside the region must be read too
            wide = self._window(raster, SCL, geobox)
            if sampler.window is None or wide is None:
                return None
            pixels = self._pixels(scene, SCL, raster, wide)
        except ReadError as error:
            raise BadScene(scene, SCL, error) from error
        top, bottom, left, right = sampler.window
        core = slice(top - wide[0], bottom - wide[0]), slice(left - wide[2], right - wide[2])
        if self.mask:
            clear = sentinel2.scl_mask(pixels, **self._settings, pixel_size=raster.transform.a).astype(np.uint8)[core]
        else:
            clear = (pixels[core] != 0).astype(np.uint8)
        return sampler(pixels[core], 0), sampler(clear, 0).astype(np.bool_)

    def _band_of_day(self, scenes: Sequence[Scene], band: str, geobox: GeoBox, clear: Clear, out: Int16) -> int:
        count = 0
        with gdal_env(self._cache_mib):
            for scene in scenes:
                wanted = clear.of(scene)
                if wanted is None:
                    continue
                try:
                    raster = self._raster(scene, band)
                    sampler = self._sampler(raster, geobox, "bilinear")
                    if sampler.window is None:
                        continue
                    radiometry = scene.radiometry(band)
                    numbers = sampler(self._pixels(scene, band, raster, sampler.window), radiometry.nodata)
                except ReadError as error:
                    raise BadScene(scene, band, error) from error
                count += _place(out, numbers, wanted, radiometry)
        return count


def _shape(geobox: GeoBox) -> tuple[int, int]:
    rows, cols = (int(n) for n in geobox.shape)
    return rows, cols


def _place(
    out: Int16, numbers: npt.NDArray[Any], wanted: npt.NDArray[np.bool_], radiometry: sentinel2.Radiometry
) -> int:
    """Write the wanted pixels that have data, as stored integers; return how many."""
    wanted &= numbers != numbers.dtype.type(radiometry.nodata)
    count = int(np.count_nonzero(wanted))
    factor, add = radiometry.scale / SCALE, radiometry.offset / SCALE
    whole = round(add)
    if numbers.dtype == np.uint16 and abs(factor - 1) < 1e-9 and abs(add - whole) < 1e-6 and -32767 <= whole <= 0:
        # two's complement: adding 65536 + offset and reading the bits as int16 is the subtraction, in place and
        # without a table look-up for each pixel; the same numbers as to_reflectance gives
        stored = np.minimum(numbers, np.uint16(_HIGHEST - whole))
        stored += np.uint16(whole % 65536)
        values = stored.view(np.int16)
    else:
        values = sentinel2.to_reflectance(numbers, radiometry, dtype="int16")
    # out = wanted ? values : out, by bits: NumPy has no fast masked copy of 16-bit numbers
    chosen = wanted.astype(np.int16)
    np.negative(chosen, out=chosen)
    values ^= out
    values &= chosen
    out ^= values
    return count
