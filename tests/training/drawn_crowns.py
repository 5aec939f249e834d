"""Stores of crown chips drawn by hand: species by colour and texture, crowns in blocks, close-ups of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from geoeco.sampling import store_uav_chips

BANDS = ("red", "green", "blue")
SPLITS = ("train", "val", "test", "none")
GSD = 0.1
#: Colour of each species, and how strongly its leaves are striped.
SPECIES = {"birch": ((0.45, 0.60, 0.30), 0.0), "larch": ((0.30, 0.50, 0.25), 0.10), "oak": ((0.25, 0.40, 0.30), 0.0)}


def appearance(species: str, size: int, rng: np.random.Generator, *, noise: float = 0.04) -> np.ndarray:
    """A picture of a crown ``(band, y, x)`` in 0..1, lit by chance."""
    colour, stripes = SPECIES[species]
    pattern = np.where(np.arange(size) % 4 < 2, 1 + stripes, 1 - stripes)
    image = np.array(colour)[:, None, None] * pattern[None, :, None] * rng.uniform(0.9, 1.1)
    return (image + rng.normal(0, noise, (3, size, size))).clip(0, 1)


def draw_crowns(
    folder: Path,
    species: list[str],
    splits: list[str],
    *,
    size: int = 16,
    seed: int = 0,
    blocks: list[int] | None = None,
    named: list[str] | None = None,
    context: str = "keep",
    kind: str = "crown",
) -> str:
    """Write a store with a crown a chip, in rows of eight on the map; `named` is what the crowns are said to be.

    Each crown is the disc in the middle of its chip; a corner of the first chip is not valid.
    """
    rng = np.random.default_rng(seed)
    count = len(species)
    image = np.stack([appearance(name, size, rng) for name in species])
    valid = np.ones((count, size, size), bool)
    valid[0, :4, :4] = False
    image = np.where(valid[:, None], image, 0)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = np.hypot(y, x) <= size / 3
    crown_id = np.arange(1, count + 1) if kind == "crown" else np.zeros(count, int)
    row, column = np.divmod(np.arange(count), 8)
    corners = [(500_000 + c * size * GSD, 5_000_000 - r * size * GSD) for r, c in zip(row, column, strict=True)]
    affine = np.array([[GSD, 0, left, 0, -GSD, top] for left, top in corners])
    names = species if named is None else named
    classes = sorted({name for name in names if name})
    per_sample = {
        "offset": (("sample", "pixel_axis"), np.stack([row, column], 1).astype(np.int32) * size),
        "step": ("sample", np.ones(count, np.int32)),
        "affine": (("sample", "coefficient"), affine),
        "source": ("sample", np.zeros(count, np.int16)),
        "split": ("sample", np.array([SPLITS.index(name) for name in splits], np.int8)),
        "block": ("sample", np.array(row if blocks is None else blocks, np.int32)),
        "crown_id": ("sample", crown_id.astype(np.int32)),
        "class_id": ("sample", np.array([classes.index(n) if n else -1 for n in names], np.int16)),
        "date": ("sample", np.zeros(count, np.int16)),
        "valid_fraction": ("sample", valid.mean((1, 2)).astype(np.float32)),
        "label_fraction": ("sample", np.zeros(count, np.float32)),
    }
    chips = xr.Dataset(
        {
            "image": (("sample", "band", "y", "x"), np.round(image * 255).astype(np.uint8)),
            "valid": (("sample", "y", "x"), valid),
            "chm": (("sample", "y", "x"), np.where(disc, 5 + np.arange(count)[:, None, None], 0.0).astype(np.float32)),
            "instance": (("sample", "y", "x"), (disc * crown_id[:, None, None]).astype(np.int32)),
            **per_sample,
        },
        coords={"band": list(BANDS)},
        attrs={
            "gsd_m": GSD,
            "epsg": 32652,
            "bands": list(BANDS),
            "classes": [],
            "crown_classes": classes,
            "splits": list(SPLITS),
            "sources": ["mosaic"],
            "dates": ["2026-07-01"],
            "kind": kind,
            "context": context,
            "scale": 1 / 255,
        },
    )
    chips["image"].attrs.update(scale=1 / 255, units="1", kind="continuous")
    store = str(folder / "uav.zarr")
    store_uav_chips(store, chips, chips_per_shard=16)
    return store
