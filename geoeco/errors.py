"""The one exception family of geoeco.

Every error that geoeco raises on purpose says what happened, where, and what to do about it, and carries a short
code that ledgers and reports can count. Not for programming errors: those stay ``TypeError`` and friends.
"""

from __future__ import annotations

import builtins

__all__ = [
    "CatalogError",
    "ClusterError",
    "GeoecoError",
    "GridError",
    "InputError",
    "OutputError",
    "ReadError",
    "RecipeError",
    "TransientError",
]


class GeoecoError(Exception):
    """Base of all errors raised by geoeco.

    Parameters
    ----------
    what : str
        What went wrong, in one sentence.
    where : str, optional
        The file, key, item, asset or block concerned.
    what_to_do : str, optional
        What the reader can do about it.
    code : str, optional
        Short machine-readable code, kebab-case; the class has a default.

    Notes
    -----
    Instances pickle, so that a worker's error reaches the driver whole.
    """

    code: str = "geoeco-error"

    def __init__(self, what: str, *, where: str = "", what_to_do: str = "", code: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.what_to_do = what_to_do
        if code:
            self.code = code

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.what_to_do:
            parts.append(f"what to do: {self.what_to_do}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[builtins.object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.what_to_do, self.code))


def _rebuild(cls: type[GeoecoError], what: str, where: str, what_to_do: str, code: str) -> GeoecoError:
    return cls(what, where=where, what_to_do=what_to_do, code=code)


class RecipeError(GeoecoError):
    """A recipe that cannot be run as written."""

    code = "recipe"


class InputError(GeoecoError):
    """An argument, table or array that does not fit what the function needs."""

    code = "input"


class GridError(InputError):
    """A grid, CRS or area of interest that does not fit."""

    code = "grid"


class CatalogError(GeoecoError):
    """A catalogue, collection or item that cannot be read or lacks what is needed."""

    code = "catalog"


class ReadError(GeoecoError):
    """An asset that cannot be read and will not be by trying again (corrupt, wrong layout, gone)."""

    code = "read"


class OutputError(GeoecoError):
    """An output that cannot be written or does not read back as written."""

    code = "output"


class ClusterError(GeoecoError):
    """A cluster that cannot be reached or does not fit (versions, memory, no workers)."""

    code = "cluster"


class TransientError(GeoecoError):
    """A fault that may pass by itself (time-out, lost connection, expired token): worth trying again."""

    code = "transient"
