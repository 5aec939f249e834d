"""Coarse maps from a classifier of patches that was learned from labels of whole images: one cell a patch.

The classifier is `geoeco.training.learn_patches`'s. Maps of pixels are `geoeco.mapping.predict`'s.
"""

from __future__ import annotations

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoeco.errors import GridError, InputError
from geoeco.models import SeasonPredictor
from geoeco.training import ModelBundle
from geoeco.training.weak_labels import MIN_SHARE, Templates, patch_grid
from geoeco.variables import describe

__all__ = ["coarse_grid", "coarse_map"]


def coarse_grid(geobox: GeoBox, patch: int) -> GeoBox:
    """Grid whose cells are patches of a finer one, from the same corner.

    Parameters
    ----------
    geobox : odc.geo.geobox.GeoBox
    patch : int
        Pixels along a side. Cells at the lower and right edge may reach beyond the finer grid.

    Raises
    ------
    GridError
        If a patch has no pixel.
    """
    if patch < 1:
        raise GridError(f"patches of {patch} pixels", what_to_do="give a positive number")
    rows, columns = (-(-int(n) // patch) for n in geobox.shape)
    return GeoBox((rows, columns), geobox.affine @ Affine.scale(patch), geobox.crs)


def coarse_map(
    source: xr.Dataset, bundle: ModelBundle, *, batch: int = 64, min_share: float = MIN_SHARE, side: int = 2048
) -> xr.Dataset:
    """Map what the patches of an image show.

    Parameters
    ----------
    source : xarray.Dataset
        ``image (band, y, x)`` as stored, with the attribute ``scale`` (value = stored x scale), ``valid (y, x)`` and a
        CRS, as of `geoeco.sensors.orthomosaic.open_orthomosaic`. Read in pieces.
    bundle : ModelBundle
        As of `geoeco.training.learn_patches`; its size is the side of a patch in pixels.
    batch : int
        Patches at a time. The last bits of ``prob`` may depend on it.
    min_share : float
        Patches with a smaller valid part have no answer; what lies beyond the image counts as not valid.
    side : int
        Pixels along a side of a piece, rounded down to whole patches.

    Returns
    -------
    xarray.Dataset
        On `coarse_grid`: ``class`` uint8, 255 where there is no answer, codes the positions of the bundle's classes;
        ``prob`` float32, probability of that class; ``margin`` float32, by how much the features are more similar to
        the nearest class than to background (cosines, -2..2); NaN where there is no answer.

    Raises
    ------
    InputError
        If the model was not learned from labels of whole images, or bands, units or resolution differ.
    GridError
        If the image has no even grid.
    """
    if "weak_labels" not in bundle.notes or not isinstance(bundle.module, SeasonPredictor):
        raise InputError(
            "the model was not learned from labels of whole images",
            where=f"model {bundle.name or bundle.architecture}",
            what_to_do="make it with geoeco.training.learn_patches",
            code="bundle",
        )
    templates = Templates.from_notes(bundle.notes["weak_labels"]["templates"])
    if templates.classes != bundle.classes:
        raise InputError("the templates of the model are of other classes than its output", code="bundle")
    image = source["image"]
    geobox = image.odc.geobox
    if not isinstance(geobox, GeoBox):
        raise GridError("the image has no even grid", what_to_do="give imagery with CRS and coordinates y and x")
    gsd = float(source.attrs.get("gsd_m", abs(float(geobox.resolution.x))))
    bundle.check_input([str(band) for band in image["band"].values], str(image.attrs.get("units", "1")), gsd)
    scale, patch = np.float32(image.attrs.get("scale", 1.0)), bundle.size
    grid = coarse_grid(geobox, patch)
    classes = np.full(grid.shape, 255, np.uint8)
    prob, margin = (np.full(grid.shape, np.nan, np.float32) for _ in range(2))
    step = max(side // patch, 1)
    for row in range(0, grid.shape[0], step):
        for column in range(0, grid.shape[1], step):
            window = {
                "y": slice(row * patch, (row + step) * patch),
                "x": slice(column * patch, (column + step) * patch),
            }
            piece, known = (source[name].isel(window).to_numpy() for name in ("image", "valid"))
            patches, share = patch_grid(piece.astype(np.float32) * scale, known.astype(bool), patch)
            looked = share >= min_share
            here = np.s_[row : row + step, column : column + step]
            if looked.any():
                features, answers = _looked_at(bundle, bundle.module, torch.from_numpy(patches[looked]), batch)
                classes[here][looked] = answers.argmax(dim=1).numpy().astype(np.uint8)
                prob[here][looked] = answers.amax(dim=1).numpy()
                margin[here][looked] = templates.margin(features.numpy())
    coords = xr_coords(grid, dims=("y", "x"))
    made = xr.Dataset(
        {name: (("y", "x"), values) for name, values in (("class", classes), ("prob", prob), ("margin", margin))},
        coords=coords,
        attrs={"patch": patch, "training_hash": bundle.training_hash},
    )
    meanings = {
        "flag_values": list(range(len(bundle.classes))),
        "flag_meanings": " ".join(name.replace(" ", "_") for name in bundle.classes),
        "_FillValue": 255,
    }
    made["class"] = describe(made["class"], kind="class", units="", long_name="class of the patch", **meanings)
    made["prob"] = describe(made["prob"], kind="continuous", units="1", long_name="probability of the class")
    made["margin"] = describe(
        made["margin"], kind="continuous", units="1", long_name="similarity to the nearest class, less to background"
    )
    for variable in made.data_vars.values():
        variable.encoding["grid_mapping"] = "spatial_ref"
    return made


@torch.inference_mode()
def _looked_at(
    bundle: ModelBundle, model: SeasonPredictor, patches: torch.Tensor, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``(patch, feature)`` and probabilities ``(patch, class)`` on the CPU."""
    device = model.head.weight.device
    features, answers = [], []
    for part in torch.split(patches, batch):
        found = model.encoder(bundle.normalisation(part.to(device))).float()
        features.append(found.cpu())
        answers.append(model.meaning(model.head(found)).cpu())
    return torch.cat(features), torch.cat(answers)
