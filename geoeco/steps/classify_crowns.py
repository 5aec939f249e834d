"""The verb ``classify_crowns``: the species of crowns on the map, as a GeoPackage with doubt, height and ground.

Settings and bookkeeping only; the answers are `geoeco.mapping.classify_crowns`'s.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from geoeco.engine import Output, PlanContext, RecipePath, RunContext, Stage, Task, TaskContext, TaskResult, Verb
from geoeco.errors import InputError
from geoeco.outputs import ClassTable, write_gpkg, write_table_item
from geoeco.outputs.chip_sheets import mosaic_picture
from geoeco.outputs.outline_charts import outline_chart
from geoeco.sampling import open_uav_chips
from geoeco.sensors.orthomosaic import describe_orthomosaic
from geoeco.steps.bundles import (
    PlannedModel,
    bundle_digest,
    bundle_url,
    foreign_model,
    is_step,
    model_item,
    model_tags,
    planned_model,
)
from geoeco.steps.crown_tables import crowns_of_chips
from geoeco.steps.layers import digest_of, read_layer, written
from geoeco.steps.model_costs import network_bytes
from geoeco.steps.provenance import ALWAYS, item_properties, local_sources, provenance_tags, write_catalog
from geoeco.steps.training_files import needs_ml
from geoeco.steps.uav_chips import UavChipsSettings
from geoeco.steps.uav_sources import UavChipSource, UavChipSourceSettings, uav_chips_of, uav_store_facts
from geoeco.variables import check_class_names

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["ClassifyCrownsSettings", "ClassifyCrownsVerb"]

GPKG, ITEM, PICTURE, LAYER = "crowns.gpkg", "crowns.json", "crowns.png", "crowns"
#: What the columns hold, for readers of the STAC item.
COLUMNS = {
    "crown_id": "number of the crown in the table that it was read from",
    "class": "species with the highest probability",
    "score": "that probability, 0 to 1",
    "entropy": "entropy of the probabilities of all species, 0 (one is certain) to 1 (all are alike)",
    "di": "dissimilarity to the crowns that the model learned from",
    "aoa": "1 within the model's area of applicability, 0 beyond it",
    "height_p95": "95th percentile of the heights within the crown, metres",
    "area_m2": "area on the ellipsoid, square metres",
    "edge": "whether the crown touches ground that was not seen",
    "labelled": "species that the table gave; empty where it gave none",
    "split": "set that the crown belonged to when the model learned: train, val, test or none",
    "source": "file of the mosaic",
    "date": "day on which it was seen",
}
#: Pixels of the longer side of the picture's imagery.
_PICTURE_PIXELS = 1000


class ClassifyCrownsSettings(UavChipSourceSettings):
    """Which model, on which crowns."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name", "batch"})

    verb: Literal["classify_crowns"] = "classify_crowns"
    bundle: RecipePath = Field(description="a train_crowns step, or the folder of a model bundle")
    crowns: str | None = Field(None, description="table of the inputs with crowns; that of the chips when not given")
    mosaic: str | None = Field(
        None, description="table of the inputs with the orthomosaic, for edges and picture; the chips' own if null"
    )
    min_height_m: float | None = Field(None, gt=0, description="crowns that are known to be lower are left out, metres")
    batch: int = Field(64, ge=1, description="crowns at a time")


class ClassifyCrownsVerb(Verb):
    """Tell the species of crowns."""

    name: ClassVar[str] = "classify_crowns"
    Settings = ClassifyCrownsSettings

    def fingerprint(self, settings: ClassifyCrownsSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of chips, crowns and a model that are not made in this run."""
        facts: dict[str, Any] = {}
        if not is_step(settings.bundle, context):
            facts["bundle"] = bundle_digest(context.path(settings.bundle))
        if settings.store is not None:
            facts["store"] = uav_store_facts(context.path(settings.store))
        mosaic = _mosaic_path(settings, context)
        if mosaic is not None:
            facts["mosaic"] = describe_orthomosaic(mosaic).fingerprint
        return facts

    def plan(self, settings: ClassifyCrownsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips and the model."""
        where = f"step {settings.step}"
        chips = UavChipSource.of(settings, context)
        chips.check_crowns(where)
        with needs_ml(settings.step):
            # what the task imports
            from geoeco.mapping import classify_crowns  # noqa: F401
        model = planned_model(settings.bundle, context, f"{where}: bundle")
        _check_model(settings, model, chips)
        if settings.store is not None and settings.crowns is None:
            raise InputError(
                "a store does not hold the outlines of its crowns", where=where, what_to_do="name the table: crowns"
            )
        depends = list(chips.depends)
        if is_step(settings.bundle, context):
            depends += [task.id for task in context.step(settings.bundle).tasks]
        payload = {**chips.payload, "tags": provenance_tags(context, _inputs(settings, context), None)}
        if settings.crowns is not None:
            payload["crowns"] = context.table(settings.crowns)
        mosaic = _mosaic_path(settings, context)
        if mosaic is not None:
            payload["mosaic"] = mosaic
        task = Task(
            f"{settings.step}/crowns/all",
            payload=payload,
            depends=tuple(dict.fromkeys(depends)),
            memory_bytes=network_bytes(model, settings.batch) + 64 * 2**20 + 64 * _PICTURE_PIXELS**2,
        )
        return (Stage("crowns", (task,)),)

    def run(self, settings: ClassifyCrownsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Apply the model and write the crowns, and a picture of them over the mosaic."""
        from geoeco.mapping import classify_crowns
        from geoeco.training import ModelBundle

        store = uav_chips_of(task, context)
        bundle = ModelBundle.load(bundle_url(settings.bundle, context))
        crowns = crowns_of_chips(task, context, store, task.payload.get("crowns"))
        found = classify_crowns(
            store,
            bundle,
            crowns,
            mosaic=task.payload.get("mosaic"),
            batch=settings.batch,
            min_height_m=settings.min_height_m,
        )
        if not len(found):
            raise InputError("all crowns are lower than min_height_m", where=context.folder, code="no-locations")
        days = sorted({str(day) for day in found["date"] if day})
        tags = {
            **task.payload["tags"],
            **({"GEOECO_PERIOD": f"{days[0]}/{days[-1]}"} if days else {}),
            **model_tags(settings.bundle, context),
        }
        species = ClassTable.of(dict(enumerate(bundle.classes)), bundle.colours or None, name="species")
        title = f"{context.recipe.name}: {context.folder}"
        # a mirror of the run folder, so that relative links hold there too
        folder = context.scratch_path / context.folder
        record = write_gpkg(
            found,
            folder / GPKG,
            layer=LAYER,
            description="species of crowns",
            tags=tags,
            classes=species,
            class_column="class",
        )
        outputs = [written(context, GPKG, record.path.read_bytes(), "data")]
        picture = None
        if "mosaic" in task.payload:
            picture = _picture(task.payload["mosaic"], found, species, folder / PICTURE, title)
            outputs.append(
                written(context, PICTURE, picture.read_bytes(), "quicklook", f"Species of crowns, {context.folder}")
            )
        first, last = (f"{days[0]}T00:00:00Z", f"{days[-1]}T23:59:59Z") if days else ALWAYS
        held = {name for name, _ in record.columns}
        write_table_item(
            folder / ITEM,
            record,
            period=(dt.datetime.fromisoformat(first), dt.datetime.fromisoformat(last)),
            descriptions={name: text for name, text in COLUMNS.items() if name in held},
            title=title,
            properties=item_properties(tags),
            derived_from=local_sources([model_item(settings.bundle, context)], context.scratch_path),
            thumbnail=picture,
        )
        outputs.append(written(context, ITEM, (folder / ITEM).read_bytes(), "metadata", "Crowns"))
        counts = {str(name): int(n) for name, n in found["class"].value_counts().sort_index().items()}
        return TaskResult(
            digest=digest_of(str(output.sha256) for output in outputs),
            outputs=tuple(outputs),
            stats={"crowns": len(found), "classes": counts, **found.attrs},
        )

    def finish(
        self, settings: ClassifyCrownsSettings, context: RunContext, records: Sequence[Mapping[str, Any]]
    ) -> Sequence[Output] | None:
        """Write the catalogue of the crowns' STAC item, and the item of a model from elsewhere."""
        return [*write_catalog(context, records, "Crowns"), *foreign_model(settings.bundle, context)]

    def open(self, settings: ClassifyCrownsSettings, context: RunContext) -> Any:
        """Read the crowns."""
        return read_layer(context, GPKG, LAYER)


def _check_model(settings: ClassifyCrownsSettings, model: PlannedModel, chips: UavChipSource) -> None:
    where = f"step {settings.step}: bundle"
    if model.task != "classification":
        raise InputError(
            f"the model {settings.bundle!r} is for {model.task}, not for classes",
            where=where,
            what_to_do="name a train_crowns step, or the folder of its bundle",
            code="bundle",
        )
    check_class_names(model.classes, where)
    if model.bands != chips.bands or abs(model.resolution - chips.resolution) > 1e-6 * chips.resolution:
        raise InputError(
            f"the model takes {', '.join(model.bands)} at {model.resolution:g} m, the chips have "
            f"{', '.join(chips.bands)} at {chips.resolution:g} m",
            where=where,
            what_to_do="cut chips with the bands and target_gsd that it learned from",
            code="bands",
        )


def _inputs(settings: ClassifyCrownsSettings, context: PlanContext) -> list[str]:
    """Fingerprints of the mosaics that the chips were cut of."""
    if settings.store is not None:
        return [str(one) for one in open_uav_chips(context.path(settings.store)).attrs["source_fingerprints"]]
    return [describe_orthomosaic(path).fingerprint for path in _mosaics_of_chips(settings, context)]


def _mosaics_of_chips(settings: ClassifyCrownsSettings, context: PlanContext) -> list[str]:
    step = context.step(settings.chips, verb="uav_chips")
    assert isinstance(step.settings, UavChipsSettings), "the verb uav_chips has these settings"
    return [context.table(name) for name in step.settings.mosaics]


def _mosaic_path(settings: ClassifyCrownsSettings, context: PlanContext) -> str | None:
    """Path of the mosaic that the crowns lie on, where it is one."""
    if settings.mosaic is not None:
        return context.table(settings.mosaic)
    if settings.store is not None:
        return None
    paths = _mosaics_of_chips(settings, context)
    # crowns of several mosaics lie on none of them alone
    return paths[0] if len(paths) == 1 else None


def _picture(path: str, crowns: gpd.GeoDataFrame, species: ClassTable, target: Path, title: str) -> Path:
    """Crowns over the mosaic."""
    mosaic = describe_orthomosaic(path)
    image, bounds = mosaic_picture(mosaic, size=_PICTURE_PIXELS)
    placed = crowns.to_crs(mosaic.geobox.crs)
    colours = {entry.name: entry.hex for entry in species}
    return outline_chart(image, bounds, placed, target, column="class", colours=colours, title=title)
