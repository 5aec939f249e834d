"""Objects of many tiles: each once, whatever the order; crowns from rasters, their heights, and how well they match."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rioxarray  # noqa: F401  (registers .rio)
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from geoeco.errors import GridError, InputError
from geoeco.mapping import (
    crown_heights,
    crowns_from_instances,
    gather_objects,
    instances_from_crowns,
    own_objects,
    relative_f1,
    suppress_overlaps,
)

AFFINE = Affine(0.5, 0, 500000, 0, -0.5, 5200000)
GRID = GeoBox((200, 300), AFFINE, "EPSG:32652")
#: Tiles of 100 pixels that overlap by 40.
TILES = np.array([(y, y + 100, x, x + 100) for y in (0, 60, 100) for x in (0, 60, 120, 180, 200)])


def raster(values, affine=AFFINE, crs=32652) -> xr.DataArray:
    values = np.asarray(values)
    array = xr.DataArray(values, dims=("y", "x"), name="values").rio.write_crs(crs).rio.write_transform(affine)
    return array.assign_coords(
        y=affine.f + affine.e * (np.arange(values.shape[0]) + 0.5),
        x=affine.c + affine.a * (np.arange(values.shape[1]) + 0.5),
    )


def discs(count=80, seed=0, shape=(200, 300), radius=(2.0, 8.0)):
    """Discs that do not overlap, as polygons in pixels, all inside the raster or cut off by its edge."""
    rng = np.random.default_rng(seed)
    frame = shapely.box(0, 0, shape[1], shape[0])
    found = []
    for _ in range(20 * count):
        disc = shapely.Point(rng.uniform(0, shape[1]), rng.uniform(0, shape[0])).buffer(rng.uniform(*radius))
        disc = disc.intersection(frame)
        if disc.area > 4 and not any(disc.intersects(other) for other in found):
            found.append(disc)
        if len(found) == count:
            break
    return np.array(found)


def on_map(shapes, affine=AFFINE):
    return shapely.transform(shapes, lambda p: np.stack(affine * p.T, axis=1))


def seen_by_tiles(shapes, tiles=TILES):
    """What a perfect detector finds in each tile: every disc, cut off by the tile's edge."""
    rows = []
    for number, (top, bottom, left, right) in enumerate(tiles.tolist()):
        cut = shapely.intersection(shapes, shapely.box(left, top, right, bottom))
        rows += [(number, name, shape) for name, shape in enumerate(cut) if shape.area > 0]
    tile, name, cut = zip(*rows, strict=True)
    return gpd.GeoDataFrame({"tile": tile, "disc": name}, geometry=on_map(np.array(cut)), crs=32652)


# --- ownership -------------------------------------------------------------------------------------------------------


def test_every_object_is_counted_once_and_whole():
    shapes = discs()
    detections = seen_by_tiles(shapes)
    assert len(detections) > 2 * len(shapes)
    owned = own_objects(detections, TILES, GRID)
    assert sorted(owned["disc"]) == list(range(len(shapes)))
    for row in owned.itertuples():
        assert row.geometry.area == pytest.approx(on_map(shapes[row.disc]).area)
    assert owned.attrs["n_foreign"] + owned.attrs["n_cut"] + len(owned) == len(detections)


def test_at_the_edge_of_the_mosaic_objects_stay_and_are_flagged():
    shapes = discs()
    owned = own_objects(seen_by_tiles(shapes), TILES, GRID)
    edge = shapely.box(0, 0, 300, 200).exterior
    expected = {at for at, shape in enumerate(shapes) if shape.distance(edge) < 1e-6}
    assert expected
    assert set(owned.loc[owned["edge"], "disc"]) == expected


def test_an_object_larger_than_the_overlap_is_cut_and_said_to_be():
    wide = np.array([shapely.box(10, 70, 190, 80)])
    owned = own_objects(seen_by_tiles(wide), TILES, GRID)
    assert len(owned) == 0
    assert owned.attrs["n_cut"] >= 1


def test_a_band_along_inner_edges_does_not_take_what_the_neighbour_sees_whole():
    shapes = discs(radius=(2.0, 5.0))
    owned = own_objects(seen_by_tiles(shapes), TILES, GRID, edge_px=3)
    assert sorted(owned["disc"]) == list(range(len(shapes)))


def test_the_order_of_tiles_and_objects_does_not_matter():
    detections = seen_by_tiles(discs())
    before = own_objects(detections, TILES, GRID)
    rng = np.random.default_rng(2)
    order = rng.permutation(len(TILES))
    other = detections.sample(frac=1, random_state=3)
    other["tile"] = np.argsort(order)[other["tile"]]
    after = own_objects(other, TILES[order], GRID)
    assert after.drop(columns="geometry").equals(before.drop(columns="geometry"))
    assert (shapely.to_wkb(after.geometry.array) == shapely.to_wkb(before.geometry.array)).all()


def test_a_crescent_belongs_where_it_lies():
    """Its centroid is outside of it, in the core of another tile."""
    ring = shapely.Point(70, 50).buffer(25).difference(shapely.Point(76, 50).buffer(24))
    assert not ring.contains(ring.centroid)
    detections = seen_by_tiles(np.array([ring]), np.array([(0, 200, 0, 100), (0, 200, 40, 300)]))
    owned = own_objects(detections, [(0, 200, 0, 100), (0, 200, 40, 300)], GRID)
    assert len(owned) == 1


@pytest.mark.parametrize(
    ("objects", "windows", "error", "message"),
    [
        (lambda f: f.to_crs(4326), TILES, GridError, "on a grid in"),
        (lambda f: f.drop(columns="tile"), TILES, InputError, "column 'tile'"),
        (lambda f: f.assign(tile=99), TILES, InputError, "column 'tile'"),
        (lambda f: f, TILES[:-1], InputError, "not all combinations"),
        (lambda f: f, [(0, 100, 0, 100), (0, 100, 120, 300)], InputError, "without gaps"),
        (lambda f: f, [(0, 100, 0, 100), (0, 100, 20, 80)], InputError, "without gaps"),
    ],
)
def test_tiles_that_are_no_grid_are_refused(objects, windows, error, message):
    with pytest.raises(error, match=message):
        own_objects(objects(seen_by_tiles(discs(5))), windows, GRID)


# --- overlaps --------------------------------------------------------------------------------------------------------


def boxes(*corners, **columns):
    shapes = [shapely.box(*corner) for corner in corners]
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=32652)


def test_a_chain_of_touching_objects_is_not_one_object():
    """A overlaps B and B overlaps C, A and C not at all: only B goes (clusters would leave one of the three)."""
    chain = boxes((0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10), score=[0.9, 0.8, 0.7])
    assert suppress_overlaps(chain, 0.4).index.tolist() == [0, 2]
    assert suppress_overlaps(chain.assign(score=[0.7, 0.9, 0.8]), 0.4).index.tolist() == [1]


def test_small_in_large_is_an_overlap_by_the_smaller_one_only():
    pair = boxes((0, 0, 10, 10), (2, 2, 4, 4), score=[0.5, 0.9])
    assert len(suppress_overlaps(pair, 0.5)) == 2
    assert suppress_overlaps(pair, 0.5, measure="smaller").index.tolist() == [1]


def test_just_the_threshold_is_not_too_much():
    half = boxes((0, 0, 3, 1), (1, 0, 4, 1), score=[1, 0.5])
    assert len(suppress_overlaps(half, 0.5)) == 2
    assert len(suppress_overlaps(half, 0.499)) == 1


def test_which_objects_stay_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(7)
    corners = rng.integers(0, 40, (120, 2))
    frame = boxes(*[(x, y, x + 6, y + 6) for x, y in corners], score=rng.integers(0, 4, 120) / 4)
    frame["crown_id"] = np.arange(120)
    for identifier in ("crown_id", None):
        kept = suppress_overlaps(frame, 0.3, identifier=identifier)
        for seed in range(3):
            other = suppress_overlaps(frame.sample(frac=1, random_state=seed), 0.3, identifier=identifier)
            if identifier:
                assert set(other["crown_id"]) == set(kept["crown_id"])
            # without identifiers, twins of one place and score cannot be told apart
            assert sorted(other.geometry.to_wkb()) == sorted(kept.geometry.to_wkb())
    # by the definition, one after the other
    left, stays = frame.sort_values(["score", "crown_id"], ascending=[False, True]), []
    for row in left.itertuples():
        if all(row.geometry.intersection(o).area / row.geometry.union(o).area <= 0.3 for _, o in stays):
            stays.append((row.crown_id, row.geometry))
    assert {name for name, _ in stays} == set(suppress_overlaps(frame, 0.3, identifier="crown_id")["crown_id"])


@pytest.mark.parametrize(
    ("change", "threshold", "message"),
    [
        (lambda f: f.assign(score=np.nan), 0.5, "not every object"),
        (lambda f: f.drop(columns="score"), 0.5, "not every object"),
        (lambda f: f, 1.5, "threshold"),
        (lambda f: f.set_geometry([shapely.Polygon(), f.geometry[1]]), 0.5, "not valid or empty"),
        (
            lambda f: f.set_geometry([shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), f.geometry[1]]),
            0.5,
            "not valid",
        ),
    ],
)
def test_objects_that_cannot_be_ranked_are_refused(change, threshold, message):
    with pytest.raises(InputError, match=message):
        suppress_overlaps(change(boxes((0, 0, 1, 1), (0, 0, 2, 2), score=[1.0, 0.5])), threshold)


def test_tables_of_two_zones_are_brought_together():
    west = gpd.GeoDataFrame({"score": [0.5]}, geometry=[shapely.box(700000, 5200000, 700010, 5200010)], crs=32652)
    east = west.to_crs(32653)
    both = gather_objects([west, east])
    assert both.crs == west.crs
    assert len(both) == 2
    assert both.geometry[0].symmetric_difference(both.geometry[1]).area < 1e-3
    assert len(suppress_overlaps(both, 0.5)) == 1
    assert east.crs.to_epsg() == 32653, "the caller's table is as it was"
    assert gather_objects([west, east], 4326).crs.to_epsg() == 4326
    with pytest.raises(GridError, match="no CRS"):
        gather_objects([west, east.set_crs(None, allow_override=True)])
    with pytest.raises(InputError, match="no table"):
        gather_objects([])


# --- crowns ----------------------------------------------------------------------------------------------------------


def test_crowns_of_a_raster_have_its_pixels_and_their_numbers():
    shapes = discs(30)
    numbers = np.arange(1, 31) * 1000
    painted = rasterize(zip(shapes, numbers.tolist(), strict=True), (200, 300), dtype=np.uint32)
    crowns = crowns_from_instances(raster(painted))
    assert crowns["crown_id"].tolist() == sorted(set(np.unique(painted).tolist()) - {0})
    again = rasterize(zip(crowns.geometry, crowns["crown_id"], strict=True), (200, 300), transform=AFFINE)
    np.testing.assert_array_equal(again, painted)
    counts = dict(zip(*np.unique(painted, return_counts=True), strict=True))
    assert crowns["area_m2"].tolist() == [counts[name] / 4 for name in crowns["crown_id"]]


def test_a_crown_in_pieces_stays_one_crown():
    values = np.zeros((12, 20), np.int32)
    values[1:5, 1:5] = 7
    values[2, 2] = 0
    values[1:4, 10:13] = 7
    values[8, 8] = 7
    values[9, 16] = 2
    crowns = crowns_from_instances(raster(values)).set_index("crown_id")
    assert crowns.geom_type.to_dict() == {2: "Polygon", 7: "MultiPolygon"}
    assert crowns.loc[7, "area_m2"] == (15 + 9 + 1) / 4
    tidy = crowns_from_instances(raster(values), fill_holes_m2=1, min_piece_m2=1).set_index("crown_id")
    assert tidy.loc[7, "area_m2"] == (16 + 9) / 4
    assert tidy.loc[2, "area_m2"] == 1 / 4, "the largest piece of a crown stays, however small"


def test_crowns_and_their_raster_and_back(tmp_path):
    import rasterio

    from geoeco.outputs import write_cog

    shapes = discs(30)
    crowns = gpd.GeoDataFrame({"crown_id": np.arange(30) + 70_000}, geometry=on_map(shapes), crs=32652)
    crowns.loc[30] = [5, crowns.geometry[0].buffer(1)]
    painted = instances_from_crowns(crowns, GRID)
    assert painted.attrs["n_contested"] == (painted == 70_000).sum(), "the smaller of two keeps its pixels"
    again = crowns_from_instances(painted)
    assert set(again["crown_id"]) == set(crowns["crown_id"])
    for row in again.itertuples():
        true = crowns.set_index("crown_id").geometry[row.crown_id]
        assert row.crown_id == 5 or row.geometry.intersection(true).area > 0.7 * row.geometry.union(true).area
    np.testing.assert_array_equal(instances_from_crowns(again, GRID), painted)
    path = write_cog(painted, tmp_path / "instance.tif", dtype="uint32", nodata=0).path
    with rasterio.open(path) as file:
        assert (file.dtypes[0], file.nodata) == ("uint32", 0)
        np.testing.assert_array_equal(file.read(1), painted)
    for wrong in (crowns.assign(crown_id=0), crowns.assign(crown_id=3), crowns.drop(columns="crown_id")):
        with pytest.raises(InputError, match="each once"):
            instances_from_crowns(wrong, GRID)
    assert not instances_from_crowns(crowns.iloc[:0], GRID).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.ones((3, 3)), "whole numbers"), (np.full((3, 3), -2), "-2"), (np.full((3, 3), 2**31), "2147483648")],
)
def test_rasters_that_number_nothing_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        crowns_from_instances(raster(values))


def heights(shape=(200, 300), seed=0):
    rng = np.random.default_rng(seed)
    values = rng.gamma(2, 3, shape).astype(np.float32)
    values[rng.random(shape) < 0.1] = np.nan
    return raster(values)


def test_heights_are_those_of_the_pixels_inside():
    shapes, chm = discs(40), heights()
    crowns = gpd.GeoDataFrame({"crown_id": np.arange(40)}, geometry=on_map(shapes), crs=32652)
    found = crown_heights(crowns, chm)
    x, y = np.meshgrid(np.arange(300) + 0.5, np.arange(200) + 0.5)
    for row, shape in zip(found.itertuples(), shapes, strict=True):
        inside = chm.to_numpy()[shapely.contains_xy(shape, x, y)]
        assert row.height_max == pytest.approx(np.nanmax(inside))
        assert row.height_p95 == pytest.approx(np.nanpercentile(inside.astype(float), 95))
        assert row.height_fraction == pytest.approx(np.isfinite(inside).mean())
    away = crown_heights(crowns.iloc[:1].set_geometry([shapely.box(0, 0, 1, 1)]), chm)
    assert np.isnan(away["height_max"][0])
    with pytest.raises(GridError):
        crown_heights(crowns.to_crs(32653), chm)
    with pytest.raises(InputError):
        crown_heights(crowns, chm, percentile=101)


def test_a_move_of_one_pixel_breaks_the_heights_of_some_crowns():
    """The test of the method: the highest pixel of each crown is its recorded height, in place and nowhere else."""
    shapes, chm = discs(60, radius=(1.0, 4.0)), heights()
    crowns = gpd.GeoDataFrame(geometry=on_map(shapes), crs=32652)
    x, y = np.meshgrid(np.arange(300) + 0.5, np.arange(200) + 0.5)
    recorded = np.array([np.nanmax(chm.to_numpy()[shapely.contains_xy(shape, x, y)]) for shape in shapes])
    np.testing.assert_array_equal(crown_heights(crowns, chm)["height_max"], recorded.astype(float))
    moved = crown_heights(crowns.set_geometry(crowns.translate(0.5, 0)), chm)["height_max"]
    assert (moved != recorded).mean() > 0.1


# --- scores ----------------------------------------------------------------------------------------------------------


def test_objects_against_themselves_are_all_right():
    crowns = gpd.GeoDataFrame(geometry=on_map(discs()), crs=32652)
    scores = relative_f1(crowns, crowns)
    assert scores.f1_75 == 1
    assert scores.f1_50_95 == 1
    assert scores.by_size["true"].sum() == len(crowns)
    assert scores.by_size["from_m2"].tolist() == [0, 9, 25, 49, 100]


def test_a_case_worked_by_hand():
    true = boxes((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 42, 2))
    # IoU 0.8 with the first; 0.5 with the second, twice; one that is nothing
    found = boxes((0, 0, 10, 8), (20, 0, 30, 5), (20, 5, 30, 10), (60, 0, 70, 10), score=[0.9, 0.8, 0.7, 0.6])
    scores = relative_f1(found, true)
    table = scores.table.set_index("iou")
    assert table["matched"].to_dict() == {0.5: 2, 0.55: 1, 0.6: 1, 0.65: 1, 0.7: 1, 0.75: 1, 0.8: 1} | dict.fromkeys(
        (0.85, 0.9, 0.95), 0
    )
    assert table.loc[0.5, "precision"] == 2 / 4
    assert table.loc[0.5, "recall"] == pytest.approx(2 / 3)
    assert scores.f1_75 == pytest.approx(2 * (1 / 4) * (1 / 3) / (1 / 4 + 1 / 3))
    assert scores.f1_50_95 == pytest.approx((4 / 7 + 6 * 2 / 7) / 10)
    sizes = scores.by_size.set_index("from_m2")
    assert sizes["true"].to_dict() == {0: 1, 9: 0, 25: 0, 49: 0, 100: 2}
    assert sizes["found"].to_dict() == {0: 0, 9: 0, 25: 0, 49: 3, 100: 1}
    assert sizes["correct"].to_dict() == {0: 0, 9: 0, 25: 0, 49: 1, 100: 0}
    assert sizes.loc[100.0, "matched"] == 1


def test_the_better_score_takes_the_true_object():
    true = boxes((0, 0, 10, 10))
    found = boxes((0, 0, 10, 10), (0, 0, 10, 9), score=[0.1, 0.9])
    table = relative_f1(found, true).table.set_index("iou")
    assert table["matched"][0.9] == 1
    assert table["matched"][0.95] == 1, "the exact one, of lower score, is left for it"
    shuffled = relative_f1(found.iloc[::-1], true).table
    assert shuffled.equals(relative_f1(found, true).table)


def test_only_what_lies_in_the_area_counts():
    true = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    found = boxes((0, 0, 10, 10), (20, 0, 30, 10), (18, 20, 28, 30), score=[1, 1, 1])
    half = relative_f1(found, true, area=shapely.box(0, 0, 24, 40))
    assert half.table["true"][0] == 2, "40 per cent are in"
    assert half.table["found"][0] == 3
    less = relative_f1(found, true, area=shapely.box(0, 0, 23.9, 15))
    assert less.table["true"][0] == less.table["found"][0] == 1
    assert less.f1_75 == 1


def test_without_objects_there_is_no_score_and_without_true_ones_none_is_right():
    true = boxes((0, 0, 10, 10))
    nothing = true.iloc[:0]
    assert relative_f1(nothing, true).f1_75 == 0
    assert relative_f1(true, nothing).f1_75 == 0
    assert np.isnan(relative_f1(nothing, nothing).f1_75)
    with pytest.raises(GridError):
        relative_f1(true, true.to_crs(4326))
    with pytest.raises(InputError):
        relative_f1(true.assign(score=np.nan), true)


@pytest.mark.real
def test_boxes_of_a_real_plot_match_themselves_and_not_when_moved(real_data):
    import xml.etree.ElementTree as ElementTree

    import rasterio

    with rasterio.open(real_data("crowns/neon_teak/TEAK_043.tif")) as file:
        affine, crs = file.transform, file.crs
    tree = ElementTree.parse(real_data("crowns/neon_teak/TEAK_043.xml"))
    corners = [
        [float(one.find(f"bndbox/{name}").text) for name in ("xmin", "ymin", "xmax", "ymax")]
        for one in tree.iter("object")
    ]
    crowns = gpd.GeoDataFrame(geometry=on_map(shapely.box(*np.array(corners).T), affine), crs=crs)
    assert relative_f1(crowns, crowns).f1_50_95 == 1
    shifted = relative_f1(crowns.set_geometry(crowns.translate(1.0, 0)), crowns)
    assert shifted.f1_75 < 0.9
    assert shifted.f1_50_95 < 0.9
