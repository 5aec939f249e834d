"""Files of scores that come from confusion matrices: rows of scores, what stands behind them, and a matrix as a table.

Scores themselves are `geoeco.training.ConfusionMatrix`'s; the files are as `geoeco.training.evaluate` leaves them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoeco.cubes.shards import Objects
from geoeco.training.confusion import BoundaryMatches, ConfusionMatrix
from geoeco.training.evaluation import DETAILS, TABLE, json_bytes

__all__ = ["CONFUSION", "finite_scores", "write_confusions"]

#: File with the confusion matrix of the part that was scored last.
CONFUSION = "confusion.csv"


def finite_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as JSON has them: None in place of what is not defined."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def write_confusions(
    folder: Path,
    about: Mapping[str, str],
    parts: Mapping[str, ConfusionMatrix],
    settings: Mapping[str, Any],
    *,
    outlines: Mapping[str, BoundaryMatches] | None = None,
    losses: Mapping[str, float] | None = None,
) -> None:
    """Write ``evaluation.json``, ``evaluation_details.json`` and ``confusion.csv``.

    Parameters
    ----------
    folder : Path
    about : mapping
        ``encoder, task, protocol`` of each row.
    parts : mapping
        By the set that was scored, of one at least. The table holds the last one.
    settings : mapping
        For the details.
    outlines : mapping, optional
        Of the sets whose outlines were compared; ``boundary_f1`` is the mean over the classes that are there.
    losses : mapping, optional
        Of the sets.
    """
    rows, details = [], []
    for part, confusion in parts.items():
        of_part = {**about, "split": part}
        means, by_class = confusion.summary(), confusion.rows()
        if outlines is not None and part in outlines:
            f1 = outlines[part].f1
            means["boundary_f1"] = confusion.mean(f1, "leave-out")
            for row, value in zip(by_class, f1, strict=True):
                row["boundary_f1"] = float(value) if math.isfinite(value) else None
        if losses is not None:
            means["loss"] = losses[part]
        rows += [
            {**of_part, "metric": metric, "mean": value, "sd": None, "n": 1}
            for metric, value in finite_scores(means).items()
        ]
        details.append(
            {
                **of_part,
                "classes": by_class,
                "unscored": list(confusion.unscored),
                "confusion": confusion.counts.tolist(),
            }
        )
    objects = Objects(str(folder))
    objects.put(DETAILS, [json_bytes({"settings": dict(settings), "results": details})])
    objects.put(CONFUSION, [_table(parts[list(parts)[-1]])])
    objects.put(TABLE, [json_bytes(rows)])


def _table(confusion: ConfusionMatrix) -> bytes:
    """A row a true class, a column a predicted one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth", *confusion.classes])
    writer.writerows(
        [name, *map(int, counts)] for name, counts in zip(confusion.classes, confusion.counts, strict=True)
    )
    return text.getvalue().encode()
