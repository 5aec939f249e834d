"""The verb ``detect_crowns``: the crowns of an orthomosaic by a detector, as a GeoPackage and as COCO JSON.

Stages: ``tiles`` finds objects on some tiles each; ``crowns`` keeps each crown once, and writes. Settings and
bookkeeping only; the crowns are `geoeco.mapping.detections`'.
"""

from __future__ import annotations

import datetime as dt
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from geoeco.engine import Output, PlanContext, RecipePath, RunContext, Stage, Task, TaskContext, TaskResult, Verb
from geoeco.errors import InputError
from geoeco.outputs import ClassTable, write_coco, write_gpkg, write_table_item
from geoeco.outputs.chip_sheets import mosaic_picture
from geoeco.outputs.outline_charts import outline_chart
from geoeco.sensors.height_models import HeightModel, describe_heights
from geoeco.sensors.orthomosaic import Orthomosaic, describe_orthomosaic
from geoeco.steps.bundles import (
    PlannedModel,
    bundle_digest,
    bundle_url,
    foreign_model,
    is_step,
    model_item,
    model_tags,
    planned_model,
    tasks_of_model,
)
from geoeco.steps.layers import digest_of, read_layer, written
from geoeco.steps.model_costs import network_bytes
from geoeco.steps.mosaics import MosaicSettings
from geoeco.steps.provenance import ALWAYS, item_properties, local_sources, provenance_tags, write_catalog
from geoeco.steps.training_files import needs_ml

if TYPE_CHECKING:
    import geopandas as gpd

    from geoeco.training import ModelBundle

__all__ = ["DetectCrownsSettings", "DetectCrownsVerb"]

GPKG, COCO, ITEM, PICTURE = "crowns.gpkg", "crowns_coco.json", "crowns.json", "crowns.png"
LAYER = "crowns"
#: What the columns hold, for readers of the STAC item.
COLUMNS = {
    "crown_id": "number of the crown, from 1 from top to bottom of the mosaic",
    "class": "species, or crown where the model does not tell species apart",
    "score": "how sure the detector is, 0 to 1",
    "area_m2": "area on the ground, square metres",
    "height_p95": "95th percentile of the heights within the crown, metres",
    "edge": "whether the crown touches ground that was not seen",
    "source": "file of the mosaic",
    "date": "day on which it was seen",
}
_PICTURE_PIXELS = 1000
#: Masks of objects as they are pasted into a tile, bytes a pixel, and how many there are.
_MASK_BYTES, _MOST = 12, 200
#: Bytes of a crown in the last task; and crowns of a tile that it is planned for.
_CROWN_BYTES = 16 * 2**10


class DetectCrownsSettings(MosaicSettings):
    """Which model, on which mosaic, and how tiles become one table."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})

    verb: Literal["detect_crowns"] = "detect_crowns"
    bundle: RecipePath = Field(description="a train_detector step, or the folder of a model bundle")
    overlap_m: float = Field(ge=0, description="of tiles: the largest crown plus two edge_m, metres")
    edge_m: float = Field(
        0.0, ge=0, description="band along the edges of tiles where a crown counts as cut off, metres"
    )
    min_score: float = Field(0.5, ge=0.05, le=1, description="objects of a lower score are left out")
    max_overlap: float = Field(
        0.3, ge=0, le=1, description="of two crowns, as part of the smaller: beyond it the less sure one is dropped"
    )
    chm: str | None = Field(None, description="table of the inputs with heights above ground, for height_p95")
    tiles_per_task: int = Field(64, ge=1, description="tiles of one task; the crowns are the same whatever it is")


class DetectCrownsVerb(Verb):
    """Find crowns."""

    name: ClassVar[str] = "detect_crowns"
    Settings = DetectCrownsSettings

    def fingerprint(self, settings: DetectCrownsSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of mosaic, heights and a model that is not made in this run."""
        mosaic = _mosaic(settings, context, planned_model(settings.bundle, context, f"step {settings.step}: bundle"))
        facts: dict[str, Any] = {"mosaic": mosaic.fingerprint}
        heights = _heights(settings, context, mosaic)
        if heights is not None:
            facts["chm"] = heights.upper.fingerprint
        if not is_step(settings.bundle, context):
            facts["bundle"] = bundle_digest(context.path(settings.bundle))
        return facts

    def plan(self, settings: DetectCrownsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """A task for some tiles each, and one that keeps each crown once."""
        with needs_ml(settings.step):
            # what the tasks import
            from geoeco.mapping import detection_tiles
        model = planned_model(settings.bundle, context, f"step {settings.step}: bundle")
        mosaic = _mosaic(settings, context, model)
        count = len(detection_tiles(mosaic, model.size, settings.overlap_m))
        memory = (
            network_bytes(model, 1)
            + mosaic.read_bytes(model.size, model.size)
            + _MOST * model.size**2 * _MASK_BYTES
            + _CROWN_BYTES * settings.tiles_per_task
        )
        tiles = tuple(
            Task(
                f"{settings.step}/tiles/{first:06d}",
                payload={"tiles": [first, min(first + settings.tiles_per_task, count)]},
                depends=tasks_of_model(settings.bundle, context),
                memory_bytes=memory,
            )
            for first in range(0, count, settings.tiles_per_task)
        )
        day = str(settings.date or mosaic.date)
        period = (f"{day}T00:00:00Z", f"{day}T23:59:59Z") if day else None
        crowns = Task(
            f"{settings.step}/crowns/all",
            payload={
                "tags": provenance_tags(context, [mosaic.fingerprint], period),
                "period": list(period or ALWAYS),
            },
            depends=tuple(task.id for task in tiles),
            memory_bytes=512 * 2**20 + 64 * _PICTURE_PIXELS**2 + _CROWN_BYTES * _MOST * count // 4,
        )
        return (Stage("tiles", tiles), Stage("crowns", (crowns,)))

    def run(self, settings: DetectCrownsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Find the objects of some tiles, or keep each crown once and write."""
        from geoeco.mapping import check_detector, detect_tiles, detection_tiles
        from geoeco.training import ModelBundle

        bundle = ModelBundle.load(bundle_url(settings.bundle, context))
        mosaic = _mosaic(settings, context, PlannedModel.read(bundle_url(settings.bundle, context)))
        check_detector(bundle, mosaic)
        windows = detection_tiles(mosaic, bundle.size, settings.overlap_m)
        if task.stage == "crowns":
            return self._crowns(settings, task, context, bundle, mosaic, windows)
        found = detect_tiles(mosaic, bundle, windows, range(*task.payload["tiles"]), min_score=settings.min_score)
        buffer = io.BytesIO()
        found.to_parquet(buffer, index=False)
        output = written(context, f"tiles/{task.key}.parquet", buffer.getvalue(), "part")
        return TaskResult(digest=str(output.sha256), outputs=(output,), stats={"objects": len(found)})

    def _crowns(
        self,
        settings: DetectCrownsSettings,
        task: Task,
        context: TaskContext,
        bundle: ModelBundle,
        mosaic: Orthomosaic,
        windows: Any,
    ) -> TaskResult:
        import geopandas as gpd

        from geoeco.mapping import merge_tiles

        keys = [name.split("/")[2] for name in task.depends]
        parts = [
            gpd.read_parquet(io.BytesIO(context.store.read_bytes(f"{context.folder}/tiles/{key}.parquet")))
            for key in keys
        ]
        heights = _heights(settings, context, mosaic)
        found = merge_tiles(
            parts, windows, mosaic, edge_m=settings.edge_m, max_overlap=settings.max_overlap, heights=heights
        )
        if settings.date is not None:
            found["date"] = str(settings.date)
        needed = found.attrs["largest_m"] + 2 * settings.edge_m
        if needed > settings.overlap_m:
            warnings.warn(
                f"step {settings.step}: an overlap of {needed:.1f} m would hold the largest crown that was found, "
                f"{settings.overlap_m:.1f} m does not: such crowns may be whole in no tile",
                stacklevel=2,
            )
        tags = {**task.payload["tags"], **model_tags(settings.bundle, context)}
        classes = ClassTable.of(dict(enumerate(bundle.classes)), bundle.colours or None, name="crowns")
        title = f"{context.recipe.name}: {context.folder}"
        # a mirror of the run folder, so that relative links hold there too
        folder = context.scratch_path / context.folder
        record = write_gpkg(
            found,
            folder / GPKG,
            layer=LAYER,
            geometry_type="Polygon",
            description="crowns that were found",
            tags=tags,
            classes=classes,
            class_column="class",
        )
        coco = write_coco(
            found, folder / COCO, geobox=mosaic.geobox, file_name=Path(mosaic.path).name, category="class"
        )
        image, bounds = mosaic_picture(mosaic, size=_PICTURE_PIXELS)
        colours = {entry.name: entry.hex for entry in classes}
        picture = outline_chart(image, bounds, found, folder / PICTURE, column="class", colours=colours, title=title)
        outputs = [
            written(context, GPKG, record.path.read_bytes(), "data", "Crowns"),
            written(context, COCO, coco.path.read_bytes(), "data", "Crowns as COCO JSON"),
            written(context, PICTURE, picture.read_bytes(), "quicklook", f"Crowns found, {context.folder}"),
        ]
        start, end = (dt.datetime.fromisoformat(moment) for moment in task.payload["period"])
        box = mosaic.geobox.boundingbox
        held = {name for name, _ in record.columns}
        write_table_item(
            folder / ITEM,
            record,
            period=(start, end),
            bounds=(box.left, box.bottom, box.right, box.top),
            descriptions={name: text for name, text in COLUMNS.items() if name in held},
            title=title,
            properties=item_properties(tags),
            derived_from=local_sources([model_item(settings.bundle, context)], context.scratch_path),
            thumbnail=picture,
        )
        outputs.append(written(context, ITEM, (folder / ITEM).read_bytes(), "metadata", "Crowns"))
        return TaskResult(
            digest=digest_of(str(output.sha256) for output in outputs),
            outputs=tuple(outputs),
            stats={"crowns": len(found), **found.attrs},
        )

    def finish(
        self, settings: DetectCrownsSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Write the catalogue of the crowns' STAC item, and the item of a model from elsewhere."""
        return [*write_catalog(context, records, "Crowns"), *foreign_model(settings.bundle, context)]

    def open(self, settings: DetectCrownsSettings, context: RunContext) -> gpd.GeoDataFrame:
        """Read the crowns."""
        return read_layer(context, GPKG, LAYER)


def _mosaic(settings: DetectCrownsSettings, context: PlanContext | TaskContext, model: PlannedModel) -> Orthomosaic:
    """The mosaic at the resolution of the model.

    Raises
    ------
    InputError
        If the model finds no objects or takes other bands.
    """
    where = f"step {settings.step}: bundle"
    if model.task != "detection":
        raise InputError(
            f"the model {settings.bundle!r} is for {model.task}, not for objects",
            where=where,
            what_to_do="name a train_detector step, or the folder of its bundle",
            code="bundle",
        )
    path = context.recipe.table_path(settings.mosaic, context.recipe_folder)
    mosaic = describe_orthomosaic(path, bands=settings.bands, scale=settings.scale, nodata=settings.nodata)
    if tuple(mosaic.bands) != model.bands:
        raise InputError(
            f"the model takes {', '.join(model.bands)}, the mosaic has {', '.join(mosaic.bands)}",
            where=where,
            what_to_do="name the mosaic's bands with bands, in the model's order",
            code="bands",
        )
    return mosaic if abs(mosaic.gsd_m / model.resolution - 1) <= 0.02 else mosaic.at(model.resolution)


def _heights(
    settings: DetectCrownsSettings, context: PlanContext | TaskContext, mosaic: Orthomosaic
) -> HeightModel | None:
    if settings.chm is None:
        return None
    return describe_heights(mosaic, chm=context.recipe.table_path(settings.chm, context.recipe_folder))
