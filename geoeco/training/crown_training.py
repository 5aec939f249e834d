"""Training of a network that tells the species of crowns from chips: from a store to a model bundle and its scores.

Chips, sets by blocks and the proof that they are apart are `geoeco.sampling`'s. Which pixels are of a crown is known
before: crowns are not found here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from geoeco.applicability import AreaOfApplicability
from geoeco.cubes.shards import Objects
from geoeco.errors import InputError
from geoeco.models import SeasonPredictor, create_backbone
from geoeco.models.encoder_weights import EncoderWeights, load_encoder
from geoeco.training.bundles import ModelBundle
from geoeco.training.contrast_losses import TEMPERATURE
from geoeco.training.crown_chips import CrownDataset, crown_table, pixel_statistics
from geoeco.training.crown_embeddings import embed_crowns
from geoeco.training.crown_learning import CrownPrediction, enlarged
from geoeco.training.crown_scores import rarity_details, rarity_scores
from geoeco.training.evaluation import DETAILS, TABLE, details_of, json_bytes, rows_of
from geoeco.training.expectations import expect_encoder
from geoeco.training.fitting import Fitting, FittingOptions, check_course
from geoeco.training.outlier_exposure import OutlierMixing, tnr_at_tpr
from geoeco.training.prediction import PartLoader, Validation, predicted
from geoeco.training.probes import FoldResult, ProbeResult
from geoeco.training.samplers import LocationBatches
from geoeco.training.season_contrast import Schedule
from geoeco.training.starting_encoders import encoder_arguments, origin_of, scale_for
from geoeco.training.targets import Targets

__all__ = ["LabelledCrowns", "folds_of_blocks", "labelled_crowns", "train_crowns"]

PARTS = ("train", "val", "test")
#: Outliers that are held in memory; of more, so many are drawn.
MOST_OUTLIERS = 1024
#: One in so many outliers is not mixed in, so that the share that is told can be measured.
HELD_OUT = 4
#: Components of the features that distances are measured along.
COMPONENTS = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledCrowns:
    """Crowns with a species and a set, ready to be learned from.

    Attributes
    ----------
    classes : tuple of str
        Species with a training crown, in alphabetical order.
    table : pandas.DataFrame
        Rows of `crown_table` of crowns of these classes in a set, with ``target`` (position in `classes`).
    facts : dict
        Crowns by set and species, and the species that have none in training: they are scored nowhere.
    """

    classes: tuple[str, ...]
    table: pd.DataFrame
    facts: dict[str, Any]

    def part(self, name: str) -> tuple[list[int], Tensor]:
        """Positions of the chips of one set, and their targets."""
        rows = self.table[self.table["split"] == name]
        return [int(sample) for sample in rows["sample"]], torch.tensor(rows["target"].tolist(), dtype=torch.int64)

    @property
    def learned(self) -> npt.NDArray[np.int64]:
        """Number of training crowns of each class ``(class,)``."""
        return np.bincount(self.part("train")[1].numpy(), minlength=len(self.classes))


def labelled_crowns(store: str | Path, *, min_valid: float = 0.5) -> LabelledCrowns:
    """Find the crowns of a store that can be learned from; every reason why there are none is told here.

    Parameters
    ----------
    store : str or Path
    min_valid : float
        Chips with a smaller valid part are not used.

    Raises
    ------
    InputError
        If no crown is named, the set train or val is empty, train holds one species only, or a crown is in two sets.
    """
    if not 0 < min_valid <= 1:
        raise InputError(f"min_valid is {min_valid}", what_to_do="give a share above 0: empty chips teach nothing")
    everything = crown_table(store)
    known = everything[
        (everything["class_name"] != "") & everything["split"].isin(PARTS) & (everything["valid_fraction"] >= min_valid)
    ]
    counts = {part: int((known["split"] == part).sum()) for part in PARTS}
    where = f"{store}; {', '.join(f'{count} {part}' for part, count in counts.items())}"
    if not len(known):
        raise InputError(
            "no crown has both a species and a set",
            where=where,
            what_to_do="give the chips class_column and split, or lower min_valid",
            code="no-locations",
        )
    for part in ("train", "val"):
        if not counts[part]:
            raise InputError(
                f"the set {part!r} holds no crown with a species",
                where=where,
                what_to_do="split the chips in another way, or name more crowns",
                code="empty-split",
            )
    of_crown = known.groupby("crown_id")["split"].nunique()
    if (of_crown > 1).any():
        raise InputError(
            f"the crown {of_crown.index[of_crown > 1][0]} is in two sets",
            where=where,
            what_to_do="make the chips with geoeco, which keeps all images of a crown in one set",
            code="leak",
        )
    support = {
        part: {str(name): int(n) for name, n in known.loc[known["split"] == part, "class_name"].value_counts().items()}
        for part in PARTS
    }
    classes = tuple(sorted(support["train"]))
    if len(classes) < 2:
        raise InputError(
            f"all crowns of the set 'train' are of the species {classes[0]}",
            where=where,
            what_to_do="use a split whose sets hold two species or more",
            code="one-class",
        )
    never = sorted(set(known["class_name"]) - set(classes))
    usable = known[known["class_name"].isin(classes)].reset_index(drop=True)
    if not (usable["split"] == "val").any():
        raise InputError("the set 'val' holds only species that the set 'train' lacks", where=where, code="empty-split")
    code = {name: position for position, name in enumerate(classes)}
    facts = {
        "crowns": counts,
        "support": {part: dict(sorted(found.items())) for part, found in support.items()},
        "never_learned": never,
    }
    return LabelledCrowns(classes, usable.assign(target=[code[name] for name in usable["class_name"]]), facts)


def train_crowns(
    store: str | Path,
    folder: str | Path,
    *,
    encoder: ModelBundle | str = "resnet18",
    weights: str = "random",
    size: int | None = None,
    freeze: bool = False,
    min_valid: float = 0.5,
    epochs: int = 50,
    batch: int = 32,
    lr: float = 1e-3,
    encoder_lr: float | None = None,
    weight_decay: float = 0.01,
    schedule: Schedule = "cosine",
    patience: int | None = 10,
    class_weights: Literal["none", "balanced"] = "balanced",
    contrast: float = 0.0,
    temperature: float = TEMPERATURE,
    exposure: OutlierMixing | None = None,
    outliers: str | Path | None = None,
    flips: bool = True,
    jitter: float = 0.1,
    **options: Unpack[FittingOptions],
) -> ModelBundle:
    """Train a network on crowns of known species, or go on with a training that was stopped.

    Parameters
    ----------
    store : str or Path
        Finished store of crown chips with species and sets (`geoeco.sampling.crown_chips`).
    folder : str or Path
        Local folder of the training: ``checkpoints/``, ``logs/``, ``bundle/``, ``evaluation.json`` and
        ``evaluation_details.json``, as of `geoeco.training.train`. What is there of the same training is gone on from.
    encoder : ModelBundle or str
        An encoder of crowns (`geoeco.training.align_crowns`), or the name of a network of timm.
    weights : str
        Of a network that is given by name: ``"random"``, the name of weights that timm publishes (downloads them), or
        a ``.safetensors`` file. Published ones bring their normalisation, for three bands.
    size : int, optional
        Pixels along a side that the network sees: a bundle's, or the chips', when not given. Smaller chips are enlarged
        bicubically; it is never smaller than the chips, of which the whole is shown.
    freeze : bool
        Whether the encoder stays as it is and only the linear layer learns.
    min_valid : float
        Chips with a smaller valid part are not used.
    epochs, lr, encoder_lr, weight_decay, schedule, patience
        As of `geoeco.training.train`.
    batch : int
        Crowns a step; the training crowns where there are fewer.
    class_weights : {"none", "balanced"}
        Whether the loss of a crown is weighted by one over the number of training crowns of its species.
    contrast, temperature
        Weight of supervised contrast beside cross-entropy, and its temperature: `SupCon` over two views a crown.
    exposure : OutlierMixing, optional
        Mixes chips of `outliers` into the images, so that the largest probability is low for what is none of the
        species.
    outliers : str or Path, optional
        Store of chips of the same bands and resolution that hold none of the species, of any kind; with `exposure`.
        One in four is kept aside to measure the share that is told.
    flips : bool
        Whether crowns are mirrored at random.
    jitter : float
        Light of an image is multiplied by 1 +- this at random.
    **options
        ``seed, checkpoint_every, device, precision, workers, key, name, saved, callbacks`` as of
        `geoeco.training.Fitting`.

    Returns
    -------
    ModelBundle
        With the weights of the lowest validation loss and the area of applicability of the training crowns, whose folds
        are the blocks of the split; saved as ``folder/bundle``.

    Raises
    ------
    InputError
        Before any work: settings, species, sets, bands or the encoder do not fit.
    OutputError
        If the training diverges or the folder cannot be written.

    Notes
    -----
    Species without a training crown cannot be learned: their crowns are left out of the scores, and the notes of the
    bundle name them. Scores of the test set are told by how many crowns of a species there were to learn from
    (`rarity_scores`). On a CPU a training that was stopped and goes on gives bit by bit what an undisturbed one gives.
    """
    fitting = Fitting(Path(folder), **options)
    check_course(epochs, batch, lr, weight_decay, schedule, encoder_lr=encoder_lr, patience=patience)
    if class_weights not in ("none", "balanced"):
        raise InputError(f"class_weights is {class_weights!r}", what_to_do="use 'none' or 'balanced'")
    seed, root = fitting.seed, fitting.root
    known = labelled_crowns(store, min_valid=min_valid)
    data = {part: CrownDataset(store, known.part(part)[0]) for part in PARTS if len(known.part(part)[0])}
    bands, resolution = data["train"].all_bands, data["train"].resolution
    bundle = encoder if isinstance(encoder, ModelBundle) else None
    arguments = (
        {"name": encoder, "in_channels": len(bands)}
        if isinstance(encoder, str)
        else encoder_arguments(encoder, "crown_alignment")
    )
    if bundle is not None:
        if weights != "random":
            raise InputError("a bundle brings its own weights", what_to_do="leave weights out")
        bundle.check_input(bands, "1", resolution)
    side = max(size or (bundle.size if bundle is not None else 0), data["train"].chip_size)
    if size is not None and size < data["train"].chip_size:
        raise InputError(
            f"size {size} is smaller than the chips of {data['train'].chip_size} pixels",
            where=str(store),
            what_to_do="make chips of coarser pixels (target_gsd), or leave size out",
        )
    expect_encoder(str(arguments["name"]), len(bands), size=side)
    odd = _outliers(exposure, outliers, data["train"], seed)
    train_samples, train_targets = known.part("train")
    per_step = min(batch, len(train_samples))
    with fitting.seeded():
        network = create_backbone(**arguments)
        found = EncoderWeights("later")
        if bundle is not None:
            network.load_state_dict(bundle.module.state_dict())
            scale = bundle.normalisation
        else:
            found = load_encoder(network, weights, str(arguments["name"]))
            scale = scale_for(found, bands, lambda: pixel_statistics(data["train"]))
        model = SeasonPredictor(network, len(known.classes), "single-label")
        by_class = _class_weights(class_weights, known.learned)
        batches = LocationBatches([f"{s:09d}" for s in train_samples], per_step, epochs=epochs, seed=seed)
        settings: dict[str, Any] = {
            "encoder": bundle.fingerprint() if bundle is not None else arguments,
            "weights": [found.kind, found.name, found.sha256],
            "bands": bands,
            "size": side,
            "freeze": freeze,
            "min_valid": min_valid,
            "mean": scale.mean,
            "std": scale.std,
            "epochs": epochs,
            "batch": per_step,
            "lr": lr,
            "encoder_lr": lr if encoder_lr is None else encoder_lr,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "patience": patience,
            "class_weights": class_weights,
            "contrast": contrast,
            "temperature": temperature,
            "exposure": None if exposure is None else dataclasses.asdict(exposure),
            "flips": flips,
            "jitter": jitter,
            "seed": seed,
        }
        training_hash = _training_hash(data, known, odd, settings, fitting.key)
        learner = CrownPrediction(
            model,
            train_targets,
            lambda raw, wanted: functional.cross_entropy(raw, wanted, by_class.to(raw.device)),
            scale,
            steps=len(batches),
            size=side,
            lr=lr,
            encoder_lr=lr if encoder_lr is None else encoder_lr,
            weight_decay=weight_decay,
            schedule=schedule,
            freeze=freeze,
            flips=flips,
            seed=seed,
            contrast=contrast,
            temperature=temperature,
            jitter=jitter,
            exposure=exposure,
            outliers=None if odd is None else odd.mixed_in,
        )
        watch = Validation(
            root / "logs" / "validation.csv",
            PartLoader(data["val"], batch, fitting.processes),
            Targets("single-label", known.part("val")[1], known.classes),
            batches.steps_per_epoch,
            patience,
            0.5,
        )
        fitting.run(learner, data["train"], batches, training_hash, watch)
        watch.write()
        model.cpu().load_state_dict(watch.best)
        learner.to(fitting.torch_device)
        chosen = {"epochs": len(watch.rows), "best_epoch": watch.best_epoch + 1}
        about = {
            "encoder": (bundle.name or bundle.architecture) if bundle is not None else str(arguments["name"]),
            "task": "species",
            "protocol": "trained",
            "split": "test",
        }
        rows, details = _tested(learner, data.get("test"), known, odd, batch, fitting.processes, about, chosen)
        model.cpu()
    notes = {
        **known.facts,
        **chosen,
        "weights": f"of epoch {watch.best_epoch + 1}, the one of the lowest validation loss, {watch.lowest:.6g}",
        "encoder": origin_of(bundle, arguments, freeze=freeze, weights=found),
        "settings": settings,
        "test": {row["metric"]: row["mean"] for row in rows},
    }
    made = ModelBundle(
        module=model,
        architecture="season_predictor",
        arguments={**arguments, "outputs": len(known.classes), "kind": "single-label"},
        bands=bands,
        normalisation=scale,
        size=side,
        resolution=resolution,
        task="classification",
        classes=known.classes,
        training_hash=training_hash,
        name=fitting.name or "species",
        description=f"{len(known.classes)} species from chips of {len(train_samples)} crowns; "
        f"{arguments['name']}, {'frozen' if freeze else 'tuned'}",
        notes=json.loads(json.dumps(notes)),
    )
    trusted = _applicability(made, store, known, batch)
    if trusted is not None:
        made = dataclasses.replace(made, applicability=trusted)
    made.save(root / "bundle")
    objects = Objects(str(root))
    objects.put(DETAILS, [json_bytes({"settings": settings, "crowns": known.facts, "results": details})])
    objects.put(TABLE, [json_bytes(rows)])
    return made


def _class_weights(kind: str, learned: npt.NDArray[np.int64]) -> Tensor:
    """Weights ``(class,)`` of the loss, 1 on average over the training crowns."""
    if kind == "none":
        return torch.ones(len(learned))
    return torch.from_numpy(learned.sum() / (len(learned) * learned)).float()


@dataclass(frozen=True, eq=False)
class _Outliers:
    """Values ``(outlier, band, y, x)`` that are mixed in, and those that are kept aside."""

    mixed_in: Tensor
    held_out: Tensor


def _outliers(
    exposure: OutlierMixing | None, store: str | Path | None, like: CrownDataset, seed: int
) -> _Outliers | None:
    if exposure is None and store is None:
        return None
    if exposure is None or store is None:
        raise InputError("exposure says how outliers are mixed in, outliers where they are: give both or none")
    data = CrownDataset(store)
    if data.all_bands != like.all_bands or abs(data.resolution - like.resolution) > 1e-6 * like.resolution:
        raise InputError(
            f"the outliers have {', '.join(data.all_bands)} at {data.resolution:g} m, the crowns "
            f"{', '.join(like.all_bands)} at {like.resolution:g} m",
            where=str(store),
            what_to_do="make both with the same bands and target_gsd",
            code="bands",
        )
    order = np.random.default_rng([seed, len(data)]).permutation(len(data))[:MOST_OUTLIERS]
    if len(order) < HELD_OUT:
        raise InputError(f"{len(order)} outliers are too few", where=str(store), what_to_do=f"give {HELD_OUT} or more")
    side = like.chip_size
    values = []
    for position in order:
        batch = {key: value[None] for key, value in data[int(position)].items()}
        image = enlarged(data.decode(batch)["image"], side)
        margin = (image.shape[-1] - side) // 2
        values.append(image[:, :, margin : margin + side, margin : margin + side])
    images = torch.cat(values)
    aside = len(images) // HELD_OUT
    return _Outliers(images[aside:].contiguous(), images[:aside].contiguous())


def _tested(
    learner: CrownPrediction,
    data: CrownDataset | None,
    known: LabelledCrowns,
    odd: _Outliers | None,
    batch: int,
    workers: int,
    about: Mapping[str, str],
    chosen: dict[str, int],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and details of the test set; none where there is no such set."""
    if data is None:
        return [], []
    raw, rows = PartLoader(data, batch, workers).raw(learner)
    prediction = predicted(learner.model, raw)
    wanted = known.part("test")[1].numpy()[rows.numpy()]
    found = rarity_scores(wanted, prediction, known.learned)
    if odd is not None:
        outside = _surest(learner, odd.held_out, batch)
        found["tnr_at_95_tpr"] = tnr_at_tpr(prediction.max(axis=1), outside)
    result = ProbeResult(
        "trained", "single-label", known.classes, (FoldResult(rows.numpy(), prediction, found, chosen),)
    )
    ids = known.table.loc[known.table["split"] == "test", "crown_id"].to_numpy()[rows.numpy()]
    details = {
        **about,
        **details_of(result),
        **rarity_details(wanted, prediction, known.learned, known.classes),
        "predictions": {
            str(crown): [round(float(value), 6) for value in line] for crown, line in zip(ids, prediction, strict=True)
        },
    }
    return rows_of(about, result), [details]


@torch.no_grad()
def _surest(learner: CrownPrediction, images: Tensor, batch: int) -> npt.NDArray[np.float32]:
    """Largest probabilities of images ``(N, band, y, x)``."""
    device = learner.model.head.weight.device
    learner.eval()
    found = []
    for part in torch.split(images, batch):
        raw, _ = learner.raw({"image": part.to(device)})
        found.append(predicted(learner.model, raw).max(axis=1))
    return np.concatenate(found)


def _applicability(
    bundle: ModelBundle, store: str | Path, known: LabelledCrowns, batch: int
) -> AreaOfApplicability | None:
    """Area of applicability of the training crowns, held out by block; None where there are too few blocks."""
    rows = known.table[known.table["split"] == "train"]
    folds = folds_of_blocks(rows["block"].to_numpy(dtype=np.int64))
    if folds is None:
        _log.warning(
            "the training crowns lie in fewer than two blocks of two crowns: the model has no area of applicability"
        )
        return None
    features = embed_crowns(bundle, store, samples=[int(sample) for sample in rows["sample"]], batch=batch).features
    components = min(COMPONENTS, features.shape[1], len(features) - 1)
    return AreaOfApplicability(components=components).fit(features, folds)


def folds_of_blocks(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """Spatial folds of crowns, of two or more each: their blocks, where lone crowns share one.

    Parameters
    ----------
    blocks : numpy.ndarray of int64, shape (crown,)

    Returns
    -------
    numpy.ndarray of int64, or None
        ``(crown,)``; None where there are fewer than two such folds.
    """
    numbers, position, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    lone = counts < 2
    if lone.sum() == 1 and (~lone).any():
        # it joins the smallest block
        joined = int(np.argmin(np.where(lone, len(blocks) + 1, counts)))
        folds = np.where(lone, joined, np.arange(len(numbers)))[position]
    else:
        folds = np.where(lone, len(numbers), np.arange(len(numbers)))[position]
    _, sizes = np.unique(folds, return_counts=True)
    return folds if len(sizes) > 1 and sizes.min() > 1 else None


def _training_hash(
    data: Mapping[str, CrownDataset],
    known: LabelledCrowns,
    odd: _Outliers | None,
    settings: Mapping[str, Any],
    key: str,
) -> str:
    """SHA-256 of the pixels, the targets and sets, the settings and the caller's key."""
    digest = hashlib.sha256()
    for part in PARTS:
        if part in data:
            for position in range(len(data[part])):
                image, valid = data[part].stored_chip(position)
                digest.update(np.ascontiguousarray(image).data)
                digest.update(np.packbits(valid).data)
    if odd is not None:
        digest.update(odd.mixed_in.numpy().data)
        digest.update(odd.held_out.numpy().data)
    columns = known.table[["sample", "crown_id", "split", "block", "target"]]
    digest.update(json.dumps([columns.to_numpy().tolist(), known.classes, settings, key], sort_keys=True).encode())
    return digest.hexdigest()
