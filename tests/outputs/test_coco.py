"""COCO JSON: masks that a reader of the format sees as they are, and the way back to the map."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from geoeco.errors import GridError, InputError, ReadError
from geoeco.outputs import read_coco, write_coco

AFFINE = Affine(0.5, 0, 500000, 0, -0.5, 5200000)
GRID = GeoBox((30, 40), AFFINE, "EPSG:32652")


@pytest.fixture
def crowns():
    shapes = [
        shapely.Point(500005, 5199993).buffer(3),
        shapely.Point(500006, 5199994).buffer(3),
        shapely.box(500018, 5199985, 500025, 5199990),
        shapely.MultiPolygon(
            [shapely.box(500001, 5199986, 500002, 5199987), shapely.box(500003, 5199986, 500004, 5199987)]
        ),
        shapely.box(400000, 5199986, 400001, 5199987),
    ]
    return gpd.GeoDataFrame(
        {
            "crown_id": [5, 2, 9, 7, 1],
            "class_name": ["oak", "", "ash", "oak", "ash"],
            "score": [0.5, 0.25, np.nan, 1, 1],
        },
        geometry=shapes,
        crs=32652,
    )


def decoded(annotation):
    """The mask as the format's own description has it: runs of 0 and 1 in turn, down the columns."""
    height, width = annotation["segmentation"]["size"]
    mask = np.zeros(height * width, bool)
    at, value = 0, False
    for count in annotation["segmentation"]["counts"]:
        mask[at : at + count] = value
        at, value = at + count, not value
    assert at == mask.size
    return mask.reshape(width, height).T


def test_masks_boxes_and_areas_are_those_of_the_pixels(crowns, tmp_path):
    written = write_coco(crowns, tmp_path / "crowns.json", geobox=GRID, file_name="mosaic.tif")
    document = json.loads(written.path.read_text())
    assert document["images"][0] == {
        "id": 1,
        "file_name": "mosaic.tif",
        "width": 40,
        "height": 30,
        "crs": "EPSG:32652",
        "affine": [0.5, 0, 500000, 0, -0.5, 5200000],
    }
    names = {one["id"]: one["name"] for one in document["categories"]}
    assert [one["id"] for one in document["annotations"]] == [5, 2, 9, 7, 1]
    for one, row in zip(document["annotations"], crowns.itertuples(), strict=True):
        expected = rasterize([row.geometry], (30, 40), transform=AFFINE).astype(bool)
        mask = decoded(one)
        np.testing.assert_array_equal(mask, expected)
        assert one["area"] == expected.sum()
        assert names[one["category_id"]] == (row.class_name or "unknown")
        if expected.any():
            rows, columns = np.nonzero(expected)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one["bbox"] == box
    assert document["annotations"][2]["segmentation"]["counts"][-1] > 0
    assert "score" not in document["annotations"][2]


def test_there_and_back(crowns, tmp_path):
    first = write_coco(crowns, tmp_path / "a.json", geobox=GRID, file_name="mosaic.tif")
    back = read_coco(first.path)
    assert back.attrs["n_empty"] == 1
    assert back.crs == crowns.crs
    assert back["crown_id"].tolist() == [5, 2, 9, 7]
    assert back["class_name"].tolist() == ["oak", "", "ash", "oak"]
    assert back.geom_type.tolist() == ["Polygon", "Polygon", "Polygon", "MultiPolygon"]
    for mine, theirs in zip(back.geometry, crowns.geometry, strict=False):
        seen = theirs.intersection(shapely.box(*GRID.boundingbox))
        assert mine.intersection(seen).area / mine.union(seen).area > 0.9
    # outlines of pixels have exactly their pixels
    second = write_coco(back, tmp_path / "b.json", geobox=GRID, file_name="mosaic.tif")
    again = read_coco(second.path)
    assert (shapely.to_wkb(again.geometry.array) == shapely.to_wkb(back.geometry.array)).all()
    assert write_coco(again, tmp_path / "c.json", geobox=GRID, file_name="mosaic.tif").sha256 == second.sha256


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.to_crs(32653), GridError, "not in one CRS"),
        (lambda f: f.assign(crown_id=1), InputError, "each once"),
        (lambda f: f.drop(columns="crown_id"), InputError, "each once"),
        (lambda f: f.assign(crown_id=0.5), InputError, "each once"),
    ],
)
def test_objects_that_cannot_be_told_apart_are_refused(crowns, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        write_coco(change(crowns), tmp_path / "crowns.json", geobox=GRID, file_name="mosaic.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.clear(),
        lambda d: d.update(images=[]),
        lambda d: d["images"][0].pop("affine"),
        lambda d: d["images"][0].update(crs="EPSG:0"),
        lambda d: d["annotations"][0]["segmentation"].update(counts=[1200, 1]),
        lambda d: d["annotations"][0]["segmentation"].update(counts=[-5, 1205]),
        lambda d: d["annotations"][0]["segmentation"].update(counts="PYd1"),
        lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6]]),
        lambda d: d["annotations"][0].update(category_id=99),
    ],
)
def test_other_files_are_refused(crowns, tmp_path, change):
    path = write_coco(crowns, tmp_path / "crowns.json", geobox=GRID, file_name="mosaic.tif").path
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ReadError, match="not COCO JSON"):
        read_coco(path)


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\x80\x04pickle")
    for name in ("x.json", "missing.json"):
        with pytest.raises(ReadError):
            read_coco(tmp_path / name)
