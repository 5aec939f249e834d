"""Small Sentinel-2 scenes on disk, pixel by pixel as a test wants them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geom import box

from geoeco.sensors.sentinel2 import BANDS

LEFT, TOP, EPSG = 600_000.0, 5_700_000.0, 32631


@dataclass
class Tile:
    """A tile of `side` metres whose scenes are written when asked for."""

    folder: Path
    side: int = 3600
    left: float = LEFT
    top: float = TOP
    epsg: int = EPSG
    blocks: int = 64
    written: dict[str, Path] = field(default_factory=dict)

    def grid(self, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the pixel centres, ``(y, x)`` each."""
        n = self.side // resolution
        along = (np.arange(n) + 0.5) * resolution
        x, y = np.meshgrid(self.left + along, self.top - along)
        return y, x

    def _write(self, path: Path, pixels: np.ndarray, resolution: int) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=pixels.shape[1],
            height=pixels.shape[0],
            count=1,
            dtype=pixels.dtype,
            crs=f"EPSG:{self.epsg}",
            transform=Affine(resolution, 0, self.left, 0, -resolution, self.top),
            nodata=0,
            tiled=True,
            blockxsize=self.blocks,
            blockysize=self.blocks,
            compress="deflate",
        ) as file:
            file.write(pixels, 1)
        return str(path)

    def scene(
        self,
        date: str,
        *,
        scl: np.ndarray | int = 4,
        bands: dict[str, np.ndarray | int] | None = None,
        baseline: str = "05.00",
        sun: float | None = 45.0,
        cloud: float = 10.0,
        name: str = "S2A",
        **properties: Any,
    ) -> pystac.Item:
        """One item; bands are digital numbers, one number or an array at the band's own resolution."""
        moment = dt.datetime.fromisoformat(f"{date}T10:30:00+00:00")
        ground = box(self.left, self.top - self.side, self.left + self.side, self.top, f"EPSG:{self.epsg}")
        outline = ground.to_crs("EPSG:4326")
        item = pystac.Item(
            id=f"{name}_{self.epsg}_{int(self.left)}_{moment:%Y%m%d}",
            geometry=outline.json,
            bbox=list(outline.boundingbox),
            datetime=moment,
            properties={
                "proj:code": f"EPSG:{self.epsg}",
                "eo:cloud_cover": cloud,
                "s2:processing_baseline": baseline,
                **({} if sun is None else {"view:sun_elevation": sun}),
                **properties,
            },
        )
        layers: dict[str, tuple[np.ndarray | int, int]] = {"SCL": (scl, 20)}
        layers |= {b: (dn, int(BANDS[b].resolution)) for b, dn in (bands or {}).items()}
        for band, (value, resolution) in layers.items():
            n = self.side // resolution
            kind = np.uint8 if band == "SCL" else np.uint16
            pixels = np.full((n, n), value, kind) if np.isscalar(value) else np.asarray(value, kind)
            href = self._write(self.folder / item.id / f"{band}.tif", pixels, resolution)
            item.add_asset(
                band,
                pystac.Asset(
                    href,
                    media_type="image/tiff; application=geotiff; profile=cloud-optimized",
                    extra_fields={
                        "proj:shape": [n, n],
                        "proj:transform": [resolution, 0, self.left, 0, -resolution, self.top],
                    },
                ),
            )
        return item


@pytest.fixture
def tile(tmp_path) -> Callable[..., Tile]:
    """Make tiles: ``tile()``, ``tile(left=..., epsg=...)``."""

    def make(**options: Any) -> Tile:
        return Tile(tmp_path / "scenes", **options)

    return make


@pytest.fixture
def place() -> Callable[..., gpd.GeoDataFrame]:
    """Locations by their coordinates in the tile's UTM zone."""

    def make(*xy: tuple[float, float], epsg: int = EPSG) -> gpd.GeoDataFrame:
        points = gpd.points_from_xy(*zip(*xy, strict=True))
        names = [f"p{i}" for i in range(len(xy))]
        return gpd.GeoDataFrame({"name": names}, geometry=points, crs=f"EPSG:{epsg}").to_crs("EPSG:4326")

    return make


@pytest.fixture
def windows() -> Callable[..., pd.DataFrame]:
    """Four windows for each of so many locations: middles (days of the year) and a width."""

    def make(
        count: int = 1,
        mids: tuple[float, ...] = (100, 190, 280, 10),
        width: float = 60.0,
        interval: float | None = None,
    ) -> pd.DataFrame:
        reach = (width if interval is None else interval) / 2
        return pd.DataFrame(
            [
                {
                    "name": f"p{i}",
                    "season": season,
                    "mid": mid,
                    "width_d": width,
                    "interval_start": (mid - reach - 1) % 365.25 + 1,
                    "interval_end": (mid + reach - 1) % 365.25 + 1,
                }
                for i in range(count)
                for season, mid in zip(("spring", "summer", "autumn", "winter"), mids, strict=True)
            ]
        )

    return make
