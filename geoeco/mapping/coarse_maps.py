"""Coarse maps from a classifier of patches that was learned from labels of whole images: one cell a patch.

The classifier is `geoeco.training.learn_patches`'s. Maps of pixels are `geoeco.mapping.predict`'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoeco.errors import GridError, InputError, OutputError
from geoeco.mapping.devices import fixed_arithmetic
from geoeco.mapping.inputs import check_model
from geoeco.mapping.lattice import Lattice, Span
from geoeco.mapping.map_layers import NODATA, RESOLUTION_TOLERANCE, check_classes
from geoeco.mapping.sources import Pixels, pixels_of
from geoeco.models import SeasonPredictor
from geoeco.training import ModelBundle
from geoeco.training.allocator import freed_memory_kept
from geoeco.training.weak_labels import MIN_SHARE, Templates, patch_grid
from geoeco.variables import class_flags, describe

__all__ = ["CoarseMapper", "coarse_grid", "coarse_map", "coarse_variables"]


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


@dataclass(frozen=True, eq=False)
class CoarseMapper:
    """Tells what the patches of an image show, any part of it at a time; make it with `of`.

    Attributes
    ----------
    pixels : Pixels
    bundle : ModelBundle
        As of `geoeco.training.learn_patches`; its size is the side of a patch in pixels.
    templates : Templates
    lattice : Lattice
        Its cells are the patches.
    min_share : float
        Patches with a smaller valid part have no answer; what lies beyond the image counts as not valid.
    threads : int
        Of the processor; the last bits of the numbers depend on it.
    """

    pixels: Pixels
    bundle: ModelBundle
    templates: Templates
    lattice: Lattice
    min_share: float = MIN_SHARE
    threads: int = 1

    @classmethod
    def of(
        cls, pixels: Pixels, bundle: ModelBundle, *, min_share: float = MIN_SHARE, side: int = 8, threads: int = 1
    ) -> Self:
        """Check that model and image go together.

        Parameters
        ----------
        pixels : Pixels
        bundle : ModelBundle
        min_share : float
        side : int
            Patches along a side of a batch.
        threads : int

        Raises
        ------
        InputError
            If the model was not learned from labels of whole images, bands are missing, or units or resolution differ.
        GridError
            If the grid has no projected CRS in metres.
        """
        if "weak_labels" not in bundle.notes or not isinstance(bundle.module, SeasonPredictor):
            raise InputError(
                "the model was not learned from labels of whole images",
                where=f"model {bundle.name or bundle.architecture}",
                what_to_do="make it with geoeco.training.learn_patches, or the verb weak_coarse",
                code="bundle",
            )
        if not 0 < min_share <= 1:
            raise InputError(f"min_share is {min_share}", what_to_do="give a part: above 0, at most 1")
        templates = Templates.from_notes(bundle.notes["weak_labels"]["templates"])
        if templates.classes != bundle.classes:
            raise InputError("the templates of the model are of other classes than its output", code="bundle")
        check_classes(
            bundle.codes or range(len(bundle.classes)), bundle.classes, f"model {bundle.name or bundle.architecture}"
        )
        check_model(
            bundle,
            pixels.bands,
            pixels.geobox,
            str(getattr(pixels, "units", "1")),
            task="classification",
            resolution=pixels.gsd_m,
            tolerance=RESOLUTION_TOLERANCE,
        )
        lattice = Lattice(pixels.geobox, window=bundle.size, stride=bundle.size, side=side)
        return cls(pixels, bundle, templates, lattice, min_share, threads)

    @freed_memory_kept()
    def cells(self, rows: Span, columns: Span) -> dict[str, npt.NDArray[Any]]:
        """Map some cells.

        Parameters
        ----------
        rows, columns : tuple of int
            First (inclusive) and last (exclusive), within the coarse grid.

        Returns
        -------
        dict
            As the variables of `coarse_map`, ``(y, x)``.

        Notes
        -----
        Patches pass the network in batches that lie fast on the lattice, those without an answer among them, so that
        neither the part that is asked for nor the ground around it changes the last bits of an answer.
        """
        shape = rows[1] - rows[0], columns[1] - columns[0]
        made: dict[str, npt.NDArray[Any]] = {
            "class": np.full(shape, NODATA, np.uint8),
            "prob": np.full(shape, np.nan, np.float32),
            "margin": np.full(shape, np.nan, np.float32),
        }
        with fixed_arithmetic(self.threads):
            for down, across in self.lattice.batches(rows, columns):
                found = self._batch(down, across)
                if found is None:
                    continue
                top, bottom = max(down[0], rows[0]), min(down[1], rows[1])
                left, right = max(across[0], columns[0]), min(across[1], columns[1])
                for name, values in found.items():
                    made[name][top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = values[
                        top - down[0] : bottom - down[0], left - across[0] : right - across[0]
                    ]
        return made

    def _batch(self, down: Span, across: Span) -> dict[str, npt.NDArray[Any]] | None:
        """One batch, ``(row, column)`` each; None where no patch has an answer."""
        stored, valid = self.pixels.read(self.lattice.pixels(down), self.lattice.pixels(across))
        indexes = [self.pixels.bands.index(band) for band in self.bundle.bands]
        image = stored[indexes].astype(np.float32) * np.float32(self.pixels.scale)
        patches, share = patch_grid(image, valid, self.bundle.size)
        looked = share >= self.min_share
        if not looked.any():
            return None
        features, answers = self._looked_at(torch.from_numpy(patches.reshape(-1, *patches.shape[2:])))
        if not np.isfinite(answers[looked.ravel()]).all():
            raise OutputError(
                "the model gives numbers that are not finite",
                where=f"model {self.bundle.name}, patches {down} x {across}",
                what_to_do="look at the scale of the mosaic's values, and at the training of the model",
                code="model",
            )
        codes = np.array(self.bundle.codes or range(len(self.bundle.classes)), np.uint8)
        found: dict[str, npt.NDArray[Any]] = {
            "class": codes[answers.argmax(axis=1)],
            "prob": answers.max(axis=1),
            "margin": self.templates.margin(features),
        }
        return {
            name: np.where(looked, values.reshape(share.shape), NODATA if name == "class" else np.float32(np.nan))
            for name, values in found.items()
        }

    @torch.inference_mode()
    def _looked_at(self, patches: torch.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Features ``(patch, feature)`` and probabilities ``(patch, class)``."""
        model: Any = self.bundle.module
        features = model.encoder(self.bundle.normalisation(patches.to(model.head.weight.device))).float()
        answers = model.meaning(model.head(features))
        return features.cpu().numpy(), answers.cpu().numpy()


def coarse_variables(
    made: Mapping[str, npt.NDArray[Any]], classes: Sequence[str], codes: Sequence[int], colours: Sequence[str]
) -> dict[str, xr.DataArray]:
    """Variables of a coarse map from arrays ``(y, x)``, with what their readers must know.

    Parameters
    ----------
    made : mapping
        As of `CoarseMapper.cells`.
    classes, codes, colours : sequence
        Of a bundle; the positions of the classes are their codes where there are none.
    """
    flags = class_flags(codes or range(len(classes)), classes, colours)
    described: dict[str, tuple[str, str, str, dict[str, Any]]] = {
        "class": ("class", "", "class of the patch", flags),
        "prob": ("continuous", "1", "probability of the class", {}),
        "margin": ("continuous", "1", "similarity to the nearest class, less to background", {}),
    }
    return {
        name: describe(
            xr.DataArray(made[name], dims=("y", "x"), name=name), kind=kind, units=units, long_name=title, **more
        )
        for name, (kind, units, title, more) in described.items()
    }


def coarse_map(
    source: str | os.PathLike[str] | xr.Dataset | xr.DataArray | Pixels,
    bundle: ModelBundle,
    *,
    min_share: float = MIN_SHARE,
    side: int = 8,
    threads: int = 1,
) -> xr.Dataset:
    """Map what the patches of an image show.

    Parameters
    ----------
    source : path, xarray object or Orthomosaic
        A file, what `geoeco.sensors.orthomosaic.open_orthomosaic` or ``describe_orthomosaic`` gives, or an image
        ``(band, y, x)`` in units of its values. Read in pieces.
    bundle : ModelBundle
        As of `geoeco.training.learn_patches`; its size is the side of a patch in pixels.
    min_share : float
        Patches with a smaller valid part have no answer; what lies beyond the image counts as not valid.
    side : int
        Patches along a side of a batch. The last bits of ``prob`` and ``margin`` may depend on it.
    threads : int
        Of the processor; the last bits may depend on it, too.

    Returns
    -------
    xarray.Dataset
        On `coarse_grid`: ``class`` uint8, 255 where there is no answer, by the bundle's codes or else the positions of
        its classes; ``prob`` float32, probability of that class; ``margin`` float32, by how much the features are more
        similar to the nearest class than to background (cosines, -2..2); NaN where there is no answer.

    Raises
    ------
    InputError
        If the model was not learned from labels of whole images, bands are missing, or units or resolution differ by
        more than a twentieth.
    GridError
        If the image has no even grid with a projected CRS.
    OutputError
        If the model gives numbers that are not finite.
    """
    pixels = pixels_of(source)
    mapper = CoarseMapper.of(pixels, bundle, min_share=min_share, side=side, threads=threads)
    grid = coarse_grid(pixels.geobox, bundle.size)
    rows, columns = (int(n) for n in grid.shape)
    made = mapper.cells((0, rows), (0, columns))
    variables = coarse_variables(made, bundle.classes, bundle.codes, bundle.colours)
    found = xr.Dataset(
        variables,
        coords=xr_coords(grid, dims=("y", "x")),
        attrs={"patch": bundle.size, "training_hash": bundle.training_hash},
    )
    for variable in found.data_vars.values():
        variable.encoding["grid_mapping"] = "spatial_ref"
    return found
