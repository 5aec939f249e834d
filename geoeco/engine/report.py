"""``report.html``: one file, without links to elsewhere, that shows what came of a run."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import jinja2

from geoeco.engine.ledger import STATES
from geoeco.engine.stores import RunStore

__all__ = ["write_report"]

#: Told apart also by those who see no red or green (Okabe and Ito 2008).
COLOURS = {
    "done": "#009e73",
    "degraded": "#f0e442",
    "partial": "#e69f00",
    "quarantined": "#d55e00",
    "blocked": "#999999",
    "waiting": "#dddddd",
}
SHOWN_STATES = (*STATES, "waiting")
MAX_QUICKLOOKS = 24
MAX_QUICKLOOK_BYTES = 3_000_000
MAX_TROUBLES = 500
MAX_MAP_PIXELS = 480


def write_report(store: RunStore) -> None:
    """Write ``report.html`` from what the run folder holds.

    Parameters
    ----------
    store : RunStore
        With ``run.json`` and ``manifest.json``.
    """
    info = store.read_json("run.json")
    manifest = store.read_json("manifest.json")
    plan = store.read_json("plan.json")
    try:
        troubles = store.read_json("quarantine.json")
    except FileNotFoundError:
        troubles = []
    looks, left_out = _quicklooks(store, manifest)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("geoeco.engine").joinpath("report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        name=info["recipe"]["name"],
        description=info["recipe"]["description"],
        state=manifest["state"],
        state_colour=COLOURS["done"] if manifest["exit_code"] == 0 else COLOURS["quarantined"],
        facts=_facts(info, manifest, plan),
        states=SHOWN_STATES,
        colours=COLOURS,
        steps=_steps(info, manifest),
        maps=_maps(manifest),
        looks=looks,
        looks_left_out=left_out,
        troubles=[_trouble(entry) for entry in troubles[:MAX_TROUBLES]],
        troubles_total=len(troubles),
        sessions=info["sessions"],
        recipe_text=info["recipe_text"],
        provenance=_provenance(info),
    )
    store.write_bytes("report.html", page.encode())


def _facts(info: Mapping[str, Any], manifest: Mapping[str, Any], plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("exit code", f"{manifest['exit_code']} (0 complete, 3 partial, 1 failed)")]
    grid = plan["grid"]
    if grid is not None:
        rows, cols = grid["shape"]
        facts.append(("grid", f"{cols} x {rows} px, {grid['crs']}, {plan['blocks']} blocks of {grid['block']}"))
    if info["items"]:
        facts.append(("imagery", f"{len(info['items'])} items"))
    counts = ", ".join(f"{count} {state}" for state, count in manifest["counts"].items() if count)
    facts += [("tasks", counts), ("seed", str(info["seed"]))]
    return facts


def _steps(info: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts: dict[str, Counter[str]] = {step["name"]: Counter() for step in manifest["steps"]}
    for task in manifest["tasks"]:
        counts[task["id"].split("/")[0]][task["state"]] += 1
    timings = info["timings"]["steps"]
    found = []
    for step in manifest["steps"]:
        timing = timings.get(step["name"], {})
        found.append(
            {
                "name": step["name"],
                "verb": step["verb"],
                "counts": counts[step["name"]],
                "finished": "yes" if step["finished"] else "no",
                "seconds": f"{timing['seconds']:.1f}" if timing else "",
                "peak": f"{timing['peak_bytes'] / 2**20:.0f}" if timing else "",
                "bound": f"{timing['bound_bytes'] / 2**20:.0f}" if timing else "",
            }
        )
    return found


def _maps(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Squares by row and column, one map for each stage whose tasks are blocks."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for task in manifest["tasks"]:
        if task["block"] is not None:
            groups.setdefault(task["id"].rsplit("/", 1)[0], []).append(task)
    maps = []
    for name, tasks in groups.items():
        rows = max(task["block"][0] for task in tasks) + 1
        cols = max(task["block"][1] for task in tasks) + 1
        size = max(2.0, min(48.0, MAX_MAP_PIXELS / max(rows, cols)))
        maps.append(
            {
                "name": name,
                "rows": rows,
                "cols": cols,
                "width": round(cols * size),
                "height": round(rows * size),
                "cells": [
                    {
                        "x": task["block"][1],
                        "y": task["block"][0],
                        "colour": COLOURS[task["state"]],
                        "title": f"{task['id'].rsplit('/', 1)[1]}: {task['state']}",
                    }
                    for task in tasks
                ],
            }
        )
    return maps


def _quicklooks(store: RunStore, manifest: Mapping[str, Any]) -> tuple[list[dict[str, str]], int]:
    listed = [output for step in manifest["steps"] for output in step["outputs"]]
    listed += [output for task in manifest["tasks"] for output in task["outputs"]]
    looks: list[dict[str, str]] = []
    left_out = 0
    for output in listed:
        if output["kind"] != "quicklook":
            continue
        size = store.size(output["path"])
        if size is None or size > MAX_QUICKLOOK_BYTES or len(looks) >= MAX_QUICKLOOKS:
            left_out += 1
            continue
        data = store.read_bytes(output["path"])
        looks.append({"title": output["title"] or output["path"], "data": base64.b64encode(data).decode()})
    return looks, left_out


def _trouble(entry: Mapping[str, Any]) -> dict[str, str]:
    names = ("task", "state", "item", "asset", "code", "what", "what_to_do")
    return {name: str(entry.get(name, "")) for name in names}


def _provenance(info: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    rows = [
        ("geoeco revision", info["geoeco_revision"] or "not from a checkout"),
        ("platform", info["platform"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in info["versions"].items())),
        ("GDAL settings", ", ".join(f"{name}={value}" for name, value in info["gdal_settings"].items())),
    ]
    rows += [(f"hash of step {name}", value) for name, value in info["steps"].items()]
    return rows
