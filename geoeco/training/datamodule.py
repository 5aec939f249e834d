"""Chips on their way to the network: the data set, its batches, and workers that were spawned."""

from __future__ import annotations

import multiprocessing

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from geoeco.errors import InputError
from geoeco.training.samplers import LocationBatches
from geoeco.training.stored_chips import StoredChips

__all__ = ["ChipDataModule"]


class ChipDataModule(LightningDataModule):
    """Batches of chips for Lightning.

    Parameters
    ----------
    dataset : StoredChips
        A `ChipDataset` best `stored`: reflectance and NDVI are then made on the device.
    batches : LocationBatches
        Of the data set's names.
    workers : int
        Processes that read; 0 reads in the training process. They are spawned, never forked.
    pin_memory : bool
        For a faster way to a GPU.

    Raises
    ------
    InputError
        If workers are asked for in a process that may not have any (a daemon, as Dask's workers are).

    Notes
    -----
    A batch is the data set's sample with an axis in front: of contrastive data sets ``image (N, date, band, y, x)``.
    """

    def __init__(
        self, dataset: StoredChips, batches: LocationBatches, *, workers: int = 0, pin_memory: bool = False
    ) -> None:
        super().__init__()
        if workers and multiprocessing.current_process().daemon:
            raise InputError(
                f"{workers} reading processes are asked for in a process that may start none",
                where="this process is a daemon, as the workers of a Dask cluster are",
                what_to_do="use workers: 0, or run the training without a cluster",
            )
        self.dataset = dataset
        self.batches = batches
        self.workers = workers
        self.pin_memory = pin_memory

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the loader; it begins at the batches' start."""
        return DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin_memory,
        )

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Make values of what is stored, on the device."""
        return self.dataset.decode(batch)
