"""What a campaign asks of a service: whence each verb begins, how long it lasts, what is true after it."""

from __future__ import annotations

import random
import time
from typing import Any

from tests.faults.kept import Kept

BEGINS_FROM = {
    "dump": "running",
    "copy": "running",
    "restore": "dumped",
    "start": "stopped",
    "stop": "running",
}


def lasts(size: int, verb: str) -> float:
    """Return about how many seconds a job takes that nobody disturbs."""
    if verb in {"dump", "copy", "restore"}:
        return 0.2 if size < 100 else 1.6
    return 0.7 if verb == "start" else 0.1


def ready(service: Kept, verb: str) -> None:
    """Bring a service to where a verb begins, with no image but the one that a restore needs."""
    service.bring_to(BEGINS_FROM.get(verb, "running"))
    service.forget_images(but=service.row()["image"] if verb == "restore" else None)


def under_way(service: Kept, chances: random.Random) -> tuple[str, dict[str, Any]]:
    """Ask a service for some verb, and return that and its job at some moment of it."""
    verb = chances.choice(list(BEGINS_FROM))
    ready(service, verb)
    job = service.begin(verb)
    time.sleep(chances.uniform(0, lasts(1, verb)))
    return verb, job


def after(service: Kept, verb: str) -> None:
    """Say what the service's memory must be by now, if it runs."""
    row = service.row()
    if verb == "restore" and row["status"] == "running":
        service.memory = service.images[row["image"]]
    elif verb == "start":
        service.memory = None
