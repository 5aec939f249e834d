"""A small simulated world, and clusters of separate processes, that the tests of the whole road share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from geoeco.cli import app
from geoeco.simulate import write_s2_world

#: The command, as users call it.
GEOECO = str(Path(sys.executable).with_name("geoeco"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a world of two tiles in two UTM zones, one year, an image every ten days. Read only.

    The processes of one test run share it: it takes longer to simulate than most tests that use it.
    """
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "world"
    if not shared.exists():
        made = tmp_path_factory.mktemp("made") / "world"
        write_s2_world(made, seed=7, size=300, years=1, revisit_days=10)
        with contextlib.suppress(OSError):  # another process was first
            made.rename(shared)
    return shared


def copy_world(world: Path, folder: Path) -> Path:
    """Copy of a world by hard links: files may be replaced, not written into."""
    shutil.copytree(world, folder, copy_function=os.link)
    return folder


def copy_recipe(name: str, folder: Path) -> None:
    """What ``geoeco recipes copy`` does, without a process of its own."""
    shutil.copy(Path(__file__).parents[2] / "recipes" / f"{name}.yaml", folder)


def geoeco(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, in this process: what a new one imports costs seconds."""
    words = [str(argument) for argument in arguments]
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.chdir(folder):
        try:
            done = CliRunner().invoke(app, words)
        finally:
            signal.signal(signal.SIGTERM, handler)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def geoeco_alone(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end in a process of its own, whose memory can be measured."""
    return subprocess.run(
        [GEOECO, *(str(argument) for argument in arguments)], cwd=folder, capture_output=True, text=True, check=False
    )


def start(*arguments: object, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command line, its output in ``driver.log``."""
    with (folder / "driver.log").open("wb") as log:
        return subprocess.Popen(
            [GEOECO, *(str(argument) for argument in arguments)], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for something that a running process brings about; fails if the process ends before."""
    while not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
            assert condition(), f"the process ended with {process.returncode} before that came about"


def contents(run: Path, *folders: str) -> dict[str, str]:
    """SHA-256 of every file below some folders of a run, by relative name."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((run / folder).rglob("*"))
        if path.is_file()
    }


def records(run: Path, pattern: str) -> dict[str, str]:
    """Ledger records of tasks that are there now, by name: their whole text says when and by whom a task was done."""
    return {
        path.relative_to(run).as_posix(): path.read_text()
        for path in run.glob(f"ledger/{pattern}/*.json")
        if not path.parent.name.startswith("_")  # what the driver does before and after a step is done each time
    }


@contextlib.contextmanager
def cluster(workers: int, logs: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Run a scheduler and single-threaded workers, each a process of its own; give address and worker processes."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        scheduler = _dask("scheduler", logs / "scheduler.log", "--host", "127.0.0.1", "--port", "0")
        processes.append(scheduler)
        address = _address(logs / "scheduler.log", scheduler)
        for number in range(workers):
            options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(logs)]
            processes.append(_dask("worker", logs / f"worker{number}.log", address, *options))
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()


def _dask(role: str, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *arguments, "--no-dashboard"]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the scheduler has said where it listens."""

    def found() -> re.Match[str] | None:
        return re.search(r"Scheduler at:\s+(tcp://[0-9.:]+)", log.read_text(errors="replace"))

    until(lambda: found() is not None, process)
    said = found()
    assert said is not None
    return said[1]
