"""The verb ``cog``: what a raster step found, as the GeoTIFFs, styles and STAC items that GIS users open.

One task a file. Settings and bookkeeping only; the files are made by `geoeco.outputs`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field, field_validator

from geoeco.cubes import open_rasters
from geoeco.cubes.shards import intact_shards
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
from geoeco.outputs import quicklook, write_cog, write_item
from geoeco.outputs.cog import MEMORY_BYTES_LAZY
from geoeco.steps.layers import Layer, RasterVerb, digest_of, tiles
from geoeco.steps.provenance import ALWAYS, item_properties, local_sources, provenance_tags, write_catalog

__all__ = ["CogSettings", "CogVerb", "file_memory"]

#: Pixels along each side of the window in which a raster is read while it is written, for files of up to eight bands.
WINDOW = 1024
#: Of the processes of a run, bytes (`geoeco.gdal.gdal_settings`).
_GDAL_CACHE = 64 * 2**20
#: Bytes of a number in a file, at most.
_LARGEST = 4


class CogSettings(StepSettings):
    """Which layers are written, and how."""

    verb: Literal["cog"] = "cog"
    source: str | None = Field(None, description="name of the raster step; the nearest one before when not given")
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the layers to write; all when not given"
    )
    compress: Literal["ZSTD", "DEFLATE", "LZW", "NONE"] = Field("ZSTD", description="DEFLATE for old ArcGIS")
    quicklooks: bool = Field(True, description="whether to draw a PNG of each file for the report")

    @field_validator("layers")
    @classmethod
    def _once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a layer is named twice")
        return value


class CogVerb(Verb):
    """Write layers as cloud-optimised GeoTIFFs."""

    name: ClassVar[str] = "cog"
    Settings = CogSettings
    uses_grid: ClassVar[bool] = True

    def plan(self, settings: CogSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task a file; a file waits for every block of its source."""
        source = _source(settings, context)
        grid = context.geobox
        assert grid is not None, "a raster step has a grid"
        rows, cols = (int(n) for n in grid.shape)
        depends = tuple(task.id for task in source.tasks if task.stage == "blocks")
        assert isinstance(source.verb, RasterVerb), "no other step is a source"
        period = source.verb.period(source.settings, context)
        tags = provenance_tags(context, source.verb.inputs(source.settings, context), period)
        # the items of the run's imagery are one file; what else a layer was made from stands in its profile
        sources = ["items.json"] if context.items else []
        tasks = []
        for layer in _layers(settings, source, context):
            bands = len(layer.variables) * layer.bands
            pixels = math.ceil(rows / layer.stride) * math.ceil(cols / layer.stride)
            stored = (layer.itemsize or _LARGEST) * pixels * bands
            tasks.append(
                Task(
                    f"{settings.step}/files/{layer.name}",
                    payload={
                        "layer": layer.name,
                        "variables": list(layer.variables),
                        "select": dict(layer.select),
                        "band_names": list(layer.band_names),
                        "title": layer.title,
                        "store": RasterVerb.store_name(source),
                        "profile": layer.profile,
                        "tags": tags,
                        "period": None if period is None else list(period),
                        "sources": sources,
                    },
                    depends=depends,
                    memory_bytes=file_memory(pixels, bands, layer.itemsize),
                    bytes_in=stored,
                    bytes_out=stored // 2,
                )
            )
        return (Stage("files", tuple(tasks), needs_all=False),)

    def run(self, settings: CogSettings, task: Task, context: TaskContext) -> TaskResult:
        """Write one file with its sidecars, quicklook and STAC item."""
        payload = task.payload
        rasters = open_rasters(context.store.url(payload["store"]))
        data = _selected(rasters, payload["variables"], payload["select"], payload["band_names"])
        # a mirror of the run folder, so that relative links inside the files hold there too
        local = context.scratch_path / context.folder / f"{payload['layer']}.tif"
        local.parent.mkdir(parents=True)
        known = context.store.read_json(payload["profile"])[payload["layer"]] if payload["profile"] else {}
        tags = {**payload["tags"], **known.get("tags", {})}
        sources = [*payload["sources"], *known.get("derived_from", [])]
        start, end = (dt.datetime.fromisoformat(moment) for moment in payload["period"] or ALWAYS)
        with intact_shards(context.store.url(payload["store"])):
            record = write_cog(
                data,
                local,
                blocks=_windows(data),
                compress=settings.compress,
                tags=tags,
                description=f"{context.recipe.name}: {payload['title']}",
                datetime=end if payload["period"] else None,
                threads=1,
                **known.get("storage", {}),
            )
        thumbnail = None
        # the first three classes in red, green and blue would say nothing
        if settings.quicklooks and not payload["band_names"]:
            thumbnail = quicklook(local, local.with_suffix(".png"), title=payload["title"])
        item = local.with_suffix(".json")
        write_item(
            item,
            {payload["layer"]: record},
            period=(start, end),
            title=payload["title"],
            properties=item_properties(tags),
            derived_from=local_sources(sources, context.scratch_path),
            thumbnail=thumbnail,
        )
        files = [(file.path, "data") for file in record.files]
        files += [(item, "metadata"), *([(thumbnail, "quicklook")] if thumbnail else [])]
        outputs = []
        for path, kind in files:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            name = f"{context.folder}/{path.name}"
            context.store.put_file(path, name)
            outputs.append(Output(name, bytes=path.stat().st_size, sha256=content, kind=kind, title=payload["title"]))
        return TaskResult(digest=digest_of(f"{o.path} {o.sha256}" for o in outputs), outputs=tuple(outputs))

    def finish(
        self, settings: CogSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Tie the files' STAC items together in a static catalogue with relative links."""
        return write_catalog(context, records, "Rasters")


def _source(settings: CogSettings, context: PlanContext) -> PlannedStep:
    if settings.source is not None:
        step = context.step(settings.source)
        if not isinstance(step.verb, RasterVerb):
            raise InputError(
                f"the step {step.name!r} ({step.verb.name}) makes no rasters",
                where=f"step {settings.step}",
                what_to_do="name a step such as seasons",
            )
        return step
    found = [step for step in context.steps.values() if isinstance(step.verb, RasterVerb)]
    if not found:
        raise InputError(
            "there is no earlier step that makes rasters",
            where=f"step {settings.step}",
            what_to_do="put a step such as seasons before it",
        )
    return found[-1]


def _layers(settings: CogSettings, source: PlannedStep, context: PlanContext) -> tuple[Layer, ...]:
    assert isinstance(source.verb, RasterVerb)
    available = {layer.name: layer for layer in source.verb.layers(source.settings, context)}
    if settings.layers is None:
        return tuple(available.values())
    unknown = [name for name in settings.layers if name not in available]
    if unknown:
        raise InputError(
            f"the step {source.name!r} has no layer {unknown[0]!r}",
            where=f"step {settings.step}: layers",
            what_to_do=f"layers: {', '.join(available)}",
        )
    return tuple(available[name] for name in settings.layers)


def file_memory(pixels: int, bands: int, itemsize: int | None = None) -> int:
    """Upper bound of what writing a file holds, bytes.

    Parameters
    ----------
    pixels : int
        Of a band.
    bands : int
    itemsize : int, optional
        Bytes of a number in the file; up to four when not given.

    Notes
    -----
    Pixels and overviews, unless they are so many that they pass through the disk; GDAL's cache of as much; the windows
    that are read and encoded; and what the libraries and the drawing of a quicklook take.
    """
    stored = pixels * bands * (itemsize or _LARGEST)
    # of numbers that may be smaller, a file that is kept in memory may have more
    kept = min(stored, MEMORY_BYTES_LAZY) if itemsize is None or stored <= MEMORY_BYTES_LAZY else 0
    cached = min(stored * 4 // 3, _GDAL_CACHE)
    return kept * 4 // 3 + cached + 24 * bands * _window(bands) ** 2 + 352 * 2**20


def _window(bands: int) -> int:
    """Side of a window of about the same number of values, however many bands there are."""
    return max(WINDOW // 8, WINDOW >> max(0, math.ceil(math.log2(bands / 8) / 2)))


def _selected(
    rasters: xr.Dataset, variables: Sequence[str], select: Mapping[str, int | list[int]], band_names: Sequence[str]
) -> xr.Dataset | xr.DataArray:
    chosen = rasters[list(variables)].sel(dict(select), drop=True)
    if band_names:
        lead = next(dim for dim in chosen[variables[0]].dims if dim not in ("y", "x"))
        chosen = chosen.rename({lead: "band"}).assign_coords(band=list(band_names))
    return chosen[variables[0]] if len(variables) == 1 else chosen


def _windows(data: xr.Dataset | xr.DataArray) -> Iterator[tuple[tuple[slice, slice], np.ndarray[Any, Any]]]:
    height, width = data.sizes["y"], data.sizes["x"]
    bands = len(data.data_vars) if isinstance(data, xr.Dataset) else data.size // (height * width)
    for y, x in tiles((0, height), (0, width), _window(bands)):
        rows, cols = slice(*y), slice(*x)
        piece = data.isel(y=rows, x=cols)
        if isinstance(piece, xr.Dataset):
            yield (rows, cols), np.stack([piece[name].to_numpy() for name in piece.data_vars])
        else:
            yield (rows, cols), piece.to_numpy()
