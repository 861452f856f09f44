"""One real node for the tests that need everything: miehistod with its Redis, worker, scheduler and site.

It is started once a run, on folders and a port of its own, and driven as an operator does: by mhctl, by the
API, and by looking at the host from outside.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from tests.isolation import FOLDER
from worker import orphans, process

T = TypeVar("T")
CHECKOUT = Path(__file__).resolve().parent.parent
READY_WITHIN = 60.0


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


class Reply(NamedTuple):
    """What the API said."""

    status: int
    body: Any


def eventually(look: Callable[[], T], within: float = 30.0) -> T:
    """Return what `look` returns once that is true; the last answer, or its exception, when time is up."""
    deadline = time.monotonic() + within
    while True:
        try:
            found = look()
        except (OSError, AssertionError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
        else:
            if found or time.monotonic() > deadline:
                return found
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def get_page(port: int, path: str = "") -> bytes:
    """Return what an HTTP server on this host answers, over a connection of its own.

    Raises:
        OSError: it does not answer.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return bytes(answer.read())


class Stack:
    """A node that runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment = {
            **os.environ,
            "MIEHISTO_STATE_DIR": str(folder / "state"),
            "MIEHISTO_RUN_DIR": str(folder / "run"),
            "MIEHISTO_LOG_DIR": str(folder / "log"),
            "MIEHISTO_BIND": f"127.0.0.1:{self.port}",
            "MIEHISTO_NODE": "node-of-tests",
        }
        self.command = [sys.executable, "-m", "miehistod.main"]
        self.output = folder / "miehistod.log"
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start miehistod and wait until it says that it is ready."""
        with self.output.open("wb") as output:
            self.daemon = subprocess.Popen(
                self.command,
                cwd=CHECKOUT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def ready() -> bool:
            assert self.daemon is not None
            if self.daemon.poll() is not None:
                pytest.fail(f"miehistod ended with {self.daemon.returncode}:\n{self.said()}", pytrace=False)
            return "\nready: " in self.said() or '"message": "ready: ' in self.said()

        assert eventually(ready, READY_WITHIN), self.said()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """End miehistod and return the seconds that it took."""
        assert self.daemon is not None
        began = time.monotonic()
        self.daemon.send_signal(number)
        self.daemon.wait(30)
        return time.monotonic() - began

    @property
    def state(self) -> Path:
        """The node's STATE_DIR as the node sees it, should it have mounts of its own."""
        assert self.daemon is not None
        return Path(f"/proc/{self.daemon.pid}/root{self.folder}/state")

    def parts(self) -> dict[str, int]:
        """Return the PIDs of miehistod's children by their names: redis, worker, scheduler, site."""
        assert self.daemon is not None
        found = {}
        for pid in process.children(self.daemon.pid):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            except OSError:
                continue
            words = {os.path.basename(word) for word in line.replace("\0", " ").split()}
            signs = {"redis-server": "redis", "worker": "worker", "beat": "scheduler", "gunicorn": "site"}
            name = next((name for sign, name in signs.items() if sign in words), "")
            if name:
                found[name] = pid
        return found

    def part(self, name: str) -> int:
        """Return the PID of a part, once it is there."""
        found = eventually(lambda: self.parts().get(name, 0), 30)
        assert found, f"there is no {name}"
        return found

    def pool(self) -> list[int]:
        """Return the PIDs of the worker's pool processes."""
        return [
            pid
            for pid in process.children(self.part("worker"))
            if b"celery" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def said(self) -> str:
        """Return what miehistod has printed."""
        return "\n" + self.output.read_text(errors="replace")

    def mhctl(self, *words: str, check: bool = True, timeout: float = 120) -> Answer:
        """Run mhctl as a process; with `check`, fail the test if it does not exit with 0."""
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from mhctl.main import main; sys.exit(main())", *words],
            cwd=CHECKOUT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"mhctl {' '.join(words)[:200]}\n{done.stdout}{done.stderr}"
        return Answer(done.returncode, done.stdout, done.stderr)

    def manage(self, *words: str, check: bool = True) -> Answer:
        """Run manage.py as a process; with `check`, fail the test if it does not exit with 0."""
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=CHECKOUT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"manage.py {' '.join(words)[:200]}\n{done.stdout}{done.stderr}"
        return Answer(done.returncode, done.stdout, done.stderr)

    def show(self, what: str, reference: str) -> dict[str, Any]:
        """Return `mhctl WHAT show REFERENCE --json`."""
        shown: dict[str, Any] = json.loads(self.mhctl(what, "show", reference, "--json").out)
        return shown

    def api(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Reply:
        """Ask the API over TCP, with mhctl's own token unless another is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Authorization": f"Bearer {token or self.token()}", "Content-Type": "application/json"}
        try:
            connection.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return Reply(answer.status, json.loads(text) if text else None)
        finally:
            connection.close()

    def token(self) -> str:
        """Return the token that miehistod made for mhctl."""
        return (self.folder / "run/token").read_text().strip()

    def create(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Create a service and return its id."""
        return self.mhctl("service", "create", *options, "--", *command).out.strip()

    def dump(self, service: str, *options: str) -> str:
        """Dump a service and return the image's id."""
        return Path(self.mhctl("service", "dump", service, *options).out.strip()).name

    def restore(self, image: str) -> None:
        """Restore a service from an image."""
        assert self.mhctl("service", "restore", "--from", image).out.strip() == image

    def log(self, service: str) -> str:
        """Return what a service has printed."""
        return self.mhctl("service", "logs", service).out

    def clear(self) -> None:
        """Delete every service and every image, so that the next test finds an empty node."""
        for job in self.api("GET", "jobs?limit=500").body:
            if job["status"] in {"queued", "running"}:
                self.mhctl("job", "wait", job["object_id"], check=False)
        for service in self.api("GET", "services?all=1").body:
            self.api("DELETE", f"services/{service['object_id']}?stop=1&wait=60")
        for image in self.api("GET", "images").body:
            self.api("DELETE", f"images/{image['object_id']}?force=1&wait=60")
        orphans.reap(self._known())

    def _known(self) -> frozenset[int]:
        return frozenset([self.daemon.pid] if self.daemon else [])


Kind = TypeVar("Kind", bound=Stack)


@contextmanager
def living(kind: type[Kind], name: str, **settings: str) -> Iterator[Kind]:
    """Start a node of its own for the block, and leave nothing of it.

    Args:
        kind: what it is made by.
        name: of its folder.
        settings: the environment variables that differ from other nodes'.
    """
    orphans.adopt()
    folder = FOLDER / name
    folder.mkdir(mode=0o755)
    made = kind(folder)
    made.environment |= settings
    made.start()
    yield made
    made.clear()
    took = made.stop()
    orphans.reap()
    assert took < 20, f"miehistod took {took:.1f} s to end"


@pytest.fixture(scope="session")
def node() -> Iterator[Stack]:
    """The node, for the whole run."""
    with living(Stack, "node") as made:
        yield made
    left = [pid for pid in process.children(os.getpid()) if process.Process.of(pid)]
    assert not left, f"processes are left: {left}"


@pytest.fixture
def stack(node: Stack) -> Iterator[Stack]:
    """The node with nothing on it, before and after each test."""
    yield node
    node.clear()
