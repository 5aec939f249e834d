"""The farmland seen from a drone: truth and picture agree, flaws are there on purpose, same seed same bytes."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.features
import shapely
from rio_cogeo.cogeo import cog_validate
from scipy.ndimage import distance_transform_edt
from typer.testing import CliRunner

from geoeco.cli import app
from geoeco.errors import InputError, OutputError
from geoeco.simulate import HABITATS, SPECIES, UavWorld, UavWorldSettings, world_digest, world_settings, write_uav_world

SMALL = {"seed": 42, "size": 256, "gsd": 0.2}
TINY = {"seed": 5, "size": 128, "gsd": 0.35}
CODES = {name: code for code, name, _ in HABITATS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_uav_world(tmp_path_factory.mktemp("uav") / "world", **SMALL).parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_uav_world(tmp_path_factory.mktemp("uav") / "tiny", **TINY).parent


@pytest.fixture(scope="module")
def wide():
    return UavWorld(UavWorldSettings(seed=3, size=512, gsd=0.4))


@pytest.fixture(scope="module")
def crowns(folder):
    return gpd.read_file(folder / "crowns.gpkg", layer="crowns")


def band(path):
    with rasterio.open(path) as source:
        return source.read(1)


def test_the_same_seed_gives_the_same_bytes_wherever_and_another_seed_others(tmp_path, tiny):
    assert world_digest(write_uav_world(tmp_path / "elsewhere.d", **TINY).parent) == world_digest(tiny)
    other = UavWorld(UavWorldSettings(**{**TINY, "seed": 6}))
    assert (other.habitat != band(tiny / "truth" / "habitat.tif")).mean() > 0.3


def test_world_json_holds_settings_and_every_file_of_the_world(tiny):
    assert world_settings(tiny) == TINY
    listed = json.loads((tiny / "world.json").read_text())["files"]
    held = {path.relative_to(tiny).as_posix() for path in tiny.rglob("*") if path.is_file()}
    assert set(listed) | {"world.json"} == held


def test_a_damaged_world_is_written_again_a_whole_one_left_alone_and_another_folder_refused(tmp_path, tiny):
    world = Path(shutil.copytree(tiny, tmp_path / "w")) / "world.json"
    whole = world_digest(tiny)
    before = world.stat().st_mtime_ns
    assert write_uav_world(world.parent, **TINY) == world
    assert world.stat().st_mtime_ns == before
    (world.parent / "dsm.tif").write_bytes(b"short")
    write_uav_world(world.parent, **TINY)
    assert world_digest(world.parent) == whole
    with pytest.raises(OutputError, match="does not hold this simulated world"):
        write_uav_world(world.parent, **{**TINY, "seed": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        write_uav_world(tmp_path / "mine", **TINY)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_world_that_was_killed_is_finished_to_the_same_bytes(tmp_path, tiny, monkeypatch):
    class KilledError(Exception):
        pass

    def kill(world):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(UavWorld, "areas", kill)
        with pytest.raises(KilledError):
            write_uav_world(tmp_path / "k", **TINY)
    assert (tmp_path / "k" / "orthomosaic.tif").exists()
    assert world_digest(write_uav_world(tmp_path / "k", **TINY).parent) == world_digest(tiny)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"size": 64}, {"size": 256, "gsd": 0.1}, {"gsd": 2.0}, {"gsd": float("nan")}]
)
def test_settings_that_make_no_world_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(InputError):
        write_uav_world(tmp_path / "w", **{**SMALL, **wrong})
    assert not (tmp_path / "w").exists()


def test_the_command_writes_a_world_and_says_where(tmp_path, tiny):
    said = CliRunner().invoke(app, ["demo", "uav", str(tiny), "--seed", "5", "--size", "128", "--gsd", "0.35"])
    assert said.exit_code == 0
    assert said.output.strip() == str(tiny / "world.json")


def test_rasters_share_one_projected_grid_and_are_valid_cogs(folder):
    names = ["orthomosaic", "chm", "dsm", "dtm", "labels", "truth/habitat", "truth/species", "truth/instances"]
    grids = set()
    for name in names:
        path = folder / f"{name}.tif"
        assert cog_validate(path, quiet=True)[0]
        with rasterio.open(path) as source:
            grids.add((source.crs.to_epsg(), source.transform, source.shape))
    ((epsg, transform, shape),) = grids
    assert (epsg, transform.a, transform.e, shape) == (32652, 0.2, -0.2, (256, 256))


def test_what_is_not_seen_is_told_by_the_mask_and_by_no_colour(folder):
    with rasterio.open(folder / "orthomosaic.tif") as source:
        image, valid = source.read(), source.dataset_mask() > 0
        assert source.nodata is None
        assert source.dtypes == ("uint8",) * 3
        assert source.tags()["TIFFTAG_DATETIME"].startswith("2025:07:18")
    edge = np.concatenate([valid[0], valid[-1], valid[:, 0], valid[:, -1]])
    assert 0.05 < (~valid).mean() < 0.25
    assert edge.any()
    assert not edge.all()
    # white outside, but a white roof and a black sheet inside
    assert (image[:, ~valid] == 255).all()
    assert (image[:, valid] == 255).all(axis=0).any()
    assert (image[:, valid] == 0).all(axis=0).any()
    with rasterio.open(folder / "dsm.tif") as source:
        np.testing.assert_array_equal(source.read_masks(1) > 0, valid)


def test_labels_are_the_truth_wherever_someone_labelled(folder):
    labels, truth = band(folder / "labels.tif"), band(folder / "truth" / "habitat.tif")
    with rasterio.open(folder / "orthomosaic.tif") as source:
        valid = source.dataset_mask() > 0
    given = labels != 255
    np.testing.assert_array_equal(labels[given], truth[given])
    assert not given[~valid].any()
    assert 0.8 < given[valid].mean() < 0.98
    with rasterio.open(folder / "labels.tif") as source:
        colours = source.colormap(1)
    assert all("#{:02x}{:02x}{:02x}".format(*colours[code]) == colour for code, _, colour in HABITATS)


@pytest.mark.parametrize("seed", range(4))
def test_all_habitats_but_the_background_lie_in_any_world(seed):
    world = UavWorld(UavWorldSettings(seed=seed, size=160, gsd=0.4))
    assert set(np.unique(world.habitat[world.valid])) == set(CODES.values()) - {0}


def test_ridges_are_thin_and_lie_between_plots(wide):
    ridge = wide.layout.habitat == CODES["ridge"]
    half_width = distance_transform_edt(ridge) * wide.settings.gsd
    assert 0.2 < half_width.max() < 1.5
    assert ridge.mean() > 0.01


def test_outlines_are_polygons_and_burn_to_the_instances_by_height(folder, crowns):
    with rasterio.open(folder / "truth" / "instances.tif") as source:
        instances, transform = source.read(1), source.transform
        assert source.nodata == 0
    assert crowns.crs.to_epsg() == 32652
    assert crowns["crown_id"].tolist() == list(range(1, len(crowns) + 1))
    assert crowns.geometry.is_valid.all()
    order = crowns.sort_values(["height_m", "crown_id"])
    burnt = rasterio.features.rasterize(
        zip(order.geometry, order["crown_id"], strict=True), instances.shape, transform=transform, dtype="uint32"
    )
    np.testing.assert_array_equal(burnt, instances)
    # not the stairs of pixels: areas are no multiples of a pixel's
    stairs = crowns.area / 0.04
    assert np.abs(stairs - stairs.round()).max() > 0.1


def test_the_canopy_is_as_high_in_each_crown_as_the_table_says(folder, crowns):
    instances, chm = band(folder / "truth" / "instances.tif"), band(folder / "chm.tif")
    heights = crowns.set_index("crown_id")["height_m"]
    checked = 0
    for crown, height in heights.items():
        here = chm[instances == crown]
        if len(here) and (here != -9999).all():
            checked += 1
            assert abs(float(here.max()) - height) < 0.011, crown
    assert checked > 0.6 * len(crowns)
    dsm, dtm = band(folder / "dsm.tif"), band(folder / "dtm.tif")
    seen = chm != -9999
    np.testing.assert_allclose(dsm[seen] - dtm[seen], chm[seen], atol=1e-4)
    assert chm[seen].min() >= 0
    assert np.ptp(dtm[seen]) < 20


def test_crowns_stand_where_their_habitat_says(wide):
    names = {"forest belt", "woody area", "arbor-shrub-grass compound land", "scattered trees"}
    under = wide.habitat[wide.instance > 0]
    assert {name for name, code in CODES.items() if code in under} == names
    assert (wide.instance[wide.habitat == CODES["scattered trees"]] > 0).all()
    np.testing.assert_array_equal(wide.species > 0, wide.instance > 0)


def test_species_are_told_by_name_and_one_is_rare(wide):
    table = wide.crown_table()
    counts = table["species"].value_counts()
    assert set(counts.index) == set(SPECIES)
    assert 3 <= counts[SPECIES[-1]] <= 10
    assert counts.drop(SPECIES[-1]).max() > 30
    assert table["diameter_m"].between(2.0, 12.0).all()


def test_one_crown_overlaps_one_has_two_parts_and_some_are_cut_by_the_edge(wide):
    table = wide.crown_table()
    first, second = table.sindex.query(table.geometry, predicate="intersects")
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a < b]
    overlaps = [table.geometry[a].intersection(table.geometry[b]).area for a, b in pairs]
    assert sum(area > 1e-6 for area in overlaps) in range(1, 4)
    assert sum(len(shapely.get_parts(shape)) == 2 for shape in table.geometry) == 1
    cut = [len(set(wide.valid[wide.instance == crown])) == 2 for crown in table["crown_id"]]
    assert 0 < sum(cut) < 0.3 * len(table)


def test_areas_are_disjoint_cover_the_crowns_and_share_habitats_and_species(wide):
    areas, table = wide.areas(), wide.crown_table()
    assert set(areas["split"]) == {"train", "val", "test"}
    union = shapely.union_all(areas.geometry)
    assert areas.area.sum() == pytest.approx(union.area, rel=1e-9)
    assert table.within(union).all()
    sets = {
        name: rasterio.features.geometry_mask(
            part.geometry, wide.valid.shape, transform=wide.geobox.affine, invert=True
        )
        for name, part in areas.groupby("split")
    }
    for here in sets.values():
        assert len(np.unique(wide.habitat[here & wide.valid])) >= 13
        assert len(np.unique(wide.species[here & wide.valid])) >= 5


def test_closeups_lie_where_the_receiver_says_within_its_error(folder, crowns):
    points = gpd.read_file(folder / "closeups.gpkg", layer="closeups")
    assert points["crown_id"].isin([0, *crowns["crown_id"]]).all()
    (lost,) = np.flatnonzero(points["crown_id"] == 0)
    assert not crowns.intersects(points.geometry[lost]).any()
    outlines = crowns.set_index("crown_id").geometry
    there = points[points["crown_id"] > 0]
    away = np.array([outlines[c].distance(p) for c, p in zip(there["crown_id"], there.geometry, strict=True)])
    assert np.mean(away == 0) > 0.6
    assert away.max() < 1.5
    assert there["accuracy_m"].between(0.2, 0.4).all()
    assert there["crown_id"].value_counts().max() >= 2
    assert points["date"].isin(["2025-07-19", "2025-07-20"]).all()
    for name in points["photo"]:
        with (
            warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning),
            rasterio.open(folder / name) as photo,
        ):
            assert photo.driver == "JPEG"
            assert photo.shape == (224, 224)


def test_one_closeup_lies_between_two_crowns(folder, crowns):
    points = gpd.read_file(folder / "closeups.gpkg", layer="closeups")
    near = [(crowns.distance(p) < 0.5).sum() for p in points.geometry]
    assert max(near) >= 2


def test_receivers_err_by_three_decimetres(wide):
    at = {crown.crown_id: (crown.east, crown.north, crown.diameter) for crown in wide.crowns}
    beyond = [
        max(0.0, np.hypot(p.east - at[p.crown.crown_id][0], p.north - at[p.crown.crown_id][1])
            - 0.3 * at[p.crown.crown_id][2])
        for p in wide.closeups if p.crown is not None
    ]  # fmt: skip
    # photos are taken above the inner part of a crown; what leads out of it is the receiver's error
    assert 0.02 < np.sqrt(np.mean(np.square(beyond))) < 0.4


def test_photo_points_are_probabilities_of_what_lies_round_them(folder):
    points = pd.read_csv(folder / "photo_points.csv")
    names = [name for _, name, _ in HABITATS]
    assert list(points.columns) == ["lon", "lat", "radius_m", *names]
    np.testing.assert_allclose(points[names].sum(axis=1), 1.0, atol=1e-9)
    assert (points[names] >= 0).all(axis=None)
    truth = band(folder / "truth" / "habitat.tif")
    with rasterio.open(folder / "orthomosaic.tif") as source:
        place = gpd.GeoSeries.from_xy(points["lon"], points["lat"], crs=4326).to_crs(source.crs)
        rows, cols = rasterio.transform.rowcol(source.transform, place.x, place.y)
    own = points[names].to_numpy()[np.arange(len(points)), truth[rows, cols]]
    # what is at the point itself is among what was seen
    assert (own > 0).all()
    assert own.mean() > 0.4


def test_colour_alone_does_not_tell_habitats(wide):
    """The nearest mean colour is right for less than half of the ground, though far more often than chance."""
    picture = wide.picture()[:, wide.valid].astype(float).T
    truth = wide.habitat[wide.valid]
    codes = np.unique(truth)
    means = np.stack([picture[truth == code].mean(axis=0) for code in codes])
    told = codes[((picture[::7, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
    right = np.mean([np.mean(told[truth[::7] == code] == code) for code in codes])
    assert 1.5 / len(codes) < right < 0.5
