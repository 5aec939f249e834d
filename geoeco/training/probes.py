"""Probes of frozen features: what a linear layer or the nearest neighbours can read from them.

The protocol is that of SSL4Eco (Plekhanova et al., CVPRW 2025, arXiv 2504.18256) and its public code; where the two
leave a choice, or the choice is odd, it is an argument. Features come from `geoeco.training.embed_chips`; nothing here
knows images, and no network is tuned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError
from geoeco.models.season_predictor import answer
from geoeco.training.folds import SEED, Fold, check_folds, random_folds
from geoeco.training.scoring import MAIN_SCORE, TaskKind
from geoeco.training.targets import Targets, checked_targets, loss_of, moments

__all__ = ["FoldResult", "ProbeResult", "knn_probe", "linear_probe"]

#: Numbers of neighbours that are tried: those that the paper ended with on its eight tasks.
NEIGHBOURS = (1, 5, 10, 20, 30)
#: Similarities of so many test samples are held at a time.
_ROWS_AT_A_TIME = 1024

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What a probe gave for the test part of one fold.

    Attributes
    ----------
    test : numpy.ndarray of int64, shape (sample,)
        Positions of the samples.
    prediction : numpy.ndarray of float32, shape (sample, output)
        Probabilities of classes, values in the units of the targets, or shares that sum to one.
    scores : dict of str to float
        As of `geoeco.training.scores`.
    chosen : dict
        ``epochs`` that the linear layer was trained for and ``best_epoch``, or ``k``.
    """

    test: npt.NDArray[np.int64]
    prediction: Floats
    scores: dict[str, float]
    chosen: dict[str, int]


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a probe gave over all folds.

    Attributes
    ----------
    protocol : {"linear", "knn", "trained"}
        ``"trained"`` is a network of `geoeco.training.train`, tested once.
    task : str
    outputs : tuple of str
        Names of the outputs: the classes of a single label, numbers else.
    folds : tuple of FoldResult
    """

    protocol: Literal["linear", "knn", "trained"]
    task: TaskKind
    outputs: tuple[str, ...]
    folds: tuple[FoldResult, ...]

    def _defined(self, metric: str) -> npt.NDArray[np.float64]:
        values = np.array([fold.scores[metric] for fold in self.folds])
        return values[np.isfinite(values)]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores, the main one first."""
        return tuple(self.folds[0].scores)

    @property
    def n(self) -> dict[str, int]:
        """Number of folds in which each score is defined."""
        return {metric: len(self._defined(metric)) for metric in self.metrics}

    @property
    def mean(self) -> dict[str, float | None]:
        """Mean of each score over the folds; None where no fold defines it."""
        return {m: float(self._defined(m).mean()) if len(self._defined(m)) else None for m in self.metrics}

    @property
    def sd(self) -> dict[str, float | None]:
        """Standard deviation over the folds (n - 1 below the line); None with fewer than two folds."""
        return {m: float(self._defined(m).std(ddof=1)) if len(self._defined(m)) > 1 else None for m in self.metrics}


def linear_probe(
    features: npt.ArrayLike | Tensor,
    targets: npt.ArrayLike | Tensor,
    *,
    task: TaskKind,
    folds: Sequence[Fold] | None = None,
    names: Sequence[str] = (),
    positive_weight: float | None = None,
    scale: bool = False,
    use: Literal["last", "best"] = "last",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    batch: int = 256,
    max_epochs: int = 1000,
    patience: int = 10,
    threshold: float = 0.5,
    seed: int = SEED,
    device: str = "cpu",
) -> ProbeResult:
    """Train one linear layer on frozen features, fold by fold.

    Parameters
    ----------
    features : array-like, shape (sample, feature)
    targets : array-like
        Single label: ``(sample,)`` classes, text or numbers. Several labels: ``(sample, class)`` of 0 and 1.
        Regression: ``(sample,)`` or ``(sample, output)``. Distribution: ``(sample, bin)`` of shares that sum to one.
    task : {"single-label", "multi-label", "regression", "distribution"}
        Decides the loss: cross-entropy; multi-label soft margin, or binary cross-entropy where `positive_weight` is
        given; squared error of targets that are z-scored by the training part; Kullback-Leibler divergence
        (batch mean) to outputs that go through a sigmoid and are divided by their sum.
    folds : sequence of Fold, optional
        `random_folds` by the paper when not given, `block_folds` for new ground.
    names : sequence of str, optional
        Of the outputs, for scores of each; not for single labels, whose classes are their names.
    positive_weight : float, optional
        Weight of given labels in a multi-label task; the paper takes 12 for GeoLifeCLEF.
    scale : bool
        Whether features are z-scored by the training part. The paper does not.
    use : {"last", "best"}
        Which weights are tested: those at the end, as in the paper, or those of the lowest validation loss.
    lr, weight_decay, batch, max_epochs, patience
        AdamW; training ends after `patience` epochs without a lower validation loss. The validation loss is that of
        the whole part at once, so that unequal batches do not weigh in.
    threshold : float
        Probability above which a label is given in a multi-label task.
    seed : int
        Of the layer's first weights and the order of samples, with the number of the fold.
    device : str
        Where it is trained.

    Returns
    -------
    ProbeResult
        The same for the same arguments, device and number of threads.

    Raises
    ------
    InputError
        If features or targets are not finite, do not fit together or the task, or a fold cannot be used.
    """
    if use not in ("last", "best"):
        raise InputError(f"use is {use!r}", what_to_do="use 'last' or 'best'")
    if min(batch, max_epochs, patience) < 1 or not lr > 0 or weight_decay < 0:
        raise InputError("lr, batch, max_epochs and patience must be positive, weight_decay not negative")
    loss = loss_of(task, positive_weight)
    inputs = _checked_features(features)
    known = checked_targets(targets, task, names, len(inputs))
    parts = _folds(folds, known)
    found = []
    for number, fold in enumerate(parts):
        x, weights = inputs, torch.Generator().manual_seed(seed + 7919 * number)
        if scale:
            mean, spread = moments(inputs[fold.train])
            x = (inputs - mean) / spread
        x = x.to(device)
        y = known.values
        centre, unit = torch.zeros(1), torch.ones(1)
        if task == "regression":
            centre, unit = moments(y[fold.train])
            y = (y - centre) / unit
        outputs = len(known.outputs)
        layer, chosen = _fit(
            x,
            y.to(device),
            fold,
            _new_layer(x.shape[1], outputs, weights).to(device),
            loss,
            order=weights,
            use=use,
            lr=lr,
            weight_decay=weight_decay,
            batch=batch,
            max_epochs=max_epochs,
            patience=patience,
        )
        with torch.inference_mode():
            raw = layer(x[torch.from_numpy(fold.test).to(device)]).cpu()
        prediction = (answer(raw, task) * unit + centre).numpy()
        found.append(FoldResult(fold.test, prediction, known.scored(fold.test, prediction, threshold), chosen))
    return ProbeResult("linear", task, known.outputs, tuple(found))


def knn_probe(
    features: npt.ArrayLike | Tensor,
    targets: npt.ArrayLike | Tensor,
    *,
    task: TaskKind,
    folds: Sequence[Fold] | None = None,
    names: Sequence[str] = (),
    k: int | Sequence[int] = NEIGHBOURS,
    temperature: float = 0.07,
    threshold: float = 0.5,
    device: str = "cpu",
) -> ProbeResult:
    """Predict from the nearest training samples by cosine similarity.

    The prediction is the mean of the neighbours' labels (one-hot classes, labels, values or shares) with weights
    softmax(similarity / temperature). It is a probability or a distribution already: nothing is passed through a
    sigmoid.

    Parameters
    ----------
    features, targets, task, folds, names, threshold, device
        As of `linear_probe`.
    k : int or sequence of int
        Number of neighbours. Of several, each fold takes the one with the best main score (`MAIN_SCORE`) on its
        validation part, the smaller one where two are equal; those above the number of training samples are not
        tried. The paper searches a grid too and does not say on which part; the default is its own choices.
    temperature : float
        0.07 in the paper.

    Returns
    -------
    ProbeResult

    Raises
    ------
    InputError
        As `linear_probe`; also if a feature vector is zero, which has no direction, or no `k` can be tried.
    """
    grid = sorted({k} if isinstance(k, int) else set(k))
    if not grid or grid[0] < 1 or not temperature > 0:
        raise InputError(f"k={k} with temperature={temperature}", what_to_do="give positive numbers")
    inputs = _checked_features(features)
    known = checked_targets(targets, task, names, len(inputs))
    parts = _folds(folds, known)
    length = inputs.norm(dim=1)
    if not bool((length > 0).all()):
        raise InputError(
            f"{int((length == 0).sum())} of {len(inputs)} feature vectors are zero and point nowhere",
            what_to_do="look at the encoder: its features have collapsed",
        )
    directions = functional.normalize(inputs, dim=1).to(device)
    vectors = known.vectors().to(device)
    found = []
    for number, fold in enumerate(parts):
        usable = [count for count in grid if count <= len(fold.train)]
        if not usable:
            raise InputError(
                f"there are {len(fold.train)} training samples, fewer than k={grid[0]}",
                where=f"fold {number}",
                what_to_do="take a smaller k",
            )

        def predict(rows: npt.NDArray[np.int64], counts: list[int], fold: Fold = fold) -> dict[int, Floats]:
            return _neighbour_means(directions, vectors, fold.train, rows, counts, temperature)

        best = usable[0]
        if len(usable) > 1:
            tried = predict(fold.val, usable)
            main = [known.scored(fold.val, tried[count], threshold)[MAIN_SCORE[task]] for count in usable]
            best = usable[int(np.argmax(np.nan_to_num(main, nan=-np.inf)))]
        prediction = predict(fold.test, [best])[best]
        score = known.scored(fold.test, prediction, threshold)
        found.append(FoldResult(fold.test, prediction, score, {"k": best}))
    return ProbeResult("knn", task, known.outputs, tuple(found))


def _neighbour_means(
    directions: Tensor,
    vectors: Tensor,
    train: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    counts: Sequence[int],
    temperature: float,
) -> dict[int, Floats]:
    """Weighted means over the nearest neighbours for each number of neighbours, ``(row, output)``."""
    here = torch.from_numpy(train).to(directions.device)
    bank, labels = directions[here], vectors[here]
    answers: dict[int, list[Tensor]] = {count: [] for count in counts}
    for part in torch.split(torch.from_numpy(rows).to(directions.device), _ROWS_AT_A_TIME):
        similarity, nearest = (directions[part] @ bank.T).topk(max(counts), dim=1)
        for count in counts:
            weight = torch.softmax(similarity[:, :count] / temperature, dim=1)
            answers[count].append(torch.einsum("nk,nko->no", weight, labels[nearest[:, :count]]))
    return {count: torch.cat(parts).cpu().numpy() for count, parts in answers.items()}


def _new_layer(features: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Make a linear layer with torch's usual first weights, drawn from one generator."""
    layer = nn.Linear(features, outputs, device="meta").to_empty(device="cpu")
    bound = features**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _fit(
    x: Tensor,
    y: Tensor,
    fold: Fold,
    layer: nn.Linear,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    order: torch.Generator,
    use: str,
    lr: float,
    weight_decay: float,
    batch: int,
    max_epochs: int,
    patience: int,
) -> tuple[nn.Linear, dict[str, int]]:
    train = torch.from_numpy(fold.train)
    val = torch.from_numpy(fold.val).to(x.device)
    held_x, held_y = x[val], y[val]
    optimiser = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=weight_decay)
    lowest, best_epoch, best, epoch = float("inf"), 0, copy.deepcopy(layer.state_dict()), 0
    for epoch in range(1, max_epochs + 1):
        mixed = train[torch.randperm(len(train), generator=order)].to(x.device)
        for rows in torch.split(mixed, batch):
            optimiser.zero_grad(set_to_none=True)
            loss(layer(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            now = float(loss(layer(held_x), held_y))
        if now < lowest:
            lowest, best_epoch = now, epoch
            if use == "best":
                best = copy.deepcopy(layer.state_dict())
        elif epoch - best_epoch >= patience:
            break
    if use == "best":
        layer.load_state_dict(best)
    return layer, {"epochs": epoch, "best_epoch": best_epoch}


def _folds(folds: Sequence[Fold] | None, known: Targets) -> Sequence[Fold]:
    count = len(known.values)
    if folds is None:
        return random_folds(count, labels=known.values.numpy() if known.task == "single-label" else None)
    check_folds(folds, count)
    return folds


def _checked_features(features: npt.ArrayLike | Tensor) -> Tensor:
    given = features.detach().cpu() if isinstance(features, Tensor) else torch.as_tensor(np.asarray(features))
    if given.ndim != 2 or not given.numel():
        raise InputError(f"features of shape {tuple(given.shape)}", what_to_do="give (sample, feature)")
    values = given.float().contiguous()
    bad = int((~torch.isfinite(values)).any(dim=1).sum())
    if bad:
        raise InputError(
            f"the features of {bad} of {len(values)} samples are not finite",
            what_to_do="leave out samples without a valid image",
        )
    return values
