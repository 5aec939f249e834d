"""What the verbs that map an orthomosaic share: which mosaic on which grid, and what their files say of it.

Reading pixels is `geoeco.sensors.orthomosaic`'s.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pystac
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from pydantic import Field
from pystac.extensions.projection import ProjectionExtension
from shapely.geometry import mapping

from geoeco.catalog import area_lonlat
from geoeco.engine import Output, PlanContext, RunContext, StepSettings, TaskContext
from geoeco.errors import GridError
from geoeco.sensors.orthomosaic import Orthomosaic, describe_orthomosaic
from geoeco.steps.bundles import bundle_item, bundle_url, is_step, model_tags
from geoeco.steps.layers import written
from geoeco.steps.provenance import ALWAYS

__all__ = ["PROFILES", "MosaicSettings", "as_json", "map_sources", "mosaic_of", "mosaic_period"]

#: Files of a step: what the files of its layers must be told, and what the mosaic is.
PROFILES, MOSAIC = "layers.json", "mosaic.json"


class MosaicSettings(StepSettings):
    """Of a verb that maps an orthomosaic."""

    mosaic: str = Field(description="name of the orthomosaic among the tables of the inputs")
    bands: dict[str, int] | None = Field(
        None, description="numbers in the file (from 1) of the mosaic's bands by name, where the file does not say"
    )
    scale: float | None = Field(None, gt=0, description="value of one stored unit, where the file does not say")
    nodata: float | tuple[float, ...] | Literal["auto"] | None = Field(
        "auto", description="value of pixels without data, or one a band; auto: as the file says; null: all are valid"
    )
    date: dt.date | None = Field(None, description="day of the flight, where the file does not say")


def mosaic_of(settings: MosaicSettings, context: PlanContext | TaskContext) -> Orthomosaic:
    """The mosaic on the run's grid.

    Raises
    ------
    GridError
        If the run's grid is not the mosaic's, nor a coarser one from its corner.
    """
    path = context.recipe.table_path(settings.mosaic, context.recipe_folder)
    # a file that was replaced is described anew
    facts = Path(path).stat() if Path(path).exists() else None
    stamp = None if facts is None else (facts.st_mtime_ns, facts.st_size)
    found = _described(path, stamp, tuple((settings.bands or {}).items()), settings.scale, settings.nodata)
    grid = context.geobox
    where = f"step {settings.step}: mosaic"
    if grid is None:
        raise GridError(
            "the recipe has no grid", where=where, what_to_do=f"add grid: {{like: {settings.mosaic}}}", code="grid"
        )
    if not _same_grid(found.geobox, grid):
        found = found.at(found.gsd_m * float(grid.resolution.x) / float(found.geobox.resolution.x))
    if not _same_grid(found.geobox, grid):
        raise GridError(
            "the grid of the recipe is not that of the mosaic",
            where=where,
            what_to_do=f"write grid: {{like: {settings.mosaic}}}, with a resolution if it is to be coarser",
        )
    return found


@functools.lru_cache(maxsize=4)
def _described(
    path: str,
    stamp: tuple[int, int] | None,  # noqa: ARG001  (tells files of one name apart)
    bands: tuple[tuple[str, int], ...],
    scale: float | None,
    nodata: float | tuple[float, ...] | Literal["auto"] | None,
) -> Orthomosaic:
    return describe_orthomosaic(path, bands=dict(bands) or None, scale=scale, nodata=nodata)


def _same_grid(one: GeoBox, other: GeoBox) -> bool:
    near = np.allclose(tuple(one.affine)[:6], tuple(other.affine)[:6], rtol=1e-12, atol=1e-9)
    return bool(tuple(one.shape) == tuple(other.shape) and one.crs == other.crs and near)


def mosaic_period(settings: MosaicSettings, context: PlanContext) -> tuple[str, str] | None:
    """Day of the flight, by the settings or by the file."""
    day = str(settings.date or mosaic_of(settings, context).date)
    return (f"{day}T00:00:00Z", f"{day}T23:59:59Z") if day else None


def map_sources(
    settings: MosaicSettings, bundles: Sequence[str], layers: Iterable[str], context: RunContext
) -> list[Output]:
    """Write what a map was made of: items of the mosaic and of models from elsewhere, and the profile of its layers.

    Parameters
    ----------
    settings : MosaicSettings
    bundles : sequence of str
        Names of the models in the recipe.
    layers : iterable of str
    context : RunContext
    """
    mosaic = mosaic_of(settings, context.plan)
    files = {MOSAIC: as_json(_mosaic_item(mosaic, settings, mosaic_period(settings, context.plan)))}
    tags: dict[str, list[str]] = {}
    links = [f"{context.folder}/{MOSAIC}"]
    for number, name in enumerate(bundles, start=1):
        for tag, value in model_tags(name, context).items():
            tags.setdefault(tag, []).append(value)
        if is_step(name, context):
            links.append(f"{name}/bundle/mlm.json")
        else:
            # what a relative link can lead to wherever the run folder is taken
            files[f"model_{number}.json"] = bundle_item(bundle_url(name, context))
            links.append(f"{context.folder}/model_{number}.json")
    profile = {
        "storage": {},
        "tags": {key: ",".join(values) for key, values in tags.items()},
        "derived_from": links,
    }
    files[PROFILES] = as_json(dict.fromkeys(layers, profile))
    return [written(context, name, content, "metadata") for name, content in files.items()]


def as_json(value: Any) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _mosaic_item(mosaic: Orthomosaic, settings: MosaicSettings, period: tuple[str, str] | None) -> dict[str, Any]:
    """STAC item of the mosaic, that the map's own items lead to: where it lies, when it was flown, and its hash."""
    grid = mosaic.native
    assert grid.crs is not None, "a mosaic without a place is refused when it is planned"
    bounds = grid.boundingbox
    outline = area_lonlat(box(bounds.left, bounds.bottom, bounds.right, bounds.top, grid.crs))
    start, end = (dt.datetime.fromisoformat(moment) for moment in period or ALWAYS)
    item = pystac.Item(
        id=settings.mosaic,
        geometry=mapping(outline),
        bbox=list(outline.bounds),
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties={
            "title": f"orthomosaic {settings.mosaic}",
            "gsd": mosaic.gsd_m,
            "geoeco:bands": list(mosaic.bands),
            "geoeco:mask": mosaic.mask,
            "geoeco:fingerprint": mosaic.fingerprint,
        },
    )
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    epsg = grid.crs.to_epsg()
    projection.apply(
        code=None if epsg is None else f"EPSG:{epsg}",
        wkt2=None if epsg else grid.crs.to_wkt(),
        shape=[int(n) for n in grid.shape],
        transform=[float(v) for v in tuple(grid.affine)[:6]],
    )
    item.add_asset("image", pystac.Asset(mosaic.path, media_type=pystac.MediaType.GEOTIFF, roles=["data"]))
    document: dict[str, Any] = item.to_dict(include_self_link=False)
    return document
