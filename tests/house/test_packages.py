"""What geoeco is built on: declared in one place, told to conda in the same words, and really used."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: rows for name, rows in PROJECT["optional-dependencies"].items() if name != "all"}

#: conda-forge's names where they differ; what PyPI brings by an extra, conda lists.
CONDA_NAMES = {"dask": "dask-core", "matplotlib": "matplotlib-base", "torch": "pytorch", "types-PyYAML": "types-pyyaml"}
CONDA_EXTRAS = {"moto": {"flask", "flask-cors"}}

#: Import names where they differ from the name of the package.
IMPORT_NAMES = {
    "majortom-eg": "majortom_eg",
    "netcdf4": "netCDF4",
    "odc-geo": "odc.geo",
    "odc-stac": "odc.stac",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}

#: Come with a declared package and are part of its interface.
COMES_WITH = {
    "affine": "rasterio",
    "aiobotocore": "s3fs",
    "boto3": "moto",
    "botocore": "s3fs",
    "click": "typer",
    "cloudpickle": "distributed",
    "flask": "moto",
    "google_crc32c": "zarr",
    "markupsafe": "jinja2",
    "nbclient": "nbmake",
    "nbformat": "jupytext",
    "numcodecs": "zarr",
    "packaging": "xarray",
    "pil": "matplotlib",
    "psutil": "distributed",
    "pyogrio": "geopandas",
    "referencing": "jsonschema",
    "requests": "pystac-client",
    "threadpoolctl": "scikit-learn",
    "tornado": "distributed",
    "werkzeug": "moto",
}


def declared() -> dict[str, set[str]]:
    """Package name -> the parts of pyproject.toml that declare it."""
    where: dict[str, set[str]] = {}
    for part, rows in {"base": PROJECT["dependencies"], **EXTRAS}.items():
        for row in rows:
            where.setdefault(canonicalize_name(Requirement(row).name), set()).add(part)
    return where


@functools.cache
def imported(folder: Path) -> dict[str, set[Path]]:
    """Dotted module name -> the files below `folder` that import it."""
    where: dict[str, set[Path]] = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"importorskip", "import_module"}
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                names = [str(node.args[0].value)]
            for name in names:
                where.setdefault(name, set()).add(file)
    return where


BASE_ROOMS = [room for room in sorted((ROOT / "geoeco").iterdir()) if room.name not in {"training", "data"}]


def used_in_base(package: str) -> bool:
    files = {
        file for name, where in imported(ROOT / "geoeco").items() if name.split(".")[0] == package for file in where
    }
    return any(file.is_relative_to(room) for file in files for room in BASE_ROOMS)


@pytest.mark.parametrize("package", ["dask", "geopandas", "rasterio", "rioxarray", "xarray", "zarr"])
def test_the_packages_of_the_base_are_declared_there_and_used_by_its_rooms(package):
    assert "base" in declared()[package]
    assert used_in_base(package)


def test_torchgeo_is_declared_for_ml_and_used_by_the_adapter_of_training():
    assert declared()["torchgeo"] == {"ml"}
    files = {file for name, where in imported(ROOT / "geoeco").items() if name.startswith("torchgeo") for file in where}
    assert files == {ROOT / "geoeco" / "training" / "torchgeo_adapter.py"}


def test_segmentation_models_pytorch_is_declared_for_ml_and_fed_by_the_tests_of_training():
    """No room imports it so far: it comes with the habitat models. Until then the tests train one of its networks."""
    assert declared()["segmentation-models-pytorch"] == {"ml"}
    assert "segmentation_models_pytorch" in imported(ROOT / "tests" / "training")


def test_pytest_is_declared_for_dev_and_used_by_the_tests():
    assert declared()["pytest"] == {"dev"}
    assert "pytest" in imported(ROOT / "tests")


def top_names(package: str) -> str:
    return IMPORT_NAMES.get(package, package.replace("-", "_"))


@pytest.mark.parametrize(
    ("folder", "parts"),
    [("geoeco", {"base", "cluster", "ml"}), ("tests", {"base", "cluster", "ml", "docs", "dev"})],
)
def test_every_package_that_is_imported_is_declared(folder, parts):
    known = {top_names(package).lower() for package, where in declared().items() if where & parts}
    known |= {name for name, package in COMES_WITH.items() if declared()[package] & parts}
    known |= {"geoeco", "tests", "benchmarks", "conftest", *sys.stdlib_module_names}
    local = {file.stem for file in (ROOT / folder).rglob("*.py")}
    unknown = {
        name: sorted(str(file.relative_to(ROOT)) for file in files)
        for name, files in imported(ROOT / folder).items()
        if name.split(".")[0].lower() not in {k.split(".")[0] for k in known} | local
    }
    assert not unknown


def test_the_base_imports_nothing_from_the_extra_ml():
    ml = {top_names(package) for package, where in declared().items() if where == {"ml"}}
    for name, files in imported(ROOT / "geoeco").items():
        if name.split(".")[0] in ml:
            rooms = {file.relative_to(ROOT / "geoeco").parts[0] for file in files}
            assert rooms <= {"mapping", "models", "training"}, name


def test_the_conda_environment_says_the_same_as_pyproject():
    rows = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert [channel for channel in rows["channels"] if channel != "nodefaults"] == ["conda-forge"]
    flat = [row for row in rows["dependencies"] if isinstance(row, str)]
    flat += [row for rows_of_pip in rows["dependencies"] if isinstance(rows_of_pip, dict) for row in rows_of_pip["pip"]]
    conda = {Requirement(row).name: Requirement(row).specifier for row in flat}
    assert len(conda) == len(flat), "a package is listed twice"

    expected = {
        "python": Requirement(f"python{PROJECT['requires-python']}").specifier,
        "pip": Requirement("pip").specifier,
    }
    for row in [*PROJECT["dependencies"], *(row for rows in EXTRAS.values() for row in rows)]:
        requirement = Requirement(row)
        expected[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement.specifier
    brought = {name for row in expected if row in CONDA_EXTRAS for name in CONDA_EXTRAS[row]}
    assert {name: spec for name, spec in conda.items() if name not in brought} == expected


def test_the_constraints_pin_every_declared_package_at_a_version_that_pyproject_accepts():
    rows = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!-]+", row) for row in rows), "name==version only"
    pinned = {canonicalize_name(row.split("==")[0]): row.split("==")[1] for row in rows}
    assert len(pinned) == len(rows)
    assert list(pinned) == sorted(pinned)
    for row in [*PROJECT["dependencies"], *(row for rows_of_extra in EXTRAS.values() for row in rows_of_extra)]:
        requirement = Requirement(row)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), row


def test_all_is_the_sum_of_the_extras():
    (row,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(row).name == "geoeco"
    assert Requirement(row).extras == set(EXTRAS)


def test_python_is_the_same_everywhere():
    assert PROJECT["requires-python"] == ">=3.12"
    assert (ROOT / ".python-version").read_text().strip() == "3.12"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["ruff"]["target-version"] == "py312"
    assert settings["mypy"]["python_version"] == "3.12"
