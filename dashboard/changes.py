"""Which topics have changed since the last look: read from the rows, however the change came about.

Topics are words that pages wait for: "jobs", "job:ID", "services", "service:ID", "images", "audit", "tick" …
A step of a running job is told to those alone that show steps: "steps", "job:ID".
"""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime

from django.db.models import Max

from services.models import AuditEvent, JobEvent, Service
from services.states import JobState

# Two transactions may commit in another order than their events are numbered in.
_OVERLAP = 200
TICK = 5.0  # seconds


class Changes:
    """Remembers what was seen. Used by one thread at a time."""

    def __init__(self) -> None:
        self._last = 0
        self._seen: deque[int] = deque(maxlen=4 * _OVERLAP)
        self._last_audit = 0
        self._services: dict[str, datetime] = {}
        self._ticked = 0.0
        self._begun = False

    def look(self) -> frozenset[str]:
        """Return the topics that changed since the last look; at the first one, none."""
        topics = self._jobs() | self._service_rows() | self._audit()
        if not self._begun:
            self._begun = True
            return frozenset()
        if time.monotonic() - self._ticked > TICK:
            self._ticked = time.monotonic()
            topics.add("tick")
        return frozenset(topics)

    def _jobs(self) -> set[str]:
        if not self._begun:
            self._last = JobEvent.objects.aggregate(last=Max("pk"))["last"] or 0
            self._seen.extend(range(max(0, self._last - _OVERLAP), self._last + 1))
            return set()
        seen = set(self._seen)
        rows = JobEvent.objects.filter(pk__gt=self._last - _OVERLAP).order_by("pk")
        topics = set()
        names = ("pk", "job_id", "status", "step", "job__service_ref", "job__image_id")
        for pk, job, status, step, service, image in rows.values_list(*names):
            if pk in seen:
                continue
            self._seen.append(pk)
            self._last = max(self._last, pk)
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

    def _audit(self) -> set[str]:
        """What is no job: new names, tokens, looks at an environment."""
        rows = AuditEvent.objects.filter(pk__gt=self._last_audit).order_by("pk")
        topics: set[str] = set()
        if not self._begun:
            self._last_audit = AuditEvent.objects.aggregate(last=Max("pk"))["last"] or 0
            return topics
        for pk, kind, target in rows.values_list("pk", "target_kind", "target_id"):
            self._last_audit = pk
            topics |= {"audit", f"{kind}s", f"{kind}:{target}"}
        return topics
