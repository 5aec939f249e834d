"""Quicklooks: a small picture of a raster with its legend, for reports and catalogues. Not a map product."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geoeco.errors import InputError, OutputError
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.cog import cog_record, local_path
from geoeco.outputs.layout import bands_of, layout_of
from geoeco.outputs.pyramid import BandStatistics, band_statistics
from geoeco.outputs.styles import colour_stops, display_range, rgb_bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["quicklook", "save_figure", "shown_name"]

Array = npt.NDArray[Any]

_MISSING = "#f0f0f0"
_DPI = 100
#: Characters of a name in a picture.
_LONGEST = 40
# of the surface of a sphere of mean Earth radius, per degree
_METRES_PER_DEGREE = 111_195.0


def quicklook(
    source: xr.DataArray | xr.Dataset | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    classes: ClassTable | None = None,
    band: int = 1,
    title: str | None = None,
    size: int = 700,
    scale_bar: bool = True,
) -> Path:
    """Draw a raster as PNG, in the colours of its QGIS style.

    Class maps are drawn with a legend of the classes present, dates with calendar days, angles with a cyclic ramp,
    continuous rasters of three bands or more in natural or false colour, other variables with viridis. Missing
    pixels are grey. The same input gives the same bytes.

    Parameters
    ----------
    source : xarray.DataArray, (y, x) or (band, y, x), or xarray.Dataset, or path
        As for `write_cog`, or a file written by it (read from its overviews).
    path : path-like
        ``.png``; replaced in one step.
    classes : ClassTable, optional
    band : int
        From 1; for rasters that are not shown in colour.
    title : str, optional
        By default the long name. The name of the band follows where one of several is drawn.
    size : int
        Longest edge of the picture of the raster, in pixels.
    scale_bar : bool

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        As `write_cog`, or if there is no such band.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raster = _from_file(Path(source), size) if isinstance(source, (str, os.PathLike)) else _from_array(source, size)
    if classes is not None:
        raster["classes"] = classes
    values: Array = raster["values"]
    if not 1 <= band <= len(values):
        raise InputError(f"there is no band {band}: the raster has {len(values)}")
    _, height, width = values.shape
    figure_width = 0.2 + size / _DPI * min(1.0, width / height) + (1.9 if raster["kind"] == "class" else 1.2)
    figure_height = 0.9 + size / _DPI * min(1.0, height / width)
    figure = Figure(figsize=(max(figure_width, 4.0), max(figure_height, 2.0)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(_MISSING)
    if raster["kind"] == "class":
        _draw_classes(axes, raster)
    elif raster["kind"] == "continuous" and len(values) >= 3:
        _draw_colour(axes, raster)
    else:
        _draw_values(figure, axes, raster, band)
    shown = f" · {raster['bands'][band - 1]}" if len(values) > 1 and not _in_colour(raster) else ""
    axes.set_title((title if title is not None else raster["long_name"]) + shown, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    if scale_bar:
        _draw_scale_bar(axes, raster, width)
    return save_figure(figure, path)


def shown_name(name: str) -> str:
    """A name as pictures show it: on one line, and cut where it is too long for a legend."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1].rstrip()}…"


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, in one step; the same picture is the same file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # names of places, classes and layers are shown as they are: "$" does not begin a formula
        text.set_parse_math(False)
    target = local_path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".geoeco-{os.getpid()}-{target.name}")
        try:
            # no program name and no date inside
            figure.savefig(temporary, format="png", metadata={"Software": None})
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the picture could not be written: {error}", where=str(target)) from error
    return target


def _in_colour(raster: dict[str, Any]) -> bool:
    return raster["kind"] == "continuous" and len(raster["values"]) >= 3


def _from_array(data: xr.DataArray | xr.Dataset, size: int) -> dict[str, Any]:
    layout = layout_of(data)
    step = max(1, math.ceil(max(layout.shape) / size))
    thin = [array[..., ::step, ::step].to_numpy() for array in bands_of(data)]
    values = np.stack(thin) if thin[0].ndim == 2 else thin[0]
    stored = layout.encode(values[:, :: -1 if layout.flip[0] else 1, :: -1 if layout.flip[1] else 1])
    classes = layout.classes
    return {
        "values": np.ma.masked_equal(stored, layout.nodata),
        "nodata": layout.nodata,
        "kind": layout.kind,
        "units": layout.units,
        "scale": layout.scale,
        "offset": layout.offset,
        "classes": classes,
        "bands": [band.name for band in layout.bands],
        "wavelengths": [band.wavelength for band in layout.bands],
        "long_name": layout.long_name,
        "pixel": _pixel_metres(layout.crs, layout.transform, layout.shape) * step,
    }


def _from_file(path: Path, size: int) -> dict[str, Any]:
    import rasterio

    record = cog_record(path)
    with rasterio.open(path) as src:
        step = max(1.0, max(src.shape) / size)
        shape = tuple(max(1, round(edge / step)) for edge in src.shape)
        values = src.read(out_shape=(src.count, *shape), masked=True)
        wavelengths = [src.tags(band).get("wavelength") for band in src.indexes]
        return {
            "values": values,
            "nodata": record.nodata,
            "kind": record.kind,
            "units": record.units,
            "scale": record.scale,
            "offset": record.offset,
            "classes": record.classes,
            "bands": list(record.bands),
            "wavelengths": [None if value is None else float(value) for value in wavelengths],
            "long_name": src.tags().get("TIFFTAG_IMAGEDESCRIPTION", path.stem),
            "pixel": _pixel_metres(src.crs, src.transform, src.shape) * src.width / shape[1],
        }


def _pixel_metres(crs: Any, transform: Any, shape: tuple[int, int]) -> float:
    width: float = abs(transform.a)
    if crs.is_geographic:
        middle = transform.f + transform.e * shape[0] / 2
        return width * _METRES_PER_DEGREE * math.cos(math.radians(middle))
    return width * float(crs.linear_units_factor[1])


def _statistics(raster: dict[str, Any], band: int) -> BandStatistics:
    return band_statistics(raster["values"][band - 1].filled(raster["nodata"]), raster["nodata"])


def _draw_classes(axes: Axes, raster: dict[str, Any]) -> None:
    from matplotlib.patches import Patch

    codes = raster["values"][0]
    present = np.unique(codes.compressed()).tolist()
    table = raster["classes"] or ClassTable.of({code: f"class {code}" for code in present} or {0: "class 0"})
    picture = np.zeros((*codes.shape, 4), np.uint8)
    for entry in table:
        picture[(codes == entry.code).filled(False)] = entry.colour
    axes.imshow(picture, interpolation="nearest")
    shown = [entry for entry in table if entry.code in present]
    handles = [
        Patch(facecolor=entry.hex, edgecolor="#404040", linewidth=0.5, label=shown_name(entry.name)) for entry in shown
    ]
    if handles:
        axes.legend(
            handles=handles[:30],
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0,
            frameon=False,
            fontsize=8,
            title=shown_name(table.name),
            title_fontsize=8,
        )


def _draw_colour(axes: Axes, raster: dict[str, Any]) -> None:
    values = raster["values"]
    layers = []
    for band in rgb_bands(raster["wavelengths"]):
        plane = values[band - 1].astype(np.float64) * raster["scale"] + raster["offset"]
        kept = plane.compressed()
        low, high = np.percentile(kept, (2, 98)) if kept.size else (0.0, 1.0)
        layers.append(np.clip((plane.filled(np.nan) - low) / max(high - low, 1e-12), 0, 1))
    picture = np.dstack([*layers, ~np.ma.getmaskarray(values).any(axis=0)])
    axes.imshow(np.nan_to_num(picture), interpolation="nearest")


def _draw_values(figure: Figure, axes: Axes, raster: dict[str, Any], band: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    kind = raster["kind"]
    low, high = display_range(kind, raster["units"], _statistics(raster, band), raster["scale"], raster["offset"])
    stops = colour_stops(kind, raster["units"], low, high)
    ramp = LinearSegmentedColormap.from_list(kind, [colour for _, colour, _ in stops]).with_extremes(bad=_MISSING)
    plane = raster["values"][band - 1].astype(np.float64) * raster["scale"] + raster["offset"]
    image = axes.imshow(plane, cmap=ramp, vmin=low, vmax=high, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    if kind == "date":
        bar.set_ticks([value for value, _, _ in stops], labels=[label for _, _, label in stops])
    elif kind == "count":
        bar.locator = MaxNLocator(nbins=8, integer=True)
        bar.update_ticks()
    elif raster["units"] != "1":
        bar.set_label(raster["units"], fontsize=8)


def _draw_scale_bar(axes: Axes, raster: dict[str, Any], width: int) -> None:
    metres = raster["pixel"] * width
    if not metres > 0:
        return
    # 1, 2 or 5 times a power of ten, at most a quarter of the picture
    power = 10.0 ** math.floor(math.log10(metres / 4))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= metres / 4)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    span = length / metres
    axes.plot([0.03, 0.03 + span], [0.04, 0.04], transform=axes.transAxes, color="white", linewidth=4.5)
    axes.plot([0.03, 0.03 + span], [0.04, 0.04], transform=axes.transAxes, color="black", linewidth=2)
    axes.text(
        0.03 + span / 2,
        0.055,
        label,
        transform=axes.transAxes,
        ha="center",
        va="bottom",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
    )
