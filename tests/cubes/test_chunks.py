"""Chunks read directly are what zarr reads, and damage is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from geoeco.cubes.chunks import ChunkReader
from geoeco.cubes.shards import Objects, bitshuffled_lz4, checksummed, intact_shards, zstd
from geoeco.errors import OutputError, ReadError

SHAPE, SHARD, CHUNK = (7, 2, 3, 5, 5), (4, 1, 3, 5, 5), (1, 1, 3, 5, 5)


def make(store: str, **options) -> np.ndarray:
    """An array written by zarr, of which sample 2 and the whole shard (1, 1) are fill."""
    values = np.random.default_rng(0).integers(-3000, 12000, SHAPE).astype(np.int16)
    values[2] = -1
    values[4:, 1] = -1
    options = {"compressors": ZstdCodec(level=1), **options}
    group = zarr.open_group(store, mode="a", zarr_format=3)
    array = group.create_array("a", shape=SHAPE, shards=SHARD, chunks=CHUNK, dtype="int16", fill_value=-1, **options)
    array[...] = values
    return values


LZ4 = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")


CHECKED = (LZ4, Crc32cCodec())


@pytest.mark.parametrize(
    ("kind", "codec"), [("local", ZstdCodec(level=1)), ("memory", ZstdCodec()), ("local", LZ4), ("local", CHECKED)]
)
def test_every_chunk_is_what_zarr_wrote(tmp_path: Path, kind: str, codec):
    store = str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}/store"
    values = make(store, compressors=codec)
    reader = ChunkReader(store, "a")
    assert (reader.shape, reader.chunk, reader.fill) == (SHAPE, CHUNK, -1)
    for position in np.ndindex(*SHAPE[:2], 1, 1, 1):
        found = reader.read(position)
        expected = values[position[0], position[1]]
        if found is None:
            assert (expected == -1).all()
        else:
            np.testing.assert_array_equal(found[0, 0], expected)
    assert reader.read((2, 0, 0, 0, 0)) is None
    assert reader.read((6, 1, 0, 0, 0)) is None


def test_a_place_outside_the_array_is_an_index_error(tmp_path: Path):
    make(str(tmp_path))
    reader = ChunkReader(str(tmp_path), "a")
    for position in ((7, 0, 0, 0, 0), (0, -1, 0, 0, 0), (0, 0)):
        with pytest.raises(IndexError):
            reader.read(position)


@pytest.mark.parametrize("codec", [ZstdCodec(), LZ4], ids=["zstd", "lz4"])
def test_a_damaged_index_a_cut_shard_and_a_damaged_chunk_are_read_errors(tmp_path: Path, codec):
    make(str(tmp_path), compressors=codec)
    shard = tmp_path / "a" / "c" / "0" / "0" / "0" / "0" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-6] + b"\7\7" + whole[-4:])
    with pytest.raises(ReadError, match="checksum"):
        ChunkReader(str(tmp_path), "a").read((0, 0, 0, 0, 0))
    shard.write_bytes(whole[:10])
    with pytest.raises(ReadError, match="checksum"):
        ChunkReader(str(tmp_path), "a").read((0, 0, 0, 0, 0))
    shard.write_bytes(b"\xff" * 20 + whole[20:])
    with pytest.raises(ReadError, match="damaged"):
        ChunkReader(str(tmp_path), "a").read((0, 0, 0, 0, 0))


@pytest.mark.parametrize("codec", [CHECKED, ZstdCodec(level=1, checksum=True)], ids=["lz4", "zstd"])
def test_a_flipped_bit_anywhere_in_a_chunk_is_seen_by_zarr_and_by_the_reader(tmp_path: Path, codec):
    values = make(str(tmp_path), compressors=codec)
    shard = tmp_path / "a" / "c" / "0" / "0" / "0" / "0" / "0"
    whole = shard.read_bytes()
    (length,) = np.frombuffer(whole[-4 - 16 * 4 :], "<u8", count=2)[1:]
    reader = ChunkReader(str(tmp_path), "a")
    np.testing.assert_array_equal(reader.read((0, 0, 0, 0, 0))[0, 0], values[0, 0])
    array = zarr.open_group(str(tmp_path), mode="r")["a"]
    # the first bytes of zstd say how it is packed, in part by bits that mean nothing
    for place in range(6, int(length), 5):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ReadError, match="a shard is damaged") as caught:
            reader.read((0, 0, 0, 0, 0))
        assert "resume the run" in caught.value.what_to_do
        with pytest.raises(ReadError, match="a shard is damaged"), intact_shards(str(tmp_path)):
            array[0, 0]


def test_other_errors_are_not_called_damage():
    with pytest.raises(ValueError, match="no such name"), intact_shards("store"):
        raise ValueError("no such name")


def test_chunks_are_encoded_as_zarr_encodes_them(tmp_path: Path):
    for name, codec, encode in (
        ("lz4", CHECKED, checksummed(bitshuffled_lz4(5))),
        ("zstd", ZstdCodec(level=1, checksum=True), zstd(1)),
    ):
        values = make(str(tmp_path / name), compressors=codec)
        stored = (tmp_path / name / "a" / "c" / "0" / "0" / "0" / "0" / "0").read_bytes()
        assert encode(np.ascontiguousarray(values[0, 0])) in stored, name


def test_arrays_of_another_layout_are_refused(tmp_path: Path):
    with pytest.raises(OutputError, match="no such array"):
        ChunkReader(str(tmp_path), "a")
    make(str(tmp_path / "gzip"), compressors=GzipCodec())
    with pytest.raises(OutputError, match="not laid out"):
        ChunkReader(str(tmp_path / "gzip"), "a")
    zarr.open_group(str(tmp_path / "plain"), mode="a", zarr_format=3).create_array("a", shape=(4,), dtype="int16")
    with pytest.raises(OutputError, match="no sharded array"):
        ChunkReader(str(tmp_path / "plain"), "a")


def test_a_part_of_an_object_may_be_counted_from_its_end(tmp_path: Path):
    for root in (str(tmp_path / "objects"), f"memory://{tmp_path.name}/objects"):
        objects = Objects(root)
        objects.put("key", [b"0123456789"])
        assert objects.part("key", 3, 4) == b"3456"
        assert objects.part("key", -4, 4) == b"6789"
        assert objects.part("key", 8, 4) == b"89"
        assert objects.part("nothing", 0, 4) is None
