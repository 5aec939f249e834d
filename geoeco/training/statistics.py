"""Mean and spread of the bands of a store of chips, measured once and kept with the model; and scales of known models.

Only valid pixels count. The sums of stored reflectance are whole numbers and those of NDVI are added chip by chip
without rounding, so that neither blocks nor workers change a digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError
from geoeco.sampling.chips import CHIP_NODATA, CHIP_SCALE
from geoeco.training.bundles import Normalisation
from geoeco.training.chip_dataset import NDVI, ChipDataset, ndvi_of

__all__ = ["ChipStatistics", "chip_statistics", "seco_eco_normalisation"]

#: Locations of one Dask task.
_BLOCK = 64


@dataclass(frozen=True)
class ChipStatistics:
    """What `chip_statistics` measures.

    Attributes
    ----------
    normalisation : Normalisation
        Mean and population standard deviation of each band over all valid pixels, in reflectance.
    pixels : int
        Valid pixels that were counted.
    names : tuple of str
        Locations.
    mean_ndvi : numpy.ndarray or None
        ``(name, season)``, NaN where there is no chip or no valid pixel; None where the store lacks B04 or B08.
    """

    normalisation: Normalisation
    pixels: int
    names: tuple[str, ...]
    mean_ndvi: npt.NDArray[np.float64] | None


class _Sums(NamedTuple):
    """Sums over the valid pixels of one chip; those of bands in stored units."""

    location: int
    season: int
    pixels: int
    total: list[int]
    squares: list[int]
    ndvi_pixels: int
    ndvi_total: float
    ndvi_squares: float


def chip_statistics(
    store: str | Path,
    *,
    names: Sequence[str] | None = None,
    bands: Sequence[str] | None = None,
    min_valid: float = 0.0,
) -> ChipStatistics:
    """Measure the bands of a store over Dask: on the active cluster, else in threads.

    Parameters
    ----------
    store, names, bands, min_valid
        As of `geoeco.training.ChipDataset`; give the locations of the training set.

    Returns
    -------
    ChipStatistics

    Raises
    ------
    InputError
        If no pixel is valid, or a band is the same everywhere; and as `ChipDataset`.
    """
    data = ChipDataset(store, names=names, bands=bands, min_valid=min_valid)
    blocks = [range(first, min(first + _BLOCK, len(data))) for first in range(0, len(data), _BLOCK)]
    # the data set in each task, not as a node of its own: it is small, and opens its store where it is used
    tasks = [dask.delayed(_sums_of, pure=False)(data, list(block)) for block in blocks]
    sums: list[_Sums] = [chip for block in dask.compute(*tasks) for chip in block]
    pixels = sum(chip.pixels for chip in sums)
    if not pixels:
        raise InputError("no pixel of the chips is valid in all bands", where=str(store), code="no-locations")
    mean, std = [], []
    for band in range(len(data.all_bands) - (NDVI in data.all_bands)):
        total, squares = sum(chip.total[band] for chip in sums), sum(chip.squares[band] for chip in sums)
        mean.append(float(Fraction(total, pixels)) * CHIP_SCALE)
        std.append(math.sqrt(Fraction(squares * pixels - total * total, pixels * pixels)) * CHIP_SCALE)
    if NDVI in data.all_bands:
        centre = math.fsum(chip.ndvi_total for chip in sums) / pixels
        mean.append(centre)
        std.append(math.sqrt(math.fsum(_about(chip, centre) for chip in sums) / pixels))
    constant = [name for name, spread in zip(data.all_bands, std, strict=True) if not spread > 0]
    if constant:
        raise InputError(
            f"the band {', '.join(constant)} is the same everywhere",
            where=str(store),
            what_to_do="leave it out: a model learns nothing from it",
        )
    ndvi = None
    if data.has_ndvi:
        ndvi = np.full((len(data), len(data.seasons)), np.nan)
        for chip in sums:
            if chip.ndvi_pixels:
                ndvi[chip.location, chip.season] = chip.ndvi_total / chip.ndvi_pixels
    return ChipStatistics(Normalisation(tuple(mean), tuple(std)), pixels, data.names, ndvi)


def _about(chip: _Sums, centre: float) -> float:
    """Sum of the squared differences of a chip's NDVI from a value."""
    if not chip.ndvi_pixels:
        return 0.0
    return chip.ndvi_squares + chip.ndvi_pixels * (chip.ndvi_total / chip.ndvi_pixels - centre) ** 2


def _sums_of(data: ChipDataset, positions: Sequence[int]) -> list[_Sums]:
    found = []
    for position in positions:
        for season in range(len(data.seasons)):
            chip = data.stored_chip(position, season)
            if chip is not None:
                found.append(_sums_of_chip(position, season, *chip, NDVI in data.all_bands))
    return found


def _sums_of_chip(
    position: int,
    season: int,
    bands: npt.NDArray[np.int16],
    red_and_nir: npt.NDArray[np.int16] | None,
    with_ndvi: bool,
) -> _Sums:
    known = (bands != CHIP_NODATA).all(axis=0)
    index = np.empty(0)
    if red_and_nir is not None:
        both = known & (red_and_nir != CHIP_NODATA).all(axis=0)
        known = both if with_ndvi else known
        index = ndvi_of(*(red_and_nir[:, both] * np.float32(CHIP_SCALE))).astype(np.float64)
    values = bands[:, known].astype(np.int64)
    return _Sums(
        position,
        season,
        int(known.sum()),
        [int(v) for v in values.sum(axis=1)],
        [int(v) for v in (values * values).sum(axis=1)],
        len(index),
        float(index.sum()),
        float(((index - index.mean()) ** 2).sum()) if len(index) else 0.0,
    )


def seco_eco_normalisation(bands: Sequence[str]) -> Normalisation:
    """Scale on which the authors of SSL4Eco trained SeCo-Eco: digital numbers over 255.

    Their reader divides by 255 whatever exceeds 1, so that the network saw reflectance x 10 000 / 255, NDVI alike;
    nothing was centred. torchgeo's transforms of the same weights divide by 10 000, 39 times less, which their frozen
    batch normalisation does not forgive. Their NDVI was cut off at 0, ours is not.

    Parameters
    ----------
    bands : sequence of str

    References
    ----------
    PlekhanovaElena/ssl4eco (2025), its data loader with opencv-torchvision-transforms-yuzhiyang 0.0.1 ``ToTensor``.
    """
    return Normalisation((0.0,) * len(bands), (255 / 10_000,) * len(bands))
