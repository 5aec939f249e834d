"""Does this machine have what geoeco needs? The checks behind ``geoeco doctor``, each independent of the others."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from geoeco.engine.clusters import load_presets, presets_file
from geoeco.engine.planning import IDLE_WORKER_BYTES, machine_memory, megabytes, processors
from geoeco.engine.provenance import geoeco_revision, package_versions

__all__ = ["Check", "check_environment"]

#: Optional packages by the extra that brings them, with what they are for.
OPTIONAL = {
    "distributed": ("cluster", "--cluster local, tcp:// and presets"),
    "s3fs": ("cluster", "run folders and catalogues on s3://"),
    "dask_jobqueue": ("cluster", "SLURM presets"),
    "dask_gateway": ("cluster", "gateway presets"),
    "dask_kubernetes": ("cluster", "Kubernetes presets"),
    "planetary_computer": ("cluster", "signing for the Planetary Computer"),
    "torch": ("ml", "training and mapping"),
    "torchgeo": ("ml", "pretrained weights"),
}
GDAL_DRIVERS = ("GTiff", "COG", "VRT", "MEM", "PNG")


@dataclass(frozen=True)
class Check:
    """One finding: ``state`` is ``ok``, ``missing`` (something optional) or ``broken``."""

    name: str
    state: str
    text: str
    what_to_do: str = ""


def check_environment() -> list[Check]:
    """Run all checks; none raises."""
    found: list[Check] = []
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        _packages,
        _gdal,
        _proj,
        _numba,
        _optional,
        _temporary,
        _machine,
        _presets,
    )
    for check in checks:
        try:
            found += list(check())
        except Exception as error:
            found.append(Check(check.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}"))
    return found


def _packages() -> Iterator[Check]:
    versions = package_versions()
    revision = geoeco_revision()
    own = versions.pop("geoeco", None)
    yield Check(
        "geoeco", "ok", f"{own or 'not installed as a package'}" + (f", revision {revision}" if revision else "")
    )
    yield Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _gdal() -> Iterator[Check]:
    import numpy as np
    import rasterio
    from rasterio.drivers import raster_driver_extensions
    from rasterio.env import Env

    with Env() as env:
        present = set(env.drivers())
    missing = [name for name in GDAL_DRIVERS if name not in present]
    yield Check(
        "GDAL drivers",
        "broken" if missing else "ok",
        f"missing: {', '.join(missing)}"
        if missing
        else f"{len(present)} raster drivers, {len(raster_driver_extensions())} extensions",
        "install rasterio from PyPI or conda-forge" if missing else "",
    )
    with tempfile.TemporaryDirectory(prefix="geoeco-") as folder:
        for codec in ("DEFLATE", "ZSTD", "LERC_ZSTD"):
            path = str(Path(folder) / f"{codec}.tif")
            try:
                with rasterio.open(
                    path,
                    "w",
                    driver="GTiff",
                    height=16,
                    width=16,
                    count=1,
                    dtype="uint8",
                    compress=codec,
                    crs="EPSG:32631",
                    transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
                ) as file:
                    file.write(np.full((1, 16, 16), 7, "uint8"))
                with rasterio.open(path) as file:
                    fine = bool((file.read() == 7).all())
            except Exception:
                fine = False
            needed = codec != "LERC_ZSTD"
            state = "ok" if fine else "broken" if needed else "missing"
            yield Check(f"GeoTIFF with {codec}", state, "reads back as written" if fine else "cannot be written")


def _proj() -> Iterator[Check]:
    import pyproj

    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True).transform(3.0, 0.0)
    fine = abs(x - 500000.0) < 1e-6 and abs(y) < 1e-6
    hints = [f"{name}={os.environ[name]}" for name in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if name in os.environ]
    yield Check(
        "PROJ data",
        "ok" if fine else "broken",
        ", ".join([pyproj.datadir.get_data_dir(), *hints]),
        "" if fine else "unset PROJ_LIB, PROJ_DATA and GDAL_DATA: they point to another PROJ's files",
    )
    import rasterio.warp

    xs, _ = rasterio.warp.transform("EPSG:4326", "EPSG:32631", [3.0], [0.0])
    fine = abs(xs[0] - 500000.0) < 1e-6
    yield Check("GDAL's PROJ", "ok" if fine else "broken", "transforms" if fine else f"gives x = {xs[0]}")


def _numba() -> Iterator[Check]:
    import numba

    add = numba.njit(lambda a, b: a + b)
    fine = add(2, 3) == 5
    yield Check("numba", "ok" if fine else "broken", f"compiles; {numba.get_num_threads()} threads")


def _optional() -> Iterator[Check]:
    for name, (extra, purpose) in OPTIONAL.items():
        there = importlib.util.find_spec(name) is not None
        yield Check(
            name,
            "ok" if there else "missing",
            f"{'installed' if there else 'not installed'} ({purpose})",
            "" if there else f"pip install 'geoeco[{extra}]', if you need it",
        )


def _temporary() -> Iterator[Check]:
    folder = Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(dir=folder, prefix="geoeco-") as file:
        file.write(b"geoeco")
        file.flush()
    free = shutil.disk_usage(folder).free
    yield Check(
        "temporary folder",
        "ok" if free > 2**30 else "broken",
        f"{folder}, {megabytes(free)} free",
        "" if free > 2**30 else "make room, or set TMPDIR to a larger disk",
    )


def _machine() -> Iterator[Check]:
    memory = machine_memory()
    enough = memory > 2 * IDLE_WORKER_BYTES
    yield Check(
        "machine",
        "ok" if enough else "broken",
        f"{processors()} processors, {megabytes(memory)} of memory",
        "" if enough else f"a worker needs {megabytes(IDLE_WORKER_BYTES)} before it does anything",
    )


def _presets() -> Iterator[Check]:
    presets = load_presets()
    text = ", ".join(f"{name} ({preset.kind})" for name, preset in presets.items()) or "none"
    yield Check("cluster presets", "ok", f"{presets_file()}: {text}")
