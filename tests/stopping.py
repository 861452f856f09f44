"""Stops CRIU at a moment that its own log shows, or a worker. Knows nothing of what a test does then."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tests.stack import Stack, eventually
from worker import process


def _criu_of(node: Stack) -> process.Process | None:
    """Return the CRIU that works on this node now, with its request."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_bytes() == b"criu\n" and any(
                str(link.readlink()).startswith(f"{node.folder}/run/services/")
                and link.readlink().name == "job.lock"
                for link in (folder / "fd").iterdir()
            ):
                return process.Process.of(int(folder.name))
        except OSError:
            continue
    return None


@contextlib.contextmanager
def _before_others() -> Iterator[None]:
    """Let this thread have the processor before all others for the block, where the host lets it."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def stopped_at(node: Stack, service: str, log: str, words: str) -> process.Process:
    """Stop CRIU (SIGSTOP) as soon as its log holds these words, and return it."""
    path = node.folder / f"run/services/{service}/criu/{log}"
    found = eventually(lambda: _criu_of(node))
    assert found
    # Without a pause: such a moment is short.
    with _before_others():
        while found.alive():
            if path.exists() and words in path.read_text(errors="replace"):
                found.signal(signal.SIGSTOP)
                break
    assert found.alive(), f"CRIU did not come to {words!r}"
    return found


@contextlib.contextmanager
def worker_held_up(node: Stack) -> Iterator[None]:
    """Hold up the worker's main process for the block: jobs at work go on, new ones wait."""
    pid = node.part("worker")

    def is_held_up() -> bool:
        os.kill(pid, signal.SIGSTOP)
        if _is_free(node.folder / "state/database/db.sqlite3"):
            return True
        os.kill(pid, signal.SIGCONT)  # it may hold the database at this very moment
        return False

    assert eventually(is_held_up)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _is_free(database: Path) -> bool:
    with contextlib.closing(sqlite3.connect(database, timeout=0.5, isolation_level=None)) as rows:
        try:
            rows.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        rows.execute("ROLLBACK")
    return True
