"""Which unit of systemd's this process belongs to. Knows nothing of services."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_BOOTED = Path("/run/systemd/system")
"""There if and only if systemd is PID 1 (sd_booted(3))."""


def unit_of(groups: str, environ: Mapping[str, str]) -> str:
    """Return the service of the system's own systemd that a process was started in; "" if there is none.

    Args:
        groups: its /proc/PID/cgroup.
        environ: its environment; a unit's processes have been told so there (systemd.exec(5)).
    """
    if "SYSTEMD_EXEC_PID" not in environ:
        return ""
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        unit = path.rpartition("/")[2]
        # Version 2, or systemd's own hierarchy of version 1. A user's systemd cannot do what is asked.
        if names in {"", "name=systemd"} and unit.endswith(".service") and "/user@" not in path:
            return unit
    return ""


@cache
def own() -> str:
    """Return the unit that this very process runs in; "" where systemd has not started it."""
    if not _BOOTED.is_dir():
        return ""
    return unit_of(Path("/proc/self/cgroup").read_text(encoding="utf-8"), os.environ)
