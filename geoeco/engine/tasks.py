"""One task on a worker: run the verb, check what it wrote, then write the ledger record. Nothing is raised."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from geoeco.engine.faults import Fault, fault_of
from geoeco.engine.ledger import Ledger
from geoeco.engine.stores import RunStore
from geoeco.engine.verbs import Output, Task, TaskContext, TaskResult, Verb
from geoeco.errors import OutputError

__all__ = ["TaskCall", "run_task"]


@dataclass(frozen=True)
class TaskCall:
    """All that a worker needs for one task.

    Attributes
    ----------
    verb : Verb
    task : Task
    context : TaskContext
    key, step_hash : str
        What the record will bear.
    session : str
        The driver's session; a record of this session is not made again, whatever its state.
    attempt : int
        From 1.
    """

    verb: Verb
    task: Task
    context: TaskContext
    key: str
    step_hash: str
    session: str
    attempt: int = 1


def run_task(call: TaskCall) -> dict[str, Any] | Fault:
    """Run one task and record it.

    Returns
    -------
    dict or Fault
        The ledger record, already written; or what went wrong.
    """
    try:
        return _recorded(call)
    except Exception as error:
        return fault_of(error, items=call.task.items)


def _recorded(call: TaskCall) -> dict[str, Any]:
    ledger = Ledger(call.context.store)
    known = ledger.read(call.task.id)
    if known is not None and known["key"] == call.key and known.get("session") == call.session and known.get("digest"):
        return known  # a worker died after writing the record and before saying so
    scratch = Path(tempfile.gettempdir(), f"geoeco-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    started = time.perf_counter()
    reset_peak()
    try:
        context = replace(call.context, scratch=str(scratch))
        result = call.verb.run(context.settings, call.task, context)
    finally:
        if scratch.exists():
            shutil.rmtree(scratch, ignore_errors=True)
    check_result(result, call.task, call.context.store)
    missing = list(call.context.missing)
    record = {
        "id": call.task.id,
        "key": call.key,
        "step_hash": call.step_hash,
        "state": "degraded" if result.dropped else "partial" if missing else "done",
        "digest": result.digest,
        "outputs": [asdict(output) for output in result.outputs],
        "dropped": [asdict(dropped) for dropped in result.dropped],
        "missing": missing,
        "stats": dict(result.stats),
        "attempt": call.attempt,
        "seconds": round(time.perf_counter() - started, 3),
        "session": call.session,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "peak_bytes": peak_memory(),
    }
    ledger.write(record)
    return record


def check_result(result: TaskResult, task: Task, store: RunStore) -> None:
    """Check what a verb says it wrote.

    Raises
    ------
    OutputError
        If an output is not there or has another size.
    TypeError
        If the verb gave back something else than a `TaskResult` with a digest.
    """
    if not isinstance(result, TaskResult) or not re.fullmatch(r"[0-9a-f]{64}", result.digest):
        raise TypeError(f"the verb of {task.id} must return a TaskResult with a SHA-256 digest, not {result!r}")
    for output in result.outputs:
        check_output(output, store, task.id)


def check_output(output: Output, store: RunStore, where: str) -> None:
    """Check that one output is there, with its size where it is known."""
    size = store.size(output.path)
    if size is None or (output.bytes is not None and output.bytes != size):
        raise OutputError(
            f"the output {output.path!r} "
            + ("is not there" if size is None else f"has {size} of {output.bytes} bytes"),
            where=where,
            what_to_do="check the disk; the task is done again on resume",
            code="output-missing",
        )


def reset_peak() -> None:
    """Forget the peak of this process's memory so far, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak resident memory of this process in bytes since `reset_peak`; since its start where that cannot be told."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
