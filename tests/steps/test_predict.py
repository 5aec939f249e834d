"""The verb ``predict``: the map of a recipe is the map of the function, in files that open right."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from affine import Affine
from rio_cogeo import cog_validate

from geoeco.errors import GeoecoError, GridError, InputError, RecipeError
from geoeco.mapping import predict
from geoeco.models import DWFFNet
from geoeco.sensors.orthomosaic import describe_orthomosaic
from geoeco.training import ModelBundle
from tests.mapping.mosaics import CODES, NAMES, bundle_of, conv_bundle
from tests.steps.mosaic_runs import COLOURS, recipe, write_bundle, write_mosaic

OUTPUTS = "outputs: [class, probability, entropy, confidence, valid]"
COG = "  - {verb: cog, layers: [class, probability], quicklooks: false}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a mosaic and two bundles. Read only."""
    folder = tmp_path_factory.mktemp("mosaic")
    write_mosaic(folder / "mosaic.tif")
    write_bundle(folder / "bundle")
    write_bundle(folder / "other", seed=1)
    return folder


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = recipe(place, f"window: 48, {OUTPUTS}", more=COG).run(out)
    assert done.exit_code == 0
    return out


def map_of(out: Path) -> xr.Dataset:
    from geoeco.cubes import open_rasters

    return open_rasters(str(out / "predict" / "rasters.zarr")).load()


def test_the_map_of_a_recipe_is_the_map_of_the_function(place: Path, run: Path):
    made = map_of(run)
    bundle = ModelBundle.load(place / "bundle")
    outputs = ("class", "probability", "entropy", "confidence", "valid")
    expected = predict(place / "mosaic.tif", bundle, window=48, outputs=outputs, progress=False, threads=1)
    for name in outputs:
        assert made[name].to_numpy().tobytes() == expected[name].to_numpy().tobytes(), name
        assert made[name].attrs["long_name"] == expected[name].attrs["long_name"]
    assert made.odc.geobox == expected.odc.geobox == describe_orthomosaic(place / "mosaic.tif").geobox


def test_the_size_of_blocks_changes_no_byte_of_a_file(place: Path, run: Path, tmp_path: Path):
    asked = recipe(place, f"window: 48, {OUTPUTS}", grid="like: mosaic, block: 100", more=COG)
    assert asked.run(tmp_path / "other").exit_code == 0
    names = ("class.tif", "class.tif.aux.xml", "probability.tif", "class.qml", "class.json")
    for name in names:
        assert (tmp_path / "other" / "cog" / name).read_bytes() == (run / "cog" / name).read_bytes(), name


def test_the_class_map_opens_right(place: Path, run: Path):
    path = run / "cog" / "class.tif"
    assert cog_validate(path)[0]
    with rasterio.open(path) as file, rasterio.open(place / "mosaic.tif") as mosaic:
        assert (file.transform, file.crs, file.shape) == (mosaic.transform, mosaic.crs, mosaic.shape)
        assert (file.dtypes[0], file.nodata) == ("uint8", 255)
        assert set(np.unique(file.read(1))) <= {*CODES, 255}
        assert ((file.read(1) != 255) == (mosaic.dataset_mask() != 0)).all()
        colours = file.colormap(1)
        for code, colour in zip(CODES, COLOURS, strict=True):
            assert "#{:02x}{:02x}{:02x}".format(*colours[code][:3]) == colour
        tags = file.tags()
    assert tags["GEOECO_PERIOD"] == "2024-07-03/2024-07-03"
    assert tags["TIFFTAG_DATETIME"].startswith("2024:07:03")
    assert tags["GEOECO_MODEL"] == "geoeco-stack-0"
    weights = json.loads((place / "bundle" / "mlm.json").read_text())["assets"]["model"]["file:checksum"]
    assert weights.endswith(tags["GEOECO_MODEL_SHA256"])
    table = (run / "cog" / "class.tif.aux.xml").read_text()
    assert all(name in table for name in NAMES)


def test_bands_of_the_probabilities_bear_the_names_of_the_classes(run: Path):
    with rasterio.open(run / "cog" / "probability.tif") as file:
        assert file.descriptions == NAMES
        assert file.nodata == -9999


def test_items_lead_to_the_mosaic_and_the_model(place: Path, run: Path):
    item = json.loads((run / "cog" / "class.json").read_text())
    links = [run / "cog" / link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    documents = [json.loads(link.read_text()) for link in links]
    assert [document["id"] for document in documents] == ["mosaic", "geoeco-stack-0"]
    mosaic = documents[0]
    assert mosaic["assets"]["image"]["href"] == str(place / "mosaic.tif")
    assert mosaic["properties"]["geoeco:fingerprint"] == describe_orthomosaic(place / "mosaic.tif").fingerprint
    assert mosaic["properties"]["proj:code"] == "EPSG:32652"
    assert item["properties"]["start_datetime"] == "2024-07-03T00:00:00Z"


def test_classes_and_entropy_are_drawn(run: Path):
    manifest = json.loads((run / "manifest.json").read_text())
    assert "predict/class.png" in json.dumps(manifest)
    for name in ("class", "entropy"):
        assert (run / "predict" / f"{name}.png").stat().st_size > 5000


def test_an_ensemble_with_the_weights_of_the_scene(tmp_path: Path):
    write_mosaic(tmp_path / "mosaic.tif", shape=(90, 100))
    torch.manual_seed(0)
    arguments = {"backbone": "test_vit", "num_classes": 4, "taps": 2}
    bundle_of(DWFFNet(**arguments), architecture="dwff", arguments=arguments, size=64).save(tmp_path / "dwff")
    write_bundle(tmp_path / "stack")
    asked = recipe(
        tmp_path,
        "bundle: [dwff, stack], weights: scene, outputs: [class, spread], batch: 2, date: 2023-05-04",
        grid="like: mosaic, block: 64",
    )
    done = asked.run(tmp_path / "run")
    assert done.exit_code == 0
    made = map_of(tmp_path / "run")
    bundles = [ModelBundle.load(tmp_path / name) for name in ("dwff", "stack")]
    settings = {"weights": "scene", "batch": 2, "threads": 1, "progress": False}
    expected = predict(tmp_path / "mosaic.tif", bundles, outputs=("class", "spread"), **settings)
    for name in ("class", "spread"):
        assert made[name].to_numpy().tobytes() == expected[name].to_numpy().tobytes()
    profile = json.loads((tmp_path / "run" / "predict" / "layers.json").read_text())["class"]
    assert profile["derived_from"] == [f"predict/{name}.json" for name in ("mosaic", "model_1", "model_2")]
    assert json.loads((tmp_path / "run" / "predict" / "mosaic.json").read_text())["properties"][
        "start_datetime"
    ].startswith("2023-05-04")


def test_a_coarser_map_lies_on_whole_multiples_of_the_mosaic(tmp_path: Path):
    write_mosaic(tmp_path / "mosaic.tif", shape=(131, 150))
    write_bundle(tmp_path / "bundle", resolution=0.2)
    assert recipe(tmp_path, grid="like: mosaic, resolution: 0.2, block: 64").run(tmp_path / "run").exit_code == 0
    made = map_of(tmp_path / "run")
    assert made["class"].shape == (66, 75)
    assert made.odc.geobox.affine == Affine(0.2, 0, 500_000, 0, -0.2, 5_300_000)
    bundle = ModelBundle.load(tmp_path / "bundle")
    expected = predict(tmp_path / "mosaic.tif", bundle, progress=False, threads=1)
    assert expected.odc.geobox == made.odc.geobox
    assert (expected["class"].to_numpy() == made["class"].to_numpy()).all()


# --- plans -----------------------------------------------------------------------------------------------------------


def hashed(asked) -> str:
    return asked.plan().steps[0].hash


def test_another_mosaic_or_bundle_is_another_step(place: Path, tmp_path: Path):
    for name in ("bundle", "other"):
        shutil.copytree(place / name, tmp_path / name)
    shutil.copy(place / "mosaic.tif", tmp_path)
    first = hashed(recipe(tmp_path))
    assert hashed(recipe(tmp_path)) == first == hashed(recipe(tmp_path, "device: cpu"))
    assert hashed(recipe(tmp_path, "bundle: other")) != first
    shutil.copytree(tmp_path / "other", tmp_path / "bundle", dirs_exist_ok=True)
    assert hashed(recipe(tmp_path)) != first
    shutil.copytree(place / "bundle", tmp_path / "bundle", dirs_exist_ok=True)
    assert hashed(recipe(tmp_path)) == first
    write_mosaic(tmp_path / "mosaic.tif", seed=9)
    assert hashed(recipe(tmp_path)) != first


def test_a_plan_asks_for_more_memory_for_larger_blocks_windows_and_outputs(place: Path):
    def bound(predict: str = "", block: int = 256) -> int:
        return recipe(place, predict, grid=f"like: mosaic, block: {block}").plan().peak_memory_bytes

    assert bound() < bound(block=1024)
    assert bound("window: 64") < bound("window: 128")
    assert bound() < bound("outputs: [class, probability]")
    assert bound() < bound("batch: 16")
    assert bound() < bound("bundle: [bundle, other]")


def refused(told: str, make, kind: type[GeoecoError] = InputError) -> None:
    with pytest.raises(kind) as error:
        make()
    assert told in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("reed", "reed", "mud", "sand"), "the same name twice: reed"),
        (("reed", " ", "mud", "sand"), "a class has no name"),
        (("reed", "a\ufffe", "mud", "sand"), "control characters"),
    ],
)
def test_classes_that_no_file_can_name_are_known_before_the_map_is_made(
    place: Path, tmp_path: Path, names: tuple[str, ...], told: str
):
    shutil.copy(place / "mosaic.tif", tmp_path)
    dataclasses.replace(conv_bundle(name="stack"), classes=names).save(tmp_path / "bundle")
    refused(told, recipe(tmp_path).plan)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("outputs: [class, spread]", "one model has no spread"),
        ("bundle: [bundle, bundle]", "a list of different bundles"),
        ("outputs: [class, class]", "stands twice"),
        ("outputs: [habitat]", "expected"),
        ("date: 2024-13-45", "month must be in 1..12"),
        ("augment: [mirror]", "mirror"),
    ],
)
def test_settings_that_mean_nothing_are_told_with_their_line(place: Path, settings: str, told: str):
    refused(told, lambda: recipe(place, settings), RecipeError)


def test_what_does_not_fit_is_refused_when_planned(place: Path):
    refused("leaves a halo of 2", lambda: recipe(place, "window: 32, overlap: 4, blend: core").plan())
    refused("have no table 'mosaik'", lambda: _of_another_name(place))
    refused("there is no model bundle", lambda: recipe(place, "bundle: nowhere").plan())
    refused("not that of the mosaic", lambda: recipe(place, grid="area: [129, 47, 129.001, 47.001]").plan(), GridError)
    refused("leave out area and crs", lambda: recipe(place, grid="like: mosaic, crs: 4326"), RecipeError)
    refused("cannot be read", lambda: recipe(place, grid="like: nothing.tif").plan(), GridError)
    refused("trained on pixels of 0.1 m", lambda: recipe(place, grid="like: mosaic, resolution: 0.5").plan())


def _of_another_name(place: Path) -> None:
    from geoeco.steps import Recipe

    text = recipe(place).text.replace("verb: predict, mosaic: mosaic", "verb: predict, mosaic: mosaik")
    Recipe.parse(text, folder=str(place)).plan()


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({"crs": None}, "CRS"),
        ({"crs": "EPSG:4326", "transform": Affine(1e-6, 0, 129, 0, -1e-6, 47)}, "metre"),
        ({"transform": Affine(0.1, 0.02, 500_000, 0.02, -0.1, 5_300_000)}, "rotated"),
        ({"transform": Affine(0.1, 0, 500_000, 0, 0.1, 5_300_000)}, "north-up"),
        ({"transform": Affine(0.1, 0, 500_000, 0, -0.3, 5_300_000)}, "not square"),
        ({"count": 2, "photometric": "MINISBLACK"}, "needs the band"),
    ],
)
def test_mosaics_that_cannot_be_mapped_are_refused_when_planned(place: Path, tmp_path: Path, profile: dict, told: str):
    write_mosaic(tmp_path / "mosaic.tif", **profile)
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    refused(told, lambda: recipe(tmp_path).plan())


def test_bands_without_names_are_named_by_the_recipe(place: Path, tmp_path: Path):
    write_mosaic(tmp_path / "mosaic.tif", photometric="MINISBLACK")
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    refused("needs the bands red, green, blue", lambda: recipe(tmp_path).plan())
    assert recipe(tmp_path, "bands: {red: 1, green: 2, blue: 3}").plan().blocks


def test_a_model_that_does_not_say_where_it_applies_is_refused(place: Path, tmp_path: Path):
    done = recipe(place, "outputs: [class, aoa]", grid="like: mosaic, block: 512").run(tmp_path / "run")
    assert done.exit_code == 1
    assert "does not say where it applies" in (tmp_path / "run" / "quarantine.json").read_text()
