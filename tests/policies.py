"""Root's policy of the tests' node, changed for a while, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.isolation import POLICY
from tests.stack import Stack


@contextmanager
def rules(*lines: str) -> Iterator[None]:
    """Have these lines in the policy of the tests' node."""
    POLICY.write_text("\n".join(lines))
    try:
        yield
    finally:
        POLICY.write_text("")


def error_of_last_job(stack: Stack) -> dict[str, Any]:
    """Return what the newest job of a node failed by."""
    found: dict[str, Any] = stack.api("GET", "jobs?limit=1").body[0]["error"]
    return found
