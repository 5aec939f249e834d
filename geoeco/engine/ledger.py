"""The ledger: one small record per task, the only truth about what is done.

A record is written by the worker, after the task's outputs, by temp-and-rename or one PUT. It is believed only if it
bears the key that the plan computes now. "The file exists" proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from geoeco.engine.stores import RunStore

__all__ = ["STATES", "Ledger"]

#: done; degraded: scenes left out; partial: upstream tasks missing; quarantined: failed for good; blocked: not run.
STATES = ("done", "degraded", "partial", "quarantined", "blocked")
FOLDER = "ledger"

Record = dict[str, Any]


class Ledger:
    """Records of one run folder.

    Parameters
    ----------
    store : RunStore
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store

    @staticmethod
    def name(task_id: str) -> str:
        """File of a task's record, relative to the run folder."""
        return f"{FOLDER}/{task_id}.json"

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record, all or nothing."""
        self.store.write_json(self.name(record["id"]), dict(record))

    def read(self, task_id: str) -> Record | None:
        """Record of a task; None if there is none that can be read."""
        try:
            return _valid(self.store.read_bytes(self.name(task_id)), task_id)
        except FileNotFoundError:
            return None

    def load(self, steps: Iterable[str]) -> dict[str, Record]:
        """All records of some steps, by task id; files that are no record are left out."""
        records: dict[str, Record] = {}
        for step in steps:
            for name, data in self.store.read_many(f"{FOLDER}/{step}", ".json").items():
                task_id = name.removeprefix(f"{FOLDER}/").removesuffix(".json")
                record = _valid(data, task_id)
                if record is not None:
                    records[task_id] = record
        return records

    def forget(self, step: str) -> None:
        """Remove all records of a step."""
        self.store.remove(f"{FOLDER}/{step}")


def _valid(data: bytes, task_id: str) -> Record | None:
    try:
        record = json.loads(data)
    except ValueError:
        return None
    wanted = {"id": str, "key": str, "state": str, "step_hash": str}
    if not isinstance(record, dict) or any(not isinstance(record.get(name), kind) for name, kind in wanted.items()):
        return None
    return record if record["id"] == task_id and record["state"] in STATES else None
