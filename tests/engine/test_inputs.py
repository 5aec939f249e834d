"""What a recipe's inputs and grid come to: found once, refused early, right at zone borders and the antimeridian."""

from __future__ import annotations

import json

import dummies
import pytest
from odc.geo.geom import box

from geoeco.engine.imagery import items_document, items_from_document, resolve_inputs
from geoeco.errors import CatalogError, GeoecoError, InputError, RecipeError

HEAD = "geoeco: 1\nname: dummy\nsteps: [{verb: make}]\n"


def item(name: str, bounds: tuple[float, float, float, float], **properties) -> dict:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "s2",
        "geometry": json.loads(json.dumps(box(*bounds, "EPSG:4326").json)),
        "bbox": list(bounds),
        "properties": {"datetime": f"2020-06-{10 + len(name):02d}T10:00:00Z", "eo:cloud_cover": 20.0, **properties},
        "links": [],
        "assets": {"B04": {"href": f"{name}/B04.tif", "type": "image/tiff"}},
    }


@pytest.fixture
def recipe(tmp_path):
    """Return a function that makes a recipe over an item collection."""

    def make(items: list[dict], grid: str = "{resolution: 100}", period: str = "[2020-01-01, 2020-12-31]"):
        (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        text = HEAD + f"inputs: {{imagery: {{catalog: items.json, period: {period}}}}}\ngrid: {grid}\n"
        return dummies.Recipe.parse(text, folder=str(tmp_path))

    return make


UTM31 = {"proj:code": "EPSG:32631", "proj:shape": [500, 300], "proj:transform": [60, 0, 500000, 0, -60, 5600040]}


def test_without_an_area_the_grid_is_exactly_the_items_own_pixels(recipe):
    moved = UTM31 | {"proj:transform": [60, 0, 512000, 0, -60, 5600040, 0, 0, 1]}
    both = [item("a", (3.0, 50.2, 3.3, 50.6), **UTM31), item("bb", (3.0, 50.2, 3.4, 50.6), **moved)]
    geobox, items = resolve_inputs(recipe(both, "{resolution: 20}"))
    assert [found.id for found in items] == ["a", "bb"]
    assert str(geobox.crs) == "EPSG:32631"
    # 500000 is no multiple of 60: the grid grows to where bands of 10, 20 and 60 m line up
    assert geobox.boundingbox.bbox == (499980, 5570040, 530040, 5600040)


def test_items_of_two_zones_go_to_the_zone_of_their_middle(recipe):
    geobox, _ = resolve_inputs(
        recipe(
            [
                item("a", (4.9, 50.0, 6.1, 50.5), **UTM31),
                item("bb", (5.9, 50.0, 7.9, 50.5), **(UTM31 | {"proj:code": "EPSG:32632"})),
            ]
        )
    )
    assert str(geobox.crs) == "EPSG:32632"
    lonlat = geobox.extent.to_crs("EPSG:4326").boundingbox
    assert lonlat.left < 4.9
    assert lonlat.right > 7.9


def test_items_on_both_sides_of_the_antimeridian_make_one_small_grid(recipe):
    geobox, _ = resolve_inputs(
        recipe([item("a", (179.8, -17.1, 180.0, -16.9)), item("bb", (-180.0, -17.1, -179.9, -16.9))])
    )
    assert str(geobox.crs) in ("EPSG:32760", "EPSG:32701")
    assert geobox.shape[1] < 500


@pytest.mark.parametrize("area", ["[179.8, -17.1, -179.9, -16.9]", "[5.9, 50.0, 6.1, 50.2]", "area.geojson"])
def test_an_area_may_be_a_box_across_anything_or_a_file(recipe, area, tmp_path):
    (tmp_path / "area.geojson").write_text(json.dumps(box(5.9, 50.0, 6.1, 50.2, "EPSG:4326").json))
    bounds = (179.85, -17.05, 179.95, -16.95) if area.startswith("[179") else (5.8, 49.9, 6.2, 50.3)
    geobox, items = resolve_inputs(recipe([item("a", bounds)], f"{{area: {area}, resolution: 100}}"))
    assert len(items) == 1
    assert geobox.shape[0] < 400
    assert geobox.shape[1] < 400


def test_a_crs_without_an_epsg_code_is_taken_as_it_is(recipe):
    wkt = "+proj=laea +lat_0=50 +lon_0=6 +datum=WGS84 +units=m +no_defs"
    geobox, _ = resolve_inputs(
        recipe([item("a", (5.8, 49.9, 6.2, 50.3))], f"{{area: [5.9, 50.0, 6.1, 50.2], crs: '{wkt}', resolution: 100}}")
    )
    assert geobox.crs.epsg is None
    assert geobox.shape[0] < 300


@pytest.mark.parametrize(
    ("grid", "period"),
    [
        ("{area: [100.0, 0.0, 100.1, 0.1]}", "[2020-01-01, 2020-12-31]"),
        ("{area: [5.9, 50.0, 6.1, 50.2]}", "[2021-01-01, 2021-12-31]"),
        ("{resolution: 10}", "[1990-01-01, 1990-12-31]"),
    ],
)
def test_an_empty_search_is_an_error_that_says_what_to_check(recipe, grid, period):
    with pytest.raises(CatalogError) as caught:
        recipe([item("a", (5.8, 49.9, 6.2, 50.3))], grid, period).plan()
    assert caught.value.code == "catalog-empty"
    assert "period" in caught.value.what_to_do


def test_a_missing_catalogue_or_area_file_is_an_error_before_any_work(recipe, tmp_path):
    made = recipe([item("a", (5.8, 49.9, 6.2, 50.3))], "{area: nowhere.geojson}")
    with pytest.raises(InputError, match=r"nowhere\.geojson"):
        made.run(tmp_path / "out", gdal={})
    (tmp_path / "items.json").unlink()
    with pytest.raises(GeoecoError):
        recipe([], "{resolution: 10}").run(tmp_path / "out", gdal={})
    assert not (tmp_path / "out").exists()


def test_an_empty_period_is_refused_with_its_line(recipe):
    with pytest.raises(RecipeError, match="before it begins"):
        recipe([], period="[2020-02-01, 2020-01-01]")


def test_blocks_are_the_tasks_and_the_search_is_kept_for_resume(recipe, switches, tmp_path):
    made = recipe([item("a", (5.8, 49.9, 6.2, 50.3))], "{area: [5.9, 50.0, 6.1, 50.2], resolution: 100, block: 128}")
    plan = made.plan()
    assert len(plan.blocks) == len(plan.tasks) == 4
    assert "blocks" in str(plan)
    run = made.run(tmp_path / "out", gdal={})
    assert run.info["items"] == [{"id": "a", "collection": "s2", "etags": {}}]
    (tmp_path / "items.json").unlink()
    assert made.run(tmp_path / "out", gdal={}).exit_code == 0
    assert all(len(path.read_text().splitlines()) == 1 for path in (switches / "executions").iterdir())
    assert len(run.open("make")) == 4


def test_a_kept_search_is_used_for_the_same_search_only(recipe):
    one = recipe([item("a", (5.8, 49.9, 6.2, 50.3))])
    _, items = resolve_inputs(one)
    document = json.loads(json.dumps(items_document(one, items)))
    assert [found.id for found in items_from_document(one, document)] == ["a"]
    other = recipe([item("a", (5.8, 49.9, 6.2, 50.3))], period="[2020-01-01, 2020-11-30]")
    assert items_from_document(other, document) is None


def test_two_items_of_one_name_are_refused(recipe):
    twins = [item("a", (5.8, 49.9, 6.2, 50.3)), item("a", (5.8, 49.9, 6.2, 50.3)) | {"collection": "other"}]
    with pytest.raises(CatalogError, match="two items are named 'a'"):
        resolve_inputs(recipe(twins))


def test_without_imagery_or_grid_there_are_no_blocks():
    made = dummies.Recipe.parse(HEAD, folder="/")
    assert resolve_inputs(made) == (None, ())
    assert made.plan().blocks == ()
