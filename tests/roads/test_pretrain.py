"""The recipe of pretraining runs as it stands: scenes, chips, a training that is killed and goes on, a bundle."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("torch", reason="needs the extra ml")

from tests.roads.conftest import copy_recipe, geoeco, start, until


def test_pretraining_from_scenes_to_a_bundle_killed_on_the_way(world: Path, tmp_path: Path) -> None:
    (tmp_path / "world").symlink_to(world)
    copy_recipe("ssl4eco_pretrain", tmp_path)
    # images every ten days: fewer places have a clear one in each season
    arguments = ["run", "ssl4eco_pretrain.yaml", "--out", "out", "--quiet"]
    for setting in ("steps.1.min_clear=0.5", "steps.2.epochs=2", "steps.2.checkpoint_every=3"):
        arguments += ["--set", setting]
    out = tmp_path / "out"
    checkpoint = out / "pretrain" / "checkpoints" / "last.ckpt"
    process = start(*arguments, folder=tmp_path)
    until(checkpoint.exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = geoeco(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    curve = pd.read_csv(out / "pretrain" / "logs" / "metrics.csv")
    item = json.loads((out / "pretrain" / "bundle" / "mlm.json").read_text())
    record = item["properties"]["geoeco:bundle"]
    assert record["bands"] == ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "ndvi"]
    assert curve["step"].tolist() == list(range(2 * (record["notes"]["locations"] // 8)))
    assert curve["loss"].notna().all()
    assert "data:image/png;base64" in (out / "report.html").read_text()
