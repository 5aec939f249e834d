"""Labels of whole images: what a chip shows by its raster of labels, and tables of images that are labelled as a whole.

An image has one label, a class or background alone. Where in the image a class is, is not looked at here: that is what
`geoeco.training.learn_patches` finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from geoeco.errors import InputError
from geoeco.vectors import read_table

__all__ = ["SceneClasses", "chip_scenes", "patch_classes", "scene_table"]

#: Code of pixels of a chip without a label.
_UNLABELLED = 255
#: Chips whose labels are in memory at once.
_AT_ONCE = 64


@dataclass(frozen=True)
class SceneClasses:
    """Which labels count as which class of a whole image.

    Attributes
    ----------
    background : str
        Class of images that show nothing else.
    groups : tuple of (str, tuple of str)
        Name of a class and the labels that count as it; without groups each label is its own class.

    Raises
    ------
    InputError
        If a label stands in two groups, a group is empty, or background is none of the groups.
    """

    background: str
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            return
        names = [name for name, _ in self.groups]
        if self.background not in names:
            raise InputError(
                f"the background {self.background!r} is none of the classes {', '.join(names)}",
                what_to_do="name one of them",
                code="background",
            )
        labels = [label for _, group in self.groups for label in group]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice or not all(group for _, group in self.groups):
            raise InputError(
                f"the label {twice[0]!r} counts as two classes" if twice else "a class has no labels",
                what_to_do="give each class the labels that count as it, each label once",
            )

    @classmethod
    def of(cls, background: str, groups: Mapping[str, Sequence[str]] | None) -> SceneClasses:
        """Make it of a mapping of classes to labels."""
        return cls(background, tuple((name, tuple(labels)) for name, labels in (groups or {}).items()))

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Classes that images with some labels can have, in alphabetical order."""
        return tuple(sorted(name for name, _ in self.groups) if self.groups else sorted(set(labels)))

    def of_label(self, label: str) -> str | None:
        """Class that a label counts as; None where it counts as none."""
        if not self.groups:
            return label
        return next((name for name, group in self.groups if label in group), None)

    def check(self, labels: Sequence[str], where: str) -> None:
        """Refuse labels of which background or a class cannot come.

        Raises
        ------
        InputError
            If background is no label, or a group names a label that is not there.
        """
        wanted = [label for _, group in self.groups for label in group] or [self.background]
        unknown = [label for label in wanted if label not in labels]
        if unknown:
            raise InputError(
                f"there is no label {unknown[0]!r}",
                where=where,
                what_to_do=f"labels: {', '.join(sorted(set(labels)))}",
                code="labels",
            )


def chip_scenes(
    chips: xr.Dataset, classes: SceneClasses, *, min_presence: float = 0.05, min_labelled: float = 0.5
) -> pd.DataFrame:
    """What chips show as a whole, by their rasters of labels.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `geoeco.sampling.open_uav_chips`, with labels. Read in pieces.
    classes : SceneClasses
    min_presence : float
        Part of a chip's labelled pixels from which a class counts as there.
    min_labelled : float
        Chips of which a smaller part is labelled are left out.

    Returns
    -------
    pandas.DataFrame
        A row a chip, in the store's order: ``sample`` (position), ``label`` (empty where it is left out), ``reason``
        (why it is left out: ``"unlabelled"``, ``"several classes"``, ``"other classes"``; empty where it is not),
        ``split``.

    Raises
    ------
    InputError
        If the chips have no labels, parts are no parts, or `SceneClasses.check` refuses the labels.

    Notes
    -----
    A chip with background and one class shows this class; a chip with background alone shows background. One with two
    classes or more has no single label and is left out, as is one with labels that count as no class.
    """
    if not 0 < min_presence <= 1 or not 0 <= min_labelled <= 1:
        raise InputError(f"min_presence {min_presence} and min_labelled {min_labelled} are parts of a chip")
    named = _named(chips, classes)
    of_code = {code: classes.of_label(name) for code, name in named.items()}
    found = [
        _shown(np.bincount(chip.ravel(), minlength=256), of_code, classes.background, min_presence, min_labelled)
        for first in range(0, chips.sizes["sample"], _AT_ONCE)
        for chip in chips["label"].isel(sample=slice(first, first + _AT_ONCE)).to_numpy()
    ]
    splits = [str(name) for name in chips.attrs["splits"]]
    return pd.DataFrame(
        {
            "sample": np.arange(chips.sizes["sample"]),
            "label": [label for label, _ in found],
            "reason": [reason for _, reason in found],
            "split": [splits[int(code)] for code in chips["split"].to_numpy()],
        }
    )


def patch_classes(
    chips: xr.Dataset, classes: SceneClasses, samples: Sequence[int], patch: int, *, min_labelled: float = 0.5
) -> npt.NDArray[np.int64]:
    """Classes of the patches of some chips by their rasters of labels: what a classifier of patches is compared with.

    Parameters
    ----------
    chips : xarray.Dataset
        As of `geoeco.sampling.open_uav_chips`, with labels. Read in pieces.
    classes : SceneClasses
    samples : sequence of int
        Positions of chips.
    patch : int
        Pixels along a side, from the upper left corner of a chip; patches at the lower and right edge may be cut off.
    min_labelled : float
        Patches of which a smaller part is labelled have no class; what is cut off counts as not labelled.

    Returns
    -------
    numpy.ndarray
        ``(sample, row, column)`` int64: position in `SceneClasses.names` of the class of most labelled pixels, the
        first one of several; -1 where there is none, or most pixels count as no class.

    Raises
    ------
    InputError
        If the chips have no labels, a patch has no pixel, or `SceneClasses.check` refuses the labels.
    """
    if patch < 1:
        raise InputError(f"patches of {patch} pixels", what_to_do="give a positive number")
    named = _named(chips, classes)
    names = classes.names(list(named.values()))
    # 0 stands for labels that count as no class, so that these are the first of several
    place = np.full(256, len(names) + 1, np.int64)
    for code, name in named.items():
        shown = classes.of_label(name)
        place[code] = 0 if shown is None else 1 + names.index(shown)
    place[_UNLABELLED] = len(names) + 1
    size = int(chips.sizes["y"])
    side = -(-size // patch)
    found = np.full((len(samples), side, side), -1, np.int64)
    for first in range(0, len(samples), _AT_ONCE):
        part = chips["label"].isel(sample=list(samples[first : first + _AT_ONCE])).to_numpy()
        whole = np.full((len(part), side * patch, side * patch), _UNLABELLED, np.uint8)
        whole[:, :size, :size] = part
        cells = place[whole].reshape(len(part), side, patch, side, patch)
        counts = np.stack([(cells == number).sum(axis=(2, 4)) for number in range(len(names) + 1)])
        labelled = counts.sum(axis=0)
        enough = (labelled > 0) & (labelled >= min_labelled * patch**2)
        found[first : first + len(part)] = np.where(enough, counts.argmax(axis=0) - 1, -1)
    return found


def _named(chips: xr.Dataset, classes: SceneClasses) -> dict[int, str]:
    """Name of each code of the labels of chips; refuses chips without labels, and labels that classes lack."""
    where = str(chips.encoding.get("source", ""))
    if "label" not in chips or not chips.attrs.get("classes"):
        raise InputError(
            "the chips have no labels", where=where, what_to_do="make them with a raster of labels", code="labels"
        )
    named = {int(code): str(name) for code, name, _ in chips.attrs["classes"]}
    classes.check(list(named.values()), where)
    return named


def _shown(
    counts: npt.NDArray[np.int64],
    of_code: Mapping[int, str | None],
    background: str,
    min_presence: float,
    min_labelled: float,
) -> tuple[str, str]:
    """Label of one chip and why it has none, from how many pixels there are of each code."""
    pixels, labelled = int(counts.sum()), int(counts.sum() - counts[_UNLABELLED])
    if not labelled or labelled < min_labelled * pixels:
        return "", "unlabelled"
    parts: dict[str | None, float] = {}
    for code in np.flatnonzero(counts[:_UNLABELLED]):
        name = of_code.get(int(code))
        parts[name] = parts.get(name, 0.0) + float(counts[code]) / labelled
    there = {name for name, part in parts.items() if part >= min_presence}
    if None in there:
        return "", "other classes"
    shown = sorted(str(name) for name in there - {background})
    if len(shown) > 1 or not there:
        return "", "several classes"
    return (shown[0] if shown else background), ""


def scene_table(path: str | Path, classes: SceneClasses) -> pd.DataFrame:
    """Read a table of images that are labelled as a whole.

    Parameters
    ----------
    path : str or Path
        CSV, Parquet or GeoPackage with the columns ``image`` (path relative to the table) and ``label``.
    classes : SceneClasses

    Returns
    -------
    pandas.DataFrame
        A row an image, in the table's order: ``image`` (name in the table), ``path`` and ``label`` (its class).

    Raises
    ------
    InputError
        If a column, a label or an image is missing, an image stands in the table twice or lies outside of its folder, a
        label counts as no class, or no image is of background alone.
    """
    table, where = read_table(path), str(path)
    missing = [name for name in ("image", "label") if name not in table.columns]
    if missing or not len(table):
        raise InputError(
            f"the table of images has no column {missing[0]!r}" if missing else "the table of images is empty",
            where=where,
            what_to_do="give a row an image, with the columns image (a path) and label",
            code="columns",
        )
    names = [str(name) for name in table["image"]]
    labels = ["" if pd.isna(label) else str(label).strip() for label in table["label"]]
    twice = table["image"].astype(str)[table["image"].astype(str).duplicated()]
    if len(twice):
        raise InputError(f"the image {twice.iloc[0]!r} stands in the table twice", where=where, code="twice")
    shown = [classes.of_label(label) if label else None for label in labels]
    for name, label, known in zip(names, labels, shown, strict=True):
        if known is None:
            raise InputError(
                f"the image {name!r} has the label {label!r}, which counts as no class"
                if label
                else f"the image {name!r} has no label",
                where=where,
                what_to_do=f"classes: {', '.join(classes.names(labels))}",
                code="labels",
            )
    if classes.background not in shown:
        raise InputError(
            f"no image is labelled {classes.background!r}: without images of background alone it cannot be told from a "
            "class",
            where=where,
            what_to_do="add images that show nothing else",
            code="background",
        )
    return pd.DataFrame({"image": names, "path": [str(_inside(path, name)) for name in names], "label": shown})


def _inside(table: str | Path, name: str) -> Path:
    root = Path(table).resolve().parent
    path = (root / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise InputError(
            f"the image {name!r} does not lie in the folder of its table",
            where=str(table),
            what_to_do="give paths relative to the table, without '..' and links that lead elsewhere",
        )
    if not path.is_file():
        raise InputError(f"there is no image {name!r}", where=str(table), what_to_do="check the paths in the table")
    return path
