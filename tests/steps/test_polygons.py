"""The verb ``polygons``: the regions of a map are those of the function, in the same bytes whatever the blocks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from PIL import Image
from pystac.extensions.table import TableExtension
from rasterio.features import rasterize

from geoeco.cubes import open_rasters
from geoeco.errors import ClusterError, InputError
from geoeco.mapping import class_polygons
from geoeco.steps import polygons
from tests.mapping.mosaics import CODES, NAMES
from tests.outputs.stac_schemas import schema_errors
from tests.outputs.test_vector_styles import categories, style_of
from tests.steps.mosaic_runs import recipe, write_bundle, write_mosaic

POLYGONS = "  - {verb: polygons, min_area_m2: 0.05, connectivity: 8}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a mosaic and a bundle. Read only."""
    folder = tmp_path_factory.mktemp("mosaic")
    write_mosaic(folder / "mosaic.tif", shape=(120, 150))
    write_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = recipe(place, "window: 48", more=POLYGONS).run(out)
    assert done.exit_code == 0
    return out


def map_of(out: Path) -> xr.Dataset:
    return open_rasters(str(out / "predict" / "rasters.zarr")).load()


def test_the_polygons_of_a_recipe_are_those_of_the_function(run: Path):
    made = gpd.read_file(run / "polygons" / "habitats.gpkg", layer="habitats")
    held = map_of(run)
    expected = class_polygons(held["class"], held["confidence"], min_area_m2=0.05, connectivity=8)
    assert list(made.columns) == list(expected.columns)
    assert made.crs == expected.crs
    assert len(made) == len(expected) > 10
    for name in ("region", "class", "area_m2", "perimeter_m", "class_fraction", "score"):
        np.testing.assert_array_equal(made[name], expected[name], err_msg=name)
    assert made["name"].tolist() == expected["name"].tolist()
    assert (
        made.geometry.normalize()
        .geom_equals(
            gpd.GeoSeries([shapely.multipolygons(shapely.get_parts(one)) for one in expected.geometry], crs=made.crs)
        )
        .all()
    )


def test_the_polygons_lie_on_their_pixels(run: Path, place: Path):
    made = gpd.read_file(run / "polygons" / "habitats.gpkg", layer="habitats")
    codes = map_of(run)["class"].to_numpy()
    with rasterio.open(place / "mosaic.tif") as mosaic:
        painted = rasterize(
            zip(made.geometry, made["class"], strict=True), codes.shape, fill=255, transform=mosaic.transform
        )
    kept = painted != 255
    # a region of another class that was too small has the class of its neighbour
    assert (painted == codes)[kept].mean() == pytest.approx(
        (made["class_fraction"] * made["area_m2"]).sum() / made["area_m2"].sum(), abs=1e-9
    )
    assert (painted == codes)[kept].mean() > 0.7
    assert made["area_m2"].sum() == pytest.approx(kept.sum() * 0.01)
    assert made["area_m2"].min() >= 0.05 - 1e-9
    assert set(made["name"]) <= set(NAMES)
    assert made["score"].between(1 / len(CODES), 1).all()


def test_the_size_of_blocks_changes_no_byte(place: Path, run: Path, tmp_path: Path):
    other = recipe(place, "window: 48", grid="like: mosaic, block: 100", more=POLYGONS)
    assert other.run(tmp_path / "other").exit_code == 0
    for name in ("habitats.gpkg", "habitats.png", "habitats.json", "catalog.json"):
        assert (tmp_path / "other" / "polygons" / name).read_bytes() == (run / "polygons" / name).read_bytes(), name


def test_what_is_lost_is_made_again(place: Path, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    before = (run / "polygons" / "habitats.gpkg").read_bytes()
    (tmp_path / "run" / "polygons" / "habitats.gpkg").unlink()
    (tmp_path / "run" / "polygons" / "outlines" / "r0001c0001.npz").unlink()
    (tmp_path / "run" / "polygons" / "parts" / "r0000c0001.npz").write_bytes(b"")
    done = recipe(place, "window: 48", more=POLYGONS).run(tmp_path / "run")
    assert done.exit_code == 0
    assert (tmp_path / "run" / "polygons" / "habitats.gpkg").read_bytes() == before


def test_the_report_has_the_polygons_and_their_picture(run: Path):
    manifest = json.dumps(json.loads((run / "manifest.json").read_text()))
    assert "polygons/habitats.gpkg" in manifest
    with Image.open(run / "polygons" / "habitats.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.getcolors(1 << 20)) > 20


def test_the_polygons_have_a_stac_item_that_says_what_they_are_and_what_they_were_made_of(run: Path, place: Path):
    folder = run / "polygons"
    (item,) = pystac.Catalog.from_file(str(folder / "catalog.json")).get_items()
    document = json.loads((folder / "habitats.json").read_text())
    assert schema_errors(document) == []
    held = TableExtension.ext(item)
    made = gpd.read_file(folder / "habitats.gpkg", layer="habitats")
    assert [column.name for column in held.columns] == ["fid", "geom", *made.columns.drop("geometry")]
    assert all(column.description for column in held.columns[2:])
    assert (held.row_count, held.primary_geometry) == (len(made), "geom")
    asset = item.assets["habitats"]
    digest = hashlib.sha256((folder / asset.href).read_bytes()).hexdigest()
    assert asset.extra_fields["file:checksum"] == f"1220{digest}"
    with rasterio.open(place / "mosaic.tif") as mosaic:
        assert item.properties["proj:bbox"] == pytest.approx(list(mosaic.bounds), abs=1e-6)
    sources = [link["href"] for link in document["links"] if link["rel"] == "derived_from"]
    assert sources
    assert all((folder / href).exists() for href in sources)
    tags = pyogrio.read_info(folder / "habitats.gpkg", layer="habitats")["layer_metadata"]
    assert item.properties["geoeco:recipe_sha256"] == tags["GEOECO_RECIPE_SHA256"]
    assert item.properties["geoeco:model_sha256"] == tags["GEOECO_MODEL_SHA256"]


def test_qgis_finds_the_colours_of_the_map_in_the_geopackage(run: Path):
    attrs = map_of(run)["class"].attrs
    style = style_of(run / "polygons" / "habitats.gpkg")
    fills = {
        value: "#" + "".join(f"{int(part):02x}" for part in fill.split(",")[:3])
        for value, (_, fill) in categories(style).items()
    }
    assert fills == {
        str(code): colour for code, colour in zip(attrs["flag_values"], attrs["flag_colors"].split(), strict=True)
    }
    labels = {value: label for value, (label, _) in categories(style).items()}
    assert labels == {str(code): name for code, name in zip(CODES, NAMES, strict=True)}


def test_simpler_outlines_keep_the_ground_and_say_how_much_of_it_changed_hands(place: Path, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    more = POLYGONS.replace("}", ", simplify_m: 0.2}")
    done = recipe(place, "window: 48", more=more).run(tmp_path / "run", rebuild=True)
    assert done.exit_code == 0
    made, stepped = done.open("polygons"), gpd.read_file(run / "polygons" / "habitats.gpkg", layer="habitats")
    assert made["area_m2"].sum() == pytest.approx(stepped["area_m2"].sum(), rel=1e-9)
    assert made["perimeter_m"].sum() < 0.95 * stepped["perimeter_m"].sum()
    facts = json.loads((tmp_path / "run" / "ledger" / "polygons" / "table" / "all.json").read_text())["stats"]
    moved = (made["area_m2"] - stepped["area_m2"]).abs().sum() / 2
    assert facts["area_moved_m2"] == pytest.approx(moved, abs=0.01)
    held = map_of(run)
    expected = class_polygons(held["class"], held["confidence"], min_area_m2=0.05, connectivity=8, simplify_m=0.2)
    np.testing.assert_array_equal(made["area_m2"], expected["area_m2"])


def test_the_last_task_is_planned_for_the_outlines_of_the_whole_map(place: Path):
    def planned(settings: str) -> int:
        grid = "like: mosaic, block: 64"
        plan = recipe(place, "window: 48", grid=grid, more=f"  - {{verb: polygons{settings}}}").plan()
        (table,) = [task for task in plan.tasks if task.id == "polygons/table/all"]
        return table.memory_bytes

    # the larger the regions, the fewer corners; simpler outlines take all of them at once
    assert planned(", min_area_m2: 100") < planned("") < planned(", simplify_m: 0.2")


def test_a_map_whose_outlines_do_not_fit_says_what_makes_them_fewer(place: Path, tmp_path: Path):
    def refused(polygons: str) -> str:
        plan = recipe(tmp_path, f"bundle: {place / 'bundle'}", grid="like: mosaic, block: 2000", more=polygons).plan()
        largest = max(plan.tasks, key=lambda task: task.memory_bytes)
        assert largest.id == "polygons/table/all"
        with pytest.raises(ClusterError, match="would need up to") as caught:
            plan.check_memory(plan.peak_memory_bytes - 1)
        return str(caught.value.what_to_do)

    # nothing of it is read for a plan
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32652", "photometric": "RGB"}
    place_of_it = {"transform": Affine(0.1, 0, 500_000, 0, -0.1, 5_300_000), "width": 14_000, "height": 14_000}
    with rasterio.open(tmp_path / "mosaic.tif", "w", sparse_ok=True, **profile, **place_of_it):
        pass
    # four times as large regions, half as many corners: of 250 pixels in the mean it is planned for, 0.01 m2 each
    assert refused("  - {verb: polygons}").startswith("set min_area_m2 of polygons to 10, which halves the outlines")
    assert refused("  - {verb: polygons, min_area_m2: 8}").startswith("set min_area_m2 of polygons to 32, ")
    assert refused("  - {verb: polygons, simplify_m: 0.2}").startswith("leave simplify_m out, set min_area_m2")


def test_the_picture_shows_no_more_polygons_than_it_can_however_many_are_alike(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(run, tmp_path / "run")
    drawn: list[list[int]] = []
    chart = polygons.outline_chart
    monkeypatch.setattr(
        polygons,
        "outline_chart",
        lambda *given, **more: drawn.append(list(given[2]["region"])) or chart(*given, **more),
    )
    monkeypatch.setattr(polygons, "_PICTURE_POLYGONS", 40)
    done = recipe(place, "window: 48", more="  - {verb: polygons}").run(tmp_path / "run", rebuild=True)
    made = done.open("polygons")
    ranked = sorted(zip(-made["area_m2"].round(6), made["region"], strict=True))
    assert ranked[39][0] == ranked[40][0], "the last one shown is as large as the first one left out"
    assert drawn == [[region for _, region in ranked[:40]]]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_some_classes_alone_and_without_a_score(place: Path, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    some = f"  - {{verb: polygons, classes: ['{NAMES[1]}', {CODES[0]}], score: null}}"
    done = recipe(place, "window: 48", more=some).run(tmp_path / "run", rebuild=True)
    assert done.exit_code == 0
    made = done.open("polygons")
    held = map_of(run)["class"]
    assert set(made["class"]) <= {CODES[0], CODES[1]}
    assert made["area_m2"].sum() == pytest.approx(float(held.isin([CODES[0], CODES[1]]).sum()) * 0.01)
    assert made["score"].isna().all()


def test_a_map_of_which_nothing_is_left_is_an_empty_geopackage_with_an_item(place: Path, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    none = "  - {verb: polygons, min_area_m2: 1000000, small: drop, simplify_m: 0.2}"
    done = recipe(place, "window: 48", more=none).run(tmp_path / "run", rebuild=True)
    assert done.exit_code == 0
    made = done.open("polygons")
    assert len(made) == 0
    assert made.crs.to_epsg() == 32652
    assert list(categories(style_of(tmp_path / "run" / "polygons" / "habitats.gpkg"))) == [
        str(code) for code in sorted(CODES)
    ]
    item = pystac.Item.from_file(str(tmp_path / "run" / "polygons" / "habitats.json"))
    assert TableExtension.ext(item).row_count == 0
    assert list(item.assets) == ["habitats"]
    assert item.bbox[0] < item.bbox[2]


def test_classes_without_names_and_colours_are_drawn_all_the_same(place: Path, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    stores = [tmp_path / "run/predict/rasters.zarr" / name for name in ("class/zarr.json", "zarr.json")]
    for path in stores:
        document = json.loads(path.read_text())
        held = [document, *document.get("consolidated_metadata", {}).get("metadata", {}).values()]
        for one in held:
            for key in ("flag_values", "flag_meanings", "flag_colors"):
                one.get("attributes", {}).pop(key, None)
        path.write_text(json.dumps(document))
    done = recipe(place, "window: 48", more="  - {verb: polygons}").run(tmp_path / "run", rebuild=True)
    assert done.exit_code == 0
    made = done.open("polygons")
    assert set(made["name"]) == {""}
    found = categories(style_of(tmp_path / "run" / "polygons" / "habitats.gpkg"))
    assert {value: label for value, (label, _) in found.items()} == {
        str(code): f"class {code}" for code in sorted(set(made["class"]))
    }
    assert len({fill for _, fill in found.values()}) == len(found)


@pytest.mark.parametrize(
    ("predict", "polygons", "message"),
    [
        ("outputs: [class]", "", "no variable 'confidence'"),
        ("", "variable: cluster", "no variable 'cluster'"),
        ("", "source: nothing", "no earlier step"),
    ],
)
def test_what_a_map_does_not_hold_is_known_when_it_is_planned(place: Path, predict: str, polygons: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        recipe(place, predict, more=f"  - {{verb: polygons{', ' if polygons else ''}{polygons}}}").plan()
    assert caught.value.what_to_do


def test_classes_that_the_map_has_not_are_refused(place: Path, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    done = recipe(place, "window: 48", more="  - {verb: polygons, classes: [sea]}").run(tmp_path / "run", rebuild=True)
    assert done.exit_code != 0
    assert "no class 'sea'" in done.failures.to_json()
    assert not (tmp_path / "run" / "polygons" / "parts").exists(), "it is known before any block is worked on"


def test_a_block_that_fails_leaves_a_hole_until_it_is_done(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "polygons" / "parts")
    label = polygons.label_block

    def failing(codes, *args, origin, **more):
        if origin == (64, 64):
            raise InputError("this block cannot be read")
        return label(codes, *args, origin=origin, **more)

    with monkeypatch.context() as patch:
        patch.setattr(polygons, "label_block", failing)
        partial = recipe(place, "window: 48", more=POLYGONS).run(tmp_path / "run")
    assert partial.exit_code == 3
    held = map_of(run)["class"]
    there = (held != 255).to_numpy()
    there[64:128, 64:128] = False
    made = gpd.read_file(tmp_path / "run" / "polygons" / "habitats.gpkg", layer="habitats")
    assert there.sum() * 0.0095 < made["area_m2"].sum() <= there.sum() * 0.01 + 1e-9
    again = recipe(place, "window: 48", more=POLYGONS).run(tmp_path / "run")
    assert again.exit_code == 0
    whole = (run / "polygons" / "habitats.gpkg").read_bytes()
    assert (tmp_path / "run" / "polygons" / "habitats.gpkg").read_bytes() == whole
