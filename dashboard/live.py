"""Keeps open pages up to date: one listener to the bell a process, one rendering for all who see the same.

Pages that look at the same address with the same rights form an Audience. When something changes that it
depends on, its parts are rendered once, and those that differ are sent to each page as a server-sent event.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from urllib.parse import urlsplit

from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, QueryDict, StreamingHttpResponse
from django.urls import Resolver404, resolve
from django.views.decorators.http import require_GET

from dashboard.changes import Changes
from dashboard.following import followed
from dashboard.page import Look, Moved, Page, Part, Words
from dashboard.rights import Rights
from services import waiting
from services.authentication import Hearing
from services.problems import Problem
from services.roles import AUDIT, SEE
from services.threads import in_polite_thread, in_thread

log = logging.getLogger(__name__)

# After a ring the rows are looked at so much later: the steps of a short job are one look, and while CRIU has
# its service frozen nothing is rendered beside it. Where many different pages are open it is twice the time
# of a processor that rendering them took, so that this takes a third of one at the most.
LEAST_PAUSE, LONGEST_PAUSE = 0.25, 0.5  # seconds; a change is to be seen within one
LOOK_ANYWAY = 2.0  # seconds between two looks at the rows when no bell rings: a ring can be lost
LONGEST = 300.0  # seconds; then the browser comes again, and whether it may is asked anew
KEEP_ALIVE = 15.0  # seconds
RETRY = 1000  # milliseconds that a browser waits before it comes again

_END = "end"  # of a stream

RELOAD = b"event: reload\ndata: \n\n"

Parts = dict[str, Part]


class Audience:
    """Those who look at one address of one page with the same rights."""

    def __init__(self, page: Page, look: Look, words: Words) -> None:
        self.page = page
        self.look = look
        self.words = words
        self.topics = page.topics_of(words)
        self.parts: Parts | None = None
        self.gone = False
        self.listeners: set[asyncio.Event] = set()
        self._news: dict[frozenset[str], bytes] = {}

    def news(self, have: frozenset[str]) -> tuple[bytes, frozenset[str]]:
        """Return the event for a page that has the parts with these digests, and what it has after it.

        b"" when it has all of them. Those who look at the same mostly have the same, and get the same bytes.
        """
        if not self.parts:
            return b"", have
        now = frozenset(part.digest for part in self.parts.values())
        has = have & now  # what it has besides makes no difference
        if has not in self._news:
            lacks = {name: part for name, part in self.parts.items() if part.digest not in has}
            data = {name: {"digest": part.digest, "html": part.html} for name, part in lacks.items()}
            self._news[has] = f"event: parts\ndata: {json.dumps(data)}\n\n".encode() if data else b""
        return self._news[has], now

    def render(self) -> tuple[Parts | None, bool]:
        """Return the parts as they are now, and whether the page is gone."""
        try:
            context = self.page.context(self.look, **self.words)
            return self.page.rendered(context), False
        except (Problem, Moved, Http404):
            return None, True

    async def refresh(self) -> float:
        """Render, and wake those whose page differs. Returns the seconds of a processor that it took."""
        try:
            parts, gone, seconds = await in_polite_thread(self._timed)
        except DatabaseError as error:
            log.warning("a live page cannot be read, and is tried again: %s", error)
            return 0.0
        if (parts, gone) != (self.parts, self.gone):
            self.parts, self.gone = parts, gone
            self._news.clear()
            for listener in self.listeners:
                listener.set()
        return seconds

    def _timed(self) -> tuple[Parts | None, bool, float]:
        began = time.thread_time()
        return *self.render(), time.thread_time() - began


class Hub:
    """All audiences of one process, and the task that wakes them while there are any."""

    def __init__(self) -> None:
        self._audiences: dict[object, Audience] = {}
        self._task: asyncio.Task[None] | None = None
        self._rendering = asyncio.Lock()

    async def follow(
        self, page: Page, look: Look, words: Words, have: frozenset[str]
    ) -> AsyncGenerator[bytes | None, None]:
        """Yield the parts that differ from what the page has, now and whenever it changes; b"" to keep alive.

        have: digests of the parts that the page shows. None is yielded, last, when the page is gone.
        """
        key = (id(page), look.query.urlencode(), look.rights, tuple(sorted(words.items())))
        audience = self._audiences.setdefault(key, Audience(page, look, words))
        woken = asyncio.Event()
        audience.listeners.add(woken)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            async with self._rendering:  # who comes together is served by one rendering
                if audience.parts is None:
                    await audience.refresh()
            deadline = time.monotonic() + LONGEST
            while True:
                if audience.gone:
                    yield None
                    return
                woken.clear()
                news, have = audience.news(have)
                yield news
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), min(left, KEEP_ALIVE))
        finally:
            audience.listeners.discard(woken)
            if not audience.listeners and self._audiences.get(key) is audience:
                del self._audiences[key]

    async def _run(self) -> None:
        """Look at the rows whenever the bell rings; end when nobody looks any more."""
        changes = Changes()
        pause = LEAST_PAUSE
        await in_polite_thread(changes.look)
        # What was rendered before this task could look may be old by now.
        stale = set(self._audiences.values())
        async with aclosing(waiting.rings(LOOK_ANYWAY)) as rings:
            async for _ in rings:
                if not self._audiences:
                    return
                await asyncio.sleep(pause)
                try:
                    topics = await in_polite_thread(changes.look)
                except DatabaseError as error:
                    log.warning("live pages cannot see what changed, and try again: %s", error)
                    topics = frozenset()
                for audience in self._audiences.values():
                    if audience.topics & topics or (audience.parts is None and not audience.gone):
                        stale.add(audience)
                seconds = 0.0
                for audience in stale:
                    if audience.listeners:
                        async with self._rendering:
                            seconds += await audience.refresh()
                stale = set()
                pause = min(max(2 * seconds, LEAST_PAUSE), LONGEST_PAUSE)


_hub = Hub()


@login_not_required
@require_GET
async def live(request: HttpRequest) -> HttpResponseBase:
    """Stream the changes of the page named by ?on=, for whoever may see it."""
    found = _resolved(request.GET.get("on", ""))
    if found is None:
        raise Http404
    page, words, query = found
    # Not request.auser(), whose connection to the database would be open as long as the stream.
    rights = await in_thread(lambda: Rights.of(request.user))
    if not (rights.audit if page.audit else rights.see):
        # Logged out meanwhile. Sent to the login an EventSource would only try again; so the page is told.
        return HttpResponse(RELOAD, content_type="text/event-stream")
    have = frozenset(request.GET.get("have", "").split(",")) - {""}
    answer = StreamingHttpResponse(
        _events(page, Look(query, rights), words, have, Hearing(request, AUDIT if page.audit else SEE)),
        content_type="text/event-stream",
    )
    answer["Cache-Control"] = "no-store"
    answer["X-Accel-Buffering"] = "no"
    return answer


def _resolved(address: str) -> tuple[Page, Words, QueryDict] | None:
    """Return the page of an address of ours, with live parts."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    try:
        found = resolve(parts.path)
        query = QueryDict(parts.query)
    except (Resolver404, ValueError):
        return None
    if not isinstance(found.func, Page) or not (found.func.parts or found.func.log):
        return None
    return found.func, found.kwargs, query


async def _events(
    page: Page, look: Look, words: Words, have: frozenset[str], hearing: Hearing
) -> AsyncGenerator[bytes, None]:
    yield f"retry: {RETRY}\n\n".encode()
    streams = [_hub.follow(page, look, words, have)] if page.parts else []
    if page.log:
        # Over the same stream: browsers have six for one site, and three windows would take them all.
        streams.append(followed(words["reference"]))
    spoken = began = time.monotonic()
    async with aclosing(_merged(streams)) as news:
        async for event in news:
            if event is None or await hearing.is_over(speaking=bool(event)):
                yield RELOAD
                return
            now = time.monotonic()
            if event or now - spoken >= KEEP_ALIVE:
                yield event or b":\n\n"
                spoken = now
            if now - began > LONGEST:
                return


async def _merged(streams: list[AsyncGenerator[bytes | None, None]]) -> AsyncGenerator[bytes | None, None]:
    """Yield what any of these yields, until one of them ends."""
    asked = {asyncio.ensure_future(anext(stream, _END)): stream for stream in streams}
    try:
        while True:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                stream = asked.pop(each)
                event = each.result()
                if isinstance(event, str):
                    return
                yield event
                asked[asyncio.ensure_future(anext(stream, _END))] = stream
    finally:
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
