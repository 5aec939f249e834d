"""What all tests share: where the real samples are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA_HINT = (
    "set GEOECO_REAL_DATA to a folder with the samples that docs/real-data.md names (public data; each test says which)"
)


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
