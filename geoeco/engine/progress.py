"""Progress for people: bars in a terminal, tqdm in a notebook, plain lines in a log. All fed by the event stream."""

from __future__ import annotations

import sys
from typing import IO, Any

from geoeco.engine.events import (
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    Subscriber,
    TaskFinished,
    TaskRetried,
)

__all__ = ["NotebookProgress", "PlainLines", "TerminalProgress", "progress_for"]


def is_interactive() -> bool:
    """Whether someone is likely to watch: in a notebook, or at a terminal."""
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def progress_for(stream: IO[str] | None = None) -> Subscriber:
    """Choose the progress display that fits where we are.

    Parameters
    ----------
    stream : file, optional
        Standard error when not given.
    """
    stream = stream or sys.stderr
    if "ipykernel" in sys.modules:
        return NotebookProgress()
    if stream.isatty():
        return TerminalProgress()
    return PlainLines(stream)


def _text(event: Event) -> str | None:
    """One line of an event, for those that are worth one."""
    match event:
        case RunStarted():
            where = f", dashboard {event.dashboard}" if event.dashboard else ""
            reused = f", {event.reused} of them done before" if event.reused else ""
            return f"{event.name}: {event.tasks} tasks{reused}; {event.workers} worker(s){where}; into {event.out}"
        case StepStarted():
            again = f", {event.again} tried again" if event.again else ""
            return f"{event.step}: {event.tasks} tasks, {event.reused} reused{again}"
        case TaskFinished(reused=False, state="quarantined" | "blocked" | "degraded" | "partial"):
            why = f" ({event.code}: {event.what})" if event.code else ""
            return f"{event.task}: {event.state}{why}"
        case TaskRetried():
            return f"{event.task}: {event.code}: {event.what}; again in {event.delay:g} s"
        case StepFinished():
            return f"{event.step}: " + ", ".join(f"{count} {state}" for state, count in event.states.items())
        case Notice():
            return event.text
        case RunFinished():
            counts = ", ".join(f"{count} {state}" for state, count in event.states.items() if count)
            return f"{event.state} after {event.seconds:.1f} s: {counts} (exit code {event.exit_code})"
    return None


class PlainLines:
    """A line for what matters; tasks that went well are only counted, a line for each tenth of a step.

    Parameters
    ----------
    stream : file
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        text = _text(event)
        if isinstance(event, StepStarted):
            self._totals[event.step] = event.tasks
        if isinstance(event, TaskFinished):
            done = self._done[event.step] = self._done.get(event.step, 0) + 1
            total = self._totals.get(event.step, 0)
            tenth = max(1, total // 10)
            if text is None and not event.reused and done % tenth == 0 and done < total:
                text = f"{event.step}: {done} of {total}"
        if text is not None:
            print(text, file=self.stream, flush=True)


class TerminalProgress:
    """A bar a step, by rich; lines that matter scroll above."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._bars: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self._progress.start()
        if isinstance(event, StepStarted):
            self._bars[event.step] = self._progress.add_task(event.step, total=event.tasks)
        if isinstance(event, TaskFinished) and event.step in self._bars:
            self._progress.advance(self._bars[event.step])
        if isinstance(event, RunFinished):
            self._progress.stop()
        text = _text(event)
        if text is not None and not isinstance(event, (StepStarted, StepFinished)):
            self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was, however the run ended."""
        self._progress.stop()


class NotebookProgress:
    """A bar a step, by tqdm, which draws itself as a widget in notebooks."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._tqdm: Any = tqdm
        self._bars: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepStarted):
            self._bars[event.step] = self._tqdm(total=event.tasks, desc=event.step)
        elif isinstance(event, TaskFinished) and event.step in self._bars:
            self._bars[event.step].update()
        elif isinstance(event, StepFinished) and event.step in self._bars:
            self._bars.pop(event.step).close()
        if not isinstance(event, (StepStarted, StepFinished)) and (text := _text(event)) is not None:
            self._tqdm.write(text)

    def close(self) -> None:
        """Close what is open."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()
