"""What steps share that use a model: which bundle a name in a recipe means, and what is known of it when planning."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from geoeco.cubes.shards import Objects
from geoeco.engine import Output, PlanContext, RunContext, TaskContext, Verb
from geoeco.errors import InputError
from geoeco.steps.layers import written

__all__ = [
    "ModelVerb",
    "PlannedModel",
    "bundle_digest",
    "bundle_item",
    "bundle_url",
    "check_made",
    "foreign_model",
    "is_step",
    "model_item",
    "model_tags",
    "planned_model",
    "tasks_of_model",
]

_ITEM = "mlm.json"
#: Where a step keeps the item of a model from elsewhere.
_MODEL = "model.json"
#: The other files of a bundle, by their assets in its item; and those that each bundle has.
_FILES = {
    "model": "model.safetensors",
    "sample": "sample.safetensors",
    "applicability": "applicability.safetensors",
}
_REQUIRED = frozenset({"model", "sample"})


@dataclass(frozen=True)
class PlannedModel:
    """What is known of a model when a run is planned, before its weights are read or even made.

    Attributes
    ----------
    name : str
    bands : tuple of str
        Of its input, in order.
    units : str
    resolution : float
        Metres.
    size : int
        Pixels along a side of the windows that it is trained on.
    task : str
    features : int
        Length of its output.
    weight_bytes : int
    classes : tuple of str
        Names of the output's channels, where it has any.
    codes : tuple of int
        Of a segmentation: the value of each class in a raster.
    colours : tuple of str
        Of the classes, ``"#rrggbb"``.
    stride : int
        Both sides of windows must be multiples of it.
    halo : int, optional
        How far a pixel sees, pixels; None where it is everything or not known.
    """

    name: str
    bands: tuple[str, ...]
    units: str
    resolution: float
    size: int
    task: str
    features: int
    weight_bytes: int
    classes: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    colours: tuple[str, ...] = ()
    stride: int = 1
    halo: int | None = None

    @classmethod
    def read(cls, url: str) -> Self:
        """Read it from the item of a bundle, whose other files must be those that the item names.

        Raises
        ------
        InputError
            If there is no bundle, its item is not one that geoeco wrote, or a file was changed since.
        """
        content = bundle_item(url)
        try:
            document = json.loads(content)
            checksums = {
                name: str(document["assets"][key]["file:checksum"])
                for key, name in _FILES.items()
                if key in document["assets"] or key in _REQUIRED
            }
            properties = document["properties"]
            record = properties["geoeco:bundle"]
            model = cls(
                str(record["name"] or record["architecture"]),
                tuple(str(band) for band in record["bands"]),
                str(record["units"]),
                float(record["resolution"]),
                int(record["size"]),
                str(record["task"]),
                int(properties["mlm:output"][0]["result"]["shape"][1]),
                int(properties["mlm:memory_size"]),
                tuple(str(label) for label in record["classes"]),
                tuple(int(code) for code in record.get("codes", ())),
                tuple(str(colour) for colour in record.get("colours", ())),
                int(record.get("stride", 1)),
                None if record.get("halo") is None else int(record["halo"]),
            )
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{_ITEM} is not the item of a bundle: {type(error).__name__}: {error}",
                where=url,
                what_to_do="name the folder of a bundle that geoeco wrote",
                code="bundle",
            ) from error
        for name, checksum in checksums.items():
            _check_file(url, name, checksum)
        return model


def _check_file(url: str, name: str, checksum: str) -> None:
    content = Objects(url.rstrip("/")).get(name)
    if content is None or not checksum.endswith(hashlib.sha256(content).hexdigest()):
        raise InputError(
            f"the bundle lacks its {name}"
            if content is None
            else f"{name} is not the file that the bundle was made with: its checksum differs",
            where=url,
            what_to_do="get the whole bundle again from where it came",
            code="checksum",
        )


class ModelVerb(Verb):
    """A verb that leaves a model bundle in the folder ``bundle`` of its step."""

    @abstractmethod
    def model(self, settings: Any, context: PlanContext) -> PlannedModel:
        """What the model will be; known when planning."""

    def open(self, settings: Any, context: RunContext) -> Any:
        """Load the bundle."""
        from geoeco.training import ModelBundle

        return ModelBundle.load(context.store.url(f"{context.folder}/bundle"))


def planned_model(name: str, context: PlanContext, where: str) -> PlannedModel:
    """What is known of the model that a recipe names: a step that makes one, or the folder of a bundle.

    Parameters
    ----------
    name : str
    context : PlanContext
    where : str
        Step and key, for messages.

    Raises
    ------
    InputError
        If the step makes no model, comes later, or there is neither a step nor a bundle of this name.
    """
    if not is_step(name, context):
        return PlannedModel.read(context.path(name))
    step = context.step(name)
    if not isinstance(step.verb, ModelVerb):
        raise InputError(
            f"the step {step.name!r} ({step.verb.name}) makes no model",
            where=where,
            what_to_do="name a pretrain step, or the folder of a bundle",
            code="bundle",
        )
    return step.verb.model(step.settings, context)


def is_step(name: str, context: PlanContext | RunContext | TaskContext) -> bool:
    """Whether a name is that of a step of the recipe; otherwise it is a folder."""
    return any(step.step == name for step in context.recipe.steps)


def tasks_of_model(name: str, context: PlanContext) -> tuple[str, ...]:
    """Tasks of this run that make the model of a name: none of the folder of a bundle."""
    return tuple(task.id for task in context.step(name).tasks) if is_step(name, context) else ()


def check_made(name: str, context: TaskContext, who: str) -> None:
    """Refuse a model that a step of this run was to make and did not: its folder may hold that of other settings.

    Raises
    ------
    InputError
        If it is one; `who` names it in the message.
    """
    if any(task_id.startswith(f"{name}/") for task_id in context.missing):
        raise InputError(
            f"{who} was not made",
            where=f"step {name}",
            what_to_do="see why in the report, and resume",
            code="bundle",
        )


def bundle_url(name: str, context: RunContext | TaskContext) -> str:
    """Folder or URL of the bundle that a step of the recipe makes, or that the recipe names."""
    return context.store.url(f"{name}/bundle") if is_step(name, context) else context.path(name)


def bundle_digest(url: str) -> str:
    """SHA-256 of a bundle's item, which holds the checksums of its files.

    Raises
    ------
    InputError
        If there is no bundle.
    """
    return hashlib.sha256(bundle_item(url)).hexdigest()


def bundle_item(url: str) -> bytes:
    """Content of a bundle's item.

    Raises
    ------
    InputError
        If there is no bundle.
    """
    content = Objects(url.rstrip("/")).get(_ITEM)
    if content is None:
        raise InputError(
            "there is no model bundle, and no step of this name",
            where=url,
            what_to_do="name a pretrain step, or the folder of a bundle",
            code="bundle",
        )
    return content


def model_item(name: str, context: RunContext | TaskContext) -> str:
    """Where in the run the item of the model of a step is: with the step that makes it, or as `foreign_model` says."""
    return f"{name}/bundle/{_ITEM}" if is_step(name, context) else f"{context.folder}/{_MODEL}"


def foreign_model(name: str, context: RunContext | TaskContext) -> list[Output]:
    """Copy the item of a model from elsewhere to where `model_item` says; nothing of a model of the run.

    A relative link can lead to it wherever the run folder is taken.
    """
    if is_step(name, context):
        return []
    return [written(context, _MODEL, bundle_item(bundle_url(name, context)), "metadata")]


def model_tags(name: str, context: RunContext | TaskContext) -> dict[str, str]:
    """What files say of the model that made them: its id and the SHA-256 of its weights."""
    item = json.loads(bundle_item(bundle_url(name, context)))
    # a multihash: 1220 stands for SHA-256
    weights = str(item["assets"]["model"]["file:checksum"]).removeprefix("1220")
    return {"GEOECO_MODEL": str(item["id"]), "GEOECO_MODEL_SHA256": weights}
