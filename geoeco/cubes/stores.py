"""Cubes on disk: Zarr v3, the template written once, pixels by blocks of whole shards.

``reflectance (time, band, y, x)`` int16 and ``scl (time, y, x)`` uint8. A shard holds all dates of one band over a
square of pixels; an inner chunk, the unit of reading, all dates over a smaller square. Nothing is ever appended or
overwritten in part: a block rewrites its own shards whole, so that running it twice leaves the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoeco.cubes.fusing import FILL, MOST_THREADS, SCALE, BadScene, Clear, Stack, Tiling, pages
from geoeco.cubes.scenes import SCL, scenes_by_day
from geoeco.cubes.shards import Objects, encode_shard, write_shard, zstd
from geoeco.errors import GridError, InputError, OutputError
from geoeco.sensors import sentinel2

if TYPE_CHECKING:
    import pystac
    import xarray as xr

__all__ = ["block_memory_bytes", "cube_layout", "open_cube", "template", "write_block"]

REFLECTANCE, CLASSES = "reflectance", "scl"
#: Level 1 packs noisy reflectance as small as level 3 does, three times as fast.
_LEVEL = 1
_SHARD_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 20
_LARGEST_CHUNK = 128
#: What `write_block` may read ahead of one band.
STAGE_MIB = 192
#: GDAL's cache of decoded tiles: what is needed again is staged.
CACHE_MIB = 16
#: Buffers of libraries, thread stacks, free lists of the allocator.
_FIXED = 48 << 20
#: Reading ahead pays where it saves more than this share of the tiles.
_DECODED_TWICE = 1.3
_FINEST_M = 10.0
#: First (inclusive) and last (exclusive) row, then column, of a shard in the cube.
_Window = tuple[tuple[int, int], tuple[int, int]]


def cube_layout(n_times: int, block: int) -> tuple[int, int]:
    """Sides of shard and inner chunk, in pixels, for a number of dates and a block size.

    Parameters
    ----------
    n_times : int
    block : int
        Side of a block; a multiple of 8.

    Returns
    -------
    shard : int
        Divides `block`; a shard holds at most 32 MiB of pixels where that is possible.
    chunk : int
        Divides `shard`; an inner chunk holds at most 1 MiB of pixels where that is possible.

    Raises
    ------
    InputError
        If the block is not a multiple of 8 pixels.
    """
    if block < 8 or block % 8:
        raise InputError(
            f"a block of {block} px cannot be cut into shards", what_to_do="use a multiple of 8, such as 1024"
        )

    def largest(whole: int, limit: float, most: int) -> int:
        sides = [whole // n for n in range(1, whole // 8 + 1) if whole % n == 0 and (whole // n) % 8 == 0]
        return next((s for s in sides if s <= most and s * s * n_times * 2 <= limit), sides[-1])

    shard = largest(block, _SHARD_BYTES, block)
    return shard, largest(shard, _CHUNK_BYTES, _LARGEST_CHUNK)


def template(
    store: str,
    geobox: GeoBox,
    times: npt.ArrayLike,
    bands: Sequence[str],
    *,
    block: int = 1024,
    shard: int | None = None,
    chunk: int | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write the metadata of a cube; pixels follow with `write_block`.

    Parameters
    ----------
    store : str
        Local path or fsspec URL. A template of the same layout that is there already is left as it is.
    geobox : odc.geo.geobox.GeoBox
        Grid of the whole cube.
    times : array of datetime64
        Solar days, ascending, as `solar_days` gives them. The axis is fixed: cubes are not appended to.
    bands : sequence of str
        Names such as ``"B04"``.
    block : int
        Side in pixels of the blocks that will be written; decides shard and chunk where they are not given.
    shard, chunk : int, optional
        Sides in pixels; as `cube_layout` by default.
    attrs : mapping, optional
        More attributes of the store (JSON), for instance what wrote it.

    Raises
    ------
    OutputError
        If something else is there, or it cannot be written.
    InputError, GridError
        For times that do not ascend, bands given twice, a grid without CRS.
    """
    days = np.asarray(times).astype("datetime64[D]")
    if days.ndim != 1 or not days.size or (np.diff(days) <= np.timedelta64(0, "D")).any():
        raise InputError("the times of a cube are days in ascending order, each once", where=store)
    if not bands or len(set(bands)) != len(bands) or SCL in bands:
        raise InputError(f"bands {list(bands)}: give each reflectance band once; SCL comes by itself", where=store)
    if geobox.crs is None:
        raise GridError("the grid has no CRS", where=store)
    chosen_shard, chosen_chunk = cube_layout(days.size, block)
    shard = shard or chosen_shard
    chunk = chunk or math.gcd(chosen_chunk, shard)
    if shard % 8 or shard % chunk:
        raise InputError(f"shard {shard} must be a multiple of 8 and of the chunk {chunk}", where=store)
    objects = Objects(store)
    wanted = _template_objects(geobox, days, tuple(bands), shard, chunk, attrs or {})
    there = objects.get("zarr.json")
    if there is None:
        # the root's metadata come last: a store without them is half made, and is made again
        for key in sorted(wanted, key=lambda k: (k == "zarr.json", k)):
            objects.put(key, [wanted[key]])
        return
    for key, content in wanted.items():
        found = there if key == "zarr.json" else objects.get(key)
        if found is None or not _same(found, content, key):
            raise OutputError(
                f"another store is there already: {key} differs",
                where=store,
                what_to_do="write elsewhere, or remove it first",
                code="store-differs",
            )


def _same(found: bytes, wanted: bytes, key: str) -> bool:
    if found == wanted or not key.endswith("zarr.json"):
        return found == wanted
    try:
        return bool(json.loads(found) == json.loads(wanted))
    except ValueError:
        return False


def _template_objects(
    geobox: GeoBox, days: npt.NDArray[Any], bands: tuple[str, ...], shard: int, chunk: int, attrs: Mapping[str, Any]
) -> dict[str, bytes]:
    """All objects of an empty cube, made in memory."""
    import zarr
    from zarr.codecs import ZstdCodec

    rows, cols = (int(n) for n in geobox.shape)
    n, affine, crs = days.size, tuple(geobox.affine)[:6], CRS(geobox.crs)
    held: dict[str, Any] = {}
    memory = zarr.storage.MemoryStore(held)
    group = zarr.create_group(
        memory,
        zarr_format=3,
        attributes={
            **attrs,
            "Conventions": "CF-1.11",
            "proj:code": f"EPSG:{crs.epsg}" if crs.epsg else None,
            "proj:wkt2": crs.to_wkt(),
            "spatial:dimensions": ["y", "x"],
            "spatial:shape": [rows, cols],
            "spatial:transform": [float(v) for v in affine],
            "spatial:bbox": [float(v) for v in geobox.boundingbox],
        },
    )

    def coordinate(name: str, values: npt.NDArray[Any], attributes: dict[str, Any]) -> None:
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            compressors=None,
            # a fill that no coordinate has: else an axis of zeros would leave no object
            fill_value=np.nan if values.dtype.kind == "f" else -1,
            dimension_names=[name] if values.ndim else [],
            attributes=attributes,
        )
        array[...] = values

    coordinate(
        "time",
        days.astype(np.int64).astype("<i4"),
        {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian", "long_name": "solar day"},
    )
    # codes, because strings are not in the Zarr v3 specification
    coordinate(
        "band",
        np.arange(len(bands), dtype="<i2"),
        {
            "long_name": "band",
            "names": list(bands),
            "wavelength_nm": [sentinel2.BANDS[b].wavelength if b in sentinel2.BANDS else None for b in bands],
        },
    )
    # by hand and not by odc.geo.xr: the first DataArray of a process imports all of dask.array, which no worker needs
    for axis, found in zip(("y", "x"), geobox.coordinates.values(), strict=True):
        coordinate(
            axis,
            np.asarray(found.values, "<f8"),
            {"units": found.units, "resolution": found.resolution, "crs": str(crs)},
        )
    left, width, _, top, _, height = affine[2], affine[0], affine[1], affine[5], affine[3], affine[4]
    reference = crs.proj.to_cf()
    reference |= {"spatial_ref": reference["crs_wkt"], "GeoTransform": f"{left!r} {width!r} 0 {top!r} 0 {height!r}"}
    coordinate("spatial_ref", np.asarray(crs.epsg or 0, "<i4"), reference)
    group.create_array(
        REFLECTANCE,
        shape=(n, len(bands), rows, cols),
        chunks=(n, 1, chunk, chunk),
        shards=(n, 1, shard, shard),
        dtype="<i2",
        fill_value=FILL,
        compressors=ZstdCodec(level=_LEVEL, checksum=True),
        dimension_names=["time", "band", "y", "x"],
        attributes={
            "_FillValue": FILL,
            "scale_factor": SCALE,
            "units": "1",
            "long_name": "surface reflectance",
            "kind": "continuous",
            "grid_mapping": "spatial_ref",
        },
    )
    group.create_array(
        CLASSES,
        shape=(n, rows, cols),
        chunks=(n, chunk, chunk),
        shards=(n, shard, shard),
        dtype="|u1",
        fill_value=0,
        compressors=ZstdCodec(level=_LEVEL, checksum=True),
        dimension_names=["time", "y", "x"],
        attributes={**class_attributes(), "grid_mapping": "spatial_ref"},
    )
    return {key: value.to_bytes() for key, value in held.items()}


def class_attributes() -> dict[str, Any]:
    """Attributes of the scene classification, its classes among them."""
    return {
        "units": "",
        "long_name": "scene classification",
        "kind": "class",
        "flag_values": [c.value for c in sentinel2.SCL_CLASSES],
        "flag_meanings": " ".join(c.name.replace(",", "").replace(" ", "_") for c in sentinel2.SCL_CLASSES),
    }


@dataclass(frozen=True)
class _Layout:
    """What a store says of itself."""

    store: str
    days: npt.NDArray[np.datetime64]
    bands: tuple[str, ...]
    shape: tuple[int, int]
    shard: int
    chunk: int
    transform: tuple[float, ...]
    crs: CRS

    @classmethod
    def read(cls, store: str) -> _Layout:
        objects = Objects(store)
        found = {}
        for name in ("", "reflectance/", "time/", "band/"):
            content = objects.get(f"{name}zarr.json")
            if content is None:
                raise OutputError(
                    "no cube is there", where=store, what_to_do="write its template first", code="no-template"
                )
            found[name] = json.loads(content)
        array, root = found["reflectance/"], found[""]["attributes"]
        grid = array["chunk_grid"]["configuration"]["chunk_shape"]
        inner = array["codecs"][0]["configuration"]["chunk_shape"]
        days = np.frombuffer(objects.get("time/c/0") or b"", "<i4").astype("datetime64[D]")
        return cls(
            store=store,
            days=days,
            bands=tuple(found["band/"]["attributes"]["names"]),
            shape=(array["shape"][2], array["shape"][3]),
            shard=grid[2],
            chunk=inner[2],
            transform=tuple(root["spatial:transform"]),
            crs=CRS(root["proj:wkt2"]),
        )

    def check(self, geobox: GeoBox, y: tuple[int, int], x: tuple[int, int]) -> None:
        same = np.allclose(tuple(geobox.affine)[:6], self.transform, rtol=0, atol=1e-9)
        if tuple(geobox.shape) != self.shape or not same or geobox.crs != self.crs:
            raise GridError(
                "the grid is not the store's",
                where=self.store,
                what_to_do="give the grid of the whole cube that the template was made with",
            )
        for (start, stop), size, axis in ((y, self.shape[0], "y"), (x, self.shape[1], "x")):
            whole = start % self.shard == 0 and (stop % self.shard == 0 or stop == size)
            if not (0 <= start < stop <= size) or not whole:
                raise OutputError(
                    f"{axis} {start}..{stop} is not a whole number of shards of {self.shard} px within {size}",
                    where=self.store,
                    what_to_do="write blocks whose edges are multiples of the shard",
                    code="shard-alignment",
                )

    def shards(self, y: tuple[int, int], x: tuple[int, int]) -> list[list[_Window]]:
        """Rows and columns of the shards of a block, by rows of shards."""
        return [
            [
                ((top, min(top + self.shard, y[1])), (left, min(left + self.shard, x[1])))
                for left in _steps(x, self.shard)
            ]
            for top in _steps(y, self.shard)
        ]


def _steps(span: tuple[int, int], step: int) -> range:
    return range(span[0], span[1], step)


def write_block(
    store: str,
    items: Sequence[pystac.Item],
    geobox: GeoBox,
    y: tuple[int, int],
    x: tuple[int, int],
    *,
    mask: bool | Mapping[str, Any] = True,
    radiometry: Mapping[str, sentinel2.Radiometry] | None = None,
    sign: str | None = None,
    on_bad_scene: Literal["drop", "fail"] = "drop",
    threads: int | None = None,
    cache_mib: int = CACHE_MIB,
    stage_mib: int = STAGE_MIB,
) -> dict[str, Any]:
    """Read, mask, fuse and write one block of a cube, and read it back.

    Parameters
    ----------
    store : str
        As made by `template`.
    items : sequence of pystac.Item
        All items that touch the block; items that do not are harmless.
    geobox : odc.geo.geobox.GeoBox
        Grid of the whole cube.
    y, x : tuple of int
        First (inclusive) and last (exclusive) row and column of the block in the cube: whole shards.
    mask : bool or mapping
        As in `load`.
    radiometry : mapping, optional
        By item id, where not what the metadata say (`geoeco.sensors.sentinel2.verify_radiometry`).
    sign : str, optional
        Signing method of `geoeco.catalog.sign`, applied just before each file is opened.
    on_bad_scene : {"drop", "fail"}
        What to do with an item of which an asset is missing or corrupt: leave the item out of this block and say so
        in the record, or raise.
    threads : int, optional
        Files read, and chunks compressed, at a time.
    cache_mib : int
        GDAL's cache of decoded tiles.
    stage_mib : int
        What may be read ahead of one band. It is used only as far as it saves decoding tiles of the files more than
        once, and does not change the result.

    Returns
    -------
    dict
        JSON-able: ``checksum`` (SHA-256 hex of the stored pixel values), ``bytes`` written, ``objects`` (keys of the
        shards, fill-only ones included), ``items`` used, ``dropped`` (list of ``{item, asset, code, what}``),
        ``pixels`` of the block, ``valid`` (by date: pixels with data in every band), ``looks`` (``{min, median,
        max}`` clear dates a pixel), ``blind`` (pixels with none).

    Raises
    ------
    OutputError
        If the block is not made of whole shards, cannot be written, or does not read back.
    ReadError
        With ``on_bad_scene="fail"``.
    TransientError
        For faults that may pass; the block can be written again.
    """
    layout = _Layout.read(store)
    layout.check(geobox, y, x)
    if on_bad_scene not in ("drop", "fail"):
        raise InputError(f"on_bad_scene={on_bad_scene!r}", what_to_do="use 'drop' or 'fail'")
    dropped: list[dict[str, str]] = []
    kept = list(items)
    while True:
        days = scenes_by_day(kept, layout.days, geobox, radiometry)
        try:
            with Stack(days, mask=mask, sign=sign, threads=threads, cache_mib=cache_mib) as stack:
                record = _write_shards(layout, stack, geobox, layout.shards(y, x), stage_mib << 20)
        except BadScene as bad:
            if on_bad_scene == "fail":
                raise bad.error from None
            # what was written with it is written again: a block holds all of a scene or nothing of it
            dropped.append(bad.record)
            kept = [item for item in kept if item.id != bad.scene.id]
            continue
        return {
            **record,
            "items": sorted(item.id for item in kept),
            "dropped": sorted(dropped, key=lambda d: (d["item"], d["asset"])),
            "pixels": (y[1] - y[0]) * (x[1] - x[0]),
        }


def _write_shards(
    layout: _Layout, stack: Stack, geobox: GeoBox, rows: Sequence[Sequence[_Window]], stage_bytes: int
) -> dict[str, Any]:
    """Write all shards of a block: the classes first, which say what is wanted of each scene, then band by band."""
    side, n = layout.shard, layout.days.size
    shards = [shard for row in rows for shard in row]
    grids = [geobox[slice(*y), slice(*x)] for y, x in shards]
    n_scenes = sum(len(day) for day in stack.days)
    objects = Objects(layout.store)
    digest = hashlib.sha256()
    keys: list[str] = []
    sizes: list[Future[int]] = []

    def put(pixels: npt.NDArray[Any], name: str, fill: int, shard: _Window) -> None:
        parts, content = encode_shard(pixels, (n, layout.chunk, layout.chunk), fill, zstd(_LEVEL), stack.map)
        key = f"{name}/{shard[0][0] // side}/{shard[1][0] // side}"
        # written and read back while the next one is made; one at a time bounds the memory
        if sizes:
            sizes[-1].result()
        sizes.append(stack.pool.submit(write_shard, objects, key, parts))
        keys.append(key)
        digest.update(f"{key} {content}\n".encode())

    def staged(band: str, clears: Sequence[Clear | None]) -> Iterator[int]:
        """Numbers of the shards, in an order and with what is read ahead such that tiles are decoded once."""
        for group in _groups(stack.tiling(band, grids), rows, n_scenes, stage_bytes):
            if len(group) > 1:
                stack.stage(band, [grids[i] for i in group], [clears[i] for i in group])
            yield from group
        stack.close_files()

    clears: list[Clear | None] = [None] * len(shards)
    looks = np.zeros(n + 1, np.int64)
    for i in staged(SCL, clears):
        scl, clear = stack.classes(grids[i], padded=(side, side))
        put(scl, f"{CLASSES}/c/0", 0, shards[i])
        clears[i] = clear
        looks += np.bincount(_looks(clear, int(grids[i].shape[0])).ravel(), minlength=n + 1)
        del scl
    stack.forget_samplers()
    pixels = pages((n, side, side), np.int16)
    valid = np.zeros((len(layout.bands), n), np.int64)
    for number, band in enumerate(layout.bands):
        for i in staged(band, clears):
            wanted = clears[i]
            assert wanted is not None
            valid[number] += stack.reflectance(band, grids[i], wanted, pixels)
            put(pixels, f"{REFLECTANCE}/c/0/{number}", FILL, shards[i])
    return {
        "checksum": digest.hexdigest(),
        "bytes": sum(written.result() for written in sizes),
        "objects": keys,
        "valid": {str(day): int(v) for day, v in zip(layout.days, valid.min(axis=0), strict=True)},
        "looks": {
            "min": int(np.flatnonzero(looks)[0]),
            "median": int(np.searchsorted(np.cumsum(looks) * 2, looks.sum())),
            "max": int(np.flatnonzero(looks)[-1]),
        },
        "blind": int(looks[0]),
    }


def _groups(
    tiling: Tiling | None, rows: Sequence[Sequence[_Window]], n_files: int, stage_bytes: int
) -> list[list[int]]:
    """Cut a block's shards into groups that are read together.

    The smallest groups are taken with which hardly more tiles are decoded than if the whole block were read at
    once, as far as `stage_bytes` allow: shards that lie on whole tiles are read one by one, without staging.
    """
    numbers = iter(range(sum(len(row) for row in rows)))
    by_row = [[next(numbers) for _ in row] for row in rows]
    single = [[i] for row in by_row for i in row]
    if tiling is None:
        return single
    candidates = [single]
    height = 1
    while height < len(by_row):
        wide = [list(chain(*by_row[at : at + height])) for at in range(0, len(by_row), height)]
        candidates.append(wide)
        height *= 2
    candidates.append([list(chain(*single))])
    least, _ = tiling.cost(candidates[-1])
    best, best_tiles = single, tiling.cost(single)[0]
    for groups in candidates:
        tiles, largest = tiling.cost(groups)
        fits = groups is single or largest * tiling.itemsize * n_files <= stage_bytes
        if fits and tiles < best_tiles:
            best, best_tiles = groups, tiles
        if best_tiles <= least * _DECODED_TWICE:
            break
    return best


def _looks(clear: Clear, rows: int) -> npt.NDArray[np.uint16]:
    total = np.zeros((rows, clear.width), np.uint16)
    for plane in clear.planes.values():
        total += np.unpackbits(plane, axis=1, count=clear.width)
    return total


def block_memory_bytes(
    n_times: int,
    block: tuple[int, int],
    *,
    n_items: int | None = None,
    shard: int | None = None,
    other_crs: bool = False,
    resolution: float = 10.0,
    threads: int | None = None,
    cache_mib: int = CACHE_MIB,
    stage_mib: int = STAGE_MIB,
) -> int:
    """Upper bound of the memory that `write_block` adds to an idle process.

    Parameters
    ----------
    n_times : int
        Dates of the cube.
    block : tuple of int
        Rows and columns of the block.
    n_items : int, optional
        Items that touch the block; by default one a date.
    shard : int, optional
        Side of a shard; as `cube_layout` by default.
    other_crs : bool
        Whether some items lie in another CRS than the cube.
    resolution : float
        Of the cube, in metres: the 10 m bands of coarser cubes are averaged, hence read with more pixels.
    threads, cache_mib, stage_mib
        As in `write_block`.

    Returns
    -------
    int
        Bytes. It does not depend on the number of bands or blocks: bands are read one after another.
    """
    n_items = n_items or n_times
    # the worker may have more processors than the machine that plans
    threads = threads or MOST_THREADS
    shard = shard or cube_layout(n_times, max(8, math.ceil(max(block) / 8) * 8))[0]
    pixels = block[0] * block[1]
    held = n_times * shard * shard * 2
    # two compressed shards, were they incompressible, and the copy of one that is read back
    packed = 3 * held
    # what the finest bands hold of the block
    finest = math.ceil(pixels * max(1.0, resolution / _FINEST_M) ** 2)
    staged = min(stage_mib << 20, n_items * finest * 2)
    bits = n_items * math.ceil(pixels / 8)
    # a thread's window, what is resampled of it, weights and masks
    scratch = threads * shard * shard * (24 + 3 * finest // pixels)
    points = finest * 42 if other_crs else 0
    files = n_items * (1 << 18)
    return held + packed + staged + bits + scratch + points + files + (cache_mib << 20) + _FIXED


def open_cube(store: str, chunks: Any = None) -> xr.Dataset:
    """Open a cube in its in-memory form.

    Parameters
    ----------
    store : str
        Local path or fsspec URL.
    chunks : mapping, int or "auto", optional
        Dask chunks, as `xarray.open_zarr`; None reads lazily without Dask. Chunks that are multiples of the shard
        read each shard once.

    Returns
    -------
    xarray.Dataset
        ``reflectance (time, band, y, x)`` float32 with NaN, ``scl (time, y, x)`` uint8, with CRS.

    Raises
    ------
    InputError
        If there is no cube, or it has no CRS.
    """
    import odc.geo.xr  # noqa: F401  # registers .odc
    import xarray as xr
    import zarr

    try:
        data: xr.Dataset = xr.open_zarr(
            store, chunks=chunks, decode_coords="all", consolidated=False, mask_and_scale=False
        )
    except (FileNotFoundError, zarr.errors.NodeNotFoundError) as error:
        raise InputError("no cube is there", where=store, what_to_do="check the path") from error
    if REFLECTANCE not in data or CLASSES not in data or "names" not in data["band"].attrs:
        raise InputError("this is not a cube", where=store, what_to_do="open it with xarray")
    if data.odc.crs is None:
        raise InputError("the cube has lost its CRS", where=store, what_to_do="write its template again")
    # JSON has one kind of number: as a Python float the scale would make float64 of the pixels
    stored = data[REFLECTANCE].attrs
    stored["scale_factor"] = np.float32(stored["scale_factor"])
    data = xr.decode_cf(data, decode_coords="all")
    names = data["band"].attrs["names"]
    return data.assign_coords(band=("band", np.asarray(names, dtype=str), {"long_name": "band"}))
