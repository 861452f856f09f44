"""Turns environment values into Django's shapes: database addresses, host lists, the secret key file.

It knows no setting by name; `settings.py` reads the environment.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

SQLITE_OPTIONS: dict[str, Any] = {
    # IMMEDIATE takes the write lock when a transaction begins, so that a reader never has to become a
    # writer half way (which SQLite answers at once with "database is locked", whatever the timeout).
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    # In WAL mode NORMAL can lose the last commits at a power cut but never corrupts the file.
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}

POSTGRESQL_OPTIONS: dict[str, Any] = {
    # A database host that falls silent (it lost its power, a firewall forgot the connection) would hold the
    # worker's threads, the one that minds supervisors too, for as long as the kernel goes on trying: two
    # hours. On a socket of this host libpq passes these over.
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""Seconds but the last, which is in ms; see libpq's connection parameters. An address may say others."""


def database_from_url(url: str) -> dict[str, Any]:
    """Return Django's DATABASES entry for `sqlite:///PATH` or `postgres://USER:PASSWORD@HOST:PORT/NAME`.

    Raises ImproperlyConfigured for any other scheme.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        name = unquote(parts.path.removeprefix("/"))
        if not name:
            raise ImproperlyConfigured("DATABASE_URL: sqlite:///PATH needs a path")
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            "OPTIONS": dict(SQLITE_OPTIONS),
            "TEST": {"NAME": f"{name}.test"},
        }
    if parts.scheme in {"postgres", "postgresql"}:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": parts.hostname or "",
            "PORT": str(parts.port or ""),
            "OPTIONS": POSTGRESQL_OPTIONS | dict(parse_qsl(parts.query)),
        }
    raise ImproperlyConfigured(f"DATABASE_URL: cannot use the scheme {parts.scheme!r}; sqlite or postgres")


def secret_key(value: str, path: Path) -> str:
    """Return `value`, else the content of the file `path`, else a random key that lives as long as this
    process (enough for migrate and for type checks; miehistod makes the file before it starts the site).
    """
    if value:
        return value
    try:
        return path.read_text(encoding="ascii").strip() or get_random_secret_key()
    except (FileNotFoundError, PermissionError):
        return get_random_secret_key()


def newest_tini(folder: Path) -> str:
    """Return the path of the highest tini-VERSION in `folder`, or "" when there is none."""

    def version(path: Path) -> list[int]:
        return [int(part) for part in path.name.removeprefix("tini-").split(".") if part.isdigit()]

    found = sorted(folder.glob("tini-*"), key=version)
    return str(found[-1]) if found else ""


def is_loopback(bind: str) -> bool:
    """Tell whether only this host itself can reach HOST:PORT."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of_bind(bind: str) -> list[str]:
    """Return the host of HOST:PORT as ALLOWED_HOSTS spells it.

    An address that means "every interface" is no host's name: who opens it names the hosts himself.
    """
    host = bind.rpartition(":")[0].strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        return [host] if host else []
    if address.is_unspecified:
        return []
    return [f"[{host}]" if address.version == 6 else host]
