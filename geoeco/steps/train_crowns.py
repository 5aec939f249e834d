"""The verb ``train_crowns``: species of crowns learned from crown chips, as a model bundle with its scores.

One task, which goes on from its last checkpoint. Settings and bookkeeping only; training is
`geoeco.training.train_crowns`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoeco.engine import PlanContext, RecipePath, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.outputs.confusion_charts import confusion_chart
from geoeco.steps.bundles import ModelVerb, PlannedModel, bundle_url
from geoeco.steps.model_costs import ACTIVATION_BYTES
from geoeco.steps.starting_encoders import StartSettings, check_size, encoder_facts, planned_start, start_inputs
from geoeco.steps.training_files import (
    GRADIENT_BYTES,
    TRAINING_LIBRARIES_BYTES,
    FittingSettings,
    TrainingFiles,
    fitting_options,
    trained_outputs,
)
from geoeco.steps.uav_sources import UavChipSource, UavChipSourceSettings, uav_chips_of, uav_store_facts
from geoeco.variables import check_class_names

__all__ = ["ExposureSettings", "TrainCrownsSettings", "TrainCrownsVerb"]

#: Outliers that are held in memory, as `geoeco.training` has it.
_MOST_OUTLIERS = 1024


class ExposureSettings(BaseModel):
    """Chips that hold none of the species, mixed into the images so that the model learns to be unsure of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    chips: str | None = Field(None, description="name of a uav_chips step that cuts the outliers, of any kind")
    store: RecipePath | None = Field(None, description="a finished store of them, in place of a step")
    op: Literal["mixup", "cutmix"] = Field("mixup", description="all pixels mixed, or a patch pasted in")
    beta: float = Field(5.0, gt=0, description="weight of the mixed images in the loss")
    alpha: float | None = Field(None, gt=0, description="of the Beta distribution; 1 for mixup, 2 for cutmix if null")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.chips is None) == (self.store is None):
            raise ValueError("give either chips (a step) or store (a folder)")
        return self


class TrainCrownsSettings(FittingSettings, StartSettings, UavChipSourceSettings):
    """What is learned, from which crowns, and how."""

    verb: Literal["train_crowns"] = "train_crowns"
    size: int | None = Field(None, ge=8, le=2048, description="pixels along a side that the network sees, at least")
    freeze: bool = Field(False, description="whether the encoder stays as it is and only the linear layer learns")
    min_valid: float = Field(0.5, gt=0, le=1, description="chips with a smaller valid part are not used")
    epochs: int = Field(50, ge=1, description="times through the crowns, at most")
    batch: int = Field(32, ge=2, description="crowns a step")
    lr: float = Field(1e-3, gt=0, description="learning rate of the linear layer")
    encoder_lr: float | None = Field(None, gt=0, description="learning rate of the encoder; as lr when not given")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="course of the learning rates")
    patience: int | None = Field(
        10, ge=1, description="epochs without a lower validation loss after which the training ends; null for never"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "balanced", description="balanced: a crown weighs one over the number of training crowns of its species"
    )
    contrast: float = Field(0.0, ge=0, description="weight of supervised contrast beside cross-entropy")
    temperature: float = Field(0.07, gt=0, description="of supervised contrast")
    outlier_exposure: ExposureSettings | None = Field(None, description="chips that hold none of the species")
    flips: bool = Field(True, description="whether crowns are mirrored at random")
    jitter: float = Field(0.1, ge=0, lt=1, description="light of a crown varies by this share at random")


class TrainCrownsVerb(ModelVerb):
    """Learn the species of crowns."""

    name: ClassVar[str] = "train_crowns"
    Settings = TrainCrownsSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: TrainCrownsSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of chips, encoders and weights that are not made in this run."""
        facts = encoder_facts(settings.encoder, settings.network_weights, context)
        if settings.store is not None:
            facts["store"] = uav_store_facts(context.path(settings.store))
        if settings.outlier_exposure is not None and settings.outlier_exposure.store is not None:
            facts["outliers"] = uav_store_facts(context.path(settings.outlier_exposure.store))
        return facts

    def plan(self, settings: TrainCrownsSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips, the encoder and the outliers."""
        where = f"step {settings.step}"
        chips = UavChipSource.of(settings, context)
        chips.check_crowns(where)
        if len(chips.crown_classes) < 2:
            raise InputError(
                f"the crowns ({chips.where}) are of {len(chips.crown_classes)} species",
                where=where,
                what_to_do="name the column of the species with crown_class",
                code="one-class",
            )
        check_class_names(chips.crown_classes, f"step {settings.step}: species")
        payload, depends = dict(chips.payload), list(chips.depends)
        outliers = self._outliers(settings, chips, context)
        if outliers is not None:
            payload |= {f"outlier_{key}": value for key, value in outliers.payload.items()}
            depends += outliers.depends
        start, made = start_inputs(settings, context)
        model = self.model(settings, context)
        task = Task(
            f"{settings.step}/training/all",
            payload=payload | start,
            depends=tuple(dict.fromkeys([*depends, *made])),
            less_memory=settings.less_memory,
            memory_bytes=_memory(settings, model),
            bytes_out=6 * model.weight_bytes,
        )
        return (Stage("training", (task,)),)

    def model(self, settings: TrainCrownsSettings, context: PlanContext) -> PlannedModel:
        """What the bundle will be; species without a training crown will be missing from its output."""
        chips = UavChipSource.of(settings, context)
        size = check_size(settings.size, chips, settings.step)
        source = planned_start(settings, context, chips.bands, chips.resolution, size)
        outputs = len(chips.crown_classes)
        return PlannedModel(
            name=settings.step,
            bands=chips.bands,
            units="1",
            resolution=chips.resolution,
            size=max(size, source.size),
            task="classification",
            features=outputs,
            weight_bytes=source.weight_bytes + 4 * outputs * (source.features + 3),
        )

    def _outliers(
        self, settings: TrainCrownsSettings, chips: UavChipSource, context: PlanContext
    ) -> UavChipSource | None:
        exposure = settings.outlier_exposure
        if exposure is None:
            return None
        found = UavChipSource.of(
            UavChipSourceSettings(verb=settings.verb, chips=exposure.chips, store=exposure.store), context
        )
        if found.bands != chips.bands or abs(found.resolution - chips.resolution) > 1e-6 * chips.resolution:
            raise InputError(
                f"the outliers have {', '.join(found.bands)} at {found.resolution:g} m, the crowns "
                f"{', '.join(chips.bands)} at {chips.resolution:g} m",
                where=f"step {settings.step}: outlier_exposure",
                what_to_do="cut both with the same bands and target_gsd",
                code="bands",
            )
        return found

    def run(self, settings: TrainCrownsSettings, task: Task, context: TaskContext) -> TaskResult:
        """Train, or go on with a training, and put bundle, curves, scores and checkpoints into the step's folder."""
        from geoeco.training import ModelBundle, OutlierMixing, train_crowns

        exposure = settings.outlier_exposure
        root = TrainingFiles(context)
        root.fetch()
        bundle = train_crowns(
            uav_chips_of(task, context),
            root.path,
            encoder=settings.network
            if settings.encoder is None
            else ModelBundle.load(bundle_url(settings.encoder, context)),
            weights=task.payload.get("weights", settings.network_weights),
            size=settings.size,
            freeze=settings.freeze,
            min_valid=settings.min_valid,
            epochs=settings.epochs,
            batch=settings.batch,
            lr=settings.lr,
            encoder_lr=settings.encoder_lr,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            patience=settings.patience,
            class_weights=settings.class_weights,
            contrast=settings.contrast,
            temperature=settings.temperature,
            exposure=None if exposure is None else OutlierMixing(exposure.op, exposure.beta, exposure.alpha),
            outliers=None if exposure is None else uav_chips_of(task, context, "outlier_"),
            flips=settings.flips,
            jitter=settings.jitter,
            **fitting_options(settings, context, root),
        )
        outputs = trained_outputs(context, root, bundle, score="macro_f1")
        for result in json.loads((root.path / "evaluation_details.json").read_bytes())["results"]:
            confusion_chart(
                np.array(result["confusion"]),
                bundle.classes,
                root.path / "confusion.png",
                title=f"{context.recipe.name}: {context.folder}, test crowns",
                counted="crowns",
            )
            outputs.append(root.put("confusion.png", "quicklook", title=f"Confusion of species by {context.folder}"))
        stats = {name: bundle.notes[name] for name in ("crowns", "never_learned", "epochs", "best_epoch", "test")}
        return TaskResult(digest=bundle.fingerprint(), outputs=tuple(outputs), stats=stats)


def _memory(settings: TrainCrownsSettings, model: PlannedModel) -> int:
    """Upper bound of what a training holds in the memory of the machine, bytes, as if it ran on a CPU.

    The network with gradient, two moments, the best weights and a copy for the checkpoint; a batch as stored, as values
    and mirrored, once a view and once more mixed with outliers; what the forward pass keeps of each; the outliers.
    """
    views = (2 if settings.contrast else 1) + (1 if settings.outlier_exposure is not None else 0)
    images = views * settings.batch
    kept = ACTIVATION_BYTES if settings.freeze else GRADIENT_BYTES
    pixels = images * len(model.bands) * model.size**2
    outliers = 4 * _MOST_OUTLIERS * len(model.bands) * model.size**2 if settings.outlier_exposure is not None else 0
    return TRAINING_LIBRARIES_BYTES + 7 * model.weight_bytes + 24 * pixels + images * model.size**2 * kept + outliers
