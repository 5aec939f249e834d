"""Pictures of chips of orthomosaics for reports: chips with their labels side by side, and a mosaic at small size.

Not map products: pictures are stretched, thinned out and carry no CRS.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.preview import save_figure
from geoeco.sensors.mosaic_files import opened_mosaic
from geoeco.sensors.orthomosaic import Orthomosaic

__all__ = ["chip_sheet", "mosaic_picture", "rgb_bytes"]

Picture = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_NATURAL = ("red", "green", "blue")
_DPI = 100
#: Dots along a side of a chip in the picture, at least.
_SMALLEST = 96
#: Pixels of a chip along a side that are drawn; larger chips are thinned out.
_PIXELS = 160
#: Grey of pixels that are not valid, or have no label.
_MISSING = 240
#: The crown that a chip is of, and others on it.
_OWN, _OTHER = (230, 159, 0), (170, 195, 215)


def rgb_bytes(image: npt.NDArray[Any], valid: Bools) -> Picture:
    """Values as a picture: 2 % of them darker than black and lighter than white, invalid pixels grey.

    Parameters
    ----------
    image : numpy.ndarray, shape (..., band, y, x)
        Three bands are drawn in colour, one in grey.
    valid : numpy.ndarray of bool, shape (..., y, x)

    Returns
    -------
    numpy.ndarray of uint8, shape (..., y, x, 3)
    """
    values = np.moveaxis(image, -3, -1).astype(np.float32)
    seen = values[valid]
    low, high = np.percentile(seen, (1, 99)) if seen.size else (0.0, 1.0)
    scaled = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 255
    shown = np.where(valid[..., None], scaled, _MISSING).round().astype(np.uint8)
    return np.broadcast_to(shown, (*shown.shape[:-1], 3))


def mosaic_picture(mosaic: Orthomosaic, *, size: int = 1000) -> tuple[Picture, tuple[float, float, float, float]]:
    """Whole mosaic as a small picture, from its overviews where it has them.

    Parameters
    ----------
    mosaic : Orthomosaic
    size : int
        Pixels of the longer side, at most.

    Returns
    -------
    image : numpy.ndarray of uint8, shape (y, x, 3)
    bounds : tuple of float
        Left, bottom, right, top.
    """
    rows, columns = (int(n) for n in mosaic.native.shape)
    thin = max(1.0, max(rows, columns) / size)
    shape = (max(1, round(rows / thin)), max(1, round(columns / thin)))
    bands = _shown_bands(mosaic.bands)
    indexes = [mosaic.indexes[mosaic.bands.index(name)] for name in bands]
    with opened_mosaic(mosaic.path) as file:
        image = file.read(indexes, out_shape=(len(indexes), *shape))
        valid = _valid(file, mosaic, shape)
    box = mosaic.native.boundingbox
    return rgb_bytes(image, valid & np.isfinite(image).all(axis=0)), (box.left, box.bottom, box.right, box.top)


def _valid(file: Any, mosaic: Orthomosaic, shape: tuple[int, int]) -> Bools:
    """Validity as the mosaic's reader finds it, thinned out."""
    if mosaic.mask == "internal":
        return np.asarray(file.read_masks(mosaic.indexes[0], out_shape=shape) != 0)
    if mosaic.mask == "none":
        return np.ones(shape, dtype=bool)
    marks = file.read(list(mosaic.mask_indexes), out_shape=(len(mosaic.mask_indexes), *shape))
    if mosaic.mask == "alpha":
        return np.asarray(marks[0] != 0)
    values = np.asarray(mosaic.nodata_values)[:, None, None]
    return np.asarray(~((marks == values) | (np.isnan(marks) & np.isnan(values))).all(axis=0))


def _shown_bands(bands: Any) -> list[str]:
    held = [str(band) for band in bands]
    if set(_NATURAL) <= set(held):
        return list(_NATURAL)
    return held[:3] if len(held) >= 3 else held[:1]


def chip_sheet(chips: xr.Dataset, path: str | os.PathLike[str], *, count: int = 24, columns: int = 6) -> Path:
    """Draw some chips, spread evenly over a store, each with its labels or crowns beside it.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `geoeco.sampling.open_uav_chips`.
    path : path-like
        ``.png``; replaced in one step. The same chips give the same bytes.
    count : int
        Chips, at most.
    columns : int
        Chips in a row.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If there is no chip.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    total = chips.sizes["sample"]
    if not total:
        raise InputError("there is no chip to draw", where=str(path))
    some = chips.isel(sample=np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)))
    thin = max(1, -(-chips.sizes["x"] // _PIXELS))
    some = some.isel(y=slice(None, None, thin), x=slice(None, None, thin)).load()
    pictures = rgb_bytes(
        some["image"].sel(band=_shown_bands(some["band"].to_numpy())).to_numpy(), some["valid"].to_numpy()
    )
    beside, legend = _beside(some)
    cells = pictures if beside is None else np.concatenate([pictures, _gap(pictures, 2), beside], axis=2)
    texts = [_title(some.isel(sample=k)) for k in range(len(cells))]
    # small chips are drawn larger, a whole number of times
    zoom = max(1, _SMALLEST // pictures.shape[1])
    sheet, places = _laid_out(cells.repeat(zoom, axis=1).repeat(zoom, axis=2), min(columns, len(cells)))
    high, wide = sheet.shape[:2]
    margin = 60 + 5 * max(len(name) for name, _ in legend) if legend else 0
    figure = Figure(figsize=((wide + margin) / _DPI, high / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, wide / (wide + margin), 1.0))
    axes.axis("off")
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    for (row, column), text in zip(places, texts, strict=True):
        axes.text(column, row - 3, text, fontsize=6, va="bottom")
    if legend:
        handles = [Patch(color=colour) for _, colour in legend]
        names = [name for name, _ in legend]
        figure.legend(
            handles, names, loc="upper left", bbox_to_anchor=(wide / (wide + margin), 0.99), fontsize=6, frameon=False
        )
    return save_figure(figure, path)


def _gap(pictures: Picture, width: int) -> Picture:
    return np.full((*pictures.shape[:2], width, 3), 255, dtype=np.uint8)


def _laid_out(cells: Picture, across: int) -> tuple[Picture, list[tuple[int, int]]]:
    """One picture of many, row by row with room for a line of text above each, and their upper left corners."""
    number, high, wide, _ = cells.shape
    down = -(-number // across)
    line, space = 16, 6
    sheet = np.full((down * (high + line) + space, across * (wide + space) + space, 3), 255, dtype=np.uint8)
    places = []
    for k, cell in enumerate(cells):
        row, column = line + (k // across) * (high + line), space + (k % across) * (wide + space)
        sheet[row : row + high, column : column + wide] = cell
        places.append((row, column))
    return sheet, places


def _title(chip: xr.Dataset) -> str:
    parts = [str(chip.attrs["splits"][int(chip["split"])])]
    if int(chip["crown_id"]):
        parts.append(f"crown {int(chip['crown_id'])}")
    if int(chip["class_id"]) >= 0:
        parts.append(str(chip.attrs["crown_classes"][int(chip["class_id"])]))
    return ", ".join(part for part in parts if part != "none")


def _beside(chips: xr.Dataset) -> tuple[Picture | None, list[tuple[str, str]]]:
    """Picture of the labels of each chip with their legend, or of the crowns; None where there is neither."""
    if "label" in chips:
        rows = [(int(code), str(name), str(colour)) for code, name, colour in chips.attrs["classes"]]
        table = ClassTable.of({c: n for c, n, _ in rows}, {c: h for c, _, h in rows if h} or None)
        lookup = np.full((256, 3), _MISSING, dtype=np.uint8)
        for entry in table:
            lookup[entry.code] = entry.colour[:3]
        present = set(np.unique(chips["label"].to_numpy()).tolist())
        return lookup[chips["label"].to_numpy()], [(e.name, e.hex) for e in table if e.code in present]
    if "instance" in chips:
        ids = chips["instance"].to_numpy()
        if chips.attrs["kind"] == "crown":
            own = ids == chips["crown_id"].to_numpy()[:, None, None]
            shade = np.where(own, 1, np.where(ids > 0, 2, 0))
            return np.array([[_MISSING] * 3, _OWN, _OTHER], dtype=np.uint8)[shade], []
        # neighbouring ids get colours far apart: the golden ratio's multiples never bunch
        turn = (ids * 0.6180339887498949) % 1.0
        colours = np.stack([0.55 + 0.4 * np.sin(2 * np.pi * (turn + shift)) for shift in (0, 1 / 3, 2 / 3)], axis=-1)
        return np.where(ids[..., None] > 0, colours * 255, _MISSING).round().astype(np.uint8), []
    return None, []
