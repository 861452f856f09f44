"""Reads the form of a remedy: what shall be asked for again, and with which options. It knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from images import retrying
from services.actors import Actor
from services.models import Job

# What a remedy may change, and how a form spells it.
_FLAGS = ("tcp_close", "tcp_skip_in_flight", "accept_changed_files")
_NUMBERS = ("ghost_limit", "freeze_timeout")


def retry(job: Job, given: Mapping[str, Any], *, actor: Actor, source: str) -> Job:
    """Ask for the same again.

    given: the form: flags that are set for this time are "on". Raises Problem as `request_retry` does.
    """
    options: dict[str, Any] = {name: True for name in _FLAGS if given.get(name) == "on"}
    for name in _NUMBERS:
        digits = str(given.get(name, ""))
        if digits.isascii() and digits.isdigit():
            options[name] = int(digits[:18])
    return retrying.request_retry(job, actor=actor, source=source, options=options)


def may_retry(job: Job) -> bool:
    """Tell whether a job has ended without success and is of a kind that can be asked for again."""
    return retrying.may_retry(job)
