"""Clouds, their shadows and a scene classification that is wrong as often as the real one.

Cloud fields are functions of the ground and of the date, so that two tiles seen on one day lie under the same sky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import beta

__all__ = ["CLOUD_SPECTRUM", "Sky", "classify", "cloud_fractions", "sun_position"]

FloatArray = npt.NDArray[np.floating[Any]]

_CELL_M = 60.0
_PAD_M = 2600.0
_CLOUD_SIZE_M = 900.0
#: Opacity from which on a pixel counts as cloud; shade from which on it counts as shadow.
CLOUD_OPACITY = 0.1
SHADOW_SHADE = 0.3
#: Reflectance of thick cloud, B01 ... B12 without B10.
CLOUD_SPECTRUM = np.array([0.62, 0.62, 0.60, 0.60, 0.61, 0.62, 0.63, 0.64, 0.64, 0.40, 0.42, 0.34], np.float32)
#: Share of the light that cloud shadow takes.
SHADOW_DEPTH = 0.55


def cloud_fractions(rng: np.random.Generator, n: int, clouds: float) -> FloatArray:
    """Cloud fraction of each of `n` dates: U-shaped (most days are clear or overcast), mean `clouds`."""
    if clouds <= 0 or clouds >= 1:
        return np.full(n, float(clouds >= 1))
    # one value from each of n equal slices of the distribution: the mean is near the request for any seed
    quantiles = (np.arange(n) + 0.5) / n
    return np.asarray(rng.permutation(beta.ppf(quantiles, 0.9 * clouds, 0.9 * (1.0 - clouds))))


def sun_position(lat: float, day_of_year: float, hours_from_noon: float = -1.3) -> tuple[float, float]:
    """Sun azimuth (clockwise from north) and elevation in degrees at local solar time.

    Cooper (1969) declination; -1.3 h is the middle of Sentinel-2's descending pass at mid latitudes.
    """
    declination = math.radians(23.45 * math.sin(2.0 * math.pi * (284.0 + day_of_year) / 365.0))
    hour, phi = math.radians(15.0 * hours_from_noon), math.radians(lat)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour)
    east = -math.cos(declination) * math.sin(hour)
    north = math.cos(phi) * math.sin(declination) - math.sin(phi) * math.cos(declination) * math.cos(hour)
    return math.degrees(math.atan2(east, north)) % 360.0, math.degrees(math.asin(up))


@dataclass(frozen=True)
class Sky:
    """The clouds of one day over the whole world.

    Attributes
    ----------
    field : numpy.ndarray
        Smooth random field on a regular ground grid ``(row, col)``.
    origin : tuple of float
        Ground coordinates (m) of the first cell.
    threshold : float
        Cloud where the field is at least this.
    opacity_max : float
        Below 0.5 on days of thin cirrus.
    shadow : tuple of float
        Displacement (m east, m north) of shadows from clouds.
    """

    field: FloatArray
    origin: tuple[float, float]
    threshold: float
    opacity_max: float
    shadow: tuple[float, float]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        extent: tuple[float, float, float, float],
        fraction: float,
        sun_azimuth: float,
        sun_elevation: float,
    ) -> Sky:
        """Draw a sky with a given share of cloud over `extent` (west, south, east, north in ground metres)."""
        west, south, east, north = extent
        pad = math.ceil(_PAD_M / _CELL_M)
        cols = math.ceil((east - west) / _CELL_M) + 2 * pad + 2
        rows = math.ceil((north - south) / _CELL_M) + 2 * pad + 2
        white = rng.standard_normal((rows, cols))
        ky, kx = np.fft.fftfreq(rows, _CELL_M)[:, None], np.fft.rfftfreq(cols, _CELL_M)[None, :]
        power = (kx**2 + ky**2 + (1.0 / (4.0 * _CLOUD_SIZE_M)) ** 2) ** -1.4
        field = np.fft.irfft2(np.fft.rfft2(white) * power, s=(rows, cols))
        field = (field - field.mean()) / field.std()
        over = field[pad:-pad, pad:-pad]
        if fraction <= 0.005:
            threshold = math.inf
        elif fraction >= 0.995:
            threshold = float(field.min()) - 0.6
        else:
            threshold = float(np.quantile(over, 1.0 - fraction))
        cirrus = rng.random() < 0.15
        opacity_max = float(rng.uniform(0.2, 0.4)) if cirrus else 1.0
        height = float(rng.uniform(400.0, 1200.0))
        length = min(height / math.tan(math.radians(max(sun_elevation, 5.0))), _PAD_M - 2 * _CELL_M)
        away = math.radians(sun_azimuth + 180.0)
        return cls(
            field.astype(np.float32),
            (west - pad * _CELL_M, south - pad * _CELL_M),
            threshold,
            opacity_max,
            (math.sin(away) * length, math.cos(away) * length),
        )

    def opacity(self, u: FloatArray, v: FloatArray) -> FloatArray:
        """Opacity 0..1 of the cloud above points of the ground, float32."""
        if math.isinf(self.threshold):
            return np.zeros(u.shape, np.float32)
        at = np.stack([(v - self.origin[1]) / _CELL_M, (u - self.origin[0]) / _CELL_M])
        field = map_coordinates(self.field, at, order=1, mode="nearest", output=np.float32)
        thick = np.where(field >= self.threshold, CLOUD_OPACITY + (field - self.threshold) * 1.6, 0.0)
        return np.minimum(thick, self.opacity_max).astype(np.float32)

    def shade(self, u: FloatArray, v: FloatArray) -> FloatArray:
        """Shade 0..1 on points of the ground, cast by clouds towards the sun."""
        return self.opacity(u - np.float32(self.shadow[0]), v - np.float32(self.shadow[1]))


def classify(
    rng: np.random.Generator,
    clear: npt.NDArray[np.uint8],
    opacity: FloatArray,
    shade: FloatArray,
    valid: npt.NDArray[np.bool_],
    *,
    omission: float,
    commission: float,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Scene classification with errors in blobs.

    Parameters
    ----------
    rng : numpy.random.Generator
    clear : numpy.ndarray
        Class of the ground ``(y, x)`` as a right classification without clouds would give it.
    opacity, shade : numpy.ndarray
        Cloud opacity and shade ``(y, x)``.
    valid : numpy.ndarray
        False beyond the edge of the swath.
    omission : float
        Share of cloud, and of shadow, that is classified as ground: the thinnest first, in blobs.
    commission : float
        Share of clear ground that is classified as cloud: the brightest first, in blobs.

    Returns
    -------
    scl, cloud, shadow : numpy.ndarray
        The classification (uint8) and the truth about cloud and shadow (bool).
    """
    cloud = (opacity >= CLOUD_OPACITY) & valid
    shadow = (shade >= SHADOW_SHADE) & ~cloud & valid
    scl = clear.copy()
    scl[shadow] = 3
    scl[cloud] = np.where(opacity[cloud] >= 0.7, 9, np.where(opacity[cloud] >= 0.35, 8, 10))
    blobs = gaussian_filter(rng.standard_normal(clear.shape), 4.0)
    blobs /= blobs.std()
    missed = _top(blobs + 1.5 * (1.0 - opacity), cloud, omission)
    scl[missed] = clear[missed]
    # shadow that goes unnoticed is mostly called a dark area
    scl[_top(blobs - 1.5 * shade, shadow, omission)] = 2
    bright = np.where(clear == 5, 0.7, 0.0)
    false_cloud = _top(-blobs + bright, ~cloud & ~shadow & valid, commission)
    scl[false_cloud] = 8
    scl[~valid] = 0
    return scl, cloud, shadow


def _top(score: FloatArray, among: npt.NDArray[np.bool_], rate: float) -> npt.NDArray[np.bool_]:
    """Pick the share `rate` of the pixels `among` with the highest score."""
    count = round(rate * int(among.sum()))
    out = np.zeros(among.shape, bool)
    if count:
        where = np.flatnonzero(among)
        chosen = where[np.argsort(-score.ravel()[where], kind="stable")[:count]]
        out.ravel()[chosen] = True
    return out
