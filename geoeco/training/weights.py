"""Weights that others trained: by torchgeo's names, or from a local file; tensors only, never code.

Files that hold more than tensors (``torch.save`` of whole modules) are refused: reading them would run what they say.
geoeco's own models are kept as bundles, `geoeco.training.ModelBundle`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from geoeco import models
from geoeco.catalog import band_name
from geoeco.errors import InputError
from geoeco.training.bundles import ModelBundle, Normalisation
from geoeco.training.chip_dataset import NDVI
from geoeco.training.statistics import seco_eco_normalisation
from geoeco.training.torchgeo_adapter import hub_meta, hub_state

__all__ = ["LoadedWeights", "check_weights", "hub_bundle", "load_weights", "source_identity"]

_HUB_NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*_Weights\.\w+")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
#: Where training programs keep the state dict in their checkpoints.
_NESTED = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did.

    Attributes
    ----------
    source : str
    digest : str
        SHA-256 of the tensors that were taken, by name.
    ignored : tuple of str
        Tensors of the source that the module has no place for, such as its classifier.
    """

    source: str
    digest: str
    ignored: tuple[str, ...]


def load_weights(module: nn.Module, source: str | Path, *, prefix: str | None = None) -> LoadedWeights:
    """Load weights into a module.

    Parameters
    ----------
    module : torch.nn.Module
        For example of `geoeco.models.create_backbone`.
    source : str or Path
        torchgeo's name of weights, such as ``"ResNet50_Weights.SENTINEL2_ALL_SECO_ECO"``, or a local file:
        ``.safetensors``, or a state dict of ``torch.save`` (``.pth``, ``.pt``, ``.ckpt``), bare or as ``state_dict`` or
        ``model`` of a checkpoint.
    prefix : str, optional
        What the names of the wanted tensors begin with there (``"backbone."``, ``"module.encoder_q."``); found by
        itself where only one fits.

    Returns
    -------
    LoadedWeights

    Raises
    ------
    InputError
        If there is no such file or name, the file holds more than tensors or is damaged, or tensors that the module
        needs are missing, of another shape or not finite.
    TransientError
        If weights cannot be downloaded.
    """
    where = str(source)
    tensors = hub_state(where) if _is_hub_name(where) else _read(Path(source))
    taken, ignored = _fitting(tensors, module.state_dict(), where, prefix)
    module.load_state_dict(taken, strict=False)
    return LoadedWeights(where, _digest(taken), ignored)


def check_weights(module: nn.Module, source: str | Path, in_channels: int) -> None:
    """Refuse weights that `load_weights` would refuse, as far as that is known without downloading them.

    Parameters
    ----------
    module : torch.nn.Module
        May be on the device ``meta``.
    source : str or Path
        As of `load_weights`. A file is read; of torchgeo's weights the name and the number of channels are looked at.
    in_channels : int
        Of the module's input.

    Raises
    ------
    InputError
    """
    where = str(source)
    if not _is_hub_name(where):
        _fitting(_read(Path(source)), module.state_dict(), where, None)
        return
    channels = hub_meta(where).get("in_chans", in_channels)
    if channels != in_channels:
        raise InputError(
            f"the weights are for {channels} channels, the network has {in_channels}",
            where=where,
            what_to_do="use the bands that they were trained on",
            code="weights",
        )


def _fitting(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str, prefix: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of a source that a module takes, by the module's names, and names of those that it has no place for."""
    prefix = _prefix(set(tensors), set(wanted), where) if prefix is None else prefix
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    # counters that older versions of torch did not keep
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"the weights lack {len(missing)} of {len(wanted)} tensors, {missing[0]!r} among them",
            where=where,
            what_to_do="make the network that these weights belong to",
            code="weights",
        )
    other = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if other:
        raise InputError(
            f"weights of another shape: {'; '.join(other[:3])}",
            where=where,
            what_to_do="check the network and its number of bands",
            code="weights",
        )
    taken = {name: found[name] for name in wanted if name in found}
    lost = [name for name, value in taken.items() if not torch.isfinite(value).all()]
    if lost:
        raise InputError(
            f"{len(lost)} of {len(taken)} tensors hold numbers that are not finite, {lost[0]!r} among them",
            where=where,
            what_to_do="take weights of a training that did not diverge",
            code="weights",
        )
    ignored = tuple(name for name in tensors if name.removeprefix(prefix) not in taken or not name.startswith(prefix))
    return taken, ignored


def source_identity(source: str | Path) -> str:
    """Tell weights apart wherever they lie: torchgeo's name, or the SHA-256 of a local file.

    Raises
    ------
    InputError
        If there is no such file.
    """
    if _is_hub_name(str(source)):
        return str(source)
    path = Path(source)
    if not path.is_file():
        raise _no_file(path)
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _is_hub_name(source: str) -> bool:
    return _HUB_NAME.fullmatch(source) is not None and Path(source).suffix.lower() not in _SUFFIXES


def _no_file(path: Path) -> InputError:
    return InputError(
        "there is no such file of weights",
        where=str(path),
        what_to_do="give a local file, or a name of torchgeo's such as ResNet50_Weights.SENTINEL2_ALL_SECO_ECO",
        code="weights",
    )


def hub_bundle(name: str, *, normalisation: Normalisation | None = None, size: int = 224) -> ModelBundle:
    """Make a model bundle of weights that torchgeo names.

    Parameters
    ----------
    name : str
        Of weights of a network of timm, such as ``"ResNet50_Weights.SENTINEL2_ALL_SECO_ECO"``.
    normalisation : Normalisation, optional
        From reflectance to what the weights were trained on. Known for SeCo-Eco (`seco_eco_normalisation`), to be given
        for all others.
    size : int
        Pixels along a side of the windows that it was trained on.

    Returns
    -------
    ModelBundle

    Raises
    ------
    InputError
        If the scale is not known and not given, or torchgeo does not say the bands; and as `load_weights`.
    """
    meta = hub_meta(name)
    bands = tuple(NDVI if band == "NDVI" else str(band_name(band)) for band in meta.get("bands", ()))
    if not bands or len(bands) != meta.get("in_chans"):
        raise InputError("torchgeo does not say the bands of these weights", where=name)
    if normalisation is None:
        if not name.endswith("_SECO_ECO"):
            raise InputError(
                "the scale of the input that these weights were trained on is not known",
                where=name,
                what_to_do="give normalisation: from reflectance to what the network saw",
            )
        normalisation = seco_eco_normalisation(bands)
    arguments = {"name": str(meta["model"]), "in_channels": len(bands)}
    with torch.random.fork_rng(devices=[]):
        module = models.build("backbone", arguments)
    loaded = load_weights(module, name)
    return ModelBundle(
        module=module,
        architecture="backbone",
        arguments=arguments,
        bands=bands,
        normalisation=normalisation,
        size=size,
        name=name,
        description=f"{meta['model']} of torchgeo, trained on {meta.get('dataset', 'data that it does not name')}",
        notes={
            "weights": name,
            "weights_sha256": loaded.digest,
            "publication": str(meta.get("publication", "")),
        },
    )


def _read(path: Path) -> dict[str, Tensor]:
    where = str(path)
    if not path.is_file():
        raise _no_file(path)
    if path.suffix == ".safetensors":
        try:
            return read_tensors(path.read_bytes())
        except SafetensorError as error:
            raise InputError(f"this is no safetensors file: {error}", where=where, code="weights") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error}", where=where, code="weights") from error
    # torch raises what pickle and zip raise, or a RuntimeError, depending on where it stumbles; its words are not
    # passed on: they tell how to run the file's code after all
    except Exception as error:
        raise InputError(
            f"the file holds more than tensors, or is damaged ({type(error).__name__})",
            where=where,
            what_to_do="save its state dict alone, best as .safetensors: files that run code when read are refused",
            code="weights",
        ) from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError("the file holds no state dict", where=where, code="weights")
    return {str(name): value for name, value in content.items()}


def _prefix(found: set[str], wanted: set[str], where: str) -> str:
    """Prefix of the names in a file under which most of the wanted names are."""
    first = min(wanted, default="")
    candidates = [name.removesuffix(first) for name in found if name == first or name.endswith(f".{first}")]
    held = {prefix: sum(f"{prefix}{name}" in found for name in wanted) for prefix in candidates}
    best = sorted(prefix for prefix, count in held.items() if count == max(held.values()))
    if len(best) > 1:
        raise InputError(
            f"the file holds several networks that fit: {', '.join(map(repr, best))}",
            where=where,
            what_to_do="say which one by the argument prefix",
            code="weights",
        )
    return best[0] if best else ""


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
