"""The learning curve of a training as a picture, for the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from geoeco.errors import InputError
from geoeco.outputs.preview import save_figure

__all__ = ["learning_curve"]


def learning_curve(
    columns: Mapping[str, Sequence[float]], path: str | os.PathLike[str], *, title: str = "", smooth: int = 20
) -> Path:
    """Draw the loss of every head and, below it, the accuracy, against the step.

    Parameters
    ----------
    columns : mapping of str to sequence of float
        ``step``, ``loss_<head>`` and ``accuracy_<head>``, as ``metrics.csv`` of a pretraining has them.
    path : path-like
        ``.png``; replaced in one step. The same numbers give the same bytes.
    title : str
    smooth : int
        The curves are running means over one part in this many of the steps; steps themselves are drawn faintly.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If there is no step.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    steps = np.asarray(columns.get("step", ()), float)
    if not steps.size:
        raise InputError("a learning curve without a step", where=str(path))
    width = max(len(steps) // smooth, 1)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, kind, label in zip(axes, ("loss_", "accuracy_"), ("loss, nats", "accuracy"), strict=True):
        for name in sorted(name for name in columns if name.startswith(kind)):
            values = np.asarray(columns[name], float)
            (line,) = axis.plot(steps, values, linewidth=0.5, alpha=0.3)
            running = np.convolve(values, np.full(width, 1 / width), mode="valid")
            axis.plot(steps[width - 1 :], running, color=line.get_color(), label=f"head {name.removeprefix(kind)}")
        axis.set_ylabel(label)
        axis.legend(loc="best", frameon=False)
    axes[0].set_title(title)
    axes[-1].set_xlabel("step")
    return save_figure(figure, path)
