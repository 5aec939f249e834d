"""Rasters in Zarr, written block by block: what steps that make maps (seasons, classes, scores) keep their results in.

Not for time stacks of reflectance (`geoeco.cubes.template`, `write_block`) and not for what GIS users open
(`geoeco.outputs`). A store holds any number of variables on one grid, each with any leading dimensions before
``(y, x)``; one shard spans all leading dimensions, so that a block of the grid is a whole number of shards.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from zarr.abc.buffer import Buffer
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError, OutputError
from geoeco.variables import kind_of, nodata_for

__all__ = ["create_rasters", "open_rasters", "write_rasters"]

#: What a variable of each kind is stored as; classes and counts keep the type they have in memory.
_STORED: dict[str, str] = {"date": "int16", "continuous": "float32", "angle": "float32"}


def _stored_dtype(array: xr.DataArray) -> np.dtype[Any]:
    return np.dtype(_STORED.get(kind_of(array), array.dtype))


def _fill(array: xr.DataArray) -> float:
    dtype = _stored_dtype(array)
    return math.nan if dtype.kind == "f" else int(nodata_for(dtype))


def _encode(array: xr.DataArray) -> np.ndarray[Any, Any]:
    dtype, values = _stored_dtype(array), np.asarray(array.values)
    if dtype.kind == "f" or values.dtype.kind != "f":
        return np.ascontiguousarray(values, dtype)
    finite = np.isfinite(values)
    stored = np.full(values.shape, _fill(array), dtype)
    limits = np.iinfo(dtype)
    # halves go up: rounding to even, a date and its day of the year could end on different days
    rounded = np.floor(values[finite] + 0.5)
    if rounded.size and (rounded.min() <= limits.min or rounded.max() > limits.max):
        raise OutputError(
            f"variable {array.name!r} holds values {rounded.min():g}..{rounded.max():g} that {dtype} cannot",
            what_to_do="check the units of the values",
        )
    stored[finite] = rounded
    return stored


def create_rasters(store: str, like: xr.Dataset, geobox: GeoBox, *, shard: int, chunk: int = 256) -> None:
    """Write the metadata of a raster store; pixels follow with `write_rasters`.

    Parameters
    ----------
    store : str
        Local path or fsspec URL. An existing store of the same layout is left as it is.
    like : xarray.Dataset
        Variables with their leading dimensions, coordinates, types and attributes (``kind`` decides the stored
        type: dates as int16 with -32768, continuous variables as float32 with NaN); the size of ``y`` and ``x``
        is not used.
    geobox : odc.geo.geobox.GeoBox
        Grid of the whole store.
    shard : int
        Pixels along each side of a shard: a block that is written must be made of whole shards.
    chunk : int
        Pixels along each side of the unit of reading, at most; the largest divisor of `shard` is taken.

    Raises
    ------
    OutputError
        If a store of another layout is there.
    """
    if geobox.crs is None:
        raise InputError("the grid has no CRS", where=store)
    rows, cols = (int(n) for n in geobox.shape)
    chunk = next(side for side in range(min(chunk, shard), 0, -1) if shard % side == 0)
    layout: dict[str, Any] = {
        "shape": [rows, cols],
        "transform": [float(v) for v in tuple(geobox.affine)[:6]],
        "crs": geobox.crs.to_wkt(),
        "shard": shard,
        "chunk": chunk,
        "variables": {
            str(name): [str(_stored_dtype(v)), [str(d) for d in v.dims], [int(n) for n in v.shape[:-2]]]
            for name, v in like.data_vars.items()
        },
        "coordinates": {str(name): np.asarray(c.values).tolist() for name, c in like.coords.items() if _leading(c)},
    }
    objects = Objects(store)
    if objects.get("zarr.json") is not None:
        group = _opened(store)
        for name in (*layout["variables"], *layout["coordinates"], "y", "x"):
            _array(group, name)
        if group.attrs.get("geoeco_layout") != layout:
            raise OutputError(
                "a raster store of another layout is there already",
                where=store,
                what_to_do="write elsewhere, or remove it first",
            )
        return
    made = _metadata(like, geobox, layout)
    # the root's metadata come last: a store without them is half made, and is made again
    for key in sorted(made, key=lambda k: (k == "zarr.json", k)):
        objects.put(key, [made[key]])


def _metadata(like: xr.Dataset, geobox: GeoBox, layout: dict[str, Any]) -> dict[str, bytes]:
    """All objects of an empty store, made in memory."""
    rows, cols = layout["shape"]
    chunk, shard = layout["chunk"], layout["shard"]
    held: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(held), zarr_format=3, attributes={"geoeco_layout": layout})
    for label, coord in _coordinates(like, geobox).items():
        values = np.asarray(coord.values)
        array = group.create_array(
            label,
            shape=values.shape,
            dtype=values.dtype,
            dimension_names=[str(d) for d in coord.dims],
            attributes=_plain(coord.attrs),
        )
        array[...] = values
    for name, variable in like.data_vars.items():
        if variable.dims[-2:] != ("y", "x"):
            raise InputError(f"variable {name!r} has dimensions {variable.dims}", what_to_do="end them with (y, x)")
        lead = variable.shape[:-2]
        group.create_array(
            str(name),
            shape=(*lead, rows, cols),
            chunks=(*lead, chunk, chunk),
            shards=(*lead, shard, shard),
            dtype=_stored_dtype(variable),
            fill_value=_fill(variable),
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=[str(d) for d in variable.dims],
            attributes={
                **_plain(variable.attrs),
                **({} if _stored_dtype(variable).kind == "f" else {"nodata": _fill(variable)}),
                "grid_mapping": "spatial_ref",
            },
        )
    return {key: value.to_bytes() for key, value in held.items()}


def write_rasters(store: str, block: xr.Dataset, y: tuple[int, int], x: tuple[int, int]) -> str:
    """Write one block of all variables and read it back.

    Parameters
    ----------
    store : str
        As made by `create_rasters`.
    block : xarray.Dataset
        All variables of the store on the block's pixels ``(..., y, x)``.
    y, x : tuple of int
        First (inclusive) and last (exclusive) row and column in the store; whole shards.

    Returns
    -------
    str
        SHA-256 of the stored pixel values, in hexadecimal; it does not depend on compression.

    Raises
    ------
    OutputError
        If the block is not made of whole shards or does not read back as written.
    """
    group = _opened(store)
    layout: Any = group.attrs["geoeco_layout"]
    shard, (rows, cols) = int(layout["shard"]), layout["shape"]
    for (start, stop), size, axis in ((y, rows, "y"), (x, cols, "x")):
        if start % shard or not (stop % shard == 0 or stop == size):
            raise OutputError(
                f"{axis} {start}..{stop} is not a whole number of shards of {shard} px",
                where=store,
                what_to_do="write blocks whose edges are multiples of the shard",
            )
    digest = hashlib.sha256()
    for name in sorted(layout["variables"]):
        values = _encode(block[name])
        array = _array(group, name)
        window = (..., slice(*y), slice(*x))
        for place in itertools.product(*(_cut_shards(*span, shard) for span in (y, x))):
            if any(beyond for _, beyond in place):
                # zarr would read one that is there, half written or damaged, for what lies beyond the grid
                key = "/".join((name, "c", *("0" * (values.ndim - 2)), *(str(number) for number, _ in place)))
                Objects(store).delete(key)
        array[window] = values
        back = np.asarray(array[window])
        if back.shape != values.shape or back.tobytes() != values.tobytes():
            raise OutputError(f"variable {name!r} does not read back as written", where=f"{store} y={y} x={x}")
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def open_rasters(store: str, *, chunks: Any = None) -> xr.Dataset:
    """Open a raster store in its in-memory form.

    Parameters
    ----------
    store : str
        Local path or fsspec URL.
    chunks : mapping or str, optional
        As `xarray.open_zarr`; None gives lazily indexed NumPy-backed arrays.

    Returns
    -------
    xarray.Dataset
        Dates and continuous variables as float32 with NaN, classes and counts as stored; CRS in ``spatial_ref``.
    """
    # dates stay numbers: decoded to datetime64 they could not be plotted, averaged or written to a GeoTIFF
    data = xr.open_zarr(
        store, chunks=chunks, decode_coords="all", consolidated=False, mask_and_scale=False, decode_times=False
    )
    decoded: dict[str, xr.DataArray] = {}
    for name, variable in data.data_vars.items():
        nodata = variable.attrs.pop("nodata", None)
        if variable.attrs.get("kind") == "date" and nodata is not None:
            decoded[str(name)] = variable.where(variable != nodata).astype("float32").assign_attrs(variable.attrs)
        else:
            decoded[str(name)] = variable
    opened: xr.Dataset = data.assign(decoded)
    return opened


def _cut_shards(start: int, stop: int, shard: int) -> list[tuple[int, bool]]:
    """Numbers of the shards along an axis of a block, and whether they reach beyond it."""
    return [(at // shard, at + shard > stop) for at in range(start, stop, shard)]


def _opened(store: str) -> zarr.Group:
    try:
        return zarr.open_group(store, mode="r+", zarr_format=3)
    except (ValueError, KeyError) as error:
        raise _broken(store, error) from error


def _array(group: zarr.Group, name: str) -> Any:
    try:
        return group[name]
    except (ValueError, KeyError) as error:
        raise _broken(f"{group.store_path}/{name}", error) from error


def _broken(where: str, error: Exception) -> OutputError:
    return OutputError(
        f"the metadata of a raster store cannot be read: {error}",
        where=f"{where}/zarr.json",
        what_to_do="remove the store; a run makes it again on resume",
    )


def _leading(coord: xr.DataArray) -> bool:
    return coord.name not in {"y", "x", "spatial_ref"} and coord.ndim == 1


def _coordinates(like: xr.Dataset, geobox: GeoBox) -> dict[str, xr.DataArray]:
    grid = {str(name): coord for name, coord in xr_coords(geobox, dims=("y", "x")).items()}
    return {**{str(name): coord for name, coord in like.coords.items() if _leading(coord)}, **grid}


def _plain(attrs: dict[Any, Any]) -> dict[str, Any]:
    return {
        str(k): v.tolist() if isinstance(v, np.ndarray | np.generic) else list(v) if isinstance(v, tuple) else v
        for k, v in attrs.items()
    }
