"""A confusion matrix as a picture: which class is taken for which, and how much of each there is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError
from geoeco.outputs.preview import save_figure

__all__ = ["confusion_chart"]

#: Shares below this are drawn without a number.
_WRITTEN = 0.005


def confusion_chart(
    counts: npt.NDArray[Any],
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    counted: str = "pixels",
) -> Path:
    """Draw the share of each true class that is predicted as each class.

    Parameters
    ----------
    counts : numpy.ndarray
        ``(class, class)`` numbers, rows are the truth.
    classes : sequence of str
        Their names; classes that are neither there nor predicted are left out.
    path : path-like
        ``.png``; replaced in one step. The same numbers give the same bytes.
    title : str
    counted : str
        What the numbers are of.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If shapes do not fit, or there is nothing to draw.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    table = np.asarray(counts)
    if table.shape != (len(classes),) * 2 or not table.any():
        raise InputError(f"a confusion matrix of shape {table.shape} for {len(classes)} classes", where=str(path))
    shown = np.flatnonzero(table.any(axis=0) | table.any(axis=1))
    table, names = table[np.ix_(shown, shown)], [classes[int(number)] for number in shown]
    support = table.sum(axis=1)
    shares = table / np.maximum(support, 1)[:, None]
    # inches: the matrix, and the names beside and below it
    matrix, labelled = 0.8 + 0.42 * len(names), 0.065 * max(map(len, names))
    figure = Figure(figsize=(matrix + labelled + 2.6, matrix + 0.75 * labelled + 1.2), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(np.where(support[:, None] > 0, shares, np.nan), vmin=0, vmax=1, cmap="Blues")
    for (row, column), share in np.ndenumerate(shares):
        if share >= _WRITTEN:
            colour = "white" if share > 0.55 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    labels = [f"{name}  ({100 * part:.1f} %)" for name, part in zip(names, support / support.sum(), strict=True)]
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_xlabel("predicted as", fontsize=8)
    axes.set_ylabel(f"truth (share of all {counted})", fontsize=8)
    axes.set_title(title, fontsize=8, wrap=True)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("% of the true class", fontsize=8)
    bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100"], fontsize=7)
    return save_figure(figure, path)
