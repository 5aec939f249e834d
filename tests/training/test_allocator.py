"""Memory that is kept between the passes of a network, in a process of its own that holds nothing else."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library of this system is not GNU's")

#: Bytes of an array; more than the C library ever keeps by itself.
SIZE = 96 * 2**20
BEFORE = f"""
import ctypes, json, resource, threading
from pathlib import Path
from geoeco.training.allocator import freed_memory_kept

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
libc.free.argtypes = (ctypes.c_void_p,)
page = resource.getpagesize()


def new_pages(arrays):
    "Share of the pages of some arrays, one after the other, that the operating system had to give."
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(arrays):
        place = libc.malloc({SIZE})
        libc.memset(place, 1, {SIZE})
        libc.free(place)
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) * page / (arrays * {SIZE})


def resident():
    "Memory of the process, as a share of an array."
    return int(Path("/proc/self/statm").read_text().split()[1]) * page / {SIZE}

"""


def told_by(script: str) -> dict:
    found = subprocess.run([sys.executable, "-c", BEFORE + script], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def test_arrays_find_the_pages_of_those_that_were_freed_and_at_the_end_memory_goes_back():
    found = told_by("""
start = resident()
without = new_pages(4)
with freed_memory_kept():
    within, inside = new_pages(8), resident() - start
print(json.dumps({"without": without, "within": within, "inside": inside, "after": resident() - start}))
""")
    assert found["without"] > 0.95
    assert found["within"] < 0.3  # the first of eight is new
    assert found["inside"] > 0.95
    assert found["after"] < 0.1


def test_it_lasts_until_the_last_thread_is_done_whether_the_first_failed_or_not():
    found = told_by("""
entered, left = threading.Event(), threading.Event()

def other():
    with freed_memory_kept():
        entered.set()
        left.wait(30)

thread = threading.Thread(target=other)
try:
    with freed_memory_kept():
        thread.start()
        entered.wait(30)
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
start = resident()
within = new_pages(8)
inside = resident() - start
left.set()
thread.join()
print(json.dumps({"within": within, "inside": inside, "after": resident() - start}))
""")
    assert found["within"] < 0.3
    assert found["inside"] > 0.95
    assert found["after"] < 0.1
