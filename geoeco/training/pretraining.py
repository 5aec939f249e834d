"""Pretraining of an encoder on season chips, from a store to a model bundle; goes on where it was stopped.

The recipe of it all: settings, what is checked before, the bundle. The parts are the other modules of this room and
`geoeco.models`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch

from geoeco.cubes.shards import Objects
from geoeco.errors import InputError
from geoeco.models import MoCo, SeCo, create_backbone
from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.chip_dataset import ChipDataset
from geoeco.training.expectations import expect_encoder
from geoeco.training.fitting import Fitting, FittingOptions, check_course
from geoeco.training.samplers import LocationBatches, location_weights
from geoeco.training.season_contrast import Schedule, SeasonContrast
from geoeco.training.statistics import ChipStatistics, chip_statistics, seco_eco_normalisation
from geoeco.training.views import MoCoViews, SeasonViews
from geoeco.training.weights import load_weights, source_identity

__all__ = ["DEFAULT_BANDS", "pretrain"]

#: Nine channels of SSL4Eco: the 10 and 20 m bands without the short-wave infrared, and NDVI.
DEFAULT_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "ndvi")
#: The batch for which ``lr`` is meant.
_REFERENCE_BATCH = 256


def pretrain(
    store: str | Path,
    folder: str | Path,
    *,
    method: Literal["seco", "moco", "none"] = "seco",
    backbone: str = "resnet50",
    bands: Sequence[str] = DEFAULT_BANDS,
    names: Sequence[str] | None = None,
    min_valid: float = 0.99,
    size: int = 224,
    views: Mapping[str, Any] | None = None,
    normalisation: Literal["measured", "seco-eco"] | Normalisation = "measured",
    epochs: int = 100,
    batch: int = 256,
    lr: float = 0.03,
    schedule: Schedule = "cosine",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    temperature: float = 0.2,
    queue: int | None = None,
    dim: int = 128,
    key_momentum: float = 0.999,
    norm_splits: int = 1,
    group_norm: bool = False,
    initial_weights: str | None = None,
    bare_weight: float = 1.0,
    favoured: Sequence[str] | Mapping[str, float] = (),
    compile_networks: bool = False,
    **options: Unpack[FittingOptions],
) -> ModelBundle:
    """Train an encoder on season chips without labels, or go on with a training that was stopped.

    Parameters
    ----------
    store : str or Path
        Finished store of chips, folder or fsspec URL.
    folder : str or Path
        Local folder of the training: ``checkpoints/``, ``logs/metrics.csv`` and TensorBoard's files, ``bundle/``. What
        is there of the same training is gone on from.
    method : {"seco", "moco", "none"}
        Season contrast with three heads; MoCo v2 with one head, its control; or no training at all, random weights,
        the control of both.
    backbone : str
        As of `geoeco.models.create_backbone`.
    bands : sequence of str
        ``"ndvi"`` last, if it is wanted.
    names : sequence of str, optional
        Locations to train on; all when not given.
    min_valid : float
        Chips with a smaller valid part are not used; locations with fewer than two seasons are left out.
    size : int
        Pixels along a side of the views.
    views : mapping, optional
        Further settings of `geoeco.training.SeasonViews`, all but ``bands`` and ``size``.
    normalisation : {"measured", "seco-eco"} or Normalisation
        Mean and spread of the training locations, `chip_statistics`; or the scale of SeCo-Eco's authors,
        `seco_eco_normalisation`. Measured is the default, because it makes no assumption about the units in which the
        first layer's weights are drawn.
    epochs : int
    batch : int
        Locations a step.
    lr : float
        Learning rate for a batch of 256; it is scaled with the batch (Goyal et al. 2017).
    schedule : {"constant", "cosine", "step"}
        Of the learning rate. The authors' command leaves it constant, its paper says nothing; cosine, as MoCo v2 has it
        and MoCo-Eco was trained, is the default, so that a short training ends settled and both methods are alike.
    momentum, weight_decay : float
        Of SGD.
    temperature : float
        0.2 as in the authors' command and MoCo v2; SeCo's own is 0.07.
    queue : int, optional
        Keys in each queue. When not given: 65 536 as published, but at most half of the locations, rounded down to
        whole batches: a longer queue would hold a location's own keys of the epoch before as its negatives.
    dim : int
        Length of the projections.
    key_momentum : float
        Share of itself that the key branch keeps in a step.
    norm_splits, group_norm
        As of `geoeco.models.create_backbone`.
    initial_weights : str, optional
        As the source of `load_weights`; random when not given, as published.
    bare_weight : float
        How often locations with mean NDVI below 0.1 in all seasons are drawn, relative to others: 1/4 in the paper,
        which the authors' command leaves out; 1 is the default, because bare ground is rare in most regions and may be
        what is studied.
    favoured : sequence of str, or mapping of str to float
        Locations drawn twice as often, or as often as the mapping says.
    compile_networks : bool
        Whether `torch.compile` is used.
    **options
        ``seed, checkpoint_every, device, precision, workers, key, name, saved, callbacks`` as of
        `geoeco.training.Fitting`.

    Returns
    -------
    ModelBundle
        The query backbone, on the CPU; saved as ``folder/bundle``.

    Raises
    ------
    InputError
        Before any work, if settings, bands or locations do not fit, or there is no such device.
    OutputError
        If the training diverges or the folder cannot be written.

    Notes
    -----
    On a CPU a training that was stopped and goes on gives bit by bit what an undisturbed one gives: batches, dates,
    views and shuffles follow `seed` and the number of the step. One device only.

    References
    ----------
    Plekhanova et al. (2025), SSL4Eco, arXiv 2504.18256. Manas et al. (2021), Seasonal contrast, ICCV. Chen et al.
    (2020), MoCo v2, arXiv 2003.04297. Goyal et al. (2017), arXiv 1706.02677.
    """
    fitting = Fitting(Path(folder), **options)
    seed = fitting.seed
    if method not in ("seco", "moco", "none"):
        raise InputError(f"method is {method!r}", what_to_do="use 'seco', 'moco' or 'none'")
    check_course(epochs, batch, lr, weight_decay, schedule)
    if not bare_weight > 0:
        raise InputError(f"bare_weight is {bare_weight}: it must be positive")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum is {momentum}: momentum is from 0 to below 1")
    data = ChipDataset(
        store, names=names, bands=bands, min_valid=min_valid, dates=2 if method == "moco" else 3, seed=seed
    )
    make_views = _make_views(method, data.all_bands, size, views or {})
    if method != "none":
        make_views.check_chips(data.size)
    if method != "none" and norm_splits > 1 and batch % norm_splits:
        raise InputError(
            f"norm_splits of {norm_splits} does not divide the batch of {batch}",
            what_to_do="choose a batch that norm_splits divides",
        )
    expect_encoder(backbone, len(data.all_bands), size=size, norm_splits=norm_splits, group_norm=group_norm)
    if favoured and not set(favoured) & set(data.names):
        raise InputError(
            f"none of {len(favoured)} favoured locations is among those of the training",
            where=f"favoured like {next(iter(favoured))!r}, locations like {data.names[0]!r}",
            what_to_do="name locations as in the store of chips",
            code="no-locations",
        )
    keys = _queue_size(queue, batch, len(data), method)
    scale, measured = _normalisation(normalisation, data, bare_weight)
    ndvi = measured.mean_ndvi if measured is not None and bare_weight != 1.0 else None
    weights = location_weights(data.names, ndvi, bare_weight=bare_weight, favoured=favoured)
    arguments: dict[str, Any] = {"name": backbone, "in_channels": len(data.all_bands)}
    if norm_splits != 1:
        arguments["norm_splits"] = norm_splits
    if group_norm:
        arguments["group_norm"] = True
    settings = {
        "method": method,
        "backbone": arguments,
        "bands": data.all_bands,
        "min_valid": min_valid,
        "views": {**make_views.settings},
        "mean": scale.mean,
        "std": scale.std,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "schedule": schedule,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "temperature": temperature,
        "queue": keys,
        "dim": dim,
        "key_momentum": key_momentum,
        # not where a file lies, which makes no difference to what is learned
        "initial_weights": None if initial_weights is None else source_identity(initial_weights),
        "sampling": hashlib.sha256(weights.tobytes()).hexdigest(),
        "seed": seed,
    }
    training_hash = _training_hash(data, settings, fitting.key)
    batches = (
        None if method == "none" else LocationBatches(data.names, batch, epochs=epochs, seed=seed, weights=weights)
    )
    with fitting.seeded():
        encoder = create_backbone(**arguments)
        notes: dict[str, Any] = {"method": method, "locations": len(data), "settings": settings}
        if method != "none":
            # crops of different area are brought to one size
            notes["view_pixels_m"] = make_views.pixel_sizes(data.size, data.resolution)
        if initial_weights is not None:
            notes["initial_weights_sha256"] = load_weights(encoder, initial_weights).digest
        if batches is None:
            if initial_weights is None:
                notes["weights"] = "random: nothing was trained"
        else:
            model = (MoCo if method == "moco" else SeCo)(
                encoder, len(data.all_bands), dim=dim, queue_size=keys, momentum=key_momentum, temperature=temperature
            )
            task = SeasonContrast(
                model,
                make_views,
                scale,
                steps=len(batches),
                lr=lr * batch / _REFERENCE_BATCH,
                momentum=momentum,
                weight_decay=weight_decay,
                schedule=schedule,
                seed=seed,
                channels_last=fitting.on_gpu,
            )
            if fitting.on_gpu:
                model.to(memory_format=torch.channels_last)
            if compile_networks:
                model.backbone.compile()
                model.key_backbone.compile()
            data.stored = data.can_be_stored
            fitting.run(task, data, batches, training_hash)
            encoder = model.backbone.cpu()
    bundle = ModelBundle(
        module=encoder.to(memory_format=torch.contiguous_format),
        architecture="backbone",
        arguments=arguments,
        bands=data.all_bands,
        normalisation=scale,
        size=size,
        resolution=data.resolution,
        training_hash=training_hash,
        name=fitting.name or method,
        description=_description(method, backbone, len(data), initial_weights),
        notes=json.loads(json.dumps(notes)),
    )
    bundle.save(fitting.root / "bundle")
    return bundle


def _make_views(method: str, bands: Sequence[str], size: int, further: Mapping[str, Any]) -> SeasonViews | MoCoViews:
    kind = MoCoViews if method == "moco" else SeasonViews
    known = set(inspect.signature(kind).parameters) - {"bands", "size"}
    wrong = sorted(set(further) - known)
    if wrong:
        raise InputError(
            f"views have no setting {wrong[0]!r}",
            what_to_do="size is an argument of its own, and bands too"
            if wrong[0] in ("size", "bands")
            else f"settings: {', '.join(sorted(known))}",
        )
    made: SeasonViews | MoCoViews = kind(bands, size=size, **further)
    return made


def _queue_size(queue: int | None, batch: int, locations: int, method: str) -> int:
    if queue is None:
        return max(min(65536, locations // 2) // batch, 1) * batch
    if method != "none" and queue % batch:
        raise InputError(
            f"a queue of {queue} keys is no multiple of the batch of {batch}",
            what_to_do="choose a batch that divides the queue, or leave the queue to be chosen",
            code="queue",
        )
    return queue


def _normalisation(
    wanted: str | Normalisation, data: ChipDataset, bare_weight: float
) -> tuple[Normalisation, ChipStatistics | None]:
    """Scale of the input, and the statistics of the store where they are needed."""
    measured = None
    if wanted == "measured" or bare_weight != 1.0:
        measured = chip_statistics(data.store, names=data.names, bands=data.all_bands, min_valid=data.min_valid)
        if bare_weight != 1.0 and measured.mean_ndvi is None:
            raise InputError(
                "bare ground is told by NDVI, and the chips have no B04 and B08",
                where=data.store,
                what_to_do="leave bare_weight at 1, or make chips with these bands",
            )
    if isinstance(wanted, Normalisation):
        if len(wanted.mean) != len(data.all_bands):
            raise InputError(f"a normalisation of {len(wanted.mean)} bands for {len(data.all_bands)} bands")
        return wanted, measured
    if wanted == "seco-eco":
        return seco_eco_normalisation(data.all_bands), measured
    if wanted == "measured" and measured is not None:
        return measured.normalisation, measured
    raise InputError(f"normalisation is {wanted!r}", what_to_do="use 'measured', 'seco-eco' or a Normalisation")


def _training_hash(data: ChipDataset, settings: Mapping[str, Any], key: str) -> str:
    """SHA-256 of the table of chips, the locations used, the settings and the caller's key."""
    table = Objects(data.store.rstrip("/")).get("chips.parquet") or b""
    digest = hashlib.sha256(hashlib.sha256(table).digest())
    digest.update(json.dumps([sorted(data.names), settings, key], sort_keys=True).encode())
    return digest.hexdigest()


def _description(method: str, backbone: str, locations: int, initial_weights: str | None) -> str:
    if method == "none":
        return f"{backbone}, not trained: " + (Path(initial_weights).name if initial_weights else "RANDOM WEIGHTS")
    kind = "season contrast" if method == "seco" else "momentum contrast"
    return f"{backbone} trained by {kind} on season chips of {locations} locations"
