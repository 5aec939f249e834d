"""A small orthomosaic with crowns of three species on a grid, heights, areas of three sets and close-up photos."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from shapely.geometry import Point, box

from tests.training.drawn_crowns import appearance

GSD, SPACING, COLUMNS = 0.1, 30, 6
SPECIES = ("birch", "larch", "oak")
LEFT, TOP = 500_000.0, 5_200_000.0
CRS = "EPSG:32652"


def draw_world(folder: Path, *, seed: int = 0) -> Path:
    """Write mosaic.tif, chm.tif, crowns.gpkg, areas.gpkg, photos.gpkg with its pictures.

    36 crowns of 2 m, the k-th of the species k % 3 and k / 10 + 4 m high, number 1 in the upper left; the three columns
    on the left are for training, the next one for validation, the last two for the test. Ground beyond row 5 m of the
    last column is not valid. Crowns without a remainder by 6 have no photo.
    """
    rng = np.random.default_rng(seed)
    side = SPACING * COLUMNS
    image = np.clip(rng.normal(0.4, 0.03, (3, side, side)), 0, 1)
    height = np.zeros((side, side), np.float32)
    valid = np.ones((side, side), bool)
    rows = []
    y, x = np.mgrid[:side, :side] + 0.5
    for number in range(COLUMNS * COLUMNS):
        row, column = divmod(number, COLUMNS)
        middle = (row * SPACING + 15, column * SPACING + 15)
        disc = np.hypot(y - middle[0], x - middle[1]) <= 10
        species = SPECIES[number % 3]
        picture = appearance(species, side, rng)
        image[:, disc] = picture[:, disc]
        height[disc] = 4 + (number + 1) / 10
        rows.append(
            {
                "crown_id": number + 1,
                "species": species,
                "geometry": Point(LEFT + middle[1] * GSD, TOP - middle[0] * GSD).buffer(1.0, quad_segs=16),
            }
        )
    # one crown touches ground that was not flown over
    valid[: SPACING - 10, (COLUMNS - 1) * SPACING + 22 :] = False
    transform = from_origin(LEFT, TOP, GSD, GSD)
    profile = {"driver": "GTiff", "height": side, "width": side, "crs": CRS, "transform": transform}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(folder / "mosaic.tif", "w", **profile, count=3, dtype="uint8", photometric="RGB") as file,
    ):
        file.write(np.where(valid, np.round(image * 255), 0).astype(np.uint8))
        file.write_mask(valid)
        file.update_tags(TIFFTAG_DATETIME="2026:07:01 10:00:00")
    with rasterio.open(folder / "chm.tif", "w", **profile, count=1, dtype="float32", nodata=-9999) as file:
        file.write(height, 1)
    crowns = gpd.GeoDataFrame(rows, crs=CRS)
    crowns.to_file(folder / "crowns.gpkg", layer="crowns")
    edges = np.array([0, 3, 4, 6]) * SPACING * GSD + LEFT
    areas = [box(edges[i], TOP - side * GSD, edges[i + 1], TOP) for i in range(3)]
    gpd.GeoDataFrame({"split": ["train", "val", "test"]}, geometry=areas, crs=CRS).to_file(folder / "areas.gpkg")
    (folder / "closeups").mkdir()
    photos = []
    for _, crown in crowns.iterrows():
        if crown["crown_id"] % 6 == 0:
            continue
        name = f"closeups/{crown['crown_id']:03d}.png"
        pixels = np.moveaxis(appearance(crown["species"], 24, rng, noise=0.02), 0, -1)
        Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(folder / name)
        at = crown.geometry.centroid
        photos.append({"photo": name, "accuracy_m": 0.05, "geometry": Point(at.x + 0.2, at.y - 0.3)})
    gpd.GeoDataFrame(photos, crs=CRS).to_file(folder / "photos.gpkg")
    return folder
