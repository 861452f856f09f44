"""What ended jobs add up to, counted once and then only brought up to date.

It is made from rows alone, so each process of the site counts the same, and nothing is lost when one ends.
What ended before yesterday is kept as a row of sums, so that a process need not read the whole history first.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DatabaseError
from django.db.models import Q
from django.utils import timezone

from services.models import Job, JobSums
from services.states import JobKind, JobState

log = logging.getLogger(__name__)

PAGE = 4096  # bytes, as CRIU counts pages
SETTLED = timedelta(days=1)  # no job that ended so long ago is still to be seen for the first time
# A job may be seen later than another that ended after it: each look begins so much before the last one.
OVERLAP = timedelta(minutes=2)

LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Histogram:
    """How many values lie under each bound. bounds: seconds, upwards."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value, in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return what lies at or under each bound, as Prometheus has it, the last one being all."""
        total, found = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Sums:
    """What some jobs add up to, in seconds and bytes, by the labels that the figures have."""

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str, str], int] = defaultdict(int)
        self.seconds: dict[tuple[str, ...], Histogram] = defaultdict(lambda: Histogram(LONG))
        self.waited: dict[tuple[str, ...], Histogram] = defaultdict(lambda: Histogram(SHORT))
        self.frozen: dict[tuple[str, ...], Histogram] = defaultdict(lambda: Histogram(SHORT))
        self.dumped_bytes: dict[str, int] = defaultdict(int)

    def add(self, ended: Q, known: dict[str, datetime]) -> None:
        """Add the jobs for which `ended` is true and that are not known yet: now they are.

        known: id → when it ended.
        """
        rows = Job.objects.order_by().filter(ended, finished_at__isnull=False)
        names = ("id", "kind", "status", "node__name", "queued_at", "started_at", "finished_at", "statistics")
        for key, kind, status, node, queued, started, finished, statistics in rows.values_list(
            *names
        ).iterator(2000):
            if key in known:
                continue
            assert finished is not None  # the filter's word
            known[key] = finished
            self.ended[node, kind, status] += 1
            if started is not None:
                self.waited[node,].add(max((started - queued).total_seconds(), 0.0))
                self.seconds[node, kind].add(max((finished - started).total_seconds(), 0.0))
            if kind == JobKind.DUMP and status == JobState.SUCCEEDED:
                self.frozen[node,].add(statistics.get("frozen_time", 0) / 1e6)
                self.dumped_bytes[node] += statistics.get("pages_written", 0) * PAGE

    def packed(self) -> dict[str, Any]:
        """Return them as JSON has it."""
        return {
            "ended": [[*key, number] for key, number in self.ended.items()],
            "dumped_bytes": dict(self.dumped_bytes),
            **{
                name: [[key, list(one.bounds), one.counts, one.sum] for key, one in found.items()]
                for name, found in self._histograms().items()
            },
        }

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Sums | None:
        """Return what packed() gave; None when it was of other histograms than this version's."""
        sums = cls()
        for node, kind, status, number in packed["ended"]:
            sums.ended[node, kind, status] = number
        sums.dumped_bytes.update(packed["dumped_bytes"])
        for name, found in sums._histograms().items():
            if not isinstance(packed[name], list):
                return None
            for labels, bounds, counts, total in packed[name]:
                one = found[tuple(labels)]
                if bounds != list(one.bounds):
                    return None
                one.counts, one.sum = counts, total
        return sums

    def _histograms(self) -> dict[str, dict[tuple[str, ...], Histogram]]:
        return {"seconds": self.seconds, "waited": self.waited, "frozen": self.frozen}


def settled(until: datetime) -> Sums:
    """Return what the jobs that ended before `until` add up to, and keep it for the next who asks."""
    row = JobSums.objects.first()
    # One of the future is from a clock that was wrong.
    sums = Sums.unpacked(row.sums) if row and row.until <= until else None
    if row and row.until == until and sums:
        return sums
    since = Q(finished_at__gte=row.until) if row and sums else Q()
    sums = sums or Sums()
    sums.add(since & Q(finished_at__lt=until), {})
    try:
        # Others who count at this moment come to the same.
        JobSums.objects.update_or_create(pk=1, defaults={"until": until, "sums": sums.packed()})
    except DatabaseError as error:
        log.warning("the sums of jobs cannot be kept, and will be made anew: %s", error)
    return sums


class History:
    """The sums over all ended jobs of the database."""

    def __init__(self) -> None:
        self.sums = Sums()
        self._settled: datetime | None = None
        self._latest = datetime(1970, 1, 2, tzinfo=UTC)
        self._recent: dict[str, datetime] = {}
        self.lock = threading.Lock()

    def catch_up(self) -> None:
        """Count the jobs that ended since the last call; the caller holds the lock."""
        until = (timezone.now() - SETTLED).replace(hour=0, minute=0, second=0, microsecond=0)
        if until != self._settled:
            sums = settled(until)
            if self._settled is None:
                self.sums, self._latest = sums, until + OVERLAP
            self._settled = until
        self.sums.add(Q(finished_at__gte=self._latest - OVERLAP), self._recent)
        self._latest = max(self._latest, *self._recent.values()) if self._recent else self._latest
        since = self._latest - OVERLAP
        self._recent = {key: at for key, at in self._recent.items() if at >= since}
