"""The pages that show services: the list, one of them, its log. They ask for nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from operator import or_

from django.db.models import Case, Count, F, OuterRef, Q, QuerySet, Subquery, When
from django.urls import reverse
from django.utils import timezone

from dashboard.filters import of_nodes
from dashboard.life import MOST_IMAGES, SPANS, life_line
from dashboard.page import Context, Look, Moved, page
from dashboard.rights import Rights, shown_to, why_not_restored
from dashboard.tables import Column, Filter, Order, Text, Words, begins, search_of, table
from dashboard.usage import last_hour
from images import schedules, timing
from images.models import Image, Schedule
from services import logs
from services.loads import FRESH
from services.lookup import find_service
from services.models import Job, Service
from services.states import JobKind, ServiceState

LOG_LINES = 200
MOST_MATCHES = 2_000
IMAGES_SHOWN = 8
JOBS_SHOWN = 10

COLUMNS = (
    Column("Service", "name"),
    Column("State", "state"),
    Column("Command", "command"),
    Column("PID", "pid", number=True),
    Column("CPU", "cpu", number=True),
    Column("Memory", "memory", number=True),
    Column("Ports"),
    Column("Since", "since"),
    Column("Last image"),
)
ORDERS: dict[str, tuple[Order, ...]] = {
    "name": (Text("name"), "id"),
    "state": ("status", "id"),
    "command": (Words("argv"), "id"),
    "pid": (F("pid"), "id"),
    "since": ("changed_at", "id"),
    "created": ("created_at", "id"),
}
# What needs somebody comes first, then what runs.
STATES = (
    ServiceState.FAILED,
    ServiceState.EXITED,
    ServiceState.RUNNING,
    ServiceState.STARTING,
    ServiceState.DUMPING,
    ServiceState.RESTORING,
    ServiceState.STOPPING,
    ServiceState.DUMPED,
    ServiceState.STOPPED,
    ServiceState.CREATED,
)


def _orders(stale: datetime) -> dict[str, tuple[Order, ...]]:
    """Return what services can be sorted by; by what one used only as long as the table shows it."""
    shown = Q(pid__isnull=False, load__at__gt=stale)
    return ORDERS | {name: (Case(When(shown, then=F(f"load__{name}"))), "id") for name in ("cpu", "memory")}


def _searched(text: str) -> Q:
    """Return the services whose name, command or id has each of these words."""
    found = Q()
    for word in text.split():
        # A command is a list, kept as JSON: there a quote has a backslash before it, and an "ä" is itself in
        # PostgreSQL and \u00e4 in SQLite.
        kept = {json.dumps(word, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
        command = reduce(or_, (Q(argv__icontains=each) for each in kept))
        found &= Q(name__icontains=word) | command | begins("pk", word)
    return found


def _with_last_image(services: QuerySet[Service]) -> QuerySet[Service]:
    """Add node, active job, load and newest image: what a row shows."""
    newest = Image.objects.filter(service_ref=OuterRef("pk")).order_by("-created_at")
    shown: QuerySet[Service] = services.for_display()  # type: ignore[attr-defined]
    return shown.select_related("load").annotate(
        last_image_id=Subquery(newest.values("id")[:1]),
        last_image_at=Subquery(newest.values("created_at")[:1]),
    )


@page(
    "services/list.html",
    here="services",
    parts={"services": "services/_list.html"},
    topics=("services", "images", "tick"),
)
def services(look: Look) -> Context:
    """List services."""
    text = search_of(look.query)
    stale = timezone.now() - FRESH
    totals = Service.objects.order_by().values("status").annotate(count=Count("pk"))
    counts = {row["status"]: row["count"] for row in totals}
    states = Filter("status", "State", [state.value for state in STATES], hidden=True)
    found = table(
        Service.objects.all(),
        look.query,
        columns=COLUMNS,
        orders=_orders(stale),
        default="created",
        filters=[states, *of_nodes()],
        searched=_searched(text) if text else None,
        shown=_with_last_image,
    )
    return {
        "table": found,
        "no_restore": _not_restored(
            look.rights, [row for row in found.rows if row.state is ServiceState.DUMPED]
        ),
        "stale": stale,
        "states": [(state.value, counts[state.value]) for state in STATES if state.value in counts],
        "counted": sum(counts.values()),
    }


def _not_restored(rights: Rights, services: Sequence[Service]) -> dict[str, str]:
    """Return by their ids why services would not be restored from the image that each is now."""
    wanted = {each.pk: each.image_id for each in services if each.image_id and not each.has_process}
    if not (rights.operate and wanted):
        return {}
    images = shown_to(rights, Image.objects.all()).in_bulk(list(wanted.values()))
    whys = {pk: why_not_restored(rights, images.get(image)) for pk, image in wanted.items()}
    return {pk: why for pk, why in whys.items() if why}


@page(
    "services/show.html",
    here="services",
    parts={"service": "services/_show.html"},
    topics=("service:{reference}", "tick"),
    log=True,
)
def service(look: Look, reference: str) -> Context:
    """Show a service: what it is and does, its life, its images and jobs."""
    found = find_service(reference, shown=True)
    if found.pk != reference:
        raise Moved(reverse("services:show", args=[found.pk]))
    images = list(
        Image.objects.filter(service_ref=found.pk)
        .order_by("-created_at")
        .only("id", "name", "comm", "created_at", "pages_bytes", "leave_running", "status")[:MOST_IMAGES]
    )
    span = look.query.get("life", "")
    return {
        "service": found,
        "text": _last_lines(found),
        "life": life_line(found, images, span if span in SPANS else ""),
        "spans": SPANS,
        "usage": last_hour(found),
        "schedule": _schedule_of(found),
        "no_restore": _not_restored(look.rights, [found]).get(found.pk, ""),
        "images": images[:IMAGES_SHOWN],
        "images_more": len(images) > IMAGES_SHOWN,
        # Each dialog of a dump makes dry runs; among the few shown they would hide what was done.
        "jobs": Job.objects.filter(service_ref=found.pk)
        .exclude(kind=JobKind.CHECK_SERVICE)
        .defer("traceback", "result", "error_lines")[:JOBS_SHOWN],
    }


def _schedule_of(service: Service) -> Context | None:
    """Return when a service is dumped by itself, and what came of the last time; None for never."""
    schedule = Schedule.objects.filter(service=service).first()
    if schedule is None:
        return None
    outcome, reason = schedules.outcome_of(schedule)
    when = timing.in_words(schedule.every, schedule.cron)
    return {"row": schedule, "when": when, "outcome": outcome, "reason": reason}


@page("services/logs.html", here="services", log=True)
def log(look: Look, reference: str) -> Context:
    """Show the last lines of a service's output; ?q= those of all that is kept that have a text."""
    service = find_service(reference)
    searched = search_of(look.query)
    if not searched:
        return {"service": service, "text": _last_lines(service)}
    last = logs.search(service.pk, searched, MOST_MATCHES)
    return {"service": service, "text": "\n".join(last), "searched": searched, "matches": len(last)}


def _last_lines(service: Service) -> str:
    text, _inode, _offset = logs.tail(service.pk, LOG_LINES)
    return text.decode(errors="replace")
