"""Labelled places of a store of chips, in parts for training, validation and test; every reason why they are of no use.

Folds for probes are `geoeco.training.block_folds`'s.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError
from geoeco.sampling import spatial_split
from geoeco.training.chip_dataset import ChipDataset
from geoeco.training.evaluation import (
    ProbeTask,
    checked_labels,
    label_values,
)
from geoeco.training.folds import Fold, assert_apart
from geoeco.training.scoring import TaskKind
from geoeco.training.targets import Targets, checked_targets

__all__ = ["PARTS", "Labelled", "labelled_places", "support_of"]

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Places with label, image and part, in the order of their names; `fold` holds their positions."""

    names: tuple[str, ...]
    targets: Targets
    fold: Mapping[str, Sequence[int]]
    facts: dict[str, Any]

    def part(self, name: str) -> tuple[list[str], Tensor]:
        """Names and targets of one part."""
        rows = list(self.fold[name])
        return [self.names[row] for row in rows], self.targets.values[rows]


def labelled_places(
    data: ChipDataset,
    labels: pd.DataFrame,
    task: TaskKind,
    columns: tuple[str, ...],
    split: pd.DataFrame | None,
    asked: Mapping[str, Any],
) -> Labelled:
    """Labelled places by part; every reason why nothing can be learned from them is told here."""
    if not columns:
        raise InputError("no column of the labels is named", what_to_do="name one or more")
    table = checked_labels(labels, {columns[0]: ProbeTask(task, columns)})
    values = table[list(columns)].dropna()
    names = sorted(set(data.names) & set(values.index))
    if not names:
        raise InputError(
            "no place with an image has a label",
            where=f"labels like {values.index[0]!r}, chips like {data.names[0]!r}",
            what_to_do="name places in the table as in the store of chips",
            code="no-locations",
        )
    place = {name: position for position, name in enumerate(data.names)}
    lonlat = data.lonlat[[place[name] for name in names]]
    parts, origin = _parts(data, names, lonlat, split, asked)
    used = [row for row, name in enumerate(names) if parts.get(name) in PARTS]
    names, lonlat = [names[row] for row in used], lonlat[used]
    fold = {part: [row for row, name in enumerate(names) if parts[name] == part] for part in PARTS}
    for part in ("train", "val"):
        if not fold[part]:
            raise InputError(
                f"the part {part!r} holds no labelled place",
                where=f"split: {origin}; {', '.join(f'{len(rows)} {name}' for name, rows in fold.items())}",
                what_to_do="use more labels, other fractions or smaller blocks",
                code="empty-split",
            )
    targets = checked_targets(
        label_values(task, values.loc[names]), task, () if task == "single-label" else columns, len(names)
    )
    learned = targets.values[fold["train"]]
    support = {part: support_of(Targets(task, targets.values[rows], targets.outputs)) for part, rows in fold.items()}
    if task == "single-label" and not bool((learned != learned[0]).any()):
        raise InputError(
            f"all places of the part 'train' are of the class {targets.outputs[int(learned[0])]}",
            what_to_do="use a split whose parts hold two classes or more",
            code="one-class",
        )
    if task != "single-label" and not bool((learned != learned[0]).any()):
        raise InputError("the labels of the part 'train' are all the same", code="one-class")
    pairs = Fold(*(np.array(fold[part], dtype=np.int64) for part in PARTS))
    facts: dict[str, Any] = {
        "split": origin,
        "places": {part: len(rows) for part, rows in fold.items()},
        "support": support,
        "never_learned": [name for name, count in support["train"].items() if not count],
    }
    if len(pairs.test):
        facts["least_distance_m"] = round(assert_apart([pairs], lonlat[:, 0], lonlat[:, 1]), 1)
    return Labelled(tuple(names), targets, fold, facts)


def support_of(targets: Targets) -> dict[str, int]:
    """Number of places of each class; of values and shares the number of places."""
    if targets.task in ("regression", "distribution"):
        return dict.fromkeys(targets.outputs, len(targets.values))
    counts = targets.vectors().sum(0) if len(targets.values) else torch.zeros(len(targets.outputs))
    return {name: int(count) for name, count in zip(targets.outputs, counts, strict=True)}


def _parts(
    data: ChipDataset, names: Sequence[str], lonlat: Any, split: pd.DataFrame | None, asked: Mapping[str, Any]
) -> tuple[dict[str, str], str]:
    """Part of each place by name, and where the parts come from."""
    origin = "given"
    if split is None:
        body = Objects(data.store.rstrip("/")).get("split.parquet")
        if body is None:
            points = gpd.points_from_xy(lonlat[:, 0], lonlat[:, 1], crs=4326)
            made = spatial_split(
                gpd.GeoDataFrame({"name": list(names)}, geometry=points),
                **asked,
                size_m=data.chip_size * data.resolution,
            )
            return {str(name): str(part) for name, part in made.items()}, "blocks"
        split, origin = pd.read_parquet(io.BytesIO(body)), "of the store"
    missing = [column for column in ("name", "split") if column not in split.columns]
    if missing:
        raise InputError(
            f"the split has no column {missing[0]!r}",
            where=f"columns: {', '.join(map(str, split.columns))}",
            what_to_do="give the columns name and split",
        )
    found = split.astype({"name": str, "split": str})
    if found["name"].duplicated().any():
        raise InputError(f"the split names {found.loc[found['name'].duplicated(), 'name'].iloc[0]!r} twice")
    return dict(zip(found["name"], found["split"], strict=True)), origin
