"""The only door to torchgeo: what geoeco takes from it, under geoeco's roof.

torchgeo changes its interfaces between minor versions; all of it that this room needs is named here, so that such a
change is met in one file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from geoeco.errors import InputError, TransientError

if TYPE_CHECKING:
    from torchgeo.tasks import SemanticSegmentation

__all__ = ["NonGeoDataset", "SemanticSegmentation", "hub_meta", "hub_state"]


def __getattr__(name: str) -> Any:
    # torchgeo's tasks import all libraries of networks, seconds of them: only who trains one waits for that
    if name != "SemanticSegmentation":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchgeo.tasks import SemanticSegmentation

    return SemanticSegmentation


def _weights(name: str) -> Any:
    from torchgeo.models import get_weight
    from torchgeo.models.api import _model_weights

    try:
        return get_weight(name)
    except ValueError as error:
        known = [str(entry) for key, kind in _model_weights.items() if isinstance(key, str) for entry in kind]
        near = difflib.get_close_matches(name, known, n=3)
        raise InputError(
            f"torchgeo has no weights {name!r}",
            what_to_do=f"did you mean {' or '.join(near)}?" if near else "see torchgeo's list of pretrained weights",
        ) from error


def hub_meta(name: str) -> Mapping[str, Any]:
    """What torchgeo knows of weights: ``model``, ``in_chans``, ``bands`` and more, nothing downloaded.

    Raises
    ------
    InputError
        If torchgeo has no weights of this name.
    """
    meta: Mapping[str, Any] = _weights(name).meta
    return meta


def hub_state(name: str) -> dict[str, Tensor]:
    """State dict of weights that torchgeo names; downloads them where they are not in torch's cache.

    Raises
    ------
    InputError
        If torchgeo has no weights of this name.
    TransientError
        If they cannot be downloaded.
    """
    weights = _weights(name)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        raise TransientError(
            f"the weights {name} cannot be downloaded: {error}",
            where=str(weights.url),
            what_to_do="try again, or download the file elsewhere and give its path",
        ) from error
    return state
