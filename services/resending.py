"""Sends jobs again that the queue may have lost. It knows neither how a job is made nor done.

A job that waits is mostly not lost: other jobs go before it. So it is sent again at growing distances, and at
once only to a queue that has forgotten all. Nothing depends on a clock that somebody may set.
"""

import time
from collections.abc import Callable

from services import bell, enqueue
from services.models import Job
from services.states import JobState

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0  # seconds


class Resender:
    """Looks after the jobs that wait on one node.

    clock: seconds that only grow; tests have one of their own.
    """

    def __init__(self, node_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._node_name = node_name
        self._clock = clock
        self._queue = ""
        self._due: dict[str, tuple[float, float]] = {}  # when, and how long after the time before

    def sweep(self) -> int:
        """Send what is due. Returns how many jobs were sent."""
        now = self._clock()
        waiting = Job.objects.filter(node__name=self._node_name, status=JobState.QUEUED)
        jobs = list(waiting.select_related("node").order_by("queued_at"))
        if not jobs:
            self._due.clear()
            return 0
        queue = bell.run_of_queue()
        forgotten = queue not in {"", self._queue}
        self._queue = queue or self._queue
        self._due = {
            job.pk: (now, 0.0)
            if forgotten or job.sent_at is None
            else self._due.get(job.pk, (now + FIRST_PAUSE, FIRST_PAUSE))
            for job in jobs
        }
        sent = 0
        for job in jobs:
            due, pause = self._due[job.pk]
            if due > now:
                continue
            if not enqueue.resend(job):
                break  # the broker is away; the others would wait for the same timeout
            pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._due[job.pk] = (now + pause, pause)
            sent += 1
        return sent
