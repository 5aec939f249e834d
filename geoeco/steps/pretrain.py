"""The verb ``pretrain``: an encoder learned from season chips without labels, as a model bundle.

One task, which goes on from its last checkpoint. Settings and bookkeeping only; training is
`geoeco.training.pretrain`'s.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geoeco.cubes.shards import Objects
from geoeco.engine import (
    PlanContext,
    Stage,
    Task,
    TaskContext,
    TaskResult,
)
from geoeco.errors import InputError
from geoeco.outputs.learning_curves import learning_curve
from geoeco.steps.bundles import ModelVerb, PlannedModel
from geoeco.steps.chip_sources import ChipSource, ChipSourceSettings, chips_of, store_facts
from geoeco.steps.radiometry import known_bands
from geoeco.steps.training_files import (
    GRADIENT_BYTES,
    TRAINING_LIBRARIES_BYTES,
    FittingSettings,
    TrainingFiles,
    fitting_options,
    needs_ml,
    outside_file,
    read_columns,
    sha256_of,
)

if TYPE_CHECKING:
    from geoeco.training import ExpectedEncoder

__all__ = ["PretrainSettings", "PretrainVerb", "ViewSettings"]

Part = Literal["train", "val", "test", "all"]
_HUB_NAME = re.compile(r"[A-Za-z0-9_]+_Weights\.\w+")


class ViewSettings(BaseModel):
    """Augmentation, where it differs from SSL4Eco's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scale: tuple[float, float] = Field((0.2, 1.0), description="smallest and largest area of a crop")
    ndvi: Literal["recompute", "jitter", "leave"] = Field(
        "recompute", description="what becomes of NDVI where colours are jittered; jitter is what SSL4Eco does"
    )
    colour: float = Field(0.4, ge=0, le=1, description="strength of brightness and contrast")
    colour_probability: float = Field(0.8, ge=0, le=1, description="share of views with jittered colours")
    grey_probability: float = Field(0.2, ge=0, le=1, description="share of grey views")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="smallest and largest blur, pixels")
    blur_probability: float = Field(0.5, ge=0, le=1, description="share of blurred views")
    flip_probability: float = Field(0.5, ge=0, le=1, description="share of flipped views")


class PretrainSettings(FittingSettings, ChipSourceSettings):
    """What is trained, on which chips, and how."""

    unhashed: ClassVar[frozenset[str]] = FittingSettings.unhashed | {"compile_networks"}

    verb: Literal["pretrain"] = "pretrain"
    part: Part | None = Field(None, description="set of the split to train on; train where there is a split, else all")
    bands: tuple[str, ...] = Field(
        ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A"), description="reflectance bands"
    )
    ndvi: bool = Field(True, description="whether NDVI is a channel too, the last one")
    min_valid: float = Field(0.99, ge=0, le=1, description="chips with a smaller valid part are not used")
    method: Literal["seco", "moco", "none"] = Field(
        "seco", description="season contrast; MoCo v2 as its control; none for random weights, the control of both"
    )
    backbone: str = Field("resnet50", description="a network of timm")
    size: int = Field(224, ge=8, le=2048, description="pixels along a side of the views")
    views: ViewSettings = Field(ViewSettings(), description="augmentation")
    normalisation: Literal["measured", "seco-eco"] = Field(
        "measured", description="mean and spread of the chips, or the scale that SeCo-Eco was trained on"
    )
    epochs: int = Field(100, ge=1, description="times through the locations")
    batch: int = Field(256, ge=2, description="locations a step")
    lr: float = Field(0.03, gt=0, description="learning rate for a batch of 256; scaled with the batch")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="course of the learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="of SGD")
    temperature: float = Field(0.2, gt=0, description="of the softmax; 0.07 in SeCo's paper")
    queue: int | None = Field(
        None, ge=1, description="keys a queue holds; 65 536, at most half of the locations, when not given"
    )
    dim: int = Field(128, ge=1, description="length of the projections")
    key_momentum: float = Field(0.999, ge=0, le=1, description="share that the key branch keeps of itself")
    norm_splits: int = Field(1, ge=1, description="parts of a batch with statistics of their own")
    group_norm: bool = Field(False, description="normalise within each sample, in place of batch normalisation")
    initial_weights: str | None = Field(
        None, description="torchgeo's name of weights, or a file; random when not given"
    )
    bare_weight: float = Field(1.0, gt=0, description="how often bare places are drawn; 0.25 in SSL4Eco's paper")
    favoured: str | None = Field(
        None, description="a table of the inputs, by name, with 'name' of places drawn twice as often, or 'weight'"
    )
    compile_networks: bool = Field(False, description="whether torch.compile is used")

    @field_validator("bands")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_bands(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.bands and not self.ndvi:
            raise ValueError("give at least one band")
        if (
            self.ndvi
            and self.views.ndvi == "recompute"
            and self.method != "none"
            and not {"B04", "B08"} <= set(self.bands)
        ):
            raise ValueError("views make NDVI anew from B04 and B08: add these bands, or set views.ndvi to leave")
        if self.queue is not None and self.method != "none" and self.queue % self.batch:
            raise ValueError(f"the queue of {self.queue} is no multiple of the batch of {self.batch}")
        if self.group_norm and self.norm_splits > 1:
            raise ValueError("group_norm leaves no batch normalisation to split: leave norm_splits at 1")
        if self.batch % self.norm_splits:
            raise ValueError(f"norm_splits of {self.norm_splits} does not divide the batch of {self.batch}")
        return self

    @property
    def all_bands(self) -> tuple[str, ...]:
        """Channels of the network."""
        return (*self.bands, "ndvi") if self.ndvi else self.bands


class PretrainVerb(ModelVerb):
    """Train an encoder on season chips."""

    name: ClassVar[str] = "pretrain"
    Settings = PretrainSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: PretrainSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of what is read from outside the run."""
        facts = store_facts(settings, context)
        if settings.favoured is not None:
            facts["favoured"] = sha256_of(outside_file(context.table(settings.favoured)))
        if settings.initial_weights is not None and not _HUB_NAME.fullmatch(settings.initial_weights):
            facts["initial_weights"] = sha256_of(outside_file(context.path(settings.initial_weights)))
        return facts

    def plan(self, settings: PretrainSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after all chips."""
        model = self.model(settings, context)
        if settings.initial_weights is not None:
            _expected(settings, _initial(settings.initial_weights, context))
        source = ChipSource.of(settings, context)
        where = f"step {settings.step}"
        source.check_bands(settings.all_bands, "the training", where)
        if settings.part not in (None, "all") and not source.has_split:
            raise InputError(
                f"the set {settings.part!r} is asked for, and the chips ({source.where}) have no split",
                where=where,
                what_to_do="give the chips step a split, or set part to all",
            )
        payload = dict(source.payload)
        if settings.favoured is not None:
            payload["favoured"] = context.table(settings.favoured)
        task = Task(
            f"{settings.step}/training/all",
            payload=payload,
            depends=source.depends,
            less_memory=settings.less_memory,
            memory_bytes=training_memory(settings, model.weight_bytes, on_gpu=_on_gpu(settings)),
            bytes_out=6 * model.weight_bytes,
        )
        return (Stage("training", (task,), needs_all=False),)

    def model(self, settings: PretrainSettings, context: PlanContext) -> PlannedModel:
        """What the bundle will be, from the network's shape alone."""
        expected = _expected(settings)
        return PlannedModel(
            name=settings.step,
            bands=settings.all_bands,
            units="1",
            resolution=10.0,
            size=settings.size,
            task="embedding",
            features=expected.features,
            weight_bytes=expected.weight_bytes,
        )

    def run(self, settings: PretrainSettings, task: Task, context: TaskContext) -> TaskResult:
        """Train, or go on with a training, and put bundle, curve and checkpoints into the step's folder."""
        from geoeco.training import pretrain

        chips = chips_of(task, context)
        root = TrainingFiles(context)
        root.fetch()
        bundle = pretrain(
            chips,
            root.path,
            method=settings.method,
            backbone=settings.backbone,
            bands=settings.all_bands,
            names=_names(settings.part, chips),
            min_valid=settings.min_valid,
            size=settings.size,
            views=settings.views.model_dump(),
            normalisation=settings.normalisation,
            epochs=settings.epochs,
            batch=settings.batch,
            lr=settings.lr,
            schedule=settings.schedule,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            temperature=settings.temperature,
            queue=settings.queue,
            dim=settings.dim,
            key_momentum=settings.key_momentum,
            norm_splits=settings.norm_splits,
            group_norm=settings.group_norm,
            initial_weights=_initial(settings.initial_weights, context),
            bare_weight=settings.bare_weight,
            favoured=_favoured(task.payload.get("favoured")),
            compile_networks=settings.compile_networks,
            **fitting_options(settings, context, root),
        )
        curve = root.path / "logs" / "metrics.csv"
        stats: dict[str, Any] = {"locations": bundle.notes["locations"], "method": settings.method}
        outputs = root.put_bundle(applicability=False)
        if settings.method != "none":
            columns = read_columns(curve)
            title = f"{context.recipe.name}: {context.folder}, {bundle.description}"
            learning_curve(columns, root.path / "learning_curve.png", title=title)
            outputs += [
                root.put("logs/metrics.csv", "table"),
                root.put("learning_curve.png", "quicklook", title=f"Learning curve of {context.folder}"),
            ]
            stats |= {"steps": len(columns["step"]), "loss": round(columns["loss"][-1], 6)}
        return TaskResult(digest=bundle.fingerprint(), outputs=tuple(outputs), stats=stats)


def _expected(settings: PretrainSettings, weights: str | None = None) -> ExpectedEncoder:
    """Shape of the encoder; weights that it is to start from must be its own."""
    with needs_ml(settings.step):
        from geoeco.training import expect_encoder
    return expect_encoder(
        settings.backbone,
        len(settings.all_bands),
        size=settings.size,
        norm_splits=settings.norm_splits,
        group_norm=settings.group_norm,
        weights=weights,
    )


def training_memory(settings: PretrainSettings, weight_bytes: int, *, on_gpu: bool) -> int:
    """Upper bound of what a training holds in the memory of the machine, bytes; a GPU's own is not counted.

    Two branches with gradient, momentum and a copy for the checkpoint; queues and their copy; batches as stored; on a
    CPU as reflectance and as views too, and what the forward pass keeps.
    """
    if settings.method == "none":
        return TRAINING_LIBRARIES_BYTES + 4 * weight_bytes
    bands = len(settings.all_bands)
    chip = 264**2 * bands * settings.batch
    held = TRAINING_LIBRARIES_BYTES + 8 * weight_bytes + 3 * (4 * 3 * settings.dim * (settings.queue or 65536))
    if on_gpu:
        # three dates as stored, of each worker the batches that it has ready
        return held + 2 * 3 * 2 * chip * (1 + (16 if settings.workers is None else settings.workers))
    return held + 3 * 12 * chip + settings.size**2 * settings.batch * (6 * 4 * bands + GRADIENT_BYTES)


def _on_gpu(settings: PretrainSettings) -> bool:
    """Whether the training will run on a GPU, as far as can be told on the machine that plans."""
    from geoeco.training import has_gpu

    return settings.device == "cuda" or (settings.device == "auto" and has_gpu())


def _names(part: Part | None, store: str) -> list[str] | None:
    """Locations of a set of the split; None for all."""
    body = None if part == "all" else Objects(store.rstrip("/")).get("split.parquet")
    if body is None:
        return None
    try:
        table = pd.read_parquet(io.BytesIO(body), columns=["name", "split"])
    # pyarrow's errors are among these
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"split.parquet is no table of names and sets: {error}", where=store, what_to_do="make the split again"
        ) from error
    names = [str(name) for name in table.loc[table["split"] == (part or "train"), "name"]]
    if not names:
        raise InputError(
            f"the set {part or 'train'!r} of the split is empty",
            where=store,
            what_to_do="use more places, other fractions or smaller blocks, or set part to all",
            code="no-locations",
        )
    return names


def _favoured(path: str | None) -> dict[str, float] | tuple[()]:
    if path is None:
        return ()
    body = io.BytesIO(outside_file(path))
    table = pd.read_parquet(body) if path.endswith(".parquet") else pd.read_csv(body)
    if "name" not in table:
        raise InputError("the table of favoured places has no column 'name'", where=path)
    weights = table["weight"].astype(float) if "weight" in table else [2.0] * len(table)
    return dict(zip(table["name"].astype(str), weights, strict=True))


def _initial(source: str | None, context: PlanContext | TaskContext) -> str | None:
    return source if source is None or _HUB_NAME.fullmatch(source) else context.path(source)
