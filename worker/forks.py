"""Keeps a database connection of one thread out of the processes that another thread forks.

SQLite notes in the memory of its process which locks that process holds (os_unix.c, `unixShmNode`). A process
that is forked while a thread holds one believes for ever that it is held: "database is locked", by nobody.
So a fork waits until the thread has finished with the database, and closes its connection before it happens.
Knows neither jobs nor services.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_in_use = threading.RLock()
_closers: list[Callable[[], None]] = []


@contextmanager
def kept_away() -> Iterator[None]:
    """Let no fork happen during the block."""
    with _in_use:
        yield


def close_before_each(close: Callable[[], None]) -> None:
    """Call `close`, which must end a connection, in the thread that forks, before it does."""
    _closers.append(close)


def _before() -> None:
    _in_use.acquire()
    for close in _closers:
        close()


def _in_child() -> None:
    _closers.clear()
    _in_use.release()


os.register_at_fork(before=_before, after_in_parent=_in_use.release, after_in_child=_in_child)
