"""Room in the image pool: a page that proposes which images can go, and asks for their deletion."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from dashboard.acting import FORM, action, refused, shown
from dashboard.page import user_of_page
from images import operations
from images.models import Image, ImageState
from services.actors import require_admin
from services.models import Job, Node, Service
from services.problems import Problem

MOST = 100  # images at once; each comes back as a field of the form


@action
@FORM
def prune(request: HttpRequest) -> HttpResponse:
    """Show which images could go and what that would free, or ask for the deletion of those chosen."""
    require_admin(user_of_page(request), "delete images")
    if request.method == "POST":
        return _deleted(request)
    node = request.GET.get("node", "")
    found = list(_spare(node)[: MOST + 1])
    held = Image.objects.filter(node__name=node) if node else Image.objects.all()
    context: dict[str, Any] = {
        "held": held.exists(),
        "images": found[:MOST],
        "bytes": sum(image.size_bytes for image in found[:MOST]),
        "more": len(found) > MOST,
        "node": node,
        "nodes": Node.objects.count(),
        "title": "Free space in the pool",
        "here": "images",
    }
    return shown(request, "images/_prune.html", context)


def _spare(node: str) -> QuerySet[Image]:
    """Return the images that nobody would miss first, the oldest first.

    Of each there is a newer sound image of the same service, no service is it now, no job uses it, and nobody
    has given it a name.
    """
    newer = Image.objects.filter(
        service_ref=OuterRef("service_ref"), created_at__gt=OuterRef("created_at"), status=ImageState.SEALED
    )
    present = Service.objects.exclude(image_id="").values_list("image_id", flat=True)
    used = Job.objects.active().exclude(image_id="").values_list("image_id", flat=True)
    spare = Image.objects.filter(Exists(newer), name="").exclude(service_ref="")
    spare = spare.exclude(pk__in=[*present, *used])
    if node:
        spare = spare.filter(node__name=node)
    return (
        spare.select_related("node", "service").defer("manifest", "statistics").order_by("created_at", "id")
    )


def _deleted(request: HttpRequest) -> HttpResponse:
    asked, octets = 0, 0
    for image in Image.objects.filter(pk__in=request.POST.getlist("id")[:MOST]).order_by("created_at"):
        try:
            operations.request_delete(image, actor=user_of_page(request), source="web")
        except Problem as problem:
            if problem.http_status == 403:
                return refused(request, problem, reverse("images:list"))
            messages.error(request, problem.message)
        else:
            asked, octets = asked + 1, octets + image.size_bytes
    if asked:
        plural = "s" if asked > 1 else ""
        messages.success(
            request, f"Asked for the deletion of {asked} image{plural}; that frees {octets / 2**20:.1f} MiB."
        )
    return redirect("services:jobs" if asked else "images:list")
