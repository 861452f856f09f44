"""Waits for a job without asking all the time: by the bell, or by the rows each half second without Redis."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from django.conf import settings
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services import bell
from services.models import Job, JobEvent
from services.presenting import event_object, job_object
from services.states import ENDED_JOB, JobState
from services.threads import in_thread

LONGEST = 3600  # seconds
POLL = 0.5  # seconds between two looks without Redis
LOOK_ANYWAY = 5.0  # seconds between two looks with it: a ring can be lost
TRY_AGAIN = 10  # looks without Redis until it is asked for again
KEEP_ALIVE = 15.0  # seconds of silence after which a stream sends an empty line


def load(job_id: str) -> Job:
    """Return the job with all that its object shows."""
    job = Job.objects.for_display().get(pk=job_id)
    job.known_events = list(job.events.all())
    return job


def _new_events(job_id: str, after: int) -> list[JobEvent]:
    return list(JobEvent.objects.filter(job_id=job_id, pk__gt=after))


async def events(job: Job, seconds: float) -> AsyncGenerator[JobEvent | None, None]:
    """Yield the job's events as they are written, until it ended or `seconds` are over.

    None is yielded when nothing happened for a while, so that the caller can do something else.
    """
    deadline = time.monotonic() + seconds
    last = 0
    for event in job.known_events or []:
        last = event.pk
        yield event
        if JobState(event.status) in ENDED_JOB:
            return
    # Closed by hand, here and below: a generator left half way would keep its connection until it is
    # collected, on a loop that may be gone by then.
    async with aclosing(_wakes(job.pk, deadline)) as wakes:
        async for _ in wakes:
            fresh = await in_thread(_new_events, job.pk, last)
            for event in fresh:
                last = event.pk
                yield event
                if JobState(event.status) in ENDED_JOB:
                    return
            if not fresh:
                yield None


def _client() -> redis.Redis:
    """Return what subscribes without introducing itself, for it lives no longer than one wait."""
    return redis.Redis.from_url(
        bell.redis_url(settings.CELERY_BROKER_URL),
        socket_connect_timeout=bell.TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )


async def _wakes(job_id: str, deadline: float) -> AsyncGenerator[None, None]:
    """Yield whenever it is worth a look at the rows: at once, at each ring, and now and then anyway."""
    client = _client()
    try:
        async with client, client.pubsub(ignore_subscribe_messages=True) as subscription:
            async with asyncio.timeout(2 * bell.TIMEOUT):
                await subscription.subscribe(bell.channel(job_id))
            while True:
                yield None  # the first time after subscribing: what came before is in the rows
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                await subscription.get_message(timeout=min(left, LOOK_ANYWAY))
    except (RedisError, OSError):
        pass
    while time.monotonic() < deadline:
        await asyncio.sleep(min(POLL, max(0.0, deadline - time.monotonic())))
        yield None


async def rings(look_anyway: float) -> AsyncGenerator[None, None]:
    """Yield for ever: at once, whenever anything's bell rings, and each `look_anyway` seconds anyway.

    Without Redis it is each half second, until Redis is there again.
    """
    while True:
        client = _client()
        try:
            async with client, client.pubsub(ignore_subscribe_messages=True) as subscription:
                async with asyncio.timeout(2 * bell.TIMEOUT):
                    await subscription.psubscribe(bell.EVERY_CHANNEL)
                yield None
                while True:
                    await subscription.get_message(timeout=look_anyway)
                    # The rest of a burst is answered by the same look.
                    while await subscription.get_message(timeout=0):
                        pass
                    yield None
        except (RedisError, OSError):
            pass
        for _ in range(TRY_AGAIN):
            await asyncio.sleep(POLL)
            yield None


async def ended(job: Job, seconds: float) -> Job:
    """Return the job when it has ended, or as it is after `seconds`."""
    async with aclosing(events(job, seconds)) as happening:
        async for _event in happening:
            pass
    return await in_thread(load, job.pk)


async def lines(job: Job, seconds: float) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Yield {"event": …} as they happen, None when it is time for a keep-alive, and {"job": …} at last."""
    spoken = time.monotonic()
    warning = job_object(job).get("warning")
    async with aclosing(events(job, seconds)) as happening:
        async for event in happening:
            if event is not None:
                line: dict[str, Any] = {"event": {"job": job.pk, **event_object(event)}}
                if warning:
                    line["warning"] = warning
                    warning = None
                spoken = time.monotonic()
                yield line
                if JobState(event.status) in ENDED_JOB:
                    # Said before the connection to Redis is closed: somebody waits for this line.
                    yield {"job": job_object(await in_thread(load, job.pk))}
                    return
            elif time.monotonic() - spoken >= KEEP_ALIVE:
                spoken = time.monotonic()
                yield None
    yield {"job": job_object(await in_thread(load, job.pk))}
