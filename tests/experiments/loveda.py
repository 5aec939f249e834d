"""Two LoveDA tiles as a small mosaic: DWFF-Net and a U-Net trained on blocks of them, scored on other blocks.

The tiles have no georeference: they get one of their own here, side by side in a zone where they are not, so that
chips and blocks have metres. The networks start from random weights, DWFF-Net's frozen encoder too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from geoeco.sampling import BlockSplit, grid_chips, store_uav_chips
from geoeco.training import train_segmentation

GSD = 0.3
#: Code, name and colour, by the tiles' own description; 0 is no data.
CLASSES = (
    (1, "background", "#c8c8c8"),
    (2, "building", "#d7191c"),
    (3, "road", "#fdae61"),
    (4, "water", "#2b83ba"),
    (5, "barren", "#a6611a"),
    (6, "forest", "#1a9641"),
    (7, "agriculture", "#ffffbf"),
)


@dataclass(frozen=True)
class Setting:
    """How large the experiment is."""

    pixels: int = 1024
    chip_m: float = 19.2
    block_m: float = 76.8
    epochs: int = 12
    batch: int = 8
    seed: int = 1


SMOKE = Setting(pixels=256, chip_m=9.6, block_m=19.2, epochs=1, batch=8)
#: Name, network, its arguments, learning rate.
NETWORKS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("DWFF, ViT-Ti/16 of random weights, frozen", "dwff", {"backbone": "vit_tiny_patch16_224"}, 1e-4),
    ("U-Net ResNet-18 from random weights", "smp", {"model": "Unet", "encoder": "resnet18"}, 1e-3),
    ("stack of three convolutions", "conv_stack", {}, 3e-3),
)


def make_store(source: Path, folder: Path, setting: Setting) -> str:
    """Chips of both tiles with their labels, blocks of ground handed out to train, val and test."""
    mosaics, labels = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for number in (0, 1):
        side = setting.pixels
        image = np.array(Image.open(source / f"image_{number}.png").convert("RGB"))[:side, :side]
        mask = np.array(Image.open(source / f"mask_{number}.png"))[:side, :side]
        # a gap of one tile between the two
        place = from_origin(500_000 + 2 * number * side * GSD, 3_300_000, GSD, GSD)
        profile = {"driver": "GTiff", "height": side, "width": side, "crs": "EPSG:32650", "transform": place}
        mosaics.append(str(folder / f"image_{number}.tif"))
        with rasterio.open(mosaics[-1], "w", count=3, dtype="uint8", photometric="RGB", **profile) as raster:
            raster.write(image.transpose(2, 0, 1))
        labels.append(str(folder / f"mask_{number}.tif"))
        with rasterio.open(labels[-1], "w", count=1, dtype="uint8", nodata=0, **profile) as raster:
            raster.write(mask, 1)
            raster.write_colormap(1, {code: _rgb(colour) for code, _, colour in CLASSES})
        names = ["", *(name for _, name, _ in CLASSES)]
        categories = "".join(f"<Category>{name}</Category>" for name in names)
        band = f'<PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames></PAMRasterBand>'
        Path(f"{labels[-1]}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    chips = grid_chips(
        mosaics,
        chip_m=setting.chip_m,
        labels=labels,
        split=BlockSplit(setting.block_m, fractions=(0.6, 0.2, 0.2)),
        seed=setting.seed,
    )
    store = str(folder / "uav.zarr")
    store_uav_chips(store, chips)
    return store


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def run(store: str, folder: Path, setting: Setting, networks=NETWORKS) -> dict[str, Any]:
    """Scores of each network on the held-out blocks."""
    found: dict[str, Any] = {"classes": [name for _, name, _ in CLASSES], "networks": {}}
    for name, network, arguments, lr in networks:
        where = folder / name.split(",")[0].replace(" ", "_")
        train_segmentation(
            store,
            where,
            network=network,
            arguments=arguments,
            lr=lr,
            epochs=setting.epochs,
            batch=setting.batch,
            at_once=8,
            unscored=(),
            cross_entropy=1.0,
            # 0.7 of the pixels are agriculture
            class_weights="inverse-root",
            applicability_points=512,
            seed=setting.seed,
            device="cpu",
        )
        rows = json.loads((where / "evaluation.json").read_bytes())
        details = json.loads((where / "evaluation_details.json").read_bytes())["results"][-1]
        found["networks"][name] = {
            "test": {row["metric"]: row["mean"] for row in rows if row["split"] == "test"},
            "classes": details["classes"],
        }
        found["chips"] = json.loads((where / "bundle" / "mlm.json").read_bytes())["properties"]["geoeco:bundle"][
            "notes"
        ]["chips"]
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a class and the means, a column a network."""
    networks = found["networks"]
    lines = ["| | support | " + " | ".join(networks) + " |", "|---" * (2 + len(networks)) + "|"]
    first = next(iter(networks.values()))["classes"]
    total = sum(row["support"] for row in first)
    for number, row in enumerate(first):
        values = [one["classes"][number]["iou"] for one in networks.values()]
        shown = ["–" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {row['class']} | {100 * row['support'] / total:.1f} % | {' | '.join(shown)} |")
    for metric, name in (
        ("miou_present", "mean IoU over the classes that are there"),
        ("accuracy", "accuracy"),
        ("mcc", "MCC"),
        ("boundary_f1", "boundary F1, 0.3 m"),
    ):
        shown = [f"{one['test'][metric]:.2f}" for one in networks.values()]
        lines.append(f"| {name} | | {' | '.join(shown)} |")
    return "\n".join(lines)
