"""A run folder in an object store: whole files by PUT, the same states and outputs as on a disk."""

from __future__ import annotations

import json

import dummies
import pytest

from geoeco.engine import RunStore, load_run
from geoeco.errors import OutputError


@pytest.fixture(scope="module")
def server():
    moto_server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """URL of an empty bucket on a local S3 server."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir("geoeco-runs")
    yield "s3://geoeco-runs"
    fs.rm("geoeco-runs", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_in_s3_ends_resumes_and_heals_as_on_a_disk(bucket, switches, make_recipe, tmp_path):
    out = f"{bucket}/run"
    (switches / "bad.t1").touch()
    run = make_recipe().run(out, gdal={}, backoff=0.0)
    assert run.exit_code == 3
    (switches / "bad.t1").unlink()
    run = make_recipe().run(out, gdal={}, backoff=0.0)
    assert run.exit_code == 0
    counts = {path.name: len(path.read_text().splitlines()) for path in (switches / "executions").iterdir()}
    assert counts["make+tiles+t0"] == 1
    assert counts["make+tiles+t1"] == 2
    assert counts["upper+tiles+t1"] == 1
    assert run.open("make") == ["t0 B02", "t1 B02", "t2 B02", "t3 B02"]
    local = make_recipe().run(tmp_path / "local", gdal={}, backoff=0.0)
    assert run.store.read_bytes("manifest.json") == local.store.read_bytes("manifest.json")
    assert run.store.read_bytes("join/all.txt") == local.store.read_bytes("join/all.txt")
    events = [json.loads(line)["event"] for line in run.store.read_bytes("events.jsonl").splitlines()]
    assert events.count("RunStarted") == events.count("RunFinished") == 2
    assert b"</html>" in run.store.read_bytes("report.html")
    assert not run.store.exists("lock.json")
    assert load_run(out, dummies.Recipe).counts()["make"] == {"done": 4}


def test_rebuild_in_s3_replaces_just_the_changed_steps(bucket, switches, make_recipe):
    out = f"{bucket}/edited"
    make_recipe().run(out, gdal={})
    edited = make_recipe("[{verb: make}, {verb: upper, mode: louder}, {verb: join}]")
    assert edited.run(out, gdal={}, rebuild=True).exit_code == 0
    assert dummies.executions("make/tiles/t0") == 1
    assert dummies.executions("upper/tiles/t0") == 2


def test_only_one_of_two_drivers_gets_an_object_store_folder(bucket):
    store = RunStore(f"{bucket}/race")
    assert store.create_exclusive("lock.json", b"{}")
    assert not RunStore(f"{bucket}/race").create_exclusive("lock.json", b"{}")


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_stores_do_the_same_on_a_disk_and_in_s3(kind, bucket, tmp_path):
    store = RunStore(tmp_path / "run" if kind == "disk" else f"{bucket}/store")
    assert not store.exists("run.json")
    assert store.sizes("ledger") == {}
    store.write_json("ledger/a/b/c.json", {"x": 1})
    store.write_bytes("ledger/a/b/d.bin", b"123")
    assert store.sizes("ledger")["ledger/a/b/d.bin"] == 3
    assert store.size("ledger/a/b/d.bin") == 3
    assert store.size("ledger/nothing") is None
    assert store.read_many("ledger", ".json") == {"ledger/a/b/c.json": store.read_bytes("ledger/a/b/c.json")}
    with pytest.raises(FileNotFoundError):
        store.read_bytes("ledger/nothing")
    source = tmp_path / "source"
    source.write_bytes(b"12345")
    store.put_file(source, "step/file")
    assert store.read_bytes("step/file") == b"12345"
    store.remove("ledger/a")
    assert store.sizes("ledger") == {}
    store.remove("ledger/a")
    for name in ("../x", "/etc/passwd", "a/../../b"):
        with pytest.raises(OutputError):
            store.url(name)
    with pytest.raises(OutputError, match="whole run folder"):
        store.remove("")
