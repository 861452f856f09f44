"""Template tags of the pages: icons, live parts, sizes and durations."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from django import template
from django.http import QueryDict
from django.template.context import RequestContext
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from dashboard import actions, rights
from dashboard.page import Part
from services.states import JobKind

register = template.Library()

_STATUS_ICONS = {
    "running": "running",
    "succeeded": "ok",
    "sealed": "ok",
    "done": "ok",
    "asked": "queued",
    "refused": "failed",
    "queued": "queued",
    "created": "queued",
    "starting": "busy",
    "stopping": "busy",
    "dumping": "busy",
    "restoring": "busy",
    "dumped": "image",
    "stopped": "stopped",
    "exited": "exited",
    "cancelled": "stopped",
    "failed": "failed",
    "errored": "failed",
    "lost": "failed",
    "damaged": "failed",
}


# Each is on a page fifty times, and there are few of them.
@register.simple_tag
@lru_cache(maxsize=256)
def icon(name: str) -> SafeString:
    """Show one of our icons; the word beside it says what it means, so it is hidden from screen readers."""
    return format_html(
        '<svg class="icon" aria-hidden="true" focusable="false"><use href="{}#{}"/></svg>',
        static("icons.svg"),
        name,
    )


@register.simple_tag
@lru_cache(maxsize=256)
def status(word: str, job: bool = False) -> SafeString:
    """Show a state: a sign, a colour and the word. job: a running job is busy, a running service is well."""
    sign = "busy" if job and word == "running" else _STATUS_ICONS.get(word, "queued")
    kind = "busy" if sign == "busy" else word
    return format_html('<span class="status {}">{}{}</span>', kind, icon(sign), word)


@register.simple_tag(takes_context=True)
def live(context: RequestContext, name: str) -> SafeString:
    """Place a live part of the page."""
    part: Part = context["parts"][name]
    return format_html(
        '<div id="part-{}" class="part" data-digest="{}">{}</div>', name, part.digest, part.html
    )


@register.simple_tag
def when(at: datetime | None) -> SafeString:
    """Show a moment; with JavaScript it becomes "3 min ago", and keeps the whole as its title."""
    if at is None:
        return mark_safe('<span class="none">–</span>')
    return format_html(
        '<time datetime="{}" data-ago>{}</time>',
        at.isoformat(timespec="milliseconds"),
        _in_utc(at),
    )


@register.simple_tag
def due(at: datetime) -> SafeString:
    """Show a moment that is to come; with JavaScript it becomes "in 3 min"."""
    moment = at.isoformat(timespec="milliseconds")
    return format_html('<time datetime="{}" data-due>{}</time>', moment, _in_utc(at))


def _in_utc(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


@register.filter
def size(count: int | None) -> str:
    """Return bytes as people read them, e.g. 21.4 MiB."""
    if count is None:
        return "–"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


@register.filter
def change(count: int) -> str:
    """Return a difference of bytes with its sign."""
    if not count:
        return "–"
    return f"{'+' if count > 0 else '−'}{size(abs(count))}"


@register.filter
def duration(seconds: float | None) -> str:
    """Return seconds as people read them: 4 ms, 1.24 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    whole = int(seconds)
    for big, small, unit, rest in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            left = whole % big // small
            return f"{whole // big} {unit} {left} {rest}" if left else f"{whole // big} {unit}"
    return f"{whole} s"


@register.filter
def cores(count: float | None) -> str:
    """Return a load of processors in percent of one, as top(1) does."""
    return "–" if count is None else f"{100 * count:.0f} %" if count >= 0.095 else f"{100 * count:.1f} %"


@register.filter
def ports(addresses: list[str], most: int = 3) -> str:
    """Return the ports of some addresses, each once."""
    found = sorted({int(port) for each in addresses if (port := each.rpartition(":")[2]).isdigit()})
    return ", ".join(map(str, found[:most])) + (" …" if len(found) > most else "")


@register.filter
def short(identifier: str) -> str:
    """Return the first digits of an id, enough to tell it from others."""
    return identifier[:12]


_WORDS = {"check_service": "dry run", "check": "check of the node", "read_environment": "show environment"}


@register.filter
def words(kind: str) -> str:
    """Return a kind of job or an action as words: delete_image → delete image."""
    return _WORDS.get(kind) or kind.replace("_", " ")


DOES: Mapping[str, str] = {
    JobKind.START: "A start runs the service's command from the beginning, with empty memory.",
    JobKind.STOP: "A stop asks the service to end, and kills it if that takes too long; its memory is lost.",
    JobKind.RESTART: "A restart stops the service and runs its command again from the beginning.",
    JobKind.DUMP: "A dump writes a running service into an image, to go on from exactly there later.",
    JobKind.RESTORE: "A restore lets a service go on from an image, where it was at the dump.",
    JobKind.DELETE_SERVICE: "The service is forgotten and its log deleted; its images stay.",
    JobKind.VERIFY_IMAGE: "Each file of the image is read and compared with the sums made at the dump.",
    JobKind.DELETE_IMAGE: "The files of the image are deleted, which cannot be undone.",
    JobKind.EXPORT_IMAGE: "The image is written into an archive, for another node or a backup.",
    JobKind.IMPORT_IMAGE: "An image is taken out of an archive and put into the pool of this node.",
    JobKind.CHECK: "The node looks whether it can dump and restore, and what is missing.",
    JobKind.CHECK_SERVICE: "A dry run looks whether a service could be dumped now, and changes nothing.",
    JobKind.CHECK_COMMAND: "The node looks whether a command could be started there, and runs nothing.",
    JobKind.READ_ENVIRONMENT: "The values of the environment are read out of the image, for who asked alone.",
}
"""What a job of each kind does, one sentence each."""


@register.filter
def does(kind: str) -> str:
    """Return what a job of a kind does."""
    return DOES.get(kind, "")


@register.filter
def dialog_words(text: str) -> str:
    """Return a remedy with the dump's options called as its dialog calls them."""
    return actions.in_words(text)


# Why an operator may not bring a service, or that of an image, to life.
register.filter("barred", rights.barred)
register.filter("barred_values", rights.barred_values)


@register.filter
def dialog_options(options: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return options that a dry run asks for: name, label, and the value as it is typed."""
    return actions.as_typed(options)


@register.filter
def dictkeys(found: dict[str, Any]) -> list[str]:
    """Return the keys of a dictionary."""
    return list(found)


@register.simple_tag(takes_context=True)
def query_with(context: RequestContext, **changes: Any) -> str:
    """Return the page's query string with some values changed; an empty one is left out."""
    query: QueryDict = context["query"].copy()
    for name, value in changes.items():
        query.pop(name, None)
        if value not in {None, ""}:
            query[name] = str(value)
    return "?" + query.urlencode()


@register.filter
def chosen(query: QueryDict, name: str) -> str:
    """Return a value of the query string."""
    return query.get(name, "")
