"""Rings when a job changed: a Redis PUBLISH on the job's channel. It knows no rows and carries no data.

Losing a ring is harmless: who waits also reads the rows from time to time.
"""

import logging
from functools import lru_cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

log = logging.getLogger(__name__)

TIMEOUT = 0.2  # seconds; a dead Redis must not hold a request or a job


def channel(job_id: str) -> str:
    """Return the name of the channel of a job."""
    return f"miehisto.job.{job_id}"


def redis_url(broker_url: str) -> str:
    """Return Celery's broker address in redis-py's spelling (it says unix:// for a socket)."""
    if broker_url.startswith("redis+socket://"):
        return "unix://" + broker_url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    return broker_url


@lru_cache(maxsize=4)
def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )


def ring(job_id: str) -> bool:
    """Wake whoever waits for the job; call it after the commit. Returns False when Redis is away."""
    try:
        _client(redis_url(settings.CELERY_BROKER_URL)).publish(channel(job_id), b"")
    except (RedisError, OSError) as error:
        log.debug("no bell for job %s: %s", job_id, error)
        return False
    return True
