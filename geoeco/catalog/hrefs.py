"""Where an asset may point: hrefs made absolute and held to the catalogue they come from.

A catalogue is somebody else's text. Its items may point to the data that lie with it or in a known public archive,
never to this machine's other files, never through GDAL's virtual file systems or driver prefixes.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from geoeco.errors import CatalogError

__all__ = ["PUBLIC_ARCHIVES", "RASTER_DRIVERS", "HrefPolicy", "absolute", "is_remote"]

#: Where the large public Sentinel-2 catalogues keep their files: always allowed, so that a saved search can be opened.
#: A host beginning with a dot stands for all hosts that end in it.
PUBLIC_ARCHIVES: tuple[str, ...] = (
    "https://sentinel-cogs.s3.us-west-2.amazonaws.com/",
    "https://sentinel-s2-l2a.s3.amazonaws.com/",
    "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/",
    "https://storage.googleapis.com/gcp-public-data-sentinel-2/",
    "https://sentinel2l2a01.blob.core.windows.net/",
    "https://eodata.dataspace.copernicus.eu/",
    "https://download.dataspace.copernicus.eu/",
    "https://zipper.dataspace.copernicus.eu/",
    "s3://sentinel-cogs/",
    "s3://sentinel-s2-l2a/",
    "s3://e84-earth-search-sentinel-data/",
    "s3://eodata/",
    "gs://gcp-public-data-sentinel-2/",
)

#: GDAL drivers with which assets are to be opened. GDAL otherwise goes by content, and a VRT that calls itself
#: ``.tif`` may name any file of this machine.
RASTER_DRIVERS: tuple[str, ...] = ("GTiff", "JP2OpenJPEG", "JP2ECW", "JP2KAK")

_HTTP = ("http", "https")
_OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-_]*):")
_BAD_CHARACTERS = re.compile(r"[\x00-\x1f<>]")


def is_remote(href: str) -> bool:
    """Whether an absolute href names something that is not a file of this machine."""
    return _scheme(href) not in ("", "file")


def _scheme(href: str) -> str:
    found = _SCHEME.match(href)
    return found[1].lower() if found else ""


def _local_path(href: str) -> str:
    """Path of a ``file:`` URL or plain path."""
    if _scheme(href) != "file":
        return href
    parts = urlsplit(href)
    if parts.netloc not in ("", "localhost"):
        raise ValueError("a file: URL with a host")
    return unquote(parts.path)


def absolute(href: str, base: str) -> str:
    """Make an href absolute against the document it stands in.

    Parameters
    ----------
    href : str
        As written: relative, an absolute path, or a URL.
    base : str
        Absolute path or URL of the document.

    Raises
    ------
    ValueError
        If the href is of a form that geoeco does not follow; the message says which.
    """
    if not href or _BAD_CHARACTERS.search(href):
        raise ValueError("empty, or with characters that no path has")
    scheme = _scheme(href)
    if scheme and scheme not in ("file", *_HTTP, *_OBJECT_STORES):
        raise ValueError(f"{scheme}: is not a place where geoeco reads files")
    if scheme in (*_HTTP, *_OBJECT_STORES):
        if "\\" in href or " " in href:
            raise ValueError("a URL with characters that programs read differently")
        return href
    if not is_remote(base):
        # joined as text: an absolute href replaces the folder, and searches join tens of thousands
        path = os.path.normpath(posixpath.join(_local_path(base).rpartition("/")[0], _local_path(href)))
        if path.lstrip("/").startswith("vsi"):
            raise ValueError("a GDAL virtual file system")
        return path
    if scheme == "file" or href.startswith("/vsi"):
        raise ValueError("a file of this machine, named by a remote catalogue")
    if _scheme(base) in _HTTP:
        return urljoin(base, href)
    root = urlsplit(base)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(root.path), href))
    return f"{root.scheme}://{root.netloc}{path}"


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _real(path: str) -> str:
    """Path with symbolic links followed; folders are remembered because catalogues hold many files of few folders."""
    folder, name = os.path.split(path)
    real = os.path.join(_real_folder(folder), name)  # noqa: PTH118  # as text: tens of thousands of paths a search
    return os.path.realpath(real) if os.path.islink(real) else real  # noqa: PTH114


def _host(netloc: str) -> str:
    """Host and port, without user name."""
    return netloc.rpartition("@")[2].lower()


def _below_url(href: str, prefix: str) -> bool:
    this, that = urlsplit(href), urlsplit(prefix)
    if this.scheme.lower() != that.scheme.lower() or "@" in this.netloc:
        return False
    host, allowed = _host(this.netloc), _host(that.netloc)
    if not (host == allowed or (allowed.startswith(".") and host.endswith(allowed))):
        return False
    folder = that.path.rstrip("/") + "/"
    path = posixpath.normpath(unquote(this.path) or "/")
    return path.startswith(folder) or path == that.path or folder == "/"


@dataclass(frozen=True)
class HrefPolicy:
    """What the assets and links of one catalogue may point to.

    Attributes
    ----------
    root : str
        Absolute path or URL of the document that the user opened.
    allow : tuple of str
        Further folders or URL prefixes, as the user gave them.
    any_remote : bool
        Whether every http(s) and object-store address is allowed (APIs keep their data elsewhere by design).
    """

    root: str
    allow: tuple[str, ...] = ()
    any_remote: bool = False

    def check(self, href: str, base: str) -> str:
        """Make an href absolute, if it may be followed.

        Raises
        ------
        ValueError
            With the reason, if it may not.
        """
        target = absolute(href, base)
        if urlsplit(target).path.lower().endswith(".vrt"):
            raise ValueError("a VRT, which can name any other file")
        if is_remote(target):
            if self.any_remote or self._remote_allowed(target):
                return target
            raise ValueError("another host than the catalogue's")
        if is_remote(self.root):
            raise ValueError("a file of this machine, named by a remote catalogue")
        real = _real(target)
        folders = [str(Path(self.root).parent), *(p for p in self.allow if not is_remote(p))]
        if not any(_inside(real, _real_folder(os.path.abspath(_local_path(f)))) for f in folders):  # noqa: PTH100
            raise ValueError("outside the catalogue's own folder")
        return target

    def _remote_allowed(self, target: str) -> bool:
        own = []
        if is_remote(self.root):
            parts = urlsplit(self.root)
            own = [f"{parts.scheme}://{parts.netloc}/"]
        prefixes: Iterable[str] = (*own, *(p for p in self.allow if is_remote(p)), *PUBLIC_ARCHIVES)
        return any(_below_url(target, prefix) for prefix in prefixes)

    def refuse(self, error: ValueError, href: str, where: str) -> CatalogError:
        """Make the error that names what was refused, where it stands and how to allow it."""
        return CatalogError(
            f"refused to follow {href!r}: {error}",
            where=where,
            what_to_do="if you trust it, name its folder or URL prefix in `allow`; GDAL prefixes and VRTs never pass",
            code="catalog-href",
        )


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
