"""What a data set of chips must be for the loaders of this room: it reads what is stored, a device makes values of it.

The data sets themselves are in modules of their own, one a kind of chips.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from geoeco.training.torchgeo_adapter import NonGeoDataset

__all__ = ["StoredChips"]


class StoredChips(NonGeoDataset):
    """Chips of a store that are decoded in batches.

    Attributes
    ----------
    store : str
        Folder or fsspec URL, for messages.
    """

    store: str

    @abstractmethod
    def decode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make values of a batch of samples, on its device; a batch that holds values is left as it is."""
