"""Loading season chips: locations a second of geoeco's store, of the upstream GeoTIFF layout, and of torchgeo.

The same pixels three times: 64 simulated locations x 4 dates x 12 bands x 256 x 256. geoeco reads its store; the
upstream layout is one GeoTIFF a date with 13 layers (12 bands and NDVI, uint16, LZW, predictor 2), of which all dates
and layers are read with rasterio and nine channels kept, as SSL4Eco's loader does; torchgeo's SSL4EO-L data set reads
the same files. All read in the training process (no workers) into batches of 16. "as drawn" is what training reads,
three of the four dates, left as stored for the device; "all dates" gives float32 reflectance like the others.

The last row is another work: steps of SeCo with a ResNet-50 on the device at hand, to see which share of the time a
training waits for its data. Its first step, which starts everything, is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, compare

LOCATIONS, SIZE, BATCH = 64, 256, 16
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
CHANNELS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "ndvi")
LAYERS = [(*BANDS, "ndvi").index(channel) for channel in CHANNELS]
SPLIT = "oli_sr"


def prepare(folder: Path) -> dict[str, Any]:
    import rasterio
    import xarray as xr
    from rasterio.transform import from_origin

    from geoeco.sampling import chips_template, finish_chips, open_chips, store_chips
    from geoeco.simulate import ChipWorld, ChipWorldSettings

    if (folder / "facts.json").exists():
        return json.loads((folder / "facts.json").read_text())
    # more places than needed: only those with four dates are used, so that every contender reads as much
    world = ChipWorld(ChipWorldSettings(locations=LOCATIONS * 2, size=SIZE, bands=BANDS))
    windows = world.windows("phenology")
    store, whole = str(folder / "chips"), []
    for first in range(0, LOCATIONS * 2, 16):
        part = world.chips(windows, first, first + 16)
        whole += [part.isel(sample=[i]) for i in np.flatnonzero((part["reason"].values == "").all(axis=1))]
        if len(whole) >= LOCATIONS:
            break
    chips_template(store, LOCATIONS, size=SIZE, bands=BANDS, samples_per_shard=LOCATIONS)
    store_chips(store, xr.concat(whole[:LOCATIONS], "sample"))
    finish_chips(store)
    chips = open_chips(store, stored=True)
    profile = {
        "driver": "GTiff", "width": SIZE, "height": SIZE, "count": 13, "dtype": "uint16", "compress": "lzw",
        "predictor": 2,
    }  # fmt: skip
    for sample in range(LOCATIONS):
        for season in range(4):
            one = chips.isel(sample=sample, season=season)
            values = np.clip(one["chips"].values, 0, None).astype(np.float32)
            red, nir = values[3], values[7]
            ndvi = np.clip((nir - red) / (nir + red + 1e-5), 0, None) * 10000
            layers = np.concatenate([values, ndvi[None]]).astype(np.uint16)
            target = folder / f"ssl4eo_l_{SPLIT}" / f"{sample:06d}" / str(one["date"].dt.strftime("%Y%m%d").values)
            target.mkdir(parents=True)
            where = {
                "crs": f"EPSG:{int(one['epsg'])}",
                "transform": from_origin(float(one["x0"]), float(one["y1"]), 10, 10),
            }
            with rasterio.open(target / "all_bands.tif", "w", **profile, **where) as file:
                file.write(layers)

    def mib(*patterns: str) -> float:
        files = [path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()]
        return round(sum(path.stat().st_size for path in files) / 2**20, 1)

    facts = {"zarr_mib": mib("chips.zarr/**/c/**/*"), "geotiff_mib": mib("*.tif"), "locations": LOCATIONS}
    (folder / "facts.json").write_text(json.dumps(facts))
    return facts


def read(loader: Any) -> dict[str, Any]:
    """One pass over a loader; what it gives is touched, so that nothing is left for later."""
    count, total = 0, 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in loader:
        image = batch["image"]
        count += len(image)
        total += float(image[..., ::64, ::64].double().sum())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"locations_per_s": count / wall, "locations_per_cpu_s": count / cpu, "shape": str(tuple(image.shape[1:]))}


def loader_of(dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=BATCH)


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def drawn(folder: Path) -> Any:
    from geoeco.training import ChipDataset

    one_thread()
    return loader_of(ChipDataset(folder / "chips", bands=CHANNELS, dates=3, stored=True))


def all_dates(folder: Path) -> Any:
    from geoeco.training import ChipDataset

    one_thread()
    return loader_of(ChipDataset(folder / "chips", bands=CHANNELS))


class Upstream:
    """One folder a location, one file a date; all dates, all layers, then the channels."""

    def __init__(self, root: Path) -> None:
        self.folders = sorted((root / f"ssl4eo_l_{SPLIT}").iterdir())

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import rasterio
        import torch

        dates = []
        for date in sorted(self.folders[index].iterdir()):
            with rasterio.open(date / "all_bands.tif") as file:
                dates.append(file.read()[LAYERS].astype(np.float32))
        return {"image": torch.from_numpy(np.stack(dates) / np.float32(10000))}


def upstream(folder: Path) -> Any:
    one_thread()
    return loader_of(Upstream(folder))


def torchgeo_ssl4eo(folder: Path) -> Any:
    from torchgeo.datasets import SSL4EOL

    one_thread()
    return loader_of(SSL4EOL(folder, split=SPLIT, seasons=4))


def waiting(folder: Path) -> dict[str, Any]:
    """Share of a training's time that is spent waiting for batches: SeCo, ResNet-50, views of 224 pixels."""
    import torch

    from geoeco.models import SeCo
    from geoeco.training import ChipDataset, LocationBatches, SeasonViews
    from geoeco.training.datamodule import ChipDataModule

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    batch, epochs, workers = (32, 20, 8) if cuda else (4, 1, 0)
    dataset = ChipDataset(folder / "chips", bands=CHANNELS, dates=3, stored=True)
    batches = LocationBatches(dataset.names, batch, epochs=epochs, seed=0)
    module = ChipDataModule(dataset, batches, workers=workers, pin_memory=cuda)
    model = SeCo("resnet50", len(CHANNELS), queue_size=batch * 4).to(device).train()
    views = SeasonViews(CHANNELS, size=224).to(device)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.03, momentum=0.9)
    steps = 0
    waited = worked = 0.0
    loader: Iterator[Any] = iter(module.train_dataloader())
    while steps < (40 if cuda else 3):
        start = time.perf_counter()
        loaded = next(loader)
        ready = time.perf_counter()
        sample = {name: value.to(device, non_blocking=True) for name, value in loaded.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = model.loss(*views(dataset.decode(sample)["image"])).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        float(loss.detach())
        # the first step starts the workers and picks the convolutions' algorithms
        if steps:
            waited, worked = waited + ready - start, worked + time.perf_counter() - ready
        steps += 1
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "backbone": "resnet50",
        "batch": batch,
        "workers": workers,
        "steps": steps - 1,
        "waiting_share": waited / (waited + worked),
        "locations_per_s": batch * (steps - 1) / (waited + worked),
    }


if __name__ == "__main__":
    compare(
        "loader",
        [
            Contender("upstream GeoTIFF", read, upstream),
            Contender("torchgeo SSL4EOL", read, torchgeo_ssl4eo, needs=("torchgeo",)),
            Contender("geoeco, all dates", read, all_dates),
            Contender("geoeco, as drawn", read, drawn),
            Contender("SeCo steps, ResNet-50", waiting, warmup=0),
        ],
        prepare=prepare,
        title=f"{LOCATIONS} locations x 4 dates x 12 bands x {SIZE}² px, no workers, one thread",
    )
