"""Season chips as a map-style torch data set, with torchgeo's sample dictionaries.

It reads stores of `geoeco.sampling.open_chips` and nothing else: choosing places, dates and splits is done before,
which places come in which batch is `geoeco.training.LocationBatches`'s, and augmentation is done on the device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoeco.cubes.chunks import ChunkReader
from geoeco.errors import InputError, ReadError
from geoeco.sampling import day_of_year, open_chips
from geoeco.sampling.chips import CHIP_NODATA, CHIP_SCALE
from geoeco.training.stored_chips import StoredChips

__all__ = ["NDVI", "ChipDataset", "Draw", "ndvi_of"]

#: Name of the channel that is computed; it comes last.
NDVI = "ndvi"
_NDVI_BANDS = ("B04", "B08")


class Draw(NamedTuple):
    """A location in one epoch: what decides which of its dates are drawn."""

    position: int
    epoch: int


def ndvi_of(red: npt.NDArray[np.float32], nir: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """NDVI of reflectance as a model's channel.

    Parameters
    ----------
    red, nir : numpy.ndarray
        Reflectance in 0..1, 0 where invalid; of one shape.

    Returns
    -------
    numpy.ndarray
        (N - R) / (N + R), Tucker (1979), with negative reflectance counted as 0; 0 where both are. Negative indices
        are kept. Without the first rule a few pixels of dark water, where N + R is near 0, would be the whole spread
        of the channel.
    """
    red, nir = np.maximum(red, np.float32(0)), np.maximum(nir, np.float32(0))
    total = nir + red
    index: npt.NDArray[np.float32] = np.divide(nir - red, total, out=np.zeros_like(total), where=total > 0)
    return index


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
    if len(set(wanted)) != len(wanted):
        raise InputError(f"a {what} is asked for twice", where=store)
    return [place[name] for name in wanted]


class ChipDataset(StoredChips):
    """Season chips of a store, one location a sample.

    Parameters
    ----------
    store : str or Path
        Folder or fsspec URL of a store of chips, finished (`geoeco.sampling.finish_chips`).
    names : sequence of str, optional
        Locations to use, in this order, by the coordinate ``name``: for example one part of
        `geoeco.sampling.spatial_split`. All that were kept when not given.
    bands : sequence of str, optional
        Bands to use, in this order; all when not given. ``"ndvi"`` as the last one is computed: `ndvi_of`.
    seasons : sequence of str, optional
        Seasons to use, in this order; all when not given.
    size : int, optional
        Side of the window that is cut from each chip, in pixels; the whole chip when not given.
    crop : {"centre", "random"}
        Where the window is cut. Random windows follow torch's seed; of a `Draw`, and where `dates` are drawn, `seed`.
    min_valid : float
        Chips with a smaller part of valid pixels (``valid_fraction`` of the table) count as not there.
    min_seasons : int
        Locations with fewer seasons are left out; at least 2 where `dates` are drawn.
    dates : int, optional
        How many distinct dates of a location are drawn for contrastive learning, without replacement; all seasons in
        their order when not given. Where a location has fewer, the last one drawn is repeated: of 3 dates t0, t1, t2
        a location with two has t2 = t1.
    seed : int
        Of the draws.
    stored : bool
        Give ``image`` as it is stored, for `decode` to turn into reflectance on the device: a third of the work and
        half of the memory. B04 and B08 must be among the bands then, if NDVI is.
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
    left_out : tuple of str
        Locations with too few usable seasons.
    chip_size : int
        Pixels along a side of the stored chips.
    resolution : float
        Metres.
    lonlat : numpy.ndarray
        ``(name, 2)`` float64 degrees, centres of the locations.

    Raises
    ------
    InputError
        If the store lacks a location, band or season asked for, its chips are smaller than `size`, or no location has
        enough usable seasons.
    OutputError
        If there is no finished store.

    Notes
    -----
    A sample is a dictionary of tensors; where `dates` are drawn, they take the place of the seasons:

    =============== ========================= ==============================================================
    ``image``       (season, band, y, x)      float32 reflectance, 0 where invalid
    ``valid``       (season, y, x)            bool, all bands known
    ``present``     (season,)                 bool, whether there is a chip of this season
    ``day_of_year`` (season,)                 float32, 1..366 by solar day; 0 where there is no chip
    ``season``      (season,)                 int64, positions in `seasons`
    ``lonlat``      (2,)                      float64 degrees, centre of the location
    ``index``       ()                        int64, position in the data set
    =============== ========================= ==============================================================

    A sample is asked for by its position, or by a `Draw`, which says the epoch too. Dates and random windows depend on
    `seed`, the epoch and the location's name alone: not on workers, batches, or what was read before. Where `stored`,
    ``image`` is int16 reflectance x 10 000 with -32768, without NDVI, and ``valid`` is left to `decode`.

    The pixels are opened when a process first asks for a sample, never before, so that the data set can be sent to
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
        min_valid: float = 0.0,
        min_seasons: int = 1,
        dates: int | None = None,
        seed: int = 0,
        stored: bool = False,
        transforms: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if crop not in ("centre", "random"):
            raise InputError(f"crop is {crop!r}", what_to_do="use 'centre' or 'random'")
        if dates is not None and dates < 2:
            raise InputError(f"{dates} dates make no contrast", what_to_do="draw 2 or 3")
        if not 0 <= min_valid <= 1:
            raise InputError(f"min_valid is a part from 0 to 1, not {min_valid}")
        self.store = str(store)
        self.crop = crop
        self.dates = dates
        self.seed = int(seed)
        self.min_valid = min_valid
        self.stored = stored
        self.transforms = transforms
        chips = open_chips(self.store)
        known = [str(name) for name in chips["name"].values]
        wanted = _positions(names, known, "location", self.store)
        if not wanted:
            raise InputError("no location of the store was kept", where=self.store)
        self.all_bands = self._choose_bands(bands, [str(band) for band in chips["band"].values])
        stored_seasons = [str(season) for season in chips["season"].values]
        self._seasons = _positions(seasons, stored_seasons, "season", self.store)
        self.seasons = tuple(stored_seasons[i] for i in self._seasons)
        if stored and not self.can_be_stored:
            raise InputError(
                f"NDVI is made on the device from {' and '.join(_NDVI_BANDS)}, which are not among the bands",
                where=self.store,
                what_to_do="add them, or leave stored out",
            )
        self.resolution = float(chips.attrs["resolution"])
        self.chip_size = stored_size = int(chips.sizes["x"])
        self.size = stored_size if size is None else int(size)
        if not 1 <= self.size <= stored_size:
            raise InputError(
                f"windows of {size} pixels do not fit in chips of {stored_size}",
                where=self.store,
                what_to_do=f"give a size from 1 to {stored_size}",
            )
        self._margin = stored_size - self.size
        table = chips[["reason", "valid_fraction", "date"]].isel(sample=wanted, season=self._seasons)
        present = table["reason"].transpose("sample", "season").values == ""
        valid = table["valid_fraction"].transpose("sample", "season").values.astype(np.float64)
        if min_valid > 0:
            # a comparison with NaN is false
            present &= valid >= min_valid
        fewest = max(min_seasons, 2 if dates is not None else 0)
        enough = present.sum(axis=1) >= fewest
        self.left_out = tuple(known[i] for i, good in zip(wanted, enough, strict=True) if not good)
        if not enough.any():
            raise InputError(
                f"none of {len(wanted)} locations has {fewest} seasons with at least {min_valid:.0%} valid pixels",
                where=self.store,
                what_to_do="lower min_valid or min_seasons, use more seasons, or make chips with better images",
                code="no-locations",
            )
        chosen = np.asarray(wanted)[enough]
        self.names = tuple(known[i] for i in chosen)
        self._samples = chips["sample"].values[chosen].astype(np.int64)
        self._present = present[enough]
        self._holds_data = np.nan_to_num(valid[enough]) > 0
        days = table["date"].transpose("sample", "season").values[enough].astype("datetime64[D]")
        day = day_of_year(np.where(np.isnat(days), np.nan, days.astype(np.float64)))
        self._day = np.where(self._present, day, 0.0).astype(np.float32)
        self.lonlat = np.stack([chips["lon"].values[chosen], chips["lat"].values[chosen]], axis=1).astype(np.float64)
        self._opened: tuple[int, ChunkReader] | None = None

    def _choose_bands(self, bands: Sequence[str] | None, stored: Sequence[str]) -> tuple[str, ...]:
        place = {name: position for position, name in enumerate(stored)}
        self._ndvi_source = [place[name] for name in _NDVI_BANDS] if set(_NDVI_BANDS) <= set(place) else None
        self._ndvi: list[int] | None = None
        self._bands: slice | list[int]
        if bands is not None and NDVI in bands:
            if bands[-1] != NDVI or list(bands).count(NDVI) > 1:
                raise InputError(f"{NDVI!r} is computed and comes last", where=self.store)
            missing = [name for name in _NDVI_BANDS if name not in place]
            if missing:
                raise InputError(
                    f"NDVI needs the bands {' and '.join(_NDVI_BANDS)}, the chips have no {' and '.join(missing)}",
                    where=self.store,
                    what_to_do="leave ndvi out, or make chips with these bands",
                )
            self._ndvi = self._ndvi_source
            bands = bands[:-1]
        chosen = _positions(bands, stored, "band", self.store) if bands is None or bands or not self._ndvi else []
        # a slice, where the bands follow one another, is not copied
        whole = chosen == list(range(min(chosen, default=0), min(chosen, default=0) + len(chosen)))
        self._bands = slice(chosen[0], chosen[-1] + 1) if whole and chosen else chosen
        return tuple(stored[i] for i in chosen) + ((NDVI,) if self._ndvi else ())

    @property
    def can_be_stored(self) -> bool:
        """Whether `decode` can make all bands: those that NDVI is made of are there, if it is."""
        return NDVI not in self.all_bands or set(_NDVI_BANDS) <= set(self.all_bands)

    @property
    def has_ndvi(self) -> bool:
        """Whether the store has the bands that NDVI is made of, be it among `all_bands` or not."""
        return self._ndvi_source is not None

    def stored_chip(
        self, position: int, season: int
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16] | None] | None:
        """One chip as stored: the bands ``(band, y, x)`` without NDVI, and red and near infrared where it has them.

        Parameters
        ----------
        position, season : int
            In `names` and `seasons`.

        Returns
        -------
        tuple of numpy.ndarray, or None
            int16 reflectance x 10 000 with -32768, whole chips; None where there is no chip.
        """
        reader = self._chunks()
        chunk = self._chunk(reader, position, season, np.empty(reader.chunk, reader.dtype))
        if chunk is None:
            return None
        return chunk[0, 0, self._bands], None if self._ndvi_source is None else chunk[0, 0, self._ndvi_source]

    def __len__(self) -> int:
        """Return the number of locations."""
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _chunks(self) -> ChunkReader:
        """Open the pixels once in each process; what was opened before a fork is not used."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), ChunkReader(f"{self.store.rstrip('/')}/chips.zarr", "chips"))
        return self._opened[1]

    def __getitem__(self, index: int | Draw) -> dict[str, Tensor]:
        """Return one location's sample; see the class for its keys."""
        place, epoch = (index.position, index.epoch) if isinstance(index, Draw) else (index, 0)
        position = range(len(self))[place]
        drawn = self.dates is not None or isinstance(index, Draw)
        random = self._generator(position, epoch) if drawn else None
        seasons = self._draw(position, random)
        top, left = self._corner(random)
        notes: dict[str, Tensor] = {
            "present": torch.from_numpy(self._present[position, seasons]),
            "day_of_year": torch.from_numpy(self._day[position, seasons]),
            "season": torch.tensor(seasons),
            "lonlat": torch.from_numpy(self.lonlat[position].copy()),
            "index": torch.tensor(position),
        }
        sample = {**self._pixels(position, seasons, (top, left)), **notes}
        return self.transforms(sample) if self.transforms is not None else sample

    def _generator(self, position: int, epoch: int) -> np.random.Generator:
        text = f"{self.seed} {epoch} {self.names[position]}"
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()))

    def _draw(self, position: int, random: np.random.Generator | None) -> list[int]:
        if self.dates is None or random is None:
            return list(range(len(self.seasons)))
        drawn = [int(season) for season in random.permutation(np.flatnonzero(self._present[position]))[: self.dates]]
        return drawn + drawn[-1:] * (self.dates - len(drawn))

    def _corner(self, random: np.random.Generator | None) -> tuple[int, int]:
        if self.crop == "centre" or not self._margin:
            return self._margin // 2, self._margin // 2
        if random is not None:
            top, left = random.integers(self._margin + 1, size=2).tolist()
        else:
            top, left = torch.randint(self._margin + 1, (2,)).tolist()
        return int(top), int(left)

    def _pixels(self, position: int, seasons: Sequence[int], corner: tuple[int, int]) -> dict[str, Tensor]:
        """Read ``image`` and, unless they are left as stored, ``valid``."""
        reader = self._chunks()
        scratch = np.empty(reader.chunk, reader.dtype)
        rows, columns = (slice(start, start + self.size) for start in corner)
        count = len(self.all_bands) - (self._ndvi is not None and self.stored)
        dtype = np.int16 if self.stored else np.float32
        image = np.empty((len(seasons), count, self.size, self.size), dtype)
        valid = np.zeros((len(seasons), 0 if self.stored else self.size, self.size), np.bool_)
        for slot, season in enumerate(seasons):
            if slot and season == seasons[slot - 1]:
                image[slot], valid[slot] = image[slot - 1], valid[slot - 1]
                continue
            chunk = self._chunk(reader, position, season, scratch)
            if chunk is None:
                image[slot] = CHIP_NODATA if self.stored else 0
            elif self.stored:
                image[slot] = chunk[0, 0, self._bands, rows, columns]
            else:
                self._fill(chunk[0, 0, :, rows, columns], image[slot], valid[slot])
        if self.stored:
            return {"image": torch.from_numpy(image)}
        return {"image": torch.from_numpy(image), "valid": torch.from_numpy(valid)}

    def _chunk(
        self, reader: ChunkReader, position: int, season: int, scratch: npt.NDArray[Any]
    ) -> npt.NDArray[Any] | None:
        """One chip as stored ``(1, 1, band, y, x)``, all bands; None where there is none."""
        if not self._present[position, season]:
            return None
        chunk = reader.read((int(self._samples[position]), self._seasons[season], 0, 0, 0), scratch)
        if chunk is None and self._holds_data[position, season]:
            raise ReadError(
                f"the chip of {self.names[position]!r} in {self.seasons[season]} is gone",
                where=self.store,
                what_to_do="make the store again: a run that is resumed makes the shards again that are missing",
                code="shard",
            )
        return chunk

    def _fill(
        self, window: npt.NDArray[np.int16], image: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
    ) -> None:
        """Fill ``image (band, y, x)`` and ``valid (y, x)`` from stored bands ``(band, y, x)``."""
        stored = window[self._bands]
        count = len(stored)
        np.multiply(stored, np.float32(CHIP_SCALE), out=image[:count])
        valid[...] = True
        # most chips are whole, which is quicker to see than to mask
        if window.min() == CHIP_NODATA:
            unknown = stored == CHIP_NODATA
            image[:count][unknown] = 0.0
            valid[unknown.any(axis=0)] = False
        if self._ndvi is not None:
            both = window[self._ndvi]
            lost = (both == CHIP_NODATA).any(axis=0)
            image[count] = ndvi_of(*(both * np.float32(CHIP_SCALE)))
            image[count][lost] = 0.0
            valid[lost] = False

    def decode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn a sample or a batch that is as `stored` into reflectance, on its device.

        Parameters
        ----------
        batch : dict
            With ``image (..., band, y, x)`` int16; a floating one is left as it is.

        Returns
        -------
        dict
            With ``image (..., band, y, x)`` float32, NDVI included, and ``valid (..., y, x)``: the numbers that the
            data set gives when not `stored`.
        """
        stored = batch["image"]
        if stored.is_floating_point():
            return batch
        known = stored != CHIP_NODATA
        image = torch.where(known, stored * torch.tensor(CHIP_SCALE, dtype=torch.float32, device=stored.device), 0.0)
        if NDVI in self.all_bands:
            places = [self.all_bands.index(name) for name in _NDVI_BANDS]
            red, nir = (image[..., place : place + 1, :, :].clamp(min=0) for place in places)
            total = nir + red
            both = known[..., places, :, :].all(dim=-3, keepdim=True)
            index = torch.where(both & (total > 0), (nir - red) / total, 0.0)
            image = torch.cat([image, index], dim=-3)
        return {**batch, "image": image, "valid": known.all(dim=-3)}
