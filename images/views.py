"""The pages about images: fetch, call one operation, render."""

from collections.abc import Callable

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from images import operations
from images.models import Image
from services.models import Job
from services.pages import ask, found

ACTIONS: dict[str, Callable[..., Job]] = {
    "restore": operations.request_restore,
    "verify": operations.request_verify,
    "delete": operations.request_delete,
}


@login_required
@require_GET
def images(request: HttpRequest) -> HttpResponse:
    """List images, the newest first."""
    rows = Image.objects.for_display().order_by("-created_at", "-id")
    return render(request, "images/list.html", {"images": rows, "here": "images"})


@login_required
@require_POST
def act(request: HttpRequest, reference: str, action: str) -> HttpResponse:
    """Ask for a job on an image."""
    operation = ACTIONS.get(action)
    if operation is None:
        raise Http404
    options = {}
    if action == "restore":
        options["accept_changed_files"] = request.POST.get("accept_changed_files") == "on"
    image = found(lambda: Image.objects.for_display().by_reference(reference))
    return ask(request, "images:list", lambda: operation(image, actor=request.user, source="web", **options))
