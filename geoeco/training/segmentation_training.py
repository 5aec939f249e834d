"""Training of habitat networks: from labelled chips of an orthomosaic to a model bundle, its scores and its domain.

DWFF-Net and those it is compared with go through one function, with the settings of its authors where nothing else is
asked for. Maps are `geoeco.mapping`'s.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

from geoeco.applicability import AreaOfApplicability
from geoeco.errors import InputError
from geoeco.models import DWFFNet
from geoeco.models.encoder_weights import weights_sha256
from geoeco.sampling import open_uav_chips
from geoeco.training.architectures import build_network
from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.confusion_files import finite_scores, write_confusions
from geoeco.training.crown_chips import pixel_statistics
from geoeco.training.fitting import Fitting, FittingOptions, check_course
from geoeco.training.photo_points import PhotoPoints
from geoeco.training.samplers import LocationBatches
from geoeco.training.season_contrast import Schedule
from geoeco.training.segmentation import HabitatSegmentation, PixelLoader, SegmentationValidation
from geoeco.training.segmentation_chips import (
    ChipSurvey,
    SegmentationDataset,
    chip_places,
    labelled_classes,
    survey_chips,
)
from geoeco.training.segmentation_losses import SegmentationLoss
from geoeco.training.segmenters import SEGMENTER_DEFAULTS, TrainingDefaults, segmenter_arguments

__all__ = ["PARTS", "train_segmentation"]

_log = logging.getLogger(__name__)
PARTS: tuple[str, ...] = ("train", "val", "test")
#: Steps between checkpoints when nothing else is asked for: steps of these networks are long.
CHECKPOINT_EVERY = 100
#: Principal axes of the area of applicability.
_COMPONENTS = 32
#: Statistics that DINOv3 was trained with on satellite imagery, red, green, blue (timm's configuration).
_SAT = Normalisation((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
_RGB = ("red", "green", "blue")


def train_segmentation(
    store: str | Path,
    folder: str | Path,
    *,
    network: Literal["dwff", "smp", "conv_stack"] = "dwff",
    arguments: Mapping[str, Any] | None = None,
    encoder_weights: str = "random",
    normalisation: Literal["auto", "data", "sat493m"] = "auto",
    size: int | None = None,
    min_label: float = 0.05,
    unscored: Sequence[str] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    at_once: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule = "cosine",
    patience: int | None = None,
    dice: float = 0.5,
    focal: float = 0.5,
    cross_entropy: float = 0.0,
    entropy: float = 0.01,
    class_weights: Mapping[str, float] | Literal["inverse-root"] | None = None,
    photos: pd.DataFrame | str | Path | None = None,
    photo_radius_m: float | None = None,
    photo_weight: float = 1.0,
    flips: bool = True,
    colour: float = 0.1,
    boundary_tolerance_m: float = 0.3,
    applicability_points: int = 4096,
    **options: Unpack[FittingOptions],
) -> ModelBundle:
    """Train a segmentation network on labelled chips, or go on with a training that was stopped.

    Parameters
    ----------
    store : str or Path
        Finished store of chips with labels and a split (`geoeco.sampling.open_uav_chips`), folder or fsspec URL.
    folder : str or Path
        Local folder of the training: ``checkpoints/``, ``logs/metrics.csv`` (each step), ``logs/validation.csv`` (each
        epoch), TensorBoard's files, ``bundle/``, ``evaluation.json``, ``evaluation_details.json`` and
        ``confusion.csv``. What is there of the same training is gone on from.
    network : {"dwff", "smp", "conv_stack"}
    arguments : mapping, optional
        Of `geoeco.training.architectures.build_network` but for bands and classes, which the chips say:
        ``{"backbone": "vit_small_patch16_dinov3", "fusion": "static"}``, ``{"model": "Unet", "encoder": "resnet50"}``.
    encoder_weights : str
        Of DWFF-Net's frozen encoder, as of `geoeco.models.DWFFNet`: random, a name of timm's, or a local file.
    normalisation : {"auto", "data", "sat493m"}
        Scaling of the bands: that of published encoder weights and mean and spread of the training chips else
        ("auto"); those always; or that of DINOv3's satellite weights, for a local file of them.
    size : int, optional
        Pixels along a side of the windows, cut at random in training and at the centre else; whole chips when not
        given.
    min_label : float
        Chips with a smaller share of known labels are not used.
    unscored : sequence of str, optional
        Classes that are learned but left out of all scores; ``background`` where there is one, when not given.
    epochs, batch, at_once, lr, weight_decay : optional
        As `SEGMENTER_DEFAULTS` has them when not given. `batch` is the number of chips a step, all of the training
        part where there are fewer; `at_once` how many go through the network together.
    schedule : {"cosine", "constant", "step"}
        Of the learning rate over the epochs.
    patience : int, optional
        Epochs without a higher mean IoU of validation after which the training ends; never early when not given.
    dice, focal, cross_entropy, entropy : float
        Shares of `SegmentationLoss`.
    class_weights : mapping of str to float, or "inverse-root", optional
        Weights of classes in the loss, 1 for those not named; or 1 / sqrt(share of pixels), scaled to a mean of 1 over
        the classes that are there.
    photos : pandas.DataFrame or path, optional
        Photo points as soft labels beside the others, as `PhotoPoints.read` takes them. Training chips that a footprint
        reaches into are used without labels too; validation and test know labels alone.
    photo_radius_m : float, optional
        Of the footprints, where the table has no column of it.
    photo_weight : float
        Weight of their loss.
    flips : bool
        Whether chips are mirrored and turned.
    colour : float
        How far brightness, contrast and saturation vary; 0 for not.
    boundary_tolerance_m : float
        Metres within which outlines count as met in the boundary F1.
    applicability_points : int
        Cells of the training chips, at most, on which the area of applicability rests; a mapped cell is compared with
        all of them. 0 for a bundle without one.
    **options
        ``seed, checkpoint_every`` (100 when not given)``, device, precision, workers, key, name, saved, callbacks`` as
        of `geoeco.training.Fitting`.

    Returns
    -------
    ModelBundle
        With the weights of the highest mean IoU of validation and the area of applicability of the training chips;
        saved as ``folder/bundle``.

    Raises
    ------
    InputError
        Before any work: settings, labels, parts, bands or the network do not fit.
    OutputError
        If the training diverges or the folder cannot be written.

    Notes
    -----
    Scores of the parts val and test are those of whole chips, pixels counted once for each chip that they are in. The
    test part is predicted once, at the end. On a CPU a training that was stopped and goes on gives bit by bit what an
    undisturbed one gives.

    The area of applicability rests on the features of cells of the training chips, drawn evenly over them, with the
    chips' blocks of ground as folds.
    """
    options.setdefault("checkpoint_every", CHECKPOINT_EVERY)
    fitting = Fitting(Path(folder), **options)
    chosen = _numbers(network, epochs, batch, at_once, lr, weight_decay)
    check_course(chosen.epochs, chosen.batch, chosen.lr, chosen.weight_decay, schedule, patience=patience)
    if not 0 < min_label <= 1:
        raise InputError(
            f"min_label is {min_label}", what_to_do="give a share above 0: chips without labels teach nothing"
        )
    seed, root = fitting.seed, fitting.root
    if not 0 <= applicability_points <= 65_536:
        raise InputError(f"applicability_points is {applicability_points}", what_to_do="give a number up to 65 536")
    chips = open_uav_chips(str(store))
    classes = labelled_classes(chips, str(store))
    out_of_scores = _unscored(unscored, classes.names)
    points = None if photos is None else PhotoPoints.read(photos, classes.names, radius_m=photo_radius_m)
    if not photo_weight > 0:
        raise InputError(f"photo_weight is {photo_weight}", what_to_do="give a positive number")
    parts = _parts(chips, min_label, str(store), points)
    data = {
        part: SegmentationDataset(
            store,
            samples,
            size=size,
            crop="random" if part == "train" else "centre",
            seed=seed,
            stored=True,
            photos=points if part == "train" else None,
        )
        for part, samples in parts.items()
    }
    surveys = {part: survey_chips(one) for part, one in data.items()}
    counts = {part: survey.counts for part, survey in surveys.items()}
    _check_labels(counts, classes.names, str(store))
    train = data["train"]
    weights = _class_weights(class_weights, classes.names, counts["train"])
    loss = SegmentationLoss(dice, focal, cross_entropy, entropy, weights)
    described = segmenter_arguments(network, arguments, bands=len(train.all_bands), classes=len(classes))
    per_step = min(chosen.batch, len(train)) if batch is None else chosen.batch
    batches = LocationBatches([f"{sample:09d}" for sample in train.samples], per_step, epochs=chosen.epochs, seed=seed)
    with fitting.seeded():
        model: Any = (
            DWFFNet(**described, encoder_weights=encoder_weights)
            if network == "dwff"
            else build_network(network, described)
        )
        _check_windows(train.size, int(model.stride), str(store))
        scale = _normalisation(normalisation, model, train)
        settings = {
            "network": network,
            "arguments": described,
            "encoder": weights_sha256(model.encoder) if isinstance(model, DWFFNet) else "",
            "size": train.size,
            "min_label": min_label,
            "mean": scale.mean,
            "std": scale.std,
            "epochs": chosen.epochs,
            "batch": per_step,
            "at_once": chosen.at_once,
            "lr": chosen.lr,
            "weight_decay": chosen.weight_decay,
            "schedule": schedule,
            "patience": patience,
            "loss": {"dice": dice, "focal": focal, "cross_entropy": cross_entropy, "entropy": entropy},
            "class_weights": None if weights is None else list(weights),
            "unscored": list(out_of_scores),
            "flips": flips,
            "colour": colour,
            "applicability_points": applicability_points,
            "photos": None if points is None else [points.sha256(), photo_weight],
            "seed": seed,
        }
        training_hash = _training_hash(chips, parts, surveys, settings, fitting.key)
        task = HabitatSegmentation(
            model,
            loss,
            scale,
            classes=len(classes),
            epochs=chosen.epochs,
            steps_per_epoch=batches.steps_per_epoch,
            at_once=chosen.at_once,
            lr=chosen.lr,
            weight_decay=chosen.weight_decay,
            schedule=schedule,
            flips=flips,
            colour=colour,
            seed=seed,
            photo_weight=photo_weight,
        )
        loaders = {
            part: PixelLoader(one, chosen.at_once, fitting.processes, out_of_scores)
            for part, one in data.items()
            if part != "train"
        }
        watch = SegmentationValidation(
            root / "logs" / "validation.csv", loaders["val"], batches.steps_per_epoch, patience
        )
        fitting.run(task, train, batches, training_hash, watch)
        watch.write()
        task.load_state_dict(watch.best)
        task.to(fitting.torch_device)
        tolerance = boundary_tolerance_m / train.resolution
        found = {part: loader.scores(task, tolerance) for part, loader in loaders.items()}
        domain = _applicability(task, train, chips, chosen.at_once, fitting.processes, seed, applicability_points)
        model.cpu()
    origin = _origin(model, encoder_weights)
    facts = {
        "chips": {part: len(samples) for part, samples in parts.items()},
        "pixels": {part: dict(zip(classes.names, map(int, count), strict=True)) for part, count in counts.items()},
        "epochs": len(watch.rows),
        "best_epoch": watch.best_epoch + 1,
        "weights": f"of epoch {watch.best_epoch + 1}, the one of the highest mean IoU of validation, "
        f"{watch.highest:.6g}",
        "encoder": origin,
        "settings": settings,
        "scores": {part: finite_scores(scores.confusion.summary()) for part, scores in found.items()},
    }
    made = ModelBundle(
        module=model,
        architecture=network,
        arguments=described,
        bands=train.all_bands,
        normalisation=scale,
        size=train.size,
        resolution=train.resolution,
        task="segmentation",
        classes=classes.names,
        codes=classes.codes,
        colours=classes.colours,
        stride=int(model.stride),
        halo=model.receptive_radius,
        applicability=domain,
        training_hash=training_hash,
        name=fitting.name or _title(network, described),
        description=f"{len(classes)} habitat classes from {len(train)} chips of {train.size} pixels of "
        f"{train.resolution:g} m; {_title(network, described)}{'; ' + origin if origin else ''}",
        notes=json.loads(json.dumps(facts)),
    )
    made.save(root / "bundle")
    write_confusions(
        root,
        {"encoder": made.name, "task": "habitats", "protocol": "trained"},
        {part: scores.confusion for part, scores in found.items()},
        settings,
        outlines={part: scores.boundary for part, scores in found.items() if scores.boundary is not None},
        losses={part: scores.loss for part, scores in found.items()},
    )
    return made


def _numbers(
    network: str,
    epochs: int | None,
    batch: int | None,
    at_once: int | None,
    lr: float | None,
    weight_decay: float | None,
) -> TrainingDefaults:
    if network not in SEGMENTER_DEFAULTS:
        raise InputError(f"there is no network {network!r}", what_to_do=f"use one of: {', '.join(SEGMENTER_DEFAULTS)}")
    usual = SEGMENTER_DEFAULTS[network]
    chosen = TrainingDefaults(
        usual.epochs if epochs is None else epochs,
        usual.batch if batch is None else batch,
        usual.at_once if at_once is None else at_once,
        usual.lr if lr is None else lr,
        usual.weight_decay if weight_decay is None else weight_decay,
    )
    if chosen.at_once < 1:
        raise InputError("at_once must be positive")
    return chosen


def _unscored(wanted: Sequence[str] | None, names: Sequence[str]) -> tuple[str, ...]:
    if wanted is None:
        return tuple(name for name in names if name.lower() == "background")
    unknown = [name for name in wanted if name not in names]
    if unknown or len(set(wanted)) == len(names):
        raise InputError(
            f"there is no class {unknown[0]!r}" if unknown else "no class is left to score",
            what_to_do=f"name some of: {', '.join(names)}",
        )
    return tuple(wanted)


def _parts(chips: xr.Dataset, min_label: float, where: str, photos: PhotoPoints | None = None) -> dict[str, list[int]]:
    """Positions of the usable chips of each set; the test set may be empty, and is left out then."""
    names = [str(name) for name in chips.attrs["splits"]]
    split, labelled = chips["split"].values, chips["label_fraction"].values >= min_label
    if photos is not None:
        shape = (int(chips.sizes["y"]), int(chips.sizes["x"]))
        seen = np.array([photos.reach(affine, shape, crs) for affine, crs in chip_places(chips)])
        labelled = labelled | (seen & (split == names.index("train")))
    found = {
        part: [int(sample) for sample in np.flatnonzero((split == names.index(part)) & labelled)] for part in PARTS
    }
    for part in ("train", "val"):
        if not found[part]:
            raise InputError(
                f"the set {part!r} holds no chip with at least {min_label:.0%} of labels",
                where=where,
                what_to_do="label more ground, lower min_label, or split the chips in another way",
                code="empty-split",
            )
    return {part: samples for part, samples in found.items() if samples}


def _check_labels(counts: Mapping[str, npt.NDArray[np.int64]], names: Sequence[str], where: str) -> None:
    for part, count in counts.items():
        if not count.sum():
            raise InputError(f"no pixel of the set {part!r} has a label", where=where, code="labels")
    there = [name for name, count in zip(names, counts["train"], strict=True) if count]
    if len(there) < 2:
        raise InputError(
            f"all labels of the training set are {there[0]!r}",
            where=where,
            what_to_do="give two classes or more",
            code="one-class",
        )
    unseen = [
        name
        for number, name in enumerate(names)
        if not counts["train"][number] and any(count[number] for count in counts.values())
    ]
    if unseen:
        _log.warning(
            "classes that are scored but not in the training set, and cannot be learned: %s", ", ".join(unseen)
        )


def _check_windows(size: int, stride: int, where: str) -> None:
    if size % stride:
        raise InputError(
            f"windows of {size} pixels are no multiple of {stride}, the stride of the network",
            where=where,
            what_to_do=f"give size: {size // stride * stride}" if size >= stride else "make larger chips",
            code="stride",
        )


def _class_weights(
    wanted: Mapping[str, float] | str | None, names: Sequence[str], counts: npt.NDArray[np.int64]
) -> tuple[float, ...] | None:
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if wanted != "inverse-root":
            raise InputError(f"class_weights is {wanted!r}", what_to_do="name classes and weights, or 'inverse-root'")
        there = counts > 0
        root = np.sqrt(counts.sum() / np.maximum(counts, 1))
        return tuple(float(weight) for weight in np.where(there, root / root[there].mean(), 1.0))
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InputError(
            f"class_weights names {unknown[0]!r}, which is no class", what_to_do=f"classes are: {', '.join(names)}"
        )
    return tuple(float(wanted.get(name, 1.0)) for name in names)


def _normalisation(wanted: str, model: nn.Module, train: SegmentationDataset) -> Normalisation:
    if wanted not in ("auto", "data", "sat493m"):
        raise InputError(f"normalisation is {wanted!r}", what_to_do="use 'auto', 'data' or 'sat493m'")
    published = model.weights_of_encoder if isinstance(model, DWFFNet) else None
    if wanted == "sat493m" or (wanted == "auto" and published is not None and published.mean):
        scale = _SAT if wanted == "sat493m" or published is None else Normalisation(published.mean, published.std)
        if train.all_bands != _RGB:
            raise InputError(
                f"the encoder's scaling is for {', '.join(_RGB)}, the chips have {', '.join(train.all_bands)}",
                where=train.store,
                what_to_do="make chips of these bands in this order, or use normalisation: data",
                code="bands",
            )
        return scale
    return pixel_statistics(train)


def _training_hash(
    chips: xr.Dataset,
    parts: Mapping[str, Sequence[int]],
    surveys: Mapping[str, ChipSurvey],
    settings: Mapping[str, Any],
    key: str,
) -> str:
    """SHA-256 of the chips that are used, of their blocks, of settings and of the caller's key."""
    used = [sample for samples in parts.values() for sample in samples]
    digest = hashlib.sha256(np.ascontiguousarray(chips["block"].values[used]).tobytes())
    known = {
        "bands": [str(band) for band in chips["band"].values],
        "gsd_m": float(chips.attrs["gsd_m"]),
        "classes": chips.attrs["classes"],
        "parts": {part: list(samples) for part, samples in parts.items()},
        "pixels": {part: survey.sha256 for part, survey in surveys.items()},
        "settings": settings,
        "key": key,
    }
    digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    return digest.hexdigest()


@torch.no_grad()
def _applicability(
    task: HabitatSegmentation,
    train: SegmentationDataset,
    chips: xr.Dataset,
    at_once: int,
    workers: int,
    seed: int,
    points: int,
) -> AreaOfApplicability | None:
    """Learn how unlike the cells of the training chips are to those of other blocks of ground."""
    if not points:
        return None
    blocks = chips["block"].values[list(train.samples)].astype(np.int64)
    if len(set(blocks.tolist())) < 2:
        _log.warning("the training chips lie in one block of ground: the bundle has no area of applicability")
        return None
    whole = SegmentationDataset(train.store, train.samples, size=train.size)
    model: Any = task.model
    per_chip = max(1, points // len(train))
    features, folds = [], []
    for batch in PixelLoader(whole, at_once, workers, ()).batches(task):
        _, coarse = model.with_features(task.normalisation(batch["image"]))
        share = functional.adaptive_avg_pool2d(batch["valid"].float().unsqueeze(1), coarse.shape[-2:])[:, 0]
        for position, chip, part in zip(batch["index"].tolist(), coarse, share, strict=True):
            rows, columns = (axis.cpu() for axis in torch.nonzero(part >= 0.5, as_tuple=True))
            draw = np.random.default_rng([seed, position]).permutation(len(rows))[:per_chip]
            found = chip[:, rows[draw], columns[draw]].T.cpu().numpy()
            features.append(found)
            folds.append(np.full(len(found), blocks[position]))
    table, of_block = np.concatenate(features), np.concatenate(folds)
    numbers, cells = np.unique(of_block, return_counts=True)
    if (cells >= 2).sum() < 2:
        _log.warning("fewer than two blocks of ground hold valid cells: the bundle has no area of applicability")
        return None
    kept = np.isin(of_block, numbers[cells >= 2])
    components = min(_COMPONENTS, table.shape[1])
    with warnings.catch_warnings():
        # channels that a rectifier has silenced are nothing that anybody could change
        warnings.filterwarnings("ignore", message=r".*do not vary in the training data.*")
        return AreaOfApplicability(components).fit(table[kept], of_block[kept])


def _origin(model: nn.Module, source: str) -> str:
    """Which weights the encoder has, in words for people; empty of networks that are learned whole."""
    if not isinstance(model, DWFFNet):
        return ""
    weights = model.weights_of_encoder
    if weights.kind == "random":
        return "frozen encoder with RANDOM weights, which has learned nothing"
    return f"frozen encoder with the weights {weights.name if weights.kind == 'published' else Path(source).name}"


def _title(network: str, arguments: Mapping[str, Any]) -> str:
    if network == "dwff":
        kind = {"dynamic": "DWFF", "static": "SWFF", "none": "NWFF"}[arguments.get("fusion", "dynamic")]
        return f"{kind} on {arguments.get('backbone', 'vit_large_patch16_dinov3')}"
    if network == "smp":
        return f"{arguments.get('model', 'Unet')} {arguments.get('encoder', 'resnet18')}"
    return "stack of convolutions"
