"""Questions to a node whose answer the page waits for: the dry run, a command, an environment's values.

With htmx the answer is a fragment in the dialog; without JavaScript it is a page.
"""

from __future__ import annotations

import time
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect, render
from django.urls import reverse

from dashboard.acting import complained, found, options_of, refused
from dashboard.actions import SERVICE_ACTIONS, in_its_words
from dashboard.contents_view import tree
from dashboard.creating import checked_command, form_with
from dashboard.page import user_of_page
from images import contents
from images.models import Image
from services import inspection, operations, presently, waiting
from services.lookup import find_service
from services.models import Job, Service
from services.problems import Problem
from services.states import JobState
from services.threads import in_thread

PATIENCE = 15.0  # seconds


async def check_service(request: HttpRequest, reference: str) -> HttpResponse:
    """Ask whether a service can be dumped with the dialog's options, and show the answer."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])

    dump, fragment = SERVICE_ACTIONS["dump"], bool(request.headers.get("HX-Request"))

    def ask() -> Job | HttpResponse:
        service = found(lambda: find_service(reference))
        try:
            options = options_of(dump, request.POST)
            return inspection.request_check_service(
                service, actor=request.user, source="web", options=options
            )
        except Problem as problem:
            if fragment:
                return render(request, "_problem.html", {"problem": in_its_words(dump, problem)})
            return complained(request, dump, service, problem)

    asked = await in_thread(ask)
    if isinstance(asked, HttpResponse):
        return asked
    if not fragment:
        return redirect("services:job", asked.pk)
    job = await waiting.ended(asked, PATIENCE)
    return await in_thread(render, request, "services/_dry_run.html", {"job": job, "found": job.result})


async def service_now(request: HttpRequest, reference: str) -> HttpResponse:
    """Show a service's processes, sockets and open files at this moment."""
    if request.method != "GET":
        return HttpResponseNotAllowed(["GET"])
    service = await in_thread(lambda: found(lambda: find_service(reference)))
    context: dict[str, Any] = {"service": service, "here": "services"}
    try:
        seen = await _seen(service)
    except Problem as problem:
        context["problem"] = problem
    else:
        context |= {"seen": seen, "tree": tree(seen["processes"])}
    fragment = bool(request.headers.get("HX-Request"))
    answer = await in_thread(
        render, request, "services/_now.html" if fragment else "services/now.html", context
    )
    answer["Vary"] = "HX-Request, Cookie"
    answer["Cache-Control"] = "no-store"
    return answer


_LOOKS: dict[tuple[str, int | None], tuple[float, dict[str, Any]]] = {}
_LOOK_KEPT = 4.0  # seconds; many may look at one service, and each look costs its node


async def _seen(service: Service) -> dict[str, Any]:
    """Return what the service does now, or did a moment ago when somebody else asked."""
    now = time.monotonic()
    for key in [key for key, (at, _) in _LOOKS.items() if now - at > _LOOK_KEPT]:
        del _LOOKS[key]
    run = (service.pk, service.pid)
    if run not in _LOOKS:
        _LOOKS[run] = (now, await presently.now(service))
    return _LOOKS[run][1]


async def check_command(request: HttpRequest) -> HttpResponse:
    """Ask whether the command that is being typed is there, for the user and folder typed."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    fragment = bool(request.headers.get("HX-Request"))
    if fragment and not request.POST.get("command", "").strip():
        return HttpResponse("")
    context: dict[str, Any] = {}
    try:
        job = await in_thread(checked_command, request)
    except Problem as problem:
        context["problem"] = problem
    else:
        context["job"] = await waiting.ended(job, PATIENCE)
        context["found"] = context["job"].result
    if fragment:
        return await in_thread(render, request, "services/_command.html", context)
    if "problem" in context:
        refusal: Problem = context["problem"]
        return await in_thread(form_with, request, context, refusal.http_status)
    return await in_thread(form_with, request, {"checked": context})


async def service_environment(request: HttpRequest, reference: str) -> HttpResponse:
    """Show the values of a service's environment to whoever may; that goes on the record."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])

    def answer() -> HttpResponse:
        service = found(lambda: find_service(reference))
        try:
            values = operations.show_env(service, actor=request.user, source="web")
        except Problem as problem:
            return refused(request, problem, reverse("services:show", args=[service.pk]))
        return _environment(request, service, {"": values}, "services")

    return await in_thread(answer)


async def image_environment(request: HttpRequest, reference: str) -> HttpResponse:
    """Have the worker read the values of an image's environment, and show them to whoever asked."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])

    def ask() -> tuple[Image, Job]:
        image = found(lambda: Image.objects.for_display().by_reference(reference))
        return image, contents.request_environment(image, actor=request.user, source="web")

    back = reverse("images:show", args=[reference])
    try:
        image, job = await in_thread(ask)
        job = await waiting.ended(job, PATIENCE)
        if job.status != JobState.SUCCEEDED:
            return redirect("services:job", job.pk)
        values = await in_thread(contents.environment, image, job, await in_thread(user_of_page, request))
    except Problem as problem:
        return await in_thread(refused, request, problem, back)
    return await in_thread(_environment, request, image, values, "images")


def _environment(
    request: HttpRequest, subject: Service | Image, values: dict[str, dict[str, str]], here: str
) -> HttpResponse:
    context = {
        "subject": subject,
        "processes": [(pid, sorted(variables.items())) for pid, variables in values.items()],
        "back": reverse(f"{here}:show", args=[subject.pk]),
        "here": here,
    }
    answer = render(request, "environment.html", context)
    answer["Cache-Control"] = "no-store"
    return answer
