"""The first page: what runs, what failed and why, and whether the nodes are well."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, Sum
from django.utils import timezone

from dashboard.day import last_day
from dashboard.page import Context, Look, page
from dashboard.service_pages import STATES
from images.models import Image
from services.models import Job, Node, Service
from services.states import JobState, ServiceState

FAILURES = 6
ACTIVE = 8
SILENT_AFTER = timedelta(seconds=20)  # a heartbeat comes each 5 s

LACKS = {
    "sys_resource": "CAP_SYS_RESOURCE: services whose processes have several users cannot be dumped",
    "run_is_tmpfs": "a tmpfs on /run: CRIU is given one of its own",
}


@dataclass(frozen=True)
class NodeHealth:
    """A node and what is to be said of it. pool sizes in bytes, None when it has not told."""

    node: Node
    alive: bool
    lacks: list[str]
    images: int
    images_bytes: int
    pool_free: int | None
    pool_size: int | None

    @property
    def pool_used_percent(self) -> int | None:
        if not self.pool_size or self.pool_free is None:
            return None
        return round(100 * (1 - self.pool_free / self.pool_size))


@page(
    "overview.html",
    here="overview",
    parts={"now": "_overview_now.html", "day": "_overview_day.html"},
    topics=("services", "jobs", "steps", "images", "tick"),
)
def overview(look: Look) -> Context:
    """Show what runs, what failed and why, the nodes, and the last day."""
    now = timezone.now()
    counted = dict(
        Service.objects.order_by()
        .values_list("status")
        .annotate(count=Count("pk"))
        .values_list("status", "count")
    )
    bad = [JobState.FAILED, JobState.ERRORED, JobState.LOST]
    recent = Job.objects.filter(queued_at__gte=now - timedelta(days=1), status__in=bad)
    failures = list(_shown(recent)[:FAILURES])
    active = list(_shown(Job.objects.active())[: ACTIVE + 1])
    nodes = _nodes()
    return {
        "states": [
            (state.value, counted.get(state.value, 0)) for state in STATES if counted.get(state.value)
        ],
        "services": sum(counted.values()),
        "running": counted.get(ServiceState.RUNNING, 0),
        "down": counted.get(ServiceState.FAILED, 0) + counted.get(ServiceState.EXITED, 0),
        "failures": failures,
        "failed": len(failures) if len(failures) < FAILURES else recent.count(),
        "ailing": list(
            Service.objects.filter(status__in=[ServiceState.FAILED, ServiceState.EXITED]).order_by(
                "-changed_at"
            )[:FAILURES]
        ),
        "active": active[:ACTIVE],
        "more_active": len(active) > ACTIVE,
        "nodes": nodes,
        "silent": [health.node for health in nodes if not health.alive],
        "day": last_day(),
    }


def _shown(jobs: Any) -> Any:
    return (
        jobs.for_display()
        .defer("traceback", "result", "error_lines", "statistics", "options")
        .order_by("-queued_at", "-id")
    )


def is_silent(node: Node) -> bool:
    """Tell whether a node's worker has not been heard for so long that something is wrong."""
    return node.last_seen_at is None or timezone.now() - node.last_seen_at >= SILENT_AFTER


def _nodes() -> list[NodeHealth]:
    counted = Image.objects.order_by().values("node").annotate(count=Count("*"), bytes=Sum("size_bytes"))
    pools = {row["node"]: (row["count"], row["bytes"] or 0) for row in counted}
    found = []
    for node in Node.objects.order_by("name"):
        can = node.capabilities or {}
        found.append(
            NodeHealth(
                node,
                not is_silent(node),
                [text for name, text in LACKS.items() if can.get(name) is False],
                *pools.get(node.pk, (0, 0)),
                can.get("pool_free"),
                can.get("pool_size"),
            )
        )
    return found
