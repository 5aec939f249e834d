"""Signing happens where it is asked for, by functions registered in code."""

from __future__ import annotations

import importlib.metadata

import pystac
import pytest
import requests

from geoeco.catalog import register_signer, sign, signers
from geoeco.catalog import signing as module
from geoeco.errors import CatalogError, TransientError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(module, "_SIGNERS", dict(module._SIGNERS))


@pytest.fixture
def scene(item):
    return pystac.Item.from_dict(item("a", assets={"blue": {"href": "https://h/B02.tif", "type": "image/tiff"}}))


def test_without_a_method_nothing_is_signed(scene):
    assert sign(scene, None) is scene
    assert sign("https://h/B02.tif", None) == "https://h/B02.tif"


def test_a_registered_signer_signs_hrefs_and_copies_of_items(scene):
    register_signer("token", lambda href: f"{href}?token=1")
    assert sign("https://h/B02.tif", "token") == "https://h/B02.tif?token=1"
    signed = sign(scene, "token")
    assert signed.assets["blue"].href == "https://h/B02.tif?token=1"
    assert scene.assets["blue"].href == "https://h/B02.tif"


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(CatalogError, match=r"(?s)'os\.system'.*planetary-computer"):
        sign("https://h/B02.tif", "os.system")


def test_packages_bring_signers_by_entry_point(monkeypatch):
    class Point:
        name = "from-a-package"

        @staticmethod
        def load():
            return lambda href: f"{href}?package"

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [Point] * (group == "geoeco.signers"))
    assert "from-a-package" in signers()
    assert sign("https://h/x", "from-a-package") == "https://h/x?package"


def failing(error):
    def signer(href):
        raise error

    return signer


def http_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    "error", [requests.Timeout("slow"), requests.ConnectionError("reset"), http_error(503), http_error(429)]
)
def test_a_signing_service_that_is_away_is_transient(error):
    register_signer("away", failing(error))
    with pytest.raises(TransientError, match=r"(?s)signing https://h/x by away"):
        sign("https://h/x", "away")


@pytest.mark.parametrize("error", [http_error(404), ValueError("no such account")])
def test_a_signing_service_that_refuses_is_final(error):
    register_signer("refuses", failing(error))
    with pytest.raises(CatalogError, match=r"(?s)signing https://h/x by refuses"):
        sign("https://h/x", "refuses")


def test_geoecos_own_errors_pass_unchanged():
    register_signer("own", failing(TransientError("token service busy")))
    with pytest.raises(TransientError, match="token service busy"):
        sign("https://h/x", "own")


def test_planetary_computer_signs_its_own_storage_only(monkeypatch):
    computer = pytest.importorskip("planetary_computer")
    seen = []
    monkeypatch.setattr(computer, "sign_url", lambda href: seen.append(href) or f"{href}?sas")
    href = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/x.tif"
    assert sign(href, "planetary-computer") == f"{href}?sas"
    assert seen == [href]


def test_planetary_computer_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "planetary_computer", None)
    with pytest.raises(CatalogError, match=r"geoeco\[cluster\]"):
        sign("https://h/x", "planetary-computer")
