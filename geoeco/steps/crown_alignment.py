"""The verb ``crown_alignment``: an encoder of crowns from above, learned with close-up photos of the same crowns.

One task, which goes on from its last checkpoint. Settings and bookkeeping only; training is
`geoeco.training.align_crowns`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import geopandas as gpd
import pandas as pd
from pydantic import Field

from geoeco.engine import PlanContext, RecipePath, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.outputs import score_chart
from geoeco.outputs.learning_curves import learning_curve
from geoeco.sampling import closeup_path, pair_closeups
from geoeco.steps.bundles import (
    ModelVerb,
    PlannedModel,
    bundle_digest,
    bundle_url,
    is_step,
    planned_model,
    tasks_of_model,
)
from geoeco.steps.crown_tables import crowns_of_chips
from geoeco.steps.starting_encoders import check_size, encoder_facts, expected_backbone
from geoeco.steps.training_files import (
    GRADIENT_BYTES,
    TRAINING_LIBRARIES_BYTES,
    FittingSettings,
    TrainingFiles,
    fitting_options,
    read_columns,
)
from geoeco.steps.uav_sources import UavChipSource, UavChipSourceSettings, uav_chips_of, uav_store_facts
from geoeco.vectors import read_table

__all__ = ["CrownAlignmentSettings", "CrownAlignmentVerb"]


class CrownAlignmentSettings(FittingSettings, UavChipSourceSettings):
    """Which crowns, which photos, and how they are brought together."""

    verb: Literal["crown_alignment"] = "crown_alignment"
    photos: str = Field(
        description="table of the inputs with points: photo (path beside the table) and accuracy_m, metres"
    )
    crowns: str | None = Field(None, description="table of the inputs with crowns; that of the chips when not given")
    factor: float = Field(2.0, ge=0, description="how many times its accuracy a photo may lie from its crown")
    backbone: str = Field("resnet18", description="a network of timm, for chips and for photos")
    weights: RecipePath = Field(
        "random", description="of both at the start: random, a name of timm's weights, or a .safetensors file"
    )
    size: int | None = Field(None, ge=8, le=2048, description="pixels along a side that the encoder sees, at least")
    closeup_size: int = Field(224, ge=8, le=2048, description="pixels along a side that photos are scaled to")
    closeups: int = Field(2, ge=1, description="photos of a crown in a batch, of those it has")
    min_valid: float = Field(0.5, gt=0, le=1, description="chips with a smaller valid part are not used")
    temperature: float = Field(0.07, gt=0, description="of the contrast")
    epochs: int = Field(50, ge=1, description="times through the crowns")
    batch: int = Field(32, ge=2, description="crowns a step")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="course of the learning rate")
    flips: bool = Field(True, description="whether chips and photos are mirrored at random")
    jitter: float = Field(0.1, ge=0, lt=1, description="light of both varies by this share at random")
    compare: dict[str, RecipePath] = Field(
        default={}, description="further models of crowns measured alike: a name, and a step or the folder of a bundle"
    )


class CrownAlignmentVerb(ModelVerb):
    """Align crowns from above with close-ups."""

    name: ClassVar[str] = "crown_alignment"
    Settings = CrownAlignmentSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: CrownAlignmentSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of the table of photos, and of chips, models and weights that are not made in this run."""
        facts = encoder_facts(None, settings.weights, context)
        facts["photos"] = _photo_digest(context.table(settings.photos))
        if settings.store is not None:
            facts["store"] = uav_store_facts(context.path(settings.store))
        facts["compare"] = {
            label: bundle_digest(context.path(source))
            for label, source in settings.compare.items()
            if not is_step(source, context)
        }
        return facts

    def plan(self, settings: CrownAlignmentSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips and the models that it is compared with."""
        where = f"step {settings.step}"
        chips = UavChipSource.of(settings, context)
        chips.check_crowns(where)
        if settings.store is not None and settings.crowns is None:
            raise InputError(
                "a store does not hold the outlines of its crowns", where=where, what_to_do="name the table: crowns"
            )
        depends = list(chips.depends)
        for label, source in settings.compare.items():
            _check_compared(label, planned_model(source, context, f"{where}: compare"), chips, where)
            depends += tasks_of_model(source, context)
        payload: dict[str, Any] = {**chips.payload, "photos": context.table(settings.photos)}
        if settings.crowns is not None:
            payload["crowns"] = context.table(settings.crowns)
        if settings.weights.endswith(".safetensors"):
            payload["weights"] = context.path(settings.weights)
        model = self.model(settings, context)
        task = Task(
            f"{settings.step}/training/all",
            payload=payload,
            depends=tuple(dict.fromkeys(depends)),
            less_memory=settings.less_memory,
            memory_bytes=_memory(settings, model),
            bytes_out=7 * model.weight_bytes,
        )
        return (Stage("training", (task,)),)

    def model(self, settings: CrownAlignmentSettings, context: PlanContext) -> PlannedModel:
        """The encoder of chips."""
        chips = UavChipSource.of(settings, context)
        size = check_size(settings.size, chips, settings.step)
        found = expected_backbone(settings.backbone, chips.bands, chips.resolution, size, settings.step)
        return dataclasses.replace(found, name=settings.step)

    def run(self, settings: CrownAlignmentSettings, task: Task, context: TaskContext) -> TaskResult:
        """Align, or go on with an alignment, and put bundle, curve, scores and checkpoints into the step's folder."""
        from geoeco.training import ModelBundle, align_crowns

        store = uav_chips_of(task, context)
        photos = _photos(task.payload["photos"])
        crowns = crowns_of_chips(task, context, store, task.payload.get("crowns"))
        pairs = pair_closeups(crowns, photos, factor=settings.factor)
        root = TrainingFiles(context)
        root.fetch()
        bundle = align_crowns(
            store,
            root.path,
            pairs,
            Path(task.payload["photos"]).parent,
            encoder=settings.backbone,
            weights=task.payload.get("weights", settings.weights),
            size=settings.size,
            closeup_size=settings.closeup_size,
            closeups=settings.closeups,
            min_valid=settings.min_valid,
            temperature=settings.temperature,
            epochs=settings.epochs,
            batch=settings.batch,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            flips=settings.flips,
            jitter=settings.jitter,
            compare={label: ModelBundle.load(bundle_url(name, context)) for label, name in settings.compare.items()},
            **fitting_options(settings, context, root),
        )
        curve = read_columns(root.path / "logs" / "metrics.csv")
        title = f"{context.recipe.name}: {context.folder}, {bundle.description}"
        learning_curve(curve, root.path / "learning_curve.png", title=title)
        pairs.to_csv(root.path / "pairs.csv", index=False)
        outputs = root.put_bundle(applicability=False)
        outputs += [
            root.put("logs/metrics.csv", "table"),
            root.put("pairs.csv", "table"),
            root.put("evaluation.json", "table"),
            root.put("learning_curve.png", "quicklook", title=f"Learning curve of {context.folder}"),
        ]
        rows = json.loads((root.path / "evaluation.json").read_bytes())
        if any(row["task"] == "species" for row in rows):
            score_chart([row for row in rows if row["task"] == "species"], root.path / "scores.png", metric="macro_f1")
            title = f"Species by neighbours in a gallery: macro-F1 of test crowns, {context.folder}"
            outputs.append(root.put("scores.png", "quicklook", title=title))
        learned = {name: bundle.notes[name] for name in ("crowns_learned", "photos_learned", "test")}
        stats: dict[str, Any] = {**{str(name): value for name, value in pairs.attrs.items()}, **learned}
        return TaskResult(digest=bundle.fingerprint(), outputs=tuple(outputs), stats=stats)


def _photos(path: str) -> gpd.GeoDataFrame:
    """Table of photos: points with a CRS, ``photo`` and ``accuracy_m``."""
    table = read_table(path)
    if not isinstance(table, gpd.GeoDataFrame):
        raise InputError("the table of photos has no points", where=path, what_to_do="give a GeoPackage of points")
    missing = [name for name in ("photo", "accuracy_m") if name not in table.columns]
    if missing:
        raise InputError(
            f"the table of photos has no column {missing[0]!r}",
            where=path,
            what_to_do="name the file of each photo in photo, and the accuracy of its place in accuracy_m, metres",
            code="recipe",
        )
    return table


def _photo_digest(path: str) -> str:
    """SHA-256 of the table of photos, and of the sizes of their files: each must be there."""
    table = _photos(path)
    folder = Path(path).parent
    sizes = [closeup_path(folder, str(photo)).stat().st_size for photo in table["photo"]]
    listed = pd.DataFrame(table.drop(columns=table.geometry.name)).assign(place=table.geometry.to_wkb(), bytes=sizes)
    return hashlib.sha256(listed.to_csv(index=False).encode()).hexdigest()


def _check_compared(label: str, model: PlannedModel, chips: UavChipSource, where: str) -> None:
    if label in ("random", "aligned", "close-up"):
        raise InputError(f"{label!r} is a name of the step's own scores", where=where, what_to_do="take another")
    if model.task not in ("embedding", "classification") or model.bands != chips.bands:
        raise InputError(
            f"the model {label!r} is for {model.task} of {', '.join(model.bands)}, not for these crowns",
            where=where,
            what_to_do="name a train_crowns or crown_alignment step, or the folder of such a bundle",
            code="bundle",
        )


def _memory(settings: CrownAlignmentSettings, model: PlannedModel) -> int:
    """Upper bound of what an alignment holds in the memory of the machine, bytes, as if it ran on a CPU.

    Two networks with gradient, two moments, and a copy for the checkpoint, and the one of the start; chips and photos
    of a batch as stored, as values and mirrored; what the forward pass keeps of each.
    """
    pixels = settings.batch * (model.size**2 + settings.closeups * settings.closeup_size**2)
    bands = max(len(model.bands), 3)
    return TRAINING_LIBRARIES_BYTES + 12 * model.weight_bytes + pixels * (24 * bands + GRADIENT_BYTES)
