"""Cloud-optimised GeoTIFFs: a class map (uint8, 16384 x 16384) and eight continuous bands (float32, 4096 x 4096).

Every contender starts from the same array in memory and ends with its file closed; ZSTD at the same level, blocks of
512, overviews by mode or average, two threads or as many as the machine has. The reference compresses the same blocks
of the same pyramid in a thread pool, with NumPy and zstd alone, and lays out no file: what any writer has to do at
least. geoeco also computes what the others leave out: statistics or pixel counts of every class, a checksum, the style.

    python benchmarks/cog.py            # both
    python benchmarks/cog.py float
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from harness import Contender, compare

LEVEL = 6
BLOCK = 512
NODATA = {"class": 255, "float": -9999}
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(case: str, folder: Path) -> dict:
    """Write patches of ten classes with salt-and-pepper errors, or smooth fields with noise; one corner is missing."""
    rng = np.random.default_rng(0)
    if case == "class":
        size = 16384
        patches = rng.integers(1, 11, (size // 64, size // 64), dtype=np.uint8)
        values = np.kron(patches, np.ones((64, 64), np.uint8))
        for top in range(0, size, 1024):
            part = values[top : top + 1024]
            wrong = rng.random(part.shape, dtype=np.float32) < 0.03
            part[wrong] = rng.integers(1, 11, int(wrong.sum()), dtype=np.uint8)
        values[:1500, :2500] = NODATA[case]
    else:
        size = 4096
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        noise = rng.normal(0, 0.01, (8, size, size)).astype(np.float32)
        values = np.stack([np.sin(x / 200 + band) * np.cos(y / 150) for band in range(8)]) + noise
        values[:, :400, :600] = NODATA[case]
    np.save(folder / "values.npy", values)
    return {"shape": list(values.shape), "dtype": str(values.dtype), "level": LEVEL}


def load(case: str, folder: Path) -> tuple:
    # imports here, so that the one timed call needs no warm-up
    import numcodecs  # noqa: F401
    import rio_cogeo  # noqa: F401
    import rioxarray  # noqa: F401
    import xarray as xr

    import geoeco.outputs  # noqa: F401

    values = np.load(folder / "values.npy")
    height, width = values.shape[-2:]
    array = xr.DataArray(
        values,
        dims=("band", "y", "x")[-values.ndim :],
        coords={"y": 5_000_000 - 5 - 10.0 * np.arange(height), "x": 500_000 + 5 + 10.0 * np.arange(width)},
        name="value",
        attrs={"kind": "class" if case == "class" else "continuous", "units": "" if case == "class" else "1"},
    )
    return array.rio.write_crs(32631).rio.write_nodata(NODATA[case]), folder


# --- reference ------------------------------------------------------------------------------------------------------


def corners(values: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(values[row::2, col::2]) for row in (0, 1) for col in (0, 1)]


def half_mode(values: np.ndarray) -> np.ndarray:
    a, b, c, d = corners(values)
    none = NODATA["class"]
    first = np.where(a != none, a, np.where(b != none, b, np.where(c != none, c, d)))
    out = np.where((c == d) & (c != none), c, first)
    out = np.where(((b == c) | (b == d)) & (b != none), b, out)
    return np.where(((a == b) | (a == c) | (a == d)) & (a != none), a, out)


def half_mean(values: np.ndarray) -> np.ndarray:
    parts = corners(values)
    valid = [part != NODATA["float"] for part in parts]
    count = sum(v.astype(np.float32) for v in valid)
    total = sum(np.where(v, part, 0) for v, part in zip(valid, parts, strict=True))
    return np.where(count > 0, total / np.maximum(count, 1), NODATA["float"]).astype(np.float32)


def predict(block: np.ndarray) -> np.ndarray:
    """Floating-point predictor of TIFF: bytes of one significance side by side, then differences along rows."""
    rows, cols = block.shape
    planes = block.view(np.uint8).reshape(rows, cols, 4)[:, :, ::-1].transpose(0, 2, 1).reshape(rows, cols * 4)
    out = planes.copy()
    out[:, 1:] -= planes[:, :-1]
    return out


def run_reference(case: str, state: tuple) -> dict:
    from numcodecs import Zstd

    values = state[0].to_numpy()
    half = half_mode if case == "class" else half_mean
    codec = Zstd(level=LEVEL)
    size = 0

    def squeeze(block: np.ndarray) -> int:
        block = np.ascontiguousarray(block)
        return len(codec.encode(predict(block) if case == "float" else block))

    with ThreadPoolExecutor(THREADS) as pool:
        for plane in values if values.ndim == 3 else values[np.newaxis]:
            level = plane
            while True:
                rows, cols = level.shape
                blocks = [
                    level[top : top + BLOCK, left : left + BLOCK]
                    for top in range(0, rows, BLOCK)
                    for left in range(0, cols, BLOCK)
                ]
                size += sum(pool.map(squeeze, blocks))
                if max(level.shape) <= BLOCK:
                    break
                strips = pool.map(half, [level[top : top + BLOCK] for top in range(0, rows, BLOCK)])
                level = np.concatenate(list(strips))
    return {"MB": round(size / 1e6, 1)}


# --- writers --------------------------------------------------------------------------------------------------------


def megabytes(path: Path) -> dict:
    import rasterio

    with rasterio.open(path) as src:
        overviews = len(src.overviews(1))
    return {"MB": round(path.stat().st_size / 1e6, 1), "overviews": overviews}


def run_geoeco(state: tuple) -> dict:
    from geoeco.outputs import write_cog

    array, folder = state
    record = write_cog(array, folder / "geoeco.tif", level=LEVEL)
    return megabytes(record.path)


def run_rio_cogeo(case: str, state: tuple) -> dict:
    import rasterio
    from rasterio.io import MemoryFile
    from rio_cogeo import cog_profiles, cog_translate

    array, folder = state
    values = array.to_numpy()
    values = values if values.ndim == 3 else values[np.newaxis]
    profile = cog_profiles.get("zstd")
    profile |= {"zstd_level": LEVEL, "blockxsize": BLOCK, "blockysize": BLOCK}
    if case == "float":
        profile["predictor"] = 3
    count, height, width = values.shape
    described = {"crs": array.rio.crs, "transform": array.rio.transform(), "nodata": NODATA[case]}
    with (
        rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS", GDAL_TIFF_OVR_BLOCKSIZE=BLOCK),
        MemoryFile() as memory,
        memory.open(driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, **described) as source,
    ):
        source.write(values)
        cog_translate(
            source,
            folder / "rio-cogeo.tif",
            profile,
            overview_resampling="mode" if case == "class" else "average",
            config={"GDAL_NUM_THREADS": "ALL_CPUS"},
            quiet=True,
        )
    return megabytes(folder / "rio-cogeo.tif")


def run_rioxarray(case: str, state: tuple) -> dict:
    import rasterio

    array, folder = state
    options = {"compress": "ZSTD", "level": LEVEL, "blocksize": BLOCK, "num_threads": "ALL_CPUS"}
    options["overview_resampling"] = "MODE" if case == "class" else "AVERAGE"
    if case == "float":
        options["predictor"] = "YES"
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
        array.rio.to_raster(folder / "rioxarray.tif", driver="COG", **options)
    return megabytes(folder / "rioxarray.tif")


TITLES = {
    "class": "COG of a class map, uint8, 16384 x 16384 px, ZSTD, overviews by mode",
    "float": "COG of 8 bands, float32, 4096 x 4096 px, ZSTD with predictor, overviews by average",
}


def measure(case: str, arguments: list[str]) -> None:
    # the processes that the harness starts know the case by this
    os.environ["GEOECO_BENCH_CASE"] = case
    setup = partial(load, case)
    compare(
        f"cog_{case}",
        [
            Contender("threads + zstd, no file", partial(run_reference, case), setup, warmup=0),
            Contender("geoeco", run_geoeco, setup, warmup=0),
            Contender("rio-cogeo", partial(run_rio_cogeo, case), setup, warmup=0, needs=("rio-cogeo",)),
            Contender("rioxarray", partial(run_rioxarray, case), setup, warmup=0),
        ],
        prepare=partial(prepare, case),
        title=TITLES[case],
        arguments=arguments,
    )


if __name__ == "__main__":
    known = os.environ.get("GEOECO_BENCH_CASE")
    asked = [argument for argument in sys.argv[1:] if argument in NODATA]
    for case in [known] if known else asked or list(NODATA):
        measure(case, [argument for argument in sys.argv[1:] if argument not in NODATA])
