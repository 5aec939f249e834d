"""Confusion matrices as pictures."""

from __future__ import annotations

import numpy as np
import pytest

from geoeco.errors import InputError
from geoeco.outputs.confusion_charts import confusion_chart

NAMES = ("dry land", "a name as long as those of some habitats are", "water")
COUNTS = np.array([[90, 10, 0], [30, 70, 0], [0, 0, 0]])


def test_the_same_numbers_are_the_same_picture_and_others_another(tmp_path):
    def draw(counts, name):
        return confusion_chart(counts, NAMES, tmp_path / name, title="a title").read_bytes()

    first = draw(COUNTS, "a.png")
    assert first[:4] == b"\x89PNG"
    assert draw(COUNTS, "b.png") == first
    assert draw(COUNTS.T, "c.png") != first


def test_classes_that_are_neither_there_nor_predicted_are_left_out(tmp_path):
    small = confusion_chart(COUNTS[:2, :2], NAMES[:2], tmp_path / "two.png").read_bytes()
    assert confusion_chart(COUNTS, NAMES, tmp_path / "three.png").read_bytes() == small


@pytest.mark.parametrize("counts", [np.zeros((3, 3), int), COUNTS[:2], COUNTS[:2, :2]])
def test_matrices_with_nothing_to_draw_are_refused(tmp_path, counts):
    with pytest.raises(InputError, match="confusion matrix"):
        confusion_chart(counts, NAMES, tmp_path / "none.png")
