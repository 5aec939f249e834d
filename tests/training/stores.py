"""Stores of season chips with given pixels: small, and written without any imagery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from geoeco.sampling import SEASONS, chips_template, finish_chips, store_chips

BANDS = ("B02", "B03", "B04", "B08", "B11")
NODATA = -32768


def store_of(
    folder: Path | str,
    chips: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    bands: Sequence[str] = BANDS,
    reason: np.ndarray | None = None,
    per_shard: int = 4,
) -> str:
    """Write chips ``(sample, season, band, y, x)``, int16 with -32768, as a finished store; give its name.

    `reason (sample, season)` says why a chip is missing; "" where it is there.
    """
    n, _, _, size, _ = chips.shape
    reason = np.full((n, 4), "", dtype=object) if reason is None else reason
    names = [f"place-{i:03d}" for i in range(n)] if names is None else list(names)
    dates = np.array(["2021-04-15", "2021-07-15", "2021-10-15", "2022-01-15"], "datetime64[ns]")

    def of_chip(value):
        return ("sample", "season"), np.full((n, 4), value)

    data = xr.Dataset(
        {
            "chips": (("sample", "season", "band", "y", "x"), chips),
            "scl": (("sample", "season", "y", "x"), np.full((n, 4, size, size), 4, np.uint8)),
        },
        coords={
            "season": list(SEASONS),
            "band": list(bands),
            "sample": np.arange(n),
            "name": ("sample", names),
            "lon": ("sample", 3.0 + 0.01 * np.arange(n)),
            "lat": ("sample", np.full(n, 51.0)),
            "epsg": ("sample", np.full(n, 32631)),
            "x0": ("sample", 500_000.0 + 3000.0 * np.arange(n)),
            "y1": ("sample", np.full(n, 5_600_000.0)),
            "kept": ("sample", np.full(n, True)),
            "reason": (("sample", "season"), reason),
            "date": (("sample", "season"), np.where(reason == "", dates[None], np.datetime64("NaT", "ns"))),
            "candidates": of_chip(3),
            "item_id": of_chip("scene"),
            "season_year": of_chip(2021),
            "offset_d": of_chip(0.0),
            "clear_fraction": of_chip(1.0),
            "nodata_fraction": of_chip(0.0),
            "valid_fraction": of_chip(1.0),
            "sun_elevation": of_chip(45.0),
            "cloud_cover": of_chip(1.0),
            "flags": of_chip(""),
        },
        attrs={"size": size, "resolution": 10.0},
    )
    store = str(folder)
    chips_template(store, n, size=size, bands=tuple(bands), samples_per_shard=per_shard)
    store_chips(store, data)
    finish_chips(store)
    return store


def pixels(n: int, *, size: int = 16, bands: int = len(BANDS), seed: int = 0) -> np.ndarray:
    """Chips of which each location and season has a brightness of its own, ``(sample, season, band, y, x)``."""
    random = np.random.default_rng(seed)
    level = random.integers(300, 3000, (n, 4, bands, 1, 1))
    return (level + random.integers(-200, 200, (n, 4, bands, size, size))).astype(np.int16)
