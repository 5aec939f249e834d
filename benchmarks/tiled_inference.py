"""Classes of an orthomosaic by a U-Net: 8192 x 8192 pixels of four bands of uint8, windows of 512 that share 128.

smp U-Net with a ResNet-18, random weights, five classes; every contender reads the same GeoTIFF and leaves a class map
as a cloud-optimised GeoTIFF by the same writer. The reference is the least that any of them must do: the forward
passes over the windows that geoeco runs, their pixels in memory already, and the writing of a class map that is there
already. terratorch's tiled inference and a loop over torchgeo's grid sampler with stitching by hand hold the whole
image and the whole canvas of logits.

    python benchmarks/tiled_inference.py
    GEOECO_BENCH_SIZE=2048 python benchmarks/tiled_inference.py     # a smaller mosaic, for a look
    GEOECO_BENCH_TERRATORCH=DIR ...                                 # an unpacked wheel of terratorch: it need not be
                                                                    # installed, its pins clash with ours
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, compare

SIZE = int(os.environ.get("GEOECO_BENCH_SIZE", "8192"))
TERRATORCH = os.environ.get("GEOECO_BENCH_TERRATORCH", "")
WINDOW, OVERLAP = 512, 128
#: Of every contender; on a CPU larger batches are no faster.
BATCH = int(os.environ.get("GEOECO_BENCH_BATCH", "1"))
BANDS = ("red", "green", "blue", "nir")
CLASSES = ("dry land", "grass belt", "river", "ridge", "paved road")
ARGUMENTS = {"model": "Unet", "encoder": "resnet18", "in_channels": 4, "num_classes": 5}
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def network() -> Any:
    import torch

    from geoeco.training.smp_adapter import SmpSegmenter

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return SmpSegmenter(**ARGUMENTS).eval()


def prepare(folder: Path) -> dict:
    """Write smooth noise as a tiled GeoTIFF, and the network as a bundle."""
    import rasterio
    from affine import Affine
    from scipy.ndimage import zoom

    from geoeco.training import ModelBundle, Normalisation

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, SIZE // 64, SIZE // 64)).astype(np.float32)
    profile = {
        "driver": "GTiff",
        "width": SIZE,
        "height": SIZE,
        "count": 4,
        "dtype": "uint8",
        "crs": "EPSG:32652",
        "transform": Affine(0.1, 0, 500_000, 0, -0.1, 5_300_000),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "zstd",
        "photometric": "MINISBLACK",
        "alpha": "NO",
    }
    with rasterio.open(folder / "mosaic.tif", "w", **profile) as file:
        for band in range(4):
            smooth = zoom(coarse[band], 64, order=1)
            file.write(np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8), band + 1)
        file.descriptions = BANDS
    made = ModelBundle(
        network(),
        "smp",
        ARGUMENTS,
        BANDS,
        Normalisation((0.45,) * 4, (0.2,) * 4),
        size=WINDOW,
        resolution=0.1,
        task="segmentation",
        classes=CLASSES,
        stride=32,
        halo=312,
    )
    made.save(folder / "bundle")
    return {"size": SIZE, "bands": 4, "window": WINDOW, "overlap": OVERLAP, "batch": BATCH, "threads": THREADS}


def written(folder: Path, name: str, classes: np.ndarray) -> dict:
    import odc.geo.xr  # noqa: F401
    import xarray as xr
    from odc.geo.xr import xr_coords

    from geoeco.grid import raster_geobox
    from geoeco.outputs import write_cog

    grid = raster_geobox(str(folder / "mosaic.tif"))
    attrs = {"kind": "class", "units": "", "flag_values": list(range(5)), "flag_meanings": "a b c d e"}
    array = xr.DataArray(classes, dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="class", attrs=attrs)
    write_cog(array, folder / f"{name}.tif", threads=THREADS)
    return {"share of class 0": round(float((classes == 0).mean()), 4)}


# --- reference -------------------------------------------------------------------------------------------------------


def windows() -> int:
    return (-(-(SIZE - WINDOW) // (WINDOW - OVERLAP)) + 1) ** 2


def reference_setup(folder: Path) -> tuple:
    import rasterio
    import torch

    with rasterio.open(folder / "mosaic.tif") as file:
        pixels = file.read()
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 5, (SIZE // 64, SIZE // 64), dtype=np.uint8)
    classes = np.kron(coarse, np.ones((64, 64), np.uint8))
    batch = torch.from_numpy(pixels[:, :WINDOW, :WINDOW].copy()).float()[None].repeat(BATCH, 1, 1, 1) / 255
    return network(), batch.contiguous(memory_format=torch.channels_last), classes, folder


def reference(state: tuple) -> dict:
    import torch

    net, batch, classes, folder = state
    left = windows()
    with torch.inference_mode():
        while left > 0:
            net(batch[: min(left, BATCH)])
            left -= BATCH
    return {"windows": windows(), **written(folder, "reference", classes)}


# --- geoeco ----------------------------------------------------------------------------------------------------------


def geoeco_setup(folder: Path) -> tuple:
    import torch

    from geoeco.training import ModelBundle

    torch.set_num_threads(THREADS)
    return ModelBundle.load(folder / "bundle"), folder


def geoeco(state: tuple, precision: str = "32") -> dict:
    from geoeco.mapping import predict

    bundle, folder = state
    made = predict(
        folder / "mosaic.tif",
        bundle,
        window=WINDOW,
        overlap=OVERLAP,
        blend="hann",
        batch=BATCH,
        precision=precision,
        progress=False,
    )
    return written(folder, "geoeco", made["class"].to_numpy())


def geoeco_bf16(state: tuple) -> dict:
    return geoeco(state, "bf16")


# --- peers -----------------------------------------------------------------------------------------------------------


def peer_setup(folder: Path) -> tuple:
    return network(), folder


def normalised(image: Any) -> Any:
    return (image / 255 - 0.45) / 0.2


def tiled_inference() -> Any:
    """Terratorch's module of that name, alone: of the rest of the package it only uses the function that pads."""
    for name in ("terratorch", "terratorch.models", "terratorch.registry", "terratorch.tasks"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(TERRATORCH, *name.split(".")))]
        sys.modules[name] = package
    sys.modules["terratorch.registry"].BACKBONE_REGISTRY = None  # type: ignore[attr-defined]
    for name in ("terratorch.models.utils", "terratorch.tasks.tiled_inference"):
        spec = importlib.util.spec_from_file_location(name, Path(TERRATORCH, *name.split(".")).with_suffix(".py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["terratorch.tasks.tiled_inference"].tiled_inference


def terratorch(state: tuple) -> dict:
    import rasterio
    import torch

    net, folder = state
    with rasterio.open(folder / "mosaic.tif") as file:
        image = normalised(torch.from_numpy(file.read()).float()[None])
    with torch.inference_mode():
        logits = tiled_inference()(
            net,
            image,
            out_channels=5,
            crop=WINDOW,
            stride=WINDOW - OVERLAP,
            delta=0,
            padding=False,
            batch_size=BATCH,
        )
    return written(folder, "terratorch", logits[0].argmax(0).numpy().astype(np.uint8))


def torchgeo(state: tuple) -> dict:
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    net, folder = state

    class Mosaic(RasterDataset):
        filename_glob = "mosaic.tif"

    dataset = Mosaic(str(folder))
    sampler = GridGeoSampler(dataset, size=WINDOW, stride=WINDOW - OVERLAP)
    total, count = torch.zeros(5, SIZE, SIZE), torch.zeros(SIZE, SIZE)
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples):
            found = torch.softmax(net(normalised(batch["image"].float())), dim=1)
            for probability, (x, y, _) in zip(found, bounds_of(batch), strict=True):
                col, row = round((x.start - 500_000) / 0.1), round((5_300_000 - y.stop) / 0.1)
                top, left = max(row, 0), max(col, 0)
                part = probability[:, top - row : SIZE - row, left - col : SIZE - col]
                total[:, top : row + WINDOW, left : col + WINDOW] += part
                count[top : row + WINDOW, left : col + WINDOW] += 1
    return written(folder, "torchgeo", (total / count).argmax(0).numpy().astype(np.uint8))


def bounds_of(batch: dict) -> list:
    """Slices of x, y and t of each sample."""
    found = []
    for bounds in batch["bounds"]:
        if isinstance(bounds, tuple):
            found.append(bounds)
        else:
            left, right, _, bottom, top, _, *_ = bounds.tolist()
            found.append((slice(left, right), slice(bottom, top), None))
    return found


def contenders() -> list[Contender]:
    import torch

    found = [
        Contender("forward and COG", reference, reference_setup, warmup=0),
        Contender("geoeco", geoeco, geoeco_setup, warmup=0),
        Contender("torchgeo sampler", torchgeo, peer_setup, warmup=0, needs=("torchgeo",)),
    ]
    if TERRATORCH:
        found.append(Contender("terratorch", terratorch, peer_setup, warmup=0))
    if torch.cpu._is_avx512_bf16_supported():
        found.append(Contender("geoeco, bf16", geoeco_bf16, geoeco_setup, warmup=0))
    return found


if __name__ == "__main__":
    chosen = contenders()
    told = [] if TERRATORCH else ["terratorch (GEOECO_BENCH_TERRATORCH is not set)"]
    if not any("bf16" in contender.name for contender in chosen):
        told.append("bf16 (this processor has none)")
    title = f"U-Net ResNet-18 over {SIZE} x {SIZE} x 4, windows of {WINDOW} sharing {OVERLAP}, {THREADS} threads"
    if told:
        title += f"; left out: {', '.join(told)}"
    compare("tiled_inference", chosen, prepare=prepare, rounds=3, title=title)
