"""Locks that the kernel takes back when their holder dies. Knows nothing of what they protect."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # runmh, which holds a lock as long as it lives, stays small without pathlib
    from collections.abc import Iterator
    from pathlib import Path

_LOOK_EVERY = 0.01


def take(path: str | Path) -> int | None:
    """Take the lock file `path` for this process.

    Returns:
        The descriptor that holds the lock until it is closed, or None if another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def waited_for(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path` for the block, waiting until nobody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
            os.close(descriptor)
