"""From features to few numbers: principal components, and whole numbers with a scale.

Both are fitted once, on a frozen sample of a region, and applied to every cell alike: a fit of each block would make
seams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError

__all__ = ["PrincipalComponents", "Quantisation"]

Floats = npt.NDArray[np.floating[Any]]


class PrincipalComponents:
    """Principal components of features.

    Parameters
    ----------
    n : int
        How many.

    Attributes
    ----------
    mean_ : numpy.ndarray, (feature,)
    axes_ : numpy.ndarray, (n, feature)
        Unit vectors, largest variance first; the largest element of each is positive, so that a repeated fit has the
        same signs.
    variance_ : numpy.ndarray, (n,)
        Variance along each axis.
    share_ : numpy.ndarray, (n,)
        Its part of the whole variance.
    """

    mean_: npt.NDArray[np.float64]
    axes_: npt.NDArray[np.float64]
    variance_: npt.NDArray[np.float64]
    share_: npt.NDArray[np.float64]

    def __init__(self, n: int) -> None:
        self.n = n

    def fit(self, sample: Floats) -> Self:
        """Find the axes.

        Parameters
        ----------
        sample : numpy.ndarray, (cell, feature)
            Finite.

        Raises
        ------
        InputError
            If there are fewer than n features or n + 1 cells.
        """
        cells, features = sample.shape
        if not 1 <= self.n <= min(features, cells - 1):
            raise InputError(
                f"{self.n} principal components cannot be found from {cells} cells of {features} features",
                what_to_do="ask for fewer, or sample more cells",
                code="sample",
            )
        exact = sample.astype(np.float64)
        self.mean_ = exact.mean(axis=0)
        centred = exact - self.mean_
        values, vectors = np.linalg.eigh(centred.T @ centred / (cells - 1))
        axes = vectors[:, ::-1][:, : self.n].T
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, np.newaxis], axis=1))
        self.axes_ = np.ascontiguousarray(axes * signs)
        self.variance_ = np.maximum(values[::-1][: self.n], 0.0)
        self.share_ = self.variance_ / max(float(np.maximum(values, 0.0).sum()), np.finfo(np.float64).tiny)
        return self

    def transform(self, features: Floats) -> npt.NDArray[np.float64]:
        """Coordinates ``(cell, n)`` of features ``(cell, feature)`` along the axes; NaN stays NaN."""
        return (features.astype(np.float64) - self.mean_) @ self.axes_.T


@dataclass(frozen=True)
class Quantisation:
    """Whole numbers of eight bits for values: value = stored x scale + offset.

    One scale for all bands: readers of GeoTIFF do not keep a scale for each. What lies beyond the range is clipped.

    Attributes
    ----------
    scale, offset : float
    """

    scale: float
    offset: float

    #: The lowest and highest stored numbers; -128 is nodata.
    LEVELS = 127

    @classmethod
    def of(cls, sample: Floats, clip: float = 0.001) -> Self:
        """Choose scale and offset by a sample of values of any shape.

        Parameters
        ----------
        sample : numpy.ndarray
            Finite.
        clip : float
            Part of the values that may be clipped at each end. The range is symmetric about 0 where values are of
            both signs, so that 0 stays 0.
        """
        low, high = (float(v) for v in np.quantile(sample, (clip, 1 - clip)))
        offset = 0.0 if low < 0 < high else (low + high) / 2
        half = max(high - offset, offset - low)
        return cls(half / cls.LEVELS if half > 0 else 1.0, offset)

    def round(self, values: Floats) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Bring values to the nearest that can be stored.

        Returns
        -------
        values : numpy.ndarray
            float32; NaN stays NaN.
        clipped : numpy.ndarray
            Which values lay beyond the range.
        """
        levels = np.rint((values.astype(np.float64) - self.offset) / self.scale)
        held = np.clip(levels, -self.LEVELS, self.LEVELS) * self.scale + self.offset
        return held.astype(np.float32), np.abs(levels) > self.LEVELS
