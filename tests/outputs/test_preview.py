from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from geoeco.errors import InputError, OutputError
from geoeco.outputs import ClassTable, quicklook, write_cog


def colours(path):
    """Colours of a picture and how many pixels each has."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {"#{:02x}{:02x}{:02x}".format(*value): count for value, count in zip(values.tolist(), counts, strict=True)}


def test_a_class_map_is_drawn_in_the_colours_of_its_table(raster, tmp_path):
    table = ClassTable.of({1: "wood", 2: "water", 3: "absent"}, ["#123456", "#abcdef", "#fedcba"])
    codes = np.ones((100, 100), np.uint8)
    codes[:50] = 2
    array = raster(codes, kind="class")
    for source in (array, write_cog(array, tmp_path / "a.tif", classes=table).path):
        found = colours(quicklook(source, tmp_path / "a.png", classes=table))
        assert found["#123456"] == pytest.approx(found["#abcdef"], rel=0.15)
        # only classes that occur are in the legend
        assert "#fedcba" not in found


@pytest.mark.parametrize(
    ("kind", "units"), [("continuous", "g m-2"), ("date", "days since 1970-01-01"), ("count", "1"), ("angle", "deg")]
)
def test_array_and_file_give_the_same_bytes_again_and_again(raster, tmp_path, kind, units):
    values = np.random.default_rng(0).integers(0, 90, (60, 80)).astype(float)
    values[:9] = np.nan
    array = raster(values, kind=kind, units=units)
    first = quicklook(array, tmp_path / "a.png").read_bytes()
    assert quicklook(array, tmp_path / "b.png").read_bytes() == first
    assert quicklook(write_cog(array, tmp_path / "a.tif").path, tmp_path / "c.png").read_bytes() == first


def test_three_bands_are_drawn_in_colour_and_holes_stay_grey(raster, tmp_path):
    values = np.random.default_rng(0).random((3, 60, 60))
    values[:, :30] = np.nan
    assert colours(quicklook(raster(values), tmp_path / "a.png"))["#f0f0f0"] > 1000


def test_a_large_raster_is_drawn_small(raster, tmp_path):
    small = quicklook(raster(np.ones((3000, 10), np.float32)), tmp_path / "a.png", size=300)
    assert max(Image.open(small).size) < 600


def test_an_empty_map_and_a_single_value_can_be_drawn(raster, tmp_path):
    for number, values in enumerate([np.full((9, 9), np.nan), np.full((9, 9), 3.0), np.full((3, 9, 9), np.nan)]):
        assert quicklook(raster(values), tmp_path / f"{number}.png").stat().st_size > 1000
    nothing = raster(np.full((9, 9), 255, np.uint8), kind="class")
    assert quicklook(nothing, tmp_path / "c.png").exists()


def test_wrong_bands_and_folders_are_clear_errors(raster, tmp_path):
    with pytest.raises(InputError, match="no band 2"):
        quicklook(raster(np.ones((9, 9))), tmp_path / "a.png", band=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        quicklook(raster(np.ones((9, 9))), tmp_path / "file" / "a.png")


def test_importing_the_room_does_not_import_matplotlib():
    code = "import sys, geoeco.outputs; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
