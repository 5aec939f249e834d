"""The crowns that chips were cut round, for the verbs that need their outlines beside the chips."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from geoeco.engine import Task, TaskContext
from geoeco.sampling import open_uav_chips
from geoeco.steps.uav_chips import CROWNS
from geoeco.vectors import read_crowns

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["crowns_of_chips"]


def crowns_of_chips(task: Task, context: TaskContext, store: str, table: str | None = None) -> gpd.GeoDataFrame:
    """Outlines of crowns with the ids that their chips have, in the CRS of the chips.

    Parameters
    ----------
    task : Task
        Its payload has that of a `geoeco.steps.uav_sources.UavChipSource`.
    context : TaskContext
    store : str
        The chips.
    table : str, optional
        Path of a table of crowns in place of that of the step.
    """
    import geopandas as gpd

    if table is None:
        return gpd.read_parquet(io.BytesIO(context.store.read_bytes(f"{task.payload['chips']}/{CROWNS}")))
    found = read_crowns(table)
    wkt = str(open_uav_chips(store).attrs["crs_wkt"])
    return found.to_crs(wkt) if wkt else found
