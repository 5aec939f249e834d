"""The command line: what each command does, its exit codes, and errors that are a few plain lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import dummies
import pytest
from typer.testing import CliRunner

from geoeco import cli
from geoeco.engine.environment import check_environment

HERE = Path(__file__).parent
RECIPE = """\
geoeco: 1
name: dummy
description: files and capitals
steps:
- {verb: make}
- {verb: upper}
- {verb: join}
"""


@pytest.fixture
def invoke(monkeypatch):
    """Return a function that runs a command here, with the dummy verbs."""
    monkeypatch.setattr(cli, "_recipe_type", lambda: dummies.Recipe)
    previous = signal.getsignal(signal.SIGTERM)
    runner = CliRunner()
    yield lambda *arguments: runner.invoke(cli.app, [str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def test_run_resume_status_and_report_tell_the_same_story(invoke, recipe, switches, tmp_path):
    out = tmp_path / "out"
    (switches / "bad.t1").touch()
    result = invoke("run", recipe, "--out", out)
    assert result.exit_code == 3
    assert "quarantined: make/tiles/t1: the file is no raster" in result.output
    assert f"geoeco resume {out}" in result.output
    result = invoke("status", out)
    assert result.exit_code == 0
    assert "make: 3 done, 1 quarantined" in result.output
    (switches / "bad.t1").unlink()
    recipe.unlink()
    result = invoke("resume", out)
    assert result.exit_code == 0, result.output
    assert dummies.executions("make/tiles/t0") == 1
    document = json.loads(invoke("status", out, "--json").output)
    assert document == {
        "state": "complete",
        "exit_code": 0,
        "steps": {"make": {"done": 4}, "upper": {"done": 4}, "join": {"done": 1}},
    }
    (out / "report.html").unlink()
    assert invoke("report", out).exit_code == 0
    assert (out / "report.html").exists()


def test_a_failed_run_is_exit_code_1(invoke, recipe, switches, tmp_path):
    for n in range(4):
        (switches / f"bad.t{n}").touch()
    assert invoke("run", recipe, "--out", tmp_path / "out").exit_code == 1


def test_progress_is_plain_lines_where_there_is_no_terminal(invoke, recipe, switches, tmp_path):
    result = invoke("run", recipe, "--out", tmp_path / "out")
    assert "make: 4 tasks, 0 reused" in result.stderr
    result = invoke("run", recipe, "--out", tmp_path / "out")
    assert "make: 4 tasks, 4 reused" in result.stderr
    assert invoke("run", recipe, "--out", tmp_path / "out", "--quiet").stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "RECIPE"],
        ["run", "RECIPE", "--out", "o", "--workers", "0"],
        ["run", "RECIPE", "--out", "o", "--workers", "two"],
        ["run", "RECIPE", "--out", "o", "--memory-limit", "much"],
        ["run", "RECIPE", "--out", "o", "--set", "novalue"],
        ["run", "RECIPE", "--out", "o", "--nosuch"],
        ["fly"],
        ["demo", "s2"],
        ["demo", "s2", "x", "--clouds", "3"],
        ["demo", "s2", "x", "--hemisphere", "east"],
    ],
)
def test_bad_usage_is_exit_code_2(invoke, recipe, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*[recipe if argument == "RECIPE" else argument for argument in arguments])
    assert result.exit_code == 2
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("verb: make", "verb: mak"), [], "did you mean 'make'"),
        (("name: dummy", "nmae: dummy"), [], "unknown key 'nmae'; did you mean 'name'?"),
        (("", ""), ["--set", "steps[0].count=-1"], "steps[0].count"),
        (("", ""), ["--cluster", "locl"], "did you mean 'local'"),
        (("", ""), ["--cluster", "tcp://127.0.0.1:1", "--no-workers-timeout", "1"], "dask scheduler"),
        (("", ""), ["--memory-limit", "10MiB"], "a worker would need"),
    ],
)
def test_refusals_are_exit_code_1_in_a_few_lines_before_any_work(
    invoke, recipe, tmp_path, switches, change, arguments, message
):
    recipe.write_text(RECIPE.replace(*change) if change[0] else RECIPE)
    result = invoke("run", recipe, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_error_itself(invoke, tmp_path):
    result = invoke("--debug", "validate", tmp_path / "nothing.yaml")
    assert type(result.exception).__name__ == "RecipeError"


def test_validate_names_files_that_are_not_there(invoke, recipe):
    assert invoke("validate", recipe).exit_code == 0
    result = invoke("validate", recipe, "--set", "inputs.tables={points: sites.csv}")
    assert result.exit_code == 1
    assert "sites.csv" in result.output
    (recipe.parent / "sites.csv").touch()
    assert invoke("validate", recipe, "--set", "inputs.tables={points: sites.csv}").exit_code == 0


def test_plan_shows_and_does_nothing(invoke, recipe, tmp_path, switches):
    before = sorted(tmp_path.rglob("*"))
    result = invoke("plan", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 0
    for text in ("tasks                    9", "peak memory of a worker", "make", "upper", "join"):
        assert text in result.output
    document = json.loads(invoke("plan", recipe, "--json").output)
    assert document["tasks"] == 9
    assert sorted(tmp_path.rglob("*")) == before
    assert invoke("plan", recipe, "--set", "steps[0].memory=900000000000").exit_code == 1


def test_schema_is_json_schema_of_the_recipe(invoke, tmp_path):
    assert json.loads(invoke("schema").output)["title"] == "Recipe"
    assert invoke("schema", "--out", tmp_path / "schema.json").exit_code == 0
    assert json.loads((tmp_path / "schema.json").read_text())["required"] == ["geoeco", "name", "steps"]


def test_recipes_can_be_listed_and_copied_but_not_over_a_file(invoke, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_recipe_files", lambda: {"recipe": recipe})
    assert "files and capitals" in invoke("recipes", "list").output
    target = tmp_path / "mine"
    assert invoke("recipes", "copy", "recipe", target).exit_code == 0
    assert (target / "recipe.yaml").read_text() == RECIPE
    assert invoke("recipes", "copy", "recipe", target).exit_code == 1
    assert invoke("recipes", "copy", "recipe", target, "--force").exit_code == 0
    assert invoke("recipes", "copy", "recipe", target / "other.yaml").exit_code == 0
    assert "did you mean 'recipe'" in invoke("recipes", "copy", "recipes").output


def test_recipes_are_found_in_the_package_or_beside_it_in_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "geoeco").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/beside.yaml").touch()
    monkeypatch.setattr(cli, "files", lambda package: tmp_path / "geoeco")
    assert list(cli._recipe_files()) == ["beside"]
    (tmp_path / "geoeco/data/recipes").mkdir(parents=True)
    (tmp_path / "geoeco/data/recipes/inside.yaml").touch()
    assert list(cli._recipe_files()) == ["inside"]


def test_a_status_or_resume_of_no_run_is_refused(invoke, tmp_path):
    for command in ("status", "resume", "report"):
        result = invoke(command, tmp_path)
        assert result.exit_code == 1
        assert "holds no run" in result.output


def test_the_doctor_finds_this_environment_fit_and_says_what_is_not(invoke, monkeypatch):
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    for name in ("GDAL drivers", "GeoTIFF with ZSTD", "PROJ data", "distributed", "temporary folder", "machine"):
        assert name in result.output
    from geoeco.engine import environment

    monkeypatch.setattr(environment, "GDAL_DRIVERS", ("GTiff", "NoSuchDriver"))
    monkeypatch.setattr(environment, "OPTIONAL", {"nosuchpackage": ("cluster", "nothing")})
    states = {check.name: check.state for check in check_environment()}
    assert (states["GDAL drivers"], states["nosuchpackage"]) == ("broken", "missing")
    assert invoke("doctor", "--json").exit_code == 1


def geoeco(*arguments, **environment) -> subprocess.Popen:
    command = [sys.executable, "-c", "from geoeco.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )


@pytest.fixture
def plugin(tmp_path):
    """A folder that, on the path, is an installed package whose entry points bring the dummy verbs."""
    info = tmp_path / "site/dummies-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dummies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[geoeco.steps]\nmake = dummies:Make\nupper = dummies:Upper\njoin = dummies:Join\n"
    )
    return os.pathsep.join([str(info.parent), str(HERE)])


def test_verbs_of_other_packages_run_by_entry_point_and_sigterm_leaves_a_resumable_run(
    recipe, plugin, switches, tmp_path
):
    out = tmp_path / "out"
    (switches / "hang.t2").touch()
    process = geoeco("run", recipe, "--out", out, PYTHONPATH=plugin)
    while not (switches / "hanging.t2").exists():
        assert process.poll() is None, process.communicate()[0]
    process.terminate()
    text = process.communicate()[0]
    assert process.returncode == 3, text
    assert "geoeco resume" in text
    (switches / "hang.t2").unlink()
    process = geoeco("resume", out, PYTHONPATH=plugin)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert dummies.executions("make/tiles/t0") == 1
    assert (out / "join/all.txt").read_text() == "T0 B02\nT1 B02\nT2 B02\nT3 B02"
