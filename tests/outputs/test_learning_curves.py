"""Learning curves with a validation part: repeatable pictures, and what cannot be drawn."""

from __future__ import annotations

import pytest

from geoeco.errors import InputError
from geoeco.outputs.learning_curves import validated_curve

STEPS = {"step": [0.0, 1.0, 2.0, 3.0], "loss": [2.0, 1.5, 1.0, 0.8]}
VALIDATION = {"step": [1.0, 3.0], "loss": [1.6, 1.2], "macro_f1": [0.4, float("nan")]}


def test_the_same_numbers_give_the_same_picture_and_others_another(tmp_path):
    one, same, other = (
        validated_curve(STEPS, {**VALIDATION, "loss": loss}, tmp_path / f"{number}.png", score="macro_f1").read_bytes()
        for number, loss in enumerate(([1.6, 1.2], [1.6, 1.2], [1.1, 1.2]))
    )
    assert one[:4] == b"\x89PNG"
    assert one == same != other


@pytest.mark.parametrize(
    ("steps", "validation"), [({}, VALIDATION), (STEPS, {}), (STEPS, {"step": [1.0], "loss": [1.0]})]
)
def test_curves_without_steps_epochs_or_their_score_are_refused(tmp_path, steps, validation):
    with pytest.raises(InputError, match="macro_f1"):
        validated_curve(steps, validation, tmp_path / "curve.png", score="macro_f1")
