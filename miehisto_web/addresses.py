"""Where a request really comes from, when proxies stand before the site."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

UNIX = "unix"
Proxy = IPv4Network | IPv6Network | str


def proxies(names: Sequence[str]) -> list[Proxy]:
    """Return the networks of MIEHISTO_PROXIES; "unix" stands for whoever uses the node's own socket.

    Raises ImproperlyConfigured for what is neither an address nor a network.
    """
    try:
        return [name if name == UNIX else ip_network(name.strip()) for name in names]
    except ValueError as error:
        raise ImproperlyConfigured(f"MIEHISTO_PROXIES: {error}") from error


def client_address(peer: str, forwarded: str, trusted: Sequence[Proxy]) -> str:
    """Return the address of who asks.

    peer: the other end of the connection, "" on the unix socket. forwarded: X-Forwarded-For, to which each
    proxy adds on the right whom it was asked by. Anybody may write the rest, so it is read from the right,
    and only as far as proxies of our own wrote it. A proxy's word that is no address ends the reading.
    """
    here = peer or UNIX
    for said in reversed(forwarded.split(",")):
        if not _is_trusted(here, trusted):
            break
        address = _address(said)
        if address is None:
            break
        here = str(address)
    return here


def address_for_axes(request: HttpRequest) -> str | None:
    """Return the address as `middleware.Front` left it; None for the node's own socket."""
    return request.META.get("REMOTE_ADDR") or None


def _is_trusted(place: str, trusted: Sequence[Proxy]) -> bool:
    if place == UNIX:
        return UNIX in trusted
    address = _address(place)
    return any(address in proxy for proxy in trusted if address and not isinstance(proxy, str))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.strip())
    except ValueError:
        return None
