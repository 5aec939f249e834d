"""Crowns tile by tile: each kept once whatever the tiles, with outlines along the pixels, at the edges too."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from scipy.ndimage import label

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import GridError, InputError  # noqa: E402
from geoeco.mapping import detect_crowns, detect_tiles, detection_tiles, merge_tiles  # noqa: E402
from geoeco.models.crown_detector import FoundObjects  # noqa: E402
from geoeco.sensors.orthomosaic import describe_heights, describe_orthomosaic  # noqa: E402
from geoeco.training import ModelBundle, Normalisation  # noqa: E402

GSD, LEFT, TOP, SHAPE = 0.1, 500_000.0, 5_200_000.0, (150, 190)
#: Middle (row, column) and radius of crowns, pixels: two at the edge of the raster, one beside ground without imagery.
CROWNS = (
    (4, 30, 8),
    (30, 20, 9),
    (30, 60, 9),
    (62, 64, 10),
    (75, 120, 10),
    (110, 30, 9),
    (120, 92, 8),
    (90, 187, 9),
    (140, 150, 9),
)
#: Pixels of a disc with a radius of 9, and some more.
LARGE = 270


class Bright(torch.nn.Module):
    """A detector without a fault: whatever is bright and hangs together is an object."""

    def __init__(self, masks: bool = True, sorts: bool = False) -> None:
        super().__init__()
        self.masks, self.sorts = masks, sorts
        self.one = torch.nn.Parameter(torch.ones(1))

    def detect(self, images):
        found = []
        for image in images:
            numbers, count = label(image[0].numpy() > 0.5)
            masks = torch.from_numpy(numbers)[None] == torch.arange(1, count + 1).reshape(-1, 1, 1)
            boxes = torch.zeros(count, 4)
            for box, mask in zip(boxes, masks, strict=True):
                y, x = torch.nonzero(mask, as_tuple=True)
                box[:] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            scores = torch.full((count,), 0.9)
            labels = (masks.sum((1, 2)) > LARGE).long() if self.sorts else torch.zeros(count, dtype=torch.long)
            found.append(FoundObjects(boxes, scores, labels, masks if self.masks else None))
        return found


def bundle(size: int = 64, **changes) -> ModelBundle:
    settings = {
        "module": Bright(),
        "architecture": "crown_detector",
        "arguments": {},
        "bands": ("red", "green", "blue"),
        "normalisation": Normalisation((0.0,) * 3, (1.0,) * 3),
        "size": size,
        "resolution": GSD,
        "task": "detection",
        "classes": ("crown",),
    }
    return ModelBundle(**settings | changes)


def discs() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    numbers = np.zeros(SHAPE, np.int32)
    for number, (row, column, radius) in enumerate(CROWNS, start=1):
        numbers[np.hypot(y - row, x - column) <= radius] = number
    return numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mosaic")
    numbers = discs()
    valid = np.ones(SHAPE, bool)
    valid[:, :10] = False
    valid[132:, 158:] = False
    profile = {
        "driver": "GTiff",
        "height": SHAPE[0],
        "width": SHAPE[1],
        "crs": "EPSG:32652",
        "transform": Affine(GSD, 0, LEFT, 0, -GSD, TOP),
    }
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(made / "mosaic.tif", "w", **profile, count=3, dtype="uint8", photometric="RGB") as file,
    ):
        file.write(np.repeat(np.where((numbers > 0) & valid, 220, 30).astype(np.uint8)[None], 3, axis=0))
        file.write_mask(valid)
    with rasterio.open(made / "chm.tif", "w", **profile, count=1, dtype="float32", nodata=-9999) as file:
        file.write(np.where(numbers > 0, numbers + 2.0, 0).astype(np.float32), 1)
    return made


@pytest.fixture(scope="module")
def mosaic(folder):
    return describe_orthomosaic(str(folder / "mosaic.tif"))


def drawn(folder) -> dict[int, float]:
    """Pixels of each crown that can be seen."""
    with rasterio.open(folder / "mosaic.tif") as file:
        valid = file.dataset_mask() > 0
    numbers = discs()
    return {number: int(((numbers == number) & valid).sum()) for number in range(1, len(CROWNS) + 1)}


def test_each_crown_is_found_once_with_all_its_pixels_and_its_height(folder, mosaic):
    heights = describe_heights(mosaic, chm=str(folder / "chm.tif"))
    found = detect_crowns(mosaic, bundle(), overlap_m=2.2, heights=heights)
    number = np.round(found["height_p95"] - 2).astype(int).tolist()
    assert sorted(number) == list(range(1, len(CROWNS) + 1))
    pixels = drawn(folder)
    assert np.allclose(shapely.area(found.geometry.to_numpy()) / GSD**2, [pixels[one] for one in number])
    assert found["crown_id"].tolist() == list(range(1, len(CROWNS) + 1))
    edge = {one for one, at_edge in zip(number, found["edge"], strict=True) if at_edge}
    # the raster ends at 1 and 8; the ground that was seen ends at 9
    assert edge == {1, 8, 9}


@pytest.mark.parametrize("size", [48, 80])
def test_neither_the_size_nor_the_order_of_tiles_changes_a_crown(mosaic, size):
    expected = detect_crowns(mosaic, bundle(), overlap_m=2.2)
    model = bundle(size)
    windows = detection_tiles(mosaic, size, 2.2)
    tiles = np.random.default_rng(0).permutation(len(windows))
    parts = [detect_tiles(mosaic, model, windows, one) for one in np.array_split(tiles, 4)]
    found = merge_tiles(parts, windows, mosaic)
    assert found.geometry.geom_equals(expected.geometry).all()
    assert found["crown_id"].equals(expected["crown_id"])


def test_an_overlap_smaller_than_a_crown_loses_it_and_its_size_is_told(mosaic):
    found = detect_crowns(mosaic, bundle(), overlap_m=0.2)
    assert len(found) < len(CROWNS)
    assert found.attrs["n_cut"] > 0
    whole = detect_crowns(mosaic, bundle(), overlap_m=2.2)
    assert whole.attrs["largest_m"] == pytest.approx(2.0, abs=0.11)


def test_each_crown_has_the_class_that_its_tile_gave_it(mosaic):
    model = bundle(module=Bright(sorts=True), classes=("small", "large"))
    found = detect_crowns(mosaic, model, overlap_m=2.2)
    pixels = shapely.area(found.geometry.to_numpy()) / GSD**2
    assert found["class"].tolist() == np.where(pixels > LARGE, "large", "small").tolist()
    assert (found["class"] == "large").sum() == 2


def test_boxes_are_crowns_of_a_network_without_masks(mosaic):
    found = detect_crowns(mosaic, bundle(module=Bright(masks=False)), overlap_m=2.2)
    masks = detect_crowns(mosaic, bundle(), overlap_m=2.2)
    assert len(found) == len(masks)
    ours = shapely.bounds(found.geometry.to_numpy())
    theirs = shapely.bounds(masks.geometry.to_numpy())
    assert np.allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_a_mosaic_without_crowns_has_an_empty_table_with_all_columns(mosaic):
    found = detect_crowns(mosaic, bundle(), overlap_m=2.2, min_score=0.95)
    assert isinstance(found, gpd.GeoDataFrame)
    assert len(found) == 0
    assert {"crown_id", "class", "score", "area_m2", "edge", "source", "date"} < set(found.columns)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": "segmentation"}, InputError, "not for objects"),
        ({"resolution": 0.2}, InputError, "pixels of 0.2 m"),
        ({"bands": ("red", "green", "nir")}, InputError, "takes the bands"),
        ({"size": 512}, (GridError, InputError), "larger than the mosaic"),
    ],
)
def test_models_that_do_not_fit_are_refused(mosaic, changes, error, message):
    with pytest.raises(error, match=message):
        detect_crowns(mosaic, bundle(**changes), overlap_m=2.2)


def test_tiles_are_looked_at_with_as_many_threads_as_asked_for(mosaic):
    seen = set()

    class Counting(Bright):
        def detect(self, images):
            seen.add(torch.get_num_threads())
            return super().detect(images)

    before = torch.get_num_threads()
    detect_tiles(mosaic, bundle(module=Counting()), detection_tiles(mosaic, 64, 0.0), range(2), threads=3)
    assert seen == {3}
    assert torch.get_num_threads() == before
