"""Runs a part of a test with a supervisor of miehistod's whose pauses are short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from miehistod.supervisor import Supervisor, Timing

QUICK = Timing(first_pause=0.05, longest_pause=0.2, calm=60.0, deaths=4, window=30.0, term=1.0, last=1.0)


def supervised(work: Callable[[Supervisor], Coroutine[Any, Any, None]], timing: Timing = QUICK) -> list[str]:
    """Runs a test's body with a supervisor and returns what was said; nothing is left running."""
    said: list[str] = []

    async def body() -> None:
        supervisor = Supervisor(said.append, timing)
        try:
            await asyncio.wait_for(work(supervisor), 20)
        finally:
            await supervisor.stop()

    asyncio.run(body())
    return said
