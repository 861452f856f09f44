"""The pages that show images. They ask for nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db.models import Count, Q, Sum
from django.urls import reverse

from dashboard.contents_view import arranged
from dashboard.filters import of_nodes
from dashboard.page import Context, Look, Moved, page
from dashboard.rights import shown_to
from dashboard.tables import Column, Filter, Order, Text, begins, search_of, table
from images.contents import contents_object
from images.models import Image, ImageState

COLUMNS = (
    Column("Image", "name"),
    Column("State", "state"),
    Column("Service", "service"),
    Column("Program", "program"),
    Column("Memory", "memory", number=True),
    Column("On disk", "size", number=True),
    Column("Made", "made"),
)
ORDERS: dict[str, tuple[Order, ...]] = {
    "name": (Text("name"), "id"),
    "state": ("status", "id"),
    "service": (Text("service__name"), "service_ref", "id"),
    "program": (Text("comm"), "id"),
    "memory": ("pages_bytes", "id"),
    "size": ("size_bytes", "id"),
    "made": ("created_at", "id"),
}


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
    totals = Image.objects.order_by().values("status").annotate(count=Count("*"), bytes=Sum("size_bytes"))
    counts = {row["status"]: (row["count"], row["bytes"] or 0) for row in totals}
    return {
        "table": table(
            Image.objects.all(),
            look.query,
            columns=COLUMNS,
            orders=ORDERS,
            default="-made",
            filters=[Filter("status", "State", [state.value for state in ImageState]), *of_nodes()],
            searched=searched,
            shown=partial(shown_to, look.rights),
        ),
        "damaged": counts.get(ImageState.DAMAGED.value, (0, 0))[0],
        "counted": sum(count for count, _ in counts.values()),
        "bytes": sum(octets for _, octets in counts.values()),
    }


@page(
    "images/show.html",
    here="images",
    parts={"image": "images/_show.html"},
    topics=("image:{reference}", "tick"),
)
def image(look: Look, reference: str) -> Context:
    """Show an image: what is in it, what it was made with, and what was done with it."""
    found = Image.objects.for_display().by_reference(reference)
    if found.pk != reference:
        raise Moved(reverse("images:show", args=[found.pk]))
    seen = contents_object(found)
    others = Image.objects.filter(service_ref=found.service_ref).exclude(pk=found.pk)
    newest = others.order_by("-created_at").only("id", "name", "created_at", "service_ref")
    return {
        "image": found,
        "statistics": statistics(found.statistics),
        "seen": seen,
        "inside": arranged(seen["contents"]) if seen["contents"] else None,
        "others": list(newest[:20]),
    }


def statistics(found: dict[str, Any]) -> list[tuple[str, float]]:
    """Return CRIU's times of the dump in seconds, with words for them."""
    words = {
        "freezing_time": "Freezing took",
        "frozen_time": "It stood still for",
        "memdump_time": "Reading memory took",
        "memwrite_time": "Writing memory took",
    }
    return [(text, found[name] / 1e6) for name, text in words.items() if isinstance(found.get(name), int)]
