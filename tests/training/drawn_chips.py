"""Stores of chips drawn by hand, with labels that can be read from them, and encoders whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
import xarray as xr

from geoeco.sampling import SEASONS, check_locations, chips_template, finish_chips, open_chips, store_chips
from geoeco.training import ModelBundle, Normalisation

BANDS = ("B02", "B04", "B08")
#: Near infrared of each cover in spring, summer, autumn and winter: a mean over the year tells two of them apart.
NEAR_INFRARED = {"wood": (0.3, 0.45, 0.3, 0.15), "grass": (0.4, 0.3, 0.4, 0.4), "field": (0.15, 0.3, 0.45, 0.3)}


@dataclass(frozen=True)
class Drawn:
    store: str
    labels: pd.DataFrame
    chips: xr.Dataset


def draw_store(
    folder: Path,
    *,
    locations: int = 60,
    size: int = 12,
    seed: int = 0,
    names: str = "p{:03d}",
    without: dict[int, tuple[int, ...]] | None = None,
    invalid: dict[int, tuple[int, ...]] | None = None,
    brightness: float = 0.0,
) -> Drawn:
    """Write chips of three covers over 8 by 8 degrees; `without` and `invalid` name seasons of locations.

    A chip of `invalid` is there, with data at its edge only.
    """
    rng = np.random.default_rng(seed)
    points = gpd.points_from_xy(rng.uniform(5, 13, locations), rng.uniform(45, 53, locations), crs=4326)
    places = check_locations(gpd.GeoDataFrame({"name": [names.format(i) for i in range(locations)]}, geometry=points))
    covers = np.array(list(NEAR_INFRARED))[np.arange(locations) % 3]
    temperature = 25 - 0.5 * places["lat"].to_numpy()
    values = np.empty((locations, 4, 3, size, size), np.float32)
    values[:, :, 0] = 0.05 + brightness
    values[:, :, 1] = 0.06 + 0.002 * temperature[:, None, None, None]
    values[:, :, 2] = np.array([NEAR_INFRARED[cover] for cover in covers])[:, :, None, None]
    values += rng.normal(0, 0.01, values.shape).astype(np.float32)
    reason = np.full((locations, 4), "", dtype=object)
    for location, seasons in (without or {}).items():
        reason[location, list(seasons)] = "too-cloudy"
        values[location, list(seasons)] = np.nan
    for location, seasons in (invalid or {}).items():
        values[location, list(seasons), :, 1:] = np.nan
    year = np.array(["2021-04-15", "2021-07-15", "2021-10-15", "2021-01-15"], dtype="datetime64[ns]")
    there = reason == ""
    by_chip = ("sample", "season")
    chips = xr.Dataset(
        {
            "chips": (("sample", "season", "band", "y", "x"), values),
            "scl": (("sample", "season", "y", "x"), np.full((locations, 4, size, size), 4, np.uint8)),
        },
        coords={
            "sample": np.arange(locations),
            "season": list(SEASONS),
            "band": list(BANDS),
            **{name: ("sample", places[name].to_numpy()) for name in ("name", "lon", "lat", "epsg")},
            "x0": ("sample", np.arange(locations) * 1000.0 + 300_000),
            "y1": ("sample", np.full(locations, 5_400_000.0)),
            "kept": ("sample", there.sum(axis=1) >= 1),
            "reason": (by_chip, reason),
            "candidates": (by_chip, there.astype(np.int64)),
            "item_id": (by_chip, np.where(there, "drawn", "")),
            "date": (by_chip, np.where(there, year, np.datetime64("NaT", "ns"))),
            "season_year": (by_chip, np.full((locations, 4), 2021)),
            **{
                name: (by_chip, np.where(there, value, np.nan))
                for name, value in {
                    "offset_d": 0.0,
                    "clear_fraction": 1.0,
                    "nodata_fraction": 0.0,
                    "valid_fraction": 1.0,
                    "sun_elevation": 40.0,
                    "cloud_cover": 1.0,
                }.items()
            },
            "flags": (by_chip, np.full((locations, 4), "", dtype=object)),
        },
        attrs={"size": size, "resolution": 10.0},
    )
    store = str(folder / "chips")
    chips_template(store, locations, size=size, bands=BANDS, samples_per_shard=locations)
    store_chips(store, chips)
    finish_chips(store)
    labels = pd.DataFrame(
        {
            "name": places["name"],
            "cover": covers,
            "temperature": temperature,
            "wood": (covers == "wood").astype(int),
            "light": (covers != "wood").astype(int),
        }
    )
    return Drawn(store, labels, open_chips(store, kept=False).load())


class Means(torch.nn.Module):
    """The mean of each band over the window, and nothing learned."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.batches: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(image.shape))
        return self.gain * image.mean(dim=(2, 3))


def bundle_of(
    module: torch.nn.Module, *, size: int = 12, bands: tuple[str, ...] = BANDS, **facts: object
) -> ModelBundle:
    """A model whose input is not scaled."""
    plain = Normalisation(mean=(0.0,) * len(bands), std=(1.0,) * len(bands))
    return ModelBundle(module, type(module).__name__, {}, bands, plain, size, **facts)
