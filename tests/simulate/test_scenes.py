"""What a scene's pixels are: reflectance with the right offset, nodata, clouds, shadows and SCL errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pyproj import Transformer
from scipy.ndimage import map_coordinates

from geoeco.simulate import S2World, WorldSettings
from geoeco.simulate.products import BANDS, CASES, seen
from geoeco.simulate.weather import SHADOW_SHADE, Sky, cloud_fractions, sun_position

CLEAR = {"size": 60, "years": 1, "clouds": 0.0, "noise": 0.0, "scl_omission": 0.0, "scl_commission": 0.0}


def products_of(world, every=1):
    for acquisition in world.acquisitions[::every]:
        for tile in world.tiles:
            yield from world.products(acquisition, tile)


def test_each_case_decodes_to_the_true_reflectance_with_its_true_offset():
    world = S2World(WorldSettings(**CLEAR, wrong_flags=0.3, split=0.0))
    checked = set()
    for product in products_of(world):
        scene = world.scene(product)
        if scene is None or product.acquisition.edge or product.case.name in checked:
            continue
        truth = world.landscape.reflectance(product.acquisition.ordinal)
        curve = world.landscape.curve[product.tile.index]
        for index, band in enumerate(BANDS):
            factor = band.resolution // 10
            n = curve.shape[0] // factor
            expected = truth[:, index][curve].reshape(n, factor, n, factor).mean(axis=(1, 3))
            decoded = (scene.numbers[band.name].astype(float) - product.case.added) / 10_000
            assert np.abs(decoded - expected).max() < 6e-5
        checked.add(product.case.name)
    assert checked == set(CASES)


def test_noise_has_the_requested_standard_deviation():
    quiet, loud = (S2World(WorldSettings(**{**CLEAR, "noise": noise}, first_year=2023)) for noise in (0.0, 0.02))
    for acquisition in loud.acquisitions[1:4]:
        a, b = (next(iter(w.products(acquisition, w.tiles[0]))) for w in (quiet, loud))
        if a.case.added == 0:
            continue
        for name in ("B01", "B04", "B11"):
            delta = w_numbers(loud, b, name) - w_numbers(quiet, a, name)
            assert delta.std() == pytest.approx(200, rel=0.1 if delta.size > 1000 else 0.3)


def w_numbers(world, product, name):
    return world.scene(product).numbers[name].astype(float)


def test_zero_marks_what_the_swath_did_not_see_and_nothing_else():
    # much noise over dark water: negative reflectance must not become 0 nor wrap
    world = S2World(WorldSettings(size=60, years=1, noise=0.05))
    wedges = 0
    for product in products_of(world, 2):
        scene = world.scene(product)
        if scene is None:
            assert not seen(product, *world.views[product.tile.index].uv10).any()
            continue
        inside = seen(product, *world.views[product.tile.index].uv10)
        wedges += not inside.all()
        for band in BANDS:
            factor = band.resolution // 10
            n = inside.shape[0] // factor
            whole = inside.reshape(n, factor, n, factor).all(axis=(1, 3))
            assert ((scene.numbers[band.name] > 0) == whole).all()
            assert scene.numbers[band.name].max() < 20_000
        assert ((scene.scl > 0) == scene.valid).all()
    assert wedges > 5


def test_both_tiles_see_the_same_ground_and_sky_through_two_utm_zones(northern):
    a, b = northern.tiles
    assert b.epsg - a.epsg == 1
    rows, cols = np.mgrid[0 : a.geobox.shape[0], 0 : a.geobox.shape[1]]
    x, y = a.geobox.affine @ (cols + 0.5, rows + 0.5)
    there = ~b.geobox.affine @ Transformer.from_crs(a.epsg, b.epsg, always_xy=True).transform(x, y)
    row, col = np.floor(there[1]).astype(int), np.floor(there[0]).astype(int)
    inside = (row >= 0) & (row < b.geobox.shape[0]) & (col >= 0) & (col < b.geobox.shape[1])
    assert 0.3 < inside.mean() < 0.8
    cover = northern.landscape.cover_of_curve
    one, other = northern.landscape.curve[0][inside], northern.landscape.curve[1][row[inside], col[inside]]
    # a pixel's centre moves by up to 7 m: only borders of patches may differ
    assert (cover[one] == cover[other]).mean() > 0.93
    day = np.array([18800.0])
    assert np.median(np.abs(northern.landscape.evi2(day)[one] - northern.landscape.evi2(day)[other])) < 0.01

    half = next(q for q in northern.acquisitions if 0.3 < q.cloud_fraction < 0.7 and q.edge is None)
    products = [next(iter(northern.products(half, tile))) for tile in northern.tiles]
    clouds = [northern.scene(product).cloud for product in products]
    at = np.stack([there[1], there[0]])[:, inside] / 2.0 - 0.5
    seen_from_b = map_coordinates(clouds[1].astype(float), at, order=1, mode="nearest") > 0.5
    seen_from_a = np.kron(clouds[0], np.ones((2, 2), bool))[inside]
    assert (seen_from_a == seen_from_b).mean() > 0.95


@pytest.mark.parametrize("clouds", [0.0, 0.4, 0.6, 0.75, 1.0])
def test_the_cloud_fraction_is_near_the_request(clouds):
    world = S2World(WorldSettings(size=48, years=1, revisit_days=8, clouds=clouds, scl_omission=0.0))
    shares = [s.cloud[s.valid].mean() for s in map(world.scene, products_of(world)) if s is not None and s.valid.any()]
    assert np.mean(shares) == pytest.approx(clouds, abs=0.05 if 0 < clouds < 1 else 0.0)


def test_days_are_mostly_clear_or_overcast():
    fractions = cloud_fractions(np.random.default_rng(0), 200, 0.6)
    assert fractions.mean() == pytest.approx(0.6, abs=0.01)
    assert ((fractions < 0.2) | (fractions > 0.8)).mean() > 0.55


@pytest.mark.parametrize(("omission", "commission"), [(0.10, 0.05), (0.0, 0.0), (0.3, 0.2)])
def test_the_classification_is_wrong_as_often_as_asked_and_in_blobs(omission, commission):
    settings = WorldSettings(size=120, years=1, revisit_days=20, scl_omission=omission, scl_commission=commission)
    world = S2World(settings)
    missed = clouds = false = clear = alone = 0
    for product in products_of(world):
        scene = world.scene(product)
        if scene is None:
            continue
        called = np.isin(scene.scl, (8, 9, 10))
        ground = scene.valid & ~scene.cloud & ~scene.shadow
        missed, clouds = missed + (scene.cloud & ~called).sum(), clouds + scene.cloud.sum()
        wrong = ground & called
        false, clear = false + wrong.sum(), clear + ground.sum()
        beside = np.zeros_like(wrong)
        beside[1:] |= wrong[:-1]
        beside[:-1] |= wrong[1:]
        beside[:, 1:] |= wrong[:, :-1]
        beside[:, :-1] |= wrong[:, 1:]
        alone += (wrong & ~beside).sum()
    assert missed / clouds == pytest.approx(omission, abs=0.01)
    assert false / clear == pytest.approx(commission, abs=0.01)
    assert alone <= 0.05 * max(false, 1)


def test_shadows_lie_away_from_the_sun_and_darken_the_ground():
    azimuth, elevation = sun_position(50.8, 172.0)
    assert 90 < azimuth < 180
    assert elevation == pytest.approx(57, abs=4)  # 62.6 degrees at noon on midsummer's day
    assert not 90 < sun_position(-34.6, 355.0)[0] < 270  # the southern sun stands in the north
    sky = Sky.draw(np.random.default_rng(3), (-1000.0, -1000.0, 1000.0, 1000.0), 0.4, azimuth, elevation)
    assert sky.shadow[0] < 0 < sky.shadow[1]
    u, v = np.meshgrid(np.linspace(-900, 900, 50), np.linspace(-900, 900, 50))
    moved = sky.opacity(u - sky.shadow[0], v - sky.shadow[1])
    np.testing.assert_allclose(sky.shade(u, v), moved, atol=1e-4)

    world = S2World(WorldSettings(size=120, years=1, noise=0.0, scl_omission=0.0, scl_commission=0.0))
    for product in products_of(world):
        scene = world.scene(product)
        if scene is None or scene.shadow.sum() < 200 or product.acquisition.edge:
            continue
        truth = world.landscape.reflectance(product.acquisition.ordinal)[:, 8][
            world.landscape.curve[product.tile.index]
        ]
        truth = truth.reshape(60, 2, 60, 2).mean(axis=(1, 3))
        measured = (scene.numbers["B8A"] - float(product.case.added)) / 1e4
        assert (measured[scene.shadow] < truth[scene.shadow] * (1 - 0.4 * SHADOW_SHADE) + 0.1).all()
        assert (scene.scl[scene.shadow] == 3).all()
        return
    pytest.fail("no scene with shadows")


def test_snow_comes_only_when_asked_and_only_in_winter():
    bare, snowy = (S2World(WorldSettings(size=48, years=1, clouds=0.0, snow=snow)) for snow in (0.0, 1.0))
    assert not any(a.snow for a in bare.acquisitions)
    months = {int(str(a.day)[5:7]) for a in snowy.acquisitions if a.snow}
    assert months == {12, 1, 2, 3} or months == {12, 1, 2}
    day = next(a for a in snowy.acquisitions if a.snow and a.edge is None)
    scene = snowy.scene(next(iter(snowy.products(day, snowy.tiles[0]))))
    assert (scene.scl == 11).mean() > 0.5
    assert (scene.scl == 6).any()  # the water stays open


def test_wrong_flags_can_be_switched_off():
    world = S2World(WorldSettings(size=48, wrong_flags=0.0))
    assert all(product.case.right for product in products_of(world))
    world = S2World(dataclasses.replace(world.settings, wrong_flags=1.0))
    assert all(product.case.right == (product.baseline < "04.00") for product in products_of(world))
