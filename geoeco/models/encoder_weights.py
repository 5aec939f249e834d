"""Weights of frozen encoders: where they come from, and their fingerprint.

Random ones, published ones by their name in timm, or a local file. Nothing is unpickled. Training is not here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from geoeco.errors import InputError, ReadError, TransientError

__all__ = ["EncoderWeights", "WeightsKind", "load_encoder", "weights_sha256"]

WeightsKind = Literal["random", "published", "file", "later"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderWeights:
    """Which weights an encoder has.

    Attributes
    ----------
    kind : {"random", "published", "file", "later"}
        ``"later"``: the caller loads them.
    name : str
        Of published weights in timm, as ``"vit_large_patch16_dinov3.sat493m"``; of a file its name without folder.
    sha256 : str
        `weights_sha256` of published weights and files.
    mean, std : tuple of float
        The normalisation that published weights were learned with; empty where it is not known.
    """

    kind: WeightsKind
    name: str = ""
    sha256: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def load_encoder(encoder: nn.Module, source: str, backbone: str) -> EncoderWeights:
    """Load weights into an encoder.

    Parameters
    ----------
    encoder : torch.nn.Module
        A network of timm.
    source : str
        ``"random"`` and ``"later"`` leave the weights as they are; a name of timm's published weights; or the path of
        a ``.safetensors`` file with weights named as timm's.
    backbone : str
        Name of the encoder's network.

    Raises
    ------
    InputError
        If the weights are for another network, or there is no such file or name.
    ReadError
        If a file is no safetensors file.
    TransientError
        If published weights cannot be downloaded.
    """
    if source == "later":
        return EncoderWeights("later")
    if source == "random":
        _log.warning(
            "the encoder %s has RANDOM weights: it has learned nothing, and the scores of a network on it say nothing "
            "of the method; give encoder_weights",
            backbone,
        )
        return EncoderWeights("random")
    if source.endswith(".safetensors"):
        return _from_file(encoder, Path(source), backbone)
    return _published(encoder, source, backbone)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a network's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _published(encoder: nn.Module, source: str, backbone: str) -> EncoderWeights:
    known = [name for name in timm.list_pretrained() if name.split(".")[0] == backbone]
    if source not in known:
        raise InputError(
            f"timm has no weights {source!r} for {backbone}",
            what_to_do=f"use one of: random, a .safetensors file{''.join(', ' + name for name in known)}",
        )
    configuration: Any = timm.get_pretrained_cfg(source)
    try:
        published: Any = timm.create_model(source, pretrained=True, num_classes=0)
    # the clients of hubs raise what their transport raises, each version another family
    except Exception as error:
        raise TransientError(
            f"the weights {source} cannot be had: {type(error).__name__}: {str(error)[:300]}",
            where=str(configuration.hf_hub_id or configuration.url),
            what_to_do="try again with a connection, accept their licence where they ask for it, or give a local file",
            code="weights",
        ) from error
    _take(encoder, published.state_dict(), source, backbone)
    mean, std = (tuple(float(value) for value in values) for values in (configuration.mean, configuration.std))
    return EncoderWeights("published", source, weights_sha256(encoder), mean, std)


def _from_file(encoder: nn.Module, path: Path, backbone: str) -> EncoderWeights:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError("there is no such file of weights", where=str(path), what_to_do="give the path of one")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ReadError(f"the file of weights cannot be read: {error}", where=str(path), code="weights") from error
    _take(encoder, state, str(path), backbone)
    return EncoderWeights("file", path.name, weights_sha256(encoder))


def _take(encoder: nn.Module, state: Mapping[str, Tensor], where: str, backbone: str) -> None:
    own = encoder.state_dict()
    missing = sorted(set(own) - set(state))
    other = sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape)
    if missing or other:
        first = f"lack {missing[0]!r}" if missing else f"have {other[0]!r} of shape {tuple(state[other[0]].shape)}"
        raise InputError(
            f"the weights are not those of {backbone}: they {first}",
            where=where,
            what_to_do="give weights of this very network, named as timm names them",
            code="weights",
        )
    encoder.load_state_dict({name: state[name] for name in own})
