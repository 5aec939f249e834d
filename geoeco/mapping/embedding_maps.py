"""An embedding map from a cube or a composite, in memory.

For regions larger than memory the verb ``embed`` does the same block by block, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoeco.errors import GridError, InputError
from geoeco.mapping.composites import SEASONS, Method, Period, season_composites
from geoeco.mapping.inputs import check_model, stored_bands
from geoeco.mapping.lattice import Lattice
from geoeco.mapping.windows import Combine, Embedder
from geoeco.training import ModelBundle
from geoeco.variables import describe

__all__ = ["embed"]


def embed(
    source: xr.Dataset | xr.DataArray,
    bundle: ModelBundle,
    *,
    stride: int,
    window: int | None = None,
    periods: Sequence[Period | str] = tuple(SEASONS),
    composite: Method = "median",
    combine: Combine = "mean",
    min_valid: float = 0.75,
    side: int = 4,
    threads: int = 1,
) -> xr.DataArray:
    """Embed a region: what a model makes of the window around each cell.

    Parameters
    ----------
    source : xarray.Dataset or xarray.DataArray
        A cube with ``reflectance (time, band, y, x)``, of which seasonal composites are made; or composites
        ``(band, y, x)`` or ``(period, band, y, x)``. Reflectance in 0..1, NaN where invalid, with CRS.
    bundle : ModelBundle
        Its bands are taken from `source` by name.
    stride : int
        Pixels along a side of a cell, which is one pixel of the result.
    window : int, optional
        Pixels along a side of the window centred on a cell; as the bundle was trained when not given. Smaller ones
        are enlarged to that (bicubic), as in the evaluation of bundles. Even where `stride` is even.
    periods : sequence of Period or str
        Of a cube: names of `SEASONS`, or days of the year.
    composite : {"median", "nearest"}
        As in `season_composites`.
    combine : {"mean", "concat"}
        Mean of the features of the periods that have data; or the features of all periods one after another, in cells
        where every period has data.
    min_valid : float
        Least part of a window that is valid in every band. A cell none of whose own pixels is valid has no embedding.
    side : int
        Cells along a side of a batch. The last bits of the result may depend on it, and on nothing else of how the
        work is cut.
    threads : int
        Of torch; likewise.

    Returns
    -------
    xarray.DataArray
        ``(feature, y, x)`` float32, NaN where there is none; on the grid of `source` made coarser by `stride`, from
        the same corner; the last row and column may reach beyond it. Coordinates ``valid_fraction (y, x)``, mean of
        the periods, and ``n_periods (y, x)`` say how much was seen.

    Raises
    ------
    InputError
        If source and bundle do not fit, or windows do not fit the region.
    GridError
        If the source has no projected grid in metres.

    Notes
    -----
    Inside a window invalid pixels are 0 reflectance before normalisation, as in the chips that models are trained on.
    """
    array = source["reflectance"] if isinstance(source, xr.Dataset) and "reflectance" in source else source
    geobox = array.odc.geobox
    if not isinstance(geobox, GeoBox):
        raise GridError("the source has no even grid", what_to_do="give imagery with CRS and coordinates y and x")
    if "band" not in array.coords:
        raise InputError("the bands of the source have no names", what_to_do="give the coordinate band")
    units = str(array.attrs.get("units", "1")) if isinstance(array, xr.DataArray) else "1"
    check_model(bundle, [str(band) for band in array["band"].values], geobox, units)
    lattice = Lattice(geobox, bundle.size if window is None else window, stride, side)
    bands = stored_bands(bundle.bands)
    if "time" in array.dims:
        composites = season_composites(source, periods, bands=bands, method=composite)
    else:
        composites = _composites(array).sel(band=list(bands))
    embedder = Embedder.of(composites, bands, lattice, bundle, combine=combine, min_valid=min_valid, threads=threads)
    rows, cols = lattice.shape
    made = embedder.block((0, rows), (0, cols))
    features = made["features"]
    embedding = xr.DataArray(
        features,
        dims=("feature", "y", "x"),
        coords={
            "feature": np.arange(1, len(features) + 1),
            "valid_fraction": (("y", "x"), made["valid_fraction"]),
            "n_periods": (("y", "x"), made["n_periods"]),
            **xr_coords(lattice.cells, dims=("y", "x")),
        },
        name="embedding",
    )
    embedding.encoding["grid_mapping"] = "spatial_ref"
    return describe(
        embedding,
        kind="continuous",
        units="1",
        long_name=f"embedding by {bundle.name or bundle.architecture}",
        training_hash=bundle.training_hash,
    )


def _composites(array: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(array, xr.Dataset) or set(array.dims) not in ({"band", "y", "x"}, {"period", "band", "y", "x"}):
        raise InputError(
            f"a composite has the dimensions (band, y, x) or (period, band, y, x), not {tuple(array.dims)}",
            what_to_do="give a cube with the dimension time, or a composite",
        )
    whole = array if "period" in array.dims else array.expand_dims("period")
    return whole.transpose("period", "band", "y", "x")
