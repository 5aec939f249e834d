"""Hashes that say whether two pieces of work are the same: canonical JSON, step hashes, task keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["DATA_VERSION", "canonical_json", "step_hash", "task_key"]

#: Raised when geoeco would write other bytes for the same recipe and inputs; part of every step hash.
DATA_VERSION = 1


def canonical_json(value: Any) -> str:
    """JSON in one form only: keys sorted, no blanks, no NaN.

    Raises
    ------
    TypeError, ValueError
        If the value is not plain JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def step_hash(
    *,
    verb: str,
    version: int,
    settings: Mapping[str, Any],
    upstream: Mapping[str, str],
    facts: Mapping[str, Any],
) -> str:
    """Chained hash of a step: equal if and only if the step would give the same content.

    Parameters
    ----------
    verb : str
    version : int
        The verb's own version.
    settings : mapping
        Normalised settings (defaults filled in), JSON only.
    upstream : mapping
        Step hashes of the steps it builds on, by name. A change anywhere above changes this hash.
    facts : mapping
        What else the result rests on: item ids, grid, seed, digests of tables.
    """
    return _digest(
        {
            "data_version": DATA_VERSION,
            "verb": verb,
            "version": version,
            "settings": settings,
            "upstream": upstream,
            "facts": facts,
        }
    )


def task_key(step: str, task_id: str, payload: Mapping[str, Any], depends: Sequence[tuple[str, str]]) -> str:
    """Key of a task; a ledger record is current if and only if it bears it.

    Parameters
    ----------
    step : str
        The step hash.
    task_id : str
    payload : mapping
        JSON only.
    depends : sequence of (str, str)
        Id and content digest of each upstream task that is there. A repaired upstream block has another digest, so
        exactly what was built on it gets another key.
    """
    return _digest({"step": step, "task": task_id, "payload": payload, "depends": [list(pair) for pair in depends]})
