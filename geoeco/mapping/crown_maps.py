"""Species of crowns on the map: what a model says of each crown, with its doubt, its height and its ground.

The crowns are given; finding them is not done here. Maps of pixels are `geoeco.mapping.predict`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
import xarray as xr
from affine import Affine
from pyproj import Geod
from rasterio.features import geometry_mask
from scipy.ndimage import binary_dilation

from geoeco.cubes.shards import intact_shards
from geoeco.errors import GridError, InputError
from geoeco.sampling import open_uav_chips
from geoeco.sensors.height_models import heights_within
from geoeco.sensors.orthomosaic import Orthomosaic, as_orthomosaic
from geoeco.training import ModelBundle, crown_table, embed_crowns

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["classify_crowns"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def classify_crowns(
    store: str | Path,
    bundle: ModelBundle,
    crowns: gpd.GeoDataFrame,
    *,
    mosaic: Orthomosaic | str | Path | None = None,
    batch: int = 64,
    min_height_m: float | None = None,
) -> gpd.GeoDataFrame:
    """Tell the species of crowns from their chips.

    Parameters
    ----------
    store : str or Path
        Store of crown chips in the model's bands and resolution.
    bundle : ModelBundle
        As of `geoeco.training.train_crowns`.
    crowns : geopandas.GeoDataFrame
        The crowns that the chips were cut round: ``crown_id`` and polygons with a CRS.
    mosaic : Orthomosaic or path, optional
        Where the chips show nothing beside their crown: the imagery that tells whether a crown touches its edge.
    batch : int
        Crowns at a time.
    min_height_m : float, optional
        Crowns whose height is known and smaller are left out.

    Returns
    -------
    geopandas.GeoDataFrame
        A row a crown with a chip, in the order of `crowns`, in the CRS of the chips:

        - ``crown_id`` int32, ``class`` (name), ``score`` (probability of it), ``entropy`` (of all probabilities, over
          the logarithm of the number of classes: 0 sure, 1 no idea); probabilities are means over the chips of a crown
          that has several;
        - where the model knows its area of applicability, ``di`` and ``aoa`` (1 inside, 0 outside);
        - ``height_p95`` metres, of the visible part of the crown, NaN where no height is known; the largest of several
          chips;
        - ``area_m2`` on the ellipsoid;
        - ``edge``, whether the crown touches ground without imagery; left out where chips show nothing beside their
          crown and no mosaic is given;
        - ``labelled`` (the species it is known to be, or empty), ``split``, ``source`` and ``date`` of its last chip.

        Attributes: ``without_chip`` and ``too_low``, numbers of crowns left out.

    Raises
    ------
    InputError
        If the model is for another task, bands or resolution, there are no crowns with a chip, or an id is named twice.
    GridError
        If crowns or chips have no CRS.
    """
    if bundle.task != "classification":
        raise InputError(
            f"the model is for {bundle.task}, not for classes", where=f"model {bundle.name}", code="bundle"
        )
    chips = open_uav_chips(str(store))
    table = crown_table(chips)
    placed = _placed(crowns, chips, str(store))
    known = table[table["crown_id"].isin(placed["crown_id"])]
    if not len(known):
        raise InputError("none of the crowns has a chip", where=str(store), code="no-locations")
    samples = [int(sample) for sample in known["sample"]]
    found = embed_crowns(bundle, store, samples=samples, batch=batch)
    assert found.probability is not None, "a classification has probabilities"
    ids, of_crown = np.unique(known["crown_id"].to_numpy(), return_inverse=True)
    count = np.bincount(of_crown)[:, None]
    probability, features = (_sums(values, of_crown) / count for values in (found.probability, found.features))
    shapes = placed.set_index("crown_id").geometry.loc[ids]
    with intact_shards(str(store)):
        height = _heights(chips, samples, of_crown, shapes.to_numpy(), len(ids))
    last = known.sort_values(["date", "sample"]).drop_duplicates("crown_id", keep="last").set_index("crown_id").loc[ids]
    columns: dict[str, Any] = {
        "crown_id": ids.astype(np.int32),
        "class": np.array(bundle.classes, dtype=object)[probability.argmax(axis=1)],
        "score": probability.max(axis=1).astype(np.float32),
        "entropy": _entropy(probability),
    }
    if bundle.applicability is not None:
        di, inside = bundle.applicability.predict(features.astype(np.float32))
        columns |= {"di": di.astype(np.float32), "aoa": inside.astype(np.int16)}
    columns |= {"height_p95": height.astype(np.float32), "area_m2": _areas(shapes)}
    if mosaic is not None:
        columns["edge"] = _edges_of_mosaic(as_orthomosaic(mosaic), shapes)
    elif chips.attrs.get("context") != "zero":
        with intact_shards(str(store)):
            columns["edge"] = _edges_of_chips(chips, samples, of_crown, shapes.to_numpy(), len(ids))
    columns |= {
        "labelled": last["class_name"].to_numpy(dtype=object),
        "split": last["split"].to_numpy(dtype=object),
        "source": last["source"].to_numpy(dtype=object),
        "date": last["date"].to_numpy(dtype=object),
    }
    made = shapes.reset_index(drop=True).to_frame("geometry").assign(**columns)
    made = made[[*columns, "geometry"]]
    low = np.zeros(len(made), bool) if min_height_m is None else height < min_height_m
    order = {crown: position for position, crown in enumerate(placed["crown_id"].tolist())}
    kept = made[~low].sort_values("crown_id", key=lambda ids: ids.map(order)).reset_index(drop=True)
    kept.attrs = {"without_chip": len(placed) - len(ids), "too_low": int(low.sum())}
    return kept


def _placed(crowns: gpd.GeoDataFrame, chips: xr.Dataset, where: str) -> gpd.GeoDataFrame:
    """The crowns in the CRS of the chips."""
    if "crown_id" not in crowns.columns:
        raise InputError("the crowns have no column crown_id", where=where, what_to_do="read them with read_crowns")
    if crowns["crown_id"].duplicated().any():
        raise InputError(f"the crown {crowns.loc[crowns['crown_id'].duplicated(), 'crown_id'].iloc[0]} is named twice")
    wkt = str(chips.attrs.get("crs_wkt", ""))
    if crowns.crs is None or not wkt:
        raise GridError(
            "crowns or chips have no CRS, or the chips several",
            where=where,
            what_to_do="map the crowns of one store on one CRS at a time",
        )
    return crowns.to_crs(wkt)


def _sums(values: npt.NDArray[np.float32], group: npt.NDArray[np.int64]) -> Floats:
    total = np.zeros((int(group.max()) + 1, values.shape[1]))
    np.add.at(total, group, values)
    return total


def _entropy(probability: Floats) -> npt.NDArray[np.float32]:
    """Entropy ``(crown,)`` of probabilities ``(crown, class)`` over the logarithm of the number of classes."""
    logarithm = np.log(probability, out=np.zeros_like(probability), where=probability > 0)
    found = -(probability * logarithm).sum(axis=1) / np.log(probability.shape[1])
    return np.asarray(found.clip(0, 1), dtype=np.float32)


def _areas(shapes: gpd.GeoSeries) -> Floats:
    """Areas on the ellipsoid, square metres."""
    geod = Geod(ellps="WGS84")
    return np.array([abs(geod.geometry_area_perimeter(shape)[0]) for shape in shapes.to_crs(4326)])


def _heights(
    chips: xr.Dataset,
    samples: list[int],
    of_crown: npt.NDArray[np.int64],
    shapes: npt.NDArray[np.object_],
    count: int,
) -> Floats:
    """Height of the visible part of each crown."""
    height = np.full(count, np.nan)
    if "chm" not in chips:
        return height
    corners = chips["affine"].values
    for sample, crown in zip(samples, of_crown, strict=True):
        chip = chips.isel(sample=sample)
        values, valid = chip["chm"].values, chip["valid"].values
        own = (
            chip["instance"].values == int(chip["crown_id"])
            if "instance" in chip
            else geometry_mask([shapes[crown]], valid.shape, Affine(*corners[sample]), invert=True)
        )
        height[crown] = np.fmax(height[crown], heights_within(values, own & valid).top)
    return height


def _edges_of_chips(
    chips: xr.Dataset,
    samples: list[int],
    of_crown: npt.NDArray[np.int64],
    shapes: npt.NDArray[np.object_],
    count: int,
) -> Bools:
    """Whether each crown touches ground that is not valid in one of its chips."""
    edge, corners = np.zeros(count, bool), chips["affine"].values
    for sample, crown in zip(samples, of_crown, strict=True):
        edge[crown] |= _touches(shapes[crown], chips["valid"].isel(sample=sample).values, Affine(*corners[sample]))
    return edge


def _edges_of_mosaic(mosaic: Orthomosaic, shapes: gpd.GeoSeries) -> Bools:
    """Whether each crown touches ground that is not valid in a mosaic."""
    transform, crs = mosaic.geobox.transform, mosaic.geobox.crs
    if crs is None:
        raise GridError("the mosaic lies on no map", where=mosaic.path, what_to_do="give one with a CRS")
    edge = np.zeros(len(shapes), bool)
    for position, shape in enumerate(shapes.to_crs(crs.proj)):
        left, bottom, right, top = shape.bounds
        columns = int(np.floor((left - transform.c) / transform.a)), int(np.ceil((right - transform.c) / transform.a))
        rows = int(np.floor((top - transform.f) / transform.e)), int(np.ceil((bottom - transform.f) / transform.e))
        # a pixel that is touched at its border, the one beside it, and one more: the end of the window is no edge
        y, x = (rows[0] - 3, rows[1] + 3), (columns[0] - 3, columns[1] + 3)
        _, valid = mosaic.read(y, x)
        edge[position] = _touches(shape, valid, transform @ Affine.translation(x[0], y[0]))
    return edge


def _touches(shape: shapely.Geometry, valid: Bools, affine: Affine) -> bool:
    """Whether a shape, or a pixel beside it, is not valid or beyond the window."""
    own = geometry_mask([shape], valid.shape, affine, all_touched=True, invert=True)
    around = np.pad(valid, 1, constant_values=False)
    return bool((binary_dilation(np.pad(own, 1)) & ~around).any())
