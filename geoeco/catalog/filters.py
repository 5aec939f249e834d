"""What a search asks for: an area, a period, properties; and whether an item's JSON answers it.

The same predicate runs over static catalogues and behind APIs, so that both give the same items.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from geoeco.catalog.footprints import area_lonlat, footprint_of
from geoeco.errors import CatalogError, InputError
from geoeco.grid import bbox_geometry

__all__ = ["Moment", "Wanted", "interval_of", "parse_period"]

Moment = str | dt.date | dt.datetime | np.datetime64 | None

CLOUD_COVER = "eo:cloud_cover"
_PARTIAL_DATE = re.compile(r"^(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?$")
_TICK = dt.timedelta(microseconds=1)
_OPERATORS = ("eq", "neq", "lt", "lte", "gt", "gte", "in", "startsWith", "endsWith", "contains")


def _moment(value: Moment, *, end: bool) -> dt.datetime | None:
    """Read a moment as UTC; a year, month or day means its first or, as an end, its last microsecond."""
    if value is None or value == "" or value == "..":
        return None
    if isinstance(value, np.datetime64):
        value = str(np.datetime_as_string(value, timezone="naive"))
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
    if isinstance(value, dt.date):
        value = value.isoformat()
    text = str(value).strip()
    try:
        if found := _PARTIAL_DATE.match(text):
            year, month, day = (int(part) if part else None for part in found.groups())
            first = dt.datetime(year or 0, month or 1, day or 1, tzinfo=dt.UTC)
            if not end:
                return first
            if day is not None:
                return first + dt.timedelta(days=1) - _TICK
            after = (
                first.replace(year=first.year + 1)
                if month is None or month == 12
                else first.replace(month=first.month + 1)
            )
            return (after.replace(month=1) if month == 12 else after) - _TICK
        parsed = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"{text!r} is not a date or time", what_to_do="write 2021, 2021-06, 2021-06-30 or 2021-06-30T12:00:00Z"
        ) from error
    return parsed.replace(tzinfo=dt.UTC) if parsed.tzinfo is None else parsed.astimezone(dt.UTC)


def parse_period(period: tuple[Moment, Moment] | str | None) -> tuple[dt.datetime | None, dt.datetime | None]:
    """Read a period as two moments in UTC, both inclusive, either of them open (None).

    Parameters
    ----------
    period : tuple or str or None
        ``(start, end)``, ``"start/end"`` or one date. Both ends belong to the period, as in a STAC interval; a year,
        month or day as end means its last moment, so that ``("2021", "2021")`` is the whole year.

    Raises
    ------
    InputError
        If an end is no date, or the period ends before it starts.
    """
    if period is None:
        return None, None
    if isinstance(period, str):
        parts = period.split("/")
        if len(parts) > 2:
            raise InputError(f"{period!r} is not a period", what_to_do="write start/end")
        period = (parts[0], parts[-1])
    if len(period) != 2:
        raise InputError(f"a period has a start and an end, not {len(period)} values")
    start, end = _moment(period[0], end=False), _moment(period[1], end=True)
    if start is not None and end is not None and end < start:
        raise InputError(
            f"the period {period[0]} .. {period[1]} ends before it starts",
            what_to_do="swap its ends",
            code="period-empty",
        )
    return start, end


def interval_of(record: Mapping[str, Any]) -> tuple[dt.datetime, dt.datetime]:
    """First and last moment of an item given as JSON dictionary.

    Raises
    ------
    CatalogError
        If it has neither ``datetime`` nor ``start_datetime`` and ``end_datetime``, or they cannot be read.
    """
    properties: Mapping[str, Any] = record.get("properties") or {}
    single = properties.get("datetime")
    first = single or properties.get("start_datetime")
    last = single or properties.get("end_datetime") or first
    try:
        start, end = _moment(first, end=False), _moment(last, end=False)
    except InputError as error:
        raise CatalogError(
            f"an item's time cannot be read: {error.what}",
            where=f"item {record.get('id')}",
            what_to_do="repair the item",
            code="catalog-datetime",
        ) from error
    if start is None or end is None:
        raise CatalogError(
            "an item has no datetime",
            where=f"item {record.get('id')}",
            what_to_do="give it `datetime`, or `start_datetime` and `end_datetime`",
            code="catalog-datetime",
        )
    return start, end


def _compare(have: Any, operator: str, want: Any) -> bool:
    if operator == "neq":
        return bool(have != want)
    if have is None:
        return False
    if operator == "in":
        return have in want
    if operator in ("startsWith", "endsWith", "contains"):
        text, part = str(have), str(want)
        return {
            "startsWith": text.startswith(part),
            "endsWith": text.endswith(part),
            "contains": part in text,
        }[operator]
    if operator == "eq":
        return bool(have == want)
    try:
        return bool({"lt": have < want, "lte": have <= want, "gt": have > want, "gte": have >= want}[operator])
    except TypeError:
        return False


def _checked_query(query: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Spell the query with every condition as ``{property: {operator: value}}``."""
    out: dict[str, dict[str, Any]] = {}
    for name, condition in (query or {}).items():
        spelt = dict(condition) if isinstance(condition, Mapping) else {"eq": condition}
        if unknown := [operator for operator in spelt if operator not in _OPERATORS]:
            raise InputError(
                f"{unknown[0]!r} is not an operator of a property query",
                where=f"query on {name}",
                what_to_do=f"use one of {', '.join(_OPERATORS)}",
            )
        out[name] = spelt
    return out


@dataclass(frozen=True)
class Wanted:
    """A search, checked.

    Attributes
    ----------
    area : shapely geometry or None
        In longitude and latitude, cut at the antimeridian.
    start, end : datetime or None
        Inclusive, UTC.
    collections : tuple of str or None
    query : dict
        ``{property: {operator: value}}``; an item without the property answers nothing but ``neq``.
    """

    area: BaseGeometry | None
    start: dt.datetime | None
    end: dt.datetime | None
    collections: tuple[str, ...] | None
    query: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        bbox: Sequence[float] | None,
        geometry: Geometry | None,
        period: tuple[Moment, Moment] | str | None,
        collections: Sequence[str] | str | None,
        max_cloud_cover: float | None,
        query: Mapping[str, Any] | None,
    ) -> Wanted:
        """Check the arguments of a search.

        Raises
        ------
        InputError
            If they contradict each other or cannot be read.
        """
        if bbox is not None and geometry is not None:
            raise InputError("a search takes a bbox or a geometry, not both")
        if bbox is not None:
            if len(bbox) != 4:
                raise InputError(f"a bbox has four values (west, south, east, north), not {len(bbox)}")
            geometry = bbox_geometry((bbox[0], bbox[1], bbox[2], bbox[3]))
        conditions = _checked_query(query)
        if max_cloud_cover is not None:
            if not 0 <= max_cloud_cover <= 100:
                raise InputError(f"max_cloud_cover is a percentage, not {max_cloud_cover}")
            conditions[CLOUD_COVER] = {**conditions.get(CLOUD_COVER, {}), "lte": float(max_cloud_cover)}
        names = (collections,) if isinstance(collections, str) else tuple(collections) if collections else None
        start, end = parse_period(period)
        area = None if geometry is None else area_lonlat(geometry)
        if area is not None:
            shapely.prepare(area)
        return cls(area, start, end, names, conditions)

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether an item given as JSON dictionary lies in the area and period and answers the query.

        Items that have no geometry and no bbox lie nowhere: they match only where no area is asked for.
        """
        if self.start is not None or self.end is not None:
            first, last = interval_of(record)
            if (self.end is not None and first > self.end) or (self.start is not None and last < self.start):
                return False
        properties = record.get("properties") or {}
        for name, condition in self.query.items():
            have = record.get("id") if name == "id" else properties.get(name)
            if not all(_compare(have, operator, want) for operator, want in condition.items()):
                return False
        if self.area is None:
            return True
        outline = footprint_of(record)
        return outline is not None and bool(self.area.intersects(outline))

    def interval(self) -> str | None:
        """Write the period as a STAC API wants it, or None where it is open on both sides."""
        if self.start is None and self.end is None:
            return None
        return "/".join(
            ".." if moment is None else moment.isoformat().replace("+00:00", "Z") for moment in (self.start, self.end)
        )
