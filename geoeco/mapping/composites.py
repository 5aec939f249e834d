"""Seasonal composites: of each period of the year one clear picture, from a masked cube.

Pixel by pixel and therefore the same whatever the cut into blocks. Not about finding the seasons of a place
(`geoeco.phenology`), and no mosaic that hides its gaps: a pixel that was not seen in a period stays NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.variables import describe

__all__ = ["SEASONS", "Method", "Period", "as_periods", "season_composites"]

#: Quarters by the initials of their months, which hold on both hemispheres: first and last day of the year.
SEASONS: dict[str, tuple[int, int]] = {"DJF": (335, 59), "MAM": (60, 151), "JJA": (152, 243), "SON": (244, 334)}

Method = Literal["median", "nearest"]

_YEAR = 365.25


@dataclass(frozen=True)
class Period:
    """A part of the year.

    Attributes
    ----------
    name : str
    first, last : int
        Days of the year, 1..366, both included; a period whose last day is before its first crosses the new year.
    years : tuple of int
        Years of the looks; all when empty.

    Raises
    ------
    InputError
        If a day lies outside 1..366.
    """

    name: str
    first: int
    last: int
    years: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (1 <= self.first <= 366 and 1 <= self.last <= 366):
            raise InputError(
                f"the period {self.name!r} has the days {self.first} to {self.last}",
                what_to_do="give days of the year from 1 to 366",
            )

    @classmethod
    def of(cls, season: str) -> Self:
        """One of the quarters DJF, MAM, JJA, SON.

        Raises
        ------
        InputError
            If there is no such season.
        """
        if season not in SEASONS:
            raise InputError(
                f"there is no season {season!r}",
                what_to_do=f"use {', '.join(SEASONS)}, or give first and last day of the year",
            )
        return cls(season, *SEASONS[season])

    def holds(self, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.bool_]:
        """Which of some dates lie in the period."""
        day, year = _calendar(times)
        if self.first <= self.last:
            inside = (day >= self.first) & (day <= self.last)
        else:
            inside = (day >= self.first) | (day <= self.last)
        return inside & np.isin(year, self.years) if self.years else inside

    def dates(self, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
        """Positions of the dates that lie in the period.

        Raises
        ------
        InputError
            If there are none.
        """
        found = np.flatnonzero(self.holds(times))
        if not found.size:
            years = f" of {', '.join(map(str, self.years))}" if self.years else ""
            held = f"{times.min()} to {times.max()}" if times.size else "none"
            raise InputError(
                f"no date of the cube lies in the period {self.name!r}, days {self.first} to {self.last}{years}",
                where=f"dates of the cube: {held}",
                what_to_do="leave the period out, widen it, or stack imagery of that time of the year",
                code="period",
            )
        return found

    def off_middle(self, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.float64]:
        """Days between some dates and the middle of the period, around the year."""
        length = (self.last - self.first) % _YEAR
        off = np.abs(_calendar(times)[0] - (self.first + length / 2)) % _YEAR
        return np.minimum(off, _YEAR - off)


def _calendar(times: npt.NDArray[np.datetime64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    days = times.astype("datetime64[D]")
    start = days.astype("datetime64[Y]")
    return (days - start.astype("datetime64[D]")).astype(np.int64) + 1, start.astype(np.int64) + 1970


def as_periods(periods: Sequence[Period | str]) -> tuple[Period, ...]:
    """Periods from names of seasons and periods.

    Raises
    ------
    InputError
        If there are none, a name is not known, or two are the same.
    """
    found = tuple(Period.of(period) if isinstance(period, str) else period for period in periods)
    if not found or len({period.name for period in found}) < len(found):
        raise InputError(
            "two periods have the same name" if found else "no period is asked for",
            what_to_do="name each period once, at least one",
        )
    return found


def season_composites(
    cube: xr.Dataset | xr.DataArray,
    periods: Sequence[Period | str] = tuple(SEASONS),
    *,
    bands: Sequence[str] | None = None,
    method: Method = "median",
    tile: int = 256,
) -> xr.DataArray:
    """One picture of each period.

    Parameters
    ----------
    cube : xarray.Dataset or xarray.DataArray
        ``reflectance (time, band, y, x)`` with NaN where invalid; NumPy-, Dask- or Zarr-backed.
    periods : sequence of Period or str
        Names of `SEASONS`, or days of the year; looks of all years are taken together.
    bands : sequence of str, optional
        All when not given.
    method : {"median", "nearest"}
        Median of the valid looks of each band; or, of all bands together, the look with all bands valid that is
        nearest to the middle of the period (the later one of two), which is a spectrum that was measured.
    tile : int
        Pixels along each side of the piece whose time series are in memory at once.

    Returns
    -------
    xarray.DataArray
        ``(period, band, y, x)`` float32, NaN where a period has no valid look.

    Raises
    ------
    InputError
        If the cube lacks a band or has no date in a period.
    """
    chosen = as_periods(periods)
    if method not in ("median", "nearest"):
        raise InputError(f"a composite by {method!r}", what_to_do="use 'median' or 'nearest'")
    series = _reflectance(cube)
    there = [str(band) for band in series["band"].values]
    wanted = there if bands is None else list(bands)
    missing = [band for band in wanted if band not in there]
    if missing:
        raise InputError(
            f"the cube lacks the band{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            where=f"it has {', '.join(there)}",
            what_to_do="stack them, too",
            code="bands",
        )
    times = series["time"].values
    dates = [period.dates(times) for period in chosen]
    positions = [there.index(band) for band in wanted]
    rows, cols = series.sizes["y"], series.sizes["x"]
    pixels = np.empty((len(chosen), len(wanted), rows, cols), np.float32)
    for top in range(0, rows, tile):
        for left in range(0, cols, tile):
            part = slice(top, min(top + tile, rows)), slice(left, min(left + tile, cols))
            piece = series.isel(y=part[0], x=part[1])
            if method == "median":
                _medians(piece, positions, dates, pixels[:, :, *part])
            else:
                _nearest(piece, positions, dates, chosen, pixels[:, :, *part])
    coords = {name: series.coords[name] for name in ("y", "x", "spatial_ref") if name in series.coords}
    made = xr.DataArray(
        pixels,
        dims=("period", "band", "y", "x"),
        coords={"period": [p.name for p in chosen], "band": wanted, **coords},
        name="reflectance",
    )
    if "spatial_ref" in coords:
        made.encoding["grid_mapping"] = "spatial_ref"
    return describe(made, kind="continuous", units="1", long_name=f"surface reflectance, {method} of each period")


def _reflectance(cube: xr.Dataset | xr.DataArray) -> xr.DataArray:
    if isinstance(cube, xr.Dataset):
        if "reflectance" not in cube:
            raise InputError(
                f"the dataset has no variable 'reflectance', only {', '.join(map(str, cube.data_vars)) or 'none'}",
                what_to_do="give a cube as geoeco.cubes.load or geoeco.open_cube returns it",
            )
        cube = cube["reflectance"]
    if set(cube.dims) != {"time", "band", "y", "x"} or cube.dtype.kind != "f":
        raise InputError(
            f"a cube has the dimensions time, band, y, x and floating-point reflectance, not {cube.dims}, {cube.dtype}",
            what_to_do="give a cube as geoeco.cubes.load or geoeco.open_cube returns it",
        )
    return cube.transpose("time", "band", "y", "x")


def _medians(piece: xr.DataArray, bands: list[int], dates: list[npt.NDArray[np.int64]], out: Any) -> None:
    for to, band in enumerate(bands):
        # one band at a time: all of a cube's dates are in memory
        looks = np.moveaxis(piece.isel(band=band).to_numpy(), 0, -1)
        for at, chosen in enumerate(dates):
            out[at, to] = _median(looks[..., chosen])


def _median(looks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Median over the last axis, NaN left out; the mean of the middle two of an even number."""
    ordered = np.sort(looks, axis=-1)  # NaN goes last
    count = np.isfinite(looks).sum(axis=-1)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    # where all are NaN both positions are 0, which holds NaN
    high = np.minimum(high, np.maximum(count - 1, 0))
    middle = [np.take_along_axis(ordered, at[..., np.newaxis], axis=-1)[..., 0] for at in (low, high)]
    return ((middle[0] + middle[1]) * np.float32(0.5)).astype(np.float32)


def _nearest(
    piece: xr.DataArray,
    bands: list[int],
    dates: list[npt.NDArray[np.int64]],
    periods: tuple[Period, ...],
    out: Any,
) -> None:
    valid = np.ones((piece.sizes["time"], piece.sizes["y"], piece.sizes["x"]), bool)
    for band in bands:
        valid &= np.isfinite(piece.isel(band=band).to_numpy())
    picks = []
    for chosen, period in zip(dates, periods, strict=True):
        # latest first, so that of two dates equally far off the later one wins
        order = chosen[::-1][np.argsort(period.off_middle(piece["time"].values[chosen[::-1]]), kind="stable")]
        seen = valid[order]
        picks.append((order[np.argmax(seen, axis=0)], seen.any(axis=0)))
    for to, band in enumerate(bands):
        looks = piece.isel(band=band).to_numpy()
        for at, (pick, any_seen) in enumerate(picks):
            values = np.take_along_axis(looks, pick[np.newaxis], axis=0)[0]
            out[at, to] = np.where(any_seen, values, np.float32(np.nan))
