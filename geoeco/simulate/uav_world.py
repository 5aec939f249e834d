"""A simulated farmland seen from a drone: orthomosaic, heights, crowns, photos, labels, and the truth of all of it.

Rasters and tables are what a user brings along, with their flaws: a ragged edge without data, shadows, steps between
flight strips, a crown that the edge cuts, outlines that overlap, photos that hit no crown.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.features
import rasterio.shutil
import shapely
import shapely.affinity
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.io import MemoryFile
from scipy.ndimage import distance_transform_edt
from shapely.geometry.base import BaseGeometry

from geoeco.errors import InputError, OutputError
from geoeco.outputs import ClassTable
from geoeco.outputs import write_cog as write_described_cog
from geoeco.outputs.vectors import write_gpkg
from geoeco.simulate.files import MARKER, crs_of, holds_world, marker_text, write_cog
from geoeco.simulate.uav_closeups import CloseUp, closeup_table, draw_closeups, photo_points, take_photo
from geoeco.simulate.uav_crowns import SPECIES as KINDS
from geoeco.simulate.uav_crowns import Crown, burn_crowns, canopy_height, plant_trees
from geoeco.simulate.uav_layout import HABITATS, Layout, codes_of, make_layout, smooth_noise
from geoeco.simulate.uav_picture import Relief, footprint, make_relief, paint
from geoeco.variables import describe

__all__ = ["SPECIES", "UavWorld", "UavWorldSettings", "write_uav_world"]

#: Names of the species; the last is rare. The code in a raster is the position plus 1.
SPECIES: tuple[str, ...] = tuple(kind.name for kind in KINDS)
#: Counts up whenever the same settings give other bytes.
WORLD_VERSION = 1

_EPSG = 32652
# near Hailun, Heilongjiang, on whole metres of UTM zone 52
_CENTRE = (347_000, 5_258_400)
_FLIGHT = datetime(2025, 7, 18, 2, 32, tzinfo=UTC)
_UNLABELLED = 255
_UNLABELLED_PART = 0.10
#: Smallest number of blocks along a side, from which the areas of the sets are made, their usual side in metres, and
#: the parts of the blocks that are for val and test.
_BLOCKS, _BLOCK_M = 4, 34.0
_PARTS = {"val": 0.20, "test": 0.25}
_MARGIN_M = 15.0


@dataclass(frozen=True)
class UavWorldSettings:
    """All that decides the bytes of a world; see `write_uav_world` for the meaning of each."""

    seed: int = 42
    size: int = 2048
    gsd: float = 0.1

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("seed must not be negative")
        if not 128 <= self.size <= 16384:
            raise InputError(f"size={self.size} must lie between 128 and 16384 pixels")
        if not 0.02 <= self.gsd <= 0.5:
            raise InputError(f"gsd={self.gsd} must lie between 0.02 and 0.5 m")
        if self.size * self.gsd < 40.0:
            raise InputError(
                f"{self.size} pixels of {self.gsd} m are {self.size * self.gsd:.0f} m, too little for a farmland",
                what_to_do="choose size and gsd so that the world is at least 40 m wide",
            )


class UavWorld:
    """A simulated farmland in memory; everything follows from the settings.

    Parameters
    ----------
    settings : UavWorldSettings
    """

    def __init__(self, settings: UavWorldSettings) -> None:
        self.settings = settings
        half = settings.size * settings.gsd / 2
        corner = (round(_CENTRE[0] - half), round(_CENTRE[1] + half))
        self.geobox = GeoBox(
            (settings.size, settings.size),
            Affine(settings.gsd, 0.0, corner[0], 0.0, -settings.gsd, corner[1]),
            f"EPSG:{_EPSG}",
        )
        #: Middle of the world in its CRS.
        self.centre = (corner[0] + half, corner[1] - half)

    @cached_property
    def layout(self) -> Layout:
        """The ground without trees."""
        return make_layout(self.settings.seed, self.settings.size, self.settings.gsd)

    @cached_property
    def _seen(self) -> BaseGeometry:
        return footprint(self.settings.seed, self.settings.size * self.settings.gsd)

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Where the mosaic has data, ``(y, x)``."""
        half, gsd = self.settings.size * self.settings.gsd / 2, self.settings.gsd
        burnt = rasterio.features.rasterize(
            [(self._seen, 1)],
            out_shape=(self.settings.size, self.settings.size),
            transform=Affine(gsd, 0.0, -half, 0.0, -gsd, half),
            dtype="uint8",
        )
        return np.asarray(burnt, dtype=bool)

    @cached_property
    def crowns(self) -> list[Crown]:
        """All trees that the mosaic sees, in metres from the centre."""
        return plant_trees(self.settings.seed, self.layout, self.settings.gsd, self._seen)

    @cached_property
    def instance(self) -> npt.NDArray[np.int32]:
        """Number of the crown at each pixel ``(y, x)``, 0 for none."""
        return burn_crowns(self.crowns, self.settings.size, self.settings.gsd)

    @cached_property
    def species(self) -> npt.NDArray[np.uint8]:
        """Code of the species at each pixel ``(y, x)``, 0 for no crown."""
        codes = np.array([0, *(crown.species for crown in self.crowns)], np.uint8)
        return codes[self.instance]

    @cached_property
    def habitat(self) -> npt.NDArray[np.uint8]:
        """Code of the habitat seen from above ``(y, x)``: a crown is what it stands in, a single one its own."""
        names = {
            "belt": "forest belt", "wood": "woody area", "compound": "arbor-shrub-grass compound land",
            "single": "scattered trees",
        }  # fmt: skip
        codes = np.array([0, *(codes_of(names[crown.place])[0] for crown in self.crowns)], np.uint8)
        return np.where(self.instance > 0, codes[self.instance], self.layout.habitat)

    @cached_property
    def labels(self) -> npt.NDArray[np.uint8]:
        """The truth where someone labelled it ``(y, x)``, 255 elsewhere: parts of the mosaic, and all outside it."""
        rng = np.random.default_rng([self.settings.seed, 29])
        size = self.settings.size
        field = smooth_noise(rng, (size, size), size / 14.0)
        missed = field > np.quantile(field[::4, ::4], 1.0 - _UNLABELLED_PART)
        return np.where(missed | ~self.valid, np.uint8(_UNLABELLED), self.habitat)

    @cached_property
    def relief(self) -> Relief:
        """Heights of the ground and of what stands on it."""
        canopy = canopy_height(self.crowns, self.instance, self.settings.gsd)
        return make_relief(self.settings.seed, self.layout, canopy, self.settings.gsd)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Red, green and blue ``(band, y, x)``, white where the mosaic has no data."""
        s = self.settings
        painted = paint(s.seed, self.layout, self.crowns, self.instance, self.relief, s.gsd)
        return np.where(self.valid, painted, np.uint8(255))

    @cached_property
    def closeups(self) -> list[CloseUp]:
        """Photos of crowns from near."""
        away = distance_transform_edt((self.instance == 0) & self.valid)
        row, col = divmod(int(np.argmax(away)), self.settings.size)
        half, gsd = self.settings.size * self.settings.gsd / 2, self.settings.gsd
        ground = ((col + 0.5) * gsd - half, half - (row + 0.5) * gsd)
        return draw_closeups(self.settings.seed, self.crowns, ground, _FLIGHT.date())

    def crown_table(self) -> gpd.GeoDataFrame:
        """Outlines in the CRS of the world with ``crown_id, species, height_m, diameter_m``."""
        return gpd.GeoDataFrame(
            {
                "crown_id": [crown.crown_id for crown in self.crowns],
                "species": [crown.kind.name for crown in self.crowns],
                "height_m": [crown.height for crown in self.crowns],
                "diameter_m": [round(crown.diameter, 2) for crown in self.crowns],
            },
            geometry=[shapely.affinity.translate(crown.outline, *self.centre) for crown in self.crowns],
            crs=f"EPSG:{_EPSG}",
        )

    def areas(self) -> gpd.GeoDataFrame:
        """Areas of the sets (``split``: train, val, test): blocks, chosen so that each set has as much as can be.

        The blocks cover the square and 15 m round it, so that crowns that lean out of it lie within one.
        """
        rng = np.random.default_rng([self.settings.seed, 30])
        size, gsd = self.settings.size, self.settings.gsd
        count = max(_BLOCKS, round(size * gsd / _BLOCK_M))
        cuts = np.linspace(0, size, count + 1).round().astype(int)
        seen = np.where(self.valid, self.habitat, _UNLABELLED)
        parts = [(slice(*cuts[i : i + 2]), slice(*cuts[j : j + 2])) for i in range(count) for j in range(count)]
        held = np.stack([np.bincount(seen[part].ravel(), minlength=256)[: len(HABITATS)] for part in parts])
        kinds = np.stack([np.bincount(self.species[part].ravel(), minlength=len(KINDS) + 1)[1:] for part in parts])
        held = np.concatenate([held, kinds], axis=1)
        splits = np.full(len(parts), "train")
        val, test = (round(part * len(parts)) for part in _PARTS.values())
        splits[:val], splits[val : val + test] = "val", "test"
        draws = [rng.permutation(splits) for _ in range(500)]
        best = max(draws, key=lambda draw: _evenness(held, draw))
        rows = []
        for name in ("train", "val", "test"):
            boxes = [self._block(cuts, int(k), gsd) for k in np.flatnonzero(best == name)]
            rows += [(name, part) for part in shapely.get_parts(shapely.union_all(boxes))]
        return gpd.GeoDataFrame(
            {"area_id": range(1, len(rows) + 1), "split": [name for name, _ in rows]},
            geometry=[part for _, part in rows],
            crs=f"EPSG:{_EPSG}",
        )

    def _block(self, cuts: npt.NDArray[np.int_], number: int, gsd: float) -> BaseGeometry:
        last = len(cuts) - 2
        i, j = divmod(number, last + 1)
        left, top = self.geobox.affine.c, self.geobox.affine.f
        edges = np.array([cuts[j], cuts[j + 1], cuts[i], cuts[i + 1]]) * gsd
        edges += _MARGIN_M * np.array([-(j == 0), j == last, -(i == 0), i == last])
        block: BaseGeometry = shapely.box(left + edges[0], top - edges[3], left + edges[1], top - edges[2])
        return block


def _evenness(held: npt.NDArray[np.int_], draw: npt.NDArray[np.str_]) -> float:
    """How well sets share what there is: the mean over kinds of the smallest share that a set has of it, in 0..1/3."""
    shares = np.stack([held[draw == name].sum(axis=0) for name in ("train", "val", "test")]) / np.maximum(
        held.sum(axis=0), 1
    )
    return float(np.minimum(shares.min(axis=0), 0.1)[held.sum(axis=0) > 0].mean())


def write_uav_world(directory: str | os.PathLike[str], *, seed: int = 42, size: int = 2048, gsd: float = 0.1) -> Path:
    """Write a simulated farmland as a drone sees it, with its truth.

    ====================================== =============================================================================
    ``orthomosaic.tif``                    red, green, blue uint8, internal mask; white outside
    ``chm.tif``, ``dsm.tif``, ``dtm.tif``  heights in metres, float32, nodata -9999
    ``labels.tif``                         habitats (`HABITATS`), 255 where nobody labelled
    ``crowns.gpkg``                        outlines: ``crown_id, species, height_m, diameter_m``
    ``areas.gpkg``                         areas of train, val and test
    ``closeups.gpkg``, ``closeups/``       points of photos: ``photo, accuracy_m, date, crown_id`` (0: none), JPEGs
    ``photo_points.csv``                   ``lon, lat, radius_m`` and a probability of each habitat
    ``truth/``                             ``habitat.tif``, ``species.tif``, ``instances.tif``, also under the edge
    ``world.json``                         settings, and the sha256 of every file
    ====================================== =============================================================================

    Parameters
    ----------
    directory : path
        New or empty folder. A folder that holds the same world is completed if it was left unfinished or damaged, and
        left as it is if it is whole.
    seed : int
        Everything follows from it.
    size : int
        Pixels along a side.
    gsd : float
        Metres of a pixel. Trees, rows, roads and ridges keep their size in metres; the square is at least 40 m wide.

    Returns
    -------
    pathlib.Path
        The world's ``world.json``.

    Raises
    ------
    InputError
        If a setting does not fit.
    OutputError
        If the folder holds something else, or cannot be written.
    """
    settings = UavWorldSettings(seed, size, gsd)
    folder = Path(directory)
    marker = {"geoeco": "simulated farmland", "version": WORLD_VERSION, "settings": asdict(settings)}
    if holds_world(folder, marker) and _is_whole(folder):
        return folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(marker_text(marker), encoding="utf-8")
        files = _write(folder, UavWorld(settings))
        draft = folder / f"{MARKER}.part"
        draft.write_text(marker_text({**marker, "files": {name: _sha256(folder / name) for name in files}}), "utf-8")
        draft.replace(folder / MARKER)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise OutputError(
            f"the simulated world could not be written: {error}",
            where=str(folder),
            what_to_do="free some space or choose another folder, then run the same command again",
        ) from error
    return folder / MARKER


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    files = json.loads((folder / MARKER).read_text(encoding="utf-8")).get("files", {})
    return bool(files) and all(
        (folder / name).is_file() and _sha256(folder / name) == digest for name, digest in files.items()
    )


def _write(folder: Path, world: UavWorld) -> list[str]:
    """Write all but ``world.json``; give the names of the files."""
    (folder / "truth").mkdir(exist_ok=True)
    (folder / "closeups").mkdir(exist_ok=True)
    _write_picture(folder / "orthomosaic.tif", world)
    # whole centimetres, as photogrammetry delivers them and as they compress well
    ground, above = np.round(world.relief.ground, 2), np.round(world.relief.above, 2)
    surface = ground + above
    for name, title, heights in (
        ("dtm", "height of the ground", ground),
        ("dsm", "height of the surface", surface),
        ("chm", "height above the ground", above),
    ):
        data = _raster(world, np.where(world.valid, heights, np.nan), name, "continuous", "m", title)
        write_described_cog(data, folder / f"{name}.tif", datetime=_FLIGHT, style=False, threads=1)
    habitats = ClassTable.of(
        {code: name for code, name, _ in HABITATS}, {code: colour for code, _, colour in HABITATS}, name="habitat"
    )
    species = ClassTable.of({0: "no crown", **dict(enumerate(SPECIES, start=1))}, name="species")
    for path, values, table in (
        ("labels.tif", world.labels, habitats),
        ("truth/habitat.tif", world.habitat, habitats),
        ("truth/species.tif", world.species, species),
    ):
        data = _raster(world, values, table.name, "class", "", table.name)
        write_described_cog(data, folder / path, classes=table, datetime=_FLIGHT, threads=1)
    instances = world.instance.astype(np.uint32)
    write_cog(folder / "truth" / "instances.tif", instances, world.geobox, nodata=0, overviews="NEAREST")
    write_gpkg(world.crown_table(), folder / "crowns.gpkg", layer="crowns")
    write_gpkg(world.areas(), folder / "areas.gpkg", layer="areas")
    write_gpkg(closeup_table(world.closeups, world.centre, _EPSG), folder / "closeups.gpkg", layer="closeups")
    for photo in world.closeups:
        _write_jpeg(folder / "closeups" / photo.name, take_photo(world.settings.seed, photo))
    corner = (world.geobox.affine.c, world.geobox.affine.f)
    points = photo_points(world.settings.seed, world.habitat, world.valid, world.settings.gsd, corner, _EPSG)
    points.to_csv(folder / "photo_points.csv", index=False, lineterminator="\n")
    names = {"labels": ("tif", "tif.aux.xml", "qml"), "truth/habitat": ("tif", "tif.aux.xml", "qml"),
             "truth/species": ("tif", "tif.aux.xml", "qml"), "truth/instances": ("tif",),
             **dict.fromkeys(("orthomosaic", "dtm", "dsm", "chm"), ("tif",)),
             **dict.fromkeys(("crowns", "areas", "closeups"), ("gpkg",)), "photo_points": ("csv",)}  # fmt: skip
    photos = [f"closeups/{photo.name}" for photo in world.closeups]
    return sorted([f"{stem}.{ending}" for stem, endings in names.items() for ending in endings] + photos)


def _raster(world: UavWorld, values: npt.NDArray[Any], name: str, kind: str, units: str, title: str) -> xr.DataArray:
    data = xr.DataArray(values, dims=("y", "x"), coords=xr_coords(world.geobox), name=name)
    return describe(data, kind=kind, units=units, long_name=title)


def _write_picture(path: Path, world: UavWorld) -> None:
    """Write the orthomosaic as a COG with an internal mask."""
    picture, size = world.picture(), world.settings.size
    profile = {
        "driver": "GTiff", "height": size, "width": size, "count": 3, "dtype": "uint8", "photometric": "RGB",
        "crs": crs_of(_EPSG), "transform": world.geobox.affine,
    }  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_PAM_ENABLED=False), MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(picture)
            target.write_mask(world.valid)
            target.update_tags(TIFFTAG_DATETIME=_FLIGHT.strftime("%Y:%m:%d %H:%M:%S"), TIFFTAG_SOFTWARE="geoeco demo")
        with memory.open() as source:
            rasterio.shutil.copy(
                source, path, driver="COG", compress="DEFLATE", level=6, predictor="YES", blocksize=256,
                overview_resampling="AVERAGE", num_threads="1",
            )  # fmt: skip


def _write_jpeg(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    bands, height, width = picture.shape
    profile = {"driver": "JPEG", "height": height, "width": width, "count": bands, "dtype": "uint8", "quality": 88}
    with rasterio.Env(GDAL_PAM_ENABLED=False), warnings.catch_warnings():
        # a photo lies nowhere
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as target:
            target.write(picture)
