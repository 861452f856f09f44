"""Filters by node and by time, for the tables that have such."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

from django.db.models import Q
from django.utils import timezone

from dashboard.tables import Day, Filter
from services.models import Node

SPANS = {
    "last_hour": timedelta(hours=1),
    "last_day": timedelta(days=1),
    "last_week": timedelta(days=7),
    "last_month": timedelta(days=30),
}


def of_nodes() -> list[Filter]:
    """Return the filter by node, and none where there is only one."""
    ids = dict(Node.objects.order_by("name").values_list("name", "pk"))
    # By the id: PostgreSQL knows how many rows have it, and not how many have what a name leads to.
    means = {name: Q(node=pk) for name, pk in ids.items()}
    return [Filter("node__name", "Node", list(ids), means=means.__getitem__)] if len(ids) > 1 else []


def since(field: str) -> Filter:
    """Return the filter by time. field: of the row, a moment."""

    def means(span: str) -> Q:
        return Q(**{f"{field}__gte": timezone.now() - SPANS[span]})

    return Filter("since", "When", tuple(SPANS), means=means)


def days(field: str) -> list[Filter]:
    """Return the filters by a first and a last day, in UTC. field: of the row, a moment."""

    def bound(comparison: str, moment: time) -> Callable[[str], Q]:
        def means(day: str) -> Q:
            at = datetime.combine(datetime.fromisoformat(day), moment, UTC)
            return Q(**{f"{field}__{comparison}": at})

        return means

    return [
        Day("from", "First day", means=bound("gte", time.min)),
        Day("to", "Last day", means=bound("lte", time.max)),
    ]
