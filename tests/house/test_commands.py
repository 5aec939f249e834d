"""The commands that a stranger types: those of the README, of the Makefile, and the recipes they are given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_make_command_of_the_pages_exists(page):
    assert (
        set(re.findall(r"\bmake ([a-z-]+)", " ".join(re.findall(r"`[^`]*`", (ROOT / page).read_text())))) <= targets()
    )


def test_the_makefile_offers_what_the_readme_promises():
    assert {"quickstart", "test", "test-all", "experiments", "lint", "docs", "bench", "clean"} <= targets()
    readme = (ROOT / "README.md").read_text()
    assert "make quickstart" in readme
    assert "geoeco run" in readme


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", sorted({"quickstart", "test", "lint", "docs"}))
def test_make_can_say_what_it_would_do(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_without_a_python_make_says_in_one_line_what_to_install(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("make", "sh", "grep"):
        (tools / tool).symlink_to(shutil.which(tool))
    bare = {"PATH": str(tools), "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path)}
    done = subprocess.run(
        [str(tools / "make"), "quickstart"], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1
    assert "python3.12" in ours[0]
    assert "uv" in ours[0]


def test_the_checks_before_a_change_lands_are_lint_and_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "GEOECO_REQUIRE_REAL=1" in text
    assert re.search(r"^make lint$", text, re.MULTILINE)
    assert re.search(r"^make test$", text, re.MULTILINE)


def test_the_pictures_of_the_readme_are_there_and_small():
    names = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert names
    for name in names:
        assert (ROOT / name).stat().st_size < 300_000, name


def test_there_are_recipes_to_copy():
    assert {"quickstart", "s2_phenology", "s2_season_chips"} <= {recipe.stem for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    import geoeco

    assert geoeco.Recipe.load(recipe) is not None
