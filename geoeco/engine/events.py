"""What happens in a run, as one stream of small events; everything that shows or keeps progress subscribes to it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from geoeco.engine.stores import RunStore

__all__ = [
    "Event",
    "EventStream",
    "JsonLines",
    "Notice",
    "RunFinished",
    "RunStarted",
    "StepFinished",
    "StepStarted",
    "TaskFinished",
    "TaskRetried",
]


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class RunStarted(Event):
    """The first event of a session: what there is to do, and what is there already."""

    name: str
    out: str
    tasks: int
    reused: int
    workers: int
    dashboard: str = ""


@dataclass(frozen=True)
class StepStarted(Event):
    """A step begins: of `tasks`, `reused` are believed to be done, `again` are tried again."""

    step: str
    tasks: int
    reused: int
    again: int = 0


@dataclass(frozen=True)
class TaskFinished(Event):
    """A task has come to its state; `reused` if the ledger already had it."""

    task: str
    step: str
    state: str
    reused: bool = False
    seconds: float = 0.0
    code: str = ""
    what: str = ""


@dataclass(frozen=True)
class TaskRetried(Event):
    """A task failed in a way that may pass, and is tried again after `delay` seconds."""

    task: str
    step: str
    attempt: int
    delay: float
    code: str
    what: str


@dataclass(frozen=True)
class StepFinished(Event):
    """A step is through: number of tasks by state."""

    step: str
    states: dict[str, int]


@dataclass(frozen=True)
class Notice(Event):
    """Something the reader should know."""

    text: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The last event of a session."""

    state: str
    exit_code: int
    states: dict[str, int]
    seconds: float


Subscriber = Callable[[Event], None]


class EventStream:
    """Passes every event to every subscriber, in order.

    Parameters
    ----------
    subscribers : iterable of callable
    """

    def __init__(self, subscribers: Iterable[Subscriber] = ()) -> None:
        self.subscribers = list(subscribers)

    def __call__(self, event: Event) -> None:
        """Pass one event on."""
        for subscriber in self.subscribers:
            subscriber(event)

    def close(self) -> None:
        """Tell the subscribers that have something to close."""
        for subscriber in self.subscribers:
            close = getattr(subscriber, "close", None)
            if close is not None:
                close()


class JsonLines:
    """Keeps the events of all sessions in ``events.jsonl``, with the time of each.

    Parameters
    ----------
    store : RunStore
    session : str

    Notes
    -----
    Appended line by line on a disk. An object store cannot append: there the file is put as a whole, now and then.
    """

    NAME = "events.jsonl"
    PUT_EVERY = 200

    def __init__(self, store: RunStore, session: str) -> None:
        self.store = store
        self.session = session
        self._pending: list[bytes] = []
        self._before = b""
        self._file: Any = None
        if store.is_local:
            path = store.local(self.NAME)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        elif store.exists(self.NAME):
            self._before = store.read_bytes(self.NAME)

    def __call__(self, event: Event) -> None:
        """Keep one event."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "session": self.session, "event": type(event).__name__, **asdict(event)}
        line = (json.dumps(entry) + "\n").encode()
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._pending.append(line)
        if len(self._pending) % self.PUT_EVERY == 0:
            self._put()

    def _put(self) -> None:
        self.store.write_bytes(self.NAME, self._before + b"".join(self._pending))

    def close(self) -> None:
        """Write what is pending."""
        if self._file is not None:
            self._file.close()
        elif self._pending:
            self._put()
