"""The verb ``uav_chips``: chips of orthomosaics with labels, heights and crowns, into one sharded Zarr store.

Stages: ``survey`` lays out the chips, looks at what each holds, hands the ground out to sets and writes the template;
``groups`` cut the chips, a shard a task; the finish writes tables, outlines and pictures. Settings and bookkeeping
only; the numbers are `geoeco.sampling`'s.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import io
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoeco.cubes.shards import damaged_shard, intact_shards
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
from geoeco.outputs.chip_sheets import chip_sheet, mosaic_picture
from geoeco.outputs.outline_charts import outline_chart
from geoeco.outputs.vectors import write_gpkg
from geoeco.sampling import (
    AreaSplit,
    BlockSplit,
    ChipDesign,
    ChipPlan,
    MosaicSources,
    chip_footprints,
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
from geoeco.sampling.mosaic_sources import ChipSource
from geoeco.sampling.mosaic_splits import SPLIT_NAMES
from geoeco.sampling.mosaic_stores import PIXELS
from geoeco.sensors.orthomosaic import describe_orthomosaic
from geoeco.steps.layers import digest_of, parts_of
from geoeco.vectors import read_split_areas

__all__ = ["MosaicSplitSettings", "PlannedChips", "UavChipsSettings", "UavChipsVerb", "planned_chips"]

#: Files of the step.
TABLE, PLAN, STORE = "chips.parquet", "plan.json", "uav.zarr"
CROWNS, OUTLINES = "crowns.parquet", "chips.gpkg"
SHEET, OVERLAY = "contact_sheet.png", "overlay.png"
#: Colours of the sets in pictures: blue, orange, red and grey.
_SPLIT_COLOURS = {"train": "#3b7dd8", "val": "#f0a202", "test": "#d7263d", "none": "#9a9a9a"}
#: What a task takes beside the pixels of its chips: libraries, GDAL's cache, tables.
_BASE_BYTES = 192 * 2**20
#: Mosaics that are drawn with their chips.
_MOST_OVERLAYS = 4
#: Threads that read and compress.
_THREADS = 2

#: Name of an object of the store that holds pixels, which other tasks write.
_PIXEL_OBJECT = re.compile(rf"/{re.escape(STORE)}/({'|'.join(PIXELS)})/c/")

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
    bands: dict[str, int] | None = Field(
        None, description="names of bands and their numbers in the file; as the file says when not given"
    )
    scale: float | None = Field(None, gt=0, description="value of one stored unit, where the file does not say")
    nodata: float | tuple[float, ...] | Literal["auto"] | None = Field(
        "auto", description="value of pixels without data, or one a band; auto: as the file says; null: all are valid"
    )
    date: dt.date | tuple[dt.date, ...] | None = Field(
        None, description="day of the flight, where the file does not say; a list with one for each mosaic"
    )
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
        if isinstance(self.date, tuple) and len(self.date) != len(self.mosaics):
            raise ValueError(
                f"{len(self.date)} dates for {len(self.mosaics)} mosaics: give one for each, or one for all"
            )
        return self

    @property
    def mosaics(self) -> tuple[str, ...]:
        """Names of the mosaics."""
        return (self.mosaic,) if isinstance(self.mosaic, str) else self.mosaic

    @property
    def dates(self) -> tuple[dt.date | None, ...]:
        """Day of the flight of each mosaic, where it is said here."""
        return self.date if isinstance(self.date, tuple) else (self.date,) * len(self.mosaics)


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
        reading = _THREADS * max(_window_bytes(source, size, settings) for source in sources.sources)
        survey = Task(
            f"{settings.step}/survey/all",
            memory_bytes=_BASE_BYTES + reading + 2000 * most,
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
                memory_bytes=_BASE_BYTES + int(3.2 * per_shard * chip) + reading + 2000 * most,
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
        """Write outlines and pictures; list the tables that the survey wrote."""
        folder, store = context.folder, context.store
        kinds = {TABLE: "table", CROWNS: "table", PLAN: "metadata"}
        outputs = [
            _output(store, f"{folder}/{file}", kind) for file, kind in kinds.items() if store.exists(f"{folder}/{file}")
        ]
        chips = self.open(settings, context)
        sources = _sources(settings, context.plan.table)
        with tempfile.TemporaryDirectory() as scratch, intact_shards(store.url(f"{folder}/{STORE}")):
            for file, kind, title, make in _extras(context, chips, sources):
                body = make(Path(scratch) / file).read_bytes()
                store.write_bytes(f"{folder}/{file}", body)
                outputs.append(_output(store, f"{folder}/{file}", kind, title))
        return outputs

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
    crowns = _crowns_table(sources, plan)
    if crowns is not None:
        context.store.write_bytes(f"{context.folder}/{CROWNS}", crowns)
    template = [name for name in context.store.sizes(f"{context.folder}/{STORE}") if not _PIXEL_OBJECT.search(name)]
    return TaskResult(
        digest=_survey_digest(table, crowns, about),
        outputs=parts_of(context.store, [*(f"{context.folder}/{f}" for f in (TABLE, PLAN, CROWNS)), *template]),
        stats={"chips": len(plan.table), "splits": plan.notes["splits"], "warnings": plan.notes["warnings"]},
    )


def _cut(sources: MosaicSources, task: Task, context: TaskContext) -> TaskResult:
    """Cut and write the chips of one shard; nothing where the survey left fewer chips than there might have been."""
    plan = _read_plan(context)
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


def _crowns_table(sources: MosaicSources, plan: ChipPlan) -> bytes | None:
    """Crowns that lie on the mosaics, with the set and the block of their chip where they have one of their own."""
    frames = [
        frame.assign(source=source.name)
        for source, frame in zip(sources.sources, sources.crowns, strict=True)
        if frame is not None and len(frame)
    ]
    if not frames or any(frame.crs is None for frame in frames):
        return None
    crs = frames[0].crs if len({frame.crs.to_wkt() for frame in frames}) == 1 else "EPSG:4326"
    crowns = pd.concat([frame.to_crs(crs) for frame in frames], ignore_index=True)
    # a tree that several mosaics show is one row
    crowns = gpd.GeoDataFrame(crowns.drop_duplicates("crown_id"), crs=crs).reset_index(drop=True)
    number = {name: index for index, name in enumerate(sources.crown_classes)}
    crowns["class_id"] = np.array([number.get(str(name), -1) for name in crowns["class_name"]], dtype=np.int16)
    if plan.attrs["kind"] == "crown":
        own = plan.table.drop_duplicates("crown_id").set_index("crown_id")
        split = own["split"].reindex(crowns["crown_id"]).fillna(SPLIT_NAMES.index("none")).to_numpy(dtype=np.int64)
        crowns["split"] = np.array(SPLIT_NAMES, dtype=object)[split]
        crowns["block"] = own["block"].reindex(crowns["crown_id"]).fillna(-1).to_numpy(dtype=np.int32)
    crowns.attrs = {}
    buffer = io.BytesIO()
    crowns.to_parquet(buffer, index=False, compression="zstd", schema_version="1.1.0")
    return buffer.getvalue()


def _extras(
    context: RunContext, chips: xr.Dataset, sources: MosaicSources
) -> Iterator[tuple[str, str, str, Callable[[Path], Path]]]:
    """Name, kind, title and maker of each file beside the store."""
    title = f"Chips of {context.recipe.name}, {context.folder}"
    yield SHEET, "quicklook", title, lambda path: chip_sheet(chips, path)
    if not all(chips.attrs["source_crs_wkt"]):
        return
    outlines = chip_footprints(chips)
    yield OUTLINES, "table", "", lambda path: Path(write_gpkg(outlines, path, layer="chips").path)
    for number, source in enumerate(sources.sources[:_MOST_OVERLAYS]):
        name = OVERLAY if len(sources.sources) == 1 else f"overlay_{number}.png"
        yield name, "quicklook", f"{title}, on {source.name}", _overlay(chips, outlines, source, number)


def _overlay(chips: xr.Dataset, outlines: gpd.GeoDataFrame, source: ChipSource, number: int) -> Callable[[Path], Path]:
    """Outlines of a mosaic's chips in the colours of their sets, with its crowns; of crown chips the crowns alone."""
    here = np.flatnonzero(chips["source"].to_numpy() == number)
    own = source.mosaic.geobox.crs
    assert own is not None, "chips without a place have no overlay"
    crs = own.proj
    frame = outlines.iloc[here].to_crs(crs)[["split", "crown_id", "geometry"]]
    if source.crowns is not None:
        shapes = gpd.GeoSeries(source.crowns.on_map(source.mosaic.geobox.transform), crs=crs)
        if chips.attrs["kind"] == "crown":
            split = pd.Series(frame["split"].to_numpy(), index=frame["crown_id"])
            named = split.reindex(source.crowns.ids).fillna("no chip").to_numpy()
            frame = gpd.GeoDataFrame({"split": named}, geometry=shapes)
        else:
            frame = pd.concat([frame, gpd.GeoDataFrame({"split": "crown"}, index=shapes.index, geometry=shapes)])

    def draw(path: Path) -> Path:
        image, bounds = mosaic_picture(source.mosaic)
        colours = {**_SPLIT_COLOURS, "crown": "#ffe14d", "no chip": "#ffffff"}
        return outline_chart(image, bounds, frame, path, column="split", colours=colours, title=source.name)

    return draw


def _sources(settings: UavChipsSettings, table: Callable[[str], str]) -> MosaicSources:
    """Open the mosaics and what lies on them, by the names of the recipe's tables."""

    def paths(names: Names | None) -> Any:
        if names is None:
            return None
        return table(names) if isinstance(names, str) else [table(name) for name in names]

    described = [
        describe_orthomosaic(table(name), bands=settings.bands, scale=settings.scale, nodata=settings.nodata)
        for name in settings.mosaics
    ]
    return open_sources(
        [
            one if day is None else dataclasses.replace(one, date=day.isoformat())
            for one, day in zip(described, settings.dates, strict=True)
        ],
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


def _window_bytes(source: ChipSource, size: int, settings: UavChipsSettings) -> int:
    """What a thread holds while it reads a chip, bytes: the window in the pixels of each file, and sums over it."""
    pixel = source.mosaic.geobox.transform.a
    step = 1
    if settings.too_large == "resize" and source.crowns is not None and len(source.crowns.ids):
        extent = (source.crowns.bounds[:, 2:] - source.crowns.bounds[:, :2]).max()
        step = math.ceil((extent + 2 * settings.buffer_m / source.mosaic.gsd_m + 2) / size)
    total = 0.0
    values = len(source.mosaic.bands) * np.dtype(source.mosaic.dtype).itemsize
    for layer, each in ((source.mosaic, 3 * values + 10), (source.labels, 34), (source.chm, 24)):
        if layer is not None:
            total += (size * step * pixel / layer.native.transform.a + 2) ** 2 * each
    return int(total)


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


def _survey_digest(table: bytes, crowns: bytes | None, about: Mapping[str, Any]) -> str:
    """Digest of all that the survey found out."""
    return digest_of([hashlib.sha256(body).hexdigest() for body in (table, crowns or b"")] + [json.dumps(about)])


def _read_plan(context: TaskContext) -> ChipPlan:
    """The plan that the survey wrote.

    Raises
    ------
    ReadError
        If its files are not those that were written.
    """
    store, folder = context.store, context.folder
    about, written = store.read_json(f"{folder}/{PLAN}"), store.read_bytes(f"{folder}/{TABLE}")
    crowns = store.read_bytes(f"{folder}/{CROWNS}") if store.exists(f"{folder}/{CROWNS}") else None
    (survey,) = (record for name, record in context.upstream.items() if name.split("/")[1] == "survey")
    if _survey_digest(written, crowns, about) != survey["digest"]:
        raise damaged_shard(store.url(folder), f"{PLAN}, {TABLE} or {CROWNS} is not as the survey wrote it")
    table = pd.read_parquet(io.BytesIO(written))
    table["footprint"] = shapely.from_wkb(table["footprint"].to_numpy())
    table["ground"] = shapely.from_wkb(table["ground"].to_numpy(dtype=object))
    return ChipPlan(table, int(about["size"]), tuple(about["bands"]), about["attrs"], about["notes"])


def _output(store: RunStore, name: str, kind: str, title: str = "") -> Output:
    content = store.read_bytes(name)
    return Output(name, len(content), hashlib.sha256(content).hexdigest(), kind=kind, title=title)
