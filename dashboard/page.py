"""What a page is: a function from (address, query, rights) to what its template shows, and its live parts.

A page depends on nothing else of who looks, so that one rendering serves everybody who looks at the same
(see `live.py`). What differs from user to user, such as a form's token, stays outside the live parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

from asgiref.sync import markcoroutinefunction
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, QueryDict
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from dashboard.rights import Rights
from services.actors import require_auditor
from services.problems import Problem
from services.threads import in_thread

Context = dict[str, Any]
Words = Mapping[str, str]  # what the address names, e.g. {"reference": …}


@dataclass(frozen=True)
class Look:
    """Somebody looks at a page: with these rights, and this query string."""

    query: QueryDict
    rights: Rights


class Moved(Exception):
    """Raised by a page that has another address, e.g. that with the whole id."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


@dataclass(frozen=True)
class Part:
    """A region of a page that changes by itself: rendered HTML and a digest of it."""

    html: SafeString
    digest: str


Read = Callable[..., Context]


@dataclass(eq=False)
class Page:
    """A view of one page.

    read: makes the context from a Look and the address' words.
    template: of the whole page; it places the live parts by the tag `{% live NAME %}`.
    parts: name of a live part → its template.
    topics: what the parts depend on, such as "services" or "job:{reference}".
    here: which entry of the menu is lit.
    log: whether its stream also has the log of the service that its address names.
    audit: whether it shows the audit, which is for auditors and admins only.
    """

    read: Read
    template: str
    parts: Mapping[str, str] = field(default_factory=dict)
    topics: tuple[str, ...] = ()
    here: str = ""
    audit: bool = False
    log: bool = False

    def __post_init__(self) -> None:
        self.__name__ = self.read.__name__
        self.__qualname__ = self.read.__qualname__
        self.__doc__ = self.read.__doc__
        markcoroutinefunction(cast(Any, self))

    async def __call__(self, request: HttpRequest, **words: str) -> HttpResponse:
        """Answer in one of the threads that keep their database connection."""
        return await in_thread(self.answer, request, **words)

    def answer(self, request: HttpRequest, **words: str) -> HttpResponse:
        """Return the page, or only the part that htmx asks for."""
        if request.method not in {"GET", "HEAD"}:
            return HttpResponseNotAllowed(["GET", "HEAD"])
        user = user_of_page(request)
        look = Look(request.GET, Rights.of(user))
        if self.audit:
            require_auditor(user)
        try:
            context = self.context(look, **words)
        except Moved as moved:
            return redirect(moved.address)
        except Problem as problem:
            if problem.http_status != 404:
                raise
            raise Http404(problem.message) from problem
        wanted = request.headers.get("HX-Target", "").removeprefix("part-")
        if request.headers.get("HX-Request") and wanted in self.parts:
            answer = HttpResponse(self.rendered(context)[wanted].html)
        else:
            context["parts"] = self.rendered(context)
            answer = render(request, self.template, context)
        # Going back must not show what was true before; and a part must not be taken for the page.
        answer["Cache-Control"] = "no-store"
        answer["Vary"] = "HX-Request, Cookie"
        return answer

    def context(self, look: Look, **words: str) -> Context:
        """Return what the templates show."""
        return {**self.read(look, **words), "rights": look.rights, "here": self.here, "query": look.query}

    def rendered(self, context: Context) -> dict[str, Part]:
        """Return the live parts by name."""
        parts = {}
        for name, template in self.parts.items():
            html = render_to_string(template, context)
            digest = blake2b(html.encode(), digest_size=8).hexdigest()
            parts[name] = Part(mark_safe(html), digest)  # noqa: S308 (a template made it)
        return parts

    def topics_of(self, words: Words) -> frozenset[str]:
        """Return the topics of one address of this page."""
        return frozenset(topic.format(**words) for topic in self.topics)


def user_of_page(request: HttpRequest) -> User:
    """Return who is logged in; behind the gate somebody is."""
    user = request.user
    assert isinstance(user, User)
    return user


def page(
    template: str,
    *,
    here: str,
    parts: Mapping[str, str] | None = None,
    topics: tuple[str, ...] = (),
    audit: bool = False,
    log: bool = False,
) -> Callable[[Read], Page]:
    """Make a Page of the function below; the arguments are those of Page."""

    def make(read: Read) -> Page:
        return Page(read, template, parts or {}, topics, here, audit, log)

    return make
