"""Polygons of a class map: a row for each region, with its class, area and score.

Not for objects that a detector found one by one (`geoeco.mapping.objects`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import odc.geo.xr  # noqa: F401  (registers .odc)
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError
from geoeco.mapping.outlines import block_outlines, fill_holes, join_outlines, placed, simplify_outlines
from geoeco.mapping.regions import Connectivity, Parts, Regions, Small, join_parts, label_block
from geoeco.sensors.mosaic_grids import geodesic_size
from geoeco.variables import class_names, kind_of, nodata_for

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = [
    "class_nodata",
    "class_polygons",
    "exact_grid",
    "ground_pixel",
    "minimum_pixels",
    "polygon_table",
]

#: The ground differs from what the CRS says by so much before areas are corrected for it.
_TOLERANCE = 0.01


def class_polygons(
    classes: xr.DataArray,
    score: xr.DataArray | None = None,
    *,
    connectivity: Connectivity = 4,
    min_area_m2: float = 0.0,
    small: Small = "merge",
    fill_holes_m2: float = 0.0,
    simplify_m: float = 0.0,
    block: int = 2048,
) -> gpd.GeoDataFrame:
    """Polygons of the regions of a class map.

    The polygons follow the edges of the pixels and hold exactly the pixels of their region, unless they are simplified.
    They do not depend on `block`.

    Parameters
    ----------
    classes : xarray.DataArray, (y, x)
        ``kind="class"``, whole numbers, with a projected CRS; names from ``flag_values`` and ``flag_meanings``.
    score : xarray.DataArray, (y, x), optional
        0..1, such as the probability of the class; NaN where there is none.
    connectivity : {4, 8}
        Whether pixels of a class that touch in a corner alone are one region; with 8 a region may be a multipolygon.
    min_area_m2 : float
        Minimum mapping unit: smaller regions go up in the neighbour with the longest common border, or are dropped. A
        small region without neighbours is dropped.
    small : {"merge", "drop"}
    fill_holes_m2 : float
        Holes below this area are filled; what lies in them keeps its own polygon.
    simplify_m : float
        Make the borders between polygons simpler, by about so many metres: a corner goes where the triangle with those
        beside it is smaller than the square of it. Neighbours keep sharing their border, and what has no class keeps
        its own to the pixel: the total area stays. Stairs of steps n pixels long go at the root of n / 2 pixels.
    block : int
        Pixels along the side of the blocks that the map is worked through in.

    Returns
    -------
    geopandas.GeoDataFrame
        In the order of the regions' first pixels: ``region`` from 1; ``class``, the code; ``name``; ``area_m2`` and
        ``perimeter_m`` on the ground; ``class_fraction``, part of the region's pixels that have its class (less than
        1 where smaller regions went up in it); ``score``, mean over these; ``geometry``. Areas and perimeters are those
        of the polygons as they are; where they were simplified, ``attrs["area_moved_m2"]`` says how much ground has
        another polygon than before.

    Raises
    ------
    GridError
        If the map has no CRS or one in degrees.
    InputError
        If the map is not one of classes, or a score is not within 0..1.
    """
    geobox = exact_grid(classes)
    nodata = class_nodata(classes)
    pixel_m2, _ = ground_pixel(geobox)
    rows, columns = (int(n) for n in geobox.shape)
    corners = [(y, x) for y in range(0, rows, block) for x in range(0, columns, block)]

    def labelled(y: int, x: int) -> tuple[npt.NDArray[np.int32], Parts]:
        window = {"y": slice(y, y + block), "x": slice(x, x + block)}
        values = None if score is None else score.isel(window).to_numpy()
        return label_block(classes.isel(window).to_numpy(), nodata, values, origin=(y, x), width=columns)

    regions = join_parts(
        [labelled(*corner)[1] for corner in corners],
        connectivity=connectivity,
        min_pixels=minimum_pixels(min_area_m2, pixel_m2),
        small=small,
    )
    pieces = [
        block_outlines(lookup[labelled(*corner)[0]], corner)
        for corner, lookup in zip(corners, regions.lookup, strict=True)
    ]
    _, outlines = join_outlines([numbers for numbers, _ in pieces], [shapes for _, shapes in pieces])
    return polygon_table(
        regions, outlines, geobox, class_names(classes), fill_holes_m2=fill_holes_m2, simplify_m=simplify_m
    )


def class_nodata(classes: xr.DataArray) -> int:
    """Code of pixels without a class.

    Raises
    ------
    InputError
        If this is not a class map of whole numbers ``(y, x)``.
    """
    if kind_of(classes) != "class" or classes.dtype.kind not in "iu" or classes.dims != ("y", "x"):
        raise InputError(
            f"variable {classes.name!r} of {classes.dtype} {classes.dims} is not a class map",
            what_to_do="give whole numbers (y, x) of kind 'class'",
        )
    return int(classes.attrs.get("_FillValue", nodata_for(classes.dtype)))


def exact_grid(raster: xr.DataArray) -> GeoBox:
    """Grid of a raster, with the transform that it states: one taken from its coordinates is off by their rounding.

    Raises
    ------
    GridError
        If it has none.
    """
    geobox: GeoBox | None = raster.odc.geobox
    if geobox is None:
        raise GridError(
            f"the raster {raster.name!r} lies on no grid", what_to_do="give it coordinates y and x and a CRS"
        )
    stated = raster.coords["spatial_ref"].attrs.get("GeoTransform", "") if "spatial_ref" in raster.coords else ""
    if len(stated.split()) != 6:
        return geobox
    transform = Affine.from_gdal(*map(float, stated.split()))
    # after a cut, what is stated is that of the whole
    apart = np.abs(np.subtract(tuple(transform)[:6], tuple(geobox.affine)[:6])).max()
    return GeoBox(geobox.shape, transform, geobox.crs) if apart < 1e-3 * abs(transform.a) else geobox


def ground_pixel(geobox: GeoBox) -> tuple[float, float]:
    """Area (square metres) and side (metres) of a pixel on the ground.

    As the CRS says, unless that is off by more than a hundredth at the centre of the grid (Mercator, for example):
    then as measured there.

    Raises
    ------
    GridError
        If there is no CRS, or one in degrees.
    """
    if geobox.crs is None or not geobox.crs.projected:
        raise GridError(
            "areas need a map with a CRS in metres",
            what_to_do="write the map's CRS, or reproject the mosaic before it is mapped",
        )
    unit = geobox.crs.proj.axis_info[0].unit_conversion_factor
    area = abs(float(geobox.affine.determinant)) * unit**2
    width, height = geodesic_size(geobox, "the grid of the map")
    true = width * height
    if abs(math.sqrt(true / area) - 1) > _TOLERANCE:
        area = true
    return area, math.sqrt(area)


def minimum_pixels(area_m2: float, pixel_m2: float) -> float:
    """Pixels of a minimum mapping unit; an area of a whole number of pixels is just enough."""
    return area_m2 / pixel_m2 * (1 - 1e-9)


def polygon_table(
    regions: Regions,
    outlines: npt.NDArray[np.object_],
    geobox: GeoBox,
    names: Mapping[int, str],
    *,
    fill_holes_m2: float = 0.0,
    simplify_m: float = 0.0,
    classes: Sequence[int] | None = None,
) -> gpd.GeoDataFrame:
    """The table of `class_polygons` from regions and their outlines in columns and rows.

    Parameters
    ----------
    regions : Regions
    outlines : numpy.ndarray, (region,)
        As `join_outlines` gives them.
    geobox : odc.geo.geobox.GeoBox
    names : mapping of int to str
        Name of each class.
    fill_holes_m2, simplify_m : float
    classes : sequence of int, optional
        Keep the regions of these classes only.
    """
    import geopandas as gpd

    pixel_m2, side = ground_pixel(geobox)
    assert geobox.crs is not None, "ground_pixel has checked it"
    kept = np.arange(len(regions)) if classes is None else np.flatnonzero(np.isin(regions.code, classes))
    simpler = simplify_outlines(outlines, simplify_m / side)
    moved = float(np.abs(shapely.area(simpler) - shapely.area(outlines)).sum()) / 2 * pixel_m2
    shapes = fill_holes(simpler[kept], minimum_pixels(fill_holes_m2, pixel_m2))
    table = gpd.GeoDataFrame(
        {
            "region": (kept + 1).astype(np.int32),
            "class": regions.code[kept].astype(np.int32),
            "name": [names.get(code, "") for code in regions.code[kept].tolist()],
            "area_m2": shapely.area(shapes) * pixel_m2,
            "perimeter_m": shapely.length(shapes) * side,
            "class_fraction": regions.own[kept] / regions.pixels[kept],
            "score": regions.score[kept],
        },
        geometry=placed(shapes, geobox.affine),
        crs=geobox.crs.proj,
    )
    if simplify_m > 0:
        table.attrs["area_moved_m2"] = moved
    return table
