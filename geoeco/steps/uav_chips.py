"""The verb ``uav_chips``: chips of orthomosaics with labels, heights and crowns, into one sharded Zarr store.

Stages: ``survey`` lays out the chips, looks at what each holds, hands the ground out to sets and writes the template;
``groups`` cut the chips, a shard a task; the finish writes tables, outlines and pictures. Settings and bookkeeping
only; the numbers are `geoeco.sampling`'s.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoeco.engine import (
    Output,
    PlanContext,
    RunContext,
    RunStore,
    Stage,
    StepSettings,
    Task,
    TaskContext,
    TaskResult,
    Verb,
)
from geoeco.sampling import (
    AreaSplit,
    BlockSplit,
    ChipDesign,
    ChipPlan,
    MosaicSources,
    create_uav_chips,
    cut_chips,
    largest_number,
    open_sources,
    open_uav_chips,
    plan_chips,
    write_uav_chips,
)
from geoeco.sampling.mosaic_chips import CROWN_BAND
from geoeco.sampling.mosaic_plans import chip_side
from geoeco.steps.layers import digest_of, parts_of
from geoeco.vectors import read_split_areas

__all__ = ["MosaicSplitSettings", "PlannedChips", "UavChipsSettings", "UavChipsVerb", "planned_chips"]

#: Files of the step.
TABLE, PLAN, STORE = "chips.parquet", "plan.json", "uav.zarr"
#: What a task takes beside the pixels of its chips: libraries, GDAL's cache, tables.
_BASE_BYTES = 192 * 2**20
#: Threads that read and compress.
_THREADS = 2

Names = str | tuple[str, ...]


class MosaicSplitSettings(BaseModel):
    """Training, validation and test sets by ground: by areas that are drawn, or by blocks that are handed out."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    areas: str | None = Field(None, description="table of the inputs with polygons and a column split")
    block_m: float | None = Field(None, gt=0, description="side of the blocks, metres; at least twice a chip")
    guard_m: float = Field(
        0.0, ge=0, description="least distance of training chips to the ground of other sets, metres"
    )
    fractions: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="shares of train, val and test")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.areas is None) == (self.block_m is None):
            raise ValueError("give either areas or block_m")
        return self


class UavChipsSettings(StepSettings):
    """Which chips, of what, and with what beside them."""

    verb: Literal["uav_chips"] = "uav_chips"
    mosaic: Names = Field(description="table of the inputs with the orthomosaic; a list for several of one kind")
    kind: Literal["grid", "crown", "random"] = Field("grid", description="on a grid, round crowns, or at random")
    chip_m: float | None = Field(None, gt=0, description="side of a chip, metres; crowns: that of the largest if null")
    overlap_m: float = Field(0.0, ge=0, description="ground that neighbours of a grid share, metres")
    edge: Literal["shift", "pad", "drop"] = Field(
        "shift", description="chips that would reach beyond the mosaic: moved in, padded, left out"
    )
    edge_band_m: float = Field(0.0, ge=0, description="band of a chip in which a crown does not count as whole, metres")
    count: int = Field(1000, ge=1, le=10_000_000, description="random chips wanted of each mosaic")
    buffer_m: float = Field(1.0, ge=0, description="least ground between a crown and the sides of its chip, metres")
    context: Literal["keep", "zero", "mask"] = Field(
        "keep", description="surroundings of a crown: kept, 0 and invalid, kept with the crown as a further band"
    )
    too_large: Literal["refuse", "drop", "resize"] = Field(
        "refuse", description="crowns larger than a chip: an error, left out, or in coarser pixels"
    )
    target_gsd: float | None = Field(None, gt=0, description="metres a pixel; the mosaic's own when not given")
    labels: Names | None = Field(None, description="table of the inputs with the class raster; one for each mosaic")
    crowns: Names | None = Field(
        None, description="table of the inputs with crowns; one for all, or one for each mosaic"
    )
    crown_class: str | None = Field(None, description="column that names the class of a crown")
    crown_layer: str | None = Field(None, description="layer of the file of crowns")
    chm: Names | None = Field(None, description="table of the inputs with heights; one for each mosaic")
    min_valid: float = Field(0.0, ge=0, le=1, description="least valid part of a chip; 0 takes all with a valid pixel")
    split: MosaicSplitSettings | None = Field(None, description="train, val and test sets; none when not given")
    chips_per_shard: int = Field(64, ge=1, le=4096, description="chips in a shard, which is one task")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind != "crown" and self.chip_m is None:
            raise ValueError(f"{self.kind} chips need chip_m, metres")
        if self.kind == "crown" and self.crowns is None:
            raise ValueError("crown chips need crowns")
        if self.kind != "crown" and self.context != "keep":
            raise ValueError("only crown chips have a context other than keep")
        return self


class UavChipsVerb(Verb):
    """Cut chips of orthomosaics."""

    name: ClassVar[str] = "uav_chips"
    Settings = UavChipsSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: UavChipsSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of the mosaics and of all that lies on them."""
        sources = _sources(settings, context.table)
        facts: dict[str, Any] = {
            "mosaics": [
                [layer.fingerprint for layer in (s.mosaic, s.labels, s.chm) if layer is not None]
                for s in sources.sources
            ],
            "classes": [list(row) for row in sources.classes],
            "crowns": [None if frame is None else _frame_digest(frame) for frame in sources.crowns],
        }
        if settings.split is not None and settings.split.areas is not None:
            areas = context.table(settings.split.areas)
            facts["areas"] = [_frame_digest(read_split_areas(areas, s.mosaic.geobox)) for s in sources.sources]
        return facts

    def plan(self, settings: UavChipsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One survey, then one task a shard."""
        sources = _sources(settings, context.table)
        design = _design(settings, context.table, context.recipe.seed)
        size, most = chip_side(sources.sources, design), largest_number(sources, design)
        pixel = _pixel_bytes(settings, sources)
        chip = size * size * pixel
        survey = Task(
            f"{settings.step}/survey/all",
            memory_bytes=_BASE_BYTES + 4 * _THREADS * chip + 2000 * most,
            bytes_in=2 * most * chip,
            bytes_out=200 * most,
        )
        per_shard = min(settings.chips_per_shard, most)
        groups = tuple(
            Task(
                f"{settings.step}/groups/{first:07d}",
                payload={"first": first, "count": min(per_shard, most - first)},
                depends=(survey.id,),
                # the chips, each variable once more as it is encoded and as it is read back, and what is being read
                memory_bytes=_BASE_BYTES + int(3.2 * per_shard * chip) + 4 * _THREADS * chip + 2000 * most,
                bytes_in=per_shard * chip,
                bytes_out=per_shard * chip,
            )
            for first in range(0, most, per_shard)
        )
        return Stage("survey", (survey,)), Stage("groups", groups)

    def run(self, settings: UavChipsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Survey the mosaics, or cut the chips of a shard."""

        def table(name: str) -> str:
            return context.recipe.table_path(name, context.recipe_folder)

        sources = _sources(settings, table)
        if task.stage == "survey":
            return _survey(settings, sources, _design(settings, table, context.seed), context)
        return _cut(sources, task, context)

    def finish(
        self, settings: UavChipsSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """List the tables that the survey wrote."""
        return [
            _output(context.store, f"{context.folder}/{file}", kind)
            for file, kind in ((TABLE, "table"), (PLAN, "metadata"))
        ]

    def open(self, settings: UavChipsSettings, context: RunContext) -> Any:
        """Open the chips."""
        return open_uav_chips(context.store.url(f"{context.folder}/{STORE}"))


class PlannedChips(NamedTuple):
    """What is known of chips before they are cut.

    Attributes
    ----------
    bands : tuple of str
    size : int
        Pixels along a side.
    gsd_m : float
    classes : tuple of (code, name, colour)
        Of the labels; empty where there are none.
    crown_classes : tuple of str
    """

    bands: tuple[str, ...]
    size: int
    gsd_m: float
    classes: tuple[tuple[int, str, str], ...]
    crown_classes: tuple[str, ...]


def planned_chips(settings: UavChipsSettings, context: PlanContext) -> PlannedChips:
    """What the chips of a step will be.

    Raises
    ------
    InputError
        As `geoeco.sampling.open_sources`.
    """
    sources = _sources(settings, context.table)
    mosaic = sources.sources[0].mosaic
    bands = (*mosaic.bands, CROWN_BAND) if settings.context == "mask" else tuple(mosaic.bands)
    size = chip_side(sources.sources, _design(settings, context.table, context.recipe.seed))
    return PlannedChips(bands, size, mosaic.gsd_m, tuple(sources.classes), tuple(sources.crown_classes))


def _survey(settings: UavChipsSettings, sources: MosaicSources, design: ChipDesign, context: TaskContext) -> TaskResult:
    """Plan the chips; write the table, the plan and the template of the store."""
    plan = plan_chips(sources, design, threads=_THREADS)
    for text in plan.notes["warnings"]:
        warnings.warn(f"step {settings.step}: {text}", stacklevel=2)
    table = _parquet(plan.table)
    about = {"size": plan.size, "bands": list(plan.bands), "attrs": plan.attrs, "notes": plan.notes}
    create_uav_chips(
        context.store.url(f"{context.folder}/{STORE}"),
        cut_chips(sources.sources, plan, pixels=False),
        like=cut_chips(sources.sources, plan, count=0),
        chips_per_shard=settings.chips_per_shard,
    )
    context.store.write_bytes(f"{context.folder}/{TABLE}", table)
    context.store.write_json(f"{context.folder}/{PLAN}", about)
    return TaskResult(
        digest=digest_of([hashlib.sha256(table).hexdigest(), json.dumps(about, sort_keys=True)]),
        outputs=parts_of(context.store, [f"{context.folder}/{TABLE}", f"{context.folder}/{PLAN}"]),
        stats={"chips": len(plan.table), "splits": plan.notes["splits"], "warnings": plan.notes["warnings"]},
    )


def _cut(sources: MosaicSources, task: Task, context: TaskContext) -> TaskResult:
    """Cut and write the chips of one shard; nothing where the survey left fewer chips than there might have been."""
    plan = _read_plan(context.store, context.folder)
    first, count = int(task.payload["first"]), int(task.payload["count"])
    count = min(count, len(plan.table) - first)
    if count <= 0:
        return TaskResult(digest=digest_of([]), stats={"chips": 0})
    chips = cut_chips(sources.sources, plan, first=first, count=count, threads=_THREADS)
    record = write_uav_chips(context.store.url(f"{context.folder}/{STORE}"), chips, first=first, threads=_THREADS)
    return TaskResult(
        digest=record["digest"],
        outputs=parts_of(context.store, [f"{context.folder}/{STORE}/{name}" for name in record["objects"]]),
        stats={"chips": count, "bytes": record["bytes"]},
    )


def _sources(settings: UavChipsSettings, table: Callable[[str], str]) -> MosaicSources:
    """Open the mosaics and what lies on them, by the names of the recipe's tables."""

    def paths(names: Names | None) -> Any:
        if names is None:
            return None
        return table(names) if isinstance(names, str) else [table(name) for name in names]

    return open_sources(
        paths(settings.mosaic),
        target_gsd=settings.target_gsd,
        labels=paths(settings.labels),
        chm=paths(settings.chm),
        crowns=paths(settings.crowns),
        crown_class=settings.crown_class,
        crown_layer=settings.crown_layer,
    )


def _design(settings: UavChipsSettings, table: Callable[[str], str], seed: int) -> ChipDesign:
    split: AreaSplit | BlockSplit | None = None
    if settings.split is not None and settings.split.areas is not None:
        split = AreaSplit(table(settings.split.areas), guard_m=settings.split.guard_m)
    elif settings.split is not None and settings.split.block_m is not None:
        split = BlockSplit(settings.split.block_m, settings.split.guard_m, settings.split.fractions)
    return ChipDesign(
        settings.kind,
        settings.chip_m,
        overlap_m=settings.overlap_m,
        edge=settings.edge,
        edge_band_m=settings.edge_band_m,
        count=settings.count,
        buffer_m=settings.buffer_m,
        context=settings.context,
        too_large=settings.too_large,
        min_valid=settings.min_valid,
        split=split,
        seed=seed,
    )


def _pixel_bytes(settings: UavChipsSettings, sources: MosaicSources) -> int:
    """Bytes of all variables of a pixel of a chip."""
    first = sources.sources[0]
    bands = len(first.mosaic.bands) + (settings.context == "mask")
    beside = (first.labels is not None) + 4 * (first.chm is not None) + 4 * (settings.crowns is not None)
    return bands * np.dtype(first.mosaic.dtype).itemsize + 1 + beside


def _frame_digest(frame: gpd.GeoDataFrame) -> str:
    """SHA-256 of a table of shapes, whatever the format of its file."""
    digest = hashlib.sha256(pd.DataFrame(frame.drop(columns="geometry")).to_csv(index=False).encode())
    for shape in shapely.to_wkb(frame.geometry.to_numpy()):
        digest.update(shape)
    return digest.hexdigest()


def _parquet(table: pd.DataFrame) -> bytes:
    """Table of the chips, with shapes as well-known binary."""
    buffer = io.BytesIO()
    table.assign(
        footprint=shapely.to_wkb(table["footprint"].to_numpy()),
        ground=shapely.to_wkb(table["ground"].to_numpy(dtype=object)),
    ).to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _read_plan(store: RunStore, folder: str) -> ChipPlan:
    about = store.read_json(f"{folder}/{PLAN}")
    table = pd.read_parquet(io.BytesIO(store.read_bytes(f"{folder}/{TABLE}")))
    table["footprint"] = shapely.from_wkb(table["footprint"].to_numpy())
    table["ground"] = shapely.from_wkb(table["ground"].to_numpy(dtype=object))
    return ChipPlan(table, int(about["size"]), tuple(about["bands"]), about["attrs"], about["notes"])


def _output(store: RunStore, name: str, kind: str, title: str = "") -> Output:
    content = store.read_bytes(name)
    return Output(name, len(content), hashlib.sha256(content).hexdigest(), kind=kind, title=title)
