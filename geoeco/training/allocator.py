"""Memory that a network frees is kept for its next pass or step, where the C library lets itself be told so.

Activations are arrays of tens of megabytes. The GNU C library takes each from the operating system and gives it back
when it is freed, and the system clears its pages anew for every layer of every pass: of a U-Net with a ResNet-18, a
tenth of the time (docs/benchmarks.md). This is about time only: what is computed is the same with and without it.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

__all__ = ["freed_memory_kept"]

#: Options of mallopt(3), as <malloc.h> numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Arrays that are taken from the operating system one by one; the library's own limit.
_MAPPED = 65536
#: The library raises its threshold as far as this as larger arrays are freed, and keeps twice as much.
_LARGEST_THRESHOLD = 32 * 2**20

_lock = threading.Lock()
_inside = 0


@cache
def _glibc() -> tuple[Callable[[int, int], int], Callable[[int], int]] | None:
    """Its functions ``mallopt`` and ``malloc_trim``; None where the C library is another."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library.mallopt, library.malloc_trim


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next that asks for memory, and hand it back to the operating system at the end.

    Where the C library is not GNU's, it does nothing. It holds for the whole process while any thread is inside.
    """
    global _inside
    glibc = _glibc()
    if glibc is None:
        yield
        return
    mallopt, malloc_trim = glibc
    with _lock:
        if not _inside:
            mallopt(_MMAP_MAX, 0)
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                mallopt(_MMAP_MAX, _MAPPED)
                mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
                mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
                malloc_trim(0)
