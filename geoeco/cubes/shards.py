"""Shards of Zarr v3 made whole, in memory, and put in one piece.

zarr-python writes a shard through its general chunk machinery: a coroutine and several copies for each inner chunk.
A block of a cube is a whole number of shards whose pixels are all at hand, so the shard is put together here from
its inner chunks, compressed in threads (Zarr v3 core specification; codec ``sharding_indexed`` 1.0 with the index at
the end: little-endian offset and length of each inner chunk, then CRC-32C). zarr-python reads what is written here,
which the tests hold it to.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from geoeco.catalog import fault
from geoeco.errors import OutputError, ReadError, TransientError

__all__ = [
    "Objects",
    "bitshuffled_lz4",
    "checksummed",
    "damaged_shard",
    "encode_shard",
    "intact_shards",
    "write_shard",
    "zstd",
]

#: Turns an inner chunk into bytes; called in threads.
Encode = Callable[[npt.NDArray[Any]], bytes]

# its own threads put the blocks of a chunk in the order in which they are done; zarr sets the same
blosc.use_threads = False

#: Offset and length of an inner chunk that holds nothing but fill.
_EMPTY = struct.pack("<QQ", 2**64 - 1, 2**64 - 1)
#: What zarr's codecs say of bytes that are not those that were written.
_DAMAGE = re.compile(r"Zstd decompression error|blosc decompression|computed checksum do not match")


@dataclass(frozen=True)
class Objects:
    """Whole objects by key, in a folder or below an fsspec URL.

    Parameters
    ----------
    root : str
        Local path or fsspec URL of the store.
    """

    root: str

    @property
    def _local(self) -> Path | None:
        if "://" not in self.root:
            return Path(self.root)
        return Path(self.root.removeprefix("file://")) if self.root.startswith("file://") else None

    def _remote(self, key: str) -> tuple[Any, str]:
        import fsspec

        fs, base = fsspec.core.url_to_fs(self.root)
        return fs, f"{base.rstrip('/')}/{key}"

    @contextmanager
    def _at(self, key: str, *, may_be_gone: bool = False) -> Iterator[None]:
        """Tell what may pass (a lost connection, a time-out) from what will not (a full disk, no permission)."""
        where = f"{self.root}/{key}"
        try:
            yield
        except Exception as error:
            if may_be_gone and isinstance(error, FileNotFoundError):
                raise
            if self._local is None and isinstance(passing := fault(error, where), TransientError):
                raise passing from error
            raise OutputError(
                f"{type(error).__name__}: {error}", where=where, what_to_do="make room or check permissions"
            ) from error

    def get(self, key: str) -> bytes | None:
        """Read an object; None if there is none.

        Raises
        ------
        OutputError, TransientError
            If it is there but cannot be read.
        """
        local = self._local
        try:
            with self._at(key, may_be_gone=True):
                if local is not None:
                    return (local / key).read_bytes()
                fs, path = self._remote(key)
                found: bytes = fs.cat_file(path)
        except FileNotFoundError:
            return None
        return found

    def part(self, key: str, start: int, length: int) -> bytes | None:
        """Read a part of an object, from its end where `start` is negative; None if there is none.

        Less than `length` bytes come back where the object ends before.

        Raises
        ------
        OutputError, TransientError
            If it is there but cannot be read.
        """
        local = self._local
        try:
            with self._at(key, may_be_gone=True):
                if local is not None:
                    with (local / key).open("rb") as file:
                        size = os.fstat(file.fileno()).st_size
                        file.seek(max(start + size, 0) if start < 0 else start)
                        return file.read(length)
                fs, path = self._remote(key)
                stop = start + length
                found: bytes = fs.cat_file(path, start=start, end=stop or None)
        except FileNotFoundError:
            return None
        return found

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of all objects below a folder of the store, by key, in the order of the keys; listed anew.

        Raises
        ------
        OutputError, TransientError
            If they cannot be listed.
        """
        local = self._local
        with self._at(folder):
            if local is not None:
                files = ((path.relative_to(local).as_posix(), path) for path in (local / folder).rglob("*"))
                return dict(sorted((key, path.stat().st_size) for key, path in files if path.is_file()))
            fs, path = self._remote(folder)
            base = path.removesuffix(folder).rstrip("/")
            # others may have written since the last listing
            fs.invalidate_cache()
            found = fs.find(path.rstrip("/"), detail=True)
            return {name[len(base) :].lstrip("/"): int(found[name]["size"]) for name in sorted(found)}

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        """Write an object whole: readers see the old one or the new one.

        Raises
        ------
        OutputError
            If it cannot be written (disk full, no permission, no such bucket).
        TransientError
            If the object store does not answer.
        """
        local = self._local
        with self._at(key):
            if local is None:
                fs, path = self._remote(key)
                fs.pipe_file(path, b"".join(parts))
                return
            target = local / key
            target.parent.mkdir(parents=True, exist_ok=True)
            # another writer of the same block may be at work: a name of its own
            part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
            try:
                with part.open("wb") as file:
                    file.writelines(parts)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)

    def holds(self, key: str, parts: Sequence[bytes]) -> bool:
        """Whether the object is these parts and nothing else, read back now."""
        local = self._local
        if local is None:
            found = self.get(key)
            if found is None:
                return False
            file: BinaryIO = io.BytesIO(found)
        else:
            try:
                file = (local / key).open("rb")
            except FileNotFoundError:
                return False
        with file:
            return all(file.read(len(part)) == part for part in parts) and not file.read(1)

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        local = self._local
        with self._at(key):
            if local is not None:
                (local / key).unlink(missing_ok=True)
                return
            fs, path = self._remote(key)
            # not fs.exists, which may answer from a listing made before
            with suppress(FileNotFoundError, KeyError):
                fs.rm_file(path)


def zstd(level: int) -> Encode:
    """Compress inner chunks as zarr's ``ZstdCodec(level=level, checksum=True)`` does."""
    # a codec for each chunk: its state is not shared between threads
    return lambda inner: bytes(Zstd(level=level, checksum=True).encode(inner))


def bitshuffled_lz4(level: int) -> Encode:
    """Compress inner chunks as zarr's ``BloscCodec(cname="lz4", clevel=level, shuffle="bitshuffle")`` does.

    For 16-bit reflectance it is decoded twice as fast as zstd of level 1, and a tenth smaller.
    """
    return lambda inner: bytes(Blosc(cname="lz4", clevel=level, shuffle=Blosc.BITSHUFFLE).encode(inner))


def checksummed(encode: Encode) -> Encode:
    """Put a CRC-32C behind each inner chunk, as zarr's ``Crc32cCodec()`` after the codec of `encode` does.

    LZ4 has no checksum of its own: most flipped bits give other pixels and no error.
    """

    def encoded(inner: npt.NDArray[Any]) -> bytes:
        body = encode(inner)
        return body + struct.pack("<I", google_crc32c.value(body))

    return encoded


def damaged_shard(where: str, what: str) -> ReadError:
    """Make the error of a shard, or of the store that it lies in, whose bytes are not those that were written."""
    return ReadError(
        f"a shard is damaged: {what}",
        where=where,
        what_to_do="remove the file and resume the run that made it, which makes again what is missing; "
        "or copy the store again from where it came",
        code="shard",
    )


@contextmanager
def intact_shards(store: str) -> Iterator[None]:
    """Tell damage that zarr meets while a store is read.

    Parameters
    ----------
    store : str
        Folder or URL of the store, for the message.

    Raises
    ------
    ReadError
        In place of what zarr's codecs raise for bytes that are not those that were written.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if _DAMAGE.search(str(error)):
            raise damaged_shard(store, str(error)) from error
        raise


def encode_shard(
    shard: npt.NDArray[Any],
    chunk: tuple[int, ...],
    fill: int,
    compress: Encode,
    run: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]],
) -> tuple[list[bytes], str]:
    """Compress the inner chunks of a shard and put the index behind them.

    Parameters
    ----------
    shard : numpy.ndarray
        Whole shard, padded with `fill` where it reaches beyond the array; little-endian type.
    chunk : tuple of int
        Shape of an inner chunk; divides that of the shard.
    fill : int
        Fill value: inner chunks that hold nothing else are left out.
    compress : callable
        Of an inner chunk: `zstd` or `bitshuffled_lz4`.
    run : callable
        ``run(function, arguments) -> results``, in order; in threads.

    Returns
    -------
    parts : list of bytes
        The object, to be written one after another; empty if the whole shard is fill.
    digest : str
        SHA-256 of the inner chunks' SHA-256, hence of the pixel values, whatever the compression.
    """
    corners = list(itertools.product(*(range(0, n, c) for n, c in zip(shard.shape, chunk, strict=True))))

    def encode(corner: tuple[int, ...]) -> tuple[bytes | None, bytes]:
        window = tuple(slice(start, start + c) for start, c in zip(corner, chunk, strict=True))
        inner = np.ascontiguousarray(shard[window])
        digest = hashlib.sha256(inner).digest()
        if inner.flat[0] == fill and bool((inner == fill).all()):
            return None, digest
        return compress(inner), digest

    parts: list[bytes] = []
    index: list[bytes] = []
    whole = hashlib.sha256()
    offset = 0
    for encoded, digest in run(encode, corners):
        whole.update(digest)
        if encoded is None:
            index.append(_EMPTY)
            continue
        index.append(struct.pack("<QQ", offset, len(encoded)))
        parts.append(encoded)
        offset += len(encoded)
    if parts:
        table = b"".join(index)
        parts += [table, struct.pack("<I", google_crc32c.value(table))]
    return parts, whole.hexdigest()


def write_shard(objects: Objects, key: str, parts: Sequence[bytes]) -> int:
    """Put a shard and read it back; a shard of nothing but fill leaves no object.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    OutputError
        If it cannot be written or does not read back as written.
    """
    if not parts:
        # a former run of this block may have had data here
        objects.delete(key)
        return 0
    objects.put(key, parts)
    if not objects.holds(key, parts):
        raise OutputError(
            "a shard does not read back as written",
            where=f"{objects.root}/{key}",
            what_to_do="check the disk or object store, and run again",
            code="read-back",
        )
    return sum(len(part) for part in parts)
