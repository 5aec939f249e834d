"""Pixels of chips: image, validity, labels, heights and crown ids of one window, all on the same grid.

Not about where the chips lie and which set they are of: `geoeco.sampling.mosaic_plans`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from affine import Affine
from shapely.geometry.base import BaseGeometry

from geoeco.sampling.images import in_threads
from geoeco.sampling.mosaic_layers import IGNORE, burnt, read_codes, read_heights
from geoeco.sampling.mosaic_sources import ChipSource
from geoeco.sensors.area_means import area_mean, axis_shares
from geoeco.sensors.orthomosaic import Orthomosaic
from geoeco.variables import describe

__all__ = ["CROWN_BAND", "ChipPlan", "Context", "chip_affine", "chip_label", "chip_pixels", "cut_chips"]

Context = Literal["keep", "zero", "mask"]

#: Name of the band that holds the crown itself (context "mask").
CROWN_BAND = "crown"

_ABOUT: dict[str, dict[str, str]] = {
    "image": {"kind": "continuous", "units": "1", "long_name": "stored x scale is the value, 0..1"},
    "valid": {"kind": "class", "units": "", "long_name": "pixel of the mosaic is valid"},
    "chm": {"kind": "continuous", "units": "m", "long_name": "height above ground"},
    "label": {"kind": "class", "units": "", "long_name": "class; 255 is ignored"},
    "instance": {"kind": "class", "units": "", "long_name": "crown_id; 0 is none"},
}

Offset = tuple[int, int]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ChipPlan:
    """Chips that are wanted, before any pixel is cut.

    Attributes
    ----------
    table : pandas.DataFrame
        A row a chip: ``source``, ``row``, ``col``, ``step``, ``block``, ``split`` (code), ``crown_id``, ``class_id``,
        ``valid_fraction``, ``label_fraction``, ``footprint`` and ``ground`` (shapely, map coordinates of the source;
        ground None where the whole chip is its set's own).
    size : int
        Pixels of a chip along a side.
    bands : tuple of str
    attrs : dict
        Attributes of the dataset of the chips.
    notes : dict
        What a user should know: ``warnings``, chips left out, crowns in no chip, counts by set and class, the proof
        that no set sees the ground of another.
    """

    table: pd.DataFrame
    size: int
    bands: tuple[str, ...]
    attrs: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


def chip_affine(mosaic: Orthomosaic, offset: Offset, step: int = 1) -> Affine:
    """Pixel coordinates of a chip to the map, upper left corners."""
    t = mosaic.geobox.transform
    return Affine(t.a * step, 0.0, t.c + offset[1] * t.a, 0.0, t.e * step, t.f + offset[0] * t.e)


def chip_pixels(mosaic: Orthomosaic, offset: Offset, size: int, step: int = 1) -> tuple[npt.NDArray[Any], Bools]:
    """Image and validity of one chip.

    Parameters
    ----------
    mosaic : Orthomosaic
    offset : tuple of int
        Row and column of the upper left pixel; the window may reach beyond the mosaic.
    size : int
        Pixels of the chip along a side.
    step : int
        Pixels of the mosaic along a side of a pixel of the chip; above 1 they are averaged.

    Returns
    -------
    image : numpy.ndarray, shape (band, size, size)
        As stored, 0 where invalid.
    valid : numpy.ndarray of bool, shape (size, size)
    """
    top, left = int(offset[0]), int(offset[1])
    step, reach = int(step), size * int(step)
    image, valid = mosaic.read((top, top + reach), (left, left + reach))
    if step == 1:
        return image, valid
    shares = axis_shares(float(step), 0, size, reach)
    return area_mean(image, valid, shares, shares, float(step * step))


def chip_label(
    source: ChipSource, offset: Offset, size: int, step: int, valid: Bools, ground: BaseGeometry | None
) -> npt.NDArray[np.uint8]:
    """Classes of one chip; 255 where there is no label, no valid pixel, or the ground of another set.

    Parameters
    ----------
    source : ChipSource
        With labels.
    offset, size, step
        As of `chip_pixels`.
    valid : numpy.ndarray of bool, shape (size, size)
    ground : shapely geometry or None
        Ground of the chip's own set, map coordinates; None for all of the chip.
    """
    assert source.labels is not None
    affine = chip_affine(source.mosaic, offset, step)
    label = read_codes(source.labels, affine, (size, size))
    label[~valid] = IGNORE
    if ground is not None:
        inside = burnt([] if ground.is_empty else [(ground, 1)], size, affine)
        label[inside == 0] = IGNORE
    return label


def cut_chips(
    sources: Sequence[ChipSource],
    plan: ChipPlan,
    *,
    first: int = 0,
    count: int | None = None,
    pixels: bool = True,
    threads: int = 2,
) -> xr.Dataset:
    """Cut chips that have been planned.

    Parameters
    ----------
    sources : sequence of ChipSource
        As the chips were planned on.
    plan : ChipPlan
    first, count : int
        Which of the plan's chips; all from `first` on when `count` is None. None at all give an empty data set of the
        right types.
    pixels : bool
        False gives only what is known without reading: all variables along ``sample`` alone.
    threads : int
        Chips read at the same time.

    Returns
    -------
    xarray.Dataset
        See `grid_chips`.
    """
    table = plan.table.iloc[first : None if count is None else first + count]
    number = {day: index for index, day in enumerate(plan.attrs["dates"])}
    date = np.array([number[sources[s].mosaic.date] for s in table["source"]], dtype=np.int16)
    places = table[["source", "row", "col", "step"]].to_numpy(dtype=np.int64)
    affine = np.array([chip_affine(sources[s].mosaic, (row, col), step)[:6] for s, row, col, step in places])
    chips = xr.Dataset(
        {
            "offset": (("sample", "pixel_axis"), table[["row", "col"]].to_numpy(dtype=np.int32)),
            "step": ("sample", table["step"].to_numpy(dtype=np.int32)),
            "affine": (("sample", "coefficient"), affine.reshape(-1, 6)),
            "source": ("sample", table["source"].to_numpy(dtype=np.int16)),
            "split": ("sample", table["split"].to_numpy(dtype=np.int8)),
            "block": ("sample", table["block"].to_numpy(dtype=np.int32)),
            "crown_id": ("sample", table["crown_id"].to_numpy(dtype=np.int32)),
            "class_id": ("sample", table["class_id"].to_numpy(dtype=np.int16)),
            "date": ("sample", date),
            "valid_fraction": ("sample", table["valid_fraction"].to_numpy(dtype=np.float32)),
            "label_fraction": ("sample", table["label_fraction"].to_numpy(dtype=np.float32)),
        },
        coords={"band": list(plan.bands)},
        attrs=dict(plan.attrs),
    )
    for name, of in (("source", "sources"), ("split", "splits"), ("class_id", "crown_classes"), ("date", "dates")):
        chips[name].attrs["long_name"] = f"position in the attribute {of}"
    chips["offset"].attrs["long_name"] = "row and column of the upper left pixel in the mosaic"
    chips["step"].attrs["long_name"] = "pixels of the mosaic along a side of a pixel of the chip"
    return chips.assign(_pixels(sources, plan, table, threads)) if pixels else chips


def _pixels(
    sources: Sequence[ChipSource], plan: ChipPlan, table: pd.DataFrame, threads: int
) -> dict[str, xr.DataArray]:
    """All variables with pixels."""
    size, context = plan.size, plan.attrs["context"]
    count, first = len(table), sources[0]
    crowned = any(source.crowns is not None for source in sources)
    image = np.zeros((count, len(plan.bands), size, size), dtype=first.mosaic.dtype)
    valid = np.zeros((count, size, size), dtype=bool)
    label = None if first.labels is None else np.full((count, size, size), IGNORE, dtype=np.uint8)
    height = None if first.chm is None else np.full((count, size, size), np.nan, dtype=np.float32)
    instance = np.zeros((count, size, size), dtype=np.int32) if crowned else None
    within = _full_value(first.mosaic)

    def cut(job: tuple[int, Any]) -> None:
        position, row = job
        source, offset, step = sources[row.source], (int(row.row), int(row.col)), int(row.step)
        pixels, seen = chip_pixels(source.mosaic, offset, size, step)
        if label is not None:
            label[position] = chip_label(source, offset, size, step, seen, row.ground)
        if height is not None and source.chm is not None:
            height[position] = read_heights(source.chm, chip_affine(source.mosaic, offset, step), (size, size))
        if instance is not None and source.crowns is not None:
            instance[position] = source.crowns.burn(offset, size, step)
        if context != "keep" and source.crowns is not None:
            crown = source.crowns.mask(int(np.flatnonzero(source.crowns.ids == row.crown_id)[0]), offset, size, step)
            if context == "zero":
                seen = seen & crown
                pixels = np.where(seen, pixels, 0)
            else:
                pixels = np.concatenate([pixels, np.where(crown & seen, within, 0).astype(pixels.dtype)[None]])
        image[position], valid[position] = pixels, seen

    in_threads(cut, list(enumerate(table.itertuples())), threads)
    found = {"image": image, "valid": valid, "chm": height, "label": label, "instance": instance}
    arrays = {
        name: describe(
            xr.DataArray(values, dims=("sample", "band", "y", "x") if name == "image" else ("sample", "y", "x")),
            **_ABOUT[name],
        )
        for name, values in found.items()
        if values is not None
    }
    arrays["image"].attrs["scale"] = first.mosaic.scale
    return arrays


def _full_value(mosaic: Orthomosaic) -> float:
    """Stored value that stands for 1."""
    value = 1.0 / mosaic.scale
    dtype = np.dtype(mosaic.dtype)
    return float(min(round(value), np.iinfo(dtype).max)) if np.issubdtype(dtype, np.integer) else value
