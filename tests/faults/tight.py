"""A node with little room and patience: its pool is a small file system, CRIU may be silent for seconds."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import promise
from tests.faults.lab import Lab, sweep_scratch
from tests.stack import living

POOL = 1 << 30
PATIENCE = 3.0
"""Seconds of MIEHISTO_JOB_TIMEOUT."""


class Tight(Lab):
    """That node."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment["MIEHISTO_JOB_TIMEOUT"] = f"{PATIENCE:g}"
        pool = shlex.quote(f"{folder}/state/images")
        mount = f"mkdir -p {pool} && mount -t tmpfs -o mode=0700,size={POOL} tmpfs {pool}"
        self.command = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {shlex.join(self.command)}"]

    def calm(self) -> None:
        """Do nothing: a new life would be one with an empty pool."""

    def resize_pool(self, free: int) -> bool:
        """Leave so many bytes free in the pool; False if more has been written meanwhile."""
        assert self.daemon is not None
        found = os.statvfs(self.state / "images")
        size = (found.f_blocks - found.f_bfree) * found.f_frsize + free
        enter = ["nsenter", f"--target={self.daemon.pid}", "--mount"]
        remount = ["mount", "-o", f"remount,size={size}", f"{self.folder}/state/images"]
        return subprocess.run([*enter, *remount], check=False, capture_output=True).returncode == 0

    def signal_criu(self, number: signal.Signals) -> list[int]:
        """Send a signal to each CRIU at work, and return their PIDs."""
        found = promise.criu_processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return found


@pytest.fixture(scope="package")
def only_tight() -> Iterator[Tight]:
    """The tight node of the suite."""
    with living(Tight, "tight") as made:
        yield made


@pytest.fixture
def tight(only_tight: Tight) -> Iterator[Tight]:
    """That node with nothing on it, before and after each test."""
    yield only_tight
    only_tight.clear()
    sweep_scratch()
