"""Model bundles: the same model comes back, nothing is run, and what was changed is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pystac
import pytest
from pystac.extensions.mlm import MLMExtension

torch = pytest.importorskip("torch", reason="needs the extra ml")

from safetensors.torch import load_file, save_file  # noqa: E402

from geoeco.errors import InputError, OutputError  # noqa: E402
from geoeco.models import create_backbone  # noqa: E402
from geoeco.training import ModelBundle, Normalisation  # noqa: E402

BANDS = ("B02", "B04", "B08", "ndvi")
ARGUMENTS = {"name": "test_resnet", "in_channels": 4}


def make(**changes) -> ModelBundle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = create_backbone(**ARGUMENTS)
    settings = {
        "module": module,
        "architecture": "backbone",
        "arguments": ARGUMENTS,
        "bands": BANDS,
        "normalisation": Normalisation((0.1, 0.1, 0.3, 0.5), (0.05, 0.05, 0.1, 0.2)),
        "size": 24,
        "name": "small one",
        "notes": {"why": "tests"},
    }
    return ModelBundle(**(settings | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    make().save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def test_what_is_loaded_is_what_was_saved(saved):
    bundle, loaded = make(), ModelBundle.load(saved)
    for name in ("architecture", "arguments", "bands", "normalisation", "size", "resolution", "units", "task", "notes"):
        assert getattr(loaded, name) == getattr(bundle, name), name
    image = torch.rand(3, 4, 24, 24)
    assert torch.equal(loaded(image), bundle(image))
    assert loaded.fingerprint() == bundle.fingerprint()
    assert not loaded.module.training


def test_a_call_normalises_and_needs_no_gradients():
    bundle = make()
    image = torch.rand(2, 4, 24, 24)
    mean, std = (torch.tensor(v).view(4, 1, 1) for v in (bundle.normalisation.mean, bundle.normalisation.std))
    with torch.no_grad():
        torch.testing.assert_close(bundle(image), bundle.module((image - mean) / std))
    assert not bundle(image).requires_grad
    for wrong in (image[0], image[:, :3]):
        with pytest.raises(InputError, match="do not fit"):
            bundle(wrong)


def test_two_savings_write_the_same_bytes(saved, tmp_path):
    make().save(tmp_path / "again")
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["mlm.json", "model.safetensors", "sample.safetensors"]
    for name in names:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_url_is_a_folder_too(tmp_path):
    bundle = make()
    url = f"memory://{tmp_path.name}/bundle"
    assert bundle.save(url) == url
    assert ModelBundle.load(url).fingerprint() == bundle.fingerprint()


def test_the_item_is_stac_with_the_fields_that_mlm_asks_for(saved):
    document = json.loads((saved / "mlm.json").read_text())
    item = pystac.Item.from_dict(document)
    mlm = MLMExtension.ext(item)
    assert mlm.mlm_name == "geoeco-small-one"
    assert mlm.architecture == "test_resnet"
    assert mlm.framework == "PyTorch"
    assert list(mlm.tasks) == ["similarity-search"]
    assert mlm.input[0].bands == list(BANDS)
    assert mlm.input[0].input.shape == [-1, 4, 24, 24]
    assert mlm.output[0].result.shape == [-1, make().module.num_features]
    scaling = document["properties"]["mlm:input"][0]["value_scaling"]
    assert scaling[1] == {"type": "z-score", "mean": 0.1, "stddev": 0.05}
    assert "mlm:model" in item.assets["model"].roles
    assert item.assets["model"].extra_fields["mlm:artifact_type"] == "safetensors"
    assert item.assets["model"].extra_fields["file:size"] == (saved / "model.safetensors").stat().st_size


def test_loading_leaves_the_random_numbers_of_the_caller_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ModelBundle.load(saved)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "sample.safetensors"])
def test_a_changed_file_is_refused_by_its_checksum(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is not the file") as caught:
        ModelBundle.load(folder)
    assert caught.value.code == "checksum"
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"lacks its {name}"):
        ModelBundle.load(folder)


def rewrite(folder: Path, change) -> None:
    """Change the item as one would who wants the bundle to be believed."""
    document = json.loads((folder / "mlm.json").read_text())
    change(document)
    (folder / "mlm.json").write_text(json.dumps(document))


def seal(folder: Path) -> None:
    import hashlib

    def change(document):
        for key, name in (("model", "model.safetensors"), ("sample", "sample.safetensors")):
            content = (folder / name).read_bytes()
            document["assets"][key]["file:size"] = len(content)
            document["assets"][key]["file:checksum"] = "1220" + hashlib.sha256(content).hexdigest()

    rewrite(folder, change)


def test_a_model_that_gives_another_output_than_expected_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(key for key, value in weights.items() if "conv1" in key and value.ndim == 4)
    save_file(weights | {name: weights[name] * 1.5}, folder / "model.safetensors")
    seal(folder)
    with pytest.raises(InputError, match="does not give the output"):
        ModelBundle.load(folder)
    assert ModelBundle.load(folder, verify=False).bands == BANDS


def test_an_architecture_that_is_not_in_the_list_is_refused_and_nothing_is_imported(folder):
    rewrite(folder, lambda d: d["properties"]["geoeco:bundle"].update(architecture="os.system"))
    with pytest.raises(InputError, match=r"unknown architecture 'os\.system'"):
        ModelBundle.load(folder)


def test_weights_of_another_network_are_refused(folder):
    rewrite(folder, lambda d: d["properties"]["geoeco:bundle"]["arguments"].update(in_channels=5))
    with pytest.raises(InputError, match="do not fit its architecture"):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    "body", ["", "{}", "[1]", '{"assets": 3}', "\0\0", '{"properties": 1, "assets": {}}'], ids=range(6)
)
def test_an_item_that_is_none_is_an_input_error(folder, body):
    (folder / "mlm.json").write_text(body)
    with pytest.raises(InputError, match="not the item of a bundle"):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("size", "big"), ("bands", [1]), ("surprise", 1), ("bands", ["B02"]), ("task", "guessing")]
)
def test_an_item_with_wrong_fields_is_an_input_error(folder, key, value):
    rewrite(folder, lambda d: d["properties"]["geoeco:bundle"].update({key: value}))
    with pytest.raises(InputError):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bands", ["B02", "B04"]),
        ("bands", ["B02", "B02", "B08", "ndvi"]),
        ("size", 0),
        ("size", 10**9),
        ("resolution", float("inf")),
    ],
)
def test_parts_of_an_item_that_do_not_fit_together_are_refused_with_the_name_of_the_bundle(folder, key, value):
    item = json.loads((folder / "mlm.json").read_text())
    item["properties"]["geoeco:bundle"][key] = value
    (folder / "mlm.json").write_text(json.dumps(item))
    with pytest.raises(InputError) as told:
        ModelBundle.load(folder)
    assert str(folder) in str(told.value)


def test_a_sample_that_the_network_cannot_take_is_an_input_error(folder):
    sample = load_file(folder / "sample.safetensors")
    save_file({**sample, "input": sample["input"][..., :0].contiguous()}, folder / "sample.safetensors")
    content = (folder / "sample.safetensors").read_bytes()
    item = json.loads((folder / "mlm.json").read_text())
    item["assets"]["sample"] |= {
        "file:size": len(content),
        "file:checksum": "1220" + hashlib.sha256(content).hexdigest(),
    }
    (folder / "mlm.json").write_text(json.dumps(item))
    with pytest.raises(InputError, match="sample does not fit"):
        ModelBundle.load(folder)


def test_a_bundle_that_is_there_outlives_a_saving_that_fails(folder):
    with pytest.raises(InputError, match="plain JSON"):
        make(notes={"loss": float("nan")}, module=create_backbone(**ARGUMENTS)).save(folder)
    ModelBundle.load(folder)


def test_a_resolution_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="pixels of 10 m"):
        make().check_input(BANDS, "1", float("nan"))


def test_a_folder_without_a_bundle_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no model bundle"):
        ModelBundle.load(tmp_path / "nothing")


def test_imagery_that_the_model_was_not_made_for_is_refused():
    bundle = make()
    bundle.check_input(BANDS, "1", 10.0)
    for arguments, code in (
        ((("B04", "B02", "B08", "ndvi"),), "bands"),
        ((BANDS[:3],), "bands"),
        ((BANDS, "DN"), "units"),
        ((BANDS, "1", 20.0), "resolution"),
    ):
        with pytest.raises(InputError) as caught:
            bundle.check_input(*arguments)
        assert caught.value.code == code


def test_a_bundle_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="not what the architecture"):
        make(arguments={"name": "test_resnet", "in_channels": 3}).save(tmp_path / "a")
    broken = make()
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    with pytest.raises(OutputError, match="not finite"):
        broken.save(tmp_path / "b")
    with pytest.raises(InputError, match="plain JSON"):
        make(notes={"when": object()}).save(tmp_path / "c")


def test_parts_that_do_not_fit_together_are_refused():
    for changes in ({"bands": ("B02",)}, {"bands": ("B02",) * 4}, {"task": "guessing"}, {"size": 0}, {"size": 10**9}):
        with pytest.raises(InputError):
            make(**changes)
    for mean, std in (((0.0,), (0.0,)), ((0.0,), (1.0, 1.0)), ((float("nan"),), (1.0,)), ((), ())):
        with pytest.raises(InputError):
            Normalisation(mean, std)


def test_a_sample_of_ones_own_is_kept_with_its_output(tmp_path):
    bundle = make()
    image = torch.rand(2, 4, 24, 24)
    bundle.save(tmp_path, sample=image)
    kept = load_file(tmp_path / "sample.safetensors")
    assert torch.equal(kept["input"], image)
    assert torch.equal(kept["output"], bundle(image))
