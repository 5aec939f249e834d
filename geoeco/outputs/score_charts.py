"""Charts of an evaluation: a panel a task, a bar an encoder, its spread over folds as an error bar."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoeco.errors import InputError
from geoeco.outputs.preview import save_figure

__all__ = ["score_chart"]

_DPI = 100


def score_chart(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, metric: str | None = None) -> Path:
    """Draw the scores of encoders.

    Parameters
    ----------
    rows : sequence of mapping
        As of ``evaluation.json``: ``encoder, task, protocol, split, metric, mean, sd, n``.
    path : path-like
        ``.png``; replaced in one step. The same rows give the same bytes.
    metric : str, optional
        Which one is drawn; the first of each task, which is its main one, when not given.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If there is nothing to draw.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row["task"], row["metric"])
    shown = [row for row in rows if row["metric"] == (metric or first[row["task"]])]
    if not shown:
        raise InputError(
            "there are no scores to draw" + (f" by {metric!r}" if metric else ""),
            where=str(path),
            what_to_do=f"metrics: {', '.join(sorted({row['metric'] for row in rows})) or 'none'}",
        )
    tasks = list(dict.fromkeys(row["task"] for row in shown))
    encoders = list(dict.fromkeys(row["encoder"] for row in shown))
    ways = list(dict.fromkeys((row["protocol"], row["split"]) for row in shown))
    figure = Figure(figsize=(1.2 + (0.9 + 0.28 * len(encoders)) * len(ways), 0.5 + 2.4 * len(tasks)), dpi=_DPI)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(tasks), 1, squeeze=False)[:, 0]
    width = 0.8 / len(encoders)
    for axes, task in zip(panels, tasks, strict=True):
        here = {(r["encoder"], r["protocol"], r["split"]): r for r in shown if r["task"] == task}
        for position, encoder in enumerate(encoders):
            found = [here.get((encoder, *way), {}) for way in ways]
            axes.bar(
                np.arange(len(ways)) + (position - (len(encoders) - 1) / 2) * width,
                [np.nan if r.get("mean") is None else r["mean"] for r in found],
                width,
                yerr=[r.get("sd") or 0.0 for r in found],
                capsize=2,
                error_kw={"elinewidth": 0.8},
                label=encoder,
            )
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(ways)), [f"{protocol}\n{split}" for protocol, split in ways], fontsize=7)
        axes.set_title(task, fontsize=9)
        axes.set_ylabel(metric or first[task], fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(encoders), 4), fontsize=7)
    return save_figure(figure, path)
