"""What frozen encoders are good for: several of them, on the same images, labels and folds.

`evaluate` brings together embeddings, folds and probes and writes one table of scores. Pictures of it are
`geoeco.outputs.score_chart`'s; encoders are trained elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr

from geoeco import models
from geoeco.cubes.shards import Objects
from geoeco.errors import GeoecoError, InputError
from geoeco.sampling import open_chips
from geoeco.training.bundles import ModelBundle
from geoeco.training.embeddings import chips_for, embed_chips, location_features
from geoeco.training.folds import FOLDS, SEED, Fold, assert_apart, block_folds, places_of, random_folds
from geoeco.training.probes import ProbeResult, knn_probe, linear_probe
from geoeco.training.scoring import TaskKind

__all__ = ["ProbeTask", "evaluate", "untrained"]

Protocol = Literal["linear", "knn"]
Split = Literal["random", "blocks"]

#: Name of the table that is written; and of what stands behind its numbers.
TABLE = "evaluation.json"
DETAILS = "evaluation_details.json"

#: Arguments of the probes that the caller may give; the others follow from tasks, folds and seed.
_LINEAR = frozenset({"scale", "use", "lr", "weight_decay", "batch", "max_epochs", "patience", "threshold", "device"})
_KNN = frozenset({"k", "temperature", "threshold", "device"})


@dataclass(frozen=True)
class ProbeTask:
    """What is to be read from features.

    Attributes
    ----------
    kind : {"single-label", "multi-label", "regression", "distribution"}
    columns : tuple of str
        Of the table of labels: one for a single label; one a class (0 or 1), output or bin else. The task's own name
        when empty.
    positive_weight : float, optional
        As of `geoeco.training.linear_probe`.
    """

    kind: TaskKind
    columns: tuple[str, ...] = ()
    positive_weight: float | None = None


@dataclass(frozen=True)
class _Division:
    """How locations are divided into folds."""

    splits: tuple[Split, ...]
    folds: int
    seed: int
    block_m: float
    buffer_m: float
    size_m: float
    keep_duplicates_together: bool


@dataclass(frozen=True, eq=False)
class _Problem:
    """One task on the locations that all encoders see: its targets and folds."""

    name: str
    task: ProbeTask
    columns: tuple[str, ...]
    names: tuple[str, ...]
    targets: npt.NDArray[Any]
    folds: dict[Split, tuple[Fold, ...]]
    facts: dict[str, Any] = field(default_factory=dict)


def untrained(bundle: ModelBundle, *, seed: int, name: str = "random") -> ModelBundle:
    """Give a model of the same architecture and input with weights as they are drawn: what training has to beat.

    Parameters
    ----------
    bundle : ModelBundle
    seed : int
        Of the weights.
    name : str
        Of the new bundle, whose notes say that its weights are random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = models.build(bundle.architecture, bundle.arguments)
    weight = next(bundle.module.parameters(), None)
    if weight is not None:
        module.to(weight.device)
    return replace(bundle, module=module, name=name, description="", training_hash="", notes={"weights": "random"})


def evaluate(
    encoders: Mapping[str, ModelBundle],
    store: str | Path | Mapping[str, str | Path],
    labels: pd.DataFrame,
    tasks: Mapping[str, ProbeTask | TaskKind],
    *,
    folder: str | Path,
    protocols: Sequence[Protocol] = ("linear", "knn"),
    splits: Sequence[Split] = ("random", "blocks"),
    combine: str = "mean",
    folds: int = FOLDS,
    seed: int = SEED,
    block_m: float = 100_000.0,
    buffer_m: float = 0.0,
    keep_duplicates_together: bool = False,
    linear: Mapping[str, Any] | None = None,
    knn: Mapping[str, Any] | None = None,
    batch: int = 64,
    workers: int = 0,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Score encoders by probes of their frozen features.

    Every encoder is scored on the same locations: those with a label that each of them can see. Nothing is embedded
    before labels, folds and encoders have been found to fit.

    Parameters
    ----------
    encoders : mapping of str to ModelBundle
        By the name that the table bears, each on the device where it is to work.
    store : str, Path or mapping
        A finished store of chips that all encoders see, folder or fsspec URL; or one for each encoder, by its name,
        when they see different images of the same locations.
    labels : pandas.DataFrame
        A row a location: ``name`` as in the store, and the columns of the tasks. Rows without a value in a task's
        columns are left out of that task.
    tasks : mapping of str to ProbeTask or str
        By name; a kind alone stands for the column of the task's name.
    folder : str or Path
        Folder or fsspec URL: ``evaluation.json``, ``evaluation_details.json`` (scores of each fold, numbers of
        locations, what was chosen) and ``embeddings/``, which a later call reads.
    protocols : sequence of {"linear", "knn"}
        `linear_probe`, `knn_probe`.
    splits : sequence of {"random", "blocks"}
        `random_folds` (of single labels stratified, as in the paper) and `block_folds`.
    combine : str
        How a location's seasons become one vector: `location_features`.
    folds, seed
        Of the folds; the seed also of the linear layers.
    block_m, buffer_m : float
        As of `block_folds`, metres; footprints are those of the windows that are embedded.
    keep_duplicates_together : bool
        Whether random folds keep locations of the very same coordinates together. The paper does not, so that some
        are learned and tested.
    linear, knn : mapping, optional
        Further arguments of the probes, for example ``{"max_epochs": 100}`` or ``{"k": 5}``.
    batch, workers : int
        As of `embed_chips`.
    threads : int, optional
        Of torch while it works; the last digits depend on it. As it is when not given.

    Returns
    -------
    list of dict
        As in ``evaluation.json``: ``encoder, task, protocol, split, metric, mean, sd, n``; the first metric of a task
        is its main one. ``mean`` and ``sd`` (n - 1 below the line) are over the ``n`` folds in which the score is
        defined; null where there are none, or only one.

    Raises
    ------
    InputError
        If an encoder does not fit its chips, labels are missing, of the wrong kind or for other locations, a season is
        nowhere, or too few locations are left for the folds.
    """
    where = str(folder).rstrip("/")
    _check_choices("protocol", protocols, get_args(Protocol))
    _check_choices("split", splits, get_args(Split))
    stores = _stores(encoders, store)
    asked = {name: task if isinstance(task, ProbeTask) else ProbeTask(task) for name, task in tasks.items()}
    if not asked:
        raise InputError("there are no tasks", what_to_do="name at least one, with its kind")
    table = checked_labels(labels, asked)
    _check_options("linear", linear, _LINEAR)
    _check_options("knn", knn, _KNN)
    seen, extent = {}, 0.0
    for name, bundle in encoders.items():
        try:
            seen[name] = _seen(stores[name], combine)
            dataset = chips_for(bundle, stores[name], _seasons(combine))
        except GeoecoError as error:
            raise InputError(
                error.what, where=f"encoder {name}; {error.where}", what_to_do=error.what_to_do, code=error.code
            ) from error
        extent = max(extent, dataset.size * bundle.resolution)
    places = _common(seen)
    division = _Division(tuple(splits), folds, seed, block_m, buffer_m, extent, keep_duplicates_together)
    problems = [_problem(name, task, table, places, division) for name, task in asked.items()]
    with _threads(threads):
        embedded = {
            name: embed_chips(
                bundle, stores[name], f"{where}/embeddings", seasons=_seasons(combine), batch=batch, workers=workers
            )
            for name, bundle in encoders.items()
        }
        finite = set.intersection(*(set(_features(found, combine)["name"].values) for found in embedded.values()))
        if not finite >= {name for problem in problems for name in problem.names}:
            # chips that are there but hold no valid pixel in the window that an encoder sees
            places = places[places.index.isin(finite)]
            problems = [_problem(name, task, table, places, division) for name, task in asked.items()]
        rows: list[dict[str, Any]] = []
        details: list[dict[str, Any]] = []
        for encoder, found in embedded.items():
            features = _features(found, combine)
            position = {str(name): row for row, name in enumerate(features["name"].values)}
            for problem in problems:
                x = features.values[[position[name] for name in problem.names]]
                for split, parts in problem.folds.items():
                    for protocol in protocols:
                        result = _probe(
                            protocol, x, problem, parts, seed, (linear if protocol == "linear" else knn) or {}
                        )
                        about = {"encoder": encoder, "task": problem.name, "protocol": protocol, "split": split}
                        rows += rows_of(about, result)
                        details.append(about | details_of(result))
    record = {
        "settings": asdict(division) | {"combine": combine, "linear": dict(linear or {}), "knn": dict(knn or {})},
        "encoders": {
            name: {"bundle": found.attrs["bundle"], "store": found.attrs["store"], "embeddings": found.attrs["key"]}
            for name, found in embedded.items()
        },
        "tasks": {problem.name: problem.facts for problem in problems},
        "results": details,
    }
    objects = Objects(where)
    objects.put(DETAILS, [json_bytes(record)])
    objects.put(TABLE, [json_bytes(rows)])
    return rows


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe(
    protocol: Protocol,
    features: npt.NDArray[np.float32],
    problem: _Problem,
    folds: Sequence[Fold],
    seed: int,
    options: Mapping[str, Any],
) -> ProbeResult:
    kind = problem.task.kind
    names = () if kind == "single-label" else problem.columns
    try:
        if protocol == "knn":
            return knn_probe(features, problem.targets, task=kind, folds=folds, names=names, **options)
        return linear_probe(
            features,
            problem.targets,
            task=kind,
            folds=folds,
            names=names,
            positive_weight=problem.task.positive_weight,
            seed=seed,
            **options,
        )
    except InputError as error:
        raise InputError(
            error.what, where=f"task {problem.name}, {protocol}", what_to_do=error.what_to_do, code=error.code
        ) from error


def _check_choices(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    wrong = [name for name in given if name not in known]
    if wrong or not given or isinstance(given, str) or len(set(given)) != len(given):
        raise InputError(f"{what}s are {given!r}", what_to_do=f"give one or more of: {', '.join(known)}, each once")


def _check_options(what: str, given: Mapping[str, Any] | None, known: frozenset[str]) -> None:
    wrong = sorted(set(given or {}) - known)
    if wrong:
        raise InputError(f"{what} has no setting {wrong[0]!r}", what_to_do=f"settings: {', '.join(sorted(known))}")


def _stores(encoders: Mapping[str, ModelBundle], store: str | Path | Mapping[str, str | Path]) -> dict[str, str | Path]:
    if not encoders:
        raise InputError("there are no encoders", what_to_do="name at least one bundle")
    if not isinstance(store, Mapping):
        return dict.fromkeys(encoders, store)
    missing = [name for name in encoders if name not in store]
    if missing:
        raise InputError(
            f"no store is given for the encoder {missing[0]!r}", what_to_do="give one for each, or one for all"
        )
    return {name: store[name] for name in encoders}


def _seasons(combine: str) -> tuple[str, ...] | None:
    return None if combine in ("mean", "concatenate") else (combine,)


def checked_labels(labels: pd.DataFrame, tasks: Mapping[str, ProbeTask]) -> pd.DataFrame:
    """Labels by name, with every column that a task asks for.

    Raises
    ------
    InputError
        If the table is empty, lacks a column, names a place twice, or has no label for a task.
    """
    if "name" not in labels.columns or not len(labels):
        raise InputError(
            "the table of labels is empty" if not len(labels) else "the table of labels has no column 'name'",
            where=f"columns: {', '.join(map(str, labels.columns))}",
            what_to_do="give a row a location, with its name as in the store of chips",
        )
    named = pd.DataFrame(labels).dropna(subset=["name"])
    table = named.assign(name=named["name"].astype(str)).set_index("name")
    if table.index.has_duplicates:
        twice = ", ".join(table.index[table.index.duplicated()].unique()[:5])
        raise InputError(f"locations are labelled twice: {twice}", what_to_do="give one row a location")
    for name, task in tasks.items():
        if task.kind not in get_args(TaskKind):
            raise InputError(
                f"there is no kind of task {task.kind!r}",
                where=f"task {name}",
                what_to_do=f"use one of: {', '.join(get_args(TaskKind))}",
            )
        columns = task.columns or (name,)
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise InputError(
                f"the table of labels has no column {missing[0]!r}",
                where=f"task {name}",
                what_to_do=f"its columns are: {', '.join(map(str, table.columns))}",
            )
        if task.kind == "single-label" and len(columns) != 1:
            raise InputError(f"a single label is in one column, not in {len(columns)}", where=f"task {name}")
        if table[list(columns)].isna().any(axis=1).all():
            raise InputError(
                f"no location has a label in {', '.join(columns)}", where=f"task {name}", what_to_do="fill the table"
            )
    return table


def _seen(store: str | Path, combine: str) -> pd.DataFrame:
    """Locations that can be embedded as far as the table of the store tells, by name, with their coordinates."""
    chips = open_chips(str(store))
    seasons = [str(season) for season in chips["season"].values]
    if combine not in ("mean", "concatenate", *seasons):
        raise InputError(
            f"the chips have no season {combine!r}",
            where=str(store),
            what_to_do=f"combine by 'mean' or 'concatenate', or take one of: {', '.join(seasons)}",
        )
    there = (chips["reason"] == "") & ~(chips["valid_fraction"] == 0)
    if combine in ("mean", "concatenate"):
        enough = there.any("season") if combine == "mean" else there.all("season")
    else:
        enough = there.isel(season=seasons.index(combine))
    usable = chips.isel(sample=np.flatnonzero(enough.to_numpy()))
    if not usable.sizes["sample"]:
        raise InputError(
            "no location has an image of "
            + {"mean": "any season", "concatenate": "every season"}.get(combine, f"the season {combine!r}"),
            where=str(store),
            what_to_do="combine the seasons otherwise: 'mean' takes those that are there",
            code="no-locations",
        )
    names = [str(name) for name in usable["name"].values]
    return pd.DataFrame({"lon": usable["lon"].values, "lat": usable["lat"].values}, index=pd.Index(names))


def _common(seen: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Locations that every encoder sees, by name and in the order of names, so that folds don't depend on a store."""
    tables = list(seen.values())
    names = tables[0].index
    for table in tables[1:]:
        names = names.intersection(table.index)
    if not len(names):
        raise InputError(
            "no location is in the stores of all encoders", what_to_do="evaluate encoders on the same locations"
        )
    return tables[0].loc[names.sort_values()]


def _problem(
    name: str,
    task: ProbeTask,
    labels: pd.DataFrame,
    places: pd.DataFrame,
    division: _Division,
) -> _Problem:
    """Targets and folds of a task; every reason why they cannot be made is told here."""
    columns = task.columns or (name,)
    both = places.index.intersection(labels.index, sort=False)
    if not len(both):
        raise InputError(
            "no location with an image has a row in the table of labels",
            where=f"task {name}; labels like {labels.index[0]!r}, chips like {places.index[0]!r}",
            what_to_do="name locations in the table as in the store of chips",
            code="no-locations",
        )
    values = labels.loc[both, list(columns)]
    values = values[values.notna().all(axis=1)]
    rows = places.loc[values.index]
    try:
        targets = label_values(task.kind, values)
        lon, lat = rows["lon"].to_numpy(), rows["lat"].to_numpy()
        same = places_of(lon, lat) if len(rows) else np.zeros(0, np.int64)
        made: dict[Split, tuple[Fold, ...]] = {}
        distance: dict[str, float] = {}
        for split in division.splits:
            if split == "random":
                made[split] = random_folds(
                    len(rows),
                    folds=division.folds,
                    seed=division.seed,
                    labels=targets if task.kind == "single-label" else None,
                    groups=same if division.keep_duplicates_together else None,
                )
            else:
                made[split] = block_folds(
                    lon,
                    lat,
                    folds=division.folds,
                    seed=division.seed,
                    block_m=division.block_m,
                    buffer_m=division.buffer_m,
                    size_m=division.size_m,
                )
                distance = {
                    "least_distance_m": round(assert_apart(made[split], lon, lat, least_m=division.buffer_m), 1)
                }
    except InputError as error:
        raise InputError(error.what, where=f"task {name}", what_to_do=error.what_to_do, code=error.code) from error
    facts = {
        "kind": task.kind,
        "columns": list(columns),
        "locations": len(rows),
        "without_image": len(labels) - len(both),
        "without_label": len(places) - len(rows),
        "duplicates": len(rows) - len(np.unique(same)),
        **distance,
    }
    return _Problem(name, task, columns, tuple(values.index), targets, made, facts)


def label_values(kind: TaskKind, values: pd.DataFrame) -> npt.NDArray[Any]:
    """Labels of a task as an array: text ``(sample,)`` for a single label, else float64 ``(sample, column)``.

    Raises
    ------
    InputError
        If they are of one class, or not what the kind of task asks for.
    """
    if kind == "single-label":
        classes = values.iloc[:, 0].astype(str).to_numpy(dtype=str)
        if len(np.unique(classes)) < 2:
            raise InputError(f"all locations are of the class {classes[0]}", what_to_do="give two classes or more")
        return classes
    try:
        numbers = values.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind} labels must be numbers: {error}") from error
    if not np.isfinite(numbers).all():
        raise InputError("a label is infinite")
    if kind == "multi-label" and not np.isin(numbers, (0, 1)).all():
        raise InputError("multi-label columns must hold 0 or 1", what_to_do="give one column a class")
    if kind == "distribution" and not ((numbers >= 0).all() and np.allclose(numbers.sum(axis=1), 1.0, atol=1e-3)):
        raise InputError("the shares of a distribution must not be negative and must sum to one")
    return numbers


def _features(found: xr.DataArray, combine: str) -> xr.DataArray:
    """Features ``(sample, feature)`` of the locations that have them."""
    one = location_features(found, combine)
    return one.isel(sample=np.flatnonzero(np.isfinite(one.values).all(axis=1)))


def rows_of(about: Mapping[str, str], result: ProbeResult) -> list[dict[str, Any]]:
    """Rows of ``evaluation.json``: one a score, after `about` (``encoder, task, protocol, split``)."""
    return [
        {**about, "metric": metric, "mean": result.mean[metric], "sd": result.sd[metric], "n": n}
        for metric, n in result.n.items()
    ]


def details_of(result: ProbeResult) -> dict[str, Any]:
    """Scores of each fold, what was chosen and how many samples were tested, for ``evaluation_details.json``."""
    return {
        "scores": {metric: [_number(fold.scores[metric]) for fold in result.folds] for metric in result.metrics},
        "chosen": [fold.chosen for fold in result.folds],
        "tested": [len(fold.test) for fold in result.folds],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def json_bytes(value: Any) -> bytes:
    """JSON of a table, for people too; numbers that are not finite are an error."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
