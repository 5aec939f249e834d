"""The plan: every task of a run with what it reads, writes and needs in memory, before anything is done."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoeco.engine.imagery import items_from_document, resolve_inputs
from geoeco.engine.keys import DATA_VERSION, canonical_json, step_hash
from geoeco.engine.recipes import Recipe
from geoeco.engine.stores import RunStore
from geoeco.engine.verbs import PlanContext, PlannedStep, Stage, Task, Verb
from geoeco.errors import ClusterError, RecipeError
from geoeco.grid import blocks as cut

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from geoeco.grid import Block

__all__ = ["IDLE_WORKER_BYTES", "Plan", "machine_memory", "make_plan", "megabytes"]

#: Memory of a worker process that has imported geoeco, GDAL, zarr and numba and does nothing; an upper bound, which a
#: test measures.
IDLE_WORKER_BYTES = 420 * 2**20


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    recipe : Recipe
    geobox : odc.geo.geobox.GeoBox or None
    blocks : tuple of Block
    items : tuple of pystac.Item
    steps : tuple of PlannedStep
    workers : int
        For the estimate of time.
    rates : dict
        Worker-seconds per task and per byte by verb, from past runs.
    """

    recipe: Recipe
    geobox: GeoBox | None
    blocks: tuple[Block, ...]
    items: tuple[pystac.Item, ...]
    steps: tuple[PlannedStep, ...]
    workers: int = 1
    rates: Mapping[str, Mapping[str, float]] | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the order in which they are listed everywhere."""
        return tuple(task for step in self.steps for task in step.tasks)

    @property
    def bytes_in(self) -> int:
        """Bytes read, estimated."""
        return sum(task.bytes_in for task in self.tasks)

    @property
    def bytes_out(self) -> int:
        """Bytes written, estimated."""
        return sum(task.bytes_out for task in self.tasks)

    @property
    def peak_memory_bytes(self) -> int:
        """Upper bound of the memory of a worker process that does one task at a time."""
        return IDLE_WORKER_BYTES + max((task.memory_bytes for task in self.tasks), default=0)

    @property
    def worker_seconds(self) -> float | None:
        """Seconds of one worker, from past runs; None if a step has no past."""
        total = 0.0
        for step in self.steps:
            seconds = self._step_seconds(step)
            if seconds is None:
                return None
            total += seconds
        return total

    def _step_seconds(self, step: PlannedStep) -> float | None:
        rate = (self.rates or {}).get(step.verb.name)
        if rate is None:
            return None if step.tasks else 0.0
        size = sum(task.bytes_in + task.bytes_out for task in step.tasks)
        if size and rate.get("seconds_per_byte"):
            return rate["seconds_per_byte"] * size
        return rate["seconds_per_task"] * len(step.tasks)

    @property
    def minutes(self) -> float | None:
        """Estimated minutes on `workers` workers; None if a step has no past."""
        seconds = self.worker_seconds
        return None if seconds is None else seconds / 60 / max(self.workers, 1)

    def check_memory(self, limit: int | None, *, threads: int = 1) -> None:
        """Refuse a plan that a worker cannot hold.

        Parameters
        ----------
        limit : int, optional
            Bytes of one worker process; None checks nothing.
        threads : int
            Tasks that it does at a time.

        Raises
        ------
        ClusterError
            Naming the task that needs most.
        """
        if limit is None or not self.tasks:
            return
        largest = max(self.tasks, key=lambda task: task.memory_bytes)
        need = IDLE_WORKER_BYTES + largest.memory_bytes * threads
        if need > limit:
            raise ClusterError(
                f"a worker would need up to {megabytes(need)} but has {megabytes(limit)}"
                + (f" for {threads} tasks at a time" if threads > 1 else ""),
                where=largest.id,
                what_to_do=f"{largest.less_memory or 'make grid.block smaller'}, use fewer workers on this machine, or "
                "raise --memory-limit",
                code="memory",
            )

    def document(self) -> dict[str, Any]:
        """Plain data for ``plan.json``."""
        geobox = self.geobox
        return {
            "name": self.recipe.name,
            "grid": None
            if geobox is None
            else {
                "crs": str(geobox.crs),
                "shape": [int(n) for n in geobox.shape],
                "transform": [float(v) for v in tuple(geobox.transform)[:6]],
                "block": self.recipe.grid.block if self.recipe.grid else None,
            },
            "blocks": len(self.blocks),
            "items": len(self.items),
            "tasks": len(self.tasks),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "peak_memory_bytes": self.peak_memory_bytes,
            "steps": [
                {
                    "name": step.name,
                    "verb": step.verb.name,
                    "hash": step.hash,
                    "upstream": list(step.upstream),
                    "stages": [
                        {
                            "name": stage.name,
                            "needs_all": stage.needs_all,
                            "tasks": [
                                {
                                    "id": task.id,
                                    "block": list(task.block) if task.block else None,
                                    "depends": list(task.depends),
                                    "items": len(task.items),
                                    "memory_bytes": task.memory_bytes,
                                    "bytes_in": task.bytes_in,
                                    "bytes_out": task.bytes_out,
                                }
                                for task in stage.tasks
                            ],
                        }
                        for stage in step.stages
                    ],
                }
                for step in self.steps
            ],
        }

    def rows(self) -> list[tuple[str, str, int, int, int, int, float | None]]:
        """One row a step: name, verb, tasks, bytes in, bytes out, largest task's memory, worker seconds."""
        return [
            (
                step.name,
                step.verb.name,
                len(step.tasks),
                sum(task.bytes_in for task in step.tasks),
                sum(task.bytes_out for task in step.tasks),
                max((task.memory_bytes for task in step.tasks), default=0),
                self._step_seconds(step),
            )
            for step in self.steps
        ]

    def facts(self) -> list[tuple[str, str]]:
        """Return what a reader wants to know first, as (name, value)."""
        found = [("recipe", self.recipe.name)]
        if self.geobox is not None:
            rows, cols = (int(n) for n in self.geobox.shape)
            found.append(("grid", f"{cols} x {rows} px, {self.geobox.crs}, {len(self.blocks)} blocks"))
        if self.items:
            found.append(("imagery", f"{len(self.items)} items"))
        found += [
            ("tasks", str(len(self.tasks))),
            ("read", megabytes(self.bytes_in)),
            ("written", megabytes(self.bytes_out)),
            ("peak memory of a worker", f"at most {megabytes(self.peak_memory_bytes)}"),
            (
                "time",
                "unknown (no past run of every step)"
                if self.minutes is None
                else f"about {self.minutes:.1f} min on {self.workers} worker(s)",
            ),
        ]
        return found

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.facts())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.facts()
        )
        head = "".join(f"<th>{t}</th>" for t in ("step", "verb", "tasks", "read", "written", "memory of a task"))
        body = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(verb)}</td><td>{tasks}</td><td>{megabytes(read)}</td>"
            f"<td>{megabytes(written)}</td><td>{megabytes(memory)}</td></tr>"
            for name, verb, tasks, read, written, memory, _ in self.rows()
        )
        return f"<table>{cells}</table><table><tr>{head}</tr>{body}</table>"


def megabytes(size: int) -> str:
    """Bytes for readers: ``1,234 MiB``."""
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 or size == 0 else f"{size / 2**10:,.1f} KiB"


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_memory() -> int:
    """Bytes of memory of this machine or, where less, of the control group that this process lives in."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) > 0:
            limits.append(int(text))
    return min(limits)


def make_plan(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    items: Sequence[pystac.Item] | None = None,
    workers: int = 1,
    memory_limit: int | None = None,
    past: Iterable[str | Path] = (),
) -> Plan:
    """Plan a recipe: find its imagery, cut its grid, list its tasks. Nothing is written.

    Parameters
    ----------
    recipe : Recipe
    out : str or Path, optional
        Run folder; a search result kept there is used again, and runs beside it tell about time.
    items : sequence of pystac.Item, optional
        In place of a search.
    workers : int
        For the estimate of time.
    memory_limit : int, optional
        Bytes of one worker; a plan that needs more is refused.
    past : iterable of str or Path
        Further run folders whose timings are used.

    Returns
    -------
    Plan

    Raises
    ------
    GeoecoError
        Before any work, for everything that can be known now.
    """
    folders = [RunStore(folder) for folder in past]
    if out is not None:
        store = RunStore(out)
        folders = [store, *_siblings(store), *folders]
        if items is None:
            items = _kept_items(recipe, store)
    geobox, found = resolve_inputs(recipe, items=items)
    size = recipe.grid.block if recipe.grid else 1024
    cells = tuple(cut(geobox, size)) if geobox is not None else ()
    steps: dict[str, PlannedStep] = {}
    tasks: dict[str, Task] = {}
    for settings in recipe.steps:
        verb = recipe.registry.verb(settings.verb)
        context = PlanContext(recipe, geobox, cells, found, dict(steps), recipe.folder, DATA_VERSION)
        stages = tuple(verb.plan(settings, context))
        _check_stages(settings.step, stages, tasks, {item.id for item in found})
        upstream = tuple(verb.upstream(settings, context, stages))
        unknown = [name for name in upstream if name not in steps]
        if unknown:
            raise RecipeError(f"the step {settings.step!r} builds on {unknown[0]!r}, which is no earlier step")
        hashed = step_hash(
            verb=verb.name,
            version=verb.version,
            settings=settings.model_dump(mode="json", exclude=set(settings.unhashed)),
            upstream={name: steps[name].hash for name in upstream},
            facts=_facts(verb, settings, context),
        )
        steps[settings.step] = PlannedStep(settings.step, verb, settings, stages, hashed, upstream)
    plan = Plan(recipe, geobox, cells, found, tuple(steps.values()), workers, past_rates(folders))
    plan.check_memory(memory_limit)
    return plan


def _facts(verb: Verb, settings: Any, context: PlanContext) -> dict[str, Any]:
    facts: dict[str, Any] = {"own": dict(verb.fingerprint(settings, context))}
    if verb.uses_items:
        facts["items"] = sorted(f"{item.collection_id or ''}/{item.id}" for item in context.items)
    if verb.uses_grid and context.geobox is not None:
        box = context.geobox
        facts["grid"] = [str(box.crs), [int(n) for n in box.shape], [float(v) for v in tuple(box.transform)[:6]]]
    if verb.uses_block_size and context.recipe.grid is not None:
        facts["block"] = context.recipe.grid.block
    if verb.uses_seed:
        facts["seed"] = context.recipe.seed
    return facts


def _check_stages(step: str, stages: Sequence[Stage], tasks: dict[str, Task], items: set[str]) -> None:
    """Hold a verb to its word: ids, order, JSON; a breach is an error of the verb, not of the user."""
    for stage in stages:
        for task in stage.tasks:
            if (task.step, task.stage) != (step, stage.name):
                raise ValueError(f"the task {task.id!r} does not belong to {step}/{stage.name}")
            if task.id in tasks:
                raise ValueError(f"the task {task.id!r} is planned twice")
            late = [depend for depend in task.depends if depend not in tasks]
            if late:
                raise ValueError(f"the task {task.id!r} depends on {late[0]!r}, which is not planned before it")
            unknown = [name for name in task.items if name not in items]
            if unknown:
                raise ValueError(f"the task {task.id!r} reads {unknown[0]!r}, which was not found")
            canonical_json(task.payload)
            tasks[task.id] = task


def _kept_items(recipe: Recipe, store: RunStore) -> list[pystac.Item] | None:
    try:
        return items_from_document(recipe, store.read_json("items.json"))
    except (FileNotFoundError, KeyError, ValueError):
        return None


def _siblings(store: RunStore) -> list[RunStore]:
    if not store.is_local:
        return []
    own = Path(store.root)
    return [RunStore(path.parent) for path in sorted(own.parent.glob("*/run.json")) if path.parent != own][:20]


def past_rates(folders: Iterable[RunStore]) -> dict[str, dict[str, float]]:
    """Worker-seconds per task and per byte of each verb, pooled over past runs (their ``run.json``)."""
    sums: dict[str, list[float]] = {}
    for store in folders:
        try:
            steps = store.read_json("run.json")["timings"]["steps"]
        except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError):
            continue
        for entry in steps.values():
            total = sums.setdefault(entry["verb"], [0.0, 0.0, 0.0])
            total[0] += entry["seconds"]
            total[1] += entry["tasks"]
            total[2] += entry["bytes"]
    return {
        verb: {
            "seconds_per_task": seconds / tasks,
            "seconds_per_byte": seconds / size if size else 0.0,
        }
        for verb, (seconds, tasks, size) in sums.items()
        if tasks
    }
