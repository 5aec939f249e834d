"""Labelled chips of orthomosaics as a map-style torch data set: an image and a class for each of its pixels.

It reads stores of `geoeco.sampling.open_uav_chips` with labels, and nothing else. Augmentation is done on the device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from affine import Affine
from torch import Tensor

from geoeco.cubes.chunks import ChunkReader
from geoeco.errors import GridError, InputError
from geoeco.sampling import open_uav_chips
from geoeco.training.chip_dataset import Draw
from geoeco.training.crown_chips import CrownDataset
from geoeco.training.photo_points import PhotoPoints
from geoeco.training.segmentation_losses import IGNORE

__all__ = ["ChipSurvey", "LabelledClasses", "SegmentationDataset", "labelled_classes", "survey_chips"]


@dataclass(frozen=True)
class LabelledClasses:
    """The classes of a store's labels, in the order of a network's output channels.

    Attributes
    ----------
    codes : tuple of int
        Value of each class in the labels.
    names : tuple of str
    colours : tuple of str
        ``"#rrggbb"``; empty where the labels came without.
    """

    codes: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.codes)

    @property
    def channels(self) -> npt.NDArray[np.uint8]:
        """``(256,)``: channel of each code, `IGNORE` of what is no class."""
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.codes)] = np.arange(len(self.codes), dtype=np.uint8)
        return table


def labelled_classes(chips: xr.Dataset, where: str = "") -> LabelledClasses:
    """Read the class table of a store of chips.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `geoeco.sampling.open_uav_chips`.
    where : str
        For messages.

    Raises
    ------
    InputError
        If the chips have no labels, or fewer than two classes.
    """
    if "label" not in chips:
        raise InputError(
            "the chips have no labels",
            where=where,
            what_to_do="make them with a raster of labels",
            code="labels",
        )
    table = [entry for entry in chips.attrs.get("classes", ()) if int(entry[0]) != IGNORE]
    codes = tuple(int(entry[0]) for entry in table)
    if len(codes) < 2 or len(set(codes)) < len(codes) or not all(0 <= code < IGNORE for code in codes):
        raise InputError(
            f"the labels have the classes {codes}",
            where=where,
            what_to_do=f"give labels of two classes or more, codes from 0 to {IGNORE - 1}, each once",
            code="one-class",
        )
    colours = tuple(str(entry[2]) if len(entry) > 2 and entry[2] else "" for entry in table)
    return LabelledClasses(
        codes, tuple(str(entry[1]) for entry in table), tuple(c[:7] for c in colours) if all(colours) else ()
    )


class SegmentationDataset(CrownDataset):
    """Chips of a store with a class for each pixel, one chip a sample.

    Parameters
    ----------
    store : str or Path
        Folder or fsspec URL of a finished store of chips with labels.
    samples : sequence of int, optional
        Positions of the chips to use, in this order; all when not given.
    size : int, optional
        Pixels along a side of the windows; whole chips when not given.
    crop : {"centre", "random"}
        Where windows are cut. Random ones follow `seed`, the chip and the epoch of a `Draw`.
    seed : int
    stored : bool
        Give ``image`` as it is stored, for `decode` to make values of on the device.
    photos : PhotoPoints, optional
        Of the same classes in the same order.

    Attributes
    ----------
    classes : LabelledClasses
    all_bands, resolution, chip_size, scale, samples
        As of `CrownDataset`.
    size : int

    Raises
    ------
    InputError
        If the chips have no labels or are smaller than `size`, or a position is not in the store.
    OutputError
        If there is no finished store.

    Notes
    -----
    A sample is torchgeo's dictionary: ``image (band, y, x)`` float32, stored x scale in the unit "1" and 0 where
    invalid; ``mask (y, x)`` int64, channels of the network from 0, 255 where nothing is known or the image is not
    valid; ``valid (y, x)`` bool; ``index ()`` int64. With `photos` also ``shares (class, y, x)`` and ``share_weight
    (y, x)`` float32, as of `PhotoPoints.soft_labels`, without weight where the image is not valid.
    """

    def __init__(
        self,
        store: str | Path,
        samples: Sequence[int] | None = None,
        *,
        size: int | None = None,
        crop: Literal["centre", "random"] = "centre",
        seed: int = 0,
        stored: bool = False,
        photos: PhotoPoints | None = None,
    ) -> None:
        super().__init__(store, samples)
        if crop not in ("centre", "random"):
            raise InputError(f"crop is {crop!r}", what_to_do="use 'centre' or 'random'")
        self.size = self.chip_size if size is None else int(size)
        if not 1 <= self.size <= self.chip_size:
            raise InputError(
                f"windows of {size} pixels do not fit in chips of {self.chip_size}",
                where=self.store,
                what_to_do=f"give a size from 1 to {self.chip_size}",
            )
        chips = open_uav_chips(self.store)
        self.classes = labelled_classes(chips, self.store)
        self.photos = photos
        if photos is not None and photos.classes != self.classes.names:
            raise InputError(
                f"photo points of the classes {photos.classes}, labels of {self.classes.names}", where=self.store
            )
        self._places = None if photos is None else chip_places(chips)
        self.crop, self.seed, self.stored = crop, int(seed), stored
        self._channels = self.classes.channels
        self._labels: tuple[int, ChunkReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_labels": None}

    def stored_label(self, position: int) -> npt.NDArray[np.uint8]:
        """Codes of one chip ``(y, x)`` as stored, 255 where not known."""
        if self._labels is None or self._labels[0] != os.getpid():
            self._labels = (os.getpid(), ChunkReader(self.store, "label"))
        labels = self._labels[1].read((self.samples[position], 0, 0))
        if labels is None:
            return np.full((self.chip_size, self.chip_size), IGNORE, np.uint8)
        codes: npt.NDArray[np.uint8] = labels[0]
        return codes

    def _window(self, position: int, epoch: int) -> tuple[slice, slice]:
        margin = self.chip_size - self.size
        if self.crop == "centre":
            first = second = margin // 2
        else:
            draw = np.random.default_rng([self.seed, self.samples[position], epoch])
            first, second = (int(value) for value in draw.integers(0, margin + 1, 2))
        return slice(first, first + self.size), slice(second, second + self.size)

    def __getitem__(self, index: int | Draw) -> dict[str, Tensor]:
        """Return one sample; see the class for its keys."""
        place, epoch = (index.position, index.epoch) if isinstance(index, Draw) else (index, 0)
        position = range(len(self))[place]
        image, valid = self.stored_chip(position)
        rows, columns = self._window(position, epoch)
        image, valid = image[:, rows, columns], valid[rows, columns]
        mask = np.where(valid, self._channels[self.stored_label(position)[rows, columns]], IGNORE)
        # torch computes with few unsigned types
        image = image.astype(np.int32 if image.dtype == np.uint16 else image.dtype)
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "valid": torch.from_numpy(np.ascontiguousarray(valid)),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "index": torch.tensor(position, dtype=torch.int64),
        }
        if self.photos is not None and self._places is not None:
            affine, crs = self._places[self.samples[position]]
            corner = affine @ Affine.translation(columns.start, rows.start)
            shares, weight = self.photos.soft_labels(corner, (self.size, self.size), crs)
            sample["shares"], sample["share_weight"] = torch.from_numpy(shares), torch.from_numpy(weight * valid)
        return sample if self.stored else super().decode(sample)

    def decode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make values of what is stored, on its device."""
        return super().decode(batch) if self.stored else batch


def chip_places(chips: xr.Dataset) -> list[tuple[Affine, str]]:
    """Pixel coordinates to the map, and the CRS of that, of each chip of a store.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `geoeco.sampling.open_uav_chips`.

    Raises
    ------
    GridError
        If a chip lies on no map.
    """
    wkt = [str(text) for text in chips.attrs.get("source_crs_wkt", [chips.attrs.get("crs_wkt", "")])]
    places = [
        (Affine(*corner), wkt[source])
        for corner, source in zip(chips["affine"].values, chips["source"].values, strict=True)
    ]
    if not all(crs for _, crs in places):
        raise GridError(
            "chips have no CRS: photo points do not lie on them", what_to_do="cut chips of a mosaic that has one"
        )
    return places


class ChipSurvey(NamedTuple):
    """What `survey_chips` finds.

    Attributes
    ----------
    counts : numpy.ndarray
        ``(class,)`` int64, known pixels of each class.
    sha256 : str
        Of all pixels, masks and labels.
    """

    counts: npt.NDArray[np.int64]
    sha256: str


def survey_chips(data: SegmentationDataset) -> ChipSurvey:
    """Look once at all of some chips, whole.

    Raises
    ------
    InputError
        If a label has a code that its class table lacks.
    """
    counts = np.zeros(256, np.int64)
    digest = hashlib.sha256()
    for position in range(len(data)):
        image, valid = data.stored_chip(position)
        label = data.stored_label(position)
        counts += np.bincount(label[valid], minlength=256)
        for values in (image, valid, label):
            digest.update(np.ascontiguousarray(values).tobytes())
    unknown = [code for code in np.flatnonzero(counts) if code != IGNORE and code not in data.classes.codes]
    if unknown:
        raise InputError(
            f"{counts[unknown[0]]} pixels of the labels have the code {unknown[0]}, which is no class",
            where=data.store,
            what_to_do=f"name it in the raster's class table; named are {data.classes.codes}",
            code="labels",
        )
    return ChipSurvey(counts[list(data.classes.codes)], digest.hexdigest())
