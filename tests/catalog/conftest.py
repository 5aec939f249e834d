"""Small catalogues on disk, and a STAC API with a file server on the local machine."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import hypothesis
import pytest
from shapely.geometry import box, mapping, shape

# machines differ in speed, and a test that fails must fail again
hypothesis.settings.register_profile("geoeco", deadline=None, derandomize=True)
hypothesis.settings.load_profile("geoeco")

CONFORMANCE = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
]


def make_item(
    name: str,
    day: str = "2021-06-15",
    *,
    bbox: tuple[float, float, float, float] | None = (5.0, 50.0, 6.0, 51.0),
    cloud: float | None = 10.0,
    collection: str | None = "sentinel-2-l2a",
    assets: dict[str, Any] | None = None,
    **properties: Any,
) -> dict[str, Any]:
    """A plain STAC item as a dictionary."""
    stated: dict[str, Any] = {"datetime": f"{day}T10:30:00Z", **properties}
    if cloud is not None:
        stated["eo:cloud_cover"] = cloud
    record: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "geometry": None if bbox is None else mapping(box(*bbox)),
        "properties": stated,
        "assets": assets if assets is not None else {"blue": {"href": "./B02.tif", "type": "image/tiff"}},
        "links": [],
    }
    if bbox is not None:
        record["bbox"] = list(bbox)
    if collection is not None:
        record["collection"] = collection
    return record


def write_json(path: Path, record: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def write_catalog(folder: Path, items: list[dict[str, Any]], *, collection: str = "sentinel-2-l2a") -> Path:
    """Catalogue -> collection -> items, with relative links, as pystac lays them out."""
    write_json(
        folder / "catalog.json",
        {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "small",
            "description": "small",
            "links": [
                {"rel": "root", "href": "./catalog.json"},
                {"rel": "child", "href": f"./{collection}/collection.json"},
            ],
        },
    )
    write_json(
        folder / collection / "collection.json",
        {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": collection,
            "description": "small",
            "license": "proprietary",
            "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
            "links": [
                {"rel": "root", "href": "../catalog.json"},
                {"rel": "parent", "href": "../catalog.json"},
                *({"rel": "item", "href": f"./{item['id']}/{item['id']}.json"} for item in items),
            ],
        },
    )
    for item in items:
        write_json(folder / collection / item["id"] / f"{item['id']}.json", item)
    return folder / "catalog.json"


def _answers(item: dict[str, Any], asked: dict[str, Any]) -> bool:
    if asked.get("collections") and item.get("collection") not in asked["collections"]:
        return False
    if asked.get("intersects") and not shape(item["geometry"]).intersects(shape(asked["intersects"])):
        return False
    if asked.get("datetime"):
        ends = asked["datetime"].split("/")
        start, end = (None if e in ("", "..") else dt.datetime.fromisoformat(e) for e in (ends[0], ends[-1]))
        when = dt.datetime.fromisoformat(item["properties"]["datetime"])
        if (start and when < start) or (end and when > end):
            return False
    return True


class StacServer:
    """A STAC API and a file server; what it answers can be spoilt on purpose."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.page = 2
        self.method = "POST"
        self.conformance = list(CONFORMANCE)
        self.folder: Path | None = None
        self.requests: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        self.spoil: Callable[[str], int | None] = lambda path: None
        self.endless = False
        self.hang = threading.Event()
        self.hanging: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Keep quiet."""

            def do_GET(self) -> None:
                self._serve({key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self) -> None:
                self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

            def _serve(self, asked: dict[str, Any]) -> None:
                path = urlsplit(self.path).path
                server.requests.append((self.command, path, asked, dict(self.headers)))
                if path in server.hanging:
                    server.hang.wait(20)
                    return
                status = server.spoil(path)
                body: bytes | None = None
                if status is None:
                    body = server.answer(self.command, path, asked)
                    status = 200 if body is not None else 404
                body = body if body is not None else json.dumps({"code": status}).encode()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.hang.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, command: str, path: str, asked: dict[str, Any]) -> bytes | None:
        if path in ("/", ""):
            return json.dumps(self._landing()).encode()
        if path == "/conformance":
            return json.dumps({"conformsTo": self.conformance}).encode()
        if path == "/collections":
            return json.dumps({"collections": self._collections(), "links": []}).encode()
        if path == "/search":
            return json.dumps(self._search(command, asked)).encode()
        if path.startswith("/static/") and self.folder is not None:
            file = self.folder / path.removeprefix("/static/")
            return file.read_bytes() if file.is_file() else None
        return None

    def _landing(self) -> dict[str, Any]:
        return {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "local-api",
            "title": "A local API",
            "description": "for tests",
            "conformsTo": self.conformance,
            "links": [
                {"rel": "self", "href": f"{self.url}/"},
                {"rel": "root", "href": f"{self.url}/"},
                {"rel": "conformance", "href": f"{self.url}/conformance"},
                {"rel": "data", "href": f"{self.url}/collections"},
                {"rel": "search", "href": f"{self.url}/search", "method": self.method, "type": "application/geo+json"},
            ],
        }

    def _collections(self) -> list[dict[str, Any]]:
        names = sorted({item["collection"] for item in self.items})
        return [
            {
                "type": "Collection",
                "stac_version": "1.0.0",
                "id": name,
                "description": name,
                "license": "proprietary",
                "extent": {
                    "spatial": {"bbox": [[-180, -90, 180, 90]]},
                    "temporal": {"interval": [["2015-06-27T00:00:00Z", None]]},
                },
                "links": [{"rel": "self", "href": f"{self.url}/collections/{name}"}],
            }
            for name in names
        ]

    def _search(self, command: str, asked: dict[str, Any]) -> dict[str, Any]:
        if command == "GET":
            written = {**asked}
            if isinstance(asked.get("collections"), str):
                asked["collections"] = asked["collections"].split(",")
            if isinstance(asked.get("intersects"), str):
                asked["intersects"] = json.loads(asked["intersects"])
        found = [item for item in self.items if _answers(item, asked)]
        start = int(asked.get("token", 0))
        page = found[start : start + self.page]
        links: list[dict[str, Any]] = []
        if self.endless or start + self.page < len(found):
            token = 0 if self.endless else start + self.page
            if command == "GET":
                links = [
                    {
                        "rel": "next",
                        "href": f"{self.url}/search?{urlencode({**written, 'token': token})}",
                        "method": "GET",
                    }
                ]
            else:
                links = [
                    {"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": {**asked, "token": token}}
                ]
        return {"type": "FeatureCollection", "features": page, "links": links}


@pytest.fixture
def server() -> Iterator[StacServer]:
    running = StacServer()
    yield running
    running.close()


@pytest.fixture
def item() -> Callable[..., dict[str, Any]]:
    return make_item


@pytest.fixture
def catalog_on_disk(tmp_path: Path) -> Callable[..., Path]:
    def write(items: list[dict[str, Any]], **options: Any) -> Path:
        return write_catalog(tmp_path / "catalogue", items, **options)

    return write
