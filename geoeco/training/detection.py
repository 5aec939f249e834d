"""Crowns as objects for training: chips with instances, the task for Lightning, and scores on chips.

The network is `geoeco.models.crown_detector`'s; running the training is `geoeco.training.train_detector`'s. Scores here
are of chips: those of a map, where each crown counts once, are `geoeco.mapping.relative_f1`'s.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from geoeco.cubes.chunks import ChunkReader
from geoeco.errors import InputError
from geoeco.models.crown_detector import CrownDetector, FoundObjects
from geoeco.sampling import open_uav_chips
from geoeco.training.bundles import Normalisation
from geoeco.training.chip_dataset import Draw
from geoeco.training.crown_chips import CrownDataset
from geoeco.training.season_contrast import Schedule, schedule_factor, step_seed
from geoeco.training.segmentation_views import mirrored, recoloured

__all__ = ["CrownDetection", "DetectionDataset", "DetectionScores", "chip_targets", "score_chips"]

#: Smaller pieces of crowns, at the edge of a chip mostly, are nothing to learn, pixels.
_SMALLEST = 9


class DetectionDataset(CrownDataset):
    """Chips of a store with the crown of each pixel.

    Parameters
    ----------
    store : str or Path
        Folder or fsspec URL of a finished store of chips with crowns.
    samples : sequence of int, optional
        Positions of the chips to use; all when not given.

    Raises
    ------
    InputError
        If the chips have no crowns, or a position is not in the store.
    OutputError
        If there is no finished store.

    Notes
    -----
    A sample is that of `CrownDataset` with ``instance (y, x)`` int32, the number of the crown, 0 for none.
    """

    def __init__(self, store: str | Path, samples: Sequence[int] | None = None) -> None:
        super().__init__(store, samples)
        if "instance" not in open_uav_chips(self.store):
            raise InputError(
                "the chips have no crowns", where=self.store, what_to_do="make them with crowns", code="crowns"
            )
        self._crowns: tuple[int, ChunkReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_crowns": None}

    def stored_instance(self, position: int) -> npt.NDArray[np.int32]:
        """Crowns of one chip ``(y, x)``."""
        if self._crowns is None or self._crowns[0] != os.getpid():
            self._crowns = (os.getpid(), ChunkReader(self.store, "instance"))
        found = self._crowns[1].read((self.samples[position], 0, 0))
        if found is None:
            return np.zeros((self.chip_size, self.chip_size), np.int32)
        crowns: npt.NDArray[np.int32] = found[0].astype(np.int32)
        return crowns

    def __getitem__(self, index: int | Draw) -> dict[str, Tensor]:
        """Return one sample; see the class for its keys."""
        sample = super().__getitem__(index)
        instance = self.stored_instance(int(sample["index"]))
        return {**sample, "instance": torch.from_numpy(np.where(sample["valid"].numpy(), instance, 0))}

    def sha256(self) -> str:
        """Of all pixels, masks and crowns."""
        digest = hashlib.sha256()
        for position in range(len(self)):
            for values in (*self.stored_chip(position), self.stored_instance(position)):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def chip_targets(
    instance: Tensor, *, masks: bool = True, classes: Mapping[int, int] | None = None
) -> dict[str, Tensor]:
    """Targets of one chip, as detectors of torchvision take them.

    Parameters
    ----------
    instance : torch.Tensor
        ``(y, x)``, number of the crown of each pixel, 0 for none.
    masks : bool
        Whether masks are wanted.
    classes : mapping of int to int, optional
        Number of the class, from 0, of each crown whose class is known; all are of one class when not given.

    Returns
    -------
    dict
        ``boxes (object, 4)`` float32: left, top, right, bottom along the edges of the pixels; ``labels (object,)``,
        the class from 1, 0 where it is not known; ``masks (object, y, x)`` uint8. By ascending number; pieces of fewer
        than 9 pixels are left out.
    """
    numbers, pixels = torch.unique(instance[instance > 0], return_counts=True)
    numbers = numbers[pixels >= _SMALLEST]
    shapes = instance == numbers.reshape(-1, 1, 1)
    boxes = instance.new_zeros((len(shapes), 4), dtype=torch.float32)
    for number, shape in enumerate(shapes):
        rows, columns = torch.nonzero(shape, as_tuple=True)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        boxes[number] = torch.stack(edges).float()
    labels = [1 if classes is None else classes.get(number, -1) + 1 for number in numbers.tolist()]
    targets = {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64, device=instance.device)}
    return targets | ({"masks": shapes.to(torch.uint8)} if masks else {})


class CrownDetection(LightningModule):
    """Finding crowns as a Lightning task.

    Parameters
    ----------
    network : CrownDetector
    normalisation : Normalisation
    steps : int
        Of the whole training.
    lr, weight_decay : float
        Of AdamW.
    schedule : {"constant", "cosine", "step"}
        Of the learning rate.
    flips : bool
        Whether images are mirrored and turned.
    colour : float
        As `strength` of `recoloured`; 0 for none.
    seed : int
        What is drawn in a step follows `seed` and the number of the step.
    classes : mapping of int to int, optional
        As of `chip_targets`.
    """

    def __init__(
        self,
        network: CrownDetector,
        normalisation: Normalisation,
        *,
        steps: int,
        lr: float,
        weight_decay: float,
        schedule: Schedule,
        flips: bool,
        colour: float,
        seed: int,
        classes: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = network
        self.normalisation = normalisation
        self.steps, self.lr, self.weight_decay, self.seed = steps, lr, weight_decay, seed
        self.schedule: Schedule = schedule
        self.flips, self.colour, self.classes = flips, colour, classes

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:  # noqa: ARG002
        """Learn from one batch."""
        torch.manual_seed(step_seed(self.seed, self.global_step))
        image, instance = batch["image"], batch["instance"]
        if self.colour:
            image = recoloured(image, batch["valid"], self.colour)
        if self.flips:
            image, instance = mirrored(image, instance)
        targets = [chip_targets(one, masks=self.model.masks, classes=self.classes) for one in instance]
        return {"loss": self.model.losses(self.normalisation(image), targets)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; its rate changes with the step."""
        optimiser = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: schedule_factor(step, self.steps, self.schedule)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class DetectionScores(NamedTuple):
    """How well crowns are found on chips.

    Attributes
    ----------
    ap50 : float
        Area under precision over recall at an intersection over union of 0.5, precision made monotonic; NaN without
        crowns.
    recall50 : float
        Part of the crowns that are found with any score.
    crowns, found : int
        Numbers of true and found objects, those of a chip and of its neighbour counted twice.
    class_accuracy : float
        Part of the crowns that are found, and whose class is known, that are given this class; NaN without any, or
        where there is one class only.
    """

    ap50: float
    recall50: float
    crowns: int
    found: int
    class_accuracy: float


def score_chips(
    network: CrownDetector,
    normalisation: Normalisation,
    data: DetectionDataset,
    classes: Mapping[int, int] | None = None,
) -> DetectionScores:
    """Find crowns on chips, one chip at a time, and compare them with those that are there.

    Parameters
    ----------
    network : CrownDetector
        Put into evaluation mode.
    normalisation : Normalisation
    data : DetectionDataset
    classes : mapping of int to int, optional
        As of `chip_targets`. A crown is found whatever class it is given.
    """
    network.eval()
    device = next(network.parameters()).device
    scores: list[npt.NDArray[np.float64]] = []
    hits: list[npt.NDArray[np.bool_]] = []
    right: list[npt.NDArray[np.bool_]] = []
    crowns = 0
    for position in range(len(data)):
        one = {name: value.unsqueeze(0).to(device) for name, value in data[position].items()}
        image = data.decode(one)["image"]
        target = chip_targets(one["instance"][0], masks=network.masks, classes=classes)
        (found,) = network.detect(normalisation(image))
        crowns += len(target["boxes"])
        scores.append(found.scores.double().cpu().numpy())
        matched = _matched(_overlap(found, target))
        hits.append(matched >= 0)
        labels = target["labels"].cpu().numpy()[matched[matched >= 0]]
        right.append((found.labels.cpu().numpy() + 1)[matched >= 0][labels > 0] == labels[labels > 0])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    correct = np.concatenate(hits)[order]
    named = np.concatenate(right)
    accuracy = float(named.mean()) if classes is not None and len(named) else math.nan
    if not crowns:
        return DetectionScores(math.nan, math.nan, 0, len(correct), accuracy)
    recall = np.cumsum(correct) / crowns
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    area = float((np.diff(recall, prepend=0.0) * best).sum())
    return DetectionScores(area, float(correct.sum() / crowns), crowns, len(correct), accuracy)


def _overlap(found: FoundObjects, target: dict[str, Tensor]) -> npt.NDArray[np.float64]:
    """Intersection over union ``(found, true)``, of masks where there are some."""
    if found.masks is None:
        from torchvision.ops import box_iou

        boxes: npt.NDArray[np.float64] = box_iou(found.boxes, target["boxes"]).double().cpu().numpy()
        return boxes
    ours, theirs = (shapes.flatten(1).float() for shapes in (found.masks, target["masks"]))
    common = ours @ theirs.T
    union = ours.sum(1, keepdim=True) + theirs.sum(1) - common
    masks: npt.NDArray[np.float64] = (common / union.clamp_min(1)).double().cpu().numpy()
    return masks


def _matched(overlap: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Crown of each of the found, by descending score, -1 for none: each takes the best one that is free."""
    free = np.ones(overlap.shape[1], bool)
    matched = np.full(len(overlap), -1, np.int64)
    for number, row in enumerate(np.where(overlap >= 0.5, overlap, 0.0)):
        open_to = np.where(free, row, 0.0)
        if open_to.size and open_to.max() > 0:
            matched[number] = int(open_to.argmax())
            free[matched[number]] = False
    return matched
