"""The verb ``polygons``: the regions of a class map as a GeoPackage, with class, area and score.

Stages: ``parts`` labels each block; ``join`` finds which parts are one region, and lets small ones go up in their
neighbours; ``outlines`` draws the regions of each block; ``table`` joins them and writes. Settings and bookkeeping
only; the regions are `geoeco.mapping.regions`' and the outlines `geoeco.mapping.outlines`'.
"""

from __future__ import annotations

import datetime as dt
import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import shapely
import xarray as xr
from pydantic import Field

from geoeco.cubes import open_rasters
from geoeco.cubes.shards import damaged_shard, intact_shards
from geoeco.engine import (
    Output,
    PlanContext,
    PlannedStep,
    RunContext,
    Stage,
    StepSettings,
    Task,
    TaskContext,
    TaskResult,
    Verb,
)
from geoeco.errors import InputError
from geoeco.mapping.map_polygons import (
    class_nodata,
    exact_grid,
    ground_pixel,
    minimum_pixels,
    polygon_table,
)
from geoeco.mapping.outlines import block_outlines, join_outlines
from geoeco.mapping.regions import Parts, Regions, join_parts, label_block
from geoeco.outputs import ClassTable, write_gpkg, write_table_item
from geoeco.outputs.outline_charts import outline_chart
from geoeco.steps.layers import Layer, RasterVerb, digest_of, read_layer, written
from geoeco.steps.provenance import ALWAYS, item_properties, local_sources, provenance_tags, write_catalog
from geoeco.variables import class_names

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["PolygonsSettings", "PolygonsVerb"]

GPKG, ITEM, PICTURE, LAYER = "habitats.gpkg", "habitats.json", "habitats.png", "habitats"
#: What the columns hold, for readers of the STAC item.
COLUMNS = {
    "region": "number of the polygon, from 1 in the order of first pixels along the rows of the map",
    "class": "code of the class in the map",
    "name": "name of the class",
    "area_m2": "area on the ground, square metres",
    "perimeter_m": "length of all borders on the ground, metres",
    "class_fraction": "part of its pixels that have this class in the map; the rest are smaller regions in it",
    "score": "mean of the map's confidence over the pixels of the class, 0 to 1",
}
#: Pixels of the longer side of the picture's map, and polygons that it shows, the largest ones.
_PICTURE_PIXELS, _PICTURE_POLYGONS = 1000, 5000
#: Bytes that a task holds: of a pixel of its block, at most, and of a pixel of the whole map in the task that joins
#: (five hundred bytes for a region).
_BLOCK_BYTES, _MAP_BYTES = 160, 2
#: Pixels of a region in the mean that the last task is planned for. No map is bound to have so many: one with smaller
#: regions takes more, unless a minimum mapping unit does away with them.
_REGION_PIXELS = 250
#: Bytes of outlines in the last task, for a pixel of regions of one pixel: the length of outlines, and with it the
#: number of corners, goes with the root of the area. Measured on smooth noise; more where they are made simpler.
_OUTLINE_BYTES, _SIMPLIFIED_BYTES = 450, 1150


class PolygonsSettings(StepSettings):
    """Which map, and which regions of it become polygons."""

    verb: Literal["polygons"] = "polygons"
    source: str | None = Field(
        None, description="name of the step that maps classes; the nearest raster step before when not given"
    )
    variable: str = Field("class", description="its variable of classes")
    score: str | None = Field(
        "confidence", description="its variable, 0 to 1, of which a polygon has the mean as score; null for none"
    )
    classes: tuple[str | int, ...] | None = Field(
        None, min_length=1, description="names or codes of the classes that are written; all when not given"
    )
    min_area_m2: float = Field(0.0, ge=0, description="minimum mapping unit, square metres")
    small: Literal["merge", "drop"] = Field(
        "merge", description="let smaller regions go up in the neighbour with the longest border, or leave them out"
    )
    connectivity: Literal[4, 8] = Field(4, description="8: pixels that touch in a corner alone are one region")
    fill_holes_m2: float = Field(0.0, ge=0, description="holes below this area are filled, square metres")
    simplify_m: float = Field(
        0.0, ge=0, description="make the borders between polygons simpler, metres; 0 keeps them along the pixels"
    )


class PolygonsVerb(Verb):
    """Draw the regions of a class map."""

    name: ClassVar[str] = "polygons"
    Settings = PolygonsSettings
    uses_grid: ClassVar[bool] = True

    def plan(self, settings: PolygonsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """A task a block for the parts, one that joins them, one a block for the outlines, and one for the table."""
        source, layer = _source(settings, context)
        assert isinstance(source.verb, RasterVerb), "no other step is a source"
        pixel_m2, _ = ground_pixel(_map_grid(context, layer))
        common = {
            "store": RasterVerb.store_name(source),
            "variable": settings.variable,
            "score": settings.score,
            "profile": layer.profile,
            "layer": layer.name,
        }
        period = source.verb.period(source.settings, context)
        origin = {
            "tags": provenance_tags(context, source.verb.inputs(source.settings, context), period),
            "period": list(period or ALWAYS),
            "sources": ["items.json"] if context.items else [],
        }
        made = {task.key: task.id for task in source.tasks if task.stage == "blocks"}
        blocks = [block for block in context.blocks if block.id in made]
        windows = {
            block.id: {name: [span[0] // layer.stride, math.ceil(span[1] / layer.stride)] for name, span in spans}
            for block in blocks
            for spans in ((("y", block.y), ("x", block.x)),)
        }
        pixels = {key: math.prod(span[1] - span[0] for span in window.values()) for key, window in windows.items()}

        def tasks(stage: str, depends: Mapping[str, tuple[str, ...]]) -> tuple[Task, ...]:
            return tuple(
                Task(
                    f"{settings.step}/{stage}/{block.id}",
                    payload={**common, **windows[block.id]},
                    depends=depends[block.id],
                    memory_bytes=_BLOCK_BYTES * pixels[block.id] + 64 * 2**20,
                    bytes_in=5 * pixels[block.id],
                    bytes_out=pixels[block.id] // 4,
                    block=(block.row, block.col),
                )
                for block in blocks
            )

        total = sum(pixels.values())
        parts = tasks("parts", {key: (name,) for key, name in made.items()})
        join = Task(
            f"{settings.step}/join/all",
            payload=common,
            depends=tuple(task.id for task in parts),
            memory_bytes=_MAP_BYTES * total + 64 * 2**20,
        )
        outlines = tasks("outlines", {task.key: (task.id, join.id) for task in parts})
        table = Task(
            f"{settings.step}/table/all",
            payload={**common, **origin},
            depends=(join.id, *(task.id for task in outlines)),
            memory_bytes=_table_memory(settings, total, pixel_m2),
            less_memory=_less_memory(settings, pixel_m2),
        )
        return (
            Stage("parts", parts),
            # over the blocks that are there: the map has holes where others failed
            Stage("join", (join,), needs_all=False),
            Stage("outlines", outlines),
            Stage("table", (table,), needs_all=False),
        )

    def prepare(self, settings: PolygonsSettings, context: RunContext) -> None:
        """Check that the map is one of classes, and has those that are asked for."""
        source, _ = _source(settings, context.plan)
        classes = open_rasters(context.store.url(RasterVerb.store_name(source)))[settings.variable]
        class_nodata(classes)
        _codes(settings, class_names(classes))

    def run(self, settings: PolygonsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Label a block, join, draw a block, or write."""
        stages = {"parts": self._parts, "join": self._join, "outlines": self._outlines, "table": self._table}
        with intact_shards(context.store.url(task.payload["store"])):
            return stages[task.stage](settings, task, context)

    def finish(
        self, settings: PolygonsSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Write the catalogue of the polygons' STAC item."""
        return write_catalog(context, records, "Polygons")

    def open(self, settings: PolygonsSettings, context: RunContext) -> gpd.GeoDataFrame:
        """Read the polygons."""
        return read_layer(context, GPKG, LAYER)

    def _parts(self, settings: PolygonsSettings, task: Task, context: TaskContext) -> TaskResult:
        _, parts = _labelled(task, context)
        return _kept(context, f"parts/{task.key}", parts.arrays(), parts=len(parts.code))

    def _join(self, settings: PolygonsSettings, task: Task, context: TaskContext) -> TaskResult:
        keys = _there(task, context, "parts")
        if not keys:
            raise InputError("no block of the map is there", where=context.folder)
        classes = open_rasters(context.store.url(task.payload["store"]))[task.payload["variable"]]
        pixel_m2, _ = ground_pixel(exact_grid(classes))
        regions = join_parts(
            [Parts.from_arrays(_read(context, f"parts/{key}")) for key in keys],
            connectivity=settings.connectivity,
            min_pixels=minimum_pixels(settings.min_area_m2, pixel_m2),
            small=settings.small,
        )
        results = [
            _kept(context, f"lookup/{key}", {"region": lookup})
            for key, lookup in zip(keys, regions.lookup, strict=True)
        ]
        table: dict[str, npt.NDArray[Any]] = {
            "code": regions.code,
            "pixels": regions.pixels,
            "own": regions.own,
            "score": regions.score,
        }
        results.append(_kept(context, "regions", table))
        return TaskResult(
            digest=digest_of(result.digest for result in results),
            outputs=tuple(output for result in results for output in result.outputs),
            stats={"regions": len(regions), "merged": regions.merged, "dropped": regions.dropped},
        )

    def _outlines(self, settings: PolygonsSettings, task: Task, context: TaskContext) -> TaskResult:
        labels, parts = _labelled(task, context)
        lookup = _read(context, f"lookup/{task.key}")["region"]
        numbers, pieces = block_outlines(lookup[labels], (int(parts.y[0]), int(parts.x[0])))
        if not len(numbers):
            return _kept(context, f"outlines/{task.key}", {"region": numbers}, pieces=0)
        _, corners, (rings, polygons) = shapely.to_ragged_array(pieces)
        arrays = {"region": numbers, "corners": corners.astype(np.int32), "rings": rings, "polygons": polygons}
        return _kept(context, f"outlines/{task.key}", arrays, pieces=len(numbers))

    def _table(self, settings: PolygonsSettings, task: Task, context: TaskContext) -> TaskResult:
        classes = open_rasters(context.store.url(task.payload["store"]))[task.payload["variable"]]
        names = class_names(classes)
        numbers, outlines = _joined(task, context)
        held = _read(context, "regions")
        # regions of blocks whose outlines failed are not there
        regions = Regions(
            lookup=(),
            code=held["code"][numbers - 1],
            pixels=held["pixels"][numbers - 1],
            own=held["own"][numbers - 1],
            score=held["score"][numbers - 1],
            dropped=0,
            merged=0,
        )
        table = polygon_table(
            regions,
            outlines,
            exact_grid(classes),
            names,
            fill_holes_m2=settings.fill_holes_m2,
            simplify_m=settings.simplify_m,
            classes=_codes(settings, names),
        )
        profile = task.payload["profile"]
        known = context.store.read_json(profile)[task.payload["layer"]] if profile else {}
        tags = {**task.payload["tags"], **known.get("tags", {})}
        title = f"{context.recipe.name}: {context.folder}"
        entries = _class_table(classes, table["class"].unique())
        # a mirror of the run folder, so that relative links hold there too
        folder = context.scratch_path / context.folder
        record = write_gpkg(
            table,
            folder / GPKG,
            layer=LAYER,
            geometry_type="MultiPolygon",
            description=f"regions of one {settings.variable}",
            tags=tags,
            classes=entries,
        )
        outputs = [written(context, GPKG, record.path.read_bytes(), "data", "Polygons")]
        picture = _picture(classes, entries, table, folder / PICTURE, title) if len(table) else None
        start, end = (dt.datetime.fromisoformat(moment) for moment in task.payload["period"])
        box = exact_grid(classes).boundingbox
        write_table_item(
            folder / ITEM,
            record,
            period=(start, end),
            bounds=(box.left, box.bottom, box.right, box.top),
            descriptions=COLUMNS,
            title=title,
            properties=item_properties(tags),
            derived_from=local_sources(
                [*task.payload["sources"], *known.get("derived_from", [])], context.scratch_path
            ),
            thumbnail=picture,
        )
        outputs.append(written(context, ITEM, (folder / ITEM).read_bytes(), "metadata", "Polygons"))
        if picture is not None:
            outputs.append(written(context, PICTURE, picture.read_bytes(), "quicklook", "Polygons of the map"))
        area = table.groupby("class")["area_m2"].sum()
        return TaskResult(
            digest=digest_of(str(output.sha256) for output in outputs),
            outputs=tuple(outputs),
            stats={
                "polygons": len(table),
                **{key: round(float(value), 2) for key, value in table.attrs.items()},
                "area_m2": {names.get(int(code), str(code)): round(float(value), 2) for code, value in area.items()},
            },
        )


# --- plan ------------------------------------------------------------------------------------------------------------


def _source(settings: PolygonsSettings, context: PlanContext) -> tuple[PlannedStep, Layer]:
    """The step that maps, and its layer of classes."""
    where = f"step {settings.step}"
    steps = [step for step in context.steps.values() if isinstance(step.verb, RasterVerb)]
    if settings.source is not None:
        steps = [step for step in steps if step.name == context.step(settings.source).name]
    if not steps:
        raise InputError(
            f"the step {settings.source!r} makes no rasters" if settings.source else "no earlier step makes rasters",
            where=where,
            what_to_do="put a step such as predict before it, and name it as source",
        )
    step = steps[-1]
    assert isinstance(step.verb, RasterVerb), "no other step is a source"
    layers = step.verb.layers(step.settings, context)
    held = {name: layer for layer in layers for name in layer.variables}
    for key, name in (("variable", settings.variable), ("score", settings.score)):
        if name is not None and name not in held:
            raise InputError(
                f"the step {step.name!r} has no variable {name!r}",
                where=f"{where}: {key}",
                what_to_do=f"it has {', '.join(held)}" + ("; or write score: null" if key == "score" else ""),
            )
    return step, held[settings.variable]


def _table_memory(settings: PolygonsSettings, pixels: int, pixel_m2: float) -> int:
    """What the last task holds: outlines of the whole map, the picture, and the libraries."""
    area = max(_REGION_PIXELS, settings.min_area_m2 / pixel_m2)
    outline = _SIMPLIFIED_BYTES if settings.simplify_m else _OUTLINE_BYTES
    return round(outline * pixels / math.sqrt(area)) + 64 * _PICTURE_PIXELS**2 + 256 * 2**20


def _less_memory(settings: PolygonsSettings, pixel_m2: float) -> str:
    """What makes the last task take half of its outlines."""
    area = 4 * max(_REGION_PIXELS, settings.min_area_m2 / pixel_m2) * pixel_m2
    wanted = f"set min_area_m2 of {settings.step} to {float(f'{area:.2g}'):g}, which halves the outlines"
    return f"leave simplify_m out, {wanted}" if settings.simplify_m else wanted


def _map_grid(context: PlanContext, layer: Layer) -> Any:
    assert context.geobox is not None, "a raster step has a grid"
    return context.geobox if layer.stride == 1 else context.geobox.zoom_out(layer.stride)


def _codes(settings: PolygonsSettings, names: Mapping[int, str]) -> list[int] | None:
    """Codes of the classes that are written, None for all."""
    if settings.classes is None:
        return None
    by_name = {name: code for code, name in names.items()}
    found = []
    for wanted in settings.classes:
        code = wanted if isinstance(wanted, int) else by_name.get(wanted)
        if code is None or (names and code not in names):
            raise InputError(
                f"the map has no class {wanted!r}",
                where=f"step {settings.step}: classes",
                what_to_do=f"classes: {', '.join(f'{name} ({code})' for code, name in names.items())}",
            )
        found.append(code)
    return found


# --- blocks ----------------------------------------------------------------------------------------------------------


def _labelled(task: Task, context: TaskContext) -> tuple[npt.NDArray[np.int32], Parts]:
    rasters = open_rasters(context.store.url(task.payload["store"]))
    classes = rasters[task.payload["variable"]]
    y, x = task.payload["y"], task.payload["x"]
    window = {"y": slice(*y), "x": slice(*x)}
    score = task.payload["score"]
    return label_block(
        classes.isel(window).to_numpy(),
        class_nodata(classes),
        None if score is None else rasters[score].isel(window).to_numpy(),
        origin=(y[0], x[0]),
        width=classes.sizes["x"],
    )


def _there(task: Task, context: TaskContext, stage: str) -> list[str]:
    """Keys of the upstream tasks of a stage that are there."""
    found = [name for name in task.depends if name.split("/")[1] == stage and name not in context.missing]
    return [name.split("/")[2] for name in found]


def _joined(task: Task, context: TaskContext) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Numbers and outlines of all regions; the pieces are held no longer than this."""
    read = [_pieces(_read(context, f"outlines/{key}")) for key in _there(task, context, "outlines")]
    return join_outlines([numbers for numbers, _ in read], [shapes for _, shapes in read])


def _pieces(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    if not len(arrays["region"]):
        return arrays["region"], np.zeros(0, object)
    shapes = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, arrays["corners"].astype(np.float64), (arrays["rings"], arrays["polygons"])
    )
    return arrays["region"], shapes


# --- files -----------------------------------------------------------------------------------------------------------


def _kept(context: TaskContext, name: str, arrays: Mapping[str, Any], **stats: int) -> TaskResult:
    """Keep arrays for a later stage."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    output = written(context, f"{name}.npz", buffer.getvalue(), "part")
    return TaskResult(digest=str(output.sha256), outputs=(output,), stats=stats)


def _read(context: TaskContext, name: str) -> dict[str, npt.NDArray[Any]]:
    path = f"{context.folder}/{name}.npz"
    content = context.store.read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            return {key: held[key] for key in held.files}
    # what zip, its compression and NumPy raise depends on where they stumble; each part bears a checksum
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, NotImplementedError) as error:
        raise damaged_shard(context.store.url(path), f"{type(error).__name__}: {error}") from error


def _class_table(classes: xr.DataArray, held: npt.NDArray[np.int32]) -> ClassTable:
    """The map's own classes, and those of its codes that it does not name."""
    own = ClassTable.from_attrs(classes)
    entries = {entry.code: entry for entry in own or ()}
    names = {code: entry.name for code, entry in entries.items()}
    names |= {int(code): f"class {code}" for code in np.sort(held) if code not in entries}
    colours = {code: entry.colour for code, entry in entries.items()}
    name = own.name if own is not None else str(classes.attrs.get("long_name") or classes.name)
    return ClassTable.of(names or {0: "class 0"}, colours, name=name)


def _picture(classes: xr.DataArray, entries: ClassTable, table: gpd.GeoDataFrame, target: Any, title: str) -> Any:
    """Outlines over the map in its colours, made paler."""
    step = max(1, math.ceil(max(classes.shape) / _PICTURE_PIXELS))
    codes = classes.isel(y=slice(None, None, step), x=slice(None, None, step)).to_numpy()
    image = np.full((*codes.shape, 3), 255, np.uint8)
    for entry in entries:
        image[codes == entry.code] = [round(255 - 0.45 * (255 - part)) for part in entry.colour[:3]]
    shown = table.nlargest(_PICTURE_POLYGONS, "area_m2") if len(table) > _PICTURE_POLYGONS else table
    if len(shown) < len(table):
        title = f"{title}: the {len(shown):,} largest of {len(table):,}"
    box = exact_grid(classes).boundingbox
    return outline_chart(
        image,
        (box.left, box.bottom, box.right, box.top),
        shown,
        target,
        column="name",
        colours={entry.name: entry.hex for entry in entries},
        title=title,
    )
