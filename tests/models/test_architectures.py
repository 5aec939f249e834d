"""The fixed list of networks that stored models may name, and what the room needs to be imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from geoeco.errors import InputError
from geoeco.models import build, create_backbone


def test_a_backbone_is_built_from_what_json_holds():
    arguments = json.loads(json.dumps({"name": "resnet10t", "in_channels": 10, "group_norm": True}))
    torch.manual_seed(0)
    built = build("backbone", arguments)
    torch.manual_seed(0)
    made = create_backbone("resnet10t", 10, group_norm=True)
    torch.testing.assert_close(built.state_dict(), made.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["os.system", "geoeco.models.create_backbone", "", "Backbone"])
def test_unknown_architectures_are_refused(name):
    with pytest.raises(InputError, match="unknown architecture"):
        build(name, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "x"}, "unknown argument 'weights'"),
        ({"in_channels": "9"}, "in_channels is '9'"),
        ({"in_channels": True}, "in_channels is True"),
        ({"name": None}, "name is None"),
        ({"pretrained": True}, "brings its own weights"),
        ({"name": "hf-hub:someone/something"}, "timm has no network"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build("backbone", arguments)


def test_the_room_needs_torch_and_timm_alone():
    script = "import geoeco.models, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    foreign = {
        *("dask", "geopandas", "kornia", "lightning", "numba", "pandas", "pydantic", "rasterio", "sklearn"),
        *("segmentation_models_pytorch", "torchgeo", "torchmetrics", "xarray", "zarr"),
    }
    assert not loaded & foreign
    ours = {name for name in loaded if name.split(".")[0] == "geoeco"}
    assert {name.split(".")[1] for name in ours if "." in name} == {"errors", "models"}
