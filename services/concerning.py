"""What a line of the log is about: the job, the service and the image. Knows no format of lines."""

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

NAMES = ("job", "service", "image")

_ids: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039 - never changed


@contextlib.contextmanager
def concerning(**ids: str) -> Iterator[None]:
    """Let each line that this thread logs within the `with` be about these; empty ids are left out.

    ids: by NAMES.
    """
    token = _ids.set({**_ids.get(), **{name: text for name, text in ids.items() if text}})
    try:
        yield
    finally:
        _ids.reset(token)


def ids_of(record: logging.LogRecord) -> dict[str, str]:
    """Return what a line is about: what the thread says, and what the line itself was given by `extra`."""
    own = {name: str(vars(record)[name]) for name in NAMES if vars(record).get(name)}
    return {**_ids.get(), **own}
