"""What a map keeps of embeddings, fitted once on a frozen sample of a region and applied to every cell alike.

Principal components, whole numbers with a scale, clusters and the likeness to places, together: one file that every
block of a map reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

from geoeco.errors import OutputError
from geoeco.mapping.clusters import COMPONENTS, Clusters
from geoeco.mapping.projections import PrincipalComponents, Quantisation
from geoeco.mapping.similarity import cosine

__all__ = ["Reduction"]

Floats = npt.NDArray[np.float32]
#: Components of the picture in colour.
COLOURS = 3


@dataclass(frozen=True, eq=False)
class Reduction:
    """From the features of cells to the variables of a map.

    Attributes
    ----------
    components : PrincipalComponents
    dims : int or None
        Components that are kept as the embedding; None keeps the features.
    quantisation : Quantisation or None
        Of what is kept; None keeps it as it is.
    clusters : Clusters or None
        Along at most 32 components.
    places : numpy.ndarray, (place, feature)
        Features of the places that cells are compared with.
    """

    components: PrincipalComponents
    dims: int | None
    quantisation: Quantisation | None
    clusters: Clusters | None
    places: Floats

    @classmethod
    def fit(
        cls,
        sample: Floats,
        *,
        dims: int | None = None,
        clip: float | None = 0.001,
        clusters: int | None = None,
        places: Floats | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit on a sample.

        Parameters
        ----------
        sample : numpy.ndarray, (cell, feature)
            Finite.
        dims : int, optional
            Components to keep; the features when not given.
        clip : float, optional
            As in `Quantisation.of`; None leaves the values as they are.
        clusters : int, optional
            How many; none when not given.
        places : numpy.ndarray, (place, feature), optional
        seed : int
            Of k-means.

        Raises
        ------
        InputError
            If the sample is too small for the components or clusters.
        """
        cells, features = sample.shape
        wanted = max(dims or 0, COLOURS, min(COMPONENTS, features, cells - 1))
        components = PrincipalComponents(wanted).fit(sample)
        along = components.transform(sample)
        kept = sample if dims is None else along[:, :dims]
        found = None if clusters is None else Clusters(clusters, seed).fit(along[:, :COMPONENTS])
        return cls(
            components,
            dims,
            None if clip is None else Quantisation.of(kept, clip),
            found,
            np.zeros((0, features), np.float32) if places is None else places,
        )

    def derive(self, features: Floats) -> dict[str, npt.NDArray[Any]]:
        """Make the variables of cells ``(cell, feature)``.

        Returns
        -------
        dict
            ``embedding (cell, band)``, ``pca_rgb (cell, 3)``, where asked for ``cluster`` and ``cluster_distance``
            ``(cell,)`` and ``similarity (cell, place)``, all NaN or nodata where a feature is NaN; and ``clipped
            (cell,)``, how many values of a cell lay beyond the range of whole numbers.
        """
        along = self.components.transform(features)
        kept = features if self.dims is None else along[:, : self.dims].astype(np.float32)
        clipped = np.zeros(len(features), np.uint32)
        if self.quantisation is not None:
            kept, beyond = self.quantisation.round(kept)
            clipped = beyond.sum(axis=1).astype(np.uint32)
        made: dict[str, npt.NDArray[Any]] = {
            "embedding": kept,
            "pca_rgb": along[:, :COLOURS].astype(np.float32),
            "clipped": clipped,
        }
        if self.clusters is not None:
            made["cluster"], made["cluster_distance"] = self.clusters.predict(along[:, :COMPONENTS])
        if len(self.places):
            made["similarity"] = cosine(features, self.places)
        return made

    def to_bytes(self) -> bytes:
        """Content of a safetensors file; the same fit gives the same bytes."""
        tensors: dict[str, npt.NDArray[Any]] = {
            "components.mean": self.components.mean_,
            "components.axes": self.components.axes_,
            "components.variance": self.components.variance_,
            "components.share": self.components.share_,
            "places": self.places,
        }
        if self.quantisation is not None:
            tensors["quantisation"] = np.array([self.quantisation.scale, self.quantisation.offset])
        if self.dims is not None:
            tensors["dims"] = np.array([self.dims], np.int64)
        if self.clusters is not None:
            tensors["clusters.centroids"] = self.clusters.centroids_
            tensors["clusters.counts"] = self.clusters.counts_.astype(np.int64)
            tensors["clusters.reach"] = np.array([self.clusters.reach_])
        content: bytes = write_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        return content

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "") -> Self:
        """Read what `to_bytes` gave.

        Parameters
        ----------
        content : bytes
        where : str
            Name of the file, for messages.

        Raises
        ------
        OutputError
            If it is something else.
        """
        try:
            tensors: Mapping[str, npt.NDArray[Any]] = read_tensors(content)
            components = PrincipalComponents(len(tensors["components.axes"]))
            components.mean_, components.axes_ = tensors["components.mean"], tensors["components.axes"]
            components.variance_, components.share_ = tensors["components.variance"], tensors["components.share"]
            clusters = None
            if "clusters.centroids" in tensors:
                clusters = Clusters(len(tensors["clusters.centroids"]))
                clusters.centroids_, clusters.counts_ = tensors["clusters.centroids"], tensors["clusters.counts"]
                clusters.reach_ = float(tensors["clusters.reach"][0])
            scale = tensors.get("quantisation")
            return cls(
                components,
                int(tensors["dims"][0]) if "dims" in tensors else None,
                None if scale is None else Quantisation(float(scale[0]), float(scale[1])),
                clusters,
                tensors["places"],
            )
        except (SafetensorError, KeyError, IndexError) as error:
            raise OutputError(
                f"this is not the fit of an embedding map: {error}",
                where=where,
                what_to_do="remove it; a run makes it again on resume",
            ) from error
