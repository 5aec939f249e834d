"""Runs in this process: what is done stays done, what failed is named, what is repaired is done again, and no more."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dummies
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geoeco.engine import IDLE_WORKER_BYTES, RunStore, load_run, write_report
from geoeco.engine.events import StepStarted, TaskFinished, TaskRetried
from geoeco.engine.locking import RunLock
from geoeco.errors import ClusterError, InputError, OutputError, RecipeError


def go(recipe, out, **options):
    return recipe.run(out, **({"gdal": {}, "backoff": 0.0} | options))


def outputs(out: Path) -> dict[str, bytes]:
    """Everything that the steps wrote, by name."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for folder in ("make", "upper", "join")
        for path in sorted((out / folder).rglob("*"))
        if path.is_file()
    }


def all_executions(switches: Path) -> dict[str, int]:
    folder = switches / "executions"
    return {path.name.replace("+", "/"): len(path.read_text().splitlines()) for path in folder.iterdir()}


@pytest.fixture
def undisturbed(switches, make_recipe, tmp_path):
    """Outputs of a run that nothing disturbed."""
    calm = tmp_path / "calm"
    calm.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOECO_DUMMY_SWITCHES", str(calm))
        run = go(make_recipe(), tmp_path / "undisturbed")
    assert (run.state, run.exit_code) == ("complete", 0)
    return outputs(tmp_path / "undisturbed")


def test_a_complete_run_leaves_the_whole_folder_and_exit_code_0(switches, make_recipe, tmp_path):
    run = go(make_recipe(), tmp_path / "out")
    assert (run.state, run.exit_code, len(run.failures)) == ("complete", 0, 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    files = {"run.json", "plan.json", "manifest.json", "quarantine.json", "events.jsonl", "report.html"}
    assert names == files | {"ledger", "make", "upper", "join"}
    assert run.open("make") == ["t0 B02", "t1 B02", "t2 B02", "t3 B02"]
    assert (tmp_path / "out/join/all.txt").read_text() == "T0 B02\nT1 B02\nT2 B02\nT3 B02"
    info = run.info
    assert info["versions"]["geoeco"]
    assert info["timings"]["steps"]["make"]["tasks"] == 4
    assert "complete" in run._repr_html_()
    with pytest.raises(InputError):
        run.open("nowhere")


def test_a_second_run_does_nothing_twice_and_says_what_it_reuses(switches, make_recipe, tmp_path):
    first = go(make_recipe(), tmp_path / "out")
    manifest = first.store.read_bytes("manifest.json")
    before = all_executions(switches)
    events = []
    run = go(make_recipe(), tmp_path / "out", subscribers=[events.append])
    assert all_executions(switches) == before
    assert set(before.values()) == {1}
    assert [(e.step, e.reused) for e in events if isinstance(e, StepStarted)] == [
        ("make", 4),
        ("upper", 4),
        ("join", 1),
    ]
    assert run.exit_code == 0
    assert run.store.read_bytes("manifest.json") == manifest


def test_two_runs_of_one_recipe_have_the_same_manifest_and_outputs(switches, make_recipe, tmp_path):
    go(make_recipe(), tmp_path / "a")
    go(make_recipe(), tmp_path / "b")
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


def test_a_passing_fault_is_tried_again_and_leaves_no_trace_in_the_state(switches, make_recipe, tmp_path, undisturbed):
    (switches / "transient.t2").write_text("2")
    events = []
    run = go(make_recipe(), tmp_path / "out", subscribers=[events.append], backoff=0.001)
    retried = [(e.task, e.attempt, e.delay) for e in events if isinstance(e, TaskRetried)]
    assert retried == [("make/tiles/t2", 1, 0.001), ("make/tiles/t2", 2, 0.002)]
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed


def test_a_fault_that_does_not_pass_goes_to_quarantine_after_the_retries(switches, make_recipe, tmp_path):
    (switches / "transient.t1").write_text("99")
    run = go(make_recipe(), tmp_path / "out", retries=2)
    assert dummies.executions("make/tiles/t1") == 3
    assert run.failures.iloc[0].code == "transient"
    assert run.exit_code == 3


def test_a_bad_file_goes_to_quarantine_at_once_and_only_what_needs_it_is_blocked(switches, make_recipe, tmp_path):
    (switches / "bad.t1").touch()
    run = go(make_recipe(), tmp_path / "out")
    assert dummies.executions("make/tiles/t1") == 1
    states = {task["id"]: task["state"] for task in run.manifest["tasks"]}
    assert states["make/tiles/t1"] == "quarantined"
    assert states["upper/tiles/t1"] == "blocked"
    assert states["upper/tiles/t0"] == "done"
    assert states["join/all/whole"] == "partial"
    assert (run.state, run.exit_code) == ("partial", 3)
    entry = run.store.read_json("quarantine.json")[0]
    assert (entry["task"], entry["code"], entry["what"]) == ("make/tiles/t1", "read", "the file is no raster")
    assert "ReadError" in entry["traceback"]
    assert (tmp_path / "out/join/all.txt").read_text() == "T0 B02\nT2 B02\nT3 B02"


def test_a_repaired_file_heals_exactly_what_was_built_on_it(switches, make_recipe, tmp_path, undisturbed):
    (switches / "bad.t1").touch()
    go(make_recipe(), tmp_path / "out")
    before = all_executions(switches)
    (switches / "bad.t1").unlink()
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed
    after = all_executions(switches)
    redone = {name for name in after if after[name] > before.get(name, 0)}
    assert redone == {"make/tiles/t1", "upper/tiles/t1", "join/all/whole", "join/finish/step"}


def test_a_left_out_scene_degrades_its_block_and_coming_back_heals_it_and_its_dependents(
    switches, make_recipe, tmp_path, undisturbed
):
    (switches / "drop.t3").touch()
    run = go(make_recipe(), tmp_path / "out")
    assert (run.state, run.exit_code) == ("partial", 3)
    row = run.failures.iloc[0]
    assert (row["task"], row["state"], row["item"], row["asset"]) == ("make/tiles/t3", "degraded", "S2A_X", "B04")
    assert "T3 B02 WITHOUT S2A_X" in (tmp_path / "out/join/all.txt").read_text()
    before = all_executions(switches)

    run = go(make_recipe(), tmp_path / "out")
    still = all_executions(switches)
    assert {name for name in still if still[name] > before[name]} == {"make/tiles/t3"}
    assert run.exit_code == 3

    (switches / "drop.t3").unlink()
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed
    healed = all_executions(switches)
    redone = {name for name in healed if healed[name] > still[name]}
    assert redone == {"make/tiles/t3", "upper/tiles/t3", "join/all/whole", "join/finish/step"}


def test_a_strict_stage_is_blocked_by_one_missing_task(switches, make_recipe, tmp_path):
    (switches / "bad.t0").touch()
    run = go(make_recipe("[{verb: make}, {verb: join, strict: true}]"), tmp_path / "out")
    states = {task["id"]: task["state"] for task in run.manifest["tasks"]}
    assert states["join/all/whole"] == "blocked"
    assert (run.state, run.exit_code) == ("failed", 1)


def test_nothing_usable_is_exit_code_1(switches, make_recipe, tmp_path):
    for n in range(4):
        (switches / f"bad.t{n}").touch()
    run = go(make_recipe(), tmp_path / "out")
    assert (run.state, run.exit_code) == ("failed", 1)


def test_a_full_disk_ends_the_run_early_and_resume_needs_no_more_than_what_was_missing(
    switches, make_recipe, tmp_path, undisturbed
):
    (switches / "full.t2").touch()
    run = go(make_recipe(), tmp_path / "out")
    assert (run.state, run.exit_code) == ("disk-full", 3)
    assert run.failures.iloc[0].code == "disk-full"
    assert "resume" in run.failures.iloc[0].what_to_do
    assert dummies.executions("make/tiles/t3") == 0
    before = all_executions(switches)
    (switches / "full.t2").unlink()
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed
    after = all_executions(switches)
    assert after["make/tiles/t0"] == before["make/tiles/t0"] == 1


@pytest.mark.parametrize("allowed", [0, 1, 5, 12])
def test_a_quota_that_hits_any_write_of_the_engine_leaves_no_half_written_record(
    switches, make_recipe, tmp_path, monkeypatch, undisturbed, allowed
):
    real = RunStore.write_bytes
    left = [allowed]

    def limited(self, name, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", name)
        real(self, name, data)

    monkeypatch.setattr(RunStore, "write_bytes", limited)
    with contextlib.suppress(OutputError):
        assert go(make_recipe(), tmp_path / "out").exit_code in (1, 3)
    monkeypatch.setattr(RunStore, "write_bytes", real)
    for path in (tmp_path / "out/ledger").rglob("*"):
        assert path.is_dir() or json.loads(path.read_text())["id"]
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed


def test_a_disk_too_full_even_for_the_books_is_said_plainly(switches, make_recipe, tmp_path, monkeypatch):
    def full(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device", name)

    monkeypatch.setattr(RunStore, "write_bytes", full)
    with pytest.raises(OutputError) as caught:
        go(make_recipe(), tmp_path / "out")
    assert caught.value.code == "disk-full"
    assert "resume" in caught.value.what_to_do


def test_a_really_full_disk_ends_the_run_and_a_larger_one_goes_on(switches, make_recipe, tmp_path, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k"]
    if not mount or subprocess.run([mount, *options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting needs rights that this user does not have")
    out = disk / "out"
    try:
        (disk / "ballast").write_bytes(bytes(200 * 1024))
        with contextlib.suppress(OutputError):
            assert go(make_recipe("[{verb: make, count: 4}, {verb: upper}, {verb: join}]"), out).exit_code in (1, 3)
        for path in (out / "ledger").rglob("*.json"):
            assert json.loads(path.read_text())["id"]
        (disk / "ballast").unlink()
        assert go(make_recipe(), out).exit_code == 0
        assert outputs(out) == undisturbed
    finally:
        subprocess.run([shutil.which("umount"), disk], check=True)


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.write_json("ledger/a/b/c.json", {"id": 1})

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write_json("ledger/a/b/c.json", {"id": 2})
    assert store.read_json("ledger/a/b/c.json") == {"id": 1}
    assert [path.name for path in (tmp_path / "ledger/a/b").iterdir()] == ["c.json"]


def test_a_record_that_is_no_record_is_not_believed(switches, make_recipe, tmp_path, undisturbed):
    go(make_recipe(), tmp_path / "out")
    ledger = tmp_path / "out/ledger/make/tiles"
    (ledger / "t0.json").write_text('{"id": "make/tiles/t0", "ke')
    (ledger / "t1.json").write_bytes((ledger / "t2.json").read_bytes())
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed
    assert dummies.executions("make/tiles/t0") == 2
    assert dummies.executions("make/tiles/t1") == 2
    assert dummies.executions("make/tiles/t2") == 1


def test_an_output_that_is_gone_or_cut_short_is_made_again(switches, make_recipe, tmp_path, undisturbed):
    go(make_recipe(), tmp_path / "out")
    (tmp_path / "out/make/t0.txt").unlink()
    (tmp_path / "out/upper/t1.txt").write_text("T1")
    go(make_recipe(), tmp_path / "out")
    assert outputs(tmp_path / "out") == undisturbed
    assert dummies.executions("make/tiles/t0") == 2
    assert dummies.executions("upper/tiles/t1") == 2
    assert dummies.executions("join/all/whole") == 1


def test_an_edited_recipe_is_refused_naming_the_steps_and_rebuild_replaces_only_these(switches, make_recipe, tmp_path):
    out = tmp_path / "out"
    go(make_recipe(), out)
    (out / "upper/leftover.txt").write_text("old")
    edited = make_recipe("[{verb: make}, {verb: upper, mode: louder}, {verb: join}]")
    with pytest.raises(RecipeError) as caught:
        go(edited, out)
    assert caught.value.code == "recipe-changed"
    assert "step upper, join" in caught.value.what
    assert "--rebuild" in caught.value.what_to_do
    assert (out / "upper/leftover.txt").exists()
    run = go(edited, out, rebuild=True)
    assert run.exit_code == 0
    assert not (out / "upper/leftover.txt").exists()
    assert dummies.executions("make/tiles/t0") == 1
    assert (out / "join/all.txt").read_text().splitlines()[0] == "T0 B02!"
    assert run.recipe.steps[1].mode == "louder"


def test_an_added_step_keeps_all_before_it(switches, make_recipe, tmp_path):
    go(make_recipe("[{verb: make}, {verb: upper}]"), tmp_path / "out")
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert set(all_executions(switches).values()) == {1}


def test_the_name_the_cluster_and_the_seed_of_others_are_in_no_hash(switches, make_recipe, tmp_path):
    one, two = make_recipe(), make_recipe(seed="7", description="other words")
    assert [step.hash for step in one.plan().steps] == [step.hash for step in two.plan().steps]


def test_a_plan_that_no_worker_can_hold_is_refused_before_any_work(switches, make_recipe, tmp_path):
    recipe = make_recipe("[{verb: make, memory: 900000000}]")
    assert recipe.plan().peak_memory_bytes == IDLE_WORKER_BYTES + 900_000_000
    with pytest.raises(ClusterError) as caught:
        recipe.run(tmp_path / "out", gdal={}, memory_limit=10**9)
    assert (caught.value.code, caught.value.where) == ("memory", "make/tiles/t0")
    assert "grid.block" in caught.value.what_to_do
    assert not (tmp_path / "out").exists()
    with pytest.raises(ClusterError, match="2 tasks at a time"):
        recipe.plan().check_memory(2 * 10**9, threads=2)
    recipe.plan().check_memory(2 * 10**9)


def test_time_is_estimated_from_past_runs_beside_this_one(switches, make_recipe, tmp_path):
    assert make_recipe().plan(out=tmp_path / "new").minutes is None
    run = go(make_recipe(), tmp_path / "old")
    info = run.info
    info["timings"]["steps"]["make"] |= {"seconds": 40.0}
    run.store.write_json("run.json", info)
    plan = make_recipe("[{verb: make, count: 8}]").plan(out=tmp_path / "new", workers=2)
    assert plan.minutes == pytest.approx(80 / 60 / 2)
    assert "about" in str(plan)
    assert "make" in plan._repr_html_()


def test_a_folder_with_other_things_in_it_is_not_written_to(switches, make_recipe, tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").touch()
    with pytest.raises(OutputError, match="other things"):
        go(make_recipe(), out)
    assert [path.name for path in out.iterdir()] == ["cat.jpg"]
    with pytest.raises(InputError, match="no run"):
        load_run(out, dummies.Recipe)


def test_a_second_run_into_a_folder_in_use_is_refused_before_it_writes_anything(switches, make_recipe, tmp_path):
    store = RunStore(tmp_path / "out")
    with RunLock(store, "first"):
        with pytest.raises(OutputError) as caught:
            go(make_recipe(), tmp_path / "out")
        assert caught.value.code == "locked"
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["lock.json"]
        assert go(make_recipe(), tmp_path / "out", force_unlock=True).exit_code == 0


def test_a_verb_that_breaks_its_word_is_a_fault_of_its_task(switches, make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(dummies.Upper, "run", lambda self, settings, task, context: None)
    run = go(make_recipe("[{verb: make, count: 1}, {verb: upper}]"), tmp_path / "out")
    assert run.failures.iloc[0].code == "TypeError"


def test_a_finish_that_fails_is_named_and_tried_again_on_resume(switches, make_recipe, tmp_path, monkeypatch):
    def broken(self, settings, context, records):
        raise ValueError("no such column")

    with monkeypatch.context() as patch:
        patch.setattr(dummies.Join, "finish", broken)
        run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 1
    assert run.failures.iloc[0].task == "join/_finish/step"
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert dummies.executions("join/all/whole") == 1


def test_a_prepare_that_fails_blocks_its_step_alone(switches, make_recipe, tmp_path, monkeypatch):
    def broken(self, settings, context):
        raise ValueError("no template")

    monkeypatch.setattr(dummies.Upper, "prepare", broken)
    run = go(make_recipe(), tmp_path / "out")
    assert run.manifest["counts"] == {
        "done": 4,
        "degraded": 0,
        "partial": 0,
        "quarantined": 0,
        "blocked": 5,
        "waiting": 0,
    }
    assert "upper/_prepare/step" in set(run.failures.task)


def test_ctrl_c_leaves_a_run_that_goes_on_where_it_was(switches, make_recipe, tmp_path, undisturbed):
    def interrupt(event):
        if isinstance(event, TaskFinished) and event.task == "make/tiles/t2" and not event.reused:
            raise KeyboardInterrupt

    run = go(make_recipe(), tmp_path / "out", subscribers=[interrupt])
    assert (run.state, run.exit_code) == ("interrupted", 3)
    assert run.counts()["make"] == {"done": 3, "waiting": 1}
    run = go(make_recipe(), tmp_path / "out")
    assert run.exit_code == 0
    assert outputs(tmp_path / "out") == undisturbed
    assert [session["state"] for session in run.info["sessions"]] == ["interrupted", "complete"]


def test_gdal_settings_hold_inside_tasks_only_and_are_recorded(switches, make_recipe, tmp_path, monkeypatch):
    import os

    seen = []
    real = dummies.Make.run

    def spying(self, settings, task, context):
        seen.append(os.environ.get("GDAL_CACHEMAX"))
        return real(self, settings, task, context)

    monkeypatch.setattr(dummies.Make, "run", spying)
    monkeypatch.setenv("GDAL_CACHEMAX", "11")
    run = go(make_recipe(), tmp_path / "out", gdal={"GDAL_CACHEMAX": "64"})
    assert seen == ["64"] * 4
    assert os.environ["GDAL_CACHEMAX"] == "11"
    assert run.info["gdal_settings"] == {"GDAL_CACHEMAX": "64"}


def test_the_report_stands_alone_and_escapes_what_others_wrote(switches, make_recipe, tmp_path):
    (switches / "bad.t1").touch()
    run = go(make_recipe(description='"<script>alert(1)</script>"'), tmp_path / "out")
    page = run.store.read_bytes("report.html").decode()
    assert "<script" not in page
    assert "http" not in page.replace("https://git", "")
    assert page.count("<rect") == 8
    assert "the file is no raster" in page
    assert "verb: make" in page
    write_report(run.store)
    assert run.store.read_bytes("report.html").decode() == page


def test_tasks_may_start_before_an_upstream_step_is_through_only_if_their_verb_says_so(
    switches, make_recipe, tmp_path, monkeypatch
):
    from geoeco.engine.driver import _Execution
    from geoeco.engine.executors import InlineExecutor

    recipe = make_recipe("[{verb: make, count: 2}, {verb: upper}, {verb: join}]")
    plan = recipe.plan()
    assert plan.steps[1].verb.overlaps
    assert not plan.steps[2].verb.overlaps
    monkeypatch.setattr(InlineExecutor, "window", 3)
    started = []
    real = _Execution._start
    monkeypatch.setattr(_Execution, "_start", lambda self, task: (started.append(task.id), real(self, task))[1])
    assert go(recipe, tmp_path / "out").exit_code == 0
    assert started[-1] == "join/all/whole"


@pytest.mark.parametrize("bad", ["make/tiles", "a/b/c/d", "../x/y", "a//b", "a/b/.hidden"])
def test_task_ids_are_safe_as_file_names(bad):
    from geoeco.engine import Task

    with pytest.raises(ValueError, match="task id"):
        Task(bad)
    with pytest.raises(OutputError):
        RunStore("/run").url("../outside")


#: What goes wrong in one session: a switch for each of some tasks.
disturbances = st.dictionaries(
    st.sampled_from(["t0", "t1", "t2", "t3"]), st.sampled_from(["bad", "drop", "transient", "full"]), max_size=3
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=st.lists(disturbances, min_size=1, max_size=3))
def test_whatever_went_wrong_before_a_healed_run_ends_as_if_nothing_had(
    switches, make_recipe, undisturbed, tmp_path_factory, sessions
):
    out = tmp_path_factory.mktemp("healed") / "out"
    shutil.rmtree(switches / "executions", ignore_errors=True)
    believed: dict[str, int] = {}
    for session in sessions:
        for key, name in session.items():
            (switches / f"{name}.{key}").write_text("99")
        go(make_recipe(), out, retries=1)
        for key, name in session.items():
            (switches / f"{name}.{key}").unlink()
        for path in (out / "ledger/make/tiles").glob("*.json"):
            record = json.loads(path.read_text())
            if record["state"] == "done":
                believed.setdefault(record["id"], dummies.executions(record["id"]))
    assert go(make_recipe(), out).exit_code == 0
    assert outputs(out) == undisturbed
    for task_id, times in believed.items():
        assert dummies.executions(task_id) == times


def test_an_idle_worker_needs_less_than_the_plan_reckons():
    code = (
        "import geoeco.steps, distributed, rioxarray; from geoeco.engine.tasks import peak_memory; print(peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < IDLE_WORKER_BYTES


def test_the_peak_of_each_task_is_its_own(tmp_path):
    from geoeco.engine.tasks import peak_memory, reset_peak

    ballast = bytearray(200 * 2**20)
    high = peak_memory()
    del ballast
    reset_peak()
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot forget a peak")
    assert peak_memory() < high - 100 * 2**20


def test_a_task_has_a_scratch_folder_of_its_own_that_is_gone_afterwards(switches, make_recipe, tmp_path, monkeypatch):
    seen = []
    real = dummies.Make.run

    def scribbling(self, settings, task, context):
        (context.scratch_path / "notes").write_text(task.id)
        seen.append(context.scratch_path)
        if task.key == "t3":
            raise ValueError("failed with notes on the desk")
        return real(self, settings, task, context)

    monkeypatch.setattr(dummies.Make, "run", scribbling)
    go(make_recipe(), tmp_path / "out")
    assert len(set(seen)) == 4
    assert not any(path.exists() for path in seen)
