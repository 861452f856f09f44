"""A container engine of the tests' own: Debian 13's, in a root folder that is made once and kept.

No image registry is asked: the two images that the project names are made here. `debian:trixie-slim` is that
root before the engine was put in, with this host's certificates and apt settings, so that builds get through
wherever the host does; `postgres:17` is Debian's package with the few words of the official image's interface
that docker-compose.yml uses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.debian_root import apt, bootstrap, forbid_starts, kept, run

_SUITE = "trixie"
_ENGINE = ("docker.io", "docker-cli", "docker-compose", "iptables")

_POSTGRES = """FROM debian:trixie-slim
RUN apt-get update -q && apt-get install -q -y --no-install-recommends postgresql-17 && apt-get clean
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data DEBIAN_FRONTEND=noninteractive
COPY entry /entry
ENTRYPOINT ["/entry"]
"""
_POSTGRES_ENTRY = """#!/bin/bash
set -e
as() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
mkdir -p "$PGDATA" /run/postgresql
chown postgres "$PGDATA" /run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install -o postgres -m 600 "$POSTGRES_PASSWORD_FILE" /run/postgresql/password
    as initdb --username "$POSTGRES_USER" --pwfile /run/postgresql/password --encoding UTF8 --locale C.UTF-8 \
        --auth-host scram-sha-256 --auth-local trust --no-sync
    rm /run/postgresql/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    as pg_ctl -w start -o "-c listen_addresses="
    as createdb -U "$POSTGRES_USER" -h /run/postgresql "$POSTGRES_USER"
    as pg_ctl -w stop
fi
exec setpriv --reuid postgres --regid postgres --init-groups postgres -c listen_addresses='*'
"""

# What runs in a mount namespace of its own: the root folder becomes its root, `state` lies at the same path.
_START = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
for place in proc sys dev; do mount --rbind "/$place" "$ROOT/$place"; done
mkdir -p "$ROOT$STATE" "$ROOT/old"
mount --bind "$STATE" "$ROOT$STATE"
mount -t tmpfs tmpfs "$ROOT/run"
cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
cd "$ROOT"
pivot_root . old
umount -l /old
exec dockerd --data-root "$STATE/data" --exec-root "$STATE/exec" -H "unix://$STATE/docker.sock" \
    --pidfile "$STATE/docker.pid"
"""


def root_folder() -> Path:
    """Return the folder with Debian and the engine in it, made at the first call on a machine."""
    return kept(f"engine-{_SUITE}", _make_root)


def _make_root(folder: Path) -> None:
    root = folder / "root"
    bootstrap(_SUITE, root)
    run("tar", "-C", root, "-cf", folder / "base.tar", ".")
    forbid_starts(root)
    apt(root, "update")
    apt(root, "install", "--no-install-recommends", *_ENGINE)


class Engine:
    """dockerd, as it runs for these tests.

    Args:
        state: a folder that containers see under the same path.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.kept = root_folder()
        self.environment = {
            "DOCKER_HOST": f"unix://{state}/docker.sock",
            "DOCKER_BUILDKIT": "0",  # the builder that Debian's engine carries
            "DOCKER_CONFIG": str(state / "config"),
            "MIEHISTO_BUILD_NETWORK": "host",
        }
        self._before = (_tables(), _links(), Path("/proc/sys/net/ipv4/ip_forward").read_text())
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and give it the images that the project names."""
        plugins = self.state / "config/cli-plugins"
        plugins.mkdir(parents=True)
        for name in ("docker-compose",):
            (plugins / name).symlink_to(self.kept / "root/usr/libexec/docker/cli-plugins" / name)
        with (self.state / "dockerd.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["unshare", "-m", "bash", "-c", _START],
                env=os.environ | {"ROOT": str(self.kept / "root"), "STATE": str(self.state)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 30
        while not (self.state / "docker.sock").exists():
            assert self._daemon.poll() is None, (self.state / "dockerd.log").read_text()
            assert time.monotonic() < until, "dockerd does not come up"
            time.sleep(0.1)
        self.docker("import", str(self.kept / "base.tar"), "debian:trixie-slim")
        context = self.state / "postgres"
        context.mkdir()
        (context / "Dockerfile").write_text(_POSTGRES)
        (context / "entry").write_text(_POSTGRES_ENTRY)
        (context / "entry").chmod(0o755)
        self.docker("build", "--quiet", "--network", "host", "--tag", "postgres:17", str(context))

    def docker(self, *words: str, timeout: float = 600) -> str:
        """Run the engine's client."""
        return run(self.kept / "root/usr/bin/docker", *words, timeout=timeout, **self.environment)

    def stop(self) -> None:
        """End it, and put back what it changed on the host."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(60)
        tables, links, forward = self._before
        for link in _links() - links:
            subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)
        for table in _tables() - tables:
            run("nft", "delete", "table", *table.split())
        Path("/proc/sys/net/ipv4/ip_forward").write_text(forward)


def _tables() -> set[str]:
    """Return the firewall's tables, for example "ip nat"."""
    return {line.removeprefix("table ") for line in run("nft", "list", "tables").splitlines()}


def _links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


if __name__ == "__main__":
    sys.exit(f"the engine lies in {root_folder()}")
