"""Where pixels lie: grids, blocks and halos on integer windows.

Everything is an `odc.geo.geobox.GeoBox`; this module only says how geoeco snaps one to an area of interest and cuts
it into blocks. No float windows anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import rasterio
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from rasterio.errors import RasterioError

from geoeco.errors import GridError
from geoeco.gdal import gdal_env

__all__ = [
    "Block",
    "area_geobox",
    "as_crs",
    "bbox_geometry",
    "blocks",
    "pad",
    "raster_geobox",
    "snap_geobox",
    "utm_crs",
]

#: Sentinel-2 bands come at 10, 20 and 60 m: a grid whose origin is a multiple of this lines up with all of them.
SENTINEL2_SNAP_M = 60.0


@dataclass(frozen=True)
class Block:
    """One block of a grid: the unit of work, of storage, of retry and of resume.

    Attributes
    ----------
    id : str
        Stable name, ``r<row>c<col>`` in blocks from the top left.
    row, col : int
        Block indices.
    y, x : tuple of int
        First (inclusive) and last (exclusive) pixel row and column in the parent grid.
    geobox : odc.geo.geobox.GeoBox
        The block's own grid.
    """

    id: str
    row: int
    col: int
    y: tuple[int, int]
    x: tuple[int, int]
    geobox: GeoBox

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices in the parent grid."""
        return slice(*self.y), slice(*self.x)


def as_crs(crs: str | int | CRS) -> CRS:
    """A CRS from an EPSG code, WKT or PROJ string.

    Raises
    ------
    GridError
        If the text is no CRS.
    """
    if isinstance(crs, CRS):
        return crs
    try:
        return CRS(f"EPSG:{crs}" if isinstance(crs, int) else crs)
    except Exception as error:
        raise GridError(
            f"{crs!r} is not a coordinate reference system", what_to_do="give an EPSG code such as EPSG:32631, or WKT"
        ) from error


def utm_crs(lon: float, lat: float) -> CRS:
    """UTM zone (WGS 84) of a point, with the exceptions of Norway and Svalbard.

    Parameters
    ----------
    lon, lat : float
        Degrees; longitudes are taken modulo 360.
    """
    if not (math.isfinite(lon) and math.isfinite(lat)) or abs(lat) > 90:
        raise GridError(f"({lon}, {lat}) is not a longitude and latitude")
    lon = (lon + 180.0) % 360.0 - 180.0
    zone = min(int((lon + 180.0) // 6.0) + 1, 60)
    if 56 <= lat < 64 and 3 <= lon < 12:
        zone = 32
    elif 72 <= lat < 84 and 0 <= lon < 42:
        zone = 31 if lon < 9 else 33 if lon < 21 else 35 if lon < 33 else 37
    return CRS(f"EPSG:{(32600 if lat >= 0 else 32700) + zone}")


def bbox_geometry(bbox: tuple[float, float, float, float]) -> Geometry:
    """Longitude/latitude box ``(west, south, east, north)`` as a geometry.

    A box with ``west > east`` crosses the antimeridian, as in GeoJSON (RFC 7946, section 5.2); its eastern edge is
    returned beyond 180 degrees so that the geometry stays in one piece.
    """
    west, south, east, north = (float(v) for v in bbox)
    if not all(math.isfinite(v) for v in (west, south, east, north)):
        raise GridError(f"bounding box {bbox} holds a value that is not finite")
    if not (-90 <= south < north <= 90):
        raise GridError(
            f"bounding box {bbox}: south must be below north, both within -90..90",
            what_to_do="give west, south, east, north in degrees",
        )
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        raise GridError(
            f"bounding box {bbox}: longitudes must be within -180..180",
            what_to_do="give west, south, east, north in degrees; west > east crosses the antimeridian",
        )
    if west == east:
        raise GridError(f"bounding box {bbox} has no width")
    return box(west, south, east + 360.0 if west > east else east, north, "EPSG:4326")


def snap_geobox(
    bounds: tuple[float, float, float, float],
    crs: str | int | CRS,
    resolution: float,
    snap: float | None = None,
) -> GeoBox:
    """Smallest north-up grid that covers `bounds` with edges on whole multiples of `snap`.

    Parameters
    ----------
    bounds : tuple of float
        left, bottom, right, top in the units of `crs`.
    crs : str, int or CRS
    resolution : float
        Pixel size in the units of `crs`.
    snap : float, optional
        The origin is a whole multiple of this; by default 60 for projected grids whose resolution divides 60, so
        that 10, 20 and 60 m bands line up, else `resolution`.
    """
    crs = as_crs(crs)
    if not (math.isfinite(resolution) and resolution > 0):
        raise GridError(f"resolution must be a positive number, not {resolution}")
    if snap is None:
        ratio = SENTINEL2_SNAP_M / resolution
        snap = SENTINEL2_SNAP_M if crs.projected and math.isclose(ratio, round(ratio)) else resolution
    left, bottom, right, top = bounds
    if not all(math.isfinite(v) for v in bounds) or right <= left or top <= bottom:
        raise GridError(f"bounds {tuple(bounds)} hold no area in {crs}")
    tiny = 1e-6
    x0 = math.floor(left / snap + tiny) * snap
    y1 = math.ceil(top / snap - tiny) * snap
    x1 = math.ceil(right / snap - tiny) * snap
    y0 = math.floor(bottom / snap + tiny) * snap
    shape = (round((y1 - y0) / resolution), round((x1 - x0) / resolution))
    return GeoBox(shape, Affine(resolution, 0.0, x0, 0.0, -resolution, y1), crs)


def area_geobox(
    area: Geometry, *, crs: str | int | CRS = "utm", resolution: float = 10.0, snap: float | None = None
) -> GeoBox:
    """Grid that covers an area of interest.

    Parameters
    ----------
    area : odc.geo.geom.Geometry
        With its CRS; longitudes beyond 180 are allowed for areas across the antimeridian.
    crs : str, int or CRS
        ``"utm"`` takes the UTM zone of the area's centre, for the whole area, also where it reaches into a
        neighbouring zone (scale error below 0.2 % one zone away at the equator); anything else is used as it is.
    resolution, snap : float
        As in `snap_geobox`.
    """
    if area.crs is None:
        raise GridError("the area of interest has no CRS", what_to_do="give its CRS")
    if area.is_empty:
        raise GridError("the area of interest is empty")
    if isinstance(crs, str) and crs.lower() == "utm":
        lonlat = area if area.crs.geographic else area.to_crs("EPSG:4326")
        centre = lonlat.boundingbox
        target = utm_crs((centre.left + centre.right) / 2, (centre.bottom + centre.top) / 2)
    else:
        target = as_crs(crs)
    span = area.boundingbox
    step = max(span.span_x, span.span_y) / 64
    projected: BoundingBox = area.to_crs(target, resolution=step).boundingbox if area.crs != target else span
    return snap_geobox((projected.left, projected.bottom, projected.right, projected.top), target, resolution, snap)


def raster_geobox(path: str, resolution: float | None = None) -> GeoBox:
    """Grid of the pixels of a raster file, or a coarser one from the same upper-left corner.

    Parameters
    ----------
    path : str
        GeoTIFF or VRT. Its pixels are not read.
    resolution : float, optional
        Pixel size in the units of its CRS. Within 1 % of a whole multiple of the file's, it is that multiple.

    Raises
    ------
    GridError
        If there is no such file, or it has no CRS, is rotated, or has pixels that are not square or run upwards.
    """
    try:
        driver = "VRT" if path.lower().endswith(".vrt") else "GTiff"
        with gdal_env(), rasterio.open(path, driver=driver) as file:
            shape, transform, crs = (file.height, file.width), file.transform, file.crs
    except (RasterioError, OSError) as error:
        raise GridError(
            f"the raster that the grid is like cannot be read: {error}",
            where=path,
            what_to_do="name a GeoTIFF, or a named table of the recipe's inputs that is one",
        ) from error
    if crs is None or transform.is_identity:
        raise GridError(
            "the raster that the grid is like has no CRS or no place",
            where=path,
            what_to_do="assign them (gdal_edit.py -a_srs ... -a_ullr ...)",
        )
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise GridError(
            "the raster that the grid is like is rotated or not north-up",
            where=path,
            what_to_do="warp it to an upright grid first (gdalwarp)",
        )
    if not math.isclose(transform.a, -transform.e, rel_tol=0.01):
        raise GridError(
            f"the raster that the grid is like has pixels of {transform.a:g} x {-transform.e:g}, which are not square",
            where=path,
            what_to_do="warp it to square pixels first (gdalwarp -tr)",
        )
    epsg = crs.to_epsg()
    ratio = 1.0 if resolution is None else resolution / float(transform.a)
    if abs(ratio - round(ratio)) <= 0.01 * ratio and round(ratio):
        ratio = float(round(ratio))
    rows, cols = (math.ceil(size / ratio - 1e-9) for size in shape)
    return GeoBox((rows, cols), transform * Affine.scale(ratio), as_crs(crs.to_wkt() if epsg is None else epsg))


def blocks(geobox: GeoBox, size: int) -> Iterator[Block]:
    """Cut a grid into blocks of `size` pixels, from the top left; the last row and column may be smaller."""
    if size < 1:
        raise GridError(f"block size must be at least 1 pixel, not {size}")
    rows, cols = (int(n) for n in geobox.shape)
    for row, top in enumerate(range(0, rows, size)):
        for col, left in enumerate(range(0, cols, size)):
            y, x = (top, min(top + size, rows)), (left, min(left + size, cols))
            yield Block(f"r{row:04d}c{col:04d}", row, col, y, x, geobox[slice(*y), slice(*x)])


def pad(geobox: GeoBox, halo: int) -> GeoBox:
    """The grid grown by `halo` pixels on every side."""
    return geobox.pad(halo, halo)
