"""One driver at a time in a run folder.

On a local disk the lock is the operating system's (``flock``): it ends with the process that holds it, however that
ends, so a killed run can be resumed at once. Where the system's lock does not reach (object stores, drivers on other
hosts that share a disk) a heartbeat in the lock file tells whether its holder still lives.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO, Any

from geoeco.engine.stores import RunStore
from geoeco.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunLock"]


class RunLock:
    """Lock of a run folder; use as a context manager.

    Parameters
    ----------
    store : RunStore
    session : str
    force : bool
        Take the lock whoever holds it.
    heartbeat : float
        Seconds between signs of life.
    stale_after : float
        Seconds without a sign of life after which a holder that cannot be asked is taken for dead.

    Raises
    ------
    OutputError
        On entering, if another driver is at work in the folder.
    """

    NAME = "lock.json"

    def __init__(
        self,
        store: RunStore,
        session: str,
        *,
        force: bool = False,
        heartbeat: float = 20.0,
        stale_after: float = 120.0,
    ) -> None:
        self.store = store
        self.session = session
        self.force = force
        self.heartbeat = heartbeat
        self.stale_after = stale_after
        self._file: IO[bytes] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _holder(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "heartbeat": time.time(),
        }

    def __enter__(self) -> RunLock:
        try:
            if not self.store.is_local or fcntl is None:
                raise NotImplementedError
            self._take_file()
        except NotImplementedError:
            self._take_object()
        self._thread = threading.Thread(target=self._beat, name="geoeco-lock", daemon=True)
        self._thread.start()
        return self

    def _refuse(self, holder: dict[str, Any]) -> OutputError:
        return OutputError(
            "another run is at work in this folder",
            where=f"{self.store.url()} (process {holder.get('pid', '?')} on {holder.get('host', '?')})",
            what_to_do="wait for it or end it; --force-unlock takes the folder if that run is surely dead",
            code="locked",
        )

    def _alive(self, holder: dict[str, Any]) -> bool:
        """Whether a holder shows signs of life; on this host the process itself is asked."""
        if not holder or holder.get("session") == self.session:
            return False
        if holder.get("host") == socket.gethostname():
            try:
                os.kill(int(holder.get("pid", -1)), 0)
            except (ProcessLookupError, ValueError):
                return False
            except PermissionError:
                pass
        return time.time() - float(holder.get("heartbeat", 0.0)) < self.stale_after

    def _take_file(self) -> None:
        """Take the lock of the operating system, and leave a heartbeat for those whom it does not reach."""
        path = self.store.local(self.NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            path.touch()
            file = path.open("r+b")
            try:
                held = not _flock(file)
                holder = _parsed(file.read())
                # Our own lock proves that a holder on this host is gone; one elsewhere may not see it.
                elsewhere = holder.get("host") != socket.gethostname() and self._alive(holder)
                if (held or elsewhere) and not self.force:
                    raise self._refuse(holder)
                if held or _is_at(file, path):
                    break
            except BaseException:
                file.close()
                raise
            file.close()  # the holder before us removed this very file as it left: lock the new one
        self._file = file
        self._write()

    def _take_object(self) -> None:
        """Take the lock by the heartbeat alone."""
        data = json.dumps(self._holder()).encode()
        if self.store.create_exclusive(self.NAME, data):
            return
        try:
            holder = _parsed(self.store.read_bytes(self.NAME))
        except FileNotFoundError:
            holder = {}
        if self._alive(holder) and not self.force:
            raise self._refuse(holder)
        self.store.write_bytes(self.NAME, data)

    def _write(self) -> None:
        data = json.dumps(self._holder()).encode()
        if self._file is None:
            self.store.write_bytes(self.NAME, data)
            return
        # In place: the lock belongs to this very file, so it cannot be renamed over.
        self._file.seek(0)
        self._file.truncate()
        self._file.write(data)
        self._file.flush()

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            with contextlib.suppress(Exception):  # a full disk must not end the thread that says we live
                self._write()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            self.store.remove(self.NAME)  # while it is still locked
            self._file.close()  # releases the system's lock
            self._file = None
        else:
            self.store.remove(self.NAME)


def _flock(file: IO[bytes]) -> bool:
    """Take the system's lock; False if another process has it.

    Raises
    ------
    NotImplementedError
        If the file system has no locks (some network disks).
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise NotImplementedError from error
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
