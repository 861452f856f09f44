"""Processes as the kernel shows them in /proc. Knows nothing of services.

A PID alone lies: it may have been given to another process since. So a process is named by
its PID and its start time (proc_pid_stat(5), field 22, in clock ticks since boot).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from typing import NamedTuple

# Fields of proc_pid_stat(5), counted from the third on; a flag of the kernel's (include/linux/sched.h).
_FLAGS, _START = 9 - 3, 22 - 3
_PF_EXITING = 4
_SIGKILL = 1 << signal.SIGKILL - 1


class Process(NamedTuple):
    """One process, past or present."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has `pid` now, or None if there is none or it is a zombie."""
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[_START]))

    def alive(self) -> bool:
        """Tell whether this very process still runs."""
        return Process.of(self.pid) == self

    def is_ending(self) -> bool:
        """Tell whether this process was killed or ends, which a lot of memory draws out, or is gone."""
        fields = _stat(self.pid)
        if fields is None or int(fields[_START]) != self.start or int(fields[_FLAGS]) & _PF_EXITING:
            return True
        return any(int(status(self.pid).get(name, "0"), 16) & _SIGKILL for name in ("SigPnd", "ShdPnd"))

    def open(self) -> int | None:
        """Return a pidfd of this very process, or None if it is gone (pidfd_open(2))."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if not self.alive():
            os.close(descriptor)
            return None
        return descriptor

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False if it is gone."""
        descriptor = self.open()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until this process has ended; False if it still runs after `seconds`."""
        descriptor = self.open()
        if descriptor is None:
            return True
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(descriptor)


def _stat(pid: int) -> list[str] | None:
    """Return /proc/PID/stat from field 3 (state) on; the name before it may hold spaces and brackets."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def children(pid: int) -> list[int]:
    """Return the PIDs of the children of every thread of `pid`; empty if it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []
    for thread in threads:
        # One that has ended meanwhile has left its children to another thread.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file,
        ):
            found += map(int, file.read().split())
    return found


def parent(pid: int) -> int:
    """Return the PID of a process's parent; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def tree(pid: int) -> Iterator[int]:
    """Yield `pid` and all that descend from it, parents first; they may be as deep as they like."""
    ahead = [pid]
    while ahead:
        pid = ahead.pop()
        yield pid
        ahead += reversed(children(pid))


def status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status (proc_pid_status(5)); empty if the process is gone."""
    try:
        # Of what ends a line elsewhere a name there may hold all but "\n".
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace", newline="\n") as file:
            rows = (line.partition(":") for line in file)
            return {name: value.strip() for name, _, value in rows}
    except (FileNotFoundError, ProcessLookupError):
        return {}


def sockets(pid: int) -> set[int]:
    """Return the inodes of the sockets that a process has open; empty if it is gone."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return set()
    found = set()
    for number in numbers:
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return found


def holders(path: str) -> Iterator[Process]:
    """Yield the processes that have the file at `path` open; a file that is not there has none."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        process = Process.of(int(name))
        if process is not None and any(
            (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) for found in _open_files(name)
        ):
            yield process


def _open_files(pid: str) -> Iterator[os.stat_result]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # it has ended
    for number in numbers:
        try:
            yield os.stat(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
