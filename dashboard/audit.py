"""Who did what, when, from where: the audit as a table and as CSV, for admins."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.acting import action
from dashboard.page import Context, Look, page, user_of_page
from dashboard.tables import Column, Filter, begins, search_of, table
from services.actors import require_admin
from services.auditing import ACTIONS, SOURCES
from services.models import AuditEvent, AuditOutcome

COLUMNS = (
    Column("When", "when"),
    Column("Who"),
    Column("What"),
    Column("On"),
    Column("From"),
    Column("How it ended"),
)
ORDERS = {"when": ("id",)}
MOST_ROWS = 100_000  # of one CSV file

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _chosen(text: str) -> Q | None:
    if not text:
        return None
    # Whole words, for which there are indexes: this table only grows.
    return Q(actor=text) | begins("target_id", text)


@page("audit.html", here="audit", parts={"audit": "_audit.html"}, topics=("audit", "jobs"), admin=True)
def audit(look: Look) -> Context:
    """List what was done and asked for, the newest first."""
    return {
        "table": table(
            AuditEvent.objects.all(),
            look.query,
            columns=COLUMNS,
            orders=ORDERS,
            default="-when",
            filters=_filters(),
            searched=_chosen(search_of(look.query)),
        )
    }


def _filters() -> list[Filter]:
    return [
        Filter("action", "What", ACTIONS),
        Filter("outcome", "Outcome", [outcome.value for outcome in AuditOutcome]),
        Filter("source", "From", SOURCES),
        Filter("target_kind", "On", ("service", "image", "job", "node")),
    ]


@action
@require_GET
def audit_csv(request: HttpRequest) -> HttpResponse:
    """Return the rows that the table's filters leave, as CSV."""
    require_admin(user_of_page(request), "see the audit")
    rows = AuditEvent.objects.order_by("-id")
    for choice in _filters():
        value = request.GET.get(choice.name, "")
        if value in choice.values:
            rows = rows.filter(**{choice.name: value})
    searched = _chosen(search_of(request.GET))
    if searched is not None:
        rows = rows.filter(searched)
    text = "".join(_csv(rows[:MOST_ROWS]))
    answer = HttpResponse(text, content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = 'attachment; filename="miehisto-audit.csv"'
    return answer


class _Line:
    """A file for csv.writer that hands each line back."""

    def write(self, text: str) -> str:
        return text


def _csv(rows: QuerySet[AuditEvent]) -> Iterator[str]:
    writer = csv.writer(_Line())
    heads = ["at", "actor", "action", "target_kind", "target", "source", "address", "outcome", "detail"]
    yield writer.writerow(heads)
    for row in rows.iterator(chunk_size=2000):
        detail = "; ".join(f"{name}={value}" for name, value in row.detail.items())
        cells: list[Any] = [row.at.isoformat(), row.actor, row.action, row.target_kind, row.target_id]
        cells += [row.source, row.address, row.outcome, detail]
        yield writer.writerow([safe_cell(str(cell)) for cell in cells])


def safe_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP, "CSV Injection")."""
    return f"'{text}" if text.startswith(_FORMULA) else text
