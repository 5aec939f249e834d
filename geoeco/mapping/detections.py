"""Crowns of an orthomosaic by a detector: tile by tile with overlap, each crown kept once.

The tiles lie on one lattice over the whole mosaic and pass the network one by one, so that neither the number of tasks
nor their order changes a byte. What overlaps is judged by `geoeco.mapping.objects`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
from affine import Affine
from rasterio.features import geometry_mask
from scipy.ndimage import binary_dilation

from geoeco.errors import GridError, InputError
from geoeco.mapping.devices import fixed_arithmetic
from geoeco.mapping.map_polygons import ground_pixel
from geoeco.mapping.objects import gather_objects, own_objects, suppress_overlaps
from geoeco.mapping.outlines import block_outlines, fill_holes, placed
from geoeco.sampling.mosaic_windows import grid_windows, pixels_across
from geoeco.sensors.height_models import HeightModel, heights_within
from geoeco.sensors.orthomosaic import Orthomosaic
from geoeco.training import ModelBundle
from geoeco.training.allocator import freed_memory_kept

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["check_detector", "detect_crowns", "detect_tiles", "detection_tiles", "merge_tiles"]

Windows = npt.NDArray[np.int64]


def detect_crowns(
    mosaic: Orthomosaic,
    bundle: ModelBundle,
    *,
    overlap_m: float,
    edge_m: float = 0.0,
    min_score: float = 0.5,
    max_overlap: float = 0.3,
    heights: HeightModel | None = None,
) -> gpd.GeoDataFrame:
    """Find the crowns of a mosaic.

    Parameters
    ----------
    mosaic : Orthomosaic
        In the model's bands and at its resolution (`Orthomosaic.at`).
    bundle : ModelBundle
        As of `geoeco.training.train_detector`.
    overlap_m, edge_m, max_overlap, heights
        As of `detection_tiles` and `merge_tiles`.
    min_score : float
        Objects of a lower score are left out.

    Returns
    -------
    geopandas.GeoDataFrame
        As of `merge_tiles`.

    Raises
    ------
    InputError
        If the model finds no objects, or does not fit the mosaic.
    GridError
        If the mosaic lies on no map or is smaller than a tile.
    """
    check_detector(bundle, mosaic)
    windows = detection_tiles(mosaic, bundle.size, overlap_m)
    found = detect_tiles(mosaic, bundle, windows, range(len(windows)), min_score=min_score)
    return merge_tiles([found], windows, mosaic, edge_m=edge_m, max_overlap=max_overlap, heights=heights)


def check_detector(bundle: ModelBundle, mosaic: Orthomosaic) -> None:
    """Refuse a model that finds no objects, or does not fit a mosaic.

    Parameters
    ----------
    bundle : ModelBundle
    mosaic : Orthomosaic

    Raises
    ------
    InputError
        If so.
    GridError
        If the mosaic lies on no map.
    """
    if bundle.task != "detection":
        raise InputError(
            f"the model is for {bundle.task}, not for objects",
            where=f"model {bundle.name}",
            what_to_do="name the folder of a bundle of train_detector",
            code="bundle",
        )
    if mosaic.geobox.crs is None:
        raise GridError("the mosaic lies on no map", where=mosaic.path, what_to_do="give one with a CRS")
    bundle.check_input(mosaic.bands)
    # ground distances of two flights differ by parts of a percent
    if abs(mosaic.gsd_m / bundle.resolution - 1) > 0.02:
        raise InputError(
            f"the model was trained on pixels of {bundle.resolution:g} m, the mosaic has {mosaic.gsd_m:g} m",
            where=mosaic.path,
            what_to_do=f"read it with mosaic.at({bundle.resolution:g})",
            code="resolution",
        )


def detection_tiles(mosaic: Orthomosaic, size: int, overlap_m: float) -> Windows:
    """Windows of the tiles that cover a mosaic, the last ones of rows and columns moved in.

    Parameters
    ----------
    mosaic : Orthomosaic
    size : int
        Pixels along a side.
    overlap_m : float
        Of neighbours, metres, at least: the largest crown plus two edges, or it is whole in no tile.

    Returns
    -------
    numpy.ndarray of int64, (tile, 4)
        First and last (exclusive) row, first and last column.

    Raises
    ------
    InputError
        If the overlap is not smaller than a tile.
    GridError
        If the mosaic is smaller than a tile.
    """
    overlap = pixels_across(overlap_m, mosaic.gsd_m, up=True) if overlap_m > 0 else 0
    rows, columns = (int(n) for n in mosaic.geobox.shape)
    corner = grid_windows((rows, columns), size, overlap, edge="shift").astype(np.int64)
    return np.stack([corner[:, 0], corner[:, 0] + size, corner[:, 1], corner[:, 1] + size], axis=1)


@freed_memory_kept()
def detect_tiles(
    mosaic: Orthomosaic,
    bundle: ModelBundle,
    windows: Windows,
    tiles: Iterable[int],
    *,
    min_score: float = 0.5,
    threads: int = 1,
) -> gpd.GeoDataFrame:
    """Find objects on some tiles.

    Parameters
    ----------
    mosaic : Orthomosaic
    bundle : ModelBundle
    windows : numpy.ndarray, (tile, 4)
        As of `detection_tiles`.
    tiles : iterable of int
        Rows of `windows`.
    min_score : float
    threads : int
        Of torch; the last bits of the scores may depend on it.

    Returns
    -------
    geopandas.GeoDataFrame
        ``tile``, ``class`` (name), ``score``, ``beside`` (touches ground without imagery) and the outline: along the
        edges of the pixels of the largest piece of the mask, holes filled; the box of a network of boxes.
    """
    import geopandas as gpd

    network: Any = bundle.module.eval()
    device = next(network.parameters()).device
    columns: dict[str, list[Any]] = {"tile": [], "class": [], "score": [], "beside": []}
    shapes: list[Any] = []
    for tile in tiles:
        top, bottom, left, right = (int(n) for n in windows[tile])
        image, valid = mosaic.read((top, bottom), (left, right))
        if not valid.any():
            continue
        values = torch.from_numpy(np.where(valid, image * np.float32(mosaic.scale), 0).astype(np.float32))
        with fixed_arithmetic(threads):
            (found,) = network.detect(bundle.normalisation(values.to(device)[None]))
        for number in torch.nonzero(found.scores >= min_score).flatten().tolist():
            if found.masks is None:
                box = found.boxes[number].cpu().double().numpy()
                outline = shapely.box(*(box + np.array([left, top, left, top])))
                mask = geometry_mask([outline], valid.shape, Affine.translation(left, top), invert=True)
            else:
                mask = found.masks[number].cpu().numpy() & valid
                outline = _outline(mask, top, left)
            if outline is None or outline.area == 0:
                continue
            columns["tile"].append(tile)
            columns["class"].append(bundle.classes[int(found.labels[number])])
            columns["score"].append(float(found.scores[number]))
            columns["beside"].append(bool((binary_dilation(mask) & ~valid).any()))
            shapes.append(outline)
    crs = mosaic.geobox.crs
    assert crs is not None, "check_detector has looked"
    outlines = placed(np.array(shapes, object), mosaic.geobox.affine) if shapes else np.zeros(0, object)
    typed = {
        "tile": np.array(columns["tile"], np.int64),
        "class": np.array(columns["class"], object),
        "score": np.array(columns["score"], np.float64),
        "beside": np.array(columns["beside"], bool),
    }
    return gpd.GeoDataFrame(typed, geometry=outlines, crs=crs.proj)


def merge_tiles(
    frames: Sequence[gpd.GeoDataFrame],
    windows: Windows,
    mosaic: Orthomosaic,
    *,
    edge_m: float = 0.0,
    max_overlap: float = 0.3,
    heights: HeightModel | None = None,
) -> gpd.GeoDataFrame:
    """Keep each crown of many tiles once.

    A crown belongs to the tile whose core holds it; one cut off by an edge is dropped where a neighbouring tile looks
    beyond; of what still overlaps the one of the higher score is kept.

    Parameters
    ----------
    frames : sequence of geopandas.GeoDataFrame
        As of `detect_tiles`, in any order.
    windows : numpy.ndarray, (tile, 4)
        Of all tiles.
    mosaic : Orthomosaic
    edge_m : float
        Width of the band along the edges of tiles in which an object counts as cut off, metres.
    max_overlap : float
        Of two crowns, as part of the smaller one.
    heights : HeightModel, optional
        On the grid of the mosaic.

    Returns
    -------
    geopandas.GeoDataFrame
        From top to bottom: ``crown_id`` from 1, ``class``, ``score``, ``area_m2`` on the ground,
        ``height_p95`` where there are heights, ``edge`` (touches the edge of the imagery), ``source``, ``date``.
        ``attrs``: ``n_foreign`` and ``n_cut`` as of `own_objects`, ``n_overlapping``, ``largest_m`` (side of the box
        round the largest crown).
    """
    grid = mosaic.geobox
    together = gather_objects(frames)
    owned = own_objects(together, windows, grid, edge_px=edge_m / mosaic.gsd_m)
    kept = suppress_overlaps(owned, max_overlap, measure="smaller").reset_index(drop=True)
    pixel_m2, _ = ground_pixel(grid)
    shapes = placed(kept.geometry.to_numpy(), ~grid.affine)
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    sides = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    columns: dict[str, Any] = {
        "crown_id": np.arange(1, len(kept) + 1, dtype=np.int32),
        "class": kept["class"].to_numpy(object),
        "score": kept["score"].to_numpy(np.float32),
        "area_m2": shapely.area(shapes) * pixel_m2,
    }
    if heights is not None:
        columns["height_p95"] = np.array([_height(shape, heights) for shape in shapes], np.float32)
    columns |= {
        "edge": (kept["edge"] | kept["beside"]).to_numpy(bool),
        "source": np.full(len(kept), mosaic.path.replace("\\", "/").rsplit("/", 1)[-1], object),
        "date": np.full(len(kept), mosaic.date, object),
    }
    made = kept[["geometry"]].assign(**columns)[[*columns, "geometry"]]
    made.attrs = {
        "n_foreign": owned.attrs["n_foreign"],
        "n_cut": owned.attrs["n_cut"],
        "n_overlapping": len(owned) - len(kept),
        "largest_m": float(sides.max() * mosaic.gsd_m) if len(sides) else 0.0,
    }
    return made


def _outline(mask: npt.NDArray[np.bool_], top: int, left: int) -> Any:
    """Largest piece of a mask without its holes, in pixels of the mosaic; None of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.int32)
    _, pieces = block_outlines(part, (top + int(rows[0]), left + int(columns[0])))
    pieces = fill_holes(pieces, np.inf)
    return pieces[int(np.argmax(shapely.area(pieces)))]


def _height(shape: Any, heights: HeightModel) -> float:
    """95th percentile of the heights in a shape, in pixels of the mosaic."""
    left, top, right, bottom = shape.bounds
    y, x = (int(np.floor(top)), int(np.ceil(bottom))), (int(np.floor(left)), int(np.ceil(right)))
    values = heights.read(y, x)
    inside = geometry_mask([shape], values.shape, Affine.translation(x[0], y[0]), invert=True)
    return float(heights_within(values, inside).top)
