"""Running recipes: plan, ledger, execution, clusters, events, report. Knows no sensor and fills no registry."""

from __future__ import annotations

from geoeco.engine.driver import run_recipe
from geoeco.engine.keys import DATA_VERSION
from geoeco.engine.planning import IDLE_WORKER_BYTES, Plan, make_plan
from geoeco.engine.recipes import Grid, Imagery, Inputs, Recipe, RecipePath, recipe_path
from geoeco.engine.registry import Registry
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
    "load_run",
    "make_plan",
    "recipe_path",
    "run_recipe",
]
