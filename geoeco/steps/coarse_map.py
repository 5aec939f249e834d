"""The verb ``coarse_map``: what the patches of an orthomosaic show, one pixel of the map a patch.

The classifier is a step ``weak_coarse``'s. Settings and bookkeeping only; the numbers are `geoeco.mapping`'s. Maps of
pixels are the verb ``predict``'s.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from geoeco.cubes import create_rasters, write_rasters
from geoeco.cubes.shards import intact_shards
from geoeco.engine import Output, PlanContext, RecipePath, RunContext, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.outputs import quicklook
from geoeco.steps.bundles import PlannedModel, bundle_digest, bundle_url, is_step, planned_model
from geoeco.steps.layers import Layer, RasterVerb, digest_of, parts_of, shard_files, shard_for, tiles, written
from geoeco.steps.model_costs import network_bytes
from geoeco.steps.mosaics import PROFILES, MosaicSettings, map_sources, mosaic_of, mosaic_period
from geoeco.steps.training_files import needs_ml

if TYPE_CHECKING:
    from geoeco.mapping import CoarseMapper
    from geoeco.training import ModelBundle

__all__ = ["CoarseMapSettings", "CoarseMapVerb"]

#: Name of each layer for its readers.
TITLES: Mapping[str, str] = {
    "class": "Class of patches",
    "prob": "Probability of the class",
    "margin": "Similarity to the nearest class, less to background",
}


class CoarseMapSettings(MosaicSettings):
    """Which model, on which mosaic."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name", "device"})

    verb: Literal["coarse_map"] = "coarse_map"
    bundle: RecipePath = Field(description="name of a weak_coarse step, or folder of its bundle")
    min_share: float = Field(0.5, gt=0, le=1, description="patches with a smaller valid part have no answer")
    side: int = Field(
        8, ge=1, le=256, description="patches along a side of a batch; the last bits of the numbers depend on it"
    )
    threads: int = Field(1, ge=1, le=256, description="threads of a task; the last bits of the numbers depend on it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network runs")


class CoarseMapVerb(RasterVerb):
    """Map what patches show."""

    name: ClassVar[str] = "coarse_map"
    Settings = CoarseMapSettings
    uses_grid: ClassVar[bool] = True
    uses_block_size: ClassVar[bool] = True

    def fingerprint(self, settings: CoarseMapSettings, context: PlanContext) -> Mapping[str, Any]:
        """The mosaic's, and the digest of a bundle that is no step of the recipe."""
        facts: dict[str, Any] = {"mosaic": mosaic_of(settings, context).fingerprint}
        if not is_step(settings.bundle, context):
            facts["bundle"] = bundle_digest(context.path(settings.bundle))
        return facts

    def plan(self, settings: CoarseMapSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task a block of the run's grid."""
        model = self._checked(settings, context)
        mosaic = mosaic_of(settings, context)
        made = context.step(settings.bundle).tasks if is_step(settings.bundle, context) else ()
        edge, patch = _block(context), model.size
        window = settings.side * patch
        pixel = len(mosaic.bands) * 4
        cells = (-(-edge // patch)) ** 2
        memory = (
            network_bytes(model, settings.side**2)
            + mosaic.read_bytes(window, window)
            # a batch as it is read, its bands, as values, with what is invalid set to 0, and cut
            + 5 * window**2 * pixel
            # the block, and a shard as it is encoded and read back
            + 9 * (cells + 6 * shard_for(edge // patch) ** 2)
            + 64 * 2**20
        )
        blocks = tuple(
            Task(
                f"{settings.step}/blocks/{block.id}",
                payload={"y": list(block.y), "x": list(block.x)},
                depends=tuple(task.id for task in made),
                memory_bytes=memory,
                bytes_in=_pixels(block.y, block.x) * len(mosaic.bands) * np.dtype(mosaic.dtype).itemsize,
                bytes_out=9 * _pixels(block.y, block.x) // patch**2,
                block=(block.row, block.col),
            )
            for block in context.blocks
        )
        return (Stage("blocks", blocks),)

    def prepare(self, settings: CoarseMapSettings, context: RunContext) -> None:
        """Check the bundle, its weights among them, and write the metadata of the raster store."""
        from geoeco.mapping import coarse_grid, coarse_variables

        assert context.geobox is not None, "plan has checked the grid"
        mapper = _mapper(settings, context, context.plan)
        bundle = mapper.bundle
        nothing: dict[str, Any] = {
            name: np.zeros((1, 1), np.uint8 if name == "class" else np.float32) for name in TITLES
        }
        create_rasters(
            context.store.url(self.store_name(context.folder)),
            xr.Dataset(coarse_variables(nothing, bundle.classes, bundle.codes, bundle.colours)),
            coarse_grid(context.geobox, bundle.size),
            shard=shard_for(_block(context) // bundle.size),
        )

    def run(self, settings: CoarseMapSettings, task: Task, context: TaskContext) -> TaskResult:
        """Map a block."""
        from geoeco.mapping import coarse_variables

        mapper = _mapper(settings, context, context)
        patch, bundle = mapper.bundle.size, mapper.bundle
        rows, columns = (
            (int(task.payload[axis][0]) // patch, math.ceil(int(task.payload[axis][1]) / patch)) for axis in ("y", "x")
        )
        target, shard = self.store_name(context.folder), shard_for(_block(context) // patch)
        digests, files, answered, cells = [], [], 0, 0
        for y, x in tiles(rows, columns, shard):
            made = mapper.cells(y, x)
            answered, cells = answered + int(np.isfinite(made["prob"]).sum()), cells + made["prob"].size
            variables = coarse_variables(made, bundle.classes, bundle.codes, bundle.colours)
            block = xr.Dataset(variables)
            digests.append(write_rasters(context.store.url(target), block, y, x))
            files += shard_files(target, block, y, x, shard)
        return TaskResult(
            digest=digest_of(digests),
            outputs=parts_of(context.store, files),
            stats={"patches": cells, "valid_fraction": round(answered / cells, 4)},
        )

    def finish(
        self, settings: CoarseMapSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Say what the map was made of, and draw classes and margin."""
        outputs = map_sources(settings, (settings.bundle,), TITLES, context)
        rasters = self.open(settings, context)
        for name in ("class", "margin"):
            title = f"{TITLES[name]}, {context.recipe.name}"
            store = context.store.url(self.store_name(context.folder))
            with tempfile.TemporaryDirectory() as scratch, intact_shards(store):
                drawn = quicklook(rasters[name], Path(scratch) / f"{name}.png", title=title).read_bytes()
            outputs.append(written(context, f"{name}.png", drawn, "quicklook", title))
        return outputs

    def layers(self, settings: CoarseMapSettings, context: PlanContext) -> tuple[Layer, ...]:
        """Class, probability and margin, on a grid of patches."""
        patch = planned_model(settings.bundle, context, f"step {settings.step}: bundle").size
        return tuple(
            Layer(name, (name,), title, stride=patch, profile=f"{settings.step}/{PROFILES}")
            for name, title in TITLES.items()
        )

    def inputs(self, settings: CoarseMapSettings, context: PlanContext) -> tuple[str, ...]:
        """Fingerprint of the mosaic."""
        return (mosaic_of(settings, context).fingerprint,)

    def period(self, settings: CoarseMapSettings, context: PlanContext) -> tuple[str, str] | None:
        """Day of the flight, by the settings or by the file."""
        return mosaic_period(settings, context)

    def _checked(self, settings: CoarseMapSettings, context: PlanContext) -> PlannedModel:
        """Refuse what can be known to be wrong before any work."""
        with needs_ml(settings.step):
            from geoeco.mapping import check_model
            from geoeco.mapping.map_layers import RESOLUTION_TOLERANCE, check_classes
        where = f"step {settings.step}"
        model = planned_model(settings.bundle, context, f"{where}: bundle")
        mosaic = mosaic_of(settings, context)
        check_model(
            model,
            mosaic.bands,
            mosaic.geobox,
            task="classification",
            resolution=mosaic.gsd_m,
            tolerance=RESOLUTION_TOLERANCE,
        )
        check_classes(model.codes or range(len(model.classes)), model.classes, f"{where}: bundle")
        if min(mosaic.shape) < model.size:
            raise InputError(
                f"the mosaic of {mosaic.shape[0]} x {mosaic.shape[1]} pixels has no whole patch of {model.size}",
                where=where,
                what_to_do="map a larger mosaic, or learn from smaller patches",
                code="window",
            )
        if _block(context) % model.size:
            raise InputError(
                f"a block of {_block(context)} pixels is not a whole number of patches of {model.size}",
                where=where,
                what_to_do=f"make grid.block a multiple of {model.size}",
                code="window",
            )
        return model


def _mapper(
    settings: CoarseMapSettings, context: RunContext | TaskContext, plan: PlanContext | TaskContext
) -> CoarseMapper:
    from geoeco.mapping import CoarseMapper

    url = bundle_url(settings.bundle, context)
    bundle = _loaded(url, settings.device, bundle_digest(url))
    mosaic = mosaic_of(settings, plan)
    return CoarseMapper.of(mosaic, bundle, min_share=settings.min_share, side=settings.side, threads=settings.threads)


@functools.lru_cache(maxsize=1)
def _loaded(url: str, device: str, digest: str) -> ModelBundle:  # noqa: ARG001  (a changed bundle is another one)
    from geoeco.mapping import device_of
    from geoeco.training import ModelBundle

    return ModelBundle.load(url, device=device_of(device))


def _block(context: PlanContext | RunContext | TaskContext) -> int:
    assert context.recipe.grid is not None, "a step on blocks has a grid"
    return context.recipe.grid.block


def _pixels(y: tuple[int, int], x: tuple[int, int]) -> int:
    return (y[1] - y[0]) * (x[1] - x[0])
