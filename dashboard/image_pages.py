"""The pages that show images. They ask for nothing."""

from __future__ import annotations

from collections import Counter

from django.db.models import Q, QuerySet, Sum
from django.urls import reverse

from dashboard.page import Context, Look, Moved, page
from dashboard.tables import Column, Filter, begins, search_of, table
from images.models import Image, ImageState
from services.models import Job

COLUMNS = (
    Column("Image", "name"),
    Column("State", "state"),
    Column("Service", "service"),
    Column("Program", "program"),
    Column("Memory", "memory", number=True),
    Column("On disk", "size", number=True),
    Column("Made", "made"),
)
ORDERS = {
    "name": ("name", "id"),
    "state": ("status", "id"),
    "service": ("service__name", "service_ref", "id"),
    "program": ("comm", "id"),
    "memory": ("pages_bytes", "id"),
    "size": ("size_bytes", "id"),
    "made": ("created_at", "id"),
}


def _shown(images: QuerySet[Image]) -> QuerySet[Image]:
    # A manifest can be long, and a row shows nothing of it.
    return images.for_display().defer("manifest", "statistics")  # type: ignore[attr-defined, no-any-return]


@page(
    "images/list.html",
    here="images",
    parts={"images": "images/_list.html"},
    topics=("images",),
)
def images(look: Look) -> Context:
    """List images, the newest first."""
    text = search_of(look.query)
    searched = (
        Q(name__icontains=text)
        | Q(comm__icontains=text)
        | Q(service__name__icontains=text)
        | begins("pk", text)
        | begins("service_ref", text)
        if text
        else None
    )
    counts = Counter(Image.objects.order_by().values_list("status", flat=True))
    return {
        "table": table(
            Image.objects.all(),
            look.query,
            columns=COLUMNS,
            orders=ORDERS,
            default="-made",
            filters=[Filter("status", "State", [state.value for state in ImageState])],
            searched=searched,
            shown=_shown,
        ),
        "states": sorted(counts.items()),
        "counted": sum(counts.values()),
        "bytes": Image.objects.aggregate(bytes=Sum("size_bytes"))["bytes"] or 0,
    }


@page("images/show.html", here="images", parts={"image": "images/_show.html"}, topics=("image:{reference}",))
def image(look: Look, reference: str) -> Context:
    """Show an image: what it was made of and with, and what was done with it."""
    found = Image.objects.for_display().by_reference(reference)
    if found.pk != reference:
        raise Moved(reverse("images:show", args=[found.pk]))
    jobs = Job.objects.filter(image_id=found.pk).defer("traceback", "result", "error_lines")
    return {"image": found, "jobs": jobs[:20]}
