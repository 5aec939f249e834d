"""A run folder as an object: its state, what failed, what each step made."""

from __future__ import annotations

import html
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoeco.engine.imagery import items_from_document, resolve_inputs
from geoeco.engine.keys import DATA_VERSION
from geoeco.engine.ledger import Ledger
from geoeco.engine.recipes import Recipe
from geoeco.engine.stores import RunStore
from geoeco.engine.verbs import PlanContext, PlannedStep, RunContext
from geoeco.errors import InputError
from geoeco.grid import blocks as cut

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "load_run"]

_COLUMNS = ("task", "step", "state", "item", "asset", "code", "what", "what_to_do")


class Run:
    """What came of a run; reads the run folder when asked.

    Parameters
    ----------
    store : RunStore
    recipe_type : type of Recipe
    """

    def __init__(self, store: RunStore, recipe_type: type[Recipe]) -> None:
        self.store = store
        self.recipe_type = recipe_type

    @property
    def info(self) -> dict[str, Any]:
        """``run.json``.

        Raises
        ------
        InputError
            If the folder holds no run.
        """
        try:
            info: dict[str, Any] = self.store.read_json("run.json")
        except (FileNotFoundError, ValueError) as error:
            raise InputError(
                "the folder holds no run", where=self.store.url(), what_to_do="start one with `geoeco run`"
            ) from error
        return info

    @property
    def recipe(self) -> Recipe:
        """The recipe that the folder was made with."""
        info = self.info
        return self.recipe_type.from_document(
            info["recipe"], folder=info["recipe_folder"], source=self.store.url("run.json")
        )

    @property
    def state(self) -> str:
        """``complete``, ``partial``, ``failed``, ``interrupted``, ``disk-full``; ``running`` also if it was killed."""
        return str(self.info["state"])

    @property
    def exit_code(self) -> int:
        """0 complete, 3 partial, 1 failed."""
        code = self.info["exit_code"]
        return 3 if code is None else int(code)

    @property
    def manifest(self) -> dict[str, Any]:
        """``manifest.json``: all tasks with state, key, digest and outputs; the same for the same run."""
        manifest: dict[str, Any] = self.store.read_json("manifest.json")
        return manifest

    def counts(self) -> dict[str, Counter[str]]:
        """Tasks by state for each step, by plan and ledger: right also while a run is going or after it was killed."""
        plan = self.store.read_json("plan.json")
        records = Ledger(self.store).load(step["name"] for step in plan["steps"])
        found: dict[str, Counter[str]] = {}
        for step in plan["steps"]:
            names = [task["id"] for stage in step["stages"] for task in stage["tasks"]]
            found[step["name"]] = Counter(
                str(records[name]["state"])
                if name in records and records[name]["step_hash"] == step["hash"]
                else "waiting"
                for name in names
            )
        return found

    @property
    def failures(self) -> pd.DataFrame:
        """Failed and blocked tasks and the scenes that were left out, one row each.

        Columns ``task, step, state, item, asset, code, what, what_to_do``; ``quarantine.json`` has tracebacks too.
        """
        import pandas as pd

        try:
            rows = self.store.read_json("quarantine.json")
        except FileNotFoundError:
            rows = []
        return pd.DataFrame([{name: row.get(name, "") for name in _COLUMNS} for row in rows], columns=list(_COLUMNS))

    def open(self, step: str) -> Any:
        """Open what a step made, as its verb opens it (for example a cube as an `xarray.Dataset`).

        Parameters
        ----------
        step : str
            Name of the step.

        Raises
        ------
        InputError
            If there is no such step, or its verb has nothing to open.
        """
        recipe = self.recipe
        names = [settings.step for settings in recipe.steps]
        if step not in names:
            raise InputError(f"the run has no step {step!r}", what_to_do=f"steps: {', '.join(names)}")
        settings = recipe.steps[names.index(step)]
        verb = recipe.registry.verb(settings.verb)
        try:
            items = items_from_document(recipe, self.store.read_json("items.json"))
        except FileNotFoundError:
            items = []
        geobox, found = resolve_inputs(recipe, items=items)
        size = recipe.grid.block if recipe.grid else 1024
        cells = tuple(cut(geobox, size)) if geobox is not None else ()
        plan = PlanContext(recipe, geobox, cells, found, {}, recipe.folder, DATA_VERSION)
        planned = PlannedStep(step, verb, settings, (), str(self.info["steps"].get(step, "")), ())
        return verb.open(settings, RunContext(self.store, step, planned, plan))

    def path(self, name: str = "") -> str:
        """Full path or URL of a name in the run folder."""
        return self.store.url(name)

    def __repr__(self) -> str:
        return f"Run({self.store.url()!r}, state={self.state!r}, exit_code={self.exit_code})"

    def _repr_html_(self) -> str:
        texts = {step: ", ".join(f"{n} {s}" for s, n in sorted(count.items())) for step, count in self.counts().items()}
        rows = "".join(
            f"<tr><td>{html.escape(step)}</td><td>{html.escape(text)}</td></tr>" for step, text in texts.items()
        )
        return (
            f"<p><b>{html.escape(self.info['recipe']['name'])}</b>: {html.escape(self.state)} "
            f"(exit code {self.exit_code}), {html.escape(self.store.url())}</p>"
            f"<table><tr><th>step</th><th>tasks</th></tr>{rows}</table>"
        )


def load_run(out: str | Path, recipe_type: type[Recipe]) -> Run:
    """Open the run folder of an earlier run.

    Parameters
    ----------
    out : str or Path
    recipe_type : type of Recipe
        ``geoeco.Recipe``.

    Raises
    ------
    InputError
        If the folder holds no run.
    """
    run = Run(RunStore(out), recipe_type)
    _ = run.info
    return run
