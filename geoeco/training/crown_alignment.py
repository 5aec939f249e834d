"""Encoders of crowns from above that learned from close-up photos of the same crowns: pairs are all that is told.

Two encoders, one of chips and one of photos, are brought to agree on which crown is which (`InfoNCE`); the species are
not used. Only the encoder of chips is kept, for maps are made from above. What it is worth is measured with neighbours
in a gallery of crowns whose species are known.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError
from geoeco.models import build, create_backbone
from geoeco.models.encoder_weights import load_encoder
from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.closeup_pairs import CrownPairs, check_photos, photo_statistics, photos_of_crowns, read_photos
from geoeco.training.contrast_losses import TEMPERATURE, InfoNCE
from geoeco.training.crown_chips import CrownDataset, crown_table, pixel_statistics
from geoeco.training.crown_embeddings import embed_crowns
from geoeco.training.crown_learning import PROJECTION, enlarged, relit
from geoeco.training.crown_scores import rarity_scores
from geoeco.training.evaluation import TABLE, json_bytes, rows_of
from geoeco.training.expectations import expect_encoder
from geoeco.training.fitting import Fitting, FittingOptions, check_course
from geoeco.training.folds import Fold
from geoeco.training.prediction import mirrored
from geoeco.training.probes import FoldResult, ProbeResult, knn_probe
from geoeco.training.samplers import LocationBatches
from geoeco.training.season_contrast import Schedule, schedule_factor, step_seed
from geoeco.training.starting_encoders import scale_for

__all__ = ["CrownAlignment", "align_crowns", "gallery_scores"]

Floats = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)

#: Numbers of neighbours that are tried on the validation crowns.
NEIGHBOURS = (1, 3, 5, 10)


class CrownAlignment(LightningModule):
    """Alignment of two views of crowns as a Lightning task.

    Parameters
    ----------
    top, near : torch.nn.Module
        Encoders of chips and of photos, with ``num_features``.
    normalisation, near_normalisation : Normalisation
        Of chips and of photos.
    steps : int
        Of the whole training.
    sizes : tuple of int
        Least pixels along a side that the two encoders see.
    temperature, lr, weight_decay : float
    schedule : {"constant", "cosine", "step"}
    flips : bool
        Whether both views are mirrored at random, each by itself.
    jitter : float
        Light of both, as of `geoeco.training.CrownPrediction`.
    seed : int
        What is drawn in a step follows `seed` and the number of the step.

    Notes
    -----
    ``training_step`` takes a batch of `CrownPairs` with values, and gives ``loss``, ``heads (1,)`` (the loss again) and
    ``accuracy (1,)``, the share of chips whose nearest photo in the batch is of their crown.
    """

    def __init__(
        self,
        top: nn.Module,
        near: nn.Module,
        normalisation: Normalisation,
        near_normalisation: Normalisation,
        *,
        steps: int,
        sizes: tuple[int, int],
        temperature: float = TEMPERATURE,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
        flips: bool = True,
        jitter: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= jitter < 1:
            raise InputError(f"jitter is {jitter}", what_to_do="give a share from 0 to below 1")
        self.top, self.near = top, near
        self.top_head, self.near_head = _head(top), _head(near)
        self.normalisation, self.near_normalisation = normalisation, near_normalisation
        self.contrast = InfoNCE(temperature)
        self.steps, self.sizes, self.seed = steps, sizes, seed
        self.lr, self.weight_decay = lr, weight_decay
        self.schedule: Schedule = schedule
        self.flips, self.jitter = flips, jitter

    def from_above(self, image: Tensor) -> Tensor:
        """Projected features ``(N, D)`` of chips ``(N, band, y, x)`` in value units."""
        found: Tensor = self.top_head(self.top(self.normalisation(enlarged(image, self.sizes[0]))))
        return found

    def from_near(self, photo: Tensor) -> Tensor:
        """Projected features ``(N, D)`` of photos ``(N, 3, y, x)`` in 0..1."""
        found: Tensor = self.near_head(self.near(self.near_normalisation(enlarged(photo, self.sizes[1]))))
        return found

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Contrast the views of one batch."""
        torch.manual_seed(step_seed(self.seed, self.global_step))
        there = batch["closeup_there"]
        crown = batch["crown"]
        photo_crown = crown[:, None].expand_as(there)[there]
        found = self.contrast(
            self.from_above(self._view(batch["image"])),
            self.from_near(self._view(batch["closeup"][there])),
            crown,
            photo_crown,
        )
        return {"loss": found.total, "heads": found.total.detach()[None], "accuracy": found.accuracy[None]}

    def _view(self, image: Tensor) -> Tensor:
        return relit(mirrored(image) if self.flips else image, self.jitter)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over both encoders, with the schedule a step at a time."""
        optimiser = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: schedule_factor(step, max(self.steps, 1), self.schedule)
        )
        chosen: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimiser, "lr_scheduler": chosen}  # type: ignore[return-value]


def _head(encoder: nn.Module) -> nn.Sequential:
    features = encoder.num_features
    assert isinstance(features, int), "create_backbone sets it"
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, PROJECTION))


class _Gallery(NamedTuple):
    """Species of the training crowns, crowns of these in a set, their positions there by set, and what is lacking."""

    species: tuple[str, ...]
    used: npt.NDArray[np.int64]
    rows: dict[str, npt.NDArray[np.int64]]
    lacks: str


def _gallery(species: Sequence[str], splits: Sequence[str]) -> _Gallery:
    names, parts = np.array(species, dtype=str), np.array(splits, dtype=str)
    gallery = tuple(sorted(set(names[(parts == "train") & (names != "")].tolist())))
    used = np.flatnonzero(np.isin(names, gallery) & np.isin(parts, ("train", "val", "test")))
    rows = {part: np.flatnonzero(parts[used] == part) for part in ("train", "val", "test")}
    empty = [part for part, found in rows.items() if not len(found)]
    lacks = f"the gallery holds {len(gallery)} species" if len(gallery) < 2 else ""
    if empty and not lacks:
        lacks = f"the set {empty[0]!r} holds no crown of a species that the gallery knows"
    return _Gallery(gallery, used, rows, lacks)


def gallery_scores(
    features: Floats,
    species: Sequence[str],
    splits: Sequence[str],
    *,
    k: int | Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> ProbeResult:
    """Tell species by the nearest crowns of a gallery, without training.

    Parameters
    ----------
    features : numpy.ndarray, shape (crown, feature)
    species : sequence of str
        Of each crown, empty where it is not known.
    splits : sequence of str
        ``train`` is the gallery, ``val`` decides between numbers of neighbours, ``test`` is asked.
    k, temperature
        As of `geoeco.training.knn_probe`.

    Returns
    -------
    ProbeResult
        One fold; its scores are those of `rarity_scores`. Crowns of species without one in the gallery are left out.

    Raises
    ------
    InputError
        If one of the three sets is empty, or the gallery holds one species only.
    """
    gallery = _gallery(species, splits)
    if gallery.lacks:
        raise InputError(gallery.lacks, what_to_do="name more crowns, or split them in another way", code="gallery")
    used, rows = gallery.used, gallery.rows
    names = np.array(species, dtype=str)
    targets = np.searchsorted(gallery.species, names[used])
    fold = Fold(rows["train"], rows["val"], rows["test"])
    usable = [count for count in ([k] if isinstance(k, int) else k) if count <= len(fold.train)]
    found = knn_probe(
        features[used], targets, task="single-label", folds=[fold], k=usable or k, temperature=temperature
    ).folds[0]
    learned = np.bincount(targets[fold.train], minlength=len(gallery.species))
    scored = rarity_scores(targets[fold.test], found.prediction, learned)
    return ProbeResult(
        "knn", "single-label", gallery.species, (FoldResult(used[fold.test], found.prediction, scored, found.chosen),)
    )


def align_crowns(
    store: str | Path,
    folder: str | Path,
    pairs: pd.DataFrame,
    photos: str | Path,
    *,
    encoder: str = "resnet18",
    weights: str = "random",
    size: int | None = None,
    closeup_size: int = 224,
    closeups: int = 2,
    min_valid: float = 0.5,
    temperature: float = TEMPERATURE,
    epochs: int = 50,
    batch: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    schedule: Schedule = "cosine",
    flips: bool = True,
    jitter: float = 0.1,
    compare: Mapping[str, ModelBundle] | None = None,
    **options: Unpack[FittingOptions],
) -> ModelBundle:
    """Learn an encoder of crowns from pairs of chips and close-up photos, or go on with a training that was stopped.

    Parameters
    ----------
    store : str or Path
        Finished store of crown chips with sets; species are used to measure only.
    folder : str or Path
        Local folder of the training, as of `geoeco.training.train_crowns`.
    pairs : pandas.DataFrame
        As of `geoeco.sampling.pair_closeups`.
    photos : str or Path
        Folder that the photos of `pairs` are named from.
    encoder, weights : str
        Network of both encoders, and its weights at the start, as of `geoeco.training.train_crowns`.
    size : int, optional
        Pixels along a side that the encoder of chips sees, at least; the chips' when not given.
    closeup_size : int
        Pixels along a side that photos are scaled to.
    closeups : int
        Photos of a crown in a batch, of those it has.
    min_valid : float
    temperature : float
        Of `InfoNCE`.
    epochs, batch, lr, weight_decay, schedule, flips, jitter
        As of `geoeco.training.train_crowns`. The weights at the end are kept.
    compare : mapping of str to ModelBundle, optional
        Further models of crowns whose features are measured in the same way, by name.
    **options
        ``seed, checkpoint_every, device, precision, workers, key, name, saved, callbacks`` as of
        `geoeco.training.Fitting`.

    Returns
    -------
    ModelBundle
        The encoder of chips, of the task ``"embedding"``; saved as ``folder/bundle``. ``evaluation.json`` holds the
        scores by neighbours in the gallery of training crowns of ``random`` (the encoder before the training),
        ``aligned``, those of `compare`, and ``close-up``: photos against photos of crowns that have one, the mean of a
        crown's features. Where chips and photos of test crowns are there, ``crown_retrieval`` is the share of chips
        whose nearest photo among those of all test crowns is of their own crown.

    Raises
    ------
    InputError
        Before any work: no training crown has a photo, or settings, sets or the network do not fit.
    ReadError
        If a photo cannot be read.
    OutputError
        If the training diverges or the folder cannot be written.

    References
    ----------
    Pairs of the same crown at two scales: Saha et al. (2026), Tropical tree species across scales, arXiv 2604.23019,
    which proposes such an alignment; its data are not at hand, and nothing is claimed of them.
    """
    fitting = Fitting(Path(folder), **options)
    check_course(epochs, batch, lr, weight_decay, schedule)
    if min(closeup_size, closeups) < 1:
        raise InputError("closeup_size and closeups must be positive")
    seed = fitting.seed
    table = crown_table(store)
    usable = table[table["valid_fraction"] >= min_valid].reset_index(drop=True)
    named = photos_of_crowns(pairs)
    learned = usable[(usable["split"] == "train") & usable["crown_id"].isin(named)]
    if len(learned) < 2:
        raise InputError(
            f"{len(learned)} crowns of the set 'train' have a chip and a photo",
            where=str(store),
            what_to_do="pair more photos with crowns, or split the chips in another way",
            code="no-locations",
        )
    chips = CrownDataset(store, [int(sample) for sample in learned["sample"]])
    side = max(size or 0, chips.chip_size)
    data = CrownPairs(
        chips,
        [int(crown) for crown in learned["crown_id"]],
        photos,
        named,
        size=closeup_size,
        per_crown=closeups,
        seed=seed,
    )
    arguments = {"name": encoder, "in_channels": len(chips.all_bands)}
    expect_encoder(encoder, len(chips.all_bands), size=side)
    expect_encoder(encoder, 3, size=closeup_size)
    near_scale = photo_statistics(photos, [path for paths in data.photos.values() for path in paths], closeup_size)
    check_photos(photos, named, set(usable["crown_id"]) - set(data.crown_ids), closeup_size)
    per_step = min(batch, len(data))
    with fitting.seeded():
        top, near = create_backbone(encoder, len(chips.all_bands)), create_backbone(encoder, 3)
        found = load_encoder(top, weights, encoder)
        if weights != "random":
            load_encoder(near, weights, encoder)
        scale = scale_for(found, chips.all_bands, lambda: pixel_statistics(chips))
        start = {label: value.clone() for label, value in top.state_dict().items()}
        batches = LocationBatches([f"{sample:09d}" for sample in learned["sample"]], per_step, epochs=epochs, seed=seed)
        settings = {
            "encoder": arguments,
            "weights": [found.kind, found.name, found.sha256],
            "bands": chips.all_bands,
            "sizes": [side, closeup_size],
            "closeups": closeups,
            "min_valid": min_valid,
            "temperature": temperature,
            "mean": [scale.mean, near_scale.mean],
            "std": [scale.std, near_scale.std],
            "epochs": epochs,
            "batch": per_step,
            "lr": lr,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "flips": flips,
            "jitter": jitter,
            "seed": seed,
        }
        training_hash = _training_hash(data, settings, fitting.key)
        learner = CrownAlignment(
            top,
            near,
            scale,
            near_scale,
            steps=len(batches),
            sizes=(side, closeup_size),
            temperature=temperature,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            flips=flips,
            jitter=jitter,
            seed=seed,
        )
        fitting.run(learner, data, batches, training_hash)
        learner.to(fitting.torch_device).eval()

        def bundle_of(module: nn.Module, label: str, notes: dict[str, Any]) -> ModelBundle:
            return ModelBundle(
                module=module,
                architecture="backbone",
                arguments=arguments,
                bands=chips.all_bands,
                normalisation=scale,
                size=side,
                resolution=chips.resolution,
                training_hash=training_hash,
                name=label,
                description=f"crowns from above, aligned with close-ups of {learned['crown_id'].nunique()} crowns; "
                f"{encoder}",
                notes=notes,
            )

        untrained = build("backbone", arguments)
        untrained.load_state_dict(start)
        photo_features, of_photo = _photo_features(learner, photos, named, usable, closeup_size, batch)
        rows = _measured(
            {
                "random": bundle_of(untrained, "random", {}),
                **(compare or {}),
                "aligned": bundle_of(learner.top, "aligned", {}),
            },
            store,
            usable,
            (photo_features[0], of_photo),
            batch,
        )
        rows += _retrieved(learner, store, usable, photo_features[1], of_photo, batch)
        learner.cpu()
    notes = {
        "crowns": {str(part): int(n) for part, n in usable["split"].value_counts().sort_index().items()},
        "crowns_learned": int(learned["crown_id"].nunique()),
        "photos_learned": sum(map(len, data.photos.values())),
        "encoder": {"network": encoder, "start": found.name or "random weights", "sha256": found.sha256},
        "settings": settings,
        "test": {f"{row['encoder']}: {row['metric']}": row["mean"] for row in rows},
    }
    made = bundle_of(learner.top, fitting.name or "crowns", json.loads(json.dumps(notes)))
    made.save(fitting.root / "bundle")
    Objects(str(fitting.root)).put(TABLE, [json_bytes(rows)])
    return made


@torch.no_grad()
def _photo_features(
    learner: CrownAlignment,
    folder: str | Path,
    named: Mapping[int, tuple[str, ...]],
    usable: pd.DataFrame,
    size: int,
    batch: int,
) -> tuple[tuple[Floats, Floats], npt.NDArray[np.int64]]:
    """Features and projected features of the photos of all crowns, and the crown of each."""
    crowns = [int(crown) for crown in usable["crown_id"].drop_duplicates() if int(crown) in named]
    paths = [(crown, path) for crown in crowns for path in named[crown]]
    device = next(learner.parameters()).device
    features, projected = [], []
    for first in range(0, len(paths), batch):
        pixels = read_photos(folder, [path for _, path in paths[first : first + batch]], size)
        photo = torch.from_numpy(pixels).to(device).float() / 255
        found = learner.near(learner.near_normalisation(enlarged(photo, learner.sizes[1])))
        features.append(found.cpu())
        projected.append(learner.near_head(found).cpu())
    return (torch.cat(features).numpy(), torch.cat(projected).numpy()), np.array([c for c, _ in paths], dtype=np.int64)


def _measured(
    models: Mapping[str, ModelBundle],
    store: str | Path,
    usable: pd.DataFrame,
    photos: tuple[Floats, npt.NDArray[np.int64]],
    batch: int,
) -> list[dict[str, Any]]:
    """Scores by neighbours of each model and of the photos; none where the species are not known well enough."""
    samples = [int(sample) for sample in usable["sample"]]
    species, splits = usable["class_name"].tolist(), usable["split"].tolist()
    rows = []
    for label, bundle in models.items():
        rows += _rows(label, embed_crowns(bundle, store, samples=samples, batch=batch).features, species, splits)
    crowns = np.unique(photos[1])
    means = np.stack([photos[0][photos[1] == crown].mean(axis=0) for crown in crowns])
    first = usable.drop_duplicates("crown_id").set_index("crown_id").loc[crowns]
    return rows + _rows("close-up", means, first["class_name"].tolist(), first["split"].tolist())


def _rows(label: str, features: Floats, species: list[str], splits: list[str]) -> list[dict[str, Any]]:
    about = {"encoder": label, "task": "species", "protocol": "knn", "split": "test"}
    lacks = _gallery(species, splits).lacks
    if lacks:
        _log.warning("the features of %s are not measured: %s", label, lacks)
        return []
    return rows_of(about, gallery_scores(features, species, splits))


@torch.no_grad()
def _retrieved(
    learner: CrownAlignment,
    store: str | Path,
    usable: pd.DataFrame,
    projected: Floats,
    of_photo: npt.NDArray[np.int64],
    batch: int,
) -> list[dict[str, Any]]:
    """Share of chips of test crowns whose nearest photo, of those of all test crowns, is of their own crown."""
    tested = usable[(usable["split"] == "test") & usable["crown_id"].isin(of_photo)]
    if len(tested) < 2:
        return []
    data = CrownDataset(store, [int(sample) for sample in tested["sample"]])
    device = next(learner.parameters()).device
    loader: torch.utils.data.DataLoader[dict[str, Tensor]] = torch.utils.data.DataLoader(data, batch_size=batch)
    above = []
    for part in loader:
        values = data.decode({label: value.to(device) for label, value in part.items()})
        above.append(learner.from_above(values["image"]).cpu())
    among = np.isin(of_photo, tested["crown_id"])
    found = learner.contrast(
        torch.cat(above),
        torch.from_numpy(projected[among]),
        torch.tensor(tested["crown_id"].tolist()),
        torch.from_numpy(of_photo[among]),
    )
    about = {"encoder": "aligned", "task": "crown", "protocol": "knn", "split": "test"}
    return [{**about, "metric": "crown_retrieval", "mean": float(found.accuracy), "sd": None, "n": 1}]


def _training_hash(data: CrownPairs, settings: Mapping[str, Any], key: str) -> str:
    """SHA-256 of the chips, the photos, the settings and the caller's key."""
    digest = hashlib.sha256(data.fingerprint().encode())
    for position in range(len(data)):
        image, valid = data.chips.stored_chip(position)
        digest.update(np.ascontiguousarray(image).data)
        digest.update(np.packbits(valid).data)
    digest.update(json.dumps([data.crown_ids, settings, key], sort_keys=True).encode())
    return digest.hexdigest()
