"""Training of habitat networks: what is read, learned, kept and refused, and that it goes on where it stopped."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

import timm  # noqa: E402
from lightning.pytorch import Callback  # noqa: E402
from torch import nn  # noqa: E402

from geoeco.applicability import AreaOfApplicability  # noqa: E402
from geoeco.errors import InputError, OutputError  # noqa: E402
from geoeco.models import ConvStack, DWFFNet  # noqa: E402
from geoeco.models.encoder_weights import weights_sha256  # noqa: E402
from geoeco.training import (  # noqa: E402
    HabitatSegmentation,
    ModelBundle,
    Normalisation,
    SegmentationDataset,
    SegmentationLoss,
    build_network,
    train_segmentation,
)
from geoeco.training.chip_dataset import Draw  # noqa: E402
from geoeco.training.segmentation_chips import survey_chips  # noqa: E402
from geoeco.training.segmentation_views import mirrored, recoloured  # noqa: E402
from geoeco.training.smp_adapter import SmpSegmenter, receptive_radius  # noqa: E402
from geoeco.training.torchgeo_adapter import SemanticSegmentation  # noqa: E402
from tests.training.drawn_habitats import CLASSES, draw_habitats  # noqa: E402

SPLIT = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
SETTINGS = {
    "network": "conv_stack",
    "arguments": {"width": 6, "layers": 2},
    "epochs": 12,
    "batch": 4,
    # not all of a batch at once
    "at_once": 3,
    "lr": 0.03,
    "cross_entropy": 1.0,
    "applicability_points": 300,
    "seed": 4,
    # epochs end after every third step
    "checkpoint_every": 5,
    "device": "cpu",
}
FILES = ("bundle/model.safetensors", "bundle/applicability.safetensors", "bundle/mlm.json", "evaluation.json")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return draw_habitats(tmp_path_factory.mktemp("chips"), SPLIT)


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train_segmentation(store, folder, **SETTINGS)
    return folder


class Stop(Callback):
    """The power fails before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *rest) -> None:
        if trainer.global_step == self.step:
            raise KeyError("power cut")


def same(one: Path, other: Path) -> bool:
    names = (*FILES, "logs/metrics.csv", "logs/validation.csv", "confusion.csv", "evaluation_details.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# chips


def test_a_sample_is_values_and_channels_and_nothing_is_known_where_the_image_is_not_valid(store):
    data = SegmentationDataset(store)
    sample = data[0]
    assert sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min().item() < sample["image"].max().item() <= 1
    assert sample["image"][:, ~sample["valid"]].abs().max() == 0
    assert (sample["mask"][~sample["valid"]] == 255).all()
    assert (sample["mask"][-1] == 255).all()
    assert data.classes.codes == (0, 2, 11)
    codes = data.stored_label(0)
    for channel, code in enumerate(data.classes.codes):
        np.testing.assert_array_equal((sample["mask"] == channel).numpy(), (codes == code) & sample["valid"].numpy())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_made_on_the_device_are_those_of_single_samples(tmp_path, dtype):
    made = draw_habitats(tmp_path, SPLIT[:3], dtype=dtype)
    stored = SegmentationDataset(made, stored=True)
    batch = torch.utils.data.default_collate([stored[i] for i in range(3)])
    assert not batch["image"].is_floating_point()
    decoded = stored.decode(batch)
    for number in range(3):
        torch.testing.assert_close(decoded["image"][number], SegmentationDataset(made)[number]["image"])


def test_windows_follow_the_epoch_and_lie_on_image_and_label_alike(store):
    data = SegmentationDataset(store, [3, 4], size=16, crop="random", seed=1)
    whole = SegmentationDataset(store, [3, 4])[0]
    windows = [data[Draw(0, epoch)] for epoch in (0, 0, 1, 2, 3)]
    assert torch.equal(windows[0]["image"], windows[1]["image"])
    assert any(not torch.equal(windows[0]["image"], other["image"]) for other in windows[2:])
    for window in windows:
        places = [
            (row, column)
            for row in range(17)
            for column in range(17)
            if torch.equal(whole["image"][:, row : row + 16, column : column + 16], window["image"])
        ]
        ((row, column),) = places
        assert torch.equal(whole["mask"][row : row + 16, column : column + 16], window["mask"])


def test_a_data_set_that_was_read_from_can_be_sent_to_another_process(store):
    data = SegmentationDataset(store)
    first = data[1]
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[1]["mask"], first["mask"])


def test_labels_that_their_table_does_not_name_are_an_error_not_unknown_pixels(tmp_path):
    made = draw_habitats(tmp_path, SPLIT[:4], codes=(0, 2, 11, 99))
    with pytest.raises(InputError, match="have the code 99"):
        survey_chips(SegmentationDataset(made))


@pytest.mark.parametrize("classes", [(), CLASSES[:1], (*CLASSES, CLASSES[0])])
def test_class_tables_that_make_no_segmentation_are_refused(tmp_path, classes):
    with pytest.raises(InputError, match="have the classes"):
        SegmentationDataset(draw_habitats(tmp_path, SPLIT[:2], classes=classes))


# views


def test_image_and_label_are_turned_alike_into_all_eight_positions():
    torch.manual_seed(0)
    square = torch.arange(9.0).reshape(1, 3, 3).expand(64, 3, 3)
    image, label = mirrored(square.unsqueeze(1).expand(64, 2, 3, 3), square)
    assert torch.equal(image[:, 0], label)
    assert torch.equal(image[:, 0], image[:, 1])
    positions = {tuple(one.flatten().tolist()) for one in label}
    expected = {
        tuple(np.rot90(side, turns).flatten().tolist())
        for side in (np.arange(9.0).reshape(3, 3), np.arange(9.0).reshape(3, 3)[::-1])
        for turns in range(4)
    }
    assert positions == expected


def test_colours_vary_about_the_mean_of_each_image_and_invalid_pixels_stay_zero():
    torch.manual_seed(0)
    image, valid = torch.rand(5, 3, 8, 8) * 0.5 + 0.2, torch.ones(5, 8, 8, dtype=torch.bool)
    valid[:, :2] = False
    image = image * valid.unsqueeze(1)
    varied = recoloured(image, valid, 0.1)
    assert varied[:, :, :2].abs().max() == 0
    change = (varied / image.clamp_min(1e-6))[:, :, 2:]
    assert 0.01 < float((change - 1).abs().max()) < 0.5
    assert len({round(float(value), 5) for value in varied.mean((1, 2, 3)) / image.mean((1, 2, 3))}) == 5
    torch.testing.assert_close(recoloured(image, valid, 0.0), image)


# the task


def task_of(network: nn.Module, **changes) -> HabitatSegmentation:
    settings = {"classes": 3, "epochs": 2, "steps_per_epoch": 2, "at_once": 2, "lr": 1e-3, "weight_decay": 0.0}
    settings |= {"schedule": "cosine", "flips": False, "colour": 0.0, "seed": 0}
    scale = Normalisation((0.4,) * 3, (0.2,) * 3)
    return HabitatSegmentation(network, SegmentationLoss(), scale, **(settings | changes))


def test_the_task_is_torchgeos_with_the_given_network_and_loss():
    network = ConvStack(3, 3, width=4)
    task = task_of(network)
    assert isinstance(task, SemanticSegmentation)
    assert task.model is network
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(task(image), network((image - 0.4) / 0.2))
    assert task.predict_step({"image": image}, 0)["probabilities"].sum(1).allclose(torch.ones(1, 8, 8))


def test_a_frozen_encoder_is_in_evaluation_out_of_the_optimiser_and_out_of_checkpoints():
    network = DWFFNet("test_vit", 3)
    task = task_of(network)
    task.train()
    assert network.context.training
    assert not any(module.training for module in network.encoder.modules())
    learned = {id(p) for group in task.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert learned == {id(p) for name, p in network.named_parameters() if not name.startswith("encoder.")}
    state = task.state_dict()
    assert not any("encoder" in name for name in state)
    assert "model.tau" in state
    before = weights_sha256(network.encoder)
    task.load_state_dict({name: value + 1 for name, value in state.items()})
    assert network.tau.item() == 2.0
    assert weights_sha256(network.encoder) == before
    with pytest.raises(RuntimeError, match="tau"):
        task.load_state_dict({name: value for name, value in state.items() if name != "model.tau"})


def test_the_learning_rate_falls_by_a_cosine_of_the_epoch_and_stays_within_one():
    chosen = task_of(ConvStack(3, 3), epochs=4, steps_per_epoch=3, lr=1.0).configure_optimizers()
    rates = []
    for _ in range(12):
        rates.append(chosen["optimizer"].param_groups[0]["lr"])
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    expected = [(1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(3)]
    np.testing.assert_allclose(rates, expected)


def test_the_entropy_of_weights_counts_only_where_they_are_learned():
    image, mask = torch.rand(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    for fusion, learned in (("dynamic", True), ("static", False), ("none", False)):
        task = task_of(DWFFNet("test_vit", 3, fusion)).eval()
        with torch.no_grad():
            loss, logits = task.judged(image, mask)
            plain = SegmentationLoss()(logits, mask)
        assert (loss < plain - 1e-3).item() == learned


# training


def test_a_training_leaves_a_bundle_that_a_map_can_be_made_with(store, undisturbed):
    bundle = ModelBundle.load(undisturbed / "bundle")
    assert (bundle.task, bundle.architecture) == ("segmentation", "conv_stack")
    assert bundle.classes == ("background", "dry land", "ridge")
    assert bundle.codes == (0, 2, 11)
    assert bundle.colours == ("#000000", "#c8a050", "#70b050")
    assert (bundle.bands, bundle.units, bundle.resolution) == (("red", "green", "blue"), "1", 0.1)
    assert (bundle.size, bundle.stride, bundle.halo) == (32, 1, 2)
    assert bundle.notes["chips"] == {"train": 12, "val": 4, "test": 4}
    item = json.loads((undisturbed / "bundle" / "mlm.json").read_bytes())
    (output,) = item["properties"]["mlm:output"]
    assert [entry["value"] for entry in output["classification:classes"]] == [0, 2, 11]
    assert output["classification:classes"][1]["color_hint"] == "C8A050"
    assert output["result"]["shape"] == [-1, 3, 32, 32]
    # scaled by the training chips' valid pixels alone
    data = SegmentationDataset(store, range(12))
    pixels = torch.cat([sample["image"][:, sample["valid"]] for sample in data], dim=1).double()
    np.testing.assert_allclose(bundle.normalisation.mean, pixels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(bundle.normalisation.std, pixels.std(1, unbiased=False), rtol=1e-6)


def test_fields_are_learned_and_scores_are_those_of_predictions_made_by_hand(store, undisturbed):
    bundle = ModelBundle.load(undisturbed / "bundle")
    data = SegmentationDataset(store, range(16, 20))
    counts = np.zeros((3, 3), int)
    for sample in data:
        found = bundle(sample["image"].unsqueeze(0)).argmax(1)[0].numpy()
        truth = sample["mask"].numpy()
        np.add.at(counts, (truth[truth != 255], found[truth != 255]), 1)
    table = rows_of(undisturbed / "confusion.csv")
    assert [row["truth"] for row in table] == list(bundle.classes)
    np.testing.assert_array_equal([[int(row[name]) for name in bundle.classes] for row in table], counts)
    rows = {r["metric"]: r for r in json.loads((undisturbed / "evaluation.json").read_bytes()) if r["split"] == "test"}
    # background is learned, and left out of the scores
    hits = np.diag(counts)[1:]
    iou = hits / (counts[1:].sum(1) + counts[1:, 1:].sum(0) - hits)
    assert rows["miou"]["mean"] == pytest.approx(iou.mean())
    assert rows["miou"]["mean"] > 0.9
    details = json.loads((undisturbed / "evaluation_details.json").read_bytes())["results"][-1]
    assert [row["support"] for row in details["classes"]] == counts.sum(1).tolist()
    assert details["unscored"] == ["background"]
    assert details["classes"][0]["iou"] is None
    assert details["classes"][1]["boundary_f1"] > 0.9


def test_every_step_and_every_epoch_is_in_the_tables_and_the_best_weights_are_kept(undisturbed):
    steps, epochs = rows_of(undisturbed / "logs" / "metrics.csv"), rows_of(undisturbed / "logs" / "validation.csv")
    assert [int(row["step"]) for row in steps] == list(range(36))
    assert [int(row["epoch"]) for row in epochs] == list(range(12))
    best = max(float(row["miou"]) for row in epochs)
    rows = json.loads((undisturbed / "evaluation.json").read_bytes())
    (kept,) = (row["mean"] for row in rows if (row["split"], row["metric"]) == ("val", "miou_present"))
    assert kept == pytest.approx(best)


def test_the_domain_of_the_bundle_rests_on_features_of_training_chips_by_block(store, undisturbed):
    domain = ModelBundle.load(undisturbed / "bundle").applicability
    assert isinstance(domain, AreaOfApplicability)
    bundle = ModelBundle.load(undisturbed / "bundle")
    with torch.no_grad():
        seen = SegmentationDataset(store, [1])[0]["image"].unsqueeze(0)
        _, features = bundle.module.with_features(bundle.normalisation(seen))
        _, strange = bundle.module.with_features(bundle.normalisation(1 - seen))
    inside = domain.predict(features[0].permute(1, 2, 0).numpy())[1].mean()
    outside = domain.predict(strange[0].permute(1, 2, 0).numpy())[1].mean()
    assert inside > 0.9
    assert outside < 0.1


@pytest.mark.parametrize("step", [7, 33])
def test_a_training_that_was_stopped_goes_on_bit_by_bit(store, undisturbed, tmp_path, step):
    with pytest.raises(KeyError, match="power cut"):
        train_segmentation(store, tmp_path, **SETTINGS, callbacks=[Stop(step)])
    assert not (tmp_path / "bundle").exists()
    torch.manual_seed(step)
    train_segmentation(store, tmp_path, **SETTINGS)
    assert same(tmp_path, undisturbed)


def test_a_training_that_is_done_is_not_done_again_and_other_settings_are_another_training(
    store, undisturbed, tmp_path
):
    shutil.copytree(undisturbed, tmp_path / "again")
    train_segmentation(store, tmp_path / "again", **SETTINGS, callbacks=[Stop(0)])
    assert same(tmp_path / "again", undisturbed)
    with pytest.warns(UserWarning, match="of another training"), pytest.raises(KeyError):
        train_segmentation(store, tmp_path / "again", **{**SETTINGS, "focal": 0.4}, callbacks=[Stop(0)])


def test_a_dwff_net_learns_tiles_by_heart_by_its_decoder_alone():
    torch.manual_seed(0)
    network = DWFFNet("test_vit", 3)
    encoder = weights_sha256(network.encoder)
    mask = torch.randint(0, 3, (2, 3, 3)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    colours = torch.tensor([[-1.0, 0, 1], [1, 1, -1], [0, -1, 0]])
    image = colours[mask].permute(0, 3, 1, 2) + 0.1 * torch.randn(2, 3, 48, 48)
    loss = SegmentationLoss()
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-4)
    losses = []
    for _ in range(50):
        logits, weights = network.train().with_weights(image)
        value = loss(logits, mask, weights)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.25 * losses[0]
    with torch.no_grad():
        assert (network.eval()(image).argmax(1) == mask).float().mean() > 0.9
    assert weights_sha256(network.encoder) == encoder


def test_a_training_of_a_dwff_net_goes_on_after_a_stop_with_the_same_frozen_encoder(store, tmp_path):
    settings = SETTINGS | {"network": "dwff", "arguments": {"backbone": "test_vit"}, "epochs": 2, "batch": 6}
    settings |= {"checkpoint_every": 3, "lr": 1e-3}
    with pytest.raises(KeyError):
        train_segmentation(store, tmp_path / "stopped", **settings, callbacks=[Stop(3)])
    state = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("encoder" in name for name in state)
    stopped = train_segmentation(store, tmp_path / "stopped", **settings)
    whole = train_segmentation(store, tmp_path / "whole", **settings)
    assert stopped.fingerprint() == whole.fingerprint()
    torch.manual_seed(SETTINGS["seed"])
    assert weights_sha256(whole.module.encoder) == weights_sha256(DWFFNet("test_vit", 3).encoder)
    loaded = ModelBundle.load(tmp_path / "whole" / "bundle")
    assert loaded.fingerprint() == whole.fingerprint()
    assert "RANDOM" in loaded.notes["encoder"]
    assert "RANDOM" in loaded.description
    assert (loaded.stride, loaded.halo, loaded.module.weights_of_encoder.kind) == (16, None, "random")


def test_a_published_encoder_stays_outside_the_bundle_by_name_and_fingerprint(tmp_path, monkeypatch):
    made = timm.create_model
    published = {"seed": 1}

    def create(name, pretrained=False, **rest):
        if not pretrained:
            return made(name, **rest)
        with torch.random.fork_rng():
            torch.manual_seed(published["seed"])
            return made(name.split(".")[0], **rest)

    monkeypatch.setattr(timm, "create_model", create)
    module = DWFFNet("test_vit", 2, encoder_weights="test_vit.r160_in1k")
    arguments = {"backbone": "test_vit", "num_classes": 2}
    facts = {"bands": ("red", "green", "blue"), "normalisation": Normalisation((0.4,) * 3, (0.2,) * 3), "size": 64}
    bundle = ModelBundle(
        module, "dwff", arguments, **facts, task="segmentation", classes=("a", "b"), stride=16, name="outside"
    )
    bundle.save(tmp_path / "bundle")
    assert "encoder" not in (tmp_path / "bundle" / "model.safetensors").read_bytes()[:4000].decode(errors="ignore")
    loaded = ModelBundle.load(tmp_path / "bundle")
    assert loaded.fingerprint() == bundle.fingerprint()
    assert loaded.module.weights_of_encoder == module.weights_of_encoder
    assert weights_sha256(loaded.module) == weights_sha256(module)
    # other weights under the same name
    published["seed"] = 2
    with pytest.raises(InputError, match="not those that the model was trained with"):
        ModelBundle.load(tmp_path / "bundle")


def test_a_bundle_whose_domain_was_changed_is_refused(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle" / "applicability.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match="checksum differs"):
        ModelBundle.load(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"network": "unet"}, "no network 'unet'"),
        ({"arguments": {"num_classes": 4}}, "num_classes is said by the chips"),
        ({"arguments": {"depth": 4}}, "unknown argument 'depth'"),
        ({"network": "dwff", "arguments": {"backbone": "test_vit"}, "size": 24}, "no multiple of 16"),
        ({"size": 64}, "do not fit in chips of 32"),
        ({"min_label": 0.0}, "min_label is 0"),
        ({"min_label": 0.99}, "holds no chip"),
        ({"unscored": ["sea"]}, "no class 'sea'"),
        ({"class_weights": {"sea": 2.0}}, "names 'sea'"),
        ({"class_weights": "inverse"}, "class_weights is 'inverse'"),
        ({"normalisation": "imagenet"}, "normalisation is 'imagenet'"),
        ({"epochs": 0}, "must be positive"),
        ({"lr": 0.0}, "must be positive"),
        ({"batch": 13}, "do not fill a batch"),
        ({"dice": 0.0, "focal": 0.0, "cross_entropy": 0.0}, "shares of losses"),
        ({"precision": "bf16"}, "bfloat16 is for GPUs"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(store, tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        train_segmentation(store, tmp_path / "out", **{**SETTINGS, **changes})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("splits", "codes", "what"),
    [
        (["train"] * 4, (0, 2), "the set 'val' holds no chip"),
        (["val"] * 4, (0, 2), "the set 'train' holds no chip"),
        (["train"] * 3 + ["val"], (2, 2), "all labels of the training set are 'dry land'"),
    ],
)
def test_chips_that_cannot_be_learned_from_are_refused(tmp_path, splits, codes, what):
    made = draw_habitats(tmp_path, splits, codes=codes)
    with pytest.raises(InputError, match=what):
        train_segmentation(made, tmp_path / "out", **{**SETTINGS, "batch": 1})


def test_a_loss_that_is_no_number_ends_the_training(store, tmp_path):
    with pytest.raises(OutputError, match="diverged"):
        train_segmentation(store, tmp_path, **{**SETTINGS, "lr": 1e18, "epochs": 3})


# networks of segmentation-models-pytorch


def test_a_network_of_smp_is_built_by_name_and_gives_coarse_features():
    network = build_network("smp", {"model": "Unet", "encoder": "resnet18", "num_classes": 4}).eval()
    with torch.no_grad():
        logits, features = network.with_features(torch.rand(1, 3, 64, 96))
        torch.testing.assert_close(network.network(torch.ones(1, 3, 32, 32)), network(torch.ones(1, 3, 32, 32)))
    assert logits.shape == (1, 4, 64, 96)
    assert features.shape == (1, 512, 2, 3)
    with pytest.raises(InputError, match="40 x 64") as error:
        network(torch.rand(1, 3, 40, 64))
    assert error.value.code == "stride"


@pytest.mark.parametrize(("name", "what"), [("Unett", "no decoder"), ("Unet", "cannot make")])
def test_unknown_networks_of_smp_are_refused(name, what):
    with pytest.raises(InputError, match=what):
        SmpSegmenter(name, "resnet18" if name == "Unett" else "resnet1")


def test_the_view_of_a_unet_is_traced_and_nothing_beyond_it_changes_a_pixel():
    torch.manual_seed(0)
    network = SmpSegmenter("Unet", "resnet18", 1, 2).eval()
    radius = network.receptive_radius
    assert radius == 312
    with torch.no_grad():
        # statistics that keep a signal alive: an untrained network fades within a few layers
        strip = torch.randn(1, 1, 32, 1024)
        before = network(strip)
        strip[..., 512:] += 5.0
        changed = (network(strip) - before).abs().amax((0, 1, 2)) > 0
    first = int(torch.nonzero(changed)[0])
    assert 512 - radius <= first <= 512 - radius + 64


@pytest.mark.parametrize(
    ("layers", "radius"),
    [
        ([nn.Conv2d(2, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)], 3),
        ([nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 2, 1)], 2),
        # a pool of two, a convolution, and back: (2 + 1) to either side at most
        ([nn.Conv2d(2, 2, 1), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.Upsample(scale_factor=2)], 3),
    ],
)
def test_views_of_simple_networks_are_those_that_arithmetic_says(layers, radius):
    stride = 2 if any(isinstance(layer, nn.MaxPool2d) for layer in layers) else 1
    assert receptive_radius(nn.Sequential(*layers), stride) == radius


@pytest.mark.parametrize(
    "layer", [nn.GroupNorm(1, 2), nn.AdaptiveAvgPool2d(1), nn.Softmax(dim=-1), nn.InstanceNorm2d(2)]
)
def test_a_view_that_is_the_whole_image_or_not_known_is_none(layer):
    assert receptive_radius(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), layer), 1) is None


def test_a_unet_is_trained_by_the_same_function(store, tmp_path):
    settings = SETTINGS | {"network": "smp", "arguments": {"encoder": "tu-test_resnet"}, "epochs": 1, "batch": 6}
    bundle = train_segmentation(store, tmp_path, **settings)
    loaded = ModelBundle.load(tmp_path / "bundle")
    assert loaded.fingerprint() == bundle.fingerprint()
    assert (loaded.architecture, loaded.stride, loaded.halo) == ("smp", 32, 178)
