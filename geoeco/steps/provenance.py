"""What steps that write for GIS users say of where a file comes from: tags, times, and the catalogue of their items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pystac

from geoeco.engine import Output, PlanContext, RunContext

__all__ = ["ALWAYS", "item_properties", "local_sources", "provenance_tags", "write_catalog"]

#: When something holds of which nobody says when it was seen: a STAC item must give a time.
ALWAYS = ("1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


def provenance_tags(context: PlanContext, inputs: Sequence[str], period: tuple[str, str] | None) -> dict[str, str]:
    """Keys that tie a file to its recipe and its inputs; the same whatever the block size or the cluster.

    Parameters
    ----------
    context : PlanContext
    inputs : sequence of str
        Names of what it was made of, as `geoeco.steps.layers.RasterVerb.inputs` gives them.
    period : tuple of str, optional
        First and last moment, ISO 8601.
    """
    recipe = context.recipe.document()
    if recipe["grid"]:
        recipe["grid"].pop("block")
    return {
        "GEOECO_RECIPE_SHA256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "GEOECO_INPUTS_SHA256": hashlib.sha256("\n".join(inputs).encode()).hexdigest(),
        **({} if period is None else {"GEOECO_PERIOD": f"{period[0][:10]}/{period[1][:10]}"}),
    }


def item_properties(tags: Mapping[str, str]) -> dict[str, str]:
    """Properties of a STAC item from the tags of its file: ``geoeco:recipe_sha256`` from ``GEOECO_RECIPE_SHA256``."""
    return {key.lower().replace("_", ":", 1): value for key, value in tags.items()}


def local_sources(names: Sequence[str], scratch: Path) -> list[str | Path]:
    """Files of the run in a mirror of its folder, so that relative links to them hold there too; URLs as they are."""
    return [name if "://" in name else scratch / name for name in names]


def write_catalog(context: RunContext, records: Sequence[Mapping[str, Any]], what: str) -> Sequence[Output]:
    """Tie the STAC items of a step together in a static catalogue with relative links.

    Parameters
    ----------
    context : RunContext
    records : sequence of mapping
        Of the step's tasks; their items are the outputs of the kind ``metadata``.
    what : str
        What the items are of, for the catalogue's description.
    """
    catalog = pystac.Catalog(
        id=f"{context.recipe.name}-{context.folder}",
        description=context.recipe.description or f"{what} of the recipe {context.recipe.name}",
    )
    for record in records:
        for output in record["outputs"]:
            if output["kind"] == "metadata":
                href = f"./{output['path'].split('/')[-1]}"
                catalog.add_link(pystac.Link("item", href, pystac.MediaType.JSON, title=output["title"]))
    document = catalog.to_dict(include_self_link=False)
    # the root link of a catalogue that is its own root, as self-contained catalogues have it
    document["links"] = [
        {"rel": "root", "href": "./catalog.json", "type": "application/json"},
        *(link for link in document["links"] if link["rel"] != "root"),
    ]
    name = f"{context.folder}/catalog.json"
    context.store.write_json(name, document)
    return [Output(name, bytes=context.store.size(name), kind="metadata")]
