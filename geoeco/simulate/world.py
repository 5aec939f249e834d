"""Write a simulated Sentinel-2 world to disk: products as COGs, a static STAC catalogue, and the truth.

The catalogue has the layout of Earth Search v1's ``sentinel-2-l2a``. All bytes follow from the settings: no clock, no
order of threads. ``catalog.json`` is written last, so a world without it is a world that was not finished.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pystac
import rasterio
import rasterio.warp
import shapely
import shapely.affinity
import shapely.geometry
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from geoeco.errors import InputError, OutputError
from geoeco.simulate.files import MARKER, crs_of, holds_world, marker_text, write_cog
from geoeco.simulate.landscape import Ground, Landscape, Tile, make_tiles
from geoeco.simulate.products import (
    BANDS,
    Acquisition,
    Product,
    Scene,
    TileView,
    draw_acquisitions,
    draw_products,
    render,
)
from geoeco.simulate.season_dates import season_truth
from geoeco.simulate.truth import write_truth

__all__ = ["S2World", "WorldSettings", "write_s2_world"]

#: Counts up whenever the same settings give other bytes.
WORLD_VERSION = 1
COLLECTION = "sentinel-2-l2a"
_DRAFT = "catalog.json.part"
_LOCATIONS = {"north": (6.0, 50.8), "south": (150.0, -34.6)}
#: Imagery starts on 1 August of the year before the first product year and ends on 30 April of the year after the
#: last one, so that the cycles that peak in the product years are seen whole in either hemisphere.
_FIRST, _LAST = "08-01", "04-30"


@dataclass(frozen=True)
class WorldSettings:
    """All that decides the bytes of a world; see `write_s2_world` for the meaning of each."""

    seed: int = 42
    size: int = 240
    years: int = 2
    hemisphere: Literal["north", "south"] = "north"
    clouds: float = 0.6
    revisit_days: int = 5
    scl_omission: float = 0.10
    scl_commission: float = 0.05
    noise: float = 0.01
    snow: float = 0.0
    reprocessed: float = 0.35
    wrong_flags: float = 0.10
    split: float = 0.03
    first_year: int = 2021
    location: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")
        if self.size < 48 or self.size % 6:
            raise InputError(
                f"size is {self.size} pixels",
                what_to_do="give a multiple of 6 from 48 on, so that 10, 20 and 60 m pixels nest",
            )
        if self.years < 1 or self.revisit_days < 1:
            raise InputError(f"years ({self.years}) and revisit_days ({self.revisit_days}) must be at least 1")
        if not 2016 <= self.first_year <= 2035 - self.years:
            raise InputError(f"first_year is {self.first_year}", what_to_do="give a year between 2016 and 2034")
        if self.hemisphere not in _LOCATIONS:
            raise InputError(f"hemisphere is {self.hemisphere!r}", what_to_do="give 'north' or 'south'")
        for name in ("clouds", "scl_omission", "scl_commission", "snow", "reprocessed", "wrong_flags", "split"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name} must lie within 0..1, got {value}")
        if not (math.isfinite(self.noise) and self.noise >= 0.0):
            raise InputError(f"noise must be a reflectance of 0 or more, got {self.noise}")
        lon, lat = self.centre
        if lon % 6.0 or not -180.0 <= lon <= 180.0 or not 1.0 <= abs(lat) <= 70.0:
            raise InputError(
                f"location {self.centre} does not fit",
                what_to_do="give (lon, lat) on a boundary of UTM zones (lon a multiple of 6), 1 to 70 degrees from "
                "the equator",
            )
        if (lat > 0) != (self.hemisphere == "north"):
            raise InputError(f"location {self.centre} does not lie in the {self.hemisphere}ern hemisphere")

    @property
    def centre(self) -> tuple[float, float]:
        """Longitude and latitude of the middle of the world."""
        return self.location if self.location is not None else _LOCATIONS[self.hemisphere]

    @property
    def product_years(self) -> tuple[int, ...]:
        """The years for which the truth is complete."""
        return tuple(range(self.first_year, self.first_year + self.years))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "location": list(self.centre), "world_version": WORLD_VERSION}


class S2World:
    """A simulated world in memory: the truth, and any product on request.

    Parameters
    ----------
    settings : WorldSettings

    Attributes
    ----------
    tiles : tuple of Tile
        Two tiles in two UTM zones.
    landscape : Landscape
    acquisitions : list of Acquisition
    """

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        lon, lat = settings.centre
        self.ground = Ground(lon, lat)
        self.tiles = make_tiles(lon, lat, settings.size)
        years = settings.product_years
        self.landscape = Landscape(
            settings.seed,
            self.tiles,
            self.ground,
            southern=settings.hemisphere == "south",
            first_year=years[0],
            last_year=years[-1],
        )
        self.acquisitions: list[Acquisition] = draw_acquisitions(
            settings.seed,
            np.datetime64(f"{years[0] - 1}-{_FIRST}", "D"),
            np.datetime64(f"{years[-1] + 1}-{_LAST}", "D"),
            revisit_days=settings.revisit_days,
            clouds=settings.clouds,
            snow=settings.snow,
            lat=lat,
            extent=self.landscape.extent,
        )

    @cached_property
    def views(self) -> tuple[TileView, ...]:
        """Where the pixels of each tile lie on the ground."""
        return tuple(
            TileView(tile, self.ground, curve) for tile, curve in zip(self.tiles, self.landscape.curve, strict=True)
        )

    def products(self, acquisition: Acquisition, tile: Tile) -> list[Product]:
        """Draw the products of one acquisition of one tile."""
        s = self.settings
        return draw_products(
            s.seed,
            acquisition,
            tile,
            self.landscape.extent,
            reprocessed=s.reprocessed,
            wrong_flags=s.wrong_flags,
            split=s.split,
        )

    def scene(self, product: Product) -> Scene | None:
        """Render the pixels of one product; None if it sees nothing of its tile."""
        s = self.settings
        return render(
            s.seed,
            product,
            self.landscape,
            self.views[product.tile.index],
            noise=s.noise,
            omission=s.scl_omission,
            commission=s.scl_commission,
        )


def write_s2_world(
    directory: str | os.PathLike[str],
    *,
    seed: int = 42,
    size: int = 240,
    years: int = 2,
    hemisphere: Literal["north", "south"] = "north",
    clouds: float = 0.6,
    revisit_days: int = 5,
    scl_omission: float = 0.10,
    scl_commission: float = 0.05,
    noise: float = 0.01,
    snow: float = 0.0,
    reprocessed: float = 0.35,
    wrong_flags: float = 0.10,
    split: float = 0.03,
    first_year: int = 2021,
    location: tuple[float, float] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a simulated Sentinel-2 L2A world with its truth.

    Parameters
    ----------
    directory : path
        New or empty folder. A folder that holds the same world is completed if it was left unfinished, and left as
        it is if it is whole.
    seed : int
        Everything follows from it.
    size : int
        Pixels of 10 m per side of each of the two tiles, a multiple of 6.
    years : int
        Product years with complete truth. Imagery runs from 1 August before the first to 30 April after the last.
    hemisphere : {"north", "south"}
        In the south the main season crosses 1 January.
    clouds : float
        Mean cloud fraction, 0..1; single days are mostly clear or overcast.
    revisit_days : int
        Days between acquisitions. Every sixth comes from the neighbouring orbit and has a nodata wedge.
    scl_omission, scl_commission : float
        Share of cloud and shadow that the scene classification misses, and of clear ground that it calls cloud.
    noise : float
        Standard deviation of reflectance noise per pixel, band and date.
    snow : float
        Share of acquisitions within 45 days of midwinter that see snow (SCL 11).
    reprocessed : float
        Share of older acquisitions that come as Collection 1 (baseline 05.00, with the offset).
    wrong_flags : float
        Share of products from baseline 04.00 on whose ``earthsearch:boa_offset_applied`` is wrong.
    split : float
        Share of acquisitions of a tile that come as two products, cut where the datastrip ended.
    first_year : int
        First product year.
    location : tuple of float, optional
        Longitude (a multiple of 6: a boundary of UTM zones) and latitude of the world's middle.
    workers : int, optional
        Threads; does not change the bytes.
    progress : callable, optional
        Called with (products of tiles done, all).

    Returns
    -------
    pathlib.Path
        The world's ``catalog.json``.

    Raises
    ------
    InputError
        If a setting does not fit.
    OutputError
        If the folder holds something else, or cannot be written.
    """
    settings = WorldSettings(
        seed, size, years, hemisphere, clouds, revisit_days, scl_omission, scl_commission, noise, snow, reprocessed,
        wrong_flags, split, first_year, None if location is None else (float(location[0]), float(location[1])),
    )  # fmt: skip
    folder = Path(directory)
    if _is_whole(folder, settings):
        return folder / "catalog.json"
    try:
        return _write(folder, settings, workers or min(os.cpu_count() or 1, 8), progress)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise OutputError(
            f"the simulated world could not be written: {error}",
            where=str(folder),
            what_to_do="free some space or choose another folder, then run the same command again",
        ) from error


def _marker(settings: WorldSettings) -> dict[str, Any]:
    return {"geoeco": "simulated Sentinel-2 world", "settings": settings.to_dict()}


def _is_whole(folder: Path, settings: WorldSettings) -> bool:
    """Whether the folder holds this very world with all its files; an error if it holds anything else."""
    if not holds_world(folder, _marker(settings)):
        return False
    catalog = folder / "catalog.json"
    if not catalog.is_file():
        return False
    listing = folder / "truth" / "files.csv"
    named = [line.rsplit(",", 1) for line in listing.read_text(encoding="utf-8").splitlines()[1:]]
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == int(size) for name, size in named)
    if not whole:
        catalog.unlink()
    return whole


def _write(folder: Path, settings: WorldSettings, workers: int, progress: Callable[[int, int], None] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (COLLECTION, "truth"):  # of this very world, unfinished: its marker was checked
        shutil.rmtree(folder / left_over, ignore_errors=True)
    (folder / _DRAFT).unlink(missing_ok=True)
    (folder / MARKER).write_text(marker_text(_marker(settings)), encoding="utf-8")
    world = S2World(settings)
    tasks = [(acquisition, tile) for acquisition in world.acquisitions for tile in world.tiles]
    _ = [view.uv10 for view in world.views]  # cached before threads share it
    results: list[list[_Written]] = []
    with ThreadPoolExecutor(workers) as pool:
        # a few at a time, so that memory does not grow with the number of dates
        window = 2 * workers
        pending = [pool.submit(_write_products, folder, world, *task) for task in tasks[:window]]
        for done in range(len(tasks)):
            results.append(pending[done].result())
            if done + window < len(tasks):
                pending.append(pool.submit(_write_products, folder, world, *tasks[done + window]))
            if progress is not None:
                progress(done + 1, len(tasks))
    written = [one for products in results for one in products]
    truth = season_truth(world.landscape, settings.product_years[0], settings.product_years[-1])
    write_truth(
        folder / "truth",
        world.landscape,
        world.tiles,
        world.ground,
        settings.product_years,
        truth,
        (world.acquisitions[0].day, world.acquisitions[-1].day),
        [one.row for one in written],
        seed=settings.seed,
    )
    catalog = _catalog(settings, [one.item for one in written])
    return _save(folder, catalog)


@dataclass(frozen=True)
class _Written:
    item: pystac.Item
    row: dict[str, Any]


def _write_products(folder: Path, world: S2World, acquisition: Acquisition, tile: Tile) -> list[_Written]:
    written = []
    for product in world.products(acquisition, tile):
        scene = world.scene(product)
        if scene is None or not scene.valid.any():
            continue
        item = _item(world, product, scene)
        target = folder / COLLECTION / item.id
        target.mkdir(parents=True, exist_ok=True)
        grids = {resolution: tile.at(resolution) for resolution in (10, 20, 60)}
        with rasterio.Env():  # entered once, not once a file
            for band in BANDS:
                write_cog(target / f"{band.name}.tif", scene.numbers[band.name], grids[band.resolution], nodata=0)
            write_cog(target / "SCL.tif", scene.scl, grids[20], nodata=0, overviews="MODE")
        written.append(_Written(item, _row(item.id, product, scene)))
    return written


def _row(item_id: str, product: Product, scene: Scene) -> dict[str, Any]:
    """State what is true of a product, for ``truth/scenes.csv``."""
    valid = max(int(scene.valid.sum()), 1)
    cloudy = np.isin(scene.scl, (8, 9, 10))
    clear = scene.valid & ~scene.cloud & ~scene.shadow
    return {
        "id": item_id,
        "tile": product.tile.name,
        "solar_day": str(product.acquisition.day),
        "baseline": product.baseline,
        "case": product.case.name,
        "added_to_dn": product.case.added,
        "flag_right": int(product.case.right),
        "valid": round(float(scene.valid.mean()), 6),
        "cloud": round(float(scene.cloud.sum()) / valid, 6),
        "shadow": round(float(scene.shadow.sum()) / valid, 6),
        "cloud_missed": round(float((scene.cloud & ~cloudy).sum()) / valid, 6),
        "clear_called_cloud": round(float((clear & cloudy).sum()) / valid, 6),
    }


def _item(world: S2World, product: Product, scene: Scene) -> pystac.Item:
    """Make the STAC item of a product in the manner of Earth Search v1."""
    acquisition, tile = product.acquisition, product.tile
    lon, _ = world.settings.centre
    # 10:30 local solar time on the descending node; the eastern tile follows within the same minute
    when = _utc(acquisition.day) + timedelta(hours=10.5 - lon / 15.0, seconds=31 + 9 * tile.index, milliseconds=24)
    original = product.baseline != "05.00"
    generated = (
        when + timedelta(hours=5)
        if original
        else datetime(2023, 5, 1, tzinfo=UTC) + timedelta(minutes=7 * acquisition.index + tile.index)
    )
    stamp = when.strftime("%Y%m%dT%H%M%S")
    uri = (
        f"S{acquisition.platform}_MSIL2A_{stamp}_N{product.baseline.replace('.', '')}_R{acquisition.orbit:03d}"
        f"_T{tile.name}_{generated.strftime('%Y%m%dT%H%M%S')}.SAFE"
    )
    geometry, bbox = _footprint(world, product)
    shares = np.bincount(scene.scl[scene.valid], minlength=12) / max(int(scene.valid.sum()), 1) * 100.0

    def share(*classes: int) -> float:
        return round(float(sum(shares[c] for c in classes)), 6)

    properties: dict[str, Any] = {
        "created": _text(generated + timedelta(hours=1)),
        "updated": _text(generated + timedelta(hours=1)),
        "platform": f"sentinel-{acquisition.platform.lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": 10,
        "eo:cloud_cover": share(8, 9, 10),
        "proj:code": f"EPSG:{tile.epsg}",
        "mgrs:utm_zone": int(tile.name[:2]),
        "mgrs:latitude_band": tile.name[2],
        "mgrs:grid_square": tile.name[3:],
        "grid:code": f"MGRS-{tile.name}",
        "view:sun_azimuth": round(acquisition.sun_azimuth, 6),
        "view:sun_elevation": round(acquisition.sun_elevation, 6),
        "view:azimuth": 104.0 if acquisition.edge is None else 286.0,
        "view:incidence_angle": 3.2 if acquisition.edge is None else 9.8,
        "s2:nodata_pixel_percentage": round(100.0 * (1.0 - float(scene.valid.mean())), 6),
        "s2:dark_features_percentage": share(2),
        "s2:cloud_shadow_percentage": share(3),
        "s2:vegetation_percentage": share(4),
        "s2:not_vegetated_percentage": share(5),
        "s2:water_percentage": share(6),
        "s2:unclassified_percentage": share(7),
        "s2:medium_proba_clouds_percentage": share(8),
        "s2:high_proba_clouds_percentage": share(9),
        "s2:thin_cirrus_percentage": share(10),
        "s2:snow_ice_percentage": share(11),
        "s2:product_type": "S2MSI2A",
        "s2:processing_baseline": product.baseline,
        "s2:product_uri": uri,
        "s2:generation_time": _text(generated),
        "s2:datatake_id": f"GS{acquisition.platform}_{stamp}_{20000 + acquisition.index:06d}_N{product.baseline}",
        "s2:sequence": str(product.sequence),
    }
    if product.case.flag is not None:
        properties["earthsearch:boa_offset_applied"] = product.case.flag
    item = pystac.Item(
        id=f"S{acquisition.platform}_{tile.name}_{when.strftime('%Y%m%d')}_{product.sequence}_L2A",
        geometry=geometry,
        bbox=bbox,
        datetime=when,
        properties=properties,
        stac_extensions=[
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
            "https://stac-extensions.github.io/mgrs/v1.0.0/schema.json",
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
            "https://stac-extensions.github.io/sentinel-2/v1.0.0/schema.json",
            "https://stac-extensions.github.io/view/v1.0.0/schema.json",
        ],
    )
    for band in BANDS:
        raster = {"nodata": 0, "data_type": "uint16", "bits_per_sample": 15, "spatial_resolution": band.resolution}
        if product.case.offset is not None:
            raster |= {"scale": 0.0001, "offset": product.case.offset}
        described = {
            "name": band.key,
            "common_name": band.common_name,
            "description": band.title.rpartition(" - ")[0],
            "center_wavelength": band.centre,
            "full_width_half_max": band.width,
        }
        extra = {"eo:bands": [described], "gsd": band.resolution, "raster:bands": [raster]}
        item.add_asset(band.key, _asset(f"{band.name}.tif", band.title, tile.at(band.resolution), extra))
    scl = {"gsd": 20, "raster:bands": [{"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}]}
    item.add_asset("scl", _asset("SCL.tif", "Scene classification map (SCL)", tile.at(20), scl))
    return item


def _asset(name: str, title: str, geobox: GeoBox, extra: dict[str, Any]) -> pystac.Asset:
    shape = {"proj:shape": [int(n) for n in geobox.shape], "proj:transform": [float(v) for v in geobox.affine[:6]]}
    roles = ["data", "reflectance"]  # Earth Search gives both to its classification too
    return pystac.Asset(f"./{name}", title, None, pystac.MediaType.COG, roles, {**extra, **shape})


def _utc(day: np.datetime64) -> datetime:
    return datetime.fromisoformat(str(day)).replace(tzinfo=UTC)


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"


def _footprint(world: S2World, product: Product) -> tuple[dict[str, Any], list[float]]:
    """Outline of the ground that a product sees, in longitude and latitude, and its bounding box."""
    rows, cols = product.tile.geobox.shape
    corners = [product.tile.geobox.affine @ corner for corner in ((0, 0), (0, rows), (cols, rows), (cols, 0))]
    xs, ys = zip(*corners, strict=True)
    lon, lat = rasterio.warp.transform(crs_of(product.tile.epsg), crs_of(4326), xs, ys)
    shape: BaseGeometry = shapely.Polygon(np.stack(world.ground.from_lonlat(np.array(lon), np.array(lat)), axis=-1))
    far = 1e7
    shape = shape.intersection(shapely.box(-far, max(product.strip[0], -far), far, min(product.strip[1], far)))
    if product.acquisition.edge is not None:
        nx, ny, c = product.acquisition.edge
        along, into = np.array([-ny, nx]), np.array([nx, ny])
        ends = [into * c + along * far, into * c - along * far]
        shape = shape.intersection(shapely.Polygon([*ends, ends[1] - into * far, ends[0] - into * far]))
    outline = shapely.get_coordinates(shape)
    polygon = shapely.Polygon(np.round(np.stack(world.ground.to_lonlat(outline[:, 0], outline[:, 1]), axis=-1), 9))
    polygon = shapely.geometry.polygon.orient(polygon)
    west, south, east, north = (float(value) for value in polygon.bounds)
    if west >= -180.0 and east <= 180.0:
        return shapely.geometry.mapping(polygon), [west, south, east, north]
    # RFC 7946: cut at the antimeridian; the bounding box of what crosses it has west > east
    turned = [shapely.affinity.translate(polygon, turn) for turn in (-360.0, 0.0, 360.0)]
    parts = [part.intersection(shapely.box(-180, -90, 180, 90)) for part in turned]
    kept = shapely.union_all([part for part in parts if part.area > 0])
    return shapely.geometry.mapping(kept), [_wrap(west), south, _wrap(east), north]


def _wrap(lon: float) -> float:
    return lon - 360.0 if lon > 180.0 else lon + 360.0 if lon < -180.0 else lon


def _catalog(settings: WorldSettings, items: list[pystac.Item]) -> pystac.Catalog:
    items = sorted(items, key=lambda item: (item.datetime, item.id))
    boxes = np.array([item.bbox for item in items])
    first, last = items[0].datetime, items[-1].datetime
    collection = pystac.Collection(
        id=COLLECTION,
        title="Sentinel-2 Level-2A (simulated)",
        description="Simulated Sentinel-2 surface reflectance with known truth, in the layout of real L2A collections.",
        extent=pystac.Extent(
            pystac.SpatialExtent(
                [[float(boxes[0, 0]), float(boxes[:, 1].min()), float(boxes[0, 2]), float(boxes[:, 3].max())]]
            ),
            pystac.TemporalExtent([[first, last]]),
        ),
        license="CC0-1.0",
        keywords=["Sentinel-2", "simulated", "phenology"],
        summaries=pystac.Summaries(
            {"platform": ["sentinel-2a", "sentinel-2b"], "constellation": ["sentinel-2"], "gsd": [10, 20, 60]}
        ),
    )
    # what all scenes have in common; offset, shape and place are each scene's own
    collection.item_assets = {
        name: pystac.ItemAssetDefinition(
            {
                "title": asset.title,
                "type": asset.media_type,
                "roles": asset.roles,
                **{key: asset.extra_fields[key] for key in ("gsd", "eo:bands") if key in asset.extra_fields},
            }
        )
        for name, asset in items[0].assets.items()
    }
    collection.add_items(items)
    catalog = pystac.Catalog(
        id=f"geoeco-demo-s2-{settings.hemisphere}-{settings.seed}",
        description="A simulated world with truth: Sentinel-2 scenes of two overlapping tiles in two UTM zones.",
    )
    catalog.add_child(collection)
    return catalog


def _save(folder: Path, catalog: pystac.Catalog) -> Path:
    """Write the catalogue, items first and ``catalog.json`` last."""
    root = folder / "catalog.json"
    # pystac takes a folder with a dot in its name for a file: links are laid out below a plain name
    plain = Path("/world")
    catalog.normalize_hrefs(str(plain))
    catalog.catalog_type = pystac.CatalogType.SELF_CONTAINED
    collection = next(iter(catalog.get_children()))
    for part in (*collection.get_items(), collection):
        place = folder / Path(part.self_href).relative_to(plain)
        part.save_object(include_self_link=False, dest_href=str(place))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sizes = [f"{name},{(folder / name).stat().st_size}" for name in names if name != "truth/files.csv"]
    (folder / "truth" / "files.csv").write_text("\n".join(["path,bytes", *sizes]) + "\n", encoding="utf-8")
    draft = folder / _DRAFT
    catalog.save_object(include_self_link=False, dest_href=str(draft))
    draft.replace(root)
    return root
