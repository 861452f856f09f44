"""One thing asked of many services: a page that says what will happen to which, and then the jobs."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from dashboard.acting import FORM, action, refused, shown
from dashboard.actions import IMAGE_ACTIONS, SERVICE_ACTIONS
from dashboard.rights import Rights
from dashboard.tables import ROWS
from images import operations as image_operations
from images.models import Image
from services import operations
from services.actors import Actor, require_operator
from services.models import Job, Service
from services.problems import Problem, bad_input
from services.states import KINDS, JobKind


def _restore(service: Service, *, actor: Actor, source: str) -> Job:
    """Ask for the restore of a service from the image that it is now."""
    image = Image.objects.for_display().filter(pk=service.image_id).first() if service.image_id else None
    if image is None:
        raise bad_input(
            f"Service {service} has no image to go on from.", "Start it, or restore an older image of it."
        )
    return image_operations.request_restore(image, actor=actor, source=source)


_MANY: dict[str, tuple[JobKind, Callable[..., Job]]] = {
    "dump": (JobKind.DUMP, operations.request_dump),
    "stop": (JobKind.STOP, operations.request_stop),
    "restore": (JobKind.RESTORE, _restore),
}


@action
@FORM
def bulk(request: HttpRequest) -> HttpResponse:
    """Show what would be asked of the chosen services, or ask for it and say how many there were."""
    given = request.POST if request.method == "POST" else request.GET
    verb = given.get("do", "")
    if verb not in _MANY:
        raise Http404
    kind, operation = _MANY[verb]
    chosen = list(Service.objects.for_display().filter(pk__in=given.getlist("id")[:ROWS]))
    if request.method != "POST":
        fit = [service for service in chosen if service.state in KINDS[kind].allowed]
        rights = Rights.of(request.user)
        context = {
            "action": SERVICE_ACTIONS.get(verb) or IMAGE_ACTIONS[verb],
            "fit": fit,
            "unfit": [service for service in chosen if service not in fit],
            "may": rights.operate,
            "here": "services",
        }
        return shown(request, "services/_bulk.html", context)
    try:
        require_operator(request.user)
    except Problem as problem:
        return refused(request, problem, reverse("services:list"))
    asked, complaints = 0, []
    for service in chosen:
        try:
            operation(service, actor=request.user, source="web")
        except Problem as problem:
            complaints.append(problem.message)
        else:
            asked += 1
    if asked:
        messages.success(request, f"Asked for {asked} {verb} job{'s' if asked > 1 else ''}.")
    for message in complaints:
        messages.error(request, message)
    return redirect("services:jobs" if asked else "services:list")
