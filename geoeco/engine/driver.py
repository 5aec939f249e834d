"""The run itself: which tasks are due, in which order, what becomes of each; then manifest, report and exit code."""

from __future__ import annotations

import datetime as dt
import hashlib
import heapq
import itertools
import json
import time
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoeco.engine.events import (
    EventStream,
    JsonLines,
    Notice,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    Subscriber,
    TaskFinished,
    TaskRetried,
)
from geoeco.engine.executors import DaskExecutor, Executor, InlineExecutor, Outcome
from geoeco.engine.faults import Fault, fault_of
from geoeco.engine.imagery import item_dict, items_document
from geoeco.engine.keys import DATA_VERSION, task_key
from geoeco.engine.ledger import Ledger, Record
from geoeco.engine.locking import RunLock
from geoeco.engine.planning import IDLE_WORKER_BYTES, Plan, machine_memory, make_plan
from geoeco.engine.progress import is_interactive, progress_for
from geoeco.engine.provenance import describe
from geoeco.engine.stores import RunStore
from geoeco.engine.tasks import TaskCall, check_output
from geoeco.engine.verbs import PlanContext, PlannedStep, RunContext, Task, TaskContext
from geoeco.errors import GeoecoError, OutputError, RecipeError

if TYPE_CHECKING:
    from geoeco.engine.recipes import Recipe
    from geoeco.engine.runs import Run

__all__ = ["run_recipe"]

#: States whose results may be built on.
USABLE = frozenset({"done", "degraded", "partial"})
#: Attempts of a task that workers die of: as it is, then twice alone and split.
WORKER_DEATHS = 3


def run_recipe(
    recipe: Recipe,
    out: str | Path,
    client: Any = None,
    *,
    plan: Plan | None = None,
    rebuild: bool = False,
    retries: int = 3,
    backoff: float = 2.0,
    force_unlock: bool = False,
    memory_limit: int | None = None,
    gdal: Mapping[str, str] | None = None,
    subscribers: Iterable[Subscriber] = (),
    progress: bool = True,
    no_workers_timeout: float = 300.0,
) -> Run:
    """Run a recipe into a folder; in a folder that has the run already, go on where it stopped.

    Parameters
    ----------
    recipe : Recipe
    out : str or Path
        Run folder, a path or an fsspec URL.
    client : distributed.Client, optional
        None works in this process.
    plan : Plan, optional
        As made by ``recipe.plan(out=out)``; made here when not given.
    rebuild : bool
        Replace the steps that the recipe has changed since the folder was written.
    retries : int
        How often a task that failed in a way that may pass is tried again.
    backoff : float
        Seconds before the first retry; doubled for each further one, one minute at most.
    force_unlock : bool
        Take the folder from another driver that is surely dead.
    memory_limit : int, optional
        Bytes of one worker; a plan that needs more is refused. This machine's memory, or what the cluster's workers
        say of theirs, when not given.
    gdal : mapping, optional
        GDAL settings of the workers; `geoeco.gdal.gdal_settings` when not given.
    subscribers : iterable of callable
        Called with every event.
    progress : bool
        Show progress in a notebook or a terminal; elsewhere nothing is shown.
    no_workers_timeout : float
        Seconds without any worker after which the run is given up.

    Returns
    -------
    Run

    Raises
    ------
    GeoecoError
        Before any work: a plan that does not fit, a folder of another recipe, a folder in use.
    """
    from geoeco.engine.clusters import check_shared, prepare_client
    from geoeco.engine.report import write_report
    from geoeco.engine.runs import Run

    store = RunStore(out)
    settings = dict(default_gdal_settings() if gdal is None else gdal)
    _check_folder(store)
    plan = plan or make_plan(recipe, out=out)
    plan.check_memory(memory_limit or (machine_memory() if client is None else None))
    executor: Executor
    workers: dict[str, Any] = {}
    if client is None:
        executor = InlineExecutor(settings)
    else:
        workers = prepare_client(client, settings, plan, timeout=no_workers_timeout)
        token = hashlib.sha256(store.root.encode()).hexdigest()[:12]
        executor = DaskExecutor(client, run_token=token, no_workers_timeout=no_workers_timeout)
        executor.settle_stragglers()
    session = uuid.uuid4().hex[:12]
    with RunLock(store, session, force=force_unlock):
        if client is not None:
            check_shared(client, store, session)
        ledger = Ledger(store)
        records = ledger.load(step.name for step in plan.steps)
        changed = _changed_steps(plan, records)
        if changed and not rebuild:
            raise RecipeError(
                f"the recipe has changed since this folder was written: step {', '.join(changed)}",
                where=store.url(),
                what_to_do="give another --out to keep both, or --rebuild to replace just these steps",
                code="recipe-changed",
            )
        for name in changed:
            store.remove(name)  # before its records: as long as those are there, the step counts as changed
            ledger.forget(name)
            records = {key: record for key, record in records.items() if not key.startswith(f"{name}/")}
        shown = [progress_for()] if progress and is_interactive() else []
        events = EventStream([JsonLines(store, session), *shown, *subscribers])
        execution = _Execution(plan, store, ledger, records, executor, events, session, retries, backoff)
        try:
            _write_plan(plan, store)
            provenance = describe(settings)
            execution.announce(changed)
            _write_run(plan, store, execution, provenance, workers, "running")
            state = execution.run()
            execution.close_books(state)
            _write_run(plan, store, execution, provenance, workers, state)
            write_report(store)
            events(RunFinished(state, execution.exit_code(state), execution.counts(), execution.seconds))
        except OSError as error:
            fault = fault_of(error)
            if not fault.disk_full:
                raise
            raise OutputError(
                "the disk of the run folder is full", where=store.url(), what_to_do=fault.what_to_do, code="disk-full"
            ) from error
        finally:
            events.close()
    return Run(store, type(recipe))


def default_gdal_settings() -> dict[str, str]:
    """GDAL settings of workers, as the cubes' reader wants them."""
    from geoeco.gdal import gdal_settings

    words = {True: "YES", False: "NO"}
    return {name: words[value] if isinstance(value, bool) else str(value) for name, value in gdal_settings().items()}


def _check_folder(store: RunStore) -> None:
    """Refuse to write into a folder that holds other things, or into a file."""
    if store.is_local:
        path = store.local()
        file = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
        if file is not None:
            raise OutputError(
                "a run needs a folder, and this is a file",
                where=str(file),
                what_to_do="give a new or empty folder as --out",
                code="not-a-run",
            )
    if store.exists("run.json") or not store.exists(""):
        return
    names = set()
    for name in store.sizes("") if not store.is_local else (path.name for path in store.local().iterdir()):
        names.add(name.split("/")[0])
    own = {"lock.json", "events.jsonl", "plan.json", "items.json", "ledger"}
    foreign = sorted(name for name in names - own if not name.startswith("."))
    if foreign:
        raise OutputError(
            "the folder holds other things than a run",
            where=f"{store.url()} ({', '.join(foreign[:3])})",
            what_to_do="give a new or empty folder as --out",
            code="not-a-run",
        )


def _changed_steps(plan: Plan, records: Mapping[str, Record]) -> list[str]:
    """Name the steps of the plan that have records under another step hash."""
    changed = []
    for step in plan.steps:
        hashes = {record["step_hash"] for record in records.values() if record["id"].startswith(f"{step.name}/")}
        if hashes - {step.hash}:
            changed.append(step.name)
    return changed


def _write_plan(plan: Plan, store: RunStore) -> None:
    store.write_json("plan.json", plan.document())
    if plan.items:
        store.write_json("items.json", items_document(plan.recipe, plan.items), indent=None)


def _write_run(
    plan: Plan,
    store: RunStore,
    execution: _Execution,
    provenance: Mapping[str, Any],
    workers: Mapping[str, Any],
    state: str,
) -> None:
    """Write ``run.json``: the recipe, what it was made with, and how long it took."""
    try:
        sessions = store.read_json("run.json").get("sessions", [])
    except (FileNotFoundError, ValueError):
        sessions = []
    sessions = [entry for entry in sessions if entry["session"] != execution.session]
    sessions.append(
        {
            "session": execution.session,
            "started": execution.started.isoformat(timespec="seconds"),
            "state": state,
            "seconds": round(execution.seconds, 1),
            "workers": workers.get("workers", 1),
            "hosts": workers.get("hosts", 1),
            "tasks_done": execution.fresh,
        }
    )
    recipe = plan.recipe
    store.write_json(
        "run.json",
        {
            "state": state,
            "exit_code": None if state == "running" else execution.exit_code(state),
            "recipe": recipe.document(),
            "recipe_text": recipe.text,
            "recipe_folder": recipe.folder,
            "seed": recipe.seed,
            "steps": {step.name: step.hash for step in plan.steps},
            "items": [{"id": item.id, "collection": item.collection_id, "etags": _etags(item)} for item in plan.items],
            **provenance,
            "workers": dict(workers),
            "timings": {"steps": execution.timings()},
            "sessions": sessions,
        },
    )


def _etags(item: Any) -> dict[str, str]:
    """Checksums or entity tags that the catalogue gives for an item's files."""
    found = {}
    for name, asset in sorted(item.assets.items()):
        value = asset.extra_fields.get("file:checksum") or asset.extra_fields.get("etag")
        if value:
            found[name] = str(value)
    return found


class _Execution:
    """State of one session: every task goes from waiting to exactly one final state."""

    def __init__(
        self,
        plan: Plan,
        store: RunStore,
        ledger: Ledger,
        records: dict[str, Record],
        executor: Executor,
        events: EventStream,
        session: str,
        retries: int,
        backoff: float,
    ) -> None:
        self.plan, self.store, self.ledger, self.executor, self.events = plan, store, ledger, executor, events
        self.session, self.retries, self.backoff = session, retries, backoff
        self.started = dt.datetime.now(dt.UTC)
        self._clock = time.monotonic()
        self.steps = {step.name: step for step in plan.steps}
        self.tasks = {task.id: task for task in plan.tasks}
        self.order = {task_id: index for index, task_id in enumerate(self.tasks)}
        self.needs_all = {
            task.id: stage.needs_all for step in plan.steps for stage in step.stages for task in stage.tasks
        }
        self.known = self._believable(records)
        self.items = {item.id: item for item in plan.items}
        self._item_texts: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.records: dict[str, Record] = {}
        self.faults: dict[str, Fault] = {}
        self.finished: dict[str, bool] = {}
        self.finish_outputs: dict[str, list[dict[str, Any]]] = {}
        self.finish_seconds: dict[str, float] = {}
        self.abort: Fault | None = None
        self.fresh = 0
        self._survey: dict[str, Counter[str]] = {}
        self._prepared: set[str] = set()
        self._announced: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._split: set[str] = set()
        self._suspects: deque[str] = deque()
        self._suspect_flying: set[str] = set()
        self._flying: set[str] = set()
        self._ready: list[tuple[int, str]] = []
        self._delayed: list[tuple[float, int, str]] = []
        self._queued: set[str] = set()
        self._unmet = {task.id: len(set(task.depends)) for task in plan.tasks}
        self._dependents: dict[str, list[str]] = {}
        for task in plan.tasks:
            for depend in set(task.depends):
                self._dependents.setdefault(depend, []).append(task.id)
        self._open_tasks = Counter({step.name: len(step.tasks) for step in plan.steps})

    # --- what is there already ------------------------------------------------------------------------------------

    def _believable(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """Keep the records whose outputs are still there; one listing a step."""
        kept: dict[str, Record] = {}
        for step in self.plan.steps:
            mine = {key: record for key, record in records.items() if record["id"].split("/")[0] == step.name}
            if not mine:
                continue
            sizes = self.store.sizes(step.name)
            folders = {parent.as_posix() for name in sizes for parent in Path(name).parents}
            for key, record in mine.items():
                outputs = record.get("outputs", [])
                if all(_is_there(output, sizes, folders) for output in outputs):
                    kept[key] = record
        return kept

    def survey(self) -> dict[str, Counter[str]]:
        """Per step: how many tasks the ledger spares us (``reused``), are tried ``again``, or are ``new``."""
        digests: dict[str, str | None] = {}
        found: dict[str, Counter[str]] = {}
        for step in self.plan.steps:
            count = found.setdefault(step.name, Counter())
            for task in step.tasks:
                record = self.known.get(task.id)
                depends = [digests.get(name) for name in task.depends]
                current = record is not None and self._is_current(task, record, depends)
                if record is not None and current:
                    digests[task.id] = record["digest"]
                    count["reused"] += 1
                else:
                    count["again" if record is not None else "new"] += 1
        return found

    def _is_current(self, task: Task, record: Record, depends: Sequence[str | None]) -> bool:
        pairs = [(name, digest) for name, digest in zip(task.depends, depends, strict=True) if digest is not None]
        if len(pairs) < len(task.depends) and self.needs_all[task.id]:
            return False
        key = task_key(self.steps[task.step].hash, task.id, task.payload, pairs)
        # A partial record lacks upstream tasks only; the same key says that they are still the same ones.
        return bool(record["key"] == key and record["state"] in ("done", "partial") and not record.get("dropped"))

    def announce(self, rebuilt: Sequence[str]) -> None:
        """Say what there is to do."""
        found = self.survey()
        reused = sum(count["reused"] for count in found.values())
        self.events(
            RunStarted(
                self.plan.recipe.name,
                self.store.url(),
                len(self.tasks),
                reused,
                self.executor.workers,
                self.executor.dashboard,
            )
        )
        for name in rebuilt:
            self.events(Notice(f"step {name}: the recipe has changed; its folder is made anew"))
        self._survey = found

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Work until every task has its state; returns the run's state."""
        try:
            self._open_gates()
            while len(self.states) < len(self.tasks) and not self._stopped:
                self._move_delayed()
                self._submit_ready()
                if not self._flying and not self._ready and not self._suspects:
                    if self._delayed:
                        time.sleep(max(0.0, self._delayed[0][0] - time.monotonic()))
                        continue
                    if len(self.states) == len(self.tasks) or self._stopped:
                        break
                    raise RuntimeError("no task can go on; the plan's dependencies are broken")
                for task_id, outcome in self.executor.wait(self._patience()):
                    self._flying.discard(task_id)
                    self._take(self.tasks[task_id], outcome)
            if not self._stopped:
                self._open_gates()
        except KeyboardInterrupt:
            self.executor.cancel()
            self.events(Notice("interrupted; `geoeco resume` goes on from here"))
            return "interrupted"
        except GeoecoError as error:
            if error.code not in ("no-workers", "cluster-lost"):
                self.executor.cancel()
                raise
            self.abort = fault_of(error)
            self.events(Notice(str(error)))
            return "interrupted"
        except BaseException:
            self.executor.cancel()
            raise
        if self.abort is not None:
            self.executor.cancel()
            self.events(Notice(f"the disk is full; {self.abort.what_to_do}"))
            return "disk-full"
        if all(state == "done" for state in self.states.values()) and all(self.finished.values()):
            return "complete"
        return "partial" if self.exit_code("partial") == 3 else "failed"

    @property
    def _stopped(self) -> bool:
        return self.abort is not None

    def _patience(self) -> float:
        return max(0.0, self._delayed[0][0] - time.monotonic()) if self._delayed else 2.0

    def _move_delayed(self) -> None:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            _, order, task_id = heapq.heappop(self._delayed)
            heapq.heappush(self._ready, (order, task_id))

    def _gate(self, step: PlannedStep) -> str:
        """Whether a step's tasks may start: ``open``, ``shut`` for now, or ``never``."""
        if step.verb.overlaps:
            return "open"
        upstream = [self.finished.get(name) for name in step.upstream]
        if any(done is False for done in upstream):
            return "never"
        return "open" if all(upstream) else "shut"

    def _open_gates(self) -> None:
        """Finish the steps that are through and let the next ones start, in the recipe's order."""
        for step in self.plan.steps:
            if self._stopped:
                return
            if self._open_tasks[step.name] == 0 and step.name not in self.finished:
                self._finish(step)
            gate = self._gate(step)
            for task in step.tasks:
                if task.id in self._queued or task.id in self.states:
                    continue
                if gate == "never":
                    self._queued.add(task.id)
                    self._settle(task, "blocked")
                elif gate == "open" and self._unmet[task.id] == 0:
                    self._queue(task.id)

    def _queue(self, task_id: str) -> None:
        self._queued.add(task_id)
        heapq.heappush(self._ready, (self.order[task_id], task_id))

    def _submit_ready(self) -> None:
        # A dying worker takes the blame of tasks that only waited on it: one suspect at a time shows who it was.
        if self._suspects and not self._suspect_flying:
            task_id = self._suspects.popleft()
            self._suspect_flying.add(task_id)
            self._start(self.tasks[task_id])
        while self._ready and not self._stopped and len(self._flying) < self.executor.window:
            _, task_id = heapq.heappop(self._ready)
            self._start(self.tasks[task_id])

    def _start(self, task: Task) -> None:
        step = self.steps[task.step]
        self._announce_step(step)
        pairs = [(name, self.records[name]["digest"]) for name in task.depends if self.states[name] in USABLE]
        missing = tuple(name for name in task.depends if self.states[name] not in USABLE)
        if missing and (self.needs_all[task.id] or not pairs):
            self._settle(task, "blocked")
            return
        record = self.known.get(task.id)
        digests = [self.records[name]["digest"] if self.states[name] in USABLE else None for name in task.depends]
        if record is not None and not self._attempts[task.id] and self._is_current(task, record, digests):
            self.records[task.id] = record
            self._settle(task, record["state"], reused=True)
            return
        if not self._prepare(step):
            self._settle(task, "blocked")
            return
        self._attempts[task.id] += 1
        context = TaskContext(
            store=self.store,
            folder=step.name,
            settings=step.settings,
            recipe=self.plan.recipe,
            geobox=self.plan.geobox,
            recipe_folder=self.plan.recipe.folder,
            packed_items=self._packed(task),
            upstream={
                name: {
                    **{k: self.records[name][k] for k in ("digest", "stats", "state")},
                    "outputs": _whole(self.records[name]),
                }
                for name, _ in pairs
            },
            missing=missing,
            split=4 if task.id in self._split else 1,
        )
        key = task_key(step.hash, task.id, task.payload, pairs)
        self._flying.add(task.id)
        self.executor.submit(TaskCall(step.verb, task, context, key, step.hash, self.session, self._attempts[task.id]))

    def _packed(self, task: Task) -> bytes:
        """Items of a task for the wire; a year of scenes is megabytes of JSON, but much of a muchness."""
        for name in task.items:
            if name not in self._item_texts:
                self._item_texts[name] = json.dumps(item_dict(self.items[name]), separators=(",", ":"))
        text = ",".join(self._item_texts[name] for name in task.items)
        return zlib.compress(f"[{text}]".encode(), 1) if text else b""

    def _announce_step(self, step: PlannedStep) -> None:
        if step.name not in self._announced:
            self._announced.add(step.name)
            count = self._survey[step.name]
            self.events(StepStarted(step.name, len(step.tasks), count["reused"], count["again"]))

    def _take(self, task: Task, outcome: Outcome) -> None:
        """Decide what becomes of a task that came back."""
        if not isinstance(outcome, Fault):
            self._suspect_flying.discard(task.id)
            self.fresh += 1
            self.records[task.id] = outcome
            self._settle(task, outcome["state"])
            return
        if outcome.disk_full:
            self.abort = outcome
            self.faults[task.id] = outcome
            return
        attempt = self._attempts[task.id]
        self._suspect_flying.discard(task.id)
        last = WORKER_DEATHS if outcome.worker_died else self.retries + 1
        if outcome.transient and attempt < last:
            delay = self._delay(attempt)
            self.events(TaskRetried(task.id, task.step, attempt, delay, outcome.code, outcome.what))
            if outcome.worker_died:
                self._split.add(task.id)
                self._suspects.append(task.id)
                return
            heapq.heappush(self._delayed, (time.monotonic() + delay, self.order[task.id], task.id))
            return
        self.quarantine(task.id, task.step, outcome)
        self._settle(task, "quarantined")

    def _delay(self, attempt: int) -> float:
        return min(self.backoff * 2.0 ** (attempt - 1), 60.0)

    def quarantine(self, task_id: str, step: str, fault: Fault) -> None:
        """Record a task that failed for good."""
        self.faults[task_id] = fault
        record = {
            "id": task_id,
            "key": "",
            "step_hash": self.steps[step].hash,
            "state": "quarantined",
            "attempt": self._attempts[task_id],
            "session": self.session,
            "fault": fault.document(),
        }
        self.ledger.write(record)

    def _settle(self, task: Task, state: str, *, reused: bool = False) -> None:
        self.states[task.id] = state
        fault = self.faults.get(task.id)
        self.events(
            TaskFinished(
                task.id,
                task.step,
                state,
                reused,
                float(self.records.get(task.id, {}).get("seconds", 0.0)),
                fault.code if fault else "",
                fault.what if fault else "",
            )
        )
        self._open_tasks[task.step] -= 1
        for name in self._dependents.get(task.id, ()):
            self._unmet[name] -= 1
            if self._unmet[name] == 0 and name not in self._queued:
                gate = self._gate(self.steps[self.tasks[name].step])
                if gate == "open":
                    self._queue(name)
        if self._open_tasks[task.step] == 0:
            self._open_gates()

    # --- what the driver does for a step ------------------------------------------------------------------------

    def _context(self, step: PlannedStep) -> RunContext:
        before = dict(itertools.takewhile(lambda pair: pair[0] != step.name, self.steps.items()))
        plan = self.plan
        context = PlanContext(
            plan.recipe, plan.geobox, plan.blocks, plan.items, before, plan.recipe.folder, DATA_VERSION
        )
        return RunContext(self.store, step.name, step, context)

    def _prepare(self, step: PlannedStep) -> bool:
        name = f"{step.name}/_prepare/step"
        if step.name not in self._prepared and name not in self.faults:
            # The intent first: whatever a killed prepare leaves behind is then known to be of this step hash.
            self.ledger.write(
                {"id": name, "key": "", "step_hash": step.hash, "state": "done", "digest": "", "session": self.session}
            )
            fault = self._on_driver(name, step, lambda: step.verb.prepare(step.settings, self._context(step)))
            if fault is not None:
                return False
            self._prepared.add(step.name)
        return step.name in self._prepared

    def _on_driver(self, name: str, step: PlannedStep, work: Any) -> Fault | None:
        """Do a piece of work here, with the same retries as a task."""
        for attempt in itertools.count(1):
            try:
                work()
            except Exception as error:
                fault = fault_of(error)
                if fault.disk_full:
                    self.abort = self.faults[name] = fault
                    return fault
                if fault.transient and attempt <= self.retries:
                    self.events(TaskRetried(name, step.name, attempt, self._delay(attempt), fault.code, fault.what))
                    time.sleep(self._delay(attempt))
                    continue
                self.quarantine(name, step.name, fault)
                self.events(Notice(f"{name}: {fault.code}: {fault.what}"))
                return fault
            return None
        raise AssertionError  # the loop has no other end

    def _finish(self, step: PlannedStep) -> None:
        """Finish a step, unless the ledger knows that this was done over the very same tasks."""
        name = f"{step.name}/_finish/step"
        self._announce_step(step)
        mine = [self.records[task.id] for task in step.tasks if self.states[task.id] in USABLE]
        if step.tasks and not mine:
            self.finished[step.name] = False
        else:
            key = task_key(step.hash, name, {}, [(record["id"], record["digest"]) for record in mine])
            known = self.known.get(name)
            if known is not None and known["key"] == key and known["state"] == "done":
                self.finish_outputs[step.name] = known["outputs"]
                self.finished[step.name] = True
            else:
                self._finish_anew(name, key, step, mine)
        if step.name in self.finished:
            states = Counter(self.states[task.id] for task in step.tasks)
            self.events(StepFinished(step.name, dict(sorted(states.items()))))

    def _finish_anew(self, name: str, key: str, step: PlannedStep, mine: list[Record]) -> None:
        outputs: list[dict[str, Any]] = []
        started = time.perf_counter()

        def work() -> None:
            made = step.verb.finish(step.settings, self._context(step), mine) or ()
            for output in made:
                check_output(output, self.store, name)
            outputs[:] = [asdict(output) for output in made]
            self.ledger.write(
                {
                    "id": name,
                    "key": key,
                    "step_hash": step.hash,
                    "state": "done",
                    "digest": hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest(),
                    "outputs": outputs,
                    "dropped": [],
                    "session": self.session,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )

        fault = self._on_driver(name, step, work)
        if fault is None:
            self.finish_outputs[step.name] = outputs
            self.finished[step.name] = True
        elif not fault.disk_full:
            self.finished[step.name] = False

    # --- the books ------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self._clock

    def counts(self) -> dict[str, int]:
        """Count tasks by state."""
        found = Counter(self.states.values())
        found["waiting"] = len(self.tasks) - len(self.states)
        return {name: found[name] for name in (*("done", "degraded", "partial", "quarantined", "blocked"), "waiting")}

    def exit_code(self, state: str) -> int:
        """0 complete; 3 partial; 1 if nothing usable came out of any final step."""
        if state == "complete":
            return 0
        usable = {self.tasks[name].step for name, found in self.states.items() if found in USABLE}
        if state in ("interrupted", "disk-full", "running"):
            return 3 if usable else 1
        built_on = {name for step in self.plan.steps for name in step.upstream}
        final = {step.name for step in self.plan.steps} - built_on
        return 3 if any(name in usable and self.finished.get(name, False) for name in final) else 1

    def timings(self) -> dict[str, dict[str, Any]]:
        """Worker-seconds per step, of all sessions (the ledger keeps them); what estimates are made from."""
        found = {}
        bound = IDLE_WORKER_BYTES
        for step in self.plan.steps:
            # Allocators keep what earlier steps used: a worker is held to the largest task it may have done so far.
            bound = max([bound, *(IDLE_WORKER_BYTES + task.memory_bytes for task in step.tasks)])
            mine = [(task, self.records[task.id]) for task in step.tasks if task.id in self.records]
            if mine:
                found[step.name] = {
                    "verb": step.verb.name,
                    "tasks": len(mine),
                    "seconds": round(sum(float(record.get("seconds", 0.0)) for _, record in mine), 3),
                    "bytes": sum(task.bytes_in + task.bytes_out for task, _ in mine),
                    "peak_bytes": max(int(record.get("peak_bytes", 0)) for _, record in mine),
                    "bound_bytes": bound,
                }
        return found

    def close_books(self, state: str) -> None:
        """Write manifest and quarantine."""
        entries = []
        for task_id, task in self.tasks.items():
            record = self.records.get(task_id, {})
            entries.append(
                {
                    "id": task_id,
                    "state": self.states.get(task_id, "waiting"),
                    "block": list(task.block) if task.block else None,
                    "key": record.get("key", ""),
                    "digest": record.get("digest", ""),
                    "outputs": _whole(record),
                    "dropped": record.get("dropped", []),
                }
            )
        self.store.write_json(
            "manifest.json",
            {
                "name": self.plan.recipe.name,
                "state": state,
                "exit_code": self.exit_code(state),
                "counts": self.counts(),
                "steps": [
                    {
                        "name": step.name,
                        "verb": step.verb.name,
                        "hash": step.hash,
                        "finished": self.finished.get(step.name, False),
                        "outputs": self.finish_outputs.get(step.name, []),
                    }
                    for step in self.plan.steps
                ],
                "tasks": entries,
            },
        )
        self.store.write_json("quarantine.json", self.troubles())

    def troubles(self) -> list[dict[str, Any]]:
        """Everything that is not as it should be: failed and blocked tasks, scenes left out; in the plan's order."""
        found: list[dict[str, Any]] = []
        for task_id in [*self.tasks, *sorted(set(self.faults) - set(self.tasks))]:
            fault = self.faults.get(task_id)
            base = {"task": task_id, "step": task_id.split("/")[0], "state": self.states.get(task_id, "waiting")}
            if fault is not None:
                entry = fault.document()
                kept = ("item", "asset", "code", "what", "where", "what_to_do", "traceback")
                found.append({**base, "state": self.states.get(task_id, "quarantined")} | {k: entry[k] for k in kept})
            elif base["state"] == "blocked":
                missing = [n for n in self.tasks[task_id].depends if self.states.get(n) not in USABLE]
                what = f"upstream is missing: {', '.join(missing[:5]) or 'its step could not start'}"
                found.append({**base, "code": "blocked", "what": what, "what_to_do": "repair what failed, then resume"})
            found.extend({**base, **dropped} for dropped in self.records.get(task_id, {}).get("dropped", []))
        return found


def _whole(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outputs of a task without the parts of larger stores: a big run has millions of those."""
    return [output for output in record.get("outputs", []) if output["kind"] != "part"]


def _is_there(output: Mapping[str, Any], sizes: Mapping[str, int], folders: set[str]) -> bool:
    path = str(output["path"]).rstrip("/")
    if path in sizes:
        return output.get("bytes") in (None, sizes[path])
    return path in folders
