"""Season chips on disk: a sharded Zarr v3 store and a GeoParquet table beside it.

A chip is one chunk; a shard holds one season of a group of locations, so that a group can be read and written season by
season in bounded memory and its files are still few and large. Groups are written independently, each whole; the table
comes in one part a group, and `finish_chips` joins the parts.

A store is a folder (or an fsspec URL): ``chips.zarr``, ``parts/``, ``chips.parquet``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pystac
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from geoeco.cubes.shards import Objects, bitshuffled_lz4, checksummed, encode_shard, write_shard
from geoeco.errors import InputError, OutputError
from geoeco.sampling.chips import (
    CHIP_NODATA,
    CHIP_SCALE,
    ChipReader,
    ChipSettings,
    chips_dataset,
    chips_table,
    location_notes,
)
from geoeco.sampling.images import in_threads
from geoeco.sampling.windows import SEASONS
from geoeco.sensors import sentinel2

__all__ = [
    "chips_fingerprint",
    "chips_memory",
    "chips_template",
    "finish_chips",
    "open_chips",
    "store_chips",
    "write_chips",
]

#: Chips are read far more often than they are written, and what they wait for is decoding: bit-shuffled LZ4.
_CODEC: Literal["lz4"] = "lz4"
_LEVEL = 5
#: Of the layout: since 2, each chip bears a checksum. Stores of 1, which say no version, are read, and gone on with.
_VERSION = 2
#: Of each file so much of the end is read to know it: of a shard the index, which holds the compressed length of every
#: chip, and its checksum; the whole of small files.
_TAIL_BYTES = 1 << 16
_MIB = 1 << 20


def _zarr(store: str) -> str:
    return f"{store.rstrip('/')}/chips.zarr"


def _seasons_at_a_time(chip_bytes: int, samples: int, fixed: int, memory_mib: int) -> tuple[int, int]:
    """How many seasons of a group are read at a time, and the bytes that takes."""
    for seasons in (4, 2, 1):
        # the encoded form of one season is held twice: as written, and as read back
        needed = int((seasons + 2.2) * samples * chip_bytes) + fixed
        if needed <= memory_mib * _MIB:
            return seasons, needed
    return 1, needed


def chips_memory(
    samples: int,
    *,
    size: int = 264,
    bands: int = len(sentinel2.REFLECTANCE_BANDS),
    threads: int = 4,
    memory_mib: int = 512,
) -> int:
    """Peak memory of `write_chips` for a group, bytes, above that of the idle process.

    The chips of the seasons read at a time, the encoded form of one, GDAL's cache, and for each thread some blocks of
    1024 pixels with the windows that are being cut from them.

    Parameters
    ----------
    samples : int
        Locations of the group.
    size, threads, memory_mib
        As of `write_chips`.
    bands : int
        Number of bands.
    """
    return _plan_memory(samples, size, bands, threads, memory_mib)[1]


def _plan_memory(samples: int, size: int, bands: int, threads: int, memory_mib: int) -> tuple[int, int]:
    chip = size * size * (2 * bands + 1)
    per_thread = 4 * 1024 * 1024 * 2 + samples * size * size * 2
    return _seasons_at_a_time(chip, samples, threads * per_thread + 64 * _MIB, memory_mib)


def chips_template(
    store: str,
    samples: int,
    *,
    size: int = 264,
    resolution: float = 10.0,
    bands: Sequence[str] = sentinel2.REFLECTANCE_BANDS,
    samples_per_shard: int = 64,
) -> None:
    """Write the metadata of a store of chips; the chips follow with `write_chips`.

    Parameters
    ----------
    store : str
        Folder or fsspec URL. A store of the same layout, or of the same without checksums, is left as it is.
    samples : int
        Number of locations.
    size : int
        Pixels along a side.
    resolution : float
        Metres.
    bands : sequence of str
        Reflectance bands.
    samples_per_shard : int
        Locations in a group: 64 make shards of up to 107 MB.

    Raises
    ------
    OutputError
        If a store of another layout is there.
    """
    settings = ChipSettings(size=size, resolution=resolution, bands=tuple(bands))
    if samples < 1 or samples_per_shard < 1:
        raise InputError("samples and samples_per_shard must be positive")
    per_shard = min(samples_per_shard, samples)
    layout: dict[str, Any] = {
        "samples": samples,
        "seasons": list(SEASONS),
        "bands": list(settings.bands),
        "size": size,
        "resolution": float(resolution),
        "samples_per_shard": per_shard,
        "codec": _CODEC,
        "version": _VERSION,
    }
    group = zarr.open_group(_zarr(store), mode="a", zarr_format=3)
    found: Any = group.attrs.get("geoeco_chips")
    if found is not None:
        if {"version": _VERSION, **dict(found)} != layout:
            raise OutputError(
                "a store of chips of another layout is there already",
                where=store,
                what_to_do="write elsewhere, or remove it first",
            )
        return
    arrays: dict[str, dict[str, Any]] = {
        "chips": {
            "shape": (samples, len(SEASONS), len(settings.bands), size, size),
            "chunks": (1, 1, len(settings.bands), size, size),
            "shards": (per_shard, 1, len(settings.bands), size, size),
            "dtype": "int16",
            "fill_value": CHIP_NODATA,
            "dimension_names": ["sample", "season", "band", "y", "x"],
            "attributes": {"scale_factor": CHIP_SCALE, "_FillValue": CHIP_NODATA, "units": "1", "kind": "continuous"},
        },
        "scl": {
            "shape": (samples, len(SEASONS), size, size),
            "chunks": (1, 1, size, size),
            "shards": (per_shard, 1, size, size),
            "dtype": "uint8",
            "fill_value": 0,
            "dimension_names": ["sample", "season", "y", "x"],
            "attributes": {"units": "", "kind": "class"},
        },
    }
    codecs = (BloscCodec(cname=_CODEC, clevel=_LEVEL, shuffle="bitshuffle"), Crc32cCodec())
    for name, layout_of in arrays.items():
        half_made = group.get(name)
        if half_made is None:
            group.create_array(name, compressors=codecs, **layout_of)
        elif (
            not isinstance(half_made, zarr.Array)
            or half_made.shards != layout_of["shards"]
            or half_made.compressors != codecs
        ):
            raise OutputError(
                "a half-made store of chips of another layout is there", where=store, what_to_do="remove it first"
            )
    # the layout comes last: a store without it is a half-made one and is completed by the next call
    group.attrs["geoeco_chips"] = layout


def _layout(store: str) -> dict[str, Any]:
    try:
        found = zarr.open_group(_zarr(store), mode="r").attrs.get("geoeco_chips")
    except (FileNotFoundError, KeyError) as error:
        raise OutputError("there is no store of chips", where=store, what_to_do="make it: chips_template") from error
    if not isinstance(found, dict):
        raise OutputError("this is no finished template of chips", where=store, what_to_do="make it: chips_template")
    if _version(found) > _VERSION:
        raise OutputError(
            f"the store's layout is of version {_version(found)}, this geoeco knows {_VERSION}",
            where=store,
            what_to_do="read it with a newer geoeco",
        )
    return found


def _version(layout: Mapping[str, Any]) -> int:
    return int(layout.get("version", 1))


def _part(first: int) -> str:
    return f"parts/{first:08d}.parquet"


def _parquet(table: gpd.GeoDataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd", schema_version="1.1.0")
    return buffer.getvalue()


def write_chips(
    store: str,
    items: Sequence[pystac.Item],
    locations: gpd.GeoDataFrame,
    windows: pd.DataFrame,
    *,
    first: int = 0,
    min_clear: float = 0.8,
    max_nodata: float = 0.0,
    min_valid: float = 0.99,
    min_sun_elevation: float = 20.0,
    min_seasons: int = 2,
    max_candidates: int | None = None,
    radiometry: Mapping[str, sentinel2.Radiometry] | None = None,
    sign: str | None = None,
    threads: int = 4,
    memory_mib: int = 512,
) -> dict[str, Any]:
    """Choose, cut and write the chips of a group of locations.

    Parameters
    ----------
    store : str
        As made by `chips_template`.
    items, windows
        As of `season_chips`; both may hold more than the group needs.
    locations : geopandas.GeoDataFrame
        The group: the locations ``first, first + 1, ...`` of the store, whole shards of them (the last may be short).
    first : int
        Position of the first location in the store; a multiple of its samples per shard.
    min_clear, max_nodata, min_valid, min_sun_elevation, min_seasons, max_candidates, radiometry, sign, threads
        As of `season_chips`.
    memory_mib : int
        As many seasons are read at a time as fit; at least one. Blocks of a file are decoded once each time.

    Returns
    -------
    dict
        ``digest`` (SHA-256 of pixels and table, in hexadecimal, whatever the compression), ``chips`` and ``kept``
        (numbers of chips and of locations kept), ``bytes`` written, ``dropped`` (items left out: item, asset, code,
        what), ``left_out`` (locations not kept, by reason).

    Raises
    ------
    OutputError
        If the group is not made of whole shards, or does not read back as written.
    InputError, TransientError
        As of `season_chips`.

    Notes
    -----
    Two runs with the same input write the same bytes. Locations that are not kept keep their place in the store; the
    table says why, and what the arrays hold there is not to be used.
    """
    layout = _layout(store)
    count = len(locations)
    _check_shards(store, layout, first, count)
    settings = ChipSettings(
        size=int(layout["size"]),
        resolution=float(layout["resolution"]),
        bands=tuple(layout["bands"]),
        min_clear=min_clear,
        max_nodata=max_nodata,
        min_valid=min_valid,
        min_sun_elevation=min_sun_elevation,
        min_seasons=min_seasons,
        max_candidates=max_candidates,
    )
    reader = ChipReader(items, locations, windows, settings, radiometry=radiometry, method=sign, threads=threads)
    if reader.count != count:
        raise InputError(
            f"{count - reader.count} of the group's locations have no usable coordinates",
            what_to_do="clean the table first: points_from_table or check_locations",
        )
    at_a_time, _ = _plan_memory(count, settings.size, len(settings.bands), threads, memory_mib)
    buffers = reader.buffers(at_a_time)
    group = _Group(store, layout, first, threads)
    for start in range(0, len(SEASONS), at_a_time):
        seasons = range(start, start + at_a_time)
        chips, scl = reader.read(seasons, buffers)
        for position, season in enumerate(seasons):
            group.write(season, chips[position], scl[position])
    return group.finish(reader.table(first), [n for n in reader.notes() if "item" in n])


def store_chips(store: str, chips: xr.Dataset, *, first: int = 0, threads: int = 4) -> dict[str, Any]:
    """Write chips that are at hand: simulated ones, or some of another store.

    Parameters
    ----------
    store : str
        As made by `chips_template`.
    chips : xarray.Dataset
        In the form that `season_chips` and `open_chips` give, with all its coordinates: the locations ``first,
        first + 1, ...`` of the store, whole shards of them (the last may be short), kept or not. Reflectance as
        floats with NaN, or as stored, int16 x 10 000 with -32768.
    first : int
        Position of the first location in the store; a multiple of its samples per shard.
    threads : int
        Chips compressed at the same time.

    Returns
    -------
    dict
        As of `write_chips`; nothing is ever ``dropped``. ``valid_fraction`` in the table is counted from the pixels.

    Raises
    ------
    OutputError
        If the group is not made of whole shards, or does not read back as written.
    InputError
        If the chips are not those that the store is made for (bands, seasons, size, coordinates), reflectance does
        not fit the store, or a chip that the table calls usable holds no data.
    """
    layout = _layout(store)
    _check_shards(store, layout, first, chips.sizes.get("sample", 0))
    values, scl = _stored_pixels(store, layout, chips)
    used = chips["reason"].transpose("sample", "season").to_numpy() == ""
    valid = 1.0 - (values == CHIP_NODATA).any(axis=2).mean(axis=(-2, -1))
    if (used & (valid == 0.0)).any():
        sample, season = (int(i[0]) for i in np.nonzero(used & (valid == 0.0)))
        raise InputError(
            f"the chip of {chips['name'].to_numpy()[sample]!r} in {SEASONS[season]} holds no data",
            where=store,
            what_to_do="give the reason why it is missing in the coordinate 'reason'",
        )
    table = chips_table(
        chips.assign_coords(
            sample=np.arange(first, first + len(values)),
            valid_fraction=(("sample", "season"), np.where(used, valid, np.nan)),
        )
    )
    group = _Group(store, layout, first, threads)
    for season in range(len(SEASONS)):
        group.write(season, values[:, season], scl[:, season])
    return group.finish(table, [])


def _stored_pixels(
    store: str, layout: Mapping[str, Any], chips: xr.Dataset
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Chips ``(sample, season, band, y, x)`` as int16 and their scene classes, if they are what the store holds."""
    expected: dict[str, Any] = {"season": layout["seasons"], "band": layout["bands"]}
    lengths = {"season": len(SEASONS), "band": len(layout["bands"]), "y": layout["size"], "x": layout["size"]}
    for name, dimensions in (("chips", {"sample", *lengths}), ("scl", {"sample", "season", "y", "x"})):
        if name not in chips or set(chips[name].dims) != dimensions:
            raise InputError(
                f"these are no season chips: {name!r} must lie along {', '.join(sorted(dimensions))}", where=store
            )
    found = {name: [str(v) for v in chips[name].to_numpy()] for name in expected if name in chips.coords}
    sizes = {name: chips.sizes[name] for name in lengths}
    resolution = chips.attrs.get("resolution")
    if found != expected or sizes != lengths or resolution != layout["resolution"]:
        raise InputError(
            f"the store is made for other chips: {found}, {sizes}, resolution {resolution}",
            where=store,
            what_to_do=f"it holds {expected}, {lengths}, resolution {layout['resolution']}",
        )
    values = chips["chips"].transpose("sample", "season", "band", "y", "x").to_numpy()
    if np.issubdtype(values.dtype, np.floating):
        invalid = np.isnan(values)
        scaled = np.rint(np.where(invalid, 0.0, values) / CHIP_SCALE)
        if not (np.abs(scaled) <= np.iinfo(np.int16).max).all():
            raise InputError("reflectance beyond 3.2767 cannot be stored", where=store, what_to_do="give 0..1")
        values = np.where(invalid, CHIP_NODATA, scaled).astype(np.int16)
    elif values.dtype != np.int16:
        raise InputError(
            f"chips of type {values.dtype} are not stored",
            where=store,
            what_to_do="give floats with NaN, or int16 reflectance x 10 000",
        )
    return values, chips["scl"].transpose("sample", "season", "y", "x").to_numpy().astype(np.uint8)


def _check_shards(store: str, layout: Mapping[str, Any], first: int, count: int) -> None:
    """Refuse a group ``first, ..., first + count - 1`` that is not made of whole shards."""
    per_shard, samples = int(layout["samples_per_shard"]), int(layout["samples"])
    stop = first + count
    if first % per_shard or not (stop % per_shard == 0 or stop == samples) or stop > samples or count < 1:
        raise OutputError(
            f"locations {first}..{stop} of {samples} are not whole shards of {per_shard}",
            where=store,
            what_to_do="write groups that begin and end at multiples of samples_per_shard",
        )


class _Group:
    """A group of locations on its way into a store: season by season, then its part of the table."""

    def __init__(self, store: str, layout: Mapping[str, Any], first: int, threads: int) -> None:
        self.store, self.first, self.threads = store, first, threads
        self.per_shard = int(layout["samples_per_shard"])
        compress = bitshuffled_lz4(_LEVEL)
        self.encode = checksummed(compress) if _version(layout) > 1 else compress
        self.objects = Objects(_zarr(store))
        self.digest, self.written = hashlib.sha256(), 0

    def write(self, season: int, chips: npt.NDArray[np.int16], scl: npt.NDArray[np.uint8]) -> None:
        """Write one season: chips ``(location, band, y, x)`` and their scene classes ``(location, y, x)``."""
        for offset in range(0, len(chips), self.per_shard):
            part = slice(offset, min(offset + self.per_shard, len(chips)))
            place = ((self.first + offset) // self.per_shard, season)
            for name, values, fill in (("chips", chips, CHIP_NODATA), ("scl", scl, 0)):
                count, text = self._write_shard(name, place, values[part], fill)
                self.written += count
                self.digest.update(f"{name} {self.first + offset} {season} {text}".encode())

    def _write_shard(self, name: str, place: tuple[int, int], values: npt.NDArray[Any], fill: int) -> tuple[int, str]:
        """Put one season of some locations, ``(location, ..., y, x)``, as one object; bytes, digest of the pixels."""
        if len(values) < self.per_shard:
            padding = np.full((self.per_shard - len(values), *values.shape[1:]), fill, values.dtype)
            values = np.concatenate([values, padding])

        def run(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
            return in_threads(work, jobs, self.threads)

        shard = values[:, None]
        parts, digest = encode_shard(shard, (1, *shard.shape[1:]), fill, self.encode, run)
        key = f"{name}/c/{place[0]}/{place[1]}/" + "/".join("0" for _ in shard.shape[2:])
        return write_shard(self.objects, key, parts), digest

    def finish(self, table: gpd.GeoDataFrame, dropped: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the group's part of the table and tell what was written."""
        self.digest.update(table.drop(columns="geometry").to_json(orient="records", date_format="iso").encode())
        body = _parquet(table)
        _write_whole(self.store, _part(self.first), body)
        return {
            "digest": self.digest.hexdigest(),
            "chips": int((table["reason"] == "").sum()),
            "kept": int(table.drop_duplicates("sample")["kept"].sum()),
            "bytes": self.written + len(body),
            "dropped": dropped,
            "left_out": location_notes(table),
        }


def _write_whole(store: str, key: str, body: bytes) -> None:
    Objects(store.rstrip("/")).put(key, [body])


def finish_chips(store: str) -> str:
    """Join the parts of the table into ``chips.parquet``.

    Parameters
    ----------
    store : str
        In which all groups have been written, or some: locations of missing groups are missing in the table.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    layout = _layout(store)
    objects = Objects(store.rstrip("/"))
    parts = []
    for first in range(0, int(layout["samples"]), int(layout["samples_per_shard"])):
        body = objects.get(_part(first))
        if body is not None:
            parts.append(gpd.read_parquet(io.BytesIO(body)))
    if not parts:
        raise OutputError("no group of chips has been written yet", where=store, what_to_do="write_chips first")
    body = _parquet(pd.concat(parts, ignore_index=True))
    objects.put("chips.parquet", [body])
    return hashlib.sha256(body).hexdigest()


def chips_fingerprint(store: str, *, contents: bool = True) -> str:
    """SHA-256 of what tells one store of chips from another, wherever it lies.

    Parameters
    ----------
    store : str
        A finished store of chips, folder or fsspec URL.
    contents : bool
        Whether the last 64 KiB of each file count, which hold the index of a shard with the compressed length of each
        chip and its checksum; else it is made of the table, the metadata and the names and sizes of the files, from
        one listing.

    Raises
    ------
    OutputError
        If there is no finished store.
    """
    objects = Objects(store.rstrip("/"))
    table = objects.get("chips.parquet")
    if table is None:
        raise OutputError("there is no finished store of chips", where=store, what_to_do="join its parts: finish_chips")
    digest = hashlib.sha256(table)
    for key, size in objects.sizes("chips.zarr").items():
        name = key.removeprefix("chips.zarr/")
        digest.update(f"\n{name} {size} ".encode())
        if contents or name.endswith("zarr.json"):
            digest.update(objects.part(key, -min(size, _TAIL_BYTES), min(size, _TAIL_BYTES)) or b"")
    return digest.hexdigest()


def open_chips(store: str, *, kept: bool = True, stored: bool = False, chunks: Any = None) -> xr.Dataset:
    """Open a store of chips in the form that `season_chips` gives.

    Parameters
    ----------
    store : str
        Folder or fsspec URL, after `finish_chips`.
    kept : bool
        Leave out locations that were not kept or not written yet.
    stored : bool
        Give reflectance as stored, int16 x 10 000, instead of float32 with NaN.
    chunks : mapping or str, optional
        As `xarray.open_zarr`; None reads chips when they are asked for.

    Returns
    -------
    xarray.Dataset
        As `season_chips`.
    """
    layout = _layout(store)
    body = Objects(store.rstrip("/")).get("chips.parquet")
    if body is None:
        raise OutputError("the store has no table yet", where=store, what_to_do="join its parts: finish_chips")
    try:
        table = gpd.read_parquet(io.BytesIO(body))
    except (ValueError, OSError) as error:
        raise OutputError(
            f"the store's table chips.parquet is damaged: {error}",
            where=store,
            what_to_do="remove it and join the parts again: finish_chips",
        ) from error
    data = xr.open_zarr(_zarr(store), chunks=chunks, consolidated=False, mask_and_scale=False)
    if not stored:
        # a scale of double precision would make doubles of all chips
        data["chips"].attrs["scale_factor"] = np.float32(CHIP_SCALE)
        data = xr.decode_cf(data)
    data = data.isel(sample=table["sample"].to_numpy()[:: len(SEASONS)])
    opened = chips_dataset(data["chips"], data["scl"].astype(np.uint8), table, layout)
    if not kept:
        return opened
    return opened.isel(sample=np.flatnonzero(opened["kept"].to_numpy()))
