"""Photo points as soft weak labels: what a photo from the ground shows holds for its surroundings, in shares.

A photo is no raster: where it was taken is known to metres, what lies where in it is not. Its classes are spread over a
footprint, in which each pixel is told the same shares, and each photo counts once however large its footprint is.
Labels of pixels are those of `geoeco.training.SegmentationDataset`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
import torch
from affine import Affine
from odc.geo.crs import CRS
from pyproj import Geod
from torch import Tensor
from torch.nn import functional

from geoeco.errors import GridError, InputError
from geoeco.grid import as_crs
from geoeco.vectors import read_table

__all__ = ["PhotoPoints", "soft_label_loss"]

Floats = npt.NDArray[np.float32]

#: How far a sum of probabilities may lie from one: they are written with few digits.
_SLACK = 0.01
#: Largest footprint, metres: a photo that shows more is no point.
_LARGEST_RADIUS = 500.0


@dataclass(frozen=True, eq=False)
class PhotoPoints:
    """Places of photos with what they show.

    Attributes
    ----------
    classes : tuple of str
    lonlat : numpy.ndarray
        ``(point, 2)`` degrees.
    radius_m : numpy.ndarray
        ``(point,)``, of the footprint.
    shares : numpy.ndarray
        ``(point, class)`` float32, sums of one.

    Raises
    ------
    InputError
        If shapes do not fit, a place is none, a radius is not positive or larger than 500 m, a share is negative, or
        the shares of a photo do not sum to one.
    """

    classes: tuple[str, ...]
    lonlat: npt.NDArray[np.float64]
    radius_m: npt.NDArray[np.float64]
    shares: Floats

    def __post_init__(self) -> None:
        count = len(self.lonlat)
        if self.lonlat.shape != (count, 2) or self.radius_m.shape != (count,):
            raise InputError(f"places {self.lonlat.shape} and radii {self.radius_m.shape} do not fit")
        if not count or self.shares.shape != (count, len(self.classes)) or len(set(self.classes)) < len(self.classes):
            raise InputError(f"{count} photos with shares {self.shares.shape} of the classes {self.classes}")
        lon, lat = self.lonlat.T
        if not (np.isfinite(self.lonlat).all() and (np.abs(lon) <= 180).all() and (np.abs(lat) <= 90).all()):
            raise InputError("a photo lies at no longitude and latitude", what_to_do="give degrees of WGS 84")
        if not ((self.radius_m > 0) & (self.radius_m <= _LARGEST_RADIUS)).all():
            raise InputError(
                f"footprints reach from {self.radius_m.min():g} to {self.radius_m.max():g} m",
                what_to_do=f"give radii above 0, at most {_LARGEST_RADIUS:g} m",
            )
        total = self.shares.sum(axis=1)
        if not (np.isfinite(self.shares).all() and (self.shares >= 0).all() and (np.abs(total - 1) <= _SLACK).all()):
            bad = int(np.argmax(np.abs(np.nan_to_num(total) - 1)))
            raise InputError(
                f"the classes of a photo are probabilities; those of photo {bad} sum to {total[bad]:g}",
                what_to_do="give shares from 0 to 1 that sum to one, over the classes that are learned",
            )
        object.__setattr__(self, "shares", (self.shares / total[:, None]).astype(np.float32))

    @classmethod
    def read(
        cls, source: str | os.PathLike[str] | pd.DataFrame, classes: Sequence[str], *, radius_m: float | None = None
    ) -> PhotoPoints:
        """Read photo points of a table.

        Parameters
        ----------
        source : path or pandas.DataFrame
            Columns ``lon`` and ``lat`` in degrees, or points with a CRS; ``radius_m``; and one column a class with its
            probability. Columns of classes that are missing count as 0; further columns are not looked at.
        classes : sequence of str
            Those that are learned.
        radius_m : float, optional
            Where the table has no column of it.

        Raises
        ------
        InputError
            If columns are missing, or as of the class.
        GridError
            If points have no CRS.
        """
        table = source if isinstance(source, pd.DataFrame) else read_table(Path(source))
        where = "" if isinstance(source, pd.DataFrame) else str(source)
        known = [name for name in classes if name in table.columns]
        if not known:
            raise InputError(
                "the table of photos has no column of a class that is learned",
                where=where,
                what_to_do=f"name columns as the classes: {', '.join(map(str, classes))}",
            )
        if "radius_m" not in table.columns and radius_m is None:
            raise InputError("the table of photos has no column 'radius_m'", where=where, what_to_do="add it, metres")
        shares = np.zeros((len(table), len(classes)), np.float32)
        for position, name in enumerate(classes):
            if name in known:
                shares[:, position] = _numbers(table, str(name), where)
        radius = np.full(len(table), radius_m) if "radius_m" not in table else _numbers(table, "radius_m", where)
        return cls(tuple(map(str, classes)), _places(table, where), radius.astype(np.float64), shares)

    def reach(self, affine: Affine, shape: tuple[int, int], crs: Any) -> bool:
        """Whether a footprint reaches into a window; arguments as of `soft_labels`."""
        return bool(self._near(affine, shape, _projected(crs)))

    def sha256(self) -> str:
        """Digest of classes, places, radii and shares."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for values in (self.lonlat, self.radius_m, self.shares):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def soft_labels(self, affine: Affine, shape: tuple[int, int], crs: Any) -> tuple[Floats, Floats]:
        """Shares of the classes, and their weight, for the pixels of a window.

        Parameters
        ----------
        affine : affine.Affine
            Pixel coordinates to the map, upper left corners.
        shape : tuple of int
            Rows and columns.
        crs : str, int or CRS
            Of the map; projected.

        Returns
        -------
        shares : numpy.ndarray
            ``(class, y, x)``, mean over the photos whose footprint a pixel's centre lies in, by their weights; 0
            elsewhere.
        weight : numpy.ndarray
            ``(y, x)``: the part of a photo that a pixel is, the area of the pixel over that of the footprint, summed
            over the photos; 0 where there is none. Over all pixels of a footprint it sums to about one.

        Raises
        ------
        GridError
            If the CRS is not projected.
        """
        target = _projected(crs)
        rows, columns = shape
        total, weight = np.zeros((len(self.classes), rows, columns)), np.zeros((rows, columns))
        for point, disc in self._near(affine, shape, target):
            # in pixels of the window
            ring = shapely.transform(disc, lambda xy: np.stack(~affine @ (xy[:, 0], xy[:, 1]), axis=1))
            left, top, right, bottom = ring.bounds
            r0, r1 = max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), rows)
            c0, c1 = max(int(np.floor(left)), 0), min(int(np.ceil(right)), columns)
            if r0 >= r1 or c0 >= c1:
                continue
            y, x = np.mgrid[r0:r1, c0:c1] + 0.5
            part = shapely.contains_xy(ring, x, y) / ring.area
            weight[r0:r1, c0:c1] += part
            total[:, r0:r1, c0:c1] += self.shares[point][:, None, None] * part
        shares = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        return shares.astype(np.float32), weight.astype(np.float32)

    def _near(self, affine: Affine, shape: tuple[int, int], crs: CRS) -> list[tuple[int, shapely.Polygon]]:
        """Photos whose footprint may reach into a window, and their footprints on the map."""
        corners = [affine @ (x, y) for x, y in ((0, 0), (shape[1], 0), (0, shape[0]), (shape[1], shape[0]))]
        window = shapely.MultiPoint(corners).envelope
        found = []
        for point, disc in enumerate(self._discs(crs)):
            if disc.intersects(window):
                found.append((point, disc))
        return found

    def _discs(self, crs: CRS) -> npt.NDArray[np.object_]:
        """Footprints on the map: discs on the ground, whatever the scale of the CRS there."""
        key = str(crs)
        cached: dict[str, npt.NDArray[np.object_]] = self.__dict__.setdefault("_cached", {})
        if key not in cached:
            geod, angles = Geod(ellps="WGS84"), np.linspace(0, 360, 65)[:-1]
            rings = []
            for (lon, lat), radius in zip(self.lonlat, self.radius_m, strict=True):
                # a polygon of this many corners of the area of the disc
                reach = radius / np.sqrt(np.sinc(2 / len(angles)))
                around = geod.fwd(np.full(64, lon), np.full(64, lat), angles, np.full(64, reach))
                rings.append(shapely.Polygon(np.stack(around[:2], axis=1)))
            cached[key] = gpd.GeoSeries(rings, crs=4326).to_crs(crs.proj).to_numpy()
        return cached[key]


def soft_label_loss(logits: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of pixels against shares of classes, weighted.

    Parameters
    ----------
    logits : Tensor
        ``(N, class, y, x)``.
    shares : Tensor
        ``(N, class, y, x)``, sums of one where there is weight.
    weight : Tensor
        ``(N, y, x)``, not negative.

    Returns
    -------
    Tensor
        ``()`` nats: the mean over pixels by their weights; 0 without a gradient where there is no weight at all.

    Raises
    ------
    InputError
        If shapes do not fit.
    """
    if logits.shape != shares.shape or weight.shape != (logits.shape[0], *logits.shape[2:]):
        raise InputError(
            f"logits {tuple(logits.shape)}, shares {tuple(shares.shape)} and weights {tuple(weight.shape)} do not fit"
        )
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = -(shares.float() * functional.log_softmax(logits.float(), dim=1)).sum(1)
        mean: Tensor = (weight.float() * loss).sum() / weight.float().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return mean


def _projected(crs: Any) -> CRS:
    target = as_crs(crs)
    if not target.projected:
        raise GridError("footprints are in metres: the map must be projected", where=str(target))
    return target


def _numbers(table: pd.DataFrame, column: str, where: str) -> npt.NDArray[np.float64]:
    try:
        return pd.to_numeric(table[column]).to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the column {column!r} of the photos holds no numbers: {error}", where=where) from error


def _places(table: pd.DataFrame, where: str) -> npt.NDArray[np.float64]:
    if isinstance(table, gpd.GeoDataFrame):
        if table.crs is None:
            raise GridError("the points of the photos have no CRS", where=where, what_to_do="set it")
        if not (table.geometry.geom_type == "Point").all():
            raise InputError("photos lie at points", where=where, what_to_do="leave out rows without a place")
        points = table.geometry.to_crs(4326)
        return np.stack([points.x.to_numpy(), points.y.to_numpy()], axis=1)
    missing = [name for name in ("lon", "lat") if name not in table.columns]
    if missing:
        raise InputError(f"the table of photos has no column {missing[0]!r}", where=where)
    return np.stack([_numbers(table, name, where) for name in ("lon", "lat")], axis=1)
