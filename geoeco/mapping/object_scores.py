"""How well found objects match true ones on the map: the relative F1 of SelvaBox.

Scored after the tiles have been joined, on the whole raster, so that an object that several tiles saw counts once.
Not for pixels (`geoeco.training.confusion`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from geoeco.errors import GridError, InputError

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["SIZE_CLASSES_M2", "STRICT", "ObjectScores", "relative_f1"]

#: IoU thresholds 0.5, 0.55, ... 0.95.
STRICT: tuple[float, ...] = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
#: Limits of the size classes of crowns, square metres (uav.md 4.1 after SelvaBox).
SIZE_CLASSES_M2: tuple[float, ...] = (9.0, 25.0, 49.0, 100.0)
#: Part of an object that must lie in the area of interest for it to count.
_IN_AREA = 0.4


@dataclass(frozen=True)
class ObjectScores:
    """Scores of objects.

    Attributes
    ----------
    f1_75 : float
        Harmonic mean of precision and recall at an IoU of 0.75; NaN where there is neither a true nor a found object.
    f1_50_95 : float
        Mean of the F1 at 0.5, 0.55, ... 0.95.
    table : pandas.DataFrame
        A row for each IoU threshold: ``iou, matched, found, true, precision, recall, f1``.
    by_size : pandas.DataFrame
        At 0.75, a row for each size class of the true objects: ``from_m2, to_m2, true, matched, recall``, and of the
        found ones ``found, correct, precision``, and ``f1``.
    """

    f1_75: float
    f1_50_95: float
    table: pd.DataFrame
    by_size: pd.DataFrame


def relative_f1(
    found: gpd.GeoDataFrame,
    true: gpd.GeoDataFrame,
    *,
    area: Any = None,
    score: str = "score",
    sizes_m2: Sequence[float] = SIZE_CLASSES_M2,
) -> ObjectScores:
    """Match found objects to true ones, one to one, and score the matching (RF1).

    Found objects are taken from the highest score down; each is matched to the true object, not matched yet, that it
    overlaps best, if their intersection over union reaches the threshold.

    Parameters
    ----------
    found, true : geopandas.GeoDataFrame
        Valid polygons in one projected CRS.
    area : shapely geometry, optional
        Area of interest in that CRS. Objects of which less than 40 % lies in it count in neither table.
    score : str
        Column of `found`; when it has none, objects are taken from the largest down.
    sizes_m2 : sequence of float
        Limits between the size classes, ascending, in the square of the CRS's units.

    Returns
    -------
    ObjectScores

    Raises
    ------
    GridError
        If the tables differ in CRS, or have none.
    InputError
        If a polygon is not valid or empty, or a score is missing.

    References
    ----------
    SelvaBox (ICLR 2026), the metric RF1: greedy matching on the raster after the tiles were joined.
    """
    import pandas as pd

    if found.crs is None or found.crs != true.crs:
        raise GridError("found and true objects are not in one CRS", what_to_do="reproject one of them with to_crs")
    found, true = _inside(found, area), _inside(true, area)
    ours, theirs = found.geometry.to_numpy(), true.geometry.to_numpy()
    order = _order(found, score)
    best = _overlaps(ours, theirs)
    rows = []
    at_75 = (np.zeros(len(ours), bool), np.zeros(len(theirs), bool))
    for threshold in STRICT:
        matched = _match(order, best, threshold, len(theirs))
        hits = int((matched >= 0).sum())
        if threshold == 0.75:
            at_75[0][:] = matched >= 0
            at_75[1][matched[matched >= 0]] = True
        rows.append((threshold, hits, len(ours), len(theirs), *_rates(hits, hits, len(ours), len(theirs))))
    table = pd.DataFrame(rows, columns=["iou", "matched", "found", "true", "precision", "recall", "f1"])
    limits = [0.0, *sizes_m2, np.inf]
    size_of = [np.digitize(shapely.area(shapes), limits[1:-1]) for shapes in (ours, theirs)]
    by_size = []
    for size, (low, high) in enumerate(itertools.pairwise(limits)):
        of_found, of_true = size_of[0] == size, size_of[1] == size
        correct, matched_true = int((at_75[0] & of_found).sum()), int((at_75[1] & of_true).sum())
        precision, recall, f1 = _rates(correct, matched_true, int(of_found.sum()), int(of_true.sum()))
        row = (low, high, int(of_true.sum()), matched_true, recall, int(of_found.sum()), correct, precision, f1)
        by_size.append(row)
    columns = ["from_m2", "to_m2", "true", "matched", "recall", "found", "correct", "precision", "f1"]
    at_iou = table.set_index("iou")["f1"]
    return ObjectScores(float(at_iou[0.75]), float(at_iou.mean()), table, pd.DataFrame(by_size, columns=columns))


def _inside(frame: gpd.GeoDataFrame, area: Any) -> gpd.GeoDataFrame:
    shapes = frame.geometry.to_numpy()
    if len(shapes) and not (shapely.is_valid(shapes) & (shapely.area(shapes) > 0)).all():
        raise InputError("a polygon is not valid or empty", what_to_do="repair them first (geoeco.vectors.read_crowns)")
    if area is None:
        return frame
    return frame[shapely.area(shapely.intersection(shapes, area)) >= _IN_AREA * shapely.area(shapes)]


def _order(found: gpd.GeoDataFrame, score: str) -> npt.NDArray[np.int64]:
    shapes = found.geometry.to_numpy()
    if score in found and found[score].isna().any():
        raise InputError(
            f"not every found object has a {score!r}", what_to_do="give each a score, or leave the column out"
        )
    scores = found[score].to_numpy(np.float64) if score in found else np.zeros(len(found))
    _, tie = np.unique(shapely.to_wkb(shapely.normalize(shapes)), return_inverse=True)
    return np.lexsort((tie, -shapely.area(shapes), -scores)).astype(np.int64)


def _overlaps(ours: npt.NDArray[np.object_], theirs: npt.NDArray[np.object_]) -> dict[int, list[tuple[float, int]]]:
    """For each found object the true ones it overlaps, with their intersection over union, the best first."""
    one, other = shapely.STRtree(theirs).query(ours, predicate="intersects")
    common = shapely.area(shapely.intersection(ours[one], theirs[other]))
    iou = common / (shapely.area(ours[one]) + shapely.area(theirs[other]) - common)
    found: dict[int, list[tuple[float, int]]] = {}
    for at in np.lexsort((other, -iou)).tolist():
        found.setdefault(int(one[at]), []).append((float(iou[at]), int(other[at])))
    return found


def _match(
    order: npt.NDArray[np.int64], best: dict[int, list[tuple[float, int]]], threshold: float, count: int
) -> npt.NDArray[np.int64]:
    """True object of each found one, -1 for none."""
    taken = np.zeros(count, bool)
    matched = np.full(len(order), -1, np.int64)
    for at in order.tolist():
        for iou, other in best.get(at, ()):
            # an IoU that is 0.75 on paper may be a last bit less
            if iou < threshold - 1e-9:
                break
            if not taken[other]:
                taken[other], matched[at] = True, other
                break
    return matched


def _rates(correct: int, matched: int, found: int, true: int) -> tuple[float, float, float]:
    """Precision, recall, and their harmonic mean."""
    precision = correct / found if found else np.nan
    recall = matched / true if true else np.nan
    if not found and not true:
        return precision, recall, np.nan
    # one of them without objects: nothing can be right
    both = np.nan_to_num(precision) + np.nan_to_num(recall)
    return precision, recall, 2 * np.nan_to_num(precision) * np.nan_to_num(recall) / both if both else 0.0
