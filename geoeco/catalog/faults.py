"""Which faults of a remote service may pass by themselves and which will not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from geoeco.errors import CatalogError, GeoecoError, TransientError

__all__ = ["fault", "status_fault", "translated"]

#: Answers worth asking again: a token that expired (403, to be signed anew), time-outs, too many requests.
_TRANSIENT_STATUS = frozenset({403, 408, 421, 425, 429})
_TRANSIENT_NAMES = (
    "Timeout",
    "ConnectionError",
    "ConnectionReset",
    "ProtocolError",
    "ChunkedEncodingError",
    "SSLError",
)


def status_fault(status: int, where: str, detail: str = "") -> GeoecoError:
    """Make the error for an HTTP status: transient for 403, 408, 429 and 5xx, else final.

    Parameters
    ----------
    status : int
    where : str
        What was asked for.
    detail : str, optional
        What the server said.
    """
    what = f"the server answered {status}" + (f": {detail[:200]}" if detail else "")
    if status in _TRANSIENT_STATUS or 500 <= status < 600:
        hint = "the token may have expired, or access is not granted" if status == 403 else "try again later"
        return TransientError(what, where=where, what_to_do=hint, code=f"http-{status}")
    hint = {401: "give credentials by `headers`", 404: "check the address"}.get(status, "check the address and query")
    return CatalogError(what, where=where, what_to_do=hint, code=f"http-{status}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    for link in _chain(error):
        for holder in (link, getattr(link, "response", None)):
            for name in ("status_code", "code"):
                status = getattr(holder, name, None)
                if isinstance(status, int) and 400 <= status < 600:
                    return status
    return None


def fault(error: BaseException, where: str) -> GeoecoError:
    """Make the geoeco error for whatever a remote read, search or signature raised.

    Parameters
    ----------
    error : BaseException
        From urllib, requests, pystac-client, fsspec or the operating system.
    where : str
        What was being read.

    Returns
    -------
    GeoecoError
        `TransientError` for time-outs, lost connections, 403, 408, 429 and 5xx; `CatalogError` for the rest.
    """
    if (status := _status(error)) is not None:
        return status_fault(status, where, str(error))
    for link in _chain(error):
        names = {cls.__name__ for cls in type(link).__mro__}
        if any(part in name for name in names for part in _TRANSIENT_NAMES) or isinstance(link, TimeoutError):
            return TransientError(f"no answer: {error}", where=where, what_to_do="try again later")
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return CatalogError("there is no such file", where=where, what_to_do="check the path", code="catalog-missing")
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return CatalogError(
            f"this is not JSON: {error}", where=where, what_to_do="repair or fetch the file again", code="catalog-json"
        )
    return CatalogError(f"{type(error).__name__}: {error}", where=where, what_to_do="check the catalogue")


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise whatever the block raises as the geoeco error that `fault` makes of it; geoeco's own errors pass.

    Parameters
    ----------
    where : str
        What the block reads.
    """
    try:
        yield
    except GeoecoError:
        raise
    except Exception as error:
        raise fault(error, where) from error
