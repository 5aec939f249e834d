"""Images that are labelled as a whole, and the encoder that looks at their patches: what `learn_patches` is fed with.

Labels are `geoeco.sampling`'s: `chip_scenes`, `scene_table`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from geoeco.errors import InputError
from geoeco.models import create_backbone
from geoeco.models.encoder_weights import load_encoder
from geoeco.sensors.orthomosaic import Orthomosaic
from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.crown_chips import CrownDataset, band_moments
from geoeco.training.expectations import expect_encoder
from geoeco.training.starting_encoders import scale_for

__all__ = ["ChipScenes", "FileScenes", "Scenes", "start_encoder"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Part by which the pixels of images of one size may differ.
_SAME_GSD = 1e-3


class Scenes(ABC):
    """Images with a label each, read when they are asked for.

    Attributes
    ----------
    labels : tuple of str
    bands : tuple of str
    resolution : float
        Metres along a pixel.
    """

    labels: tuple[str, ...]
    bands: tuple[str, ...]
    resolution: float

    @abstractmethod
    def image(self, number: int) -> tuple[Floats, Bools]:
        """Values ``(band, y, x)`` of one image, 0 where invalid, and its mask ``(y, x)``."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[Floats, Bools, str]]:
        """Give each image, its mask and its label, in order."""
        for number, label in enumerate(self.labels):
            yield (*self.image(number), label)


class ChipScenes(Scenes):
    """Chips of a store.

    Parameters
    ----------
    store : str or Path
        Folder or fsspec URL of a store of `geoeco.sampling.open_uav_chips`.
    samples : sequence of int
        Positions of chips.
    labels : sequence of str

    Raises
    ------
    InputError
        If there is no chip, or chips and labels are not equally many.
    """

    def __init__(self, store: str | Path, samples: Sequence[int], labels: Sequence[str]) -> None:
        if len(samples) != len(labels):
            raise InputError(f"{len(samples)} chips with {len(labels)} labels")
        self._chips = CrownDataset(store, samples)
        self.labels = tuple(labels)
        self.bands, self.resolution = self._chips.all_bands, self._chips.resolution

    def image(self, number: int) -> tuple[Floats, Bools]:
        """Values ``(band, y, x)`` of one chip, 0 where invalid, and its mask ``(y, x)``."""
        stored, valid = self._chips.stored_chip(number)
        return np.where(valid, stored.astype(np.float32) * np.float32(self._chips.scale), np.float32(0)), valid


class FileScenes(Scenes):
    """Image files, each read as a whole.

    Parameters
    ----------
    files : sequence of Orthomosaic
        As of `geoeco.sensors.orthomosaic.describe_orthomosaic`; brought to one pixel size by ``at`` where they differ.
    labels : sequence of str

    Raises
    ------
    InputError
        If there is no image, images and labels are not equally many, or bands or pixel sizes differ.
    """

    def __init__(self, files: Sequence[Orthomosaic], labels: Sequence[str]) -> None:
        if len(files) != len(labels) or not files:
            raise InputError(f"{len(files)} images with {len(labels)} labels")
        first = files[0]
        for file in files:
            if file.bands != first.bands:
                raise InputError(
                    f"an image has the bands {', '.join(file.bands)}, others {', '.join(first.bands)}",
                    where=file.path,
                    what_to_do="name the bands to be used",
                    code="bands",
                )
            if abs(file.gsd_m - first.gsd_m) > _SAME_GSD * first.gsd_m:
                raise InputError(
                    f"an image has pixels of {file.gsd_m:g} m, others of {first.gsd_m:g} m",
                    where=file.path,
                    what_to_do="read them with coarser pixels of one size (target_gsd)",
                    code="resolution",
                )
        self.files, self.labels = tuple(files), tuple(labels)
        self.bands, self.resolution = tuple(first.bands), first.gsd_m

    def image(self, number: int) -> tuple[Floats, Bools]:
        """Values ``(band, y, x)`` of one file, 0 where invalid, and its mask ``(y, x)``."""
        file = self.files[number]
        rows, columns = (int(n) for n in file.shape)
        stored, valid = file.read((0, rows), (0, columns))
        return np.where(valid, stored.astype(np.float32) * np.float32(file.scale), np.float32(0)), valid


def start_encoder(backbone: str, weights: str, images: Scenes, size: int, *, seed: int = 0) -> ModelBundle:
    """Encoder of patches that no step has trained: a network of timm with weights from elsewhere.

    Parameters
    ----------
    backbone : str
        Name of the network.
    weights : str
        ``"random"``, which is said in the log and the notes; a name of timm's published weights; or a
        ``.safetensors`` file.
    images : Scenes
        Whose bands are scaled by their own mean and standard deviation, where the weights bring no scaling for them.
    size : int
        Pixels along a side of a patch.
    seed : int
        Of random weights.

    Returns
    -------
    ModelBundle
        Of the task ``"embedding"``.

    Raises
    ------
    InputError
        If there is no such network, it does not take such patches, the weights are not its own, or no pixel is valid.
    """
    bands = images.bands
    expect_encoder(backbone, len(bands), size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_backbone(backbone, len(bands))
    found = load_encoder(network, weights, backbone)
    scale = scale_for(found, bands, lambda: _statistics(images))
    random = found.kind == "random"
    facts = f"{backbone}|{seed if random else found.sha256}|{bands}|{scale.mean}|{scale.std}"
    return ModelBundle(
        module=network,
        architecture="backbone",
        arguments={"name": backbone, "in_channels": len(bands)},
        bands=bands,
        normalisation=scale,
        size=size,
        resolution=images.resolution,
        training_hash=hashlib.sha256(facts.encode()).hexdigest(),
        name=f"{backbone} with random weights" if random else f"{backbone}, {found.name}",
        notes={"weights": "random: it has learned nothing"} if random else {"weights": found.name},
    )


def _statistics(images: Scenes) -> Normalisation:
    """Mean and standard deviation of each band over the valid pixels of all images."""
    values = (image[:, valid].astype(np.float64) for image, valid, _ in images)
    mean, spread = band_moments(values, len(images.bands))
    # a band that is the same everywhere says nothing; rounding leaves a little
    spread = np.where(spread > 1e-7, spread, 1.0)
    return Normalisation(tuple(map(float, mean)), tuple(map(float, spread)))
