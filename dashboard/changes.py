"""Which topics have changed since the last look: read from the rows, however the change came about.

Topics are words that pages wait for: "jobs", "job:ID", "services", "service:ID", "images", "audit", "tick" …
A step of a running job is told to those alone that show steps: "steps", "job:ID".
"""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime
from typing import Any

from django.db.models import Max, Model

from images.models import Image
from services.models import AuditEvent, JobEvent, Service
from services.states import JobState

# Two transactions may commit in another order than their rows are numbered in.
_OVERLAP = 200
# Of a node that is away for good they stay unread. What is read beyond these is seen at the next tick.
_MOST_UNREAD = 1000
TICK = 5.0  # seconds


class _Numbered:
    """Rows of a table that is only added to, each told once."""

    def __init__(self, model: type[Model], *names: str) -> None:
        self._rows = model._default_manager.order_by("pk").values_list("pk", *names)
        self._last = 0
        self._seen: deque[int] = deque(maxlen=4 * _OVERLAP)

    def skip(self) -> None:
        """Tell nothing of the rows that there are."""
        self._last = self._rows.aggregate(last=Max("pk"))["last"] or 0
        self.fresh()

    def fresh(self) -> list[tuple[Any, ...]]:
        """Return the rows that were not seen before, their numbers first."""
        seen = set(self._seen)
        rows = [row for row in self._rows.filter(pk__gt=self._last - _OVERLAP) if row[0] not in seen]
        self._seen.extend(row[0] for row in rows)
        self._last = max([self._last, *(row[0] for row in rows)])
        return rows


class Changes:
    """Remembers what was seen. Used by one thread at a time."""

    def __init__(self) -> None:
        about = ("job_id", "status", "step", "job__service_ref", "job__image_id")
        self._events = _Numbered(JobEvent, *about)
        self._record = _Numbered(AuditEvent, "target_kind", "target_id")
        self._services: dict[str, datetime] = {}
        self._unread: set[str] = set()
        self._ticked = 0.0
        self._begun = False

    def look(self) -> frozenset[str]:
        """Return the topics that changed since the last look; at the first one, none."""
        if not self._begun:
            self._events.skip()
            self._record.skip()
        # Images after the jobs that made them: what is read by then needs no telling.
        topics = self._jobs() | self._service_rows() | self._images() | self._audit()
        if not self._begun:
            self._begun = True
            return frozenset()
        if time.monotonic() - self._ticked > TICK:
            self._ticked = time.monotonic()
            topics.add("tick")
        return frozenset(topics)

    def _jobs(self) -> set[str]:
        topics = set()
        for _pk, job, status, step, service, image in self._events.fresh():
            topics.add(f"job:{job}")
            if step and status == JobState.RUNNING:
                topics.add("steps")
                continue
            topics.add("jobs")
            if service:
                topics |= {"services", f"service:{service}"}
            if image:
                topics |= {"images", f"image:{image}"}
        return topics

    def _service_rows(self) -> set[str]:
        """What the agent saw of services, and new names; jobs are known by their events."""
        rows = dict(Service.objects.order_by().values_list("pk", "changed_at"))
        changed = {pk for pk, at in rows.items() if self._services.get(pk) != at}
        gone = self._services.keys() - rows.keys()
        self._services = rows
        return {"services", *(f"service:{pk}" for pk in changed | gone)} if changed or gone else set()

    def _images(self) -> set[str]:
        """What the worker has looked into; asked of the images alone that nobody has looked into yet."""
        rows = Image.objects.order_by().filter(is_read=False).values_list("pk", flat=True)
        unread = set(rows[:_MOST_UNREAD])
        read = self._unread - unread
        self._unread = unread
        return {f"image:{pk}" for pk in read}

    def _audit(self) -> set[str]:
        """What is no job: new names, tokens, looks at an environment."""
        topics: set[str] = set()
        for _pk, kind, target in self._record.fresh():
            topics |= {"audit", f"{kind}s", f"{kind}:{target}"}
        return topics
