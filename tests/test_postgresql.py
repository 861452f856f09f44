"""The rows in PostgreSQL instead of SQLite: the same node, the same job."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.isolation import FOLDER
from tests.stack import Stack, eventually, free_port, get_page


@pytest.fixture
def database() -> Iterator[str]:
    """The address of an empty database in a cluster of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        folder.chmod(0o777)
        initdb = [f"{programs}/initdb", "-D", f"{folder}/data", "-A", "trust", "-N", "-U", "miehisto"]
        subprocess.run([*as_postgres, *initdb], check=True, capture_output=True)
        where = ["-D", f"{folder}/data", "-k", str(folder), "-c", "listen_addresses="]
        server = subprocess.Popen(
            [*as_postgres, f"{programs}/postgres", *where],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            create = [f"{programs}/createdb", "-h", str(folder), "-U", "miehisto", "miehisto"]
            eventually(lambda: subprocess.run(create, check=False, capture_output=True).returncode == 0, 30)
            yield f"postgres://miehisto@/miehisto?host={folder}"
        finally:
            server.terminate()
            server.wait(30)


def test_the_main_job_on_postgresql(database: str) -> None:
    """Create, two dumps of one service asked for at once, restore, an unknown prefix, delete."""
    folder = FOLDER / "node-on-postgresql"
    folder.mkdir(mode=0o755)
    stack = Stack(folder)
    stack.environment["DATABASE_URL"] = database
    stack.start()
    try:
        port = free_port()
        command = ["python3", "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", "/etc"]
        service = stack.create(*command, options=("--name", "web"))
        content = eventually(lambda: get_page(port, "hostname"))
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: stack.mhctl("service", "dump", "web", check=False), range(2)))
        assert sorted(answer.code for answer in answers) == [0, 1]
        assert any("active job" in answer.err or "not running" in answer.err for answer in answers)
        image = next(Path(answer.out.strip()).name for answer in answers if answer.code == 0)
        stack.restore(image)
        assert get_page(port, "hostname") == content
        assert stack.show("image", image)["service"] == service
        assert stack.mhctl("service", "show", "nobody", check=False).code == 4
        assert not (folder / "state/database/db.sqlite3").exists()
        stack.clear()
    finally:
        stack.stop()
