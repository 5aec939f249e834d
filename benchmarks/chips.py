"""Season chips: 100 locations x 4 dates x 12 bands x 264 x 264 pixels, cut from one full Sentinel-2 tile.

The input is one tile of 10980 x 10980 pixels on four dates (10, 20 and 60 m bands and SCL at their own resolution,
1024-pixel blocks, DEFLATE with predictor, baseline 05.00 with the offset in, texture that deflates about as well as
real scenes do). Every contender writes the same chips, reflectance as int16 x 1e-4 with 20 and 60 m bands bilinear on
10 m, and the scene classification, into Zarr v3 with the same chunks, shards and compressor; ``arrays`` in a name means
that the chips are made and thrown away, so that the reading alone is seen.

geoeco also looks at the classification of every patch to choose the images, writes the table of chips, and reads every
shard back to check it. The others are given the images.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, compare
from imagery import write_band

TILE, LOCATIONS, SIZE, THREADS = 10980, 100, 264, 2
RESOLUTIONS = {
    "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B09": 60,
    "B11": 20, "B12": 20,
}  # fmt: skip
BANDS = tuple(RESOLUTIONS)
CRS, LEFT, TOP = "EPSG:32631", 600000.0, 5700000.0
DAYS = (dt.date(2022, 4, 20), dt.date(2022, 7, 10), dt.date(2022, 10, 5), dt.date(2023, 2, 10))
SEASONS = ("spring", "summer", "autumn", "winter")
FILL, OFFSET = -32768, 1000


def prepare(folder: Path) -> dict[str, Any]:
    import pystac
    from odc.geo.geom import box
    from scipy.ndimage import gaussian_filter

    if (folder / "facts.json").exists():
        return json.loads((folder / "facts.json").read_text())
    rng = np.random.default_rng(42)
    # fields of some hundred metres with edges and a finer texture, repeated over the tile
    piece = 1830
    fields = np.round(gaussian_filter(rng.normal(size=(piece, piece)), 16, mode="wrap") * 60) * 220
    texture = gaussian_filter(rng.normal(size=(piece, piece)), 1.2, mode="wrap") * 350
    ground = box(LEFT, TOP - 10 * TILE, LEFT + 10 * TILE, TOP, CRS).to_crs("EPSG:4326")

    def write(path: Path, piece_pixels: np.ndarray, resolution: int) -> None:
        side = TILE * 10 // resolution
        pixels = np.tile(piece_pixels, (-(-side // len(piece_pixels)),) * 2)[:side, :side]
        write_band(path, pixels, crs=CRS, corner=(LEFT, TOP), resolution=resolution, block=1024, level=6)

    items, size = [], 0
    for number, day in enumerate(DAYS):
        item = pystac.Item(
            id=f"S2A_31UFS_{day:%Y%m%d}_0_L2A",
            geometry=ground.json,
            bbox=list(ground.boundingbox),
            datetime=dt.datetime(day.year, day.month, day.day, 10, 40, tzinfo=dt.UTC),
            properties={
                "proj:code": CRS,
                "s2:processing_baseline": "05.00",
                "view:sun_elevation": 40.0,
                "eo:cloud_cover": 0.0,
            },
            stac_extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        )
        for name, resolution in {**RESOLUTIONS, "SCL": 20}.items():
            path = folder / f"{item.id}_{name}.tif"
            step = resolution // 10
            if name == "SCL":
                write(path, np.full((915, 915), 4, np.uint8), 20)
            else:
                level = 2500 + 400 * BANDS.index(name) + 300 * number
                noise = rng.normal(0, 12, size=(piece // step, piece // step))
                values = level + fields[::step, ::step] + texture[::step, ::step] + noise
                write(path, np.clip(np.rint(values), 1001, 15000).astype(np.uint16), resolution)
            size += path.stat().st_size
            side = TILE * 10 // resolution
            item.add_asset(
                name,
                pystac.Asset(
                    str(path),
                    media_type="image/tiff; application=geotiff; profile=cloud-optimized",
                    roles=["data"],
                    extra_fields={
                        "proj:shape": [side, side],
                        "proj:transform": [resolution, 0, LEFT, 0, -resolution, TOP],
                        "gsd": resolution,
                    },
                ),
            )
        items.append(item.to_dict())
    (folder / "items.json").write_text(json.dumps(items))
    facts = {"tile": TILE, "dates": len(DAYS), "bands": len(BANDS), "locations": LOCATIONS, "mib": size >> 20}
    (folder / "facts.json").write_text(json.dumps(facts))
    return facts


def _items(folder: Path) -> list[Any]:
    import pystac

    return [pystac.Item.from_dict(record) for record in json.loads((folder / "items.json").read_text())]


def _locations() -> Any:
    """Locations all over the tile, in no order, as tables of points are."""
    import geopandas as gpd

    rng = np.random.default_rng(7)
    x = rng.uniform(LEFT + 1500, LEFT + 10 * TILE - 1500, LOCATIONS)
    y = rng.uniform(TOP - 10 * TILE + 1500, TOP - 1500, LOCATIONS)
    return gpd.GeoDataFrame(geometry=gpd.points_from_xy(x, y), crs=CRS).to_crs("EPSG:4326")


def _windows() -> Any:
    import pandas as pd

    rows = []
    for name in range(LOCATIONS):
        for season, day in zip(SEASONS, DAYS, strict=True):
            middle = float(day.timetuple().tm_yday)
            rows.append(
                {
                    "name": str(name),
                    "season": season,
                    "mid": middle,
                    "width_d": 30.0,
                    "interval_start": middle - 15,
                    "interval_end": middle + 15,
                }
            )
    return pd.DataFrame(rows)


def _boxes() -> list[Any]:
    from geoeco.sampling import chip_geobox

    points = _locations().geometry
    return [chip_geobox(p.x, p.y, 32631, size=SIZE) for p in points]


def _imported(folder: Path) -> Path:
    """Import before the clock and the memory are looked at."""
    import geopandas  # noqa: F401
    import odc.stac  # noqa: F401
    import pandas  # noqa: F401
    import pystac  # noqa: F401
    import rasterio  # noqa: F401
    import zarr  # noqa: F401

    import geoeco.sampling  # noqa: F401

    _locations()
    return folder


def _facts(chips: np.ndarray) -> dict[str, Any]:
    return {"mean": float(chips.mean(dtype=np.float64) * 1e-4)}


def geoeco(folder: Path) -> dict[str, Any]:
    from geoeco.sampling import chips_template, write_chips

    out = Path(tempfile.mkdtemp(dir=folder))
    try:
        chips_template(str(out), LOCATIONS, size=SIZE, bands=BANDS, samples_per_shard=50)
        done = write_chips(str(out), _items(folder), _locations(), _windows(), threads=THREADS, memory_mib=512)
        return {"chips": done["chips"], "mib": done["bytes"] >> 20}
    finally:
        shutil.rmtree(out)


def geoeco_arrays(folder: Path) -> dict[str, Any]:
    from geoeco.sampling.chips import ChipReader, ChipSettings

    settings = ChipSettings(size=SIZE, bands=BANDS)
    reader = ChipReader(
        _items(folder), _locations(), _windows(), settings, radiometry=None, method=None, threads=THREADS
    )
    buffers = reader.buffers(1)
    means = [float(reader.read([season], buffers)[0].mean(dtype=np.float64)) for season in range(len(SEASONS))]
    return {"mean": float(np.mean(means) * 1e-4)}


def _rasterio_chips(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """One job a location and date, every file open in every thread."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    items, boxes, here = _items(folder), _boxes(), threading.local()
    chips = np.empty((LOCATIONS, len(items), len(BANDS), SIZE, SIZE), np.int16)
    scl = np.empty((LOCATIONS, len(items), SIZE, SIZE), np.uint8)

    def read(job: tuple[int, int]) -> None:
        location, date = job
        files = here.__dict__.setdefault("files", {})
        box = boxes[location].affine
        for position, band in enumerate((*BANDS, "SCL")):
            href = items[date].assets[band].href
            file = files.get(href) or files.setdefault(href, rasterio.open(href))
            step = RESOLUTIONS.get(band, 20)
            window = Window((box.c - LEFT) / step, (TOP - box.f) / step, SIZE * 10 / step, SIZE * 10 / step)
            how = Resampling.nearest if band == "SCL" else Resampling.bilinear
            pixels = file.read(1, window=window, out_shape=(SIZE, SIZE), resampling=how)
            if band == "SCL":
                scl[location, date] = pixels
            else:
                value = pixels.astype(np.int16) - np.int16(OFFSET)
                value[pixels == 0] = FILL
                chips[location, date, position] = value

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, [(location, date) for location in range(LOCATIONS) for date in range(len(items))]))
    return chips, scl


def _write_zarr(folder: Path, chips: np.ndarray, scl: np.ndarray) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    out = Path(tempfile.mkdtemp(dir=folder))
    try:
        group = zarr.open_group(str(out / "chips.zarr"), mode="w", zarr_format=3)
        for name, values in (("chips", chips), ("scl", scl)):
            array = group.create_array(
                name,
                shape=values.shape,
                chunks=(1, 1, *values.shape[2:]),
                shards=(50, 1, *values.shape[2:]),
                dtype=values.dtype,
                fill_value=FILL if name == "chips" else 0,
                compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
            )
            for start in range(0, len(values), 50):
                for season in range(len(SEASONS)):
                    array[start : start + 50, season] = values[start : start + 50, season]
    finally:
        shutil.rmtree(out)


def rasterio_pool(folder: Path) -> dict[str, Any]:
    chips, scl = _rasterio_chips(folder)
    _write_zarr(folder, chips, scl)
    return _facts(chips)


def rasterio_arrays(folder: Path) -> dict[str, Any]:
    chips, _ = _rasterio_chips(folder)
    return _facts(chips)


SAMPLE = 10


def odc_stac_arrays(folder: Path) -> dict[str, Any]:
    import odc.stac

    items, boxes = _items(folder), _boxes()[:SAMPLE]
    chips = np.empty((SAMPLE, len(items), len(BANDS), SIZE, SIZE), np.int16)
    how = {"*": "bilinear", "SCL": "nearest"}
    for location, box in enumerate(boxes):
        data = odc.stac.load(items, bands=(*BANDS, "SCL"), geobox=box, resampling=how, pool=THREADS)
        for position, band in enumerate(BANDS):
            pixels = data[band].to_numpy()
            value = pixels.astype(np.int16) - np.int16(OFFSET)
            value[pixels == 0] = FILL
            chips[location, :, position] = value
    return _facts(chips)


if __name__ == "__main__":
    compare(
        "chips",
        [
            Contender("geoeco", geoeco, _imported, warmup=0),
            Contender("rasterio pool", rasterio_pool, _imported, warmup=0),
            Contender("geoeco, arrays", geoeco_arrays, _imported, warmup=0),
            Contender("rasterio pool, arrays", rasterio_arrays, _imported, warmup=0),
            Contender(
                "odc-stac per location, arrays",
                odc_stac_arrays,
                _imported,
                warmup=0,
                scale=LOCATIONS / SAMPLE,
                needs=("odc-stac",),
            ),
        ],
        prepare=prepare,
        title=f"{LOCATIONS} locations x {len(DAYS)} dates x {len(BANDS)} bands x {SIZE}² px from one tile",
    )
