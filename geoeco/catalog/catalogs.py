"""Catalogues: where imagery is. One class for STAC files (local or remote), one for STAC APIs, one door for both."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pystac
from odc.geo.geom import Geometry
from shapely.geometry import mapping

from geoeco.catalog.band_names import is_raster
from geoeco.catalog.faults import translated
from geoeco.catalog.filters import Moment, Wanted, interval_of
from geoeco.catalog.footprints import footprint_of
from geoeco.catalog.hrefs import HrefPolicy, absolute, is_remote
from geoeco.errors import CatalogError, InputError

if TYPE_CHECKING:
    from pystac_client.stac_api_io import StacApiIO

__all__ = ["ApiCatalog", "Catalog", "CollectionExtent", "StaticCatalog", "open_catalog"]

#: Seconds to wait for a catalogue to connect and to answer.
TIMEOUT = 60.0
_PAGE = 100
_SCAN_LIMIT = 100_000
#: So many repeated items in a row are a circle, not an accident of paging.
_LOOP = 10 * _PAGE


@dataclass(frozen=True)
class CollectionExtent:
    """What a catalogue says (or shows) that one of its collections holds.

    Attributes
    ----------
    id : str
        Empty for items that belong to no collection.
    start, end : datetime or None
        Inclusive; None is open.
    bbox : tuple of float or None
        West, south, east, north in degrees. Counted from items it spans all longitudes where these lie on both sides
        of the antimeridian; stated by a catalogue, west > east crosses it.
    items : int or None
        Number of items, where they were counted.
    """

    id: str
    start: dt.datetime | None
    end: dt.datetime | None
    bbox: tuple[float, float, float, float] | None
    items: int | None = None

    def __str__(self) -> str:
        days = [f"{moment:%Y-%m-%d}" if moment else ".." for moment in (self.start, self.end)]
        where = "" if self.bbox is None else ", bbox " + " ".join(f"{v:.4g}" for v in self.bbox)
        count = "" if self.items is None else f", {self.items} items"
        return f"{self.id or '(no collection)'}: {days[0]} to {days[1]}{where}{count}"


class Catalog(ABC):
    """A catalogue that can be searched; made by `open_catalog`.

    Attributes
    ----------
    href : str
        Absolute path or URL.
    id, title : str
        As the catalogue calls itself.
    """

    def __init__(self, href: str, record: Mapping[str, Any], policy: HrefPolicy) -> None:
        self.href = href
        self.id = str(record.get("id") or Path(href).stem)
        self.title = str(record.get("title") or self.id)
        self._policy = policy

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} at {self.href}>"

    @abstractmethod
    def _records(self, wanted: Wanted) -> Iterator[tuple[dict[str, Any], str]]:
        """Items as JSON dictionaries with the href of the document each stands in; lazily, maybe more than wanted."""

    @abstractmethod
    def collections(self) -> tuple[CollectionExtent, ...]:
        """List the catalogue's collections with their extents, sorted by id."""

    def describe(self) -> str:
        """Say what the catalogue holds, in a few lines, for messages."""
        lines = [f"{self.title} ({self.href})", *(f"  {extent}" for extent in self.collections())]
        return "\n".join(lines if len(lines) > 1 else [*lines, "  no collections and no items"])

    def search(
        self,
        *,
        bbox: Sequence[float] | None = None,
        geometry: Geometry | None = None,
        period: tuple[Moment, Moment] | str | None = None,
        collections: Sequence[str] | str | None = None,
        max_cloud_cover: float | None = None,
        query: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> list[pystac.Item]:
        """Items that lie in an area and a period and answer a query.

        Parameters
        ----------
        bbox : sequence of float, optional
            West, south, east, north in degrees; west > east crosses the antimeridian.
        geometry : odc.geo.geom.Geometry, optional
            An area in any CRS, instead of `bbox`.
        period : tuple or str, optional
            ``(start, end)`` in UTC, both inclusive, either of them None; see `parse_period`.
        collections : sequence of str, optional
            Ids of collections.
        max_cloud_cover : float, optional
            In percent; items that do not state ``eo:cloud_cover`` are left out, as APIs do.
        query : mapping, optional
            ``{property: value}`` or ``{property: {operator: value}}`` with eq, neq, lt, lte, gt, gte, in,
            startsWith, endsWith, contains.
        limit : int, optional
            Stop after this many matching items in the catalogue's own order: a guard, not a ranking.

        Returns
        -------
        list of pystac.Item
            Sorted by time and id, with absolute asset hrefs that were checked (see `open_catalog`). Only the link to
            the item's own document is kept, so that ``item.to_dict()`` never reads anything. Empty if nothing
            matches; `describe` says what there is.

        Raises
        ------
        InputError
            If an argument cannot be read or the period ends before it starts.
        CatalogError
            If the catalogue or a matching item cannot be read, a collection does not exist, or an asset points where
            it may not.
        TransientError
            If a remote catalogue does not answer, or not now.
        """
        wanted = Wanted.of(
            bbox=bbox,
            geometry=geometry,
            period=period,
            collections=collections,
            max_cloud_cover=max_cloud_cover,
            query=query,
        )
        if limit is not None and limit < 1:
            raise InputError(f"limit must be at least 1, not {limit}")
        found: list[tuple[dt.datetime, str, pystac.Item]] = []
        seen: set[tuple[str, str]] = set()
        repeated = in_a_row = 0
        for record, base in self._records(wanted):
            key = (str(record.get("collection") or ""), str(record.get("id")))
            if key in seen:
                repeated, in_a_row = repeated + 1, in_a_row + 1
                if in_a_row > _LOOP:
                    raise CatalogError(
                        "the catalogue gives the same items again and again",
                        where=self.href,
                        what_to_do="its paging or links run in a circle: report it to its owner, or set a limit",
                        code="catalog-loop",
                    )
                continue
            seen.add(key)
            in_a_row = 0
            if not wanted.matches(record):
                continue
            found.append((interval_of(record)[0], key[1], self._item(record, base)))
            if limit is not None and len(found) >= limit:
                break
        if repeated:
            warnings.warn(f"{repeated} items of {self.href} repeat an id and were left out", stacklevel=2)
        if not found and wanted.collections is not None:
            self._check_collections(wanted.collections)
        return [item for _, _, item in sorted(found, key=lambda entry: entry[:2])]

    def _check_collections(self, names: Iterable[str]) -> None:
        have = sorted(extent.id for extent in self.collections())
        if missing := [name for name in names if name not in have]:
            raise CatalogError(
                f"there is no collection {missing[0]!r} in this catalogue",
                where=self.href,
                what_to_do=f"use one of {', '.join(have[:40]) or '(it has none)'}",
                code="catalog-collection",
            )

    def _item(self, record: dict[str, Any], base: str) -> pystac.Item:
        """Turn a record into an item of the current STAC version, its assets absolute and checked."""
        try:
            # records are read anew for each search, so pystac may change them
            item = pystac.Item.from_dict({**record, "links": []}, href=base, migrate=True, preserve_dict=False)
        except Exception as error:
            raise _unreadable(f"{type(error).__name__}: {error}", record, base) from error
        item.clear_links()
        item.set_self_href(base)
        for key, asset in list(item.assets.items()):
            try:
                asset.href = self._policy.check(asset.href, base)
            except ValueError as error:
                if is_raster(asset):
                    raise self._policy.refuse(error, asset.href, f"asset {key} of item {item.id} in {base}") from error
                # previews and documents are never read: they go rather than stop a search
                del item.assets[key]
        return item


class StaticCatalog(Catalog):
    """STAC files: a catalogue, a collection, an item or an ItemCollection, local or remote, read as they are needed."""

    def __init__(self, href: str, record: dict[str, Any], policy: HrefPolicy, reader: _Reader) -> None:
        super().__init__(href, record, policy)
        self._reader = reader

    def _walk(self, names: tuple[str, ...] | None = None) -> Iterator[tuple[str, dict[str, Any], str, str]]:
        """Documents below this one, depth first: (kind, record, href, collection id). Each document is read once."""
        seen = {self.href}
        stack = [(self.href, "")]
        while stack:
            href, collection = stack.pop()
            record = self._reader.read(href)
            kind = _kind(record, href)
            if kind == "FeatureCollection":
                features = record.get("features")
                if not isinstance(features, list):
                    raise CatalogError("an ItemCollection without `features`", where=href, what_to_do="repair the file")
                for feature in features:
                    yield "Feature", _feature(feature, href), href, collection
                continue
            yield kind, _feature(record, href) if kind == "Feature" else record, href, collection
            if kind == "Feature":
                continue
            if kind == "Collection":
                collection = str(record.get("id", ""))
                if names is not None and collection not in names:
                    # an unwanted collection may still hold wanted ones
                    stack.extend(self._children(record, href, collection, seen, ("child",)))
                    continue
            stack.extend(self._children(record, href, collection, seen, ("child", "item", "items")))

    def _children(
        self, record: Mapping[str, Any], href: str, collection: str, seen: set[str], relations: tuple[str, ...]
    ) -> list[tuple[str, str]]:
        out = []
        for link in _links(record):
            if link.get("rel") not in relations:
                continue
            try:
                target = self._policy.check(str(link.get("href") or ""), href)
            except ValueError as error:
                raise self._policy.refuse(error, str(link.get("href")), f"{link.get('rel')} link in {href}") from error
            if target not in seen:
                seen.add(target)
                out.append((target, collection))
        return out[::-1]

    def _records(self, wanted: Wanted) -> Iterator[tuple[dict[str, Any], str]]:
        for kind, record, href, collection in self._walk(wanted.collections):
            if kind != "Feature":
                continue
            own = str(record.get("collection") or collection)
            if wanted.collections is None or own in wanted.collections:
                yield (record if record.get("collection") or not collection else {**record, "collection": own}), href

    def collections(self) -> tuple[CollectionExtent, ...]:
        """List the collections and what their items cover, counted from the items (100,000 at most)."""
        spans: dict[str, list[Any]] = {}
        for number, (kind, record, _, collection) in enumerate(self._walk()):
            if number > _SCAN_LIMIT:
                break
            if kind == "Collection":
                spans.setdefault(str(record.get("id", "")), [None, None, None, 0])
            if kind != "Feature":
                continue
            span = spans.setdefault(str(record.get("collection") or collection), [None, None, None, 0])
            start, end = interval_of(record)
            span[0] = start if span[0] is None else min(span[0], start)
            span[1] = end if span[1] is None else max(span[1], end)
            if (outline := footprint_of(record)) is not None:
                bounds = outline.bounds
                old = span[2] or bounds
                span[2] = (
                    min(old[0], bounds[0]),
                    min(old[1], bounds[1]),
                    max(old[2], bounds[2]),
                    max(old[3], bounds[3]),
                )
            span[3] += 1
        return tuple(CollectionExtent(name, *spans[name]) for name in sorted(spans))


class ApiCatalog(Catalog):
    """A STAC API, by pystac-client."""

    def __init__(self, href: str, record: dict[str, Any], policy: HrefPolicy, reader: _Reader) -> None:
        import pystac_client

        super().__init__(href, record, policy)
        with translated(href):
            self._client = pystac_client.Client.from_dict(record, href=href, migrate=True)
        self._client._stac_io = reader.session(href)
        methods = {str(link.get("method", "GET")).upper() for link in _links(record) if link.get("rel") == "search"}
        self._method = "POST" if "POST" in methods else "GET"

    def _records(self, wanted: Wanted) -> Iterator[tuple[dict[str, Any], str]]:
        from pystac_client import ConformanceClasses

        asked: dict[str, Any] = {"datetime": wanted.interval(), "collections": wanted.collections, "limit": _PAGE}
        if wanted.area is not None:
            # always a geometry: not every server reads a bbox whose west lies beyond its east
            asked["intersects"] = mapping(wanted.area)
        if wanted.query and self._client.conforms_to(ConformanceClasses.QUERY):
            asked["query"] = wanted.query
        with translated(f"search of {self.href}"):
            for record in self._client.search(method=self._method, **asked).items_as_dicts():
                yield _feature(record, self.href), _own_href(record, self.href)

    def collections(self) -> tuple[CollectionExtent, ...]:
        """List the collections with the extents that the API states."""
        with translated(f"collections of {self.href}"):
            found = list(self._client.get_collections())
        out = []
        for collection in found:
            interval = (collection.extent.temporal.intervals or [[None, None]])[0]
            box = next(iter(collection.extent.spatial.bboxes), [])
            ends = (0, 1, 3, 4) if len(box) == 6 else (0, 1, 2, 3)
            west, south, east, north = (float(box[i]) if box else math.nan for i in ends)
            bounds = (west, south, east, north) if box else None
            out.append(CollectionExtent(collection.id, interval[0], interval[1], bounds))
        return tuple(sorted(out, key=lambda extent: extent.id))


class _Reader:
    """Reads JSON documents: paths, http(s) and object stores. Headers go to the host they were given for only."""

    def __init__(self, href: str, headers: Mapping[str, str] | None) -> None:
        self._host = urlsplit(href).netloc
        self._headers = dict(headers or {})
        self._sessions: dict[bool, StacApiIO] = {}

    def session(self, href: str) -> StacApiIO:
        own = urlsplit(href).netloc == self._host
        if own not in self._sessions:
            from pystac_client.stac_api_io import StacApiIO

            headers = self._headers if own else {}
            self._sessions[own] = StacApiIO(headers=headers, timeout=TIMEOUT, max_retries=2)
        return self._sessions[own]

    def read(self, href: str) -> dict[str, Any]:
        with translated(href):
            if not is_remote(href):
                text = Path(href).read_text(encoding="utf-8")
            elif href.startswith(("http://", "https://")):
                text = self.session(href).read_text(href)
            else:
                import fsspec

                with fsspec.open(href, "r", encoding="utf-8") as file:
                    text = file.read()
            return _mapping(json.loads(text), href)


def _feature(record: object, href: str) -> dict[str, Any]:
    """Check that a record has the shape of an item."""
    found = _mapping(record, href)
    if why := _misshapen(found):
        raise _unreadable(why, found, href)
    return found


def _misshapen(record: Mapping[str, Any]) -> str:
    """Say what in an item's JSON is not of the type that STAC gives it; empty where all is."""
    optional_text = (str, type(None))
    wanted: list[tuple[str, Any, tuple[type, ...]]] = [
        ("id", record.get("id"), (str,)),
        ("properties", record.get("properties"), (dict,)),
        ("collection", record.get("collection"), optional_text),
        ("geometry", record.get("geometry"), (dict, type(None))),
        ("bbox", record.get("bbox"), (list, type(None))),
        ("assets", record.get("assets"), (dict,)),
    ]
    assets = record.get("assets")
    for key, asset in (assets if isinstance(assets, dict) else {}).items():
        fields = asset if isinstance(asset, dict) else {}
        wanted += [
            (f"asset {key}", asset, (dict,)),
            (f"href of asset {key}", fields.get("href"), (str,)),
            (f"type of asset {key}", fields.get("type"), optional_text),
            (f"roles of asset {key}", fields.get("roles"), (list, type(None))),
        ]
        wanted += [(f"a role of asset {key}", role, (str,)) for role in _list(fields.get("roles"))]
    return next((f"{name} is {value!r:.40}" for name, value, types in wanted if not isinstance(value, types)), "")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _unreadable(why: str, record: Mapping[str, Any], base: str) -> CatalogError:
    return CatalogError(
        f"an item cannot be read: {why}",
        where=f"item {record.get('id')!s:.100} in {base}",
        what_to_do="check it with a STAC validator",
        code="catalog-item",
    )


def _mapping(record: object, href: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise CatalogError(
            "this is JSON, but not a STAC document", where=href, what_to_do="check the address", code="catalog-json"
        )
    return record


def _kind(record: Mapping[str, Any], href: str) -> str:
    """``Catalog``, ``Collection``, ``Feature`` or ``FeatureCollection``."""
    kind = record.get("type")
    if kind in ("Catalog", "Collection", "Feature", "FeatureCollection"):
        return str(kind)
    if kind is None and "stac_version" in record:  # STAC before 1.0.0-rc.1 had no type on catalogues
        return "Collection" if "extent" in record else "Catalog"
    raise CatalogError(
        f"this is not a STAC document (its type is {kind!r})",
        where=href,
        what_to_do="give a STAC catalogue, collection, item or ItemCollection, or the landing page of a STAC API",
        code="catalog-type",
    )


def _links(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [link for link in _list(record.get("links")) if isinstance(link, dict)]


def _own_href(record: Mapping[str, Any], fallback: str) -> str:
    for link in _links(record):
        if link.get("rel") == "self" and str(link.get("href", "")).startswith("http"):
            return str(link["href"])
    return fallback


def _is_api(record: Mapping[str, Any]) -> bool:
    if record.get("type", "Catalog") != "Catalog":
        return False
    return any(link.get("rel") == "search" for link in _links(record))


def open_catalog(
    href: str | os.PathLike[str], *, headers: Mapping[str, str] | None = None, allow: Sequence[str] = ()
) -> Catalog:
    """Open a catalogue of imagery.

    Parameters
    ----------
    href : str or path
        A STAC catalogue, collection, item or ItemCollection file (a path, ``file:``, ``http(s):``, or an object store
        that fsspec knows, such as ``s3:``), or the landing page of a STAC API.
    headers : mapping, optional
        HTTP headers for the catalogue, for instance ``{"Authorization": ...}``; not sent to archives.
    allow : sequence of str, optional
        Further folders and URL prefixes that assets and links may point to. Without it, those of a STAC file may
        point below the file's own folder, to the same host, or to the public Sentinel-2 archives
        (`PUBLIC_ARCHIVES`); those of an API to any remote address. Files of this machine are never reached from a
        remote catalogue, GDAL virtual file systems and VRTs never at all.

    Returns
    -------
    Catalog

    Raises
    ------
    CatalogError
        If it is missing or is no STAC catalogue.
    TransientError
        If it does not answer, or not now.
    """
    text = os.fspath(href)
    try:
        address = absolute(text, f"{Path.cwd()}/")
    except ValueError as error:
        raise CatalogError(
            f"{text!r} cannot be opened: {error}", what_to_do="give a path or an http(s) address", code="catalog-href"
        ) from error
    reader = _Reader(address, headers)
    record = reader.read(address)
    _kind(record, address)
    if _is_api(record):
        return ApiCatalog(address, record, HrefPolicy(address, tuple(allow), any_remote=True), reader)
    return StaticCatalog(address, record, HrefPolicy(address, tuple(allow)), reader)
