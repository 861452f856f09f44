"""Sends a job's id to the queue of its node, and rings its bell. It knows neither how a job is made nor done.

The database is the truth: a job that could not be sent stays queued and is sent again by the agent.
"""

import logging
from functools import lru_cache
from typing import Any

from celery import current_app
from django.utils import timezone
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from services import bell
from services.models import Job
from services.states import JobState

log = logging.getLogger(__name__)

TASK = "miehisto.run_job"
TIMEOUT = 0.2  # seconds; so long a request may hang on a Redis that doesn't answer
BROKER_ERRORS = (KombuError, RedisError, OSError)


@lru_cache(maxsize=1)
def _connections() -> Any:
    """The site's own connections to the broker: impatient ones, whereas a worker's wait for work."""
    return current_app.connection_for_write(
        connect_timeout=TIMEOUT,
        transport_options={
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            "retry_on_timeout": False,
            "max_retries": 0,
            "connect_retries_timeout": TIMEOUT,
        },
    ).Pool(8)


def send(job_id: str, node_name: str) -> bool:
    """Put the job's id into the queue of its node. Returns False, and logs, when the broker is away."""
    try:
        with _connections().acquire(block=True, timeout=TIMEOUT) as connection:
            current_app.send_task(
                TASK, [job_id], queue=f"node.{node_name}", connection=connection, retry=False
            )
    except BROKER_ERRORS as error:
        log.warning("job %s stays queued, cannot reach the queue: %s", job_id, error)
        return False
    return True


def announce_new(job: Job) -> None:
    """Send a job just committed and ring its bell; marks the row when it could not be sent."""
    if send(job.id, job.node.name):
        bell.ring(job.id)
        return
    job.sent_at = None
    Job.objects.filter(pk=job.pk, status=JobState.QUEUED).update(sent_at=None)


def resend(job: Job) -> bool:
    """Send a waiting job once more; delivery twice is harmless, for a claim succeeds once."""
    if not send(job.id, job.node.name):
        return False
    Job.objects.filter(pk=job.pk, status=JobState.QUEUED).update(sent_at=timezone.now())
    return True
