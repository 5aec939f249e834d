"""The verb ``evaluate``: what frozen encoders are good for, by linear probes and nearest neighbours.

One task: embeddings, folds, probes, a table and its picture. Settings and bookkeeping only; the protocol is
`geoeco.training.evaluate`'s.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from geoeco.engine import (
    Output,
    PlanContext,
    RecipePath,
    RunContext,
    Stage,
    Task,
    TaskContext,
    TaskResult,
    Verb,
)
from geoeco.errors import InputError
from geoeco.outputs import score_chart
from geoeco.steps.bundles import (
    bundle_digest,
    bundle_url,
    check_made,
    is_step,
    planned_model,
    tasks_of_model,
)
from geoeco.steps.chip_sources import ChipSource, ChipSourceSettings, chips_of, store_facts
from geoeco.steps.model_costs import ACTIVATION_BYTES, LIBRARIES_BYTES
from geoeco.steps.training_files import needs_ml
from geoeco.vectors import read_table

if TYPE_CHECKING:
    from geoeco.training import ModelBundle

__all__ = ["EvaluateSettings", "EvaluateVerb", "EvaluationTask"]

Kind = Literal["single-label", "multi-label", "regression", "distribution"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")]

#: An encoder with weights as they are drawn, for comparison.
RANDOM = "random"
#: Tested places whose similarities to all others are held at a time.
_SIMILARITIES = 1024


class EvaluationTask(BaseModel):
    """What is read from features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(description="one class, several classes (0 or 1), values, or shares that sum to one")
    columns: tuple[str, ...] = Field((), description="columns of the labels; the task's own name when not given")
    positive_weight: float | None = Field(None, gt=0, description="of a multi-label task: weight of given labels")


class EvaluateSettings(ChipSourceSettings):
    """Which encoders are compared, on which images and labels, and how."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name", "device"})

    verb: Literal["evaluate"] = "evaluate"
    encoders: dict[Name, RecipePath] = Field(
        min_length=1,
        description="by name: a pretrain step, the folder of a model bundle, or random (weights as they are drawn)",
    )
    random_like: str | None = Field(
        None, description="the encoder whose architecture random has; the first that is not random when not given"
    )
    labels: str = Field(description="table of the inputs: a row a place, with its name and a column or more a task")
    tasks: dict[Name, Kind | EvaluationTask] = Field(min_length=1, description="by name: its kind, or its settings")
    protocols: tuple[Literal["linear", "knn"], ...] = Field(("linear", "knn"), min_length=1, description="probes")
    splits: tuple[Literal["random", "blocks"], ...] = Field(
        ("random", "blocks"), min_length=1, description="folds: shuffled, as published; by spatial blocks"
    )
    combine: str = Field("mean", description="seasons of a place: mean, concatenate, or the name of one")
    folds: int = Field(10, ge=2, le=100, description="number of folds")
    fold_seed: int = Field(
        42, ge=0, lt=2**31, description="of folds and probes; runs with other seeds are compared on the same folds"
    )
    block_m: float = Field(100_000.0, gt=0, description="side of the spatial blocks, metres")
    buffer_m: float = Field(0.0, ge=0, description="least distance between windows of different parts, metres")
    keep_duplicates_together: bool = Field(False, description="random folds do not part places of equal coordinates")
    scale: bool = Field(False, description="linear probe: features are z-scored by the training part")
    use: Literal["last", "best"] = Field("last", description="linear probe: weights of the last or the best epoch")
    max_epochs: int = Field(1000, ge=1, description="linear probe: epochs at most")
    k: tuple[int, ...] = Field((1, 5, 10, 20, 30), min_length=1, description="numbers of neighbours to choose from")
    temperature: float = Field(0.07, gt=0, description="of the weights of neighbours")
    batch: int = Field(64, ge=1, le=4096, description="images that are embedded at a time")
    threads: int = Field(1, ge=1, le=256, description="threads of the task; the last bits of the numbers depend on it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where encoders and probes run")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.random_like is not None and self.random_like not in self.encoders:
            raise ValueError(f"random_like: there is no encoder {self.random_like!r}")
        for values in (self.protocols, self.splits, self.k):
            if len(set(values)) < len(values):
                raise ValueError(f"{values}: each once")
        if min(self.k) < 1:
            raise ValueError("k: numbers of neighbours are positive")
        return self


class EvaluateVerb(Verb):
    """Score encoders."""

    name: ClassVar[str] = "evaluate"
    Settings = EvaluateSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: EvaluateSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of the labels, and of bundles and chips that are not made in this run."""
        labels = _labels(settings, context.table(settings.labels))
        facts = store_facts(settings, context)
        facts["labels"] = hashlib.sha256(labels.to_csv(index=False).encode()).hexdigest()
        facts["bundles"] = {
            name: bundle_digest(context.path(source))
            for name, source in settings.encoders.items()
            if source != RANDOM and not is_step(source, context)
        }
        return facts

    def plan(self, settings: EvaluateSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips and all models."""
        with needs_ml(settings.step):
            from geoeco.training import linear_probe  # noqa: F401
        _labels(settings, context.table(settings.labels))
        like = _likeness(settings, context)
        models = {
            name: planned_model(source, context, f"step {settings.step}: encoders.{name}")
            for name, source in settings.encoders.items()
            if not _is_random(source, context)
        }
        models |= {name: models[str(like)] for name in settings.encoders if name not in models}
        chips = ChipSource.of(settings, context)
        for name, model in models.items():
            chips.check_bands(model.bands, f"the encoder {name!r}", f"step {settings.step}")
        depends, places = list(chips.depends), chips.places
        for source in dict.fromkeys(settings.encoders.values()):
            depends += tasks_of_model(source, context)
        images = 4 * places
        features = max(model.features for model in models.values()) * (4 if settings.combine == "concatenate" else 1)
        task = Task(
            f"{settings.step}/evaluate/all",
            payload={"labels": context.table(settings.labels), **chips.payload},
            depends=tuple(depends),
            memory_bytes=LIBRARIES_BYTES
            # as they are read, and as they are used
            + 2 * sum(model.weight_bytes for model in models.values())
            + settings.batch * max(model.size for model in models.values()) ** 2 * ACTIVATION_BYTES
            + images * 4 * max(model.features for model in models.values())
            + places * (4 * 4 * features + _SIMILARITIES * 8),
            bytes_in=sum(images * model.size**2 * 2 * len(model.bands) for model in models.values()),
            bytes_out=sum(images * 4 * model.features for model in models.values()),
        )
        return (Stage("evaluate", (task,), needs_all=False),)

    def run(self, settings: EvaluateSettings, task: Task, context: TaskContext) -> TaskResult:
        """Embed, probe, write the table and draw it."""
        from geoeco.mapping import device_of
        from geoeco.training import ProbeTask, evaluate

        for name, source in settings.encoders.items():
            check_made(source, context, f"the encoder {name!r}")
        device = device_of(settings.device)
        rows = evaluate(
            _encoders(settings, context, device),
            chips_of(task, context),
            _labels(settings, task.payload["labels"]),
            {
                name: ProbeTask(kind) if isinstance(kind, str) else ProbeTask(**kind.model_dump())
                for name, kind in settings.tasks.items()
            },
            folder=context.store.url(context.folder),
            protocols=settings.protocols,
            splits=settings.splits,
            combine=settings.combine,
            folds=settings.folds,
            seed=settings.fold_seed,
            block_m=settings.block_m,
            buffer_m=settings.buffer_m,
            keep_duplicates_together=settings.keep_duplicates_together,
            linear={
                "scale": settings.scale,
                "use": settings.use,
                "max_epochs": settings.max_epochs,
                "device": device,
            },
            knn={"k": settings.k, "temperature": settings.temperature, "device": device},
            batch=settings.batch,
            threads=settings.threads,
        )
        picture = score_chart(rows, context.scratch_path / "evaluation.png").read_bytes()
        context.store.write_bytes(f"{context.folder}/evaluation.png", picture)
        outputs = [
            _output(context, "evaluation.json", kind="table"),
            _output(context, "evaluation_details.json", kind="metadata"),
            _output(context, "evaluation.png", kind="quicklook", title=_caption(settings)),
        ]
        return TaskResult(digest=str(outputs[0].sha256), outputs=tuple(outputs), stats={"rows": len(rows)})

    def open(self, settings: EvaluateSettings, context: RunContext) -> pd.DataFrame:
        """Read the table of scores."""
        return pd.read_json(io.BytesIO(context.store.read_bytes(f"{context.folder}/evaluation.json")))


def _caption(settings: EvaluateSettings) -> str:
    return f"Main score of each task, mean over {settings.folds} folds; the bars' lines are one standard deviation"


def _output(context: TaskContext, file: str, *, kind: str, title: str = "") -> Output:
    content = context.store.read_bytes(f"{context.folder}/{file}")
    digest = hashlib.sha256(content).hexdigest()
    return Output(f"{context.folder}/{file}", len(content), digest, kind=kind, title=title)


def _labels(settings: EvaluateSettings, path: str) -> pd.DataFrame:
    """Table of labels: names and the columns that the tasks ask for, without geometries."""
    table = read_table(path)
    wanted = ["name"]
    for name, task in settings.tasks.items():
        wanted += (task.columns if isinstance(task, EvaluationTask) else ()) or (name,)
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise InputError(
            f"the table of labels has no column {missing[0]!r}",
            where=path,
            what_to_do=f"its columns are: {', '.join(map(str, table.columns))}",
            code="recipe",
        )
    return pd.DataFrame({column: table[column].to_numpy() for column in dict.fromkeys(wanted)})


def _is_random(source: str, context: PlanContext | TaskContext) -> bool:
    return source == RANDOM and not is_step(source, context)


def _likeness(settings: EvaluateSettings, context: PlanContext | TaskContext) -> str | None:
    """Name of the encoder whose architecture those with random weights take; None where there are none of them."""
    trained = [name for name, source in settings.encoders.items() if not _is_random(source, context)]
    if len(trained) == len(settings.encoders):
        return None
    like = settings.random_like or next(iter(trained), None)
    if like not in trained:
        raise InputError(
            "random weights need the architecture of another encoder",
            where=f"step {settings.step}",
            what_to_do="name a pretrain step or a bundle beside it, by random_like where there are several",
            code="recipe",
        )
    return like


def _encoders(settings: EvaluateSettings, context: TaskContext, device: str) -> dict[str, ModelBundle]:
    """Load the bundles, and draw the weights of those that are to be random."""
    from geoeco.training import ModelBundle, untrained

    loaded = {
        name: ModelBundle.load(bundle_url(source, context), device=device)
        for name, source in settings.encoders.items()
        if not _is_random(source, context)
    }
    like = _likeness(settings, context)
    found = {}
    for name in settings.encoders:
        if name in loaded:
            found[name] = loaded[name]
            continue
        assert like is not None, "an encoder that is not loaded is random"
        seed = int.from_bytes(hashlib.sha256(f"{context.seed}:{name}".encode()).digest()[:7], "big")
        found[name] = untrained(loaded[like], seed=seed, name=name)
    return found
