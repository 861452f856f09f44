"""What a CRIU that was killed leaves, in a service that goes on and on the disk. Knows no jobs.

CRIU holds the service's TCP connections in repair mode (tcp(7), TCP_REPAIR), in which a write fails and
nothing is sent, and drops their packets by a firewall table. The kernel lets the service go on when its
tracer dies, but takes back neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import socket
from pathlib import Path

from worker import connections, process
from worker.process import Process

log = logging.getLogger(__name__)

_SYS_PIDFD_GETFD = 438  # on every architecture (pidfd_getfd(2)); Python has no name for it
_TCP_REPAIR = 19
_SCRATCH = re.compile(r"/tmp/\.criu\.mntns\.[A-Za-z0-9]{6}")  # noqa: S108 (CRIU's own name for it)
_libc = ctypes.CDLL(None, use_errno=True)


def mend(init: Process, run: str) -> None:
    """Let a service go on where a dump of it was broken off; nothing happens to one that is sound.

    Args:
        init: PID 1 of the service.
        run: the name of the CRIU run that was broken off; empty if it had not begun.
    """
    mended = sum(map(_end_repair, process.tree(init.pid))) if init.alive() else 0
    if mended:
        log.warning("%d connections of process %d were taken out of CRIU's repair mode", mended, init.pid)
    # Only now: what arrives at a connection in repair mode is answered by an error, and the service hangs up.
    connections.release(run)


def remove_scratch(log_file: Path) -> None:
    """Remove the empty folder in /tmp on which a CRIU that was killed had built the mounts it restored.

    They were in a mount namespace that has died with it. CRIU names the folder in its log alone.

    Args:
        log_file: of that restore.
    """
    try:
        with log_file.open(encoding="utf-8", errors="replace") as file:
            named = next(filter(None, map(_SCRATCH.search, file)), None)
    except OSError:
        return
    if named is None:
        return
    with contextlib.suppress(OSError):
        os.rmdir(named[0])


def _end_repair(pid: int) -> int:
    """End the repair mode of the connections that a process holds, and return how many were in it."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return 0
    mended = 0
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    mended += _end_repair_of(descriptor, int(name))
            except OSError as error:
                log.debug("descriptor %s of process %d cannot be looked at: %s", name, pid, error)
    except OSError:
        pass  # it has ended
    finally:
        os.close(descriptor)
    return mended


def _end_repair_of(pidfd: int, number: int) -> bool:
    """End the repair mode of one socket; False if it was not in it. Raises OSError: it has gone."""
    copy = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    with socket.socket(fileno=copy) as found:
        if found.family not in {socket.AF_INET, socket.AF_INET6} or found.type != socket.SOCK_STREAM:
            return False
        if not found.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
            return False
        found.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
        return True
