"""The dummy verbs as an importable module, here and in every process that a test starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture
def switches(tmp_path, monkeypatch):
    """Folder of the dummies' switches."""
    folder = tmp_path / "switches"
    folder.mkdir()
    monkeypatch.setenv("GEOECO_DUMMY_SWITCHES", str(folder))
    monkeypatch.setenv("PYTHONPATH", HERE)
    return folder


@pytest.fixture
def make_recipe(tmp_path):
    """Return a function that makes a recipe of the dummy verbs."""
    import dummies

    def make(steps: str = "[{verb: make}, {verb: upper}, {verb: join}]", **settings: str):
        text = f"geoeco: 1\nname: dummy\nsteps: {steps}\n"
        return dummies.Recipe.parse(text, folder=str(tmp_path), settings=[f"{k}={v}" for k, v in settings.items()])

    return make
