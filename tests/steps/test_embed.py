"""Embedding maps by blocks: the same numbers however the region is cut, and nothing begun that cannot be finished."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import torch
import xarray as xr
import zarr
from pyproj import Transformer

from geoeco import mapping
from geoeco.cubes import open_cube, open_rasters, template
from geoeco.engine import PlanContext, RunContext, RunStore, TaskContext
from geoeco.errors import GeoecoError, GridError, InputError, ReadError
from geoeco.models import create_backbone
from geoeco.outputs import write_cog
from geoeco.steps import Recipe
from geoeco.training import ModelBundle, Normalisation

BANDS = ("B02", "B04", "B08")
#: Corner of the region in UTM 31N; 96 x 80 pixels of 10 m.
LEFT, TOP, ROWS, COLS = 700_020.0, 5_600_040.0, 90, 78
DAYS = [dt.date(2021, 1, 10) + dt.timedelta(days=20 * n) for n in range(18)]
RECIPE = """
geoeco: 1
name: map
inputs:
  imagery: {catalog: none.json, period: [2021-01-01, 2021-12-31]}
  tables: {places: places.csv}
grid: {crs: EPSG:32631, block: 32}
steps:
  - {verb: cube, bands: [B02, B04, B08]}
  - {verb: embed, bundle: bundle, stride: 8, sample: 60, dims: 6, clusters: 3, min_valid: 0.5, places: places}
  - {verb: cog}
"""


def box() -> tuple[float, float, float, float]:
    """Region in degrees, a little inside its own pixels."""
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    west, south = to_degrees.transform(LEFT + 1, TOP - 10 * ROWS + 1)
    east, north = to_degrees.transform(LEFT + 10 * COLS - 1, TOP - 1)
    return west, south, east, north


def items(share: float = 1.0) -> list[pystac.Item]:
    """One item a day whose pixels are the western part of the region."""
    cols = int(COLS * share)
    west, south, east, north = box()
    east = west + (east - west) * share
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    found = []
    for day in DAYS:
        item = pystac.Item(
            f"S2_{day:%Y%m%d}",
            {"type": "Polygon", "coordinates": [ring]},
            [west, south, east, north],
            dt.datetime(day.year, day.month, day.day, 10, 40, tzinfo=dt.UTC),
            {
                "proj:code": "EPSG:32631",
                "proj:shape": [ROWS, cols],
                "proj:transform": [10, 0, LEFT, 0, -10, TOP],
            },
        )
        # as a catalogue gives it: its date among its properties
        found.append(pystac.Item.from_dict(item.to_dict()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder: a bundle and a table of places."""
    root = tmp_path_factory.mktemp("recipe")
    save_bundle(root / "bundle")
    points = Transformer.from_crs(32631, 4326, always_xy=True)
    near, far = points.transform(LEFT + 445, TOP - 725), points.transform(LEFT + 165, TOP - 85)
    (root / "places.csv").write_text(f"name,lon,lat\nold wood,{near[0]},{near[1]}\nfen,{far[0]},{far[1]}\n")
    return root


def save_bundle(where: Path, **changes: Any) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "architecture": "backbone",
        "arguments": {"name": "test_resnet", "in_channels": 4},
        "bands": (*BANDS, "ndvi"),
        "normalisation": Normalisation((0.1, 0.1, 0.3, 0.4), (0.1, 0.1, 0.2, 0.3)),
        "size": 32,
        "name": "tiny",
    } | changes
    channels = len(settings["bands"])
    settings["arguments"] = {"name": "test_resnet", "in_channels": channels}
    ModelBundle(create_backbone("test_resnet", channels), **settings).save(where)


class Map:
    """The step of a recipe, run task by task on a cube that is written here."""

    def __init__(self, folder: Path, out: Path, *settings: str, share: float = 1.0) -> None:
        self.recipe = Recipe.parse(RECIPE, folder=str(folder), settings=["inputs.imagery.catalog=none.json", *settings])
        self.plan = self.recipe.plan(items=items(share))
        self.store = RunStore(out)
        self.step = self.plan.steps[1]
        steps = {step.name: step for step in self.plan.steps}
        context = PlanContext(
            self.recipe, self.plan.geobox, self.plan.blocks, self.plan.items, steps, str(folder), data_version=1
        )
        self.run_context = RunContext(self.store, "embed", self.step, context)

    @property
    def rasters(self) -> xr.Dataset:
        return open_rasters(self.store.url("embed/rasters.zarr")).load()

    @property
    def cube(self) -> xr.Dataset:
        return open_cube(self.store.url("cube/cube.zarr"))

    def write_cube(self) -> None:
        geobox = self.plan.geobox
        assert geobox is not None
        url = self.store.url("cube/cube.zarr")
        template(url, geobox, [np.datetime64(day) for day in DAYS], BANDS, block=self.recipe.grid.block)
        rng = np.random.default_rng(5)
        shape = geobox.shape
        pixels = rng.integers(100, 4500, (len(DAYS), len(BANDS), *shape)).astype(np.int16)
        clouds = rng.random((len(DAYS), 1, *shape)) < 0.4
        pixels = np.where(clouds, np.int16(-32768), pixels)
        pixels[:, :, 30:70, 5:40] = -32768
        # one look is all that winter has, and it saw the north alone
        pixels[:3, :, 45:] = -32768
        pixels[-2:] = -32768
        zarr.open_group(url, mode="r+")["reflectance"][...] = pixels

    def run(
        self, stages: Sequence[str] = ("composites", "fit", "blocks"), *, backwards: bool = False
    ) -> dict[str, Any]:
        """Results by task."""
        self.step.verb.prepare(self.step.settings, self.run_context)
        found = {}
        for stage in stages:
            tasks = [task for task in self.step.tasks if task.stage == stage]
            for task in reversed(tasks) if backwards else tasks:
                context = TaskContext(
                    self.store, "embed", self.step.settings, self.recipe, self.plan.geobox, str(self.recipe.folder)
                )
                found[task.id] = self.step.verb.run(self.step.settings, task, context)
        return found


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Map:
    """The map in blocks of 32 pixels."""
    done = Map(folder, tmp_path_factory.mktemp("run"))
    done.write_cube()
    done.run()
    return done


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        assert one[name].to_numpy().tobytes() == other[name].to_numpy().tobytes(), name


@pytest.mark.parametrize("block", [48, 128])
def test_the_map_does_not_depend_on_the_blocks(made: Map, folder: Path, tmp_path: Path, block: int) -> None:
    other = Map(folder, tmp_path, f"grid.block={block}")
    other.write_cube()
    other.run(backwards=True)
    same(made.rasters, other.rasters)
    assert made.store.read_bytes("embed/fit.safetensors") == other.store.read_bytes("embed/fit.safetensors")


def test_the_map_is_what_the_function_gives(made: Map, folder: Path) -> None:
    bundle = ModelBundle.load(folder / "bundle")
    embedding = mapping.embed(made.cube.load(), bundle, stride=8, min_valid=0.5)
    fit = mapping.Reduction.from_bytes(made.store.read_bytes("embed/fit.safetensors"))
    # in the verb's batches: a row of cells of the whole map would be added up in another order
    table = embedding.to_numpy().reshape(96, -1).T
    expected = fit.derive(table)
    found = made.rasters
    for name in ("embedding", "pca_rgb", "cluster_distance"):
        values = expected[name].T.reshape(found[name].shape)
        np.testing.assert_allclose(found[name], values, atol=1.01 * fit.quantisation.scale, err_msg=name)
    assert (found["cluster"].to_numpy().ravel() == expected["cluster"]).mean() > 0.99
    np.testing.assert_array_equal(np.isfinite(found["embedding"]).all("feature"), np.isfinite(embedding).all("feature"))
    assert found.odc.geobox == embedding.odc.geobox
    place = np.array(Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 445, TOP - 725))
    np.testing.assert_allclose(found["similarity_old_wood"], mapping.nearest(embedding, *place), atol=1e-5)


def test_nodata_stays_nodata_in_every_layer(made: Map) -> None:
    rasters = made.rasters
    unseen = rasters["n_periods"] == 255
    assert 0.05 < float(unseen.mean()) < 0.5
    for name, variable in rasters.data_vars.items():
        if name == "cluster":
            np.testing.assert_array_equal(variable == 65535, unseen)
        elif name != "n_periods":
            lead = [dim for dim in variable.dims if dim not in ("y", "x")]
            np.testing.assert_array_equal(np.isnan(variable).all(lead) if lead else np.isnan(variable), unseen)
    assert set(np.unique(rasters["n_periods"])) <= {1, 2, 3, 4, 255}
    assert (rasters["n_periods"] == 3).any(), "the south has no winter"


def test_ground_without_imagery_is_nodata_whatever_the_block(folder: Path, tmp_path: Path) -> None:
    area = f"grid.area={list(box())}"
    maps = [
        Map(folder, tmp_path / str(block), f"grid.block={block}", area, "steps.1.places=null", share=0.4)
        for block in (32, 128)
    ]
    for one in maps:
        one.write_cube()
        stored = zarr.open_group(one.store.url("cube/cube.zarr"), mode="r+")["reflectance"]
        stored[..., int(COLS * 0.4) :] = -32768
        one.run()
    assert len(maps[0].step.tasks) < 2 * len(maps[0].plan.blocks), "blocks without imagery have no tasks"
    same(maps[0].rasters, maps[1].rasters)


def test_a_task_done_again_gives_the_same(made: Map, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(made.store.root, tmp_path / "run")
    again = Map(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "embed" / "rasters.zarr" / "embedding" / "c" / "0" / "1")
    first = again.run(("blocks",))
    same(made.rasters, again.rasters)
    second = again.run(("blocks",))
    assert {name: result.digest for name, result in first.items()} == {n: r.digest for n, r in second.items()}
    assert all(again.store.size(out.path) == out.bytes for result in first.values() for out in result.outputs)


@pytest.mark.parametrize(
    ("stage", "variable"), [("composites", "cube/cube.zarr/reflectance"), ("fit", "embed/composites.zarr/reflectance")]
)
def test_a_flipped_byte_in_what_is_mapped_is_told(
    made: Map, folder: Path, tmp_path: Path, stage: str, variable: str
) -> None:
    shutil.copytree(made.store.root, tmp_path / "run")
    for shard in (tmp_path / "run" / variable / "c").rglob("*"):
        if shard.is_file():
            content = bytearray(shard.read_bytes())
            content[len(content) // 3] ^= 16
            shard.write_bytes(content)
    with pytest.raises(ReadError, match="a shard is damaged") as caught:
        Map(folder, tmp_path / "run").run((stage,))
    assert variable.rpartition("/")[0] in caught.value.where


def test_a_file_of_bytes_says_its_scale(made: Map, tmp_path: Path) -> None:
    profile = json.loads(made.store.read_bytes("embed/layers.json"))["embedding"]
    assert profile["storage"]["dtype"] == "int8"
    assert profile["derived_from"] == ["embed/model.json"]
    embedding = made.rasters["embedding"]
    write_cog(embedding, tmp_path / "embedding.tif", **profile["storage"])
    with rasterio.open(tmp_path / "embedding.tif") as file:
        assert set(file.dtypes) == {"int8"}
        assert file.nodata == -128
        stored, scale, offset = file.read(masked=True), file.scales, file.offsets
    assert len(set(scale)) == len(set(offset)) == 1
    values = stored.astype(float) * scale[0] + offset[0]
    np.testing.assert_allclose(values.filled(np.nan), embedding, atol=1e-6)
    assert np.abs(stored).max() == 127, "the range is used"


def test_layers_are_known_before_the_run(folder: Path, tmp_path: Path) -> None:
    planned = Map(folder, tmp_path)
    names = [task.key for task in planned.plan.steps[2].tasks]
    assert names == [
        "embedding",
        "pca_rgb",
        "clusters",
        "cluster_distance",
        "similarity_old_wood",
        "similarity_fen",
        "valid_fraction",
        "n_periods",
    ]
    whole = Map(folder, tmp_path, "steps.1.dims=null", "steps.1.clusters=null", "steps.1.combine=concat")
    names = [task.key for task in whole.plan.steps[2].tasks]
    # four periods of 96 features, 64 to a file
    assert names[:6] == [f"embedding_{first}_{first + 63}" for first in range(1, 385, 64)]
    assert "clusters" not in names


def test_all_features_as_floats(folder: Path, tmp_path: Path) -> None:
    done = Map(folder, tmp_path, "steps.1.dims=null", "steps.1.dtype=float32", "steps.1.periods=[JJA]")
    done.write_cube()
    done.run()
    embedding = mapping.embed(
        done.cube.load(), ModelBundle.load(folder / "bundle"), stride=8, min_valid=0.5, periods=["JJA"]
    )
    np.testing.assert_array_equal(done.rasters["embedding"], embedding)
    assert json.loads(done.store.read_bytes("embed/layers.json"))["embedding_1_64"]["storage"] == {}
    # 96 features are two files
    cog = done.plan.steps[2]
    for name, count in (("embedding_1_64", 64), ("embedding_65_96", 32)):
        context = TaskContext(
            done.store,
            "cog",
            cog.settings,
            done.recipe,
            done.plan.geobox,
            str(folder),
            scratch=str(tmp_path / f"scratch_{name}"),
        )
        (task,) = (task for task in cog.tasks if task.key == name)
        cog.verb.run(cog.settings, task, context)
        with rasterio.open(Path(done.store.root) / "cog" / f"{name}.tif") as file:
            assert set(file.dtypes) == {"float32"}
            first = int(name.split("_")[1]) - 1
            values = file.read(masked=True).filled(np.nan)
            np.testing.assert_array_equal(values, embedding.to_numpy()[first : first + count])
            assert file.descriptions[0].endswith(str(first + 1))


def test_a_block_waits_for_all_that_its_windows_reach(made: Map) -> None:
    by_id = {task.id: task for task in made.step.tasks}
    for task in made.step.tasks:
        if task.stage != "blocks":
            continue
        near = [by_id[name] for name in task.depends if "/composites/" in name]
        # whole batches of 4 cells and a halo of 12 pixels
        lattice = mapping.Lattice(made.plan.geobox, 32, 8)
        spans = [
            (span[0] // 32 * 32 - lattice.halo, -(-span[1] // 32) * 32 + lattice.halo)
            for span in (task.payload["y"], task.payload["x"])
        ]
        wanted = {
            other.id
            for other in made.step.tasks
            if other.stage == "composites"
            and all(other.payload[a][0] < s[1] and s[0] < other.payload[a][1] for a, s in zip("yx", spans, strict=True))
        }
        assert wanted <= {other.id for other in near}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["steps.0.bands=[B02,B04]"], InputError, "needs the band B08"),
        (["grid.resolution=20"], InputError, "pixels of 10 m"),
        (["grid.crs=EPSG:4326", "grid.resolution=0.0001"], GridError, "in metres"),
        (["steps.1.stride=12"], InputError, "not a whole number of cells of 12"),
        (["steps.1.window=40"], InputError, "larger than the 32"),
        (["steps.1.window=31"], InputError, "cannot be centred"),
        (["grid.area=[5.8326,50.51,5.836,50.5115]"], InputError, "do not fit in a region"),
        (["steps.1.periods=[{name: spring, days: [100, 101]}]"], InputError, "no date of the cube"),
        (["steps.1.periods=[{name: then, days: [1, 366], years: [2019]}]"], InputError, "no date of the cube"),
        (["steps.1.bundle=nowhere"], InputError, "no model bundle"),
        (["steps.1.bundle=cube"], InputError, "makes no model"),
        (["steps.1.dims=97"], InputError, "96 features"),
        (["steps.1.sample=6"], InputError, "raise sample"),
        (["steps.1.places=nothing"], InputError, "no table 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_planned(
    folder: Path, tmp_path: Path, settings: list[str], error: type[GeoecoError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        Map(folder, tmp_path, *settings)
    assert caught.value.what_to_do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": ("B02", "B05")}, "needs the band B05"),
        ({"resolution": 20.0}, "pixels of 20 m"),
        ({"units": "DN"}, "in units of 'DN'"),
        ({"task": "classification"}, "for classification"),
    ],
)
def test_a_bundle_for_other_imagery_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "bands" in changes:
        changes = {**changes, "normalisation": Normalisation((0.1, 0.1), (0.1, 0.1))}
    save_bundle(tmp_path / "bundle", **changes)
    shutil.copy(folder / "places.csv", tmp_path)
    with pytest.raises(InputError, match=message):
        Map(tmp_path, tmp_path / "run")


def test_a_bundle_with_other_weights_is_refused_before_work(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "recipe")
    weights = tmp_path / "recipe" / "bundle" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        Map(tmp_path / "recipe", tmp_path / "run")
    weights.unlink()
    with pytest.raises(InputError, match=r"lacks its model\.safetensors"):
        Map(tmp_path / "recipe", tmp_path / "run")
    (tmp_path / "recipe" / "bundle" / "mlm.json").write_text("{}")
    with pytest.raises(InputError, match="not the item of a bundle"):
        Map(tmp_path / "recipe", tmp_path / "run")


def test_another_bundle_is_another_map(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "recipe")
    before = Map(tmp_path / "recipe", tmp_path / "run").step.hash
    assert before == Map(folder, tmp_path / "run").step.hash
    save_bundle(tmp_path / "recipe" / "bundle", normalisation=Normalisation((0.2,) * 4, (0.1,) * 4))
    assert Map(tmp_path / "recipe", tmp_path / "run").step.hash != before


def test_places_that_cannot_be_shown_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "recipe")
    table = tmp_path / "recipe" / "places.csv"
    for text, message in {
        "far,10.0,10.0\n": "'far': the place",
        "a b,5.8302,50.5103\na/b,5.8303,50.5104\n": "would share the file",
    }.items():
        table.write_text("name,lon,lat\n" + text)
        with pytest.raises(InputError, match=message):
            Map(tmp_path / "recipe", tmp_path / "run")
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 205, TOP - 505)
    table.write_text(f"name,lon,lat\nhole,{lon},{lat}\n")
    done = Map(tmp_path / "recipe", tmp_path / "run")
    done.write_cube()
    with pytest.raises(InputError, match="no embedding at the place 'hole'"):
        done.run(("composites", "fit"))


def test_places_of_every_script_have_files_of_their_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "recipe")
    names = ["Ystad å", "Ystad a\u030a", "黑龙江", "黑河", "sløjfe", "x" * 70 + "1", "x" * 70 + "2", "!"]
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 205, TOP - 205)
    rows = [f"{name},{lon},{lat}\n" for name in names if name != "Ystad a\u030a"]
    (tmp_path / "recipe" / "places.csv").write_text("name,lon,lat\n" + "".join(rows), encoding="utf-8")
    found = [task.key for task in Map(tmp_path / "recipe", tmp_path / "run").plan.steps[2].tasks]
    files = [name for name in found if name.startswith("similarity_")]
    assert len(set(files)) == len(rows)
    assert all(name.isascii() and len(name) <= 80 for name in files)
    assert files[0] == "similarity_Ystad_a"
    assert files[3].startswith("similarity_sl_jfe_")
    # one name, written with one character or with two
    (tmp_path / "recipe" / "places.csv").write_text(
        "name,lon,lat\n" + "".join(f"{name},{lon},{lat}\n" for name in names[:2]), encoding="utf-8"
    )
    with pytest.raises(InputError, match="would share the file"):
        Map(tmp_path / "recipe", tmp_path / "run")


def test_a_region_without_data_says_so(folder: Path, tmp_path: Path) -> None:
    done = Map(folder, tmp_path, "steps.1.places=null")
    done.write_cube()
    zarr.open_group(done.store.url("cube/cube.zarr"), mode="r+")["reflectance"][...] = -32768
    with pytest.raises(InputError, match="has enough valid pixels"):
        done.run(("composites", "fit"))


@pytest.mark.parametrize(
    "setting",
    [
        "periods=[]",
        "periods=[DJF, DJF]",
        "periods=[{name: x, days: [0, 20]}]",
        "periods=[spring]",
        "min_valid=1.5",
        "dtype=uint8",
        "clusters=1",
        "bundle=../elsewhere",
    ],
)
def test_settings_that_mean_nothing_are_refused(folder: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(GeoecoError):
        Map(folder, tmp_path, f"steps.1.{setting}")
