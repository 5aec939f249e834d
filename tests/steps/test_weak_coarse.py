"""The verbs weak_coarse and coarse_map: from labels of whole images to a map of patches; what they leave and refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from PIL import Image
from rasterio.transform import from_origin
from shapely.geometry import box

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.cubes import open_rasters  # noqa: E402
from geoeco.errors import GeoecoError, InputError, RecipeError  # noqa: E402
from geoeco.models import build  # noqa: E402
from geoeco.outputs import write_cog  # noqa: E402
from geoeco.steps import Recipe  # noqa: E402
from geoeco.training import ModelBundle, Normalisation  # noqa: E402
from geoeco.variables import describe  # noqa: E402
from tests.steps.mosaic_runs import write_bundle  # noqa: E402

PATCH = 16
TONES = {"sand": (0.8, 0.7, 0.5), "grass": (0.1, 0.4, 0.1), "rock": (0.3, 0.3, 0.35)}
CODES = {"sand": 1, "grass": 2, "rock": 7}
COLOURS = ("#e6c878", "#1e7828", "#787882")
#: Of each patch; four of them are one chip.
GROUND = [
    "sand  sand  sand  grass sand  sand  rock  sand ",
    "sand  sand  grass sand  sand  sand  sand  rock ",
    "sand  sand  sand  sand  grass sand  rock  sand ",
    "sand  sand  sand  sand  sand  grass grass sand ",
    "sand  sand  grass grass sand  sand  rock  rock ",
    "sand  sand  sand  grass sand  sand  rock  sand ",
]
STEPS = """
  - {verb: uav_chips, mosaic: mosaic, labels: labels, chip_m: 3.2, edge: drop}
  - {verb: weak_coarse, background: sand, backbone: test_resnet, patch_m: 1.6}
"""
MAP = """
  - {verb: coarse_map, mosaic: mosaic, bundle: weak_coarse, side: 2}
  - {verb: cog, source: coarse_map, quicklooks: false}
"""


def picture(ground: list[list[str]], seed: int = 0) -> np.ndarray:
    """Stored values ``(band, y, x)`` of patches of one kind of ground each, with noise."""
    tones = np.array([[TONES[name] for name in row] for row in ground]).transpose(2, 0, 1)
    noisy = np.kron(tones, np.ones((PATCH, PATCH)))
    return (255 * (noisy + np.random.default_rng(seed).normal(0, 0.03, noisy.shape)).clip(0, 1)).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A mosaic of 6 x 8 patches with a quarter of a row below and half a column on the right; photos; an encoder."""
    folder = tmp_path_factory.mktemp("shore")
    ground = [row.split() for row in GROUND]
    image = picture(ground)
    codes = np.kron([[CODES[name] for name in row] for row in ground], np.ones((PATCH, PATCH), int)).astype(np.uint8)
    image = np.pad(image, ((0, 0), (0, PATCH // 4), (0, PATCH // 2)), mode="edge")
    codes = np.pad(codes, ((0, PATCH // 4), (0, PATCH // 2)), constant_values=255)
    profile = {
        "driver": "GTiff",
        "height": codes.shape[0],
        "width": codes.shape[1],
        "dtype": "uint8",
        "crs": "EPSG:32652",
        "transform": from_origin(500_000, 5_200_000, 0.1, 0.1),
    }
    with rasterio.open(folder / "mosaic.tif", "w", count=3, photometric="RGB", **profile) as file:
        file.write(image)
        file.update_tags(TIFFTAG_DATETIME="2026:07:01 10:00:00")
    grid = GeoBox(codes.shape, from_origin(500_000, 5_200_000, 0.1, 0.1), "EPSG:32652")
    labels = xr.DataArray(codes, dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")))
    flags = {"flag_values": list(CODES.values()), "flag_meanings": " ".join(CODES), "flag_colors": " ".join(COLOURS)}
    write_cog(describe(labels, kind="class", units="", long_name="ground", **flags), folder / "labels.tif")
    (folder / "photos").mkdir()
    rows = []
    for number, (name, label) in enumerate([("sand", "bare"), ("grass", "seagrass"), ("sand", "bare")]):
        shown = [["sand", name], [name, "sand"]]
        Image.fromarray(np.moveaxis(picture(shown, number), 0, -1)).save(folder / f"photos/{number}.png")
        rows.append(f"photos/{number}.png,{label}")
    (folder / "photos.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    arguments = {"name": "test_resnet", "in_channels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build("backbone", arguments)
    scale = Normalisation((0.5,) * 3, (0.3,) * 3)
    bands = ("red", "green", "blue")
    ModelBundle(module, "backbone", arguments, bands, scale, PATCH, 0.1, name="drawn").save(folder / "encoder")
    return folder


def recipe(folder: Path, steps: str = STEPS + MAP, *settings: str, block: int = 32) -> Recipe:
    text = f"""
geoeco: 1
name: shore
seed: 3
inputs: {{tables: {{mosaic: mosaic.tif, labels: labels.tif, photos: photos.csv}}}}
grid: {{like: mosaic, block: {block}}}
steps:{steps}"""
    return Recipe.parse(text, folder=str(folder), settings=list(settings))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return recipe(folder).run(tmp_path_factory.mktemp("run") / "run")


def test_a_run_leaves_a_bundle_counts_and_a_picture_and_says_what_the_labels_were(run):
    assert run.exit_code == 0
    bundle = run.open("weak_coarse")
    assert (bundle.classes, bundle.codes, bundle.size) == (("grass", "rock", "sand"), (2, 7, 1), PATCH)
    assert bundle.colours == ("#1e7828", "#787882", "#e6c878")
    # one in the last column shows grass and rock: no single label
    assert bundle.notes["images_left_out"] == {"several classes": 1}
    assert "random" in bundle.notes["encoder"]["weights"]
    manifest = run.store.read_bytes("manifest.json").decode()
    for name in ("bundle/mlm.json", "bundle/model.safetensors", "patches.csv", "patches.png"):
        assert f"weak_coarse/{name}" in manifest
    rows = {
        row["label"]: row
        for row in csv.DictReader(run.store.read_bytes("weak_coarse/patches.csv").decode().splitlines())
    }
    assert {name: int(row["patches_of_class"]) for name, row in rows.items()} == {"sand": 32, "grass": 7, "rock": 5}
    # all chips were learned from: nothing is left to score
    assert bundle.notes["scores"] == {}
    assert "evaluation.json" not in manifest


def test_patches_of_sets_that_were_not_learned_from_are_scored_by_their_labels(folder, tmp_path):
    for name in ("mosaic.tif", "labels.tif", "photos.csv"):
        (tmp_path / name).symlink_to(folder / name)
    # rows of patches from above, a chip each
    parts = {"train": (0, 4), "val": (4, 5), "test": (5, 6)}
    left, top, side = 500_000, 5_200_000, PATCH * 0.1
    areas = [box(left, top - last * side, left + 8 * side, top - first * side) for first, last in parts.values()]
    table = gpd.GeoDataFrame({"split": list(parts)}, geometry=areas, crs="EPSG:32652")
    table.to_file(tmp_path / "areas.gpkg", layer="areas")
    settings = ["inputs.tables.areas=areas.gpkg", "steps.0.chip_m=1.6", "steps.0.split={areas: areas}"]
    done = recipe(tmp_path, STEPS, *settings).run(tmp_path / "run")
    assert done.exit_code == 0
    details = json.loads(done.store.read_bytes("weak_coarse/evaluation_details.json"))
    found = {row["split"]: np.array(row["confusion"]) for row in details["results"]}
    assert list(found) == ["val", "test"]
    bundle = done.open("weak_coarse")
    shown = {part: " ".join(GROUND[slice(*rows)]).split() for part, rows in parts.items()}
    for part, confusion in found.items():
        # three kinds of ground that nobody could mistake
        assert np.array_equal(confusion, np.diag([shown[part].count(name) for name in bundle.classes]))
    assert bundle.notes["weak_labels"]["images"] == {name: shown["train"].count(name) for name in bundle.classes}
    rows = json.loads(done.store.read_bytes("weak_coarse/evaluation.json"))
    assert {row["mean"] for row in rows if row["metric"] == "accuracy"} == {1.0}
    assert bundle.notes["scores"]["test"]["accuracy"] == 1.0
    manifest = done.store.read_bytes("manifest.json").decode()
    for name in ("evaluation.json", "evaluation_details.json", "confusion.csv", "confusion.png"):
        assert f"weak_coarse/{name}" in manifest


def test_the_map_has_a_pixel_a_patch_from_the_corner_of_the_mosaic(run):
    cog = Path(run.store.url("cog"))
    with rasterio.open(cog / "class.tif") as file:
        found = file.read(1)
        assert file.transform == from_origin(500_000, 5_200_000, 1.6, 1.6)
        assert (file.crs.to_epsg(), file.nodata, file.shape) == (32652, 255, (7, 9))
        assert file.colormap(1)[7][:3] == (0x78, 0x78, 0x82)
    truth = np.array([[CODES[name] for name in row.split()] for row in GROUND])
    assert np.array_equal(found[:6, :8], truth)
    # half of a patch is enough, a fourth is not
    assert (found[:6, 8] != 255).all()
    assert (found[6] == 255).all()
    for name, low, high in (("prob", 1 / 3, 1), ("margin", -2, 2)):
        with rasterio.open(cog / f"{name}.tif") as file:
            values = file.read(1)
            assert (file.dtypes[0], file.nodata) == ("float32", -9999)
        assert np.array_equal(values == -9999, found == 255)
        assert ((values[found != 255] >= low) & (values[found != 255] <= high)).all()


def test_files_say_which_model_and_which_mosaic_they_are_of(run):
    item = json.loads(run.store.read_bytes("cog/class.json"))
    bundle = json.loads(run.store.read_bytes("weak_coarse/bundle/mlm.json"))
    weights = bundle["assets"]["model"]["file:checksum"].removeprefix("1220")
    assert item["properties"]["geoeco:model_sha256"] == weights
    links = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert [link.rsplit("/", 1)[1] for link in links] == ["mosaic.json", "mlm.json"]
    assert item["properties"]["start_datetime"][:10] == "2026-07-01"


def test_neither_the_size_of_blocks_nor_a_second_run_changes_a_bit(run, folder, tmp_path):
    bundle = f"bundle: {run.store.url('weak_coarse/bundle')}"
    steps = MAP.replace("bundle: weak_coarse", bundle)
    stores = []
    for block in (64, 48):
        again = recipe(folder, steps, block=block).run(tmp_path / str(block))
        assert again.exit_code == 0
        stores.append(open_rasters(again.store.url("coarse_map/rasters.zarr")).load())
    first = open_rasters(run.store.url("coarse_map/rasters.zarr")).load()
    for other in stores:
        for name in ("class", "prob", "margin"):
            assert other[name].to_numpy().tobytes() == first[name].to_numpy().tobytes()


def test_a_training_that_is_repeated_gives_the_same_bytes(run, folder, tmp_path):
    # of the same chips, taken as a finished store
    step = STEPS.splitlines()[2].replace("background", f"store: {run.store.url('uav_chips/uav.zarr')}, background")
    again = recipe(folder, f"\n{step}\n").run(tmp_path / "again")
    for name in ("bundle/model.safetensors", "patches.csv", "patches.png"):
        assert again.store.read_bytes(f"weak_coarse/{name}") == run.store.read_bytes(f"weak_coarse/{name}")


PHOTOS = "\n  - {verb: weak_coarse, images: photos, gsd_m: 0.1, background: bare, encoder: encoder, patch: 16}\n"


def test_photos_without_a_place_are_learned_from_by_a_table(folder, tmp_path):
    done = recipe(folder, PHOTOS + "\n  - {verb: coarse_map, mosaic: mosaic, bundle: weak_coarse}\n").run(
        tmp_path / "run"
    )
    assert done.exit_code == 0
    bundle = done.open("weak_coarse")
    assert (bundle.classes, bundle.notes["encoder"]["start"]) == (("bare", "seagrass"), "drawn")
    found: xr.DataArray = done.open("coarse_map")["class"]
    truth = np.array([["grass" in name for name in row.split()] for row in GROUND])
    sand = np.array([["sand" in name for name in row.split()] for row in GROUND])
    assert (found.to_numpy()[:6, :8][truth] == 1).all()
    assert (found.to_numpy()[:6, :8][sand] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["steps.1.background=mud"], "no label 'mud'"),
        (["steps.1.classes={sand: [sand], green: [kelp]}"], "no label 'kelp'"),
        (["steps.1.classes={green: [grass], grey: [rock]}"], "background 'sand' is none of the classes"),
        (["steps.1.class_weights={kelp: 2}"], "no class 'kelp' to weigh"),
        (["steps.1.patch_m=0.1"], "have 1 pixels"),
        (["steps.0.labels=null"], "have no labels"),
        (["steps.2.bundle=uav_chips"], "makes no model"),
        (["grid.block=24"], "not a whole number of patches of 16"),
        (["grid.resolution=0.2"], "the imagery has 0.2"),
        (["steps.1.backbone=vit_tiny_patch16_224"], "does not take images of 16 x 16"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(folder, settings, message):
    with pytest.raises(GeoecoError, match=message):
        recipe(folder, STEPS + MAP, *settings).plan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("label", "word"), "no column 'label'"),
        ((",bare", ",seagrass"), "no image is labelled 'bare'"),
        ((",seagrass", ","), "has no label"),
        (("photos/1.png", "photos/0.png"), "twice"),
        (("photos/1.png", "../1.png"), "does not lie in the folder"),
        (("photos/1.png", "photos/9.png"), "there is no image"),
    ],
)
def test_tables_of_images_that_cannot_be_learned_from_are_refused(folder, tmp_path, change, message):
    text = (folder / "photos.csv").read_text().replace(*change)
    (tmp_path / "photos.csv").write_text(text)
    for name in ("photos", "mosaic.tif", "labels.tif", "encoder"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "photos").unlink()
    (tmp_path / "photos").mkdir()
    for photo in (folder / "photos").iterdir():
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    with pytest.raises(InputError, match=message):
        recipe(tmp_path, PHOTOS).plan()


def test_labels_that_count_as_no_class_other_encoders_and_other_models_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="counts as no class"):
        recipe(folder, PHOTOS, "steps.0.classes={bare: [bare], kelp: [kelp]}").plan()
    with pytest.raises(InputError, match=r"at 0\.1 m, the images have .* at 0\.2 m"):
        recipe(folder, PHOTOS, "steps.0.gsd_m=0.2").plan()
    with pytest.raises(InputError, match="blue, green, red"):
        recipe(folder, PHOTOS, "steps.0.bands={blue: 3, green: 2, red: 1}").plan()
    with pytest.raises(RecipeError, match="either images"):
        recipe(folder, PHOTOS, "steps.0.chips=uav_chips")
    with pytest.raises(RecipeError, match="either patch"):
        recipe(folder, PHOTOS, "steps.0.patch_m=1.6")
    write_bundle(tmp_path / "other")
    with pytest.raises(InputError, match="for segmentation, not for classification"):
        recipe(folder, MAP, f"steps.0.bundle={tmp_path / 'other'}").plan()


def test_a_photo_that_was_changed_is_learned_from_anew(folder):
    before = recipe(folder, PHOTOS).plan().steps[0].hash
    photo = folder / "photos/1.png"
    kept = photo.read_bytes()
    try:
        Image.fromarray(np.moveaxis(picture([["grass"] * 2] * 2), 0, -1)).save(photo)
        assert recipe(folder, PHOTOS).plan().steps[0].hash != before
    finally:
        photo.write_bytes(kept)
    assert recipe(folder, PHOTOS).plan().steps[0].hash == before
