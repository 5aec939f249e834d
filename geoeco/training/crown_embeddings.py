"""What a model makes of the crowns of a store: features, and probabilities where it has learned classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from geoeco.errors import InputError, OutputError
from geoeco.models import SeasonPredictor
from geoeco.training.bundles import ModelBundle
from geoeco.training.crown_chips import CrownDataset
from geoeco.training.crown_learning import enlarged

__all__ = ["CrownFeatures", "embed_crowns"]


class CrownFeatures(NamedTuple):
    """Features of crowns ``(crown, feature)`` float32, and probabilities ``(crown, class)``; none of an encoder."""

    features: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float32] | None


def embed_crowns(
    bundle: ModelBundle, store: str | Path, *, samples: Sequence[int] | None = None, batch: int = 64
) -> CrownFeatures:
    """Apply a model to crown chips, on the device that it is on.

    Parameters
    ----------
    bundle : ModelBundle
        Of the task ``"embedding"``, or of ``"classification"`` as `train_crowns` makes it.
    store : str or Path
        Store of crown chips in the model's bands and resolution.
    samples : sequence of int, optional
        Positions of the chips; all when not given.
    batch : int
        Crowns at a time.

    Returns
    -------
    CrownFeatures
        In the order of `samples`.

    Raises
    ------
    InputError
        If the model is for another task, bands or resolution.
    OutputError
        If it gives numbers that are not finite.
    """
    data = CrownDataset(store, samples)
    bundle.check_input(data.all_bands, "1", data.resolution)
    module: Any = bundle.module
    if bundle.task == "embedding":
        encoder: nn.Module = module
        head = None
    elif isinstance(module, SeasonPredictor) and module.kind == "single-label":
        encoder, head = module.encoder, module.head
    else:
        raise InputError(
            f"the model is for {bundle.task} by {bundle.architecture}, not for the species of crowns",
            where=f"model {bundle.name or bundle.architecture}",
            what_to_do="give a bundle of train_crowns or crown_alignment",
            code="bundle",
        )
    device = next(module.parameters()).device
    features, answers = [], []
    loader: torch.utils.data.DataLoader[dict[str, torch.Tensor]] = torch.utils.data.DataLoader(data, batch_size=batch)
    with torch.inference_mode():
        for part in loader:
            image = data.decode({name: value.to(device) for name, value in part.items()})["image"]
            found = encoder(bundle.normalisation(enlarged(image, bundle.size))).float()
            features.append(found.cpu())
            if head is not None:
                answers.append(module.meaning(head(found)).cpu())
    together = torch.cat(features).numpy()
    if not np.isfinite(together).all():
        raise OutputError(
            "the model gives features that are not finite",
            where=f"model {bundle.name or bundle.architecture}",
            what_to_do="look at its training: it may have diverged",
            code="model",
        )
    return CrownFeatures(together, torch.cat(answers).numpy() if answers else None)
