"""Runs row-reading and row-writing functions beside the event loop. It knows no rows.

Django's own sync_to_async makes a thread, and so a database connection, a request. These few threads stay
and keep theirs.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import close_old_connections

P = ParamSpec("P")
R = TypeVar("R")

_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="rows")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return (or raise) what `function` does, called in a thread that keeps its database connection."""
    context = contextvars.copy_context()  # which knows where the request comes from
    return await asyncio.get_running_loop().run_in_executor(
        _threads, partial(context.run, partial(_call, function, *args, **kwargs))
    )


def _call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    close_old_connections()  # those that broke or are past CONN_MAX_AGE
    return function(*args, **kwargs)
