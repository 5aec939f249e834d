"""Habitat networks on the two LoveDA tiles: in full by `make experiments`, and a few windows with the other tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from tests.experiments.loveda import NETWORKS, SMOKE, Setting, make_store, run, table  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results" / "loveda.json"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.real
def test_real_tiles_go_from_pixels_to_scores_on_held_out_blocks(real_data, tmp_path):
    store = make_store(real_data("landcover/loveda_tiles"), tmp_path, SMOKE)
    networks = [
        ("DWFF, tiny", "dwff", {"backbone": "test_vit"}, 1e-3),
        ("stack", "conv_stack", {"width": 8}, 3e-3),
    ]
    found = run(store, tmp_path / "runs", SMOKE, networks)
    assert min(found["chips"].values()) > 0
    assert sum(found["chips"].values()) == 2 * 8 * 8
    for scores in found["networks"].values():
        assert sum(row["support"] for row in scores["classes"]) == found["chips"]["test"] * 32 * 32
        assert 0 < scores["test"]["accuracy"] < 1
    assert "agriculture" in table(found)


@pytest.mark.experiment
def test_scores_on_held_out_blocks(real_data, tmp_path):
    root = Path(os.environ.get("GEOECO_EXPERIMENTS") or tmp_path) / "loveda"
    setting = Setting()
    store = make_store(real_data("landcover/loveda_tiles"), root, setting)
    found = run(store, root / "runs", setting, NETWORKS)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    page = DOCS / "habitat-models.md"
    before, rest = page.read_text().split("<!-- loveda -->\n")
    _, after = rest.split("<!-- /loveda -->\n")
    counts = ", ".join(f"{count} {part}" for part, count in found["chips"].items())
    told = f"Chips of {setting.chip_m:g} m: {counts}; {setting.epochs} epochs, seed {setting.seed}."
    page.write_text(f"{before}<!-- loveda -->\n{told}\n\n{table(found)}\n<!-- /loveda -->\n{after}")
    print(table(found))
    # a U-Net learns something of these tiles; of a frozen random transformer nothing is claimed
    assert found["networks"][NETWORKS[1][0]]["test"]["mcc"] > 0.1
