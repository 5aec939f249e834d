"""Running recipes: plan, ledger, execution, clusters, events, report. Knows no sensor and fills no registry."""

from __future__ import annotations

from geoeco.engine.clusters import connect, load_presets, presets_file
from geoeco.engine.driver import run_recipe
from geoeco.engine.keys import DATA_VERSION
from geoeco.engine.planning import IDLE_WORKER_BYTES, Plan, machine_memory, make_plan, megabytes
from geoeco.engine.progress import PlainLines, progress_for
from geoeco.engine.provenance import geoeco_revision, package_versions
from geoeco.engine.recipes import Grid, Imagery, Inputs, Recipe, RecipePath, recipe_path
from geoeco.engine.registry import Registry
from geoeco.engine.report import write_report
from geoeco.engine.runs import Run, load_run
from geoeco.engine.stores import RunStore
from geoeco.engine.verbs import (
    Dropped,
    Output,
    PlanContext,
    PlannedStep,
    RunContext,
    Stage,
    StepSettings,
    Task,
    TaskContext,
    TaskResult,
    Verb,
)

__all__ = [
    "DATA_VERSION",
    "IDLE_WORKER_BYTES",
    "Dropped",
    "Grid",
    "Imagery",
    "Inputs",
    "Output",
    "PlainLines",
    "Plan",
    "PlanContext",
    "PlannedStep",
    "Recipe",
    "RecipePath",
    "Registry",
    "Run",
    "RunContext",
    "RunStore",
    "Stage",
    "StepSettings",
    "Task",
    "TaskContext",
    "TaskResult",
    "Verb",
    "connect",
    "geoeco_revision",
    "load_presets",
    "load_run",
    "machine_memory",
    "make_plan",
    "megabytes",
    "package_versions",
    "presets_file",
    "progress_for",
    "recipe_path",
    "run_recipe",
    "write_report",
]
