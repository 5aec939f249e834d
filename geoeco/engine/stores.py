"""The run folder: a local path or an fsspec URL behind one small set of whole-file reads and writes.

Every write is all or nothing: temporary file, then rename, on a file system; one PUT in an object store. Large
outputs (Zarr, rasters) are written by the steps themselves, by `RunStore.url`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from geoeco.errors import OutputError

__all__ = ["RunStore"]


class RunStore:
    """A run folder.

    Parameters
    ----------
    url : str or Path
        A local path, or an fsspec URL such as ``s3://bucket/run``.

    Notes
    -----
    Pickles to its address alone, so it travels to workers; credentials come from the environment of each.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        scheme = urlsplit(text).scheme
        self.is_local = len(scheme) <= 1 or scheme == "file"
        if self.is_local:
            text = text.removeprefix("file://")
            self.root = str(Path(text).absolute())
        else:
            self.root = text.rstrip("/")
        self._fs: Any = None

    def __repr__(self) -> str:
        return f"RunStore({self.root!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunStore) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "is_local": self.is_local, "_fs": None}

    @property
    def fs(self) -> Any:
        """The fsspec file system of a remote run folder."""
        if self._fs is None:
            import fsspec

            try:
                # Listings must show what other processes wrote a moment ago.
                options = {} if urlsplit(self.root).scheme == "memory" else {"use_listings_cache": False}
                self._fs, _ = fsspec.core.url_to_fs(self.root, **options)
            except ImportError as error:
                raise OutputError(
                    f"the run folder needs a package that is not installed: {error}",
                    where=self.root,
                    what_to_do="pip install 'geoeco[cluster]' (s3fs), or gcsfs or adlfs for other clouds",
                ) from error
        return self._fs

    def url(self, name: str = "") -> str:
        """Full path or URL of a name in the run folder, for libraries that open it themselves.

        Raises
        ------
        OutputError
            If the name leads out of the run folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise OutputError(f"{name!r} is not a name inside the run folder", where=self.root)
        if not name:
            return self.root
        return str(Path(self.root, *path.parts)) if self.is_local else f"{self.root}/{path}"

    def local(self, name: str = "") -> Path:
        """Local path of a name.

        Raises
        ------
        OutputError
            If the run folder is remote.
        """
        if not self.is_local:
            raise OutputError("the run folder is not on a local disk", where=self.root)
        return Path(self.url(name))

    def read_bytes(self, name: str) -> bytes:
        """Whole content of a file.

        Raises
        ------
        FileNotFoundError
        """
        if self.is_local:
            return self.local(name).read_bytes()
        data: bytes = self.fs.cat_file(self.url(name))
        return data

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file, all or nothing."""
        if not self.is_local:
            self.fs.pipe_file(self.url(name), data)
            return
        path = self.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def read_json(self, name: str) -> Any:
        """JSON content of a file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any, *, indent: int | None = 1) -> None:
        """Write JSON, all or nothing; keys stay in their order."""
        self.write_bytes(name, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())

    def put_file(self, local: str | Path, name: str) -> None:
        """Move a finished local file into the run folder, all or nothing."""
        if not self.is_local:
            self.fs.put_file(str(local), self.url(name))
            return
        path = self.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            shutil.copyfile(local, temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def exists(self, name: str) -> bool:
        """Whether a file (or, locally, a folder) is there."""
        if self.is_local:
            return self.local(name).exists()
        return bool(self.fs.exists(self.url(name)))

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; 0 for a folder; None if it is not there."""
        if self.is_local:
            path = self.local(name)
            return path.stat().st_size if path.is_file() else 0 if path.is_dir() else None
        try:
            info = self.fs.info(self.url(name))
        except FileNotFoundError:
            return None
        return int(info.get("size") or 0)

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all files below a folder, by name relative to the run folder."""
        if self.is_local:
            root = Path(self.root)
            top = self.local(folder)
            return {
                path.relative_to(root).as_posix(): path.stat().st_size
                for path in sorted(top.rglob("*"))
                if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".tmp"))
            }
        base = self.fs._strip_protocol(self.root).rstrip("/") + "/"
        try:
            found = self.fs.find(self.url(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {name.removeprefix(base): int(info["size"] or 0) for name, info in sorted(found.items())}

    def read_many(self, folder: str, suffix: str) -> dict[str, bytes]:
        """Contents of all files below a folder whose names end with `suffix`."""
        if self.is_local:
            return {name: self.read_bytes(name) for name in self.sizes(folder) if name.endswith(suffix)}
        names = [name for name in self.sizes(folder) if name.endswith(suffix)]
        if not names:
            return {}
        strip = self.fs._strip_protocol
        found = self.fs.cat([self.url(name) for name in names])
        if isinstance(found, bytes):
            return {names[0]: found}
        by_path = {strip(path): data for path, data in found.items()}
        return {name: by_path[strip(self.url(name))] for name in names}

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if it is there."""
        if not name:
            raise OutputError("refusing to remove a whole run folder", where=self.root)
        if self.is_local:
            path = self.local(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        elif self.fs.exists(self.url(name)):
            self.fs.rm(self.url(name), recursive=True)

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none yet; False if there is (or, remotely, if that cannot be told)."""
        if self.is_local:
            path = self.local(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
            return True
        if self.exists(name):
            return False
        try:
            self.fs.pipe_file(self.url(name), data, mode="create")
        except FileExistsError:
            return False
        return True
