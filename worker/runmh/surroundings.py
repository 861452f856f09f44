"""What a process inherits without being asked, set to values of our own, so that no service depends on who
started miehistod: resource limits, priority, the kernel's choice when memory runs out. Knows no service.
"""

from __future__ import annotations

import contextlib
import os
import resource

_MANY = resource.RLIM_INFINITY
# Soft and hard, as systemd gives them to services (systemd.exec(5), "Process Properties").
_LIMITS = {
    resource.RLIMIT_AS: (_MANY, _MANY),
    resource.RLIMIT_CORE: (0, _MANY),
    resource.RLIMIT_CPU: (_MANY, _MANY),
    resource.RLIMIT_DATA: (_MANY, _MANY),
    resource.RLIMIT_FSIZE: (_MANY, _MANY),
    resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20),
    resource.RLIMIT_NOFILE: (1024, 512 << 10),
    resource.RLIMIT_NPROC: (_MANY, _MANY),
    resource.RLIMIT_STACK: (8 << 20, _MANY),
}


def settle(open_files: int = 0) -> None:
    """Set them for this process and its children.

    What this process may not raise (without CAP_SYS_RESOURCE it may not) stays as low as it was.

    Args:
        open_files: how many files each process may have open; 0 for the default.
    """
    limits = _LIMITS | ({resource.RLIMIT_NOFILE: (open_files, open_files)} if open_files else {})
    for which, (soft, hard) in limits.items():
        if resource.getrlimit(which) == (soft, hard):
            continue
        try:
            resource.setrlimit(which, (soft, hard))
        except (OSError, ValueError):
            most = resource.getrlimit(which)[1]
            resource.setrlimit(which, (most if _less(most, soft) else soft, most))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")


def _less(one: int, other: int) -> bool:
    return one != _MANY and (other == _MANY or one < other)
