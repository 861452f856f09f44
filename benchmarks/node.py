"""A node of its own for a measurement, driven by the command that an operator types. Knows no figures."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.folders import own_folder
from worker import orphans, supervision
from worker.paths import Paths
from worker.supervision import Running

CHECKOUT = Path(__file__).resolve().parent.parent
TOOLS = {"MIEHISTO_CRIU", "MIEHISTO_TINI", "MIEHISTO_USER"}
MHCTL = str(Path(sys.executable).with_name("mhctl"))


class Node:
    """A running miehistod with folders and a port of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.paths = Paths(folder / "state", folder / "run", folder / "log")
        # An address or a database that the operator has set is another node's.
        foreign = {name for name in os.environ if name.startswith("MIEHISTO_")} - TOOLS
        foreign |= {"DATABASE_URL", "CELERY_BROKER_URL"}
        self.environment = {
            **{name: text for name, text in os.environ.items() if name not in foreign},
            "MIEHISTO_STATE_DIR": str(self.paths.state_dir),
            "MIEHISTO_RUN_DIR": str(self.paths.run_dir),
            "MIEHISTO_LOG_DIR": str(self.paths.log_dir),
            "MIEHISTO_BIND": f"127.0.0.1:{free_port()}",
            "MIEHISTO_NODE": "node-of-benchmarks",
            **settings,
        }

    @property
    def port(self) -> int:
        """The TCP port of its site."""
        return int(self.environment["MIEHISTO_BIND"].rpartition(":")[2])

    def mhctl(self, *words: str) -> str:
        """Run mhctl and return what it prints."""
        done = subprocess.run(
            [MHCTL, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode:
            raise RuntimeError(f"mhctl {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def json(self, *words: str) -> Any:
        """Run mhctl with --json and return what it says."""
        return json.loads(self.mhctl(*words, "--json"))

    def running(self, service: str) -> Running:
        """Return the processes of a service."""
        found = supervision.running(self.paths, service)
        if found is None:
            raise RuntimeError(f"service {service} does not run")
        return found


def small(port: int) -> list[str]:
    """Return the command of a small service."""
    return ["python3", "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", "/usr/share/common-licenses"]


def free_port() -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until an HTTP server answers on `port`."""
    for _ in range(3000):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except (OSError, http.client.HTTPException):
            pass
        else:
            return
        time.sleep(0.01)
    raise RuntimeError(f"nothing answers on port {port}")


@contextlib.contextmanager
def started(settings: Mapping[str, str] | None = None) -> Iterator[Node]:
    """Start a node for the block; afterwards nothing of it is left. settings: more of its environment."""
    orphans.adopt()
    with own_folder() as (folder, keeper):
        yield from _started(folder, keeper, settings or {})


def _started(folder: Path, keeper: int, settings: Mapping[str, str]) -> Iterator[Node]:
    node = Node(folder, settings)
    output = folder / "miehistod.log"
    with output.open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "miehistod.main"],
            cwd=CHECKOUT,
            env=node.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for this process, which then ends the services and the daemon in that order.
            start_new_session=True,
            pass_fds=[keeper],
        )
    try:
        for _ in range(600):
            if "\nready: " in output.read_text(errors="replace") or daemon.poll() is not None:
                break
            time.sleep(0.1)
        if daemon.poll() is not None:
            raise RuntimeError(output.read_text(errors="replace"))
        yield node
    finally:
        if daemon.poll() is None:
            with contextlib.suppress(RuntimeError):
                mine = node.environment["MIEHISTO_NODE"]
                services = node.json("service", "list", "--all")
                for service in (one for one in services if one["node"] == mine):
                    node.mhctl("service", "delete", "--stop", service["object_id"])
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)
        orphans.reap()
