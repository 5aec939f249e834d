"""What the verbs that train share: where a training works, what it leaves, and what it takes of memory."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from geoeco.cubes.shards import Objects
from geoeco.engine import Output, StepSettings, TaskContext
from geoeco.errors import InputError
from geoeco.outputs.learning_curves import validated_curve
from geoeco.steps.layers import digest_of

if TYPE_CHECKING:
    from geoeco.training import FittingOptions, ModelBundle

__all__ = [
    "BUNDLE_FILES",
    "GRADIENT_BYTES",
    "TRAINING_LIBRARIES_BYTES",
    "FittingSettings",
    "TrainingFiles",
    "fitting_options",
    "needs_ml",
    "outside_file",
    "read_columns",
    "sha256_of",
    "trained_outputs",
]

#: What training needs beside networks and batches: torch and its libraries once they are in use.
TRAINING_LIBRARIES_BYTES = 1536 * 2**20
#: Bytes that the forward pass of the query keeps for the backward pass, for each pixel of a view; an upper bound for
#: residual networks, which a test measures.
GRADIENT_BYTES = 4096
#: Files of a model bundle, and their kinds.
BUNDLE_FILES = (("model.safetensors", "data"), ("sample.safetensors", "data"), ("mlm.json", "metadata"))


class TrainingFiles:
    """Where a training works: in the step's own folder, or in a local one that the run folder's URL mirrors."""

    def __init__(self, context: TaskContext) -> None:
        self.store, self.folder = context.store, context.folder
        self.path = self.store.local(self.folder) if self.store.is_local else context.scratch_path / "training"

    def fetch(self) -> None:
        """Bring the last checkpoint here."""
        name = f"{self.folder}/checkpoints/last.ckpt"
        if not self.store.is_local and self.store.exists(name):
            target = self.path / "checkpoints" / "last.ckpt"
            target.parent.mkdir(parents=True)
            self.store.fs.get_file(self.store.url(name), str(target))

    @property
    def put_checkpoint(self) -> Callable[[Path], None] | None:
        """What is done after each checkpoint; an object is whole or not there, so that one is enough."""
        if self.store.is_local:
            return None
        return lambda path: self.store.put_file(
            path / "checkpoints" / "last.ckpt", f"{self.folder}/checkpoints/last.ckpt"
        )

    def put(self, name: str, kind: str, title: str = "") -> Output:
        """Bring a file that is done into the run folder, and describe it."""
        local = self.path / name
        if not self.store.is_local:
            self.store.put_file(local, f"{self.folder}/{name}")
        content = local.read_bytes()
        return Output(
            f"{self.folder}/{name}", len(content), hashlib.sha256(content).hexdigest(), kind=kind, title=title
        )

    def put_bundle(self, *, applicability: bool) -> list[Output]:
        """Bring the bundle into the run folder, its item last: the item says that the others are there."""
        further = [("applicability.safetensors", "data")] if applicability else []
        *files, item = BUNDLE_FILES
        return [self.put(f"bundle/{name}", kind) for name, kind in (*files, *further, item)]


class FittingSettings(StepSettings):
    """Of a verb that trains step by step: how its training runs."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name", "device", "workers", "checkpoint_every"})

    precision: Literal["auto", "32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, 32 on a CPU")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the training runs")
    workers: int | None = Field(None, ge=0, description="reading processes; chosen by the device when not given")

    @property
    def less_memory(self) -> str:
        """What the recipe can say so that the training takes less memory."""
        return f"make batch of {self.step} smaller"


def fitting_options(settings: FittingSettings, context: TaskContext, root: TrainingFiles) -> FittingOptions:
    """How a step's training runs, as keywords of the function that trains.

    Its key are the digests of all that comes before: of chips their pixels', of encoders their weights'.
    """
    return {
        "seed": context.seed,
        "checkpoint_every": settings.checkpoint_every,
        "device": settings.device,
        "precision": settings.precision,
        "workers": settings.workers,
        "key": digest_of(sorted(str(record["digest"]) for record in context.upstream.values())),
        "name": context.folder,
        "saved": root.put_checkpoint,
    }


@contextmanager
def needs_ml(step: str) -> Iterator[None]:
    """Import what a step takes of `geoeco.training` under this, when it is planned.

    Raises
    ------
    InputError
        If packages of the extra ``ml`` are not installed.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"the step needs packages that are not installed: {error}",
            where=f"step {step}",
            what_to_do="pip install 'geoeco[ml]'",
            code="extra",
        ) from error


def outside_file(path: str) -> bytes:
    """Content of a file outside the run folder, local or URL.

    Raises
    ------
    InputError
        If there is none.
    """
    folder, _, name = path.replace("\\", "/").rpartition("/")
    body = Objects(folder or ".").get(name)
    if body is None:
        raise InputError("there is no such file", where=path)
    return body


def sha256_of(body: bytes | None) -> str | None:
    """SHA-256 of a file's content; None where there is no file."""
    return None if body is None else hashlib.sha256(body).hexdigest()


def read_columns(path: Path) -> dict[str, list[float]]:
    """Columns of a CSV file of numbers, by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def trained_outputs(
    context: TaskContext, root: TrainingFiles, bundle: ModelBundle, *, score: str, highest: bool = False
) -> list[Output]:
    """Draw the curves of a training with validation, and bring bundle, curves and scores into the run folder.

    Parameters
    ----------
    context : TaskContext
    root : TrainingFiles
    bundle : ModelBundle
        As the training left it.
    score : str
        Column of the validation's table that is drawn.
    highest : bool
        Whether the weights of its highest value were kept, not those of the lowest loss.
    """
    steps, validation = (read_columns(root.path / "logs" / f"{name}.csv") for name in ("metrics", "validation"))
    title = f"{context.recipe.name}: {context.folder}, {bundle.description}"
    validated_curve(steps, validation, root.path / "learning_curve.png", title=title, score=score, highest=highest)
    return [
        *root.put_bundle(applicability=bundle.applicability is not None),
        root.put("logs/metrics.csv", "table"),
        root.put("logs/validation.csv", "table"),
        root.put("evaluation.json", "table"),
        root.put("evaluation_details.json", "metadata"),
        root.put("learning_curve.png", "quicklook", title=f"Learning curve of {context.folder}"),
    ]
