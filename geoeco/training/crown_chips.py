"""Crowns of a store of chips as a map-style torch data set: a crown a sample, seen once from above.

It reads stores of `geoeco.sampling.open_uav_chips` that hold crown chips, and nothing else. Season chips are
`geoeco.training.ChipDataset`'s; augmentation is done on the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from geoeco.cubes.chunks import ChunkReader
from geoeco.errors import InputError
from geoeco.sampling import open_uav_chips
from geoeco.training.bundles import Normalisation
from geoeco.training.chip_dataset import Draw
from geoeco.training.stored_chips import StoredChips

__all__ = ["CrownDataset", "band_moments", "crown_table", "pixel_statistics"]

#: What a crown is of that nobody named.
UNKNOWN = ""


def crown_table(store: str | Path | xr.Dataset) -> pd.DataFrame:
    """What is known of the crowns of a store.

    Parameters
    ----------
    store : str, Path or xarray.Dataset
        Folder or fsspec URL of a store of crown chips, or what `geoeco.sampling.open_uav_chips` gives.

    Returns
    -------
    pandas.DataFrame
        A row a chip, in the store's order: ``sample`` (position), ``crown_id``, ``class_name`` (empty where it is not
        known), ``split`` (train, val, test or none), ``block``, ``source`` and ``date`` (names; empty where not
        known), ``valid_fraction``.

    Raises
    ------
    InputError
        If the chips are not those of crowns.
    OutputError
        If there is no finished store.
    """
    chips = store if isinstance(store, xr.Dataset) else open_uav_chips(str(store))
    where = str(store) if not isinstance(store, xr.Dataset) else ""
    missing = [name for name in ("crown_id", "class_id", "split", "block") if name not in chips]
    if missing or not bool((chips["crown_id"] > 0).any()):
        raise InputError(
            "the chips are not those of crowns" + (f": no {missing[0]}" if missing else ""),
            where=where,
            what_to_do="make them with kind: crown",
            code="chips",
        )
    names = [str(name) for name in chips.attrs.get("crown_classes", ())]
    splits = [str(name) for name in chips.attrs["splits"]]
    codes = chips["class_id"].values
    return pd.DataFrame(
        {
            "sample": np.arange(chips.sizes["sample"]),
            "crown_id": chips["crown_id"].values.astype(np.int64),
            "class_name": [names[code] if code >= 0 else UNKNOWN for code in codes],
            "split": [splits[code] for code in chips["split"].values],
            "block": chips["block"].values.astype(np.int64),
            "source": _named(chips, "source", "sources"),
            "date": _named(chips, "date", "dates"),
            "valid_fraction": chips["valid_fraction"].values.astype(np.float64),
        }
    )


def _named(chips: xr.Dataset, variable: str, names: str) -> list[str]:
    known = [str(name) for name in chips.attrs.get(names, ())]
    if variable not in chips:
        return [""] * chips.sizes["sample"]
    return [known[code] if 0 <= code < len(known) else "" for code in chips[variable].values]


class CrownDataset(StoredChips):
    """Crown chips of a store, one chip a sample.

    Parameters
    ----------
    store : str or Path
        Folder or fsspec URL of a finished store of chips.
    samples : sequence of int, optional
        Positions of the chips to use, in this order; all when not given.

    Attributes
    ----------
    all_bands : tuple of str
    resolution : float
        Metres.
    chip_size : int
        Pixels along a side.
    scale : float
        Value = stored x scale.
    samples : tuple of int

    Raises
    ------
    InputError
        If a position is not in the store, or none is given.
    OutputError
        If there is no finished store.

    Notes
    -----
    A sample is asked for by its position here, or by a `Draw`, whose epoch changes nothing. It is ``image
    (band, y, x)`` as stored, ``valid (y, x)`` bool and ``index ()`` int64; `decode` makes values of a batch, on its
    device. Pixels are opened when a process first asks for a sample.
    """

    def __init__(self, store: str | Path, samples: Sequence[int] | None = None) -> None:
        super().__init__()
        self.store = str(store)
        chips = open_uav_chips(self.store)
        count = int(chips.sizes["sample"])
        self.samples = tuple(range(count)) if samples is None else tuple(int(sample) for sample in samples)
        if not self.samples or not all(0 <= sample < count for sample in self.samples):
            raise InputError(f"chips {self.samples[:5]} of a store of {count}", where=self.store)
        self.all_bands = tuple(str(band) for band in chips["band"].values)
        self.resolution = float(chips.attrs["gsd_m"])
        self.chip_size = int(chips.sizes["x"])
        self.scale = float(chips["image"].attrs["scale"])
        self._opened: tuple[int, ChunkReader, ChunkReader] | None = None

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def stored_chip(self, position: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """One chip as stored ``(band, y, x)``, and its mask ``(y, x)``."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), ChunkReader(self.store, "image"), ChunkReader(self.store, "valid"))
        _, images, masks = self._opened
        sample = self.samples[position]
        image, valid = images.read((sample, 0, 0, 0)), masks.read((sample, 0, 0))
        if image is None:
            image = np.full(images.chunk, images.fill, images.dtype)
        return image[0], np.zeros(image.shape[2:], np.bool_) if valid is None else valid[0].astype(np.bool_)

    def __getitem__(self, index: int | Draw) -> dict[str, Tensor]:
        """Return one sample; see the class for its keys."""
        position = range(len(self))[index.position if isinstance(index, Draw) else index]
        image, valid = self.stored_chip(position)
        # torch computes with few unsigned types
        image = image.astype(np.int32) if image.dtype == np.uint16 else image.copy()
        return {
            "image": torch.from_numpy(image),
            "valid": torch.from_numpy(valid),
            "index": torch.tensor(position, dtype=torch.int64),
        }

    def decode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make values of what is stored, on its device: ``image`` float32, stored x scale, 0 where not valid."""
        image = batch["image"].float() * self.scale
        return {**batch, "image": torch.where(batch["valid"].unsqueeze(-3), image, 0.0)}


def pixel_statistics(data: CrownDataset) -> Normalisation:
    """Mean and standard deviation of each band over the valid pixels of all chips.

    Raises
    ------
    InputError
        If no pixel is valid, or a band is the same everywhere.
    """
    parts = (data.stored_chip(position) for position in range(len(data)))
    values = (image[:, valid].astype(np.float64) * data.scale for image, valid in parts)
    mean, spread = band_moments(values, len(data.all_bands), data.store)
    # a constant band leaves rounding errors
    constant = [name for name, value in zip(data.all_bands, spread, strict=True) if not value > 1e-7]
    if constant:
        raise InputError(
            f"the band {', '.join(constant)} is the same everywhere",
            where=data.store,
            what_to_do="leave it out: a model learns nothing from it",
        )
    return Normalisation(tuple(map(float, mean)), tuple(map(float, spread)))


def band_moments(
    parts: Iterable[npt.NDArray[np.float64]], bands: int, where: str = ""
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each band over the pixels of all images.

    Parameters
    ----------
    parts : iterable of numpy.ndarray
        Of each image ``(band, pixel)``, those that are valid.
    bands : int
    where : str
        For the message.

    Returns
    -------
    mean, spread : numpy.ndarray
        ``(band,)``.

    Raises
    ------
    InputError
        If there is no pixel.
    """
    pixels, total, squares = 0, np.zeros(bands), np.zeros(bands)
    for values in parts:
        pixels += values.shape[1]
        total += values.sum(axis=1)
        squares += (values * values).sum(axis=1)
    if not pixels:
        raise InputError("no pixel of the images is valid", where=where, code="no-locations")
    mean = total / pixels
    return mean, np.sqrt(np.maximum(squares / pixels - mean**2, 0.0))
