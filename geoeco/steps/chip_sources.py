"""Where the verbs that learn from season chips, or score on them, get these: from a chips step, or a finished store.

What a plan must know of them, and no more: pixels are read by `geoeco.training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from geoeco.cubes.shards import Objects
from geoeco.engine import PlanContext, RecipePath, StepSettings, Task, TaskContext
from geoeco.errors import InputError
from geoeco.sampling import chips_fingerprint, open_chips
from geoeco.steps.chips import ChipsSettings
from geoeco.steps.training_files import sha256_of

__all__ = ["ChipSource", "ChipSourceSettings", "chips_of", "store_facts"]


class ChipSourceSettings(StepSettings):
    """Of a verb that takes season chips."""

    chips: str | None = Field(None, description="name of the chips step; the nearest one before when not given")
    store: RecipePath | None = Field(None, description="a finished store of chips, in place of a step")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.chips is not None and self.store is not None:
            raise ValueError("give either chips (a step) or store (a folder)")
        return self


@dataclass(frozen=True)
class ChipSource:
    """Chips as they are known when a run is planned.

    Attributes
    ----------
    where : str
        Step or store, for messages.
    bands : tuple of str
    size : int
        Pixels along a side.
    places : int
        At most.
    has_split : bool
        Whether the places are parted into sets.
    payload : dict
        For a task: ``chips`` or ``store``.
    depends : tuple of str
        Tasks that make the chips.
    """

    where: str
    bands: tuple[str, ...]
    size: int
    places: int
    has_split: bool
    payload: dict[str, Any]
    depends: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: ChipSourceSettings, context: PlanContext) -> Self:
        """Find the chips that a step takes.

        Raises
        ------
        InputError
            If there is no such step, or no finished store.
        OutputError
            If the store is damaged, or of a newer layout.
        """
        if settings.store is not None:
            return cls._stored(context.path(settings.store))
        step = context.step(settings.chips, verb="chips")
        assert isinstance(step.settings, ChipsSettings), "the verb chips has these settings"
        groups = [task for task in step.tasks if task.stage == "groups"]
        return cls(
            where=f"step {step.name}",
            bands=tuple(step.settings.bands),
            size=step.settings.size,
            places=sum(int(task.payload["count"]) for task in groups),
            has_split=step.settings.split is not None,
            payload={"chips": step.name},
            depends=tuple(task.id for task in groups),
        )

    @classmethod
    def _stored(cls, store: str) -> Self:
        objects = Objects(store.rstrip("/"))
        if objects.get("chips.parquet") is None:
            raise InputError(
                "there is no finished store of chips", where=store, what_to_do="name the folder of a chips step"
            )
        chips = open_chips(store, kept=False)
        return cls(
            where=store,
            bands=tuple(str(band) for band in chips["band"].values),
            size=int(chips.sizes["x"]),
            places=chips.sizes["sample"],
            has_split=objects.get("split.parquet") is not None,
            payload={"store": store},
        )

    def check_bands(self, wanted: Sequence[str], who: str, where: str) -> None:
        """Refuse bands that the chips lack; NDVI is made of B04 and B08.

        Parameters
        ----------
        wanted : sequence of str
            Bands of a model's input.
        who : str
            What needs them, for the message.
        where : str
            Its step, for the message.

        Raises
        ------
        InputError
            If there are any.
        """
        needed = dict.fromkeys(part for band in wanted for part in (("B04", "B08") if band == "ndvi" else (band,)))
        missing = [band for band in needed if band not in self.bands]
        if missing:
            raise InputError(
                f"{who} needs {', '.join(missing)}, which the chips lack",
                where=where,
                what_to_do=f"the bands of the chips ({self.where}) are {', '.join(self.bands)}",
                code="bands",
            )


def chips_of(task: Task, context: TaskContext) -> str:
    """Folder or URL of the chips of a task, whose payload has that of its `ChipSource`."""
    store: str | None = task.payload.get("store")
    return context.store.url(task.payload["chips"]) if store is None else store


def store_facts(settings: ChipSourceSettings, context: PlanContext) -> dict[str, Any]:
    """What tells a store outside the run from another, for the fingerprint of a step; nothing of a step's chips.

    The sizes of its files are looked at, not the pixels in them: chips of other pixels are, packed, hardly ever as
    long in every shard.

    Raises
    ------
    InputError
        If there is no finished store.
    """
    if settings.store is None:
        return {}
    store = context.path(settings.store)
    objects = Objects(store.rstrip("/"))
    if objects.get("chips.parquet") is None:
        return {"store": None}
    return {"store": [chips_fingerprint(store, contents=False), sha256_of(objects.get("split.parquet"))]}
