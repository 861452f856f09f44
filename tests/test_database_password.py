"""A database that wants a password, from a file of root's: the node lives on it and is backed up from it."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.isolation import FOLDER
from tests.pages import Page, Reader
from tests.stack import CHECKOUT, Stack, eventually, free_port
from tests.test_postgresql import Database

PAGE = Page(CHECKOUT / "docs/how-to/back-up.md")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]


class Locked(Database):
    """Two empty databases of a user with a password who is nothing else there, asked over TCP.

    Attributes:
        password: the file with it, which root alone may read.
    """

    password: Path

    def of(self, name: str) -> dict[str, str]:
        """Return the settings of a node that keeps its rows in a database."""
        return {"DATABASE_URL": f"{self.url}/{name}", "DATABASE_PASSWORD_FILE": str(self.password)}


@pytest.fixture
def locked() -> Iterator[Locked]:
    """The databases `one` and `another`."""
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        folder.chmod(0o777)
        ways = ["--auth-local=trust", "--auth-host=scram-sha-256"]
        initdb = [f"{PROGRAMS}/initdb", "-D", f"{folder}/data", *ways, "-N", "-U", "postgres"]
        subprocess.run([*as_postgres, *initdb], check=True, capture_output=True)
        port = free_port()
        where = [
            "-D",
            f"{folder}/data",
            "-k",
            str(folder),
            "-p",
            str(port),
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        server = Locked(
            [*as_postgres, f"{PROGRAMS}/postgres", *where], f"postgres://miehisto@127.0.0.1:{port}"
        )
        server.password = folder / "password"
        password = secrets.token_hex()
        server.password.write_text(f"{password}\n")
        server.password.chmod(0o600)
        try:
            asked = f"host={folder} port={port} user=postgres dbname=postgres"
            with eventually(lambda: _connected(asked)) as connection:
                connection.autocommit = True
                connection.execute(f"CREATE ROLE miehisto LOGIN PASSWORD '{password}'".encode())
                for database in ("one", "another"):
                    connection.execute(f"CREATE DATABASE {database} OWNER miehisto".encode())
            yield server
        finally:
            server.stop()


def _connected(where: str) -> psycopg.Connection:
    try:
        return psycopg.connect(where)
    except psycopg.OperationalError as error:
        raise OSError from error


def node(name: str, settings: dict[str, str]) -> Stack:
    """Return a node that was not started yet."""
    place = FOLDER / name
    place.mkdir(mode=0o755)
    stack = Stack(place)
    programs = f"{PROGRAMS}:{os.environ['PATH']}"  # those that fit the server
    stack.environment |= {**settings, "PATH": programs}
    return stack


def type_it(stack: Stack, block: str, backup: Path) -> None:
    """Type a block of the page at a node."""
    shell = stack.folder / "shell"
    shell.mkdir()
    someone = Reader(shell, stack.environment, {"/srv/backup": str(backup)})
    printed, code = someone.type(someone.here(block))
    someone.leave()
    assert (printed, code) == ("", 0)


def test_a_backup_takes_the_password_from_its_file(locked: Locked) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"{locked.url}/one")
    dump, restore = [text for by, text in PAGE.run_by if by == "tests/test_upgrades.py"]
    backup = FOLDER / "backup-with-a-password"
    backup.mkdir(mode=0o700)
    stack = node("node-with-a-password", locked.of("one"))
    stack.start()
    try:
        service = stack.create("sleep", "1000", options=("--name", "kept"))
        type_it(stack, dump, backup)
        stack.clear()
    finally:
        stack.stop()
    other = node("new-node-with-a-password", locked.of("another"))
    prepare = [*other.command, "--prepare"]
    subprocess.run(prepare, cwd=CHECKOUT, env=other.environment, check=True, capture_output=True)
    type_it(other, restore, backup)
    assert service in other.manage("services", "--all").out
