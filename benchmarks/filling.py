"""Fills a node's database as if many services had lived for three months; run as a program of its own.

The rows are of another node, so that this one's agent leaves them alone. What one job's events and one
image's contents look like is taken from a real dump, made on this node before.
"""

# ruff: noqa: E402 (Django wants its settings before its models are imported)
from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")

import django

django.setup()

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection, transaction
from django.db.models import Model
from django.utils import timezone

from images.models import Image, ImageContents
from services.models import (
    AuditEvent,
    Job,
    JobEvent,
    Node,
    Service,
    ServiceEvent,
    ServiceLoad,
    ServiceSample,
)
from services.states import JobKind, JobState, ServiceState

M = TypeVar("M", bound=Model)

SEED = 20_211
DAYS = 90
CHUNK = 2000
WITH_EVENTS = 0.05  # of the jobs, and all dumps that failed
WITH_CONTENTS = 0.1  # of the images
PAIR = 2  # images of the first service that were read; its last jobs, dumps: one failed, one succeeded
SAMPLED = 0.1  # of the services that run have a sample each 10 s of the last hour

_STATES = {"running": 70, "dumped": 12, "stopped": 10, "exited": 5, "failed": 3}
_KINDS = {"dump": 40, "restore": 30, "start": 10, "stop": 8, "restart": 5, "verify_image": 7}
_ENDS = {"succeeded": 96, "failed": 3, "cancelled": 1}


class Filling:
    """One filling, the same for the same numbers.

    Args:
        pattern: a job of kind dump that succeeded here, whose image has been read.
    """

    def __init__(self, services: int, images: int, jobs: int, pattern: Job) -> None:
        self.random = random.Random(SEED)  # noqa: S311 (nothing secret)
        self.now = timezone.now()
        self.numbers = {"services": services, "images": images, "jobs": jobs}
        self.pattern = pattern
        self.events = list(pattern.events.all())
        self.image = Image.objects.get(pk=pattern.image_id)
        self.contents = ImageContents.objects.get(image=self.image)
        capabilities = Node.objects.local().capabilities
        self.node = Node.objects.create(
            name="a-large-node", last_seen_at=self.now, criu_version="4.2.1", capabilities=capabilities
        )
        self.services: list[Service] = []
        self.images: list[Image] = []
        self.last: list[str] = []

    def _id(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def _when(self, days: float = DAYS) -> datetime:
        return self.now - timedelta(days=self.random.random() * days)

    def _one_of(self, shares: dict[str, int]) -> str:
        return self.random.choices(list(shares), list(shares.values()))[0]

    def all(self) -> dict[str, str]:
        """Write every row and return the ids that the pages are to be asked for."""
        written(Service, self._services())
        written(ServiceLoad, self._loads())
        written(ServiceSample, self._samples())
        written(Image, self._images())
        written(ImageContents, self._contents())
        # In the order of time, as they would have come.
        moments = sorted(self._when() for _ in range(self.numbers["jobs"]))
        jobs = self._jobs(moments)
        while some := list(islice(jobs, CHUNK)):
            written(Job, some)
            written(JobEvent, (event for job in some for event in self._events(job)))
            written(ServiceEvent, (event for job in some for event in _life(job)))
            written(AuditEvent, (_asked(job) for job in some))
        a, b = self.images[:PAIR]
        bad, good = self.last
        return {"service": self.services[0].pk, "good": good, "bad": bad, "a": a.pk, "b": b.pk}

    def _services(self) -> Iterator[Service]:
        for number in range(self.numbers["services"]):
            made, status = self._when(), self._one_of(_STATES)
            if number == 0:  # however few there are, one runs
                status = ServiceState.RUNNING
            runs = status == ServiceState.RUNNING
            one = Service(
                id=self._id(),
                name=f"{self.random.choice(('shop', 'mail', 'wiki', 'api', 'feed'))}-{number}",
                node=self.node,
                argv=["/usr/bin/python3", "-m", "http.server", str(10_000 + number)],
                user="www-data",
                status=status,
                status_reason="It was killed by signal 9." if status in {"exited", "failed"} else "",
                pid=100_000 + 2 * number if runs else None,
                supervisor_pid=100_001 + 2 * number if runs else None,
                created_at=made,
                changed_at=made + timedelta(hours=1),
                started_at=made,
                created_by="operator",
            )
            self.services.append(one)
            yield one

    def _running(self) -> list[Service]:
        return [service for service in self.services if service.status == ServiceState.RUNNING]

    def _loads(self) -> Iterator[ServiceLoad]:
        for service in self._running():
            yield ServiceLoad(
                service=service,
                # Fresh for as long as the benchmark runs.
                at=self.now + timedelta(hours=1),
                cpu=self.random.random(),
                memory=self.random.randrange(1 << 23, 1 << 30),
                processes=3,
                listening=[f"127.0.0.1:{service.argv[-1]}"],
            )

    def _samples(self) -> Iterator[ServiceSample]:
        running = self._running()
        for service in running[: max(1, int(len(running) * SAMPLED))]:
            for number in range(360):
                at = self.now - timedelta(seconds=10 * number)
                yield ServiceSample(service=service, at=at, cpu=self.random.random(), memory=1 << 25)

    def _images(self) -> Iterator[Image]:
        for number in range(self.numbers["images"]):
            service, is_read = self.random.choice(self.services), self.random.random() < WITH_CONTENTS
            if number < PAIR:
                service, is_read = self.services[0], True
            one = Image(
                id=self._id(),
                node=self.node,
                service=service,
                service_ref=service.pk,
                comm="python3",
                path="/var/lib/miehisto/images/somewhere",
                size_bytes=self.random.randrange(1 << 23, 1 << 30),
                pages_bytes=self.random.randrange(1 << 22, 1 << 29),
                created_at=self._when(),
                status="damaged" if self.random.random() < 0.002 else "sealed",
                criu_version="4.2.1",
                argv=service.argv,
                statistics=self.image.statistics,
                manifest=self.image.manifest,
                is_read=is_read,
            )
            self.images.append(one)
            yield one

    def _contents(self) -> Iterator[ImageContents]:
        for image in self.images:
            if image.is_read:
                yield ImageContents(image=image, read_at=image.created_at, data=self.contents.data)

    def _jobs(self, moments: list[datetime]) -> Iterator[Job]:
        for number, queued in enumerate(moments, PAIR - len(moments)):
            image = self.random.choice(self.images)
            kind, status = self._one_of(_KINDS), self._one_of(_ENDS)
            if number >= 0:
                image, kind, status = self.images[0], "dump", ("failed", "succeeded")[number]
            failed = status == JobState.FAILED
            began = None if status == JobState.CANCELLED else queued + timedelta(milliseconds=8)
            took = timedelta(seconds=self.random.uniform(0.05, 2))
            job = Job(
                id=self._id(),
                kind=kind,
                service_id=image.service_id,
                service_ref=image.service_ref,
                node=self.node,
                image_id=image.pk if "image" in kind or kind in {"dump", "restore"} else "",
                status=status,
                step="freezing and writing memory" if failed else "",
                requested_by=self.random.choice(("operator", "schedule", "admin")),
                source=self.random.choice(("web", "api", "mhctl", "schedule")),
                service_state_before="running",
                queued_at=queued,
                sent_at=queued,
                started_at=began,
                finished_at=(began or queued) + took,
                worker="a-large-node",
                error_code="external_socket" if failed else "",
                error_message="The peer of a socket is outside of the service." if failed else "",
                error_remedy="Close the connection and dump again." if failed else "",
                error_lines=["(00.01) Error (criu/sk-unix.c:1): Can't dump half of it"] if failed else [],
                result={} if failed else self.pattern.result,
                statistics=self.pattern.statistics if kind == JobKind.DUMP and not failed else {},
            )
            self.last = [*self.last, job.pk][-PAIR:]
            yield job

    def _events(self, job: Job) -> Iterator[JobEvent]:
        told = (job.kind, job.status) == ("dump", "failed") or job.pk in self.last
        if self.random.random() >= WITH_EVENTS and not told:
            return
        *before, last = self.events
        for event in before:
            at = job.queued_at + (event.at - self.pattern.queued_at)
            yield JobEvent(job=job, at=at, status=event.status, step=event.step, text=event.text)
        assert job.finished_at
        yield JobEvent(job=job, at=job.finished_at, status=job.status, text=last.text)


def _life(job: Job) -> Iterator[ServiceEvent]:
    ended = {JobKind.DUMP: "dumped", JobKind.STOP: "stopped"}.get(JobKind(job.kind), "running")
    if job.finished_at and job.status == JobState.SUCCEEDED and "image" not in job.kind:
        yield ServiceEvent(service_ref=job.service_ref, at=job.finished_at, status=ended)


def _asked(job: Job) -> AuditEvent:
    return AuditEvent(
        at=job.queued_at,
        actor=job.requested_by,
        source=job.source,
        address="192.0.2.7",
        action=job.kind,
        target_kind="image" if "image" in job.kind else "service",
        target_id=job.image_id if "image" in job.kind else job.service_ref,
        outcome="asked",
        detail={"job": job.pk},
    )


def written(model: type[M], rows: Iterable[M]) -> None:
    """Insert rows, some thousands in a transaction, so that the node can write in between."""
    waiting = iter(rows)
    while some := list(islice(waiting, CHUNK)):
        with transaction.atomic():
            model._default_manager.bulk_create(some)


def session() -> str:
    """Return the key of a session of the node's first admin."""
    user = User.objects.filter(is_superuser=True)[0]
    store = SessionStore()
    store[SESSION_KEY] = str(user.pk)
    store[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    store[HASH_SESSION_KEY] = user.get_session_auth_hash()
    store.create()
    return str(store.session_key)


def main() -> None:
    """Fill, have the database look at its tables, and print ids and a session as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("services", "images", "jobs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--pattern", required=True, help="a job of this node: a dump that succeeded")
    arguments = parser.parse_args()
    if arguments.services < 1 or min(arguments.images, arguments.jobs) < PAIR:
        parser.error(f"one service, {PAIR} images and {PAIR} jobs are the least that the pages can show")
    pattern = Job.objects.get(pk=arguments.pattern)
    found: dict[str, Any] = Filling(arguments.services, arguments.images, arguments.jobs, pattern).all()
    if connection.vendor == "postgresql":
        # What its own autovacuum does within a minute of so many rows.
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
    json.dump({**found, "session": session()}, sys.stdout)


if __name__ == "__main__":
    main()
