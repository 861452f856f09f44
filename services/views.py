"""The pages about services and jobs: fetch, call one operation, render. It knows no images."""

from collections.abc import Callable
from datetime import timedelta

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from services import logs, operations, waiting
from services.lookup import find_job, find_service
from services.models import Job, Service
from services.pages import ask, found
from services.problems import Problem
from services.states import KINDS, JobKind

JOBS_SHOWN = 100
LOG_LINES = 200

ACTIONS: dict[str, Callable[..., Job]] = {
    "start": operations.request_start,
    "stop": operations.request_stop,
    "restart": operations.request_restart,
    "dump": operations.request_dump,
    "delete": operations.request_delete_service,
}


@login_required
@require_GET
def services(request: HttpRequest) -> HttpResponse:
    """List all services, with what can be asked of each."""
    rows = []
    for service in Service.objects.for_display():
        allowed = {kind: service.state in KINDS[kind].allowed for kind in JobKind}
        rows.append(
            {
                "service": service,
                "may_start": allowed[JobKind.START],
                "may_stop": allowed[JobKind.STOP],
                "may_dump": allowed[JobKind.DUMP],
                "may_restore": allowed[JobKind.RESTORE] and service.image_id,
            }
        )
    return render(request, "services/list.html", {"rows": rows, "here": "services"})


@login_required
@require_POST
def act(request: HttpRequest, reference: str, action: str) -> HttpResponse:
    """Ask for a job on a service."""
    operation = ACTIONS.get(action)
    if operation is None:
        raise Http404
    options = {}
    if action == "dump":
        options["leave_running"] = request.POST.get("leave_running") == "on"
    service = found(lambda: find_service(reference))
    return ask(
        request, "services:list", lambda: operation(service, actor=request.user, source="web", **options)
    )


@login_required
@require_GET
def service_logs(request: HttpRequest, reference: str) -> HttpResponse:
    """Show the last lines of a service's output."""
    service = found(lambda: find_service(reference))
    text, _inode, _offset = logs.tail(service.pk, LOG_LINES)
    context = {"service": service, "text": text.decode(errors="replace"), "here": "services"}
    return render(request, "services/logs.html", context)


@login_required
@require_GET
def jobs(request: HttpRequest) -> HttpResponse:
    """List the newest jobs."""
    rows = Job.objects.select_related("service", "node")[:JOBS_SHOWN]
    return render(request, "services/jobs.html", {"jobs": rows, "here": "jobs"})


@login_required
@require_GET
def job(request: HttpRequest, reference: str) -> HttpResponse:
    """Show a job with its steps, its error and CRIU's lines; the page loads itself again while it runs."""
    row = waiting.load(found(lambda: find_job(reference)).pk)
    took: timedelta | None = None
    if row.finished_at and row.started_at:
        took = row.finished_at - row.started_at
    response = render(
        request,
        "services/job.html",
        {"job": row, "events": row.known_events, "seconds": took and took.total_seconds(), "here": "jobs"},
    )
    if row.is_active:
        response["Refresh"] = "1"
    return response


@login_required
@require_POST
def cancel_job(request: HttpRequest, reference: str) -> HttpResponse:
    """Cancel a queued job."""
    row = found(lambda: find_job(reference))
    try:
        operations.cancel(row, request.user, "web")
    except Problem as problem:
        messages.error(request, problem.message)
    return redirect("services:job", row.pk)
