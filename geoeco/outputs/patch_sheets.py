"""Pictures of images whose patches were told apart: each patch framed in the colour of its class.

Not map products: pictures are stretched, thinned out or enlarged, and carry no CRS.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geoeco.errors import InputError
from geoeco.outputs.classes import ClassTable
from geoeco.outputs.preview import save_figure, shown_name

__all__ = ["framed_patches", "patch_sheet"]

Picture = npt.NDArray[np.uint8]

_DPI = 100
#: Dots along the longer side of an image in the sheet, about.
_SIDE = 240
#: Images in a row.
_COLUMNS = 6


def framed_patches(picture: Picture, codes: npt.NDArray[np.int64], patch: int, table: ClassTable) -> Picture:
    """Frame the patches of a picture in the colours of their classes.

    Parameters
    ----------
    picture : numpy.ndarray of uint8, shape (y, x, 3)
    codes : numpy.ndarray of int, shape (row, column)
        Class of each patch, from the upper left corner; what is no code of `table` stays without a frame.
    patch : int
        Pixels along a side of a patch.
    table : ClassTable

    Returns
    -------
    numpy.ndarray of uint8, shape (y, x, 3)
        Enlarged or thinned out to about the size of the sheet's images.
    """
    height, width = picture.shape[:2]
    zoom = max(1, _SIDE // max(height, width))
    thin = max(1, -(-max(height, width) // (2 * _SIDE)))
    shown = picture[::thin, ::thin].repeat(zoom, axis=0).repeat(zoom, axis=1).copy()
    side = patch * zoom / thin
    line = max(1, round(side / 24))
    for entry in table:
        for row, column in np.argwhere(codes == entry.code):
            top, left = round(row * side), round(column * side)
            bottom, right = min(round((row + 1) * side), len(shown)), min(round((column + 1) * side), shown.shape[1])
            # a dot of the picture stays free on each side, so that the frames of neighbours lie apart
            framed = shown[top + 1 : bottom - 1, left + 1 : right - 1]
            inner = framed[line:-line, line:-line].copy()
            framed[:] = entry.colour[:3]
            framed[line:-line, line:-line] = inner
    return shown


def patch_sheet(
    pictures: Sequence[tuple[Picture, npt.NDArray[np.int64], str]],
    patch: int,
    table: ClassTable,
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> Path:
    """Draw images with their patches framed in the colours of their classes.

    Parameters
    ----------
    pictures : sequence of tuple
        Picture ``(y, x, 3)``, classes of its patches ``(row, column)`` as of `framed_patches`, and its caption.
    patch : int
        Pixels along a side of a patch.
    table : ClassTable
    path : path-like
        ``.png``; replaced in one step. The same pictures give the same bytes.
    title : str

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        If there is no picture.
    OutputError
        If the PNG cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not pictures:
        raise InputError("there is no image to draw", where=str(path))
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = (_SIDE + 20) / _DPI
    wide, high = columns * cell, rows * cell + 0.9
    figure = Figure(figsize=(wide, high), dpi=_DPI)
    FigureCanvasAgg(figure)
    for number, (picture, codes, caption) in enumerate(pictures):
        row, column = divmod(number, columns)
        box = (column * cell + 0.06, high - 0.45 - (row + 1) * cell + 0.02, cell - 0.12, cell - 0.22)
        axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high))
        axes.imshow(framed_patches(picture, codes, patch, table), interpolation="nearest")
        axes.set_title(shown_name(caption), fontsize=8, pad=3)
        axes.axis("off")
    handles = [Patch(color=entry.hex, label=shown_name(entry.name)) for entry in table]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 2 * columns), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / high, va="top")
    return save_figure(figure, path)
