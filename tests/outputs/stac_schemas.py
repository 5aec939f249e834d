"""The STAC core schemas that pystac carries: items are checked without a network."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource


def schema_errors(document: dict[str, Any]) -> list[str]:
    """What the schema of an item finds wrong with a document."""
    schemas = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(schema)) for uri, schema in schemas.items()])
    item_schema = next(schema for uri, schema in schemas.items() if uri.endswith("/item.json"))
    return [error.message for error in Draft7Validator(item_schema, registry=registry).iter_errors(document)]
