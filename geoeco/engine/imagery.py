"""What a recipe's inputs and grid come to: the items found and the pixels to work on, found once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from geoeco.engine.keys import canonical_json
from geoeco.engine.recipes import Recipe, recipe_path
from geoeco.errors import CatalogError
from geoeco.grid import area_geobox, bbox_geometry, raster_geobox, snap_geobox
from geoeco.vectors import area_of_interest

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox
    from odc.geo.geom import Geometry

__all__ = ["items_document", "items_from_document", "resolve_inputs"]


def resolve_inputs(
    recipe: Recipe, *, items: Sequence[pystac.Item] | None = None
) -> tuple[GeoBox | None, tuple[pystac.Item, ...]]:
    """Grid and imagery of a recipe.

    Parameters
    ----------
    recipe : Recipe
    items : sequence of pystac.Item, optional
        The search's result where it is known already (resume); searched when not given.

    Returns
    -------
    geobox : odc.geo.geobox.GeoBox or None
        None if the recipe has neither a grid nor imagery.
    items : tuple of pystac.Item
        Sorted by (datetime, id).

    Raises
    ------
    CatalogError
        If the catalogue cannot be read, or nothing is found.
    GridError
        If the area of interest is none, or the raster that the grid is like has no grid.
    """
    geobox = None
    if recipe.grid is not None and recipe.grid.like is not None:
        geobox = raster_geobox(_like(recipe, recipe.grid.like), recipe.grid.resolution)
    elif recipe.grid is not None and recipe.grid.area is not None:
        geobox = _area_geobox(recipe, _area(recipe))
    if recipe.inputs.imagery is None:
        return geobox, ()
    found = tuple(_search(recipe, geobox) if items is None else items)
    seen: set[str] = set()
    for item in found:
        if item.id in seen:
            raise CatalogError(
                f"two items are named {item.id!r}",
                where=recipe.inputs.imagery.catalog,
                what_to_do="search one collection at a time (inputs.imagery.collections)",
            )
        seen.add(item.id)
    if geobox is None:
        geobox = _items_geobox(recipe, found)
    return geobox, found


def _like(recipe: Recipe, name: str) -> str:
    """Path of the raster that a grid is like: a named table of the inputs, or a file."""
    return recipe.table_path(name) if name in recipe.inputs.tables else recipe_path(name, recipe.folder)


def _area(recipe: Recipe) -> Geometry:
    area = recipe.grid.area if recipe.grid else None
    if isinstance(area, tuple):
        return bbox_geometry(area)
    return area_of_interest(recipe_path(str(area), recipe.folder))


def _area_geobox(recipe: Recipe, area: Geometry) -> GeoBox:
    grid = recipe.grid
    if grid is None:
        return area_geobox(area)
    return area_geobox(area, crs=grid.crs, resolution=grid.pixel)


def _search(recipe: Recipe, geobox: GeoBox | None) -> list[pystac.Item]:
    from geoeco.catalog import open_catalog

    imagery = recipe.inputs.imagery
    if imagery is None:
        return []
    href = recipe_path(imagery.catalog, recipe.folder)
    catalog = open_catalog(href, allow=imagery.allow)
    options: dict[str, Any] = {} if geobox is None else {"geometry": geobox.extent}
    found: list[pystac.Item] = catalog.search(
        period=imagery.period,
        collections=list(imagery.collections) if imagery.collections else None,
        max_cloud_cover=imagery.max_cloud_cover,
        **options,
    )
    if not found:
        start, end = imagery.period
        raise CatalogError(
            f"the catalogue has no imagery of {start} to {end}"
            + ("" if geobox is None else " over the area of interest")
            + ("" if imagery.max_cloud_cover is None else f" with at most {imagery.max_cloud_cover:g} % cloud"),
            where=href,
            what_to_do="check inputs.imagery.period, collections and max_cloud_cover, and grid.area; "
            f"the catalogue holds:\n{catalog.describe()}",
            code="catalog-empty",
        )
    return found


def _items_geobox(recipe: Recipe, items: Sequence[pystac.Item]) -> GeoBox:
    """Grid over all items: exactly their own pixels' where they share one CRS, else their footprints'."""
    import numpy as np
    import shapely
    from odc.geo.geom import Geometry

    from geoeco.catalog import footprint

    native = [_native_bounds(item) for item in items]
    wanted = recipe.grid.crs if recipe.grid else "utm"
    known = [entry for entry in native if entry is not None]
    if len(known) == len(items) and len({crs for crs, _ in known}) == 1 and wanted in ("utm", known[0][0]):
        boxes = [bounds for _, bounds in known]
        bounds = (
            min(b[0] for b in boxes),
            min(b[1] for b in boxes),
            max(b[2] for b in boxes),
            max(b[3] for b in boxes),
        )
        return snap_geobox(bounds, known[0][0], recipe.grid.pixel if recipe.grid else 10.0)
    outlines = [outline.geom for item in items if (outline := footprint(item)) is not None]
    if not outlines:
        raise CatalogError("the items have no footprints", what_to_do="give grid.area")
    whole = shapely.union_all(outlines)
    if whole.bounds[2] - whole.bounds[0] > 180:  # pieces on both sides of the antimeridian: bring them together
        whole = shapely.union_all(
            [
                shapely.transform(part, lambda xy: xy + np.array([360.0, 0.0])) if part.bounds[2] <= 0 else part
                for part in getattr(whole, "geoms", [whole])
            ]
        )
    return _area_geobox(recipe, Geometry(whole, "EPSG:4326"))


def _native_bounds(item: pystac.Item) -> tuple[str, tuple[float, float, float, float]] | None:
    """CRS and bounds of an item's pixels by the projection extension; None where it does not say."""
    for fields in (item.properties, *(asset.extra_fields for asset in item.assets.values())):
        code = fields.get("proj:code") or item.properties.get("proj:code")
        if code is None and (epsg := fields.get("proj:epsg") or item.properties.get("proj:epsg")) is not None:
            code = f"EPSG:{epsg}"
        transform, shape = fields.get("proj:transform"), fields.get("proj:shape")
        if code is None:
            continue
        if transform is not None and shape is not None and transform[1] == 0 and transform[3] == 0:
            left, top = float(transform[2]), float(transform[5])
            right, bottom = left + transform[0] * shape[1], top + transform[4] * shape[0]
            return str(code), (left, min(top, bottom), right, max(top, bottom))
    return None


def search_key(recipe: Recipe) -> str:
    """Return what the search depends on; a kept result is used again only if this is the same."""
    imagery = recipe.inputs.imagery
    grid = recipe.grid.model_dump(mode="json", exclude={"block"}) if recipe.grid else None
    return canonical_json({"imagery": imagery.model_dump(mode="json") if imagery else None, "grid": grid})


def items_document(recipe: Recipe, items: Sequence[pystac.Item]) -> dict[str, Any]:
    """Plain data of the search's result, for ``items.json``: a GeoJSON collection of STAC items."""
    return {
        "type": "FeatureCollection",
        "geoeco:search": search_key(recipe),
        "features": [item_dict(item) for item in items],
    }


def item_dict(item: pystac.Item) -> dict[str, Any]:
    """STAC JSON of one item, links as they are (nothing is fetched to resolve them)."""
    document: dict[str, Any] = item.to_dict(include_self_link=True, transform_hrefs=False)
    return document


def items_from_document(recipe: Recipe, document: Mapping[str, Any]) -> list[pystac.Item] | None:
    """Items of ``items.json``; None if they are another search's."""
    import pystac

    if document.get("geoeco:search") != search_key(recipe):
        return None
    return [pystac.Item.from_dict(feature, migrate=False) for feature in document["features"]]
