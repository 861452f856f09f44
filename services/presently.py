"""What a service does at this moment: asked of its node by Redis, for the site may not look itself."""

import json
from typing import Any

from django.conf import settings
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services import bell
from services.models import Service, new_id
from services.problems import Problem
from services.states import ServiceState

_PATIENCE = 3  # seconds
_MOST_WAITING = 100


async def now(service: Service) -> dict[str, Any]:
    """Return processes, files and sockets of a running service, as its node sees them now.

    service: with its node loaded. Raises Problem service_not_running, node_silent.
    """
    if service.state not in {ServiceState.RUNNING, ServiceState.DUMPING}:
        raise _not_running(service)
    reply = new_id()
    queue = f"miehisto.look.{service.node.name}"
    client = redis.Redis.from_url(
        bell.redis_url(settings.CELERY_BROKER_URL),
        socket_connect_timeout=bell.TIMEOUT,
        socket_timeout=_PATIENCE + 1,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        async with client:
            async with client.pipeline() as pipe:
                pipe.rpush(queue, f"{service.pk} {reply}")
                # Questions that nobody answers are not kept for when somebody does.
                pipe.ltrim(queue, -_MOST_WAITING, -1)
                pipe.expire(queue, _PATIENCE)
                await pipe.execute()
            answer = await client.blpop([f"miehisto.seen.{reply}"], timeout=_PATIENCE)
    except (RedisError, OSError):
        answer = None
    if not answer:
        raise Problem(
            "node_silent",
            f"The node {service.node.name} does not answer.",
            "See whether its worker and the queue run (the node's heartbeat), then ask again.",
            http_status=503,
        )
    found: dict[str, Any] = json.loads(answer[1])
    if not found.pop("running"):
        raise _not_running(service)
    return found


def _not_running(service: Service) -> Problem:
    return Problem(
        "service_not_running",
        f"Service {service} has no process to look at; it is {service.status}.",
        "Start it, or restore an image of it.",
        details={"service": service.pk, "status": service.status},
    )
