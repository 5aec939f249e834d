"""The segmentation networks that are trained here: their settings where nothing else is asked for, their arguments.

Light to import, for plans. The networks are `geoeco.models`' and `geoeco.training.smp_adapter`'s; they are trained by
`geoeco.training.train_segmentation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from geoeco.errors import InputError

__all__ = ["SEGMENTER_DEFAULTS", "TrainingDefaults", "segmenter_arguments"]


@dataclass(frozen=True)
class TrainingDefaults:
    """What a network is trained with where nothing else is asked for.

    Attributes
    ----------
    epochs, batch, at_once : int
    lr, weight_decay : float
    """

    epochs: int
    batch: int
    at_once: int
    lr: float
    weight_decay: float


#: Networks by their architecture. DWFF-Net's settings and those of its baselines are its authors' (their code): 150
#: epochs, steps of 32 images, two of them at a time, AdamW with 1e-4 and 0.04.
SEGMENTER_DEFAULTS: Mapping[str, TrainingDefaults] = MappingProxyType(
    {
        "dwff": TrainingDefaults(150, 32, 2, 1e-4, 0.04),
        "smp": TrainingDefaults(150, 32, 8, 1e-4, 0.04),
        "conv_stack": TrainingDefaults(50, 8, 8, 3e-3, 0.0),
    }
)


def segmenter_arguments(
    network: str, arguments: Mapping[str, Any] | None, *, bands: int, classes: int
) -> dict[str, Any]:
    """Arguments of a network for so many bands and classes.

    Parameters
    ----------
    network : {"dwff", "smp", "conv_stack"}
    arguments : mapping, optional
        All but ``in_channels`` and ``num_classes``.
    bands, classes : int

    Raises
    ------
    InputError
        If there is no such network, or an argument is one that the chips say.
    """
    if network not in SEGMENTER_DEFAULTS:
        raise InputError(f"there is no network {network!r}", what_to_do=f"use one of: {', '.join(SEGMENTER_DEFAULTS)}")
    given = dict(arguments or {})
    for name in ("in_channels", "num_classes"):
        if name in given:
            raise InputError(f"{name} is said by the chips", what_to_do="leave it out", code="recipe")
    return {**given, "in_channels": bands, "num_classes": classes}
