"""The verbs of crowns: from an orthomosaic to species on the map, at two scales; what they leave and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
import shapely
from pystac.extensions.table import TableExtension

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.engine import RunStore  # noqa: E402
from geoeco.errors import GeoecoError, InputError, RecipeError  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.steps.crown_alignment import CrownAlignmentSettings  # noqa: E402
from geoeco.steps.train_crowns import ExposureSettings, TrainCrownsSettings  # noqa: E402
from geoeco.training import CrownPrediction, OutlierMixing, align_crowns, train_crowns  # noqa: E402
from tests.outputs.stac_schemas import schema_errors  # noqa: E402
from tests.outputs.test_vector_styles import categories, style_of  # noqa: E402
from tests.steps.crown_world import draw_world  # noqa: E402
from tests.steps.keywords import keywords  # noqa: E402

HEAD = """
geoeco: 1
name: crowns
seed: 3
inputs:
  tables: {mosaic: mosaic.tif, chm: chm.tif, crowns: crowns.gpkg, areas: areas.gpkg, photos: photos.gpkg}
steps:"""
RECIPE = f"""{HEAD}
  - verb: uav_chips
    mosaic: mosaic
    kind: crown
    chip_m: 2.4
    buffer_m: 0.1
    crowns: crowns
    crown_class: species
    chm: chm
    split: {{areas: areas}}
  - verb: crown_alignment
    photos: photos
    backbone: test_resnet
    closeup_size: 24
    epochs: 1
    batch: 8
    device: cpu
  - verb: train_crowns
    encoder: crown_alignment
    epochs: 2
    batch: 6
    lr: 0.01
    device: cpu
  - verb: classify_crowns
    bundle: train_crowns
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return draw_world(tmp_path_factory.mktemp("world"))


def recipe(folder: Path, *settings: str, text: str = RECIPE) -> Recipe:
    return Recipe.parse(text, folder=str(folder), settings=list(settings))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return recipe(folder).run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def crowns(run) -> gpd.GeoDataFrame:
    return run.open("classify_crowns")


def test_a_run_leaves_bundles_scores_pictures_and_a_map_of_crowns_in_the_manifest(run):
    assert run.exit_code == 0
    manifest = run.store.read_bytes("manifest.json").decode()
    for name in (
        *("crown_alignment/bundle/mlm.json", "crown_alignment/pairs.csv", "crown_alignment/scores.png"),
        *("train_crowns/bundle/model.safetensors", "train_crowns/bundle/applicability.safetensors"),
        *("train_crowns/evaluation.json", "train_crowns/confusion.png", "train_crowns/learning_curve.png"),
        *("classify_crowns/crowns.gpkg", "classify_crowns/crowns.json", "classify_crowns/crowns.png"),
    ):
        assert f"{name}" in manifest, name
    assert run.open("crown_alignment").task == "embedding"
    bundle = run.open("train_crowns")
    assert bundle.classes == ("birch", "larch", "oak")
    assert bundle.notes["encoder"]["training_hash"] == run.open("crown_alignment").training_hash


def test_the_crowns_have_a_stac_item_and_the_colours_of_their_species(run, crowns):
    folder = Path(run.store.url("classify_crowns"))
    (item,) = pystac.Catalog.from_file(str(folder / "catalog.json")).get_items()
    document = json.loads((folder / "crowns.json").read_text())
    assert schema_errors(document) == []
    held = TableExtension.ext(item)
    assert [column.name for column in held.columns] == ["fid", "geom", *crowns.columns.drop("geometry")]
    assert all(column.description for column in held.columns[2:])
    assert held.row_count == len(crowns)
    assert item.properties["start_datetime"][:10] == item.properties["end_datetime"][:10] == "2026-07-01"
    (model,) = [link["href"] for link in document["links"] if link["rel"] == "derived_from"]
    bundle = json.loads((folder / model).read_text())
    assert bundle["assets"]["model"]["file:checksum"] == f"1220{item.properties['geoeco:model_sha256']}"
    assert list(categories(style_of(folder / "crowns.gpkg"))) == ["birch", "larch", "oak"]


def test_each_crown_is_on_the_map_once_with_its_doubt_its_height_and_its_ground(run, crowns, folder):
    assert crowns.crs.to_epsg() == 32652
    assert crowns["crown_id"].tolist() == list(range(1, 37))
    assert set(crowns["class"]) <= {"birch", "larch", "oak"}
    given = gpd.read_file(folder / "crowns.gpkg")
    assert shapely.equals_exact(crowns.geometry.to_numpy(), given.geometry.to_numpy(), 1e-6).all() or (
        shapely.area(shapely.symmetric_difference(crowns.geometry.to_numpy(), given.geometry.to_numpy())).max() < 1e-6
    )
    assert crowns["labelled"].tolist() == given["species"].tolist()
    # the scale of UTM at its middle is 0.9996
    assert np.allclose(crowns["area_m2"], shapely.area(given.geometry.to_numpy()) / 0.9996**2, rtol=1e-4)
    assert np.allclose(crowns["height_p95"], 4 + crowns["crown_id"] / 10, atol=1e-4)
    assert crowns["score"].between(1 / 3, 1).all()
    assert crowns["entropy"].between(0, 1).all()
    assert set(crowns["aoa"]) <= {0, 1}
    assert (crowns["di"] >= 0).all()
    assert set(crowns["date"]) == {"2026-07-01"}
    columns = (crowns["crown_id"] - 1) % 6
    assert crowns["split"].tolist() == [("train", "train", "train", "val", "test", "test")[c] for c in columns]


def test_the_crown_beside_ground_that_was_not_flown_over_is_flagged_and_no_other(crowns):
    assert crowns.loc[crowns["edge"].astype(bool), "crown_id"].tolist() == [6]


def test_a_store_and_a_bundle_serve_outside_their_run_and_low_crowns_are_left_out(folder, run, tmp_path):
    text = (
        HEAD
        + f"""
  - verb: classify_crowns
    store: {run.store.url("uav_chips/uav.zarr")}
    bundle: {run.store.url("train_crowns/bundle")}
    crowns: crowns
    min_height_m: 6.05
"""
    )
    found = recipe(folder, text=text).run(tmp_path / "run")
    assert found.open("classify_crowns")["crown_id"].tolist() == list(range(21, 37))
    links = json.loads((tmp_path / "run/classify_crowns/crowns.json").read_text())["links"]
    (model,) = [link["href"] for link in links if link["rel"] == "derived_from"]
    assert (tmp_path / "run/classify_crowns" / model).read_bytes() == run.store.read_bytes(
        "train_crowns/bundle/mlm.json"
    )
    assert json.loads((tmp_path / "run/ledger/classify_crowns/crowns/all.json").read_text())["stats"]["too_low"] == 20
    with pytest.raises(GeoecoError, match="does not hold the outlines"):
        recipe(folder, "steps.0.crowns=null", text=text).plan()


def test_species_that_no_file_can_name_are_known_before_the_training(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    crowns = gpd.read_file(folder / "crowns.gpkg")
    crowns["species"] = crowns["species"].replace("birch", "birch\ufffe")
    (other / "crowns.gpkg").unlink()
    crowns.to_file(other / "crowns.gpkg", layer="crowns")
    with pytest.raises(GeoecoError, match="control characters stand in the name of a class"):
        recipe(other).plan()


def test_settings_of_the_steps_are_those_of_the_functions():
    for function, settings, apart in (
        (train_crowns, TrainCrownsSettings, {"store", "encoder", "name", "weights"}),
        (align_crowns, CrownAlignmentSettings, {"store", "name", "compare", "photos"}),
    ):
        known, fields = keywords(function), settings.model_fields
        shared = [name for name in known if name in fields and name not in apart]
        assert len(shared) > 15
        for name in shared:
            assert fields[name].default == known[name], name
    mixing = OutlierMixing()
    fields = ExposureSettings.model_fields
    assert (fields["op"].default, fields["beta"].default, fields["alpha"].default) == ("mixup", mixing.beta, None)


def test_what_changes_the_result_changes_the_hash_and_nothing_else_does(folder, tmp_path):
    def hashes(*settings, of=folder):
        return [step.hash for step in recipe(of, *settings).plan().steps]

    base = hashes()
    assert hashes("steps.2.device=auto", "steps.2.workers=1", "steps.3.batch=3") == base
    assert hashes("steps.2.jitter=0.2")[2] != base[2]
    assert hashes("steps.1.factor=3")[1:] != base[1:]
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "photos.gpkg").unlink()
    gpd.read_file(folder / "photos.gpkg").head(20).to_file(other / "photos.gpkg")
    changed = hashes(of=other)
    assert changed[0] == base[0]
    assert changed[1] != base[1]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("steps.2.backbone=resnet18",), "leave backbone and weights out"),
        (("steps.1.chips=uav_chips", "steps.1.store=x"), "either chips"),
        (("steps.2.outlier_exposure={op: mixup}",), "either chips"),
        (("steps.2.jitter=1",), "jitter"),
        (("steps.3.bundle=null",), "bundle"),
    ],
)
def test_recipes_that_cannot_work_are_refused_when_read(folder, settings, what):
    with pytest.raises(RecipeError, match=what):
        recipe(folder, *settings)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("steps.0.kind=grid",), "are grid chips, not those of crowns"),
        (("steps.0.crown_class=null",), "are of 0 species|are of 1 species"),
        (("steps.1.photos=crowns",), "no column 'photo'"),
        (("steps.1.backbone=resnet5",), "no network 'resnet5'"),
        (("steps.2.size=8",), "smaller than the chips"),
        (("steps.2.encoder=nothing",), "no model bundle"),
        (("steps.3.bundle=crown_alignment",), "not for classes"),
        (("steps.1.compare={aligned: train_crowns}",), "no earlier step|name of the step's own"),
    ],
)
def test_what_does_not_fit_is_refused_when_planning(folder, settings, what):
    with pytest.raises(GeoecoError, match=what):
        recipe(folder, *settings).plan()


def test_outliers_are_the_chips_of_their_own_step_where_the_crowns_are_those_of_a_store(
    run, folder, tmp_path, monkeypatch
):
    taken = []

    def stopping(store, *_, **options):
        taken.extend([store, options["outliers"]])
        raise InputError("seen enough")

    monkeypatch.setattr("geoeco.training.train_crowns", stopping)
    steps = f"""{HEAD}
  - {{verb: uav_chips, name: ground, mosaic: mosaic, kind: grid, chip_m: 2.4}}
  - verb: train_crowns
    store: {run.store.url("uav_chips/uav.zarr")}
    outlier_exposure: {{chips: ground}}
    device: cpu
"""
    done = recipe(folder, text=steps).run(tmp_path / "run")
    assert taken == [run.store.url("uav_chips/uav.zarr"), done.store.url("ground/uav.zarr")]


def test_a_photo_outside_the_folder_of_its_table_is_refused_when_planning(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "photos.gpkg").unlink()
    gpd.read_file(folder / "photos.gpkg").assign(photo="/etc/hostname").to_file(other / "photos.gpkg")
    with pytest.raises(GeoecoError, match="does not lie in the folder"):
        recipe(other).plan()


def test_a_training_that_was_stopped_goes_on_from_its_last_checkpoint(folder, run, tmp_path, monkeypatch):
    text = (
        HEAD
        + f"""
  - verb: train_crowns
    store: {run.store.url("uav_chips/uav.zarr")}
    encoder: {run.store.url("crown_alignment/bundle")}
    epochs: 2
    batch: 6
    lr: 0.01
    checkpoint_every: 2
    device: cpu
"""
    )
    out = str(tmp_path / "run")
    seen, step = [], CrownPrediction.training_step

    def stopping(self, batch, batch_idx):
        seen.append(self.global_step)
        if seen == [0, 1, 2, 3]:
            raise InputError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CrownPrediction, "training_step", stopping)
    assert recipe(folder, text=text).run(out).exit_code != 0
    assert not RunStore(out).exists("train_crowns/bundle/mlm.json")
    assert recipe(folder, text=text).run(out).exit_code == 0
    assert seen == [0, 1, 2, 3, 2, 3, 4, 5]
    for name in ("bundle/model.safetensors", "logs/metrics.csv", "logs/validation.csv", "evaluation.json"):
        found, expected = (store.read_bytes(f"train_crowns/{name}") for store in (RunStore(out), run.store))
        # the encoder goes by the name of its bundle
        assert found == expected, name
