"""One driver at a time in a run folder; a dead one does not stand in the way."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from geoeco.engine import RunStore
from geoeco.engine.locking import RunLock
from geoeco.errors import OutputError

HOLDER = """
import sys, time
from geoeco.engine import RunStore
from geoeco.engine.locking import RunLock
with RunLock(RunStore(sys.argv[1]), "holder"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path/run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_driver_is_refused_while_the_first_lives_and_told_who_it_is(holder, tmp_path):
    store = RunStore(tmp_path / "run")
    with pytest.raises(OutputError) as caught, RunLock(store, "second"):
        pass
    assert caught.value.code == "locked"
    assert f"process {holder.pid} on {socket.gethostname()}" in caught.value.where
    with RunLock(store, "second", force=True):
        assert store.read_json("lock.json")["session"] == "second"


def test_a_killed_driver_can_be_followed_at_once(holder, tmp_path):
    holder.kill()
    holder.wait()
    store = RunStore(tmp_path / "run")
    assert store.read_json("lock.json")["session"] == "holder"
    with RunLock(store, "second"):
        assert store.read_json("lock.json")["session"] == "second"
    assert not store.exists("lock.json")


@pytest.fixture(params=["disk", "disk without locks", "object store"])
def store(request, tmp_path, monkeypatch):
    """A run folder on a disk, on a network disk that has no locks, and one that knows only PUT and GET."""
    if request.param == "disk without locks":

        def unsupported(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", unsupported)
    if request.param != "object store":
        yield RunStore(tmp_path / "run")
        return
    store = RunStore(f"memory://locks/{tmp_path.name}")
    yield store
    store.remove("lock.json")


def holder_document(**changes) -> bytes:
    document = {"session": "other", "host": "far-away", "pid": 1, "heartbeat": time.time()}
    return json.dumps(document | changes).encode()


def test_a_driver_on_another_host_is_believed_while_its_heart_beats(store):
    store.write_bytes("lock.json", holder_document())
    with pytest.raises(OutputError, match="another run"), RunLock(store, "mine"):
        pass
    store.write_bytes("lock.json", holder_document(heartbeat=time.time() - 3600))
    with RunLock(store, "mine"):
        assert store.read_json("lock.json")["session"] == "mine"
    assert not store.exists("lock.json")


def test_a_dead_process_of_this_host_does_not_hold_a_lock(store):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    store.write_bytes("lock.json", holder_document(host=socket.gethostname(), pid=process.pid))
    with RunLock(store, "mine"):
        assert store.read_json("lock.json")["pid"] == os.getpid()


def test_a_damaged_lock_file_is_no_lock(store):
    store.write_bytes("lock.json", b'{"sess')
    with RunLock(store, "mine"):
        assert store.read_json("lock.json")["session"] == "mine"


def test_a_lock_shows_signs_of_life(tmp_path):
    store = RunStore(tmp_path / "run")
    with RunLock(store, "mine", heartbeat=0.001):
        first = store.read_json("lock.json")["heartbeat"]
        while True:  # ends as soon as the heart has beaten once more
            try:
                if store.read_json("lock.json")["heartbeat"] > first:
                    break
            except ValueError:  # read between truncation and writing
                continue
