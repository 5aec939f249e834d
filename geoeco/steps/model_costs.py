"""What tasks that run a model hold in memory: upper bounds for plans, which tests compare with what is measured.

Arithmetic only: nothing is read and no network is made. What a training takes is `geoeco.steps.training_files`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geoeco.cubes import cube_layout
from geoeco.steps.layers import shard_for

if TYPE_CHECKING:
    from geoeco.mapping import Lattice
    from geoeco.steps.bundles import PlannedModel

__all__ = ["ACTIVATION_BYTES", "LIBRARIES_BYTES", "SERIES", "EmbeddingCost", "network_bytes"]

#: What torch, timm and the rest of the extra ml take once they are imported; an upper bound, which a test measures.
LIBRARIES_BYTES = 1024 * 2**20
#: What a network of usual make holds at once in evaluation, bytes for each pixel of an image of a batch.
ACTIVATION_BYTES = 640
#: Pixels along each side of the piece of a cube whose series are in memory at once.
SERIES = 256
#: A shard of the map holds at most this much, where that is possible.
_SHARD_BYTES = 32 * 2**20
#: Chunks that zarr reads at a time.
_READ_AT_ONCE = 10


def network_bytes(model: PlannedModel, images: int, *, size: int | None = None) -> int:
    """Libraries, weights, and a batch on its way through the network.

    Parameters
    ----------
    model : PlannedModel
    images : int
        Images of a batch.
    size : int, optional
        Pixels along a side of an image; as the model was trained when not given.

    Returns
    -------
    int
        Bytes.
    """
    pixels = images * (size or model.size) ** 2
    return LIBRARIES_BYTES + 3 * model.weight_bytes + pixels * (len(model.bands) * 4 * 3 + ACTIVATION_BYTES)


@dataclass(frozen=True)
class EmbeddingCost:
    """Upper bounds of what a task of each stage of an embedding map holds, bytes.

    Attributes
    ----------
    model : PlannedModel
    lattice : Lattice
        Windows and batches of the map.
    periods : int
        Composites of a cell.
    stored : int
        Bands of a composite.
    features : int
        Of a cell, before components.
    dims : int or None
        Components kept; None for all features.
    sample : int
        Cells that components are found from.
    times : int
        Looks of the cube.
    edge : int
        Pixels along a side of a block.
    places : int
        Whose likeness is mapped.
    """

    model: PlannedModel
    lattice: Lattice
    periods: int
    stored: int
    features: int
    dims: int | None
    sample: int
    times: int
    edge: int
    places: int

    @property
    def pixel_bytes(self) -> int:
        """Of the composites."""
        return 4 * self.periods * self.stored

    @property
    def cell_bytes(self) -> int:
        """Of the map."""
        return 4 * ((self.dims or self.features) + 3 + 1 + self.places + 1) + 3

    @property
    def shard(self) -> int:
        """Side of a shard of the map, cells."""
        largest = max(1, math.isqrt(_SHARD_BYTES // self.cell_bytes))
        return shard_for(self.edge // self.lattice.stride, min(512, largest))

    @property
    def composites(self) -> int:
        """Of a task that makes composites."""
        shard, chunk = shard_for(self.edge), cube_layout(self.times, self.edge)[1]
        tile = min(SERIES, shard)
        # chunks as stored and the series of one band: decoded, turned, sorted, and which are valid
        series = self.times * (2 * (tile + 2 * chunk) ** 2 + 24 * tile**2)
        return series + self.pixel_bytes * (4 * shard**2 + 2 * tile**2) + 64 * 2**20

    @property
    def fit(self) -> int:
        """Of the task that finds components, clusters and scale."""
        windows = self.lattice.side**2 * self.lattice.window**2 * 4 * self.pixel_bytes
        sample = self.sample * (40 * self.features + 8 * 32 * 8) + 32 * self.features**2
        return self._network + self._reading + windows + sample + self._fitted

    @property
    def block(self) -> int:
        """Of a task that embeds a block."""
        return self._network + self._reading + 4 * self.shard**2 * self.cell_bytes + self._fitted

    @property
    def _network(self) -> int:
        return network_bytes(self.model, self.lattice.side**2)

    @property
    def _reading(self) -> int:
        """Chunks of composites being read, and a piece with its halo as read, filled, and as the model takes it."""
        shard = shard_for(self.edge)
        chunk = next(side for side in range(min(256, shard), 0, -1) if shard % side == 0)
        edge = self.lattice.piece * self.lattice.stride + 2 * self.lattice.halo
        piece = edge**2 * (4 * self.pixel_bytes + self.periods * (4 * len(self.model.bands) + 24))
        return _READ_AT_ONCE * chunk**2 * self.pixel_bytes + piece

    @property
    def _fitted(self) -> int:
        return 16 * self.features * max(self.dims or 0, 32)
