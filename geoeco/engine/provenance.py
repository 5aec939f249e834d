"""Where a run's outputs come from: versions, GDAL settings, the revision of geoeco, hosts."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "geoeco_revision", "package_versions"]

#: Packages whose versions can change a result or break a cluster; also compared between driver and workers.
PACKAGES = (
    "geoeco",
    "numpy",
    "xarray",
    "zarr",
    "rasterio",
    "odc-geo",
    "pyproj",
    "shapely",
    "pandas",
    "geopandas",
    "pystac",
    "pydantic",
    "numba",
    "scipy",
    "dask",
    "distributed",
    "torch",
    "torchgeo",
)


def package_versions() -> dict[str, str]:
    """Versions of Python, GDAL, PROJ and the packages of `PACKAGES` that are installed."""
    return dict(_versions())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import pyproj
    import rasterio

    versions["gdal"] = str(rasterio.__gdal_version__)
    versions["proj"] = str(pyproj.proj_version_str)
    return tuple(versions.items())


@functools.cache
def geoeco_revision() -> str | None:
    """Git revision of geoeco where it runs from a checkout; ``+changes`` if files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603
        ["git", "-C", str(root), *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout.strip()


def describe(gdal: dict[str, str]) -> dict[str, Any]:
    """Provenance of this session, for ``run.json``."""
    return {
        "versions": package_versions(),
        "geoeco_revision": geoeco_revision(),
        "gdal_settings": dict(sorted(gdal.items())),
        "platform": platform.platform(),
    }
