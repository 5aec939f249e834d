"""What all tests share: where the real samples are, and that Dask is left as it was found."""

from __future__ import annotations

import os
from pathlib import Path

import dask
import pytest

REAL_DATA_HINT = (
    "set GEOECO_REAL_DATA to a folder with the samples that docs/real-data.md names (public data; each test says which)"
)


@pytest.fixture(scope="module", autouse=True)
def no_scheduler_left_behind():
    """Fail the module that leaves Dask with a default scheduler: the next one would compute with it."""
    yield
    assert dask.config.get("scheduler", None) is None


@pytest.fixture(scope="session")
def real_data():
    """Return a function that gives the path of one real sample, or skips (fails where GEOECO_REQUIRE_REAL=1)."""
    root = os.environ.get("GEOECO_REAL_DATA", "")
    required = os.environ.get("GEOECO_REQUIRE_REAL") == "1"

    def path(relative: str) -> Path:
        found = Path(root) / relative
        if not root or not found.exists():
            message = f"no {relative}: {REAL_DATA_HINT}"
            if required:
                pytest.fail(message)
            pytest.skip(message)
        return found

    return path
