"""Recipes: what is wrong is said by file, line, key and nearest name; nothing in one can run code or reach out."""

from __future__ import annotations

import json
import pickle

import dummies
import pytest

from geoeco.engine import recipe_path
from geoeco.engine.documents import apply_setting, parse_yaml
from geoeco.errors import InputError, RecipeError

HEAD = "geoeco: 1\nname: dummy\n"


def parse(text: str, **options):
    return dummies.Recipe.parse(text, folder="/data", source="r.yaml", **options)


@pytest.mark.parametrize(
    ("steps", "where", "message"),
    [
        ("- {verb: make, bandz: [B02]}", "r.yaml:4: steps[0].bandz", "unknown key 'bandz'; did you mean 'bands'?"),
        ("- {verb: make, count: many}", "r.yaml:4: steps[0].count", "should be a valid integer"),
        ("- {verb: mak}", "r.yaml:4: steps[0].verb", "there is no verb 'mak'; did you mean 'make'?"),
        ("- {verb: upper, mode: lowder}", "r.yaml:4: steps[0].mode", "did you mean 'louder'?"),
        ("- {count: 3}", "r.yaml:4: steps[0]", "the key 'verb' is missing"),
        ("- verb: make\n  - verb: make\n", "r.yaml:5", "not valid YAML"),
    ],
)
def test_a_bad_step_is_named_by_file_line_key_and_nearest_name(steps, where, message):
    with pytest.raises(RecipeError) as caught:
        parse(HEAD + "steps:\n" + steps)
    assert caught.value.where.startswith(where)
    assert message in caught.value.what
    assert caught.value.code == "recipe"


def test_several_mistakes_are_all_listed_with_their_lines():
    with pytest.raises(RecipeError) as caught:
        parse(HEAD + "grud: 1\nseed: -1\nsteps:\n- {verb: make}\n")
    assert "r.yaml:3: grud: unknown key 'grud'; did you mean 'grid'?" in caught.value.what
    assert "r.yaml:4: seed" in caught.value.what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("geoeco: 2\nname: x\nsteps: [{verb: make}]", "expected 1"),
        ("name: x\nsteps: [{verb: make}]", "the key 'geoeco' is missing"),
        (HEAD + "steps: []", "at least 1 item"),
        (HEAD + "steps: [{verb: make}, {verb: make}]", "two steps are named 'make'"),
        (HEAD + "steps: [{verb: make, name: ledger}]", "folder is the run's own"),
        (HEAD + "steps: [{verb: make, name: ../x}]", "should match pattern"),
        (HEAD + "steps: [{verb: make}]\ngrid: {crs: EPSG:0}", "not a coordinate reference system"),
        (HEAD + "steps: [{verb: make}]\ngrid: {area: [5, 1, 4, 200]}", "south must be below north"),
        (
            HEAD + "steps: [{verb: make}]\ninputs: {imagery: {catalog: c.json, period: [2020-02-01, 2020-01-01]}}",
            "ends (2020-01-01) before it begins",
        ),
        (
            HEAD + "steps: [{verb: make}]\ninputs: {imagery: {catalog: c.json, period: [2020-02-31, 2021-01-01]}}",
            "not a valid value",
        ),
        ("just text", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
    ],
)
def test_bad_recipes_are_refused_with_the_reason(text, message):
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert message in str(caught.value)


BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
        "a: !!binary aGk=",
        "a: !include /etc/passwd",
        "a: !!set {x, y}",
        BILLION_LAUGHS,
        "a: &a [*a]",
        "[" * 5000,
        "a: 1\na: 2",
        "base: &b {x: 1}\nother:\n  <<: *b\n",
        "a: 1\n---\nb: 2",
        "? [1, 2]\n: 3",
        "a: *nowhere",
        "\0",
        "x" * 2_000_000,
    ],
    ids=lambda text: text[:24],
)
def test_hostile_yaml_is_refused_as_a_recipe_error(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError):
        parse_yaml(text, "r.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret.csv",
        "a/../../secret.csv",
        "a\\..\\secret.csv",
        "~/secret.csv",
        "~root/x",
        "$HOME/x.csv",
        "a/${HOME}/x.csv",
        "%APPDATA%/x.csv",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "/vsizip/x.zip/a.csv",
        "/vsicurl/http://host/x",
        "vsis3/bucket/x",
        "data:text/plain,x",
        "gopher://host/x",
        "http://user:secret@host/x.json",
        "a\nb",
        "",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(InputError):
        recipe_path(name, "/data")
    with pytest.raises(RecipeError):
        parse(HEAD + "steps: [{verb: make}]\ninputs: {tables: {t: " + json.dumps(name) + "}}")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("sites.csv", "/data/sites.csv"),
        ("world/catalog.json", "/data/world/catalog.json"),
        ("/abs/sites.csv", "/abs/sites.csv"),
        ("a..b/c.csv", "/data/a..b/c.csv"),
        ("https://host/catalog.json", "https://host/catalog.json"),
        ("s3://bucket/x.parquet", "s3://bucket/x.parquet"),
    ],
)
def test_plain_names_start_from_the_recipes_folder(name, path):
    assert recipe_path(name, "/data") == path


def test_settings_of_the_command_line_reach_any_key_and_are_checked_like_the_file():
    recipe = parse(
        HEAD + "steps: [{verb: make, count: 2}]",
        settings=["steps[0].bands=[B04, B08]", "steps.0.count=7", "grid.block=512", "seed=5"],
    )
    assert recipe.steps[0].bands == ("B04", "B08")
    assert (recipe.steps[0].count, recipe.grid.block, recipe.seed) == (7, 512, 5)
    with pytest.raises(RecipeError, match="unknown key 'blocks'; did you mean 'block'"):
        parse(HEAD + "steps: [{verb: make}]", settings=["grid.blocks=3"])
    for setting in ("novalue", "steps[9].count=1", "name.x=1", "=3"):
        with pytest.raises(RecipeError):
            apply_setting(parse_yaml(HEAD + "steps: [{verb: make}]"), setting)


def test_recipes_survive_pickling_and_the_run_folder():
    recipe = parse(HEAD + "steps: [{verb: make}, {verb: upper, name: loud}]\ngrid: {crs: EPSG:32631, area: a.geojson}")
    again = dummies.Recipe.from_document(json.loads(json.dumps(recipe.document())), folder="/data")
    assert again.document() == recipe.document()
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)).folder == "/data"


def test_the_schema_tells_the_verbs_apart_and_describes_every_key():
    schema = dummies.Recipe.model_json_schema()
    step = schema["properties"]["steps"]["items"]
    assert step["discriminator"]["propertyName"] == "verb"
    assert set(step["discriminator"]["mapping"]) == {"make", "upper", "join"}
    assert schema["additionalProperties"] is False
    for part in ("Grid", "Imagery", "Inputs"):
        assert all("description" in key for key in schema["$defs"][part]["properties"].values())


def test_a_missing_table_is_an_error_with_the_nearest_name():
    recipe = parse(HEAD + "steps: [{verb: make}]\ninputs: {tables: {points: p.csv}}")
    assert recipe.table_path("points") == "/data/p.csv"
    with pytest.raises(InputError, match="did you mean 'points'"):
        recipe.table_path("point")
