"""What went wrong in a task, as plain data: which faults are worth trying again, and which end the run."""

from __future__ import annotations

import errno
import re
import traceback as tb
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from geoeco.errors import GeoecoError, TransientError

__all__ = ["Fault", "fault_of", "is_disk_full", "is_transient", "redacted"]

_TRANSIENT_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_FULL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT})
#: What GDAL, HDF5 and object stores say when the errno does not reach Python.
_FULL_TEXTS = ("no space left on device", "disk quota exceeded", "quotaexceeded", "write error: 28")
#: Errors of libraries that need not be installed, by the name of their class.
_TRANSIENT_NAMES = frozenset(
    {
        "ClientConnectionError",
        "CommClosedError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "FSTimeoutError",
        "IncompleteRead",
        "ProtocolError",
        "ReadTimeoutError",
        "ServerDisconnectedError",
    }
)
#: Query parameters that sign an address, of all the clouds: ``sig``, ``X-Amz-Signature``, ``access_token`` ...
_SECRET = re.compile(r"(?i)([?&][\w.%-]*(?:sig|token|key|credential|secret|password)[\w.%-]*=)[^&\s'\"<>]+")
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@")


@dataclass(frozen=True)
class Fault:
    """An error of a task.

    Attributes
    ----------
    code, what, where, what_to_do : str
        As of `geoeco.errors.GeoecoError`.
    item, asset : str
        The scene and file concerned, where known.
    traceback : str
    transient : bool
        Worth trying again.
    disk_full : bool
        No task can go on.
    worker_died : bool
        The process was killed, most likely for lack of memory.
    """

    code: str
    what: str
    where: str = ""
    what_to_do: str = ""
    item: str = ""
    asset: str = ""
    traceback: str = ""
    transient: bool = False
    disk_full: bool = False
    worker_died: bool = False

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def final(self) -> Fault:
        """Return the same fault, no longer to be tried again."""
        return replace(self, transient=False)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that the disk or the quota is full."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _FULL_ERRNO:
            return True
        if any(text in str(link).lower() for text in _FULL_TEXTS):
            return True
    return False


def is_transient(error: BaseException) -> bool:
    """Whether an error may pass by itself.

    The error itself decides, not what it was raised from: a room that turns a time-out into a `ReadError` means it.
    """
    if isinstance(error, TransientError):
        return True
    if isinstance(error, GeoecoError):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return any(kind.__name__ in _TRANSIENT_NAMES for kind in type(error).__mro__)


def redacted(text: str) -> str:
    """Text without the secrets of signed addresses: faults end up in reports that people pass on."""
    return _USER.sub(r"\1", _SECRET.sub(r"\1...", text))


def fault_of(error: BaseException, *, items: Sequence[str] = ()) -> Fault:
    """Make plain data of an error.

    Parameters
    ----------
    error : BaseException
    items : sequence of str
        Items of the task: one that the error names is taken as the bad one.
    """
    full = is_disk_full(error)
    text = "".join(tb.format_exception(error))[-8000:]
    if isinstance(error, GeoecoError):
        code, what, where, todo = error.code, error.what, error.where, error.what_to_do
    else:
        code, what, where, todo = type(error).__name__, str(error) or type(error).__name__, "", ""
    if full:
        code, todo = "disk-full", "make room, then `geoeco resume`: nothing that the ledger knows is lost"
    named = [name for name in items if name in f"{where} {what}"]
    item = str(getattr(error, "item", "") or (max(named, key=len) if named else ""))
    return Fault(
        code=code,
        what=redacted(what),
        where=redacted(where),
        what_to_do=todo,
        item=item,
        asset=str(getattr(error, "asset", "") or ""),
        traceback=redacted(text),
        transient=not full and is_transient(error),
        disk_full=full,
    )
