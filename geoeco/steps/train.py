"""The verb ``train``: a network learned from season chips and labels, as a model bundle with its scores.

One task, which goes on from its last checkpoint. Settings and bookkeeping only; training is `geoeco.training.train`'s.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import pandas as pd
from pydantic import Field, field_validator, model_validator

from geoeco.cubes.shards import Objects
from geoeco.engine import PlanContext, RecipePath, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.steps.bundles import (
    ModelVerb,
    PlannedModel,
    bundle_digest,
    bundle_url,
    check_made,
    is_step,
    planned_model,
    tasks_of_model,
)
from geoeco.steps.chip_sources import ChipSource, ChipSourceSettings, chips_of, store_facts
from geoeco.steps.chips import SplitSettings
from geoeco.steps.model_costs import ACTIVATION_BYTES
from geoeco.steps.pretrain import PretrainSettings
from geoeco.steps.radiometry import known_bands
from geoeco.steps.training_files import (
    GRADIENT_BYTES,
    TRAINING_LIBRARIES_BYTES,
    FittingSettings,
    TrainingFiles,
    fitting_options,
    needs_ml,
    trained_outputs,
)
from geoeco.vectors import read_table

__all__ = ["TrainSettings", "TrainVerb"]

#: Reflectance bands that are used when none are named: those of the verb pretrain.
_BANDS: tuple[str, ...] = PretrainSettings.model_fields["bands"].default
Kind = Literal["single-label", "multi-label", "regression", "distribution"]
#: The score that is drawn: the first one of each kind of task.
_SCORES: dict[Kind, str] = {
    "single-label": "macro_f1",
    "multi-label": "micro_map",
    "regression": "r2",
    "distribution": "r2",
}


class TrainSettings(FittingSettings, ChipSourceSettings):
    """What is learned, from which chips and labels, and how."""

    verb: Literal["train"] = "train"
    encoder: RecipePath | None = Field(None, description="a pretrain step, or the folder of a model bundle")
    backbone: str | None = Field(None, description="a network of timm with random weights, in place of an encoder")
    bands: tuple[str, ...] | None = Field(
        None, min_length=1, description="reflectance bands of a backbone; those of pretrain when not given"
    )
    ndvi: bool | None = Field(
        None, description="whether NDVI is a channel of a backbone too, the last one; true when not given"
    )
    size: int | None = Field(
        None, ge=8, le=2048, description="pixels along a side of the windows; the encoder's, or whole chips"
    )
    freeze: bool = Field(False, description="whether the encoder stays as it is and only the linear layer learns")
    labels: str = Field(description="table of the inputs: a row a place, with its name and the columns")
    task: Kind = Field(description="one class, several classes (0 or 1), values, or shares that sum to one")
    columns: tuple[str, ...] = Field(min_length=1, description="columns of the labels; one for a single label")
    target_units: dict[str, str] | None = Field(None, description="units of values, by column, for the notes")
    combine: str = Field("mean", description="seasons of a place: mean of those that are there, or the name of one")
    min_valid: float = Field(0.9, gt=0, le=1, description="chips with a smaller valid part are not used")
    split: SplitSettings = Field(SplitSettings(), description="sets by spatial blocks, where the chips have none")
    epochs: int = Field(100, ge=1, description="times through the places, at most")
    batch: int = Field(64, ge=2, description="places a step")
    lr: float = Field(1e-3, gt=0, description="learning rate of the linear layer")
    encoder_lr: float | None = Field(None, gt=0, description="learning rate of the encoder; as lr when not given")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="course of the learning rates")
    patience: int | None = Field(
        10, ge=1, description="epochs without a lower validation loss after which the training ends; null for never"
    )
    positive_weight: float | None = Field(None, gt=0, description="of a multi-label task: weight of given labels")
    threshold: float = Field(0.5, ge=0, le=1, description="probability above which one of several labels is given")
    flips: bool = Field(True, description="whether places are mirrored at random")

    @field_validator("bands")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else known_bands(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.encoder is None) == (self.backbone is None):
            raise ValueError("give either encoder (a step or a bundle) or backbone (a network with random weights)")
        if self.encoder is not None and (self.bands is not None or self.ndvi is not None):
            raise ValueError("an encoder brings its own bands: leave bands and ndvi out")
        if self.task == "single-label" and len(self.columns) != 1:
            raise ValueError(f"a single label is in one column, not in {len(self.columns)}")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("a column is named twice")
        if self.positive_weight is not None and self.task != "multi-label":
            raise ValueError("positive_weight is for multi-label tasks only")
        if self.combine == "concatenate":
            raise ValueError("places may lack seasons: combine by mean, or name one season")
        return self

    @property
    def all_bands(self) -> tuple[str, ...]:
        """Channels of a backbone."""
        bands = self.bands or _BANDS
        return bands if self.ndvi is False else (*bands, "ndvi")


class TrainVerb(ModelVerb):
    """Train a network on labels."""

    name: ClassVar[str] = "train"
    Settings = TrainSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: TrainSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of the labels, and of a bundle and chips that are not made in this run."""
        labels = _labels(settings, context.table(settings.labels))
        facts = store_facts(settings, context)
        facts["labels"] = hashlib.sha256(labels.to_csv(index=False).encode()).hexdigest()
        if settings.encoder is not None and not is_step(settings.encoder, context):
            facts["encoder"] = bundle_digest(context.path(settings.encoder))
        return facts

    def plan(self, settings: TrainSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips and the encoder."""
        labels = _labels(settings, context.table(settings.labels))
        _check_labels(settings, labels, context.table(settings.labels))
        chips = ChipSource.of(settings, context)
        if settings.store is not None:
            _check_names(labels, chips.where)
        chips.check_bands(self._source(settings, context).bands, f"the step {settings.step!r}", f"step {settings.step}")
        model = self.model(settings, context)
        depends = list(chips.depends)
        if settings.encoder is not None:
            depends += tasks_of_model(settings.encoder, context)
        task = Task(
            f"{settings.step}/training/all",
            payload={"labels": context.table(settings.labels), **chips.payload},
            depends=tuple(depends),
            less_memory=settings.less_memory,
            memory_bytes=_memory(settings, model),
            bytes_out=6 * model.weight_bytes,
        )
        return (Stage("training", (task,), needs_all=False),)

    def model(self, settings: TrainSettings, context: PlanContext) -> PlannedModel:
        """What the bundle will be: the encoder with a linear layer."""
        source = self._source(settings, context)
        outputs = len(settings.columns)
        if settings.task == "single-label":
            labels = _labels(settings, context.table(settings.labels))
            outputs = int(labels[settings.columns[0]].nunique())
        return PlannedModel(
            name=settings.step,
            bands=source.bands,
            units="1",
            resolution=source.resolution,
            size=settings.size or source.size,
            task="classification" if settings.task in ("single-label", "multi-label") else "regression",
            features=outputs,
            weight_bytes=source.weight_bytes + 4 * outputs * (source.features + 3),
        )

    def _source(self, settings: TrainSettings, context: PlanContext) -> PlannedModel:
        """The encoder that is started from."""
        with needs_ml(settings.step):
            from geoeco.training import expect_encoder
        if settings.encoder is not None:
            found = planned_model(settings.encoder, context, f"step {settings.step}: encoder")
            if found.task != "embedding":
                raise InputError(
                    f"the model {settings.encoder!r} is for {found.task}, no encoder",
                    where=f"step {settings.step}",
                    what_to_do="name a pretrain step, or the folder of its bundle; the encoder of a model that train "
                    "made is taken out by geoeco.training.trained_encoder",
                    code="bundle",
                )
            return found
        assert settings.backbone is not None, "one of the two is given"
        bands = settings.all_bands
        size = settings.size or ChipSource.of(settings, context).size
        expected = expect_encoder(settings.backbone, len(bands), size=size)
        return PlannedModel(
            settings.backbone, bands, "1", 10.0, size, "embedding", expected.features, expected.weight_bytes
        )

    def run(self, settings: TrainSettings, task: Task, context: TaskContext) -> TaskResult:
        """Train, or go on with a training, and put bundle, curves, scores and checkpoints into the step's folder."""
        from geoeco.training import ModelBundle, train

        source = settings.encoder
        if source is not None:
            check_made(source, context, "the encoder")
        root = TrainingFiles(context)
        root.fetch()
        bundle = train(
            chips_of(task, context),
            root.path,
            _labels(settings, task.payload["labels"]),
            task=settings.task,
            columns=settings.columns,
            encoder=ModelBundle.load(bundle_url(source, context)) if source is not None else str(settings.backbone),
            bands=None if source is not None else settings.all_bands,
            size=settings.size,
            freeze=settings.freeze,
            combine=settings.combine,
            min_valid=settings.min_valid,
            fractions=settings.split.fractions,
            block_m=settings.split.block_m,
            buffer_m=settings.split.buffer_m,
            epochs=settings.epochs,
            batch=settings.batch,
            lr=settings.lr,
            encoder_lr=settings.encoder_lr,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            patience=settings.patience,
            positive_weight=settings.positive_weight,
            threshold=settings.threshold,
            flips=settings.flips,
            target_units=settings.target_units,
            **fitting_options(settings, context, root),
        )
        outputs = trained_outputs(context, root, bundle, score=_SCORES[settings.task])
        stats = {
            "places": bundle.notes["places"],
            "epochs": bundle.notes["epochs"],
            "best_epoch": bundle.notes["best_epoch"],
            "test": bundle.notes["test"],
        }
        return TaskResult(digest=bundle.fingerprint(), outputs=tuple(outputs), stats=stats)


def _labels(settings: TrainSettings, path: str) -> pd.DataFrame:
    """Table of labels: names and the columns that are learned, without geometries."""
    table = read_table(path)
    wanted = ("name", *settings.columns)
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise InputError(
            f"the table of labels has no column {missing[0]!r}",
            where=path,
            what_to_do=f"its columns are: {', '.join(map(str, table.columns))}",
            code="recipe",
        )
    return pd.DataFrame({column: table[column].to_numpy() for column in wanted})


def _check_labels(settings: TrainSettings, labels: pd.DataFrame, path: str) -> None:
    values = labels[list(settings.columns)].dropna()
    if not len(values):
        raise InputError(f"no place has a label in {', '.join(settings.columns)}", where=path, code="no-locations")
    if settings.task == "single-label" and values.iloc[:, 0].nunique() < 2:
        raise InputError(
            f"all labels are of the class {values.iloc[0, 0]!s}",
            where=path,
            what_to_do="give two classes or more",
            code="one-class",
        )


def _check_names(labels: pd.DataFrame, store: str) -> None:
    """Refuse a finished store none of whose places has a label, or a set of whose split has none."""
    objects = Objects(store.rstrip("/"))
    chips, split = objects.get("chips.parquet"), objects.get("split.parquet")
    assert chips is not None, "the store is finished"
    labelled = [str(name) for name in labels.dropna()["name"]]
    names = [str(name) for name in pd.read_parquet(io.BytesIO(chips), columns=["name"])["name"]]
    if set(labelled).isdisjoint(names):
        raise InputError(
            "no place of the chips has a label",
            where=f"{store}; labels like {labelled[0]!r}, chips like {names[0]!r}",
            what_to_do="name places in the table as in the store of chips",
            code="no-locations",
        )
    if split is None:
        return
    table = pd.read_parquet(io.BytesIO(split))
    parts = set(table.loc[table["name"].astype(str).isin(labelled), "split"])
    for part in ("train", "val"):
        if part not in parts:
            raise InputError(
                f"the set {part!r} of the split holds no labelled place",
                where=store,
                what_to_do="label more places, or split the chips again",
                code="empty-split",
            )


def _memory(settings: TrainSettings, model: PlannedModel) -> int:
    """Upper bound of what a training holds in the memory of the machine, bytes, as if it ran on a CPU.

    The network with gradient, two moments, the best weights and a copy for the checkpoint; a batch of four seasons as
    stored, as reflectance and mirrored; what the forward pass keeps.
    """
    images = 4 * settings.batch
    kept = ACTIVATION_BYTES if settings.freeze else GRADIENT_BYTES
    pixels = images * len(model.bands) * max(model.size, 264) ** 2
    return TRAINING_LIBRARIES_BYTES + 7 * model.weight_bytes + 14 * pixels + images * model.size**2 * kept
