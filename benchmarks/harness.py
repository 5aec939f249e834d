"""The common harness of the benchmarks: contenders in turn, each in its own process, medians of several rounds.

A benchmark script declares its contenders and calls :func:`compare`. The parent prepares the input once, then goes
round the contenders (A B C, A B C, ...) so that a slow minute of the machine hits all alike. Every measurement is a
fresh process: it imports, sets up, warms up (just-in-time compilation, caches of the operating system), and then
times one call. Wall seconds, CPU seconds (of the process, its threads and the children it waited for) and the peak
resident memory during the call are taken inside that process.

It is not a profiler and does not judge: the script that calls it says what the figures mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Contender", "Result", "compare", "machine"]

RESULTS = Path(__file__).parent / "results"


def _nothing(folder: Path) -> Any:
    return folder


@dataclass(frozen=True)
class Contender:
    """One way of doing the work.

    Attributes
    ----------
    name : str
        Shown in the table; unique in a comparison.
    run : callable
        ``run(state)``, the timed call. What it returns must be a dict of JSON-able facts (an error in days, a
        checksum) or None; the facts of the first round are shown.
    setup : callable
        ``setup(folder) -> state``, not timed; by default the state is the folder of the prepared input.
    warmup : int
        Untimed calls of `run` before the timed one.
    scale : float
        The wall and CPU seconds are multiplied by this: a contender that is far too slow for the whole input may run
        on a sample of it, and the table says so.
    python : str, optional
        Another interpreter, for peers whose pins clash with ours.
    needs : tuple of str
        Distributions that must be installed; otherwise the contender is left out and the table says so.
    """

    name: str
    run: Callable[[Any], dict[str, Any] | None]
    setup: Callable[[Path], Any] = _nothing
    warmup: int = 1
    scale: float = 1.0
    python: str | None = None
    needs: tuple[str, ...] = ()


@dataclass
class Result:
    """What one contender needed, round by round."""

    name: str
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    extra_mib: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    scale: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)
    left_out: str = ""

    def median(self, what: str) -> float:
        """Median over the rounds of ``wall_s``, ``cpu_s``, ``peak_mib``, ``extra_mib`` or ``load``."""
        values = getattr(self, what)
        return float(statistics.median(values)) if values else float("nan")


def machine() -> dict[str, Any]:
    """Describe what the figures are taken on: processor, cores this process may use, memory, versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in ("geoeco", "numpy", "numba", "scipy", "xarray", "dask", "zarr", "rasterio", "odc-stac", "rio-cogeo"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": model,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def _measure(contender: Contender, folder: Path) -> dict[str, Any]:
    state = contender.setup(folder)
    for _ in range(contender.warmup):
        contender.run(state)
    gc.collect()
    linux = Path("/proc/self/clear_refs").exists()
    if linux:
        # 5 resets the high-water mark of the resident set, so that imports and warm-up do not count (proc(5))
        Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS") if linux else 0.0
    load = os.getloadavg()[0]
    cpu = _cpu_seconds()
    start = time.perf_counter()
    facts = contender.run(state)
    wall = time.perf_counter() - start
    cpu = _cpu_seconds() - cpu
    peak = _status_mib("VmHWM") if linux else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mib": peak,
        "extra_mib": peak - before,
        "load": load,
        "facts": facts or {},
    }


def _missing(contender: Contender) -> str:
    missing = []
    for name in contender.needs:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return f"not installed: {', '.join(missing)}" if missing else ""


def _child(script: str, contender: Contender, folder: Path) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [contender.python or sys.executable, script, "--contender", contender.name]
        command += ["--folder", str(folder), "--report", report.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{contender.name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        loaded: dict[str, Any] = json.loads(Path(report.name).read_text())
        return loaded


def compare(
    name: str,
    contenders: Sequence[Contender],
    *,
    prepare: Callable[[Path], dict[str, Any] | None] | None = None,
    rounds: int = 5,
    title: str = "",
    arguments: Sequence[str] | None = None,
) -> list[Result]:
    """Run the contenders in turn and print their medians beside the first one's.

    The calling script is run again for every measurement (``--contender NAME``), so it must call `compare` under
    ``if __name__ == "__main__"`` and must not work before.

    Parameters
    ----------
    name : str
        The JSON goes to ``benchmarks/results/<name>.json``.
    contenders : sequence of Contender
        The first one is the yardstick of the column "times".
    prepare : callable, optional
        ``prepare(folder)`` writes the input once; may return JSON-able facts about it.
    rounds : int
        At least five for a figure that is quoted.
    title : str
        One line above the table: what the work is.
    arguments : sequence of str, optional
        Instead of ``sys.argv[1:]``.

    Returns
    -------
    list of Result
    """
    parser = argparse.ArgumentParser(description=title or name)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds over all contenders")
    parser.add_argument("--only", nargs="*", help="names of the contenders to run")
    parser.add_argument("--folder", type=Path, help="keep the input here instead of a temporary folder")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    if options.contender:
        chosen = next(c for c in contenders if c.name == options.contender)
        options.report.write_text(json.dumps(_measure(chosen, options.folder)))
        sys.exit(0)

    script = str(Path(sys.argv[0]).resolve())
    temporary = options.folder is None
    folder = Path(tempfile.mkdtemp(prefix=f"geoeco-bench-{name}-")) if temporary else options.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        facts = (prepare(folder) if prepare else None) or {}
        chosen_names = options.only or [c.name for c in contenders]
        results = [Result(c.name, scale=c.scale, left_out=_missing(c)) for c in contenders if c.name in chosen_names]
        by_name = {c.name: c for c in contenders}
        for _ in range(options.rounds):
            for result in results:
                if result.left_out:
                    continue
                contender = by_name[result.name]
                taken = _child(script, contender, folder)
                result.wall_s.append(taken["wall_s"] * contender.scale)
                result.cpu_s.append(taken["cpu_s"] * contender.scale)
                result.peak_mib.append(taken["peak_mib"])
                result.extra_mib.append(taken["extra_mib"])
                result.load.append(taken["load"])
                result.facts = result.facts or taken["facts"]
    finally:
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)

    print(_table(title or name, results))
    RESULTS.mkdir(exist_ok=True)
    record = {
        "name": name,
        "title": title,
        "machine": machine(),
        "input": facts,
        "rounds": options.rounds,
        "results": [
            {
                "name": r.name,
                "left_out": r.left_out,
                "scale": r.scale,
                "median": {what: r.median(what) for what in ("wall_s", "cpu_s", "peak_mib", "extra_mib", "load")},
                "wall_s": r.wall_s,
                "cpu_s": r.cpu_s,
                "peak_mib": r.peak_mib,
                "load": r.load,
                "facts": r.facts,
            }
            for r in results
            if not r.left_out
        ],
        "left_out": {r.name: r.left_out for r in results if r.left_out},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return results


def _table(title: str, results: Sequence[Result]) -> str:
    width = max([len(r.name) for r in results] + [9])
    yardstick = next((r.median("wall_s") for r in results if not r.left_out), float("nan"))
    lines = [
        title,
        f"{'contender':<{width}}  {'wall s':>9} {'times':>7} {'cpu s':>9} {'peak MiB':>9} {'extra MiB':>10} "
        f"{'load':>5}  facts",
    ]
    for r in results:
        if r.left_out:
            lines.append(f"{r.name:<{width}}  left out ({r.left_out})")
            continue
        told = ", ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in r.facts.items()
        )
        if r.scale != 1.0:
            told = f"sample, times scaled by {r.scale:g}; " + told
        wall = r.median("wall_s")
        lines.append(
            f"{r.name:<{width}}  {wall:9.3f} {wall / yardstick:7.2f} {r.median('cpu_s'):9.3f} "
            f"{r.median('peak_mib'):9.0f} {r.median('extra_mib'):10.0f} {r.median('load'):5.1f}  {told}"
        )
    return "\n".join(lines)
