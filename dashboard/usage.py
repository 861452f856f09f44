"""CPU and memory of a service over the last hour, as two small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from dashboard.axis import Axis
from services.loads import EVERY, FRESH, KEPT
from services.models import Service, ServiceLoad, ServiceSample

WIDTH, HEIGHT = 720, 100
GAP = timedelta(seconds=3 * EVERY)  # a longer silence is drawn as one


@dataclass(frozen=True)
class Curve:
    """A figure over time. line, area: paths, WIDTH by HEIGHT units. most: what the top of the picture is."""

    line: str
    area: str
    most: float
    last: float | None


@dataclass(frozen=True)
class Usage:
    """The last hour, and the newest figures; load is None for a service that does not run."""

    cpu: Curve
    memory: Curve
    load: ServiceLoad | None
    samples: int


def last_hour(service: Service) -> Usage:
    """Read the figures; two queries."""
    now = timezone.now()
    axis = Axis(now - KEPT, now)
    rows = list(
        ServiceSample.objects.filter(service=service, at__gte=axis.begin)
        .order_by("at")
        .values_list("at", "cpu", "memory")
    )
    load = ServiceLoad.objects.filter(service=service, at__gte=now - FRESH).first()
    processor = [(at, cpu) for at, cpu, _memory in rows if cpu is not None]
    memory = [(at, float(size)) for at, _cpu, size in rows]
    return Usage(_curve(axis, processor, 0.1), _curve(axis, memory, 2.0**20), load, len(rows))


def _curve(axis: Axis, points: list[tuple[datetime, float]], least: float) -> Curve:
    most = max([least, *(value for _at, value in points)]) * 1.1
    line, area, first = "", "", 0.0
    before: datetime | None = None
    for at, value in points:
        x = axis.x(at) / 100 * WIDTH
        y = HEIGHT * (1 - value / most)
        if before is None or at - before > GAP:
            area += f"V{HEIGHT}H{first:.0f}Z" if area else ""
            line += f"M{x:.1f} {y:.1f}"
            area += f"M{x:.1f} {HEIGHT}V{y:.1f}"
            first = x
        else:
            line += f"L{x:.1f} {y:.1f}"
            area += f"L{x:.1f} {y:.1f}"
        before = at
    area += f"V{HEIGHT}H{first:.0f}Z" if area else ""
    return Curve(line, area, most, points[-1][1] if points else None)
