"""One small world on disk and two in memory, shared by the tests of this room."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from geoeco.simulate import S2World, WorldSettings, write_s2_world

SMALL = {"size": 60, "years": 1, "revisit_days": 15, "reprocessed": 0.5, "wrong_flags": 0.3, "split": 0.1}


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> Path:
    return write_s2_world(tmp_path_factory.mktemp("north") / "world", **SMALL).parent


@pytest.fixture(scope="session")
def scenes(small_world) -> dict[str, dict[str, str]]:
    with (small_world / "truth" / "scenes.csv").open(encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def northern() -> S2World:
    return S2World(WorldSettings(size=120, years=2))


@pytest.fixture(scope="session")
def southern() -> S2World:
    return S2World(WorldSettings(size=120, years=2, hemisphere="south"))
