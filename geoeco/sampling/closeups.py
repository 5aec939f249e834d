"""Close-up photos of crowns: which crown each shows, by where it was taken, and their pixels, read with care.

Not about what is learnt from the pairs, which is `geoeco.training`'s.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geoeco.errors import GridError, InputError, ReadError
from geoeco.sampling.mosaic_crowns import lying_over

__all__ = ["closeup_path", "pair_closeups", "read_closeup"]

#: A photo of more pixels than this is not decoded: a drone's camera makes 12 to 50 million.
LARGEST_PHOTO = 120_000_000


def pair_closeups(crowns: gpd.GeoDataFrame, photos: gpd.GeoDataFrame, *, factor: float = 2.0) -> pd.DataFrame:
    """Find the crown that each close-up photo shows.

    A photo belongs to the crown that its point lies in; where it lies in none, to the nearest one that is no further
    than `factor` times the accuracy of the point. Of crowns that overlap, the one on top is photographed from above:
    the taller, or the smaller where heights are unknown.

    Parameters
    ----------
    crowns : geopandas.GeoDataFrame
        As of `geoeco.vectors.read_crowns`: ``crown_id``, polygons, a CRS. A column ``split`` is handed on to the
        photos, so that all photos of a crown are in its set.
    photos : geopandas.GeoDataFrame
        Points with a CRS, and the columns ``photo`` (path) and ``accuracy_m`` (of the point's position, metres, one
        standard deviation).
    factor : float
        How many times the accuracy a photo may lie from its crown.

    Returns
    -------
    pandas.DataFrame
        A row a photo, in their order and with their columns but the geometry: ``crown_id`` (0 none), ``distance_m``
        (0 within the crown; to the nearest crown where there is none), ``crowns_in`` and ``crowns_near`` (number of
        crowns that hold the point, and within the reach). Attributes: ``in_none``, ``in_several``, ``paired_nearest``
        (numbers of photos).

    Raises
    ------
    InputError
        If a column is missing, an accuracy is no length, or a geometry is no point.
    GridError
        If a table has no CRS.
    """
    _check_tables(crowns, photos, factor)
    # metres that are metres, whatever the CRS: Mercator's are half as long at 60 degrees
    metric = crowns.to_crs(4326).estimate_utm_crs()
    shapes = crowns.geometry.to_crs(metric).to_numpy()
    points = photos.geometry.to_crs(metric).to_numpy()
    reach = factor * photos["accuracy_m"].to_numpy(dtype=np.float64)
    tree = shapely.STRtree(shapes)
    rank = lying_over(crowns, shapely.area(shapes))
    ids = crowns["crown_id"].to_numpy(dtype=np.int32)

    inside = np.asarray(tree.query(points, predicate="intersects")).T
    near = np.asarray(tree.query(points, predicate="dwithin", distance=reach)).T
    crowns_in, crowns_near = (np.bincount(pairs[:, 0], minlength=len(points)) for pairs in (inside, near))
    crown = np.full(len(points), -1, dtype=np.int64)
    for point, candidate in inside[np.argsort(rank[inside[:, 1]], kind="stable")]:
        crown[point] = candidate
    distance = np.zeros(len(points))
    outside = np.flatnonzero(crown < 0)
    if len(outside) and len(shapes):
        (asked, found), far = tree.query_nearest(points[outside], return_distance=True, all_matches=True)
        # of crowns at the same distance the lowest id, whatever the order of the table
        for k in np.lexsort((-ids[found], asked)):
            photo = outside[asked[k]]
            distance[photo] = far[k]
            if far[k] <= reach[photo]:
                crown[photo] = found[k]
    pairs = pd.DataFrame(photos.drop(columns=photos.geometry.name)).reset_index(drop=True)
    pairs = pairs.drop(columns=["crown_id", "split"], errors="ignore")
    pairs["crown_id"] = np.where(crown >= 0, ids[crown], 0).astype(np.int32)
    pairs["distance_m"] = distance
    pairs["crowns_in"], pairs["crowns_near"] = crowns_in.astype(np.int32), crowns_near.astype(np.int32)
    if "split" in crowns.columns:
        pairs["split"] = np.where(crown >= 0, crowns["split"].to_numpy(dtype=object)[crown], "none")
    pairs.attrs = {
        "in_none": int((crown < 0).sum()),
        "in_several": int((crowns_in > 1).sum()),
        "paired_nearest": int(((crown >= 0) & (crowns_in == 0)).sum()),
    }
    return pairs


def _check_tables(crowns: gpd.GeoDataFrame, photos: gpd.GeoDataFrame, factor: float) -> None:
    for table, what, columns in ((crowns, "crowns", ("crown_id",)), (photos, "photos", ("photo", "accuracy_m"))):
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise InputError(f"the table of {what} has no column {missing[0]!r}")
        if table.crs is None:
            raise GridError(f"the table of {what} has no CRS", what_to_do="set it before pairing")
    if not crowns.shape[0]:
        raise InputError("there are no crowns to pair photos with")
    if not (photos.geometry.geom_type == "Point").all() or photos.geometry.is_empty.any():
        raise InputError("photos are at points", what_to_do="leave out rows without a position")
    accuracy = photos["accuracy_m"].to_numpy(dtype=np.float64)
    if not (np.isfinite(accuracy).all() and (accuracy >= 0).all()):
        raise InputError("accuracy_m holds values that are no length", what_to_do="give metres; 5 to 10 without RTK")
    if not (math.isfinite(factor) and factor >= 0):
        raise InputError(f"factor={factor}: give a number that is not negative")


def closeup_path(folder: str | os.PathLike[str], photo: str) -> Path:
    """Path of a photo that a table names, inside the table's folder.

    Raises
    ------
    InputError
        If the name leads out of the folder.
    ReadError
        If there is no such file.
    """
    root = Path(folder).resolve()
    try:
        path = (root / photo).resolve()
        there = path.is_file()
    # a name that no file can have: with a zero byte, or too long
    except (ValueError, OSError) as error:
        raise InputError(f"the photo {photo[:40]!r} bears no name of a file: {error}", where=str(root)) from error
    if not photo or Path(photo).is_absolute() or not path.is_relative_to(root):
        raise InputError(
            f"the photo {photo!r} does not lie in the folder of its table",
            where=str(root),
            what_to_do="give paths relative to the table, without '..' and links that lead elsewhere",
        )
    if not there:
        raise ReadError("there is no such photo", where=str(path))
    return path


def read_closeup(
    folder: str | os.PathLike[str], photo: str, *, size: int | None = None, largest: int = LARGEST_PHOTO
) -> npt.NDArray[np.uint8]:
    """Pixels of a close-up photo.

    Parameters
    ----------
    folder : path
        Of the table that names the photo.
    photo : str
        Path relative to it.
    size : int, optional
        Side of a square, pixels, that the middle of the photo is scaled to; as it is when not given.
    largest : int
        Photos of more pixels are refused before they are decoded.

    Returns
    -------
    numpy.ndarray of uint8, shape (3, y, x)
        Red, green, blue, upright by the photo's orientation tag.

    Raises
    ------
    InputError
        If the name leads out of the folder.
    ReadError
        If the photo is missing, damaged, too large, or no JPEG, PNG or TIFF.
    """
    from PIL import Image, ImageOps

    path = closeup_path(folder, photo)
    try:
        with Image.open(path, formats=("JPEG", "PNG", "TIFF")) as file:
            if file.width * file.height > largest:
                raise ReadError(
                    f"a photo of {file.width} x {file.height} pixels is not decoded",
                    where=str(path),
                    what_to_do="scale it down first, or raise `largest`",
                )
            if size is not None:
                # JPEG decodes to a fraction of its size at a fraction of the cost
                file.draft("RGB", (size, size))
            picture = ImageOps.exif_transpose(file).convert("RGB")
        if size is not None:
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(f"the photo cannot be read: {type(error).__name__}: {error}", where=str(path)) from error
    pixels: npt.NDArray[Any] = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
