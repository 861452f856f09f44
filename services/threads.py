"""Runs row-reading and row-writing functions beside the event loop. It knows no rows.

Django's own sync_to_async makes a thread, and so a database connection, a request. These few threads stay
and keep theirs.
"""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import close_old_connections

P = ParamSpec("P")
R = TypeVar("R")

POLITE = 10  # how nice the polite thread is: beside a busy process of weight 1024 it weighs 110 (sched(7))


def _be_polite() -> None:
    # On Linux a priority is a thread's, see setpriority(2), "C library/kernel differences". A site that was
    # started nicer than that may not go back, and has no reason to.
    thread = threading.get_native_id()
    nice = max(POLITE, os.getpriority(os.PRIO_PROCESS, thread))
    os.setpriority(os.PRIO_PROCESS, thread, nice)


_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="rows")
_polite = ThreadPoolExecutor(max_workers=1, thread_name_prefix="polite", initializer=_be_polite)


async def in_polite_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return (or raise) what `function` does, called when the processors have nothing better to do.

    It is for what nobody waits for, one at a time: CRIU and the worker go first.
    """
    return await asyncio.get_running_loop().run_in_executor(
        _polite, partial(_call, function, *args, **kwargs)
    )


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return (or raise) what `function` does, called in a thread that keeps its database connection."""
    context = contextvars.copy_context()  # which knows where the request comes from
    return await asyncio.get_running_loop().run_in_executor(
        _threads, partial(context.run, partial(_call, function, *args, **kwargs))
    )


def _call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    close_old_connections()  # those that broke or are past CONN_MAX_AGE
    return function(*args, **kwargs)
