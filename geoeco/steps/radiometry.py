"""The stage ``radiometry`` that steps which read imagery begin with: what each scene's digital numbers mean.

The answer belongs to the scene, not to the block or chip that happens to be read; so it is settled once, before
pixels are read, and kept in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy.typing as npt
import pystac
import shapely

from geoeco.catalog import asset_for, footprint, sign
from geoeco.cubes.reading import opened
from geoeco.engine import Dropped, PlanContext, Task, TaskContext, TaskResult
from geoeco.errors import CatalogError, ReadError
from geoeco.gdal import gdal_env
from geoeco.sensors import sentinel2
from geoeco.steps.layers import digest_of

__all__ = ["RadiometryMode", "known_bands", "outline", "radiometry_tasks", "settle", "settled", "signing"]

#: Which scenes' own pixels are asked whether the offset of baseline 04.00 is in them.
RadiometryMode = Literal["untrusted", "always", "never"]
#: Scenes whose radiometry one task settles.
SCENES_PER_TASK = 50
STAGE = "radiometry"


def known_bands(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check a list of reflectance bands; raises ValueError, as pydantic's validators do."""
    for band in value:
        if band not in sentinel2.REFLECTANCE_BANDS:
            raise ValueError(f"there is no band {band!r}; bands: {', '.join(sentinel2.REFLECTANCE_BANDS)}")
    if len(set(value)) != len(value):
        raise ValueError("a band is named twice")
    return value


def radiometry_tasks(step: str, mode: RadiometryMode, context: PlanContext) -> tuple[tuple[Task, ...], dict[str, str]]:
    """Tasks of the stage, and for each item the id of its task."""
    tasks, task_of = [], {}
    for first in range(0, len(context.items), SCENES_PER_TASK):
        items = tuple(item.id for item in context.items[first : first + SCENES_PER_TASK])
        task = Task(
            f"{step}/{STAGE}/{first // SCENES_PER_TASK:04d}",
            payload={"mode": mode, "sign": signing(context)},
            memory_bytes=64 * 2**20,
            bytes_in=len(items) * len(sentinel2.VERIFICATION_BANDS) * 2 * 512**2,
            items=items,
        )
        tasks.append(task)
        task_of.update(dict.fromkeys(items, task.id))
    return tuple(tasks), task_of


def settle(task: Task, context: TaskContext) -> TaskResult:
    """Settle some scenes: by their metadata and, where those are doubtful, by their pixels."""
    mode, found = task.payload["mode"], {}
    dropped: list[Dropped] = []
    for item in context.items_for(task):
        how = sentinel2.radiometry(item)
        if mode == "always" or (mode == "untrusted" and not how.trusted):
            try:
                how = sentinel2.verify_radiometry(item, _reader(item, task.payload["sign"]), metadata=how)
            except ReadError as error:
                # what reads its pixels will miss the asset too; degraded, so that this is settled anew on resume
                dropped.append(Dropped(item.id, "", error.code, f"{error.what} ({error.where})"))
        found[item.id] = asdict(how)
    return TaskResult(
        digest=digest_of([json.dumps(found, sort_keys=True)]), dropped=tuple(dropped), stats={"radiometry": found}
    )


def settled(items: Iterable[pystac.Item], upstream: Mapping[str, Mapping[str, Any]]) -> dict[str, sentinel2.Radiometry]:
    """Radiometry of items, from the ledger records of the stage."""
    found: dict[str, dict[str, Any]] = {}
    for record in upstream.values():
        found.update(record["stats"].get("radiometry", {}))
    return {item.id: sentinel2.Radiometry(**found[item.id]) for item in items}


def signing(context: PlanContext) -> str | None:
    """How the recipe's imagery is signed."""
    return context.recipe.inputs.imagery.sign if context.recipe.inputs.imagery else None


def outline(item: pystac.Item) -> shapely.Geometry:
    """Envelope of an item's footprint, piece by piece: footprints in catalogues are drawn roughly."""
    found = footprint(item)
    if found is None:
        raise CatalogError(
            "an item has neither geometry nor bbox",
            where=f"item {item.id}",
            what_to_do="repair the catalogue, or leave the item out",
        )
    return shapely.MultiPolygon([shapely.box(*part.bounds) for part in shapely.get_parts(found.geom)])


def _reader(item: pystac.Item, method: str | None) -> Callable[[str], npt.NDArray[Any]]:
    def read(band: str) -> npt.NDArray[Any]:
        href = sign(asset_for(item, band).href, method)
        with gdal_env(), opened(href, where=f"item {item.id}, asset {band}") as raster:
            return raster.coarse()

    return read
