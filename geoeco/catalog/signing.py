"""Signing: turning an asset's address into one that the archive answers, inside the task that reads it.

Tokens expire, so nothing is signed ahead of time. The methods are functions registered in code or by packages (entry
points of group ``geoeco.signers``); a recipe can only name one.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import overload

import pystac

from geoeco.catalog.faults import translated
from geoeco.errors import CatalogError

__all__ = ["Signer", "register_signer", "sign", "signers"]

#: Takes an absolute href, gives the signed one.
Signer = Callable[[str], str]

ENTRY_POINTS = "geoeco.signers"
_SIGNERS: dict[str, Signer] = {}


def register_signer(name: str, signer: Signer) -> None:
    """Make a signing method known under a name; a later one replaces an earlier one.

    Parameters
    ----------
    name : str
    signer : callable
        ``signer(href) -> href``. It runs in the task, in several threads, so it keeps its own cache and locks.
        Registered in code it is known to this process only: workers need it through an entry point of group
        ``geoeco.signers`` or a preload script.
    """
    _SIGNERS[name] = signer


def _planetary_computer(href: str) -> str:
    try:
        import planetary_computer
    except ImportError as error:
        raise CatalogError(
            "signing for Planetary Computer needs the package planetary-computer",
            what_to_do="pip install 'geoeco[cluster]'",
            code="catalog-signer",
        ) from error
    return str(planetary_computer.sign_url(href))


register_signer("planetary-computer", _planetary_computer)


def signers() -> tuple[str, ...]:
    """Names of the signing methods known to this process, entry points included."""
    return tuple(sorted({*_SIGNERS, *(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))}))


def _signer(method: str) -> Signer:
    if method not in _SIGNERS:
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
            if point.name == method:
                register_signer(method, point.load())
                break
        else:
            raise CatalogError(
                f"there is no signing method {method!r}",
                what_to_do=f"use one of {', '.join(signers())}, or register it with geoeco.catalog.register_signer",
                code="catalog-signer",
            )
    return _SIGNERS[method]


@overload
def sign(item: pystac.Item, method: str | None) -> pystac.Item: ...
@overload
def sign(item: str, method: str | None) -> str: ...
def sign(item: pystac.Item | str, method: str | None) -> pystac.Item | str:
    """Sign an href, or all assets of an item.

    Parameters
    ----------
    item : pystac.Item or str
        An item (a signed copy is returned) or an absolute href.
    method : str or None
        ``"planetary-computer"``, or a name that was registered; None signs nothing.

    Raises
    ------
    CatalogError
        If there is no such method, or the signing service refuses for good.
    TransientError
        If the signing service does not answer, or not now.
    """
    if method is None:
        return item
    signer = _signer(method)
    if isinstance(item, str):
        return _signed(item, signer, method)
    copy = item.clone()
    for asset in copy.assets.values():
        asset.href = _signed(asset.href, signer, method)
    return copy


def _signed(href: str, signer: Signer, method: str) -> str:
    with translated(f"signing {href} by {method}"):
        return signer(href)
