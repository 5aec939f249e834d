"""Maps of classes: no seams where the network allows it, the same bytes however the work is cut, right doubt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import torch
import xarray as xr
from scipy.special import log_softmax, softmax
from scipy.stats import entropy as entropy_of
from torch import Tensor, nn

from geoeco.applicability import AreaOfApplicability
from geoeco.errors import GridError, InputError, OutputError
from geoeco.mapping import predict
from geoeco.mapping.map_layers import OUTPUTS
from geoeco.mapping.networks import views_of
from geoeco.models import DWFFNet
from geoeco.training import ModelBundle, Normalisation
from geoeco.training.smp_adapter import SmpSegmenter, receptive_radius
from tests.mapping.mosaics import BANDS, CODES, Smeared, bundle_of, conv_bundle, grid, image, known, whole_logits

QUIET = {"progress": False, "threads": 1}
DOUBT = ("class", "probability", "entropy", "confidence", "valid")


def same_bytes(one: xr.Dataset, other: xr.Dataset) -> bool:
    return all(one[name].to_numpy().tobytes() == other[name].to_numpy().tobytes() for name in one.data_vars)


# --- seams -----------------------------------------------------------------------------------------------------------


def assert_like_the_whole(made: xr.Dataset, logits: np.ndarray, there: np.ndarray) -> None:
    """Logits agree to 1e-4, and classes wherever the margin between the first two exceeds that."""
    expected = log_softmax(logits, axis=0)
    found = np.log(made["probability"].to_numpy())
    assert np.abs(found - expected)[:, there].max() <= 1e-4
    first, second = np.sort(logits, axis=0)[[-1, -2]]
    clear = there & (first - second > 1e-4)
    best = np.array(CODES)[: len(logits)][logits.argmax(axis=0)]
    assert (made["class"].to_numpy() == best)[clear].all()


@pytest.mark.parametrize("asked", [{}, {"window": 32}, {"window": 50, "batch": 6}, {"window": 40, "overlap": 20}])
def test_seams_vanish_when_halo_covers_receptive_field(asked):
    source, bundle = image(133, 171), conv_bundle()
    made = predict(source, bundle, outputs=DOUBT, **asked, **QUIET)
    assert_like_the_whole(made, whole_logits(bundle, source), known(source))


def test_a_halo_one_pixel_short_leaves_seams():
    source, bundle = image(133, 171, holes=False), conv_bundle()
    short = conv_bundle(halo=2)
    found = predict(source, short, window=32, outputs=("probability",), blend="core", **QUIET)["probability"].to_numpy()
    difference = np.abs(found - softmax(whole_logits(bundle, source), axis=0)).max(axis=0)
    # a pixel on either side of the border between two cores sees what its window does not hold
    beside = [np.isin(np.arange(size) % 28, (27, 0)) & (np.arange(size) > 0) for size in difference.shape]
    seams = beside[0][:, np.newaxis] | beside[1]
    assert difference[~seams].max() <= 1e-6
    assert difference[seams].max() > 1e-2


class Shallow(nn.Module):
    """A U-Net of segmentation-models-pytorch with three halvings instead of five."""

    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.network = smp.Unet(
            "resnet18", encoder_depth=3, decoder_channels=(16, 8, 8), encoder_weights=None, classes=4
        )
        self.receptive_radius = receptive_radius(self.network, 8)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


@pytest.fixture(scope="module")
def unet() -> ModelBundle:
    """With the statistics of an image, so that its random weights give several classes."""
    torch.manual_seed(1)
    module = Shallow()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    scene = torch.from_numpy(image(96, 96, holes=False).to_numpy())[None]
    with torch.no_grad():
        module.train()(scene)
        head = module.eval().network.segmentation_head[0]
        head.bias.sub_(module(scene).mean(dim=(0, 2, 3)))
        head.weight.mul_(2)
    return bundle_of(module, normalisation=Normalisation((0.0,) * 3, (1.0,) * 3))


def test_a_unet_in_tiles_is_the_unet_of_the_whole_image(unet):
    radius = unet.halo
    assert radius is not None
    source = image(208, 248)
    made = predict(source, unet, window=2 * math.ceil(radius / 8) * 8 + 48, blend="core", outputs=DOUBT, **QUIET)
    assert_like_the_whole(made, whole_logits(unet, source), known(source))


def test_the_view_of_a_unet_is_no_wider_than_its_radius(unet):
    pixels = torch.rand(1, 3, 16, 400, requires_grad=True)
    (gradient,) = torch.autograd.grad(unet.module(pixels)[..., 200:208].sum(), pixels)
    seen = torch.nonzero(gradient.abs().sum(dim=(0, 1, 2)))
    assert int(seen.min()) > 0
    assert int(seen.max()) < 399
    assert 200 - int(seen.min()) <= unet.halo
    assert int(seen.max()) - 207 <= unet.halo


def test_windows_off_the_stride_of_a_unet_change_classes(unet):
    source = image(296, 328, holes=False)
    scene = torch.from_numpy(source.to_numpy())[None]
    margin = math.ceil(unet.halo / 8) * 8
    whole = unet(scene).argmax(1)[..., margin + 8 : -margin, margin + 8 : -margin]
    changed = {}
    for moved in (4, 8):
        found = unet(scene[..., moved : 288 + moved, moved : 320 + moved]).argmax(1)
        inside = found[..., margin + 8 - moved :, margin + 8 - moved :][..., : whole.shape[-2], : whole.shape[-1]]
        # what both see whole
        seen = slice(0, whole.shape[-2] - 8), slice(0, whole.shape[-1] - 8)
        changed[moved] = float((inside[(..., *seen)] != whole[(..., *seen)]).float().mean())
    print(f"classes that change in a U-Net of stride 8: moved by 4 px {changed[4]:.1%}, by 8 px {changed[8]:.1%}")
    assert changed[4] > 0.02
    assert changed[8] == 0
    with pytest.raises(InputError, match="has a stride of 8"):
        predict(source, bundle_of(unet.module, stride=4), window=84, **QUIET)


def test_the_unet_of_a_resnet_moved_by_half_its_stride_changes_classes():
    torch.manual_seed(0)
    network = SmpSegmenter("Unet", "resnet18", 3, 5).eval()
    # it sees 312 px each way, see tests/training/test_segmentation.py
    side, margin = 704, 320
    scene = torch.rand(1, 3, side + 32, side + 32, generator=torch.Generator().manual_seed(1)) * 4 - 2
    with torch.inference_mode():
        classes = {
            moved: network(scene[..., moved : side + moved, moved : side + moved]).argmax(1) for moved in (0, 16, 32)
        }
    ground = classes[0][..., margin + 32 : -margin, margin + 32 : -margin]
    changed = {}
    for moved in (16, 32):
        same = classes[moved][..., margin + 32 - moved : -margin - moved, margin + 32 - moved : -margin - moved]
        changed[moved] = float((same != ground).float().mean())
    print(f"classes that change in a U-Net of stride 32: moved by 16 px {changed[16]:.1%}, by 32 px {changed[32]:.1%}")
    assert changed[16] > 0.02
    assert changed[32] == 0


def jump(made: xr.Dataset, step: int) -> float:
    """Mean jump of probabilities across the borders of windows, over that elsewhere."""
    jumps = np.abs(np.diff(made["probability"].to_numpy(), axis=2)).mean(axis=(0, 1))
    border = np.arange(1, len(jumps) + 1) % step == 0
    return float(jumps[border].mean() / jumps[~border].mean())


def test_blending_takes_seams_from_a_network_that_sees_its_whole_window():
    torch.manual_seed(2)
    source, bundle = image(192, 256, holes=False, blur=8.0), bundle_of(Smeared())
    cut = predict(source, bundle, window=64, overlap=0, outputs=("probability",), **QUIET)
    blended = predict(source, bundle, window=64, overlap=32, outputs=("probability",), **QUIET)
    print(f"jump at borders over jump elsewhere: cut {jump(cut, 64):.2f}, blended {jump(blended, 32):.2f}")
    assert jump(cut, 64) > 3
    assert jump(blended, 32) < 1.2


# --- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"window": 48, "batch": 3},
        {"window": 64, "overlap": 24, "blend": "hann"},
        {"window": 64, "overlap": 32, "blend": "hann", "augment": ("flips",), "batch": 1},
    ],
)
def test_neither_the_size_of_a_block_nor_the_order_of_blocks_changes_a_byte(asked):
    source, bundle = image(131, 110), conv_bundle()
    made = predict(source, bundle, outputs=DOUBT, block=4096, **asked, **QUIET)
    for block in (48, 100):
        assert same_bytes(made, predict(source, bundle, outputs=DOUBT, block=block, **asked, **QUIET))


def test_what_is_under_the_mask_does_not_count():
    source, bundle = image(90, 90), conv_bundle()
    there = known(source)
    stored = (np.nan_to_num(source.to_numpy()) * 255).round().astype(np.uint8)
    noise = np.random.default_rng(5).integers(0, 255, stored.shape, dtype=np.uint8)
    made = []
    for under in (np.zeros_like(stored), noise):
        pixels = xr.DataArray(np.where(there, stored, under), dims=source.dims, coords=source.coords)
        dataset = xr.Dataset({"image": pixels.assign_attrs(scale=1 / 255, units="1"), "valid": (("y", "x"), there)})
        made.append(predict(dataset, bundle, outputs=DOUBT, **QUIET))
    assert same_bytes(*made)
    whole = softmax(whole_logits(bundle, source.copy(data=np.where(there, stored, 0).astype(np.float32) / 255)), axis=0)
    np.testing.assert_allclose(made[0]["probability"].to_numpy()[:, there], whole[:, there], atol=1e-6)


def test_invalid_pixels_are_nodata_in_every_output():
    source = image(90, 90)
    made = predict(source, conv_bundle(), outputs=DOUBT, **QUIET)
    there = known(source)
    assert (made["class"].to_numpy() == 255)[~there].all()
    assert np.isin(made["class"].to_numpy()[there], CODES).all()
    for name in ("probability", "entropy", "confidence"):
        assert (np.isfinite(made[name].to_numpy()) == there).all()
    assert (made["valid"].to_numpy() == there).all()


def test_a_mosaic_without_valid_pixels_is_a_map_without_classes():
    source = image(50, 50)
    made = predict(source * np.nan, conv_bundle(), outputs=("class", "entropy"), **QUIET)
    assert (made["class"] == 255).all()
    assert made["entropy"].isnull().all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (90, 3)])
def test_a_mosaic_smaller_than_a_window_is_mapped(shape):
    source, bundle = image(*shape, holes=False), conv_bundle()
    made = predict(source, bundle, outputs=DOUBT, **QUIET)
    assert_like_the_whole(made, whole_logits(bundle, source), known(source))
    assert np.isin(predict(source, bundle, blend="hann", **QUIET)["class"].to_numpy(), CODES).all()


def test_bands_are_taken_by_name():
    source, bundle = image(60, 60), conv_bundle()
    turned = xr.concat(
        [source.sel(band=["blue", "red"]), source.sel(band="green") * 0, source.sel(band=["green"])], "band"
    )
    turned = turned.assign_coords(band=["blue", "red", "nir", "green"])
    assert same_bytes(predict(source, bundle, **QUIET), predict(turned, bundle, **QUIET))


# --- what a map holds ------------------------------------------------------------------------------------------------


def test_the_map_lies_on_the_mosaic_and_names_its_classes():
    source = image(60, 80)
    made = predict(source, conv_bundle(colours=("#aa5500", "#00ff00", "#0000ff", "#ffff00")), **QUIET)
    assert made.odc.geobox == grid(60, 80)
    assert made["class"].dtype == np.uint8
    assert made["class"].attrs["flag_values"] == list(CODES)
    assert made["class"].attrs["flag_meanings"] == "dry_land grass_belt river ridge"
    assert made["class"].attrs["flag_colors"] == "#aa5500 #00ff00 #0000ff #ffff00"
    assert made["class"].attrs["kind"] == "class"


def test_entropy_and_confidence_are_those_of_the_probabilities():
    source = image(60, 60)
    made = predict(source, conv_bundle(), outputs=DOUBT, **QUIET)
    probability, there = made["probability"].to_numpy(), known(source)
    np.testing.assert_allclose(probability.sum(axis=0)[there], 1, atol=1e-6)
    np.testing.assert_allclose(
        made["entropy"].to_numpy()[there], entropy_of(probability[:, there], base=len(CODES)), atol=2e-6
    )
    np.testing.assert_array_equal(made["confidence"].to_numpy()[there], probability.max(axis=0)[there])
    assert (made["class"].to_numpy() == np.array(CODES)[probability.argmax(axis=0)])[there].all()


def test_an_ensemble_is_the_mean_and_its_spread_the_mutual_information():
    source, bundles = image(60, 60), [conv_bundle(seed) for seed in (0, 1, 2)]
    made = predict(source, bundles, outputs=(*DOUBT, "spread"), window=32, **QUIET)
    there = known(source)
    alone = np.stack([softmax(whole_logits(bundle, source), axis=0)[:, there] for bundle in bundles])
    np.testing.assert_allclose(made["probability"].to_numpy()[:, there], alone.mean(axis=0), atol=1e-6)
    within = entropy_of(alone, axis=1).mean(axis=0)
    expected = (entropy_of(alone.mean(axis=0)) - within) / math.log(len(CODES))
    np.testing.assert_allclose(made["spread"].to_numpy()[there], expected, atol=2e-6)
    one = predict(source, [bundles[0], conv_bundle(0)], outputs=("spread",), **QUIET)
    assert float(one["spread"].max()) < 1e-6


@pytest.mark.parametrize(("augment", "count"), [(("flips",), 4), (("rot90",), 4), (("flips", "rot90"), 8)])
def test_augmentation_is_the_mean_over_views_turned_back(augment, count):
    source, bundle = image(48, 48), conv_bundle()
    values = np.nan_to_num(source.to_numpy())
    group = {"flips": (1, 2), "rot90": (4, 1)}
    turns, mirrors = (4, 2) if len(augment) == 2 else group[augment[0]]
    found = []
    for turn in range(turns) if "rot90" in augment else (0, 2):
        for mirror in range(mirrors):
            view = np.rot90(values[:, :, ::-1] if mirror else values, turn, (1, 2))
            logits = bundle(torch.from_numpy(view.copy())[None])[0].numpy()
            back = np.rot90(softmax(logits, axis=0), -turn, (1, 2))
            found.append(back[:, :, ::-1] if mirror else back)
    assert len(found) == count == len(set(views_of(augment)))
    made = predict(source, bundle, augment=augment, outputs=("probability",), **QUIET)
    there = known(source)
    np.testing.assert_allclose(made["probability"].to_numpy()[:, there], np.mean(found, axis=0)[:, there], atol=1e-6)


def test_augmentation_in_tiles_is_augmentation_of_the_whole():
    source, bundle = image(90, 120), conv_bundle()
    asked = {"augment": ("flips", "rot90"), "outputs": ("probability",), **QUIET}
    tiled, whole = predict(source, bundle, window=32, **asked), predict(source, bundle, window=512, **asked)
    xr.testing.assert_allclose(tiled["probability"], whole["probability"], atol=1e-6)


# --- where it applies ------------------------------------------------------------------------------------------------


class Coarse(nn.Module):
    """Features are means of cells of 8 pixels; classes follow the pixels alone."""

    stride = 8
    receptive_radius = 7

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 4, 1)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(images), nn.functional.avg_pool2d(images, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_features(images)[0]


def test_the_area_of_applicability_is_that_of_the_cells_of_features():
    source = image(64, 96, holes=False)
    source.data[:, 40:, 48:] += 0.6  # unlike all training data
    bundle = bundle_of(Coarse())
    _, features = bundle.module.with_features(bundle.normalisation(torch.from_numpy(source.to_numpy())[None]))
    cells = features[0].permute(1, 2, 0).numpy()
    training = np.concatenate([cells[:5].reshape(-1, 3), cells[5:, :6].reshape(-1, 3)])
    area = AreaOfApplicability().fit(training, np.arange(len(training)) % 4)
    made = predict(source, bundle_of(bundle.module, applicability=area), window=48, outputs=("di", "aoa"), **QUIET)
    expected, inside = area.predict(cells)
    np.testing.assert_allclose(made["di"].to_numpy(), expected.repeat(8, 0).repeat(8, 1), rtol=1e-5, atol=1e-6)
    assert (made["aoa"].to_numpy() == inside.repeat(8, 0).repeat(8, 1)).all()
    assert not made["aoa"][40:, 48:].any()
    assert made["aoa"][:40].mean() > 0.9
    pair = predict(source, [bundle_of(bundle.module, applicability=area)] * 2, outputs=("di", "aoa", "class"), **QUIET)
    np.testing.assert_allclose(pair["di"].to_numpy(), made["di"].to_numpy(), rtol=1e-5, atol=1e-6)
    assert set(np.unique(pair["aoa"])) == {0, 1}


def test_a_bundle_that_does_not_know_where_it_applies_is_refused():
    with pytest.raises(InputError, match="does not say where it applies"):
        predict(image(64, 64), bundle_of(Coarse()), outputs=("class", "aoa"), **QUIET)


# --- weights of levels -----------------------------------------------------------------------------------------------


def test_weights_of_a_scene_are_fixed_and_leave_smaller_seams():
    torch.manual_seed(0)
    network = DWFFNet("test_vit", num_classes=4, taps=2)
    with torch.no_grad():  # an untrained net weighs all levels alike
        network.scores[-1].weight.mul_(200)
    bundle = bundle_of(network, size=64, architecture="dwff")
    source = image(128, 160, holes=False, blur=5.0)
    made = {
        weights: predict(source, bundle, window=64, overlap=0, outputs=("probability",), weights=weights, **QUIET)
        for weights in ("tile", "scene")
    }
    again = predict(source, bundle, window=64, overlap=0, outputs=("probability",), weights="scene", block=64, **QUIET)
    assert same_bytes(made["scene"], again)
    assert not same_bytes(made["scene"], made["tile"])
    blended = predict(source, bundle, window=64, overlap=32, outputs=("probability",), weights="scene", **QUIET)
    found = {"tile": jump(made["tile"], 64), "scene": jump(made["scene"], 64), "scene, blended": jump(blended, 32)}
    print("jump at borders over jump elsewhere:", {name: round(value, 2) for name, value in found.items()})
    assert found["scene, blended"] < min(found["scene"], found["tile"])


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(told: str, *arguments, kind: type[Exception] = InputError, **asked) -> None:
    with pytest.raises(kind) as error:
        predict(*arguments, **{**QUIET, **asked})
    assert told in str(error.value), str(error.value)


def test_models_that_were_not_made_for_the_mosaic_are_refused_before_work():
    source = image(40, 40)
    refused("needs the band green", source.sel(band=["red", "blue"]), conv_bundle())
    refused("in units of 'dn'", source.assign_attrs(units="1"), conv_bundle(units="dn"))
    refused("pixels of 0.5 m, the imagery has 0.1 m", source, conv_bundle(resolution=0.5))
    refused("is for embedding, not for segmentation", source, conv_bundle(task="embedding", codes=()))
    refused("different classes", source, [conv_bundle(), conv_bundle(codes=(1, 2, 3, 4))])
    refused("no model is given", source, [])
    refused("no even grid", source.drop_vars(["x", "y", "spatial_ref"]), conv_bundle(), kind=GridError)
    degrees = source.odc.assign_crs("EPSG:4326")
    refused("are in metres, and the grid is not", degrees, conv_bundle(), kind=GridError)


def test_settings_that_mean_nothing_are_refused():
    source, bundle = image(40, 40), conv_bundle()
    refused("outputs of a map are 'klass'", source, bundle, outputs=("klass",))
    refused("outputs of a map are none", source, bundle, outputs=())
    refused("one model has no spread", source, bundle, outputs=("spread",))
    refused("augmentation by 'mirror'", source, bundle, augment=("mirror",))
    refused("a halo of 2", source, bundle, blend="core", overlap=4, window=32)
    refused("has no bfloat16", source, bundle, precision="bf16") if not _bf16() else None
    assert set(DOUBT) <= set(OUTPUTS)


def _bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def test_a_network_that_diverged_or_has_other_classes_is_told():
    source, broken = image(40, 40), conv_bundle()
    with torch.no_grad():
        broken.module.classifier.bias[0] = math.nan
    refused("not finite", source, broken, kind=OutputError)
    refused("not (1, 3, 40, 40)", source, bundle_of(conv_bundle().module, classes=3))


def test_an_image_without_names_of_bands_is_refused():
    source = image(40, 40)
    refused("have no names", source.drop_vars("band"), conv_bundle())
    refused("(band, y, x)", source.sel(band="red"), conv_bundle())
    refused("is no orthomosaic", xr.Dataset({"pixels": source}), conv_bundle())
    assert tuple(source["band"].values) == BANDS


# --- real imagery ----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_orthomosaic_is_mapped_as_the_whole_image_is(real_data):
    """NEON's airborne RGB of Bartlett Forest, 1213 x 1106 pixels of 0.1 m."""
    path, bundle = next(real_data("crowns/neon_bart").glob("*.tif")), conv_bundle()
    made = predict(path, bundle, outputs=DOUBT, window=400, **QUIET)
    with rasterio.open(path) as file:
        stored = file.read([1, 2, 3])
        assert made.odc.geobox.affine == file.transform
        assert made.odc.geobox.crs.to_epsg() == file.crs.to_epsg() == 32619
    there = made["valid"].to_numpy().astype(bool)
    assert there.mean() > 0.9
    values = xr.DataArray(np.where(there, stored, 0).astype(np.float32) / 255, dims=("band", "y", "x"))
    assert_like_the_whole(made, whole_logits(bundle, values), there)
    assert len(np.unique(made["class"].to_numpy()[there])) > 1
