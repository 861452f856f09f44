"""The few settings that miehistod itself needs, read from the environment; knows no Django.

The names and defaults are those of miehisto_web/settings.py; docs/reference/settings.md has the whole table.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from miehistod.errors import CannotRun
from miehistod.saying import SAYING

DEFAULT_BIND = "127.0.0.1:14444"
# It becomes the name of a queue, where Celery takes a comma for the beginning of another one, and a host name
# that the site answers to, where "*" would be all.
NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?\Z")


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes:
        broker_url: "" when miehistod starts a Redis of its own.
        secret_key: "" when it is kept in a file.
        log_format: a key of SAYING.
    """

    state_dir: Path
    run_dir: Path
    log_dir: Path
    bind: str
    node: str
    user: str
    broker_url: str
    secret_key: str
    https: bool = False
    log_format: str = "text"

    @property
    def database_dir(self) -> Path:
        """The one folder below the state that the site's user may write."""
        return self.state_dir / "database"

    @property
    def redis_dir(self) -> Path:
        """Redis makes its socket itself, so it needs a folder of its own; RUN_DIR/redis.sock leads there."""
        return self.run_dir / "redis"

    @property
    def own_broker_url(self) -> str:
        """The address of the private Redis."""
        return f"redis+socket://{self.run_dir / 'redis.sock'}"

    @property
    def is_open(self) -> bool:
        """Whether strangers' requests come over the network as they are."""
        host = self.bind_address[0]
        with suppress(ValueError):
            return not self.https and not ip_address(host).is_loopback
        return not self.https and host != "localhost"

    @property
    def bind_address(self) -> tuple[str, int]:
        """Host and port to listen on; an IPv6 host without its brackets."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the settings.

    Raises:
        CannotRun: MIEHISTO_BIND is not HOST:PORT, MIEHISTO_NODE no name, or MIEHISTO_LOG_FORMAT unknown.
    """

    def folder(name: str, default: str) -> Path:
        return Path(environ.get(name) or default).absolute()

    settings = Settings(
        state_dir=folder("MIEHISTO_STATE_DIR", "/var/lib/miehisto"),
        run_dir=folder("MIEHISTO_RUN_DIR", "/run/miehisto"),
        log_dir=folder("MIEHISTO_LOG_DIR", "/var/log/miehisto"),
        bind=environ.get("MIEHISTO_BIND") or DEFAULT_BIND,
        node=environ.get("MIEHISTO_NODE") or socket.gethostname(),
        user=environ.get("MIEHISTO_USER") or "miehisto",
        broker_url=environ.get("CELERY_BROKER_URL", ""),
        secret_key=environ.get("MIEHISTO_SECRET_KEY", ""),
        https=environ.get("MIEHISTO_HTTPS", "").lower() in {"1", "true", "yes", "on"},
        log_format=environ.get("MIEHISTO_LOG_FORMAT") or "text",
    )
    host, _, port = settings.bind.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and int(port) < 65536):
        raise CannotRun(
            f"The site cannot listen on {settings.bind!r}.", "Give MIEHISTO_BIND the form HOST:PORT."
        )
    if settings.log_format not in SAYING:
        raise CannotRun(
            f"Logs cannot be written as {settings.log_format!r}.", "Set MIEHISTO_LOG_FORMAT to text or json."
        )
    if not NODE.match(settings.node):
        raise CannotRun(
            f"The node cannot be named {settings.node!r}.",
            "Give MIEHISTO_NODE letters, digits, dots, dashes and underscores, as a host's name has.",
        )
    if settings.broker_url == settings.own_broker_url:
        settings = replace(settings, broker_url="")
    return settings
