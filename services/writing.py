"""How a worker meets its rows: steps beside the work, the rest for certain. It knows nothing of the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from django.db import (
    DatabaseError,
    Error,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connections,
)
from django.utils import timezone

from services import progress
from services.models import Job

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_PASSING = {"25006", "25P03", "25P04"}
"""PostgreSQL's codes of what psycopg calls an internal error and is none: a standby that takes no writes yet,
a session or transaction that was ended because it took too long."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Steps:
    """Writes the steps of a job in a thread of its own.

    A service is frozen in some of them and must not wait for a database that somebody else holds. They are
    notes: one that cannot be written is no reason to fail.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="steps")

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the last step is written, so that the job's end comes after it."""
        # Not `connection.close`, which would be that of the thread that says so here.
        self._thread.submit(connections.close_all)
        self._thread.shutdown()

    def enter(self, step: str) -> None:
        """Say what is about to be done."""
        at = timezone.now()

        def write() -> None:
            close_old_connections()  # it may have broken under the step before
            try:
                progress.enter_step(self._job, step, at=at)
            except DatabaseError as error:
                log.warning("job %s: its step %r is not written: %s", self._job.pk, step, error)

        self._thread.submit(write)


def _is_away(error: Error) -> bool:
    """Tell whether an error is about the database, and not about what is asked or a row says."""
    if isinstance(error, OperationalError | InterfaceError):
        return True
    return getattr(error.__cause__, "sqlstate", None) in _PASSING


def surely(ask: Callable[[], _T]) -> _T:
    """Read or write, however long the database is away, and return what came of it.

    What has been done already cannot be undone, and what needs a row only to be done well shall not fail for
    want of it. A worker that is ended meanwhile leaves a lost job, which is settled by what lies on the disk.

    Args:
        ask: what may be done more than once; a query set that is not evaluated in it asks nothing yet.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return ask()
        except Error as error:
            if not _is_away(error):
                raise
            log.warning("the database cannot be used, trying again in %g s: %s", pause, error)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        close_old_connections()  # one that broke is of no use any more
