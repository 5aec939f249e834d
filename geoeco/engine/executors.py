"""Two ways to run tasks: here, one after the other; or on a Dask cluster, one future each."""

from __future__ import annotations

import math
import os
import queue
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from geoeco.engine.faults import Fault, fault_of
from geoeco.engine.tasks import TaskCall, run_task
from geoeco.errors import ClusterError

__all__ = ["DaskExecutor", "Executor", "InlineExecutor"]

Outcome = dict[str, Any] | Fault


class Executor(Protocol):
    """Takes task calls and gives back outcomes, in any order."""

    dashboard: str

    @property
    def workers(self) -> int:
        """Number of tasks that can run at a time."""

    @property
    def window(self) -> int:
        """Number of tasks that should be in the executor's hands at a time."""

    def submit(self, call: TaskCall) -> None:
        """Take a task."""

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Give back the outcomes that there are, as (task id, outcome); waits up to `timeout` seconds for one."""

    def cancel(self) -> None:
        """Drop what is not done."""


class InlineExecutor:
    """Runs each task in this process, when its outcome is asked for: for small runs, tests and debugging.

    Parameters
    ----------
    environment : mapping
        GDAL settings, set while a task runs and put back after it.
    """

    dashboard = ""
    workers = 1
    window = 1

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._calls: deque[TaskCall] = deque()

    def submit(self, call: TaskCall) -> None:
        """Take a task."""
        self._calls.append(call)

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Run the next task."""
        if not self._calls:
            time.sleep(max(timeout, 0.0))
            return []
        call = self._calls.popleft()
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            return [(call.task.id, run_task(call))]
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def cancel(self) -> None:
        """Drop what is not done."""
        self._calls.clear()


class DaskExecutor:
    """One future per task in a sliding window, never a graph.

    Parameters
    ----------
    client : distributed.Client
    run_token : str
        Names the run in the scheduler's keys.
    no_workers_timeout : float
        Seconds without any worker after which the run is given up (it can be resumed).
    """

    #: Tasks in the scheduler's hands per thread: enough that no worker waits for the driver.
    WINDOW_PER_THREAD = 2.5

    def __init__(self, client: Any, *, run_token: str, no_workers_timeout: float = 300.0) -> None:
        self.client = client
        self.run_token = run_token
        self.no_workers_timeout = no_workers_timeout
        self.dashboard = str(getattr(client, "dashboard_link", "") or "")
        self._futures: dict[str, Any] = {}
        self._done: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._threads = 0
        self._looked = -math.inf
        self._seen_workers = time.monotonic()

    def settle_stragglers(self, timeout: float = 600.0) -> None:
        """Wait for tasks of this run that an earlier, killed driver left running on the cluster.

        Raises
        ------
        ClusterError
            If they do not end in time.
        """
        from geoeco.engine.plugins import running_keys

        end = time.monotonic() + timeout
        prefix = f"geoeco-{self.run_token}-"
        while True:
            # The workers are asked, not the scheduler: it forgets a task with its client, but the thread runs on.
            left = [key for keys in self.client.run(running_keys).values() for key in keys if key.startswith(prefix)]
            if not left:
                return
            if time.monotonic() > end:
                raise ClusterError(
                    f"{len(left)} tasks of an earlier session of this run are still at work on the cluster",
                    what_to_do="restart its workers, then resume",
                    code="stragglers",
                )
            time.sleep(0.5)

    def _look(self) -> int:
        """Threads of all workers, looked up every few seconds (workers come and go)."""
        now = time.monotonic()
        if now - self._looked > 5.0:
            self._looked = now
            try:
                self._threads = sum(int(n) for n in self.client.nthreads().values())
            except Exception as error:
                raise _lost(error) from error
            if self._threads:
                self._seen_workers = now
        if not self._threads and now - self._seen_workers > self.no_workers_timeout:
            raise ClusterError(
                f"the cluster has had no workers for {self.no_workers_timeout:.0f} s",
                where=self.dashboard,
                what_to_do="start workers (or raise --no-workers-timeout), then `geoeco resume`",
                code="no-workers",
            )
        return self._threads

    @property
    def workers(self) -> int:
        """Threads of all workers."""
        return self._look()

    @property
    def window(self) -> int:
        """Number of tasks to keep submitted."""
        return max(1, math.ceil(self.WINDOW_PER_THREAD * self._look()))

    def submit(self, call: TaskCall) -> None:
        """Take a task."""
        name = f"geoeco-{self.run_token}-{call.task.id}-{call.session}-{call.attempt}"
        try:
            resources = dict(call.task.resources) or None
            future = self.client.submit(run_task, call, key=name, pure=False, retries=0, resources=resources)
        except Exception as error:
            raise _lost(error) from error
        self._futures[call.task.id] = future
        future.add_done_callback(lambda done, task_id=call.task.id: self._done.put((task_id, done)))

    def wait(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Give back the outcomes that there are."""
        found = []
        try:
            found.append(self._done.get(timeout=min(max(timeout, 0.0), 2.0)))
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            pass
        if not found:
            if self.client.status not in ("running", "connecting"):
                raise _lost(None)
            self._look()
        outcomes: list[tuple[str, Outcome]] = []
        for task_id, future in found:
            if self._futures.get(task_id) is future:
                outcomes.append((task_id, self._outcome(future)))
                self._futures.pop(task_id).release()
        return outcomes

    def _outcome(self, future: Any) -> Outcome:
        if future.status == "finished":
            try:
                outcome: Outcome = future.result()
            except Exception as error:  # the worker that held the result is gone; the ledger may have the record
                return _of_worker(error)
            return outcome
        if future.status == "error":
            return _of_worker(future.exception())
        if self.client.status not in ("running", "connecting"):
            raise _lost(None)
        return Fault("worker-lost", "the scheduler dropped the task", transient=True)

    def cancel(self) -> None:
        """Drop what is not done; tasks that run already run out."""
        futures, self._futures = list(self._futures.values()), {}
        if futures and self.client.status == "running":
            self.client.cancel(futures, force=True)


def _of_worker(error: BaseException) -> Fault:
    """Fault of an error that did not come from the task: lost workers, broken transport."""
    name = type(error).__name__
    if name == "KilledWorker":
        return Fault(
            "worker-killed",
            f"workers died while they did this task: {error}",
            what_to_do="most likely memory: make grid.block smaller or give workers more; see the workers' logs",
            transient=True,
            worker_died=True,
        )
    fault = fault_of(error)
    if name in ("CancelledError", "FutureCancelledError", "FuturesCancelledError"):
        return Fault("worker-lost", f"the task was lost: {error}", traceback=fault.traceback, transient=True)
    return fault


def _lost(error: BaseException | None) -> ClusterError:
    return ClusterError(
        "the connection to the cluster is lost" + (f": {error}" if error else ""),
        what_to_do="`geoeco resume` goes on where the run stopped, on this or another cluster",
        code="cluster-lost",
    )
