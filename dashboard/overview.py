"""The first page: what runs, what failed and why, and whether the nodes are well."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, F
from django.utils import timezone

from dashboard import health
from dashboard.day import last_day
from dashboard.page import Context, Look, page
from dashboard.service_pages import STATES
from services.models import Job, Service
from services.states import BAD_JOB, JobState, ServiceState

FAILURES = 6
ACTIVE = 8
DOWN = (ServiceState.FAILED, ServiceState.EXITED)


@page(
    "overview.html",
    here="overview",
    parts={"now": "_overview_now.html", "day": "_overview_day.html"},
    topics=("services", "jobs", "steps", "images", "tick"),
)
def overview(look: Look) -> Context:
    """Show what runs, what failed and why, the nodes, and the last day."""
    yesterday = timezone.now() - timedelta(days=1)
    counted = dict(
        Service.objects.order_by()
        .values_list("status")
        .annotate(count=Count("pk"))
        .values_list("status", "count")
    )
    down = sum(counted.get(state, 0) for state in DOWN)
    is_down = Service.objects.filter(status__in=DOWN).select_related("node")
    ailing = list(is_down.order_by("-changed_at")[:FAILURES])
    bad = Job.objects.filter(queued_at__gte=yesterday, status__in=BAD_JOB)
    theirs = bad.filter(service__in=ailing).order_by("queued_at")
    causes = {(ref, why): pk for ref, why, pk in theirs.values_list("service_ref", "error_message", "pk")}
    # What a later try has brought about is no failure any more, and what a service is down for is said there.
    recent = bad.exclude(pk__in=_mended(yesterday)).exclude(
        service__status__in=DOWN, service__status_reason=F("error_message")
    )
    failures = list(_shown(recent)[:FAILURES])
    failed = len(failures) if len(failures) < FAILURES else recent.count()
    active = list(_shown(Job.objects.active())[: ACTIVE + 1])
    nodes = health.nodes()
    troubles = [trouble for each in nodes for trouble in each.troubles]
    troubles.sort(key=lambda trouble: health.KINDS.index(trouble.kind))
    # What a node cannot work for comes before all, and what is only to be looked after, last.
    told_first = [trouble for trouble in troubles if trouble.stops] or ([] if down or failed else troubles)
    return {
        "states": [
            (state.value, counted.get(state.value, 0)) for state in STATES if counted.get(state.value)
        ],
        "services": sum(counted.values()),
        "running": counted.get(ServiceState.RUNNING, 0),
        "down": down,
        "failures": failures,
        "failed": failed,
        "ailing": [(each, causes.get((each.pk, each.status_reason))) for each in ailing],
        "active": active[:ACTIVE],
        "more_active": len(active) > ACTIVE,
        "nodes": nodes,
        "silent": sum(not each.alive for each in nodes),
        "unfit": sum(each.unfit for each in nodes),
        "damaged": sum(each.damaged for each in nodes),
        "trouble": told_first[0] if told_first else None,
        "day": last_day(),
    }


def _mended(since: datetime) -> set[str]:
    """Return the ids of jobs that were tried again since then until one succeeded."""
    tries = Job.objects.filter(queued_at__gte=since).exclude(retry_of="").order_by()
    rows = list(tries.values_list("pk", "retry_of", "status"))
    before = {pk: retry_of for pk, retry_of, _status in rows}
    mended: set[str] = set()
    for pk, _retry_of, status in rows:
        while status == JobState.SUCCEEDED and (pk := before.get(pk, "")) and pk not in mended:
            mended.add(pk)
    return mended


def _shown(jobs: Any) -> Any:
    return (
        jobs.for_display()
        .defer("traceback", "result", "error_lines", "statistics", "options")
        .order_by("-queued_at", "-id")
    )
