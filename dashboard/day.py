"""The picture of the last 24 hours: when jobs ran, a lane a kind, and how long services were frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone

from dashboard.axis import Axis
from services.models import Job
from services.states import BAD_JOB, JobKind, JobState

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
_LEAST, _MOST = 0.001, 100.0  # seconds, the ends of the logarithmic scale of frozen times


@dataclass
class Lane:
    """Jobs of one kind. well, wrong: paths of the ticks, one unit a bucket wide, 26 high."""

    name: str
    jobs: int = 0
    bad: int = 0
    well: str = ""
    wrong: str = ""


@dataclass
class Day:
    """What the picture shows."""

    axis: Axis
    lanes: list[Lane]
    frozen: str  # a path of points, 1000 by 100 units
    median: float | None
    cut: bool

    @property
    def ticks(self) -> Any:
        return self.axis.ticks(6)

    @property
    def buckets(self) -> int:
        return BUCKETS

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
        count[1] += status in BAD_JOB
    lanes = [_lane(name, buckets) for name, buckets in found.items() if buckets or name != OTHER]
    dumps = recent.filter(kind=JobKind.DUMP, status=JobState.SUCCEEDED)
    times, points = [], []
    for at, statistics in dumps.values_list("queued_at", "statistics")[:MOST_FROZEN]:
        seconds = (statistics or {}).get("frozen_time", 0) / 1e6
        if seconds > 0:
            times.append(seconds)
            points.append(f"M{10 * axis.x(at):.0f} {_height(seconds):.0f}h0")
    median = sorted(times)[len(times) // 2] if times else None
    return Day(axis, lanes, "".join(points), median, len(rows) == MOST_JOBS)


def _lane(name: str, buckets: dict[int, list[int]]) -> Lane:
    lane = Lane(name)
    for bucket, (count, bad) in sorted(buckets.items()):
        lane.jobs += count
        lane.bad += bad
        if bad:
            lane.wrong += f"M{bucket} 0h1v26h-1z"
        else:
            lane.well += f"M{bucket} 6h1v14h-1z"
    return lane


def _height(seconds: float) -> float:
    share = math.log10(min(max(seconds, _LEAST), _MOST) / _LEAST) / math.log10(_MOST / _LEAST)
    return round(100 - 100 * share, 2)
