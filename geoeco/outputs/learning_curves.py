"""The learning curve of a training as a picture, for the report."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from geoeco.errors import InputError
from geoeco.outputs.preview import save_figure

__all__ = ["learning_curve", "validated_curve"]


def learning_curve(
    columns: Mapping[str, Sequence[float]], path: str | os.PathLike[str], *, title: str = "", smooth: int = 20
) -> Path:
    """Draw the loss of every head and, below it, the accuracy where it is there, against the step.

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
        If there is no step or no head.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    steps = np.asarray(columns.get("step", ()), float)
    if not steps.size:
        raise InputError("a learning curve without a step", where=str(path))
    width = max(len(steps) // smooth, 1)
    figure = Figure(figsize=(7, 5), layout="constrained")
    labels = {"loss_": "loss, nats", "accuracy_": "accuracy"}
    kinds = [kind for kind in labels if any(name.startswith(kind) for name in columns)]
    if not kinds:
        raise InputError("a learning curve without a head", where=str(path), what_to_do="give loss_<head>")
    axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axis, kind in zip(axes, kinds, strict=True):
        for name in sorted(name for name in columns if name.startswith(kind)):
            values = np.asarray(columns[name], float)
            (line,) = axis.plot(steps, values, linewidth=0.5, alpha=0.3)
            running = np.convolve(values, np.full(width, 1 / width), mode="valid")
            axis.plot(steps[width - 1 :], running, color=line.get_color(), label=f"head {name.removeprefix(kind)}")
        axis.set_ylabel(labels[kind])
        axis.legend(loc="best", frameon=False)
    axes[0].set_title(textwrap.fill(title, 90), fontsize=9)
    axes[-1].set_xlabel("step")
    return save_figure(figure, path)


def validated_curve(
    steps: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    score: str = "",
    highest: bool = False,
) -> Path:
    """Draw the loss of each step beside the loss of the validation part, and below it a score of that part.

    Parameters
    ----------
    steps : mapping of str to sequence of float
        ``step`` and ``loss``.
    validation : mapping of str to sequence of float
        ``step``, ``loss`` and `score`, a value an epoch.
    path : path-like
        ``.png``; replaced in one step. The same numbers give the same bytes.
    title : str
    score : str
        Name of the column of `validation` that is drawn below.
    highest : bool
        Which step is marked as the one whose weights are kept: that of the highest score, or of the lowest loss.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If there is no step or no epoch, or no such score.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    if not len(steps.get("step", ())) or not len(validation.get("step", ())) or score not in validation:
        raise InputError(
            f"a learning curve without a step, an epoch or the score {score!r}",
            where=str(path),
            what_to_do=f"give step, loss and one of: {', '.join(validation)}",
        )
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    axes[0].plot(steps["step"], steps["loss"], linewidth=0.5, alpha=0.5, label="training")
    axes[0].plot(validation["step"], validation["loss"], marker=".", label="validation")
    axes[1].plot(validation["step"], validation[score], marker=".", color="C1", label="validation")
    kept = int(np.argmax(validation[score]) if highest else np.argmin(validation["loss"]))
    best = validation["step"][kept]
    for axis, label in zip(axes, ("loss", score), strict=True):
        axis.axvline(best, color="0.5", linewidth=0.8, linestyle="--", label="weights kept")
        axis.set_ylabel(label)
        axis.legend(loc="best", frameon=False)
    axes[0].set_title(textwrap.fill(title, 90), fontsize=9)
    axes[-1].set_xlabel("step")
    return save_figure(figure, path)
