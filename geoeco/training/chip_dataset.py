"""Season chips as a map-style torch data set, with torchgeo's sample dictionaries.

It reads stores of `geoeco.sampling.open_chips` and nothing else: choosing places, dates and splits is done before, and
transforms and batches are torch's and torchgeo's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from geoeco.errors import InputError
from geoeco.sampling import day_of_year, open_chips
from geoeco.training.torchgeo_adapter import NonGeoDataset

__all__ = ["ChipDataset"]


def _positions(wanted: Sequence[str] | None, there: Sequence[str], what: str, store: str) -> list[int]:
    if wanted is None:
        return list(range(len(there)))
    place = {name: position for position, name in enumerate(there)}
    unknown = [name for name in wanted if name not in place]
    if unknown:
        shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        raise InputError(
            f"the chips have no {what} {', '.join(map(repr, unknown[:5]))}",
            where=store,
            what_to_do=f"use some of: {shown}",
        )
    if not wanted:
        raise InputError(f"no {what} is asked for", where=store)
    return [place[name] for name in wanted]


class ChipDataset(NonGeoDataset):
    """Season chips of a store, one location a sample.

    Parameters
    ----------
    store : str or Path
        Folder or fsspec URL of a store of chips, finished (`geoeco.sampling.finish_chips`).
    names : sequence of str, optional
        Locations to use, in this order, by the coordinate ``name``: for example one part of
        `geoeco.sampling.spatial_split`. All that were kept when not given.
    bands, seasons : sequence of str, optional
        Bands and seasons to use, in this order; all when not given.
    size : int, optional
        Side of the window that is cut from each chip, in pixels; the whole chip when not given.
    crop : {"centre", "random"}
        Where the window is cut. Random windows follow torch's seed.
    transforms : callable, optional
        Applied to each sample.

    Attributes
    ----------
    all_bands : tuple of str
        The bands of ``image``, in order.
    seasons : tuple of str
        Its seasons, in order.
    names : tuple of str
        The locations, in order.

    Raises
    ------
    InputError
        If the store lacks a location, band or season asked for, or its chips are smaller than `size`.
    OutputError
        If there is no finished store.

    Notes
    -----
    A sample is a dictionary of tensors:

    =============== ========================= ==============================================================
    ``image``       (season, band, y, x)      float32 reflectance, 0 where invalid
    ``valid``       (season, y, x)            bool, all bands known
    ``present``     (season,)                 bool, whether there is a chip of this season
    ``day_of_year`` (season,)                 float32, 1..366 by solar day; 0 where there is no chip
    ``lonlat``      (2,)                      float64 degrees, centre of the location
    ``index``       ()                        int64, position in the data set
    =============== ========================= ==============================================================

    The store is opened when a process first asks for a sample, never before, so that the data set can be sent to
    workers that were spawned. Do not fork after reading: give a DataLoader ``multiprocessing_context="spawn"``.
    """

    rgb_bands = ("B04", "B03", "B02")

    def __init__(
        self,
        store: str | Path,
        *,
        names: Sequence[str] | None = None,
        bands: Sequence[str] | None = None,
        seasons: Sequence[str] | None = None,
        size: int | None = None,
        crop: Literal["centre", "random"] = "centre",
        transforms: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if crop not in ("centre", "random"):
            raise InputError(f"crop is {crop!r}", what_to_do="use 'centre' or 'random'")
        self.store = str(store)
        self.crop = crop
        self.transforms = transforms
        whole = open_chips(self.store)
        known = [str(name) for name in whole["name"].values]
        self._samples = _positions(names, known, "location", self.store)
        if not self._samples:
            raise InputError("no location of the store was kept", where=self.store)
        stored_bands = [str(band) for band in whole["band"].values]
        self._bands = _positions(bands, stored_bands, "band", self.store)
        stored_seasons = [str(season) for season in whole["season"].values]
        self._seasons = _positions(seasons, stored_seasons, "season", self.store)
        self.names = tuple(known[i] for i in self._samples)
        self.all_bands = tuple(stored_bands[i] for i in self._bands)
        self.seasons = tuple(stored_seasons[i] for i in self._seasons)
        stored_size = int(whole.sizes["x"])
        self.size = stored_size if size is None else int(size)
        if not 1 <= self.size <= stored_size:
            raise InputError(
                f"windows of {size} pixels do not fit in chips of {stored_size}",
                where=self.store,
                what_to_do=f"give a size from 1 to {stored_size}",
            )
        self._margin = stored_size - self.size
        self._opened: tuple[int, xr.Dataset] | None = None

    def __len__(self) -> int:
        """Return the number of locations."""
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _chips(self) -> xr.Dataset:
        """Open the store once in each process; an open store that came here by a fork is not used."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_chips(self.store).isel(band=self._bands, season=self._seasons))
        return self._opened[1]

    def _corner(self) -> tuple[int, int]:
        if self.crop == "centre" or not self._margin:
            return self._margin // 2, self._margin // 2
        top, left = torch.randint(self._margin + 1, (2,)).tolist()
        return int(top), int(left)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one location's sample; see the class for its keys."""
        position = range(len(self))[index]
        chips = self._chips().isel(sample=self._samples[position])
        top, left = self._corner()
        window = chips["chips"].isel(y=slice(top, top + self.size), x=slice(left, left + self.size))
        image = np.ascontiguousarray(window.transpose("season", "band", "y", "x").values, dtype=np.float32)
        valid = np.isfinite(image).all(axis=1)
        present = (chips["reason"].values == "").astype(bool)
        days = chips["date"].values.astype("datetime64[D]")
        day = day_of_year(np.where(np.isnat(days), np.nan, days.astype(np.float64)))
        sample: dict[str, Tensor] = {
            "image": torch.from_numpy(np.nan_to_num(image, copy=False, nan=0.0)),
            "valid": torch.from_numpy(valid & present[:, None, None]),
            "present": torch.from_numpy(present),
            "day_of_year": torch.from_numpy(np.where(present, day, 0.0).astype(np.float32)),
            "lonlat": torch.tensor([float(chips["lon"]), float(chips["lat"])], dtype=torch.float64),
            "index": torch.tensor(position),
        }
        return self.transforms(sample) if self.transforms is not None else sample
