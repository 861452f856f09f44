"""Who did what, when, from where: the audit as a table and as CSV, for auditors and admins."""

from __future__ import annotations

import csv
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_GET

from dashboard.actions import called
from dashboard.filters import days, since
from dashboard.page import Context, Look, page, user_of_page
from dashboard.tables import Column, Filter, begins, search_of, table
from images.models import Image
from services.actors import names_like, require_auditor
from services.auditing import ACTIONS, SOURCES, TARGETS
from services.models import AuditEvent, AuditOutcome, Job, Service
from services.threads import in_thread

COLUMNS = (
    Column("When (UTC)", "when"),
    Column("Who"),
    Column("What"),
    Column("On"),
    Column("From"),
    Column("How it ended"),
)
ORDERS = {"when": ("id",)}
BATCH = 1_000  # rows of the CSV that are read at once

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _chosen(text: str) -> Q | None:
    if not text:
        return None
    # Whole words, for which there are indexes: this table only grows.
    named = Service.objects.ids_named(text)
    return (
        Q(actor__in=names_like(text)) | Q(target_id=text) | Q(target_id__in=named) | begins("target_id", text)
    )


@page("audit.html", here="audit", parts={"audit": "_audit.html"}, topics=("audit", "jobs"), audit=True)
def audit(look: Look) -> Context:
    """List what was done and asked for, the newest first, and what became of it."""
    found = table(
        AuditEvent.objects.all(),
        look.query,
        columns=COLUMNS,
        orders=ORDERS,
        default="-when",
        filters=_filters(),
        searched=_chosen(search_of(look.query)),
    )
    states = _states(found.rows)
    names = {
        "service": _names(Service.objects.all(), "service", found.rows),
        "image": _names(Image.objects.all(), "image", found.rows),
    }
    told = [
        (
            row,
            states.get(row.detail.get("job", ""), ""),
            names.get(row.target_kind, {}).get(row.target_id, ""),
            row.target_kind in names and row.target_id not in names[row.target_kind],
            said_of(row.action, row.detail),
        )
        for row in found.rows
    ]
    return {"table": found, "told": told}


def _names(named: QuerySet[Any], kind: str, rows: Iterable[AuditEvent]) -> dict[str, str]:
    """Return the names of what lines of the record are about and is still there, by id."""
    about = {row.target_id for row in rows if row.target_kind == kind}
    return dict(named.filter(pk__in=about).values_list("pk", "name"))


def _states(rows: Iterable[AuditEvent]) -> dict[str, str]:
    """Return the states of the jobs that were asked for, by id."""
    asked = {row.detail["job"] for row in rows if "job" in row.detail}
    return dict(Job.objects.filter(pk__in=asked).values_list("pk", "status"))


def said_of(action: str, detail: Mapping[str, Any]) -> str:
    """Return what else a line of the record says, in words; its job and its image are links already."""
    said = [called(action, name, value) for name, value in detail.items() if name not in {"job", "image"}]
    return "; ".join(f"{name}: {value}" for name, value in said)


def _filters() -> list[Filter]:
    return [
        since("at"),
        *days("at"),
        Filter("action", "What", ACTIONS),
        Filter("outcome", "Outcome", [outcome.value for outcome in AuditOutcome]),
        Filter("source", "From", SOURCES),
        Filter("target_kind", "On", TARGETS),
    ]


@require_GET
async def audit_csv(request: HttpRequest) -> HttpResponseBase:
    """Stream the rows that the table's filters leave, as CSV; all of them, however many there are."""

    def chosen() -> QuerySet[AuditEvent]:
        require_auditor(user_of_page(request))
        rows = AuditEvent.objects.order_by("-id")
        for choice in _filters():
            rows = rows.filter(choice.chosen_in(request.GET))
        searched = _chosen(search_of(request.GET))
        return rows if searched is None else rows.filter(searched)

    lines = _csv(await in_thread(chosen))
    answer = StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = 'attachment; filename="miehisto-audit.csv"'
    answer["Cache-Control"] = "no-store"
    return answer


class _Line:
    """A file for csv.writer that hands each line back."""

    def write(self, text: str) -> str:
        return text


async def _csv(rows: QuerySet[AuditEvent]) -> AsyncGenerator[bytes, None]:
    """Yield the head, and the rows a batch at a time: no connection is held while a slow reader reads."""
    writer = csv.writer(_Line())
    heads = ["at", "actor", "action", "target_kind", "target", "source", "address", "outcome", "detail"]
    yield str(writer.writerow([*heads, "job_status"])).encode()
    left = rows
    while batch := await in_thread(lambda wanted: list(wanted[:BATCH]), left):
        states = await in_thread(_states, batch)
        yield "".join(str(writer.writerow(map(safe_cell, _cells(row, states)))) for row in batch).encode()
        left = rows.filter(pk__lt=batch[-1].pk)


def _cells(row: AuditEvent, states: dict[str, str]) -> list[str]:
    detail = "; ".join(f"{name}={value}" for name, value in row.detail.items())
    state = states.get(row.detail.get("job", ""), "")
    known: list[Any] = [row.at.isoformat(), row.actor, row.action, row.target_kind, row.target_id]
    known += [row.source, row.address, row.outcome, detail, state]
    return [str(each) for each in known]


def safe_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP, "CSV Injection")."""
    return f"'{text}" if text.startswith(_FORMULA) else text
