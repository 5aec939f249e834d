"""COCO JSON of objects on a mosaic: masks as run lengths, and where the image lies.

For tools of computer vision. The numbers of the objects are those of the GeoPackage beside it; each image record
carries CRS and affine, so that nothing is lost on the way back (`read_coco`).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError, OutputError, ReadError
from geoeco.grid import as_crs
from geoeco.mapping.outlines import block_outlines, join_outlines, placed
from geoeco.outputs.cog import WrittenFile, local_path

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["read_coco", "write_coco"]

_IMAGE = 1
_UNKNOWN = "unknown"
#: Pixels of an object that is read, at most.
_LARGEST_MASK = 2**28


def write_coco(
    frame: gpd.GeoDataFrame,
    path: str | os.PathLike[str],
    *,
    geobox: GeoBox,
    file_name: str,
    identifier: str = "crown_id",
    category: str = "class_name",
    score: str = "score",
) -> WrittenFile:
    """Write objects on one image as COCO JSON; a file that is there is replaced in one step.

    An object's mask holds the pixels whose centre lies in it, as uncompressed run lengths down the columns
    (``counts``), which every COCO reader takes. The same table gives the same bytes.

    Parameters
    ----------
    frame : geopandas.GeoDataFrame
        Polygons in the CRS of `geobox`; they may overlap.
    path : path-like
        Local.
    geobox : odc.geo.geobox.GeoBox
        Grid of the image.
    file_name : str
        Of the image.
    identifier, category, score : str
        Columns: whole numbers, each once; texts, ``unknown`` where empty; numbers. The latter two may be missing.

    Returns
    -------
    WrittenFile

    Raises
    ------
    GridError
        If objects and grid differ in CRS.
    InputError
        If an identifier is missing or there twice.
    OutputError
        If the file cannot be written.
    """
    target = local_path(path)
    if frame.crs is None or geobox.crs is None or frame.crs != geobox.crs.proj:
        raise GridError("objects and image are not in one CRS", where=str(target), what_to_do="reproject the objects")
    if identifier not in frame or frame[identifier].dtype.kind not in "iu" or frame[identifier].duplicated().any():
        raise InputError(
            f"objects need whole numbers in {identifier!r}, each once", where=str(target), what_to_do="number them"
        )
    labels = (
        [str(one or _UNKNOWN) for one in frame[category].fillna("")] if category in frame else [_UNKNOWN] * len(frame)
    )
    categories = {name: number for number, name in enumerate(sorted(set(labels)), start=1)}
    scores = frame[score].to_numpy(np.float64) if score in frame else np.full(len(frame), np.nan)
    rows, columns = (int(n) for n in geobox.shape)
    image = {
        "id": _IMAGE,
        "file_name": file_name,
        "width": columns,
        "height": rows,
        "crs": f"EPSG:{geobox.crs.epsg}" if geobox.crs.epsg else geobox.crs.to_wkt(),
        "affine": [float(value) for value in tuple(geobox.affine)[:6]],
    }
    objects = []
    for number, label, shape, value in zip(
        frame[identifier].tolist(), labels, frame.geometry, scores.tolist(), strict=True
    ):
        counts, box, pixels = _run_lengths(shape, geobox)
        entry = {
            "id": number,
            "image_id": _IMAGE,
            "category_id": categories[label],
            "segmentation": {"size": [rows, columns], "counts": counts},
            "area": pixels,
            "bbox": box,
            "iscrowd": 0,
        }
        objects.append(entry if np.isnan(value) else entry | {"score": value})
    document = {
        "images": [image],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": objects,
    }
    content = (json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n").encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".geoeco-{os.getpid()}-{target.name}")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the COCO file could not be written: {error}", where=str(target)) from error
    return WrittenFile(target, hashlib.sha256(content).hexdigest(), len(content))


def _run_lengths(shape: Any, geobox: GeoBox) -> tuple[list[int], list[int], int]:
    """Run lengths of an object down the columns of the image, its box ``x, y, width, height``, and its pixels."""
    from rasterio.features import geometry_mask

    rows, columns = (int(n) for n in geobox.shape)
    left, top, right, bottom = shapely.bounds(placed(np.array([shape], object), ~geobox.affine))[0]
    y = slice(max(0, int(np.floor(top))), min(rows, int(np.ceil(bottom))))
    x = slice(max(0, int(np.floor(left))), min(columns, int(np.ceil(right))))
    if y.stop <= y.start or x.stop <= x.start:
        return [rows * columns], [0, 0, 0, 0], 0
    own = geobox[y, x]
    inside = geometry_mask([shape], own.shape, own.affine, invert=True)
    column, row = np.nonzero(inside.T)
    if not len(row):
        return [rows * columns], [0, 0, 0, 0], 0
    places = (column + x.start) * rows + row + y.start
    breaks = np.flatnonzero(np.diff(places) != 1)
    starts, stops = places[np.r_[0, breaks + 1]], places[np.r_[breaks, len(places) - 1]] + 1
    edges = np.r_[0, np.stack([starts, stops], axis=1).ravel(), rows * columns]
    box = [column.min() + x.start, row.min() + y.start, np.ptp(column) + 1, np.ptp(row) + 1]
    counts = np.diff(edges).tolist()
    # a mask that reaches the last pixel ends with it
    return counts if counts[-1] else counts[:-1], [int(edge) for edge in box], len(places)


def read_coco(path: str | os.PathLike[str]) -> gpd.GeoDataFrame:
    """Read the objects of `write_coco` back as polygons along the edges of their pixels.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    geopandas.GeoDataFrame
        ``crown_id, class_name, score`` (NaN where there is none) and ``geometry``; objects without a pixel are left
        out, as ``attrs["n_empty"]`` says.

    Raises
    ------
    ReadError
        If this is not such a file, or a mask does not fit its image.
    """
    import geopandas as gpd

    try:
        document = json.loads(Path(path).read_bytes())
        (image,) = document["images"]
        shape = int(image["height"]), int(image["width"])
        transform, crs = Affine(*map(float, image["affine"])), as_crs(str(image["crs"]))
        names = {int(one["id"]): str(one["name"]) for one in document["categories"]}
        objects = [
            (
                int(one["id"]),
                names[int(one["category_id"])],
                float(one.get("score", np.nan)),
                _places(one["segmentation"], shape),
            )
            for one in document["annotations"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, GridError) as error:
        raise ReadError(
            f"this is not COCO JSON of objects on one mosaic: {type(error).__name__}: {error}",
            where=str(path),
            what_to_do="give a file of geoeco.outputs.write_coco: one image with crs and affine, masks as counts",
        ) from error
    kept, outlines = [], []
    for number, name, score, places in objects:
        if not len(places):
            continue
        column, row = np.divmod(places, shape[0])
        top, left = int(row.min()), int(column.min())
        mask = np.zeros((int(row.max()) - top + 1, int(column.max()) - left + 1), np.int32)
        mask[row - top, column - left] = 1
        pieces = block_outlines(mask, (top, left))
        outlines.append(join_outlines([pieces[0]], [pieces[1]])[1][0])
        kept.append((number, name, score))
    found = gpd.GeoDataFrame(
        {
            "crown_id": np.array([one[0] for one in kept], np.int64),
            "class_name": ["" if one[1] == _UNKNOWN else one[1] for one in kept],
            "score": np.array([one[2] for one in kept], np.float64),
        },
        geometry=placed(np.array(outlines, object), transform),
        crs=crs.proj,
    )
    found.attrs["n_empty"] = len(objects) - len(kept)
    return found


def _places(segmentation: dict[str, Any], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Pixels of a mask, counted down the columns."""
    counts = np.asarray(segmentation["counts"])
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise ValueError("counts are not whole numbers")
    if list(segmentation["size"]) != list(shape) or int(counts.sum()) != shape[0] * shape[1]:
        raise ValueError(f"a mask of {int(counts.sum())} pixels on an image of {shape}")
    if int(counts[1::2].sum()) > _LARGEST_MASK:
        raise ValueError(f"a mask of {int(counts[1::2].sum())} pixels of one object")
    edges = np.cumsum(counts)
    spans = zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=False)
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in spans)])
