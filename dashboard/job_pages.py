"""The pages that show jobs: the list, and one with its steps. They ask for nothing."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.urls import reverse

from dashboard.actions import as_query, called
from dashboard.filters import of_nodes, since
from dashboard.health import is_silent
from dashboard.page import Context, Look, Moved, page
from dashboard.rights import Rights, barred, barred_carrying, barred_values
from dashboard.tables import Column, Filter, begins, search_of, table
from dashboard.waterfall import waterfall
from images.models import Image
from images.retrying import may_retry, works_on
from services import waiting
from services.auditing import SOURCES
from services.lookup import find_job
from services.models import AuditEvent, Job, Node, Service
from services.presenting import log_object
from services.references import HEX_PREFIX
from services.states import BAD_JOB, JobKind, JobState

COLUMNS = (
    Column("Job"),
    Column("State"),
    Column("About"),
    Column("Asked by"),
    Column("Queued", "queued"),
    Column("Took", number=True),
)
_REVIVING = {JobKind.START, JobKind.RESTART}
_DELETING = {JobKind.DELETE_SERVICE, JobKind.DELETE_IMAGE}
_NOT_DONE = BAD_JOB | {JobState.CANCELLED}
_ERROR = re.compile(r"\b(Error|FAILED|failed)\b")
ORDERS = {"queued": ("queued_at", "id")}
BADLY = "ended_badly"


def _shown(jobs: QuerySet[Job]) -> QuerySet[Job]:
    return jobs.select_related("service", "node").defer("traceback", "result", "error_lines")


@page("jobs/list.html", here="jobs", parts={"jobs": "jobs/_list.html"}, topics=("jobs", "steps"))
def jobs(look: Look) -> Context:
    """List jobs, the newest first."""
    text = search_of(look.query)
    searched = _searched(text) if text else None
    active = Job.objects.active().values_list("status", flat=True)
    found = table(
        Job.objects.all(),
        look.query,
        columns=COLUMNS,
        orders=ORDERS,
        default="-queued",
        filters=[
            Filter("status", "State", [*(state.value for state in JobState), BADLY], means=_status),
            Filter("kind", "Kind", [kind.value for kind in JobKind]),
            Filter("source", "From", SOURCES),
            *of_nodes(),
            since("queued_at"),
        ],
        searched=searched,
        shown=_shown,
    )
    # What only looks, and what works on an image, knows its service by the id alone.
    wanted = {job.service_ref for job in found.rows if not job.service and job.service_ref}
    others = {each.pk: each for each in Service.objects.filter(pk__in=wanted).only("name", "argv")}
    told = [(job, job.service or others.get(job.service_ref)) for job in found.rows]
    return {"table": found, "told": told, "active": len(active)}


def _status(word: str) -> Q:
    return Q(status__in=BAD_JOB) if word == BADLY else Q(status=word)


def _searched(text: str) -> Q:
    """Jobs of a service with such a name, or whose own, service's or image's id begins so."""
    found = Q(service_ref__in=Service.objects.ids_named(text))
    if HEX_PREFIX.match(text.lower()):
        found |= begins("pk", text) | begins("service_ref", text) | begins("image_id", text)
    return found


@page("jobs/job.html", here="jobs", parts={"job": "jobs/_job.html"}, topics=("job:{reference}", "tick"))
def job(look: Look, reference: str) -> Context:
    """Show a job with its steps, its error and CRIU's lines."""
    found = find_job(reference)
    if found.pk != reference:
        raise Moved(reverse("services:job", args=[found.pk]))
    row = waiting.load(found.pk)
    about = row.service or Service.objects.filter(pk=row.service_ref).first()
    image = _image_of(row)
    subject = works_on(row, about, image)
    bar = _bar(look.rights, row, subject)
    account = barred(look.rights, about) if about else ""
    starts = row.service is not None and any(each["action"] == "start" for each in row.error_actions)
    again = may_retry(row) and subject is not None and not bar
    return {
        "job": row,
        "events": row.known_events,
        "seconds": row.seconds,
        "silent": is_silent(row.node),
        "bars": waterfall(row),
        "lines": marked(row.error_lines),
        "may_retry": again,
        # Unless its failure offers just this; what it offers besides may not be enough.
        "may_ask_again": again and not any(map(_tries_again, row.error_actions)),
        "may_start": not account,
        "tried": tries_of(row).first() if row.state in _NOT_DONE else None,
        "whys": [why for why in dict.fromkeys((bar, account if starts else "")) if why],
        "log": log_object(row)["lines"] if row.state in _NOT_DONE else [],
        "address": _address(row),
        "options": [called(row.kind, name, value) for name, value in row.options.items() if value],
        "about": about,
        "has_image": image is not None,
        "dry_run": row.kind == JobKind.CHECK_SERVICE and row.state is JobState.SUCCEEDED,
        # Whoever goes on from here to a dump goes on with what he chose, and with what is asked of him.
        "chosen": as_query({**row.options, **(row.result.get("options") or {})}),
    }


def tries_of(job: Job) -> QuerySet[Job]:
    """Return the jobs that tried this one again, the first of them first.

    The index of its service's jobs leads there. What has no service is a check of a node, and those are few.
    """
    near = {"service_ref": job.service_ref} if job.service_ref else {"kind": job.kind}
    tries = Job.objects.filter(queued_at__gte=job.queued_at, retry_of=job.pk, **near)
    return tries.order_by("queued_at").only("status")


def _image_of(job: Job) -> Image | None:
    if not job.image_id:
        return None
    return Image.objects.for_display().defer("statistics").filter(pk=job.image_id).first()


def _bar(rights: Rights, job: Job, subject: Service | Image | Node | None) -> str:
    """Return why an operator may not ask again for what a job was asked for; "" if he may.

    subject: what it works on. The operations ask the same, each of its own kind.
    """
    if job.kind in _DELETING:
        return "" if rights.administer else "Only an admin can delete it."
    if isinstance(subject, Image) and job.kind == JobKind.RESTORE:
        return barred(rights, subject)
    if isinstance(subject, Image) and job.kind == JobKind.READ_ENVIRONMENT:
        return barred_values(rights, subject)
    if isinstance(subject, Service) and job.kind in _REVIVING:
        return barred(rights, subject)
    if isinstance(subject, Service) and job.options.get("carry"):
        return barred_carrying(rights, subject)
    return ""


def _tries_again(action: dict[str, Any]) -> bool:
    return action["action"] == "retry" and not action["options"]


def _address(job: Job) -> str:
    """Return where a job was asked for from, as the audit has it; "" when it does not."""
    about = job.service_ref or job.image_id or job.node.name
    asked = AuditEvent.objects.filter(target_id=about, action=job.kind, at__gte=job.queued_at)
    near = asked.filter(at__lte=job.queued_at + timedelta(seconds=2)).values_list("detail", "address")
    return next((address for detail, address in near if detail.get("job") == job.pk), "")


def marked(lines: list[str]) -> list[tuple[bool, str]]:
    """Return lines of CRIU's log, each with whether it tells of an error."""
    return [(_ERROR.search(line) is not None, line) for line in lines]
