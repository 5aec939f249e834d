"""Items in the order in which they fill a cube: by solar day, own zone first, then by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pystac
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from geoeco.catalog import asset_for, sign
from geoeco.errors import CatalogError, InputError, ReadError
from geoeco.sensors import sentinel2

__all__ = ["SCL", "Scene", "scenes_by_day", "solar_days"]

#: Name of the scene classification layer.
SCL = "SCL"


@dataclass
class Scene:
    """One item of a solar day.

    Attributes
    ----------
    item : pystac.Item
    day : numpy.datetime64
        Solar day.
    own_zone : bool
        Whether it lies in the cube's own CRS.
    """

    item: pystac.Item
    day: np.datetime64
    own_zone: bool
    given: sentinel2.Radiometry | None = None
    _radiometry: dict[str, sentinel2.Radiometry] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Of the item."""
        return self.item.id

    def href(self, band: str, method: str | None) -> str:
        """Address of a band's asset, signed now.

        Raises
        ------
        ReadError
            If the item has no such asset.
        """
        try:
            return sign(asset_for(self.item, band).href, method)
        except CatalogError as error:
            if error.code == "catalog-signer":
                raise
            raise ReadError(
                error.what, where=self.where(band), what_to_do=error.what_to_do, code="asset-missing"
            ) from error

    def where(self, band: str) -> str:
        """Item and asset, for errors."""
        return f"item {self.id}, asset {band}"

    def radiometry(self, band: str) -> sentinel2.Radiometry:
        """Tell what the numbers of a band mean."""
        if self.given is not None:
            return self.given
        if band not in self._radiometry:
            self._radiometry[band] = sentinel2.radiometry(self.item, band)
        return self._radiometry[band]


def _crs(item: pystac.Item) -> CRS | None:
    for fields in (item.properties, *(a.extra_fields for a in item.assets.values())):
        code = fields.get("proj:code") or fields.get("proj:epsg")
        if code:
            return CRS(f"EPSG:{code}" if isinstance(code, int) else str(code))
    return None


def _near(geobox: GeoBox | None) -> float | None:
    """Longitude that the solar days of a grid's scenes are counted from: scenes astride 180 degrees share a day."""
    if geobox is None or geobox.crs is None:
        return None
    rows, cols = geobox.shape
    affine = geobox.affine
    x, y = affine.a * cols / 2 + affine.c, affine.e * rows / 2 + affine.f
    return float(Transformer.from_crs(geobox.crs, "EPSG:4326", always_xy=True).transform(x, y)[0])


def solar_days(items: Sequence[pystac.Item], geobox: GeoBox | None = None) -> npt.NDArray[np.datetime64]:
    """Solar days on which the items were taken, ascending, each once: the time axis of their cube.

    Parameters
    ----------
    items : sequence of pystac.Item
    geobox : odc.geo.geobox.GeoBox, optional
        Grid of the whole cube. It matters near the antimeridian, where scenes of one overpass lie on both sides.

    Returns
    -------
    numpy.ndarray
        ``datetime64[D]``.
    """
    near = _near(geobox)
    return np.unique(np.array([sentinel2.solar_day(item, near=near) for item in items], dtype="datetime64[D]"))


def scenes_by_day(
    items: Sequence[pystac.Item],
    days: npt.NDArray[np.datetime64],
    geobox: GeoBox,
    radiometry: Mapping[str, sentinel2.Radiometry] | None = None,
) -> list[list[Scene]]:
    """Scenes of each day of a time axis, in the order in which they fill pixels.

    Parameters
    ----------
    items : sequence of pystac.Item
    days : numpy.ndarray
        ``datetime64[D]``, ascending.
    geobox : odc.geo.geobox.GeoBox
        Grid of the whole cube: scenes in its CRS come first, because their pixels need no warping.
    radiometry : mapping, optional
        By item id, where it is not the one that the item's metadata say.

    Raises
    ------
    InputError
        If an item occurs twice or its day is not on the axis.
    """
    if len({item.id for item in items}) != len(items):
        raise InputError("an item occurs twice", what_to_do="give each item once")
    by_day: dict[np.datetime64, list[Scene]] = {day: [] for day in days.astype("datetime64[D]")}
    near = _near(geobox)
    for item in items:
        day = sentinel2.solar_day(item, near=near)
        if day not in by_day:
            raise InputError(
                f"item {item.id} was taken on {day}, which is not on the cube's time axis",
                what_to_do="make the template from the solar days of all items",
            )
        given = radiometry.get(item.id) if radiometry else None
        by_day[day].append(Scene(item, day, own_zone=_crs(item) == geobox.crs, given=given))
    return [sorted(scenes, key=lambda s: (not s.own_zone, s.id)) for scenes in by_day.values()]
