"""A pytest plugin: every test runs on folders of its own, and the run checks that it leaves nothing behind.

It is loaded by `-p` in pyproject.toml, before Django reads its settings, and knows no test.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ORIGINAL_ENVIRONMENT = dict(os.environ)
"""What pytest was started with, for the tests that are about this very installation."""

MARK = "MIEHISTO_TEST_RUN"
_RUN = uuid.uuid4().hex
FOLDER = Path(tempfile.mkdtemp(prefix="miehisto-tests-"))
"""This run's folder. The site's unprivileged user may enter it, unlike pytest's own tmp_path."""

POLICY = FOLDER / "policy.toml"
"""This run's policy: it forbids nothing unless a test writes something into it."""

_OURS = ("MIEHISTO_", "CELERY_", "DATABASE_URL", "DJANGO_")
_PLACES = ("/run", "/tmp", "/dev/shm", "/var/lib", "/var/log", "/var/tmp", "/etc")
_TOOLS = {"MIEHISTO_CRIU", "MIEHISTO_TINI", "MIEHISTO_USER", "MIEHISTO_TEST_CACHE"}


def _isolate() -> None:
    """Point every setting at this run's folder, and give every child a mark to be found by."""
    for name in list(os.environ):
        if name.startswith(_OURS) and name not in _TOOLS:
            del os.environ[name]
    FOLDER.chmod(0o755)
    for part in ("STATE", "RUN", "LOG"):
        folder = FOLDER / part.lower()
        folder.mkdir()
        os.environ[f"MIEHISTO_{part}_DIR"] = str(folder)
    temporary = FOLDER / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    os.environ[MARK] = _RUN
    # Not the host's own, whatever it may forbid.
    POLICY.touch(mode=0o644)
    os.environ["MIEHISTO_POLICY"] = str(POLICY)


_isolate()


def _traces() -> set[str]:
    """Return what a test could leave on the host, a line each: processes, mounts, firewall tables, files.

    A namespace lives by a process or a mount, so those two find it.
    """
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        *(f"process {pid}: {words}" for pid, words in _own_processes()),
        *(f"mount: {line.split(' - ')[0].split(' ', 3)[3]}" for line in mounts),
        *(f"firewall: {line}" for line in tables.stdout.splitlines()),
        *(f"file: {path}" for place in _PLACES for path in Path(place).glob("*") if _is_ours(path.name)),
    }


def _is_ours(name: str) -> bool:
    """Tell whether a file is Miehistö's or CRIU's, but for the folders of test runs and benchmarks."""
    return ("miehisto" in name or "criu" in name) and not name.startswith(
        ("miehisto-tests-", "miehisto-bench-")
    )


def _read(path: Path) -> bytes:
    """Return a /proc file's content, or nothing when the process has just gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _own_processes() -> Iterator[tuple[int, str]]:
    """Yield (PID, command line) of the processes that this run started.

    They carry the run's mark in their environment, or, as a supervisor, its folder in their command line. A
    service has an environment of its own: it is known by its PID namespace, and it counts here when its
    supervisor is gone or carries the mark.
    """
    mark = f"{MARK}={_RUN}".encode()
    here = os.stat("/proc/self/ns/pid").st_ino
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        words = _read(folder / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        if pid == os.getpid() or not words:
            continue
        if mark in _read(folder / "environ").split(b"\0") or str(FOLDER) in words:
            yield pid, words
            continue
        try:
            elsewhere = (folder / "ns/pid").stat().st_ino != here
        except OSError:
            continue
        if elsewhere:
            parent = next(
                (
                    line.split()[1]
                    for line in _read(folder / "status").decode().splitlines()
                    if line[:5] == "PPid:"
                ),
                "1",
            )
            if parent == "1" or mark in _read(Path("/proc") / parent / "environ").split(b"\0"):
                yield pid, words


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the run when a process, a mount or a firewall rule of its tests is still there at its end."""
    before = _traces()
    yield
    left = _traces() - before
    # Another run on the same host has mounts and tables of its own, each for a moment.
    deadline = time.monotonic() + 10
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left &= _traces() - before
    if left:
        pytest.fail("the tests left behind:\n" + "\n".join(sorted(left)), pytrace=False)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int | pytest.ExitCode
) -> None:
    """Keep the files of a failed run and say where; those of any other run are deleted at the exit."""
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        atexit.unregister(_delete_folder)
        terminalreporter.write_line(f"the files of this run are kept in {FOLDER}")


def _delete_folder(process: int) -> None:
    """Delete this run's folder, unless this is a child that a test forked."""
    if os.getpid() == process:
        shutil.rmtree(FOLDER, ignore_errors=True)


atexit.register(_delete_folder, os.getpid())
