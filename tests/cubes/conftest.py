from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world():
    """The helpers of ``world.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("cubes_world", Path(__file__).parent / "world.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
