"""A service's log as it is written, as events of the stream that an open page has. It knows no pages."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from services import logs
from services.lookup import find_service
from services.problems import Problem
from services.threads import in_thread

LINES = 200


async def followed(reference: str) -> AsyncGenerator[bytes | None, None]:
    """Yield the last lines of a service's log, and what is added to it; b"" when nothing was for a while.

    A browser that comes again shows the last lines in the place of what it had. None is yielded, last, when
    there is no such service.
    """
    try:
        service = await in_thread(find_service, reference)
    except Problem:
        yield None
        return
    text, inode, offset = await in_thread(logs.tail, service.pk, LINES)
    yield _event("tail", text)
    async with aclosing(logs.follow(inode, offset, logs.path_of(service.pk))) as added:
        async for piece in added:
            yield _event("more", piece) if piece else b""


def _event(name: str, text: bytes) -> bytes:
    return f"event: {name}\ndata: {json.dumps(text.decode(errors='replace'))}\n\n".encode()
