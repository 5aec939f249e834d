"""A run folder in an object store: workers that share no disk write the same outputs as on a local one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from geoeco.cubes import open_cube
from tests.roads.conftest import contents, geoeco

RECIPE = """
geoeco: 1
name: remote
inputs:
  imagery: {catalog: world/catalog.json, period: [2020-12-01, 2021-12-31]}
grid: {crs: EPSG:32631, area: [5.994, 50.796, 6.004, 50.8005], block: 64}
steps:
  - {verb: cube, bands: [B04, B08]}
  - {verb: seasons, years: [2021]}
  - {verb: windows, spacing_m: 300, patch_m: 240}
  - {verb: chips, size: 24, bands: [B04, B08], places_per_shard: 4}
  - {verb: cog, source: seasons, layers: [n_cycles_2021, dates_2021_cycle1]}
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a local S3 server; the environment names its address and keys, as users' environments do."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("runs")
    yield "s3://runs"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_bucket_holds_the_same_bytes_as_a_local_folder(world: Path, tmp_path: Path, bucket: str) -> None:
    import s3fs

    (tmp_path / "world").symlink_to(world)
    (tmp_path / "remote.yaml").write_text(RECIPE)
    for out in ("local", f"{bucket}/remote"):
        done = geoeco("run", "remote.yaml", "--out", out, "--quiet", folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr

    there = s3fs.S3FileSystem()
    there.get("runs/remote", str(tmp_path / "fetched"), recursive=True)
    made = ("cube", "seasons", "windows", "chips", "cog")
    assert contents(tmp_path / "fetched", *made) == contents(tmp_path / "local", *made)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("fetched", "local")]
    assert manifests[0]["tasks"] == manifests[1]["tasks"]
    assert dict(open_cube(f"{bucket}/remote/cube/cube.zarr").sizes)["band"] == 2
    assert os.environ["AWS_ENDPOINT_URL"] not in json.dumps(manifests)
