"""Contact sheets: some chips of a store side by side, a row a place and a column a season, to look at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.outputs.preview import save_figure

__all__ = ["contact_sheet"]

_NATURAL = ("B04", "B03", "B02")
_INCH = 1.3
_DPI = 100


def contact_sheet(
    chips: xr.Dataset, path: str | os.PathLike[str], *, places: int = 8, bands: tuple[str, str, str] | None = None
) -> Path:
    """Draw the chips of some places, spread evenly over the store.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `geoeco.sampling.open_chips`: ``chips (sample, season, band, y, x)``, reflectance with NaN, with ``date``
        and ``name``.
    path : path-like
        ``.png``; replaced in one step. The same chips give the same bytes.
    places : int
        Rows, at most.
    bands : tuple of 3 str, optional
        Red, green and blue of the picture; natural colours where the chips have them, else the first band in grey.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If there is no chip, or a band is missing.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    held = [str(band) for band in chips["band"].values]
    shown = bands or (_NATURAL if set(_NATURAL) <= set(held) else (held[0],) * 3)
    missing = [band for band in shown if band not in held]
    if missing or not chips.sizes["sample"]:
        what = f"the chips have no band {missing[0]}" if missing else "there is no chip to draw"
        raise InputError(what, where=str(path), what_to_do=f"bands: {', '.join(held)}")
    rows = np.unique(np.linspace(0, chips.sizes["sample"] - 1, min(places, chips.sizes["sample"])).round().astype(int))
    some = chips.isel(sample=rows)
    pixels = some["chips"].sel(band=list(shown)).transpose("sample", "season", "y", "x", "band").to_numpy()
    pictures = _stretched(pixels)
    seasons = [str(season) for season in some["season"].values]
    figure = Figure(
        figsize=(0.6 + _INCH * len(seasons), 0.4 + (_INCH + 0.15) * len(rows)), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(seasons), squeeze=False)
    for row, place in enumerate(some["name"].values):
        for column, season in enumerate(seasons):
            axes, date = grid[row, column], some["date"].values[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(season, fontsize=9)
            if column == 0:
                axes.set_ylabel(str(place), fontsize=6)
            if np.isnat(date):
                axes.set_xlabel("no image", fontsize=6)
                continue
            axes.imshow(pictures[row, column], interpolation="nearest")
            axes.set_xlabel(str(date.astype("datetime64[D]")), fontsize=6)
    return save_figure(figure, path)


def _stretched(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Reflectance to bytes, one stretch for all chips so that seasons can be compared; missing pixels are grey."""
    finite = pixels[np.isfinite(pixels)]
    low, high = (0.0, 1.0) if not finite.size else np.percentile(finite, (1, 99))
    scaled = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.where(np.isfinite(pixels), scaled, 240).round().astype(np.uint8)
