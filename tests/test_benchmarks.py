"""What the benchmarks do beside measuring."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.folders import own_folder
from tests.stack import CHECKOUT, eventually

A_RUN = """
import subprocess
from benchmarks.folders import own_folder
with own_folder() as (folder, keeper):
    daemon = subprocess.Popen(["sleep", "1000"], pass_fds=[keeper])
    print(folder, daemon.pid, flush=True)
    daemon.wait()
"""


def begun() -> tuple[subprocess.Popen[str], Path, int]:
    command = [sys.executable, "-c", A_RUN]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    run = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True)
    with run.stdout as told:  # type: ignore[union-attr]
        folder, daemon = told.readline().split()
    return run, Path(folder), int(daemon)


def test_what_a_killed_run_left_is_deleted_once_nobody_works_in_it() -> None:
    with own_folder() as (mine, _keeper):
        running, its, daemon = begun()
        killed, left, survivor = begun()
        killed.kill()
        killed.wait()
        with own_folder():
            assert mine.is_dir() and its.is_dir() and left.is_dir()  # a daemon still works in that one
        os.kill(survivor, signal.SIGKILL)

        def deleted() -> bool:
            with own_folder():
                return not left.exists()

        assert eventually(deleted)
        assert mine.is_dir() and its.is_dir()
        os.kill(daemon, signal.SIGKILL)
        running.wait()
        assert not its.exists()
    assert not mine.exists()
