"""A PostgreSQL of its own for a benchmark: a cluster in a folder, a unix socket, no TCP port."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.folders import own_folder

_AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Start the newest PostgreSQL of this host, with its own default settings, and yield its DATABASE_URL.

    Raises:
        RuntimeError: there is none, or it does not answer.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is not installed: run make setup-dev")
    with own_folder() as (folder, keeper):
        folder.chmod(0o777)
        initdb = [
            f"{found[-1]}/initdb",
            "-D",
            f"{folder}/data",
            "-A",
            "trust",
            "-U",
            "miehisto",
            "-E",
            "UTF8",
        ]
        subprocess.run([*_AS_POSTGRES, *initdb, "--no-locale"], check=True, capture_output=True)
        where = ["-D", f"{folder}/data", "-k", str(folder), "-c", "listen_addresses="]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(
            [*_AS_POSTGRES, f"{found[-1]}/postgres", *where],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            pass_fds=[keeper],
        )
        try:
            _create(found[-1], folder)
            yield f"postgres://miehisto@/miehisto?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def _create(programs: Path, folder: Path) -> None:
    words = [f"{programs}/createdb", "-h", str(folder), "-U", "miehisto", "miehisto"]
    for _ in range(300):
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL does not answer")
