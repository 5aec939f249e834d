"""Pretraining: from a store to a bundle, and on after a stop as if there had been none."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from lightning.pytorch import Callback  # noqa: E402

from geoeco.errors import InputError, OutputError  # noqa: E402
from geoeco.models import create_backbone  # noqa: E402
from geoeco.training import ModelBundle, chip_statistics, pretrain, seco_eco_normalisation  # noqa: E402
from geoeco.training.season_contrast import schedule_factor, step_seed  # noqa: E402
from tests.training.stores import pixels, store_of  # noqa: E402

BANDS = ("B02", "B04", "B08", "ndvi")
SETTINGS = {
    "backbone": "test_resnet",
    "bands": BANDS,
    "size": 16,
    "batch": 4,
    "epochs": 3,
    "queue": 8,
    "dim": 8,
    "lr": 0.5,
    "checkpoint_every": 2,
    "device": "cpu",
    "seed": 4,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """Thirteen locations: three steps of four an epoch, nine in all."""
    return store_of(tmp_path_factory.mktemp("chips") / "store", pixels(13))


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pretrain(store, folder, **SETTINGS)
    return folder


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same_weights(one: Path, other: Path) -> bool:
    return (one / "bundle" / "model.safetensors").read_bytes() == (other / "bundle" / "model.safetensors").read_bytes()


class Stop(Callback):
    """Raise at a step, before (`on_train_batch_start`) it is done or after."""

    def __init__(self, step: int, before: bool = True) -> None:
        self.step, self.before = step, before

    def on_train_batch_start(self, trainer, *rest):
        if self.before and trainer.global_step == self.step:
            raise KeyError("power cut")

    def on_train_batch_end(self, trainer, *rest):
        if not self.before and trainer.global_step == self.step:
            raise KeyError("power cut")


def test_a_training_leaves_a_bundle_a_curve_and_checkpoints(store, undisturbed):
    bundle = ModelBundle.load(undisturbed / "bundle")
    assert bundle.bands == BANDS
    assert bundle.size == 16
    assert bundle.normalisation == chip_statistics(store, bands=BANDS, min_valid=0.99).normalisation
    assert bundle(torch.rand(2, 4, 16, 16)).shape == (2, bundle.module.num_features)
    assert len(bundle.training_hash) == 64
    rows = curve(undisturbed)
    assert [int(row["step"]) for row in rows] == list(range(9))
    assert [int(row["epoch"]) for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {"lr", "loss", "loss_0", "loss_1", "loss_2", "accuracy_0", "accuracy_1", "accuracy_2"} <= set(rows[0])
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[f"loss_{i}"]) for i in range(3)), rel=1e-5)
    # the rate is scaled with the batch and follows the cosine step by step
    rates = [0.5 * 4 / 256 * schedule_factor(step, 9, "cosine") for step in range(9)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates)
    assert {path.name for path in (undisturbed / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert list((undisturbed / "logs").glob("events.out.tfevents.*"))


def test_weights_have_moved_from_where_they_began(undisturbed):
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS["seed"])
        begun = create_backbone("test_resnet", 4).state_dict()
    ended = ModelBundle.load(undisturbed / "bundle").module.state_dict()
    moved = {name for name, value in begun.items() if not torch.equal(value, ended[name])}
    assert len(moved) > len(begun) / 2


@pytest.mark.parametrize(("step", "before"), [(1, True), (4, True), (4, False), (5, True), (6, False)])
def test_a_training_that_was_stopped_goes_on_bit_by_bit(store, undisturbed, tmp_path, step, before):
    with pytest.raises(KeyError, match="power cut"):
        pretrain(store, tmp_path, **SETTINGS, callbacks=[Stop(step, before)])
    assert not (tmp_path / "bundle").exists()
    torch.manual_seed(step)
    pretrain(store, tmp_path, **SETTINGS)
    assert curve(tmp_path) == curve(undisturbed)
    assert same_weights(tmp_path, undisturbed)


def test_a_resumed_training_repeats_and_skips_no_batch(store, undisturbed, tmp_path):
    class Seen(Callback):
        def __init__(self) -> None:
            self.drawn: list[tuple[int, tuple[int, ...]]] = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.drawn.append((trainer.global_step - 1, tuple(batch["index"].tolist())))

    whole, first, second = Seen(), Seen(), Seen()
    pretrain(store, tmp_path / "a", **SETTINGS, callbacks=[whole])
    with pytest.raises(KeyError):
        pretrain(store, tmp_path / "b", **SETTINGS, callbacks=[first, Stop(5)])
    pretrain(store, tmp_path / "b", **SETTINGS, callbacks=[second])
    assert second.drawn[0][0] == 4
    assert first.drawn[:4] + second.drawn == whole.drawn


def test_a_training_that_is_done_is_not_done_again(store, undisturbed, tmp_path):
    class Never(Callback):
        def on_train_batch_start(self, *rest):
            raise AssertionError("a step was taken")

    pretrain(store, tmp_path, **SETTINGS)
    (tmp_path / "logs" / "metrics.csv").unlink()
    pretrain(store, tmp_path, **SETTINGS, callbacks=[Never()])
    assert curve(tmp_path) == curve(undisturbed)
    assert same_weights(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", [lambda body: body[: len(body) // 2], lambda body: b"", lambda body: b"x" * 999])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(store, undisturbed, tmp_path, damage):
    with pytest.raises(KeyError):
        pretrain(store, tmp_path, **SETTINGS, callbacks=[Stop(5)])
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged"):
        pretrain(store, tmp_path, **SETTINGS)
    assert curve(tmp_path) == curve(undisturbed)
    assert same_weights(tmp_path, undisturbed)


def test_a_checkpoint_of_another_training_is_not_gone_on_from(store, tmp_path):
    with pytest.raises(KeyError):
        pretrain(store, tmp_path, **SETTINGS, callbacks=[Stop(5)])
    with pytest.warns(UserWarning, match="of another training"):
        pretrain(store, tmp_path, **{**SETTINGS, "temperature": 0.07})
    assert len(curve(tmp_path)) == 9


def test_a_checkpoint_that_would_run_code_is_not_read(store, undisturbed, tmp_path):
    import os

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"geoeco_training": {"key": "", "step": 2}, "state_dict": Trap()}, tmp_path / "checkpoints" / "last.ckpt"
    )
    with pytest.warns(UserWarning, match="damaged"):
        pretrain(store, tmp_path, **SETTINGS)
    assert not (tmp_path / "ran").exists()
    assert curve(tmp_path) == curve(undisturbed)


SCRIPT = """
import sys, torch
from lightning.pytorch import Callback
from geoeco.training import pretrain
from tests.training.test_pretraining import SETTINGS
torch.set_num_threads(1)
class Say(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 5:
            print("five", flush=True)
            sys.stdin.read()
pretrain(sys.argv[1], sys.argv[2], **SETTINGS, callbacks=[Say()])
"""


def test_a_process_that_is_killed_goes_on_bit_by_bit(store, undisturbed, tmp_path):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, store, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"five\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    pretrain(store, tmp_path, **SETTINGS)
    assert curve(tmp_path) == curve(undisturbed)
    assert same_weights(tmp_path, undisturbed)


def test_moco_has_one_head_and_random_weights_say_that_they_are(store, tmp_path):
    pretrain(store, tmp_path / "moco", **{**SETTINGS, "method": "moco", "epochs": 1})
    assert set(curve(tmp_path / "moco")[0]) == {"step", "epoch", "lr", "loss", "loss_0", "accuracy_0"}
    bundle = pretrain(store, tmp_path / "none", **{**SETTINGS, "method": "none"}, name="control")
    assert bundle.notes["weights"].startswith("random")
    assert "RANDOM" in bundle.description
    assert not (tmp_path / "none" / "logs").exists()
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS["seed"])
        begun = create_backbone("test_resnet", 4).state_dict()
    assert all(torch.equal(value, bundle.module.state_dict()[name]) for name, value in begun.items())


def test_the_random_numbers_of_the_caller_are_left_alone(store, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pretrain(store, tmp_path, **{**SETTINGS, "epochs": 1})
    assert torch.equal(torch.rand(3), expected)


def test_further_options_reach_the_training(store, tmp_path):
    changes = {
        "epochs": 1,
        "normalisation": "seco-eco",
        "schedule": "step",
        "norm_splits": 2,
        "bare_weight": 0.25,
        "favoured": ["place-003"],
        "views": {"ndvi": "leave"},
        "precision": "32",
    }
    bundle = pretrain(store, tmp_path, **{**SETTINGS, **changes})
    assert bundle.normalisation == seco_eco_normalisation(BANDS)
    assert bundle.arguments["norm_splits"] == 2
    assert bundle.notes["settings"]["views"]["ndvi"] == "leave"
    ModelBundle.load(tmp_path / "bundle")


def test_weights_to_start_from_are_known_by_their_content_and_not_by_their_place(store, tmp_path):
    torch.manual_seed(9)
    state = create_backbone("test_resnet", len(BANDS)).state_dict()
    made = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / folder / "start.pth")
        changes = {"method": "none", "initial_weights": str(tmp_path / folder / "start.pth")}
        made.append(pretrain(store, tmp_path / folder, **{**SETTINGS, **changes}))
        for name, value in made[-1].module.state_dict().items():
            assert torch.equal(value, state[name]), name
    one, other = ((tmp_path / folder / "bundle" / "mlm.json").read_bytes() for folder in ("here", "there"))
    assert one == other
    assert str(tmp_path).encode() not in one
    torch.save({name: value * 2 for name, value in state.items()}, tmp_path / "here" / "start.pth")
    changes["initial_weights"] = str(tmp_path / "here" / "start.pth")
    assert pretrain(store, tmp_path / "x", **{**SETTINGS, **changes}).training_hash != made[0].training_hash


def test_a_bundle_tells_between_which_pixel_sizes_its_views_lay(store, tmp_path):
    bundle = pretrain(store, tmp_path, **{**SETTINGS, "size": 8, "epochs": 1}, views={"scale": (0.25, 1.0)})
    # chips of 16 pixels of 10 m: a quarter of the area is half of the side
    assert bundle.notes["view_pixels_m"] == pytest.approx([10.0, 20.0])
    assert ModelBundle.load(tmp_path / "bundle").notes["view_pixels_m"] == bundle.notes["view_pixels_m"]


def test_reading_processes_change_nothing(store, tmp_path):
    short = {**SETTINGS, "epochs": 1}
    pretrain(store, tmp_path / "a", **short)
    pretrain(store, tmp_path / "b", **short, workers=1)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_a_loss_that_is_no_number_ends_the_training(store, tmp_path):
    with pytest.raises(OutputError, match="diverged") as caught:
        pretrain(store, tmp_path, **{**SETTINGS, "lr": 1e30})
    assert caught.value.code == "diverged"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"bands": ("B02", "B05")}, "no band 'B05'"),
        ({"batch": 14, "queue": None}, "13 locations do not fill a batch of 14"),
        ({"queue": 10}, "no multiple of the batch"),
        ({"method": "simclr"}, "method is"),
        ({"epochs": 0}, "positive"),
        ({"batch": 0}, "positive"),
        ({"bare_weight": -1.0}, "positive"),
        ({"momentum": -1.0}, "momentum is from 0"),
        ({"workers": -1}, "workers are not negative"),
        ({"min_valid": float("nan")}, "min_valid is a part"),
        ({"favoured": ["nowhere"]}, "none of 1 favoured locations"),
        ({"initial_weights": "nowhere.pth"}, "no such file of weights"),
        ({"backbone": "vit_tiny_patch16_224"}, "does not take images of 16 x 16 pixels"),
        ({"schedule": "up"}, "schedule is"),
        ({"normalisation": "guess"}, "normalisation is"),
        ({"backbone": "resnet5"}, "no network"),
        ({"device": "tpu"}, "device is"),
        ({"precision": "bf16"}, "bfloat16 is for GPUs"),
        ({"precision": "16"}, "precision is"),
        ({"names": ["nowhere"]}, "no location"),
        ({"size": 0}, "size is 0"),
        ({"views": {"size": 8}}, "size is an argument of its own"),
        ({"views": {"bands": ("B02",)}}, "no setting 'bands'"),
        ({"views": {"blur": 1}}, r"(?s)views have no setting 'blur'.*blur_sigma"),
        ({"views": {"blur_sigma": (0.1, 9.0)}}, "16 x 16 pixels are too small to blur"),
        ({"norm_splits": 3}, "norm_splits of 3 does not divide the batch of 4"),
        ({"norm_splits": 2, "group_norm": True}, "no batch normalisation to split"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(store, tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        pretrain(store, tmp_path, **{**SETTINGS, **changes})
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "logs").exists()


def test_schedules_are_those_of_their_papers():
    assert [schedule_factor(step, 200, "step") for step in (0, 119, 120, 160)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [schedule_factor(step, 100, "cosine") for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert schedule_factor(99, 100, "constant") == 1


def test_steps_have_seeds_of_their_own():
    seeds = {step_seed(seed, step) for seed in range(4) for step in range(1000)}
    assert len(seeds) == 4000
    assert max(seeds) < 2**63
