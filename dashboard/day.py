"""The picture of the last 24 hours: when jobs ran, a lane a kind, and how long services were frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.utils import timezone

from dashboard.axis import Axis
from services.models import Job
from services.states import JobKind, JobState

MOST_JOBS = 2_000  # more would be a black bar, and slow
MOST_FROZEN = 400
BUCKETS = 144  # of ten minutes: what falls into one is one tick
LANES = {
    "dump": (JobKind.DUMP,),
    "restore": (JobKind.RESTORE,),
    "start": (JobKind.START, JobKind.RESTART),
    "stop": (JobKind.STOP, JobKind.DELETE_SERVICE),
}
OTHER = "other"
_BAD = frozenset({JobState.FAILED.value, JobState.ERRORED.value, JobState.LOST.value})
_LEAST, _MOST = 0.001, 100.0  # seconds, the ends of the logarithmic scale of frozen times


@dataclass
class Lane:
    """Jobs of one kind. ticks: (x in percent, how many, how many of them went wrong)."""

    name: str
    jobs: int = 0
    bad: int = 0
    ticks: list[tuple[float, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    """A dump. x and y in percent, y from the top; job: its id."""

    x: float
    y: float
    seconds: float
    job: str


@dataclass
class Day:
    """What the picture shows."""

    axis: Axis
    lanes: list[Lane]
    frozen: list[Frozen]
    median: float | None
    cut: bool

    @property
    def ticks(self) -> Any:
        return self.axis.ticks(6)

    @property
    def jobs(self) -> int:
        return sum(lane.jobs for lane in self.lanes)


def last_day() -> Day:
    """Read the picture; two queries."""
    now = timezone.now()
    # Its end is a round time, so that the picture of a quiet node stays the same for a while.
    end = now.replace(second=0, microsecond=0) + timedelta(minutes=10 - now.minute % 10)
    axis = Axis(end - timedelta(hours=24), end)
    recent = Job.objects.filter(queued_at__gte=axis.begin).order_by("-queued_at")
    rows = list(recent.values_list("kind", "status", "queued_at")[:MOST_JOBS])
    kinds = {kind.value: lane for lane, members in LANES.items() for kind in members}
    found: dict[str, dict[int, list[int]]] = {name: {} for name in [*LANES, OTHER]}
    for kind, status, at in rows:
        bucket = min(BUCKETS - 1, int(axis.x(at) / 100 * BUCKETS))
        count = found[kinds.get(kind, OTHER)].setdefault(bucket, [0, 0])
        count[0] += 1
        count[1] += status in _BAD
    lanes = [
        Lane(
            name,
            sum(count for count, _bad in buckets.values()),
            sum(bad for _count, bad in buckets.values()),
            [
                (round(100 * bucket / BUCKETS, 3), count, bad)
                for bucket, (count, bad) in sorted(buckets.items())
            ],
        )
        for name, buckets in found.items()
        if buckets or name != OTHER
    ]
    dumps = recent.filter(kind=JobKind.DUMP, status=JobState.SUCCEEDED)
    frozen = []
    for pk, at, statistics in dumps.values_list("pk", "queued_at", "statistics")[:MOST_FROZEN]:
        seconds = (statistics or {}).get("frozen_time", 0) / 1e6
        if seconds > 0:
            frozen.append(Frozen(axis.x(at), _height(seconds), seconds, pk))
    times = sorted(dot.seconds for dot in frozen)
    return Day(axis, lanes, frozen, times[len(times) // 2] if times else None, len(rows) == MOST_JOBS)


def _height(seconds: float) -> float:
    share = math.log10(min(max(seconds, _LEAST), _MOST) / _LEAST) / math.log10(_MOST / _LEAST)
    return round(100 - 100 * share, 2)
