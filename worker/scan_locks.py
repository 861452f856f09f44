"""Looks at the file locks of a service for those that a process outside would keep from its restore.

CRIU makes locks and leases of every kind again (criu/file-lock.c), by asking the kernel for them as anybody
does: what somebody else has by then it waits for (flock, POSIX), or fails for (of an open file description).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from worker import findings, process
from worker.findings import Finding

_LOCK = re.compile(r"^lock:\s+\d+: (?P<lock>(?P<kind>\S+) .*)$", re.MULTILINE)
_WAITS = re.compile(r"^\d+:\s+-> +\S+ +\S+ +\S+ +(?P<pid>\d+) (?P<file>\S+) ", re.MULTILINE)


class Lock(NamedTuple):
    """A lock that a process has.

    Attributes:
        pid, path: the process, and the file as it sees it.
        identity: device and inode.
        kind: FLOCK, POSIX, OFDLCK or LEASE.
        file, mode, range: as /proc/locks has them (proc_locks(5)).
    """

    pid: int
    path: str
    identity: tuple[int, int]
    kind: str
    file: str
    mode: str
    range: str


def of(pid: int, path: str, about: str, status: os.stat_result) -> Iterator[Lock]:
    """Yield the locks that a descriptor has.

    Args:
        about: what /proc says of it (fdinfo), which names the locks of just this open file.
        status: of the file.
    """
    for found in _LOCK.finditer(about):
        kind, _, mode, _, file, *ends = found["lock"].split()
        yield Lock(pid, path, (status.st_dev, status.st_ino), kind, file, mode, " ".join(ends))


def look(locks: Collection[Lock], pids: Collection[int]) -> Iterator[Finding]:
    """Yield what stands in the way of getting these locks again.

    Args:
        pids: the processes of the service.
    """
    by_file = {lock.file: lock for lock in locks}
    if by_file:
        for waiting in _WAITS.finditer(Path("/proc/locks").read_text(encoding="ascii")):
            lock, pid = by_file.get(waiting["file"]), int(waiting["pid"])
            if lock and pid not in pids:
                yield findings.lock_awaited(lock.pid, lock.path, _called(pid))
    # Two may read at once; and a POSIX lock and a lease are not shared with whoever has the same open file.
    shared = {
        (lock.identity, lock.kind, lock.range): lock
        for lock in locks
        if lock.mode == "WRITE" and lock.kind in {"FLOCK", "OFDLCK"}
    }
    if shared:
        yield from _shared(shared, {lock.identity for lock in shared.values()}, pids)


def _shared(
    shared: dict[tuple[tuple[int, int], str, str], Lock],
    files: Collection[tuple[int, int]],
    pids: Collection[int],
) -> Iterator[Finding]:
    """Yield the locks of open files that processes outside have, too: no other lock of theirs can be so."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid in pids:
            continue
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for number in numbers:
            try:
                about = Path(f"/proc/{pid}/fdinfo/{number}").read_text(encoding="utf-8", errors="replace")
                if not _LOCK.search(about):
                    continue  # the file itself may lie on a server that does not answer
                status = os.stat(f"/proc/{pid}/fd/{number}")
                if (status.st_dev, status.st_ino) not in files:
                    continue
            except OSError:
                continue
            for theirs in of(pid, "", about, status):
                if lock := shared.get((theirs.identity, theirs.kind, theirs.range)):
                    yield findings.lock_shared(lock.pid, lock.path, _called(pid))


def _called(pid: int) -> str:
    return f"{process.status(pid).get('Name', '?')} (PID {pid})"
