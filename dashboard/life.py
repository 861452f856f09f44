"""The life line of a service: its runs, dumps, restores and deaths on one time axis, and its images on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from dashboard.axis import Axis
from images.models import Image
from services.models import Service, ServiceEvent
from services.states import ServiceState

S = ServiceState

SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7), "all": None}
MOST_EVENTS = 400
MOST_IMAGES = 300
SHOWN_AT_FIRST = 24  # the newest events, which the picture shows unless another time is asked for
NEAR = 4.2  # percent: what is nearer than that is drawn as one

_LOOKS = {
    S.RUNNING: "run",
    S.DUMPED: "cold",
    S.STARTING: "busy",
    S.DUMPING: "busy",
    S.RESTORING: "busy",
    S.STOPPING: "busy",
    S.FAILED: "bad",
}


_BECAME_RUNNING = {
    S.DUMPING: ("dumped, left running", "dump"),
    S.RESTORING: ("restored", "restore"),
    S.RUNNING: ("found with another process", "running"),
}
_BECAME = {
    S.DUMPED: ("dumped", "dump"),
    S.STOPPED: ("stopped", "stop"),
    S.EXITED: ("stopped", "stop"),
    S.FAILED: ("failed", "failed"),
}


@dataclass(frozen=True)
class Stretch:
    """The service was in one state for a time. x, width: percent."""

    x: float
    width: float
    look: str
    status: str
    begin: datetime
    end: datetime


@dataclass(frozen=True)
class Mark:
    """Something happened. what: a word. icon: of the sprite."""

    x: float
    what: str
    icon: str
    at: datetime
    text: str


@dataclass
class Hung:
    """One image, or several made at nearly the same time."""

    x: float
    images: list[Image] = field(default_factory=list)


@dataclass
class LifeLine:
    """What the picture shows."""

    axis: Axis
    span: str
    stretches: list[Stretch]
    marks: list[Mark]
    hung: list[Hung]
    events: list[Mark]

    @property
    def ticks(self) -> Any:
        return self.axis.ticks(5)


def life_line(service: Service, images: Sequence[Image], span: str) -> LifeLine:
    """Read a service's life; two queries with those for its images.

    images: newest first. span: one of SPANS; "" for what happened last.
    """
    now = timezone.now()
    rows = list(ServiceEvent.objects.filter(service_ref=service.pk).order_by("-id")[:MOST_EVENTS])[::-1]
    events = _told(rows)
    begin = _begin(service, rows, images, span, now)
    # Its end is round, so that the picture of one who does nothing stays the same for a while.
    whole = max(now - begin, timedelta(seconds=10))
    axis = Axis(begin, begin + whole * 1.01)
    return LifeLine(
        axis,
        span,
        _stretches(service, rows, axis, now),
        _spread([mark for mark in _placed(events, axis) if mark.at >= begin]),
        _hang(images, axis, begin),
        events[::-1][:40],
    )


def _begin(
    service: Service, rows: list[ServiceEvent], images: Sequence[Image], span: str, now: datetime
) -> datetime:
    asked = SPANS.get(span)
    if asked is not None:
        return now - asked
    first = min(
        [service.created_at, *(row.at for row in rows[:1]), *(image.created_at for image in images[-1:])]
    )
    if span == "all" or len(rows) <= SHOWN_AT_FIRST:
        return first - (now - first) * 0.02
    newest = rows[-SHOWN_AT_FIRST].at
    return newest - (now - newest) * 0.02


def _stretches(service: Service, rows: list[ServiceEvent], axis: Axis, now: datetime) -> list[Stretch]:
    found = []
    moments = [(row.at, row.status) for row in rows] or [(service.created_at, service.status)]
    for (at, status), (end, _next) in zip(moments, [*moments[1:], (now, "")], strict=True):
        if end < axis.begin:
            continue
        look = _LOOKS.get(ServiceState(status), "off")
        least = 0.35 if look in {"busy", "run"} else 0.0
        found.append(Stretch(axis.x(at), axis.width(at, end, least), look, status, at, end))
    return found


def _told(rows: list[ServiceEvent]) -> list[Mark]:
    """Return what happened, a mark an event that says something; x is filled in later."""
    found = []
    before = ""
    for row in rows:
        told = _what(before, row)
        if told:
            what, icon = told
            found.append(Mark(0, what, icon, row.at, row.reason or _pid(row)))
        before = row.status
    return found


def _what(before: str, row: ServiceEvent) -> tuple[str, str] | None:
    """Return what a change of state means, as words and the name of an icon; None for what says nothing."""
    state = ServiceState(row.status)
    if state is S.RUNNING:
        return _BECAME_RUNNING.get(ServiceState(before) if before else S.CREATED, ("started", "start"))
    if state is S.EXITED and before != S.STOPPING:
        code, signal = row.exit_code, row.exit_signal
        ended = f" with code {code}" if code is not None else f" by signal {signal}" if signal else ""
        return f"ended by itself{ended}", "exited"
    return _BECAME.get(state)


def _pid(row: ServiceEvent) -> str:
    return f"PID {row.pid}" if row.pid else ""


def _placed(events: list[Mark], axis: Axis) -> list[Mark]:
    return [Mark(axis.x(mark.at), mark.what, mark.icon, mark.at, mark.text) for mark in events]


def _spread(marks: list[Mark]) -> list[Mark]:
    """Leave out signs that would lie on each other; the newest of them stays, and what went wrong."""
    kept: list[Mark] = []
    for mark in reversed(marks):
        bad = mark.icon in {"failed", "exited"}
        if not kept or kept[-1].x - mark.x >= NEAR or (bad and kept[-1].icon not in {"failed", "exited"}):
            kept.append(mark)
    return kept[::-1]


def _hang(images: Sequence[Image], axis: Axis, begin: datetime) -> list[Hung]:
    found: list[Hung] = []
    for image in reversed(images):
        if image.created_at < begin:
            continue
        x = axis.x(image.created_at)
        if not found or x - found[-1].x >= NEAR:
            found.append(Hung(x))
        found[-1].images.append(image)
    return found
