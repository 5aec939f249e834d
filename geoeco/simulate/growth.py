"""What grows where in the simulated world of season chips, and when: climate, covers, curves of greenness, dates.

Places lie all over the land of the globe. A place has a climate, which is a smooth function of where it lies, and one
main cover, whose odds depend on the climate. All covers are mixtures of the same two states, dormant and green; they
differ in when, how long, how often and how fully they are green. Knows nothing of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from geoeco.errors import InputError
from geoeco.sampling import major_tom_grid
from geoeco.simulate.season_dates import DATES, threshold_dates

__all__ = ["BANDS", "GROWTH_FORMS", "Cycle", "GrowthForm", "Places", "draw_locations", "sun_elevation"]

Floats = npt.NDArray[np.float64]

#: Bands of the endmembers below, in order.
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_RED, _NIR = BANDS.index("B04"), BANDS.index("B08")

# Rounded textbook shapes of surface reflectance. No cover has one of its own.
_GREEN = np.array([0.018, 0.022, 0.060, 0.030, 0.100, 0.310, 0.420, 0.460, 0.470, 0.470, 0.220, 0.105])
_LITTER = np.array([0.040, 0.050, 0.075, 0.100, 0.130, 0.170, 0.200, 0.220, 0.240, 0.245, 0.280, 0.210])
_SOILS = {
    "dark": np.array([0.033, 0.040, 0.055, 0.065, 0.085, 0.100, 0.110, 0.120, 0.130, 0.135, 0.180, 0.150]),
    "red": np.array([0.042, 0.050, 0.090, 0.170, 0.210, 0.240, 0.260, 0.280, 0.300, 0.305, 0.360, 0.300]),
    "bright": np.array([0.110, 0.130, 0.190, 0.250, 0.280, 0.300, 0.320, 0.340, 0.350, 0.355, 0.420, 0.370]),
}
#: How much the parts of the green spectrum vary from place to place (standard deviation of the logarithm): pigments,
#: canopy structure, water.
_GREEN_SPREAD = (0.12, 0.08, 0.12)

#: Latitudes with places: beyond them winters are dark or there is no land to speak of.
LATITUDES = (-56.0, 68.0)
_YEAR = 365.25
#: Daily curves reach this far beyond the years asked for.
_MARGIN_D = 620


@dataclass(frozen=True)
class Cycle:
    """One growing cycle on Gu's curve.

    ``(1 + exp(-rise (t - start)))^-rise_shape - (1 + exp(-fall (t - end)))^-fall_shape`` (Gu et al. 2009), northern
    days of the year at 10 degrees Celsius. A shape above 1 makes for a flush with a late finish, below 1 for a slow
    start; in the fall, above 1 for a quick beginning with a long tail, below 1 for the reverse.
    """

    start: float
    end: float
    rise: float
    fall: float
    rise_shape: float = 1.0
    fall_shape: float = 1.0


@dataclass(frozen=True)
class GrowthForm:
    """One cover: how green it is when dormant, how much greener at its best, its cycles, and its odds by climate."""

    name: str
    base: float
    amplitude: float
    cycles: tuple[Cycle, ...]
    odds: tuple[float, float, float]  # constant, per 10 degrees above 10, per unit of the logarithm of wetness


#: Every cover's range of greenness, times the cover fraction of its places (0.45 to 1), overlaps the others' on any
#: one date; only several dates together tell them apart.
GROWTH_FORMS: tuple[GrowthForm, ...] = (
    GrowthForm("evergreen", 0.70, 0.24, (Cycle(115, 275, 0.06, 0.06),), (0.0, 0.1, 0.7)),
    GrowthForm("semi-evergreen", 0.36, 0.58, (Cycle(115, 265, 0.07, 0.06),), (0.0, 0.6, -0.2)),
    GrowthForm("deciduous", 0.10, 0.84, (Cycle(120, 255, 0.09, 0.08),), (0.1, -0.4, 0.4)),
    GrowthForm("flush", 0.12, 0.80, (Cycle(88, 160, 0.10, 0.045, 3.0, 3.0),), (0.0, 0.1, -0.8)),
    GrowthForm("late-crop", 0.05, 0.90, (Cycle(172, 255, 0.055, 0.10, 0.4, 0.4),), (0.0, -0.1, 0.0)),
    GrowthForm(
        "double-crop",
        0.06,
        0.86,
        (Cycle(60, 135, 0.10, 0.10), Cycle(195, 270, 0.10, 0.10)),
        (0.0, 0.5, 0.2),
    ),
)

#: Days by which green-up comes later for each degree that a place is colder, and the limits of that shift.
_DAYS_PER_DEGREE = 3.5
_SHIFT_LIMIT_D = 45.0
#: Relative change of the length of the season per degree, and its limits.
_LENGTH_PER_DEGREE = 0.025
_LENGTH_LIMITS = (0.6, 1.4)
_PLACE_DAYS = 8.0
_YEAR_DAYS = 4.0


def draw_locations(count: int, seed: int) -> gpd.GeoDataFrame:
    """Draw places from a Major TOM grid over land, as evenly over the globe as so many can lie.

    Parameters
    ----------
    count : int
        How many.
    seed : int
        Which ones of the coarsest grid that has enough.

    Returns
    -------
    geopandas.GeoDataFrame
        As `geoeco.sampling.major_tom_grid` gives them, in its order.
    """
    # about 125 million square kilometres of land lie between the latitudes
    spacing = math.sqrt(1.25e14 / count)
    grid = major_tom_grid(spacing, latitude=LATITUDES, land="naturalearth")
    while len(grid) < count:
        spacing *= 0.95
        grid = major_tom_grid(spacing, latitude=LATITUDES, land="naturalearth")
    chosen = np.sort(np.random.default_rng([seed, 1]).choice(len(grid), count, replace=False))
    return grid.iloc[chosen].reset_index(drop=True)


def sun_elevation(lat: npt.ArrayLike, days: npt.ArrayLike) -> Floats:
    """Elevation of the sun in degrees at 10:30 local solar time, for latitudes and days since 1970-01-01."""
    declination = np.radians(23.44) * np.sin(2.0 * np.pi * (np.asarray(days, dtype=np.float64) - 79.0) / _YEAR)
    phi = np.radians(np.asarray(lat, dtype=np.float64))
    hour = np.radians(22.5)
    sine = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour)
    return np.asarray(np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0))), dtype=np.float64)


def _waves(rng: np.random.Generator, lon: Floats, lat: Floats) -> Floats:
    """Smooth noise on the sphere, standard deviation 1: plane waves through it, some thousand kilometres long."""
    x, y = np.radians(lon), np.radians(lat)
    unit = np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=-1)
    waves = rng.normal(size=(12, 3)) * 4.0
    phase = rng.uniform(0.0, 2.0 * np.pi, 12)
    return np.asarray(np.cos(unit @ waves.T + phase).sum(axis=1) * math.sqrt(2.0 / 12.0), dtype=np.float64)


class Places:
    """The places of a world of season chips: climate, cover, soil and growing years.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        With ``name``, ``lon``, ``lat``, as of `draw_locations`.
    seed : int
    years : sequence of int
        Years in which images are taken.

    Attributes
    ----------
    temperature, precipitation : numpy.ndarray, shape (place,)
        Annual mean in degrees Celsius, annual sum in mm.
    cover : numpy.ndarray of int, shape (place,)
        Index in `GROWTH_FORMS` of the main cover.
    density : numpy.ndarray, shape (place,)
        Part of the ground that plants can cover.
    dormant, green : numpy.ndarray, shape (place, band)
        Reflectance of bare and of fully green ground, bands as `BANDS`.
    """

    def __init__(self, locations: gpd.GeoDataFrame, seed: int, years: range) -> None:
        if not len(locations) or not len(years):
            raise InputError("a world of season chips needs places and years")
        self.locations, self.seed, self.years = locations, seed, years
        lon, lat = locations["lon"].to_numpy(float), locations["lat"].to_numpy(float)
        rng = np.random.default_rng([seed, 2])
        count = len(locations)
        self.lat = lat
        self.temperature = (
            29.0 - 42.0 * np.sin(np.radians(lat)) ** 2 + 3.0 * _waves(rng, lon, lat) + rng.normal(0.0, 0.7, count)
        )
        zonal = 280.0 + 1700.0 * np.exp(-((lat / 12.0) ** 2)) + 650.0 * np.exp(-(((np.abs(lat) - 48.0) / 14.0) ** 2))
        self.precipitation = zonal * np.exp(0.5 * _waves(rng, lon, lat) + rng.normal(0.0, 0.08, count))
        warm = (self.temperature - 10.0) / 10.0
        wet = np.log(self.precipitation / 700.0)
        odds = np.array([form.odds for form in GROWTH_FORMS]) @ np.stack([np.ones(count), warm, wet])
        # the largest of logits with Gumbel noise is a draw from their softmax
        self.cover = np.argmax(odds + rng.gumbel(size=odds.shape), axis=0)
        self.density = np.clip(0.74 + 0.12 * wet + rng.normal(0.0, 0.10, count), 0.45, 1.0)
        self.dormant = self._ground(rng, wet, warm)
        self.green = self._leaves(rng, warm)
        self.base = np.clip(
            np.array([f.base for f in GROWTH_FORMS])[:, None] * rng.lognormal(0.0, 0.08, (len(GROWTH_FORMS), count)),
            0.0,
            0.85,
        )
        shift = np.clip(_DAYS_PER_DEGREE * (10.0 - self.temperature), -_SHIFT_LIMIT_D, _SHIFT_LIMIT_D)
        half_year = np.where(lat < 0, _YEAR / 2.0, 0.0)
        # every cover of a place has its own habit, every year its own weather
        self._shift = shift + half_year + rng.normal(0.0, _PLACE_DAYS, (len(GROWTH_FORMS), count))
        self._length = np.clip(1.0 + _LENGTH_PER_DEGREE * (self.temperature - 10.0), *_LENGTH_LIMITS)
        self._grown = range(years.start - 3, years.stop + 3)
        self._weather = rng.normal(0.0, _YEAR_DAYS, (len(self._grown), count))

    def _ground(self, rng: np.random.Generator, wet: Floats, warm: Floats) -> Floats:
        """Soil under litter: dry soils tend to be bright, warm and wet ones red; the tendency is a loose one."""
        count = len(wet)
        logits = np.stack([0.5 * wet - 0.7 * warm, 0.8 * warm + 0.3 * wet, -1.0 * wet])
        share = np.exp(logits + rng.normal(0.0, 0.6, (3, count)))
        soil = (share / share.sum(axis=0)).T @ np.stack(list(_SOILS.values()))
        litter = rng.uniform(0.2, 0.7, (count, 1))
        return np.asarray(((1.0 - litter) * soil + litter * _LITTER) * rng.lognormal(0.0, 0.12, (count, 1)))

    def _leaves(self, rng: np.random.Generator, warm: Floats) -> Floats:
        """Full green, whose pigments and structure vary: canopies of cold places tend to be darker in the infrared."""
        part = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
        logs = rng.normal(size=(len(warm), 3)) * np.array(_GREEN_SPREAD)
        logs[:, 1] += 0.06 * warm
        return np.asarray(_GREEN * np.exp(logs)[:, part])

    def greenness(self, place: int, cover: int, days: npt.ArrayLike) -> Floats:
        """How green a cover of a place is, 0 to 1, on days since 1970-01-01 of any shape."""
        t = np.asarray(days, dtype=np.float64)
        form = GROWTH_FORMS[cover]
        base = float(self.base[cover, place])
        value = np.zeros(t.shape)
        for cycle, start, end, length in self._cycles(place, cover):
            rise = (1.0 + np.exp(np.clip(-cycle.rise / length * (t - start), -80, 80))) ** -cycle.rise_shape
            fall = (1.0 + np.exp(np.clip(-cycle.fall / length * (t - end), -80, 80))) ** -cycle.fall_shape
            value += rise - fall
        return np.asarray(base + form.amplitude * np.clip(value, 0.0, 1.0), dtype=np.float64)

    def _cycles(self, place: int, cover: int) -> list[tuple[Cycle, float, float, float]]:
        """All cycles in the order of time: start and end in days since 1970-01-01, and the length factor."""
        found = []
        length = float(self._length[place])
        forms = GROWTH_FORMS[cover].cycles
        # two crops share a year: neither grows longer than it does at home
        length = length if len(forms) == 1 else min(length, 1.0)
        for row, year in enumerate(self._grown):
            origin = (year - 1970) * _YEAR + float(self._shift[cover, place]) + float(self._weather[row, place])
            for cycle in forms:
                middle = origin + (cycle.start + cycle.end) / 2.0
                half = (cycle.end - cycle.start) / 2.0 * length
                found.append((cycle, middle - half, middle + half, length))
        return found

    def reflectance(self, place: int, greenness: npt.ArrayLike) -> Floats:
        """Reflectance ``(..., band)`` of ground of some greenness: dormant and green mixed in proportion."""
        part = (np.asarray(greenness, dtype=np.float64) * float(self.density[place]))[..., None]
        return np.asarray(self.dormant[place] * (1.0 - part) + self.green[place] * part, dtype=np.float64)

    def evi2(self, place: int, days: npt.ArrayLike) -> Floats:
        """Noise-free EVI2 of the main cover (2.5 (N - R) / (N + 2.4 R + 1))."""
        spectrum = self.reflectance(place, self.greenness(place, int(self.cover[place]), days))
        red, nir = spectrum[..., _RED], spectrum[..., _NIR]
        return np.asarray(2.5 * (nir - red) / (nir + 2.4 * red + 1.0), dtype=np.float64)

    def dates(self) -> pd.DataFrame:
        """Dates of the main cover's cycles, one row a place and year, as a table of MCD12Q2 gives them.

        Returns
        -------
        pandas.DataFrame
            ``name, lon, lat, year``, ``Greenup_1`` ... ``Dormancy_1`` and ``_2`` (days since 1970-01-01, 32767 where
            there is no cycle), ``Peak_1``, ``EVI_Amplitude_1`` (index, not scaled) and ``_2``, ``NumCycles``. Rule:
            thresholds of 15, 50 and 90 % of either side's amplitude on the daily EVI2 curve; a cycle counts whose
            sides both rise by 0.1 or more; it belongs to the year of its peak; the larger one is number 1.
        """
        rows = [row for place in range(len(self.locations)) for row in self._dates_of(place)]
        return pd.DataFrame(rows)

    def _dates_of(self, place: int) -> list[dict[str, Any]]:
        first = math.floor((self.years.start - 1970) * _YEAR) - _MARGIN_D
        days = np.arange(first, math.ceil((self.years.stop - 1970) * _YEAR) + _MARGIN_D)
        curve = self.evi2(place, days)
        cycles = [
            (max(int(start) - first, 0), min(int(end) - first, len(days) - 1))
            for _, start, end, _ in self._cycles(place, int(self.cover[place]))
            if start - first > 0 and end - first < len(days) - 1
        ]
        peaks = [low + int(np.argmax(curve[low : high + 1])) for low, high in cycles]
        found: list[tuple[int, float, npt.NDArray[Any]]] = []
        for position in range(1, len(peaks) - 1):
            peak = peaks[position]
            before, after = max(peaks[position - 1], peak - 185), min(peaks[position + 1], peak + 185)
            left = peak - int(np.argmin(curve[before : peak + 1][::-1]))
            right = peak + int(np.argmin(curve[peak : after + 1]))
            amplitude = curve[peak] - max(curve[left], curve[right])
            if amplitude < 0.1:
                continue
            at = threshold_dates(curve[None], np.array([left]), np.array([peak]), np.array([right]))[0] + first
            year = int(np.datetime64(int(days[peak]), "D").astype("datetime64[Y]").astype(int)) + 1970
            found.append((year, float(curve[peak] - (curve[left] + curve[right]) / 2.0), at))
        place_row = self.locations.iloc[place]
        rows = []
        for year in self.years:
            of_year = sorted((c for c in found if c[0] == year), key=lambda c: -c[1])[:2]
            row: dict[str, Any] = {
                "name": str(place_row["name"]),
                "lon": float(place_row["lon"]),
                "lat": float(place_row["lat"]),
                "year": year,
                "NumCycles": len(of_year),
            }
            for number in (1, 2):
                known = of_year[number - 1] if len(of_year) >= number else None
                for column, date in enumerate(DATES):
                    if date in ("greenup", "maturity", "peak", "senescence", "dormancy"):
                        row[f"{date.capitalize()}_{number}"] = 32767 if known is None else int(known[2][column])
                row[f"EVI_Amplitude_{number}"] = math.nan if known is None else known[1]
            rows.append(row)
        return rows

    def labels(self) -> gpd.GeoDataFrame:
        """What evaluations ask for, one row a place.

        Returns
        -------
        geopandas.GeoDataFrame
            ``name, lon, lat, cover`` (name of the growth form), ``temperature`` (degrees Celsius), ``precipitation``
            (mm a year), and the point, EPSG:4326.
        """
        names = np.array([form.name for form in GROWTH_FORMS], dtype=object)
        table = self.locations[["name", "lon", "lat", "geometry"]].assign(
            cover=names[self.cover], temperature=self.temperature, precipitation=self.precipitation
        )
        return gpd.GeoDataFrame(
            table[["name", "lon", "lat", "cover", "temperature", "precipitation", "geometry"]], crs="EPSG:4326"
        )
