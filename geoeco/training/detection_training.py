"""Training of detectors of crowns: from chips with instances to a model bundle and its scores on chips.

Maps of objects are `geoeco.mapping.detect_crowns`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError
from geoeco.models.crown_detector import CrownDetector
from geoeco.models.encoder_weights import load_encoder
from geoeco.sampling import open_uav_chips
from geoeco.training.bundles import ModelBundle
from geoeco.training.crown_chips import pixel_statistics
from geoeco.training.detection import CrownDetection, DetectionDataset, chip_targets, score_chips
from geoeco.training.evaluation import TABLE, json_bytes
from geoeco.training.fitting import Fitting, FittingOptions, check_course
from geoeco.training.samplers import LocationBatches
from geoeco.training.season_contrast import Schedule

__all__ = ["CROWN", "anchor_sides", "detector_bytes", "train_detector"]

#: Name of the one class.
CROWN = "crown"
_PARTS = ("train", "val", "test")
#: Levels of the pyramid.
_LEVELS = 5


def train_detector(
    store: str | Path,
    folder: str | Path,
    *,
    backbone: str = "resnet50",
    masks: bool = True,
    channels: int = 256,
    boxes: int = 512,
    most: int = 200,
    anchors_m: tuple[float, ...] | None = None,
    species: Mapping[int, str] | None = None,
    encoder_weights: str = "random",
    epochs: int = 50,
    batch: int = 4,
    lr: float = 2e-4,
    weight_decay: float = 1e-4,
    schedule: Schedule = "cosine",
    flips: bool = True,
    colour: float = 0.1,
    **options: Unpack[FittingOptions],
) -> ModelBundle:
    """Train a detector of crowns, or go on with a training that was stopped.

    Parameters
    ----------
    store : str or Path
        Finished store of grid chips with crowns and a split (`geoeco.sampling.open_uav_chips`), folder or fsspec URL.
    folder : str or Path
        Local folder of the training: ``checkpoints/``, ``logs/metrics.csv``, ``bundle/`` and ``evaluation.json``. What
        is there of the same training is gone on from.
    backbone, masks, channels, boxes, most
        As of `geoeco.models.crown_detector.CrownDetector`.
    anchors_m : tuple of five float, optional
        Sides of the anchors in metres, ascending; those of `anchor_sides` when not given.
    species : mapping of int to str, optional
        Species of crowns by their number, each one of those that the store names (``crown_classes``): the detector
        learns to tell these apart. Chips for training that show a crown without a species are left out. All crowns are
        of one class when not given.
    encoder_weights : str
        ``"random"``, which says so loudly, or a local ``.safetensors`` file with weights named as timm's; their batch
        normalisation is kept as it is then.
    epochs, batch : int
        `batch` chips a step, all of the training part where there are fewer.
    lr, weight_decay : float
        Of AdamW.
    schedule : {"cosine", "constant", "step"}
        Of the learning rate.
    flips : bool
        Whether chips are mirrored and turned.
    colour : float
        How far brightness, contrast and saturation vary; 0 for not.
    **options
        As of `geoeco.training.Fitting`.

    Returns
    -------
    ModelBundle
        Of the task ``"detection"``, with the weights of the last step; saved as ``folder/bundle``.

    Raises
    ------
    InputError
        Before any work: settings, crowns, parts or the network do not fit.
    OutputError
        If the training diverges or the folder cannot be written.

    Notes
    -----
    ``evaluation.json`` has the average precision at an intersection over union of 0.5 (``ap50``) on the chips of the
    parts val and test, and with `species` how often that of a crown which is found is right (``class_accuracy``). A
    crown that lies on several chips counts on each: how many crowns of a mosaic are found is told by
    `geoeco.mapping.relative_f1` of the map.
    """
    fitting = Fitting(Path(folder), **options)
    check_course(epochs, batch, lr, weight_decay, schedule)
    if encoder_weights != "random" and not encoder_weights.endswith(".safetensors"):
        raise InputError(
            f"encoder_weights are {encoder_weights!r}", what_to_do="give 'random' or a local .safetensors file"
        )
    parts = _parts(store)
    names, classes = _classes(store, species)
    data = {part: DetectionDataset(store, samples) for part, samples in parts.items()}
    if classes is not None:
        data["train"] = _named_chips(data["train"], classes)
    train = data["train"]
    scale = pixel_statistics(train)
    sides = anchor_sides(train) if anchors_m is None else tuple(round(side / train.resolution) for side in anchors_m)
    if len(sides) != _LEVELS or min(sides) < 1 or sorted(sides) != list(sides):
        raise InputError(
            f"anchors of {sides} pixels", what_to_do=f"give {_LEVELS} ascending sides in metres, each a pixel or more"
        )
    described: dict[str, Any] = {
        "backbone": backbone,
        "in_channels": len(train.all_bands),
        "masks": masks,
        "anchors": ",".join(map(str, sides)),
        "channels": channels,
        "boxes": boxes,
        "most": most,
        "frozen_norm": encoder_weights != "random",
        "num_classes": len(names),
    }
    per_step = min(batch, len(train))
    batches = LocationBatches([f"{sample:09d}" for sample in train.samples], per_step, epochs=epochs, seed=fitting.seed)
    with fitting.seeded():
        network = CrownDetector(**described)
        origin = load_encoder(network.encoder, encoder_weights, backbone)
        settings: dict[str, Any] = {
            **described,
            "encoder": {"kind": origin.kind, "name": origin.name, "sha256": origin.sha256},
            "epochs": epochs,
            "batch": per_step,
            "lr": lr,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "flips": flips,
            "colour": colour,
            "mean": scale.mean,
            "std": scale.std,
            "seed": fitting.seed,
        }
        facts = {
            "key": fitting.key,
            "settings": settings,
            "chips": {part: one.sha256() for part, one in data.items()},
            "species": None if species is None else sorted(species.items()),
        }
        training_hash = hashlib.sha256(json_bytes(facts)).hexdigest()
        task = CrownDetection(
            network,
            scale,
            steps=len(batches),
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            flips=flips,
            colour=colour,
            seed=fitting.seed,
            classes=classes,
        )
        fitting.run(task, train, batches, training_hash)
        network.to(fitting.torch_device)
        found = {part: score_chips(network, scale, data[part], classes) for part in _PARTS[1:] if part in data}
        network.cpu()
    weights = "encoder with RANDOM weights at the start" if origin.kind == "random" else f"encoder from {origin.name}"
    made = ModelBundle(
        module=network,
        architecture="crown_detector",
        arguments=described,
        bands=train.all_bands,
        normalisation=scale,
        size=train.chip_size,
        resolution=train.resolution,
        task="detection",
        classes=names,
        training_hash=training_hash,
        name=fitting.name or f"crowns by {backbone}",
        description=f"crowns from {len(train)} chips of {train.chip_size} pixels of {train.resolution:g} m; "
        f"{'Mask R-CNN' if masks else 'Faster R-CNN'} on {backbone}; {weights}",
        notes=json.loads(
            json.dumps(
                {
                    "chips": {part: len(one) for part, one in data.items()},
                    "unnamed_chips": len(parts["train"]) - len(train),
                    "encoder": weights,
                    "settings": settings,
                    "scores": {part: _finite(one._asdict()) for part, one in found.items()},
                }
            )
        ),
    )
    made.save(fitting.root / "bundle")
    about = {"encoder": made.name, "task": "crowns", "protocol": "trained"}
    rows = [
        {**about, "split": part, "metric": metric, "mean": value, "sd": None, "n": 1}
        for part, scores in found.items()
        for metric, value in _finite(scores._asdict()).items()
    ]
    Objects(str(fitting.root)).put(TABLE, [json_bytes(rows)])
    return made


def detector_bytes(
    backbone: str, bands: int, *, masks: bool, channels: int, frozen_norm: bool, num_classes: int = 1
) -> int:
    """Bytes of the weights of a detector, without its memory and without touching the random numbers.

    Parameters
    ----------
    backbone, masks, channels, frozen_norm, num_classes
        As of `geoeco.models.crown_detector.CrownDetector`.
    bands : int

    Raises
    ------
    InputError
        As of `geoeco.models.crown_detector.CrownDetector`.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = CrownDetector(
            backbone, bands, masks, channels=channels, frozen_norm=frozen_norm, num_classes=num_classes
        )
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def anchor_sides(data: DetectionDataset) -> tuple[int, ...]:
    """Sides of five anchors in pixels that fit the crowns of some chips.

    From the 5th to the 95th percentile of the square roots of the areas of their boxes, in equal ratios.

    Raises
    ------
    InputError
        If there are no crowns on the chips.
    """
    import torch

    sides = [
        math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        for position in range(len(data))
        for box in chip_targets(torch.from_numpy(data.stored_instance(position)), masks=False)["boxes"]
    ]
    if not sides:
        raise InputError("no chip for training shows a crown", where=data.store, code="no-locations")
    low, high = np.percentile(sides, [5, 95])
    # of crowns of one size each level has its own anchor all the same
    ratio = max((high / low) ** (1 / (_LEVELS - 1)), 1.2)
    middle = math.sqrt(low * high)
    found = [max(2, round(middle * ratio ** (level - (_LEVELS - 1) / 2))) for level in range(_LEVELS)]
    return tuple(found)


def _parts(store: str | Path) -> dict[str, list[int]]:
    """Positions of the chips of each part that has some."""
    chips = open_uav_chips(str(store))
    names = [str(name) for name in chips.attrs["splits"]]
    split = chips["split"].values
    parts = {part: np.flatnonzero(split == names.index(part)).tolist() for part in _PARTS}
    if not parts["train"] or not (parts["val"] or parts["test"]):
        raise InputError(
            "the chips have none to learn from, or none to be judged by",
            where=str(store),
            what_to_do="make them with a split that leaves chips in train and in val or test",
            code="empty-split",
        )
    return {part: samples for part, samples in parts.items() if samples}


def _classes(store: str | Path, species: Mapping[int, str] | None) -> tuple[tuple[str, ...], dict[int, int] | None]:
    """Names of the classes, and the number of each crown's class where there are several."""
    if species is None:
        return (CROWN,), None
    names = tuple(str(name) for name in open_uav_chips(str(store)).attrs["crown_classes"])
    foreign = sorted({name for name in species.values() if name not in names})
    if foreign or not names:
        raise InputError(
            f"the chips know no species {foreign[0]!r}" if foreign else "the chips know no species of their crowns",
            where=str(store),
            what_to_do="make them of the same crowns, with crown_class",
            code="classes",
        )
    return names, {number: names.index(name) for number, name in species.items()}


def _named_chips(data: DetectionDataset, classes: Mapping[int, int]) -> DetectionDataset:
    """Chips all of whose crowns have a class: one without would be learned as ground."""
    known = np.array([0, *classes])
    kept = [
        sample for position, sample in enumerate(data.samples) if np.isin(data.stored_instance(position), known).all()
    ]
    if not kept:
        raise InputError(
            "each chip for training shows a crown without a species",
            where=data.store,
            what_to_do="give all crowns a species, or learn crowns alone",
            code="empty-split",
        )
    return DetectionDataset(data.store, kept)


def _finite(scores: dict[str, Any]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}
