"""Where the verbs that learn from chips of orthomosaics get these: from a step uav_chips, or a finished store.

What a plan must know of them, and no more: pixels are read by `geoeco.training`. Season chips are those of
`geoeco.steps.chip_sources`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from geoeco.cubes.shards import Objects
from geoeco.engine import PlanContext, RecipePath, StepSettings, Task, TaskContext
from geoeco.errors import InputError
from geoeco.sampling import open_uav_chips
from geoeco.steps.uav_chips import STORE, UavChipsSettings, planned_chips

__all__ = ["UavChipSource", "UavChipSourceSettings", "uav_chips_of", "uav_store_facts"]

#: Of each file of a store so much is looked at to tell it from another: the end, where the index of a shard is.
_TAIL_BYTES = 64 * 2**10


class UavChipSourceSettings(StepSettings):
    """Of a verb that takes chips of orthomosaics."""

    chips: str | None = Field(None, description="name of the uav_chips step; the nearest one before when not given")
    store: RecipePath | None = Field(None, description="a finished store of such chips, in place of a step")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.chips is not None and self.store is not None:
            raise ValueError("give either chips (a step) or store (a folder)")
        return self


@dataclass(frozen=True)
class UavChipSource:
    """Chips of orthomosaics as they are known when a run is planned.

    Attributes
    ----------
    where : str
        Step or store, for messages.
    kind : str
        ``"grid"``, ``"crown"`` or ``"random"``.
    bands : tuple of str
    size : int
        Pixels along a side.
    resolution : float
        Metres.
    classes : tuple of (code, name, colour)
        Of the labels; empty where there are none.
    crown_classes : tuple of str
        Species of the crowns.
    payload : dict
        For a task: ``chips`` or ``store``.
    depends : tuple of str
        Tasks that make the chips.
    """

    where: str
    kind: str
    bands: tuple[str, ...]
    size: int
    resolution: float
    classes: tuple[tuple[int, str, str], ...]
    crown_classes: tuple[str, ...]
    payload: dict[str, Any]
    depends: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: UavChipSourceSettings, context: PlanContext) -> Self:
        """Find the chips that a step takes.

        Raises
        ------
        InputError
            If there is no such step, or what it is cut of cannot be used.
        OutputError
            If there is no finished store.
        """
        if settings.store is not None:
            return cls._stored(context.path(settings.store))
        step = context.step(settings.chips, verb="uav_chips")
        assert isinstance(step.settings, UavChipsSettings), "the verb uav_chips has these settings"
        planned = planned_chips(step.settings, context)
        return cls(
            where=f"step {step.name}",
            kind=step.settings.kind,
            bands=planned.bands,
            size=planned.size,
            resolution=planned.gsd_m,
            classes=planned.classes,
            crown_classes=planned.crown_classes,
            payload={"chips": step.name},
            depends=tuple(task.id for task in step.tasks),
        )

    @classmethod
    def _stored(cls, store: str) -> Self:
        chips = open_uav_chips(store)
        return cls(
            where=store,
            kind=str(chips.attrs["kind"]),
            bands=tuple(str(band) for band in chips["band"].values),
            size=int(chips.sizes["x"]),
            resolution=float(chips.attrs["gsd_m"]),
            classes=tuple((int(code), str(name), str(colour)) for code, name, colour in chips.attrs["classes"]),
            crown_classes=tuple(str(name) for name in chips.attrs["crown_classes"]),
            payload={"store": store},
        )

    def check_crowns(self, where: str) -> None:
        """Refuse chips that are not those of crowns.

        Raises
        ------
        InputError
            If they are not.
        """
        if self.kind != "crown":
            raise InputError(
                f"the chips ({self.where}) are {self.kind} chips, not those of crowns",
                where=where,
                what_to_do="make them with kind: crown",
                code="chips",
            )


def uav_chips_of(task: Task, context: TaskContext, prefix: str = "") -> str:
    """Folder or URL of the store of a task, whose payload has that of its `UavChipSource`, its keys after a prefix."""
    store: str | None = task.payload.get(f"{prefix}store")
    return context.store.url(f"{task.payload[f'{prefix}chips']}/{STORE}") if store is None else store


def uav_store_facts(store: str) -> list[str]:
    """What tells a store outside the run from another, for the fingerprint of a step.

    Parameters
    ----------
    store : str
        Folder or fsspec URL.

    Raises
    ------
    OutputError
        If there is no finished store.
    """
    open_uav_chips(store)
    objects = Objects(store.rstrip("/"))
    digest = hashlib.sha256()
    for key, size in sorted(objects.sizes().items()):
        digest.update(f"\n{key} {size} ".encode())
        digest.update(objects.part(key, -min(size, _TAIL_BYTES), min(size, _TAIL_BYTES)) or b"")
    return [digest.hexdigest()]
