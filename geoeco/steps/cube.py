"""The verb ``cube``: from the scenes of a catalogue to a masked reflectance cube in Zarr.

Two stages: ``radiometry`` settles, scene by scene, what the digital numbers mean; ``blocks`` reads, masks, fuses and
writes one block each. Settings and bookkeeping only; the pixels are the business of `geoeco.cubes`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pystac
import shapely
from odc.geo.crs import CRS
from pydantic import Field, field_validator

from geoeco.catalog import area_lonlat
from geoeco.cubes import block_memory_bytes, cube_layout, open_cube, solar_days, template, write_block
from geoeco.engine import Dropped, PlanContext, RunContext, Stage, StepSettings, Task, TaskContext, TaskResult, Verb
from geoeco.errors import InputError
from geoeco.sensors import sentinel2
from geoeco.steps.layers import parts_of
from geoeco.steps.radiometry import RadiometryMode, known_bands, outline, radiometry_tasks, settle, settled, signing

__all__ = ["CubeSettings", "CubeVerb", "cube_store"]


class CubeSettings(StepSettings):
    """What the cube holds."""

    verb: Literal["cube"] = "cube"
    bands: tuple[str, ...] = Field(
        ("B02", "B03", "B04", "B08"), min_length=1, description="Sentinel-2 bands, B01 to B12"
    )
    masked: tuple[Annotated[int, Field(ge=0, le=11)], ...] = Field(
        (0, 1, 3, 8, 9, 10), description="SCL classes that are no data; snow (11) is better kept"
    )
    dilate_m: float = Field(
        sentinel2.DILATION_RADIUS_M, ge=0, le=1000, description="metres by which cloud and shadow are grown"
    )
    radiometry: RadiometryMode = Field(
        "untrusted", description="which scenes' own pixels are asked whether the offset of baseline 04.00 is in them"
    )
    on_bad_scene: Literal["drop", "fail"] = Field("drop", description="whether a block goes on without a bad scene")

    @field_validator("bands")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_bands(value)


class CubeVerb(Verb):
    """Stack scenes into a cube."""

    name: ClassVar[str] = "cube"
    Settings = CubeSettings
    uses_items: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    uses_block_size: ClassVar[bool] = True
    overlaps: ClassVar[bool] = True

    def plan(self, settings: CubeSettings, context: PlanContext) -> tuple[Stage, ...]:
        """Radiometry in batches of scenes, then one task for each block that has any."""
        if context.geobox is None or not context.items:
            raise InputError("a cube needs imagery", where=f"step {settings.step}", what_to_do="give inputs.imagery")
        first, task_of = radiometry_tasks(settings.step, settings.radiometry, context)
        days = solar_days(context.items, context.geobox)
        assert context.recipe.grid is not None, "a grid has a block size"
        shard, _ = cube_layout(len(days), context.recipe.grid.block)
        own = [_in_crs(item, context.geobox.crs) for item in context.items]
        outlines = [outline(item) for item in context.items]
        tree = shapely.STRtree(outlines)
        blocks = []
        for block in context.blocks:
            touched = np.sort(tree.query(area_lonlat(block.geobox.extent), predicate="intersects"))
            items = tuple(context.items[i].id for i in touched)
            if not items:
                continue
            rows, cols = (int(n) for n in block.geobox.shape)
            stored = rows * cols * len(days) * (2 * len(settings.bands) + 1)
            blocks.append(
                Task(
                    f"{settings.step}/blocks/{block.id}",
                    payload={
                        "y": list(block.y),
                        "x": list(block.x),
                        "days": [str(days[0]), str(days[-1]), len(days)],
                        "sign": signing(context),
                    },
                    depends=tuple(dict.fromkeys(task_of[name] for name in items)),
                    memory_bytes=block_memory_bytes(
                        len(days),
                        (rows, cols),
                        n_items=len(items),
                        resolution=abs(float(context.geobox.resolution.x)),
                        shard=shard,
                        other_crs=not all(own[i] for i in touched),
                    ),
                    bytes_in=len(items) * rows * cols * (2 * len(settings.bands) + 1) // 2,
                    bytes_out=stored // 2,
                    block=(block.row, block.col),
                    items=items,
                )
            )
        return Stage("radiometry", first), Stage("blocks", tuple(blocks))

    def prepare(self, settings: CubeSettings, context: RunContext) -> None:
        """Write the cube's metadata."""
        plan, geobox = context.plan, context.geobox
        assert geobox is not None, "plan has checked the grid"
        assert plan.recipe.grid is not None, "plan has checked the grid"
        template(
            context.store.url(cube_store(context.folder)),
            geobox,
            solar_days(plan.items, geobox),
            settings.bands,
            block=plan.recipe.grid.block,
        )

    def run(self, settings: CubeSettings, task: Task, context: TaskContext) -> TaskResult:
        """Settle the radiometry of some scenes, or write one block."""
        if task.stage == "radiometry":
            return settle(task, context)
        geobox = context.geobox
        assert geobox is not None, "plan has checked the grid"
        items = context.items_for(task)
        record = write_block(
            context.store.url(cube_store(context.folder)),
            items,
            geobox,
            tuple(task.payload["y"]),
            tuple(task.payload["x"]),
            mask={"masked": settings.masked, "radius_m": settings.dilate_m},
            radiometry=settled(items, context.upstream),
            sign=task.payload["sign"],
            on_bad_scene=settings.on_bad_scene,
        )
        return TaskResult(
            digest=record["checksum"],
            outputs=parts_of(context.store, (f"{cube_store(context.folder)}/{key}" for key in record["objects"])),
            dropped=tuple(Dropped(**bad) for bad in record["dropped"]),
            stats={
                "bytes": record["bytes"],
                "looks": record["looks"],
                "blind": record["blind"],
                "pixels": record["pixels"],
            },
        )

    def open(self, settings: CubeSettings, context: RunContext) -> Any:
        """Open the cube lazily."""
        return open_cube(context.store.url(cube_store(context.folder)))


def cube_store(step: str) -> str:
    """Name of a cube step's store in the run folder."""
    return f"{step}/cube.zarr"


def _in_crs(item: pystac.Item, crs: CRS | None) -> bool:
    code = item.properties.get("proj:code") or item.properties.get("proj:epsg")
    return (
        code is not None
        and crs is not None
        and crs.epsg is not None
        and str(code).removeprefix("EPSG:") == str(crs.epsg)
    )
