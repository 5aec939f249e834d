"""Training of a network on labelled places: from season chips and a table of labels to a model bundle and its scores.

One encoder sees each season, the mean of the features goes through one linear layer
(`geoeco.models.SeasonPredictor`); the encoder is tuned too, or stays as it is. Probes of frozen features over folds are
`geoeco.training.evaluate`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError
from geoeco.models import SeasonPredictor, create_backbone
from geoeco.sampling import open_chips
from geoeco.training.bundles import ModelBundle
from geoeco.training.chip_dataset import ChipDataset
from geoeco.training.evaluation import (
    DETAILS,
    TABLE,
    details_of,
    json_bytes,
    rows_of,
)
from geoeco.training.expectations import expect_encoder
from geoeco.training.fitting import Fitting, FittingOptions, check_course
from geoeco.training.labelled import PARTS, Labelled, labelled_places, support_of
from geoeco.training.prediction import PartLoader, SeasonPrediction, Validation, predicted
from geoeco.training.probes import FoldResult, ProbeResult
from geoeco.training.samplers import LocationBatches
from geoeco.training.scoring import TaskKind
from geoeco.training.season_contrast import Schedule
from geoeco.training.starting_encoders import encoder_arguments, origin_of
from geoeco.training.statistics import chip_statistics
from geoeco.training.targets import Targets, loss_of, moments
from geoeco.vectors import read_table

__all__ = ["train", "trained_encoder"]

_BUNDLE_TASK: dict[TaskKind, str] = {
    "single-label": "classification",
    "multi-label": "classification",
    "regression": "regression",
    "distribution": "regression",
}


def train(
    store: str | Path,
    folder: str | Path,
    labels: pd.DataFrame | str | Path,
    *,
    task: TaskKind,
    columns: Sequence[str],
    encoder: ModelBundle | str = "resnet50",
    bands: Sequence[str] | None = None,
    size: int | None = None,
    freeze: bool = False,
    combine: str = "mean",
    min_valid: float = 0.9,
    split: pd.DataFrame | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    block_m: float = 100_000.0,
    buffer_m: float = 0.0,
    epochs: int = 100,
    batch: int = 64,
    lr: float = 1e-3,
    encoder_lr: float | None = None,
    weight_decay: float = 0.01,
    schedule: Schedule = "cosine",
    patience: int | None = 10,
    positive_weight: float | None = None,
    threshold: float = 0.5,
    flips: bool = True,
    target_units: Mapping[str, str] | None = None,
    **options: Unpack[FittingOptions],
) -> ModelBundle:
    """Train a network on labelled places, or go on with a training that was stopped.

    Parameters
    ----------
    store : str or Path
        Finished store of chips, folder or fsspec URL.
    folder : str or Path
        Local folder of the training: ``checkpoints/``, ``logs/metrics.csv`` (each step), ``logs/validation.csv`` (each
        epoch), TensorBoard's files, ``bundle/``, ``evaluation.json`` and ``evaluation_details.json``. What is there of
        the same training is gone on from.
    labels : pandas.DataFrame or path
        A row a place: ``name`` as in the store, and `columns`. Places without a value in one of them are left out.
    task : {"single-label", "multi-label", "regression", "distribution"}
        Cross-entropy; multi-label soft margin; squared error of values that are z-scored by the training part;
        Kullback-Leibler divergence. The losses of `linear_probe`.
    columns : sequence of str
        One for a single label; one a class (0 or 1), value or share else.
    encoder : ModelBundle or str
        A trained encoder (`pretrain`, `hub_bundle`), or the name of a network of timm with random weights.
    bands : sequence of str, optional
        Of an encoder that is given by name, ``"ndvi"`` last; all of the store when not given. A bundle brings its own.
    size : int, optional
        Pixels along a side of the windows: a bundle's, or whole chips, when not given. Windows are cut at random in
        training and at the centre else; smaller chips are enlarged bicubically, as by `embed_chips`.
    freeze : bool
        Whether the encoder stays as it is and only the linear layer learns.
    combine : str
        ``"mean"`` of the features over the seasons that are there, or the name of one season.
    min_valid : float
        Chips with a smaller valid part are not used.
    split : pandas.DataFrame, optional
        ``name`` and ``split``: ``train``, ``val`` or ``test``, anything else is in no part. When not given, the split
        that lies in the store; where there is none, `geoeco.sampling.spatial_split` of the labelled places.
    fractions, block_m, buffer_m
        Of that split. A test share of 0 is allowed.
    epochs : int
        At most.
    batch : int
        Places a step.
    lr : float
        Of the linear layer.
    encoder_lr : float, optional
        Of the encoder; as `lr` when not given.
    weight_decay : float
        Of AdamW.
    schedule : {"constant", "cosine", "step"}
    patience : int, optional
        The training ends after so many epochs without a lower validation loss; never early when None.
    positive_weight : float, optional
        Weight of given labels in a multi-label task.
    threshold : float
        Probability above which a label is given in the scores of a multi-label task.
    flips : bool
        Whether places are mirrored along x, y and the diagonal at random.
    target_units : mapping of str to str, optional
        Units of values by column, for the notes of the bundle.
    **options
        ``seed, checkpoint_every, device, precision, workers, key, name, saved, callbacks`` as of
        `geoeco.training.Fitting`. Validation and test are in float32 whatever the precision.

    Returns
    -------
    ModelBundle
        With the weights of the lowest validation loss; saved as ``folder/bundle``. Called with images
        ``(N, band, y, x)`` it gives probabilities, or values in the units of the targets, from one season each;
        ``bundle.module(bundle.normalisation(images), there)`` takes ``(N, season, band, y, x)`` and which are there.

    Raises
    ------
    InputError
        Before any work: settings, labels, parts, bands or the encoder do not fit.
    OutputError
        If the training diverges or the folder cannot be written.

    Notes
    -----
    The validation loss is that of the whole part at once. The test part is predicted once, at the end. On a CPU a
    training that was stopped and goes on gives bit by bit what an undisturbed one gives.
    """
    fitting = Fitting(Path(folder), **options)
    check_course(epochs, batch, lr, weight_decay, schedule, encoder_lr=encoder_lr, patience=patience)
    if not 0 < min_valid <= 1:
        raise InputError(f"min_valid is {min_valid}", what_to_do="give a share above 0: empty chips teach nothing")
    seed, root = fitting.seed, fitting.root
    loss = loss_of(task, positive_weight)
    bundle = encoder if isinstance(encoder, ModelBundle) else None
    arguments, channels = _encoder(encoder, store, bands)
    side = size if size is not None else (bundle.size if bundle is not None else None)
    if side is not None and side < 1:
        raise InputError(f"windows of {side} pixels", what_to_do="give a positive size")
    stored = int(open_chips(str(store)).sizes["x"])
    view: dict[str, Any] = {
        "bands": channels,
        "seasons": None if combine == "mean" else (combine,),
        "size": min(stored, side or stored),
        "min_valid": min_valid,
    }
    if combine == "concatenate":
        raise InputError("places may lack seasons", what_to_do="combine by 'mean', or name one season")
    if bundle is None:
        expect_encoder(str(arguments["name"]), len(channels), size=side or stored)
    everything = ChipDataset(store, **view)
    if bundle is not None:
        bundle.check_input(everything.all_bands, "1", everything.resolution)
    known = labelled_places(
        everything,
        read_table(labels) if isinstance(labels, str | Path) else labels,
        task,
        tuple(columns),
        split,
        {"fractions": fractions, "block_m": block_m, "buffer_m": buffer_m},
    )
    train_names, train_values = known.part("train")
    batches = LocationBatches(train_names, batch, epochs=epochs, seed=seed)
    data = {
        part: ChipDataset(
            store, names=known.part(part)[0], crop="random" if part == "train" else "centre", seed=seed, **view
        )
        for part in PARTS
        if known.fold[part]
    }
    for chips in data.values():
        chips.stored = chips.can_be_stored
    scale = (
        bundle.normalisation
        if bundle is not None
        else chip_statistics(store, names=train_names, bands=channels, min_valid=min_valid).normalisation
    )
    settings = {
        "task": task,
        "columns": list(columns),
        "encoder": bundle.fingerprint() if bundle is not None else arguments,
        "bands": channels,
        "size": side or stored,
        "freeze": freeze,
        "combine": combine,
        "min_valid": min_valid,
        "mean": scale.mean,
        "std": scale.std,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "encoder_lr": lr if encoder_lr is None else encoder_lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "patience": patience,
        "positive_weight": positive_weight,
        "threshold": threshold,
        "flips": flips,
        "seed": seed,
    }
    training_hash = _training_hash(everything.store, known, settings, fitting.key)
    outputs = len(known.targets.outputs)
    with fitting.seeded():
        network = create_backbone(**arguments)
        if bundle is not None:
            network.load_state_dict(bundle.module.state_dict())
        model = SeasonPredictor(network, outputs, task)
        if task == "regression":
            centre, unit = moments(train_values)
            model.centre.copy_(centre)
            model.unit.copy_(unit)
            train_values = (train_values - centre) / unit
        learner = SeasonPrediction(
            model,
            train_values,
            loss,
            scale,
            steps=len(batches),
            size=side or stored,
            lr=lr,
            encoder_lr=lr if encoder_lr is None else encoder_lr,
            weight_decay=weight_decay,
            schedule=schedule,
            freeze=freeze,
            flips=flips,
            seed=seed,
        )
        watch = Validation(
            root / "logs" / "validation.csv",
            PartLoader(data["val"], batch, fitting.processes),
            Targets(task, known.part("val")[1], known.targets.outputs),
            batches.steps_per_epoch,
            patience,
            threshold,
        )
        fitting.run(learner, data["train"], batches, training_hash, watch)
        watch.write()
        model.cpu().load_state_dict(watch.best)
        learner.to(fitting.torch_device)
        chosen = {"epochs": len(watch.rows), "best_epoch": watch.best_epoch + 1}
        about = {
            "encoder": (bundle.name or bundle.architecture) if bundle is not None else str(arguments["name"]),
            "task": columns[0] if len(columns) == 1 else task,
            "protocol": "trained",
            "split": "test",
        }
        rows, details = _tested(learner, data.get("test"), known, batch, fitting.processes, about, chosen, threshold)
        model.cpu()
    facts = {
        **known.facts,
        **chosen,
        "weights": f"of epoch {watch.best_epoch + 1}, the one of the lowest validation loss, {watch.lowest:.6g}",
        "encoder": origin_of(bundle, arguments, freeze=freeze),
        "settings": settings,
        "test": {row["metric"]: row["mean"] for row in rows},
    }
    if target_units:
        facts["target_units"] = dict(target_units)
    made = ModelBundle(
        module=model,
        architecture="season_predictor",
        arguments={**arguments, "outputs": outputs, "kind": task},
        bands=everything.all_bands,
        normalisation=scale,
        size=side or stored,
        resolution=everything.resolution,
        task=_BUNDLE_TASK[task],
        classes=known.targets.outputs,
        training_hash=training_hash,
        name=fitting.name or about["task"],
        description=f"{about['task']} ({task}) from season chips of {len(train_names)} places; "
        f"{arguments['name']}, {'frozen' if freeze else 'tuned'}",
        notes=json.loads(json.dumps(facts)),
    )
    made.save(root / "bundle")
    objects = Objects(str(root))
    objects.put(DETAILS, [json_bytes({"settings": settings, "places": known.facts, "results": details})])
    objects.put(TABLE, [json_bytes(rows)])
    return made


def trained_encoder(bundle: ModelBundle) -> ModelBundle:
    """Take the encoder of a network that `train` made: for maps of its embedding, or to train another layer on it.

    Parameters
    ----------
    bundle : ModelBundle
        As `train` gives it. It shares its weights with the result.

    Returns
    -------
    ModelBundle
        Whose task is ``embedding``; bands, normalisation and size are those of `bundle`. To be saved into a folder of
        its own.

    Raises
    ------
    InputError
        If the bundle is not one of `train`.
    """
    if not isinstance(bundle.module, SeasonPredictor):
        raise InputError(
            f"the model is a {bundle.architecture!r}, which has no encoder to be taken out",
            where=f"model {bundle.name or bundle.architecture}",
            what_to_do="give a bundle that train made",
            code="bundle",
        )
    return ModelBundle(
        module=bundle.module.encoder,
        architecture="backbone",
        arguments={name: value for name, value in bundle.arguments.items() if name not in ("outputs", "kind")},
        bands=bundle.bands,
        normalisation=bundle.normalisation,
        size=bundle.size,
        resolution=bundle.resolution,
        units=bundle.units,
        training_hash=bundle.training_hash,
        name=bundle.name,
        description=f"encoder of: {bundle.description}",
        notes={"encoder_of": bundle.fingerprint()},
    )


def _encoder(
    encoder: ModelBundle | str, store: str | Path, bands: Sequence[str] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arguments of the encoder's network, and its bands."""
    if isinstance(encoder, str):
        channels = tuple(bands) if bands is not None else ChipDataset(store).all_bands
        return {"name": encoder, "in_channels": len(channels)}, channels
    arguments = encoder_arguments(encoder, "pretrain")
    if bands is not None and tuple(bands) != encoder.bands:
        raise InputError(
            f"the encoder takes the bands {', '.join(encoder.bands)}, asked for are {', '.join(bands)}",
            where=f"model {encoder.name or encoder.architecture}",
            what_to_do="leave the bands out, or use an encoder for them",
            code="bands",
        )
    return arguments, encoder.bands


def _tested(
    learner: SeasonPrediction,
    data: ChipDataset | None,
    known: Labelled,
    batch: int,
    workers: int,
    about: Mapping[str, str],
    chosen: dict[str, int],
    threshold: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and details of the test part; none where there is no such part."""
    if data is None:
        return [], []
    names, values = known.part("test")
    targets = Targets(known.targets.task, values, known.targets.outputs)
    raw, rows = PartLoader(data, batch, workers).raw(learner)
    prediction = predicted(learner.model, raw)
    scores = targets.scored(rows.numpy(), prediction, threshold)
    result = ProbeResult(
        "trained", targets.task, targets.outputs, (FoldResult(rows.numpy(), prediction, scores, chosen),)
    )
    support = support_of(Targets(targets.task, values[rows], targets.outputs))
    predictions = {
        names[int(row)]: [round(float(value), 6) for value in line] for row, line in zip(rows, prediction, strict=True)
    }
    outputs = list(targets.outputs)
    return rows_of(about, result), [
        {**about, **details_of(result), "support": support, "outputs": outputs, "predictions": predictions}
    ]


def _training_hash(store: str, known: Labelled, settings: Mapping[str, Any], key: str) -> str:
    """SHA-256 of the table of chips, the places used with labels and parts, the settings and the caller's key."""
    table = Objects(store.rstrip("/")).get("chips.parquet") or b""
    digest = hashlib.sha256(hashlib.sha256(table).digest())
    digest.update(known.targets.values.numpy().tobytes())
    places = [known.names, {part: list(rows) for part, rows in known.fold.items()}, known.targets.outputs]
    digest.update(json.dumps([places, settings, key], sort_keys=True).encode())
    return digest.hexdigest()
