"""The node that is harmed, and the hands that harm it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import promise
from tests.stack import Stack, eventually, living
from worker import orphans, process
from worker.process import Process

_DEATHS_IN_A_ROW = 3
"""So often a part is killed before miehistod, which gives up at the fifth time in a minute, starts anew."""

SCRATCH_IS_OLD = 20.0
"""Seconds after which a folder of CRIU's is not one that another test's CRIU works in."""


class Lab(Stack):
    """A node of its own beside the run's, whose parts can be killed one by one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.deaths = 0
        self._lives = 0

    def start(self) -> None:
        """Start miehistod, with a file of its own for what it says."""
        self._lives += 1
        self.output = self.folder / f"miehistod-{self._lives}.log"
        super().start()

    def at_work(self, job_id: str) -> int | None:
        """Return the PID of the pool process that has claimed a job; None if nobody has."""
        ((worker,),) = promise.rows(self, "SELECT worker FROM services_job WHERE id = ?", job_id)
        _, _, numbers = str(worker).partition(":")
        pid, _, start = numbers.partition(":")
        found = Process(int(pid), int(start)) if pid else None
        return found.pid if found and found.alive() else None

    def kill(self, pid: int) -> None:
        """Kill a process of the node's."""
        os.kill(pid, signal.SIGKILL)

    def kill_part(self, name: str) -> float:
        """Kill a part, wait for the one that takes its place, and return when that began to live."""
        killed = self.part(name)
        self.kill(killed)
        self.deaths += 1
        assert eventually(lambda: self.parts().get(name, killed) != killed, 20), f"no new {name}"
        return time.monotonic()

    def calm(self) -> None:
        """Begin a new life of miehistod, before it gives up for too many deaths of its parts."""
        if self.deaths >= _DEATHS_IN_A_ROW:
            self.renew()

    def renew(self) -> None:
        """Stop miehistod and start it again."""
        self.stop()
        self.start()
        self.deaths = 0

    def fallen(self) -> None:
        """Kill miehistod itself, wait until its parts have gone with it, and start it again."""
        assert self.daemon is not None
        parts = [Process.of(pid) for pid in self.parts().values()]
        self.daemon.kill()
        self.daemon.wait()
        for part in filter(None, parts):
            assert part.wait(30), "a part of a killed miehistod goes on"
        orphans.reap()
        self.start()
        self.deaths = 0

    def power_cut(self, tables: list[str]) -> None:
        """Let all processes of the node die at once, and lose what a reboot loses; then start it.

        Args:
            tables: the firewall tables that were there before; others are the kernel's to lose.
        """
        assert self.daemon is not None
        services = [row["object_id"] for row in self.api("GET", "services?all=1").body]

        def alive() -> set[int]:
            roots = [self.daemon.pid, *promise.criu_processes()] if self.daemon else []
            roots += [pid for service in services for pid in promise.supervisors_of(service)]
            return {pid for root in roots for pid in process.tree(root)}

        # Stopped first, so that none sees the others' end; anew for what was born meanwhile.
        doomed: set[int] = set()
        while born := alive() - doomed:
            _signal(born, signal.SIGSTOP)
            doomed |= born
            time.sleep(0.01)  # a fork that has begun comes to its end
        _signal(doomed, signal.SIGKILL)
        self.daemon.wait(30)
        eventually(lambda: not any(Process.of(pid) for pid in doomed))
        orphans.reap()
        shutil.rmtree(self.folder / "run")
        for table in promise.tables():
            if table not in tables:
                subprocess.run(["nft", "delete", *table.split()], check=True)
        self.start()
        self.deaths = 0


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def sweep_scratch() -> bool:
    """Remove the empty folders of CRIUs that were killed before they had written their names into a log.

    Those are all that stays of them; a reboot empties /tmp. False while there is one that is not old yet.
    """
    folders = list(Path("/tmp").glob(".criu.mntns.*"))
    for folder in folders:
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > SCRATCH_IS_OLD:
                folder.rmdir()
    return not any(folder.exists() for folder in folders)


@pytest.fixture(scope="package")
def only_lab() -> Iterator[Lab]:
    """The node of the suite."""
    with living(Lab, "lab") as made:
        yield made
    eventually(sweep_scratch, SCRATCH_IS_OLD + 5)


@pytest.fixture
def lab(only_lab: Lab) -> Iterator[Lab]:
    """That node with nothing on it, before and after each test."""
    only_lab.calm()
    yield only_lab
    only_lab.clear()
    sweep_scratch()
