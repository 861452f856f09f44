"""Rings when a job, a service or an image changed: a Redis PUBLISH on its channel.

It knows no rows, and carries no data. Losing a ring is harmless: who waits also reads the rows from time to
time.
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


EVERY_CHANNEL = "miehisto.*"  # a pattern, for who wants to hear of everything


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


def run_of_queue() -> str:
    """Return what names the present run of Redis, whose memory goes with it; "" if it does not say."""
    try:
        said = _client(redis_url(settings.CELERY_BROKER_URL)).info("server")
    except (RedisError, OSError) as error:
        log.debug("the queue does not say which it is: %s", error)
        return ""
    return str(said.get("run_id", "")) if isinstance(said, dict) else ""


def ring(job_id: str) -> bool:
    """Wake whoever waits for the job; call it after the commit. Returns False when Redis is away."""
    return _publish(channel(job_id))


def ring_service(service_id: str) -> bool:
    """Wake the pages that show the service; call it after the commit. Returns False when Redis is away."""
    return _publish(f"miehisto.service.{service_id}")


def ring_image(image_id: str) -> bool:
    """Wake the pages that show the image; call it after the commit. Returns False when Redis is away."""
    return _publish(f"miehisto.image.{image_id}")


def _publish(name: str) -> bool:
    try:
        _client(redis_url(settings.CELERY_BROKER_URL)).publish(name, b"")
    except (RedisError, OSError) as error:
        log.debug("no bell on %s: %s", name, error)
        return False
    return True
