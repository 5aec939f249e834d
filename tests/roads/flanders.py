"""The real Flanders patch (64 x 64 px, 118 dates) as COGs with a static STAC catalogue, as an archive would hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pystac
import rasterio
import shapely
import xarray as xr
from affine import Affine
from pyproj import Transformer

EPSG = 32631
#: crop-type codes of the label raster CT
GRASS, MAIZE = 9120, 1200


def _write(path: Path, pixels: np.ndarray, transform: Affine) -> None:
    profile = {
        "driver": "COG",
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "count": 1,
        "dtype": pixels.dtype,
        "crs": f"EPSG:{EPSG}",
        "transform": transform,
        "nodata": 0,
        "compress": "DEFLATE",
        "overviews": "NONE",
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels, 1)


def build_catalog(source: Path, directory: Path) -> Path:
    """Write one item a date below `directory`; return the path of its catalog.json."""
    fine = xr.open_dataset(source / "S2_L2A_10m.nc", mask_and_scale=False).load()
    coarse = xr.open_dataset(source / "S2_L2A_20m.nc", mask_and_scale=False).load()
    assert (fine.timestamp.values == coarse.timestamp.values).all()
    left, bottom, right, top = (float(v) for v in fine.attrs["bounds"].strip("()").split(","))
    assert fine.y.values[0] > fine.y.values[-1], "rows run from north to south"
    to_lonlat = Transformer.from_crs(EPSG, 4326, always_xy=True)
    footprint = shapely.box(*to_lonlat.transform_bounds(left, bottom, right, top))
    bands = {"B02": fine, "B03": fine, "B04": fine, "B08": fine, "B11": coarse, "SCL": coarse}

    collection = pystac.Collection(
        "sentinel-2-l2a",
        "Sentinel-2 L2A of a farmland patch in Flanders",
        pystac.Extent(
            pystac.SpatialExtent([list(footprint.bounds)]),
            pystac.TemporalExtent(
                [[fine.timestamp.values[i].astype("datetime64[s]").item() for i in (0, -1)]],
            ),
        ),
    )
    for i, stamp in enumerate(fine.timestamp.values):
        moment = stamp.astype("datetime64[s]").item()
        scl = coarse.SCL.values[i]
        item = pystac.Item(
            f"S2_31UDS_{moment:%Y%m%dT%H%M%S}_L2A",
            shapely.geometry.mapping(footprint),
            list(footprint.bounds),
            moment,
            {
                "proj:epsg": EPSG,
                # acquisitions of 2017 and 2018 in their first processing: baselines 02.05 to 02.10
                "s2:processing_baseline": "02.05" if moment.year == 2017 else "02.07",
                "eo:cloud_cover": round(float(np.isin(scl, (8, 9, 10)).mean() * 100), 2),
                "view:sun_elevation": round(90 - float(coarse.sunZenithAngles.values[i]), 3),
            },
        )
        folder = directory / "sentinel-2-l2a" / item.id
        folder.mkdir(parents=True)
        for name, data in bands.items():
            size = 10 if data is fine else 20
            _write(folder / f"{name}.tif", data[name].values[i], Affine(size, 0, left, 0, -size, top))
            item.add_asset(name, pystac.Asset(str(folder / f"{name}.tif"), media_type=pystac.MediaType.COG))
        collection.add_item(item)
    catalog = pystac.Catalog("flanders", "A farmland patch in Flanders, 2017-2018")
    catalog.add_child(collection)
    catalog.normalize_hrefs(str(directory))
    catalog.make_all_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    return directory / "catalog.json"


def crop_types(source: Path) -> np.ndarray:
    """Label raster CT (64, 64): crop type of 2018 per pixel, 0 = none."""
    return xr.open_dataset(source / "OUTPUT_POLY-110_10m.nc", mask_and_scale=False).CT.values
