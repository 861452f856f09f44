"""Pairs of timings, their median and spread. Knows nothing of what is timed."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """Seconds of the same work done again and again."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def at(self, percent: float) -> float:
        """The value that so many percent of them do not exceed (nearest rank)."""
        return sorted(self.seconds)[max(0, math.ceil(len(self.seconds) * percent / 100) - 1)]

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.seconds):.3f}-{max(self.seconds):.3f})"


def ratio(ours: Sample, theirs: Sample) -> str:
    """Return how many times longer ours took, pair by pair: median (least-most)."""
    pairs = [mine / other for mine, other in zip(ours.seconds, theirs.seconds, strict=True)]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def machine() -> str:
    """Return what the numbers were taken on, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    release = platform.freedesktop_os_release()
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    models = (row.partition(":")[2].strip() for row in rows if "model name" in row)
    model = next(models, platform.machine())
    return (
        f"{release.get('PRETTY_NAME', 'Linux')}, Linux {platform.release()},"
        f" {os.cpu_count()} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}"
    )
