"""One thing asked of many services: a page that says what will happen to which, and then the jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from dashboard.acting import FORM, action, options_of, refused, shown
from dashboard.actions import IMAGE_ACTIONS, SERVICE_ACTIONS, Action
from dashboard.page import Context
from dashboard.rights import Rights, barred, why_not_restored
from dashboard.tables import ROWS
from images import operations as image_operations
from images.models import Image
from services import operations
from services.actors import require_operator
from services.models import Job, Node, Service
from services.problems import Problem
from services.states import KINDS, JobKind, ServiceState


def _for_many(described: Action, *names: str) -> Action:
    """Return an action with these of its options only: the others are about one service."""
    return replace(described, options=tuple(each for each in described.options if each.name in names))


# What may be asked of many, and of those in which states. Which older image a stopped one would go back to is
# for somebody to choose.
_MANY: dict[str, tuple[Action, Set[ServiceState], Callable[..., Job]]] = {
    "dump": (
        _for_many(SERVICE_ACTIONS["dump"], "leave_running"),
        KINDS[JobKind.DUMP].allowed,
        operations.request_dump,
    ),
    "stop": (_for_many(SERVICE_ACTIONS["stop"]), KINDS[JobKind.STOP].allowed, operations.request_stop),
    "restore": (
        _for_many(IMAGE_ACTIONS["restore"]),
        {ServiceState.DUMPED},
        image_operations.request_restore_of,
    ),
}


@action
@FORM
def bulk(request: HttpRequest) -> HttpResponse:
    """Show what would be asked of the chosen services, or ask for it and say how many there were."""
    given = request.POST if request.method == "POST" else request.GET
    verb = given.get("do", "")
    if verb not in _MANY:
        raise Http404
    described, allowed, operation = _MANY[verb]
    chosen = list(Service.objects.for_display().filter(pk__in=given.getlist("id")[:ROWS]))
    if request.method != "POST":
        able = [service for service in chosen if service.state in allowed]
        told = _told(described, able, Rights.of(request.user))
        unfit = [service for service in chosen if service not in able]
        return shown(request, "services/_bulk.html", {**told, "unfit": unfit})
    try:
        require_operator(request.user)
    except Problem as problem:
        return refused(request, problem, reverse("services:list"))
    options = options_of(described, given)
    asked, complaints = 0, []
    for service in chosen:
        try:
            operation(service, actor=request.user, source="web", **options)
        except Problem as problem:
            complaints.append(problem.message)
        else:
            asked += 1
    if asked:
        messages.success(request, f"Asked for {asked} {verb} job{'s' if asked > 1 else ''}.")
    for message in complaints:
        messages.error(request, message)
    return redirect("services:jobs" if asked else "services:list")


def _told(described: Action, services: Sequence[Service], rights: Rights) -> Context:
    """Return what a dialog says of services whose state allows it."""
    images, whys = {}, {}
    if described.revives:
        images = Image.objects.for_display().in_bulk([service.image_id for service in services])
        whys = {service.pk: why_not_restored(rights, images.get(service.image_id)) for service in services}
    fit = [service for service in services if not whys.get(service.pk)]
    return {
        "action": described,
        "fit": [(service, images.get(service.image_id)) for service in fit],
        "refused": [(service, whys[service.pk]) for service in services if service not in fit],
        "final": [service for service in fit if described.ends and barred(rights, service)],
        "may": rights.operate,
        "nodes": Node.objects.count(),
        "here": "services",
    }
