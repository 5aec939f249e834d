"""What a verb of a recipe is: typed settings, a plan, a function for one task, a finish.

A verb plans tasks without touching anything, and runs one task at a time; it never schedules, retries or keeps books:
that is the engine's. Nothing here knows a sensor or a file format.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from geoeco.errors import InputError

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from geoeco.engine.recipes import Recipe
    from geoeco.engine.stores import RunStore
    from geoeco.grid import Block

__all__ = [
    "Dropped",
    "Output",
    "PlanContext",
    "PlannedStep",
    "RunContext",
    "Stage",
    "StepSettings",
    "Task",
    "TaskContext",
    "TaskResult",
    "Verb",
]

#: One part of a task id, and the name of a step: safe as a file name on every file system and in every object store.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$"


class StepSettings(BaseModel):
    """Base of the settings of a verb.

    A subclass adds ``verb: Literal["its name"] = "its name"`` and its own keys, each with a type, limits and a
    one-line ``Field(description=...)`` that the JSON schema shows.

    Attributes
    ----------
    verb : str
        Which verb; the discriminator of the recipe's list of steps.
    name : str, optional
        Name of the step and of its folder; the verb's name when not given. Unique in the recipe.
    unhashed : frozenset of str
        Keys that say how the work is done and not what comes out (class attribute): no part of the step hash.
    """

    # keys are hashed as JSON, which has neither
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})

    verb: str
    name: str | None = Field(default=None, pattern=NAME_PATTERN, description="name of the step and of its folder")

    @property
    def step(self) -> str:
        """Name of the step."""
        return self.name or self.verb


@dataclass(frozen=True)
class Task:
    """The unit of work, of retry and of resume.

    Attributes
    ----------
    id : str
        ``"<step>/<stage>/<key>"``, unique in the run; see `Task.make`.
    payload : dict
        What the task needs to know, JSON only. It is part of the task's key: what changes the result belongs here,
        what does not (host names, clocks) doesn't.
    depends : tuple of str
        Ids of the tasks whose results this one reads.
    memory_bytes : int
        Upper bound of what the task adds to the memory of an idle worker.
    bytes_in, bytes_out : int
        Estimates of what is read and written.
    block : tuple of int, optional
        (row, column) on the map of block states.
    items : tuple of str
        Ids of the STAC items that the task reads.
    resources : mapping
        What it takes of a Dask worker's resources, as ``{"GPU": 1}``; it runs only where they are. No part of the
        task's key.
    less_memory : str
        What the recipe can say so that the task takes less memory, where smaller blocks do not help. No part of the
        task's key.
    """

    id: str
    payload: dict[str, Any] = field(default_factory=dict)
    depends: tuple[str, ...] = ()
    memory_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    block: tuple[int, int] | None = None
    items: tuple[str, ...] = ()
    resources: Mapping[str, float] = field(default_factory=dict)
    less_memory: str = ""

    def __post_init__(self) -> None:
        parts = self.id.split("/")
        if len(parts) != 3 or not all(re.match(NAME_PATTERN, part) for part in parts):
            raise ValueError(f"a task id is '<step>/<stage>/<key>' of letters, digits, _ . -; not {self.id!r}")

    @property
    def step(self) -> str:
        """Name of the step."""
        return self.id.split("/")[0]

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.id.split("/")[1]

    @property
    def key(self) -> str:
        """Last part of the id, for example the block's id."""
        return self.id.split("/")[2]


@dataclass(frozen=True)
class Stage:
    """A set of like tasks of one step.

    Attributes
    ----------
    name : str
    tasks : tuple of Task
        In the order in which they should be started and are listed.
    needs_all : bool
        True: a task of which an upstream task is missing is not run (state ``blocked``). False: it runs over what is
        there (state ``partial``), unless all of it is missing.
    """

    name: str
    tasks: tuple[Task, ...]
    needs_all: bool = True


@dataclass(frozen=True)
class Output:
    """Something that a task or a finish wrote.

    Attributes
    ----------
    path : str
        Relative to the run folder, with forward slashes.
    bytes : int, optional
        Size of the file; None for a part of a larger store, which is then not checked by size.
    sha256 : str, optional
        Hex digest of the file.
    kind : str
        ``"data"``; ``"quicklook"`` for a PNG that the report shows; ``"table"``, ``"metadata"`` as the step likes;
        ``"part"`` for a file of a larger store, which only the ledger lists, so that resume sees when it is gone.
    title : str
        Caption in the report.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None
    kind: str = "data"
    title: str = ""


@dataclass(frozen=True)
class Dropped:
    """A scene (or other input) that a task left out because it is bad; makes the task's state ``degraded``."""

    item: str
    asset: str = ""
    code: str = ""
    what: str = ""
    what_to_do: str = ""


@dataclass(frozen=True)
class TaskResult:
    """What one task gives back.

    Attributes
    ----------
    digest : str
        SHA-256 hex digest of the *content* produced (pixel values, table rows): the keys of dependent tasks are made
        of it, so it must not change with clocks, hosts or file-system details.
    outputs : tuple of Output
    dropped : tuple of Dropped
        Inputs left out.
    stats : dict
        Small facts for finish and report, JSON only.
    """

    digest: str
    outputs: Sequence[Output] = ()
    dropped: Sequence[Dropped] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes
    ----------
    name : str
    verb : Verb
    settings : StepSettings
    stages : tuple of Stage
    hash : str
        The chained step hash.
    upstream : tuple of str
        Names of the steps that it builds on.
    """

    name: str
    verb: Verb
    settings: StepSettings
    stages: tuple[Stage, ...]
    hash: str
    upstream: tuple[str, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, stage by stage."""
        return tuple(task for stage in self.stages for task in stage.tasks)


@dataclass(frozen=True)
class PlanContext:
    """What a verb may look at when it plans (driver side; nothing may be written).

    Attributes
    ----------
    recipe : Recipe
    geobox : odc.geo.geobox.GeoBox or None
        The run's grid; None when the recipe has none.
    blocks : tuple of Block
        The grid cut into blocks of ``recipe.grid.block`` pixels.
    items : tuple of pystac.Item
        The imagery found, sorted by (datetime, id).
    steps : dict
        The steps planned so far, by name, in the recipe's order.
    recipe_folder : str
        Folder (or URL) that relative names of the recipe start from.
    data_version : int
    """

    recipe: Recipe
    geobox: GeoBox | None
    blocks: tuple[Block, ...]
    items: tuple[pystac.Item, ...]
    steps: Mapping[str, PlannedStep]
    recipe_folder: str
    data_version: int

    def path(self, name: str) -> str:
        """Absolute path or URL of a file that the recipe names (see `geoeco.engine.RecipePath`)."""
        from geoeco.engine.recipes import recipe_path

        return recipe_path(name, self.recipe_folder)

    def table(self, name: str) -> str:
        """Absolute path or URL of a named table of the recipe's inputs.

        Raises
        ------
        InputError
            If the recipe's inputs have no table of this name.
        """
        return self.recipe.table_path(name, self.recipe_folder)

    def step(self, name: str | None = None, *, verb: str | None = None) -> PlannedStep:
        """Find an upstream step by name, or the nearest one before with the given verb.

        Raises
        ------
        InputError
            If there is none.
        """
        found = [
            step
            for step in self.steps.values()
            if (name is None or step.name == name) and (verb is None or step.verb.name == verb)
        ]
        if not found:
            wanted = " ".join(
                ([f"named {name!r}"] if name else []) + ([f"with the verb {verb!r}"] if verb or not name else [])
            )
            raise InputError(
                f"there is no earlier step {wanted}",
                what_to_do="steps before this one: "
                + (", ".join(f"{step.name} ({step.verb.name})" for step in self.steps.values()) or "none"),
                code="recipe",
            )
        return found[-1]


@dataclass(frozen=True)
class RunContext:
    """What a verb may use on the driver when it prepares and finishes a step.

    Attributes
    ----------
    store : RunStore
        The run folder.
    folder : str
        The step's own folder, relative to the run folder (equal to the step's name).
    step : PlannedStep
    plan : PlanContext
        As at planning; ``plan.steps`` holds the steps before this one.
    """

    store: RunStore
    folder: str
    step: PlannedStep
    plan: PlanContext

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.plan.recipe

    @property
    def geobox(self) -> GeoBox | None:
        """The run's grid."""
        return self.plan.geobox

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.plan.recipe.seed

    def items_for(self, task: Task) -> list[pystac.Item]:
        """Items that a task reads, in the order in which the task names them."""
        by_id = {item.id: item for item in self.plan.items}
        return [by_id[name] for name in task.items]

    def path(self, name: str) -> str:
        """Absolute path or URL of a file that the recipe names."""
        return self.plan.path(name)


@dataclass(frozen=True)
class TaskContext:
    """What a verb may use in one task; small, because it travels to the worker.

    Attributes
    ----------
    store : RunStore
    folder : str
        The step's own folder, relative to the run folder.
    settings : StepSettings
    recipe : Recipe
    geobox : odc.geo.geobox.GeoBox or None
    recipe_folder : str
    packed_items : bytes
        STAC JSON of the task's items, compressed; `items_for` gives them.
    upstream : dict
        Ledger records of the upstream tasks that are there, by task id: ``digest``, ``outputs``, ``stats``.
    missing : tuple of str
        Ids of upstream tasks that are not (only where the stage has ``needs_all=False``).
    split : int
        1; 4 when a worker died on this task (most likely of memory): the verb may then work through the block in
        that many parts. The result must be the same bytes.
    scratch : str
        Where `scratch_path` is made when it is asked for.
    """

    store: RunStore
    folder: str
    settings: StepSettings
    recipe: Recipe
    geobox: GeoBox | None
    recipe_folder: str
    packed_items: bytes = b""
    upstream: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    split: int = 1
    scratch: str = ""

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.seed

    def task_seed(self, task: Task) -> int:
        """Seed (64 bits) of one task: made of the recipe's seed and the task's id alone."""
        text = f"{self.recipe.seed}:{task.id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def items_for(self, task: Task) -> list[pystac.Item]:
        """Items that the task reads, in the order in which the task names them."""
        import pystac

        documents = json.loads(zlib.decompress(self.packed_items)) if self.packed_items else []
        by_id = {document["id"]: document for document in documents}
        return [pystac.Item.from_dict(by_id[name], preserve_dict=False, migrate=False) for name in task.items]

    def path(self, name: str) -> str:
        """Absolute path or URL of a file that the recipe names."""
        from geoeco.engine.recipes import recipe_path

        return recipe_path(name, self.recipe_folder)

    @property
    def scratch_path(self) -> Path:
        """A local folder of this task alone, removed after it; made at the first asking."""
        path = Path(self.scratch)
        path.mkdir(parents=True, exist_ok=True)
        return path


class Verb(ABC):
    """A verb of a recipe; one module a verb.

    Class attributes
    ----------------
    name : str
        As in the recipe.
    Settings : type of StepSettings
    version : int
        Raise it when the same settings would give other bytes; part of the step hash.
    uses_items, uses_grid, uses_block_size, uses_seed : bool
        What, beside its settings and upstream steps, the step's result rests on; only these enter the step hash. A
        step that merely works block by block but whose result does not depend on the cut leaves `uses_block_size`
        False; one whose *stored* layout follows the blocks (shards) says True.
    overlaps : bool
        True: tasks read nothing that the `finish` of an upstream step writes, so each may start as soon as its own
        upstream tasks are done. False: they wait until the upstream steps are finished.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[StepSettings]]
    version: ClassVar[int] = 1
    uses_items: ClassVar[bool] = False
    uses_grid: ClassVar[bool] = False
    uses_block_size: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False
    overlaps: ClassVar[bool] = False

    @abstractmethod
    def plan(self, settings: Any, context: PlanContext) -> tuple[Stage, ...]:
        """List the step's tasks; pure, on the driver, without writing or reading pixels."""

    @abstractmethod
    def run(self, settings: Any, task: Task, context: TaskContext) -> TaskResult:
        """Do one task, on a worker. Idempotent: writes the same bytes whenever it is repeated.

        Raises
        ------
        TransientError
            For faults worth trying again; every other error sends the task to quarantine at once.
        """

    def prepare(self, settings: Any, context: RunContext) -> None:  # noqa: B027
        """Run on the driver before the step's first missing task; idempotent (templates, never ``mode="w"``)."""

    def finish(
        self,
        settings: Any,  # noqa: ARG002
        context: RunContext,  # noqa: ARG002
        records: Sequence[Mapping[str, Any]],  # noqa: ARG002
    ) -> Sequence[Output] | None:
        """Run on the driver when the step's tasks are through (catalogue JSON, merged tables); idempotent.

        Parameters
        ----------
        settings : StepSettings
        context : RunContext
        records : sequence of dict
            Ledger records of the tasks that are there, in the plan's order: ``id, state, digest, outputs, dropped,
            stats``. Tasks in quarantine or blocked are missing.

        Returns
        -------
        sequence of Output, optional
        """
        return None

    def fingerprint(self, settings: Any, context: PlanContext) -> Mapping[str, Any]:  # noqa: ARG002
        """Further facts that enter the step hash, JSON only: for example the digest of a table that it reads."""
        return {}

    def upstream(
        self,
        settings: Any,  # noqa: ARG002
        context: PlanContext,  # noqa: ARG002
        stages: Sequence[Stage],
    ) -> tuple[str, ...]:
        """Names of the steps that this one builds on; by default those that its tasks depend on."""
        names = {depend.split("/")[0] for stage in stages for task in stage.tasks for depend in task.depends}
        return tuple(sorted(names - {task.step for stage in stages for task in stage.tasks}))

    def open(self, settings: Any, context: RunContext) -> Any:  # noqa: ARG002
        """Open what the step made, for ``Run.open(step)``.

        Raises
        ------
        InputError
            If the verb makes nothing that can be opened.
        """
        raise InputError(f"the verb {self.name!r} has nothing to open", where=context.folder)
