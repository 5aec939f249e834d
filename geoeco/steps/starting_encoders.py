"""Encoders that a step starts from: of a step, of a bundle, or a network of timm with weights from elsewhere.

What is known of them when a run is planned, and no more: weights are read by `geoeco.training`.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from geoeco.engine import PlanContext, RecipePath, StepSettings
from geoeco.errors import InputError
from geoeco.steps.bundles import PlannedModel, bundle_digest, is_step, planned_model, tasks_of_model
from geoeco.steps.training_files import needs_ml, outside_file, sha256_of
from geoeco.steps.uav_sources import UavChipSource

__all__ = ["StartSettings", "check_size", "encoder_facts", "expected_backbone", "planned_start", "start_inputs"]


class StartSettings(StepSettings):
    """Of a verb that starts from an encoder of images of orthomosaics."""

    encoder: RecipePath | None = Field(None, description="a step that makes an encoder, or the folder of its bundle")
    backbone: str | None = Field(None, description="a network of timm, in place of an encoder; resnet18 if neither")
    weights: RecipePath | None = Field(
        None, description="of the backbone: random (if null), a name of timm's weights, or a .safetensors file"
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.encoder is not None and not (self.backbone is None and self.weights is None):
            raise ValueError("an encoder brings its own network and weights: leave backbone and weights out")
        return self

    @property
    def network(self) -> str:
        """Network of timm that is made where there is no encoder."""
        return self.backbone or "resnet18"

    @property
    def network_weights(self) -> str:
        """Its weights."""
        return self.weights or "random"


def start_inputs(settings: StartSettings, context: PlanContext) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a task takes of its start: its payload, with a file of ``weights``, and the tasks that it waits for."""
    from_file = settings.network_weights.endswith(".safetensors")
    payload = {"weights": context.path(settings.network_weights)} if from_file else {}
    return payload, () if settings.encoder is None else tasks_of_model(settings.encoder, context)


def planned_start(
    settings: StartSettings,
    context: PlanContext,
    bands: tuple[str, ...],
    resolution: float,
    size: int,
    *,
    tolerance: float = 1e-6,
) -> PlannedModel:
    """What is known of the encoder that a step starts from.

    Parameters
    ----------
    settings : StartSettings
    context : PlanContext
    bands : tuple of str
        Of the images.
    resolution : float
        Metres.
    size : int
        Pixels along a side that a network of timm is to see.
    tolerance : float
        Part by which the resolution of an encoder may differ.

    Raises
    ------
    InputError
        If the encoder is none, or was made for other bands, units or pixels; and as `expected_backbone`.
    """
    if settings.encoder is None:
        return expected_backbone(settings.network, bands, resolution, size, settings.step)
    where = f"step {settings.step}: encoder"
    source = planned_model(settings.encoder, context, where)
    if source.task != "embedding":
        raise InputError(
            f"the model {settings.encoder!r} is for {source.task}, no encoder",
            where=where,
            what_to_do="name a step that makes an encoder, or the folder of its bundle",
            code="bundle",
        )
    differs = abs(source.resolution - resolution) > tolerance * resolution
    if source.bands != bands or source.units != "1" or differs:
        raise InputError(
            f"the encoder takes {', '.join(source.bands)} in units of {source.units!r} at {source.resolution:g} m, the "
            f"images have {', '.join(bands)} in '1' at {resolution:g} m",
            where=where,
            what_to_do="give images with the bands that it learned from, at its resolution (target_gsd)",
            code="bands",
        )
    return source


def encoder_facts(encoder: str | None, weights: str, context: PlanContext) -> dict[str, Any]:
    """Digests of a bundle and of a file of weights that are not made in this run, for the fingerprint of a step."""
    facts: dict[str, Any] = {}
    if encoder is not None and not is_step(encoder, context):
        facts["encoder"] = bundle_digest(context.path(encoder))
    if weights.endswith(".safetensors"):
        facts["weights"] = sha256_of(outside_file(context.path(weights)))
    return facts


def expected_backbone(backbone: str, bands: tuple[str, ...], resolution: float, size: int, step: str) -> PlannedModel:
    """What is known of a network of timm.

    Raises
    ------
    InputError
        If there is no such network, it does not take such images, or the extra is not installed.
    """
    with needs_ml(step):
        from geoeco.training import expect_encoder
    expected = expect_encoder(backbone, len(bands), size=size)
    return PlannedModel(backbone, bands, "1", resolution, size, "embedding", expected.features, expected.weight_bytes)


def check_size(size: int | None, chips: UavChipSource, step: str) -> int:
    """Pixels along a side that a network sees of chips: theirs where no size is given.

    Raises
    ------
    InputError
        If chips would have to be made smaller.
    """
    if size is not None and size < chips.size:
        raise InputError(
            f"size {size} is smaller than the chips of {chips.size} pixels",
            where=f"step {step}",
            what_to_do="cut chips of coarser pixels (target_gsd), or leave size out",
            code="size",
        )
    return size or chips.size
