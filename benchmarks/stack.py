"""24 dates x 10 bands x 2048 x 2048 pixels of Sentinel-2 to a masked int16 Zarr store.

The input is 264 COGs in the layout of Level-2A (10 and 20 m bands at their own resolution, SCL at 20 m, baseline 05.00
with the offset in, a texture that deflates about as well as real scenes do). Every contender writes reflectance as
int16 x 1e-4 with all 20 m bands bilinear on 10 m and cloud, shadow and nodata masked, into Zarr v3 with the same
shards, chunks and compressor.

geoeco and the hand-written loop grow the cloud mask by 60 m; odc-stac is spared that (it has no such step).
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, compare
from imagery import write_band

DATES, SIZE = 24, 2048
BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
FINE = BANDS[:4]
CRS, LEFT, TOP = "EPSG:32631", 600000.0, 5700000.0
SHARD, CHUNK, FILL, OFFSET = 512, 128, -32768, 1000
MASKED = (0, 1, 3, 8, 9, 10)


def _geobox() -> Any:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    return GeoBox((SIZE, SIZE), Affine(10, 0, LEFT, 0, -10, TOP), CRS)


def _days() -> list[dt.datetime]:
    return [dt.datetime(2022, 3, 1, 10, 40, tzinfo=dt.UTC) + dt.timedelta(days=8 * i) for i in range(DATES)]


def prepare(folder: Path) -> dict[str, Any]:
    import pystac
    from odc.geo.geom import box
    from scipy.ndimage import gaussian_filter, zoom

    listing = folder / "items.json"
    if listing.exists():
        return json.loads((folder / "facts.json").read_text())
    rng = np.random.default_rng(42)
    # fields of some hundred metres with edges, and a finer texture inside
    fields = np.round(gaussian_filter(rng.normal(size=(SIZE, SIZE)), 16) * 60) * 220
    texture = gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.2) * 350
    ground = box(LEFT, TOP - 10 * SIZE, LEFT + 10 * SIZE, TOP, CRS).to_crs("EPSG:4326")

    def one(day: dt.datetime, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        name = f"S2B_31UFT_{day:%Y%m%d}_0_L2A"
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        half = SIZE // 2
        cover = zoom(gaussian_filter(rng.normal(size=(half // 8, half // 8)), 6), 8, order=1)
        rank = cover.argsort(axis=None).argsort().reshape(cover.shape) / cover.size
        scl = np.where(rank > 0.7, 9, np.where(rank > 0.6, 8, np.where(rank < 0.05, 3, 4))).astype(np.uint8)
        scl[:, : int(rng.integers(0, half // 8))] = 0
        item = pystac.Item(
            name,
            ground.json,
            list(ground.boundingbox),
            day,
            {"proj:code": CRS, "s2:processing_baseline": "05.00", "platform": "sentinel-2b"},
            stac_extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        )
        for number, band in enumerate((*BANDS, "SCL")):
            step = 1 if band in FINE else 2
            if band == "SCL":
                pixels = scl
            else:
                level = 1500 + 250 * number + 300 * np.sin(seed / 4 + number)
                cloud = np.repeat(np.repeat(scl, 2 // step, 0), 2 // step, 1)
                noise = rng.normal(0, 45, (SIZE // step, SIZE // step))
                values = level + fields[::step, ::step] + texture[::step, ::step] + noise
                values += np.where(cloud >= 8, 3500, 0) + OFFSET
                pixels = np.clip(values, 1, 65535).astype(np.uint16)
                pixels[cloud == 0] = 0
            path = target / f"{band}.tif"
            write_band(path, pixels, crs=CRS, corner=(LEFT, TOP), resolution=10 * step, block=512, level=6)
            shape, transform = list(pixels.shape), [10 * step, 0, LEFT, 0, -10 * step, TOP]
            item.add_asset(
                band,
                pystac.Asset(
                    str(target / f"{band}.tif"),
                    media_type=pystac.MediaType.COG,
                    roles=["data"],
                    extra_fields={
                        "proj:shape": shape,
                        "proj:transform": transform,
                        "raster:bands": [{"data_type": str(pixels.dtype), "nodata": 0}],
                    },
                ),
            )
        return item.to_dict(transform_hrefs=False)

    with ThreadPoolExecutor(2) as pool:
        items = list(pool.map(one, _days(), range(DATES)))
    size = sum(path.stat().st_size for path in folder.rglob("*.tif"))
    raw = DATES * SIZE**2 * 2 * (4 + 6 / 4) + DATES * SIZE**2 / 4
    facts = {"files": DATES * (len(BANDS) + 1), "mib": round(size / 2**20), "deflated to": round(size / raw, 2)}
    (folder / "facts.json").write_text(json.dumps(facts))
    listing.write_text(json.dumps(items))
    return facts


def _items(folder: Path) -> list[Any]:
    import pystac

    return [pystac.Item.from_dict(item) for item in json.loads((folder / "items.json").read_text())]


def _out(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="store-", dir=folder)) / "cube.zarr"


def _facts(store: Path, first: Any) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    sample = np.asarray(first)
    facts = {"mib": size >> 20, "valid": round(float((sample != FILL).mean()), 4)}
    shutil.rmtree(store.parent)
    return facts


def _imported(*modules: str) -> Callable[[Path], Path]:
    """Import before the clock starts what a worker has imported long since."""

    def setup(folder: Path) -> Path:
        for module in ("pystac", "odc.geo.geobox", "rasterio", *modules):
            importlib.import_module(module)
        return folder

    return setup


def geoeco(folder: Path) -> dict[str, Any]:
    import zarr

    from geoeco.cubes import solar_days, template, write_block

    items, grid, store = _items(folder), _geobox(), _out(folder)
    template(str(store), grid, solar_days(items, grid), BANDS, shard=SHARD, chunk=CHUNK)
    write_block(str(store), items, grid, (0, SIZE), (0, SIZE))
    array: Any = zarr.open_array(store, path="reflectance", mode="r")
    return _facts(store, array[3, 5, ::4, ::4])


def odc_stac(folder: Path) -> dict[str, Any]:
    import dask
    import odc.stac
    import zarr
    from zarr.codecs import ZstdCodec

    items, grid, store = _items(folder), _geobox(), _out(folder)
    loaded = odc.stac.load(
        items,
        bands=(*BANDS, "SCL"),
        geobox=grid,
        chunks={"x": SHARD, "y": SHARD},
        groupby="solar_day",
        resampling={"*": "bilinear", "SCL": "nearest"},
    )
    loaded["spatial_ref"].attrs.clear()
    masked = loaded.SCL.isin(MASKED)
    out = loaded[list(BANDS)].map(
        lambda band: (band.astype("int16") - np.int16(OFFSET)).where(~masked & (band != 0), np.int16(FILL))
    )
    cube = out.to_dataarray("band").transpose("time", "band", "y", "x").astype("int16")
    cube = cube.chunk({"time": -1, "band": 1, "y": SHARD, "x": SHARD}).assign_coords(band=range(len(BANDS)))
    data = cube.to_dataset(name="reflectance").assign(scl=loaded.SCL.chunk({"time": -1}))
    for variable in data.variables.values():
        variable.attrs.clear()
        variable.encoding.clear()
    codec = ZstdCodec(level=1)
    encoding = {
        "reflectance": {
            "chunks": (DATES, 1, CHUNK, CHUNK),
            "shards": (DATES, 1, SHARD, SHARD),
            "compressors": codec,
            "fill_value": FILL,
        },
        "scl": {"chunks": (DATES, CHUNK, CHUNK), "shards": (DATES, SHARD, SHARD), "compressors": codec},
    }
    with dask.config.set(scheduler="threads"):
        data.to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)
    array: Any = zarr.open_array(store, path="reflectance", mode="r")
    return _facts(store, array[3, 5, ::4, ::4])


def handwritten(folder: Path) -> dict[str, Any]:
    import rasterio
    import zarr
    from rasterio.enums import Resampling
    from scipy.ndimage import binary_dilation
    from zarr.codecs import ZstdCodec

    items, store = _items(folder), _out(folder)
    group = zarr.create_group(store)
    codec = ZstdCodec(level=1)
    reflectance: Any = group.create_array(
        "reflectance",
        shape=(DATES, len(BANDS), SIZE, SIZE),
        chunks=(DATES, 1, CHUNK, CHUNK),
        shards=(DATES, 1, SHARD, SHARD),
        dtype="int16",
        fill_value=FILL,
        compressors=codec,
    )
    classes: Any = group.create_array(
        "scl",
        shape=(DATES, SIZE, SIZE),
        chunks=(DATES, CHUNK, CHUNK),
        shards=(DATES, SHARD, SHARD),
        dtype="uint8",
        fill_value=0,
        compressors=codec,
    )
    y, x = np.ogrid[-3:4, -3:4]
    disk = y * y + x * x <= 9
    scl = np.empty((DATES, SIZE, SIZE), np.uint8)
    hidden = np.empty((DATES, SIZE, SIZE), bool)
    buffer = np.empty((DATES, SIZE, SIZE), np.int16)

    def read_classes(date: int) -> None:
        with rasterio.open(items[date].assets["SCL"].href) as file:
            native = file.read(1)
        mask = np.isin(native, MASKED) | binary_dilation(np.isin(native, (3, 8, 9)), disk)
        scl[date] = native.repeat(2, 0).repeat(2, 1)
        hidden[date] = mask.repeat(2, 0).repeat(2, 1)

    def read_band(date: int, band: str) -> None:
        with rasterio.open(items[date].assets[band].href) as file:
            numbers = file.read(1, out_shape=(SIZE, SIZE), resampling=Resampling.bilinear)
        out = buffer[date]
        np.subtract(numbers.view(np.int16), OFFSET, out=out)
        out[hidden[date] | (numbers == 0)] = FILL

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read_classes, range(DATES)))
        classes[:] = scl
        for number, band in enumerate(BANDS):
            list(pool.map(read_band, range(DATES), [band] * DATES))
            reflectance[:, number] = buffer
    return _facts(store, reflectance[3, 5, ::4, ::4])


if __name__ == "__main__":
    compare(
        "stack",
        [
            Contender("hand-written", handwritten, _imported("zarr", "scipy.ndimage"), warmup=0),
            Contender("geoeco", geoeco, _imported("geoeco.cubes"), warmup=0),
            Contender("odc-stac", odc_stac, _imported("zarr", "odc.stac", "dask.array"), warmup=0, needs=("odc-stac",)),
        ],
        prepare=prepare,
        title=f"{DATES} dates x {len(BANDS)} bands x {SIZE} x {SIZE} px to masked int16 Zarr",
    )
