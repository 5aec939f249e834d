"""What geoeco puts on every Dask worker. The one module of the engine that needs ``distributed`` when imported."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

from distributed import WorkerPlugin

__all__ = ["GdalSettings", "running_keys", "worker_facts"]


#: Workers of this process that hold settings, and what the environment said before the first of them came.
_holders: set[int] = set()
_before: dict[str, str | None] = {}
_lock = threading.Lock()


class GdalSettings(WorkerPlugin):
    """Sets GDAL's configuration in the environment of a worker, before it reads anything.

    A worker may live in the process of its user (``processes=False``): when the last one of a process ends, the
    environment is as it was before.

    Parameters
    ----------
    settings : mapping
        Names and values, as ``GDAL_CACHEMAX`` in MB (GDAL's own default, 5 % of the node for each worker, eats it).
    """

    name = "geoeco-gdal-settings"

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)

    def setup(self, worker: Any) -> None:
        """Set them; called on each worker, also on those that come later."""
        with _lock:
            _holders.add(id(worker))
            for name in self.settings:
                _before.setdefault(name, os.environ.get(name))
            os.environ.update(self.settings)

    def teardown(self, worker: Any) -> None:
        """Undo them; called when a worker ends or gets other settings."""
        with _lock:
            _holders.discard(id(worker))
            if _holders:
                return
            for name, value in _before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _before.clear()


def worker_facts(names: tuple[str, ...], dask_worker: Any = None) -> dict[str, Any]:
    """Return what a worker says of itself: host, threads, memory limit, resources, and the settings as they are there.

    Parameters
    ----------
    names : tuple of str
        Environment variables to report.
    dask_worker : distributed.Worker
        Given by ``Client.run``.
    """
    return {
        "host": socket.gethostname(),
        "threads": int(dask_worker.state.nthreads),
        "memory_limit": int(dask_worker.memory_manager.memory_limit or 0),
        "resources": dict(dask_worker.state.total_resources),
        "gdal_settings": {name: os.environ.get(name, "") for name in names},
    }


def running_keys(dask_worker: Any = None) -> list[str]:
    """Return the keys of the tasks that a worker is at work on, also of those that nobody waits for any more.

    Parameters
    ----------
    dask_worker : distributed.Worker
        Given by ``Client.run``.
    """
    return [str(task.key) for task in (*dask_worker.state.executing, *dask_worker.state.long_running)]
