"""What a map of classes holds, and which models can make it of which pixels. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError
from geoeco.mapping.inputs import Model, check_model
from geoeco.mapping.sources import Pixels
from geoeco.mapping.tiling import Windowed
from geoeco.variables import check_class_names, class_flags, describe

__all__ = [
    "NODATA",
    "OUTPUTS",
    "RESOLUTION_TOLERANCE",
    "Segmentation",
    "at_resolution",
    "check_classes",
    "check_segmenters",
    "map_variables",
]

#: What a map may hold.
OUTPUTS = ("class", "probability", "entropy", "confidence", "spread", "di", "aoa", "valid")
#: Of classes and of the area of applicability.
NODATA = 255
#: Pixels that differ by less than this part from those that a model was trained on are taken as they are.
RESOLUTION_TOLERANCE = 0.05


class Segmentation(Model, Windowed, Protocol):
    """What must be known of a segmentation model before its weights are read: part of `geoeco.training.ModelBundle`."""

    @property
    def codes(self) -> tuple[int, ...]:
        """Code of each class in a map."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def colours(self) -> tuple[str, ...]:
        """Their colours, ``#rrggbb``; none where the model has none."""


def at_resolution(pixels: Pixels, models: Sequence[Segmentation]) -> Pixels:
    """Bring an orthomosaic to the resolution of the models, where it has another and can be resampled.

    Pixels that are up to `RESOLUTION_TOLERANCE` larger or smaller stay as they are, and so does what has no method
    ``at``; see `geoeco.sensors.orthomosaic.Orthomosaic.at` for how, and for what it refuses.
    """
    if not models or not hasattr(pixels, "at"):
        return pixels
    wanted = models[0].resolution
    if abs(pixels.gsd_m - wanted) <= RESOLUTION_TOLERANCE * wanted:
        return pixels
    resampled: Pixels = pixels.at(wanted)
    return resampled


def check_segmenters(models: Sequence[Segmentation], pixels: Pixels) -> None:
    """Refuse models that were not made for some pixels, or do not go together.

    Raises
    ------
    InputError
        If bands are missing, or units, resolution (by more than `RESOLUTION_TOLERANCE`) or classes differ.
    GridError
        If the grid has no projected CRS in metres.
    """
    if not models:
        raise InputError("no model is given", what_to_do="give one bundle, or several for an ensemble")
    units = str(getattr(pixels, "units", "1"))
    for model in models:
        check_model(
            model,
            pixels.bands,
            pixels.geobox,
            units,
            task="segmentation",
            resolution=pixels.gsd_m,
            tolerance=RESOLUTION_TOLERANCE,
        )
        where = f"model {model.name or 'without a name'}"
        check_classes(model.codes, model.classes, where)
        if (tuple(model.codes), tuple(model.classes)) != (tuple(models[0].codes), tuple(models[0].classes)):
            raise InputError(
                "the models of an ensemble have different classes",
                where=where,
                what_to_do="take bundles of the same codes and names in the same order",
                code="bundle",
            )


def check_classes(codes: Sequence[int], names: Sequence[str], where: str) -> None:
    """Refuse classes that a map of bytes cannot hold.

    Raises
    ------
    InputError
        If there are fewer than two, not as many codes as names, codes that repeat or are not below `NODATA`, or names
        that `geoeco.variables.check_class_names` refuses.
    """
    whole = len(set(codes)) == len(codes) and all(0 <= code < NODATA for code in codes)
    if not (whole and 2 <= len(codes) == len(names)):
        raise InputError(
            f"a map of the codes {', '.join(map(str, codes)) or 'of no class'} and {len(names)} names cannot be made",
            where=where,
            what_to_do=f"take a bundle of two classes or more with names, and codes below {NODATA}",
            code="bundle",
        )
    check_class_names(names, where)


def map_variables(made: Mapping[str, npt.NDArray[Any]], models: Sequence[Segmentation]) -> dict[str, xr.DataArray]:
    """Variables of a map from the arrays of `Predictor.block`, with what their readers must know.

    Parameters
    ----------
    made : mapping
        By name of the output; others are left out.
    models : sequence of Segmentation
        The bundles, or what is planned of them.
    """
    codes, names, colours = models[0].codes, models[0].classes, models[0].colours
    by = " and ".join(model.name or "a model without a name" for model in models)
    flags = class_flags(codes, names, colours)
    inside = class_flags((0, 1), ("outside", "inside"), ("#d55e00", "#0072b2"))
    known = class_flags((0, 1), ("invalid", "valid"), ("#999999", "#009e73"))
    described: dict[str, tuple[str, str, dict[str, Any]]] = {
        "class": ("class", f"class by {by}", flags),
        "probability": ("continuous", f"probability of each class by {by}", {"classes": list(names)}),
        "entropy": ("continuous", "entropy of the class probabilities, of ln K", {}),
        "confidence": ("continuous", "largest class probability", {}),
        "spread": ("continuous", "mutual information of class and model, of ln K", {}),
        "di": ("continuous", "dissimilarity index", {}),
        "aoa": ("class", "area of applicability", inside),
        "valid": ("class", "valid pixels of the mosaic", known),
    }
    variables = {}
    for name in OUTPUTS:
        if name not in made:
            continue
        kind, title, attrs = described[name]
        lead = ("label",) if name == "probability" else ()
        coords = {dim: [int(code) for code in codes] for dim in lead}
        array = xr.DataArray(made[name], dims=(*lead, "y", "x"), coords=coords, name=name)
        units = "" if kind == "class" else "1"
        variables[name] = describe(array, kind=kind, units=units, long_name=title, **attrs)
    return variables
