"""Which locations come in which batch: weighted, without repeats in a batch, the same in every run and on resume.

Dates within a location are `geoeco.training.ChipDataset`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from geoeco.errors import InputError
from geoeco.training.chip_dataset import Draw

__all__ = ["LocationBatches", "location_weights"]


def location_weights(
    names: Sequence[str],
    mean_ndvi: npt.NDArray[np.floating] | None = None,
    *,
    bare_ndvi: float = 0.1,
    bare_weight: float = 0.25,
    favoured: Sequence[str] | Mapping[str, float] = (),
    favoured_weight: float = 2.0,
) -> npt.NDArray[np.float64]:
    """Weights by which SSL4Eco samples its locations.

    Parameters
    ----------
    names : sequence of str
    mean_ndvi : numpy.ndarray, optional
        ``(name, season)``, NaN where there is no chip. Locations where it is below `bare_ndvi` in all their seasons
        (deserts, ice, water) get `bare_weight`.
    bare_ndvi, bare_weight : float
    favoured : sequence of str, or mapping of str to float
        Locations that get `favoured_weight` (mountains in SSL4Eco), or a weight each; names that are not among
        `names` are no error.
    favoured_weight : float

    Returns
    -------
    numpy.ndarray
        ``(name,)``; weights of both kinds are multiplied.

    Raises
    ------
    InputError
        If shapes do not fit or a weight is negative or not finite.

    References
    ----------
    Plekhanova et al. (2025), SSL4Eco, arXiv 2504.18256, section 3: 1/4 where mean NDVI < 0.1 in all seasons, 2 in
    mountains.
    """
    weights = np.ones(len(names))
    if mean_ndvi is not None:
        ndvi = np.asarray(mean_ndvi, np.float64)
        if ndvi.ndim != 2 or len(ndvi) != len(names):
            raise InputError(f"mean NDVI of shape {ndvi.shape} for {len(names)} locations")
        known = np.isfinite(ndvi)
        weights[known.any(axis=1) & (np.where(known, ndvi, -np.inf) < bare_ndvi).all(axis=1)] *= bare_weight
    listed = favoured if isinstance(favoured, Mapping) else dict.fromkeys(favoured, favoured_weight)
    weights *= [float(listed.get(name, 1.0)) for name in names]
    return _checked(weights, len(names))


class LocationBatches(Sampler[list[Draw]]):
    """Batches of locations for a whole training, as `Draw` s; give it to a DataLoader as ``batch_sampler``.

    Parameters
    ----------
    names : sequence of str
        Locations in the order of the data set.
    batch : int
        Locations a batch.
    epochs : int
    seed : int
    weights : numpy.ndarray, optional
        ``(name,)``: how often a location is drawn relative to others; alike when not given.
    start : int
        Steps that are done already; iteration begins after them.

    Attributes
    ----------
    steps_per_epoch : int
        Number of locations // `batch`: what does not fill a batch is left out, other locations each epoch.

    Raises
    ------
    InputError
        If there are fewer locations than a batch takes, or weights are no weights.

    Notes
    -----
    An epoch draws each location as often as its weight says, on average exactly, in each epoch rounded down or up
    (systematic sampling; Madow 1949): with equal weights each at most once. The copies of a location are dealt to
    different batches, so that no batch holds a location twice, which would make it a negative of itself.

    The order follows `seed`, the epoch and the names: neither the order of files, nor where iteration begins, nor
    anything that was drawn before changes it.

    ``len`` is that of the whole training, also where `start` is not 0: Lightning counts the steps from the first.
    """

    def __init__(
        self,
        names: Sequence[str],
        batch: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        weights: npt.NDArray[np.floating] | None = None,
        start: int = 0,
    ) -> None:
        if batch < 1 or epochs < 0 or start < 0:
            raise InputError(
                f"batch {batch}, epochs {epochs} and start {start} must not be negative, a batch not empty"
            )
        if len(set(names)) != len(names):
            raise InputError("a location is named twice")
        if len(names) < batch:
            raise InputError(
                f"{len(names)} locations do not fill a batch of {batch}",
                what_to_do="use a smaller batch or more locations",
                code="batch",
            )
        self.batch = batch
        self.epochs = epochs
        self.seed = seed
        self.start = start
        self.steps_per_epoch = len(names) // batch
        # by name, so that the order of the data set does not count
        self._order = np.array(sorted(range(len(names)), key=lambda i: names[i]))
        given = np.ones(len(names)) if weights is None else _checked(np.asarray(weights, np.float64), len(names))
        self._expected = _expected_counts(given[self._order], self.steps_per_epoch * batch, self.steps_per_epoch)

    def __len__(self) -> int:
        """Return the number of steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    def __iter__(self) -> Iterator[list[Draw]]:
        """Give the batches from step `start` on."""
        for epoch in range(self.start // self.steps_per_epoch, self.epochs):
            first = max(self.start - epoch * self.steps_per_epoch, 0)
            for batch in self.epoch(epoch)[first:]:
                yield [Draw(int(position), epoch) for position in batch]

    def epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """Positions in the data set of the locations of one epoch ``(step, location)``."""
        random = np.random.default_rng([self.seed, epoch])
        shuffled = random.permutation(len(self._order))
        expected = self._expected[shuffled]
        counts = np.where(expected >= self.steps_per_epoch, self.steps_per_epoch, 0)
        others = np.flatnonzero(counts == 0)
        edges = np.floor(np.cumsum(expected[others]) + random.random())
        # the sum of fractions is a rounding error off the whole number that it is
        edges[-1:] = self.steps_per_epoch * self.batch - counts.sum()
        counts[others] = np.diff(edges, prepend=0.0).astype(np.int64)
        slots = np.repeat(shuffled, counts)
        # dealt round: copies of a location lie side by side here, and so come into different batches
        batches = slots.reshape(self.batch, self.steps_per_epoch).T
        batches = random.permuted(batches[random.permutation(self.steps_per_epoch)], axis=1)
        chosen: npt.NDArray[np.int64] = self._order[batches]
        return chosen


def _checked(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    if weights.shape != (count,):
        raise InputError(f"weights of shape {weights.shape} for {count} locations")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError("sampling weights must be finite and not negative")
    return weights


def _expected_counts(weights: npt.NDArray[np.float64], slots: int, most: int) -> npt.NDArray[np.float64]:
    """How often each location is drawn in an epoch on average: as its weight, at most `most` (once a batch)."""
    usable = int((weights > 0).sum())
    if usable * most < slots:
        raise InputError(
            f"{usable} locations with a weight above 0 do not fill a batch of {slots // most}",
            what_to_do="use a smaller batch or give more locations a weight",
            code="batch",
        )
    expected = np.zeros_like(weights)
    full = np.zeros(len(weights), np.bool_)
    while True:
        rest = np.where(full, 0.0, weights)
        share = (slots - most * int(full.sum())) / rest.sum() if rest.any() else 0.0
        expected = np.where(full, float(most), rest * share)
        over = ~full & (expected > most * (1 - 1e-9))
        if not over.any():
            return expected
        full |= over
