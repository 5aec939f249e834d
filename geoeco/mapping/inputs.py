"""What a model takes of imagery: which bands, in which units, on which grid. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from odc.geo.geobox import GeoBox

from geoeco.errors import GridError, InputError

__all__ = ["Model", "check_model", "stored_bands"]


class Model(Protocol):
    """What must be known of a model before its weights are read: part of `geoeco.training.ModelBundle`."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of its input, in order."""

    @property
    def units(self) -> str:
        """Of its input."""

    @property
    def resolution(self) -> float:
        """Metres."""

    @property
    def size(self) -> int:
        """Pixels along a side of the windows it was trained on."""

    @property
    def task(self) -> str:
        """What it is for."""


def check_model(
    model: Model,
    bands: Sequence[str],
    geobox: GeoBox,
    units: str = "1",
    *,
    task: str = "embedding",
    resolution: float | None = None,
    tolerance: float = 1e-6,
) -> None:
    """Refuse a model that was not made for some imagery, or is for another task.

    Parameters
    ----------
    model : Model
    bands : sequence of str
        Bands of the imagery, in any order; the model's ``ndvi`` is computed from B04 and B08.
    geobox : odc.geo.geobox.GeoBox
        Its grid.
    units : str
        Of its values.
    task : str
        What it must be for.
    resolution : float, optional
        Metres on the ground along a pixel; by the grid when not given.
    tolerance : float
        Largest difference of resolutions, as a part.

    Raises
    ------
    InputError
        If the model is for another task, bands are missing, or units or resolution differ.
    GridError
        If the grid has no projected CRS in metres.
    """
    where = f"model {model.name or 'without a name'}"
    if model.task != task:
        raise InputError(
            f"the bundle is for {model.task}, not for {task}",
            where=where,
            what_to_do=f"name a bundle, or a step that makes one, for {task}",
            code="bundle",
        )
    missing = [band for band in stored_bands(model.bands) if band not in bands]
    if missing:
        raise InputError(
            f"the model needs the band{'s' if len(missing) > 1 else ''} {', '.join(missing)}, which the imagery lacks",
            where=where,
            what_to_do=f"give imagery with these bands; it has {', '.join(bands) or 'none'}",
            code="bands",
        )
    if units != model.units:
        raise InputError(
            f"the model takes input in units of {model.units!r}, the imagery is in {units!r}",
            where=where,
            what_to_do="convert the imagery first: reflectance has the unit '1'",
            code="units",
        )
    if geobox.crs is None or not geobox.crs.projected or geobox.crs.units[0].lower() not in ("metre", "meter", "m"):
        raise GridError(
            "windows of a model are in metres, and the grid is not",
            where=str(geobox.crs),
            what_to_do="stack on a projected grid in metres, such as UTM",
        )
    found = abs(float(geobox.resolution.x)) if resolution is None else resolution
    if not abs(found - model.resolution) <= tolerance * model.resolution:
        raise InputError(
            f"the model was trained on pixels of {model.resolution:g} m, the imagery has {found:g} m",
            where=where,
            what_to_do="read the imagery at the model's resolution",
            code="resolution",
        )


def stored_bands(bands: Sequence[str]) -> tuple[str, ...]:
    """Bands of imagery that a model's bands are made of: ``ndvi`` is computed from B04 and B08."""
    own = [band for band in bands if band != "ndvi"]
    return tuple(dict.fromkeys([*own, *(("B04", "B08") if "ndvi" in bands else ())]))
