"""Coarse segmentation from labels of whole images: templates, pseudo-labels of patches, a linear layer on top.

An image has one label, what is in it beside background; its patches have none. What a patch shows is told from how
similar its features are to the mean of the images of its class and to that of images of background alone. The encoder
stays as it is. Maps are `geoeco.mapping.coarse_map`'s. Of SeaFeats the half that rests on features; prompts of an
image-text model are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression

from geoeco.errors import InputError
from geoeco.models import SeasonPredictor, create_backbone
from geoeco.training.bundles import ModelBundle
from geoeco.training.confusion import ConfusionMatrix
from geoeco.training.expectations import expect_encoder

__all__ = ["MIN_SIMILARITY", "Templates", "learn_patches", "patch_features", "patch_grid", "score_patches"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Least cosine similarity to the template of background for a patch to be taken as background.
MIN_SIMILARITY = 0.6
#: Least valid share of a patch that is looked at.
MIN_SHARE = 0.5


def patch_grid(image: Floats, valid: Bools, patch: int) -> tuple[Floats, Floats]:
    """Cut an image into patches from its upper left corner; those at the lower and right edge are filled up with 0.

    Parameters
    ----------
    image : numpy.ndarray
        ``(band, y, x)``.
    valid : numpy.ndarray
        ``(y, x)`` bool; what is not valid becomes 0.
    patch : int
        Pixels along a side.

    Returns
    -------
    patches : numpy.ndarray
        ``(row, column, band, patch, patch)`` float32.
    share : numpy.ndarray
        ``(row, column)`` float32, valid part of the whole patch, what was filled up counted as not valid.

    Raises
    ------
    InputError
        If image and mask do not fit, or a patch has no pixel.
    """
    if image.ndim != 3 or valid.shape != image.shape[1:] or not image.size:
        raise InputError(f"an image of shape {image.shape} with a mask of shape {valid.shape}")
    if patch < 1:
        raise InputError(f"patches of {patch} pixels", what_to_do="give a positive number")
    bands, height, width = image.shape
    rows, columns = -(-height // patch), -(-width // patch)
    whole = np.zeros((bands, rows * patch, columns * patch), np.float32)
    whole[:, :height, :width] = np.where(valid, image, np.float32(0))
    known = np.zeros((rows * patch, columns * patch), np.float32)
    known[:height, :width] = valid
    patches = whole.reshape(bands, rows, patch, columns, patch).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(patches), known.reshape(rows, patch, columns, patch).mean(axis=(1, 3), dtype=np.float32)


def patch_features(
    encoder: ModelBundle, image: Floats, valid: Bools, patch: int, *, batch: int = 64, min_share: float = MIN_SHARE
) -> tuple[Floats, Floats]:
    """Features of the patches of one image.

    Parameters
    ----------
    encoder : ModelBundle
        Of the task ``"embedding"``.
    image : numpy.ndarray
        ``(band, y, x)`` in the encoder's bands and units.
    valid : numpy.ndarray
        ``(y, x)`` bool.
    patch : int
        Pixels along a side.
    batch : int
        Patches at a time.
    min_share : float
        Patches with a smaller valid share are not looked at.

    Returns
    -------
    features : numpy.ndarray
        ``(row, column, feature)`` float32, NaN where not looked at.
    share : numpy.ndarray
        ``(row, column)``, as of `patch_grid`.

    Raises
    ------
    InputError
        As `patch_grid`, or if the model is no encoder.
    """
    if encoder.task != "embedding":
        raise InputError(
            f"a model for {encoder.task} is no encoder", where=encoder.name, what_to_do="give a bundle of pretrain"
        )
    patches, share = patch_grid(image, valid, patch)
    looked = share >= min_share
    chosen = torch.from_numpy(patches[looked])
    found = [encoder(part).float().cpu() for part in torch.split(chosen, batch)] if len(chosen) else []
    length = int(encoder.module.num_features)  # type: ignore[arg-type]
    features = np.full((*share.shape, length), np.nan, np.float32)
    if found:
        features[looked] = torch.cat(found).numpy()
    return features, share


@dataclass(frozen=True, eq=False)
class Templates:
    """Mean directions of the patches of the images of each class.

    Attributes
    ----------
    classes : tuple of str
        The label of images of background alone is among them.
    background : str
    vectors : numpy.ndarray
        ``(class, feature)`` float32.

    Raises
    ------
    InputError
        If the parts do not fit together.

    References
    ----------
    Raine, Marchant, Kusy, Maire & Fischer (2024), Image labels are all you need for coarse seagrass segmentation, WACV,
    arXiv 2303.00973: templates are means of normalised features; a patch is background if and only if s_b > s_c and
    s_b > 0.6.
    """

    classes: tuple[str, ...]
    background: str
    vectors: Floats

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes) or self.background not in self.classes:
            raise InputError(f"the background {self.background!r} is not one of distinct classes {self.classes}")
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.classes) or not np.isfinite(self.vectors).all():
            raise InputError(f"{len(self.classes)} classes with templates of shape {self.vectors.shape}")

    @classmethod
    def fit(cls, features: Sequence[Floats], labels: Sequence[str], background: str) -> Self:
        """Make templates of images.

        Parameters
        ----------
        features : sequence of numpy.ndarray
            Of each image ``(..., feature)``; patches with NaN are left out.
        labels : sequence of str
            Of each image: the class that it shows, or `background` where there is nothing else in it.
        background : str

        Raises
        ------
        InputError
            If there is no image of background alone, without which nothing tells background from class, none of a
            class, an image without a label, or a class whose images have no patch.
        """
        names = [str(label) for label in labels]
        if len(features) != len(names) or not names:
            raise InputError(f"{len(features)} images with {len(names)} labels")
        if background not in names:
            raise InputError(
                f"no image is labelled {background!r}: without images of background alone it cannot be told from a "
                "class",
                where=f"labels: {', '.join(sorted(set(names)))}",
                what_to_do="add images that show nothing else",
                code="background",
            )
        classes = tuple(sorted(set(names)))
        if len(classes) < 2:
            raise InputError("all images are of background", what_to_do="add images of a class", code="one-class")
        vectors = []
        for name in classes:
            found = [_directions(image) for image, label in zip(features, names, strict=True) if label == name]
            together = np.concatenate(found)
            if not len(together):
                raise InputError(f"the images of the class {name!r} have no patch with enough valid pixels")
            vectors.append(together.mean(axis=0))
        return cls(classes, background, np.stack(vectors).astype(np.float32))

    def similarity(self, features: Floats) -> Floats:
        """Cosines ``(..., class)`` of features ``(..., feature)`` with the templates; NaN of NaN."""
        length = np.linalg.norm(features, axis=-1, keepdims=True)
        directions = np.divide(features, length, out=np.zeros_like(features), where=~(length == 0))
        unit = self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), np.float32(1e-12))
        return np.asarray(directions @ unit.T, dtype=np.float32)

    def margin(self, features: Floats) -> Floats:
        """By how much the nearest class is more similar than background ``(...)``: max over c of s_c, minus s_b."""
        similarity = self.similarity(features)
        at = self.classes.index(self.background)
        found: Floats = np.delete(similarity, at, axis=-1).max(axis=-1) - similarity[..., at]
        return found

    def pseudo_labels(
        self, features: Floats, label: str, *, min_similarity: float = MIN_SIMILARITY
    ) -> npt.NDArray[np.int64]:
        """Labels of the patches of one image, positions in `classes`.

        Parameters
        ----------
        features : numpy.ndarray
            ``(..., feature)``.
        label : str
            Of the image.
        min_similarity : float

        Returns
        -------
        numpy.ndarray
            ``(...)`` int64: background where s_b > s_c and s_b > `min_similarity`, else the image's class; all
            background in an image of background; -1 where the features are NaN.
        """
        if label not in self.classes:
            raise InputError(f"there is no template of {label!r}", what_to_do=f"classes: {', '.join(self.classes)}")
        similarity = self.similarity(features)
        behind, own = self.classes.index(self.background), self.classes.index(label)
        back, front = similarity[..., behind], similarity[..., own]
        is_background = (label == self.background) | ((back > front) & (back > min_similarity))
        found = np.where(is_background, behind, own)
        return np.where(np.isnan(features).any(axis=-1), -1, found)

    def as_notes(self) -> dict[str, Any]:
        """All of it as JSON, for the notes of a bundle."""
        return {
            "classes": list(self.classes),
            "background": self.background,
            "vectors": [[float(value) for value in row] for row in self.vectors],
        }

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Self:
        """Make it of what `as_notes` gave.

        Raises
        ------
        InputError
            If it is something else.
        """
        try:
            vectors = np.array(notes["vectors"], dtype=np.float32)
            return cls(tuple(str(name) for name in notes["classes"]), str(notes["background"]), vectors)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"these are no templates: {type(error).__name__}: {error}", code="bundle") from error


def _directions(features: Floats) -> Floats:
    """Features of unit length ``(patch, feature)`` of those patches that have any."""
    rows = features.reshape(-1, features.shape[-1])
    length = np.linalg.norm(rows, axis=1)
    # a comparison with NaN is false
    there = length > 0
    found: Floats = rows[there] / length[there, None]
    return found


def learn_patches(
    encoder: ModelBundle,
    images: Iterable[tuple[Floats, Bools, str]],
    *,
    background: str,
    patch: int,
    min_similarity: float = MIN_SIMILARITY,
    min_share: float = MIN_SHARE,
    class_weights: Mapping[str, float] | None = None,
    strength: float = 1.0,
    batch: int = 64,
    name: str = "",
) -> ModelBundle:
    """Learn to tell patches apart from labels of whole images.

    Parameters
    ----------
    encoder : ModelBundle
        Of the task ``"embedding"`` and the architecture ``"backbone"``; it stays as it is.
    images : iterable of tuple
        ``image (band, y, x)`` in the encoder's bands and units, ``valid (y, x)`` and the label of the image.
    background : str
        Label of images that show background alone.
    patch : int
        Pixels along a side of the patches.
    min_similarity, min_share
        As of `Templates.pseudo_labels` and `patch_features`.
    class_weights : mapping of str to float, optional
        Weights of the patches of a class in the loss; 1 when not given. SeaFeats: 1 of background, 1 to 1.5 of others.
    strength : float
        Of the penalty, as the inverse of scikit-learn's ``C``: the loss is the sum over patches of weighted
        cross-entropy plus ``strength / 2`` times the squared weights.
    batch : int
        Patches at a time.
    name : str
        Of the bundle.

    Returns
    -------
    ModelBundle
        Of the task ``"classification"`` for windows of `patch` pixels: encoder and linear layer. Its notes hold the
        `Templates`, how many patches were labelled how (of each class, and of the images of each label), and the
        settings.

    Raises
    ------
    InputError
        As `Templates.fit`, or if weights are no weights, or the encoder does not take patches of this size.

    Notes
    -----
    The linear layer is the minimum of a convex function (multinomial logistic regression), found by scikit-learn: no
    learning rate, no seed. Its loss takes raw outputs. The public code of SeaFeats passes probabilities to a
    cross-entropy that applies the softmax again, which bounds the loss away from 0 and flattens its gradients.
    """
    if encoder.architecture != "backbone":
        raise InputError(
            f"a model of the architecture {encoder.architecture!r} is no encoder",
            where=encoder.name,
            what_to_do="give a bundle of pretrain",
            code="bundle",
        )
    if not strength > 0:
        raise InputError(f"strength is {strength}", what_to_do="give a positive number")
    # a network that does not take such patches is found before any work
    expect_encoder(str(encoder.arguments["name"]), len(encoder.bands), size=patch)
    features, labels = [], []
    digest = hashlib.sha256(encoder.fingerprint().encode())
    for image, valid, label in images:
        features.append(patch_features(encoder, image, valid, patch, batch=batch, min_share=min_share)[0])
        labels.append(str(label))
        digest.update(np.ascontiguousarray(np.where(valid, image, 0)).tobytes() + f"|{label}|".encode())
    templates = Templates.fit(features, labels, background)
    codes = [
        templates.pseudo_labels(found, label, min_similarity=min_similarity).ravel()
        for found, label in zip(features, labels, strict=True)
    ]
    wanted = np.concatenate(codes)
    rows = np.concatenate([found.reshape(-1, found.shape[-1]) for found in features])[wanted >= 0]
    wanted = wanted[wanted >= 0]
    # none is 0: of the patches of a class at least one is not farther from their own mean than from background
    counts = {label: int((wanted == code).sum()) for code, label in enumerate(templates.classes)}
    taken = {
        label: {
            "images": labels.count(label),
            "patches": sum(int((c >= 0).sum()) for c, own in zip(codes, labels, strict=True) if own == label),
            "background": sum(
                int((c == templates.classes.index(background)).sum())
                for c, own in zip(codes, labels, strict=True)
                if own == label
            ),
        }
        for label in templates.classes
    }
    layer = _linear_layer(rows, wanted, _weights(class_weights, templates.classes), strength)
    arguments = {key: value for key, value in encoder.arguments.items() if key != "norm_splits"}
    network = create_backbone(**arguments)
    network.load_state_dict(encoder.module.state_dict())
    model = SeasonPredictor(network, len(templates.classes), "single-label")
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(layer[0]))
        model.head.bias.copy_(torch.from_numpy(layer[1]))
    settings = {
        "patch": patch,
        "min_similarity": min_similarity,
        "min_share": min_share,
        "class_weights": dict(class_weights or {}),
        "strength": strength,
    }
    digest.update(json.dumps([background, settings], sort_keys=True).encode())
    notes = {
        "weak_labels": {
            "templates": templates.as_notes(),
            "images": {label: labels.count(label) for label in templates.classes},
            "patches": counts,
            "taken": taken,
            "settings": settings,
        },
        "encoder": {
            "start": encoder.name,
            "training_hash": encoder.training_hash,
            "how": "frozen",
            **({"weights": encoder.notes["weights"]} if "weights" in encoder.notes else {}),
        },
    }
    return ModelBundle(
        module=model,
        architecture="season_predictor",
        arguments={**arguments, "outputs": len(templates.classes), "kind": "single-label"},
        bands=encoder.bands,
        normalisation=encoder.normalisation,
        size=patch,
        resolution=encoder.resolution,
        units=encoder.units,
        task="classification",
        classes=templates.classes,
        training_hash=digest.hexdigest(),
        name=name or "weak labels",
        description=f"patches of {patch} pixels learned from labels of {len(labels)} whole images",
        notes=notes,
    )


def score_patches(
    bundle: ModelBundle,
    images: Iterable[tuple[Floats, Bools, str]],
    truth: Iterable[npt.NDArray[np.int64]],
    *,
    min_share: float = MIN_SHARE,
    batch: int = 64,
) -> ConfusionMatrix:
    """Compare what a classifier of patches says of images with what is known of their patches.

    Parameters
    ----------
    bundle : ModelBundle
        As of `learn_patches`.
    images : iterable of tuple
        As of `learn_patches`; their labels are not looked at.
    truth : iterable of numpy.ndarray
        Of each image ``(row, column)`` int64, positions in the bundle's classes, -1 where not known. As of
        `geoeco.sampling.patch_classes`, where the classes are the same.
    min_share : float
        Patches with a smaller valid share are not counted.
    batch : int
        Patches at a time.

    Returns
    -------
    ConfusionMatrix
        It counts patches.

    Raises
    ------
    InputError
        If an image has other patches than its truth.
    """
    none = np.zeros((len(bundle.classes),) * 2, np.int64)
    confusion = ConfusionMatrix(none, bundle.classes)
    for (image, valid, _), known in zip(images, truth, strict=True):
        patches, share = patch_grid(image, valid, bundle.size)
        if share.shape != known.shape:
            raise InputError(f"an image of {share.shape} patches, of which {known.shape} are known")
        counted = (share >= min_share) & (known >= 0)
        if counted.any():
            parts = torch.split(torch.from_numpy(patches[counted]), batch)
            answers = torch.cat([bundle(part).argmax(dim=1).cpu() for part in parts]).numpy()
            confusion += ConfusionMatrix.from_arrays(known[counted], answers, bundle.classes)
    return confusion


def _weights(given: Mapping[str, float] | None, classes: tuple[str, ...]) -> dict[int, float]:
    weights = {name: float(value) for name, value in (given or {}).items()}
    unknown = sorted(set(weights) - set(classes))
    if unknown:
        raise InputError(f"there is no class {unknown[0]!r} to weigh", what_to_do=f"classes: {', '.join(classes)}")
    if not all(0 < value < np.inf for value in weights.values()):
        raise InputError(f"class weights {weights} must be positive")
    return {code: weights.get(name, 1.0) for code, name in enumerate(classes)}


def _linear_layer(
    features: Floats, labels: npt.NDArray[np.int64], weights: dict[int, float], strength: float
) -> tuple[Floats, Floats]:
    """Weights ``(class, feature)`` and biases ``(class,)`` of the least weighted cross-entropy with penalty."""
    # about features of one scale the solver converges, and the penalty means the same for every encoder
    centre, unit = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    unit = np.where(unit > 0, unit, 1.0)
    found = LogisticRegression(C=1 / strength, class_weight=weights, max_iter=2000, tol=1e-6)
    found.fit((features - centre) / unit, labels)
    weight, bias = found.coef_, found.intercept_
    if len(weights) == 2:
        # one row of differences stands for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return (weight / unit).astype(np.float32), (bias - (weight / unit) @ centre).astype(np.float32)
