"""A small world of scenes for the tests of this room: files, items, and what is in them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pystac
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

RESOLUTION = {
    "B02": 10,
    "B03": 10,
    "B04": 10,
    "B08": 10,
    "B05": 20,
    "B8A": 20,
    "B11": 20,
    "B12": 20,
    "B01": 60,
    "SCL": 20,
}


def write_tif(
    path: Path, pixels: np.ndarray, *, resolution: float, origin: tuple[float, float], crs: str, block: int = 64
):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "count": 1,
        "dtype": pixels.dtype,
        "crs": crs,
        "transform": Affine(resolution, 0, origin[0], 0, -resolution, origin[1]),
        "nodata": 0,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
        "predictor": 2,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels, 1)
    return path


def scene(
    folder: Path,
    name: str,
    when: str,
    bands: dict[str, np.ndarray],
    *,
    origin: tuple[float, float],
    crs: str = "EPSG:32631",
    baseline: str = "05.00",
    lonlat: tuple[float, float] = (3.0, 45.0),
    **properties,
) -> pystac.Item:
    """An item with one file a band; arrays are given at each band's own resolution."""
    lon, lat = lonlat
    box = [lon - 0.05, lat - 0.05, lon + 0.05, lat + 0.05]
    west, south, east, north = box
    item = pystac.Item(
        id=name,
        geometry={
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        bbox=box,
        datetime=dt.datetime.fromisoformat(when).replace(tzinfo=dt.UTC),
        properties={"proj:code": crs, "s2:processing_baseline": baseline, **properties},
    )
    for band, pixels in bands.items():
        path = write_tif(folder / name / f"{band}.tif", pixels, resolution=RESOLUTION[band], origin=origin, crs=crs)
        item.add_asset(band, pystac.Asset(str(path), media_type=pystac.MediaType.COG, roles=["data"]))
    return item


def random_scene(
    folder: Path, name: str, when: str, seed: int, *, size: int = 120, bands=("B04", "B8A"), cloudy=0.2, **more
):
    """A scene of noise with blobs of cloud and an edge without data; `size` in pixels of 20 m."""
    rng = np.random.default_rng(seed)
    scl = rng.choice(np.array([4, 5, 6, 7, 11], np.uint8), (size, size))
    for _ in range(int(cloudy * 40)):
        r, c = rng.integers(0, size, 2)
        scl[r : r + int(rng.integers(1, 12)), c : c + int(rng.integers(1, 12))] = rng.choice(
            np.array([3, 8, 9, 10, 1, 2])
        )
    edge = int(rng.integers(0, size // 4))
    scl[:, :edge] = 0
    arrays = {"SCL": scl}
    for band in bands:
        factor = 20 / RESOLUTION[band]
        n = round(size * factor)
        pixels = rng.integers(1000, 6000, (n, n)).astype(np.uint16)
        pixels[:, : round(edge * factor)] = 0
        pixels[rng.random((n, n)) < 0.01] = 0
        arrays[band] = pixels
    return scene(folder, name, when, arrays, **{"origin": (499980.0, 5000040.0), **more})


def grid(rows: int, cols: int, *, left=499980.0, top=5000040.0, resolution=10.0, crs="EPSG:32631") -> GeoBox:
    return GeoBox((rows, cols), Affine(resolution, 0, left, 0, -resolution, top), crs)
