"""Weights of others: by name, from files, and never by running what a file says."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from safetensors.torch import save_file  # noqa: E402
from torchgeo.models import ResNet50_Weights  # noqa: E402

from geoeco.errors import InputError, TransientError  # noqa: E402
from geoeco.models import create_backbone  # noqa: E402
from geoeco.training import ModelBundle, Normalisation, hub_bundle, load_weights  # noqa: E402

SECO_ECO = "ResNet50_Weights.SENTINEL2_ALL_SECO_ECO"


@pytest.fixture
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return create_backbone("test_resnet", 4)


def fresh():
    return create_backbone("test_resnet", 4)


def same(one, other) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "bare", "lightning", "prefixed", "classifier"])
def test_state_dicts_come_back_from_every_form_of_file(trained, tmp_path, form):
    state = trained.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "lightning":
        torch.save({"epoch": 3, "state_dict": {f"model.backbone.{k}": v for k, v in state.items()}}, path)
    elif form == "prefixed":
        torch.save({f"module.{k}": v for k, v in state.items()} | {"queue": torch.zeros(3)}, path)
    elif form == "classifier":
        torch.save(state | {"fc.weight": torch.zeros(3, 2)}, path)
    else:
        torch.save(state, path)
    module = fresh()
    loaded = load_weights(module, path)
    assert same(module, trained)
    assert loaded.ignored == {"prefixed": ("queue",), "classifier": ("fc.weight",)}.get(form, ())
    assert len(loaded.digest) == 64


def test_of_two_networks_in_a_file_one_must_be_named(trained, tmp_path):
    other = fresh()
    state = {f"q.{k}": v for k, v in trained.state_dict().items()} | {
        f"k.{k}": v for k, v in other.state_dict().items()
    }
    torch.save(state, tmp_path / "two.pth")
    module = fresh()
    with pytest.raises(InputError, match="several networks that fit"):
        load_weights(module, tmp_path / "two.pth")
    load_weights(module, tmp_path / "two.pth", prefix="q.")
    assert same(module, trained)


class Trap:
    """What reading would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_a_file_that_runs_code_when_it_is_read_is_refused_and_runs_nothing(tmp_path, suffix):
    path = tmp_path / f"evil{suffix}"
    torch.save({"state_dict": Trap(tmp_path / "ran")}, path)
    with pytest.raises(InputError, match="more than tensors"):
        load_weights(fresh(), path)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(InputError, match="more than tensors"):
        load_weights(fresh(), path)
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_of_torch_save_is_refused(trained, tmp_path):
    torch.save(trained, tmp_path / "whole.pth")
    with pytest.raises(InputError, match="more than tensors") as caught:
        load_weights(fresh(), tmp_path / "whole.pth")
    assert "safetensors" in caught.value.what_to_do
    # torch's own message tells how to run it after all
    assert "weights_only" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    torch.save({name: value * float("nan") for name, value in trained.state_dict().items()}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="not finite"):
        load_weights(fresh(), tmp_path / "nan.pth")


def test_a_file_in_this_folder_is_no_name_of_torchgeo(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(trained.state_dict(), "Field_Weights.pth")
    module = fresh()
    load_weights(module, "Field_Weights.pth")
    assert same(module, trained)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("body", [b"", b"nonsense", b"PK\3\4" + b"\0" * 100])
def test_damaged_files_are_input_errors(tmp_path, name, body):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(InputError):
        load_weights(fresh(), tmp_path / name)


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "four.pth")
    with pytest.raises(InputError, match="another shape"):
        load_weights(create_backbone("test_resnet", 5), tmp_path / "four.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="lack"):
        load_weights(fresh(), tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no state dict"):
        load_weights(fresh(), tmp_path / "list.pth")
    with pytest.raises(InputError, match="no such file"):
        load_weights(fresh(), tmp_path / "nothing.pth")
    with pytest.raises(InputError, match="SECO_ECO"):
        load_weights(fresh(), "ResNet50_Weights.SENTINEL2_ALL_SECO_EC")


@pytest.fixture
def from_file(monkeypatch, tmp_path) -> Path:
    """Let torchgeo read its weights from a local file in place of its address."""
    path = tmp_path / "resnet50.pth"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        torch.save(create_backbone("resnet50", 12).state_dict() | {"fc.weight": torch.zeros(1)}, path)

    def get_state_dict(self, *, weights_only, map_location, check_hash, progress):
        assert weights_only
        assert check_hash
        return torch.load(path, weights_only=True, map_location=map_location)

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", get_state_dict)
    return path


def test_seco_eco_comes_by_name_with_its_bands_and_the_scale_of_its_authors(from_file):
    bundle = hub_bundle(SECO_ECO)
    assert isinstance(bundle, ModelBundle)
    assert bundle.bands == ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    assert bundle.size == 224
    state = torch.load(from_file, weights_only=True)
    assert torch.equal(bundle.module.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])
    # reflectance 1 is 10 000 digital numbers, which the authors' reader divides by 255
    assert torch.allclose(bundle.normalisation(torch.ones(1, 12, 1, 1)), torch.tensor(10_000 / 255))


def test_the_scale_of_other_weights_must_be_given(from_file):
    with pytest.raises(InputError, match="scale"):
        hub_bundle("ResNet50_Weights.SENTINEL2_MI_MS_SATLAS")
    given = Normalisation((0.0,) * 12, (0.1,) * 12)
    assert hub_bundle(SECO_ECO, normalisation=given).normalisation == given


def test_weights_that_cannot_be_downloaded_are_a_fault_that_may_pass(monkeypatch):
    from urllib.error import URLError

    def get_state_dict(self, **options):
        raise URLError("no route")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", get_state_dict)
    with pytest.raises(TransientError, match="no route"):
        load_weights(create_backbone("test_resnet", 12), SECO_ECO)
