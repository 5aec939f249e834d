"""The verb ``weak_coarse``: a classifier of patches, learned from labels of whole images, as a model bundle.

One task. Settings and bookkeeping only; learning is `geoeco.training.learn_patches`'s, and maps are those of the verb
``coarse_map``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from geoeco.cubes.shards import intact_shards
from geoeco.engine import PlanContext, Stage, Task, TaskContext, TaskResult
from geoeco.errors import InputError
from geoeco.outputs.chip_sheets import rgb_bytes
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.confusion_charts import confusion_chart
from geoeco.outputs.patch_sheets import patch_sheet
from geoeco.sampling import SceneClasses, chip_scenes, open_uav_chips, patch_classes, scene_table
from geoeco.sensors.orthomosaic import Orthomosaic, describe_orthomosaic
from geoeco.steps.bundles import ModelVerb, PlannedModel, bundle_url
from geoeco.steps.layers import digest_of
from geoeco.steps.model_costs import network_bytes
from geoeco.steps.starting_encoders import StartSettings, encoder_facts, planned_start, start_inputs
from geoeco.steps.training_files import TrainingFiles, needs_ml
from geoeco.steps.uav_sources import UavChipSource, UavChipSourceSettings, uav_chips_of, uav_store_facts

if TYPE_CHECKING:
    from geoeco.training import ConfusionMatrix, ModelBundle, Scenes

__all__ = ["WeakCoarseSettings", "WeakCoarseVerb"]

#: Files of the step beside the bundle.
TABLE, PICTURE, CONFUSION = "patches.csv", "patches.png", "confusion.png"
#: Sets that are not learned from, and scored.
_SCORED = ("val", "test")
#: Images of a class in the picture.
_SHOWN = 6
#: Least difference of pixel sizes of encoder and images that is refused, as a part.
_SAME_GSD = 1e-3
#: Bytes of each band of a pixel while an image is cut: as stored, as values, masked, as patches; squared for scaling.
_CUT_BYTES = 32


class WeakCoarseSettings(StartSettings, UavChipSourceSettings):
    """Which images, what their labels mean, and how patches are told apart."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})

    verb: Literal["weak_coarse"] = "weak_coarse"
    images: str | None = Field(
        None, description="table of the inputs with the columns image (a path) and label, in place of chips"
    )
    background: str = Field(description="class of the images that show nothing else")
    classes: dict[str, tuple[str, ...]] | None = Field(
        None, min_length=2, description="classes and the labels that count as each; each label is its own class if null"
    )
    min_presence: float = Field(
        0.05, gt=0, le=1, description="part of a chip's labelled pixels from which a class counts as there"
    )
    min_labelled: float = Field(
        0.5, ge=0, le=1, description="chips, and patches to be scored, of which a smaller part is labelled are not used"
    )
    bands: dict[str, int] | None = Field(
        None, description="of images: names of bands and their numbers in the file, where the file does not say"
    )
    scale: float | None = Field(None, gt=0, description="of images: value of one stored unit, if the file says none")
    gsd_m: float | None = Field(None, gt=0, description="of images without a place: metres along a pixel")
    target_gsd: float | None = Field(None, gt=0, description="of images: metres along a pixel to read them at")
    patch: int | None = Field(None, ge=4, le=4096, description="pixels along a side of a patch")
    patch_m: float | None = Field(None, gt=0, description="metres along a side of a patch, in place of pixels")
    min_similarity: float = Field(
        0.6, ge=-1, le=1, description="least cosine with background for a patch to be taken as background"
    )
    min_share: float = Field(0.5, gt=0, le=1, description="patches with a smaller valid part are not looked at")
    class_weights: dict[str, float] = Field({}, description="weights of the patches of classes in the loss, 1 if not")
    strength: float = Field(1.0, gt=0, description="of the penalty on the weights of the linear layer")
    batch: int = Field(64, ge=1, description="patches at a time; the last bits of the numbers depend on it")
    threads: int = Field(1, ge=1, le=256, description="threads; the last bits of the numbers depend on it")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.images is not None and not (self.chips is None and self.store is None):
            raise ValueError("give either images (a table) or chips")
        if (self.patch is None) == (self.patch_m is None):
            raise ValueError("give either patch (pixels) or patch_m (metres)")
        return self

    @property
    def scene(self) -> SceneClasses:
        """Which labels count as which class."""
        return SceneClasses.of(self.background, self.classes)


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """Images as known when a run is planned: pixels of the largest, bytes that reading one takes, pixels of all."""

    bands: tuple[str, ...]
    resolution: float
    classes: tuple[str, ...]
    codes: tuple[int, ...]
    colours: tuple[str, ...]
    pixels: int
    reading: int
    total: int
    payload: Mapping[str, Any]
    depends: tuple[str, ...]


class WeakCoarseVerb(ModelVerb):
    """Learn to tell patches apart from labels of whole images."""

    name: ClassVar[str] = "weak_coarse"
    Settings = WeakCoarseSettings
    uses_seed: ClassVar[bool] = True

    def fingerprint(self, settings: WeakCoarseSettings, context: PlanContext) -> Mapping[str, Any]:
        """Digests of images, chips, encoder and weights that are not made in this run."""
        facts = encoder_facts(settings.encoder, settings.network_weights, context)
        if settings.store is not None:
            facts["store"] = uav_store_facts(context.path(settings.store))
        if settings.images is not None:
            table, files = _files(settings, context.table(settings.images))
            facts["images"] = [
                [name, label, file.fingerprint]
                for name, label, file in zip(table["image"], table["label"], files, strict=True)
            ]
        return facts

    def plan(self, settings: WeakCoarseSettings, context: PlanContext) -> tuple[Stage, ...]:
        """One task, after the chips and the encoder."""
        images = _labelled(settings, context)
        model = self.model(settings, context)
        start, made = start_inputs(settings, context)
        patches = -(-images.total // model.size**2)
        task = Task(
            f"{settings.step}/training/all",
            payload={**images.payload, **start},
            depends=tuple(dict.fromkeys([*images.depends, *made])),
            memory_bytes=network_bytes(model, settings.batch)
            + 3 * model.weight_bytes
            + images.reading
            + images.pixels * len(images.bands) * _CUT_BYTES
            # features of all patches as they are, twice in double precision, and what the solver keeps
            + patches * _source(settings, context, images).features * 32
            + 256 * 2**20,
            bytes_in=2 * images.total * len(images.bands),
            bytes_out=2 * model.weight_bytes,
        )
        return (Stage("training", (task,)),)

    def model(self, settings: WeakCoarseSettings, context: PlanContext) -> PlannedModel:
        """What the bundle will be; classes that no image shows will be missing from it."""
        images = _labelled(settings, context)
        source = _source(settings, context, images)
        return PlannedModel(
            name=settings.step,
            bands=images.bands,
            units="1",
            resolution=source.resolution,
            size=_patch(settings, source.resolution),
            task="classification",
            features=len(images.classes),
            weight_bytes=source.weight_bytes + 4 * len(images.classes) * (source.features + 1),
            classes=images.classes,
            codes=images.codes,
            colours=images.colours,
        )

    def run(self, settings: WeakCoarseSettings, task: Task, context: TaskContext) -> TaskResult:
        """Learn, and put bundle, counts and a picture of the patches into the step's folder."""
        from geoeco.mapping import fixed_arithmetic
        from geoeco.training import ModelBundle, finite_scores, learn_patches, start_encoder, write_confusions

        root = TrainingFiles(context)
        images, table, left_out = _scenes(settings, task, context)
        patch = _patch(settings, images.resolution)
        with fixed_arithmetic(settings.threads):
            if settings.encoder is not None:
                encoder = ModelBundle.load(bundle_url(settings.encoder, context))
                encoder.check_input(images.bands, "1")
            else:
                weights = task.payload.get("weights", settings.network_weights)
                encoder = start_encoder(settings.network, weights, images, patch, seed=context.seed)
            learned = learn_patches(
                encoder,
                images,
                background=settings.background,
                patch=patch,
                min_similarity=settings.min_similarity,
                min_share=settings.min_share,
                class_weights=settings.class_weights,
                strength=settings.strength,
                batch=settings.batch,
                name=context.folder,
            )
            entries = [table[name] for name in learned.classes]
            colours = tuple(colour for _, colour in entries)
            confusions = _confusions(settings, task, context, learned)
            scores = {part: finite_scores(confusion.summary()) for part, confusion in confusions.items()}
            bundle = dataclasses.replace(
                learned,
                codes=tuple(code for code, _ in entries),
                colours=colours if all(colours) else (),
                notes={**learned.notes, "images_left_out": left_out, "scores": scores},
            )
            bundle.save(root.path / "bundle")
            shown = ClassTable.of(dict(zip(bundle.codes, bundle.classes, strict=True)), bundle.colours or None)
            title = f"{context.recipe.name}: {context.folder}, patches of {patch} pixels"
            _sheet(images, encoder, bundle, settings, shown, root.path / PICTURE, title)
        _write_counts(bundle, root.path / TABLE)
        outputs = root.put_bundle(applicability=False)
        outputs += [
            root.put(TABLE, "table"),
            root.put(PICTURE, "quicklook", title=f"Patches as {context.folder} took them"),
        ]
        notes = bundle.notes["weak_labels"]
        if confusions:
            about = {"encoder": context.folder, "task": "patches", "protocol": "weak labels"}
            write_confusions(root.path, about, confusions, notes["settings"])
            part, last = list(confusions.items())[-1]
            title = f"{context.recipe.name}: {context.folder}, set {part}"
            confusion_chart(last.counts, bundle.classes, root.path / CONFUSION, title=title, counted="patches")
            outputs += [
                root.put("evaluation.json", "table"),
                root.put("evaluation_details.json", "metadata"),
                root.put("confusion.csv", "table"),
                root.put(CONFUSION, "quicklook", title=f"Confusion matrix of {context.folder}"),
            ]
        return TaskResult(
            digest=digest_of([bundle.fingerprint(), *(str(output.sha256) for output in outputs)]),
            outputs=tuple(outputs),
            stats={
                "images": notes["images"],
                "patches": notes["patches"],
                "left_out": left_out,
                "scores": scores,
            },
        )


# --- images ----------------------------------------------------------------------------------------------------------


def _labelled(settings: WeakCoarseSettings, context: PlanContext) -> _Labelled:
    """What is known of the images before any chip is cut; refuses labels that cannot be learned from."""
    where = f"step {settings.step}"
    if settings.images is not None:
        path = context.table(settings.images)
        table, files = _files(settings, path)
        with needs_ml(settings.step):
            from geoeco.training import FileScenes
        scenes = FileScenes(files, list(table["label"]))
        pixels = [int(np.prod(file.shape)) for file in files]
        classes = settings.scene.names(scenes.labels)
        codes, colours = _codes(settings, classes, ())
        found = _Labelled(
            bands=scenes.bands,
            resolution=scenes.resolution,
            classes=classes,
            codes=codes,
            colours=colours,
            pixels=max(pixels),
            reading=max(file.read_bytes(*(int(n) for n in file.shape)) for file in files),
            total=sum(pixels),
            payload={"images": path},
            depends=(),
        )
    else:
        chips = UavChipSource.of(settings, context)
        if not chips.classes:
            raise InputError(
                f"the chips ({chips.where}) have no labels",
                where=where,
                what_to_do="name the table of the raster with labels, or give images: a table of labelled images",
                code="labels",
            )
        labels = [name for _, name, _ in chips.classes]
        settings.scene.check(labels, where)
        classes = settings.scene.names(labels)
        codes, colours = _codes(settings, classes, chips.classes)
        found = _Labelled(
            bands=chips.bands,
            resolution=chips.resolution,
            classes=classes,
            codes=codes,
            colours=colours,
            pixels=chips.size**2,
            reading=0,
            total=_most_chips(settings, context) * chips.size**2,
            payload=chips.payload,
            depends=chips.depends,
        )
    if settings.background not in found.classes or len(found.classes) < 2:
        raise InputError(
            f"of the classes {', '.join(found.classes)}, {settings.background!r} is background: a class is missing",
            where=where,
            what_to_do="give images of background and of one class at least",
            code="one-class",
        )
    unknown = sorted(set(settings.class_weights) - set(found.classes))
    if unknown:
        raise InputError(
            f"there is no class {unknown[0]!r} to weigh",
            where=where,
            what_to_do=f"classes: {', '.join(found.classes)}",
        )
    return found


def _most_chips(settings: WeakCoarseSettings, context: PlanContext) -> int:
    """Chips that there can be."""
    if settings.store is not None:
        return int(open_uav_chips(context.path(settings.store)).sizes["sample"])
    step = context.step(settings.chips, verb="uav_chips")
    return sum(int(task.payload["count"]) for task in step.tasks if task.stage == "groups")


def _codes(
    settings: WeakCoarseSettings, classes: tuple[str, ...], labels: tuple[tuple[int, str, str], ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Codes and colours of the classes: those of the labels, where each label is a class; no colours without labels.

    A class of several labels has the colour of the first one.
    """
    of_label = {name: (code, colour) for code, name, colour in labels}
    if settings.classes is None and labels:
        return tuple(of_label[name][0] for name in classes), _all(of_label[name][1] for name in classes)
    groups = settings.classes or {}
    colours = [of_label.get(groups[name][0], (0, ""))[1] if name in groups else "" for name in classes]
    return tuple(range(len(classes))), _all(colours)


def _all(colours: Any) -> tuple[str, ...]:
    found = tuple(str(colour)[:7] for colour in colours)
    return found if all(found) else ()


def _files(settings: WeakCoarseSettings, path: str) -> tuple[pd.DataFrame, list[Orthomosaic]]:
    """Table of the labelled images, and each image as it will be read."""
    table = scene_table(path, settings.scene)
    files = []
    for image in table["path"]:
        file = describe_orthomosaic(
            os.fspath(image),
            bands=settings.bands,
            scale=settings.scale,
            allow_ungeoreferenced=settings.gsd_m is not None,
            gsd_m=settings.gsd_m,
        )
        files.append(file if settings.target_gsd is None else file.at(settings.target_gsd))
    return table, files


def _scenes(
    settings: WeakCoarseSettings, task: Task, context: TaskContext
) -> tuple[Scenes, dict[str, tuple[int, str]], dict[str, int]]:
    """Images to learn from, code and colour of each class, and how many images were left out, by reason.

    Of chips in sets those for training alone are learned from.
    """
    from geoeco.training import ChipScenes, FileScenes

    if "images" in task.payload:
        table, files = _files(settings, task.payload["images"])
        classes = settings.scene.names(list(table["label"]))
        codes, _ = _codes(settings, classes, ())
        return FileScenes(files, list(table["label"])), {n: (c, "") for n, c in zip(classes, codes, strict=True)}, {}
    store = uav_chips_of(task, context)
    chips = open_uav_chips(store)
    with intact_shards(store):
        found = chip_scenes(
            chips, settings.scene, min_presence=settings.min_presence, min_labelled=settings.min_labelled
        )
    if (found["split"] == "train").any():
        found = found[found["split"] == "train"]
    labels = tuple((int(code), str(name), str(colour)) for code, name, colour in chips.attrs["classes"])
    classes = settings.scene.names([name for _, name, _ in labels])
    codes, colours = _codes(settings, classes, labels)
    entries = dict(zip(classes, zip(codes, colours or [""] * len(codes), strict=True), strict=True))
    left_out = {str(reason): int(n) for reason, n in found["reason"].value_counts().sort_index().items() if reason}
    used = found[found["label"] != ""]
    if not len(used):
        raise InputError(
            f"no chip has a label of its own: {', '.join(f'{n} {reason}' for reason, n in left_out.items())}",
            where=f"step {settings.step}",
            what_to_do="cut smaller chips, or count more labels to the classes",
            code="no-locations",
        )
    return ChipScenes(store, used["sample"].tolist(), used["label"].tolist()), entries, left_out


def _confusions(
    settings: WeakCoarseSettings, task: Task, context: TaskContext, bundle: ModelBundle
) -> dict[str, ConfusionMatrix]:
    """Patches of the sets that are not learned from, by their rasters of labels: where there are such sets.

    A class that no image to learn from shows is in no score.
    """
    from geoeco.training import ChipScenes, score_patches

    if "images" in task.payload:
        return {}
    store = uav_chips_of(task, context)
    chips = open_uav_chips(store)
    of_chip = np.array([str(name) for name in chips.attrs["splits"]])[chips["split"].to_numpy()]
    names = settings.scene.names([str(name) for _, name, _ in chips.attrs["classes"]])
    # the last one is of patches without a class
    learned = np.array([*(bundle.classes.index(name) if name in bundle.classes else -1 for name in names), -1])
    found: dict[str, ConfusionMatrix] = {}
    for part in _SCORED if "train" in of_chip else ():
        samples = np.flatnonzero(of_chip == part).tolist()
        if not samples:
            continue
        with intact_shards(store):
            truth = patch_classes(chips, settings.scene, samples, bundle.size, min_labelled=settings.min_labelled)
        images = ChipScenes(store, samples, [""] * len(samples))
        confusion = score_patches(bundle, images, learned[truth], min_share=settings.min_share, batch=settings.batch)
        if confusion.counts.any():
            found[part] = confusion
    return found


# --- encoder ---------------------------------------------------------------------------------------------------------


def _patch(settings: WeakCoarseSettings, resolution: float) -> int:
    if settings.patch is not None:
        return settings.patch
    assert settings.patch_m is not None, "the settings have one of the two"
    patch = round(settings.patch_m / resolution)
    if patch < 4:
        raise InputError(
            f"patches of {settings.patch_m:g} m have {patch} pixels of {resolution:g} m",
            where=f"step {settings.step}: patch_m",
            what_to_do="take larger patches, or finer pixels",
        )
    return patch


def _source(settings: WeakCoarseSettings, context: PlanContext, images: _Labelled) -> PlannedModel:
    """Encoder as it is known when planning; refuses one that was made for other images."""
    patch = _patch(settings, images.resolution)
    return planned_start(settings, context, images.bands, images.resolution, patch, tolerance=_SAME_GSD)


# --- what it leaves --------------------------------------------------------------------------------------------------


def _write_counts(bundle: ModelBundle, path: Any) -> None:
    """A row a label of images: how many, their patches, and those that were taken as background."""
    notes = bundle.notes["weak_labels"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["label", "images", "patches", "taken_as_background", "share_of_background", "patches_of_class"])
    for label in bundle.classes:
        taken = notes["taken"][label]
        share = taken["background"] / taken["patches"]
        rows.writerow(
            [
                label,
                taken["images"],
                taken["patches"],
                taken["background"],
                f"{share:.4f}",
                notes["patches"][label],
            ]
        )
    path.write_text(text.getvalue())


def _sheet(
    images: Scenes,
    encoder: ModelBundle,
    bundle: ModelBundle,
    settings: WeakCoarseSettings,
    table: ClassTable,
    path: Any,
    title: str,
) -> None:
    """Draw some images of each label, spread evenly, with their patches as they were taken."""
    from geoeco.training import Templates, patch_features

    templates = Templates.from_notes(bundle.notes["weak_labels"]["templates"])
    names = ["red", "green", "blue"]
    bands = [images.bands.index(name) for name in names] if set(names) <= set(images.bands) else [0]
    codes = np.array([*bundle.codes, -1])
    shown, captions = [], []
    for label in bundle.classes:
        own = [number for number, other in enumerate(images.labels) if other == label]
        for at in np.unique(np.linspace(0, len(own) - 1, min(_SHOWN, len(own))).round().astype(int)):
            image, valid = images.image(own[at])
            features, _ = patch_features(
                encoder, image, valid, bundle.size, batch=settings.batch, min_share=settings.min_share
            )
            taken = templates.pseudo_labels(features, label, min_similarity=settings.min_similarity)
            shown.append((image[bands], valid))
            captions.append((codes[taken], label))
    # one stretch for all, so that they can be compared
    row = np.concatenate([image.reshape(len(bands), 1, -1) for image, _ in shown], axis=2)
    flat = rgb_bytes(row, np.concatenate([valid.reshape(1, -1) for _, valid in shown], axis=1))[0]
    ends = np.cumsum([valid.size for _, valid in shown])
    drawn = [
        (part.reshape(*valid.shape, 3), *rest)
        for part, (_, valid), rest in zip(np.split(flat, ends[:-1]), shown, captions, strict=True)
    ]
    patch_sheet(drawn, bundle.size, table, path, title=title)
