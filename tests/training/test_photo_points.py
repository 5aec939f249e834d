"""Photo points as soft labels: footprints on the ground, shares by weight, the loss by hand, what is refused."""

from __future__ import annotations

import math

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from affine import Affine  # noqa: E402
from pyproj import Transformer  # noqa: E402

from geoeco.errors import GridError, InputError  # noqa: E402
from geoeco.sampling import open_uav_chips  # noqa: E402
from geoeco.training import PhotoPoints, SegmentationDataset, soft_label_loss, train_segmentation  # noqa: E402
from tests.training.drawn_habitats import draw_habitats  # noqa: E402

UTM = "EPSG:32652"
CLASSES = ("field", "wood", "water")
LEFT, TOP = 500_000.0, 5_200_000.0
GRID = Affine(0.5, 0, LEFT, 0, -0.5, TOP)


def lonlat(x: float, y: float, crs: str = UTM) -> tuple[float, float]:
    return Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)


def photo(x: float, y: float, radius: float, crs: str = UTM, **shares: float) -> dict[str, float]:
    lon, lat = lonlat(x, y, crs)
    return {"lon": lon, "lat": lat, "radius_m": radius, **shares}


def points(*rows: dict[str, float]) -> PhotoPoints:
    return PhotoPoints.read(pd.DataFrame(rows).fillna(0.0), CLASSES)


def test_a_photo_spreads_its_shares_over_a_disc_on_the_ground_and_counts_once():
    found = points(photo(LEFT + 30, TOP - 20, 10.0, field=0.75, wood=0.25))
    shares, weight = found.soft_labels(GRID, (80, 120), UTM)
    y, x = np.mgrid[:80, :120] * 0.5 + 0.25
    distance = np.hypot(x - 30, y - 20)
    assert (weight[distance < 9.9] > 0).all()
    assert not weight[distance > 10.1].any()
    assert weight.sum() == pytest.approx(1.0, abs=0.01)
    inside = weight > 0
    assert np.allclose(shares[:, inside], np.array([[0.75], [0.25], [0.0]]))
    assert not shares[:, ~inside].any()


def test_the_disc_is_of_metres_where_the_map_is_not():
    # at 60 degrees north Mercator's metres are half as long
    x, y = Transformer.from_crs(4326, 3395, always_xy=True).transform(10.0, 60.0)
    found = points(photo(x, y, 10.0, "EPSG:3395", field=1.0))
    _, weight = found.soft_labels(Affine(0.5, 0, x - 30, 0, -0.5, y + 30), (120, 120), 3395)
    scale = 1 / math.cos(math.radians(60))
    assert (weight > 0).sum() * 0.25 == pytest.approx(math.pi * (10 * scale) ** 2, rel=0.02)


def test_where_footprints_overlap_the_smaller_one_says_more_of_a_pixel():
    near, far = photo(LEFT + 30, TOP - 20, 5.0, field=1.0), photo(LEFT + 30, TOP - 20, 10.0, wood=1.0)
    shares, weight = points(near, far).soft_labels(GRID, (80, 120), UTM)
    # weights are one over the areas: 4 to 1
    assert np.allclose(shares[:, 40, 60], [0.8, 0.2, 0.0], atol=0.01)
    assert weight[40, 60] == pytest.approx(0.25 / (math.pi * 25) + 0.25 / (math.pi * 100), rel=0.01)
    assert np.allclose(shares[:, 40, 60 + 15], [0.0, 1.0, 0.0])


def test_windows_that_share_a_photo_have_its_parts():
    found = points(photo(LEFT + 30, TOP - 20, 10.0, water=1.0))
    whole, weight = found.soft_labels(GRID, (80, 120), UTM)
    left = found.soft_labels(GRID, (80, 60), UTM)
    right = found.soft_labels(GRID @ Affine.translation(60, 0), (80, 60), UTM)
    assert np.allclose(np.concatenate([left[1], right[1]], axis=1), weight, atol=1e-7)
    assert np.allclose(np.concatenate([left[0], right[0]], axis=2), whole, atol=1e-6)
    elsewhere = found.soft_labels(GRID @ Affine.translation(0, 500), (80, 60), UTM)
    assert not elsewhere[1].any()


def test_the_loss_is_the_cross_entropy_with_shares_by_the_weights():
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 0, 0, 1] = math.log(3)
    shares = torch.tensor([[[[1.0, 0.5, 0.0]], [[0.0, 0.5, 0.0]]]])
    weight = torch.tensor([[[1.0, 3.0, 0.0]]])
    second = -(0.5 * math.log(3 / 4) + 0.5 * math.log(1 / 4))
    assert float(soft_label_loss(logits, shares, weight)) == pytest.approx((math.log(2) + 3 * second) / 4, rel=1e-6)
    # labels that are sure are those of torch's loss
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    hard = torch.nn.functional.one_hot(mask, 3).movedim(-1, 1).float()
    expected = torch.nn.functional.cross_entropy(logits, mask)
    assert float(soft_label_loss(logits, hard, torch.ones(2, 4, 5))) == pytest.approx(float(expected), rel=1e-6)


def test_a_batch_without_a_photo_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = soft_label_loss(logits, torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(logits.grad.abs().max()) == 0.0


def test_points_of_a_map_and_further_columns_are_read_too(tmp_path):
    table = pd.DataFrame([photo(LEFT + 30, TOP - 20, 10.0, field=0.5, wood=0.5)])
    table.assign(note="x").to_csv(tmp_path / "photos.csv", index=False)
    named = PhotoPoints.read(tmp_path / "photos.csv", CLASSES)
    frame = gpd.GeoDataFrame(table[["field", "wood"]], geometry=gpd.points_from_xy([LEFT + 30], [TOP - 20]), crs=UTM)
    found = PhotoPoints.read(frame, CLASSES, radius_m=10.0)
    assert np.allclose(found.lonlat, named.lonlat)
    assert np.array_equal(found.shares, named.shares)


def test_tables_that_say_nothing_are_refused():
    good = photo(LEFT, TOP, 10.0, field=1.0)

    def refused(what, **changed):
        with pytest.raises(InputError, match=what):
            PhotoPoints.read(pd.DataFrame([{**good, **changed}]), CLASSES)

    refused("sum to 1.4", wood=0.4)
    refused("are probabilities", field=1.2, wood=-0.2)
    refused("are probabilities", field=math.nan)
    refused("at most 500 m", radius_m=2000.0)
    refused("at most 500 m", radius_m=0.0)
    refused("no longitude", lat=95.0)
    refused("no numbers", field="much")
    table = pd.DataFrame([good])
    for column, what in (("radius_m", "radius_m"), ("lon", "'lon'"), ("field", "no column of a class")):
        with pytest.raises(InputError, match=what):
            PhotoPoints.read(table.drop(columns=column), CLASSES)
    with pytest.raises(GridError, match="must be projected"):
        points(good).soft_labels(GRID, (4, 4), 4326)
    with pytest.raises(InputError, match="do not fit"):
        soft_label_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3))


STORE_CLASSES = ("background", "dry land", "ridge")


def photos_over_first_chip(store: str) -> pd.DataFrame:
    a, _, c, _, e, f = open_uav_chips(store)["affine"].values[0]
    lon, lat = lonlat(c + 16 * a, f + 16 * e)
    return pd.DataFrame([{"lon": lon, "lat": lat, "radius_m": 1.2, "dry land": 0.5, "ridge": 0.5}])


@pytest.fixture(scope="module")
def habitats(tmp_path_factory) -> str:
    return draw_habitats(tmp_path_factory.mktemp("habitats"), ["train"] * 4 + ["val"] * 2)


def test_a_chip_has_the_shares_of_the_photos_that_reach_into_it_where_its_image_is_valid(habitats):
    photos = PhotoPoints.read(photos_over_first_chip(habitats), STORE_CLASSES)
    data = SegmentationDataset(habitats, photos=photos, stored=True)
    first, last = data[0], data[5]
    inside = first["share_weight"] > 0
    assert not inside[~first["valid"]].any()
    y, x = np.mgrid[:32, :32] + 0.5
    assert np.array_equal(inside.numpy(), (np.hypot(x - 16, y - 16) < 12) & first["valid"].numpy())
    assert torch.equal(first["shares"][:, inside], torch.tensor([0.0, 0.5, 0.5])[:, None].expand(3, int(inside.sum())))
    assert not last["share_weight"].any()
    # cut windows have the part of the footprint that lies in them
    window = SegmentationDataset(habitats, photos=photos, size=16)[0]
    assert torch.equal(window["share_weight"], first["share_weight"][8:24, 8:24])
    with pytest.raises(InputError, match="photo points of the classes"):
        SegmentationDataset(habitats, photos=points(photo(LEFT, TOP, 10.0, field=1.0)))


def test_photos_add_their_weighted_loss_and_let_chips_without_labels_take_part(habitats, tmp_path):
    table = photos_over_first_chip(habitats)
    settings = {"network": "conv_stack", "arguments": {"width": 4, "layers": 1}, "epochs": 1, "device": "cpu"}
    settings |= {"batch": 4, "applicability_points": 0, "min_label": 0.5}
    loss = {}
    for weight in (0, 1, 3):
        more = {"photos": table, "photo_weight": weight} if weight else {}
        bundle = train_segmentation(habitats, tmp_path / str(weight), **settings, **more)
        loss[weight] = pd.read_csv(tmp_path / str(weight) / "logs" / "metrics.csv")["loss"][0]
    assert loss[1] > loss[0]
    assert loss[3] - loss[0] == pytest.approx(3 * (loss[1] - loss[0]), rel=1e-3)
    assert bundle.notes["settings"]["photos"][1] == 3
    # a corner of the first chip is not valid: too few labels for the threshold, but a photo
    few = {**settings, "min_label": 0.95, "batch": 3}
    assert train_segmentation(habitats, tmp_path / "few", **few).notes["chips"]["train"] == 3
    assert train_segmentation(habitats, tmp_path / "more", **few, photos=table).notes["chips"]["train"] == 4
