"""The folder that `write_s2_world` leaves: same bytes, never half a world, a catalogue that any STAC reader takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from pyproj import Transformer
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import Point, shape

from geoeco.errors import InputError, OutputError
from geoeco.sensors import sentinel2
from geoeco.simulate import read_truth, world_digest, world_settings, write_s2_world
from geoeco.simulate.products import BANDS, CASES

CATALOGS = Path(__file__).parents[2] / "catalogs"
TINY = {"size": 48, "years": 1, "revisit_days": 90}


def items_of(folder):
    return list(pystac.Catalog.from_file(str(folder / "catalog.json")).get_items(recursive=True))


def test_one_seed_gives_one_world_whatever_the_number_of_workers(tmp_path):
    one = write_s2_world(tmp_path / "a", **TINY, workers=1).parent
    two = write_s2_world(tmp_path / "b", **TINY, workers=3).parent
    other = write_s2_world(tmp_path / "c", **TINY, seed=43).parent
    assert world_digest(one) == world_digest(two) != world_digest(other)


def test_a_killed_world_is_noticed_and_finished_to_the_same_bytes(tmp_path):
    root = write_s2_world(tmp_path / "w", **TINY)
    whole = world_digest(root.parent)

    class KilledError(Exception):
        pass

    def kill(done, total):
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        write_s2_world(tmp_path / "k", **TINY, progress=kill)
    assert not (tmp_path / "k" / "catalog.json").exists()
    (tmp_path / "k" / "catalog.json.part").write_text("half", encoding="utf-8")
    assert world_digest(write_s2_world(tmp_path / "k", **TINY).parent) == whole


def test_a_whole_world_is_left_alone_and_a_damaged_one_is_written_again(tmp_path):
    root = write_s2_world(tmp_path / "w", **TINY)
    whole, steps = world_digest(root.parent), []
    assert write_s2_world(root.parent, **TINY, progress=lambda *step: steps.append(step)) == root
    assert steps == []
    next(root.parent.rglob("B04.tif")).write_bytes(b"short")
    write_s2_world(root.parent, **TINY, progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] == len(steps) > 0
    assert world_digest(root.parent) == whole


def test_a_folder_with_anything_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="not empty"):
        write_s2_world(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    write_s2_world(tmp_path / "w", **TINY)
    with pytest.raises(OutputError, match="does not hold this simulated world"):
        write_s2_world(tmp_path / "w", **{**TINY, "seed": 7})


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 100},
        {"size": 6},
        {"years": 0},
        {"clouds": 1.5},
        {"noise": -0.1},
        {"noise": float("nan")},
        {"hemisphere": "east"},
        {"seed": -1},
        {"first_year": 1990},
        {"location": (7.0, 50.0)},
        {"location": (6.0, -20.0)},
        {"scl_omission": -0.1},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(InputError):
        write_s2_world(tmp_path / "w", **wrong)
    assert not (tmp_path / "w").exists()


def test_every_raster_is_a_valid_cog(small_world):
    item = items_of(small_world)[0]
    rasters = [asset.get_absolute_href() for asset in item.assets.values()]
    rasters += [str(path) for path in (small_world / "truth").rglob("*.tif")]
    for href in rasters:
        valid, errors, warnings = cog_validate(href)
        assert valid, (href, errors)
        assert not warnings, (href, warnings)
        with rasterio.open(href) as source:
            assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_large_tiles_have_overviews_that_leave_nodata_out(tmp_path):
    folder = write_s2_world(tmp_path / "w", size=720, years=1, revisit_days=400).parent
    href = next(folder.rglob("B04.tif"))
    assert cog_validate(href)[0]
    with rasterio.open(href) as source:
        assert source.overviews(1)
    with rasterio.open(next(folder.rglob("SCL.tif"))) as source:
        assert source.shape == (360, 360)


def test_the_catalogue_is_self_contained_and_can_be_moved(small_world, tmp_path):
    moved = shutil.copytree(small_world, tmp_path / "elsewhere")
    for path in moved.rglob("*.json"):
        assert str(small_world) not in path.read_text(encoding="utf-8")
    items = items_of(moved)
    assert len(items) > 60
    for item in items:
        assert item.collection_id == "sentinel-2-l2a"
        for asset in item.assets.values():
            href = asset.get_absolute_href()
            assert href.startswith(str(moved))
            assert not asset.href.startswith("/")


def test_items_describe_their_rasters(small_world):
    for item in items_of(small_world)[::7]:
        assert set(item.assets) == {band.key for band in BANDS} | {"scl"}
        assert pystac.Item.from_dict(item.to_dict()).id == item.id
        assert 0 <= item.ext.eo.cloud_cover <= 100
        assert -90 < item.ext.view.sun_elevation < 90
        assert item.properties["grid:code"] == f"MGRS-{item.id.split('_')[1]}"
        for key, asset in item.assets.items():
            with rasterio.open(asset.get_absolute_href()) as source:
                assert source.nodata == 0
                assert list(source.shape) == asset.ext.proj.shape
                assert list(source.transform[:6]) == asset.ext.proj.transform
                assert source.crs.to_epsg() == item.ext.proj.epsg
                assert source.dtypes[0] == asset.extra_fields["raster:bands"][0]["data_type"]
                assert source.res[0] == asset.extra_fields["gsd"]
                assert source.transform.c % 60 == 0
                assert source.transform.f % 60 == 0
                if key == "scl":
                    scl = source.read(1)
        seen = scl[scl > 0]
        share = np.isin(seen, (8, 9, 10)).mean() * 100
        assert item.ext.eo.cloud_cover == pytest.approx(share, abs=1e-4)


def test_bands_are_those_of_the_sensor_room():
    assert [(b.name, b.key, b.resolution) for b in BANDS] == [
        (b.name, b.common_name, b.resolution) for b in sentinel2.BANDS.values()
    ]


def test_footprints_hold_the_seen_pixels_and_no_others(small_world):
    partial = [item for item in items_of(small_world) if item.properties["s2:nodata_pixel_percentage"] > 5]
    assert partial
    for item in partial:
        outline = shape(item.geometry)
        assert outline.is_valid
        with rasterio.open(item.assets["blue"].get_absolute_href()) as source:
            dn, transform, crs = source.read(1), source.transform, source.crs
        rows, cols = np.mgrid[0 : dn.shape[0] : 5, 0 : dn.shape[1] : 5]
        xs, ys = transform @ (cols.ravel() + 0.5, rows.ravel() + 0.5)
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(xs, ys)
        inside = np.array([outline.contains(Point(p)) for p in zip(lon, lat, strict=True)])
        assert (inside == (dn[rows, cols].ravel() > 0)).mean() > 0.97


def test_flags_say_what_the_case_says(small_world, scenes):
    cases = set()
    for item in items_of(small_world):
        row = scenes[item.id]
        case = CASES[row["case"]]
        cases.add(case.name)
        assert item.properties.get("earthsearch:boa_offset_applied") is case.flag
        raster = item.assets["red"].extra_fields["raster:bands"][0]
        assert raster.get("offset") == case.offset
        assert raster.get("scale") == (None if case.offset is None else 1e-4)
        old = item.properties["s2:processing_baseline"] < "04.00"
        assert old == case.name.startswith("old")
        assert int(row["added_to_dn"]) == case.added
    assert cases == set(CASES)


def test_the_date_does_not_tell_the_offset(scenes):
    before = {row["added_to_dn"] for row in scenes.values() if row["solar_day"] < "2022-01-25"}
    after = {row["added_to_dn"] for row in scenes.values() if row["solar_day"] >= "2022-01-25"}
    assert before == after == {"0", "1000"}


def test_two_items_of_one_day_share_no_pixel_where_the_datastrip_ended(small_world, scenes):
    second = [name for name in scenes if name.endswith("_1_L2A")]
    assert second
    covered = []
    for name in second:
        parts = []
        for sequence in "01":
            path = small_world / "sentinel-2-l2a" / name.replace("_1_L2A", f"_{sequence}_L2A") / "B02.tif"
            with rasterio.open(path) as source:
                parts.append(source.read(1) > 0)
        assert not (parts[0] & parts[1]).any()
        covered.append((parts[0] | parts[1]).mean())
    assert max(covered) == 1.0


def test_no_item_is_without_a_single_pixel(scenes):
    assert min(float(row["valid"]) for row in scenes.values()) > 0


def test_read_truth_gives_the_grid_of_the_imagery(small_world):
    truth = read_truth(small_world / "catalog.json", "31UGS")
    with rasterio.open(next((small_world / "sentinel-2-l2a").glob("*31UGS*/B02.tif"))) as source:
        assert truth.rio.crs == source.crs
        assert truth.rio.transform() == source.transform
    assert truth.greenup.dims == ("year", "cycle", "y", "x")
    assert truth.year.values.tolist() == [2021]
    assert set(np.unique(truth.cover)) == {1, 2, 3, 4, 5, 6}
    assert world_settings(small_world)["size"] == 60


def test_read_truth_names_what_there_is(small_world, tmp_path):
    with pytest.raises(InputError, match="31UGS"):
        read_truth(small_world, "33TWN")
    with pytest.raises(InputError, match="2021"):
        read_truth(small_world, "31UGS", years=[1999])
    with pytest.raises(InputError):
        read_truth(tmp_path, "31UGS")
    with pytest.raises(InputError):
        world_settings(tmp_path)


def test_a_world_on_the_antimeridian_follows_rfc_7946(tmp_path):
    folder = write_s2_world(
        tmp_path / "w", size=48, years=1, revisit_days=150, hemisphere="south", location=(180.0, -16.5)
    ).parent
    items = items_of(folder)
    assert {item.properties["mgrs:utm_zone"] for item in items} == {1, 60}
    days = {row.split(",")[0]: row.split(",")[2] for row in (folder / "truth" / "scenes.csv").read_text().splitlines()}
    for item in items:
        outline = shape(item.geometry)
        west, _, east, _ = item.bbox
        assert -180 <= outline.bounds[0] <= outline.bounds[2] <= 180
        assert outline.area < 0.01
        assert (west > east) == (outline.geom_type == "MultiPolygon")
        # at 180 degrees the morning of a solar day is still the evening before in UTC
        assert np.datetime64(item.datetime.date()) + np.timedelta64(1, "D") == np.datetime64(days[item.id])
        assert sentinel2.solar_day(item, near=180.0) == np.datetime64(days[item.id])
    assert any(item.bbox[0] > item.bbox[2] for item in items)


def test_the_mcd12q2_table_holds_the_truth_fills_and_rows_to_reject(small_world):
    import pandas as pd

    table = pd.read_csv(small_world / "truth" / "mcd12q2.csv")
    assert (table.filter(regex="Greenup_|Dormancy_").stack().between(11138, 32767)).all()
    assert set(table.QA_Overall_1) <= {0, 3, 32767}
    none = table.NumCycles == 32767
    assert none.any()
    assert (table.loc[none, "Greenup_1"] == 32767).all()
    truth = read_truth(small_world, "31UGS")
    to_tile = Transformer.from_crs("EPSG:4326", truth.rio.crs, always_xy=True)
    checked = 0
    for row in table[table.QA_Overall_1 == 0].itertuples():
        x, y = to_tile.transform(row.lon, row.lat)
        if not (truth.x.min() < x < truth.x.max() and truth.y.min() < y < truth.y.max()):
            continue
        there = truth.sel(x=x, y=y, year=row.year, method="nearest").sel(cycle=1)
        assert row.Greenup_1 == pytest.approx(float(there.greenup), abs=2)
        assert row.Dormancy_1 == pytest.approx(float(there.dormancy), abs=2)
        checked += 1
    assert checked >= 3


def test_curves_and_covers_are_written(small_world):
    covers = json.loads((small_world / "truth" / "covers.json").read_text(encoding="utf-8"))
    assert [cover["name"] for cover in covers] == ["deciduous", "crop", "grassland", "evergreen", "bare", "water"]
    lines = (small_world / "truth" / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "date,deciduous,crop,grassland,evergreen,bare,water"
    assert lines[1].startswith("2020-08-01,")


def test_a_folder_with_a_dot_in_its_name_holds_the_same_world(tmp_path):
    folders = [tmp_path / "plain", tmp_path / "v1.5"]
    for folder in folders:
        write_s2_world(folder, size=48, years=1, revisit_days=120)
    assert world_digest(folders[0]) == world_digest(folders[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "v1.5"]


def test_the_catalogue_that_comes_with_geoeco_describes_this_world(small_world):
    described = pystac.Catalog.from_file(str(CATALOGS / "catalog.json"))
    (here,) = described.get_children()
    world = next(iter(pystac.Catalog.from_file(str(small_world / "catalog.json")).get_children()))
    same = ("id", "title", "license", "keywords", "summaries", "item_assets")
    assert {key: here.to_dict()[key] for key in same} == {key: world.to_dict()[key] for key in same}
    assert not list(here.get_items())
    hrefs = [link["href"] for part in (described, here) for link in part.to_dict(include_self_link=False)["links"]]
    assert all(href.startswith(".") for href in hrefs)
