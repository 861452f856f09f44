"""The page that compares two images of a service."""

from __future__ import annotations

from typing import Any

from dashboard.page import Context, Look, page
from images.contents import comparison
from images.models import Image
from services.problems import Problem

MOST_OFFERED = 100
MOST_MAPPINGS = 40


@page("images/compare.html", here="images")
def compare(look: Look) -> Context:
    """Show what differs between the images `a` and `b`; without them, let them be chosen."""
    context: dict[str, Any] = {"a": None, "b": None, "found": None, "problem": None}
    try:
        for name in ("a", "b"):
            if reference := look.query.get(name):
                context[name] = Image.objects.for_display().by_reference(reference)
        if context["a"] and context["b"]:
            before, after = sorted((context["a"], context["b"]), key=lambda image: image.created_at)
            context |= {"before": before, "after": after, "found": comparison(before, after)}
            context["mappings"] = _widths(context["found"]["mappings"][:MOST_MAPPINGS])
    except Problem as problem:
        context["problem"] = problem
    offered = Image.objects.for_display().defer("manifest", "statistics").order_by("-created_at", "-id")
    known = context["a"] or context["b"]
    if known:
        offered = offered.filter(service_ref=known.service_ref)
    context["offered"] = list(offered[:MOST_OFFERED])
    chosen = [context["a"], context["b"]]
    context["choices"] = [
        (name, label, image.pk if image else "")
        for name, label, image in zip(("a", "b"), ("One", "The other"), chosen, strict=True)
    ]
    return context


def _widths(mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each mapping how wide its change is drawn, in percent of half of the picture."""
    most = max((abs(each["stored"]["change"]) for each in mappings), default=0) or 1
    return [{**each, "width": round(50 * abs(each["stored"]["change"]) / most, 2)} for each in mappings]
