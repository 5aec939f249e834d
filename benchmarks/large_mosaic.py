"""A mosaic of 30,000 x 30,000 pixels of four bands of uint8, mapped on two workers, killed, resumed.

The mosaic (made here, 3.6 GB of pixels) is mapped by the verb ``predict`` with a bundle of three convolutions on a
local cluster of two workers, once without a break, and once with its driver and workers killed when a third of the
blocks are done, then resumed. Printed and kept: the plan's memory bound beside the largest measured peak of a worker,
seconds, and whether every byte of map and GeoTIFF is the same. Last, the time of one pass of a ResNet-18 U-Net over a
part of the mosaic, and what that makes for the whole; it is *not* run over the whole.

    python benchmarks/large_mosaic.py [--size 30000] [--folder DIR] [--unet-part 4096]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import RESULTS, machine

BANDS = ("red", "green", "blue", "nir")
CLASSES = ("dry land", "grass belt", "river", "ridge", "paved road")
GEOECO = str(Path(sys.executable).with_name("geoeco"))
RECIPE = """
geoeco: 1
name: large
inputs: {{tables: {{mosaic: mosaic.tif}}}}
grid: {{like: mosaic, block: {block}}}
steps:
  - {{verb: predict, mosaic: mosaic, bundle: {bundle}, outputs: [class, confidence]}}
  - {{verb: cog, layers: [class], quicklooks: false}}
"""


def write_mosaic(path: Path, size: int) -> None:
    """Smooth noise, a strip of tiles at a time; a corner is missing by an internal mask."""
    import rasterio
    from affine import Affine
    from rasterio.windows import Window
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "count": 4,
        "dtype": "uint8",
        "crs": "EPSG:32652",
        "transform": Affine(0.1, 0, 500_000, 0, -0.1, 5_300_000),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "zstd",
        "zstd_level": 1,
        "photometric": "MINISBLACK",
        "alpha": "NO",
        "bigtiff": "YES",
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "w", **profile) as file:
        file.descriptions = BANDS
        for top in range(0, size, 512):
            rows = min(512, size - top)
            coarse = rng.integers(0, 256, (4, 9, size // 64 + 2)).astype(np.float32)
            strip = np.stack([zoom(band, 64, order=1)[:rows, :size] for band in coarse])
            strip = strip.clip(0, 255).astype(np.uint8) ^ rng.integers(0, 8, strip.shape, dtype=np.uint8)
            valid = np.ones((rows, size), bool)
            valid[:, : max(0, size // 10 - top)] = False
            window = Window(0, top, size, rows)
            file.write(strip, window=window)
            file.write_mask(valid, window=window)


def write_bundles(folder: Path) -> None:
    import torch

    from geoeco.models import ConvStack
    from geoeco.training import ModelBundle, Normalisation
    from geoeco.training.smp_adapter import SmpSegmenter

    torch.manual_seed(0)
    stack = {"in_channels": 4, "num_classes": 5, "width": 16, "layers": 3, "kernel": 3}
    unet = {"model": "Unet", "encoder": "resnet18", "in_channels": 4, "num_classes": 5}
    for name, arguments, module, stride, halo in (
        ("conv_stack", stack, ConvStack(**stack), 1, 3),
        ("smp", unet, SmpSegmenter(**unet), 32, 312),
    ):
        ModelBundle(
            module,
            name,
            arguments,
            BANDS,
            Normalisation((0.5,) * 4, (0.25,) * 4),
            size=512,
            resolution=0.1,
            task="segmentation",
            classes=CLASSES,
            stride=stride,
            halo=halo,
            name=name,
        ).save(folder / name)


def command(*words: str) -> list[str]:
    return [GEOECO, *words, "--cluster", "local", "--workers", "2", "--quiet"]


def contents(run: Path) -> str:
    digest = hashlib.sha256()
    for folder in ("predict", "cog"):
        for path in sorted((run / folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(run).as_posix().encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def records(run: Path, stage: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run.glob(f"ledger/{stage}/*.json"))]


def killed_and_resumed(folder: Path, blocks: int) -> float:
    """Kill driver and workers when a third of the blocks are done, then resume; seconds of both."""
    start = time.perf_counter()
    run = folder / "killed"
    with (folder / "killed.log").open("wb") as log:
        driver = subprocess.Popen(
            command("run", "large.yaml", "--out", "killed"), cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        while len(list(run.glob("ledger/predict/blocks/*.json"))) < blocks // 3:
            if driver.poll() is not None:
                raise RuntimeError(f"the run ended with {driver.returncode}: see {folder / 'killed.log'}")
            time.sleep(0.2)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    done = subprocess.run(command("resume", "killed"), cwd=folder, check=False)
    if done.returncode:
        raise RuntimeError(f"the resumed run ended with {done.returncode}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="a mosaic larger than memory")
    parser.add_argument("--size", type=int, default=30_000)
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument(
        "--unet-part", type=int, default=4096, help="pixels along a side of what the U-Net maps; 0: none"
    )
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="geoeco-bench-large-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measured = measure(folder, options.size, options.block, options.unet_part)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    for name, value in measured.items():
        print(f"{name}: {value}")
    RESULTS.mkdir(exist_ok=True)
    record = {"name": "large_mosaic", "machine": machine(), "results": measured}
    (RESULTS / "large_mosaic.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def measure(folder: Path, size: int, block: int, unet_part: int) -> dict:
    from geoeco.steps import Recipe

    if not (folder / "mosaic.tif").exists():
        write_mosaic(folder / "mosaic.tif", size)
    write_bundles(folder)
    (folder / "large.yaml").write_text(RECIPE.format(block=block, bundle="conv_stack"))
    plan = Recipe.load(folder / "large.yaml").plan()
    blocks = len(plan.blocks)

    start = time.perf_counter()
    done = subprocess.run(command("run", "large.yaml", "--out", "whole"), cwd=folder, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the run ended with {done.returncode}")
    resumed = killed_and_resumed(folder, blocks)
    peaks = {
        stage: max(record["peak_bytes"] for run in ("whole", "killed") for record in records(folder / run, where))
        for stage, where in (("blocks", "predict/blocks"), ("files", "cog/files"))
    }
    found = {
        "size": size,
        "blocks": blocks,
        "the plan's bound of a worker, MiB": round(plan.peak_memory_bytes / 2**20),
        "measured over blocks, MiB": round(peaks["blocks"] / 2**20),
        "measured over the GeoTIFF, MiB": round(peaks["files"] / 2**20),
        "within the bound": max(peaks.values()) <= plan.peak_memory_bytes,
        "seconds, whole run": round(seconds, 1),
        "seconds, killed and resumed": round(resumed, 1),
        "byte-identical": contents(folder / "whole") == contents(folder / "killed"),
    }
    if unet_part:
        found |= unet(folder, size, unet_part)
    return found


def unet(folder: Path, size: int, part: int) -> dict:
    """Seconds of a U-Net over the upper left part of the mosaic in this process, and what that makes for all of it."""
    from geoeco.mapping import Predictor, choose_tiling
    from geoeco.mapping.networks import Member
    from geoeco.sensors.orthomosaic import describe_orthomosaic
    from geoeco.training import ModelBundle

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mosaic = describe_orthomosaic(folder / "mosaic.tif")
    bundle = ModelBundle.load(folder / "smp")
    tiling = choose_tiling(mosaic.shape, (bundle,), window=512, overlap=128)
    predictor = Predictor(mosaic, (Member(bundle),), tiling, ("class",), threads)
    part, first = min(part, size), min(size // 2, size - min(part, size))
    start = time.perf_counter()
    made = predictor.block((first, first + part), (first, first + part))
    seconds = time.perf_counter() - start
    whole = tiling.windows((0, size), (0, size))
    return {
        "U-Net: windows of the part": int(made["windows"]),
        "U-Net: seconds of the part": round(seconds, 1),
        "U-Net: windows of one pass over the whole": whole,
        "U-Net: seconds of one pass over the whole, from the part": round(seconds / int(made["windows"]) * whole),
    }


if __name__ == "__main__":
    main()
