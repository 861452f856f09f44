"""A thread of the worker's main process that does something again and again, with a database of its own.

It knows what threads of that process have to mind: it forks the pool's processes.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, close_old_connections, connections

from worker import forks

log = logging.getLogger(__name__)


class Background(ABC):
    """Takes a turn every so often until it is stopped; a turn that fails is logged, and the next is taken."""

    name = "background"
    every = 1.0
    """Seconds between two turns."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    @abstractmethod
    def turn(self) -> None:
        """Do it once; rows are read and written within `database` alone."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more turns; the present one is not waited for."""
        self.stopping.set()

    @contextmanager
    def database(self) -> Iterator[None]:
        """Hold off forks for a few statements."""
        with forks.kept_away():
            close_old_connections()
            yield

    def _run(self) -> None:
        mine = connections["default"]
        mine.inc_thread_sharing()
        forks.close_before_each(mine.close)
        while not self.stopping.wait(self.every):
            try:
                self.turn()
            except DatabaseError as error:
                log.warning("the %s cannot use the database, and tries again: %s", self.name, error)
            except Exception:
                log.exception("the %s failed at a turn, and goes on", self.name)
        mine.close()
