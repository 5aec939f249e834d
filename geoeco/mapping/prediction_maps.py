"""A map of classes from an orthomosaic, in memory.

For mosaics larger than memory the verb ``predict`` does the same block by block, with the same numbers.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import xarray as xr
from odc.geo.xr import xr_coords
from tqdm.auto import tqdm

from geoeco.errors import InputError
from geoeco.grid import blocks
from geoeco.mapping.devices import Precision, device_of, fixed_arithmetic, precision_of
from geoeco.mapping.map_layers import at_resolution, check_segmenters, map_variables
from geoeco.mapping.networks import Augmentation, Member, views_of
from geoeco.mapping.predictor import Predictor
from geoeco.mapping.sources import Pixels, pixels_of
from geoeco.mapping.tiling import Blend, choose_tiling
from geoeco.training import ModelBundle

__all__ = ["on_device", "predict", "scene_levels", "with_levels"]

#: Windows of which the weights of feature levels are averaged for a whole scene.
SCENE_WINDOWS = 64


def predict(
    source: str | os.PathLike[str] | xr.Dataset | xr.DataArray | Pixels,
    bundle: ModelBundle | Sequence[ModelBundle],
    *,
    window: int | None = None,
    overlap: int | None = None,
    blend: Blend = "auto",
    weights: Literal["tile", "scene"] = "tile",
    augment: Sequence[Augmentation] = (),
    outputs: Sequence[str] = ("class",),
    block: int = 8192,
    batch: int = 1,
    precision: Precision = "auto",
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Map classes over an orthomosaic, with their doubt.

    Parameters
    ----------
    source : path, Orthomosaic, xarray.Dataset or xarray.DataArray
        A file; what `geoeco.sensors.orthomosaic` gives of it; or an image ``(band, y, x)`` in the bundle's units with a
        CRS, NaN where invalid.
    bundle : ModelBundle or sequence of ModelBundle
        Whose task is segmentation. Several of the same classes are an ensemble: their probabilities are averaged.
    window, overlap : int, optional
        Pixels along a side of a window, and those that neighbours share; multiples of the network's stride. As
        `geoeco.mapping.choose_tiling` has it when not given.
    blend : {"auto", "core", "hann"}
        Keep the cores of windows, or blend them; see there.
    weights : {"tile", "scene"}
        Of feature levels, in networks that weigh them by image (DWFF): by window, or the mean over `SCENE_WINDOWS`
        windows drawn over the mosaic for all of it.
    augment : sequence of {"flips", "rot90"}
        Test-time augmentation; see `geoeco.mapping.views_of`.
    outputs : sequence of str
        Any of ``class``, ``probability``, ``entropy``, ``confidence``, ``spread``, ``di``, ``aoa``, ``valid``.
    block : int
        Pixels along a side of what is worked on at a time. The result does not depend on it; windows that lie across
        the border of two blocks are run for each.
    batch : int
        Windows that pass the network together; more than one helps on a GPU. The last bits may depend on it.
    precision : {"auto", "32", "bf16"}
        Of the network; ``auto`` is bfloat16 on a GPU that has it, else 32 bits.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Of torch; the last bits may depend on it. As torch is set when not given.
    seed : int
        Of the windows that `weights` are averaged over.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    xarray.Dataset
        On the grid of the source. ``class (y, x)`` uint8, codes of the bundle, 255 where invalid, with names and
        colours as CF flags; ``probability (label, y, x)``, where label is the code (a dimension cannot share its name
        with the variable ``class``); ``entropy``, of the probabilities, as a part of its largest
        value ln K; ``confidence``, the largest probability; ``spread``, the mutual information of class and model in
        an ensemble, the entropy of the mean less the mean entropy, on the same scale; ``di``, the dissimilarity index
        of the area of applicability, and ``aoa``, 1 where it is at most the bundle's threshold (in every model of an
        ensemble, whose ``di`` is the mean); all float32 with NaN but ``class``, ``aoa`` and ``valid`` (uint8).

    Raises
    ------
    InputError
        If source, bundle and settings do not fit each other: bands, units, resolution, classes, windows.
    GridError
        If the source has no projected grid in metres.
    OutputError
        If the network gives numbers that are not finite.

    Notes
    -----
    Invalid pixels are 0 before normalisation, as in the chips that models are trained on. ``di`` is that of the cell of
    the network's coarse features that a pixel lies in (nearest; a cell is never cut into finer values), averaged over
    windows with their weights where they are blended.
    """
    bundles = (bundle,) if isinstance(bundle, ModelBundle) else tuple(bundle)
    pixels = at_resolution(pixels_of(source), bundles)
    check_segmenters(bundles, pixels)
    where = device_of(device)
    kind = precision_of(precision, where)
    members = tuple(Member(on_device(one, where), views_of(augment), kind) for one in bundles)
    rows, cols = (int(n) for n in pixels.geobox.shape)
    tiling = choose_tiling((rows, cols), bundles, window=window, overlap=overlap, blend=blend, batch=batch)
    predictor = Predictor(pixels, members, tiling, tuple(outputs), threads or torch.get_num_threads())
    if weights == "scene":
        predictor = replace(predictor, members=with_levels(members, scene_levels(predictor, seed)))
    made = predictor.empty((0, rows), (0, cols))
    parts = list(blocks(pixels.geobox, block))
    for part in tqdm(parts, "predict", unit="block", disable=not progress):
        for name, values in predictor.block(part.y, part.x).items():
            if name in made:
                made[name][(..., *part.slices)] = values
    variables = map_variables(made, bundles)
    return xr.Dataset(variables, coords=xr_coords(pixels.geobox, dims=("y", "x"))).drop_encoding()


def on_device(bundle: ModelBundle, device: str) -> ModelBundle:
    """The bundle with its weights on a device; the same one where they are there."""
    weight = next(bundle.module.parameters(), None)
    if weight is None or weight.device.type == device:
        return bundle
    return replace(bundle, module=copy.deepcopy(bundle.module).to(device))


def scene_levels(predictor: Predictor, seed: int) -> list[tuple[float, ...] | None]:
    """Weights of the feature levels of a whole scene: their mean over `SCENE_WINDOWS` windows drawn over it.

    Parameters
    ----------
    predictor : Predictor
    seed : int

    Returns
    -------
    list
        By member; None for one that does not weigh its levels by image.

    Raises
    ------
    InputError
        If no window of the mosaic is valid by half.
    """
    sums: dict[int, torch.Tensor] = {}
    found = 0
    with fixed_arithmetic(predictor.threads):
        for images in predictor.sample(SCENE_WINDOWS, seed):
            found += 1
            for at, (member, image) in enumerate(zip(predictor.members, images, strict=True)):
                if member.weighs_levels:
                    weights = member.level_weights(image)[0].double().cpu()
                    sums[at] = sums[at] + weights if at in sums else weights
    if not found:
        raise InputError(
            "no window of the mosaic is valid by half, to weigh the feature levels of the scene by",
            what_to_do="use weights: tile",
            code="sample",
        )
    return [tuple((sums[at] / found).tolist()) if at in sums else None for at in range(len(predictor.members))]


def with_levels(members: Sequence[Member], levels: Sequence[Sequence[float] | None]) -> tuple[Member, ...]:
    """Members with the weights of their feature levels fixed."""
    return tuple(
        replace(member, levels=None if fixed is None else tuple(fixed))
        for member, fixed in zip(members, levels, strict=True)
    )
