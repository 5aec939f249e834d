"""Labels of whole images: what chips show by their rasters of labels, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from geoeco.errors import InputError
from geoeco.sampling import SceneClasses, chip_scenes, patch_classes, scene_table

GROUPS = SceneClasses.of("open", {"open": ["field", "road"], "trees": ["wood", "hedge"], "water": ["river"]})
CLASSES = [[0, "field", ""], [3, "road", ""], [4, "wood", ""], [5, "hedge", ""], [6, "river", ""], [9, "roof", ""]]


def chips(*rows: dict[int, int]) -> xr.Dataset:
    """Chips of 100 pixels, with so many of each code; the rest has no label."""
    label = np.full((len(rows), 10, 10), 255, np.uint8)
    for chip, row in zip(label, rows, strict=True):
        chip.ravel()[: sum(row.values())] = np.repeat(list(row), list(row.values()))
    return xr.Dataset(
        {"label": (("sample", "y", "x"), label), "split": ("sample", np.arange(len(rows), dtype=np.uint8) % 2)},
        attrs={"classes": CLASSES, "splits": ["train", "val", "test", "none"]},
    )


def test_a_chip_shows_the_one_class_beside_background_and_no_class_that_is_hardly_there():
    found = chip_scenes(
        chips(
            {0: 60, 3: 40},
            {0: 90, 4: 5, 5: 5},
            {0: 96, 6: 4},
            {4: 100},
            {0: 50, 4: 25, 6: 25},
            {0: 90, 9: 10},
            {4: 49},
            {6: 50},
            {},
        ),
        GROUPS,
        min_presence=0.05,
        min_labelled=0.5,
    )
    assert found["label"].tolist() == ["open", "trees", "open", "trees", "", "", "", "water", ""]
    assert found["reason"].tolist() == [
        *["", "", "", "", "several classes", "other classes"],
        *["unlabelled", "", "unlabelled"],
    ]
    assert found["split"].tolist()[:3] == ["train", "val", "train"]


def test_without_groups_each_label_is_its_own_class():
    found = chip_scenes(chips({0: 100}, {0: 50, 4: 50}, {0: 50, 4: 25, 5: 25}), SceneClasses("field"))
    assert found["label"].tolist() == ["field", "wood", ""]
    assert SceneClasses("field").names(["wood", "field", "wood"]) == ("field", "wood")
    assert GROUPS.names([]) == ("open", "trees", "water")


def test_classes_that_contradict_themselves_or_the_labels_are_refused():
    with pytest.raises(InputError, match="none of the classes"):
        SceneClasses.of("bare", {"trees": ["wood"], "water": ["river"]})
    with pytest.raises(InputError, match="'wood' counts as two classes"):
        SceneClasses.of("open", {"open": ["wood"], "trees": ["wood"]})
    with pytest.raises(InputError, match="no labels"):
        SceneClasses.of("open", {"open": ["field"], "trees": []})
    with pytest.raises(InputError, match="no label 'kelp'"):
        chip_scenes(chips({0: 1}), SceneClasses.of("open", {"open": ["field"], "green": ["kelp"]}))
    with pytest.raises(InputError, match="have no labels"):
        chip_scenes(chips({0: 1}).drop_vars("label"), GROUPS)
    with pytest.raises(InputError, match="parts of a chip"):
        chip_scenes(chips({0: 1}), GROUPS, min_presence=0)


def test_a_patch_is_of_the_class_of_most_of_its_labelled_pixels():
    label = np.full((2, 10, 10), 255, np.uint8)
    label[0, :5, :5] = 0  # open
    label[0, 0, :5] = 6
    label[0, :5, 5:] = 4  # 10 wood and 10 hedge against 5 field
    label[0, :2, 5:] = 5
    label[0, 2, 5:] = 0
    label[0, 5:8, :5] = 6  # river on 12 of 25 pixels: less than half is labelled
    label[0, 7, 2:5] = 255
    label[0, 5:, 5:] = 9  # a roof counts as no class
    label[0, 5, 5:] = 6
    label[1, :4, :4] = 0
    found = patch_classes(
        xr.Dataset({"label": (("sample", "y", "x"), label)}, attrs={"classes": CLASSES}), GROUPS, [1, 0], 5
    )
    open_, trees = (GROUPS.names([]).index(name) for name in ("open", "trees"))
    assert found.tolist() == [[[open_, -1], [-1, -1]], [[open_, trees], [-1, -1]]]


def test_a_patch_that_is_cut_off_by_the_edge_needs_labels_on_half_of_a_whole_one():
    found = patch_classes(chips({0: 100}), GROUPS, [0], 7)
    # 7 x 7, 7 x 3 and 3 x 3 of 49 pixels
    assert found.tolist() == [[[0, -1], [-1, -1]]]
    with pytest.raises(InputError, match="patches of 0 pixels"):
        patch_classes(chips({0: 100}), GROUPS, [0], 0)
    with pytest.raises(InputError, match="have no labels"):
        patch_classes(chips({0: 1}).drop_vars("label"), GROUPS, [0], 5)


def test_a_table_of_images_gives_paths_and_classes(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "images.csv").write_text("image,label\na.png,field\nb.png,hedge \n")
    found = scene_table(tmp_path / "images.csv", GROUPS)
    assert found["label"].tolist() == ["open", "trees"]
    assert found["path"].tolist() == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    (tmp_path / "images.csv").write_text("image,label\n")
    with pytest.raises(InputError, match="empty"):
        scene_table(tmp_path / "images.csv", GROUPS)
