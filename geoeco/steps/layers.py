"""What steps that make maps share: a store by blocks, the layers that other steps may take from it, and their files."""

from __future__ import annotations

import hashlib
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoeco.engine import Output, PlanContext, PlannedStep, RunContext, RunStore, TaskContext, Verb

__all__ = ["Layer", "RasterVerb", "digest_of", "parts_of", "read_layer", "shard_files", "shard_for", "tiles", "written"]

if TYPE_CHECKING:
    import geopandas as gpd
    import xarray as xr

#: A shard of rasters is at most this many pixels on a side, whatever the block: it bounds what a task holds.
MAX_SHARD = 512


@dataclass(frozen=True)
class Layer:
    """A group of variables of one unit and type that belong in one file.

    Attributes
    ----------
    name : str
        File stem.
    variables : tuple of str
        Names in the raster store; all of one kind and unit.
    title : str
        For captions.
    select : mapping
        Labels of leading dimensions, for example ``{"year": 2019, "cycle": 1}``; a list keeps the dimension, whose
        members are bands of the file.
    bands : int
        Bands that each variable gives.
    band_names : tuple of str
        Names of the bands of a leading dimension; numbered by its labels when not given.
    stride : int
        Pixels of the run's grid along a side of one of its pixels.
    itemsize : int, optional
        Bytes of a number in its file, where the layer's kind alone says them.
    profile : str
        File of the run in which stands, by name of the layer, what is known only when the step has run: ``storage``
        (``dtype``, ``scale``, ``offset`` of `geoeco.outputs.write_cog`), ``tags``, and ``derived_from``, files of the
        run or URLs that the layer was made from beside the imagery.
    """

    name: str
    variables: tuple[str, ...]
    title: str
    select: Mapping[str, int | list[int]] = field(default_factory=dict)
    bands: int = 1
    band_names: tuple[str, ...] = ()
    stride: int = 1
    itemsize: int | None = None
    profile: str = ""


class RasterVerb(Verb):
    """A verb whose step keeps rasters in a Zarr store (`geoeco.cubes.create_rasters`), one task a block.

    Its tasks are the stage ``blocks``, keyed by the block's id.
    """

    @abstractmethod
    def layers(self, settings: Any, context: PlanContext) -> tuple[Layer, ...]:
        """Layers that the step will hold; known when planning."""

    def inputs(self, settings: Any, context: PlanContext) -> tuple[str, ...]:
        """Names of what its rasters show, which tie a file to them: ids of the items of the run's imagery."""
        return tuple(sorted(item.id for item in context.items))

    def period(self, settings: Any, context: PlanContext) -> tuple[str, str] | None:
        """First and last moment of what its rasters show, ISO 8601: of the run's imagery. None where it is unknown."""
        moments = sorted(
            str(item.properties.get("datetime") or item.properties["start_datetime"]) for item in context.items
        )
        return (moments[0], moments[-1]) if moments else None

    @staticmethod
    def store_name(step: PlannedStep | str) -> str:
        """Name of the raster store in the run folder."""
        return f"{step if isinstance(step, str) else step.name}/rasters.zarr"

    def open(self, settings: Any, context: RunContext) -> Any:
        """Open the rasters lazily."""
        from geoeco.cubes import open_rasters

        return open_rasters(context.store.url(self.store_name(context.folder)))


def shard_for(block: int, largest: int = MAX_SHARD) -> int:
    """Largest divisor of the block's edge that is not above `largest`: a block is then a whole number of shards."""
    return next(size for size in range(min(block, largest), 0, -1) if block % size == 0)


def tiles(y: tuple[int, int], x: tuple[int, int], size: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut a window into tiles of `size` pixels; edges fall on multiples of `size` where the window's do."""
    for top in range(y[0], y[1], size):
        for left in range(x[0], x[1], size):
            yield (top, min(top + size, y[1])), (left, min(left + size, x[1]))


def parts_of(store: RunStore, names: Iterable[str]) -> tuple[Output, ...]:
    """Outputs for the files of a larger store that a task wrote, by name relative to the run.

    Files that are not there are left out: a shard that holds nothing but nodata is not stored.
    """
    sizes = ((name, store.size(name)) for name in names)
    return tuple(Output(name, bytes=size, kind="part") for name, size in sizes if size is not None)


def shard_files(store: str, block: xr.Dataset, y: tuple[int, int], x: tuple[int, int], shard: int) -> list[str]:
    """Names of the files that `geoeco.cubes.write_rasters` writes for one shard of each variable of a block.

    Parameters
    ----------
    store : str
        Name of the store in the run.
    block : xarray.Dataset
        Variables ``(..., y, x)``.
    y, x : tuple of int
        Window of the grid that they lie in, which begins at a shard.
    shard : int
        Pixels along a side of a shard.
    """
    place = (str(y[0] // shard), str(x[0] // shard))
    return ["/".join((store, str(name), "c", *("0" * (v.ndim - 2)), *place)) for name, v in block.data_vars.items()]


def digest_of(parts: Iterable[str]) -> str:
    """SHA-256 over an ordered list of digests or other texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def written(context: RunContext | TaskContext, name: str, content: bytes, kind: str, title: str = "") -> Output:
    """Write a file into the step's folder, and describe it."""
    path = f"{context.folder}/{name}"
    context.store.write_bytes(path, content)
    return Output(path, len(content), hashlib.sha256(content).hexdigest(), kind, title)


def read_layer(context: RunContext, name: str, layer: str) -> gpd.GeoDataFrame:
    """Read a layer of a GeoPackage in the step's folder."""
    import geopandas as gpd

    # under its own name: GDAL doubts GeoPackages that are called otherwise, such as bytes in memory
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        path.write_bytes(context.store.read_bytes(f"{context.folder}/{name}"))
        return gpd.read_file(path, layer=layer)
