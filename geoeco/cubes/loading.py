"""A cube straight from items, in memory or Dask-lazy: what notebooks use; runs write to a store instead."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoeco.cubes.fusing import FILL, SCALE, BadScene, Stack
from geoeco.cubes.scenes import SCL, scenes_by_day, solar_days
from geoeco.cubes.stores import CLASSES, REFLECTANCE, class_attributes
from geoeco.errors import GridError, InputError
from geoeco.sensors import sentinel2
from geoeco.variables import describe

__all__ = ["load"]

DEFAULT_BANDS = ("B02", "B03", "B04", "B08")
#: Rows that are read at a time hold this many bytes of one band.
_STRIP_BYTES = 64 << 20


def load(
    items: Sequence[pystac.Item],
    geobox: GeoBox,
    *,
    bands: Sequence[str] = DEFAULT_BANDS,
    chunks: Mapping[str, int] | int | None = None,
    mask: bool | Mapping[str, Any] = True,
    radiometry: Mapping[str, sentinel2.Radiometry] | None = None,
    sign: str | None = None,
    on_bad_scene: Literal["drop", "fail"] = "fail",
    threads: int | None = None,
) -> xr.Dataset:
    """Masked reflectance of the items on a grid, one layer a solar day.

    Parameters
    ----------
    items : sequence of pystac.Item
        From one or more tiles and UTM zones.
    geobox : odc.geo.geobox.GeoBox
        Grid of the cube; north up.
    bands : sequence of str
        Names such as ``"B04"``.
    chunks : mapping or int, optional
        ``{"y": 512, "x": 512}`` (also ``"time"``) or one number for both: Dask-lazy. None: read now. The numbers are
        the same.
    mask : bool or mapping
        True: saturated, shadow, cloud, cirrus and their surroundings become NaN; snow stays. A mapping gives
        ``masked``, ``dilate`` and ``radius_m`` of `geoeco.sensors.sentinel2.scl_mask`. False masks nothing but nodata.
    radiometry : mapping, optional
        By item id, where not what the metadata say (`geoeco.sensors.sentinel2.verify_radiometry`).
    sign : str, optional
        Signing method of `geoeco.catalog.sign`, applied in the task that reads.
    on_bad_scene : {"fail", "drop"}
        Whether an item with a missing or corrupt asset is an error, or left out with a warning (in that chunk).
    threads : int, optional
        Files read at a time by one chunk.

    Returns
    -------
    xarray.Dataset
        ``reflectance (time, band, y, x)`` float32, NaN where invalid; ``scl (time, y, x)`` uint8, 0 = no data. Where
        scenes of one day overlap, the first clear one fills the pixel, in all bands: those in the grid's own CRS
        first, then in order of id.

    Raises
    ------
    InputError, GridError
        For no items, unknown settings, a grid without CRS or not north up.
    ReadError
        With ``on_bad_scene="fail"``.
    TransientError
        For faults that may pass.
    """
    if not items:
        raise InputError("there are no items to load", what_to_do="widen the search")
    if geobox.crs is None:
        raise GridError("the grid has no CRS")
    if not bands or len(set(bands)) != len(bands) or SCL in bands:
        raise InputError(f"bands {list(bands)}: give each reflectance band once; SCL comes by itself")
    days = solar_days(items, geobox)
    grouped = scenes_by_day(items, days, geobox, radiometry)
    reader = _Reader(tuple(bands), mask, sign, on_bad_scene, threads)
    if chunks is None:
        reflectance, scl = reader(grouped, geobox)
    else:
        reflectance, scl = _lazy(reader, grouped, geobox, chunks)
    coords = {
        "time": days.astype("datetime64[ns]"),
        "band": list(bands),
        **xr_coords(geobox, dims=("y", "x")),
    }
    data = xr.Dataset(
        {REFLECTANCE: (("time", "band", "y", "x"), reflectance), CLASSES: (("time", "y", "x"), scl)}, coords
    )
    data[REFLECTANCE] = describe(data[REFLECTANCE], kind="continuous", units="1", long_name="surface reflectance")
    data[CLASSES] = data[CLASSES].assign_attrs(class_attributes())
    for variable in data.data_vars.values():
        variable.encoding["grid_mapping"] = "spatial_ref"
    return data


class _Reader:
    """Reads the layers of some days on one grid; travels to Dask's workers."""

    def __init__(
        self,
        bands: tuple[str, ...],
        mask: bool | Mapping[str, Any],
        sign: str | None,
        on_bad_scene: str,
        threads: int | None,
    ) -> None:
        if on_bad_scene not in ("drop", "fail"):
            raise InputError(f"on_bad_scene={on_bad_scene!r}", what_to_do="use 'drop' or 'fail'")
        self.bands, self.mask, self.sign, self.on_bad_scene, self.threads = bands, mask, sign, on_bad_scene, threads

    def __call__(self, days: Sequence[Sequence[Any]], geobox: GeoBox) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        while True:
            try:
                return self._read(days, geobox)
            except BadScene as bad:
                if self.on_bad_scene == "fail":
                    raise bad.error from None
                warnings.warn(f"left out {bad.record}", stacklevel=2)
                days = [[scene for scene in day if scene.id != bad.scene.id] for day in days]

    def _read(self, days: Sequence[Sequence[Any]], geobox: GeoBox) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        rows, cols = (int(n) for n in geobox.shape)
        step = max(1, _STRIP_BYTES // (len(days) * cols * 2))
        strips = [slice(top, min(top + step, rows)) for top in range(0, rows, step)]
        reflectance = np.empty((len(days), len(self.bands), rows, cols), np.float32)
        scl = np.empty((len(days), rows, cols), np.uint8)
        with Stack(days, mask=self.mask, sign=self.sign, threads=self.threads) as stack:
            clears = []
            for strip in strips:
                scl[:, strip], clear = stack.classes(geobox[strip, :])
                clears.append(clear)
            stack.close_files()
            for number, band in enumerate(self.bands):
                for strip, clear in zip(strips, clears, strict=True):
                    stored = np.empty((len(days), strip.stop - strip.start, cols), np.int16)
                    stack.reflectance(band, geobox[strip, :], clear, stored)
                    target = reflectance[:, number, strip]
                    np.multiply(stored, np.float32(SCALE), out=target, dtype=np.float32)
                    target[stored == FILL] = np.nan
                stack.close_files()
        return reflectance, scl


def _lazy(
    reader: _Reader, days: Sequence[Sequence[Any]], geobox: GeoBox, chunks: Mapping[str, int] | int
) -> tuple[Any, Any]:
    from dask.delayed import delayed

    # Dask's array functions carry no types
    da: Any = importlib.import_module("dask.array")

    sizes = {"y": chunks, "x": chunks} if isinstance(chunks, int) else dict(chunks)
    if unknown := set(sizes) - {"time", "band", "y", "x"}:
        raise InputError(f"chunks along {sorted(unknown)}", what_to_do="give sizes along time, y and x")
    rows, cols = (int(n) for n in geobox.shape)

    def cuts(name: str, size: int) -> list[slice]:
        step = sizes.get(name, size)
        step = size if step == -1 else step
        if step < 1:
            raise InputError(f"chunks of {step} along {name}", what_to_do="give a positive number, or -1 for one chunk")
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    read = delayed(reader, pure=False)
    reflectance, scl = [], []
    for t in cuts("time", len(days)):
        part = delayed(days[t], traverse=False)
        layers, classes = [], []
        for y in cuts("y", rows):
            row, class_row = [], []
            for x in cuts("x", cols):
                # one task for both, so that SCL is read once
                pixels = read(part, geobox[y, x])
                shape = t.stop - t.start, y.stop - y.start, x.stop - x.start
                row.append(da.from_delayed(pixels[0], (shape[0], len(reader.bands), *shape[1:]), dtype=np.float32))
                class_row.append(da.from_delayed(pixels[1], shape, dtype=np.uint8))
            layers.append(da.concatenate(row, axis=-1))
            classes.append(da.concatenate(class_row, axis=-1))
        reflectance.append(da.concatenate(layers, axis=-2))
        scl.append(da.concatenate(classes, axis=-2))
    return da.concatenate(reflectance, axis=0), da.concatenate(scl, axis=0)
