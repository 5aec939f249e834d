"""The same recipe gives the same rasters on any cluster, with any number of workers, in blocks of any size."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.roads.conftest import cluster, contents, geoeco

RECIPE = """
geoeco: 1
name: same
inputs:
  imagery: {catalog: world/catalog.json, period: [2020-11-01, 2022-01-31]}
grid: {crs: EPSG:32631, area: [5.992, 50.794, 6.006, 50.806], block: 64}
steps:
  - {verb: cube, bands: [B04, B08]}
  - {verb: seasons, years: [2021]}
  - {verb: cog}
"""


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same")
    (folder / "world").symlink_to(world)
    (folder / "same.yaml").write_text(RECIPE)
    done = geoeco("run", "same.yaml", "--out", "inline64", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def check(folder: Path, name: str, *options: object) -> None:
    done = geoeco("run", "same.yaml", "--out", name, "--quiet", *options, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = contents(folder / "inline64", "cog")
    assert sum(file.endswith(".tif") for file in expected) == 11
    assert contents(folder / name, "cog") == expected


def test_one_block_instead_of_many(folder: Path) -> None:
    check(folder, "inline256", "--set", "grid.block=256")


@pytest.mark.parametrize(("workers", "block"), [(1, 256), (2, 64)])
def test_local_cluster(folder: Path, workers: int, block: int) -> None:
    check(folder, f"local{workers}", "--cluster", "local", "--workers", workers, "--set", f"grid.block={block}")


def test_cluster_by_address(folder: Path, tmp_path: Path) -> None:
    with cluster(2, tmp_path) as (address, workers):
        check(folder, "tcp2", "--cluster", address, "--set", "grid.block=256")
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        check(folder, "tcp1", "--cluster", address)
