"""Views of season chips: what is done to which date, how much and how often, against NumPy and SciPy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest

from geoeco.errors import InputError
from geoeco.training.views import MoCoViews, SeasonViews

BANDS = ("B02", "B04", "B08", "ndvi")
SIDE = 24
WHOLE = {"size": SIDE, "scale": (1.0, 1.0)}
STILL = {"colour_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0, "flip_probability": 0.0}
#: Crops are resampled, also those of the whole image to its own size.
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def ndvi_of(image: torch.Tensor) -> torch.Tensor:
    """The index of bands (..., band, y, x) without negative reflectance."""
    red, nir = image[..., 1, :, :], image[..., 2, :, :]
    return (nir - red) / (nir + red)


def chips(n: int = 4, *, dates: int = 3, seed: int = 0) -> torch.Tensor:
    """Reflectance of some hundredths to some tenths, with its index: (N, date, band, y, x)."""
    draw = torch.Generator().manual_seed(seed)
    image = 0.02 + 0.5 * torch.rand(n, dates, len(BANDS), SIDE, SIDE, generator=draw)
    image[:, :, 3] = ndvi_of(image)
    return image


def share_fits(count: int, of: int, probability: float) -> bool:
    return binomtest(count, of, probability).pvalue > 1e-4


# --- which date, which treatment


def test_query_and_second_key_are_crops_only():
    image = chips()
    views = SeasonViews(BANDS, **WHOLE)(image)
    torch.testing.assert_close(views.q, image[:, 0], **CLOSE)
    torch.testing.assert_close(views.k1, image[:, 2], **CLOSE)
    always = {"colour_probability": 1.0, "blur_probability": 1.0}
    views = SeasonViews(BANDS, **WHOLE, **always)(image)
    for key, date in ((views.k0, 1), (views.k2, 0)):
        assert ((key - image[:, date]).flatten(1).abs().amax(1) > 0.02).all()


def test_keys_without_augmentation_are_their_dates():
    image = chips()
    q, k0, k1, k2 = SeasonViews(BANDS, **WHOLE, **STILL)(image)
    for view, date in ((q, 0), (k0, 1), (k1, 2), (k2, 0)):
        torch.testing.assert_close(view, image[:, date], **CLOSE)
    q, k = MoCoViews(BANDS, **WHOLE, **STILL)(image)
    torch.testing.assert_close(q, image[:, 0], **CLOSE)
    torch.testing.assert_close(k, image[:, 1], **CLOSE)


def test_both_views_of_moco_are_augmented_dates_that_differ():
    image = chips()
    q, k = MoCoViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(image)
    for view, date in ((q, 0), (k, 1)):
        means = view[:, :3].mean((2, 3)) / image[:, date, :3].mean((2, 3))
        torch.testing.assert_close(means, means[:, :1].expand(-1, 3), rtol=0, atol=1e-4)
        assert (means[:, 0] - 1).abs().max() > 0.05


def test_of_two_dates_the_keys_are_different_views_of_one_scene():
    image = chips(dates=2)[:, [0, 1, 1]]
    views = SeasonViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(image)
    assert (views.k0 - views.k1).abs().amax((1, 2, 3)).min() > 1e-3
    plain = SeasonViews(BANDS, **WHOLE, **STILL)(image)
    torch.testing.assert_close(plain.k0, plain.k1, **CLOSE)


# --- crops


def test_crops_have_the_area_and_aspect_of_the_settings_and_a_place_of_their_own():
    """A ramp along x and one along y tell where the corners of a crop came from."""
    side, n = 64, 256
    ramp = torch.arange(side, dtype=torch.float32)
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    views = SeasonViews(("B02", "B03"), size=16, **STILL)(image.expand(n, 3, 2, side, side))
    corners = []
    for view in views:
        left, right = view[:, 0, 0, 0], view[:, 0, 0, -1]
        top, bottom = view[:, 1, 0, 0], view[:, 1, -1, 0]
        width, height = right - left + 1, bottom - top + 1
        area = width * height / side**2
        assert 0.18 < area.min() < 0.25
        assert 0.75 < area.max() < 1.02
        # whole pixels: the aspect of a small crop is met to a pixel
        assert ((width + 0.51) / (height - 0.51)).min() > 0.75
        assert ((width - 0.51) / (height + 0.51)).max() < 4 / 3
        assert min(left.min(), top.min()) > -1e-3
        assert max(right.max(), bottom.max()) < side - 1 + 1e-3
        assert torch.equal(view[:, 0].diff(dim=2) > 0, torch.ones(n, 16, 15, dtype=torch.bool))
        corners.append(torch.stack([left, top], dim=1))
    for i in range(4):
        for j in range(i):
            assert (corners[i] == corners[j]).all(1).sum() < n / 8


def test_pixel_sizes_of_crops_are_told():
    views = SeasonViews(BANDS, size=224)
    finest, coarsest = views.pixel_sizes(264, 10.0)
    assert coarsest == pytest.approx(10 * 264 / 224)
    assert finest == pytest.approx(coarsest * 0.2**0.5)
    assert views.settings["scale"] == (0.2, 1.0)
    assert "blur_sigma=(0.1, 2.0)" in repr(views)


# --- colours, blur, flip


def test_jitter_is_one_brightness_and_one_contrast_about_the_mean_for_all_bands_of_a_sample():
    image = chips(256)
    key = SeasonViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(image).k0.double()
    before, brightness, contrast = image[:, 1].double(), [], []
    for old, new in zip(before[:, :3].flatten(2).numpy(), key[:, :3].flatten(2).numpy(), strict=True):
        fits = [np.polyfit(a, b, 1) for a, b in zip(old, new, strict=True)]
        slopes = [slope for slope, _ in fits]
        ratios = new.mean(1) / old.mean(1)
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-3)
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
        assert max(np.abs(np.polyval(f, a) - b).max() for f, a, b in zip(fits, old, new, strict=True)) < 1e-4
        brightness.append(ratios[0])
        contrast.append(slopes[0] / ratios[0])
    for factors in (brightness, contrast):
        assert 0.599 < min(factors) < 0.63
        assert 1.37 < max(factors) < 1.401
        assert np.mean(factors) == pytest.approx(1, abs=0.06)
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.25


@pytest.mark.parametrize(
    ("setting", "probability"),
    [("colour_probability", 0.8), ("grey_probability", 0.2), ("blur_probability", 0.5), ("flip_probability", 0.5)],
)
def test_augmentations_come_as_often_as_published(setting, probability):
    image = chips(400)
    views = SeasonViews(BANDS, **WHOLE, **{name: p for name, p in STILL.items() if name != setting})
    assert views.settings[setting] == probability
    changed = ((views(image).k0 - image[:, 1]).flatten(1).abs().amax(1) > 2e-4).sum()
    assert share_fits(int(changed), 400, probability)


def test_grey_is_the_mean_of_the_bands_in_each():
    image = chips()
    grey = STILL | {"grey_probability": 1.0}
    mean = image[:, 1, :3].mean(1)
    for rule, index in (("recompute", torch.zeros_like(mean)), ("leave", image[:, 1, 3])):
        key = SeasonViews(BANDS, **WHOLE, **grey, ndvi=rule)(image).k0
        torch.testing.assert_close(key[:, :3], mean[:, None].expand(-1, 3, -1, -1), **CLOSE)
        torch.testing.assert_close(key[:, 3], index, **CLOSE)
    key = SeasonViews(BANDS, **WHOLE, **grey, ndvi="jitter")(image).k0
    torch.testing.assert_close(key, image[:, 1].mean(1, keepdim=True).expand(-1, 4, -1, -1), **CLOSE)


def test_blur_is_scipys_gaussian():
    image = chips()
    blur = STILL | {"blur_probability": 1.0}
    key = SeasonViews(BANDS, **WHOLE, **blur, blur_sigma=(1.5, 1.5), ndvi="leave")(image).k0
    wanted = gaussian_filter(image[:, 1].numpy(), 1.5, mode="mirror", radius=5, axes=(2, 3))
    np.testing.assert_allclose(key.numpy(), wanted, rtol=0, atol=1e-5)


def test_blur_differs_between_samples_within_its_range():
    image = chips(64)[:1].expand(64, -1, -1, -1, -1)
    key = SeasonViews(BANDS, **WHOLE, **STILL | {"blur_probability": 1.0}, ndvi="leave")(image).k0
    rough = key[:, 0].flatten(1).std(1)
    weakest, strongest = (gaussian_filter(image[0, 1, 0].numpy(), s, mode="mirror").std(ddof=1) for s in (0.1, 2.0))
    assert strongest * 0.95 < rough.min() < strongest * 1.3
    assert weakest * 0.8 < rough.max() < weakest * 1.01


def test_flips_are_left_to_right():
    image = chips()
    key = SeasonViews(BANDS, **WHOLE, **STILL | {"flip_probability": 1.0})(image).k2
    torch.testing.assert_close(key, image[:, 0].flip(3), **CLOSE)


# --- the index


def test_the_index_of_recoloured_views_is_that_of_their_bands():
    image = chips(32)
    views = SeasonViews(BANDS, **WHOLE, blur_probability=0.0)(image)
    for view in views:
        positive = (view[:, 1] > 1e-3) & (view[:, 2] > 1e-3)
        assert positive.float().mean() > 0.9
        torch.testing.assert_close(view[:, 3][positive], ndvi_of(view)[positive], rtol=0, atol=1e-2)
    changed = (views.k0[:, 3].flatten(1).std(1) / image[:, 1, 3].flatten(1).std(1) - 1).abs() > 0.02
    assert changed.float().mean() > 0.5


def test_the_index_stays_between_minus_one_and_one_where_jitter_makes_reflectance_negative():
    image = chips(64)
    image[:, :, 1:3, :, ::2] = 0.003
    key = SeasonViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(image).k0
    assert key[:, :3].min() < 0
    assert key[:, 3].abs().max() <= 1
    assert torch.isfinite(key).all()


def test_the_index_may_be_jittered_like_reflectance_or_left():
    image = chips()
    colour = STILL | {"colour_probability": 1.0}
    torch.manual_seed(0)
    jittered = SeasonViews(BANDS, **WHOLE, **colour, ndvi="jitter")(image).k0
    ratios = jittered.mean((2, 3)) / image[:, 1].mean((2, 3))
    torch.testing.assert_close(ratios[:, 3], ratios[:, 0], rtol=1e-2, atol=0)
    torch.manual_seed(0)
    left = SeasonViews(BANDS, **WHOLE, **colour, ndvi="leave")(image).k0
    torch.testing.assert_close(left[:, 3], image[:, 1, 3], **CLOSE)
    torch.testing.assert_close(left[:, :3], jittered[:, :3], **CLOSE)


# --- numbers: no data, bright snow, negative reflectance


def test_pixels_without_data_stay_without_and_do_not_count():
    image = chips(16)
    image[:, :, :, :, SIDE // 2 :] = 0
    image[0] = 0
    colour = {"colour_probability": 1.0, "grey_probability": 0.0, "flip_probability": 0.0}
    for blur in (0.0, 1.0):
        views = SeasonViews(BANDS, **WHOLE, **colour, blur_probability=blur)(image)
        for view in views:
            assert view[:, :, :, SIDE // 2 :].abs().max() < 1e-5
            assert view[0].abs().max() == 0
            assert torch.isfinite(view).all()
    torch.manual_seed(5)
    half = SeasonViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(image).k0
    mirrored = torch.cat([image[..., : SIDE // 2], image[..., : SIDE // 2].flip(-1)], dim=-1)
    torch.manual_seed(5)
    full = SeasonViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(mirrored).k0
    torch.testing.assert_close(half[..., : SIDE // 2 - 1], full[..., : SIDE // 2 - 1], **CLOSE)


def test_a_band_that_is_lost_stays_lost_and_gives_no_index():
    image = chips(16)
    image[:, :, 1, :, SIDE // 2 :] = 0
    image[:, :, 3, :, SIDE // 2 :] = 0
    for view in SeasonViews(BANDS, **WHOLE, flip_probability=0.0)(image):
        assert view[:, [1, 3], :, SIDE // 2 :].abs().max() < 1e-5
        assert view[:, [0, 2], :, SIDE // 2 :].abs().amax((2, 3)).min() > 0.05


def test_nothing_is_clipped_or_wrapped():
    image = chips(64)
    image[:, :, 0, 0, 0], image[:, :, 0, 1, 1] = 1.3, -0.02
    views = SeasonViews(BANDS, **WHOLE, **STILL | {"colour_probability": 1.0})(image)
    assert views.q[:, 0].amax((1, 2)).sub(1.3).abs().max() < 1e-4
    assert views.q[:, 0].amin((1, 2)).add(0.02).abs().max() < 1e-4
    assert 1.5 < views.k0.max() < 1.3 * 1.4 * 1.4


# --- chance


@pytest.mark.parametrize("kind", [SeasonViews, MoCoViews])
def test_torchs_seed_alone_decides(kind):
    image, make = chips(), kind(BANDS, size=16)

    def drawn(seed: int) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(seed)
        return make(image)

    first = drawn(0)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    again = drawn(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy[1])  # noqa: NPY002
    assert not any(torch.equal(a, b) for a, b in zip(first, drawn(1), strict=True))


def test_samples_of_a_batch_are_drawn_by_themselves():
    image = chips(1).expand(8, -1, -1, -1, -1)
    for view in SeasonViews(BANDS, size=16)(image):
        for i in range(1, 8):
            assert not torch.equal(view[0], view[i])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_one_seed_gives_one_view_on_every_device():
    image = chips()
    torch.manual_seed(0)
    here = SeasonViews(BANDS, size=16)(image)
    torch.manual_seed(0)
    there = SeasonViews(BANDS, size=16).cuda()(image.cuda())
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-4)


def test_views_are_float32_without_gradients_whatever_autocast_says():
    image, make = chips().requires_grad_(), SeasonViews(BANDS, size=16)
    torch.manual_seed(0)
    plain = make(image)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = make(image)
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)
        assert b.dtype == torch.float32
        assert not b.requires_grad
    assert make.eval()(image.half()).q.dtype == torch.float32


def test_the_batch_is_left_as_it_was():
    image = chips()
    before = image.clone()
    SeasonViews(BANDS, **WHOLE)(image)
    MoCoViews(BANDS, **WHOLE)(image)
    assert torch.equal(image, before)


# --- errors


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(4, 3, 3, SIDE, SIDE),
        torch.rand(4, 2, 4, SIDE, SIDE),
        torch.rand(3, 4, SIDE, SIDE),
        torch.rand(0, 3, 4, SIDE, SIDE),
        torch.randint(10_000, (4, 3, 4, SIDE, SIDE)),
    ],
)
def test_batches_that_do_not_fit_are_refused(image):
    with pytest.raises(InputError, match="a batch of"):
        SeasonViews(BANDS, size=16)(image)


def test_chips_smaller_than_the_blur_are_refused():
    with pytest.raises(InputError, match="too small to blur"):
        SeasonViews(BANDS, size=16)(torch.rand(2, 3, 4, 6, 6))


@pytest.mark.parametrize("kind", [SeasonViews, MoCoViews])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": ()}, "bands are"),
        ({"bands": ("B02", "B02")}, "bands are"),
        ({"bands": ("B02", "ndvi")}, "without B04 and B08"),
        ({"ndvi": "drop"}, "ndvi is 'drop'"),
        ({"size": 0}, "size is 0"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"scale": (0.5, 1.5)}, "scale is"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma is"),
        ({"grey_probability": 1.2}, "grey_probability is 1.2"),
        ({"colour": -0.1}, "colour is -0.1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**{"bands": BANDS, **settings})
