"""Polygons of class maps: exact outlines and areas, the same whatever the blocks, with a minimum mapping unit."""

from __future__ import annotations

import numpy as np
import pytest
import rioxarray  # noqa: F401  (registers .rio)
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import rasterize

from geoeco.errors import GridError, InputError
from geoeco.mapping import class_polygons
from geoeco.variables import describe

GRID = Affine(0.5, 0, 500000, 0, -0.5, 5200000)


def class_map(codes, transform=GRID, crs=32652, **attrs) -> xr.DataArray:
    array = xr.DataArray(np.asarray(codes, np.uint8), dims=("y", "x"), name="class")
    array = array.rio.write_crs(crs).rio.write_transform(transform)
    array = array.assign_coords(
        y=transform.f + transform.e * (np.arange(array.sizes["y"]) + 0.5),
        x=transform.c + transform.a * (np.arange(array.sizes["x"]) + 0.5),
    )
    return describe(array, kind="class", units="", long_name="habitat", **attrs)


def beside(classes, values) -> xr.DataArray:
    return classes.copy(data=np.zeros(classes.shape, np.uint8)).astype(np.float32) + np.asarray(values, np.float32)


def same(one, other) -> None:
    assert list(one.columns) == list(other.columns)
    assert (shapely.to_wkb(one.geometry.array) == shapely.to_wkb(other.geometry.array)).all()
    for name in one.columns.drop("geometry"):
        np.testing.assert_array_equal(one[name].to_numpy(), other[name].to_numpy())


def test_a_square_of_ten_pixels_has_the_area_of_a_hundred():
    codes = np.full((40, 30), 255)
    codes[7:17, 11:21] = 3
    found = class_polygons(class_map(codes, Affine(1, 0, 500000, 0, -1, 5200000)), block=16)
    assert found["area_m2"].tolist() == [100.0]
    assert found["perimeter_m"].tolist() == [40.0]
    assert found.geometry[0].equals(shapely.box(500011, 5199983, 500021, 5199993)), "along the edges of the pixels"
    assert len(shapely.get_coordinates(found.geometry[0])) == 5, "no points where blocks met"
    assert found.crs.to_epsg() == 32652


def test_polygons_are_the_regions_and_scores_their_means():
    rng = np.random.default_rng(4)
    codes = np.kron(rng.integers(1, 4, (6, 8)), np.ones((5, 5), int))
    codes[0:5, 0:5] = 255
    score = rng.random(codes.shape).astype(np.float32)
    score[12:20] = np.nan
    classes = class_map(codes, flag_values=[1, 2, 3], flag_meanings="wet_meadow forest road")
    found = class_polygons(classes, beside(classes, score), block=13)
    painted = rasterize(zip(found.geometry, found["region"], strict=True), codes.shape, transform=GRID)
    for row in found.itertuples():
        inside = painted == row.region
        assert set(codes[inside]) == {row[2]}
        assert row.area_m2 == pytest.approx(inside.sum() / 4)
        known = inside & np.isfinite(score)
        expected = score[known].astype(float).mean() if known.any() else np.nan
        assert row.score == pytest.approx(expected, abs=1e-7, nan_ok=True)
    assert ((painted == 0) == (codes == 255)).all(), "every pixel of a class is in a polygon, and none of nodata"
    assert dict(zip(found["class"], found["name"], strict=True)) == {1: "wet meadow", 2: "forest", 3: "road"}
    assert shapely.is_valid(found.geometry.array).all()


@settings(max_examples=12, deadline=None)
@given(
    codes=arrays(np.uint8, st.tuples(st.integers(1, 11), st.integers(1, 11)), elements=st.sampled_from([1, 2, 3, 255])),
    block=st.integers(2, 7),
    connectivity=st.sampled_from([4, 8]),
    least=st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    small=st.sampled_from(["merge", "drop"]),
)
def test_the_blocks_do_not_matter(codes, block, connectivity, least, small):
    classes = class_map(codes)
    score = beside(classes, np.random.default_rng(0).random(codes.shape))
    options = {"connectivity": connectivity, "min_area_m2": least, "small": small}
    whole = class_polygons(classes, score, block=64, **options)
    same(class_polygons(classes, score, block=block, **options), whole)
    assert shapely.is_valid(whole.geometry.array).all()
    assert (whole["area_m2"] >= least).all()
    # nothing overlaps
    assert shapely.area(shapely.union_all(whole.geometry.array)) == pytest.approx(whole["area_m2"].sum())


def test_corners_join_only_where_asked():
    codes = np.where(np.eye(4), 1, 255)
    assert len(class_polygons(class_map(codes))) == 4
    for block in (1, 2, 4):
        joined = class_polygons(class_map(codes), connectivity=8, block=block)
        assert joined.geom_type.tolist() == ["MultiPolygon"]
        assert len(joined.geometry[0].geoms) == 4
    across = class_polygons(class_map(codes[::-1]), connectivity=8, block=2)
    assert len(across) == 1


def test_a_small_region_goes_up_in_the_neighbour_with_the_longest_border():
    # the 9s touch 1 along 4 sides, 2 along 1; what is then one region is one polygon
    codes = np.array(
        [
            [1, 1, 1, 2, 2, 2],
            [1, 9, 9, 2, 2, 2],
            [1, 1, 1, 2, 2, 2],
            [5, 5, 5, 5, 5, 5],
            [255, 255, 255, 255, 255, 255],
            [7, 255, 255, 255, 255, 255],
        ]
    )
    classes = class_map(codes)
    merged = class_polygons(classes, beside(classes, codes == 1), min_area_m2=0.75, block=2)
    assert dict(zip(merged["class"], merged["area_m2"], strict=True)) == {1: 9 / 4, 2: 9 / 4, 5: 6 / 4}
    first = merged[merged["class"] == 1].iloc[0]
    assert first["class_fraction"] == pytest.approx(7 / 9)
    assert first["score"] == 1, "of the pixels that have the class"
    dropped = class_polygons(classes, min_area_m2=0.75, small="drop", block=4)
    assert dict(zip(dropped["class"], dropped["area_m2"], strict=True)) == {1: 7 / 4, 2: 9 / 4, 5: 6 / 4}
    assert class_polygons(classes, min_area_m2=0.25)["area_m2"].min() == 0.25, "just large enough"


def test_regions_that_meet_over_a_swallowed_one_become_one():
    codes = np.array([[1, 1, 2, 1, 1], [1, 1, 2, 1, 1], [1, 1, 2, 1, 1]])
    for block in (1, 2, 3, 9):
        found = class_polygons(class_map(codes), min_area_m2=1.0, block=block)
        assert found["class"].tolist() == [1]
        assert found["area_m2"].tolist() == [15 / 4]


def test_holes_are_kept_or_filled():
    codes = np.full((9, 9), 4)
    codes[2, 2] = 255
    codes[5:8, 5:8] = 255
    kept = class_polygons(class_map(codes))
    assert len(kept.geometry[0].interiors) == 2
    filled = class_polygons(class_map(codes), fill_holes_m2=1.0)
    assert len(filled.geometry[0].interiors) == 1
    assert filled["area_m2"][0] == (81 - 9) / 4
    assert class_polygons(class_map(codes), fill_holes_m2=9.0)["area_m2"][0] == 81 / 4


def nested() -> np.ndarray:
    """Rings in rings, that touch at a corner, with nodata in the middle and at a ragged edge."""
    codes = np.full((24, 24), 1)
    for ring, code in ((3, 2), (6, 1), (8, 2), (10, 255)):
        codes[ring:-ring, ring:-ring] = code
    codes[2, 2] = 2
    codes[15, 4] = codes[12, 20] = 3
    codes[0, :7] = codes[1, :3] = 255
    return codes


@pytest.mark.parametrize("connectivity", [4, 8])
def test_rings_in_rings_are_valid_and_lie_on_their_pixels(connectivity):
    codes = nested()
    for simplify_m in (0.0, 0.6):
        found = class_polygons(class_map(codes), connectivity=connectivity, simplify_m=simplify_m, block=7)
        assert shapely.is_valid(found.geometry.array).all()
        assert found["area_m2"].sum() == pytest.approx((codes != 255).sum() / 4)
        # an outer ring with a region in it that has a hole itself
        assert sum(len(part.interiors) for part in shapely.get_parts(found.geometry.array)) >= 5
        assert {1, 2, 3} == set(found["class"])
        if not simplify_m:
            shapes = zip(found.geometry, found["class"], strict=True)
            painted = rasterize(shapes, codes.shape, fill=255, transform=GRID)
            np.testing.assert_array_equal(painted, codes)


def blobs(size=60, seed=0) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    codes = np.argmax([gaussian_filter(rng.random((size, size)), 2.5) for _ in range(3)], axis=0) + 1
    codes[gaussian_filter(rng.random((size, size)), 3.0) > 0.53] = 255
    return codes


def test_simpler_polygons_still_share_their_borders():
    classes = class_map(blobs())
    stepped = class_polygons(classes)
    before = shapely.union_all(stepped.geometry.array)
    assert (blobs() == 255).any(), "there is ground without a class"
    for simplify_m in (0.4, 0.5, 2.0):
        found = class_polygons(classes, simplify_m=simplify_m)
        shapes = found.geometry.array
        assert shapely.is_valid(shapes).all()
        assert shapely.coverage_is_valid(np.asarray(shapes)), "no gaps, no overlaps, and the same points on both sides"
        assert shapely.union_all(shapes).equals(before), "the border to where there is no class stays"
        assert found["area_m2"].sum() == pytest.approx(stepped["area_m2"].sum(), rel=1e-12)
        holes = [sum(len(p.interiors) for p in shapely.get_parts([one])) for one in shapes]
        assert holes == [sum(len(p.interiors) for p in shapely.get_parts([one])) for one in stepped.geometry]
        moved = (found["area_m2"] - stepped["area_m2"]).abs().sum() / 2
        assert found.attrs["area_moved_m2"] == pytest.approx(moved)
        assert moved > 0
        for name in ("region", "class", "class_fraction"):
            np.testing.assert_array_equal(found[name], stepped[name])
    assert found["perimeter_m"].sum() < 0.85 * stepped["perimeter_m"].sum()


def test_a_straight_border_on_the_slant_loses_its_stairs():
    """Half a square, cut along its diagonal: the border is then the diagonal itself, less half a pixel at its ends."""
    rows, columns = np.indices((40, 40))
    codes = np.where(columns > rows, 1, 2)
    stepped = class_polygons(class_map(codes))
    found = class_polygons(class_map(codes), simplify_m=0.5)
    points = [len(shapely.get_coordinates(one)) for one in (*found.geometry, *stepped.geometry)]
    assert max(points[:2]) < 10 < 70 < min(points[2:])
    border = found.geometry[0].intersection(found.geometry[1])
    assert border.length == pytest.approx(20 * np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("run", [4, 10])
def test_stairs_go_at_the_root_of_half_a_step(run):
    rows, columns = np.indices((8 * run, 20))
    classes = class_map(np.where(columns < 6 + rows // run, 1, 2))

    def corners(pixels: float) -> int:
        return len(shapely.get_coordinates(class_polygons(classes, simplify_m=pixels / 2).geometry[0]))

    stairs = corners(0)
    assert corners(0.98 * np.sqrt(run / 2)) == stairs
    assert corners(1.02 * np.sqrt(run / 2)) < 0.6 * stairs


@settings(max_examples=12, deadline=None)
@given(
    codes=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([1, 2, 3, 255])),
    block=st.integers(3, 9),
    connectivity=st.sampled_from([4, 8]),
    scale=st.sampled_from([1, 3]),
    simplify_m=st.sampled_from([0.4, 0.5, 4.0]),
)
def test_simpler_polygons_are_a_coverage_whatever_the_map_and_the_blocks(codes, block, connectivity, scale, simplify_m):
    classes = class_map(np.kron(codes, np.ones((scale, scale), int)))
    options = {"connectivity": connectivity, "simplify_m": simplify_m}
    whole = class_polygons(classes, block=64, **options)
    same(class_polygons(classes, block=block, **options), whole)
    assert shapely.is_valid(whole.geometry.array).all()
    assert shapely.coverage_is_valid(np.asarray(whole.geometry.array))
    assert whole["area_m2"].sum() == pytest.approx((codes != 255).sum() * scale**2 / 4)


def test_holes_are_filled_in_simpler_polygons_too():
    codes = blobs()
    codes[30:32, 30:32] = 255
    kept = class_polygons(class_map(codes), simplify_m=0.5)
    filled = class_polygons(class_map(codes), simplify_m=0.5, fill_holes_m2=1e9)
    assert sum(len(p.interiors) for p in shapely.get_parts(kept.geometry.array)) > 0
    assert sum(len(p.interiors) for p in shapely.get_parts(filled.geometry.array)) == 0
    assert shapely.is_valid(filled.geometry.array).all()


def test_a_region_as_wide_as_many_blocks_is_one_polygon_of_four_corners():
    found = class_polygons(class_map(np.full((9, 40), 6)), block=4, simplify_m=1.0)
    assert len(shapely.get_coordinates(found.geometry[0])) == 5
    assert found["area_m2"].tolist() == [90.0]


def test_where_the_crs_is_far_from_the_ground_areas_are_those_of_the_ground():
    """World Mercator at 52 degrees north: a pixel of a metre is about 0.62 m."""
    north = class_map(np.ones((10, 10)), Affine(1, 0, 500000, 0, -1, 6_760_000), crs=3395)
    area = class_polygons(north)["area_m2"][0]
    polygon = class_polygons(north).to_crs(4326).geometry[0]
    from pyproj import Geod

    assert area == pytest.approx(abs(Geod(ellps="WGS84").geometry_area_perimeter(polygon)[0]), rel=1e-3)
    assert area < 45
    feet = class_polygons(class_map(np.ones((10, 10)), Affine(1, 0, 2_000_000, 0, -1, 700_000), crs=2263))
    assert feet["area_m2"][0] == pytest.approx(100 * 0.3048006**2, rel=1e-6)


def test_polygons_lie_on_the_grid_that_the_map_states():
    """Not on one that is made of the rounded coordinates of its pixels."""
    grid = Affine(0.3, 0, 512345.1, 0, -0.3, 5200000.7)
    found = class_polygons(class_map(np.ones((50, 70)), grid))
    assert found["area_m2"][0] == 3500 * (0.3 * 0.3)
    assert found.total_bounds.tolist() == [512345.1, 50 * -0.3 + 5200000.7, 70 * 0.3 + 512345.1, 5200000.7]
    cut = class_polygons(class_map(np.ones((50, 70)), grid).isel(x=slice(10, None)))
    assert cut.total_bounds[0] == pytest.approx(512345.1 + 3.0)


def test_a_map_without_classes_has_no_polygons():
    found = class_polygons(class_map(np.full((5, 5), 255)), min_area_m2=3, simplify_m=1)
    assert len(found) == 0
    assert found.crs is not None
    assert "score" in found


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.rio.write_crs(4326), GridError, "CRS in metres"),
        (lambda c: c.drop_vars("spatial_ref"), GridError, "CRS in metres"),
        (lambda c: c.astype(np.float32), InputError, "not a class map"),
        (lambda c: c.assign_attrs(kind="count"), InputError, "not a class map"),
    ],
)
def test_what_has_no_areas_or_no_classes_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        class_polygons(change(class_map(np.ones((4, 4)))))


def test_scores_that_are_none_are_refused():
    classes = class_map(np.ones((4, 4)))
    with pytest.raises(InputError, match="scores of 7"):
        class_polygons(classes, beside(classes, np.full((4, 4), 7.0)))
