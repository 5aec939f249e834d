"""Chips of orthomosaics on disk: one Zarr v3 store, a chip one chunk, many chips one shard.

What is known of every chip before it is cut (where it lies, its set, its crown) is written with the template; pixels
follow by whole shards, in any order and from any number of workers, and give the same bytes each time. Codes stand for
names, which are in the attributes: Zarr v3 has no settled type for text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from geoeco.cubes.shards import Objects, bitshuffled_lz4, checksummed, encode_shard, intact_shards, write_shard
from geoeco.errors import InputError, OutputError
from geoeco.sampling.images import in_threads
from geoeco.sampling.mosaic_layers import IGNORE

__all__ = ["PIXELS", "create_uav_chips", "open_uav_chips", "store_uav_chips", "write_uav_chips"]

#: Variables with pixels, and what stands in them where nothing is known.
PIXELS: Mapping[str, Any] = {"image": 0, "valid": False, "chm": np.nan, "label": IGNORE, "instance": 0}
#: Attribute by which a store is known; it is written last, so that a store without it is a half-made one.
_MARK = "geoeco_uav_chips"
_LEVEL = 5


def _pixels(chips: xr.Dataset) -> list[str]:
    return [name for name in PIXELS if name in chips]


def _layout(chips: xr.Dataset, samples: int, per_shard: int) -> dict[str, Any]:
    return {
        "version": 1,
        "samples": samples,
        "chips_per_shard": per_shard,
        "pixels": {
            name: {"dtype": str(chips[name].dtype), "shape": [int(n) for n in chips[name].shape[1:]]}
            for name in _pixels(chips)
        },
    }


def create_uav_chips(
    store: str, chips: xr.Dataset, *, like: xr.Dataset | None = None, chips_per_shard: int = 64
) -> None:
    """Write the template of a store and all that is known of its chips but their pixels.

    Parameters
    ----------
    store : str
        Folder or fsspec URL. A store of the same layout is brought up to date, its pixels stay.
    chips : xarray.Dataset
        What is known of all chips: the variables of `grid_chips` along ``sample`` alone, and the attributes.
    like : xarray.Dataset, optional
        Any of the chips, or none of them (``sample`` of length 0), for the types and shapes of the variables with
        pixels; `chips` itself when not given.
    chips_per_shard : int
        Chips in a shard, which is written at once.

    Raises
    ------
    InputError
        If there are no chips.
    OutputError
        If something else is there already.
    """
    samples = chips.sizes.get("sample", 0)
    if samples < 1 or chips_per_shard < 1:
        raise InputError("a store needs at least one chip", where=store)
    like = chips if like is None else like
    layout = _layout(like, samples, min(chips_per_shard, samples))
    group = zarr.open_group(store, mode="a", zarr_format=3)
    found = group.attrs.get(_MARK)
    if (
        found is None
        and list(group.members())
        and not set(dict(group.members())) <= {str(n) for n in (*chips.variables, *like.variables)}
    ):
        raise OutputError("something else is stored there", where=store, what_to_do="write elsewhere")
    if found is not None and found != layout:
        raise OutputError(
            "a store of chips of another layout is there already",
            where=store,
            what_to_do="write elsewhere, or remove it first",
        )
    codecs = (BloscCodec(cname="lz4", clevel=_LEVEL, shuffle="bitshuffle"), Crc32cCodec())
    per_shard = int(layout["chips_per_shard"])
    for name in _pixels(like):
        if name in group:
            continue
        shape = like[name].shape[1:]
        group.create_array(
            name,
            shape=(samples, *shape),
            chunks=(1, *shape),
            shards=(per_shard, *shape),
            dtype=like[name].dtype,
            fill_value=PIXELS[name],
            dimension_names=[str(d) for d in like[name].dims],
            attributes=dict(like[name].attrs),
            compressors=codecs,
        )
    for key, variable in chips.data_vars.items():
        name = str(key)
        if name in PIXELS:
            continue
        values = variable.to_numpy()
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            fill_value=0,
            dimension_names=[str(d) for d in variable.dims],
            attributes=dict(variable.attrs),
            compressors=codecs,
            overwrite=True,
        )
        array[...] = values
    group.attrs.put({**chips.attrs, _MARK: layout})


def _found(store: str) -> dict[str, Any]:
    try:
        found = zarr.open_group(store, mode="r").attrs.get(_MARK)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise OutputError(
            "there is no store of chips of an orthomosaic", where=store, what_to_do="make it: create_uav_chips"
        ) from error
    if not isinstance(found, dict) or found.get("version") != 1:
        raise OutputError(
            "this is no finished store of chips of an orthomosaic", where=store, what_to_do="make it: create_uav_chips"
        )
    return found


def write_uav_chips(store: str, chips: xr.Dataset, *, first: int = 0, threads: int = 2) -> dict[str, Any]:
    """Write the pixels of a group of chips.

    Parameters
    ----------
    store : str
        As made by `create_uav_chips`.
    chips : xarray.Dataset
        The chips ``first, first + 1, ...`` of the store, whole shards of them (the last may be short).
    first : int
        Position of the first chip in the store; a multiple of its chips per shard.
    threads : int
        Chips compressed at the same time.

    Returns
    -------
    dict
        ``digest`` (SHA-256 of the pixels, in hexadecimal, whatever the compression), ``bytes`` written, ``objects``
        (names of the files in the store).

    Raises
    ------
    OutputError
        If the group is not made of whole shards, or does not read back as written.
    InputError
        If the chips are not those that the store is made for.
    """
    layout = _found(store)
    per_shard, samples = int(layout["chips_per_shard"]), int(layout["samples"])
    count = chips.sizes.get("sample", 0)
    stop = first + count
    if first % per_shard or not (stop % per_shard == 0 or stop == samples) or stop > samples or count < 1:
        raise OutputError(
            f"chips {first}..{stop} of {samples} are not whole shards of {per_shard}",
            where=store,
            what_to_do="write groups that begin and end at multiples of chips_per_shard",
        )
    if _layout(chips, samples, per_shard)["pixels"] != layout["pixels"]:
        raise InputError(
            "the store is made for chips of another size, type or kind",
            where=store,
            what_to_do=f"it holds {layout['pixels']}",
        )
    objects, encode = Objects(store.rstrip("/")), checksummed(bitshuffled_lz4(_LEVEL))
    digest, written, names = hashlib.sha256(), 0, []

    def run(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
        return in_threads(work, jobs, threads)

    for name in _pixels(chips):
        values = chips[name].to_numpy()
        for start in range(0, count, per_shard):
            shard = _padded(values[start : start + per_shard], per_shard, PIXELS[name])
            parts, text = encode_shard(shard, (1, *shard.shape[1:]), PIXELS[name], encode, run)
            key = f"{name}/c/{(first + start) // per_shard}/" + "/".join("0" for _ in shard.shape[1:])
            written += write_shard(objects, key, parts)
            digest.update(f"{name} {first + start} {text}".encode())
            names.append(key)
    return {"digest": digest.hexdigest(), "bytes": written, "objects": names}


def _padded(values: npt.NDArray[Any], count: int, fill: Any) -> npt.NDArray[Any]:
    if len(values) == count:
        return values
    return np.concatenate([values, np.full((count - len(values), *values.shape[1:]), fill, values.dtype)])


def store_uav_chips(store: str, chips: xr.Dataset, *, chips_per_shard: int = 64) -> None:
    """Write chips that are at hand: `create_uav_chips` and all of `write_uav_chips`.

    Parameters
    ----------
    store : str
    chips : xarray.Dataset
        As of `grid_chips`.
    chips_per_shard : int
    """
    create_uav_chips(store, chips, chips_per_shard=chips_per_shard)
    write_uav_chips(store, chips)


def open_uav_chips(store: str, *, chunks: Any = None) -> xr.Dataset:
    """Open a store of chips in the form that `grid_chips` gives.

    Parameters
    ----------
    store : str
        Folder or fsspec URL.
    chunks
        As of `xarray.open_zarr`: None reads on access without Dask; ``{}`` makes a Dask chunk of each chip.

    Returns
    -------
    xarray.Dataset
        Pixels are lazy; what is known of each chip has been read. Network input is ``image * image.attrs["scale"]``
        (unit "1"), 0 where not ``valid``.

    Raises
    ------
    OutputError
        If there is no finished store.
    ReadError
        If what is known of the chips is damaged. Damaged pixels are told when they are read within
        `geoeco.cubes.shards.intact_shards`.
    """
    _found(store)
    chips: xr.Dataset = xr.open_zarr(store, chunks=chunks, consolidated=False, mask_and_scale=False)
    with intact_shards(store):
        chips = chips.assign({name: v.load() for name, v in chips.data_vars.items() if name not in PIXELS})
    chips = chips.assign_coords(band=[str(band) for band in chips.attrs["bands"]])
    chips.attrs.pop(_MARK)
    return chips
