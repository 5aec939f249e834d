"""Does an encoder learn the seasons? Pretraining and evaluation on a simulated world, as one experiment.

Four encoders of one architecture: random weights, MoCo, and SeCo on chips by the calendar and by phenology. All are
evaluated on the same images, the same places and the same folds.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd

from geoeco.simulate import write_chip_world
from geoeco.training import ModelBundle, evaluate, pretrain

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "ndvi")
TASKS = {"cover": "single-label", "temperature": "regression", "precipitation": "regression"}
#: Encoder: method, and the store whose chips it is trained on.
ENCODERS = {
    "random": ("none", "phenology"),
    "moco": ("moco", "phenology"),
    "seco_calendar": ("seco", "calendar"),
    "seco_phenology": ("seco", "phenology"),
}
#: What is compared in the end: the first metric of each task.
MAIN = {"cover": "macro_f1", "temperature": "r2", "precipitation": "r2"}


@dataclass(frozen=True)
class Setting:
    """Everything that decides the numbers, except the machine."""

    locations: int = 1000
    size: int = 64
    world_seed: int = 42
    backbone: str = "resnet18"
    epochs: int = 10
    batch: int = 50
    #: For a batch of 256: 0.05 for one of 50.
    lr: float = 0.256
    #: A key branch that keeps 0.999 of itself hardly moves in 200 steps.
    key_momentum: float = 0.99
    queue: int = 400
    temperature: float = 0.2
    precision: str = "auto"
    folds: int = 5
    max_epochs: int = 200
    combine: str = "concatenate"
    images: str = "phenology"
    #: Side of the blocks of places that are tested together, metres.
    block_m: float = 1_000_000.0

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps([asdict(self), BANDS, TASKS, ENCODERS], sort_keys=True).encode()).hexdigest()


#: About a third of a minute of one thread.
SMOKE = Setting(
    locations=200, size=32, backbone="resnet10t", epochs=8, batch=40, queue=80, folds=4, max_epochs=50,
    block_m=2_000_000.0,
)  # fmt: skip
#: Where there is a CUDA GPU.
CUDA = Setting(
    locations=4000, size=128, epochs=60, batch=100, lr=0.128, key_momentum=0.996, queue=1600, folds=10, max_epochs=1000,
    block_m=500_000.0,
)  # fmt: skip


def make_world(folder: Path, setting: Setting) -> Path:
    """Write the world, or take the one that is there."""
    return write_chip_world(
        folder, locations=setting.locations, size=setting.size, seed=setting.world_seed, bands=BANDS[:-1]
    )


def train(world: Path, folder: Path, setting: Setting, seed: int, encoders: Sequence[str]) -> dict[str, ModelBundle]:
    """Train each encoder, or go on with what is in the folder."""
    bundles = {}
    for name in encoders:
        method, store = ENCODERS[name]
        bundles[name] = pretrain(
            world / store,
            folder / f"{name}-{seed}",
            method=method,
            backbone=setting.backbone,
            bands=BANDS,
            min_valid=0.9,
            size=setting.size,
            epochs=setting.epochs,
            batch=setting.batch,
            lr=setting.lr,
            queue=setting.queue,
            temperature=setting.temperature,
            key_momentum=setting.key_momentum,
            precision=setting.precision,
            checkpoint_every=50,
            seed=seed,
            name=name,
        )
    return bundles


def score(
    bundles: Mapping[str, ModelBundle], world: Path, folder: Path, setting: Setting, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table for one seed of the encoders; the folds are the same for all seeds."""
    rows = evaluate(
        bundles,
        world / setting.images,
        gpd.read_parquet(world / "labels.parquet"),
        TASKS,
        folder=folder,
        combine=setting.combine,
        folds=setting.folds,
        block_m=setting.block_m,
        linear={"max_epochs": setting.max_epochs},
    )
    return [{**row, "seed": seed} for row in rows]


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of what the folds of each give; ``n`` seeds."""
    keys = ("encoder", "task", "protocol", "split", "metric")
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["mean"] is not None:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["mean"])
    return [
        {
            **dict(zip(keys, group, strict=True)),
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "n": len(values),
            "seed": "all",
        }
        for group, values in groups.items()
    ]


def main_scores(summary: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], tuple[float, float]]:
    """``(task, protocol, split, encoder)`` to mean and spread of the task's main metric."""
    return {
        (row["task"], row["protocol"], row["split"], row["encoder"]): (row["mean"], row["sd"] or 0.0)
        for row in summary
        if row["metric"] == MAIN[row["task"]]
    }


def by_task(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """``(task, encoder)`` to its main metric by seed, each the mean over probes and kinds of folds."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        if row["metric"] == MAIN[row["task"]]:
            found.setdefault((row["task"], row["encoder"]), {}).setdefault(row["seed"], []).append(row["mean"])
    return {key: [statistics.fmean(values) for values in seeds.values()] for key, seeds in found.items()}


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The main metrics as Markdown, one line a task, protocol and split."""
    scores = main_scores(summary)
    encoders = [name for name in ENCODERS if any(key[3] == name for key in scores)]
    lines = [
        "| task | metric | probe | folds | " + " | ".join(encoders) + " |",
        "|---|---|---|---|" + "---|" * len(encoders),
    ]
    for task, protocol, split in dict.fromkeys(key[:3] for key in scores):
        cells = ["{:.3f} ± {:.3f}".format(*scores[task, protocol, split, name]) for name in encoders]
        lines.append(f"| {task} | {MAIN[task]} | {protocol} | {split} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
