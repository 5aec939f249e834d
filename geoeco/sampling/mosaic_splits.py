"""Training, validation and test sets of the chips of orthomosaics, by ground and not by chip, with the proof.

Neighbouring tiles overlap and look alike: of the test ground of tiles split at random, two thirds are seen in training
at an overlap of a quarter, nearly all at a half. Here the ground itself is handed out, in square blocks or in areas
that the user draws; a chip belongs to the set that holds its centre, a crown to the one that holds its representative
point; labels outside the set's own ground are ignored, and chips too near to the ground of another set are put aside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geoeco.errors import GridError, InputError, OutputError
from geoeco.sampling.splits import ASIDE, SPLITS, hand_out_blocks

__all__ = [
    "SPLIT_NAMES",
    "AreaSplit",
    "BlockSplit",
    "LeakProof",
    "assert_no_leak",
    "own_ground",
    "share_seen",
    "split_by_areas",
    "split_by_blocks",
]

#: What the code ``split`` of a chip stands for.
SPLIT_NAMES: tuple[str, ...] = (*SPLITS, ASIDE)

Shapes = npt.NDArray[np.object_]
Ints = npt.NDArray[np.int32]

#: Part of the shape of a chip below which a shared area is rounding.
_SLIVER = 1e-9


@dataclass(frozen=True)
class BlockSplit:
    """Sets by square blocks of ground that are handed out at random.

    Parameters
    ----------
    block_m : float
        Side of the blocks, metres: at least twice that of a chip, and better the distance beyond which places look no
        more alike than others.
    guard_m : float
        Least distance between a training chip and the ground of another set, metres.
    fractions : tuple of float
        Shares of train, val and test; 0 leaves a set out.
    """

    block_m: float
    guard_m: float = 0.0
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)

    def __post_init__(self) -> None:
        _check_guard(self.guard_m)
        shares = np.asarray(self.fractions, dtype=np.float64)
        if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise InputError(f"fractions={self.fractions!r}: give three shares, none negative, not all zero")
        if not (math.isfinite(self.block_m) and self.block_m > 0):
            raise InputError(f"block_m={self.block_m} is no side of a block")


@dataclass(frozen=True)
class AreaSplit:
    """Sets by areas that the user has drawn.

    Parameters
    ----------
    areas : path or geopandas.GeoDataFrame
        As `geoeco.vectors.read_split_areas` takes them: disjoint polygons with a column ``split``.
    guard_m : float
        As of `BlockSplit`.
    """

    areas: Any
    guard_m: float = 0.0

    def __post_init__(self) -> None:
        _check_guard(self.guard_m)


def _check_guard(guard_m: float) -> None:
    if not (math.isfinite(guard_m) and guard_m >= 0):
        raise InputError(f"guard_m={guard_m} is no distance", what_to_do="give metres, 0 for none")


def split_by_blocks(blocks: Ints, fractions: Sequence[float], seed: int) -> npt.NDArray[np.int8]:
    """Set of each chip, whole blocks to one set.

    Parameters
    ----------
    blocks : numpy.ndarray of int, shape (chip,)
    fractions : sequence of 3 floats
        Shares of train, val and test.
    seed : int

    Returns
    -------
    numpy.ndarray of int8, shape (chip,)
        Positions in ``SPLIT_NAMES``.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    return hand_out_blocks(blocks.astype(np.int64), shares / shares.sum(), seed).astype(np.int8)


def split_by_areas(points: Shapes, areas: gpd.GeoDataFrame) -> npt.NDArray[np.int8]:
    """Set of each chip by the area that its point lies in; ``none`` where it lies in no area."""
    split = np.full(len(points), SPLIT_NAMES.index(ASIDE), dtype=np.int8)
    point, area = shapely.STRtree(areas.geometry.to_numpy()).query(points, predicate="intersects")
    codes = np.array([SPLIT_NAMES.index(name) for name in areas["split"]], dtype=np.int8)
    split[point] = codes[area]
    return split


def own_ground(
    footprints: Shapes, split: npt.NDArray[np.int8], parts: Shapes, part_split: npt.NDArray[np.int8]
) -> Shapes:
    """Part of each chip that lies on the ground of its own set.

    Parameters
    ----------
    footprints : numpy.ndarray of shapely polygons, shape (chip,)
    split : numpy.ndarray of int8, shape (chip,)
    parts : numpy.ndarray of shapely polygons, shape (part,)
        The ground that has been handed out; parts do not overlap.
    part_split : numpy.ndarray of int8, shape (part,)
        Set of each part.

    Returns
    -------
    numpy.ndarray of shapely geometries or None, shape (chip,)
        None where the whole chip is its own set's, or where it is in no set.
    """
    ground = np.full(len(footprints), None, dtype=object)
    chip, part = shapely.STRtree(parts).query(footprints, predicate="intersects")
    mine = part_split[part] == split[chip]
    chip, part = chip[mine], part[mine]
    shared = shapely.intersection(footprints[chip], parts[part])
    area = np.bincount(chip, weights=shapely.area(shared), minlength=len(footprints))
    straddling = (split < len(SPLITS)) & (area < shapely.area(footprints) * (1 - _SLIVER))
    order = np.argsort(chip, kind="stable")
    starts = np.searchsorted(chip[order], np.arange(len(footprints) + 1))
    for index in np.flatnonzero(straddling):
        pieces = shared[order[starts[index] : starts[index + 1]]]
        polygons = [p for g in pieces for p in shapely.get_parts(g) if p.geom_type == "Polygon"]
        ground[index] = shapely.union_all(polygons)
    return ground


def put_aside(footprints: Shapes, ground: Shapes, split: npt.NDArray[np.int8], guard: float) -> npt.NDArray[np.int8]:
    """Put aside chips too near to the ground of another set: train gives way to val, both to test.

    Parameters
    ----------
    footprints : numpy.ndarray of shapely polygons, shape (chip,)
    ground : numpy.ndarray of shapely geometries or None, shape (chip,)
        As of `own_ground`.
    split : numpy.ndarray of int8, shape (chip,)
    guard : float
        In the units of the shapes; chips that only touch the other ground stay where it is 0.

    Returns
    -------
    numpy.ndarray of int8, shape (chip,)
    """
    split = split.copy()
    evaluated = np.where(ground == None, footprints, ground)  # noqa: E711 - element by element
    train, val, test = range(3)
    for loser, winners in ((val, (test,)), (train, (val, test))):
        losers = np.flatnonzero(split == loser)
        others = evaluated[np.isin(split, winners)]
        if not len(losers) or not len(others):
            continue
        tree = shapely.STRtree(others)
        if guard > 0:
            near = np.unique(tree.query(footprints[losers], predicate="dwithin", distance=guard * (1 - _SLIVER))[0])
        else:
            own, other = tree.query(footprints[losers], predicate="intersects")
            overlap = shapely.area(shapely.intersection(footprints[losers][own], others[other]))
            near = np.unique(own[overlap > _SLIVER * shapely.area(footprints[losers][own])])
        split[losers[near]] = SPLIT_NAMES.index(ASIDE)
    return split


def share_seen(chips: gpd.GeoDataFrame, *, seen_in: str = "train", of: str = "test") -> float:
    """Share of the ground of one set that chips of another show as well.

    Parameters
    ----------
    chips : geopandas.GeoDataFrame
        Footprints with a column ``split`` of names and, where only a part of a chip counts, a column ``ground``
        (geometry or None).
    seen_in, of : str
        Names of the two sets.

    Returns
    -------
    float
        0 to 1; 0 where a set is empty.
    """
    shown = chips.geometry.to_numpy()[(chips["split"] == seen_in).to_numpy()]
    asked = _evaluated(chips)[(chips["split"] == of).to_numpy()]
    if not len(shown) or not len(asked):
        return 0.0
    touched = np.unique(shapely.STRtree(shown).query(asked, predicate="intersects")[1])
    area = shapely.union_all(asked)
    return float(shapely.area(shapely.intersection(area, shapely.union_all(shown[touched]))) / shapely.area(area))


def _evaluated(chips: gpd.GeoDataFrame) -> Shapes:
    footprints: Shapes = chips.geometry.to_numpy().astype(object)
    if "ground" not in chips:
        return footprints
    ground = chips["ground"].to_numpy(dtype=object)
    return np.array([f if g is None else g for f, g in zip(footprints, ground, strict=True)], dtype=object)


@dataclass(frozen=True)
class LeakProof:
    """That training sees nothing of the ground on which a model is chosen and judged.

    Attributes
    ----------
    distance_m : float
        Least distance between a training chip and the ground of validation or test, metres; infinite where there is
        only one set.
    seen : float
        Share of the ground of validation and test that training chips show: 0.
    chips : dict
        Number of chips of each set.
    """

    distance_m: float
    seen: float
    chips: dict[str, int]


def assert_no_leak(chips: gpd.GeoDataFrame, *, guard_m: float = 0.0, metres_per_unit: float = 1.0) -> LeakProof:
    """Prove that no training chip shows ground of validation or test, and no validation chip ground of test.

    Parameters
    ----------
    chips : geopandas.GeoDataFrame
        As of `share_seen`, in one projected CRS, or in none.
    guard_m : float
        Least distance asked for, metres.
    metres_per_unit : float
        True metres in a unit of the CRS.

    Returns
    -------
    LeakProof

    Raises
    ------
    OutputError
        If ground is shared, or nearer than the guard; it says how much and by which chips.
    GridError
        If the CRS is in degrees.
    """
    if chips.crs is not None and chips.crs.is_geographic:
        raise GridError("distances in degrees mean nothing", what_to_do="give footprints in a projected CRS")
    evaluated = _evaluated(chips)
    footprints = chips.geometry.to_numpy().astype(object)
    split = chips["split"].to_numpy(dtype=object)
    least, seen, pair = math.inf, 0.0, (0, 0)
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        mine, others = np.flatnonzero(split == first), np.flatnonzero(split == second)
        if not len(mine) or not len(others):
            continue
        seen = max(seen, share_seen(chips, seen_in=first, of=second))
        (asked, found), distance = shapely.STRtree(footprints[mine]).query_nearest(
            evaluated[others], return_distance=True, all_matches=False
        )
        nearest = int(np.argmin(distance))
        if distance[nearest] * metres_per_unit < least:
            least = float(distance[nearest]) * metres_per_unit
            pair = (int(mine[found[nearest]]), int(others[asked[nearest]]))
    if seen > _SLIVER or least < guard_m * (1 - 1e-6):
        raise OutputError(
            f"{100 * seen:.1f} % of the ground of one set is seen by chips of another; chips {pair[0]} "
            f"({split[pair[0]]}) and {pair[1]} ({split[pair[1]]}) lie {least:.2f} m apart",
            where=f"least distance asked for: {guard_m:g} m",
            what_to_do="split by blocks or areas, and leave a guard",
            code="split-overlap",
        )
    return LeakProof(least, seen, {name: int((split == name).sum()) for name in SPLIT_NAMES})
