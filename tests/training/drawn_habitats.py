"""Stores of labelled chips drawn by hand: fields in stripes of any direction, each class with its colour and grain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from pyproj import CRS

from geoeco.sampling import store_uav_chips

BANDS = ("red", "green", "blue")
SPLITS = ("train", "val", "test", "none")
GSD = 0.1
#: Code, name, colour in tables, and colour in the picture of each class.
CLASSES = (
    (0, "background", "#000000", (0.20, 0.20, 0.22)),
    (2, "dry land", "#c8a050", (0.50, 0.42, 0.30)),
    (11, "ridge", "#70b050", (0.30, 0.45, 0.20)),
)


def draw_habitats(
    folder: Path,
    splits: Sequence[str],
    *,
    size: int = 32,
    seed: int = 0,
    blocks: Sequence[int] | None = None,
    classes: Sequence[tuple] = CLASSES,
    codes: Sequence[int] = (0, 2, 11),
    noise: float = 0.02,
    dtype: type = np.uint8,
) -> str:
    """Write a store of chips; a corner of the first is not valid, and the last row of each has no label."""
    rng = np.random.default_rng(seed)
    count = len(splits)
    y, x = np.mgrid[:size, :size]
    label = np.zeros((count, size, size), np.uint8)
    image = np.zeros((count, 3, size, size))
    colours = {code: colour for code, _, _, colour in CLASSES}
    for number in range(count):
        angle, shift = rng.uniform(0, np.pi), rng.uniform(0, 30)
        stripe = ((np.cos(angle) * x + np.sin(angle) * y + shift) / 8).astype(int) % len(codes)
        label[number] = np.array(codes, np.uint8)[stripe]
        picture = np.array([colours.get(code, (0.9, 0.1, 0.9)) for code in codes])[stripe]
        image[number] = (picture * rng.uniform(0.95, 1.05) + rng.normal(0, noise, picture.shape)).transpose(2, 0, 1)
    label[:, -1] = 255
    valid = np.ones((count, size, size), bool)
    valid[0, :8, :8] = False
    top = np.iinfo(dtype).max
    stored = np.where(valid[:, None], np.round(image.clip(0, 1) * top), 0).astype(dtype)
    known = valid & (label != 255)
    row, column = np.divmod(np.arange(count), 8)
    affine = np.array(
        [[GSD, 0, 5e5 + c * size * GSD, 0, -GSD, 5e6 - r * size * GSD] for r, c in zip(row, column, strict=True)]
    )
    chips = xr.Dataset(
        {
            "image": (("sample", "band", "y", "x"), stored),
            "valid": (("sample", "y", "x"), valid),
            "label": (("sample", "y", "x"), label),
            "offset": (("sample", "pixel_axis"), np.stack([row, column], 1).astype(np.int32) * size),
            "step": ("sample", np.ones(count, np.int32)),
            "affine": (("sample", "coefficient"), affine),
            "source": ("sample", np.zeros(count, np.int16)),
            "split": ("sample", np.array([SPLITS.index(name) for name in splits], np.int8)),
            "block": ("sample", np.array(np.arange(count) // 4 if blocks is None else blocks, np.int32)),
            "date": ("sample", np.zeros(count, np.int16)),
            "valid_fraction": ("sample", valid.mean((1, 2)).astype(np.float32)),
            "label_fraction": ("sample", known.mean((1, 2)).astype(np.float32)),
        },
        coords={"band": list(BANDS)},
        attrs={
            "gsd_m": GSD,
            "epsg": 32652,
            "crs_wkt": CRS.from_epsg(32652).to_wkt(),
            "bands": list(BANDS),
            "classes": [list(row[:3]) for row in classes],
            "crown_classes": [],
            "splits": list(SPLITS),
            "sources": ["mosaic"],
            "dates": ["2026-07-01"],
            "kind": "grid",
            "scale": 1 / top,
        },
    )
    chips["image"].attrs.update(scale=1 / top, units="1", kind="continuous")
    folder.mkdir(parents=True, exist_ok=True)
    store = str(folder / "uav.zarr")
    store_uav_chips(store, chips, chips_per_shard=8)
    return store
