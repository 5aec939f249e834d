"""Whatever dies or breaks, a run that goes on ends with the bytes of an undisturbed one, and does nothing twice."""

from __future__ import annotations

import csv
import http.server
import json
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from tests.roads.conftest import cluster, contents, copy_world, geoeco, records, start, until

RECIPE = """
geoeco: 1
name: lost
inputs:
  imagery: {catalog: world/catalog.json, period: [2020-11-01, 2022-01-31]}
grid: {crs: EPSG:32631, area: [5.994, 50.796, 6.006, 50.804], block: 48}
steps:
  - {verb: cube, bands: [B04, B08]}
  - {verb: seasons, years: [2021]}
  - {verb: cog, layers: [n_cycles_2021, dates_2021_cycle1, size_2021_cycle1], quicklooks: false}
"""
MADE = ("cube", "seasons", "cog")


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder, world)
    done = geoeco("run", "lost.yaml", "--out", "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(records(folder / "run", "cube/blocks")) >= 6
    return folder / "run"


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    prepare(tmp_path, world)
    return tmp_path


def prepare(folder: Path, world: Path) -> None:
    (folder / "world").symlink_to(world)
    (folder / "lost.yaml").write_text(RECIPE)


def clearest(world: Path) -> str:
    """Id of the clearest summer scene of the western tile: its pixels are surely read."""
    with (world / "truth" / "scenes.csv").open() as file:
        scenes = [
            row for row in csv.DictReader(file) if row["tile"] == "31UGS" and "2021-05" <= row["solar_day"] < "2021-09"
        ]
    return min(scenes, key=lambda row: (-float(row["valid"]), float(row["cloud"]) + float(row["shadow"])))["id"]


def quarantine(run: Path) -> list[dict[str, str]]:
    return json.loads((run / "quarantine.json").read_text())


def test_a_killed_worker_costs_nothing_but_time(folder: Path, undisturbed: Path) -> None:
    with cluster(2, folder) as (address, workers):
        driver = start("run", "lost.yaml", "--out", "run", "--cluster", address, "--quiet", folder=folder)
        until(lambda: len(records(folder / "run", "cube/blocks")) >= 1, driver)
        workers[0].send_signal(signal.SIGKILL)
        assert driver.wait() == 0, (folder / "driver.log").read_text()
    assert contents(folder / "run", *MADE) == contents(undisturbed, *MADE)
    assert quarantine(folder / "run") == []


def test_a_killed_driver_resumes_and_does_nothing_twice(folder: Path, undisturbed: Path) -> None:
    driver = start("run", "lost.yaml", "--out", "run", "--quiet", folder=folder)
    until(lambda: len(records(folder / "run", "cube/blocks")) >= 3, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = records(folder / "run", "*/*")
    assert not (folder / "run" / "cog").exists()
    done = geoeco("resume", "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    after = records(folder / "run", "*/*")
    assert {name: after[name] for name in before} == before
    assert contents(folder / "run", *MADE) == contents(undisturbed, *MADE)


def test_files_that_were_deleted_or_cut_short_are_made_again(folder: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, folder / "run")
    run = folder / "run"
    for number, store in enumerate(("cube/cube.zarr/reflectance", "cube/cube.zarr/scl", "seasons/rasters.zarr/peak")):
        shard = min(path for path in (run / store / "c").rglob("*") if path.is_file())
        if number == 0:
            shard.unlink()
        else:
            shard.write_bytes(shard.read_bytes()[:50])
    (run / "cog" / "catalog.json").write_text("{")
    (min(run.glob("ledger/seasons/blocks/*.json"))).write_text('{"id": "seas')
    done = geoeco("resume", "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(run, *MADE) == contents(undisturbed, *MADE)
    manifest = json.loads((run / "manifest.json").read_text())
    assert not any(output["kind"] == "part" for task in manifest["tasks"] for output in task["outputs"])


def test_a_corrupt_file_is_named_and_its_blocks_alone_are_done_again(
    world: Path, tmp_path: Path, undisturbed: Path
) -> None:
    copy_world(world, tmp_path / "world")
    (tmp_path / "lost.yaml").write_text(RECIPE)
    victim = tmp_path / "world" / "sentinel-2-l2a" / clearest(world) / "B04.tif"
    whole = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(whole[: len(whole) // 10])

    done = geoeco("run", "lost.yaml", "--out", "run", "--quiet", folder=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    bad = quarantine(tmp_path / "run")
    assert {(entry["item"], entry["asset"]) for entry in bad} == {(victim.parent.name, "B04")}
    assert all(entry["code"] == "asset-corrupt" for entry in bad)

    victim.write_bytes(whole)
    good = {
        name: text
        for name, text in records(tmp_path / "run", "cube/*").items()
        if json.loads(text).get("state") == "done" and "/blocks/" in name
    }
    done = geoeco("resume", "run", "--quiet", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert quarantine(tmp_path / "run") == []
    after = records(tmp_path / "run", "cube/*")
    assert {name: after[name] for name in good} == good
    assert contents(tmp_path / "run", *MADE) == contents(undisturbed, *MADE)


class Archive(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with range requests, as archives do; some paths may be gone."""

    gone: ClassVar[set[str]] = set()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.path in self.gone or not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and int(wanted[1]) < len(content):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Type", "application/json" if path.suffix == ".json" else "image/tiff")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def archive(world: Path) -> Iterator[str]:
    Archive.gone = set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Archive, directory=str(world)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_asset_that_is_gone_and_comes_back(folder: Path, world: Path, archive: str) -> None:
    item = clearest(world)
    Archive.gone = {f"/sentinel-2-l2a/{item}/B08.tif"}
    options = [
        "--set",
        f"inputs.imagery.catalog={archive}/catalog.json",
        "--set",
        "inputs.imagery.period=[2021-04-01, 2021-09-30]",
        "--set",
        "grid.block=128",
        "--quiet",
    ]
    done = geoeco("run", "lost.yaml", "--out", "run", *options, folder=folder)
    assert done.returncode == 3, done.stdout + done.stderr
    assert {(entry["item"], entry["asset"], entry["code"]) for entry in quarantine(folder / "run")} == {
        (item, "B08", "asset-missing")
    }
    Archive.gone = set()
    done = geoeco("resume", "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    done = geoeco("run", "lost.yaml", "--out", "other", *options, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(folder / "run", *MADE) == contents(folder / "other", *MADE)


@pytest.fixture
def small_disk(tmp_path: Path, undisturbed: Path) -> Iterator[Path]:
    """A disk that holds two thirds of the run and can be made larger."""
    whole = sum(-(-path.stat().st_size // 4096) * 4096 for path in undisturbed.rglob("*") if path.is_file())
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={whole * 2 // 3}", "geoeco-test", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("mounting a small tmpfs needs root; tests/engine fills a disk by a stub")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(folder: Path, small_disk: Path, undisturbed: Path) -> None:
    done = geoeco("run", "lost.yaml", "--out", small_disk / "run", "--quiet", folder=folder)
    assert done.returncode in (1, 3), done.stdout + done.stderr
    assert "full" in done.stdout + done.stderr
    before = {
        name: text
        for name, text in records(small_disk / "run", "*/*").items()
        if json.loads(text).get("state") == "done"
    }
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = geoeco("resume", small_disk / "run", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    after = records(small_disk / "run", "*/*")
    assert {name: after[name] for name in before} == before
    assert contents(small_disk / "run", *MADE) == contents(undisturbed, *MADE)


def test_an_edited_recipe_keeps_what_it_can_and_replaces_only_when_told(folder: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, folder / "run")
    made, known = contents(folder / "run", *MADE), records(folder / "run", "*/*")

    edited = ["run", "lost.yaml", "--out", "run", "--quiet", "--set", "steps.2.compress=DEFLATE"]
    refused = geoeco(*edited, folder=folder)
    assert refused.returncode == 1
    assert "cog" in refused.stdout + refused.stderr
    assert "--rebuild" in refused.stdout + refused.stderr
    assert contents(folder / "run", *MADE) == made

    done = geoeco(*edited, "--rebuild", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    now, after = contents(folder / "run", *MADE), records(folder / "run", "*/*")
    assert {n: d for n, d in now.items() if not n.startswith("cog/")} == {
        n: d for n, d in made.items() if not n.startswith("cog/")
    }
    assert {n: t for n, t in after.items() if "/cog/" not in n} == {n: t for n, t in known.items() if "/cog/" not in n}
    changed = {n for n in now if n.endswith(".tif") and now[n] != made[n]}
    assert len(changed) == 3

    other_bands = geoeco(
        "run", "lost.yaml", "--out", "run", "--quiet", "--set", "steps.0.bands=[B03, B04, B08]", folder=folder
    )
    assert other_bands.returncode == 1
    assert "cube" in other_bands.stdout + other_bands.stderr
    assert contents(folder / "run", *MADE) == now
    assert (folder / "run" / "cube").is_dir()
