"""The truth of a simulated world on disk: rasters per tile, tables, and reading them back."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr

from geoeco.errors import InputError
from geoeco.simulate.files import write_cog
from geoeco.simulate.landscape import COVERS, Ground, Landscape, Tile
from geoeco.simulate.products import BANDS
from geoeco.simulate.season_dates import DATES, FILL, SeasonTruth
from geoeco.variables import describe

__all__ = ["read_truth", "write_truth"]

_MAGNITUDES = ("base", "amplitude", "integral")
_MCD12Q2_FILL = 32767
_MCD12Q2_NAMES = ("Greenup", "MidGreenup", "Maturity", "Peak", "Senescence", "MidGreendown", "Dormancy")


def write_truth(
    folder: Path,
    landscape: Landscape,
    tiles: Sequence[Tile],
    ground: Ground,
    years: Sequence[int],
    truth: SeasonTruth,
    period: tuple[np.datetime64, np.datetime64],
    scenes: Sequence[dict[str, Any]],
    *,
    seed: int,
) -> None:
    """Write all that is true of a world below `folder`.

    Parameters
    ----------
    folder : pathlib.Path
        Holds one folder per tile afterwards (``cover.tif``, ``n_cycles_<year>.tif``, ``dates_<year>_c<cycle>.tif``,
        ``magnitudes_<year>_c<cycle>.tif``), ``curves.csv``, ``covers.json``, ``scenes.csv`` and ``mcd12q2.csv``.
    landscape, tiles, ground
        The world.
    years : sequence of int
        Product years.
    truth : SeasonTruth
    period : tuple of numpy.datetime64
        First and last day of imagery, for the curves.
    scenes : sequence of dict
        What is true of each product.
    seed : int
    """
    folder.mkdir(parents=True, exist_ok=True)
    for tile, curve in zip(tiles, landscape.curve, strict=True):
        target = folder / tile.name
        target.mkdir(exist_ok=True)
        write_cog(target / "cover.tif", landscape.cover_of_curve[curve], tile.geobox, nodata=255, overviews="MODE")
        for column, year in enumerate(years):
            count = truth.n_cycles[:, column][curve]
            write_cog(target / f"n_cycles_{year}.tif", count, tile.geobox, nodata=255, overviews="NEAREST")
            for cycle in (0, 1):
                dates = np.moveaxis(truth.dates[:, column, cycle].astype(np.int16)[curve], -1, 0)
                write_cog(
                    target / f"dates_{year}_c{cycle + 1}.tif",
                    dates,
                    tile.geobox,
                    nodata=FILL,
                    overviews="NEAREST",
                    names=DATES,
                )
                sizes = [getattr(truth, name)[:, column, cycle].astype(np.float32)[curve] for name in _MAGNITUDES]
                stack = np.nan_to_num(np.stack(sizes), nan=-9999.0)
                write_cog(
                    target / f"magnitudes_{year}_c{cycle + 1}.tif",
                    stack,
                    tile.geobox,
                    nodata=-9999.0,
                    names=_MAGNITUDES,
                )
    _write_table(folder / "scenes.csv", scenes)
    _write_curves(folder / "curves.csv", landscape, period)
    _write_covers(folder / "covers.json")
    _write_mcd12q2(folder / "mcd12q2.csv", landscape, ground, years, truth, seed)


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _write_curves(path: Path, landscape: Landscape, period: tuple[np.datetime64, np.datetime64]) -> None:
    """Daily EVI2 of each cover without the shifts of patches and place."""
    days = np.arange(period[0], period[1] + np.timedelta64(1, "D"), np.timedelta64(1, "D"))
    curves = {c.name: landscape.cover_evi2(c, days.astype("datetime64[D]").astype(float)) for c in COVERS}
    _write_table(
        path,
        [
            {"date": str(day), **{name: round(float(values[i]), 6) for name, values in curves.items()}}
            for i, day in enumerate(days)
        ],
    )


def _write_covers(path: Path) -> None:
    covers = [
        {
            "code": cover.code,
            "name": cover.name,
            "colour": list(cover.colour),
            "bands": [band.name for band in BANDS],
            "dormant": list(cover.dormant),
            "green": list(cover.green),
        }
        for cover in COVERS
    ]
    path.write_text(json.dumps(covers, indent=1) + "\n", encoding="utf-8")


def _write_mcd12q2(
    path: Path, landscape: Landscape, ground: Ground, years: Sequence[int], truth: SeasonTruth, seed: int
) -> None:
    """Write a table as one gets from MCD12Q2: one row per patch and year, with fills and some poor rows."""
    rng = np.random.default_rng([seed, 6])
    patches = np.unique(landscape.patch_of_curve)
    # the patch's middle curve stands for it
    curves = [int(np.median(np.flatnonzero(landscape.patch_of_curve == patch))) for patch in patches]
    lon, lat = ground.to_lonlat(landscape.patches[patches, 0], landscape.patches[patches, 1])
    lon = (lon + 180.0) % 360.0 - 180.0
    rows = []
    for index, curve in enumerate(curves):
        for column, year in enumerate(years):
            cycles = int(truth.n_cycles[curve, column])
            fate = float(rng.random())
            lost, poor, wrong_by = fate < 0.03, 0.03 <= fate < 0.08, int(rng.integers(25, 60))
            row: dict[str, Any] = {
                "id": f"P{patches[index]:05d}",
                "lon": round(float(lon[index]), 7),
                "lat": round(float(lat[index]), 7),
                "year": year,
                "NumCycles": _MCD12Q2_FILL if lost or cycles == 0 else cycles,
            }
            for cycle in (0, 1):
                there = cycle < cycles and not lost
                days = truth.dates[curve, column, cycle]
                for name, day in zip(_MCD12Q2_NAMES, days, strict=True):
                    # rows of quality 3 are wrong on purpose: whoever uses the table must reject them
                    row[f"{name}_{cycle + 1}"] = int(day) + poor * wrong_by if there else _MCD12Q2_FILL
                low, height, area = (getattr(truth, name)[curve, column, cycle] for name in _MAGNITUDES)
                row[f"EVI_Minimum_{cycle + 1}"] = round(float(low) * 1e4) if there else _MCD12Q2_FILL
                row[f"EVI_Amplitude_{cycle + 1}"] = round(float(height) * 1e4) if there else _MCD12Q2_FILL
                row[f"EVI_Area_{cycle + 1}"] = round(float(area) * 10) if there else _MCD12Q2_FILL
                row[f"QA_Overall_{cycle + 1}"] = (3 if poor else 0) if there else _MCD12Q2_FILL
            rows.append(row)
    _write_table(path, rows)


def read_truth(directory: str | os.PathLike[str], tile: str, *, years: Sequence[int] | None = None) -> xr.Dataset:
    """Read the truth of one tile as one dataset.

    Parameters
    ----------
    directory : path
        Folder of a world, or its ``catalog.json``.
    tile : str
        MGRS name such as ``31UGS``; the names are the folders below ``truth``.
    years : sequence of int, optional
        Product years; all by default.

    Returns
    -------
    xarray.Dataset
        ``cover (y, x)`` uint8; ``n_cycles (year, y, x)`` uint8; the seven dates ``(year, cycle, y, x)`` float32 in
        days since 1970-01-01, NaN where there is no cycle; ``base``, ``amplitude`` and ``integral`` likewise. On the
        tile's 10 m grid, with its CRS.

    Raises
    ------
    InputError
        If the folder holds no such truth.
    """
    import rioxarray  # noqa: F401  (registers the accessor that carries the CRS)

    folder = Path(directory)
    truth = (folder.parent if folder.is_file() else folder) / "truth"
    here = truth / tile
    if not here.is_dir():
        known = sorted(path.name for path in truth.iterdir() if path.is_dir()) if truth.is_dir() else []
        raise InputError(
            f"no truth of tile {tile!r}",
            where=str(truth),
            what_to_do=f"tiles of this world: {', '.join(known)}" if known else "give the folder of a simulated world",
        )
    held = sorted(int(path.stem.rpartition("_")[2]) for path in here.glob("n_cycles_*.tif"))
    wanted = list(held if years is None else years)
    if missing := [year for year in wanted if year not in held]:
        raise InputError(f"no truth for {missing}", where=str(here), what_to_do=f"years held: {held}")

    with rasterio.open(here / "cover.tif") as source:
        cover, transform, crs = source.read(1), source.transform, source.crs
    rows, cols = cover.shape
    coords = {
        "year": wanted,
        "cycle": [1, 2],
        "y": transform.f + transform.e * (np.arange(rows) + 0.5),
        "x": transform.c + transform.a * (np.arange(cols) + 0.5),
    }
    dates = np.stack([[_read(here / f"dates_{year}_c{cycle}.tif") for cycle in (1, 2)] for year in wanted])
    sizes = np.stack([[_read(here / f"magnitudes_{year}_c{cycle}.tif") for cycle in (1, 2)] for year in wanted])
    counts = np.stack([_read(here / f"n_cycles_{year}.tif")[0] for year in wanted])
    dims = ("year", "cycle", "y", "x")
    data: dict[str, xr.DataArray] = {
        "cover": describe(
            xr.DataArray(cover, dims=("y", "x")),
            kind="class",
            units="",
            long_name="land cover",
            flag_values=[c.code for c in COVERS],
            flag_meanings=" ".join(c.name for c in COVERS),
        ),
        "n_cycles": describe(
            xr.DataArray(counts, dims=("year", "y", "x")), kind="count", units="1", long_name="number of cycles"
        ),
    }
    for index, name in enumerate(DATES):
        values = np.where(dates[:, :, index] == FILL, np.nan, dates[:, :, index]).astype(np.float32)
        data[name] = describe(
            xr.DataArray(values, dims=dims), kind="date", units="days since 1970-01-01", long_name=f"true {name}"
        )
    for index, name in enumerate(_MAGNITUDES):
        values = np.where(sizes[:, :, index] == -9999.0, np.nan, sizes[:, :, index]).astype(np.float32)
        units = "d" if name == "integral" else "1"
        data[name] = describe(
            xr.DataArray(values, dims=dims), kind="continuous", units=units, long_name=f"true {name} of EVI2"
        )
    dataset = xr.Dataset(data, coords=coords)
    georeferenced: xr.Dataset = dataset.rio.write_crs(crs).rio.write_transform(transform)
    return georeferenced


def _read(path: Path) -> npt.NDArray[Any]:
    with rasterio.open(path) as source:
        return np.asarray(source.read())
