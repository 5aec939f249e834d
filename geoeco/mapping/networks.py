"""What the mapping engine asks of a segmentation network: class probabilities of windows, and what they rest on.

The networks themselves are `geoeco.models`' and `geoeco.training`'s; where windows lie is `geoeco.mapping.tiling`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from geoeco.applicability import AreaOfApplicability
from geoeco.errors import InputError
from geoeco.training import ModelBundle

__all__ = ["AUGMENTATIONS", "Augmentation", "Member", "Segmenter", "views_of"]

Augmentation = Literal["flips", "rot90"]
AUGMENTATIONS: tuple[Augmentation, ...] = ("flips", "rot90")

#: An image turned by so many right angles, after it was mirrored or not: an element of the dihedral group D4.
View = tuple[int, bool]


@runtime_checkable
class Segmenter(Protocol):
    """A segmentation network, as `geoeco.models` and `geoeco.training` make them.

    Attributes
    ----------
    stride : int
        Sides and origins of windows must be multiples of it.
    receptive_radius : int or None
        Pixels around an output pixel that can change it; None where that is the whole image, or unknown.
    """

    stride: int
    receptive_radius: int | None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(N, class, y, x)`` of normalised images ``(N, band, y, x)``."""

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and features ``(N, feature, row, col)`` on a coarse grid."""


def views_of(augment: Sequence[str]) -> tuple[View, ...]:
    """Views of test-time augmentation: the subgroup of D4 that the named ones make.

    Parameters
    ----------
    augment : sequence of str
        ``"flips"``: as it is, mirrored along either axis and along both (4 views). ``"rot90"``: turned by right angles
        (4 views). Both: all 8. None: 1.

    Raises
    ------
    InputError
        If a name is not one of these, or comes twice.
    """
    unknown = [name for name in augment if name not in AUGMENTATIONS]
    if unknown or len(set(augment)) < len(augment):
        raise InputError(
            f"test-time augmentation by {', '.join(map(repr, augment))}",
            what_to_do=f"name any of {', '.join(AUGMENTATIONS)}, each once",
        )
    chosen = set(augment)
    if chosen == {"flips", "rot90"}:
        return tuple(itertools.product(range(4), (False, True)))
    if chosen == {"rot90"}:
        return tuple((turns, False) for turns in range(4))
    if chosen == {"flips"}:
        return (0, False), (0, True), (2, False), (2, True)
    return ((0, False),)


def _view(images: Tensor, view: View) -> Tensor:
    turns, mirrored = view
    return torch.rot90(images.flip(-1) if mirrored else images, turns, (-2, -1))


def _back(images: Tensor, view: View) -> Tensor:
    turns, mirrored = view
    turned = torch.rot90(images, -turns, (-2, -1))
    return turned.flip(-1) if mirrored else turned


@dataclass(frozen=True)
class Member:
    """One bundle, as a map is made with it.

    Attributes
    ----------
    bundle : ModelBundle
        Whose task is segmentation.
    views : tuple
        Of test-time augmentation, see `views_of`.
    precision : {"32", "bf16"}
        Of the network; probabilities are in 32 bits always.
    levels : tuple of float, optional
        Weights of the network's feature levels for the whole scene; by image when not given.
    """

    bundle: ModelBundle
    views: tuple[View, ...] = ((0, False),)
    precision: Literal["32", "bf16"] = "32"
    levels: tuple[float, ...] | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return f"model {self.bundle.name or self.bundle.architecture}"

    @cached_property
    def device(self) -> torch.device:
        """Where its weights are."""
        weight = next(self.bundle.module.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    @property
    def applicability(self) -> AreaOfApplicability:
        """Where the bundle applies.

        Raises
        ------
        InputError
            If it does not say.
        """
        if self.bundle.applicability is None:
            raise InputError(
                "the bundle does not say where it applies",
                where=self.where,
                what_to_do="train it on chips of several spatial blocks, or leave out di and aoa",
                code="bundle",
            )
        return self.bundle.applicability

    @property
    def weighs_levels(self) -> bool:
        """Whether the network weighs its feature levels by image."""
        return callable(getattr(self.bundle.module, "level_weights", None))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _fixed_levels(self, count: int) -> dict[str, Tensor]:
        if self.levels is None:
            return {}
        return {"weights": torch.tensor(self.levels, device=self.device).expand(count, -1)}

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities ``(N, class, y, x)`` float32 of images ``(N, band, y, x)`` in the bundle's units."""
        normal = self._normal(images)
        fixed = self._fixed_levels(len(images))
        total: Tensor | None = None
        for view in self.views:
            seen = _channels_last(_view(normal, view))
            with self._autocast():
                logits = self.bundle.module(seen, **fixed)
            found = _back(self._softmax(logits, seen), view)
            total = found if total is None else total + found
        assert total is not None, "there is one view at least"
        return total if len(self.views) == 1 else total / len(self.views)

    @torch.inference_mode()
    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class probabilities, and features ``(N, feature, row, col)`` float32 of the images as they are."""
        module: Any = self.bundle.module
        if not callable(getattr(module, "with_features", None)):
            raise InputError("this network gives no features to judge its applicability by", where=self.where)
        with self._autocast():
            logits, features = module.with_features(
                _channels_last(self._normal(images)), **self._fixed_levels(len(images))
            )
        found = self._softmax(logits, images) if len(self.views) == 1 else self.probabilities(images)
        return found, features.float()

    @torch.inference_mode()
    def level_weights(self, images: Tensor) -> Tensor:
        """Weights ``(N, level)`` that the network gives its feature levels in images."""
        module: Any = self.bundle.module
        with self._autocast():
            weights: Tensor = module.level_weights(_channels_last(self._normal(images)))
        return weights.float()

    def _normal(self, images: Tensor) -> Tensor:
        return self.bundle.normalisation(images.to(self.device).float())

    def _softmax(self, logits: Tensor, images: Tensor) -> Tensor:
        wanted = (len(images), len(self.bundle.codes), *images.shape[-2:])
        if tuple(logits.shape) != wanted:
            raise InputError(
                f"the network gives {tuple(logits.shape)} for {len(images)} windows of {images.shape[-1]} pixels, "
                f"not {wanted}",
                where=self.where,
                what_to_do="take a bundle whose task is segmentation and whose classes are named",
                code="bundle",
            )
        return torch.softmax(logits.float(), dim=1)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
