"""Model bundles: a folder with a trained network and all that is needed to use it rightly, and nothing that runs.

A bundle is ``model.safetensors`` (weights), ``mlm.json`` (a STAC item with the Machine Learning Model extension 1.4:
architecture and its arguments, bands, units, normalisation, classes, hash of the training data) and
``sample.safetensors`` (an input with the output that is expected of it). Loading unpickles nothing and runs no code of
the bundle: the architecture is a name of `geoeco.training.architectures`. Training is not done here.

A frozen encoder whose weights are published (by timm, under a name) is not part of the bundle: its name and the
fingerprint of its weights are, and loading gets them from timm. All other weights are in the bundle.
``applicability.safetensors`` is there where it is known how far the model may be trusted.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from geoeco.applicability import AreaOfApplicability
from geoeco.cubes.shards import Objects
from geoeco.errors import GeoecoError, InputError, OutputError
from geoeco.models import DWFFNet
from geoeco.models.encoder_weights import EncoderWeights, load_encoder
from geoeco.training.architectures import build_network

__all__ = ["ModelBundle", "Normalisation"]

WEIGHTS = "model.safetensors"
ITEM = "mlm.json"
SAMPLE = "sample.safetensors"
APPLICABILITY = "applicability.safetensors"

#: What the tasks of bundles are called in the MLM extension; it has no word for embeddings but what they are good for.
_MLM_TASKS = {
    "embedding": "similarity-search",
    "classification": "scene-classification",
    "regression": "regression",
    "segmentation": "semantic-segmentation",
    "detection": "object-detection",
}
_RECORD = "geoeco:bundle"
#: Sides of the sample of a network for segmentation, whose output is as large as its input: about this.
_SAMPLE_SIDE = 64
_SHA256_MULTIHASH = "1220"
#: Pixels along a side of a model's windows at most: one image of ten bands takes 2.7 GB.
LARGEST_WINDOW = 8192
#: Largest difference from the expected output, as a part of its largest value: other kernels sum in another order.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Normalisation:
    """Per-band scaling of a model's input: ``x -> (x - mean) / std``.

    Attributes
    ----------
    mean, std : tuple of float
        One a band, in the units of the input.

    Raises
    ------
    InputError
        If the two differ in length, or a value is not finite, or a std not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        mean, std = tuple(float(m) for m in self.mean), tuple(float(s) for s in self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if len(mean) != len(std) or not mean:
            raise InputError(f"a normalisation of {len(mean)} means and {len(std)} standard deviations")
        if not np.isfinite([*mean, *std]).all() or min(std) <= 0:
            raise InputError(
                "a normalisation has a mean that is not finite or a standard deviation that is not positive",
                where=f"mean {mean}, std {std}",
                what_to_do="leave out bands that are the same everywhere",
            )

    def __call__(self, image: Tensor) -> Tensor:
        """Scale images ``(..., band, y, x)``, in their own floating type."""
        shape = (-1, 1, 1)
        mean = torch.tensor(self.mean, dtype=image.dtype, device=image.device).reshape(shape)
        std = torch.tensor(self.std, dtype=image.dtype, device=image.device).reshape(shape)
        return (image - mean) / std


class _Scaling(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    mean: list[float]
    std: list[float]


class _Encoder(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["random", "published", "file"]
    name: str
    sha256: str


class _Record(BaseModel):
    """What ``mlm.json`` says of a bundle in geoeco's own words; all that loading relies on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    architecture: str
    arguments: dict[str, Any]
    bands: list[str]
    normalisation: _Scaling
    size: int
    resolution: float
    units: str
    task: str
    classes: list[str]
    training_hash: str
    name: str
    description: str
    notes: dict[str, Any]
    codes: list[int] = []
    colours: list[str] = []
    stride: int = 1
    halo: int | None = None
    encoder: _Encoder | None = None


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A trained network and what its input must be.

    Attributes
    ----------
    module : torch.nn.Module
        Takes normalised images ``(N, band, y, x)``. Put into evaluation mode here.
    architecture : str
        Its name in `geoeco.models.build`, for example ``"backbone"``.
    arguments : dict
        Arguments of `geoeco.models.build`, JSON only.
    bands : tuple of str
        Bands of the input in order, as ``"B02"``; ``"ndvi"`` is computed from reflectance.
    normalisation : Normalisation
    size : int
        Pixels along a side of the windows that it was trained on.
    resolution : float
        Metres.
    units : str
        Of the input; ``"1"`` for reflectance.
    task : str
        ``"embedding"``, ``"classification"``, ``"regression"``, ``"segmentation"`` or ``"detection"``.
    classes : tuple of str
        Names of the output's channels, where it has any.
    training_hash : str
        SHA-256 of training data and settings.
    name, description : str
    notes : dict
        Further facts for the reader, JSON only: that the weights are random, for example.
    codes : tuple of int
        Of a segmentation: the value of each class in a raster, 0 to 254; 0, 1, ... when not given.
    colours : tuple of str
        Of the classes, as ``"#rrggbb"``, where they have any.
    stride : int
        Both sides of the windows, and their origins, must be multiples of it.
    halo : int, optional
        How far a pixel sees, pixels; None where it sees its whole window, or that is not known.
    applicability : AreaOfApplicability, optional
        Of the network's features (``module.with_features``) of the training data.

    Raises
    ------
    InputError
        If the parts do not fit together.
    """

    module: nn.Module
    architecture: str
    arguments: dict[str, Any]
    bands: tuple[str, ...]
    normalisation: Normalisation
    size: int
    resolution: float = 10.0
    units: str = "1"
    task: str = "embedding"
    classes: tuple[str, ...] = ()
    training_hash: str = ""
    name: str = ""
    description: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    codes: tuple[int, ...] = ()
    colours: tuple[str, ...] = ()
    stride: int = 1
    halo: int | None = None
    applicability: AreaOfApplicability | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise InputError(f"bands of a model must be distinct names, not {self.bands!r}")
        if len(self.normalisation.mean) != len(self.bands):
            raise InputError(
                f"a model of {len(self.bands)} bands has a normalisation of {len(self.normalisation.mean)}",
                what_to_do="give one mean and one standard deviation a band",
            )
        if self.task not in _MLM_TASKS:
            raise InputError(f"a model's task is {self.task!r}", what_to_do=f"use one of: {', '.join(_MLM_TASKS)}")
        if not 1 <= self.size <= LARGEST_WINDOW or not 0 < self.resolution < math.inf:
            raise InputError(
                f"a model for windows of {self.size} pixels of {self.resolution:g} m",
                what_to_do=f"give a size from 1 to {LARGEST_WINDOW} and a positive resolution",
            )
        self._check_classes()
        self.module.eval()

    def _check_classes(self) -> None:
        object.__setattr__(self, "codes", tuple(self.codes))
        object.__setattr__(self, "colours", tuple(self.colours))
        if self.task == "segmentation" and not self.codes:
            object.__setattr__(self, "codes", tuple(range(len(self.classes))))
        if self.codes and (
            len(self.codes) != len(self.classes)
            or len(set(self.codes)) < len(self.codes)
            or not all(0 <= code <= 254 for code in self.codes)
        ):
            raise InputError(
                f"codes of {len(self.classes)} classes are {self.codes}",
                what_to_do="give each class its own number from 0 to 254",
            )
        if self.colours and (
            len(self.colours) != len(self.classes)
            or not all(re.fullmatch(r"#[0-9a-fA-F]{6}", colour) for colour in self.colours)
        ):
            raise InputError(
                f"colours of {len(self.classes)} classes are {self.colours}",
                what_to_do="give each class a colour as '#rrggbb', or none of them",
            )
        if self.stride < 1 or self.size % self.stride or (self.halo is not None and self.halo < 0):
            raise InputError(
                f"windows of {self.size} pixels with a stride of {self.stride} and a halo of {self.halo}",
                what_to_do="give a size that is a multiple of the stride, and a halo of 0 or more",
            )

    def check_input(self, bands: Sequence[str], units: str = "1", resolution: float | None = None) -> None:
        """Refuse imagery that the model was not made for.

        Parameters
        ----------
        bands : sequence of str
            Bands of the imagery, in order.
        units : str
        resolution : float, optional
            Metres; not compared when not given.

        Raises
        ------
        InputError
            If bands, their order, units or resolution differ.
        """
        where = f"model {self.name or self.architecture}"
        if tuple(bands) != self.bands:
            raise InputError(
                f"the model takes the bands {', '.join(self.bands)}, the imagery has {', '.join(bands) or 'none'}",
                where=where,
                what_to_do="give the model's bands in its order",
                code="bands",
            )
        if units != self.units:
            raise InputError(
                f"the model takes input in units of {self.units!r}, the imagery is in {units!r}",
                where=where,
                what_to_do="convert the imagery first: reflectance has the unit '1'",
                code="units",
            )
        if resolution is not None and not abs(resolution - self.resolution) <= 1e-6 * self.resolution:
            raise InputError(
                f"the model was trained on pixels of {self.resolution:g} m, the imagery has {resolution:g} m",
                where=where,
                what_to_do="read the imagery at the model's resolution",
                code="resolution",
            )

    def __call__(self, image: Tensor) -> Tensor:
        """Apply the model to images, without gradients.

        Parameters
        ----------
        image : torch.Tensor
            ``(N, band, y, x)`` in `units`, 0 where invalid, on any device.

        Returns
        -------
        torch.Tensor
            What `module` gives for the normalised images, on the module's device; ``(N, feature)`` of an embedding.

        Raises
        ------
        InputError
            If the images have another number of bands or of dimensions.
        """
        if image.ndim != 4 or image.shape[1] != len(self.bands):
            raise InputError(
                f"images of shape {tuple(image.shape)} do not fit (N, band, y, x) with {len(self.bands)} bands",
                where=f"model {self.name or self.architecture}",
            )
        weight = next(self.module.parameters(), None)
        with torch.inference_mode():
            if weight is not None:
                image = image.to(weight.device)
            output: Tensor = self.module(self.normalisation(image.float()))
        return output

    def fingerprint(self) -> str:
        """SHA-256 of all that decides what the model gives: weights, architecture, bands, normalisation, units."""
        facts: dict[str, Any] = {
            "architecture": self.architecture,
            "arguments": self.arguments,
            "bands": self.bands,
            "mean": self.normalisation.mean,
            "std": self.normalisation.std,
            "units": self.units,
        }
        if self.codes:
            facts["codes"] = self.codes
        if isinstance(self.module, DWFFNet):
            facts["encoder"] = self.module.weights_of_encoder.sha256
        digest = hashlib.sha256(_json(facts))
        digest.update(hashlib.sha256(write_tensors(_weights(self.module))).digest())
        return digest.hexdigest()

    def save(self, folder: str | Path, sample: Tensor | None = None) -> Path | str:
        """Write the bundle; ``mlm.json`` comes last, each file whole.

        Parameters
        ----------
        folder : str or Path
            Local folder or fsspec URL; made where there is none.
        sample : torch.Tensor, optional
            Images ``(N, band, y, x)`` in `units` to keep with their output; one image of random numbers with the
            mean and spread of the training data when not given.

        Returns
        -------
        Path or str
            `folder`.

        Raises
        ------
        InputError
            If `geoeco.models.build` makes another network of `architecture` and `arguments` than `module`.
        OutputError
            If the model gives numbers that are not finite, or the folder cannot be written.

        Notes
        -----
        Two calls for the same model write the same bytes.
        """
        where = str(folder)
        module = copy.deepcopy(self.module).cpu().eval()
        weights = _weights(module)
        self._check_architecture(weights, where)
        if sample is None:
            side = self._sample_side()
            noise = torch.randn((1, len(self.bands), side, side), generator=torch.Generator().manual_seed(0))
            mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.normalisation.mean, self.normalisation.std))
            sample = mean + std * noise
        given = sample.detach().float().cpu().contiguous()
        with torch.inference_mode():
            expected = module(self.normalisation(given)).contiguous()
        if not torch.isfinite(expected).all():
            raise OutputError(
                "the model gives numbers that are not finite for its sample",
                where=where,
                what_to_do="train again with a lower learning rate, or look at the training data",
                code="model",
            )
        files = {WEIGHTS: write_tensors(weights), SAMPLE: write_tensors({"input": given, "output": expected})}
        if self.applicability is not None:
            files[APPLICABILITY] = write_tensors(
                {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in self.applicability.arrays().items()}
            )
        # before a file of a bundle that is there is replaced
        item = self._item(files, weights, tuple(expected.shape[1:]))
        objects = Objects(where.rstrip("/"))
        for name, content in files.items():
            objects.put(name, [content])
        objects.put(ITEM, [item])
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu", verify: bool = True) -> Self:
        """Read a bundle.

        Parameters
        ----------
        folder : str or Path
            Local folder or fsspec URL.
        device : str or torch.device
            Where the module is put.
        verify : bool
            Whether the module must give the expected output for the bundle's sample. The checksums of the files are
            compared always.

        Returns
        -------
        ModelBundle

        Raises
        ------
        InputError
            If there is no bundle, a file was changed, the architecture is not known, or the module gives another
            output for the sample than expected.
        """
        where = str(folder)
        objects = Objects(where.rstrip("/"))
        document = _document(objects, where)
        record = _record(document, where)
        domain = _applicability(objects, document, where)
        tensors = _tensors(objects, document, "model", WEIGHTS, where)
        with _fixed_random_state():
            try:
                module = build_network(record.architecture, record.arguments)
            except GeoecoError as error:
                raise InputError(
                    f"the bundle's network cannot be made: {error.what}",
                    where=where,
                    what_to_do=error.what_to_do,
                    code="bundle",
                ) from error
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"the bundle's network cannot be made: {error}", where=where, code="bundle") from error
        if record.encoder is not None:
            tensors = _with_encoder(module, record, tensors, where)
        try:
            module.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise InputError(
                f"the bundle's weights do not fit its architecture {record.architecture!r}: {error}",
                where=where,
                code="bundle",
            ) from error
        try:
            bundle = cls(
                module=module,
                architecture=record.architecture,
                arguments=record.arguments,
                bands=tuple(record.bands),
                normalisation=Normalisation(tuple(record.normalisation.mean), tuple(record.normalisation.std)),
                size=record.size,
                resolution=record.resolution,
                units=record.units,
                task=record.task,
                classes=tuple(record.classes),
                training_hash=record.training_hash,
                name=record.name,
                description=record.description,
                notes=record.notes,
                codes=tuple(record.codes),
                colours=tuple(record.colours),
                stride=record.stride,
                halo=record.halo,
                applicability=domain,
            )
        except InputError as error:
            raise InputError(f"{ITEM} does not describe a model: {error.what}", where=where, code="bundle") from error
        if verify:
            bundle._check_sample(_tensors(objects, document, "sample", SAMPLE, where), where)
        module.to(device)
        return bundle

    def _sample_side(self) -> int:
        if self.task != "segmentation":
            return self.size
        return min(self.size, self.stride * max(1, round(_SAMPLE_SIDE / self.stride)))

    def _check_architecture(self, weights: Mapping[str, Tensor], where: str) -> None:
        with _fixed_random_state(), torch.device("meta"):
            made = build_network(self.architecture, self.arguments)
        outside = _outside(self.module)
        expected = {
            name: tuple(value.shape)
            for name, value in made.state_dict().items()
            if not (outside and name.startswith(outside))
        }
        if expected != {name: tuple(value.shape) for name, value in weights.items()}:
            raise InputError(
                f"the network is not what the architecture {self.architecture!r} with {self.arguments} makes",
                where=where,
                what_to_do="give the name and arguments by which geoeco.models.build makes this network",
            )

    def _check_sample(self, tensors: Mapping[str, Tensor], where: str) -> None:
        given, expected = tensors.get("input"), tensors.get("output")
        if given is None or expected is None:
            raise InputError("the bundle's sample lacks its input or output", where=f"{where}/{SAMPLE}", code="bundle")
        try:
            found = self(given)
        # a sample of another number of bands, or with fewer pixels than a convolution takes
        except (InputError, RuntimeError) as error:
            raise InputError(
                f"the bundle's sample does not fit its model: {error}", where=f"{where}/{SAMPLE}", code="bundle"
            ) from error
        limit = _TOLERANCE * max(float(expected.abs().max()), 1e-6)
        if found.shape != expected.shape or not float((found - expected).abs().max()) <= limit:
            raise InputError(
                "the model does not give the output that its bundle expects",
                where=where,
                what_to_do="the bundle was made by another version of geoeco or timm: make it again with this one",
                code="bundle",
            )

    def _item_classes(self) -> list[dict[str, Any]]:
        codes = self.codes or tuple(range(len(self.classes)))
        classes: list[dict[str, Any]] = [
            {"value": code, "name": label, "title": label} for code, label in zip(codes, self.classes, strict=True)
        ]
        for entry, colour in zip(classes, self.colours, strict=False):
            entry["color_hint"] = colour[1:].upper()
        return classes

    def _item(self, files: Mapping[str, bytes], weights: Mapping[str, Tensor], output: tuple[int, ...]) -> bytes:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name).strip("-_.") or self.architecture
        properties: dict[str, Any] = {
            "title": self.name or name,
            "description": self.description or f"{self.architecture} for {', '.join(self.bands)}",
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "mlm:name": f"geoeco-{name}",
            "mlm:architecture": str(self.arguments.get("name", self.architecture)),
            "mlm:framework": "PyTorch",
            "mlm:framework_version": str(torch.__version__),
            "mlm:tasks": [_MLM_TASKS[self.task]],
            "mlm:total_parameters": sum(value.numel() for value in self.module.parameters()),
            "mlm:memory_size": sum(value.numel() * value.element_size() for value in weights.values()),
            "mlm:input": [
                {
                    "name": f"windows of {self.size} pixels of {self.resolution:g} m",
                    "bands": list(self.bands),
                    "input": {
                        "shape": [-1, len(self.bands), self.size, self.size],
                        "dim_order": ["batch", "channel", "height", "width"],
                        "data_type": "float32",
                    },
                    "value_scaling": [
                        {"type": "z-score", "mean": mean, "stddev": std}
                        for mean, std in zip(self.normalisation.mean, self.normalisation.std, strict=True)
                    ],
                    "resize_type": None,
                }
            ],
            "mlm:output": [
                {
                    "name": self.task,
                    "tasks": [_MLM_TASKS[self.task]],
                    "result": {
                        "shape": [-1, *(output if len(output) < 3 else (output[0], self.size, self.size))],
                        "dim_order": ["batch", "channel", "height", "width"][: 1 + len(output)],
                        "data_type": "float32",
                    },
                    "classification:classes": self._item_classes(),
                }
            ],
            _RECORD: _Record(
                architecture=self.architecture,
                arguments=self.arguments,
                bands=list(self.bands),
                normalisation=_Scaling(mean=list(self.normalisation.mean), std=list(self.normalisation.std)),
                size=self.size,
                resolution=float(self.resolution),
                units=self.units,
                task=self.task,
                classes=list(self.classes),
                training_hash=self.training_hash,
                name=self.name,
                description=self.description,
                notes=self.notes,
                codes=list(self.codes),
                colours=list(self.colours),
                stride=self.stride,
                halo=self.halo,
                encoder=_encoder_record(self.module),
            ).model_dump(),
        }
        if self.arguments:
            properties["mlm:hyperparameters"] = self.arguments
        return _json(
            {
                "type": "Feature",
                "stac_version": "1.1.0",
                "stac_extensions": [
                    "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
                    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
                ],
                "id": f"geoeco-{name}",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]],
                },
                "bbox": [-180, -90, 180, 90],
                "properties": properties,
                "links": [],
                "assets": {
                    "model": _asset(WEIGHTS, files[WEIGHTS], ["mlm:model", "mlm:weights"])
                    | {"mlm:artifact_type": "safetensors"},
                    "sample": _asset(SAMPLE, files[SAMPLE], ["data"]),
                    **(
                        {"applicability": _asset(APPLICABILITY, files[APPLICABILITY], ["data"])}
                        if APPLICABILITY in files
                        else {}
                    ),
                },
            },
            indent=1,
        )


def _applicability(objects: Objects, document: Mapping[str, Any], where: str) -> AreaOfApplicability | None:
    if "applicability" not in document["files"]:
        return None
    tensors = _tensors(objects, document, "applicability", APPLICABILITY, where)
    try:
        return AreaOfApplicability.from_arrays({name: value.numpy() for name, value in tensors.items()})
    except InputError as error:
        raise InputError(
            f"{APPLICABILITY} describes no area of applicability: {error.what}", where=where, code="bundle"
        ) from error


def _outside(module: nn.Module) -> str:
    """How the names of the weights begin that a bundle does not hold, since they are published; empty where none."""
    published = isinstance(module, DWFFNet) and module.weights_of_encoder.kind == "published"
    return "encoder." if published else ""


def _encoder_record(module: nn.Module) -> _Encoder | None:
    if not isinstance(module, DWFFNet):
        return None
    weights = module.weights_of_encoder
    if weights.kind == "later":
        raise InputError(
            "nobody has said which weights the encoder of the network has",
            what_to_do="make the network with encoder_weights",
        )
    return _Encoder(kind=weights.kind, name=weights.name, sha256=weights.sha256)


def _with_encoder(module: nn.Module, record: _Record, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights of a bundle with those of its published encoder, if it has one; notes in the module which they are."""
    assert record.encoder is not None, "the caller has looked"
    if not isinstance(module, DWFFNet):
        raise InputError(
            f"{ITEM} names an encoder, which {record.architecture} has none of", where=where, code="bundle"
        )
    if record.encoder.kind != "published":
        module.weights_of_encoder = EncoderWeights(record.encoder.kind, record.encoder.name, record.encoder.sha256)
        return tensors
    found = load_encoder(module.encoder, record.encoder.name, str(record.arguments["backbone"]))
    if found.kind != "published" or found.sha256 != record.encoder.sha256:
        raise InputError(
            f"the published weights {record.encoder.name} are not those that the model was trained with",
            where=where,
            what_to_do="clear timm's cache of weights and try again, or train again with these",
            code="checksum",
        )
    module.weights_of_encoder = found
    return {**{f"encoder.{name}": value for name, value in module.encoder.state_dict().items()}, **tensors}


def _json(value: Any, indent: int | None = None) -> bytes:
    try:
        return (json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"a model's arguments and notes must be plain JSON: {error}") from error


def _asset(name: str, content: bytes, roles: list[str]) -> dict[str, Any]:
    return {
        "href": f"./{name}",
        "type": "application/vnd.safetensors",
        "title": name,
        "roles": roles,
        "file:size": len(content),
        "file:checksum": _SHA256_MULTIHASH + hashlib.sha256(content).hexdigest(),
    }


def _weights(module: nn.Module) -> dict[str, Tensor]:
    outside = _outside(module)
    # copies, because safetensors refuses tensors that share memory
    return {
        name: value.detach().cpu().clone().contiguous()
        for name, value in module.state_dict().items()
        if not (outside and name.startswith(outside))
    }


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """Make networks without touching the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        yield


def _document(objects: Objects, where: str) -> dict[str, Any]:
    body = objects.get(ITEM)
    if body is None:
        raise InputError(
            f"there is no model bundle: no {ITEM}", where=where, what_to_do="name the folder of a bundle", code="bundle"
        )
    try:
        document = json.loads(body)
        assets = document["assets"]
        keys = ["model", "sample", *(["applicability"] if "applicability" in assets else [])]
        files = {key: (str(assets[key]["file:checksum"]), int(assets[key]["file:size"])) for key in keys}
        record = document["properties"][_RECORD]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{ITEM} is not the item of a bundle: {type(error).__name__}: {error}", where=where, code="bundle"
        ) from error
    return {"record": record, "files": files}


def _record(document: Mapping[str, Any], where: str) -> _Record:
    try:
        return _Record.model_validate(document["record"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{ITEM} is not the item of a bundle of this version: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=where,
            code="bundle",
        ) from error


def _tensors(objects: Objects, document: Mapping[str, Any], key: str, name: str, where: str) -> dict[str, Tensor]:
    """Tensors of one file, after its checksum."""
    content = objects.get(name)
    if content is None:
        raise InputError(f"the bundle lacks its {name}", where=where, code="bundle")
    checksum, size = document["files"][key]
    if len(content) != size or _SHA256_MULTIHASH + hashlib.sha256(content).hexdigest() != checksum:
        raise InputError(
            f"{name} is not the file that the bundle was made with: its checksum differs",
            where=where,
            what_to_do="get the whole bundle again from where it came",
            code="checksum",
        )
    try:
        return read_tensors(content)
    except SafetensorError as error:
        raise InputError(f"{name} is no safetensors file: {error}", where=where, code="bundle") from error
