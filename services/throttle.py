"""Counts what goes wrong, an address: failed logins and wrong tokens. It knows no request and no rows.

Each process of the site counts for itself, in memory: a count that costs a write would be a way to make the
site slow. It comes on top of what axes counts, a name and an address, in the database.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

MOST_ADDRESSES = 10_000


class Failures:
    """Failures of each address in the last window.

    Args:
        limit: so many are let through.
        window: seconds that a count lasts from its first failure.
    """

    def __init__(self, limit: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.window, self._clock = limit, window, clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._lock = Lock()

    def count(self, address: str) -> int:
        """Count one more failure, and return how many it is by now."""
        with self._lock:
            began, count = self._current(address)
            self._counts[address] = (began, count + 1)
            while len(self._counts) > MOST_ADDRESSES:
                self._counts.popitem(last=False)
            return count + 1

    def wait(self, address: str) -> int:
        """Return the seconds to wait until the address is heard again, 0 when it is heard now."""
        with self._lock:
            began, count = self._current(address)
            left = began + self.window - self._clock()
            return max(1, round(left)) if count >= self.limit else 0

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._counts.clear()

    def _current(self, address: str) -> tuple[float, int]:
        now = self._clock()
        began, count = self._counts.get(address, (now, 0))
        return (now, 0) if now - began > self.window else (began, count)


TOKENS = Failures(limit=20, window=60)
LOGINS = Failures(limit=30, window=60)
