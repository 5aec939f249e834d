"""The verb ``predict``: classes of an orthomosaic by one model or several, with their doubt, as a map.

Stages: ``scene`` finds the weights of feature levels for the whole mosaic, where they are wanted; ``blocks`` maps a
block each. Settings and bookkeeping only; the numbers are `geoeco.mapping`'s.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, PositiveFloat, field_validator, model_validator

from geoeco.cubes import create_rasters, write_rasters
from geoeco.cubes.shards import intact_shards
from geoeco.engine import (
    Output,
    PlanContext,
    RecipePath,
    RunContext,
    Stage,
    Task,
    TaskContext,
    TaskResult,
)
from geoeco.outputs import quicklook
from geoeco.sensors.orthomosaic import Orthomosaic
from geoeco.steps.bundles import (
    PlannedModel,
    bundle_digest,
    bundle_url,
    is_step,
    planned_model,
)
from geoeco.steps.layers import Layer, RasterVerb, digest_of, parts_of, shard_files, shard_for, tiles, written
from geoeco.steps.model_costs import network_bytes
from geoeco.steps.mosaics import PROFILES, MosaicSettings, as_json, map_sources, mosaic_of, mosaic_period
from geoeco.steps.training_files import needs_ml

if TYPE_CHECKING:
    from geoeco.mapping import Predictor, Tiling
    from geoeco.training import ModelBundle

__all__ = ["PredictSettings", "PredictVerb"]

Span = tuple[int, int]
MapOutput = Literal["class", "probability", "entropy", "confidence", "spread", "di", "aoa", "valid"]

#: File of the step with the weights of feature levels.
SCENE = "scene.json"
#: Name of each layer for its readers.
TITLES: Mapping[str, str] = {
    "class": "Class",
    "probability": "Probability of each class",
    "entropy": "Entropy of the class probabilities",
    "confidence": "Largest class probability",
    "spread": "Spread of the models: mutual information",
    "di": "Dissimilarity index",
    "aoa": "Area of applicability",
    "valid": "Valid pixels",
}


class PredictSettings(MosaicSettings):
    """Which model, on which mosaic, in which windows, and what is kept."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name", "device", "resources"})

    verb: Literal["predict"] = "predict"
    bundle: RecipePath | tuple[RecipePath, ...] = Field(
        description="name of a step that trains a segmentation, or folder of a bundle; several are an ensemble"
    )
    window: int | None = Field(None, ge=8, le=8192, description="pixels along a side of a window")
    overlap: int | None = Field(None, ge=0, le=4096, description="pixels that neighbouring windows share")
    blend: Literal["auto", "core", "hann"] = Field(
        "auto", description="keep the cores of windows, or blend windows with weights that fade to their edges"
    )
    weights: Literal["tile", "scene"] = Field(
        "tile", description="feature levels of a network that weighs them (DWFF) are weighed by window, or once for all"
    )
    augment: tuple[Literal["flips", "rot90"], ...] = Field((), description="test-time augmentation")
    outputs: tuple[MapOutput, ...] = Field(("class", "confidence"), min_length=1, description="layers of the map")
    batch: int = Field(1, ge=1, le=1024, description="windows that pass the network together; more on a GPU")
    precision: Literal["auto", "32", "bf16"] = Field("auto", description="of the network; auto: bf16 on a GPU, else 32")
    threads: int = Field(1, ge=1, le=256, description="threads of a task; the last bits of the numbers depend on it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network runs")
    resources: dict[str, PositiveFloat] = Field(
        {}, description="what a block takes of a Dask worker's resources, as {GPU: 1}: it runs only where they are"
    )

    @field_validator("augment", "outputs")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a name stands twice")
        return value

    @model_validator(mode="after")
    def _several(self) -> Self:
        if not self.bundles or len(set(self.bundles)) < len(self.bundles):
            raise ValueError("an ensemble is a list of different bundles")
        if "spread" in self.outputs and len(self.bundles) < 2:
            raise ValueError("one model has no spread: give several bundles, or leave spread out of outputs")
        return self

    @property
    def bundles(self) -> tuple[str, ...]:
        """Names of the bundles."""
        return (self.bundle,) if isinstance(self.bundle, str) else self.bundle


class PredictVerb(RasterVerb):
    """Map classes."""

    name: ClassVar[str] = "predict"
    Settings = PredictSettings
    uses_grid: ClassVar[bool] = True
    uses_block_size: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: PredictSettings, context: PlanContext) -> Mapping[str, Any]:
        """The mosaic's, and digests of the bundles that are no steps of the recipe."""
        outside = [name for name in settings.bundles if not is_step(name, context)]
        return {
            "mosaic": mosaic_of(settings, context).fingerprint,
            "bundles": {name: bundle_digest(context.path(name)) for name in outside},
        }

    def plan(self, settings: PredictSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task for the scene where feature levels are weighed once, and one a block."""
        mosaic = mosaic_of(settings, context)
        models = _models(settings, context)
        tiling = _checked(settings, mosaic, models)
        cost = _Cost(settings, models, tiling, mosaic, _block(context))
        made = tuple(
            task.id for name in settings.bundles if is_step(name, context) for task in context.step(name).tasks
        )
        stages = []
        if settings.weights == "scene":
            scene = Task(
                f"{settings.step}/scene/all",
                depends=made,
                memory_bytes=cost.block,
                bytes_in=cost.scene_bytes,
                bytes_out=4096,
                resources=settings.resources,
            )
            stages.append(Stage("scene", (scene,)))
            made = (*made, scene.id)
        blocks = tuple(
            Task(
                f"{settings.step}/blocks/{block.id}",
                payload={"y": list(block.y), "x": list(block.x)},
                depends=made,
                memory_bytes=cost.block,
                bytes_in=cost.read_bytes(block.y, block.x),
                bytes_out=(block.y[1] - block.y[0]) * (block.x[1] - block.x[0]) * cost.pixel_bytes,
                block=(block.row, block.col),
                resources=settings.resources,
            )
            for block in context.blocks
        )
        return (*stages, Stage("blocks", blocks))

    def prepare(self, settings: PredictSettings, context: RunContext) -> None:
        """Check the bundles, their weights among them, and write the metadata of the raster store."""
        assert context.geobox is not None, "plan has checked the grid"
        bundles = _bundles(settings, context)
        _checked(settings, mosaic_of(settings, context.plan), bundles)
        create_rasters(
            context.store.url(self.store_name(context.folder)),
            xr.Dataset(_template(settings, bundles)),
            context.geobox,
            shard=shard_for(_block(context)),
        )

    def run(self, settings: PredictSettings, task: Task, context: TaskContext) -> TaskResult:
        """Find the weights of the scene, or map a block."""
        return self._scene(settings, context) if task.stage == "scene" else self._map(settings, task, context)

    def finish(
        self, settings: PredictSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Say what the map was made of, and draw classes and entropy."""
        layers = [layer.name for layer in self.layers(settings, context.plan)]
        outputs = map_sources(settings, settings.bundles, layers, context)
        rasters = self.open(settings, context)
        store = context.store.url(self.store_name(context.folder))
        for name in ("class", "entropy"):
            if name in settings.outputs:
                title = f"{TITLES[name]}, {context.recipe.name}"
                with tempfile.TemporaryDirectory() as scratch, intact_shards(store):
                    drawn = quicklook(rasters[name], Path(scratch) / f"{name}.png", title=title).read_bytes()
                outputs.append(written(context, f"{name}.png", drawn, "quicklook", title))
        return outputs

    def layers(self, settings: PredictSettings, context: PlanContext) -> tuple[Layer, ...]:
        """One layer an output; probabilities have a band a class."""
        model = _models(settings, context)[0]
        found = []
        for name in settings.outputs:
            more: dict[str, Any] = {"itemsize": 1 if name in ("class", "aoa", "valid") else 4}
            if name == "probability":
                more |= {
                    "select": {"label": list(model.codes)},
                    "bands": len(model.codes),
                    "band_names": tuple(model.classes),
                }
            found.append(Layer(name, (name,), TITLES[name], profile=f"{settings.step}/{PROFILES}", **more))
        return tuple(found)

    def inputs(self, settings: PredictSettings, context: PlanContext) -> tuple[str, ...]:
        """Fingerprint of the mosaic."""
        return (mosaic_of(settings, context).fingerprint,)

    def period(self, settings: PredictSettings, context: PlanContext) -> tuple[str, str] | None:
        """Day of the flight, by the settings or by the file."""
        return mosaic_period(settings, context)

    def _scene(self, settings: PredictSettings, context: TaskContext) -> TaskResult:
        from geoeco.mapping import scene_levels

        levels = scene_levels(_predictor(settings, context, None), context.seed)
        content = as_json(levels)
        output = written(context, SCENE, content, "metadata")
        named = {f"model_{number}": value for number, value in enumerate(levels, start=1)}
        return TaskResult(digest=str(output.sha256), outputs=(output,), stats={"levels": named})

    def _map(self, settings: PredictSettings, task: Task, context: TaskContext) -> TaskResult:
        from geoeco.mapping import map_variables

        levels = context.store.read_json(f"{context.folder}/{SCENE}") if settings.weights == "scene" else None
        predictor = _predictor(settings, context, levels)
        y, x = _spans(task)
        made = predictor.block(y, x)
        variables = map_variables(made, [member.bundle for member in predictor.members])
        block = xr.Dataset({name: variables[name] for name in settings.outputs})
        target, shard = self.store_name(context.folder), shard_for(_block(context))
        digests, files = [], []
        for rows, cols in tiles(y, x, shard):
            inside = {"y": slice(rows[0] - y[0], rows[1] - y[0]), "x": slice(cols[0] - x[0], cols[1] - x[0])}
            digests.append(write_rasters(context.store.url(target), block.isel(inside), rows, cols))
            files += shard_files(target, block, rows, cols, shard)
        return TaskResult(
            digest=digest_of(digests),
            outputs=parts_of(context.store, files),
            stats={"windows": int(made["windows"]), **_seen(made)},
        )


def _seen(made: Mapping[str, Any]) -> dict[str, Any]:
    """Part of a block's pixels that is valid, by the class or the valid mask where one is kept."""
    for name, nothing in (("class", 255), ("valid", 0)):
        if name in made:
            return {"valid_fraction": round(float((made[name] != nothing).mean()), 4)}
    return {}


# --- mosaic and models -----------------------------------------------------------------------------------------------


def _models(settings: PredictSettings, context: PlanContext) -> tuple[PlannedModel, ...]:
    return tuple(planned_model(name, context, f"step {settings.step}: bundle") for name in settings.bundles)


def _checked(settings: PredictSettings, mosaic: Orthomosaic, models: Sequence[Any]) -> Tiling:
    """Windows of the map; refuses what can be known to be wrong before any work."""
    with needs_ml(settings.step):
        from geoeco.mapping import check_segmenters, choose_tiling

    check_segmenters(models, mosaic)
    return choose_tiling(
        mosaic.shape,
        models,
        window=settings.window,
        overlap=settings.overlap,
        blend=settings.blend,
        batch=settings.batch,
    )


def _bundles(settings: PredictSettings, context: RunContext | TaskContext) -> tuple[ModelBundle, ...]:
    """Load the bundles; a process that maps many blocks does it once."""
    urls = tuple(bundle_url(name, context) for name in settings.bundles)
    return _loaded(urls, settings.device, tuple(bundle_digest(url) for url in urls))


@functools.lru_cache(maxsize=1)
def _loaded(
    urls: tuple[str, ...],
    device: str,
    digests: tuple[str, ...],  # noqa: ARG001  (a changed bundle is another one)
) -> tuple[ModelBundle, ...]:
    from geoeco.mapping import device_of
    from geoeco.training import ModelBundle

    return tuple(ModelBundle.load(url, device=device_of(device)) for url in urls)


def _predictor(settings: PredictSettings, context: TaskContext, levels: Sequence[Any] | None) -> Predictor:
    from geoeco.mapping import Member, Predictor, device_of, precision_of, views_of, with_levels

    bundles = _bundles(settings, context)
    mosaic = mosaic_of(settings, context)
    precision = precision_of(settings.precision, device_of(settings.device))
    members = tuple(Member(bundle, views_of(settings.augment), precision) for bundle in bundles)
    if levels is not None:
        members = with_levels(members, levels)
    return Predictor(mosaic, members, _checked(settings, mosaic, bundles), settings.outputs, settings.threads)


# --- bookkeeping -----------------------------------------------------------------------------------------------------


def _block(context: PlanContext | RunContext | TaskContext) -> int:
    assert context.recipe.grid is not None, "a step on blocks has a grid"
    return context.recipe.grid.block


def _spans(task: Task) -> tuple[Span, Span]:
    (top, bottom), (left, right) = task.payload["y"], task.payload["x"]
    return (top, bottom), (left, right)


def _template(settings: PredictSettings, models: Sequence[Any]) -> dict[str, xr.DataArray]:
    from geoeco.mapping import map_variables

    made: dict[str, Any] = {}
    for name in settings.outputs:
        lead = (len(models[0].codes),) if name == "probability" else ()
        made[name] = np.zeros((*lead, 1, 1), np.uint8 if name in ("class", "aoa", "valid") else np.float32)
    return map_variables(made, models)


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    """Upper bounds of what a task holds, bytes."""

    settings: PredictSettings
    models: Sequence[PlannedModel]
    tiling: Tiling
    mosaic: Orthomosaic
    edge: int

    @property
    def classes(self) -> int:
        return len(self.models[0].codes)

    @property
    def stored(self) -> int:
        """Of a pixel of the mosaic, with its mask."""
        return len(self.mosaic.bands) * np.dtype(self.mosaic.dtype).itemsize + 1

    @property
    def pixel_bytes(self) -> int:
        """Of a pixel of the map."""
        sizes = {"probability": 4 * self.classes, "class": 1, "aoa": 1, "valid": 1}
        return sum(sizes.get(name, 4) for name in self.settings.outputs)

    def read_bytes(self, y: Span, x: Span) -> int:
        """Read for a block, overlaps counted as often as they are read."""
        return self.tiling.windows(y, x) * self.tiling.y.window * self.tiling.x.window * self.stored

    @property
    def scene_bytes(self) -> int:
        return 64 * self.tiling.y.window * self.tiling.x.window * self.stored

    @property
    def network(self) -> int:
        """Libraries, weights of every model, and a batch on its way through one of them."""
        side = max(self.tiling.y.window, self.tiling.x.window)
        weights = sum(3 * model.weight_bytes for model in self.models[1:])
        views = 2 if self.settings.augment else 1
        batch = self.tiling.batch * side**2 * 4 * self.classes * (2 + views)
        return max(network_bytes(model, self.tiling.batch, size=side) for model in self.models) + weights + batch

    @property
    def reading(self) -> int:
        """A batch that is read, those that wait and are at work as they were cut, and the one at work as values."""
        rows, cols = self.tiling.group
        height, width = self.tiling.y.window, self.tiling.x.window
        pixels = rows * cols * height * width
        values = pixels * len(self.mosaic.bands) * 8
        return self.mosaic.read_bytes(rows * height, cols * width) + 3 * pixels * self.stored + values

    @property
    def canvas(self) -> int:
        """Sums of the rows of a row of batches, of the one before, and the outputs of some rows."""
        rows = self.tiling.group[0] * self.tiling.y.step + self.tiling.y.overlap
        width = min(self.edge, self.tiling.shape[1])
        summed = len(self.models) * 4 * (self.classes + 1)
        return 2 * rows * width * summed + 128 * width * 4 * (self.classes * (2 + len(self.models)) + 8)

    @property
    def block(self) -> int:
        shard = shard_for(self.edge)
        kept = self.pixel_bytes * (self.edge**2 + 6 * shard**2)
        return self.network + self.reading + self.canvas + kept + 64 * 2**20
