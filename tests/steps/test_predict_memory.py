"""What mapping a block holds stays below what the plan says, for small blocks and for large ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import IDLE_WORKER_BYTES  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.training import build_network  # noqa: E402
from tests.mapping.mosaics import bundle_of  # noqa: E402
from tests.steps.mosaic_runs import recipe, write_mosaic  # noqa: E402

RUN = """
import pathlib, sys
from geoeco.steps import Recipe
done = Recipe.parse(pathlib.Path(sys.argv[1]).read_text(), folder=".").run(sys.argv[2])
sys.exit(done.exit_code)
"""


@pytest.mark.slow
def test_the_measured_peak_of_a_block_is_below_its_bound(tmp_path: Path) -> None:
    write_mosaic(tmp_path / "mosaic.tif", shape=(2048, 2048))
    torch.manual_seed(0)
    arguments = {"model": "Unet", "encoder": "resnet18", "in_channels": 3, "num_classes": 4}
    module = build_network("smp", arguments)
    bundle_of(module, architecture="smp", arguments=arguments, size=256).save(tmp_path / "bundle")
    peaks, bounds = [], []
    for block in (512, 2048):
        asked: Recipe = recipe(
            tmp_path,
            "outputs: [class, probability, entropy, confidence]",
            grid=f"like: mosaic, block: {block}",
        )
        (tmp_path / "recipe.yaml").write_text(asked.text)
        # a process of its own: the peak of this one is that of all tests before
        subprocess.run([sys.executable, "-c", RUN, "recipe.yaml", str(block)], cwd=tmp_path, check=True)
        records = (tmp_path / str(block) / "ledger" / "predict" / "blocks").glob("*.json")
        peaks.append(max(json.loads(path.read_text())["peak_bytes"] for path in records))
        bounds.append(IDLE_WORKER_BYTES + max(task.memory_bytes for task in asked.plan().tasks))
        print(f"block {block}: {peaks[-1] / 2**20:.0f} MiB of {bounds[-1] / 2**20:.0f} MiB")
    assert all(peak <= bound for peak, bound in zip(peaks, bounds, strict=True))
    # not by much: what is planned twice over keeps workers away from memory that is free
    assert all(bound < 2 * peak for peak, bound in zip(peaks, bounds, strict=True))
    assert peaks[1] - peaks[0] <= bounds[1] - bounds[0]
