"""Chips of orthomosaics in memory: on a grid, round crowns, or at random.

For stores larger than memory the same chips are planned once (`plan_chips`) and cut group by group (`cut_chips`), as
the verb ``uav_chips`` does.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import geopandas as gpd
import numpy as np
import shapely
import xarray as xr
from odc.geo.crs import CRS

from geoeco.errors import InputError
from geoeco.sampling.mosaic_chips import Context, cut_chips
from geoeco.sampling.mosaic_plans import ChipDesign, Kind, TooLarge, plan_chips
from geoeco.sampling.mosaic_sources import open_sources
from geoeco.sampling.mosaic_splits import AreaSplit, BlockSplit
from geoeco.sampling.mosaic_windows import EdgePolicy

__all__ = ["chip_footprints", "crown_chips", "grid_chips", "random_chips"]

Split = BlockSplit | AreaSplit | None


class ChipOptions(TypedDict, total=False):
    """Keywords that all kinds of chips take; `grid_chips` says what they are."""

    target_gsd: float | None
    labels: Any
    crown_class: str | None
    chm: Any
    split: Split
    min_valid: float
    seed: int


@dataclass(frozen=True)
class _Options:
    target_gsd: float | None = None
    labels: Any = None
    crown_class: str | None = None
    chm: Any = None
    split: Split = None
    min_valid: float = 0.0
    seed: int = 0


def grid_chips(
    mosaic: Any,
    *,
    chip_m: float,
    overlap_m: float = 0.0,
    edge: EdgePolicy = "shift",
    edge_band_m: float = 0.0,
    crowns: Any = None,
    **options: Unpack[ChipOptions],
) -> xr.Dataset:
    """Chips on a regular grid.

    Parameters
    ----------
    mosaic, crowns
        As of `open_sources`.
    chip_m, overlap_m : float
        Side of a chip and ground that neighbours share, metres on the ground; the overlap is rounded up to whole
        pixels.
    edge : {"shift", "pad", "drop"}
        What becomes of chips that would reach beyond the mosaic: moved in, padded with invalid pixels, left out.
    edge_band_m : float
        Band along the sides of a chip in which a crown does not count as whole, metres.
    **options
        ``target_gsd, labels, crown_class, chm`` as of `open_sources`; ``split``, a BlockSplit or an AreaSplit, none
        when not given; ``min_valid``, the least valid part of a chip (0 when not given; chips without a valid pixel are
        never kept); ``seed`` (0 when not given) of the order in which blocks are handed out.

    Returns
    -------
    xarray.Dataset
        Dimensions ``sample, band, y, x``: ``image`` as stored (attribute ``scale``: value = stored x scale),
        ``valid`` bool, where asked for ``label`` uint8 (255 ignored), ``chm`` float32 (m, NaN), ``instance`` int32
        (crown_id, 0 none); along ``sample`` ``offset`` (row, column), ``step``, ``affine`` (a b c d e f, upper left
        corners), the codes ``source``, ``split``, ``block``, ``class_id``, ``crown_id``, ``date``, and
        ``valid_fraction``, ``label_fraction``. Attributes name what the codes stand for.

    Raises
    ------
    InputError, GridError, ReadError
        As of `open_sources` and `plan_chips`.

    Warns
    -----
    UserWarning
        If crowns are whole in no chip; it says which overlap would hold them.
    """
    return _chips(mosaic, crowns, options, "grid", chip_m, overlap_m=overlap_m, edge=edge, edge_band_m=edge_band_m)


def crown_chips(
    mosaic: Any,
    crowns: Any,
    *,
    chip_m: float | None = None,
    buffer_m: float = 1.0,
    context: Context = "keep",
    too_large: TooLarge = "refuse",
    **options: Unpack[ChipOptions],
) -> xr.Dataset:
    """One chip round each crown, which holds it whole.

    Parameters
    ----------
    mosaic, crowns
        As of `open_sources`.
    chip_m : float, optional
        Side of a chip, metres; the side that holds the largest crown when not given.
    buffer_m : float
        Least ground between a crown and the sides of its chip, metres.
    context : {"keep", "zero", "mask"}
        The surroundings of the crown are kept; are 0 and not valid; are kept, and the crown is a further band.
    too_large : {"refuse", "drop", "resize"}
        Crowns larger than `chip_m` with their buffer are an error, are left out, or get a chip of coarser pixels: a
        whole number (`step`) of the mosaic's along each side.
    **options
        As of `grid_chips`. With a split, a crown belongs to the block or area of a point within it, and an id to one
        set, however many mosaics show it; a training chip whose surroundings show a crown of another set is put aside,
        which ``context="zero"`` makes rare. ``valid_fraction`` is the mosaic's, also where the surroundings are 0.

    Returns
    -------
    xarray.Dataset
        As of `grid_chips`, with ``crown_id`` and ``class_id`` (position in the attribute ``crown_classes``).

    Raises
    ------
    InputError, GridError, ReadError
        As of `open_sources` and `plan_chips`.
    """
    return _chips(mosaic, crowns, options, "crown", chip_m, buffer_m=buffer_m, context=context, too_large=too_large)


def random_chips(
    mosaic: Any,
    *,
    chip_m: float,
    count: int,
    crowns: Any = None,
    **options: Unpack[ChipOptions],
) -> xr.Dataset:
    """Chips at random places, evenly over the classes of the labels and over blocks of ground.

    Parameters
    ----------
    mosaic, crowns
        As of `open_sources`.
    chip_m : float
        Side of a chip, metres.
    count : int
        Chips wanted of each mosaic.
    **options
        As of `grid_chips`; ``seed`` is that of the draws too.

    Returns
    -------
    xarray.Dataset
        As of `grid_chips`.

    Raises
    ------
    InputError, GridError, ReadError
        As of `open_sources` and `plan_chips`.
    """
    return _chips(mosaic, crowns, options, "random", chip_m, count=count)


def _chips(mosaic: Any, crowns: Any, options: ChipOptions, kind: Kind, chip_m: float | None, **own: Any) -> xr.Dataset:
    chosen = _Options(**options)
    design = ChipDesign(kind, chip_m, min_valid=chosen.min_valid, split=chosen.split, seed=chosen.seed, **own)
    sources = open_sources(
        mosaic,
        target_gsd=chosen.target_gsd,
        labels=chosen.labels,
        chm=chosen.chm,
        crowns=crowns,
        crown_class=chosen.crown_class,
    )
    plan = plan_chips(sources, design)
    for text in plan.notes["warnings"]:
        warnings.warn(text, stacklevel=3)
    return cut_chips(sources.sources, plan)


def chip_footprints(chips: xr.Dataset) -> gpd.GeoDataFrame:
    """Outlines of chips on the map.

    Parameters
    ----------
    chips : xarray.Dataset
        Of `grid_chips`, `crown_chips`, `random_chips` or `open_uav_chips`.

    Returns
    -------
    geopandas.GeoDataFrame
        A row a chip: ``sample``, ``source`` and ``split`` (names), ``block``, ``crown_id``, ``valid_fraction``,
        ``label_fraction``, geometry. In the CRS of the chips, in longitude and latitude where they are of several.

    Raises
    ------
    InputError
        If the mosaics have no CRS.
    """
    codes = [int(code) for code in chips.attrs["source_epsg"]]
    wkt = chips.attrs["source_crs_wkt"]
    if not all(wkt):
        raise InputError("the mosaics have no CRS, so that their chips have no place on a map")
    affine, size = chips["affine"].to_numpy(), chips.sizes["x"]
    left, top = affine[:, 2], affine[:, 5]
    boxes = shapely.box(left, top + size * affine[:, 4], left + size * affine[:, 0], top)
    source = chips["source"].to_numpy()
    columns = {
        "sample": np.arange(chips.sizes["sample"]),
        "source": [chips.attrs["sources"][s] for s in source],
        "split": [chips.attrs["splits"][s] for s in chips["split"].to_numpy()],
    }
    for name in ("block", "crown_id", "valid_fraction", "label_fraction"):
        columns[name] = chips[name].to_numpy()
    crs = [CRS(f"EPSG:{code}" if code else text) for code, text in zip(codes, wkt, strict=True)]
    if len(set(wkt)) == 1:
        return gpd.GeoDataFrame(columns, geometry=boxes, crs=crs[0].proj)
    lonlat = gpd.GeoSeries(index=range(len(boxes)), dtype="geometry", crs="EPSG:4326")
    for number, own in enumerate(crs):
        here = np.flatnonzero(source == number)
        if len(here):
            lonlat.iloc[here] = gpd.GeoSeries(boxes[here], crs=own.proj).to_crs("EPSG:4326").to_numpy()
    return gpd.GeoDataFrame(columns, geometry=lonlat)
