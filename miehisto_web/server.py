"""gunicorn's ASGI worker, for a site that strangers reach: a head that doesn't come ends its connection.

gunicorn 27 counts connections but never refuses one, and waits for the first head for ever: a few hundred
senders of half a line would use up the descriptors of the site. It knows no request.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

PATIENCE = 10.0  # seconds for a request's head
MOST_WAITING = 400  # connections without a head; one more, and the one that waits longest is dropped
DESCRIPTORS = 65536


class Protocol(ASGIProtocol):  # type: ignore[misc]  # gunicorn has no type hints
    """One connection."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.worker.loop.call_later(PATIENCE, self._give_up)
        self.worker.waiting[self] = None
        if len(self.worker.waiting) > MOST_WAITING:
            next(iter(self.worker.waiting))._give_up()

    def _on_headers_complete(self) -> Any:
        self._settle()
        return super()._on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _settle(self) -> None:
        self.worker.waiting.pop(self, None)
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._settle()
        self._keepalive_timeout()  # gunicorn's own way to end a connection that is idle


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]
    """The worker to name with `-k miehisto_web.server.Worker`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Those without a head, the longest waiting first.
        self.waiting: dict[Protocol, None] = {}

    def init_process(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        gasgi.ASGIProtocol = Protocol  # the worker has no hook for it
        super().init_process()
