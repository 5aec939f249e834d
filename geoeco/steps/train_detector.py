"""The verb ``train_detector``: a detector of crowns learned from chips with crowns, as a model bundle with its scores.

One task, which goes on from its last checkpoint. Settings and bookkeeping only; training is
`geoeco.training.train_detector`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from geoeco.engine import PlanContext, RecipePath, RunContext, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.outputs.learning_curves import learning_curve
from geoeco.sampling import open_uav_chips
from geoeco.steps.bundles import ModelVerb, PlannedModel
from geoeco.steps.crown_tables import crowns_of_chips
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
from geoeco.steps.uav_chips import UavChipsSettings
from geoeco.steps.uav_sources import UavChipSource, UavChipSourceSettings, uav_chips_of, uav_store_facts

__all__ = ["TrainDetectorSettings", "TrainDetectorVerb"]

#: What the heads keep of a box for the backward pass, for each channel: 7 x 7 cells, and of every fourth 14 x 14 cells
#: through four convolutions, with their gradients.
_BOX_BYTES = 2 * 4 * (49 + 10 * 196 // 4)
#: Masks of objects as they are pasted into a chip, bytes a pixel, and how many there are at most.
_MASK_BYTES, _MOST = 12, 200


class TrainDetectorSettings(FittingSettings, UavChipSourceSettings):
    """Which network, from which chips, and how."""

    verb: Literal["train_detector"] = "train_detector"
    backbone: str = Field("resnet50", description="a residual network of timm's")
    masks: bool = Field(True, description="outlines (Mask R-CNN), or boxes alone (Faster R-CNN)")
    channels: int = Field(256, ge=8, multiple_of=8, description="of the pyramid and the heads")
    boxes: int = Field(512, ge=4, description="boxes of a chip that the heads learn from in a step; fewer are faster")
    most: int = Field(200, ge=1, le=_MOST, description="objects of a chip or tile that are found, at most")
    species: bool = Field(False, description="tell the species of crowns apart (crown_class of the chips), or not")
    anchors_m: tuple[float, ...] | None = Field(
        None, description="five ascending sides of anchors, metres; chosen by the training crowns if null"
    )
    encoder_weights: RecipePath = Field("random", description="of the encoder: random, or a .safetensors file")
    epochs: int = Field(50, ge=1, description="times through the chips")
    batch: int = Field(4, ge=1, description="chips a step, at most all")
    lr: float = Field(2e-4, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="course of the rate over the steps")
    flips: bool = Field(True, description="whether chips are mirrored and turned at random")
    colour: float = Field(0.1, ge=0, lt=1, description="how far brightness, contrast and saturation vary")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")

    @field_validator("anchors_m")
    @classmethod
    def _five(cls, sides: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if sides is not None and (len(sides) != 5 or sorted(set(sides)) != list(sides) or sides[0] <= 0):
            raise ValueError("give five ascending sides above 0")
        return sides

    @field_validator("encoder_weights")
    @classmethod
    def _known(cls, weights: str) -> str:
        if weights != "random" and not weights.endswith(".safetensors"):
            raise ValueError("give random or the path of a .safetensors file")
        return weights


class TrainDetectorVerb(ModelVerb):
    """Learn to find crowns."""

    name: ClassVar[str] = "train_detector"
    Settings = TrainDetectorSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: TrainDetectorSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of chips and of weights that are not made in this run."""
        facts: dict[str, Any] = {}
        if settings.encoder_weights != "random":
            facts["encoder_weights"] = sha256_of(outside_file(context.path(settings.encoder_weights)))
        if settings.store is not None:
            facts["store"] = uav_store_facts(context.path(settings.store))
        return facts

    def plan(self, settings: TrainDetectorSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips."""
        chips = _chips(settings, context)
        weight_bytes = _weight_bytes(settings, chips)
        payload = dict(chips.payload)
        if settings.encoder_weights != "random":
            payload["encoder_weights"] = context.path(settings.encoder_weights)
        pixels = chips.size**2
        passing = settings.batch * (pixels * GRADIENT_BYTES + settings.boxes * _BOX_BYTES * settings.channels)
        read = settings.batch * pixels * 24 * (len(chips.bands) + 2)
        task = Task(
            f"{settings.step}/training/all",
            payload=payload,
            depends=chips.depends,
            less_memory=settings.less_memory,
            memory_bytes=TRAINING_LIBRARIES_BYTES
            + 7 * weight_bytes
            + passing
            + read
            + (settings.batch + 1) * _MOST * pixels * _MASK_BYTES,
            bytes_out=7 * weight_bytes,
        )
        return (Stage("training", (task,), needs_all=False),)

    def model(self, settings: TrainDetectorSettings, context: PlanContext) -> PlannedModel:
        """What the bundle will be."""
        chips = _chips(settings, context)
        return PlannedModel(
            name=settings.step,
            bands=chips.bands,
            units="1",
            resolution=chips.resolution,
            size=chips.size,
            task="detection",
            features=1,
            weight_bytes=_weight_bytes(settings, chips),
            classes=chips.crown_classes if settings.species else ("crown",),
        )

    def run(self, settings: TrainDetectorSettings, task: Task, context: TaskContext) -> TaskResult:
        """Train, or go on with a training, and put bundle, curve and scores into the step's folder."""
        from geoeco.training import train_detector

        root = TrainingFiles(context)
        root.fetch()
        store = uav_chips_of(task, context)
        bundle = train_detector(
            store,
            root.path,
            backbone=settings.backbone,
            masks=settings.masks,
            channels=settings.channels,
            boxes=settings.boxes,
            most=settings.most,
            anchors_m=settings.anchors_m,
            species=_species(task, context, store) if settings.species else None,
            encoder_weights=task.payload.get("encoder_weights", "random"),
            epochs=settings.epochs,
            batch=settings.batch,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            flips=settings.flips,
            colour=settings.colour,
            **fitting_options(settings, context, root),
        )
        steps = read_columns(root.path / "logs" / "metrics.csv")
        title = f"{context.recipe.name}: {context.folder}, {bundle.description}"
        learning_curve(
            {"step": steps["step"], "loss_crowns": steps["loss"]}, root.path / "learning_curve.png", title=title
        )
        outputs = root.put_bundle(applicability=False)
        outputs += [
            root.put("logs/metrics.csv", "table"),
            root.put("evaluation.json", "table"),
            root.put("learning_curve.png", "quicklook", title=f"Learning curve of {context.folder}"),
        ]
        stats = {name: bundle.notes[name] for name in ("chips", "encoder", "scores")}
        return TaskResult(digest=bundle.fingerprint(), outputs=tuple(outputs), stats=stats)

    def open(self, settings: TrainDetectorSettings, context: RunContext) -> Any:
        """Load the bundle."""
        from geoeco.training import ModelBundle

        return ModelBundle.load(context.store.url(f"{context.folder}/bundle"))


def _weight_bytes(settings: TrainDetectorSettings, chips: UavChipSource) -> int:
    with needs_ml(settings.step):
        from geoeco.training import detector_bytes
    return detector_bytes(
        settings.backbone,
        len(chips.bands),
        masks=settings.masks,
        channels=settings.channels,
        frozen_norm=settings.encoder_weights != "random",
        num_classes=len(chips.crown_classes) if settings.species else 1,
    )


def _species(task: Task, context: TaskContext, store: str) -> dict[int, str]:
    """Species of the crowns that have one, by their number."""
    crowns = crowns_of_chips(task, context, store)
    named = zip(crowns["crown_id"], crowns["class_name"].fillna("").astype(str), strict=True)
    return {int(number): name for number, name in named if name}


def _chips(settings: TrainDetectorSettings, context: PlanContext) -> UavChipSource:
    """Chips of a grid or of places drawn, with crowns.

    Raises
    ------
    InputError
        If they are of single crowns, or have no crowns or sets.
    """
    found = UavChipSource.of(settings, context)
    where = f"step {settings.step}"
    if found.kind == "crown":
        raise InputError(
            f"the chips ({found.where}) are cut round crowns: a detector would learn that one is always in the middle",
            where=where,
            what_to_do="make them with kind: grid",
            code="chips",
        )
    if settings.store is None:
        cut = context.step(settings.chips, verb="uav_chips").settings
        assert isinstance(cut, UavChipsSettings), "the verb uav_chips has these settings"
        lacking = "crowns" if cut.crowns is None else "split" if cut.split is None else ""
    else:
        lacking = "" if "instance" in open_uav_chips(found.where) else "crowns"
    if settings.species and (settings.store is not None or not found.crown_classes):
        raise InputError(
            f"the chips ({found.where}) do not say which crown is of which species",
            where=where,
            what_to_do="take those of a step of the recipe, with crown_class",
            code="classes",
        )
    if lacking:
        raise InputError(
            f"the chips ({found.where}) have no {lacking}", where=where, what_to_do=f"give {lacking}", code="crowns"
        )
    return found
