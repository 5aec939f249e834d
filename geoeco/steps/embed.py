"""The verb ``embed``: what a model makes of the windows of a region, as a map.

Stages: ``composites`` makes one picture of each period, a block a task; ``fit`` draws a sample of windows once for the
whole region and finds principal components, clusters and the scale of whole numbers; ``blocks`` embeds a block each.
Settings and bookkeeping only; the numbers are `geoeco.mapping`'s.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoeco.cubes import create_rasters, open_cube, open_rasters, solar_days, write_rasters
from geoeco.cubes.shards import intact_shards
from geoeco.engine import (
    Output,
    PlanContext,
    PlannedStep,
    RecipePath,
    RunContext,
    Stage,
    StepSettings,
    Task,
    TaskContext,
    TaskResult,
)
from geoeco.errors import InputError
from geoeco.outputs import quicklook
from geoeco.sampling import points_from_table
from geoeco.steps.bundles import (
    PlannedModel,
    bundle_digest,
    bundle_url,
    foreign_model,
    is_step,
    model_item,
    model_tags,
    planned_model,
)
from geoeco.steps.cube import CubeSettings, cube_store
from geoeco.steps.layers import Layer, RasterVerb, digest_of, parts_of, shard_files, shard_for, tiles
from geoeco.steps.model_costs import SERIES, EmbeddingCost
from geoeco.variables import describe

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from geoeco.mapping import Embedder, Lattice, Period, Reduction
    from geoeco.training import ModelBundle

__all__ = ["EmbedSettings", "EmbedVerb", "PeriodSettings"]

Season = Literal["DJF", "MAM", "JJA", "SON"]
Span = tuple[int, int]

#: Files of the step: what was fitted, and what the files of its layers must be told.
FIT, PROFILES = "fit.safetensors", "layers.json"
#: Bands of one file of features: with more, the tiles of a GeoTIFF would be too large to read one pixel.
BANDS_PER_FILE = 64
#: Characters of a place that its file is named by.
LONGEST_NAME = 60


class PeriodSettings(BaseModel):
    """A part of the year by its days."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]{1,40}$", description="name of the period")
    days: tuple[int, int] = Field(description="first and last day of the year; a period may cross the new year")
    years: tuple[int, ...] = Field((), description="years of the looks; all when not given")

    @model_validator(mode="after")
    def _in_a_year(self) -> Self:
        if not all(1 <= day <= 366 for day in self.days):
            raise ValueError("days of the year are from 1 to 366")
        return self


class EmbedSettings(StepSettings):
    """Which model, on which windows, and what is made of the embeddings."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name", "device"})

    verb: Literal["embed"] = "embed"
    bundle: RecipePath = Field(description="name of a pretrain step, or folder of a model bundle")
    cube: str | None = Field(None, description="name of the cube step; the nearest one before when not given")
    periods: tuple[Season | PeriodSettings, ...] = Field(
        ("DJF", "MAM", "JJA", "SON"), min_length=1, description="parts of the year, each of which is embedded"
    )
    composite: Literal["median", "nearest"] = Field(
        "median", description="picture of a period: median of the valid looks, or the one nearest to its middle"
    )
    combine: Literal["mean", "concat"] = Field(
        "mean", description="features of the periods: their mean over those with data, or one after another"
    )
    stride: int = Field(16, ge=1, le=1024, description="pixels along a side of a cell, one pixel of the map")
    window: int | None = Field(
        None, ge=1, le=4096, description="pixels along a side of a window; as the model was trained when not given"
    )
    min_valid: float = Field(0.75, ge=0, le=1, description="least valid part of a window")
    dims: int | None = Field(32, ge=1, le=4096, description="principal components kept; all features when null")
    dtype: Literal["int8", "float32"] = Field("int8", description="how features are stored; int8 with a scale")
    clip: float = Field(0.001, ge=0, lt=0.5, description="part of the values that int8 may clip at each end")
    clusters: int | None = Field(8, ge=2, le=1000, description="clusters of the cluster map; none when null")
    places: str | None = Field(None, description="table of the inputs with points: where looks like there?")
    sample: int = Field(2000, ge=4, le=50_000, description="cells that components, clusters and scale are found from")
    side: int = Field(4, ge=1, le=32, description="cells along a side of a batch of windows")
    threads: int = Field(1, ge=1, le=256, description="threads of a task; the last bits of the numbers depend on it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [period if isinstance(period, str) else period.name for period in self.periods]
        if len(set(names)) < len(names):
            raise ValueError("two periods have the same name")
        return self


class EmbedVerb(RasterVerb):
    """Map embeddings."""

    name: ClassVar[str] = "embed"
    Settings = EmbedSettings
    uses_grid: ClassVar[bool] = True
    uses_block_size: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: EmbedSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digest of the bundle where it is no step of the recipe; its item holds those of its files."""
        if is_step(settings.bundle, context):
            return {}
        return {"bundle": bundle_digest(context.path(settings.bundle))}

    def plan(self, settings: EmbedSettings, context: PlanContext) -> tuple[Stage, ...]:
        """Composites of each block of the cube, one fit, and the blocks of the map."""
        cube = context.step(settings.cube, verb="cube")
        model = planned_model(settings.bundle, context, f"step {settings.step}: bundle")
        lattice = self._checked(settings, context, cube, model)
        places = _places(settings, context, lattice)
        days = solar_days(context.items, context.geobox)
        bands = list(_stored(model))
        cost = EmbeddingCost(
            model,
            lattice,
            periods=len(settings.periods),
            stored=len(bands),
            features=_features(settings, model),
            dims=settings.dims,
            sample=settings.sample,
            times=len(days),
            edge=_block(context),
            places=len(places),
        )
        by_id = {block.id: block for block in context.blocks}
        sources = [(task, by_id[task.key]) for task in cube.tasks if task.stage == "blocks"]
        composites = tuple(
            Task(
                f"{settings.step}/composites/{block.id}",
                payload={"y": list(block.y), "x": list(block.x), "cube": cube.name, "bands": bands},
                depends=(task.id,),
                memory_bytes=cost.composites,
                bytes_in=_pixels(block.y, block.x) * len(days) * 2 * len(bands),
                bytes_out=_pixels(block.y, block.x) * cost.pixel_bytes,
                block=(block.row, block.col),
            )
            for task, block in sources
        )
        bundle = context.step(settings.bundle).tasks if is_step(settings.bundle, context) else ()
        fit = Task(
            f"{settings.step}/fit/all",
            payload={"bands": bands, "places": places},
            depends=(*(task.id for task in composites), *(task.id for task in bundle)),
            memory_bytes=cost.fit,
            bytes_in=settings.sample * lattice.window**2 * cost.pixel_bytes,
            bytes_out=8 * cost.features * (settings.dims or 3),
        )
        # the batches of a block, which are whole, and their windows reach this far into the blocks around it
        reach = lattice.halo + (lattice.side - 1) * lattice.stride
        blocks = tuple(
            Task(
                f"{settings.step}/blocks/{block.id}",
                payload={
                    "y": list(block.y),
                    "x": list(block.x),
                    "bands": bands,
                    "places": places,
                    "shard": cost.shard,
                },
                depends=(
                    fit.id,
                    *(
                        made.id
                        for made, (_, other) in zip(composites, sources, strict=True)
                        if _touch(block.y, other.y, reach) and _touch(block.x, other.x, reach)
                    ),
                ),
                memory_bytes=cost.block,
                bytes_in=_pixels(block.y, block.x) * cost.pixel_bytes,
                bytes_out=_pixels(block.y, block.x) * cost.cell_bytes // settings.stride**2,
                block=(block.row, block.col),
            )
            for _, block in sources
        )
        return Stage("composites", composites), Stage("fit", (fit,), needs_all=False), Stage("blocks", blocks)

    def prepare(self, settings: EmbedSettings, context: RunContext) -> None:
        """Check the bundle, its weights among them, and write the metadata of the two raster stores."""
        from geoeco.mapping import check_model

        cube = context.plan.step(settings.cube, verb="cube")
        assert isinstance(cube.settings, CubeSettings), "the verb cube has these settings"
        assert context.geobox is not None, "plan has checked the grid"
        url = bundle_url(settings.bundle, context)
        bundle = _bundle(url, settings.device)
        check_model(bundle, cube.settings.bands, context.geobox)
        model = PlannedModel.read(url)
        blocks = [task for task in context.step.tasks if task.stage == "blocks"]
        create_rasters(
            context.store.url(_composite_store(context.folder)),
            _composite_template(settings, model),
            context.geobox,
            shard=shard_for(_block(context)),
        )
        if blocks:
            create_rasters(
                context.store.url(self.store_name(context.folder)),
                _template(settings, model, [name for name, _, _ in blocks[0].payload["places"]]),
                _lattice(settings, context.geobox, model.size).cells,
                shard=int(blocks[0].payload["shard"]),
            )

    def run(self, settings: EmbedSettings, task: Task, context: TaskContext) -> TaskResult:
        """Make the composites of a block, fit, or embed a block."""
        if task.stage == "composites":
            return self._composites(settings, task, context)
        if task.stage == "fit":
            return self._fit(settings, task, context)
        return self._embed(settings, task, context)

    def finish(
        self,
        settings: EmbedSettings,
        context: RunContext,
        records: Sequence[Mapping[str, Any]],
    ) -> Sequence[Output] | None:
        """Draw the first three components in colour, and the clusters."""
        rasters = self.open(settings, context)
        pictures = {"pca_rgb": rasters["pca_rgb"]}
        if settings.clusters is not None:
            pictures["clusters"] = rasters["cluster"].assign_attrs(_FillValue=65535)
        outputs = []
        for name, raster in pictures.items():
            title = f"{raster.attrs['long_name']}, {context.recipe.name}"
            with tempfile.TemporaryDirectory() as scratch:
                content = quicklook(raster, Path(scratch) / f"{name}.png", title=title).read_bytes()
            path = f"{context.folder}/{name}.png"
            context.store.write_bytes(path, content)
            outputs.append(Output(path, len(content), hashlib.sha256(content).hexdigest(), "quicklook", title))
        return outputs

    def layers(self, settings: EmbedSettings, context: PlanContext) -> tuple[Layer, ...]:
        """Features (64 to a file), the first three components, clusters, likeness to places, and what was seen."""
        model = planned_model(settings.bundle, context, f"step {settings.step}: bundle")
        lattice = _lattice(settings, context.geobox, model.size)
        names = [name for name, _, _ in _places(settings, context, lattice)]
        return _layers(settings, _features(settings, model), names)

    def _checked(
        self, settings: EmbedSettings, context: PlanContext, cube: PlannedStep, model: PlannedModel
    ) -> Lattice:
        """Refuse what can be known to be wrong before any work."""
        from geoeco.mapping import check_model

        assert isinstance(cube.settings, CubeSettings), "the verb cube has these settings"
        assert context.geobox is not None, "a cube has a grid"
        where = f"step {settings.step}"
        check_model(model, cube.settings.bands, context.geobox)
        if _block(context) % settings.stride:
            raise InputError(
                f"a block of {_block(context)} pixels is not a whole number of cells of {settings.stride}",
                where=where,
                what_to_do="make grid.block a multiple of stride",
                code="window",
            )
        lattice = _lattice(settings, context.geobox, model.size)
        if lattice.window > model.size:
            raise InputError(
                f"windows of {lattice.window} pixels are larger than the {model.size} the model was trained on",
                where=where,
                what_to_do=f"take a window of at most {model.size}",
                code="window",
            )
        features, wanted = _features(settings, model), max(settings.dims or 0, 3)
        if features < wanted:
            raise InputError(
                f"{wanted} components cannot be found among the {features} features of a cell",
                where=where,
                what_to_do="ask for fewer dims, or for all features (null)",
            )
        if settings.sample <= max(wanted, settings.clusters or 0):
            raise InputError(
                f"a sample of {settings.sample} cells cannot tell {max(wanted, settings.clusters or 0)} components "
                "or clusters apart",
                where=where,
                what_to_do="raise sample",
                code="sample",
            )
        days = solar_days(context.items, context.geobox)
        for period in _periods(settings):
            period.dates(days)
        return lattice

    def _composites(self, settings: EmbedSettings, task: Task, context: TaskContext) -> TaskResult:
        from geoeco.mapping import season_composites

        source = context.store.url(cube_store(task.payload["cube"]))
        cube = open_cube(source)
        folder = _composite_store(context.folder)
        shard = shard_for(_block(context))
        y, x = _spans(task)
        digests, files, seen = [], [], 0
        for rows, cols in tiles(y, x, shard):
            with intact_shards(source):
                made = season_composites(
                    cube.isel(y=slice(*rows), x=slice(*cols)),
                    _periods(settings),
                    bands=task.payload["bands"],
                    method=settings.composite,
                    tile=SERIES,
                )
            seen += int(np.isfinite(made.to_numpy()).all(axis=1).sum())
            block = made.to_dataset()
            digests.append(write_rasters(context.store.url(folder), block, rows, cols))
            files += shard_files(folder, block, rows, cols, shard)
        pixels = (y[1] - y[0]) * (x[1] - x[0]) * len(settings.periods)
        return TaskResult(
            digest=digest_of(digests),
            outputs=parts_of(context.store, files),
            stats={"valid_fraction": round(seen / pixels, 4)},
        )

    def _fit(self, settings: EmbedSettings, task: Task, context: TaskContext) -> TaskResult:
        from geoeco.mapping import Reduction

        url = bundle_url(settings.bundle, context)
        embedder = _embedder(settings, task, context, _bundle(url, settings.device))
        names = [name for name, _, _ in task.payload["places"]]
        cells = np.array([cell for _, *cell in task.payload["places"]], np.int64)
        with intact_shards(context.store.url(_composite_store(context.folder))):
            sample = embedder.sample(settings.sample, context.seed)
            places = embedder.at(cells) if names else None
        for name, features in zip(names, () if places is None else places, strict=True):
            if not np.isfinite(features).all():
                raise InputError(
                    f"there is no embedding at the place {name!r}",
                    where=f"step {settings.step}: places",
                    what_to_do="choose a place with imagery in enough periods, or lower min_valid",
                    code="place",
                )
        reduction = Reduction.fit(
            sample,
            dims=settings.dims,
            clip=settings.clip if settings.dtype == "int8" else None,
            clusters=settings.clusters,
            places=places,
            seed=context.seed,
        )
        layers = _layers(settings, sample.shape[1], names)
        bundle = settings.bundle
        profiles = _profiles(layers, reduction, model_tags(bundle, context), model_item(bundle, context))
        files = {FIT: reduction.to_bytes(), PROFILES: (json.dumps(profiles, indent=1) + "\n").encode()}
        outputs = foreign_model(bundle, context)
        for name, content in files.items():
            path = f"{context.folder}/{name}"
            context.store.write_bytes(path, content)
            outputs.append(Output(path, len(content), hashlib.sha256(content).hexdigest(), "metadata"))
        share = reduction.components.share_
        return TaskResult(
            digest=digest_of(str(output.sha256) for output in outputs),
            outputs=tuple(outputs),
            stats={
                "sample": len(sample),
                "variance_of_three": round(float(share[:3].sum()), 4),
                "variance_kept": 1.0 if settings.dims is None else round(float(share[: settings.dims].sum()), 4),
            },
        )

    def _embed(self, settings: EmbedSettings, task: Task, context: TaskContext) -> TaskResult:
        from geoeco.mapping import Reduction

        embedder = _embedder(settings, task, context, _bundle(bundle_url(settings.bundle, context), settings.device))
        fit = f"{context.folder}/{FIT}"
        reduction = Reduction.from_bytes(context.store.read_bytes(fit), fit)
        target = self.store_name(context.folder)
        composites = context.store.url(_composite_store(context.folder))
        shard = int(task.payload["shard"])
        rows, cols = ((first // settings.stride, math.ceil(last / settings.stride)) for first, last in _spans(task))
        digests, files = [], []
        cells, embedded, clipped, values = 0, 0, 0, 0
        for y, x in tiles(rows, cols, shard):
            with intact_shards(composites):
                made = embedder.block(y, x, reduction.derive)
            known = np.isfinite(made["embedding"]).all(axis=0)
            cells, embedded = cells + known.size, embedded + int(known.sum())
            clipped, values = clipped + int(made["clipped"].sum()), values + int(known.sum()) * len(made["embedding"])
            block = _rasters(made, [name for name, _, _ in task.payload["places"]], settings.clusters)
            digests.append(write_rasters(context.store.url(target), block, y, x))
            files += shard_files(target, block, y, x, shard)
        return TaskResult(
            digest=digest_of(digests),
            outputs=parts_of(context.store, files),
            stats={"cells": cells, "embedded": embedded, "clipped_fraction": round(clipped / max(values, 1), 6)},
        )


# --- the model -------------------------------------------------------------------------------------------------------


def _bundle(url: str, device: str) -> ModelBundle:
    """Load a bundle; a process that embeds many blocks does it once."""
    return _loaded(url, device, bundle_digest(url))


@functools.lru_cache(maxsize=1)
def _loaded(url: str, device: str, digest: str) -> ModelBundle:  # noqa: ARG001  (a changed bundle is another one)
    from geoeco.mapping import device_of
    from geoeco.training import ModelBundle

    return ModelBundle.load(url, device=device_of(device))


def _stored(model: PlannedModel) -> tuple[str, ...]:
    from geoeco.mapping import stored_bands

    return stored_bands(model.bands)


def _features(settings: EmbedSettings, model: PlannedModel) -> int:
    """Number of features of a cell, before components."""
    return model.features * (len(settings.periods) if settings.combine == "concat" else 1)


# --- windows and places ----------------------------------------------------------------------------------------------


def _block(context: PlanContext | RunContext | TaskContext) -> int:
    assert context.recipe.grid is not None, "a step on blocks has a grid"
    return context.recipe.grid.block


def _spans(task: Task) -> tuple[Span, Span]:
    (top, bottom), (left, right) = task.payload["y"], task.payload["x"]
    return (top, bottom), (left, right)


def _pixels(y: Span, x: Span) -> int:
    return (y[1] - y[0]) * (x[1] - x[0])


def _touch(one: Span, other: Span, reach: int) -> bool:
    return other[0] < one[1] + reach and one[0] - reach < other[1]


def _periods(settings: EmbedSettings) -> tuple[Period, ...]:
    from geoeco.mapping import Period

    return tuple(Period.of(p) if isinstance(p, str) else Period(p.name, *p.days, p.years) for p in settings.periods)


def _lattice(settings: EmbedSettings, geobox: GeoBox | None, size: int) -> Lattice:
    from geoeco.mapping import Lattice

    assert geobox is not None, "a cube has a grid"
    return Lattice(geobox, settings.window or size, settings.stride, settings.side)


def _embedder(settings: EmbedSettings, task: Task, context: TaskContext, bundle: ModelBundle) -> Embedder:
    from geoeco.mapping import Embedder

    return Embedder.of(
        open_rasters(context.store.url(_composite_store(context.folder)))["reflectance"],
        task.payload["bands"],
        _lattice(settings, context.geobox, bundle.size),
        bundle,
        combine=settings.combine,
        min_valid=settings.min_valid,
        threads=settings.threads,
    )


def _places(settings: EmbedSettings, context: PlanContext, lattice: Lattice) -> list[list[Any]]:
    """Name, row and column of the cell of each place."""
    found: dict[str, list[Any]] = {}
    where = f"step {settings.step}: places"
    table = () if settings.places is None else points_from_table(context.table(settings.places)).itertuples()
    for place in table:
        try:
            cell = lattice.cell_of(place.lon, place.lat)
        except InputError as error:
            raise InputError(
                f"{place.name!r}: {error.what}", where=where, what_to_do=error.what_to_do, code="place"
            ) from error
        variable = _variable(str(place.name))
        if variable in found:
            raise InputError(
                f"the places {found[variable][0]!r} and {place.name!r} would share the file {variable}",
                where=where,
                what_to_do="give them names that differ in their letters or digits",
            )
        found[variable] = [str(place.name), *cell]
    return list(found.values())


def _variable(place: str) -> str:
    """Name of a variable, and of a file, that is safe everywhere.

    Accents are dropped. Where letters or digits of other scripts are, or the name is long, a part of its hash says
    which place it was.
    """
    letters = "".join(c for c in unicodedata.normalize("NFKD", place) if not unicodedata.combining(c))
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", letters).strip("_")
    if len(safe) > LONGEST_NAME or any(c.isalnum() and not c.isascii() for c in letters) or not safe:
        safe = f"{safe[:LONGEST_NAME]}_{hashlib.sha256(place.encode()).hexdigest()[:8]}".lstrip("_")
    return f"similarity_{safe}"


# --- rasters ---------------------------------------------------------------------------------------------------------


def _composite_store(step: str) -> str:
    return f"{step}/composites.zarr"


def _composite_template(settings: EmbedSettings, model: PlannedModel) -> xr.Dataset:
    periods, bands = [period.name for period in _periods(settings)], list(_stored(model))
    pixels = xr.DataArray(np.zeros((len(periods), len(bands), 1, 1), np.float32), dims=("period", "band", "y", "x"))
    numbered = pixels.assign_coords(period=np.arange(1, len(periods) + 1), band=np.arange(1, len(bands) + 1))
    title = f"surface reflectance, {settings.composite} of each period"
    described = describe(numbered, kind="continuous", units="1", long_name=title, periods=periods, bands=bands)
    return xr.Dataset({"reflectance": described})


def _rasters(made: Mapping[str, npt.NDArray[Any]], places: Sequence[str], clusters: int | None) -> xr.Dataset:
    """Variables of the map from what `Embedder.block` and `Reduction.derive` make."""
    from geoeco.mapping import Clusters

    found: dict[str, xr.DataArray] = {}

    def add(name: str, values: npt.NDArray[Any], kind: str, title: str, *lead: str, **attrs: Any) -> None:
        coords = {dim: np.arange(1, size + 1) for dim, size in zip(lead, values.shape, strict=False)}
        array = xr.DataArray(values, dims=(*lead, "y", "x"), coords=coords)
        units = "" if kind == "class" else "1"
        found[name] = describe(array, kind=kind, units=units, long_name=title, **attrs)

    add("embedding", made["embedding"], "continuous", "embedding", "feature")
    add("pca_rgb", made["pca_rgb"], "continuous", "first three principal components", "component")
    if clusters is not None:
        add("cluster", made["cluster"], "class", "cluster", **Clusters(clusters).flags())
        add("cluster_distance", made["cluster_distance"], "continuous", "distance from the centroid of the cluster")
    for at, place in enumerate(places):
        add(_variable(place), made["similarity"][at], "continuous", f"cosine similarity with {place}")
    # where no pixel was seen there may be no task at all: nodata in either case
    unknown = made["n_periods"] == 0
    add("valid_fraction", np.where(unknown, np.float32(np.nan), made["valid_fraction"]), "continuous", "valid part")
    add("n_periods", np.where(unknown, np.uint8(255), made["n_periods"]), "count", "periods with an embedding")
    return xr.Dataset(found)


def _template(settings: EmbedSettings, model: PlannedModel, places: Sequence[str]) -> xr.Dataset:
    kept = settings.dims or _features(settings, model)
    shapes = {"embedding": (kept,), "pca_rgb": (3,), "cluster_distance": (), "valid_fraction": ()}
    made: dict[str, npt.NDArray[Any]] = {name: np.zeros((*s, 1, 1), np.float32) for name, s in shapes.items()}
    made["similarity"] = np.zeros((len(places), 1, 1), np.float32)
    made["cluster"], made["n_periods"] = np.zeros((1, 1), np.uint16), np.zeros((1, 1), np.uint8)
    return _rasters(made, places, settings.clusters)


def _layers(settings: EmbedSettings, features: int, places: Sequence[str]) -> tuple[Layer, ...]:
    kept = settings.dims or features
    what = "Embedding" if settings.dims is None else "Principal components of the embedding"
    common: dict[str, Any] = {"stride": settings.stride, "profile": f"{settings.step}/{PROFILES}"}
    found = []
    for first in range(1, kept + 1, BANDS_PER_FILE):
        labels = list(range(first, min(first + BANDS_PER_FILE, kept + 1)))
        name, title = "embedding", what
        if len(labels) < kept:
            name, title = f"embedding_{labels[0]}_{labels[-1]}", f"{what}, {labels[0]} to {labels[-1]}"
        found.append(Layer(name, ("embedding",), title, {"feature": labels}, bands=len(labels), **common))
    found.append(Layer("pca_rgb", ("pca_rgb",), "First three principal components", bands=3, **common))
    if settings.clusters is not None:
        found.append(Layer("clusters", ("cluster",), f"{settings.clusters} clusters", **common))
        found.append(Layer("cluster_distance", ("cluster_distance",), "Distance from the cluster", **common))
    found += [Layer(_variable(place), (_variable(place),), f"Where looks like {place}?", **common) for place in places]
    found.append(Layer("valid_fraction", ("valid_fraction",), "Valid part of the windows", **common))
    found.append(Layer("n_periods", ("n_periods",), "Periods with an embedding", **common))
    return tuple(found)


def _profiles(
    layers: Sequence[Layer], reduction: Reduction, tags: Mapping[str, str], derived_from: str
) -> dict[str, Any]:
    """What the files of the layers must be told, by layer."""
    profiles: dict[str, Any] = {}
    for layer in layers:
        storage: dict[str, Any] = {}
        if layer.variables == ("embedding",) and reduction.quantisation is not None:
            storage = {"dtype": "int8", "scale": reduction.quantisation.scale, "offset": reduction.quantisation.offset}
        elif layer.variables == ("cluster",):
            storage = {"dtype": "uint16"}
        profiles[layer.name] = {"storage": storage, "tags": tags, "derived_from": [derived_from]}
    return profiles
