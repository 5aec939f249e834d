"""Clusters of embeddings: k-means fitted on a frozen sample, then every cell to the nearest centroid.

For maps without labels. t-SNE and what has no transform cannot label cells that were not in the fit, and is no part of
this.
"""

from __future__ import annotations

import colorsys
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from geoeco.errors import InputError
from geoeco.mapping.projections import PrincipalComponents
from geoeco.mapping.tables import features_of, raster_of
from geoeco.variables import describe, nodata_for

__all__ = ["COMPONENTS", "NODATA", "UNASSIGNED", "Clusters", "cluster"]

#: Clusters are sought along this many principal components, at most: distances in more are mostly noise.
COMPONENTS = 32
UNASSIGNED = 0
NODATA = int(nodata_for("uint16"))
#: Starts of k-means; the best is taken.
_STARTS = 4


class Clusters:
    """K-means whose numbers stay the same from run to run.

    Cluster 1 is that with most cells in the sample, and so on; equal ones are ordered by their centroids. A cell that
    is farther from every centroid than any cell of the sample was from its own is `UNASSIGNED`.

    Parameters
    ----------
    k : int
        Number of clusters, 1 to 65,534.
    seed : int

    Attributes
    ----------
    centroids_ : numpy.ndarray, (k, feature)
    counts_ : numpy.ndarray, (k,)
        Cells of the sample.
    reach_ : float
        Largest distance of a cell of the sample from its centroid.
    """

    centroids_: npt.NDArray[np.float64]
    counts_: npt.NDArray[np.int64]
    reach_: float

    def __init__(self, k: int, seed: int = 0) -> None:
        self.k = k
        self.seed = seed

    def fit(self, sample: npt.NDArray[np.floating[Any]]) -> Self:
        """Find the centroids.

        Parameters
        ----------
        sample : numpy.ndarray, (cell, feature)
            Finite.

        Raises
        ------
        InputError
            If there are fewer distinct cells than clusters, or k is out of range.
        """
        distinct = len(np.unique(sample, axis=0))
        if not 1 <= self.k <= min(distinct, NODATA - 1):
            raise InputError(
                f"{self.k} clusters cannot be found among {distinct} different cells",
                what_to_do="ask for fewer clusters, or sample more cells",
                code="sample",
            )
        # k-means adds up in the order in which its threads come; one thread adds in one order
        with threadpool_limits(limits=1):
            fitted = KMeans(self.k, n_init=_STARTS, random_state=self.seed % 2**32).fit(sample.astype(np.float64))
        centroids = fitted.cluster_centers_
        labels, distance = _nearest(sample.astype(np.float64), centroids)
        counts = np.bincount(labels, minlength=self.k)
        order = np.lexsort((*centroids.T[::-1], -counts))
        self.centroids_, self.counts_ = centroids[order], counts[order]
        self.reach_ = float(distance.max())
        return self

    def predict(
        self, features: npt.NDArray[np.floating[Any]]
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
        """Assign cells to clusters.

        Parameters
        ----------
        features : numpy.ndarray, (cell, feature)

        Returns
        -------
        labels : numpy.ndarray, (cell,)
            1 to k, 0 where unassigned, 65535 where a feature is NaN.
        distance : numpy.ndarray, (cell,)
            From the nearest centroid; NaN where a feature is NaN.
        """
        known = np.isfinite(features).all(axis=1)
        nearest, distance = _nearest(np.where(known[:, np.newaxis], features, 0.0).astype(np.float64), self.centroids_)
        labels = np.where(distance > self.reach_ * (1 + 1e-9), UNASSIGNED, nearest + 1)
        return (
            np.where(known, labels, NODATA).astype(np.uint16),
            np.where(known, distance, np.nan).astype(np.float32),
        )

    def flags(self) -> dict[str, Any]:
        """CF flags of a map of the clusters: codes, names, colours."""
        return {
            "flag_values": list(range(self.k + 1)),
            "flag_meanings": " ".join(["unassigned", *(f"cluster_{number}" for number in range(1, self.k + 1))]),
            "flag_colors": " ".join(["#404040", *(_colour(number) for number in range(self.k))]),
        }


def _nearest(
    features: npt.NDArray[np.float64], centroids: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    # differences, not the expanded square: exact where a cell lies on its centroid, and the same for any number of rows
    squares = np.stack([((features - centroid) ** 2).sum(axis=1) for centroid in centroids], axis=1)
    nearest = squares.argmin(axis=1)
    return nearest, np.sqrt(np.take_along_axis(squares, nearest[:, np.newaxis], axis=1)[:, 0])


def _colour(position: int) -> str:
    """A colour apart from those before it, by the golden angle around the colour circle."""
    value = (0.9, 0.65, 0.8)[position % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.07 + position * 0.6180339887498949) % 1.0, 0.62, value)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def cluster(embedding: xr.DataArray, k: int, *, seed: int = 0, sample: int = 50_000) -> xr.Dataset:
    """Cluster map of an embedding.

    Parameters
    ----------
    embedding : xarray.DataArray
        ``(feature, y, x)``, NaN where there is none, as `embed` gives it.
    k : int
        Number of clusters.
    seed : int
        Of the sample and of k-means.
    sample : int
        Cells that the clusters are fitted on, drawn once, without replacement; all when there are fewer.

    Returns
    -------
    xarray.Dataset
        ``cluster (y, x)`` uint16: 1 to k by falling size in the sample, 0 unassigned (farther from every centroid than
        the sample was), 65535 nodata; ``distance (y, x)`` float32 from the centroid, along at most 32 principal
        components.

    Raises
    ------
    InputError
        If there are fewer cells than clusters.
    """
    features, known = features_of(embedding)
    if not known.any():
        raise InputError("the embedding has no data", what_to_do="see its valid_fraction")
    rows = np.flatnonzero(known)
    drawn = np.sort(np.random.default_rng(seed).choice(rows, min(sample, rows.size), replace=False))
    components = PrincipalComponents(min(COMPONENTS, features.shape[1], max(1, drawn.size - 1)))
    components.fit(features[drawn])
    clusters = Clusters(k, seed).fit(components.transform(features[drawn]))
    labels, distance = clusters.predict(components.transform(features))
    return xr.Dataset(
        {
            "cluster": describe(
                raster_of(labels, embedding, "cluster"),
                kind="class",
                units="",
                long_name="cluster",
                **clusters.flags(),
                _FillValue=NODATA,
            ),
            "distance": describe(
                raster_of(distance, embedding, "distance"),
                kind="continuous",
                units="1",
                long_name="distance from the centroid of the cluster",
            ),
        }
    )
