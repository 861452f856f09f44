"""Says whether a broker's address keeps strangers out. It knows no settings and no rows.

Whoever can write to the queue can have a node's jobs run, though only those that wait in the database. So a
broker that others reach must ask who comes, and be encrypted on the way.
"""

import stat
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

REMEDY = (
    "Leave CELERY_BROKER_URL empty for a private Redis, or write rediss://:PASSWORD@HOST:PORT/0 for another"
    " (redis:// will do on this very host); docs/settings.md tells more."
)


def fault(url: str) -> str:
    """Return why a broker at this address is refused, as a sentence; "" if it is not."""
    parts = urlsplit(url)
    if parts.scheme in {"redis+socket", "unix"}:
        return _socket_fault(Path(unquote(parts.path)), bool(parts.password))
    if parts.scheme not in {"redis", "rediss"}:
        return f"The broker's address begins with {parts.scheme or 'nothing'!r}; Miehistö's queue is a Redis."
    host = parts.hostname or "localhost"
    if not parts.password:
        return (
            f"The broker at {host} is reached over TCP without a password, so anybody there could send jobs."
        )
    if parts.scheme == "redis":
        over_network = f"The broker at {host} is reached over the network without TLS, for all to read."
        return "" if _is_loopback(host) else over_network
    if any("none" in value.lower() for value in parse_qs(parts.query).get("ssl_cert_reqs", [])):
        return f"The certificate of the broker at {host} is not verified, so anybody could be it."
    return ""


def _socket_fault(socket: Path, has_password: bool) -> str:
    if has_password:
        return ""
    try:
        mode = socket.stat().st_mode
        folders = [folder.stat().st_mode for folder in socket.resolve().parents]
    except OSError:
        return ""  # it is not there yet, or not for us
    if mode & stat.S_IWOTH and all(folder & stat.S_IXOTH for folder in folders):
        return f"Every user of this host may connect to the broker's socket {socket}."
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_open(url: str) -> None:
    """Raise ImproperlyConfigured, with what to do, for an address that `fault` finds fault with."""
    sentence = fault(url)
    if sentence:
        raise ImproperlyConfigured(f"{sentence}\n  remedy: {REMEDY}")
