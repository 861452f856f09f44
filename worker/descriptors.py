"""How many descriptors a process may have: many for who watches services, what it was for the services."""

from __future__ import annotations

import resource

_given: list[tuple[int, int]] = []


def allow_many() -> None:
    """Raise the soft limit to the hard one: the agent holds two descriptors of each running service."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        _given.append((soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def allow_as_before() -> None:
    """Take `allow_many` back in a child, whose services inherit the limit: some programs cannot do with many.

    select(2) serves 1,024 only, and older daemons close each number up to the limit when they start.
    """
    if _given:
        soft, hard = _given[0]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))
