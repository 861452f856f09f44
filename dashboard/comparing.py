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
    given = [image for image in (context["a"], context["b"]) if image]
    if given:
        offered = offered.filter(service_ref=given[0].service_ref)
    found = list(offered[:MOST_OFFERED])
    # A select that does not offer what is compared would show another image, and compare that next time.
    found += [image for image in dict.fromkeys(given) if image not in found]
    context["offered"] = sorted(found, key=lambda image: (image.created_at, image.pk), reverse=True)
    a, b = _chosen(context["a"], context["b"], context["offered"])
    context["choices"] = [("a", "One", a and a.pk), ("b", "The other", b and b.pk)]
    return context


def _chosen(a: Image | None, b: Image | None, offered: list[Image]) -> tuple[Image | None, Image | None]:
    """Return what is chosen at first: what is compared; beside one image, and without any, the newest.

    offered: the newest first, of the same service as `a` or `b`. Never one image twice: nothing differs then.
    """
    if a and b:
        return a, b
    if one := a or b:
        other = next((image for image in offered if image != one), None)
        return (one, other) if a else (other, one)
    for at, newer in enumerate(offered):
        for older in offered[at + 1 :]:
            if older.service_ref == newer.service_ref:
                return older, newer
    return None, None


def _widths(mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each mapping how wide its change is drawn, in percent of half of the picture."""
    most = max((abs(each["stored"]["change"]) for each in mappings), default=0) or 1
    return [{**each, "width": round(50 * abs(each["stored"]["change"]) / most, 2)} for each in mappings]
