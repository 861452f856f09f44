"""What ended jobs add up to, counted once and then only brought up to date.

It is made from rows alone, so each process of the site counts the same, and nothing is lost when one ends.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from services.models import Job
from services.states import JobKind, JobState

PAGE = 4096  # bytes, as CRIU counts pages
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


class History:
    """The sums over all ended jobs of the database."""

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str, str], int] = defaultdict(int)
        self.seconds: dict[str, Histogram] = defaultdict(lambda: Histogram(LONG))
        self.waited: dict[str, Histogram] = defaultdict(lambda: Histogram(SHORT))
        self.frozen: dict[str, Histogram] = defaultdict(lambda: Histogram(SHORT))
        self.dumped_bytes: dict[str, int] = defaultdict(int)
        self._latest = datetime(1970, 1, 2, tzinfo=UTC)
        self._recent: dict[str, datetime] = {}
        self.lock = threading.Lock()

    def catch_up(self) -> None:
        """Count the jobs that ended since the last call; the caller holds the lock."""
        jobs = Job.objects.order_by().filter(finished_at__gt=self._latest - OVERLAP)
        rows = jobs.values_list(
            "id", "kind", "status", "node__name", "queued_at", "started_at", "finished_at", "statistics"
        )
        for key, kind, status, node, queued, started, finished, statistics in rows.iterator(2000):
            if key in self._recent:
                continue
            assert finished is not None  # the filter's word
            self._recent[key] = finished
            self._latest = max(self._latest, finished)
            self.ended[node, kind, status] += 1
            if started is not None:
                self.waited[node].add(max((started - queued).total_seconds(), 0.0))
                self.seconds[kind].add(max((finished - started).total_seconds(), 0.0))
            if kind == JobKind.DUMP and status == JobState.SUCCEEDED:
                self.frozen[node].add(statistics.get("frozen_time", 0) / 1e6)
                self.dumped_bytes[node] += statistics.get("pages_written", 0) * PAGE
        since = self._latest - OVERLAP
        self._recent = {key: at for key, at in self._recent.items() if at > since}
