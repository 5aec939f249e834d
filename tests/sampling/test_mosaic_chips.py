"""Chips of orthomosaics: every valid pixel once at its place, labels and crowns on the same pixels, sets by ground."""

from __future__ import annotations

import warnings

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from geoeco.errors import GridError, InputError, OutputError
from geoeco.sampling import (
    AreaSplit,
    BlockSplit,
    assert_no_leak,
    chip_footprints,
    crown_chips,
    grid_chips,
    random_chips,
)
from geoeco.sensors.orthomosaic import describe_orthomosaic

LEFT, TOP, PIXEL = 500_000.0, 5_000_000.0, 0.5
CRS = "EPSG:32631"
SHAPE = (120, 150)


def write(path, values, *, nodata=None, pixel=PIXEL, crs=CRS, left=LEFT, **tags):
    values = values if values.ndim == 3 else values[None]
    profile = {"driver": "GTiff", "height": values.shape[1], "width": values.shape[2], "count": len(values), "crs": crs}
    affine = Affine(pixel, 0, left, 0, -pixel, TOP)
    with rasterio.open(path, "w", dtype=values.dtype, nodata=nodata, transform=affine, **profile) as file:
        file.write(values)
        file.update_tags(**tags)
    return path


class World:
    """A mosaic with a ragged edge, classes in patches, heights, and crowns."""

    def __init__(self, folder):
        rng = np.random.default_rng(5)
        self.image = rng.integers(1, 255, (3, *SHAPE), dtype=np.uint8)
        self.valid = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])) > 40
        self.image[:, ~self.valid] = 0
        self.labels = np.kron(rng.integers(1, 5, (6, 5)), np.ones((20, 30))).astype(np.uint8)
        self.labels[:, 70:74] = 255
        self.heights = rng.uniform(0, 30, SHAPE).astype(np.float32)
        self.heights[:10] = -9999
        self.mosaic = write(folder / "mosaic.tif", self.image, nodata=0, TIFFTAG_DATETIME="2025:07:14 10:00:00")
        self.label_file = write(folder / "labels.tif", self.labels, nodata=255)
        self.chm = write(folder / "chm.tif", self.heights, nodata=-9999)
        # in metres from the upper left corner: the third touches the fourth, the last lies across the edge
        circles = [(20, 20, 3), (40, 12, 2), (50, 40, 4), (56, 40, 3), (30, 50, 2), (73.5, 30, 3)]
        self.crowns = gpd.GeoDataFrame(
            {
                "crown_id": [4, 9, 11, 12, 20, 31],
                "species": ["oak", "ash", "oak", "ash", "", "lime"],
                "height_m": [12.0, 8.0, 7.0, 15.0, 5.0, 9.0],
            },
            geometry=[shapely.Point(LEFT + x, TOP - y).buffer(r) for x, y, r in circles],
            crs=CRS,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("mosaic"))


def rebuilt(chips, name, shape, fill):
    """Mosaic put together again from chips by their offsets."""
    values = chips[name].to_numpy()
    out = np.full((*values.shape[1:-2], *shape), fill, dtype=values.dtype)
    size = values.shape[-1]
    for (row, col), chip in zip(chips["offset"].to_numpy(), values, strict=True):
        part = out[..., max(row, 0) : row + size, max(col, 0) : col + size]
        part[...] = chip[
            ..., max(-row, 0) : max(-row, 0) + part.shape[-2], max(-col, 0) : max(-col, 0) + part.shape[-1]
        ]
    return out


@settings(max_examples=5, deadline=None)
@given(st.floats(10, 60), st.floats(0, 0.6), st.sampled_from(["shift", "pad"]))
def test_chips_put_back_at_their_offsets_are_the_mosaic_bit_for_bit(world, chip_m, share, edge):
    chips = grid_chips(world.mosaic, chip_m=chip_m, overlap_m=share * chip_m, edge=edge, labels=world.label_file)
    assert (rebuilt(chips, "image", SHAPE, 0) == world.image).all()
    assert (rebuilt(chips, "valid", SHAPE, False) == world.valid).all()
    expected = np.where(world.valid, world.labels, 255)
    assert (rebuilt(chips, "label", SHAPE, 255) == expected).all()
    np.testing.assert_allclose(chips["valid_fraction"], chips["valid"].mean(("y", "x")), rtol=1e-6)
    np.testing.assert_allclose(chips["label_fraction"], (chips["label"] != 255).mean(("y", "x")), rtol=1e-6)


def test_the_affine_of_a_chip_leads_from_its_corners_to_the_map(world):
    chips = grid_chips(world.mosaic, chip_m=20, overlap_m=4)
    assert chips.attrs["gsd_m"] == pytest.approx(0.5, rel=1e-3)
    assert chips.sizes["x"] == 40
    for (row, col), coefficients in zip(chips["offset"].to_numpy(), chips["affine"].to_numpy(), strict=True):
        affine = Affine(*coefficients)
        assert affine @ (0, 0) == (LEFT + col * PIXEL, TOP - row * PIXEL)
        assert affine @ (40, 40) == (LEFT + (col + 40) * PIXEL, TOP - (row + 40) * PIXEL)
    outlines = chip_footprints(chips)
    assert outlines.crs == CRS
    assert outlines.geometry.iloc[0].bounds == (LEFT, TOP - 20, LEFT + 20, TOP)


def test_all_variables_say_what_they_are(world):
    chips = grid_chips(
        world.mosaic, chip_m=20, overlap_m=8, labels=world.label_file, chm=world.chm, crowns=world.crowns
    )
    dtypes = {name: str(v.dtype) for name, v in chips.data_vars.items()}
    assert dtypes["image"] == "uint8"
    assert dtypes["valid"] == "bool"
    assert (dtypes["label"], dtypes["instance"], dtypes["chm"]) == ("uint8", "int32", "float32")
    assert chips["image"].dims == ("sample", "band", "y", "x")
    assert chips["image"].attrs["scale"] == chips.attrs["scale"] == 1 / 255
    assert all(chips[name].attrs["kind"] in ("class", "continuous") for name in ("image", "valid", "label", "chm"))
    assert chips.attrs["bands"] == ["red", "green", "blue"]
    assert [chips.attrs["dates"][k] for k in chips["date"].to_numpy()] == ["2025-07-14"] * chips.sizes["sample"]
    assert chips.attrs["sources"] == ["mosaic.tif"]
    assert [row[:2] for row in chips.attrs["classes"]] == [[k, f"class {k}"] for k in (1, 2, 3, 4)]


def test_chips_without_a_valid_pixel_are_left_out_and_min_valid_counts_the_rest(world):
    chips = grid_chips(world.mosaic, chip_m=10)
    assert (chips["valid_fraction"] > 0).all()
    # the corner chip is all nodata, the next ones have part of it
    assert [0, 0] not in chips["offset"].to_numpy().tolist()
    full = grid_chips(world.mosaic, chip_m=10, min_valid=1.0)
    assert full["valid"].all()
    assert full.sizes["sample"] == int((chips["valid_fraction"] == 1).sum())


def test_coarser_chips_are_means_majorities_and_maxima_without_a_grey_fringe(world):
    chips = grid_chips(world.mosaic, chip_m=30, target_gsd=1.5, labels=world.label_file, chm=world.chm)
    assert chips.sizes["x"] == 20
    assert chips.attrs["gsd_m"] == pytest.approx(1.5, rel=1e-3)
    fine = world.valid.reshape(40, 3, 50, 3).mean(axis=(1, 3))
    valid = rebuilt(chips, "valid", (40, 50), False)
    assert (valid == (fine >= 0.5)).all()
    total = world.image.reshape(3, 40, 3, 50, 3).astype(float).sum(axis=(2, 4))
    count = world.valid.reshape(40, 3, 50, 3).sum(axis=(1, 3))
    mean = np.rint(total / np.maximum(count, 1)) * valid
    assert np.abs(rebuilt(chips, "image", (40, 50), 0).astype(float) - mean).max() <= 1
    heights = np.where(world.heights == -9999, -np.inf, world.heights).reshape(40, 3, 50, 3).max(axis=(1, 3))
    got = rebuilt(chips, "chm", (40, 50), np.nan)
    assert (np.where(np.isnan(got), -np.inf, got) == heights).all()


def test_ids_of_crowns_are_burnt_tall_over_low_on_the_chips_own_pixels(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        chips = grid_chips(world.mosaic, chip_m=40, overlap_m=12, crowns=world.crowns, crown_class="species")
    order = world.crowns.sort_values("height_m")
    expected = rasterize(
        list(zip(order.geometry, order["crown_id"], strict=True)),
        SHAPE,
        transform=Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP),
        dtype="int32",
    )
    assert (rebuilt(chips, "instance", SHAPE, 0) == expected).all()
    assert set(np.unique(expected)) == {0, 4, 9, 11, 12, 20, 31}
    # the taller of the two that touch is whole
    assert (expected == 12).sum() * PIXEL**2 == pytest.approx(np.pi * 9, rel=0.03)


def test_crowns_that_no_chip_holds_whole_are_told(world):
    with pytest.warns(UserWarning, match="4 crowns are whole in no chip: an overlap of 8.0 m would hold"):
        grid_chips(world.mosaic, chip_m=20, overlap_m=0, crowns=world.crowns)


def test_a_crown_chip_holds_its_crown_whole_with_the_buffer(world):
    chips = crown_chips(world.mosaic, world.crowns, crown_class="species", buffer_m=1.0)
    assert chips["crown_id"].to_numpy().tolist() == [4, 9, 11, 12, 20, 31]
    assert [chips.attrs["crown_classes"][k] if k >= 0 else "" for k in chips["class_id"].to_numpy()] == [
        "oak",
        "ash",
        "oak",
        "ash",
        "",
        "lime",
    ]
    # the largest is 8 m across: 8 + 2 m, to whole pixels
    assert chips.sizes["x"] in (20, 21)
    size = chips.sizes["x"] * PIXEL
    for crown, coefficients in zip(world.crowns.geometry, chips["affine"].to_numpy(), strict=True):
        left, top = coefficients[2], coefficients[5]
        assert shapely.box(left, top - size, left + size, top).contains(crown.buffer(1.0 - 1e-6))
    # the last reaches beyond the mosaic: padded and not valid there
    assert not chips["valid"].isel(sample=-1)[:, -1].any()
    assert chips["valid_fraction"].to_numpy()[-1] < 1


def test_the_surroundings_of_a_crown_can_be_blanked_or_the_crown_marked(world):
    options = {"chip_m": 16.0, "crown_class": "species"}
    plain = crown_chips(world.mosaic, world.crowns, **options)
    zero = crown_chips(world.mosaic, world.crowns, context="zero", **options)
    marked = crown_chips(world.mosaic, world.crowns, context="mask", **options)
    for k, (crown, coefficients) in enumerate(zip(world.crowns.geometry, plain["affine"].to_numpy(), strict=True)):
        inside = rasterize([crown], (32, 32), transform=Affine(*coefficients), dtype="uint8") == 1
        seen = inside & plain["valid"].to_numpy()[k]
        assert (zero["image"].to_numpy()[k] == np.where(seen, plain["image"].to_numpy()[k], 0)).all()
        assert (zero["valid"].to_numpy()[k] == seen).all()
        assert (marked["image"].to_numpy()[k, 3] == np.where(seen, 255, 0)).all()
    assert marked.attrs["bands"] == ["red", "green", "blue", "crown"]
    assert (marked["image"].isel(band=slice(3)).to_numpy() == plain["image"].to_numpy()).all()
    # how much of the mosaic is there does not depend on what is shown of it
    np.testing.assert_array_equal(zero["valid_fraction"], plain["valid_fraction"])


def test_crowns_larger_than_a_chip_are_refused_left_out_or_seen_in_coarser_pixels(world):
    options = {"chip_m": 8.0, "buffer_m": 0.5}
    with pytest.raises(InputError, match=r"1 crowns are larger than a chip of 16 pixels.*crowns 11") as error:
        crown_chips(world.mosaic, world.crowns, **options)
    assert "too_large" in error.value.what_to_do
    with pytest.warns(UserWarning, match="1 crowns are larger"):
        dropped = crown_chips(world.mosaic, world.crowns, too_large="drop", **options)
    assert dropped["crown_id"].to_numpy().tolist() == [4, 9, 12, 20, 31]
    resized = crown_chips(world.mosaic, world.crowns, too_large="resize", **options)
    assert resized["step"].to_numpy().tolist() == [1, 1, 2, 1, 1, 1]
    row, col = resized["offset"].to_numpy()[2]
    fine = world.image[:, row : row + 32, col : col + 32].astype(float)
    mean = fine.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.abs(resized["image"].to_numpy()[2] - mean).max() <= 0.5
    assert resized["affine"].to_numpy()[2, 0] == 2 * PIXEL
    # the ids are burnt on the chip's own, coarser pixels
    assert (resized["instance"].to_numpy()[2] == 11).sum() == pytest.approx(np.pi * 16, rel=0.15)


@pytest.mark.parametrize(("kind", "guard_m"), [("grid", 0.0), ("grid", 3.0), ("random", 3.0), ("crown", 0.0)])
def test_sets_by_blocks_leak_nothing_and_labels_end_at_their_own_ground(world, kind, guard_m):
    split = BlockSplit(20.0, guard_m, (0.5, 0.25, 0.25))
    options = {"labels": world.label_file, "split": split, "seed": 4}
    if kind == "grid":
        chips = grid_chips(world.mosaic, chip_m=8, overlap_m=3, **options)
    elif kind == "random":
        chips = random_chips(world.mosaic, chip_m=8, count=60, **options)
    else:
        rng = np.random.default_rng(1)
        many = gpd.GeoDataFrame(
            geometry=shapely.buffer(shapely.points(LEFT + rng.uniform(5, 70, 60), TOP - rng.uniform(25, 58, 60)), 1.0),
            crs=CRS,
        )
        chips = crown_chips(world.mosaic, many, chip_m=4, buffer_m=0.5, **options)
    names = np.array(chips.attrs["splits"])[chips["split"].to_numpy()]
    assert {"train", "val", "test"} <= set(names)
    # the proof once more from what is stored: labelled pixels of test are on no pixel of a training chip
    seen = np.zeros(SHAPE, dtype=bool)
    judged = np.zeros(SHAPE, dtype=bool)
    size = chips.sizes["x"]
    for name, (row, col), label in zip(names, chips["offset"].to_numpy(), chips["label"].to_numpy(), strict=True):
        window = (slice(row, row + size), slice(col, col + size))
        if name == "train":
            seen[window] = True
        elif name in ("val", "test"):
            judged[window] |= (label != 255)[: judged[window].shape[0], : judged[window].shape[1]]
    assert judged.any()
    assert not (seen & judged).any()
    if guard_m:
        from scipy.ndimage import distance_transform_edt

        assert distance_transform_edt(~judged)[seen].min() * PIXEL > guard_m


def test_each_block_is_in_one_set_and_each_chip_in_the_block_of_its_centre(world):
    chips = grid_chips(world.mosaic, chip_m=8, split=BlockSplit(20.0, 0, (0.5, 0.25, 0.25)))
    middle = chips["offset"].to_numpy() + chips.sizes["x"] / 2
    # 60 x 75 m: three rows and four columns of blocks of 20 m, the last of which reaches to the edge
    expected = np.minimum(middle[:, 0] // 40, 2) * 4 + np.minimum(middle[:, 1] // 40, 3)
    assert (chips["block"].to_numpy() == expected).all()
    named = {}
    for block, split in zip(chips["block"].to_numpy(), chips["split"].to_numpy(), strict=True):
        if split < 3:
            assert named.setdefault(block, split) == split


def test_sets_by_areas_that_were_drawn(world):
    shapes = [shapely.box(LEFT, TOP - 60, LEFT + 36, TOP), shapely.box(LEFT + 40.3, TOP - 60, LEFT + 75, TOP)]
    areas = gpd.GeoDataFrame({"split": ["train", "test"]}, geometry=shapes, crs=CRS)
    chips = grid_chips(world.mosaic, chip_m=10, labels=world.label_file, split=AreaSplit(areas, guard_m=2.0))
    names = np.array(chips.attrs["splits"])[chips["split"].to_numpy()]
    column = chips["offset"].to_numpy()[:, 1]
    assert set(names[column == 60]) == {"none"}  # it reaches to 40 m, nearer than the guard
    assert set(names[column == 80]) == {"test"}
    label = chips["label"].to_numpy()[column == 80]
    # the first pixel with its centre beyond 40.3 m is the second
    assert (label[:, :, 0] == 255).all()
    assert (label[:, :, 1] != 255).any()


def test_a_tree_flown_over_again_stays_in_one_set(world, tmp_path):
    again = write(tmp_path / "later.tif", world.image[:, ::-1], nodata=0, TIFFTAG_DATETIME="2026:07:02 10:00:00")
    rng = np.random.default_rng(2)
    points = shapely.points(LEFT + rng.uniform(5, 70, 50), TOP - rng.uniform(25, 55, 50))
    many = gpd.GeoDataFrame(geometry=shapely.buffer(points, 1.0), crs=CRS)
    chips = crown_chips(
        [world.mosaic, again], many, chip_m=4, buffer_m=0.5, split=BlockSplit(15.0, 0, (0.5, 0.25, 0.25))
    )
    assert sorted(chips.attrs["dates"]) == ["2025-07-14", "2026-07-02"]
    trees = xr.Dataset({"split": chips["split"], "block": chips["block"]}).groupby(chips["crown_id"])
    for _, tree in trees:
        assert len(np.unique(tree["block"])) == 1
        assert len({int(s) for s in tree["split"].to_numpy()} - {3}) <= 1
    assert (np.unique(chips["crown_id"], return_counts=True)[1] == 2).sum() > 40


def test_surroundings_that_are_not_shown_put_no_crown_aside(world):
    rng = np.random.default_rng(3)
    points = shapely.points(LEFT + rng.uniform(5, 70, 60), TOP - rng.uniform(25, 55, 60))
    many = gpd.GeoDataFrame(geometry=shapely.buffer(points, 1.0), crs=CRS)
    split = BlockSplit(20.0, 0, (0.5, 0.25, 0.25))
    aside = {
        context: int((crown_chips(world.mosaic, many, chip_m=8, context=context, split=split)["split"] == 3).sum())
        for context in ("keep", "zero")
    }
    assert aside["zero"] < 0.3 * aside["keep"]


def test_random_chips_give_rare_classes_and_far_blocks_their_turn_and_repeat_by_seed(world):
    chips = random_chips(world.mosaic, chip_m=6, count=60, labels=world.label_file, seed=3)
    again = random_chips(world.mosaic, chip_m=6, count=60, labels=world.label_file, seed=3)
    xr.testing.assert_identical(chips, again)
    other = random_chips(world.mosaic, chip_m=6, count=60, labels=world.label_file, seed=4)
    assert chips["offset"].to_numpy().tolist() != other["offset"].to_numpy().tolist()
    assert 50 <= chips.sizes["sample"] <= 60
    held = [(chips["label"] == code).any(("y", "x")).sum() for code in (1, 2, 3, 4)]
    assert min(held) >= 10
    assert chips["offset"].min() >= 0
    assert (chips["offset"].max("sample").to_numpy() <= np.array(SHAPE) - 12).all()
    assert len(np.unique(chips["block"])) >= 20
    # without labels all valid pixels are one class
    assert random_chips(world.mosaic, chip_m=6, count=10)["valid"].any(("y", "x")).all()


def test_mosaics_in_two_zones_keep_their_crs_and_of_one_ground_are_refused(world, tmp_path):
    image = world.image[:, :40, :40]
    far = write(tmp_path / "zone33.tif", image, nodata=0, crs="EPSG:32633")
    chips = grid_chips([world.mosaic, far], chip_m=20)
    assert chips.attrs["source_epsg"] == [32631, 32633]
    assert (chips.attrs["epsg"], chips.attrs["crs_wkt"]) == (0, "")
    outlines = chip_footprints(chips)
    assert outlines.crs == "EPSG:4326"
    assert outlines[outlines["source"] == "zone33.tif"].total_bounds[0] == pytest.approx(15.0, abs=0.01)
    # the same ground in the neighbouring zone
    x, y = gpd.GeoSeries([shapely.Point(LEFT + 20, TOP - 20)], crs=CRS).to_crs("EPSG:32632").iloc[0].coords[0]
    same = tmp_path / "same.tif"
    with rasterio.open(
        same,
        "w",
        driver="GTiff",
        height=40,
        width=40,
        count=3,
        dtype="uint8",
        crs="EPSG:32632",
        transform=Affine(0.5, 0, x, 0, -0.5, y),
    ) as file:
        file.write(image)
    with pytest.raises(GridError, match="show the same ground in different CRSs"):
        grid_chips([world.mosaic, same], chip_m=20)


def test_mosaics_without_a_place_are_each_on_ground_of_their_own(tmp_path):
    paths = []
    for k in range(2):
        path = tmp_path / f"{k}.png"
        values = np.random.default_rng(k).integers(0, 255, (3, 64, 64), dtype=np.uint8)
        with rasterio.open(path, "w", driver="PNG", height=64, width=64, count=3, dtype="uint8") as file:
            file.write(values)
        paths.append(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mosaics = [describe_orthomosaic(p, allow_ungeoreferenced=True, gsd_m=0.3) for p in paths]
        chips = grid_chips(mosaics, chip_m=4.8, split=BlockSplit(9.6, 0, (0.5, 0.25, 0.25)))
    assert len(np.unique(chips["block"])) == 8
    with pytest.raises(InputError, match="no place on a map"):
        chip_footprints(chips)


BAD = [
    ({"chip_m": 200}, InputError, "larger than the mosaic"),
    ({"chip_m": 0.1}, InputError, "less than a pixel"),
    ({"chip_m": 10, "overlap_m": 10}, InputError, "no grid"),
    ({"chip_m": 10, "min_valid": 2}, InputError, "min_valid"),
    ({"chip_m": 10, "split": BlockSplit(15)}, InputError, "blocks of 15 m are too small"),
    ({"chip_m": 20, "split": BlockSplit(400)}, InputError, "no chip is left for"),
    ({"chip_m": 10, "split": BlockSplit(20, guard_m=60)}, InputError, "no chip is left for train"),
    ({"chip_m": 10, "target_gsd": 0.1}, InputError, "finer"),
]


@pytest.mark.parametrize(("options", "error", "story"), BAD)
def test_settings_that_leave_no_chips_are_refused(world, options, error, story):
    with pytest.raises(error, match=story):
        grid_chips(world.mosaic, **options)


def test_inputs_that_do_not_lie_on_the_mosaic_are_refused_or_brought_there(world, tmp_path):
    # another CRS is reprojected, and crossing borders are repaired
    bow = shapely.Polygon([(LEFT + 60, TOP - 50), (LEFT + 64, TOP - 54), (LEFT + 64, TOP - 50), (LEFT + 60, TOP - 54)])
    odd = gpd.GeoDataFrame(geometry=[*world.crowns.geometry[:2], bow], crs=CRS)
    chips = crown_chips(world.mosaic, odd.to_crs("EPSG:4326"), chip_m=12)
    assert chips.sizes["sample"] == 3
    assert odd.crs == CRS
    with pytest.raises(GridError):
        crown_chips(world.mosaic, world.crowns.translate(xoff=5000).to_frame("geometry").set_crs(CRS), chip_m=12)
    with pytest.raises(GridError, match="no CRS"):
        crown_chips(world.mosaic, world.crowns.set_crs(None, allow_override=True), chip_m=12)
    far = write(tmp_path / "far.tif", world.labels, left=LEFT + 9000)
    with pytest.raises(GridError, match="share no ground"):
        grid_chips(world.mosaic, chip_m=10, labels=far)
    empty = write(tmp_path / "empty.tif", np.full(SHAPE, 255, np.uint8), nodata=255)
    with pytest.raises(InputError, match="no chip holds a labelled pixel"):
        grid_chips(world.mosaic, chip_m=10, labels=empty)
    dark = write(tmp_path / "dark.tif", np.zeros((3, 40, 40), np.uint8), nodata=0)
    with pytest.raises(InputError, match="none of 4 chips has enough valid pixels"):
        grid_chips(dark, chip_m=10)
    whole = write(tmp_path / "whole.tif", world.heights.astype(np.int16), nodata=-9999)
    with pytest.raises(InputError):
        grid_chips(world.mosaic, chip_m=10, chm=whole)
    nine = write(tmp_path / "nine.tif", np.ones((9, 40, 40), np.uint8))
    with pytest.raises(InputError, match="bands of the mosaics differ"):
        grid_chips([world.mosaic, nine], chip_m=10)
    with pytest.raises(InputError, match="1 label rasters for 2 mosaics"):
        grid_chips([world.mosaic, world.mosaic], chip_m=10, labels=[world.label_file])


def test_the_user_can_prove_it_again_from_the_chips(world, tmp_path):
    flat = write(tmp_path / "flat.tif", np.ones(SHAPE, np.uint8))
    chips = grid_chips(
        world.mosaic, chip_m=8, overlap_m=2, labels=flat, split=BlockSplit(24.0, 0.0, (0.5, 0.25, 0.25)), seed=1
    )
    outlines = chip_footprints(chips)
    # the whole chip is asked about here, also where its labels are ignored: only those within one set's ground pass
    whole = outlines[chips["label_fraction"].to_numpy() > 0.99]
    assert assert_no_leak(whole).chips["test"] > 0
    with pytest.raises(OutputError, match="is seen by chips of another"):
        assert_no_leak(outlines.assign(split=np.where(np.arange(len(outlines)) % 2, "train", "test")))
