"""The verb ``windows``: which places are sampled, and when each season is there.

One task for all places, because a place without seasons of its own borrows its neighbour's. Settings and bookkeeping
only; the rules are `geoeco.sampling.season_windows`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import geopandas as gpd
import pandas as pd
import shapely
from odc.geo.geom import Geometry
from pydantic import Field, model_validator

from geoeco.catalog import area_lonlat
from geoeco.cubes import open_rasters
from geoeco.engine import (
    Output,
    PlanContext,
    RecipePath,
    RunContext,
    Stage,
    StepSettings,
    Task,
    TaskContext,
    TaskResult,
    Verb,
)
from geoeco.errors import InputError
from geoeco.sampling import calendar_windows, major_tom_grid, points_from_table, season_windows
from geoeco.steps.layers import RasterVerb, digest_of

__all__ = ["WindowsSettings", "WindowsVerb", "read_locations", "read_windows"]


class WindowsSettings(StepSettings):
    """Where, and from which dates."""

    verb: Literal["windows"] = "windows"
    spacing_m: float | None = Field(None, gt=0, description="places: the Major TOM grid of this spacing, in metres")
    points: str | None = Field(None, description="places: a table of the inputs, by name")
    land: Literal["naturalearth"] | RecipePath | None = Field(
        "naturalearth", description="of a grid, keep places on this land: the outlines that come with geoeco, or a file"
    )
    dates: Literal["seasons", "table", "calendar"] = Field(
        "seasons", description="from a step of seasons, from a table like MCD12Q2, or by the calendar as a control"
    )
    seasons: str | None = Field(None, description="name of the seasons step; the nearest one before when not given")
    table: str | None = Field(None, description="table of dates of the inputs, by name")
    max_distance_km: float = Field(500.0, ge=0, description="beyond this no neighbour lends its dates")
    patch_m: float = Field(2640.0, gt=0, description="side of the patch whose seasons a place takes, metres")
    worst_quality: int = Field(5, ge=1, le=9, description="cycles of a worse quality class are left out")
    min_width_d: float = Field(30.0, gt=0, le=180, description="narrower windows are widened to this many days")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.spacing_m is None) == (self.points is None):
            raise ValueError("give either spacing_m (a grid of places) or points (a table of places)")
        if (self.dates == "table") != (self.table is not None):
            raise ValueError("dates: table goes with the key 'table', which names a table of the inputs")
        return self


class WindowsVerb(Verb):
    """Find places and their season windows."""

    name: ClassVar[str] = "windows"
    Settings = WindowsSettings
    uses_grid: ClassVar[bool] = True

    def fingerprint(self, settings: WindowsSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of the tables that are read."""
        paths = [context.table(name) for name in (settings.points, settings.table) if name is not None]
        if settings.land not in (None, "naturalearth"):
            paths.append(context.path(str(settings.land)))
        return {"tables": [hashlib.sha256(_read(path)).hexdigest() for path in paths]}

    def plan(self, settings: WindowsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task."""
        places = find_locations(settings, context)
        depends: tuple[str, ...] = ()
        payload: dict[str, Any] = {"places": len(places)}
        if settings.dates == "seasons":
            source = context.step(settings.seasons, verb="seasons")
            depends = tuple(task.id for task in source.tasks if task.stage == "blocks")
            payload["store"] = RasterVerb.store_name(source)
        if settings.points is not None:
            payload["points"] = context.table(settings.points)
        if settings.table is not None:
            payload["table"] = context.table(settings.table)
        task = Task(
            f"{settings.step}/windows/all",
            payload=payload,
            depends=depends,
            memory_bytes=256 * 2**20 + len(places) * 2**12,
            bytes_in=len(places) * 264**2 * 4,
            bytes_out=len(places) * 600,
        )
        return (Stage("windows", (task,), needs_all=False),)

    def run(self, settings: WindowsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Write the tables of places and windows."""
        assert context.geobox is not None, "plan has checked the grid"
        places = _locations(settings, context.geobox.extent, task.payload.get("points"), _land(settings, context.path))
        if settings.dates == "calendar":
            windows = calendar_windows(places)
        else:
            source: Any = task.payload.get("table")
            if settings.dates == "seasons":
                source = open_rasters(context.store.url(task.payload["store"]))
            windows = season_windows(
                source,
                places,
                max_distance_km=settings.max_distance_km,
                min_width_d=settings.min_width_d,
                patch_m=settings.patch_m,
                worst_quality=settings.worst_quality,
            )
        outputs = []
        for name, table in (("places", places), ("windows", windows)):
            file = context.scratch_path / f"{name}.parquet"
            table.attrs = {}
            table.to_parquet(file)
            content = file.read_bytes()
            context.store.write_bytes(f"{context.folder}/{name}.parquet", content)
            outputs.append(
                Output(
                    f"{context.folder}/{name}.parquet",
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    kind="table",
                )
            )
        by_source = windows.drop_duplicates("name")["source"].value_counts()
        return TaskResult(
            digest=digest_of(str(output.sha256) for output in outputs),
            outputs=tuple(outputs),
            stats={"places": len(places), "source": {str(k): int(v) for k, v in by_source.items()}},
        )

    def open(self, settings: WindowsSettings, context: RunContext) -> pd.DataFrame:
        """Read the table of windows."""
        return read_windows(context.store, context.folder)


def find_locations(settings: WindowsSettings, context: PlanContext) -> gpd.GeoDataFrame:
    """Places of a step, in their order.

    Raises
    ------
    InputError
        If there are none, or no grid to look in.
    """
    if context.geobox is None:
        raise InputError(
            "places are sought on the run's grid, and there is none",
            where=f"step {settings.step}",
            what_to_do="give the recipe a grid or imagery",
        )
    points = None if settings.points is None else context.table(settings.points)
    places = _locations(settings, context.geobox.extent, points, _land(settings, context.path))
    if places.empty:
        raise InputError(
            "no place to sample lies on the grid",
            where=f"step {settings.step}",
            what_to_do="take a smaller spacing_m, other points, a larger area, or land: null",
        )
    if (
        points is not None
        and not shapely.intersects_xy(
            area_lonlat(context.geobox.extent), places["lon"].to_numpy(), places["lat"].to_numpy()
        ).any()
    ):
        raise InputError(
            f"none of the {len(places)} places lies in the run's area",
            where=points,
            what_to_do="check the table's coordinates (longitude first) and the grid's area",
        )
    return places


def _locations(settings: WindowsSettings, extent: Geometry, points: str | None, land: str | None) -> gpd.GeoDataFrame:
    if points is not None:
        return points_from_table(points)
    assert settings.spacing_m is not None, "the settings have been checked"
    return major_tom_grid(settings.spacing_m, area=extent, land=land)


def _land(settings: WindowsSettings, path: Any) -> str | None:
    return settings.land if settings.land in (None, "naturalearth") else str(path(settings.land))


def _read(path: str) -> bytes:
    try:
        import fsspec

        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except OSError as error:
        raise InputError(
            f"a table cannot be read: {error}", where=path, what_to_do="check the path in the recipe's inputs"
        ) from error
    return content


def read_locations(store: Any, folder: str) -> gpd.GeoDataFrame:
    """Read the places that a windows step wrote."""
    import io

    return gpd.read_parquet(io.BytesIO(store.read_bytes(f"{folder}/places.parquet")))


def read_windows(store: Any, folder: str) -> pd.DataFrame:
    """Read the season windows that a windows step wrote."""
    import io

    return pd.read_parquet(io.BytesIO(store.read_bytes(f"{folder}/windows.parquet")))
