"""What an import costs and brings: counted in fresh processes, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(
    path.stem
    for path in (ROOT / "geoeco").iterdir()
    if (path / "__init__.py").exists() or (path.suffix == ".py" and path.stem not in {"__init__", "__main__"})
)
BASE_ROOMS = [room for room in ROOMS if room not in {"mapping", "models", "training"}]

HEAVY = {"bokeh", "distributed", "lightning", "matplotlib", "odc.stac", "s3fs", "sklearn", "timm", "torch", "torchgeo"}


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_geoeco_loads_nothing_but_itself():
    ours = modules_after("import geoeco") - modules_after("import importlib, typing, __future__")
    assert ours == {"geoeco"}


@pytest.fixture(scope="module")
def heavy_by_room() -> dict[str, list[str]]:
    """The heavy modules that each base room adds when all are imported one after the other in one process."""
    script = f"""
import importlib, json, sys
heavy, found = {sorted(HEAVY)!r}, {{}}
for room in {BASE_ROOMS!r}:
    before = set(sys.modules)
    importlib.import_module("geoeco." + room)
    found[room] = [name for name in heavy if name in sys.modules and name not in before]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("room", BASE_ROOMS)
def test_a_base_room_loads_neither_torch_nor_distributed_nor_matplotlib(room, heavy_by_room):
    assert not heavy_by_room[room]


def test_using_a_lazy_name_loads_its_room_only():
    loaded = modules_after("import geoeco; geoeco.open_catalog")
    assert "geoeco.catalog" in loaded
    assert {"geoeco.engine", "geoeco.steps", "geoeco.phenology"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    "code",
    [
        "geoeco.Recipe",
        "geoeco.open_cube",
        "geoeco.phenology",
        "geoeco.simulate; geoeco.cubes",
        "import geoeco.accessor",
    ],
)
def test_the_accessor_is_there_once_a_cube_can_be(code):
    modules_after(f"import geoeco; {code}; import xarray; assert hasattr(xarray.Dataset(), 'geoeco')")


def test_a_recipe_knows_the_verbs_without_importing_the_steps_by_hand():
    loaded = modules_after("import geoeco; geoeco.Recipe")
    assert {"geoeco.engine", "geoeco.steps"} <= loaded


def test_every_public_name_can_be_had_and_an_unknown_one_is_an_attribute_error():
    import geoeco

    for name in geoeco.__all__:
        assert getattr(geoeco, name) is not None
    assert set(geoeco.__all__) | set(ROOMS) - {"cli"} <= set(dir(geoeco))
    with pytest.raises(AttributeError, match="no attribute 'opne_cube'"):
        _ = geoeco.opne_cube


def test_the_version_is_that_of_the_installed_package():
    import importlib.metadata

    import geoeco

    assert geoeco.__version__ == importlib.metadata.version("geoeco")


def test_every_room_is_named_in_the_contract_of_imports():
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    order = next(contract for contract in contracts if contract["id"] == "order")
    assert set(ROOMS) <= {layer.strip("()") for layer in order["layers"]}
    without_torch = next(contract for contract in contracts if contract["id"] == "torch")
    assert {f"geoeco.{room}" for room in BASE_ROOMS} == set(without_torch["source_modules"])
