"""Crowns seen twice, from above and from near, as a map-style torch data set.

Which photo shows which crown is `geoeco.sampling.pair_closeups`'s. The set of a photo is that of its crown: photos of
one crown in two sets would be known by heart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from geoeco.errors import InputError
from geoeco.sampling import closeup_path, read_closeup
from geoeco.training.bundles import Normalisation
from geoeco.training.chip_dataset import Draw
from geoeco.training.crown_chips import CrownDataset
from geoeco.training.stored_chips import StoredChips

__all__ = ["CrownPairs", "check_photos", "photo_statistics", "photos_of_crowns", "read_photos"]


def photos_of_crowns(pairs: pd.DataFrame) -> dict[int, tuple[str, ...]]:
    """Paths of the photos of each crown, in alphabetical order.

    Parameters
    ----------
    pairs : pandas.DataFrame
        As of `geoeco.sampling.pair_closeups`: ``photo`` and ``crown_id``, 0 where a photo shows no crown.

    Raises
    ------
    InputError
        If a column is missing, a photo is listed for two crowns, or no photo shows a crown.
    """
    missing = [name for name in ("photo", "crown_id") if name not in pairs.columns]
    if missing:
        raise InputError(
            f"the table of photos has no column {missing[0]!r}", what_to_do="make it with geoeco.sampling.pair_closeups"
        )
    known = pairs.loc[pairs["crown_id"] > 0, ["crown_id", "photo"]].astype({"photo": str}).drop_duplicates()
    twice = known["photo"].duplicated()
    if twice.any():
        raise InputError(f"the photo {known.loc[twice, 'photo'].iloc[0]!r} is listed for two crowns")
    if not len(known):
        raise InputError("no photo shows a crown", code="no-locations")
    found: dict[int, list[str]] = {}
    for crown, photo in zip(known["crown_id"].tolist(), known["photo"].tolist(), strict=True):
        found.setdefault(int(crown), []).append(photo)
    return {crown: tuple(sorted(photos)) for crown, photos in sorted(found.items())}


def read_photos(folder: str | Path, photos: Sequence[str], size: int) -> npt.NDArray[np.uint8]:
    """Photos ``(N, 3, size, size)``, the middle of each scaled to a square."""
    return np.stack([read_closeup(folder, photo, size=size) for photo in photos])


def photo_statistics(folder: str | Path, photos: Sequence[str], size: int) -> Normalisation:
    """Mean and standard deviation of red, green and blue over photos, in 0..1.

    Raises
    ------
    InputError
        If a colour is the same everywhere.
    ReadError
        If a photo cannot be read.
    """
    # whole numbers, so that the order of the photos does not count
    total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for photo in photos:
        values = read_closeup(folder, photo, size=size).reshape(3, -1).astype(np.int64)
        total += values.sum(axis=1)
        squares += (values * values).sum(axis=1)
    pixels = len(photos) * size * size
    mean = total / pixels
    spread = np.sqrt(np.maximum(squares / pixels - mean * mean, 0))
    if not (spread > 1e-3).all():
        raise InputError("a colour of the photos is the same everywhere", where=str(folder))
    return Normalisation(tuple(map(float, mean / 255)), tuple(map(float, spread / 255)))


def check_photos(folder: str | Path, photos: Mapping[int, tuple[str, ...]], crowns: Iterable[int], size: int) -> None:
    """Read the photos of some crowns once, so that one that cannot be read is known before a training and not after.

    Raises
    ------
    InputError, ReadError
        If one cannot be read.
    """
    for crown in sorted(crowns):
        for photo in photos.get(crown, ()):
            read_closeup(folder, photo, size=size)


class CrownPairs(StoredChips):
    """A crown's chip with some of its close-up photos.

    Parameters
    ----------
    chips : CrownDataset
    crown_ids : sequence of int
        Of its chips, in its order.
    folder : str or Path
        Of the table that names the photos.
    photos : mapping of int to tuple of str
        As of `photos_of_crowns`; at least one of each of the crowns.
    size : int
        Pixels along a side of the photos.
    per_crown : int
        Photos of a crown that are drawn, without replacement.
    seed : int

    Raises
    ------
    InputError
        If a crown has no photo.

    Notes
    -----
    A sample is that of `CrownDataset` with ``crown ()`` int64, ``closeup (photo, 3, y, x)`` uint8 and
    ``closeup_there (photo,)`` bool: crowns with fewer photos than `per_crown` have black ones at the end that are not
    there. Which photos are drawn depends on `seed`, the epoch and the crown alone; asked for by its position alone, a
    sample has the first ones.
    """

    def __init__(
        self,
        chips: CrownDataset,
        crown_ids: Sequence[int],
        folder: str | Path,
        photos: Mapping[int, tuple[str, ...]],
        *,
        size: int,
        per_crown: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(crown_ids) != len(chips):
            raise InputError(f"{len(crown_ids)} ids for {len(chips)} chips")
        if per_crown < 1 or size < 1:
            raise InputError(f"{per_crown} photos of {size} pixels", what_to_do="give positive numbers")
        lacking = [crown for crown in crown_ids if not photos.get(crown)]
        if lacking:
            raise InputError(f"the crown {lacking[0]} has no photo", what_to_do="leave out crowns without one")
        self.chips = chips
        self.store = chips.store
        self.crown_ids = tuple(int(crown) for crown in crown_ids)
        self.folder = str(folder)
        self.photos = {crown: photos[crown] for crown in self.crown_ids}
        self.size, self.per_crown, self.seed = size, per_crown, seed

    def __len__(self) -> int:
        """Return the number of crowns."""
        return len(self.chips)

    def drawn(self, index: int | Draw) -> tuple[str, ...]:
        """Photos of a sample."""
        place, epoch = (index.position, index.epoch) if isinstance(index, Draw) else (index, None)
        crown = self.crown_ids[place]
        photos = self.photos[crown]
        if epoch is None:
            return photos[: self.per_crown]
        text = f"{self.seed} {epoch} {crown}".encode()
        random = np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
        order = random.permutation(len(photos))[: self.per_crown]
        return tuple(photos[position] for position in order)

    def __getitem__(self, index: int | Draw) -> dict[str, Tensor]:
        """Return one sample; see the class for its keys."""
        photos = self.drawn(index)
        place = index.position if isinstance(index, Draw) else index
        pixels = np.zeros((self.per_crown, 3, self.size, self.size), np.uint8)
        pixels[: len(photos)] = read_photos(self.folder, photos, self.size)
        return {
            **self.chips[place],
            "crown": torch.tensor(self.crown_ids[place], dtype=torch.int64),
            "closeup": torch.from_numpy(pixels),
            "closeup_there": torch.arange(self.per_crown) < len(photos),
        }

    def decode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make values of a batch, on its device: ``image`` as of `CrownDataset`, ``closeup`` in 0..1."""
        return {**self.chips.decode(batch), "closeup": batch["closeup"].float() / 255}

    def fingerprint(self) -> str:
        """SHA-256 of the names and bytes of all photos."""
        digest = hashlib.sha256()
        for crown, photos in sorted(self.photos.items()):
            for photo in photos:
                content = closeup_path(self.folder, photo).read_bytes()
                digest.update(f"{crown} {photo} ".encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()
