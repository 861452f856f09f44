"""Keeps out of the processes that a thread forks what another thread is in the midst of.

SQLite notes in the memory of its process which locks that process holds (os_unix.c, `unixShmNode`). A process
that is forked while a thread holds one believes for ever that it is held: "database is locked", by nobody.
So a fork waits until the thread has finished with the database, and closes its connection before it happens.
It waits, too, until a lock file that was opened is noted as such, and one that is not any more is closed; and
until a program that a thread starts has begun: who is forked in that moment would keep open, as long as he
lives, the pipe by whose end Python knows that it has, and those to which it prints.
Knows neither jobs nor services.
"""

from __future__ import annotations

import _thread  # runmh, which holds a lock, stays small without threading
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_in_use = _thread.RLock()
_moment = _thread.allocate_lock()
_closers: list[Callable[[], None]] = []


@contextmanager
def kept_away() -> Iterator[None]:
    """Let no fork happen during the block."""
    with _in_use:
        yield


@contextmanager
def put_off() -> Iterator[None]:
    """Let no fork happen during the block, a short one that waits for nothing: no lock, no database."""
    with _moment:
        yield


def close_before_each(close: Callable[[], None]) -> None:
    """Call `close`, which must end a connection, in the thread that forks, before it does."""
    _closers.append(close)


def _before() -> None:
    _in_use.acquire()
    for close in _closers:
        close()
    # The last: who is in such a moment waits for nobody, but may have the database in use.
    _moment.acquire()


def _in_parent() -> None:
    _moment.release()
    _in_use.release()


def _in_child() -> None:
    _closers.clear()
    _in_parent()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
