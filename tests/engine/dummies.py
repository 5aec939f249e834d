"""Small verbs for the engine's tests: they write text files, and misbehave when a file tells them to.

Switches are files in the folder that ``GEOECO_DUMMY_SWITCHES`` names, so that a test can change them between runs and
every process sees them. Each execution leaves a line in ``<switches>/executions``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from geoeco.engine import Dropped, Output, Registry, Stage, StepSettings, Task, TaskResult, Verb
from geoeco.errors import ReadError, TransientError


def switches() -> Path:
    return Path(os.environ["GEOECO_DUMMY_SWITCHES"])


def count(task_id: str) -> int:
    """Note one execution; returns how many there were of this task, this one included."""
    folder = switches() / "executions"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / task_id.replace("/", "+")).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return executions(task_id)


def executions(task_id: str) -> int:
    path = switches() / "executions" / task_id.replace("/", "+")
    return len(path.read_text().splitlines()) if path.exists() else 0


def switch(task: Task, name: str) -> str | None:
    path = switches() / f"{name}.{task.key}"
    return path.read_text() if path.exists() else None


class MakeSettings(StepSettings):
    verb: Literal["make"] = "make"
    count: int = Field(4, ge=0, description="number of tasks")
    bands: tuple[str, ...] = ("B02",)
    memory: int = 0


class Make(Verb):
    """Writes one file a task."""

    name = "make"
    Settings = MakeSettings

    def plan(self, settings: Any, context: Any) -> tuple[Stage, ...]:
        keys = [block.id for block in context.blocks] or [f"t{n}" for n in range(settings.count)]
        tasks = tuple(
            Task(
                f"{settings.step}/tiles/{key}",
                payload={"text": f"{key} {'+'.join(settings.bands)}"},
                memory_bytes=settings.memory,
                bytes_in=1000,
                bytes_out=10,
                block=(index // 2, index % 2),
            )
            for index, key in enumerate(keys)
        )
        return (Stage("tiles", tasks),)

    def run(self, settings: Any, task: Task, context: Any) -> TaskResult:
        times = count(task.id)
        if switch(task, "kill") is not None and times <= int(switch(task, "kill") or 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if switch(task, "hang") is not None:
            (switches() / f"hanging.{task.key}").touch()
            while switch(task, "hang") is not None:
                time.sleep(0.02)
        if (flaky := switch(task, "transient")) is not None and times <= int(flaky):
            raise TransientError("the server is busy", where=task.id)
        if switch(task, "full") is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        if switch(task, "bad") is not None:
            raise ReadError("the file is no raster", where="item S2A_X asset B04")
        dropped = ()
        text = task.payload["text"]
        if switch(task, "drop") is not None:
            dropped = (Dropped("S2A_X", "B04", "read", "404 not found", "put the file back"),)
            text += " without S2A_X"
        context.store.write_bytes(f"{context.folder}/{task.key}.txt", text.encode())
        digest = hashlib.sha256(text.encode()).hexdigest()
        outputs = (Output(f"{context.folder}/{task.key}.txt", bytes=len(text), sha256=digest),)
        return TaskResult(digest, outputs, dropped, {"length": len(text), "split": context.split})

    def open(self, settings: Any, context: Any) -> list[str]:
        names = [name for name in sorted(context.store.sizes(context.folder)) if name.endswith(".txt")]
        return [context.store.read_bytes(name).decode() for name in names]


class UpperSettings(StepSettings):
    verb: Literal["upper"] = "upper"
    source: str | None = None
    mode: Literal["loud", "louder"] = "loud"


class Upper(Verb):
    """Writes each upstream file in capitals."""

    name = "upper"
    Settings = UpperSettings
    overlaps = True

    def plan(self, settings: Any, context: Any) -> tuple[Stage, ...]:
        source = context.step(settings.source)
        tasks = tuple(
            Task(f"{settings.step}/tiles/{task.key}", depends=(task.id,), block=task.block, bytes_out=10)
            for task in source.tasks
        )
        return (Stage("tiles", tasks),)

    def run(self, settings: Any, task: Task, context: Any) -> TaskResult:
        count(task.id)
        (upstream,) = context.upstream.values()
        text = context.store.read_bytes(upstream["outputs"][0]["path"]).decode().upper()
        text += "!" if settings.mode == "louder" else ""
        context.store.write_bytes(f"{context.folder}/{task.key}.txt", text.encode())
        digest = hashlib.sha256(text.encode()).hexdigest()
        return TaskResult(digest, (Output(f"{context.folder}/{task.key}.txt", bytes=len(text), sha256=digest),))


class JoinSettings(StepSettings):
    verb: Literal["join"] = "join"
    strict: bool = False


class Join(Verb):
    """Joins all files of the step before into one; its finish writes a table of contents."""

    name = "join"
    Settings = JoinSettings

    def plan(self, settings: Any, context: Any) -> tuple[Stage, ...]:
        source = context.step()
        task = Task(f"{settings.step}/all/whole", depends=tuple(task.id for task in source.tasks))
        return (Stage("all", (task,), needs_all=settings.strict),)

    def run(self, settings: Any, task: Task, context: Any) -> TaskResult:
        count(task.id)
        parts = [
            context.store.read_bytes(context.upstream[name]["outputs"][0]["path"]).decode()
            for name in task.depends
            if name in context.upstream
        ]
        data = "\n".join(parts).encode()
        context.store.write_bytes(f"{context.folder}/all.txt", data)
        return TaskResult(hashlib.sha256(data).hexdigest(), (Output(f"{context.folder}/all.txt", bytes=len(data)),))

    def finish(self, settings: Any, context: Any, records: Any) -> tuple[Output, ...]:
        count(f"{context.folder}/finish/step")
        data = "\n".join(record["digest"] for record in records).encode()
        context.store.write_bytes(f"{context.folder}/contents.txt", data)
        return (Output(f"{context.folder}/contents.txt", bytes=len(data), kind="table"),)


registry = Registry()
for _verb in (Make, Upper, Join):
    registry.register(_verb)
Recipe = registry.recipe_type(__name__)
