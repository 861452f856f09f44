"""What stands before Django: how large a body may be and how long it may take. It knows no address.

Django reads a body to its end, into a file when it is long, before any middleware can refuse it, and waits
for each piece as long as the sender likes. Here it is read first, into memory, up to a size and a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

MOST = 1024 * 1024  # bytes of a body
STILL_READ = 8 * MOST
"""Bytes of a body that are read, though not kept: who hangs up on a sender takes the refusal from him."""
PATIENCE = 10.0  # seconds from a request's head to the end of its body
REFUSED = "miehisto.refused"
"""Where the scope says with which status the front must refuse a request whose body was not read."""


class Gone(Exception):
    """The sender hung up."""


class Limits:
    """An ASGI application before another one."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})  # before it is accepted: 403
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body, refused = await _read(scope, receive)
        except Gone:
            return
        if refused:
            scope, send, receive = {**scope, REFUSED: refused}, _closing(send), _never
        await self.app(scope, _again(body, receive), send)


async def _read(scope: dict[str, Any], receive: Receive) -> tuple[bytes, HTTPStatus | None]:
    """Return the body, or with which status to refuse it."""
    too_large = b"", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > STILL_READ):
            return too_large
    pieces: list[bytes] = []
    size = 0
    clock = asyncio.get_running_loop().time
    deadline = clock() + PATIENCE
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            return b"", HTTPStatus.REQUEST_TIMEOUT
        if (
            clock() > deadline
        ):  # a piece that comes just then can swallow the timeout (Python 3.11's wait_for)
            return b"", HTTPStatus.REQUEST_TIMEOUT
        if message["type"] == "http.disconnect":
            raise Gone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > STILL_READ:
            return too_large
        if size > MOST:
            pieces.clear()
        if not message.get("more_body", False):
            return too_large if size > MOST else (b"".join(pieces), None)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and from then on what comes."""
    given = False

    async def give() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return give


async def _never() -> Message:
    """Wait until the answer is sent: nobody wants the rest of a body that was refused."""
    await asyncio.get_running_loop().create_future()
    raise Gone


def _closing(send: Send) -> Send:
    """Return a `send` that ends the connection after the answer: the rest of the body is still to come."""

    async def say(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return say
