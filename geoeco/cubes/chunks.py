"""Single inner chunks of sharded Zarr v3 arrays, read without Zarr's general machinery.

zarr-python reads a chunk through a coroutine, a selection and several copies, and fetches the index of its shard again
each time. A loader that takes one small chunk after another out of shards that do not change keeps the indices and
reads the bytes of just that chunk. It reads the layout that `geoeco.cubes.shards` writes and no other; Zarr reads the
same arrays, which the tests hold it to.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from geoeco.cubes.shards import Objects, damaged_shard
from geoeco.errors import OutputError, ReadError

__all__ = ["ChunkReader"]

#: Offset and length of an inner chunk that holds nothing but fill.
_EMPTY = 2**64 - 1
#: CRC-32C of any bytes with their own CRC-32C behind them, little-endian: seen without a copy of the bytes.
_RESIDUE = 0x48674BC7


class ChunkReader:
    """Reads inner chunks of one sharded array.

    Parameters
    ----------
    store : str
        Folder or fsspec URL of the Zarr store.
    array : str
        Name of the array in it.

    Attributes
    ----------
    shape, chunk : tuple of int
        Of the array and of an inner chunk.
    dtype : numpy.dtype
    fill : int
        What an inner chunk that is not stored holds.

    Raises
    ------
    OutputError
        If there is no such array, or it is laid out in another way.

    Notes
    -----
    Indices of shards are read once and kept, 16 bytes an inner chunk: open the reader anew when shards are rewritten.
    Safe for threads; open it in each process.
    """

    def __init__(self, store: str, array: str) -> None:
        self._objects = Objects(store.rstrip("/"))
        self._array = array
        where = f"{store}/{array}"
        body = self._objects.get(f"{array}/zarr.json")
        if body is None:
            raise OutputError("there is no such array", where=where)
        try:
            layout = json.loads(body)
            shard = layout["chunk_grid"]["configuration"]["chunk_shape"]
            (sharding,) = layout["codecs"]
            inner = sharding["configuration"]
            codecs = [codec["name"] for codec in inner["codecs"]]
            found = (
                sharding["name"],
                codecs,
                [codec["name"] for codec in inner["index_codecs"]],
                inner.get("index_location", "end"),
                layout["chunk_key_encoding"]["name"],
                layout["chunk_key_encoding"].get("configuration", {}).get("separator", "/"),
            )
            self._codec = {"zstd": Zstd, "blosc": Blosc}.get(codecs[1])
            self._checksummed = codecs[2:] == ["crc32c"]
            self.shape = tuple(int(n) for n in layout["shape"])
            self.chunk = tuple(int(n) for n in inner["chunk_shape"])
            self.dtype = np.dtype(layout["data_type"]).newbyteorder("<")
            self.fill = int(layout["fill_value"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise OutputError(f"this is no sharded array: {type(error).__name__}: {error}", where=where) from error
        inner_codecs = ["bytes", codecs[1], *(["crc32c"] if self._checksummed else [])]
        known = ("sharding_indexed", inner_codecs, ["bytes", "crc32c"], "end", "default", "/")
        if self._codec is None or found != known:
            raise OutputError(
                f"the array is not laid out as geoeco writes it: {found}",
                where=where,
                what_to_do="make the store with geoeco, or read it with zarr",
            )
        self._inner = tuple(int(s) // c for s, c in zip(shard, self.chunk, strict=True))
        self._indices: dict[tuple[int, ...], npt.NDArray[np.uint64] | None] = {}

    def read(self, position: tuple[int, ...], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any] | None:
        """Read one inner chunk.

        Parameters
        ----------
        position : tuple of int
            Of the inner chunk, counted in inner chunks along each axis.
        out : numpy.ndarray, optional
            Array of `dtype` and of the shape of an inner chunk to decode into: memory that is used again is faster.

        Returns
        -------
        numpy.ndarray or None
            `out`, or an array of the shape of an inner chunk, read only; None where it is not stored, which means
            fill.

        Raises
        ------
        ReadError
            If the shard is damaged.
        OutputError, TransientError
            If it cannot be read.
        IndexError
            If there is no such chunk.
        """
        counts = [math.ceil(n / c) for n, c in zip(self.shape, self.chunk, strict=True)]
        if len(position) != len(counts) or not all(0 <= p < n for p, n in zip(position, counts, strict=True)):
            raise IndexError(f"there is no chunk {position} in an array of {counts} chunks")
        shard = tuple(p // n for p, n in zip(position, self._inner, strict=True))
        index = self._index(shard)
        if index is None:
            return None
        offset, length = (
            int(value) for value in index[tuple(p % n for p, n in zip(position, self._inner, strict=True))]
        )
        if offset == _EMPTY and length == _EMPTY:
            return None
        key = self._key(shard)
        encoded = self._objects.part(key, offset, length)
        if encoded is None or len(encoded) != length:
            raise self._damaged(key, "a chunk lies beyond its end")
        if self._checksummed and google_crc32c.value(encoded) != _RESIDUE:
            raise self._damaged(key, "a chunk does not bear its checksum")
        body = memoryview(encoded)[:-4] if self._checksummed else encoded
        try:
            assert self._codec is not None, "checked when it was opened"
            # a codec for each chunk: its state is not shared between threads
            decoded = self._codec().decode(body, out)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(key, str(error)) from error
        if out is not None:
            return out
        if len(decoded) != math.prod(self.chunk) * self.dtype.itemsize:
            raise self._damaged(key, f"a chunk has {len(decoded)} bytes")
        return np.frombuffer(decoded, self.dtype).reshape(self.chunk)

    def _key(self, shard: tuple[int, ...]) -> str:
        return f"{self._array}/c/" + "/".join(str(n) for n in shard)

    def _index(self, shard: tuple[int, ...]) -> npt.NDArray[np.uint64] | None:
        """Offsets and lengths ``(..., 2)`` of the inner chunks of a shard; None if the shard is not stored."""
        if shard not in self._indices:
            key = self._key(shard)
            size = 16 * math.prod(self._inner)
            body = self._objects.part(key, -(size + 4), size + 4)
            if body is None:
                self._indices[shard] = None
            elif len(body) != size + 4 or struct.unpack("<I", body[size:])[0] != google_crc32c.value(body[:size]):
                raise self._damaged(key, "its index does not bear its checksum")
            else:
                self._indices[shard] = np.frombuffer(body[:size], "<u8").reshape(*self._inner, 2)
        return self._indices[shard]

    def _damaged(self, key: str, what: str) -> ReadError:
        return damaged_shard(f"{self._objects.root}/{key}", what)
