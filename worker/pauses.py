"""Pauses between tries of what goes on failing, each twice as long as the last. Knows not what is tried."""

from __future__ import annotations

import time

_SHORTEST, _LONGEST = 1.0, 3600.0


class Pauses:
    """The pauses of many, by a name.

    Args:
        first: seconds of the first one; none is shorter than a second or longer than an hour.
    """

    def __init__(self, first: float) -> None:
        self._first = max(first, _SHORTEST)
        self._until: dict[str, tuple[float, float]] = {}

    def begin(self, name: str) -> None:
        """Begin the next pause."""
        _, last = self._until.get(name, (0.0, self._first / 2))
        pause = min(2 * last, _LONGEST)
        self._until[name] = time.monotonic() + pause, pause

    def last(self, name: str) -> bool:
        """Tell whether the pause that was begun goes on."""
        return name in self._until and time.monotonic() < self._until[name][0]

    def forget(self, name: str) -> None:
        """Let the next pause be a first one."""
        self._until.pop(name, None)
