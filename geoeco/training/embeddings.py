"""Embeddings of season chips: what a frozen encoder makes of each image, computed once and kept as Zarr.

They lie in a folder named by what decides them, the model and the chips: another model or other chips are another
folder, and what is there already is read. Maps of embeddings are `geoeco.mapping`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
import zarr
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from zarr.codecs import BytesCodec, ZstdCodec

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError, OutputError
from geoeco.sampling import chips_fingerprint, open_chips
from geoeco.training.bundles import ModelBundle
from geoeco.training.chip_dataset import ChipDataset

__all__ = ["embed_chips", "location_features"]

_ZARR = "embeddings.zarr"
_ARRAY = "features"
#: Written last: what the folder holds, and the sizes of its files. Without it the folder counts as empty.
_RECORD = "embeddings.json"
#: Part of the key; raised when the same model and chips would give other numbers.
_VERSION = 1
_CHUNK_BYTES = 4 << 20


def embed_chips(
    bundle: ModelBundle,
    store: str | Path,
    out: str | Path,
    *,
    seasons: Sequence[str] | None = None,
    batch: int = 64,
    workers: int = 0,
) -> xr.DataArray:
    """Embed all chips of a store, or read what an earlier call made of the same model and chips.

    Parameters
    ----------
    bundle : ModelBundle
        The encoder, on the device where it is to work; its module is in evaluation mode. Chips larger than its
        ``size`` are cut at their centre, smaller ones are enlarged to it bicubically, as in SSL4Eco. Invalid pixels
        are 0 in the units of its input.
    store : str or Path
        A finished store of chips, folder or fsspec URL.
    out : str or Path
        Folder or fsspec URL for the embeddings of any number of models and stores; made where there is none.
    seasons : sequence of str, optional
        Of the store; all when not given.
    batch : int
        Images at a time. Every batch has the same shape, the last one is filled up, so that an image's embedding does
        not depend on how many there are; another `batch` may change the last digits and has embeddings of its own.
    workers : int
        Processes that read ahead.

    Returns
    -------
    xarray.DataArray, dims (sample, season, feature)
        float32, read when it is asked for; NaN where there is no image or it has no valid pixel. Coordinates ``name``
        by sample, ``season``; ``attrs``: ``key``, ``bundle``, ``store`` (hashes) and ``folder``.

    Raises
    ------
    InputError
        If the store lacks the model's bands, has another resolution, or the model gives no feature vectors.
    OutputError
        If there is no finished store, the model gives numbers that are not finite, or nothing can be written.
    """
    if batch < 1 or workers < 0:
        raise InputError(f"batch={batch}, workers={workers}", what_to_do="give a positive batch")
    dataset = chips_for(bundle, store, seasons)
    known = {
        "version": _VERSION,
        "bundle": bundle.fingerprint(),
        "size": bundle.size,
        "store": chips_fingerprint(str(store)),
        "seasons": list(dataset.seasons),
        "batch": batch,
    }
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]
    folder = f"{str(out).rstrip('/')}/{key}"
    if not _is_whole(folder):
        _write(bundle, dataset, folder, known, batch, workers)
    return _open(folder, key)


def location_features(embeddings: xr.DataArray, combine: str = "mean") -> xr.DataArray:
    """One feature vector a location, for probes.

    Parameters
    ----------
    embeddings : xarray.DataArray, dims (sample, season, feature)
        As of `embed_chips`.
    combine : str
        ``"mean"`` over the seasons that are there, ``"concatenate"`` all of them, or the name of one season.

    Returns
    -------
    xarray.DataArray, dims (sample, feature)
        In memory; NaN for locations that lack the season, one of the seasons (concatenated), or all of them (mean).

    Raises
    ------
    InputError
        If there is no such season.
    OutputError
        If they cannot be read.
    """
    try:
        values = embeddings.compute()
    # what zarr and its codecs raise where a checksum does not fit, or a file is gone
    except (RuntimeError, ValueError, OSError) as error:
        raise OutputError(
            f"the embeddings that are kept are damaged: {error}",
            where=str(embeddings.attrs.get("folder", "")),
            what_to_do="remove this folder: they are made again",
            code="checksum",
        ) from error
    if combine == "mean":
        return values.mean("season", skipna=True)
    if combine == "concatenate":
        flat = values.transpose("sample", "season", "feature").to_numpy().reshape(values.sizes["sample"], -1)
        whole = np.where(np.isfinite(flat).all(axis=1, keepdims=True), flat, np.float32(np.nan))
        return xr.DataArray(whole, dims=("sample", "feature"), coords={"name": values["name"]})
    seasons = [str(season) for season in values["season"].values]
    if combine not in seasons:
        raise InputError(
            f"the embeddings have no season {combine!r}",
            what_to_do=f"use 'mean', 'concatenate' or one of: {', '.join(seasons)}",
        )
    return values.isel(season=seasons.index(combine), drop=True)


def chips_for(bundle: ModelBundle, store: str | Path, seasons: Sequence[str] | None = None) -> ChipDataset:
    """Chips of a store in the form that a model takes, checked against it; no pixel is read.

    Raises
    ------
    InputError
        If bands, units or resolution do not fit.
    """
    chips = open_chips(str(store))
    dataset = ChipDataset(store, bands=bundle.bands, seasons=seasons, size=min(int(chips.sizes["x"]), bundle.size))
    bundle.check_input(dataset.all_bands, "1", float(chips.attrs["resolution"]))
    return dataset


def _sizes(folder: str) -> dict[str, int]:
    """Bytes of the files of the embeddings, by name."""
    found = Objects(folder).sizes(_ZARR)
    return {key.removeprefix(f"{_ZARR}/"): size for key, size in found.items()}


def _is_whole(folder: str) -> bool:
    body = Objects(folder).get(_RECORD)
    if body is None:
        return False
    try:
        return bool(json.loads(body)["files"] == _sizes(folder))
    except (ValueError, KeyError, TypeError):
        return False


def _open(folder: str, key: str) -> xr.DataArray:
    body = Objects(folder).get(_RECORD)
    if body is None:
        raise OutputError("the embeddings that were written are gone", where=folder)
    record = json.loads(body)
    values: xr.DataArray = xr.open_zarr(f"{folder}/{_ZARR}", chunks=None, consolidated=False)[_ARRAY]
    return values.assign_coords(
        name=("sample", np.array(record["names"], dtype=object)),
        season=("season", np.array(record["seasons"], dtype=object)),
    ).assign_attrs(key=key, bundle=record["bundle"], store=record["store"], folder=folder)


def _batches(
    bundle: ModelBundle, dataset: ChipDataset, locations: int, workers: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Embeddings ``(location, season, feature)`` of some locations at a time, by batches of one shape."""
    seasons = len(dataset.seasons)
    loader = DataLoader(
        dataset,
        batch_size=locations,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    for sample in loader:
        images: Tensor = sample["image"].flatten(0, 1)
        usable = (sample["present"] & sample["valid"].flatten(2).any(dim=2)).flatten()
        missing = locations * seasons - len(images)
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        if images.shape[-1] < bundle.size:
            images = functional.interpolate(images, size=(bundle.size, bundle.size), mode="bicubic")
        features = bundle(images)[: len(usable)].float().cpu()
        if features.ndim != 2:
            raise InputError(
                f"the model gives outputs of shape {tuple(features.shape[1:])} for an image, no feature vector",
                where=f"model {bundle.name or bundle.architecture}",
                what_to_do="use a model for embeddings",
            )
        if not torch.isfinite(features[usable]).all():
            raise OutputError(
                "the model gives features that are not finite",
                where=f"model {bundle.name or bundle.architecture}",
                what_to_do="look at its training: it may have diverged",
            )
        found = np.where(usable[:, None].numpy(), features.numpy(), np.float32(np.nan))
        yield found.reshape(-1, seasons, found.shape[1])


def _write(
    bundle: ModelBundle, dataset: ChipDataset, folder: str, known: dict[str, Any], batch: int, workers: int
) -> None:
    seasons = len(dataset.seasons)
    locations = max(1, batch // seasons)
    array: zarr.Array[Any] | None = None
    held: list[npt.NDArray[np.float32]] = []
    written = rows = 0

    def flush() -> None:
        nonlocal written
        assert array is not None, "made with the first batch"
        block = np.concatenate(held)
        array[written : written + len(block)] = block
        written += len(block)
        held.clear()

    for part in _batches(bundle, dataset, locations, workers):
        if array is None:
            a_location = seasons * part.shape[2] * 4
            rows = locations * max(1, _CHUNK_BYTES // (a_location * locations))
            zarr.open_group(f"{folder}/{_ZARR}", mode="a", zarr_format=3)
            array = zarr.open_array(
                f"{folder}/{_ZARR}",
                path=_ARRAY,
                mode="a",
                shape=(len(dataset), seasons, part.shape[2]),
                chunks=(min(rows, len(dataset)), seasons, part.shape[2]),
                dtype="float32",
                fill_value=np.nan,
                codecs=[BytesCodec(), ZstdCodec(checksum=True)],
                dimension_names=("sample", "season", "feature"),
                config={"write_empty_chunks": True},
            )
        held.append(part)
        if sum(map(len, held)) >= rows:
            flush()
    if held:
        flush()
    files = _sizes(folder)
    record = {**known, "names": list(dataset.names), "model": bundle.name, "files": files}
    Objects(folder).put(_RECORD, [(json.dumps(record, indent=1) + "\n").encode()])
