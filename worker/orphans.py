"""Processes that nobody waits for: a supervisor outlives its launcher, and not every host's PID 1 reaps.

A zombie keeps its PID, so a daemon of ours adopts what it launched (prctl(2), PR_SET_CHILD_SUBREAPER) and
reaps it. Knows nothing of services.
"""

from __future__ import annotations

import ctypes
import os

from worker import process

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Make this process the parent of every descendant that is orphaned from now on.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(known: frozenset[int] = frozenset()) -> list[int]:
    """Reap children that have ended, but for those in `known`, whose parents' code waits for them itself.

    Returns:
        The PIDs that were reaped.
    """
    reaped = []
    for pid in process.children(os.getpid()):
        if pid not in known and process.Process.of(pid) is None:
            try:
                found, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if found:
                reaped.append(pid)
    return reaped
