"""The verb ``seasons``: from a cube to the dates, sizes and quality of every pixel's growing cycles.

One task a block of the cube. Settings and bookkeeping only; the science is `geoeco.phenology.metrics`.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field, field_validator

from geoeco.cubes import create_rasters, open_cube, solar_days, write_rasters
from geoeco.engine import PlanContext, RunContext, Stage, StepSettings, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.phenology import metrics
from geoeco.steps.cube import CubeSettings, cube_store
from geoeco.steps.layers import Layer, RasterVerb, digest_of, parts_of, shard_files, shard_for, tiles

__all__ = ["SeasonsSettings", "SeasonsVerb"]

DATES = ("greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy")
BANDS = {"evi2": ("B04", "B08"), "ndvi": ("B04", "B08"), "evi": ("B02", "B04", "B08")}
#: Pixels along each side of the piece of a cube whose time series are in memory at once.
TILE = 256
CYCLES = 2


class SeasonsSettings(StepSettings):
    """How seasons are found; what is not given has the defaults of `geoeco.phenology.metrics`."""

    verb: Literal["seasons"] = "seasons"
    cube: str | None = Field(None, description="name of the cube step; the nearest one before when not given")
    index: Literal["evi2", "ndvi", "evi"] = Field("evi2", description="vegetation index")
    years: tuple[Annotated[int, Field(ge=1900, le=2200)], ...] | None = Field(
        None,
        min_length=1,
        description="consecutive calendar years of the peaks; all that the imagery touches when not given",
    )
    lmbda: float | None = Field(None, gt=0, description="smoothing for daily steps; 500 when not given")
    curve: Literal["whittaker", "double-logistic"] = Field(
        "double-logistic", description="what dates are read from; whittaker is faster and rounds the feet of cycles"
    )
    thresholds: tuple[float, float, float] = Field(
        (0.15, 0.5, 0.9), description="fractions of the amplitude for greenup, midgreenup and maturity, and back"
    )
    min_amplitude: float = Field(0.12, gt=0, description="smallest rise and fall of a cycle, in units of the index")

    @field_validator("years")
    @classmethod
    def _consecutive(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and any(after != before + 1 for before, after in itertools.pairwise(value)):
            raise ValueError("years must be consecutive and ascending; cog takes single ones by its layers")
        return value

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not 0 < value[0] < value[1] < value[2] < 1:
            raise ValueError("thresholds must be three ascending fractions between 0 and 1")
        return value


class SeasonsVerb(RasterVerb):
    """Find the seasons of every pixel."""

    name: ClassVar[str] = "seasons"
    version: ClassVar[int] = 2
    Settings = SeasonsSettings
    uses_grid: ClassVar[bool] = True
    uses_block_size: ClassVar[bool] = True
    overlaps: ClassVar[bool] = True

    def plan(self, settings: SeasonsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task for each block that the cube has."""
        cube = context.step(settings.cube, verb="cube")
        assert isinstance(cube.settings, CubeSettings), "the verb cube has these settings"
        missing = [band for band in BANDS[settings.index] if band not in cube.settings.bands]
        if missing:
            raise InputError(
                f"the index {settings.index} needs the band{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
                where=f"step {settings.step}",
                what_to_do=f"add to the bands of the step {cube.name}, or take another index",
            )
        times, years = len(solar_days(context.items, context.geobox)), _years(settings, context)
        shard = shard_for(_block_size(context))
        by_id = {block.id: block for block in context.blocks}
        tasks = []
        for upstream in cube.tasks:
            if upstream.stage != "blocks":
                continue
            block = by_id[upstream.key]
            pixels = int(block.geobox.shape[0]) * int(block.geobox.shape[1])
            tasks.append(
                Task(
                    f"{settings.step}/blocks/{block.id}",
                    payload={"y": list(block.y), "x": list(block.x), "cube": cube.name, "years": list(years)},
                    depends=(upstream.id,),
                    memory_bytes=_memory_bytes(times, len(years), len(BANDS[settings.index]), shard),
                    bytes_in=pixels * times * (2 * len(BANDS[settings.index]) + 1),
                    bytes_out=pixels * len(years) * CYCLES * 45,
                    block=(block.row, block.col),
                )
            )
        return (Stage("blocks", tuple(tasks)),)

    def prepare(self, settings: SeasonsSettings, context: RunContext) -> None:
        """Write the metadata of the raster store."""
        cube = context.plan.step(settings.cube, verb="cube")
        series = _open(context.store.url(cube_store(cube.name)), settings)
        corner = series.isel(y=slice(0, 1), x=slice(0, 1)).load()
        like = _metrics(corner, settings, _years(settings, context.plan))
        assert context.geobox is not None
        create_rasters(
            context.store.url(self.store_name(context.folder)),
            like,
            context.geobox,
            shard=shard_for(_block_size(context.plan)),
        )

    def run(self, settings: SeasonsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Find the seasons of one block, shard by shard."""
        y, x = tuple(task.payload["y"]), tuple(task.payload["x"])
        series = _open(context.store.url(cube_store(task.payload["cube"])), settings)
        target = context.store.url(self.store_name(context.folder))
        assert context.recipe.grid is not None, "a step on blocks has a grid"
        years = tuple(task.payload["years"])
        digests, files, counts = [], [], np.zeros(4, np.int64)
        shard = shard_for(context.recipe.grid.block)
        for rows, cols in tiles(y, x, shard):
            block = _by_tiles(series, rows, cols, settings, years)
            digests.append(write_rasters(target, block, rows, cols))
            files += shard_files(self.store_name(context.folder), block, rows, cols, shard)
            found = block["n_cycles"].to_numpy()
            counts += [
                int((found == 0).sum()),
                int((found == 1).sum()),
                int((found == 2).sum()),
                int((found == 255).sum()),
            ]
        return TaskResult(
            digest=digest_of(digests),
            outputs=parts_of(context.store, files),
            stats=dict(zip(("none", "one", "two", "unknown"), counts.tolist(), strict=True)),
        )

    def layers(self, settings: SeasonsSettings, context: PlanContext) -> tuple[Layer, ...]:
        """Dates, days of the year, sizes and quality, by year and cycle, and the number of cycles by year."""
        found = []
        for year in _years(settings, context):
            found.append(Layer(f"n_cycles_{year}", ("n_cycles",), f"Number of cycles, {year}", {"year": year}))
            for cycle in range(1, CYCLES + 1):
                which, select = f"{year}_cycle{cycle}", {"year": year, "cycle": cycle}
                caption = f"{year}, cycle {cycle}"
                found += [
                    Layer(f"dates_{which}", DATES, f"Season dates, {caption}", select),
                    Layer(
                        f"day_of_year_{which}", tuple(f"{d}_doy" for d in DATES), f"Days of the year, {caption}", select
                    ),
                    Layer(f"size_{which}", ("base", "amplitude"), f"Base and amplitude, {caption}", select),
                    Layer(f"integral_{which}", ("integral",), f"Integral of the season, {caption}", select),
                    Layer(f"quality_{which}", ("quality",), f"Quality, {caption}", select),
                ]
        return tuple(found)


def _years(settings: SeasonsSettings, context: PlanContext) -> tuple[int, ...]:
    if settings.years is not None:
        return settings.years
    days = solar_days(context.items, context.geobox)
    if not len(days):
        return ()
    first, last = (int(str(day)[:4]) for day in (days[0], days[-1]))
    return tuple(range(first, last + 1))


def _block_size(context: PlanContext) -> int:
    assert context.recipe.grid is not None, "a step on blocks has a grid"
    return context.recipe.grid.block


def _open(store: str, settings: SeasonsSettings) -> xr.Dataset:
    return open_cube(store).sel(band=list(BANDS[settings.index]))


def _metrics(piece: xr.Dataset, settings: SeasonsSettings, years: tuple[int, ...]) -> xr.Dataset:
    chosen: dict[str, Any] = {} if settings.lmbda is None else {"lmbda": settings.lmbda}
    return metrics(
        piece,
        index=settings.index,
        years=years,
        curve=settings.curve,
        thresholds=settings.thresholds,
        min_amplitude=settings.min_amplitude,
        threads=1,
        **chosen,
    )


def _by_tiles(
    series: xr.Dataset, rows: tuple[int, int], cols: tuple[int, int], settings: SeasonsSettings, years: tuple[int, ...]
) -> xr.Dataset:
    """Metrics of a window of the cube, with only a tile's time series in memory at once."""
    shape = (rows[1] - rows[0], cols[1] - cols[0])
    whole: dict[str, tuple[tuple[Any, ...], np.ndarray[Any, Any], dict[Any, Any]]] = {}
    for y, x in tiles(rows, cols, TILE):
        part = _metrics(series.isel(y=slice(*y), x=slice(*x)).load(), settings, years)
        for name, variable in part.data_vars.items():
            if name not in whole:
                pixels = np.empty((*variable.shape[:-2], *shape), variable.dtype)
                whole[str(name)] = (variable.dims, pixels, variable.attrs)
            window = (..., slice(y[0] - rows[0], y[1] - rows[0]), slice(x[0] - cols[0], x[1] - cols[0]))
            whole[str(name)][1][window] = variable.to_numpy()
    return xr.Dataset(whole)


def _memory_bytes(times: int, years: int, bands: int, shard: int) -> int:
    """Upper bound of what one task holds: a tile's series and its copies, and a shard's metrics twice."""
    tile = min(shard, TILE) ** 2
    # stored int16 and SCL as read, decoded float32 of each band, index, snow, and the kernel's flat copies
    series = tile * times * (2 * bands + 1 + 4 * bands + 4 + 1 + 8 + 4)
    variables = 2 * len(DATES) + 5
    results = 4 * variables * CYCLES * years * (2 * shard**2 + 2 * tile)
    return series + results + 64 * 2**20
