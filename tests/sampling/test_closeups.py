"""Close-ups find the crown they show, share its set, and are read without trusting them."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from PIL import Image

from geoeco.errors import GridError, InputError, ReadError
from geoeco.sampling import pair_closeups, read_closeup

UTM = "EPSG:32652"
X, Y = 500_000.0, 5_000_000.0


def crowns(**columns):
    """Two crowns 2 m apart, and a small one under the first one's edge."""
    shapes = [shapely.Point(X, Y).buffer(3), shapely.Point(X + 8, Y).buffer(3), shapely.Point(X - 2, Y).buffer(1.5)]
    columns = {"split": ["train", "test", "train"], **columns}
    return gpd.GeoDataFrame({"crown_id": np.int32([11, 12, 13]), **columns}, geometry=shapes, crs=UTM)


def photos(*xy, accuracy=0.3):
    names = [f"closeups/{k}.jpg" for k in range(len(xy))]
    points = shapely.points(X + np.array([p[0] for p in xy]), Y + np.array([p[1] for p in xy]))
    return gpd.GeoDataFrame({"photo": names, "accuracy_m": accuracy}, geometry=points, crs=UTM)


def test_photos_find_the_crown_they_lie_in_then_the_nearest_within_reach():
    pairs = pair_closeups(crowns(), photos((1, 0), (0, 1), (8, 1), (3.5, 0), (4.0, 0.001), (20, 0)))
    # 3.5 is half a metre from the first crown, within twice 0.3; 4.0 is a metre from both, which is too far
    assert pairs["crown_id"].tolist() == [11, 11, 12, 11, 0, 0]
    assert pairs["distance_m"].tolist() == pytest.approx([0, 0, 0, 0.5, 1.0, 9.0], abs=0.02)
    assert pairs["split"].tolist() == ["train", "train", "test", "train", "none", "none"]
    assert pairs.attrs == {"in_none": 2, "in_several": 0, "paired_nearest": 1}


def test_more_doubt_about_the_point_reaches_further_and_sees_that_two_crowns_are_near():
    pairs = pair_closeups(crowns(), photos((3.9, 0), accuracy=1.0))
    assert pairs["crown_id"].tolist() == [11]
    assert pairs["crowns_near"].tolist() == [2]
    assert pair_closeups(crowns(), photos((3.9, 0), accuracy=1.0), factor=0.5)["crown_id"].tolist() == [0]


def test_of_crowns_that_overlap_the_one_on_top_is_photographed():
    inside_both = photos((-2.0, 0))
    assert pair_closeups(crowns(), inside_both)["crown_id"].tolist() == [13]
    tall = pair_closeups(crowns(height_m=[15.0, 9.0, 6.0]), inside_both)
    assert tall["crown_id"].tolist() == [11]
    assert tall.attrs["in_several"] == 1


def test_the_order_of_the_tables_and_the_crs_change_nothing():
    points = photos((1, 0), (8, 1), (3.5, 0), (20, 0))
    expected = pair_closeups(crowns(), points)
    order = [2, 0, 1]
    turned = pair_closeups(crowns().iloc[order], points.to_crs("EPSG:3395"))
    assert turned["crown_id"].tolist() == expected["crown_id"].tolist()
    # metres are metres in Mercator too, whose units are 0.7 m here
    mercator = pair_closeups(crowns().to_crs("EPSG:3395"), points)
    np.testing.assert_allclose(mercator["distance_m"], expected["distance_m"], atol=0.01)


def test_all_photos_of_a_crown_are_in_its_set_even_if_the_table_says_otherwise():
    points = photos((1, 0), (1, 1), (0, -2)).assign(split=["test", "val", "train"], crown_id=[5, 6, 7])
    pairs = pair_closeups(crowns(), points)
    assert pairs["split"].tolist() == ["train"] * 3
    assert pairs["crown_id"].tolist() == [11] * 3


@pytest.mark.parametrize(
    ("change", "error", "story"),
    [
        (lambda c, p: (c.drop(columns="crown_id"), p), InputError, "no column 'crown_id'"),
        (lambda c, p: (c, p.drop(columns="accuracy_m")), InputError, "no column 'accuracy_m'"),
        (lambda c, p: (c, p.set_crs(None, allow_override=True)), GridError, "no CRS"),
        (lambda c, p: (c, p.assign(accuracy_m=np.nan)), InputError, "accuracy_m"),
        (lambda c, p: (c, p.set_geometry(p.buffer(1))), InputError, "at points"),
        (lambda c, p: (c.iloc[:0], p), InputError, "no crowns"),
    ],
)
def test_tables_that_cannot_be_paired_are_refused(change, error, story):
    with pytest.raises(error, match=story):
        pair_closeups(*change(crowns(), photos((0, 0))))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "table" / "closeups").mkdir(parents=True)
    rows = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((1, 80, 3), np.uint8)
    Image.fromarray(rows).save(tmp_path / "table" / "closeups" / "a.png")
    Image.fromarray(rows).save(tmp_path / "secret.png")
    return tmp_path / "table"


def test_a_photo_is_read_whole_or_its_middle_scaled(folder):
    assert read_closeup(folder, "closeups/a.png").shape == (3, 60, 80)
    small = read_closeup(folder, "closeups/a.png", size=6)
    assert small.shape == (3, 6, 6)
    # rows of ten pixels are averaged
    assert small[0, :, 0].tolist() == [4, 14, 24, 34, 44, 54]


def test_an_upright_photo_by_its_tag(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "closeups" / "a.png").save(folder / "turned.jpg", exif=exif, quality=95)
    assert read_closeup(folder, "turned.jpg").shape == (3, 80, 60)


@pytest.mark.parametrize("name", ["../secret.png", "closeups/../../secret.png", "", "/etc/hostname", "link.png"])
def test_no_photo_outside_the_folder_of_its_table(folder, name):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(InputError, match="does not lie in the folder"):
        read_closeup(folder, name)


@pytest.mark.parametrize("name", ["closeups/a\0.png", "a" * 5000])
def test_names_that_no_file_can_have_are_told(folder, name):
    with pytest.raises(InputError, match="bears no name of a file"):
        read_closeup(folder, name)


def test_damaged_missing_huge_and_foreign_photos_are_told_apart_from_photos(folder):
    (folder / "broken.jpg").write_bytes((folder / "closeups" / "a.png").read_bytes()[:70])
    (folder / "text.jpg").write_text("no photo")
    Image.new("RGB", (8, 8)).save(folder / "drawing.bmp")
    for name in ("broken.jpg", "text.jpg", "drawing.bmp"):
        with pytest.raises(ReadError, match="cannot be read"):
            read_closeup(folder, name)
    with pytest.raises(ReadError, match="no such photo"):
        read_closeup(folder, "closeups/b.png")
    with pytest.raises(ReadError, match="80 x 60 pixels is not decoded"):
        read_closeup(folder, "closeups/a.png", largest=4000)
