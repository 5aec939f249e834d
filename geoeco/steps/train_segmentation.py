"""The verb ``train_segmentation``: a habitat network learned from labelled chips of an orthomosaic, as a model bundle.

One task, which goes on from its last checkpoint. Settings and bookkeeping only; training is
`geoeco.training.train_segmentation`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from geoeco.engine import PlanContext, RecipePath, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.outputs.confusion_charts import confusion_chart
from geoeco.sampling import open_uav_chips
from geoeco.steps.bundles import ModelVerb, PlannedModel
from geoeco.steps.training_files import (
    GRADIENT_BYTES,
    TRAINING_LIBRARIES_BYTES,
    FittingSettings,
    TrainingFiles,
    fitting_options,
    needs_ml,
    outside_file,
    sha256_of,
    trained_outputs,
)
from geoeco.steps.uav_chips import UavChipsSettings
from geoeco.steps.uav_sources import UavChipSource, UavChipSourceSettings, uav_chips_of, uav_store_facts

__all__ = ["TrainSegmentationSettings", "TrainSegmentationVerb"]

#: Label of pixels that are not known.
_IGNORE = 255
#: Bytes that the losses and their gradients take for each class of a pixel that passes the network.
_LOSS_BYTES = 160
#: Bytes of a pixel of a chip of a batch for each of its bands, and beside them: stored, as values, recoloured, turned.
_BAND_BYTES, _LABEL_BYTES = 24, 40
#: What the fit of the area of applicability takes.
_APPLICABILITY_BYTES = 384 * 2**20

Argument = str | int | float | bool


class TrainSegmentationSettings(FittingSettings, UavChipSourceSettings):
    """Which network, from which chips, and how."""

    verb: Literal["train_segmentation"] = "train_segmentation"
    network: Literal["dwff", "smp", "conv_stack"] = Field(
        "dwff", description="DWFF-Net; a network of segmentation-models-pytorch; a stack of convolutions"
    )
    arguments: dict[str, Argument] = Field(
        default={},
        description="of the network: backbone, fusion and taps; model and encoder; width, layers and kernel",
    )
    encoder_weights: RecipePath = Field(
        "random", description="of DWFF-Net's frozen encoder: random, a name of timm's weights, or a .safetensors file"
    )
    normalisation: Literal["auto", "data", "sat493m"] = Field(
        "auto", description="scaling of bands: of published encoder weights, else of the training chips"
    )
    size: int | None = Field(None, ge=8, le=8192, description="pixels along a side of windows; whole chips if null")
    min_label: float = Field(0.05, gt=0, le=1, description="chips with a smaller share of labels are not used")
    unscored: tuple[str, ...] | None = Field(
        None, description="classes that are learned but left out of scores; background if null"
    )
    epochs: int | None = Field(None, ge=1, description="times through the chips; the network's own if null")
    batch: int | None = Field(None, ge=1, description="chips a step; the network's own, at most all, if null")
    at_once: int | None = Field(None, ge=1, description="chips that pass the network together")
    lr: float | None = Field(None, gt=0, description="learning rate of AdamW; the network's own if null")
    weight_decay: float | None = Field(None, ge=0, description="of AdamW; the network's own if null")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="course of the rate over the epochs")
    patience: int | None = Field(
        None, ge=1, description="epochs without a higher mean IoU of validation after which the training ends"
    )
    dice: float = Field(0.5, ge=0, description="share of the Dice loss")
    focal: float = Field(0.5, ge=0, description="share of the focal loss, summed over classes")
    cross_entropy: float = Field(0.0, ge=0, description="share of the cross-entropy")
    entropy: float = Field(0.01, ge=0, description="reward for the entropy of the levels' weights (DWFF)")
    class_weights: dict[str, float] | Literal["inverse-root"] | None = Field(
        None, description="weights of classes in the loss, 1 for others; inverse-root: 1 / sqrt(share of pixels)"
    )
    photos: str | None = Field(
        None, description="table of the inputs with photo points: lon, lat, radius_m and a probability for each class"
    )
    photo_radius_m: float | None = Field(
        None, gt=0, description="of the photos' footprints, where the table has no column of it"
    )
    photo_weight: float = Field(1.0, gt=0, description="weight of the photos' loss")
    flips: bool = Field(True, description="whether chips are mirrored and turned at random")
    colour: float = Field(0.1, ge=0, lt=1, description="how far brightness, contrast and saturation vary")
    boundary_tolerance_m: float = Field(0.3, ge=0, description="reach of the boundary F1, metres")
    applicability_points: int = Field(
        4096, ge=0, le=65_536, description="cells that the area of applicability rests on, at most; 0 for none"
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.network != "dwff" and self.encoder_weights != "random":
            raise ValueError("encoder_weights are for dwff: other networks are learned whole, from random weights")
        if not self.dice + self.focal + self.cross_entropy > 0:
            raise ValueError("one of dice, focal and cross_entropy must be above 0")
        taken = {"in_channels", "num_classes", "encoder_weights"} & set(self.arguments)
        if taken:
            raise ValueError(f"{min(taken)} is no argument: the chips or another setting say it")
        return self

    @property
    def weights_file(self) -> bool:
        """Whether the weights of the encoder come from a file."""
        return self.encoder_weights.endswith(".safetensors")


class TrainSegmentationVerb(ModelVerb):
    """Train a habitat network."""

    name: ClassVar[str] = "train_segmentation"
    Settings = TrainSegmentationSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: TrainSegmentationSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of chips and of weights that are not made in this run."""
        facts: dict[str, Any] = {}
        if settings.photos is not None:
            facts["photos"] = sha256_of(outside_file(context.table(settings.photos)))
        if settings.weights_file:
            facts["encoder_weights"] = sha256_of(outside_file(context.path(settings.encoder_weights)))
        if settings.store is not None:
            facts["store"] = uav_store_facts(context.path(settings.store))
        return facts

    def plan(self, settings: TrainSegmentationSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips."""
        chips = _chips(settings, context)
        where = f"step {settings.step}"
        _check_classes(chips, where)
        expected = _expected(settings, chips)
        side = settings.size or chips.size
        if side > chips.size or side % expected.stride:
            raise InputError(
                f"windows of {side} pixels do not fit: the chips have {chips.size}, "
                f"the network takes multiples of {expected.stride}",
                where=where,
                what_to_do=f"give size: {min(side, chips.size) // expected.stride * expected.stride}"
                if min(side, chips.size) >= expected.stride
                else "make larger chips",
                code="stride",
            )
        payload = dict(chips.payload)
        if settings.photos is not None:
            payload["photos"] = context.table(settings.photos)
        if settings.weights_file:
            payload["encoder_weights"] = context.path(settings.encoder_weights)
        trained = expected.weight_bytes - expected.frozen_bytes
        task = Task(
            f"{settings.step}/training/all",
            payload=payload,
            depends=chips.depends,
            less_memory=settings.less_memory,
            memory_bytes=_memory(settings, chips, side, trained, expected.frozen_bytes),
            # two checkpoints with the moments and the best weights, and the bundle
            bytes_out=8 * trained + trained + expected.frozen_bytes,
        )
        return (Stage("training", (task,), needs_all=False),)

    def model(self, settings: TrainSegmentationSettings, context: PlanContext) -> PlannedModel:
        """What the bundle will be."""
        chips = _chips(settings, context)
        _check_classes(chips, f"step {settings.step}")
        expected = _expected(settings, chips)
        colours = tuple(colour for _, _, colour in chips.classes)
        return PlannedModel(
            name=settings.step,
            bands=chips.bands,
            units="1",
            resolution=chips.resolution,
            size=settings.size or chips.size,
            task="segmentation",
            features=len(chips.classes),
            weight_bytes=expected.weight_bytes,
            classes=tuple(name for _, name, _ in chips.classes),
            codes=tuple(code for code, _, _ in chips.classes),
            colours=colours if all(colours) else (),
            stride=expected.stride,
            halo=expected.radius,
        )

    def run(self, settings: TrainSegmentationSettings, task: Task, context: TaskContext) -> TaskResult:
        """Train, or go on with a training, and put bundle, curves, scores and checkpoints into the step's folder."""
        from geoeco.training import train_segmentation

        root = TrainingFiles(context)
        root.fetch()
        bundle = train_segmentation(
            uav_chips_of(task, context),
            root.path,
            network=settings.network,
            arguments=settings.arguments,
            encoder_weights=task.payload.get("encoder_weights") or settings.encoder_weights,
            normalisation=settings.normalisation,
            size=settings.size,
            min_label=settings.min_label,
            unscored=settings.unscored,
            epochs=settings.epochs,
            batch=settings.batch,
            at_once=settings.at_once,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            patience=settings.patience,
            dice=settings.dice,
            focal=settings.focal,
            cross_entropy=settings.cross_entropy,
            entropy=settings.entropy,
            class_weights=settings.class_weights,
            photos=task.payload.get("photos"),
            photo_radius_m=settings.photo_radius_m,
            photo_weight=settings.photo_weight,
            flips=settings.flips,
            colour=settings.colour,
            boundary_tolerance_m=settings.boundary_tolerance_m,
            applicability_points=settings.applicability_points,
            **fitting_options(settings, context, root),
        )
        outputs = trained_outputs(context, root, bundle, score="miou", highest=True)
        last = json.loads((root.path / "evaluation_details.json").read_bytes())["results"][-1]
        confusion_chart(
            np.array(last["confusion"]),
            bundle.classes,
            root.path / "confusion.png",
            title=f"{context.recipe.name}: {context.folder}, set {last['split']}",
        )
        outputs += [
            root.put("confusion.csv", "table"),
            root.put("confusion.png", "quicklook", title=f"Confusion matrix of {context.folder}"),
        ]
        stats = {name: bundle.notes[name] for name in ("chips", "epochs", "best_epoch", "encoder", "scores")}
        return TaskResult(digest=bundle.fingerprint(), outputs=tuple(outputs), stats=stats)


def _chips(settings: TrainSegmentationSettings, context: PlanContext) -> UavChipSource:
    """Chips with labels, and with places to learn and to choose by.

    Raises
    ------
    InputError
        If they have no labels or no such sets.
    """
    found = UavChipSource.of(settings, context)
    if settings.store is None:
        cut = context.step(settings.chips, verb="uav_chips").settings
        assert isinstance(cut, UavChipsSettings), "the verb uav_chips has these settings"
        lacking = "labels" if cut.labels is None else "split" if cut.split is None else ""
        if lacking:
            raise InputError(
                f"the chips ({found.where}) have no {lacking}",
                where=f"step {settings.step}",
                what_to_do=f"give that step {lacking}",
                code="labels",
            )
        return found
    chips = open_uav_chips(found.where)
    if "label" not in chips:
        raise InputError(
            "the chips have no labels", where=found.where, what_to_do="make them with a raster of labels", code="labels"
        )
    names = [str(name) for name in chips.attrs["splits"]]
    for part in ("train", "val"):
        if names.index(part) not in chips["split"].values:
            raise InputError(
                f"the set {part!r} of the chips is empty",
                where=found.where,
                what_to_do="make the chips with a split that leaves chips in train and in val",
                code="empty-split",
            )
    return found


def _check_classes(chips: UavChipSource, where: str) -> None:
    names = [name for code, name, _ in chips.classes if code != _IGNORE]
    if len(names) < 2:
        raise InputError(
            f"the labels name {len(names)} classes: {', '.join(names) or 'none'}",
            where=where,
            what_to_do="give a raster of labels that names two classes or more (category names, or an attribute table)",
            code="one-class",
        )


def _expected(settings: TrainSegmentationSettings, chips: UavChipSource) -> Any:
    """What the network will be like.

    Raises
    ------
    InputError
        If it cannot be made, or the extra is not installed.
    """
    with needs_ml(settings.step):
        from geoeco.training import expect_segmenter, segmenter_arguments
    arguments = segmenter_arguments(
        settings.network, settings.arguments, bands=len(chips.bands), classes=len(chips.classes)
    )
    return expect_segmenter(settings.network, arguments)


def _memory(settings: TrainSegmentationSettings, chips: UavChipSource, side: int, trained: int, frozen: int) -> int:
    """Upper bound of what a training holds in the memory of the machine, bytes, as if it ran on a CPU.

    The network with gradient, two moments, the best weights and copies for checkpoint and bundle; a batch as stored,
    as values and turned; what the forward pass keeps of the chips that pass it together, and the losses of each class.
    """
    from geoeco.training import SEGMENTER_DEFAULTS

    usual = SEGMENTER_DEFAULTS[settings.network]
    batch, at_once = settings.batch or usual.batch, settings.at_once or usual.at_once
    pixels = side * side
    passing = min(at_once, batch) * pixels * (GRADIENT_BYTES + _LOSS_BYTES * len(chips.classes))
    read = batch * pixels * (_BAND_BYTES * len(chips.bands) + _LABEL_BYTES)
    return TRAINING_LIBRARIES_BYTES + _APPLICABILITY_BYTES + 8 * trained + 4 * frozen + passing + read
