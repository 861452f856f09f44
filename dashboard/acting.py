"""What the pages' forms ask for: show the dialog; find, call one operation, show the job.

A dialog is a page of its own; htmx takes only its heart, and without JavaScript it works as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from dashboard.actions import IMAGE_ACTIONS, SERVICE_ACTIONS, Action, Option, in_its_words
from dashboard.rights import Rights, account_of, barred
from images import operations as image_operations
from images import schedules
from images.models import Image, ImageState
from images.origins import require_trusted
from images.retrying import asked_after, request_retry
from services import operations
from services.actors import Actor, require_account, require_admin, require_operator
from services.lookup import find_job, find_service
from services.models import Job, Node, Service
from services.problems import Problem, bad_input
from services.references import WHOLE_ID
from services.states import KINDS, JobKind
from services.threads import in_thread

R = TypeVar("R")
View = Callable[..., HttpResponse]


def _schedule(service: Service, *, actor: Actor, source: str, **wish: Any) -> Service:
    """Give a service the schedule that its dialog says; none where no time is in it."""
    if wish["every"] and wish["cron"]:
        raise bad_input(
            "There is a time between two dumps, and there are times of day: a schedule has one of the two.",
            "Empty one of the two fields.",
            field="every",
        )
    if wish["every"] or wish["cron"]:
        schedules.put(
            service,
            actor=actor,
            source=source,
            **{name: each for name, each in wish.items() if each not in (None, "")},
        )
        return service
    try:
        schedules.remove(service, actor=actor, source=source)
    except Problem as problem:
        if problem.code != "schedule_not_found":  # without one there is nothing to do
            raise
    return service


_FOR_SERVICES: dict[str, Callable[..., Job | Service]] = {
    "change": partial(operations.change, restore_on_boot=False),  # what a box says that is not ticked
    "start": operations.request_start,
    "stop": operations.request_stop,
    "restart": operations.request_restart,
    "dump": operations.request_dump,
    "schedule": _schedule,
    "delete": operations.request_delete_service,
}
_FOR_IMAGES: dict[str, Callable[..., Job | Image]] = {
    "rename": image_operations.rename,
    "restore": image_operations.request_restore,
    "verify": image_operations.request_verify,
    "delete": image_operations.request_delete,
}
FORM = require_http_methods(["GET", "HEAD", "POST"])
_MOST_MEBIBYTES = 65536
# What is wrong with what was typed: its dialog is where that can be mended.
_TYPED_WRONG = {"bad_input", "name_taken"}


def action(view: View) -> Callable[..., Any]:
    """Make a view of a form's function: it runs in a thread that keeps its connection."""

    @wraps(view)
    async def answer(request: HttpRequest, **words: str) -> HttpResponse:
        return await in_thread(view, request, **words)

    return answer


@action
@FORM
def act_on_service(request: HttpRequest, reference: str, action: str) -> HttpResponse:
    """Show the dialog of an action on a service, or ask for it."""
    if action not in SERVICE_ACTIONS:
        raise Http404
    service = found(lambda: find_service(reference))
    return _act(request, SERVICE_ACTIONS[action], service, _FOR_SERVICES[action])


@action
@FORM
def act_on_image(request: HttpRequest, reference: str, action: str) -> HttpResponse:
    """Show the dialog of an action on an image, or ask for it."""
    if action not in IMAGE_ACTIONS:
        raise Http404
    image = found(lambda: Image.objects.for_display().by_reference(reference))
    return _act(request, IMAGE_ACTIONS[action], image, _FOR_IMAGES[action])


def _act(
    request: HttpRequest,
    described: Action,
    subject: Service | Image,
    operation: Callable[..., Job | Service | Image],
) -> HttpResponse:
    if request.method != "POST":
        return _dialog(request, described, subject)
    try:
        options = options_of(described, request.POST)
        ask = partial(operation, subject, actor=request.user, source="web", **options)
        done = asked_after(_job_in(request.POST), ask)
    except Problem as problem:
        return complained(request, described, subject, problem)
    return redirect("services:job", done.pk) if isinstance(done, Job) else redirect(_page_of(subject))


@action
@require_POST
def cancel_job(request: HttpRequest, reference: str) -> HttpResponse:
    """Cancel a queued job."""
    row = found(lambda: find_job(reference))
    back = reverse("services:job", args=[row.pk])
    try:
        operations.cancel(row, request.user, "web")
    except Problem as problem:
        return refused(request, problem, back)
    return redirect(back)


@action
@require_POST
def retry_job(request: HttpRequest, reference: str) -> HttpResponse:
    """Ask again for what a job did not bring about; ?remedy=N does what its failure offers."""
    row = found(lambda: find_job(reference))
    try:
        require_operator(request.user)
        job = _remedied(row, request)
    except Problem as problem:
        return refused(request, problem, reverse("services:job", args=[row.pk]))
    return redirect("services:job", job.pk)


@action
@require_POST
def check_node(request: HttpRequest, pk: int) -> HttpResponse:
    """Ask a node whether it can dump and restore."""
    try:
        job = operations.request_check(get_object_or_404(Node, pk=pk), actor=request.user, source="web")
    except Problem as problem:
        return refused(request, problem, reverse("overview"))
    return redirect("services:job", job.pk)


def _remedied(row: Job, request: HttpRequest) -> Job:
    numbered = {str(number): each for number, each in enumerate(row.error_actions)}
    offered = numbered.get(request.POST.get("remedy", ""), {})
    if offered.get("action") == "check_host":
        return operations.request_check(row.node, actor=request.user, source="web")
    options = offered.get("options", {}) if offered.get("action") == "retry" else {}
    return request_retry(row, actor=request.user, source="web", options=options)


def found(find: Callable[[], R]) -> R:
    """Return what `find` finds; a Problem becomes the 404 page."""
    try:
        return find()
    except Problem as problem:
        raise Http404(problem.message) from problem


def shown(request: HttpRequest, heart: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """Render a dialog: only its heart for htmx, else as a page. heart: the fragment's template."""
    fragment = bool(request.headers.get("HX-Request"))
    context = {**context, "heart": heart, "in_page": not fragment, "here": context.get("here", "services")}
    answer = render(request, heart if fragment else "dialog.html", context, status=status)
    answer["Vary"] = "HX-Request, Cookie"
    answer["Cache-Control"] = "no-store"
    return answer


def complained(
    request: HttpRequest, described: Action, subject: Service | Image, problem: Problem
) -> HttpResponse:
    """Say what refused an action: in its dialog, as it was filled, if that can be mended there."""
    if problem.code in _TYPED_WRONG:
        return _dialog(request, described, subject, in_its_words(described, problem))
    return refused(request, problem, _page_of(subject))


def _page_of(subject: Service | Image) -> str:
    return reverse("services:show" if isinstance(subject, Service) else "images:show", args=[subject.pk])


def _dialog(
    request: HttpRequest, described: Action, subject: Service | Image, problem: Problem | None = None
) -> HttpResponse:
    """Show a dialog. problem: what is wrong with what was sent, which it is filled with then."""
    rights = Rights.of(request.user)
    bar = barred(rights, subject) if rights.operate else ""
    here = "services" if isinstance(subject, Service) else "images"
    given = request.POST if problem else request.GET
    filled = _typed(described, given) if problem else _filled(described, subject, given)
    job = _job_in(given)
    context = {
        "address": reverse(f"{here}:act", args=[subject.pk, described.name]),
        "problem": problem,
        "wrong": wrong_field(problem) if problem else "",
        "action": described,
        "subject": subject,
        "title": described.title.format(_called(subject)),
        "refusal": _refusal(described, subject, request.user),
        "hindrance": _hindrance(described, subject),
        "bar": bar if described.ends else "",
        "image": subject if isinstance(subject, Image) else None,
        "newer": _newer(described, subject),
        "fields": [
            (option, filled.get(option.name, ""))
            for option in described.options
            # What an admin has ticked stays: an empty box would take it away.
            if not (option.revives and bar) or filled.get(option.name) == "on"
        ],
        "unfolded": any(option.rare and filled.get(option.name) for option in described.options),
        "changed_files": _changed_files(subject, job),
        "job": job,
        "back": _page_of(subject),
        "rights": rights,
        "rare": any(option.rare for option in described.options),
        "here": here,
    }
    return shown(request, "_dialog.html", context, problem.http_status if problem else 200)


def wrong_field(problem: Problem) -> str:
    """Return the field that a problem with what was typed is about, "" for none."""
    return "name" if problem.code == "name_taken" else str(problem.details.get("field", ""))


def _called(subject: Service | Image) -> str:
    """Return what a dialog's head calls it; an image without a name by the first digits of its id."""
    if isinstance(subject, Service):
        return str(subject)
    of = f" of {subject.service}" if subject.service else ""
    return f"image {subject.name or subject.pk[:12]}{of}"


def _refusal(described: Action, subject: Service | Image, actor: Actor) -> str:
    """Return what would be said to somebody who may not, or of a damaged image; "" for neither."""
    try:
        require_operator(actor)
        if described.admin:
            require_admin(actor, f"delete {'a service' if isinstance(subject, Service) else 'an image'}")
        if described.revives:
            if isinstance(subject, Image):
                require_trusted(subject, actor)
            require_account(actor, *account_of(subject))
    except Problem as problem:
        return f"{problem.message} {problem.remedy}"
    if described.revives and isinstance(subject, Image) and subject.is_damaged:
        # The worker would say the same, after a look.
        found = subject.damage[0] if subject.damage else "it is not what was sealed"
        return (
            f"The image is damaged: {found}. Restore another image of this service; "
            "or put the damaged files back from a backup, then verify it."
        )
    return ""


def _newer(described: Action, subject: Service | Image) -> Image | None:
    """Return the newest sound image of a service of which an older one would be restored; None for none."""
    if not (described.revives and isinstance(subject, Image) and subject.service_ref):
        return None
    newer = Image.objects.filter(service_ref=subject.service_ref, created_at__gt=subject.created_at)
    sound = newer.filter(node=subject.node, status=ImageState.SEALED)
    return sound.only("id", "created_at").order_by("-created_at").first()


def _hindrance(described: Action, subject: Service | Image) -> str:
    """Return why it would be refused as things are now, "" if nothing is known."""
    kind = {"restore": JobKind.RESTORE, "verify": None}.get(
        described.name, JobKind.__members__.get(described.name.upper())
    )
    service = subject if isinstance(subject, Service) else subject.service
    if kind is None or service is None or service.state in KINDS[kind].allowed:
        return ""
    if kind is JobKind.RESTORE:
        return (
            f"Service {service} is {service.status}. Stop it, or dump it without leaving it running, first."
        )
    return f"Service {service} is {service.status}, so this would be refused."


def _filled(described: Action, subject: Service | Image, query: QueryDict) -> dict[str, str]:
    """Return what is in the fields, "on" in a box that is ticked.

    That is what is so now, else the service's own folder where a remedy leads to folders (?fill=NAME,…), else
    what the address says (?NAME=VALUE), else the tick that a remedy leads to.
    """
    if described.name == "schedule":
        return schedules.as_typed(subject.pk)
    filled = {"name": subject.name}
    folder = ""
    if isinstance(subject, Service):
        filled["restore_on_boot"] = "on" if subject.restore_on_boot else ""
        folder = subject.cwd if subject.cwd != "/" else ""
    asked = query.get("fill", "").split(",")
    for option in described.options:
        if option.name in asked and option.kind == "folders" and folder:
            filled[option.name] = folder
        elif option.name in query:
            filled[option.name] = query.get(option.name, "")
        elif option.name in asked and option.kind == "check":
            filled[option.name] = "on"
    return filled


def _typed(described: Action, given: QueryDict) -> dict[str, str]:
    return {option.name: given.get(option.name, "") for option in described.options}


def _job_in(given: QueryDict) -> str:
    """Return the id of the job whose remedy led to a dialog, "" for none."""
    job = given.get("job", "")
    return job if WHOLE_ID.match(job) else ""


def _changed_files(subject: Service | Image, job: str) -> list[str]:
    """Return the files for whose change a restore of this image was refused by a job; [] for another job."""
    refused = Job.objects.filter(pk=job, image_id=subject.pk, error_code="files_changed")
    return list(refused.values_list("error_lines", flat=True).first() or [])


def options_of(described: Action, given: QueryDict) -> dict[str, Any]:
    """Return what was chosen in a dialog, as an operation's arguments."""
    options: dict[str, Any] = {}
    for option in described.options:
        text = given.get(option.name, "").strip()
        if option.kind == "check":
            if text == "on":
                options[option.name] = True
        elif option.kind in {"name", "text"}:
            options[option.name] = text
        elif option.kind == "folders":
            options[option.name] = text.split()
        elif text:
            options[option.name] = _number(option, text)
    return {name: value for name, value in options.items() if value != []}


def _number(option: Option, text: str) -> float | int:
    """Return seconds, a count, or bytes of what was typed as MiB."""
    try:
        if option.kind == "count":
            return int(text)
        value = float(text)
        if option.kind != "mebibytes":
            return value
        if 0 <= value <= _MOST_MEBIBYTES:
            return int(value * 2**20)
        raise bad_input(
            f"The value of {option.name} must be a number of MiB from 0 to {_MOST_MEBIBYTES}.",
            "Give such a number; 0 means the default.",
            field=option.name,
        )
    except (ValueError, OverflowError):
        raise bad_input(
            f"The text {text[:40]!r} is no number.", "Give a number, such as 30.", field=option.name
        ) from None


def refused(request: HttpRequest, problem: Problem, back: str) -> HttpResponse:
    """Say what refused it: on the page that he came from, or one that leads there for who may not."""
    if problem.http_status == 403:
        context = {"message": f"{problem.message} {problem.remedy}", "back": back}
        return render(request, "403.html", context, status=403)
    messages.error(request, f"{problem.message} {problem.remedy}".rstrip())
    return redirect(back)
