"""Encoders that a training starts from: a bundle, or a network with weights from elsewhere, and what is noted of them.

Which weights there are, and reading them, is `geoeco.models.encoder_weights`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from geoeco.errors import InputError
from geoeco.models.encoder_weights import EncoderWeights
from geoeco.training.bundles import ModelBundle, Normalisation

__all__ = ["encoder_arguments", "origin_of", "scale_for"]


def encoder_arguments(encoder: ModelBundle, made_by: str) -> dict[str, Any]:
    """Arguments of a bundle's network, to make one like it.

    Parameters
    ----------
    encoder : ModelBundle
    made_by : str
        What makes such bundles, for the message.

    Raises
    ------
    InputError
        If it is no encoder.
    """
    if encoder.architecture != "backbone":
        raise InputError(
            f"a model of the architecture {encoder.architecture!r} is no encoder",
            where=f"model {encoder.name or encoder.architecture}",
            what_to_do=f"give a bundle of {made_by}, or the name of a network",
            code="bundle",
        )
    # parts of a batch need not be of one size in what follows; the weights are named as without
    return {name: value for name, value in encoder.arguments.items() if name != "norm_splits"}


def origin_of(
    encoder: ModelBundle | None, arguments: Mapping[str, Any], *, freeze: bool, weights: EncoderWeights | None = None
) -> dict[str, Any]:
    """What the notes of a bundle say of the encoder at the start: a bundle's, published weights, or random ones."""
    if encoder is not None:
        start = {"start": encoder.name, "training_hash": encoder.training_hash}
    elif weights is None or weights.kind == "random":
        start = {"start": "random weights"}
    else:
        start = {"start": weights.name, "sha256": weights.sha256}
    return {"network": arguments["name"], **start, "how": "frozen" if freeze else "tuned"}


def scale_for(weights: EncoderWeights, bands: Sequence[str], measured: Callable[[], Normalisation]) -> Normalisation:
    """Scaling of the bands that weights were learned with, where they have one for these; what is measured else."""
    if weights.mean and len(weights.mean) == len(bands):
        return Normalisation(weights.mean, weights.std)
    return measured()
