"""Season chips of a small simulated world: what `geoeco.training` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr

import geoeco

TILE = "31UGS"
SIZE = 64


@dataclass(frozen=True)
class Chips:
    store: str
    truth: xr.Dataset

    def cover_of(self, x0: float, y1: float, size: int) -> np.ndarray:
        """True land cover of the window whose top left corner is (x0, y1)."""
        left = round((x0 - (float(self.truth.x[0]) - 5)) / 10)
        top = round(((float(self.truth.y[0]) + 5) - y1) / 10)
        return self.truth["cover"].values[top : top + size, left : left + size]


@pytest.fixture(scope="session")
def chips(tmp_path_factory) -> Chips:
    """Chips of five locations in one tile, four seasons by the calendar, five bands, 64 pixels."""
    world = tmp_path_factory.mktemp("world") / "world"
    catalog = geoeco.simulate.write_s2_world(world, seed=3, size=96, years=1, revisit_days=12, clouds=0.25)
    truth = geoeco.simulate.read_truth(world, TILE)
    centre = np.array([float(truth.x.mean()), float(truth.y.mean())])
    offsets = np.array([[0, 0], [60, 60], [-60, 60], [60, -60], [-60, -60]])
    points = gpd.points_from_xy(*(centre + offsets).T, crs=truth.rio.crs).to_crs(4326)
    table = gpd.GeoDataFrame({"name": [f"place-{i}" for i in range(len(offsets))]}, geometry=points)
    locations = geoeco.sampling.check_locations(table)
    windows = geoeco.sampling.calendar_windows(locations)
    items = [item for item in geoeco.open_catalog(catalog).search() if TILE in item.id]
    store = str(Path(tmp_path_factory.mktemp("chips")) / "chips")
    geoeco.sampling.chips_template(
        store, len(locations), size=SIZE, bands=("B02", "B03", "B04", "B08", "B11"), samples_per_shard=2
    )
    for first in range(0, len(locations), 2):
        geoeco.sampling.write_chips(
            store, items, locations.iloc[first : first + 2], windows, first=first, min_clear=0.5, min_sun_elevation=10.0
        )
    geoeco.sampling.finish_chips(store)
    return Chips(store, truth)
