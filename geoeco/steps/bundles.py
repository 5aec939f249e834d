"""What steps share that use a model: which bundle a name in a recipe means, and what a model takes of memory."""

from __future__ import annotations

import hashlib
import json

from geoeco.cubes.shards import Objects
from geoeco.engine import PlanContext, RunContext, TaskContext
from geoeco.errors import InputError

__all__ = ["bundle_digest", "bundle_size", "bundle_url", "is_step"]

_ITEM = "mlm.json"


def is_step(name: str, context: PlanContext | RunContext | TaskContext) -> bool:
    """Whether a name is that of a step of the recipe; otherwise it is a folder."""
    return any(step.step == name for step in context.recipe.steps)


def bundle_url(name: str, context: RunContext | TaskContext) -> str:
    """Folder or URL of the bundle that a step of the recipe makes, or that the recipe names."""
    return context.store.url(f"{name}/bundle") if is_step(name, context) else context.path(name)


def bundle_digest(url: str) -> str:
    """SHA-256 of a bundle's item, which holds the checksums of its files.

    Raises
    ------
    InputError
        If there is no bundle.
    """
    return hashlib.sha256(_item(url)).hexdigest()


def bundle_size(url: str) -> int:
    """Pixels along a side of the windows that a bundle's model takes.

    Raises
    ------
    InputError
        If there is no bundle.
    """
    try:
        return int(json.loads(_item(url))["properties"]["geoeco:bundle"]["size"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{_ITEM} is not the item of a bundle: {type(error).__name__}: {error}",
            where=url,
            what_to_do="name the folder of a bundle that geoeco wrote",
            code="bundle",
        ) from error


def _item(url: str) -> bytes:
    content = Objects(url.rstrip("/")).get(_ITEM)
    if content is None:
        raise InputError(
            "there is no model bundle, and no step of this name",
            where=url,
            what_to_do="name a pretrain step, or the folder of a bundle",
            code="bundle",
        )
    return content
