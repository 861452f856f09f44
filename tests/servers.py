"""Real servers that tests run as services, and how to look into their memory. Knows nothing of dumps.

Each has data that lives nowhere but in its processes: `state` tells it, `grow` adds to it by an exact step.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.isolation import FOLDER
from tests.stack import Stack, eventually, free_port
from worker.runmh.launch import DEFAULT_PATH

# Copied to where any user may read them, which he may not in every checkout.
PROGRAMS = Path(shutil.copytree(Path(__file__).resolve().parent / "programs", FOLDER / "programs"))


def program(*candidates: str) -> str:
    """Return the path of a program as a service finds it; a missing one is a fault of the set-up."""
    found = next(filter(None, (shutil.which(name, path=DEFAULT_PATH) for name in candidates)), None)
    if found is None:
        pytest.fail(f"{candidates[0]} is not installed: run `make setup-dev`", pytrace=False)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for one test that any user may enter."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


class Connection:
    """One TCP connection, for requests of a line; it is never made anew behind the test's back."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._answers = self._socket.makefile("rb")
        self.address: tuple[str, int] = self._socket.getpeername()

    def send(self, request: str) -> None:
        """Send a request and don't wait for its answer."""
        self._socket.sendall(request.encode() + b"\r\n")

    def answer(self) -> str:
        """Return the next line of an answer."""
        line = self._answers.readline()
        if not line:
            raise ConnectionResetError("the server has closed the connection")
        return line.decode().rstrip()

    def ask(self, request: str, lines: int = 1) -> str:
        """Send a request and return the last of the lines of its answer."""
        self.send(request)
        return [self.answer() for _ in range(lines)][-1]

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    """A connection for the time of a `with`."""
    connection = Connection(port)
    try:
        yield connection
    finally:
        connection.close()


def get(port: int, path: str) -> Any:
    """Return the JSON that a web server answers, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


class Server(ABC):
    """A server.

    Args:
        folder: what it may write to.
    """

    options: tuple[str, ...] = ()
    """Options of `mhctl service create`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """The server's command line."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what the server's memory holds.

        Raises:
            OSError: it doesn't answer.
        """

    @abstractmethod
    def grow(self) -> None:
        """Add to what the memory holds, and see that it is just what was there and one more."""


def started(stack: Stack, server: Server, *options: str) -> str:
    """Start the server as a service, give its memory something to hold, and return the service's id."""
    service = stack.create(*server.command, options=(*server.options, *options))
    eventually(server.state)
    server.grow()
    return service


class Redis(Server):
    """redis-server without any file."""

    @property
    def command(self) -> list[str]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [program("redis-server"), *options]

    def state(self) -> dict[str, Any]:
        with connected(self.port) as client:
            return {
                "keys": client.ask("DBSIZE"),
                "word": client.ask("GET word", lines=2) if client.ask("EXISTS word") == ":1" else None,
                "count": int(client.ask("INCRBY count 0").removeprefix(":")),
            }

    def grow(self) -> None:
        held = self.state()["count"]
        with connected(self.port) as client:
            assert client.ask("SET word kept") == "+OK"
            assert client.ask("INCR count") == f":{held + 1}"


class Memcached(Server):
    """memcached, as a user who isn't root, as it is always run."""

    options = ("-u", "nobody")

    @property
    def command(self) -> list[str]:
        return [program("memcached"), "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-m", "16"]

    def state(self) -> dict[str, Any]:
        with connected(self.port) as client:
            if client.ask("add count 0 0 1\r\n0") not in {"STORED", "NOT_STORED"}:
                raise AssertionError("memcached neither stores nor finds the item")
            return {"count": int(client.ask("incr count 0"))}

    def grow(self) -> None:
        held = self.state()["count"]
        with connected(self.port) as client:
            assert client.ask("incr count 1") == str(held + 1)


class Gunicorn(Server):
    """gunicorn with three workers."""

    options = ("-C", str(PROGRAMS), "-e", "PYTHONDONTWRITEBYTECODE=1")

    @property
    def command(self) -> list[str]:
        settings = ["-c", "python:counting_site", "-b", f"127.0.0.1:{self.port}"]
        # Its watchdog is left on: for a monotonic clock the time in the pool does not pass.
        settings += ["--control-socket", str(self.folder / "gunicorn.ctl")]
        return [sys.executable, "-m", "gunicorn", *settings, "counting_site:app"]

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = get(self.port, "/state")
        return found

    def grow(self) -> None:
        held = self.state()
        asked = 0
        while any(count == held[worker] for worker, count in self.state().items()):
            asked += 1
            assert asked < 500, f"not every worker answers: {held}, then {self.state()}"
            get(self.port, "/grow")
        assert sum(self.state().values()) == sum(held.values()) + asked


class NodeJs(Server):
    """A web server of one line of JavaScript."""

    @property
    def command(self) -> list[str]:
        script = (
            "let count = 0;"
            "require('http').createServer((request, response) => {"
            "  if (request.url === '/grow') count += 1;"
            "  response.end(JSON.stringify({count}));"
            f"}}).listen({self.port}, '127.0.0.1');"
        )
        return [program("node", "nodejs"), "-e", script]

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = get(self.port, "/state")
        return found

    def grow(self) -> None:
        held = self.state()["count"]
        assert get(self.port, "/grow") == {"count": held + 1}


class ManyParts(Server):
    """A Python service with threads, a child, pipes, a deleted file, locks and a signal handler."""

    @property
    def command(self) -> list[str]:
        return [program("python3"), str(PROGRAMS / "many_parts.py"), str(self.port), str(self.folder)]

    def _ask(self, word: str) -> dict[str, Any]:
        with connected(self.port) as client:
            found: dict[str, Any] = json.loads(client.ask(word))
        # What the kernel says to another process that wants the locks, this one.
        with (self.folder / "posix-lock").open("w") as posix, (self.folder / "flock").open("w") as whole:
            for ask, file in ((fcntl.lockf, posix), (fcntl.flock, whole)):
                with pytest.raises(BlockingIOError):
                    ask(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return found

    def state(self) -> dict[str, Any]:
        return self._ask("state")

    def grow(self) -> None:
        held = self.state()
        assert self._ask("grow") == {
            "child": held["child"] + 1,
            "threads": [count + 1 for count in held["threads"]],
            "deleted file": held["deleted file"] + "*",
            "signals": held["signals"] + 1,
            "processes": held["processes"],
        }


class PostgreSQL(Server):
    """PostgreSQL with a data folder of its own, run by Debian's user for it."""

    USER = "postgres"
    options = ("-u", USER)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if not found:
            pytest.fail("PostgreSQL is not installed: run `make setup-dev`", pytrace=False)
        self.programs = found[-1]
        self.data = folder / "data"
        shutil.chown(folder, self.USER)
        initdb = [str(self.programs / "initdb"), "-D", str(self.data), "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(
            ["setpriv", f"--reuid={self.USER}", f"--regid={self.USER}", "--init-groups", "--", *initdb],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )

    @property
    def command(self) -> list[str]:
        where = ["-D", str(self.data), "-k", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port)]
        return [str(self.programs / "postgres"), *where]

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a new session; each statement is a transaction of its own unless one is begun."""
        try:
            return psycopg.connect(
                f"host=127.0.0.1 port={self.port} user={self.USER} connect_timeout=10", autocommit=True
            )
        except psycopg.OperationalError as error:
            raise ConnectionError(str(error)) from None

    def state(self) -> dict[str, Any]:
        with self.connect() as session:
            rows = session.execute("SELECT count FROM counter").fetchall()
        return {"rows": rows}

    def grow(self) -> None:
        held = self.state()
        with self.connect() as session:
            session.execute("UPDATE counter SET count = count + 1")
        assert self.state() == {"rows": [(count + 1,) for (count,) in held["rows"]]}
