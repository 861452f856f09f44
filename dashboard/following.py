"""A service's log as it is written, as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_GET

from dashboard.live import KEEP_ALIVE, LONGEST, RELOAD, RETRY
from dashboard.rights import Rights
from services import logs
from services.authentication import Hearing
from services.lookup import find_service
from services.problems import Problem
from services.threads import in_thread

LINES = 200


@login_not_required
@require_GET
async def log_stream(request: HttpRequest, reference: str) -> HttpResponseBase:
    """Stream the last lines of a log, and what is added to it."""
    rights = await in_thread(lambda: Rights.of(request.user))
    if not rights.see:
        return HttpResponse(RELOAD, content_type="text/event-stream")
    try:
        service = await in_thread(find_service, reference)
    except Problem as problem:
        raise Http404(problem.message) from problem
    answer = StreamingHttpResponse(_events(service.pk, Hearing(request)), content_type="text/event-stream")
    answer["Cache-Control"] = "no-store"
    answer["X-Accel-Buffering"] = "no"
    return answer


async def _events(service_id: str, hearing: Hearing) -> AsyncGenerator[bytes, None]:
    """Begin with the last lines: a browser that comes again shows them in the place of what it had."""
    deadline = time.monotonic() + LONGEST
    text, inode, offset = await in_thread(logs.tail, service_id, LINES)
    yield f"retry: {RETRY}\n".encode() + _event("tail", text)
    spoken = time.monotonic()
    async with aclosing(logs.follow(inode, offset, logs.path_of(service_id))) as added:
        async for piece in added:
            if time.monotonic() > deadline or await hearing.is_over(speaking=bool(piece)):
                return
            if piece:
                yield _event("more", piece)
                spoken = time.monotonic()
            elif time.monotonic() - spoken > KEEP_ALIVE:
                yield b":\n\n"
                spoken = time.monotonic()


def _event(name: str, text: bytes) -> bytes:
    return f"event: {name}\ndata: {json.dumps(text.decode(errors='replace'))}\n\n".encode()
