"""The scheduler: Celery's beat, whose every look is at the schedules of all nodes. It knows no dump.

Of beat it has the process: its start, its logs, its end. Celery's own table of entries stays empty, for what
is due is asked of the database, which forgets nothing when a scheduler is killed.
"""

import logging

from celery.beat import Scheduler as Beat
from django.db import Error as DatabaseAway
from django.db import close_old_connections

from images import schedules

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds; so long at most a new schedule goes unnoticed, and so late at most a dump is asked for."""


class Scheduler(Beat):
    """What `celery beat -S images.scheduler.Scheduler` runs."""

    _away = False

    def tick(self, *_: object) -> float:
        """Look once. Returns the seconds until the next look; a database that is away is waited for."""
        try:
            close_old_connections()
            schedules.look()
            self._away = False
        except DatabaseAway as error:
            if not self._away:
                log.warning("the scheduler cannot read what is due, and tries again: %s", error)
            self._away = True
        except Exception:
            log.exception("the scheduler failed at a look, and goes on")
        return LOOK_EVERY
