"""Charts of scores: every bar is there, the same rows are the same file."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from geoeco.errors import InputError
from geoeco.outputs import score_chart


def rows(mean=0.5):
    return [
        {"encoder": e, "task": t, "protocol": p, "split": s, "metric": m, "mean": mean, "sd": 0.1, "n": 10}
        for e, (t, m), p, s in itertools.product(
            ("random", "moco", "seco $x$"),
            (("cover", "macro_f1"), ("cover", "accuracy"), ("temperature", "r2")),
            ("linear", "knn"),
            ("random", "blocks"),
        )
    ]


def test_the_same_rows_are_the_same_picture(tmp_path):
    one, two = score_chart(rows(), tmp_path / "a.png"), score_chart(rows(), tmp_path / "b.png")
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != score_chart(rows(0.6), tmp_path / "c.png").read_bytes()


def test_each_encoder_has_its_colour_in_each_panel(tmp_path):
    picture = np.asarray(Image.open(score_chart(rows(), tmp_path / "a.png")).convert("RGB"))
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):
        there = (picture == colour).all(axis=2)
        assert there[: len(picture) // 2].sum() > 500
        assert there[len(picture) // 2 :].sum() > 500


def test_scores_that_are_not_defined_leave_a_gap(tmp_path):
    table = [row | {"mean": None, "sd": None, "n": 0} if row["encoder"] == "moco" else row for row in rows()]
    picture = np.asarray(Image.open(score_chart(table, tmp_path / "a.png")).convert("RGB"))
    orange = (picture == (255, 127, 14)).all(axis=2)
    assert 0 < orange.sum() < 500, "in the legend only"


def test_another_metric_can_be_drawn_and_none_is_an_error(tmp_path):
    assert score_chart(rows(), tmp_path / "a.png", metric="accuracy").exists()
    with pytest.raises(InputError, match="no scores to draw by 'kappa'") as caught:
        score_chart(rows(), tmp_path / "b.png", metric="kappa")
    assert "macro_f1" in caught.value.what_to_do
    with pytest.raises(InputError, match="no scores to draw"):
        score_chart([], tmp_path / "b.png")
