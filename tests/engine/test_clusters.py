"""Clusters: any of them gives the same bytes; workers and drivers may be killed; what does not fit is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import dask
import dummies
import pytest

from geoeco.engine import Task, clusters, connect, driver, load_presets
from geoeco.engine.events import RunStarted, TaskFinished
from geoeco.engine.executors import DaskExecutor
from geoeco.engine.plugins import worker_facts
from geoeco.engine.tasks import TaskCall
from geoeco.errors import ClusterError, RecipeError

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def module_switches(tmp_path_factory):
    """One switches folder for the workers that live as long as the module."""
    folder = tmp_path_factory.mktemp("switches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOECO_DUMMY_SWITCHES", str(folder))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield folder


@pytest.fixture(scope="module")
def client(module_switches):
    """A client of a cluster of two worker processes on this machine."""
    with connect("local", workers=2, memory_limit=2 * 2**30) as client:
        yield client


@pytest.fixture
def clean(module_switches):
    """The switches, all off, and no execution counted."""
    for path in sorted(module_switches.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return module_switches


def files(out: Path) -> dict[str, bytes]:
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.txt"))}
    return found | {"manifest.json": (out / "manifest.json").read_bytes()}


@pytest.fixture
def undisturbed(clean, make_recipe, tmp_path):
    """Files of a run in this process."""
    make_recipe().run(tmp_path / "inline", gdal={})
    for path in (clean / "executions").iterdir():
        path.unlink()
    return files(tmp_path / "inline")


def test_a_local_cluster_gives_the_same_bytes_and_gdal_settings_on_every_worker(
    client, clean, undisturbed, make_recipe, tmp_path
):
    events = []
    run = make_recipe().run(tmp_path / "out", client, gdal={"GDAL_CACHEMAX": "64"}, subscribers=[events.append])
    assert run.exit_code == 0
    assert files(tmp_path / "out") == undisturbed
    workers = run.info["workers"]
    assert (workers["workers"], workers["hosts"], workers["gdal_settings"]) == (2, 1, {"GDAL_CACHEMAX": "64"})
    assert set(client.run(os.getenv, "GDAL_CACHEMAX").values()) == {"64"}
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.workers == 2
    assert started.dashboard.startswith("http")


def test_a_cluster_reached_by_its_address_gives_the_same_bytes(client, clean, undisturbed, make_recipe, tmp_path):
    with connect(client.scheduler.address) as other:
        assert make_recipe().run(tmp_path / "out", other, gdal={}).exit_code == 0
    assert files(tmp_path / "out") == undisturbed


def test_a_worker_killed_in_a_task_costs_only_time(client, clean, undisturbed, make_recipe, tmp_path):
    (clean / "kill.t1").write_text("1")
    run = make_recipe().run(tmp_path / "out", client, gdal={}, backoff=0.0)
    assert run.exit_code == 0
    assert files(tmp_path / "out") == undisturbed
    assert dummies.executions("make/tiles/t1") == 2


def test_a_task_that_kills_every_worker_is_split_then_quarantined_and_the_rest_is_done(
    client, clean, make_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "WORKER_DEATHS", 2)
    (clean / "kill.t1").write_text("99")
    run = make_recipe().run(tmp_path / "out", client, gdal={}, backoff=0.0)
    assert run.exit_code == 3
    assert run.failures.iloc[0]["code"] == "worker-killed"
    assert run.counts()["make"] == {"done": 3, "quarantined": 1}
    events = [json.loads(line) for line in run.store.read_bytes("events.jsonl").splitlines()]
    retried = [event["attempt"] for event in events if event["event"] == "TaskRetried" and "t1" in event["task"]]
    assert retried == [1]
    (clean / "kill.t1").unlink()
    assert make_recipe().run(tmp_path / "out", client, gdal={}).exit_code == 0


def test_a_worker_too_small_for_the_plan_is_refused(client, clean, make_recipe, tmp_path):
    with pytest.raises(ClusterError) as caught:
        make_recipe("[{verb: make, memory: 9000000000}]").run(tmp_path / "out", client, gdal={})
    assert caught.value.code == "memory"
    assert not (tmp_path / "out").exists()


def test_workers_of_another_environment_are_refused_with_the_fix(client, clean, make_recipe, tmp_path, monkeypatch):
    there = clusters.package_versions()
    monkeypatch.setattr(clusters, "package_versions", lambda: there | {"zarr": "2.18.0"})
    monkeypatch.setattr(client, "run", lambda function, *arguments: {"tcp://worker:1": there})
    with pytest.raises(ClusterError) as caught:
        clusters.check_versions(client)
    assert f"zarr: 2.18.0 here, {there['zarr']} on tcp://worker:1" in caught.value.what
    assert "one environment" in caught.value.what_to_do


def test_a_run_folder_that_workers_cannot_see_is_refused(client, clean, make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "read_session", str)
    with pytest.raises(ClusterError, match="does not see the run folder"):
        make_recipe().run(tmp_path / "out", client, gdal={})
    assert not list(tmp_path.glob("out/ledger"))


def test_a_cluster_without_workers_is_an_error_not_a_wait_for_ever(make_recipe, tmp_path, switches):
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as lonely,
        pytest.raises(ClusterError, match="no workers"),
    ):
        make_recipe().run(tmp_path / "out", lonely, gdal={}, no_workers_timeout=0.1)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://nosuch.invalid:8786", "bogus://x"])
def test_an_address_without_a_scheduler_says_how_to_start_one(address):
    with pytest.raises(ClusterError) as caught, connect(address, timeout=0.5):
        pass
    assert "dask scheduler" in caught.value.what_to_do


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "bogus://x"])
def test_a_refused_address_leaves_dask_as_it_was(address):
    with dask.config.set(scheduler="threads"):
        with pytest.raises(ClusterError), connect(address, timeout=0.5):
            pass
        assert dask.config.get("scheduler") == "threads"


DRIVER = """
import sys
import dummies
from geoeco.engine import connect
steps = "[{verb: make}, {verb: upper}, {verb: join}]"
recipe = dummies.Recipe.parse(f"{{geoeco: 1, name: dummy, steps: {steps}}}", folder="/")
with connect(sys.argv[2], workers=1) as client:
    recipe.run(sys.argv[1], client, gdal={})
"""


@pytest.mark.parametrize("where", ["none", pytest.param("local", marks=pytest.mark.slow), "address"])
def test_a_killed_driver_is_followed_by_resume_without_doing_anything_twice(
    where, client, clean, undisturbed, make_recipe, tmp_path
):
    out = tmp_path / "out"
    (clean / "hang.t2").touch()
    address = client.scheduler.address if where == "address" else where
    command = [sys.executable, "-c", DRIVER, str(out), address]
    process = subprocess.Popen(command)
    wanted = out / "ledger/make/tiles/t1.json"
    while not ((clean / "hanging.t2").exists() and wanted.exists()):
        assert process.poll() is None, "the driver ended by itself"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (clean / "hang.t2").unlink()
    counts = {path.name: len(path.read_text().splitlines()) for path in (clean / "executions").iterdir()}
    known = {path.stem for path in (out / "ledger/make/tiles").iterdir()}
    run = make_recipe().run(out, client if where == "address" else None, gdal={})
    assert run.exit_code == 0
    assert files(out) == undisturbed
    for key in known:
        assert dummies.executions(f"make/tiles/{key}") == counts[f"make+tiles+{key}"]


def test_resume_waits_for_what_a_killed_driver_left_running_on_the_cluster(
    client, clean, undisturbed, make_recipe, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    (clean / "hang.t2").touch()
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(out), client.scheduler.address])
    while not (clean / "hanging.t2").exists():
        assert process.poll() is None, "the driver ended by itself"
    process.kill()
    process.wait()
    waited = []

    def let_go(seconds):
        waited.append(seconds)
        (clean / "hang.t2").unlink(missing_ok=True)

    monkeypatch.setattr("geoeco.engine.executors.time.sleep", let_go)
    assert make_recipe().run(out, client, gdal={}).exit_code == 0
    assert waited
    assert files(out) == undisturbed


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_session_and_another_cluster_goes_on(
    client, clean, undisturbed, make_recipe, tmp_path
):
    file = tmp_path / "scheduler.json"
    python = [sys.executable, "-m", "distributed.cli"]
    command = [*python[:2], "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*command, "--scheduler-file", str(file)], stderr=subprocess.DEVNULL)
    worker = subprocess.Popen(
        [*python[:2], "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (file.exists() and file.read_text().endswith("}")):
            assert scheduler.poll() is None

        def kill(event):
            if isinstance(event, TaskFinished) and event.task == "make/tiles/t1":
                scheduler.kill()
                scheduler.wait()

        address = json.loads(file.read_text())["address"]
        (clean / "hang.t2").touch()
        with dask.config.set({"distributed.comm.timeouts.connect": "2s"}), connect(address, timeout=5) as other:
            run = make_recipe().run(tmp_path / "out", other, gdal={}, subscribers=[kill])
        assert (run.state, run.exit_code) == ("interrupted", 3)
    finally:
        (clean / "hang.t2").unlink(missing_ok=True)
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert make_recipe().run(tmp_path / "out", client, gdal={}).exit_code == 0
    assert files(tmp_path / "out") == undisturbed


PRESETS = """
nodes:
  kind: slurm
  queue: normal
  account: eco
  walltime: "04:00:00"
  interface: lo
  workers: 8
  maximum: 40
  options: {job_extra_directives: ["--constraint=hdd"]}
hub: {kind: gateway, address: "https://gateway", workers: 3, options: {image: "eco:1"}}
pods: {kind: kubernetes, image: "eco:1", namespace: eco}
"""


@pytest.fixture
def presets(tmp_path, monkeypatch):
    file = tmp_path / "clusters.yaml"
    file.write_text(PRESETS)
    monkeypatch.setenv("GEOECO_CLUSTERS", str(file))
    return file


def test_a_slurm_preset_makes_jobs_that_leave_before_the_queue_ends_them(presets, make_recipe):
    pytest.importorskip("dask_jobqueue")
    plan = make_recipe("[{verb: make, memory: 3000000000}]").plan()
    with clusters.start_preset(load_presets()["nodes"], plan) as cluster:
        script = cluster.job_script()
    for line in ("-p normal", "-A eco", "-t 04:00:00", "--mem=5G", "--constraint=hdd", "--nthreads 1"):
        assert line in script, line
    lifetime = int(script.split("--lifetime ")[1].split("s")[0])
    stagger = int(script.split("--lifetime-stagger ")[1].split("s")[0])
    assert lifetime + stagger < 4 * 3600


class FakeCluster:
    """Stands for a cluster that cannot be had here; keeps what it was made with."""

    made: ClassVar[dict] = {}

    def __init__(self, **arguments):
        self.made.clear()
        self.made.update(arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.made["closed"] = True

    def scale(self, count):
        self.made["scale"] = count

    def adapt(self, minimum, maximum):
        self.made["adapt"] = (minimum, maximum)

    def get_client(self):
        return distributed.Client(processes=False, n_workers=1, dashboard_address=None)


class FakeGateway:
    def __init__(self, **arguments):
        self.arguments = arguments

    def cluster_options(self):
        return type("Options", (), {})()

    def new_cluster(self, options, shutdown_on_close):
        return FakeCluster(**self.arguments, **vars(options), shutdown=shutdown_on_close)


def test_presets_start_scale_and_close_their_clusters(presets, make_recipe, monkeypatch):
    monkeypatch.setattr(clusters, "_class", lambda module, name: FakeGateway if name == "Gateway" else FakeCluster)
    plan = make_recipe().plan()
    with connect("hub", plan=plan) as client:
        assert client.nthreads()
        expected = {"address": "https://gateway", "image": "eco:1", "shutdown": True, "scale": 3}
        assert expected == FakeCluster.made
    assert FakeCluster.made["closed"]
    with connect("nodes", plan=plan, workers=2):
        assert FakeCluster.made["adapt"] == (2, 40)
        assert FakeCluster.made["interface"] == "lo"
    with connect("pods", plan=plan):
        assert FakeCluster.made["image"] == "eco:1"
        assert FakeCluster.made["namespace"] == "eco"
        assert FakeCluster.made["resources"]["limits"]["memory"] == "2Gi"


def test_the_arguments_of_presets_are_ones_that_the_real_classes_take(presets):
    import inspect

    kube = pytest.importorskip("dask_kubernetes.operator").KubeCluster
    preset = load_presets()["pods"]
    arguments = clusters.kubernetes_arguments(preset, None)
    assert set(arguments) <= set(inspect.signature(kube.__init__).parameters)
    gateway = pytest.importorskip("dask_gateway").Gateway
    assert {"address", "auth"} <= set(inspect.signature(gateway.__init__).parameters)
    assert "shutdown_on_close" in inspect.signature(gateway.new_cluster).parameters


def test_unknown_and_broken_presets_are_named(presets):
    with pytest.raises(ClusterError, match="did you mean 'nodes'"), connect("node"):
        pass
    presets.write_text("nodes: {kind: slurm, quue: x}")
    with pytest.raises(ClusterError) as caught:
        load_presets()
    assert caught.value.where.endswith("clusters.yaml:1: nodes.quue")
    presets.write_text("nodes: !!python/object/apply:os.system [ls]")
    with pytest.raises(RecipeError):
        load_presets()


def test_a_local_cluster_has_no_more_workers_than_memory_or_processors(make_recipe, monkeypatch):
    plan = make_recipe("[{verb: make, memory: 4000000000}]").plan()
    monkeypatch.setattr(clusters, "machine_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    count, limit = clusters.local_size(plan, None, None)
    assert count == 3
    assert count * limit <= 16 * 10**9 * 0.9
    with pytest.raises(ClusterError) as caught:
        clusters.local_size(plan, 8, None)
    assert caught.value.code == "memory"


class Taking:
    """A plan of one task that takes resources."""

    def __init__(self, **resources: float) -> None:
        self.tasks = (Task("step/blocks/one", resources=resources),)


def test_a_task_for_which_no_worker_has_the_resources_is_refused_at_once():
    clusters.check_resources(Taking(), [{}])
    clusters.check_resources(Taking(GPU=1), [{}, {"GPU": 2}])
    with pytest.raises(ClusterError, match="no worker has the resources GPU=1 memory=2") as error:
        clusters.check_resources(Taking(GPU=1, memory=2), [{"GPU": 1}, {"memory": 2}, {}])
    assert error.value.where == "step/blocks/one"


def test_tasks_are_handed_to_the_cluster_with_their_resources(client):
    class Spy:
        def submit(self, *arguments, **options):
            self.options = options
            return client.submit(int, 1)

    spy = Spy()
    call = TaskCall(None, Task("step/blocks/one", resources={"GPU": 1}), None, "key", "hash", "session")
    DaskExecutor(spy, run_token="run").submit(call)
    assert spy.options["resources"] == {"GPU": 1}
    assert all(fact["resources"] == {} for fact in client.run(worker_facts, ()).values())
