"""The verb ``chips``: one chip a season at each place, into sharded Zarr with a table beside it.

Stages: ``radiometry`` as for cubes, then ``groups`` of places, a shard each; the finish joins the tables and splits
the places by spatial blocks. Settings and bookkeeping only; image choice and cutting are `geoeco.sampling`'s.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pydantic import BaseModel, ConfigDict, Field, field_validator

from geoeco.catalog import area_lonlat
from geoeco.engine import (
    Dropped,
    Output,
    PlanContext,
    RunContext,
    Stage,
    StepSettings,
    Task,
    TaskContext,
    TaskResult,
    Verb,
)
from geoeco.errors import InputError
from geoeco.outputs import contact_sheet
from geoeco.sampling import (
    assert_disjoint,
    chip_geobox,
    chips_memory,
    chips_template,
    finish_chips,
    open_chips,
    spatial_split,
    write_chips,
)
from geoeco.sensors import sentinel2
from geoeco.steps.layers import parts_of
from geoeco.steps.radiometry import RadiometryMode, known_bands, outline, radiometry_tasks, settle, settled, signing
from geoeco.steps.windows import WindowsSettings, find_locations, read_locations, read_windows

__all__ = ["ChipsSettings", "ChipsVerb", "SplitSettings"]


class SplitSettings(BaseModel):
    """Training, validation and test sets by spatial blocks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fractions: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="shares of train, val and test")
    block_m: float = Field(100_000.0, gt=0, description="side of the spatial blocks, metres")
    buffer_m: float = Field(0.0, ge=0, description="least distance between chips of different sets, metres")

    @field_validator("fractions")
    @classmethod
    def _shares(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 <= share <= 1 for share in value) or sum(value) == 0:
            raise ValueError("three shares from 0 to 1, not all of them 0")
        return value


class ChipsSettings(StepSettings):
    """What the chips hold and how their images are chosen."""

    verb: Literal["chips"] = "chips"
    windows: str | None = Field(None, description="name of the windows step; the nearest one before when not given")
    bands: tuple[str, ...] = Field(sentinel2.REFLECTANCE_BANDS, min_length=1, description="reflectance bands")
    size: int = Field(264, ge=6, le=4096, description="pixels along a side")
    min_clear: float = Field(0.8, ge=0, le=1, description="least clear part of the patch")
    max_nodata: float = Field(0.0, ge=0, le=1, description="largest part of the patch without data")
    min_valid: float = Field(0.99, ge=0, le=1, description="least part of a chip with data in every band")
    min_sun_elevation: float = Field(20.0, ge=-90, le=90, description="degrees; darker scenes are not used")
    min_seasons: int = Field(2, ge=1, le=4, description="places with fewer seasons are left out")
    max_candidates: int | None = Field(None, ge=1, description="scenes looked at per season; all when not given")
    places_per_shard: int = Field(64, ge=1, le=1024, description="places in a shard, which is one task")
    radiometry: RadiometryMode = Field(
        "untrusted", description="which scenes' own pixels are asked whether the offset of baseline 04.00 is in them"
    )
    split: SplitSettings | None = Field(None, description="train, val and test sets; none when not given")

    @field_validator("bands")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_bands(value)


class ChipsVerb(Verb):
    """Cut season chips."""

    name: ClassVar[str] = "chips"
    Settings = ChipsSettings
    version: ClassVar[int] = 2
    uses_items: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True

    def plan(self, settings: ChipsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """Radiometry in batches of scenes, then one task a group of places."""
        windows = context.step(settings.windows, verb="windows")
        if not context.items:
            raise InputError("chips need imagery", where=f"step {settings.step}", what_to_do="give inputs.imagery")
        assert isinstance(windows.settings, WindowsSettings), "the verb windows has these settings"
        places = find_locations(windows.settings, context)
        first, task_of = radiometry_tasks(settings.step, settings.radiometry, context)
        tree = shapely.STRtree([outline(item) for item in context.items])
        groups = []
        for start in range(0, len(places), settings.places_per_shard):
            group = places.iloc[start : start + settings.places_per_shard]
            touched = np.unique(
                np.concatenate(
                    [tree.query(_patch(place, settings.size), predicate="intersects") for place in group.itertuples()]
                )
            )
            items = tuple(context.items[i].id for i in touched)
            stored = len(group) * 4 * settings.size**2 * (2 * len(settings.bands) + 1)
            groups.append(
                Task(
                    f"{settings.step}/groups/{start:07d}",
                    payload={"first": start, "count": len(group), "windows": windows.name, "sign": signing(context)},
                    depends=(windows.tasks[0].id, *dict.fromkeys(task_of[name] for name in items)),
                    memory_bytes=chips_memory(len(group), size=settings.size, bands=len(settings.bands)),
                    bytes_in=2 * stored,
                    bytes_out=stored // 2,
                    items=items,
                )
            )
        return Stage("radiometry", first), Stage("groups", tuple(groups))

    def prepare(self, settings: ChipsSettings, context: RunContext) -> None:
        """Write the metadata of the store."""
        groups = [task for task in context.step.tasks if task.stage == "groups"]
        chips_template(
            context.store.url(context.folder),
            sum(int(task.payload["count"]) for task in groups),
            size=settings.size,
            bands=settings.bands,
            samples_per_shard=settings.places_per_shard,
        )

    def run(self, settings: ChipsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Settle the radiometry of some scenes, or cut the chips of a group of places."""
        if task.stage == "radiometry":
            return settle(task, context)
        payload = task.payload
        places = read_locations(context.store, payload["windows"])
        group = places.iloc[payload["first"] : payload["first"] + payload["count"]]
        items = context.items_for(task)
        record = write_chips(
            context.store.url(context.folder),
            items,
            group,
            read_windows(context.store, payload["windows"]),
            first=payload["first"],
            min_clear=settings.min_clear,
            max_nodata=settings.max_nodata,
            min_valid=settings.min_valid,
            min_sun_elevation=settings.min_sun_elevation,
            min_seasons=settings.min_seasons,
            max_candidates=settings.max_candidates,
            radiometry=settled(items, context.upstream),
            sign=payload["sign"],
        )
        return TaskResult(
            digest=record["digest"],
            outputs=_parts(context, payload["first"], payload["first"] // settings.places_per_shard),
            dropped=tuple(
                Dropped(bad["item"], bad.get("asset", ""), bad.get("code", ""), bad.get("what", ""))
                for bad in record["dropped"]
            ),
            stats={"chips": record["chips"], "kept": record["kept"], "left_out": record["left_out"]},
        )

    def finish(
        self, settings: ChipsSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Join the tables; split the places and prove that the sets share no ground."""
        finish_chips(context.store.url(context.folder))
        outputs = [_table(context, "chips.parquet"), *_sheet(context)]
        if settings.split is None:
            return outputs
        table = gpd.read_parquet(io.BytesIO(context.store.read_bytes(f"{context.folder}/chips.parquet")))
        kept = table[table["kept"] & (table["epsg"] > 0)].drop_duplicates("name").reset_index(drop=True)
        if kept.empty:
            raise InputError(
                "no place has been kept, so that there is nothing to split into sets",
                where=f"step {settings.step}",
                what_to_do="see why by the column 'reason' of chips.parquet; more imagery or a lower min_clear helps",
            )
        size_m = settings.size * 10.0
        split = spatial_split(
            kept,
            fractions=settings.split.fractions,
            block_m=settings.split.block_m,
            buffer_m=settings.split.buffer_m,
            size_m=size_m,
            seed=context.seed,
        )
        distance = assert_disjoint(kept, split, size=settings.size, buffer_m=settings.split.buffer_m)
        sets = pd.DataFrame({"name": kept["name"], "split": split.loc[list(kept["name"])].to_numpy()})
        buffer = io.BytesIO()
        sets.to_parquet(buffer, index=False)
        counts = {str(k): int(v) for k, v in sets["split"].value_counts().sort_index().items()}
        context.store.write_bytes(f"{context.folder}/split.parquet", buffer.getvalue())
        context.store.write_json(
            f"{context.folder}/split.json",
            {"places": counts, "least_distance_m": None if np.isinf(distance) else round(distance, 3)},
        )
        return [*outputs, _table(context, "split.parquet"), _table(context, "split.json")]

    def open(self, settings: ChipsSettings, context: RunContext) -> Any:
        """Open the chips."""
        return open_chips(context.store.url(context.folder))


def _parts(context: TaskContext, first: int, shard: int) -> tuple[Output, ...]:
    """List what a group wrote: its shards and its part of the table."""
    names = [f"{context.folder}/parts/{first:08d}.parquet"]
    for variable in ("chips", "scl"):
        names += context.store.sizes(f"{context.folder}/chips.zarr/{variable}/c/{shard}")
    return parts_of(context.store, names)


def _table(context: RunContext, file: str) -> Output:
    name = f"{context.folder}/{file}"
    content = context.store.read_bytes(name)
    return Output(name, len(content), hashlib.sha256(content).hexdigest(), kind="table")


def _sheet(context: RunContext) -> list[Output]:
    """Draw some chips for the report; nothing where no place was kept."""
    chips = open_chips(context.store.url(context.folder))
    if not chips.sizes["sample"]:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        content = contact_sheet(chips, Path(scratch) / "chips.png").read_bytes()
    name = f"{context.folder}/chips.png"
    context.store.write_bytes(name, content)
    title = f"Chips of {context.recipe.name}, a row a place"
    return [Output(name, len(content), hashlib.sha256(content).hexdigest(), kind="quicklook", title=title)]


def _patch(place: Any, size: int) -> shapely.Geometry:
    return area_lonlat(chip_geobox(place.lon, place.lat, place.epsg, size=size).extent)
