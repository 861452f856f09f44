"""Locks that the kernel takes back when their holder dies. Knows nothing of what they protect."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker import forks

if TYPE_CHECKING:  # runmh, which holds a lock as long as it lives, stays small without pathlib
    from collections.abc import Iterator
    from pathlib import Path

_LOOK_EVERY = 0.01
_held: set[int] = set()
"""Descriptors of this process's locks, which a process that it forks shall not have."""


def take(path: str | Path) -> int | None:
    """Take the lock file `path` for this process.

    Returns:
        The descriptor that holds the lock until it is closed, or None if another process has it.
    """
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _let_go(descriptor)
        return None
    return descriptor


@contextmanager
def waited_for(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path` for the block, waiting until nobody else has it."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _let_go(descriptor)


@contextmanager
def held(path: str | Path, patience: float = 0.0) -> Iterator[int | None]:
    """Hold the lock file `path` for the block, or longer in a process that inherits the descriptor.

    Args:
        path: the lock file.
        patience: seconds to wait for another process that has the lock.

    Yields:
        The descriptor, or None if another process has the lock or the folder is gone.
    """
    deadline = time.monotonic() + patience
    try:
        while (descriptor := take(path)) is None and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
    except FileNotFoundError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            _let_go(descriptor)


def _open(path: str | Path) -> int:
    # Python lets other threads run while it opens or closes a file, so one could fork in between.
    with forks.put_off():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _held.add(descriptor)
    return descriptor


def _let_go(descriptor: int) -> None:
    with forks.put_off():
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _in_child() -> None:
    """Let go in a process that was forked: it would hold the lock of another thread for its lifetime."""
    for descriptor in list(_held):
        _let_go(descriptor)


# Who is handed a lock on purpose is started as a program, and does not come by here.
os.register_at_fork(after_in_child=_in_child)
